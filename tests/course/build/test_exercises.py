"""course.build.exercises: students' notebooks from the lessons, byte for byte, and nbgrader's verdict on them."""

import html
import os
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from llamamm.course.build.exercises import (
    ExerciseError,
    exercises_in,
    main,
    solved,
    stub,
    student_notebook,
    write_exercises,
)
from llamamm.course.checks import exercises_of, find_exercise
from llamamm.course.checks.runner import check_notebook
from llamamm.course.checks.sheet import CHECK_IMPORT
from tests.processes import finish

ROOT = Path(__file__).parents[3]
LESSONS = sorted(p for p in (ROOT / "notebooks").glob("*.ipynb"))
ROPE = ROOT / "notebooks" / "03_rope.ipynb"

CODE = '''# exercise: 08.1
def f(x):
    """Twice."""
    ### BEGIN SOLUTION
    y = x + x
    return y
    ### END SOLUTION
'''


def lesson(*cells):
    title = nbformat.v4.new_markdown_cell("badge\n\n# 08 · Title\n\ntext")
    setup = nbformat.v4.new_code_cell("setup = 1")
    return nbformat.v4.new_notebook(cells=[title, setup, *cells])


CHECK = CHECK_IMPORT + '\ncheck("08.1", f)'


def exercise(text="### Exercise 1 · Twice (warm-up, 3 minutes)", code=CODE, check=CHECK):
    return nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell(f"{code}\n\n{check}")


def test_stub_and_solution_by_hand():
    assert stub(CODE, "08.1").splitlines()[2:] == [
        '    """Twice."""', '    raise NotImplementedError("exercise 08.1")'
    ]  # fmt: skip
    assert solved(CODE).splitlines()[2:] == ['    """Twice."""', "    y = x + x", "    return y"]


def test_a_students_notebook_has_stub_check_and_folded_solution():
    notebook = student_notebook(lesson(*exercise()), "08_x.ipynb")
    kinds = [c.cell_type for c in notebook.cells]
    assert kinds == ["markdown", "code", "markdown", "code", "code", "markdown"]
    intro, setup, text, answer, check, solution = notebook.cells
    assert "Exercises of 08 · Title" in intro.source and "(../08_x.ipynb)" in intro.source
    assert setup.source == "setup = 1"
    assert "NotImplementedError" in answer.source and "SOLUTION" not in answer.source and "x + x" not in answer.source
    assert check.source == CHECK
    assert solution.source.startswith("<details><summary>Solution") and "y = x + x" in solution.source
    assert not any(c.get("outputs") for c in notebook.cells)


def test_a_lesson_without_exercises_has_no_students_notebook():
    assert student_notebook(lesson(), "08_x.ipynb") is None


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
    (target,) = write_exercises(tmp_path)
    first = target.read_bytes()
    assert write_exercises(tmp_path) == []
    target.write_text("changed by hand")
    assert write_exercises(tmp_path, check=True) == [target]
    assert target.read_text() == "changed by hand"  # only looked
    write_exercises(tmp_path)
    assert target.read_bytes() == first


def test_the_committed_students_notebooks_are_what_the_lessons_give():
    assert write_exercises(ROOT / "notebooks", check=True) == []


# ---- the real lessons ----


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_every_lesson_has_three_to_five_exercises_from_warm_up_to_break_it(path):
    parts = list(exercises_in(nbformat.read(path, as_version=4)))
    declared = exercises_of(path.stem[:2])
    assert [p.id for p in parts] == [e.id for e in declared]
    assert 3 <= len(parts) <= 5
    levels = [e.level for e in declared]
    assert levels[0] == "warm-up" and "break it" in levels
    for part, exercise in zip(parts, declared, strict=True):
        heading = part.text.splitlines()[0].lower()
        assert exercise.level in heading and f"{exercise.minutes} minutes" in heading, part.id
        assert "<details><summary>Hint" in part.text, part.id
        assert len(exercise.mistakes) >= 3 or exercise.accept is not None, part.id


