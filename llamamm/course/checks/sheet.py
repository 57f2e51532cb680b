"""A student's notebook as the checks see it: of which lesson it is, where each of its exercises stands, what is amiss.

A mark, `# exercise: 04.1`, says which exercise a cell answers. Marks get lost, doubled and misspelt, so they are held
against the list of the lesson, which the package knows.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
import symtable
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from llamamm.course.checks import core
from llamamm.course.checks.core import Exercise
from llamamm.errors import InputError

MARK = "# exercise: "
CHECK_IMPORT = "from llamamm.course.checks import check\n"
_MARKS = re.compile(r"^[ \t]*#[ \t]*exercise[ \t]*:[ \t]*(\S+)[ \t]*$", re.M | re.I)
_TITLE = re.compile(r"^# (?:Exercises of )?(\d\d) ·", re.M)
_TIMING = re.compile(r"\A\s*%%(?:time|timeit|capture|prun)\b.*\n")  # cell magics, whose body is Python


@dataclass
class Sheet:
    """A notebook's code cells, and the place among them of each exercise of its lesson, where it has one."""

    path: Path
    lesson: str
    exercises: tuple[Exercise, ...]
    code: list[str]
    places: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def program(self, exercise: Exercise) -> tuple[list[int], set[str]]:
        """The cells that an answer needs, in order: its own, and those before its check that define what it lacks.
        Also the names that only a later cell defines."""
        place, end = self.places[exercise.id], self._end(exercise.id)
        names = [names_in(source) for source in self.code]  # (defined, used) of each cell
        chosen: set[int] = set()
        new = [i for i in range(end) if exercise.name in names[i][0]][-1:] + [place]
        while new:
            chosen.update(new)
            lacking = {name for i in chosen for name in names[i][1]} - {name for i in chosen for name in names[i][0]}
            # the last cell before the check that defines a name is the one that counts
            new = [i for i in range(end) if i not in chosen and names[i][0] & (lacking | {"*"}) and lacking][-1:]
        return sorted(chosen), lacking & {name for defined, _ in names[end:] for name in defined}

    def _end(self, exercise_id: str) -> int:
        """The place of the cell that checks an exercise, or of the next exercise."""
        place = self.places[exercise_id]
        asked = re.compile(rf"""\bcheck\(\s*["']{re.escape(exercise_id)}["']""")
        if asked.search(self.code[place]):
            return place + 1
        for i in range(place + 1, len(self.code)):
            if asked.search(self.code[i]) or _MARKS.search(self.code[i]):
                return i
        return len(self.code)


def split_check(source: str) -> tuple[str, str]:
    """A lesson's cell, which ends with its check, in two: the exercise and the check; "" where there is none."""
    code, mark, check = source.partition("\n" + CHECK_IMPORT)
    return code.rstrip("\n") + "\n", mark.lstrip("\n") + check


def read_sheet(path: Path) -> Sheet:
    """Raises InputError where the file is no notebook, holds no exercise, or it is unclear of which lesson it is."""
    cells = _cells(path)
    code = [_source(cell) for cell in cells if cell.get("cell_type") == "code"]
    marks = [(exercise_id, i) for i, source in enumerate(code) for exercise_id in _MARKS.findall(source)]
    title = next(filter(None, (_TITLE.search(_source(c)) for c in cells if c.get("cell_type") == "markdown")), None)
    lesson = _lesson(path, title[1] if title else None, [exercise_id for exercise_id, _ in marks])
    sheet = Sheet(path, lesson, core.exercises_of(lesson), code)
    known = {exercise.id for exercise in sheet.exercises}
    for exercise_id, i in marks:
        if exercise_id in known:
            sheet.places[exercise_id] = i
    for exercise_id, n in Counter(exercise_id for exercise_id, _ in marks).items():
        if exercise_id not in known:
            sheet.remarks.append(f"{exercise_id} is not among the exercises of lesson {lesson}, it does not count")
        elif n > 1:
            sheet.remarks.append(f"{n} cells are marked {exercise_id}: the last one counts")
    return sheet


