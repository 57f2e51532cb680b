"""course.build.workbooks: workbooks from the lessons, byte for byte, what runs in them, and nbgrader's verdict."""

import ast
import copy
import html
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError

from llamamm.course.build import sync
from llamamm.course.build.workbooks import (
    FOLDED_TITLE,
    PLUMBING,
    REAL_MODEL,
    ExerciseError,
    assignment,
    exercises_in,
    gives_away,
    main,
    solved,
    stub,
    workbook,
    write_workbooks,
)
from llamamm.course.checks import exercises_of, find_exercise
from llamamm.course.checks.runner import check_notebook
from llamamm.course.checks.sheet import CHECK_IMPORT, MARK, names_in, split_check
from tests.processes import finish

ROOT = Path(__file__).parents[3]
LESSONS = sorted(p for p in (ROOT / "notebooks").glob("*.ipynb"))
ROPE = ROOT / "notebooks" / "04_rope.ipynb"
QUICK = ROOT / "notebooks" / "02_norm_feed_forward.ipynb"  # trains nothing

CODE = '''# exercise: 08.1
def f(x):
    """Twice."""
    ### BEGIN SOLUTION
    y = x + x
    return y
    ### END SOLUTION
'''


def code_cell(source, key="c"):
    return nbformat.v4.new_code_cell(source, id=f"{key}-{abs(hash(source)) % 10**6}")


def lesson(*cells):
    title = nbformat.v4.new_markdown_cell("badge\n\n# 08 · Title\n\ntext [a](04_rope.ipynb)")
    setup = nbformat.v4.new_code_cell("setup = 1")
    return nbformat.v4.new_notebook(cells=[title, setup, *cells])


CHECK = CHECK_IMPORT + '\ncheck("08.1", f)'
REAL = code_cell('from llamamm.course.swaps import in_real_model\n\nin_real_model("08.1", f)')


def exercise(text="### Exercise 1 · Twice (warm-up, 3 minutes)", code=CODE, check=CHECK):
    return nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell(f"{code}\n\n{check}")


def test_stub_and_solution_by_hand():
    assert stub(CODE, "08.1").splitlines()[2:] == [
        '    """Twice."""', '    raise NotImplementedError("exercise 08.1")'
    ]  # fmt: skip
    assert solved(CODE).splitlines()[2:] == ['    """Twice."""', "    y = x + x", "    return y"]


def test_a_workbook_is_the_lesson_with_stub_check_and_folded_solution():
    marked = code_cell("# NBVAL_CHECK_OUTPUT\nprint(1)")
    marked.outputs, marked.execution_count = [nbformat.v4.new_output("stream", text="1\n")], 7
    marked.metadata["tags"] = ["nbval-check-output"]
    book = workbook(lesson(marked, *exercise(), nbformat.v4.new_markdown_cell("end")), "08_x.ipynb")
    assert [c.cell_type[0] for c in book.cells] == list("mccmccmm")
    intro, setup, plain, text, answer, check, solution, end = book.cells
    first, rest = intro.source.split("\n", 1)
    assert first.endswith("/notebooks/workbooks/08_x.ipynb) [Read it: the lesson, solved](../08_x.ipynb)")
    assert rest.startswith("\n# 08 · Title\n\ntext [a](../04_rope.ipynb)\n\n**This is the workbook.**")
    assert (setup.source, plain.source, end.source) == ("setup = 1", "print(1)", "end")
    assert "NotImplementedError" in answer.source and "SOLUTION" not in answer.source and "x + x" not in answer.source
    assert check.source == CHECK
    assert solution.source.startswith("<details><summary>Solution") and "y = x + x" in solution.source
    assert not any(c.get("outputs") or c.get("execution_count") or c.metadata for c in book.cells)
    assert len({c.id for c in book.cells}) == len(book.cells)


