"""Make, the extras and the caches: what is installed and fetched is what lessons and tests use, and nobody speaks."""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

from llamamm.assets.catalogue import ASSETS
from llamamm.cli.main import app
from llamamm.course.env import LESSON_PACKAGES

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
LESSONS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
# Files that name assets without opening them: the table, the writers, and tests with a table of their own.
NAME_ASSETS = {"llamamm/assets/catalogue.py", "llamamm/assets/corpora.py", "tests/assets/test_fetch.py",
               "tests/test_setup.py"}  # fmt: skip
ON_DEMAND = {"speech"}  # 663 MB: `experiment release` and `eval senses` alone open it, no test does
NEED_NUMBA = "forms", "vectors", "rows", "whole", "heads", "kernels"  # of `llamamm.fast`
COLAB_OWNS = {"numba", "torch", "torchvision", "numpy", "pillow", "matplotlib", "ipywidgets", "jupyter"}


def code_of(path):
    """The code of a module, or of a notebook's cells, as one tree."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code")
    return ast.parse(text)


def named_assets(paths):
    """The assets whose names stand in code as strings: more than are opened, perhaps, but never fewer."""
    constants = (node.value for path in paths for node in ast.walk(code_of(path)) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)} & set(ASSETS)


def make(*words, **variables):
    """What `make` prints when it only says what it would run."""
    done = subprocess.run(["make", "-n", *words, *(f"{k}={v}" for k, v in variables.items())], cwd=ROOT, text=True,
                          capture_output=True, check=True, env={**os.environ, "MAKEFLAGS": ""})  # fmt: skip
    return done.stdout


# ---- assets ----

def test_make_fetches_what_lessons_and_tests_name_before_they_run(tmp_path):
    files = [*LESSONS, *ROOT.glob("llamamm/**/*.py"), *ROOT.glob("tests/**/*.py")]
    wanted = named_assets(f for f in files if str(f.relative_to(ROOT)) not in NAME_ASSETS) - ON_DEMAND
    for target, runs in (("test", "-m pytest"), ("notebooks", "course.build.run")):
        before, _ = make(target, VENV=tmp_path).split(runs)
        fetched = re.search(r"llamamm fetch (.*)", before)[1].split()
        assert sorted(fetched) == sorted(wanted), target
    assert "PIP_NO_INDEX=1" in make("test", VENV=tmp_path)  # and what the list lacks can't be had in the run


def test_an_asset_in_a_lesson_is_seen(tmp_path):
    cells = [{"cell_type": "markdown", "source": 'fetch("words")'},
             {"cell_type": "code", "source": ["from llamamm.assets.fetch import fetch\n", 'fetch("shakespeare")']}]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}))
    (tmp_path / "a.py").write_text('NAMES = {"wiki": 1}\nfor name in NAMES:\n    fetch(name)\n# "openmoji"')
    assert named_assets(tmp_path.iterdir()) == {"shakespeare", "wiki"}


@pytest.mark.usefixtures("smollm2_dir", "llama3_tokenizer_path")
def test_fetch_takes_several_names():
    done = CliRunner().invoke(app, ["fetch", "smollm2", "llama3-tokenizer"])
    first, second = done.stdout.splitlines()
    assert done.exit_code == 0 and "/smollm2/" in first and "/llama3-tokenizer/" in second


# ---- a first time that leaves nothing in a lesson ----

def outputs(source, **environment):
    """What a cell leaves when it runs in a kernel of its own."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, timeout=None, kernel_name="python3").execute(env={**os.environ, **environment})
    return [(output.output_type, output.get("name"), output.get("text")) for output in notebook.cells[0].outputs]


def test_the_first_time_says_nothing_in_a_notebook(tmp_path):
    found = outputs("""
import logging
from llamamm.assets.wheels import ProgressLine
from llamamm.course.env import setup
setup()
for wanted in (True, False):
    voice = ProgressLine(wanted)
    voice.line("fetching")
    voice.detail("converting")
    with voice.bar("model") as advance:
        advance(1, 2)
from llamamm.fast.plan import load_kernels
load_kernels()
# what it says of its own accord takes five seconds on a slow machine
logging.getLogger("matplotlib.font_manager").warning("Matplotlib is building the font cache")
1
""", MPLCONFIGDIR=str(tmp_path), LLAMAMM_CACHE=str(tmp_path))
    assert [(kind, name) for kind, name, _ in found] == [("stream", "stdout"), ("execute_result", None)]
    assert found[0][2].startswith("llamamm ") and found[0][2].count("\n") == 1


