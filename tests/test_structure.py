"""The house rules that a machine can see: rooms, packaging files in step, one source for notebooks, tidy notebooks."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from llamamm.course.build.lessons import minutes, opening_line, with_table
from llamamm.course.build.sync import quoting_cells, sync_notebook
from llamamm.course.env import LESSON_PACKAGES, colab_url
from tests.processes import finish

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "llamamm"
TRAINING_LESSONS = ("09", "10", "14", "16")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# What each room may import; `errors` is open to all. A room is a folder, or one of the files in the top room.
MAY_IMPORT = {
    "errors": "",
    "files": "", "devices": "", "wiring": "",
    "text": "files", "senses": "files",
    "generation": "text senses",
    "weights": "text files",
    "lora": "weights text wiring files",
    "multimodal": "generation text senses files",
    "fast": "lora text wiring files",
    "llama32_vision": "multimodal generation text senses files",
    "assets": "weights senses files",
    "doctor": "fast weights files devices",
    "pretrained": "assets fast weights lora llama32_vision multimodal generation senses text wiring files",
    "tasks": "assets multimodal generation senses",
    "train": "assets pretrained tasks fast lora weights multimodal generation senses text files devices",
    "safety": "assets pretrained lora multimodal generation senses text files devices",
    "evals": "safety train tasks assets pretrained fast lora multimodal generation senses text files devices",
    "experiments": "safety evals train tasks pretrained assets fast llama32_vision multimodal generation senses text "
                   "wiring files",
}  # fmt: skip
MAY_IMPORT["course"] = " ".join(MAY_IMPORT)
MAY_IMPORT["cli"] = " ".join([*MAY_IMPORT, "__init__"])  # the face tells the version
MAY_IMPORT["__main__"] = "cli"
FACE = "__init__"
# Signs with names behind them: the package's, the exercises', and the promised door `from llamamm.safety import ...`.
FACES = (PACKAGE, PACKAGE / "course" / "checks", PACKAGE / "safety")
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path):
    """The folder of a module, or its own name where it stands in the top room."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(tree, *, name="tree"):
    """Names of this package's rooms that a module imports, wherever in it the import stands."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            names = [f"{node.module}.{a.name}" if node.module == "llamamm" else node.module for a in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        for n in names:
            if n.split(".")[0] == "llamamm":
                part = n.split(".")[1] if "." in n else FACE
                yield part if part in MAY_IMPORT else FACE


def forbidden(room, tree):
    """The rooms that a module of `room` imports against the table."""
    return {other for other in imports_of(tree) if other not in {room, "errors", *MAY_IMPORT[room].split()}}


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) != FACE], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_what_the_table_allows(path):
    room = room_of(path)
    assert room in MAY_IMPORT, f"{room} is not in the table"
    assert forbidden(room, ast.parse(path.read_text(encoding="utf-8"))) == set()


def test_the_table_has_no_circle_and_no_room_that_is_not_there():
    assert {*MAY_IMPORT} == {room_of(p) for p in MODULES} - {FACE}
    order = list(MAY_IMPORT)  # each may import only what stands before it
    for room, others in MAY_IMPORT.items():
        assert all(order.index(other) < order.index(room) for other in others.split() if other != FACE), room


@pytest.mark.parametrize(
    ("room", "code", "found"),
    [
        ("text", "from llamamm.generation.session import ChatSession", {"generation"}),
        ("text", "def late():\n    import llamamm.train.loop", {"train"}),
        ("senses", "from llamamm import from_pretrained", {FACE}),
        ("course", "from llamamm.cli.main import app", {"cli"}),
        ("text", "from llamamm.errors import InputError\nfrom llamamm.text.rope import apply_rope", set()),
    ],
)
def test_an_import_against_the_table_is_noticed(room, code, found):
    assert forbidden(room, ast.parse(code)) == found


def test_every_room_has_a_sign_alone():
    for room in PACKAGE.rglob("__init__.py"):
        tree = ast.parse(room.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), room
        if room.parent not in FACES:
            assert len(tree.body) == 1, f"{room}: a sign is a docstring alone; a name has one home"


@pytest.mark.parametrize("room", [PACKAGE / name for name in ROOMS], ids=lambda room: room.name)
def test_a_sign_names_all_that_is_in_its_room(room):
    sign = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    folders = {path.parent.name for path in room.glob("*/__init__.py")}
    inside = {path.stem for path in room.glob("*.py")} | folders
    assert inside - {"__init__"} - set(re.findall(r"\w+", sign)) == set()


def test_rooms_are_two_levels_deep_and_tests_stand_in_the_same_rooms():
    for path in MODULES:
        parts = path.relative_to(PACKAGE).parts
        assert len(parts) <= (3 if parts[0] == "course" else 2), path
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert (PACKAGE / path.parent.relative_to(ROOT / "tests")).is_dir(), f"{path}: no such room in the package"


def test_the_readme_prints_the_rooms():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"^    llamamm/\n((?:      .*\n)+)", readme, re.M)[1]
    printed = [line.split()[0].rstrip("/") for line in tree.splitlines() if line[6] != " "]
    files = [word.removesuffix(".py") for line in tree.splitlines() for word in line.split() if word.endswith(".py")]
    assert sorted(name for name in printed if not name.endswith(".py")) == ROOMS
    assert sorted(files) == sorted(p.stem for p in PACKAGE.glob("*.py"))


def test_pytest_looks_into_every_folder_of_tests():
    """Its own list of folders to pass over holds "build", so a room of that name would never be tested."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    folders = {p.relative_to(ROOT) for p in (ROOT / "tests").rglob("*") if p.is_dir() and p.name != "__pycache__"}
    passed_over = [f for f in folders for name in f.parts for glob in settings["norecursedirs"] if fnmatch(name, glob)]
    assert Path("tests/course/build") in folders and not passed_over


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_are_short_and_say_what_they_are(path):
    text = path.read_text(encoding="utf-8")
    # a lesson's checks are a list of exercises, each read alone
    assert len(text.splitlines()) <= (650 if path.parent.name == "checks" else 350)
    assert text == "" or ast.get_docstring(ast.parse(text))
    assert "torch.load(" not in text