def test_the_run_in_the_real_model_stands_between_check_and_solution():
    book = workbook(lesson(*exercise(), REAL, code_cell("after = 1")), "08_x.ipynb")
    assert [c.source[:20] for c in book.cells[4:]] == [
        CHECK[:20], REAL.source[:20], "<details><summary>Solution"[:20], "after = 1"
    ]  # fmt: skip


def quote(names, module="llamamm.a"):
    return code_cell(f"# package: {module}\n" + "\n".join(f"class {n}: pass" for n in names.split()))


@pytest.mark.parametrize(
    ("cells", "folded"),
    [
        ([quote("F"), *exercise()], []),  # before the exercise
        ([*exercise(), quote("other")], [0]),  # next after it
        ([*exercise(), REAL, quote("other")], [1]),
        ([*exercise(), code_cell("x = 1"), quote("other")], []),
        ([*exercise(), code_cell("x = 1"), quote("other F_")], [1]),  # by its name
        ([*exercise(), quote("g"), quote("h"), quote("i", "llamamm.b"), quote("k")], [0, 1]),  # same module
        ([*exercise(), code_cell("x = 1"), quote("F"), nbformat.v4.new_markdown_cell("m"), quote("h")], [1, 3]),
    ],
)
def test_the_packages_version_of_what_the_learner_wrote_is_folded(cells, folded):
    made = lesson(*cells)
    place = next(i for i, c in enumerate(made.cells) if c.source.startswith(MARK))
    assert sorted(i - place - 1 for i in gives_away(made.cells)) == folded
    hidden = [c for c in workbook(made, "08_x.ipynb").cells if c.metadata]
    assert len(hidden) == len(folded)
    for cell in hidden:
        assert cell.metadata == {"cellView": "form", "jupyter": {"source_hidden": True}}
        assert cell.source.startswith("#@title The package's version\n# package: llamamm.")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (exercise(text="Write f."), "### Exercise"),
        (exercise(code="# exercise: 08.1\ndef f(x):\n    return 1"), "no solution"),
        (exercise(check=CHECK_IMPORT + "f(1)"), "check"),
        (exercise(check=''), "check"),
    ],
)
def test_a_lesson_of_another_form_is_refused(cells, message):
    with pytest.raises(ExerciseError, match=message):
        list(exercises_in(lesson(*cells)))


def test_the_same_lesson_gives_the_same_bytes(tmp_path):
    nbformat.write(lesson(*exercise()), tmp_path / "08_x.ipynb")
    (target,) = write_workbooks(tmp_path)
    assert target == tmp_path / "workbooks" / "08_x.ipynb"
    first = target.read_bytes()
    assert write_workbooks(tmp_path) == []
    target.write_text("changed by hand")
    assert write_workbooks(tmp_path, check=True) == [target]
    assert target.read_text() == "changed by hand"  # only looked
    write_workbooks(tmp_path)
    assert target.read_bytes() == first


def test_the_committed_workbooks_are_what_the_lessons_give():
    assert write_workbooks(ROOT / "notebooks", check=True) == []
    assert [p.name for p in sorted((ROOT / "notebooks" / "workbooks").glob("*"))] == [p.name for p in LESSONS]


# ---- the real lessons ----


def code_of(notebook):
    return [c.source for c in notebook.cells if c.cell_type == "code"]


def put_back(book):
    """A workbook with each stub replaced by the solution that is folded below it."""
    book = copy.deepcopy(book)
    solutions = {c.id.removesuffix("-solution"): re.search(r"```python\n(.*)\n```", c.source, re.S)[1]
                 for c in book.cells if c.id.endswith("-solution")}  # fmt: skip
    for cell in book.cells:
        cell.source = solutions.get(cell.id, cell.source)
    return book


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_solved_workbook_has_exactly_the_lessons_code(path):
    """So a run of the lesson is a run of its solved workbook."""
    master = nbformat.read(path, as_version=4)
    theirs = code_of(put_back(workbook(master, path.name)))
    for ours in code_of(master):
        given = theirs.pop(0)
        if ours.startswith(MARK):
            assert f"{given}\n\n\n{theirs.pop(0)}" == solved(split_check(ours)[0]) + "\n\n\n" + split_check(ours)[1]
            assert solved(ours) == solved(split_check(ours)[0]) + "\n\n\n" + split_check(ours)[1]
        else:
            assert given.removeprefix(FOLDED_TITLE) == PLUMBING.sub("", ours)
    assert theirs == []