def test_the_setup_cell_silences_matplotlib_before_it_is_imported():
    code = "import sys, llamamm.course.env; print([m for m in ('matplotlib', 'IPython') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ---- packages ----

def requirements(*extras):
    """The project's own requirements with these extras, in which other extras of it may be named."""
    wanted = [Requirement(line) for line in PROJECT["dependencies"]]
    for extra in extras:
        for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
            wanted += requirements(*requirement.extras) if requirement.name == "llamamm" else [requirement]
    return wanted


def installed_with(*extras):
    """Names of all distributions that come with them, as this environment's metadata tell."""
    todo, seen = [(r.name, frozenset(r.extras)) for r in requirements(*extras)], set()
    while todo:
        name, more = todo.pop()
        if (name := canonicalize_name(name), more) in seen:
            continue
        seen.add((name, more))
        try:
            lines = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:  # for another system or Python
            continue
        for requirement in map(Requirement, lines):
            asked = ({"extra": extra} for extra in ("", *more))
            if requirement.marker is None or any(requirement.marker.evaluate(e) for e in asked):
                todo.append((requirement.name, frozenset(requirement.extras)))
    return {name for name, _ in seen}


def foreign_imports(tree):
    """Top modules of other packages, as {module: whether the code can do without it}.

    It can if it catches the ImportError, or asks `find_spec` first.
    """
    asked = {node.args[0].value for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args
             and ast.unparse(node.func).endswith("find_spec") and isinstance(node.args[0], ast.Constant)}  # fmt: skip
    tried = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Try)
             and any("ImportError" in ast.unparse(h.type or ast.Constant("")) for h in node.handlers)
             for body in node.body for part in ast.walk(body)}  # fmt: skip
    found = {}
    for node in ast.walk(tree):
        names = ([node.module] if isinstance(node, ast.ImportFrom) and not node.level else
                 [alias.name for alias in node.names] if isinstance(node, ast.Import) else [])  # fmt: skip
        for module in {name.split(".")[0] for name in names} - {"llamamm", "tests", *sys.stdlib_module_names}:
            found[module] = found.get(module, True) and (id(node) in tried or module in asked)
    return found


MODULES = importlib.metadata.packages_distributions()


def without(known, wanted):
    """Those modules whose distribution is not among `known`."""
    return {module for module in wanted if not {canonicalize_name(d) for d in MODULES[module]} & known}


def test_the_extra_lab_has_what_lessons_import_and_test_the_rest():
    lab, test = installed_with("lab"), installed_with("test")
    wanted = {}
    for path in LESSONS:
        for module, optional in foreign_imports(code_of(path)).items():
            wanted[module] = wanted.get(module, True) and optional
    assert {"transformers", "gguf", "ipywidgets"} <= {module for module, optional in wanted.items() if not optional}
    assert without(lab, {module for module, optional in wanted.items() if not optional}) == set()
    assert without(test, wanted) == set()  # with what they can do without, they prove more
    assert without(test, set().union(*(foreign_imports(code_of(f)) for f in ROOT.glob("tests/**/*.py")))) == set()


def test_make_lab_leaves_out_what_only_tests_need():
    lab = installed_with("lab")
    assert not {"hypothesis", "pytest", "nbval", "nbgrader", "jiwer", "llama-models", "ruff", "datasets"} & lab
    assert installed_with() < lab < installed_with("test")


