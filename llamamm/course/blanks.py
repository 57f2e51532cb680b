"""What a workbook says where a cell needs a function that the learner has not written yet: one line, no traceback.

    exercise 03.2 comes first: write apply_rope above, then run this cell again

Such a cell ends there and counts as run, so that "Run all" goes on with the next one; nbgrader alone is told of the
error. It leaves the names undefined that it would have made, and a later cell that misses one of them gets such a
line, too. Every other error looks as it always does.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from typing import Any

_BLANK = re.compile(r"exercise (\d\d\.\d+)")


def install(shell: Any) -> None:
    """Make an IPython shell show blanks in one line. A second time changes nothing."""
    if hasattr(shell, "llamamm_blanks"):
        return
    shell.llamamm_blanks = Blanks(shell)


class Blanks:
    """Stands before a shell's `showtraceback`, and remembers what cells with blanks have left undefined."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.usual = shell.showtraceback
        self.missing: dict[str, str] = {}  # name -> the exercise that it waits for
        shell.showtraceback = self.showtraceback
        shell.events.register("post_run_cell", self.after_cell)

    def line(self, error: BaseException | None) -> str | None:
        """What to say of an error, None where it has nothing to do with a blank."""
        found = self.blank_of(error)
        if found is None:
            return None
        exercise_id, name = found
        write = first(exercise_id)
        if name is None:
            return f"{write}, then run this cell again"
        return f"{write}, then run the cell that makes {name}, and this one, again"

    def blank_of(self, error: BaseException | None) -> tuple[str, str | None] | None:
        """The exercise that an error waits for, and the name that a cell before would have made, if that is missing."""
        for cause in _chain(error):
            if exercise_id := _exercise(cause):
                return exercise_id, None
            if type(cause) is NameError and cause.name in self.missing and self._in_cell(cause):
                return self.missing[cause.name], cause.name
        return None

    def showtraceback(self, exc_tuple: tuple | None = None, *args: Any, **kwargs: Any) -> None:
        """As the shell's own; the line alone for a blank."""
        try:
            _, error, _ = self.shell._get_exc_info(exc_tuple)
        except ValueError:  # there is none
            error = None
        line = self.line(error)
        if line is None:
            self.usual(exc_tuple, *args, **kwargs)
        elif _graded():
            self.shell._showtraceback(NotImplementedError, NotImplementedError(line), [line])
        else:
            print(line)

    def after_cell(self, result: Any) -> None:
        """Remember the names that a cell has not come to define, forget those that are there now, and let the next
        cell run where a blank alone is to blame."""
        names = names_made(result.info.raw_cell or "")
        found = self.blank_of(result.error_in_exec)
        for name in names:
            self.missing.pop(name, None)
            if found is not None and name not in self.shell.user_ns:
                self.missing[name] = found[0]
        if found is not None and not _graded():
            result.error_in_exec = None  # Jupyter stops "Run all" where one is left

    def _in_cell(self, error: BaseException) -> bool:
        """Whether the name was missing in the notebook, and not somewhere in a library."""
        step = error.__traceback__
        while step is not None and step.tb_next is not None:
            step = step.tb_next
        return step is not None and step.tb_frame.f_globals is self.shell.user_ns


def _graded() -> bool:
    """Whether nbgrader runs the notebook: it takes a cell without an error for a right answer."""
    return "NBGRADER_EXECUTION" in os.environ


def blank_in(error: BaseException | None) -> str | None:
    """The exercise whose blank raised an error, or an error from which this one was raised; None for any other."""
    return next(filter(None, map(_exercise, _chain(error))), None)


def is_blank(error: BaseException | None) -> bool:
    """Whether an error says that something is still to be written: a blank's, or a bare NotImplementedError. PyTorch
    raises the same kind, with a text of its own, for what it cannot compute."""
    return blank_in(error) is not None or isinstance(error, NotImplementedError) and not str(error)


def first(exercise_id: str) -> str:
    """What to do about a blank: "exercise 03.2 comes first: write apply_rope above"."""
    return f"exercise {exercise_id} comes first: write {_function(exercise_id)} above"


def _exercise(error: BaseException) -> str | None:
    match = _BLANK.fullmatch(str(error)) if isinstance(error, NotImplementedError) else None
    return match and match[1]


def names_made(source: str) -> set[str]:
    """The names that a cell assigns, imports or defines outside functions and classes; none if it is no Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return set()
    names: set[str] = set()
    open_nodes: list[ast.AST] = [tree]
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        open_nodes.extend(ast.iter_child_nodes(node))
    return names


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those from which it was raised."""
    seen: list[BaseException] = []
    while error is not None and not any(error is other for other in seen):
        seen.append(error)
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _function(exercise_id: str) -> str:
    """The name of what the learner is to write."""
    from llamamm.course.checks import find_exercise
    from llamamm.errors import InputError

    try:
        return find_exercise(exercise_id).name
    except InputError:  # no exercise of this course
        return "it"