def waiting(book, exercise_ids=None):
    """Places among a workbook's code cells of those that use a blank, or what such a cell makes; of all exercises or
    of some. Names that a later cell makes without a blank are free again."""
    owners, found = {}, set()
    for i, source in enumerate(code_of(book)):
        made, used = names_in(source)
        blank = source.splitlines()[0].removeprefix(MARK).strip() if source.startswith(MARK) else ""
        waits = not blank and any(name in owners for name in used)
        found |= {i} if waits else set()
        for name in made:
            owners.pop(name, None)
            if waits or (blank and name == find_exercise(blank).name and (not exercise_ids or blank in exercise_ids)):
                owners[name] = i
    return found


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_only_cells_below_a_blank_that_use_it_wait_for_it(path):
    """An exercise's cell runs with its blank, and a blank takes away nothing but what it is to define."""
    master = nbformat.read(path, as_version=4)
    book = workbook(master, path.name)
    empty, full = code_of(book), code_of(put_back(book))
    waits = waiting(book)
    for i, (with_blank, without) in enumerate(zip(empty, full, strict=True)):
        if not with_blank.startswith(MARK):
            assert with_blank == without
            continue
        exercise = find_exercise(with_blank.splitlines()[0].removeprefix(MARK).strip())
        assert i not in waits
        run_at_once = [n for n in ast.parse(with_blank).body if not isinstance(n, ast.FunctionDef | ast.ClassDef)]
        assert not any(getattr(n, "id", "") == exercise.name for part in run_at_once for n in ast.walk(part))
        assert not names_in(with_blank)[1] - {n for s in full[:i] for n in names_in(s)[0]}
        lost = names_in(without)[0] - names_in(with_blank)[0]
        later = {n for source in full[i + 1 :] for n in names_in(source)[1]}
        assert lost & later == set(), f"{exercise.id} makes them within its solution"
        mine = waiting(book, {exercise.id})
        assert all(j > i for j in mine) and i + 1 in mine  # its check, at least
    package = [i for i, source in enumerate(empty) if source.removeprefix(FOLDED_TITLE).startswith(sync.MARK)]
    assert waits.isdisjoint(package), "the package's own code needs no blank"


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_stored_verdicts_of_the_lessons_are_passed_and_one_line(path):
    """A lesson shows what its own solutions are worth: each check passes, each run in the real model says one line."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        said = "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in cell.outputs)
        if cell.source.startswith(MARK):
            exercise_id = cell.source.splitlines()[0].removeprefix(MARK).strip()
            assert said.splitlines()[-1].strip().startswith(f"{exercise_id} passed: "), said
        elif REAL_MODEL.search(cell.source):
            assert len(said.strip().splitlines()) == 1 and len(cell.outputs) == 1, said


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_every_lesson_has_three_to_six_exercises_that_begin_easily_and_end_in_a_break(path):
    parts = list(exercises_in(nbformat.read(path, as_version=4)))
    declared = exercises_of(path.stem[:2])
    assert [p.id for p in parts] == [e.id for e in declared]
    assert 3 <= len(parts) <= 6
    levels = [e.level for e in declared]
    assert levels[0] in ("warm-up", "core") and "break it" in levels
    for part, exercise in zip(parts, declared, strict=True):
        assert f"{exercise.minutes} minutes" in part.text.partition("\n\n")[0], part.id
        assert "<details><summary>Hint" in part.text, part.id
        assert len(exercise.mistakes) >= 3 or any(p.accept for p in exercise.properties), part.id


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_the_solutions_pass_and_the_stubs_do_not(path, tmp_path):
    """Whoever wrote the notebook, whatever the caller has done to gradients: the same score."""
    exercises = exercises_of(path.stem[:2])
    book = workbook(nbformat.read(path, as_version=4), path.name)
    nbformat.write(book, tmp_path / "workbook.ipynb")
    stubs = [r.message for r in check_notebook(tmp_path / "workbook.ipynb")]
    assert len(stubs) == len(exercises)
    assert [message for message in stubs if "still to be written" not in message] == []
    most = sum(e.points for e in exercises)
    for gradients in (False, True):
        nbformat.write(put_back(book), tmp_path / "solved.ipynb")
        torch.set_grad_enabled(gradients)
        try:
            report = check_notebook(tmp_path / "solved.ipynb")
        finally:
            torch.set_grad_enabled(True)
        assert [r for r in report if not r] == [] and report.remarks == []
        assert report.points == (most, most)


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_the_lesson_itself_passes(path):
    report = check_notebook(path)
    assert report.passed and len(report) == len(exercises_of(path.stem[:2]))


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_graded_cells_pass_with_the_solutions_and_name_what_the_lessons_check(path):
    """nbgrader's cells one after another, with a copy of this package for each, as in one kernel."""
    namespace, kept = {"__name__": "__main__"}, dict(sys.modules)
    for part in exercises_in(nbformat.read(path, as_version=4)):
        assert part.check.rstrip().endswith(f'check("{part.id}", {find_exercise(part.id).name})')
        exec(solved(part.code), namespace)
        exec(part.graded, namespace)
        assert namespace["result"].passed
    assert all(sys.modules[name] is kept[name] for name in kept if name.startswith("llamamm"))