def test_the_package_runs_without_extras():
    core = installed_with()
    assert "torch" in core and "jupyterlab" not in core and "transformers" not in core
    code = f"""
import sys

sys.modules.update(dict.fromkeys({without(core, MODULES) - {"llamamm"}!r}))  # as if they were not installed
import pkgutil, importlib, llamamm
for module in pkgutil.walk_packages(llamamm.__path__, "llamamm."):
    course = "llamamm.course."
    if not module.name.startswith((course + "plots", course + "figures.", course + "build", "llamamm.__main__",
                                   *{tuple("llamamm.fast." + name for name in NEED_NUMBA)!r})):
        importlib.import_module(module.name)
from typer.testing import CliRunner
from llamamm.cli.main import app
print(CliRunner().invoke(app, ["generate", "Hi", "--max-new-tokens", "2"]).exit_code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


def test_the_setup_cell_knows_the_packages_of_the_extra_lab():
    mine = {canonicalize_name(Requirement(line).name) for line in LESSON_PACKAGES.values()}
    assert mine == {canonicalize_name(r.name) for r in requirements("lab")} - COLAB_OWNS


# ---- make ----

def test_each_set_of_packages_is_installed_once_and_a_larger_one_is_enough_for_a_smaller(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/log"\n')
    python.chmod(0o755)
    (tmp_path / ".made").touch()

    def installs(target):
        return re.findall(r"pip install --editable '(.*?)'", make(target, VENV=tmp_path))

    assert (installs("lab"), installs("test"), installs("setup")) == ([".[lab]"], [".[test]"], [".[test,docs]"])
    for target, left in ((".lab", ["lab"]), (".test", ["lab", "test"]), (".setup", ["lab", "test", "setup"])):
        subprocess.run(["make", f"VENV={tmp_path}", f"{tmp_path}/{target}"], cwd=ROOT, check=True, capture_output=True)
        assert [t for t in ("lab", "test", "setup") if not installs(t)] == left
    assert (python.parent / "log").read_text().splitlines() == [
        f"-m pip install --editable .[{extras}]" for extras in ("lab", "test", "test,docs")
    ]


def test_a_python_that_is_too_old_or_new_is_refused(tmp_path):
    script = tmp_path / "python4"
    script.write_text("#!/bin/sh\nexec " + sys.executable + """ -c 'import collections, sys
sys.version_info, sys.version = (3, 14, 0), "3.14.0 (fake)"
exec(sys.argv[2])' "$@"\n""")
    script.chmod(0o755)
    done = subprocess.run(["make", f"VENV={tmp_path}/venv", f"PYTHON={script}", "setup"], cwd=ROOT, text=True,
                          capture_output=True, check=False)  # fmt: skip
    assert done.returncode != 0 and not (tmp_path / "venv").exists()
    assert re.search(r"Python 3.11 to 3.13 is needed, .*python4 is 3.14.0", done.stderr)


def test_no_cell_comes_near_its_limit():
    limit = int(re.search(r"--nbval-cell-timeout (\d+)", MAKEFILE)[1])
    taken = json.loads((ROOT / "notebooks" / "run_times.json").read_text())
    assert limit >= 4 * max(taken.values())  # even if a notebook were one cell, on a machine of a quarter of the speed
    pytest_limit = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["timeout"]
    assert pytest_limit >= limit  # it holds for a cell, too


@pytest.mark.parametrize("status", [0, 3])
def test_ci_has_an_empty_cache_of_its_own_and_leaves_nothing(tmp_path, status):
    (tmp_path / "make").write_text(f"""#!/bin/sh
ls -A "$XDG_CACHE_HOME" | wc -l
for folder in "$XDG_CACHE_HOME" "$LLAMAMM_CACHE" "$MPLCONFIGDIR" "$HF_HOME" "$PIP_CACHE_DIR" "$HF_HUB_CACHE"; do
    echo "$folder"
done
mkdir -p "$LLAMAMM_CACHE/smollm2"
exit {status}
""")
    (tmp_path / "make").chmod(0o755)
    mine = {name: str(tmp_path / "full") for name in ("XDG_CACHE_HOME", "LLAMAMM_CACHE", "HF_HUB_CACHE", "HF_HOME")}
    environment = {**os.environ, **mine, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    environment.pop("PIP_CACHE_DIR", None)
    done = subprocess.run(["bash", ROOT / ".ci" / "run"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    entries, own, *others, pips, hub = done.stdout.splitlines()
    assert entries.strip() == "0" and Path(own).parent == tmp_path and not Path(own).exists()
    assert all(Path(other).is_relative_to(own) for other in others) and hub == ""
    assert pips == str(tmp_path / "full" / "pip")
