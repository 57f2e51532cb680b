"""From each lesson, which holds its exercises with their solutions, the student's notebook of exercises.

    python -m llamamm.course.build.exercises                      notebooks/exercises/NN_*.ipynb
    python -m llamamm.course.build.exercises --check              fail where one of them is not what would be written
    python -m llamamm.course.build.exercises --nbgrader FOLDER    FOLDER/source/NN_*/NN_*.ipynb, for nbgrader

In a lesson, a cell that begins with `# exercise: 04.1` holds a solution between `### BEGIN SOLUTION` and
`### END SOLUTION`, and ends with `check("04.1", ...)`. The student gets two cells, a stub instead of the solution and
the check, and the solution folded below. The same lesson gives the same bytes.

For nbgrader the solution stays, which nbgrader itself takes out of what it releases, and the check is a cell for
points, which fails with the diagnosis.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from llamamm.course.build.run import KERNEL
from llamamm.course.checks import find_exercise
from llamamm.course.checks.sheet import CHECK_IMPORT, MARK, split_check
from llamamm.course.env import REPOSITORY, TAG
from llamamm.errors import LlamammError
from llamamm.files import write_file

SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION\n(.*?)^[ \t]*### END SOLUTION[ \t]*\n?", re.M | re.S)
LINK = re.compile(r"""(\]\(|\b(?:src|href)=["'])(?![a-z][a-z0-9+.-]*:|[#/])""", re.I)  # before a relative address
LESSONS_URL = f"https://github.com/{REPOSITORY}/blob/{TAG}/notebooks/"
GRADED = """import sys

own = {n: sys.modules.pop(n) for n in [*sys.modules] if n.split(".")[0] == "llamamm" and n != "llamamm.errors"}
from llamamm.course.checks import check  # from its file: what has been changed in memory does not count

result = check("%s", %s)
sys.modules.update(own)
assert result.passed, result
result"""


class ExerciseError(LlamammError):
    """A lesson whose exercises do not have the agreed form."""


@dataclass
class ExercisePart:
    """One exercise of a lesson: its text, the cell with the solution, the cell that checks it."""

    id: str
    text: str
    code: str
    check: str

    @property
    def graded(self) -> str:
        """The check as nbgrader runs it, in a kernel where the student may have changed whatever can be changed."""
        exercise = find_exercise(self.id)
        return GRADED % (exercise.id, exercise.name)


def exercises_in(notebook: NotebookNode) -> Iterator[ExercisePart]:
    """The exercises of a lesson, in order. Raises ExerciseError where a part is missing."""
    cells = notebook.cells
    for i, cell in enumerate(cells):
        if cell.cell_type != "code" or not cell.source.startswith(MARK):
            continue
        exercise_id = cell.source.splitlines()[0].removeprefix(MARK).strip()
        text = cells[i - 1]
        code, check = split_check(cell.source)
        if text.cell_type != "markdown" or not text.source.startswith("### Exercise"):
            raise ExerciseError(f"before exercise {exercise_id} stands no text that begins with '### Exercise'")
        if not SOLUTION.search(code):
            raise ExerciseError(f"exercise {exercise_id} has no solution between its two marks")
        if f'check("{exercise_id}"' not in check:
            raise ExerciseError(
                f'exercise {exercise_id} does not end with {CHECK_IMPORT.strip()!r} and check("{exercise_id}", ...)'
            )
        yield ExercisePart(exercise_id, text.source, code, check)


def stub(code: str, exercise_id: str) -> str:
    """A solution cell with `raise NotImplementedError` in place of each solution."""
    return SOLUTION.sub(lambda m: f'{m[1]}raise NotImplementedError("exercise {exercise_id}")\n', code).rstrip("\n")


def solved(code: str) -> str:
    """A solution cell without the marks."""
    return SOLUTION.sub(lambda m: m[2], code).rstrip("\n")


def student_notebook(lesson: NotebookNode, name: str, *, nbgrader: bool = False) -> NotebookNode | None:
    """The student's notebook of a lesson, None where it has no exercises. `name` is the lesson's file name."""
    parts = list(exercises_in(lesson))
    if not parts:
        return None
    title = re.search(r"^# (.*)$", lesson.cells[0].source, re.M)[1]
    base = LESSONS_URL if nbgrader else "../"
    intro = (
        f"# Exercises of {title}\n\nThe lesson: [{name}]({base}{name}). Write your own code where a cell raises "
        f"`NotImplementedError`, then run the cell below it: it tries what you wrote and says what is wrong. "
        f"Hints are folded in the text{'' if nbgrader else ', the solution below each exercise'}."
    )
    cells = [_markdown("intro", intro), _code("setup", lesson.cells[1].source)]
    for part in parts:
        key = part.id.replace(".", "-")
        cells.append(_markdown(f"text-{key}", LINK.sub(rf"\1{base}", part.text)))
        if nbgrader:
            points = find_exercise(part.id).points
            cells.append(_code(f"answer-{key}", part.code, _grade(f"answer-{key}", solution=True)))
            cells.append(_code(f"check-{key}", part.graded, _grade(f"check-{key}", points=points)))
        else:
            answer = f"<details><summary>Solution</summary>\n\n```python\n{solved(part.code)}\n```\n\n</details>"
            cells.append(_code(f"answer-{key}", stub(part.code, part.id)))
            cells.append(_code(f"check-{key}", part.check))
            cells.append(_markdown(f"solution-{key}", answer))
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})
    notebook.nbformat_minor = 5
    return notebook