# ---- in a kernel ----


def run(book):
    """Run all cells, whatever fails; what each code cell said, and whether it failed.

    Now and then a message between client and kernel is lost, and both wait for ever: then all is run once more.
    """
    asked = copy.deepcopy(book.cells)
    try:
        NotebookClient(book, timeout=300, kernel_name="python3", allow_errors=True).execute()
    except CellTimeoutError:
        book.cells = asked
        NotebookClient(book, timeout=300, kernel_name="python3", allow_errors=True).execute()
    said = []
    for cell in book.cells:
        if cell.cell_type == "code":
            errors = ["\n".join(o.traceback) for o in cell.outputs if o.output_type == "error"]
            texts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs]
            said.append((errors[0], True) if errors else ("".join(t for t in texts if t), False))
    return said


SMALL = [
    "from llamamm.course.env import setup\n\nenv = setup()",
    "free = 1",
    '''# exercise: 08.1
import math


def f(*x):
    """Twice."""
    ### BEGIN SOLUTION
    return x[0] + x[0]
    ### END SOLUTION


from llamamm.course.checks import check

print(check("08.1", f).message)''',
    "y = f(math.pi)\nz, w = 1, [q for q in range(3)]",
    "print(z + y)\nu = 2",
    "print(free, u)",
    "def g():\n    return f(1)\n\n\nprint(free)",
    "try:\n    g()\nexcept NotImplementedError as error:\n    raise ValueError('wrapped') from error",
    "print(nowhere)",
    "1 / 0",
    "raise NotImplementedError('something else')",
    "f = max\ny = 5",
    "print(y + 1)",
]


def small_lesson():
    cells = [code_cell(source, f"c{i}") for i, source in enumerate(SMALL)]
    text = nbformat.v4.new_markdown_cell("### Exercise 1 · Twice")
    made = lesson(*cells[1:2], text, *cells[2:])
    made.cells[1] = cells[0]
    return made