def solved_notebook(path, *, nbgrader=False):
    """A lesson's student's notebook with the solutions filled in, as a student would."""
    lesson_notebook = nbformat.read(path, as_version=4)
    student = student_notebook(lesson_notebook, path.name, nbgrader=nbgrader)
    solutions = {p.id.replace(".", "-"): solved(p.code) for p in exercises_in(lesson_notebook)}
    for cell in student.cells:
        if cell.id.startswith("answer-"):
            cell.source = solutions[cell.id.removeprefix("answer-")]
    return student


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_the_solutions_pass_and_the_stubs_do_not(path, tmp_path):
    """Whoever wrote the notebook, whatever the caller has done to gradients: the same score."""
    exercises = exercises_of(path.stem[:2])
    nbformat.write(student_notebook(nbformat.read(path, as_version=4), path.name), tmp_path / "student.ipynb")
    stubs = [r.message for r in check_notebook(tmp_path / "student.ipynb")]
    assert len(stubs) == len(exercises)
    assert [message for message in stubs if "still to be written" not in message] == []
    most = sum(e.points for e in exercises)
    for nbgrader in (False, True):
        nbformat.write(solved_notebook(path, nbgrader=nbgrader), tmp_path / "solved.ipynb")
        torch.set_grad_enabled(nbgrader)
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


def test_a_solved_students_notebook_runs_from_top_to_bottom():
    """In a kernel, as a student runs it: one lesson stands for all."""
    student = solved_notebook(ROPE)
    NotebookClient(student, timeout=None, kernel_name="python3").execute()
    said = [o.data["text/plain"] for c in student.cells if c.id.startswith("check-") for o in c.outputs if "data" in o]
    assert len(said) == len(exercises_of("03")) and all(" passed: " in s for s in said)


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
    path, assignment = ROPE, ROPE.stem
    write_exercises(ROOT / "notebooks", nbgrader=tmp_path)
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
                cell.source = solutions[key].replace("x * c - y * s", "x * c + y * s")  # in 03.1 alone
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
    most, lost = sum(e.points for e in exercises_of("03")), find_exercise("03.1").points
    assert scores == {"honest": (most - lost, most), "cheat": (0, most)}
    (feedback,) = (tmp_path / "feedback" / "honest" / assignment).glob("*.html")
    (wrong,) = [r for r in check_notebook(tmp_path / "submitted" / "honest" / assignment / path.name) if not r]
    assert wrong.id == "03.1" and html.escape(wrong.message, quote=False)[:40] in feedback.read_text(encoding="utf-8")
    for student, score in scores.items():
        assert check_notebook(tmp_path / "submitted" / student / assignment / path.name).points == score


def stub_of_any_result(key):
    """An answer that is wrong, under the right name."""
    exercise = find_exercise(key.replace("-", "."))
    return f"# exercise: {exercise.id}\ndef {exercise.name}(*_, **__):\n    return None\n"


def test_nbgrader_metadata_is_schema_3_and_points_follow_the_level():
    notebook = student_notebook(lesson(*exercise()), "08_x.ipynb", nbgrader=True)
    grades = [c.metadata["nbgrader"] for c in notebook.cells if "nbgrader" in c.metadata]
    assert [(g["schema_version"], g["solution"], g["grade"], g["locked"]) for g in grades] == [
        (3, True, False, False), (3, False, True, True)
    ]  # fmt: skip
    rope = student_notebook(nbformat.read(ROPE, as_version=4), ROPE.name, nbgrader=True)
    points = [c.metadata["nbgrader"]["points"] for c in rope.cells if "points" in c.metadata.get("nbgrader", {})]
    assert points == [1, 2, 2, 3, 2]  # warm-up, core, core, hard, break it


def test_links_resolve_from_where_the_notebook_lies():
    text = "### Exercise 1\n[a](03_rope.ipynb) ![b](images/b.png) <img src='images/c.png'> [d](https://d.org) [e](#e)"
    ours = student_notebook(lesson(*exercise(text=text)), "08_x.ipynb").cells[2].source
    assert "[a](../03_rope.ipynb) ![b](../images/b.png) <img src='../images/c.png'>" in ours
    theirs = student_notebook(lesson(*exercise(text=text)), "08_x.ipynb", nbgrader=True)
    base = "https://github.com/llamamm/llamamm/blob/v0.1.0/notebooks/"
    assert f"[08_x.ipynb]({base}08_x.ipynb)" in theirs.cells[0].source
    assert f"[a]({base}03_rope.ipynb) ![b]({base}images/b.png)" in theirs.cells[2].source
    for text in (ours, theirs.cells[2].source):
        assert "[d](https://d.org) [e](#e)" in text


def test_writing_for_nbgrader_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["--nbgrader", str(tmp_path)]) == 0
    assert f'export PATH="{Path(sys.executable).parent}:$PATH"' in capsys.readouterr().out