def _cells(path: Path) -> list[dict]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        old = "worksheets" in content
        cells = [] if old else content["cells"]
        if not all(isinstance(cell, dict) for cell in cells):
            raise TypeError
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{path} is not a notebook") from None
    if old:
        raise InputError(f"{path} has an old notebook format: open it in Jupyter and save it")
    return cells


def _source(cell: dict) -> str:
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(map(str, source or ()))


def _lesson(path: Path, title: str | None, marks: list[str]) -> str:
    """The lesson that two of a notebook's title, file name and marks agree upon, or the only one they name."""
    name = re.match(r"(\d\d)_", path.name)
    most = Counter(mark.split(".")[0] for mark in marks).most_common(1)
    said = {"title": title, "name": name and name[1], "marks": most and most[0][0]}
    votes = Counter(lesson for lesson in said.values() if lesson).most_common()
    if not votes:
        raise InputError(f"{path} holds no exercise, no cell that begins with {MARK!r}")
    if len(votes) > 1 and votes[0][1] == votes[1][1]:
        different = ", ".join(f"its {what} say{'s' * (what != 'marks')} {n}" for what, n in said.items() if n)
        raise InputError(f"it is unclear of which lesson {path} is: {different}")
    return votes[0][0]


# ---- which cells need which ----


def plain_python(source: str) -> str:
    """A cell without what only Jupyter understands: `%magic`, `!command`, `name?`. Lines keep their numbers."""
    source = _TIMING.sub("\n", source)
    try:
        ast.parse(source)
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager  # only where it is needed: it is slow to import

        try:
            return TransformerManager().transform_cell(source)
        except SyntaxError:
            pass
    except ValueError:  # null bytes
        pass
    return source


def _of_comprehensions(source: str) -> set[str]:
    """The variables of comprehensions, which end with them; from Python 3.12 on, symtable takes them for the cell's."""
    tree = ast.parse(source)
    targets = [n for c in ast.walk(tree) if isinstance(c, ast.comprehension) for n in ast.walk(c.target)]
    stored = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    others = {n.id for n in stored if n not in targets}
    return {n.id for n in targets if isinstance(n, ast.Name)} - others


def _outside_comprehensions(source: str) -> set[str]:
    """The names that are read where no comprehension has a variable of that name."""
    read: set[str] = set()
    waiting: list[tuple[ast.AST, frozenset[str]]] = [(ast.parse(source), frozenset())]  # deep cells recurse too far
    while waiting:
        node, hidden = waiting.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in hidden:
            read.add(node.id)
        targets = [n for c in getattr(node, "generators", ()) for n in ast.walk(c.target)]
        inside = hidden | {n.id for n in targets if isinstance(n, ast.Name)}
        waiting += [(child, inside) for child in ast.iter_child_nodes(node)]
    return read


def names_in(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell defines, and those that it uses and does not define. A cell that is no Python: none.

    "*" among the defined stands for `from module import *`.
    """
    try:
        top = symtable.symtable(plain_python(source), "cell", "exec")
        stars = {"*"} if re.search(r"^from \S+ import \*", source, re.M) else set()
    except (SyntaxError, ValueError, RecursionError):
        return set(), set()
    tables = [top]
    for table in tables:
        tables.extend(table.get_children())
    symbols = [(table, symbol) for table in tables for symbol in table.get_symbols()]
    inner = _of_comprehensions(plain_python(source))
    made = [(t, s) for t, s in symbols if (s.is_assigned() or s.is_imported()) and s.get_name() not in inner]
    bound = {s.get_name() for t, s in made if t is top or s.is_declared_global()}
    ended = inner - _outside_comprehensions(plain_python(source))
    used = {s.get_name() for t, s in symbols if s.is_referenced() and (t is top or s.is_global())} - ended
    return bound | stars, used - bound - set(dir(builtins))
