"""course.build.exercises: students' notebooks from the lessons, byte for byte, and nbgrader's verdict on them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from llamamm.course.build.exercises import ExerciseError, exercises_in, solved, stub, student_notebook, write_exercises
from llamamm.course.checks import exercises_of
from llamamm.course.checks.runner import CHECK_IMPORT, check_notebook

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


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_the_solutions_pass_and_the_stubs_do_not(path, tmp_path):
    lesson_notebook = nbformat.read(path, as_version=4)
    student = student_notebook(lesson_notebook, path.name)
    nbformat.write(student, tmp_path / "student.ipynb")
    stubs = [r.message for r in check_notebook(tmp_path / "student.ipynb")]
    assert [message for message in stubs if "still to be written" not in message] == []
    solutions = {p.id.replace(".", "-"): solved(p.code) for p in exercises_in(lesson_notebook)}
    for cell in student.cells:
        if cell.id.startswith("answer-"):
            cell.source = solutions[cell.id.removeprefix("answer-")]
    nbformat.write(student, tmp_path / "solved.ipynb")
    assert [r for r in check_notebook(tmp_path / "solved.ipynb") if not r] == []


def test_a_solved_students_notebook_runs_from_top_to_bottom():
    """In a kernel, as a student runs it: one lesson stands for all."""
    path = ROPE
    student = student_notebook(nbformat.read(path, as_version=4), path.name)
    solutions = {p.id.replace(".", "-"): solved(p.code) for p in exercises_in(nbformat.read(path, as_version=4))}
    for cell in student.cells:
        if cell.id.startswith("answer-"):
            cell.source = solutions[cell.id.removeprefix("answer-")]
    NotebookClient(student, timeout=120, kernel_name="python3").execute()
    said = [o.data["text/plain"] for c in student.cells if c.id.startswith("check-") for o in c.outputs if "data" in o]
    assert len(said) == len(solutions) and all(" passed: " in s for s in said)


# ---- nbgrader ----


@pytest.mark.timeout(280)
@pytest.mark.filterwarnings("ignore")
def test_nbgrader_grades_a_solved_copy_in_full_and_an_empty_one_at_zero(tmp_path, monkeypatch):
    path = ROPE
    (source,) = [p for p in write_exercises(ROOT / "notebooks", nbgrader=tmp_path) if p.stem == path.stem]
    assignment = path.stem
    (tmp_path / "nbgrader_config.py").write_text(
        f"c = get_config()\nc.CourseDirectory.root = {str(tmp_path)!r}\nc.CourseDirectory.course_id = 'llamamm'\n"
        f"c.ExecutePreprocessor.timeout = 120\n"
    )

    # nbgrader calls alembic by its bare name
    path_with_alembic = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    monkeypatch.setenv("PATH", path_with_alembic)

    def nbgrader(*arguments):
        command = [sys.executable, "-m", "nbgrader", *arguments]
        env = {**os.environ, "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    nbgrader("generate_assignment", assignment, "--create", "--force")
    released = tmp_path / "release" / assignment / path.name
    text = released.read_text()
    assert "BEGIN SOLUTION" not in text and "NotImplementedError" in text
    for student, notebook in (("empty", released), ("solved", source)):
        folder = tmp_path / "submitted" / student / assignment
        folder.mkdir(parents=True)
        (folder / path.name).write_text(notebook.read_text())
    nbgrader("autograde", assignment)

    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}") as gradebook:
        scores = {s.student.id: (s.score, s.max_score) for s in gradebook.assignment_submissions(assignment)}
    n = len(exercises_of(assignment[:2]))
    assert scores == {"empty": (0, n), "solved": (n, n)}


def test_nbgrader_metadata_is_schema_3():
    notebook = student_notebook(lesson(*exercise()), "08_x.ipynb", nbgrader=True)
    grades = [c.metadata["nbgrader"] for c in notebook.cells if "nbgrader" in c.metadata]
    assert [(g["schema_version"], g["solution"], g["grade"], g["locked"]) for g in grades] == [
        (3, True, False, False), (3, False, True, True)
    ]  # fmt: skip
    assert json.dumps(grades[1]).count('"points": 1') == 1
    assert notebook.cells[-1].source.endswith('\nassert check("08.1", f)')