def test_importing_prints_nothing_and_leaves_torch_alone(tmp_path):
    """Everything, by all its names; also where no library has been used before, and so none has its caches."""
    script = """
import random, torch
state, dtype, threads = torch.random.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
import llamamm, llamamm.cli.main, llamamm.evals.speed, llamamm.train.run, llamamm.experiments.small_multimodal
from llamamm import *
assert torch.equal(state, torch.random.get_rng_state())
assert dtype == torch.get_default_dtype() and threads == torch.get_num_threads() and torch.is_grad_enabled()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False,
                          env={**os.environ, "MPLCONFIGDIR": str(tmp_path / "fresh")})  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_conda_environment_is_in_step_with_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    *plain, pip = conda["dependencies"]
    python = next(d for d in plain if d.startswith("python"))
    assert python.startswith("python" + project["requires-python"])
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", pip["pip"][0])[1].split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    in_makefile = re.search(r"--editable '\.\[([\w,]+)\]'", (ROOT / "Makefile").read_text())[1].split(",")
    assert extras == in_makefile
    assert conda["channels"][0] == "conda-forge"


def test_lesson_packages_are_in_step_with_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)}
    bounds = {re.split(r"[>=]", d)[0]: d for d in known}
    for requirement in LESSON_PACKAGES.values():
        name = re.split(r"[>=]", requirement)[0]
        assert requirement in (name, bounds[name])


def test_versions_agree():
    import llamamm

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == llamamm.__version__ == citation["version"]
    assert f"/v{project['version']}/" in colab_url("x.ipynb")


def test_the_readmes_table_is_what_the_notebooks_and_their_run_times_give():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert with_table(readme, ROOT / "notebooks") == readme


def test_the_readme_links_each_lesson_to_do_and_to_read():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        do, read = f"notebooks/workbooks/{path.name}", f"notebooks/{path.name}"
        assert f"[workbook]({do})" in readme and f"[lesson]({read})" in readme
        assert (ROOT / do).is_file() and f"({colab_url('workbooks/' + path.name)})" in readme
    assert "jupyter lab $(LAB) notebooks/workbooks/00_welcome.ipynb" in (ROOT / "Makefile").read_text()


def test_lessons_keep_to_their_minutes():
    taken = minutes(ROOT / "notebooks")
    assert set(taken) == {path.name for path in NOTEBOOKS}
    for path in NOTEBOOKS:
        first = "".join(load(path)["cells"][0]["source"])
        promised = int(re.search(r"about (\d+) minutes? on a 2-core CPU", first)[1])
        long = path.name[:2] in (*TRAINING_LESSONS, "18", "19")  # 18 asks four models, 19 decodes with eight
        longest = 4 if long else 2
        assert taken[path.name] <= promised <= longest, path.name


def test_python_use_in_the_readme_runs():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    done = finish([sys.executable, "-c", code])
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


# ---- notebooks ----


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook):
    return [c for c in notebook["cells"] if c["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
class TestNotebook:
    def test_quotes_equal_the_package(self, path):
        assert not sync_notebook(path, check=True)

    def test_was_run_from_top_to_bottom_without_errors(self, path):
        cells = code_cells(load(path))
        assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
        assert not [o for c in cells for o in c["outputs"] if o["output_type"] == "error"]
        marked = [c for c in cells if "nbval-check-output" in c["metadata"].get("tags", ())]  # read by nbval
        assert len(marked) >= 5
        assert all(c["outputs"] for c in marked)

    def test_begins_with_the_same_set_up(self, path):
        source = "".join(load(path)["cells"][1]["source"])
        assert "from llamamm.course.env import setup" in source and "env = setup()" in source
        assert source == "".join(load(NOTEBOOKS[0])["cells"][1]["source"])

    def test_is_plain_and_small(self, path):
        notebook = load(path)
        assert "widgets" not in notebook["metadata"]
        assert notebook["metadata"]["kernelspec"]["name"] == "python3"
        assert len({c["id"] for c in notebook["cells"]}) == len(notebook["cells"])
        for cell in code_cells(notebook):
            source = "".join(cell["source"])
            assert len(source.splitlines()) <= 60
            assert not re.search(r"^\s*[%!]", source, re.M), "a magic or a shell escape"

    def test_links_to_files_lead_somewhere(self, path):
        for notebook in (path, path.parent / "workbooks" / path.name):
            text = "\n".join("".join(c["source"]) for c in load(notebook)["cells"] if c["cell_type"] == "markdown")
            links = re.findall(r"\]\(([^)\s]+)\)", text)
            assert [x for x in links if not x.startswith(("http", "#")) and not (notebook.parent / x).exists()] == []

    def test_has_something_to_play_with(self, path):
        """Sliders, or the real model with faults put in."""
        source = "\n".join("".join(c["source"]) for c in code_cells(load(path)))
        assert "interact(" in source or "with swap(" in source

    def test_says_nothing_about_this_machine(self, path):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/(work|root|home|tmp|Users)/|hf_\w{8}|\.venv", text)


def test_a_changed_quote_is_noticed_and_mended(tmp_path):
    path = tmp_path / "n.ipynb"
    quote = "# package: llamamm.text.rope\nimport torch\n\n\ndef rotate_half(x):\n    return x\n"
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": quote.splitlines(keepends=True)}]}))
    assert sync_notebook(path, check=True)
    assert "".join(load(path)["cells"][0]["source"]) == quote  # only looked
    assert sync_notebook(path)
    assert not sync_notebook(path, check=True)
    (cell, module), = quoting_cells(load(path))
    assert module == "llamamm.text.rope"
    assert "torch.cat((-b, a), dim=-1)" in "".join(cell["source"]) and "import torch" in "".join(cell["source"])
    assert '"""' not in "".join(cell["source"])  # the quote had no docstring, and gets none


