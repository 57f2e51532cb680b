"""course.checks.runner, cells and sheet: whatever a student's notebook holds gets a score and a diagnosis.

Most tests check in this process, with two exercises of lesson 00: 00.1 softmax(logits) and 00.2 next_id(logits).
"""

import json
import os
import sys

import pytest
import torch
from typer.testing import CliRunner

from llamamm.cli.main import app
from llamamm.course.checks import core, exercises_of, runner
from llamamm.course.checks.runner import check_apart, check_notebook, find_notebook
from llamamm.course.checks.sheet import names_in
from llamamm.errors import InputError

SOFTMAX = "# exercise: 00.1\nimport torch\n\ndef softmax(logits):\n    return torch.softmax(logits, dim=-1)"
WRONG = "# exercise: 00.1\nimport torch\n\ndef softmax(logits):\n    return torch.exp(logits)"
NEXT = "# exercise: 00.2\ndef next_id(logits):\n    return int(logits[0, -1].argmax())"


def test_these_answers_are_what_they_are_taken_for(tmp_path):
    assert [e.name for e in exercises_of("00")][:2] == ["softmax", "next_id"]
    report = check_notebook(notebook(tmp_path / "00_a.ipynb", SOFTMAX, NEXT))
    assert [bool(r) for r in report] == [True, True, False, False, False]
    assert "sum" in result_of(tmp_path, WRONG).message or "1" in result_of(tmp_path, WRONG).message