def write_exercises(lessons: Path, *, nbgrader: Path | None = None, check: bool = False) -> list[Path]:
    """Write the students' notebooks of all lessons in a folder. Returns those that changed, or would."""
    changed = []
    for path in sorted(lessons.glob("*.ipynb")):
        lesson = nbformat.read(path, as_version=4)
        notebook = student_notebook(lesson, path.name, nbgrader=nbgrader is not None)
        if notebook is None:
            continue
        folder = lessons / "exercises" if nbgrader is None else nbgrader / "source" / path.stem
        target, text = folder / path.name, nbformat.writes(notebook) + "\n"
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            changed.append(target)
            if not check:
                folder.mkdir(parents=True, exist_ok=True)
                write_file(target, text)
    return changed


def _markdown(cell_id: str, source: str) -> NotebookNode:
    return nbformat.v4.new_markdown_cell(source, id=cell_id)


def _code(cell_id: str, source: str, metadata: dict | None = None) -> NotebookNode:
    return nbformat.v4.new_code_cell(source, id=cell_id, metadata=metadata or {})


def _grade(grade_id: str, *, solution: bool = False, points: int | None = None) -> dict:
    """nbgrader's cell metadata, schema 3: a cell to be answered, or one that is run for points."""
    grade = {"grade": points is not None, "grade_id": grade_id, "locked": not solution, "schema_version": 3,
             "solution": solution, "task": False}  # fmt: skip
    return {"nbgrader": grade if points is None else {**grade, "points": points}}


def main(arguments: list[str]) -> int:
    """See the module's docstring."""
    lessons = Path("notebooks")
    if arguments[:1] == ["--nbgrader"]:
        if len(arguments) != 2:
            print(textwrap.dedent(__doc__), file=sys.stderr)
            return 2
        changed = write_exercises(lessons, nbgrader=Path(arguments[1]))
    else:
        changed = write_exercises(lessons, check=arguments == ["--check"])
    for path in changed:
        print(path)
    if arguments[:1] == ["--nbgrader"]:
        print(f"next, in {arguments[1]}, with this environment's programs on PATH, where nbgrader looks for them:\n"
              f'  export PATH="{Path(sys.executable).parent}:$PATH"\n'
              f"  nbgrader generate_assignment 04_rope --create")  # fmt: skip
    return 1 if changed and arguments == ["--check"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