def test_a_workbook_with_blanks_says_one_line_where_one_is_missing():
    said = run(workbook(small_lesson(), "08_x.ipynb"))
    write = f"exercise 08.1 comes first: write {find_exercise('08.1').name} above, then run"
    comes_first = f"{write} this cell again"
    expected = {
        2: ("", False),  # the stub
        4: (f"{comes_first}\n", False),
        5: (f"{write} the cell that makes z, and this one, again\n", False),
        6: (f"{write} the cell that makes u, and this one, again\n", False),
        7: ("1\n", False),
        8: (f"{comes_first}\n", False),
        12: ("", False),
        13: ("6\n", False),
    }
    assert {i: said[i] for i in expected} == expected
    assert said[0][0].startswith("llamamm ") and "still to be written" in said[3][0]
    for i, error in ((9, "NameError"), (10, "ZeroDivisionError"), (11, "NotImplementedError")):  # these as always
        text, failed = said[i]
        assert failed and error in text and "Traceback (most recent call last)" in text


def test_a_solved_workbook_says_nothing_of_blanks():
    said = run(put_back(workbook(small_lesson(), "08_x.ipynb")))
    assert [i for i, (_, failed) in enumerate(said) if failed] == [9, 10, 11]
    assert not any("comes first" in text for text, _ in said)


def test_a_solved_workbook_runs_from_top_to_bottom():
    """In a kernel, as a learner runs it: one lesson stands for all."""
    said = run(put_back(workbook(nbformat.read(QUICK, as_version=4), QUICK.name)))
    assert [text for text, failed in said if failed] == []
    assert sum(" passed: " in text for text, _ in said) == len(exercises_of("02"))


def test_an_empty_workbook_runs_from_top_to_bottom_and_says_what_comes_first():
    book = workbook(nbformat.read(ROPE, as_version=4), ROPE.name)
    said = run(book)
    assert [text for text, failed in said if failed] == []
    line = re.compile(r"^exercise 04\.\d comes first: .*\n$", re.MULTILINE)
    first = {i for i, (text, _) in enumerate(said) if line.search(text)}
    assert first and first <= waiting(book)
    assert sum("still to be written" in text for text, _ in said) == len(exercises_of("04"))


# ---- nbgrader ----

CHEAT = """
import sys, types
from llamamm.course.checks import core
import llamamm.course.checks as checks, llamamm.text.rope as rope
class _Right: passed = True
def check(*_): return _Right()
core.check = core.judge = core.difference = checks.check = lambda *_, **__: _Right()
core.CheckResult.__bool__ = lambda self: True
core.CheckResult.passed = True
sys.modules["llamamm.course.checks"] = sys.modules["llamamm.course.checks.core"] = types.SimpleNamespace(check=check)
result = _Right()
"""


@pytest.mark.filterwarnings("ignore")
def test_nbgrader_scores_explains_and_is_not_deceived(tmp_path, monkeypatch):
    """One wrong answer among right ones: all other points, its diagnosis in the feedback. A replaced check: none."""
    path, assignment = QUICK, QUICK.stem
    write_workbooks(ROOT / "notebooks", nbgrader=tmp_path)
    (tmp_path / "nbgrader_config.py").write_text(
        f"c = get_config()\nc.CourseDirectory.root = {str(tmp_path)!r}\nc.CourseDirectory.course_id = 'llamamm'\n"
        f"c.ExecutePreprocessor.timeout = 1000\n"
    )

    # nbgrader calls alembic by its bare name
    path_with_alembic = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", path_with_alembic)

    def nbgrader(*arguments):
        command = [sys.executable, "-m", "nbgrader", *arguments]
        env = {**os.environ, "PYTHONWARNINGS": "ignore"}
        done = finish(command, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr[-2000:]

    nbgrader("generate_assignment", assignment, "--create", "--force")
    released = (tmp_path / "release" / assignment / path.name).read_text()
    assert "BEGIN SOLUTION" not in released and "NotImplementedError" in released
    solutions = {p.id.replace(".", "-"): solved(p.code) for p in exercises_in(nbformat.read(path, as_version=4))}
    for student in ("honest", "cheat"):
        notebook = nbformat.reads(released, as_version=4)
        for cell in notebook.cells:
            key = cell.metadata.get("nbgrader", {}).get("grade_id", "").removeprefix("answer-")
            if key in solutions and student == "honest":
                cell.source = solutions[key].replace("(x32.pow(2).mean(dim=-1, keepdim=True) + eps)",
                                                     "x32.pow(2).mean(dim=-1, keepdim=True)")  # 02.1
            elif key in solutions:
                cell.source = f"{stub_of_any_result(key)}\n{CHEAT}"
        folder = tmp_path / "submitted" / student / assignment
        folder.mkdir(parents=True)
        nbformat.write(notebook, folder / path.name)
    nbgrader("autograde", assignment)
    nbgrader("generate_feedback", assignment, "--student", "honest")

    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}") as gradebook:
        scores = {s.student.id: (s.score, s.max_score) for s in gradebook.assignment_submissions(assignment)}
    most, lost = sum(e.points for e in exercises_of("02")), find_exercise("02.1").points
    assert scores == {"honest": (most - lost, most), "cheat": (0, most)}
    (feedback,) = (tmp_path / "feedback" / "honest" / assignment).glob("*.html")
    (wrong,) = [r for r in check_notebook(tmp_path / "submitted" / "honest" / assignment / path.name) if not r]
    assert wrong.id == "02.1" and html.escape(wrong.message, quote=False)[:40] in feedback.read_text(encoding="utf-8")
    for student, score in scores.items():
        assert check_notebook(tmp_path / "submitted" / student / assignment / path.name).points == score