def notebook(path, *cells, markdown=()):
    content = [{"cell_type": "markdown", "source": text} for text in markdown]
    content += [{"cell_type": "code", "source": source.splitlines(keepends=True)} for source in cells]
    path.write_text(json.dumps({"cells": content, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def result_of(folder, *cells, place=0):
    """The result of lesson 00's first exercise, or of another."""
    return check_notebook(notebook(folder / "00_a.ipynb", *cells)).results[place]


# ---- the lesson's list ----


def test_lost_marks_are_counted_and_named(tmp_path):
    path = notebook(tmp_path / "00_a.ipynb", SOFTMAX, NEXT.replace("# exercise: 00.2\n", ""))
    report = check_notebook(path)
    assert report.summary == "1 of 5 passed, 1 of 9 points; 00.2, 00.3, 00.4 and 00.5 are missing"
    assert [r.missing for r in report] == [False, True, True, True, True]
    result = CliRunner().invoke(app, ["check", str(path)])
    assert result.exit_code == 1
    assert "1 of 5 passed" in result.output and "00.2, 00.3, 00.4 and 00.5 are missing" in result.output
    three = [NEXT.replace("00.2", i) for i in ("00.2", "00.3", "00.4")]
    assert check_notebook(notebook(path, SOFTMAX, *three)).summary.endswith("; 00.5 is missing")


@pytest.mark.parametrize(
    ("cells", "remark"),
    [
        ([SOFTMAX, SOFTMAX.replace("00.1", "00.9")], "00.9 is not among the exercises of lesson 00"),
        ([SOFTMAX, SOFTMAX.replace("00.1", "04.1")], "04.1 is not among the exercises of lesson 00"),
        ([SOFTMAX, "# exercise: 0.2\n"], "0.2 is not among"),
        ([WRONG, SOFTMAX], "2 cells are marked 00.1: the last one counts"),
        ([SOFTMAX], None),
    ],
)
def test_marks_that_are_not_the_lessons_are_named_and_do_not_count(tmp_path, cells, remark):
    report = check_notebook(notebook(tmp_path / "00_a.ipynb", *cells))
    assert len(report) == 5 and bool(report.results[0])
    assert [remark in r for r in report.remarks] == [True] * (remark is not None)


@pytest.mark.parametrize("mark", ["#exercise:00.1", "# Exercise: 00.1 ", "%%time\n# exercise: 00.1"])
def test_a_mark_in_another_spelling_is_still_a_mark(tmp_path, mark):
    assert result_of(tmp_path, SOFTMAX.replace("# exercise: 00.1", mark))


def test_two_exercises_in_one_cell_are_two(tmp_path):
    assert check_notebook(notebook(tmp_path / "00_a.ipynb", SOFTMAX + "\n\n" + NEXT)).points[0] == 2


@pytest.mark.parametrize(
    ("name", "title", "marks", "lesson"),
    [
        ("00_a", None, [], "00"),
        ("mine", "00", [], "00"),
        ("mine", None, ["00.1"], "00"),
        ("03_a", "00", ["00.1"], "00"),
        ("00_a", "03", ["00.1", "04.1", "00.2"], "00"),
        ("00_a", "00", ["04.1"], "00"),
        ("00_a", "03", [], "it is unclear of which lesson .*: its title says 03, its name says 00"),
        ("00_a", None, ["04.1"], "its name says 00, its marks say 04"),
        ("mine", None, [], "holds no exercise, no cell that begins with '# exercise: '"),
        ("mine", None, ["99.1"], "lesson '99' has no exercises"),
    ],
)
def test_of_which_lesson_a_notebook_is(tmp_path, name, title, marks, lesson):
    titles = [f"# Exercises of {title} · Title"] if title else []
    path = notebook(tmp_path / f"{name}.ipynb", "1 + 1", *(f"# exercise: {mark}\n" for mark in marks), markdown=titles)
    if lesson.isdigit():
        assert [r.id for r in check_notebook(path)] == [e.id for e in exercises_of(lesson)]
    else:
        with pytest.raises(InputError, match=lesson):
            check_notebook(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a notebook"),
        (b"nonsense", "is not a notebook"),
        (b"\xff\xfe\x00", "is not a notebook"),
        (b"[1, 2]", "is not a notebook"),
        (b"{}", "is not a notebook"),
        (b'{"cells": 3}', "is not a notebook"),
        (b'{"cells": [1]}', "is not a notebook"),
        (b"[" * 100_000, "is not a notebook"),
        (b'{"nbformat": 3, "worksheets": [{"cells": []}]}', "old notebook format"),
        (b'{"cells": []}', "holds no exercise"),
    ],
)
def test_what_is_no_notebook_of_exercises_is_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "n.ipynb").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        check_notebook(tmp_path / "n.ipynb")
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_and_a_folder(tmp_path):
    path = notebook(tmp_path / "00_a.ipynb", SOFTMAX)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert check_notebook(path).results[0]
    with pytest.raises(InputError, match="cannot be read"):
        check_notebook(tmp_path)


def test_the_notebook_is_found_by_its_number(tmp_path):
    folder = tmp_path / "notebooks" / "workbooks"
    folder.mkdir(parents=True)
    path = notebook(folder / "04_rope.ipynb")
    lesson = notebook(tmp_path / "notebooks" / "04_rope.ipynb")
    assert find_notebook("04", tmp_path) == path == find_notebook("4", tmp_path)
    assert find_notebook("04", tmp_path / "notebooks") == path == find_notebook("04", folder)
    assert find_notebook(str(lesson), tmp_path) == lesson
    with pytest.raises(InputError, match="03_"):
        find_notebook("03", tmp_path)
    for name in ("x.ipynb", "*", "", "../03"):
        with pytest.raises(InputError, match="does not exist|the path of a notebook"):
            find_notebook(name, tmp_path)
    notebook(folder / "04_rope-Copy1.ipynb")
    with pytest.raises(InputError, match="04_rope-Copy1.ipynb, 04_rope.ipynb; give the path"):
        find_notebook("04", tmp_path)


# ---- what cells do ----


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("1 / 0", "the cell raised ZeroDivisionError: division by zero"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("def softmax(x:\n", "SyntaxError"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("name = input()", "EOFError"),
        ("def soft_max(logits): return logits", "the cell defines no softmax; keep the name"),
        ("softmax = 3", "give the function or class itself, softmax, not 3"),
        ("def softmax(logits): return helper(logits)", "NameError in line 1 of your function"),
        ("softmax = lambda logits: input()", "EOFError"),
        ("def softmax(logits):\n    exit()", "NameError|SystemExit"),
        ("\0", "null bytes"),
    ],
)
def test_a_cell_that_fails_gets_a_diagnosis_and_hides_nothing(tmp_path, cell, message, capfd):
    report = check_notebook(notebook(tmp_path / "00_a.ipynb", "# exercise: 00.1\n" + cell, NEXT))
    assert message.split("|")[0] in report.results[0].message or message.split("|")[-1] in report.results[0].message
    assert [bool(r) for r in report][:2] == [False, True]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("cell", ["while True: pass", "import time; time.sleep(7200)", "while True: print('x' * 1000)"])
def test_a_cell_that_never_ends_is_named(tmp_path, monkeypatch, cell):
    monkeypatch.setattr(runner, "TIME_LIMIT", 0.5)
    result = result_of(tmp_path, "# exercise: 00.1\n" + cell)
    assert "still running" in result.message


def test_a_cell_leaves_the_process_as_it_was(tmp_path, capfd):
    before = os.getcwd(), [*sys.path], torch.get_rng_state(), sys.modules["llamamm.course.checks.core"]
    cell = "\nimport os, sys\nos.chdir('/')\nsys.path.clear()\nprint('heard?')\nprint('heard?', file=sys.stderr)"
    assert result_of(tmp_path, SOFTMAX + cell)
    after = os.getcwd(), [*sys.path], torch.get_rng_state(), sys.modules["llamamm.course.checks.core"]
    assert before[:2] == after[:2] and torch.equal(before[2], after[2]) and before[3] is after[3]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "cells",
    [
        ["import torch\nlatest = 7", SOFTMAX.replace("import torch\n", "")],
        ["from math import *", SOFTMAX.replace("return", "return exp(0) *")],
        ["def helper(x):\n    return torch.softmax(x, -1)", "import torch", "while True: pass",
         "# exercise: 00.1\ndef softmax(logits):\n    return helper(logits)"],
        ["# exercise: 00.1\ndef softmax(logits):\n    raise NotImplementedError", SOFTMAX.split("\n", 1)[1]],
        [SOFTMAX + "\n%matplotlib inline\n!echo hello\nfiles = !ls\ndisplay(softmax)\n?print"],
        ["%%time\nimport torch", "%%bash\nexit 1", SOFTMAX.replace("import torch\n", "")],
        [SOFTMAX + "\nprint(softmax('wrong'))"],
        [SOFTMAX + "\nif __name__ == '__main__':\n    print(softmax(torch.ones(2)))"],
        ["from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int",
         SOFTMAX + "\nA(1)"],
        [SOFTMAX, 'from llamamm.course.checks import check\ncheck("00.1", softmax)', WRONG.split("\n", 1)[1]],
    ],
    ids=["import", "star", "helper", "two cells", "magic", "cell magic", "failing trial", "main", "dataclass", "after"],
)  # fmt: skip
def test_an_answer_that_is_right_in_jupyter_is_right_here(tmp_path, cells):
    result = result_of(tmp_path, *cells)
    assert result, result


