"""From each lesson, which is solved, the workbook in which a learner writes it.

    python -m llamamm.course.build.workbooks                      notebooks/workbooks/NN_*.ipynb
    python -m llamamm.course.build.workbooks --check              fail where one of them is not what would be written
    python -m llamamm.course.build.workbooks --nbgrader FOLDER    FOLDER/source/NN_*/NN_*.ipynb, for nbgrader

In a lesson, a cell that begins with `# exercise: 04.1` holds a solution between `### BEGIN SOLUTION` and
`### END SOLUTION`, and ends with `check("04.1", ...)`. A workbook is the lesson with all its cells and without outputs,
where such a cell becomes a stub and a cell with the check, followed by the solution, folded. So is the package's own
version that comes next. The same lesson gives the same bytes.

For nbgrader there are the exercises alone. The solution stays, which nbgrader itself takes out of what it releases, and
the check is a cell for points, which fails with the diagnosis.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from llamamm.course.build import sync
from llamamm.course.build.lessons import WORKBOOKS, opening_line
from llamamm.course.build.run import KERNEL
from llamamm.course.checks import find_exercise
from llamamm.course.checks.sheet import CHECK_IMPORT, MARK, split_check
from llamamm.course.env import REPOSITORY, TAG
from llamamm.errors import LlamammError
from llamamm.files import write_file

SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION\n(.*?)^[ \t]*### END SOLUTION[ \t]*\n?", re.M | re.S)
REAL_MODEL = re.compile(r"^in_real_model\(", re.M)
PLUMBING = re.compile(r"^# NBVAL_\w+[ \t]*\n", re.M)  # for the run of the lesson, which has outputs to compare
LINK = re.compile(r"""(\]\(|\b(?:src|href)=["'])(?![a-z][a-z0-9+.-]*:|[#/])""", re.I)  # before a relative address
LESSONS_URL = f"https://github.com/{REPOSITORY}/blob/{TAG}/notebooks/"
FOLDED = {"cellView": "form", "jupyter": {"source_hidden": True}}  # on Colab, and in JupyterLab
FOLDED_TITLE = "#@title The package's version\n"
HOW_TO = (
    "**This is the workbook.** Where a cell holds `raise NotImplementedError`, write your own code instead, and "
    "run the cells below it: a check says what is still wrong. Hints and solutions are folded. A cell that needs "
    "a function you have not written yet says so in one line; all other cells run."
)
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
    """One exercise of a lesson: the cell with the solution, its text above, its check, its run in the real model."""

    id: str
    place: int  # of the cell with the solution
    text: str
    code: str
    check: str
    real: str = ""

    @property
    def graded(self) -> str:
        """The check as nbgrader runs it, in a kernel where the student may have changed whatever can be changed."""
        exercise = find_exercise(self.id)
        return GRADED % (exercise.id, exercise.name)

    @property
    def folded(self) -> str:
        """The solution, folded."""
        return f"<details><summary>Solution</summary>\n\n```python\n{solved(self.code)}\n```\n\n</details>"


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
        after = cells[i + 1] if i + 1 < len(cells) else None
        real = after.source if after and after.cell_type == "code" and REAL_MODEL.search(after.source) else ""
        yield ExercisePart(exercise_id, i, text.source, code, check, real)


def stub(code: str, exercise_id: str) -> str:
    """A solution cell with `raise NotImplementedError` in place of each solution."""
    return SOLUTION.sub(lambda m: f'{m[1]}raise NotImplementedError("exercise {exercise_id}")\n', code).rstrip("\n")


def solved(code: str) -> str:
    """A solution cell without the marks."""
    return SOLUTION.sub(lambda m: m[2], code).rstrip("\n")


def gives_away(cells: list[NotebookNode]) -> set[int]:
    """Places of the cells that quote what an exercise above has had the learner write: those with one of its names
    (`rms_norm`, `RMSNorm`), those that come next after it, and the following ones of the same module."""
    found, written, module = set(), set(), ""
    for i, cell in enumerate(cells):
        if cell.cell_type != "code" or REAL_MODEL.search(cell.source):
            continue
        if cell.source.startswith(MARK):
            written |= {_bare(name) for name in _definitions(cell.source)}
            module = "any"
        elif cell.source.startswith(sync.MARK):
            quoted = cell.source.splitlines()[0].removeprefix(sync.MARK).strip()
            if module in ("any", quoted) or written & {_bare(name) for name in _definitions(cell.source)}:
                found.add(i)
                module = quoted
            else:
                module = ""
        else:
            module = ""
    return found


def workbook(lesson: NotebookNode, name: str) -> NotebookNode:
    """The workbook of a lesson. `name` is the lesson's file name. Raises ExerciseError."""
    parts = {part.place: part for part in exercises_in(lesson)}
    folded = gives_away(lesson.cells)
    cells, waiting = [], None
    for i, cell in enumerate(lesson.cells):
        if i == 0:
            rest = LINK.sub(r"\1../", cell.source.partition("\n")[2])
            cells.append(_markdown(cell.id, f"{opening_line(name, workbook=True)}\n{rest}\n\n{HOW_TO}"))
        elif cell.cell_type != "code":
            cells.append(_markdown(cell.id, LINK.sub(r"\1../", cell.source)))
        elif part := parts.get(i):
            cells.append(_code(cell.id, stub(part.code, part.id)))
            cells.append(_code(f"{cell.id}-check", part.check))
            waiting = _markdown(f"{cell.id}-solution", part.folded)
        elif i in folded:
            cells.append(_code(cell.id, FOLDED_TITLE + cell.source, FOLDED))
        else:
            cells.append(_code(cell.id, PLUMBING.sub("", cell.source)))
        if waiting and not (i in parts and parts[i].real):  # after the run in the real model, where there is one
            cells.append(waiting)
            waiting = None
    return _notebook(cells)


def assignment(lesson: NotebookNode, name: str) -> NotebookNode | None:
    """The exercises of a lesson for nbgrader, None where it has none."""
    parts = list(exercises_in(lesson))
    if not parts:
        return None
    title = re.search(r"^# (.*)$", lesson.cells[0].source, re.M)[1]
    intro = (
        f"# Exercises of {title}\n\nThe lesson: [{name}]({LESSONS_URL}{name}). Write your own code where a cell raises "
        f"`NotImplementedError`, then run the cell below it: it tries what you wrote and says what is wrong. "
        f"Hints are folded in the text."
    )
    cells = [_markdown("intro", intro), _code("setup", lesson.cells[1].source)]
    for part in parts:
        key = part.id.replace(".", "-")
        cells.append(_markdown(f"text-{key}", LINK.sub(rf"\1{LESSONS_URL}", part.text)))
        cells.append(_code(f"answer-{key}", part.code, _grade(f"answer-{key}", solution=True)))
        cells.append(_code(f"check-{key}", part.graded, _grade(f"check-{key}", points=find_exercise(part.id).points)))
        if part.real:
            cells.append(_code(f"real-{key}", part.real))
    return _notebook(cells)


def write_workbooks(lessons: Path, *, nbgrader: Path | None = None, check: bool = False) -> list[Path]:
    """Write the workbooks of all lessons in a folder, or their assignments. Returns those that changed, or would."""
    changed = []
    for path in sorted(lessons.glob("*.ipynb")):
        lesson = nbformat.read(path, as_version=4)
        notebook = workbook(lesson, path.name) if nbgrader is None else assignment(lesson, path.name)
        if notebook is None:
            continue
        folder = lessons / WORKBOOKS if nbgrader is None else nbgrader / "source" / path.stem
        target, text = folder / path.name, nbformat.writes(notebook) + "\n"
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            changed.append(target)
            if not check:
                folder.mkdir(parents=True, exist_ok=True)
                write_file(target, text)
    return changed


def _definitions(source: str) -> set[str]:
    """The functions and classes at the top of a cell."""
    return {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def _bare(name: str) -> str:
    return name.replace("_", "").lower()


def _notebook(cells: list[NotebookNode]) -> NotebookNode:
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})
    notebook.nbformat_minor = 5
    return notebook


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
        changed = write_workbooks(lessons, nbgrader=Path(arguments[1]))
    else:
        changed = write_workbooks(lessons, check=arguments == ["--check"])
    for path in changed:
        print(path)
    if arguments[:1] == ["--nbgrader"]:
        print(f"next, in {arguments[1]}, with this environment's programs on PATH, where nbgrader looks for them:\n"
              f'  export PATH="{Path(sys.executable).parent}:$PATH"\n'
              f"  nbgrader generate_assignment 04_rope --create")  # fmt: skip
    return 1 if changed and arguments == ["--check"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