def test_the_line_with_the_badge_is_kept_in_step(tmp_path):
    path = tmp_path / "04_rope.ipynb"
    old = f"[![Open in Colab](a)]({colab_url('04_rope.ipynb')})\n\n# 04 · RoPE\n"
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": old.splitlines(keepends=True)}]}))
    assert sync_notebook(path, check=True) and sync_notebook(path) and not sync_notebook(path, check=True)
    assert "".join(load(path)["cells"][0]["source"]) == f"{opening_line(path.name)}\n\n# 04 · RoPE\n"
    assert "(workbooks/04_rope.ipynb)" in opening_line(path.name)
    assert "(../04_rope.ipynb)" in opening_line(path.name, workbook=True)


def test_a_quote_without_docstring_is_equal(tmp_path):
    path = tmp_path / "n.ipynb"
    quote = (
        "# package: llamamm.text.rope\ndef rotate_half(x: Tensor) -> Tensor:\n    a, b = x.chunk(2, dim=-1)\n"
        "    return torch.cat((-b, a), dim=-1)\n"
    )
    path.write_text(json.dumps({"cells": [{"cell_type": "code", "source": quote}]}))
    assert not sync_notebook(path, check=True)


def test_the_map_of_lesson_00_names_the_lessons_and_modules_that_there_are():
    """Its picture says which modules a version has, so a wrong name says "not yet" of what is there."""
    cells = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))["cells"]
    (source,) = ["".join(cell["source"]) for cell in cells if "find_spec" in "".join(cell["source"])]
    modules = dict(re.findall(r'"(\d\d) [^"]+", "([\w.]+)"', source))
    titles = dict(re.findall(r'"(\d\d) ([A-Za-z]+)', source))
    written = {path.name[:2]: path.stem[3:] for path in NOTEBOOKS[1:]}
    assert len(written) > 10
    assert [n for n in written if n not in modules or find_spec(f"llamamm.{modules[n]}") is None] == []
    assert all(titles[n].lower() in written[n] for n in ("03", "04"))