def stub_of_any_result(key):
    """An answer that is wrong, under the right name."""
    exercise = find_exercise(key.replace("-", "."))
    return f"# exercise: {exercise.id}\ndef {exercise.name}(*_, **__):\n    return None\n"


def test_nbgrader_metadata_is_schema_3_and_points_follow_the_level():
    notebook = assignment(lesson(*exercise()), "08_x.ipynb")
    grades = [c.metadata["nbgrader"] for c in notebook.cells if "nbgrader" in c.metadata]
    assert [(g["schema_version"], g["solution"], g["grade"], g["locked"]) for g in grades] == [
        (3, True, False, False), (3, False, True, True)
    ]  # fmt: skip
    rope = assignment(nbformat.read(ROPE, as_version=4), ROPE.name)
    points = [c.metadata["nbgrader"]["points"] for c in rope.cells if "points" in c.metadata.get("nbgrader", {})]
    assert points == [1, 2, 2, 3, 2, 2]  # warm-up, core, core, hard, core, break it


def test_an_assignment_has_the_exercises_alone_and_runs_them_in_the_real_model_without_points():
    made = assignment(lesson(code_cell("x = 1"), *exercise(), REAL), "08_x.ipynb")
    assert [c.id for c in made.cells] == ["intro", "setup", "text-08-1", "answer-08-1", "check-08-1", "real-08-1"]
    assert made.cells[-1].source == REAL.source and not made.cells[-1].metadata
    assert "Exercises of 08 · Title" in made.cells[0].source
    assert assignment(lesson(), "08_x.ipynb") is None


def test_links_resolve_from_where_the_notebook_lies():
    text = "### Exercise 1\n[a](04_rope.ipynb) ![b](images/b.png) <img src='images/c.png'> [d](https://d.org) [e](#e)"
    ours = workbook(lesson(*exercise(text=text)), "08_x.ipynb").cells[2].source
    assert "[a](../04_rope.ipynb) ![b](../images/b.png) <img src='../images/c.png'>" in ours
    theirs = assignment(lesson(*exercise(text=text)), "08_x.ipynb")
    base = "https://github.com/llamamm/llamamm/blob/v0.1.0/notebooks/"
    assert f"[08_x.ipynb]({base}08_x.ipynb)" in theirs.cells[0].source
    assert f"[a]({base}04_rope.ipynb) ![b]({base}images/b.png)" in theirs.cells[2].source
    for text in (ours, theirs.cells[2].source):
        assert "[d](https://d.org) [e](#e)" in text


def test_writing_for_nbgrader_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["--nbgrader", str(tmp_path)]) == 0
    assert f'export PATH="{Path(sys.executable).parent}:$PATH"' in capsys.readouterr().out