def test_a_cell_that_comes_too_late_is_named(tmp_path):
    cells = ["# exercise: 00.1\ndef softmax(logits):\n    return helper(logits)", NEXT, "def helper(x):\n    return x"]
    assert "only a cell further down defines helper: move that cell up" in result_of(tmp_path, *cells).message


def test_a_module_beside_the_notebook_is_found(tmp_path):
    (tmp_path / "my_helper_module.py").write_text("import torch\n\ndef soft(x):\n    return torch.softmax(x, -1)\n")
    assert result_of(tmp_path, "# exercise: 00.1\nfrom my_helper_module import soft as softmax")
    sys.modules.pop("my_helper_module")


def test_the_names_of_a_cell():
    source = "import a.b as c\nfrom d import e\nx: int = f(g)\n[h for h in x]\n"
    source += "def i(j=k):\n    global m\n    m = j + n\n"
    assert names_in(source) == ({"c", "e", "x", "i", "m"}, {"f", "g", "k", "n"})
    assert names_in("[h for h in x]\nh + 1\n") == (set(), {"h", "x"})  # read after its comprehension, too
    assert names_in("y = x" + " + x" * 900) in (({"y"}, {"x"}), (set(), set()))  # too deep for Python, or not
    assert names_in("def f(:") == (set(), set())


CHEATS = {
    "check": "def check(*a): return True",
    "core": "from llamamm.course import checks\nfrom llamamm.course.checks import core\n"
            "core.check = core.try_answer = core.judge = core.difference = checks.check = lambda *a, **k: None",
    "result": "from llamamm.course.checks.core import CheckResult\nCheckResult.__bool__ = lambda self: True\n"
              "CheckResult.passed = True",
    "exercise": "from llamamm.course.checks import find_exercise\n"
                "object.__setattr__(find_exercise('00.1'), 'reference', lambda x: torch.exp(x))\n"
                "type(find_exercise('00.1')).results = lambda *a: []",
    "runner": "import llamamm.course.checks.cells as c\nc.try_answer = c.check_one = c.failed = lambda *a, **k: True",
    "modules": "import sys, types\nfor n in list(sys.modules):\n"
               "    if 'llamamm' in n: sys.modules[n] = types.ModuleType(n)\n"
               "sys.modules['llamamm.course.checks'] = types.SimpleNamespace(check=lambda *a: True)",
}  # fmt: skip


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_replaced_check_earns_nothing(tmp_path, cheat):
    replaced = CHEATS[cheat] + '\ncheck("00.1", softmax)'
    path = notebook(tmp_path / "00_a.ipynb", f"{WRONG}\n{CHEATS[cheat]}", replaced, NEXT)
    report = check_notebook(path)
    assert [bool(r) for r in report] == [False, True, False, False, False]
    assert core.check("00.1", lambda x: torch.softmax(x, -1)) and not core.check("00.1", torch.exp)


# ---- in a process of its own ----


def test_what_ends_or_blocks_python_itself_takes_no_other_exercise_down(tmp_path):
    """One notebook for all, since each child waits for PyTorch."""
    cells = [
        "# exercise: 00.1\nimport os\nprint('x' * 10**6)\nos.write(1, b'x')\nos.system('echo x')\nos._exit(5)",
        NEXT + "\nimport threading, time\nthreading.Thread(target=lambda: time.sleep(600)).start()",
        "# exercise: 00.3\nimport re\nre.match('(a+)+b', 'a' * 60)",  # holds Python's lock for centuries
        "# exercise: 00.4\n1 / 0",
    ]
    report = check_apart(notebook(tmp_path / "00_a.ipynb", *cells), seconds=6)
    said = [r.message for r in report]
    assert "the cell ended Python itself: it ended with exit code 5" in said[0]
    assert report.results[1]
    assert "still running after 6 seconds, and could not be stopped" in said[2]
    assert "ZeroDivisionError" in said[3] and "missing" in said[4]
    assert report.summary == "1 of 5 passed, 1 of 9 points; 00.5 is missing"


def test_the_command_line_refuses_in_one_line_what_is_no_notebook(tmp_path):
    (tmp_path / "n.ipynb").write_text("nonsense")
    with pytest.raises(InputError, match="is not a notebook"):
        check_apart(tmp_path / "n.ipynb")
