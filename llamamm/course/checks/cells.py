"""The checks of a notebook's exercises, one after another, whatever the cells do.

    python -m llamamm.course.checks.cells NOTEBOOK [DONE ...]     what `runner.check_apart` starts

Each exercise runs in a namespace of its own, with the cells that define what it needs; then the checker tries what it
defines. The checker and the notebook have a copy of this package each, so that what a notebook changes in its copy,
`check` above all, changes nothing here.
"""

from __future__ import annotations

import json
import linecache
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llamamm.course.checks.compare import explained
from llamamm.course.checks.core import Exercise, failed, try_answer
from llamamm.course.checks.limits import TIME_LIMIT, Outcome, OutOfTimeError, run_limited, unheard
from llamamm.course.checks.report import CheckResult
from llamamm.course.checks.sheet import MARK, Sheet, plain_python, read_sheet, split_check
from llamamm.errors import InputError


def check_one(sheet: Sheet, exercise: Exercise, seconds: float = TIME_LIMIT) -> CheckResult:
    """Run the cells of one exercise, and try what they define."""
    if exercise.id not in sheet.places:
        return failed(exercise, f"missing: no cell begins with {MARK + exercise.id!r}", missing=True)
    cells, later = sheet.program(exercise)
    namespace: dict[str, Any] = {"__name__": "__main__", "get_ipython": _Shell, "display": print}
    with unheard(), _another_package(), _in_folder(sheet.path.parent):
        outcome = Outcome()
        for i in cells:
            last = run_limited(lambda i=i: _execute(sheet.code[i], f"<cell {i + 1}>", namespace), seconds)
            if i == sheet.places[exercise.id] or isinstance(last.error, OutOfTimeError):
                outcome = last
            if isinstance(last.error, OutOfTimeError):
                return failed(exercise, f"the cell is still running after {seconds:g} seconds")
        if exercise.name in namespace:
            # a cell that fails after its definition does not matter: in Jupyter, too, what it defined is there
            result = try_answer(exercise, namespace[exercise.name], seconds=seconds)
        elif outcome.error is None:
            result = failed(exercise, f"NameError: the cell defines no {exercise.name}; keep the name of the exercise")
        else:
            result = failed(exercise, f"the cell raised {explained(outcome.error)}")
    if later and not result:
        names = ", ".join(sorted(later))
        return failed(exercise, f"{result.message}; only a cell further down defines {names}: move that cell up")
    return result


def _execute(source: str, name: str, namespace: dict[str, Any]) -> None:
    source = plain_python(split_check(source)[0])
    linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name  # so that errors quote the line
    exec(compile(source, name, "exec"), namespace)


@contextmanager
def _another_package() -> Iterator[None]:
    """In this block an import of this package makes a new copy of it. Errors are shared: they are caught by class."""

    def own() -> list[str]:
        return [name for name in sys.modules if name.split(".")[0] == "llamamm" and name != "llamamm.errors"]

    errors = sys.modules["llamamm.errors"]
    kept = {name: sys.modules.pop(name) for name in own()}
    try:
        yield
    finally:
        for name in own():
            del sys.modules[name]
        sys.modules.update({**kept, "llamamm.errors": errors})


@contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    """Cells run in their notebook's folder and may import from it, as in Jupyter; afterwards all is as before."""
    before, path = os.getcwd(), [*sys.path]
    os.chdir(folder)
    sys.path.append(os.getcwd())  # last, so that no file there can stand in for this package
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = path


class _Shell:
    """In place of Jupyter's shell: its magic does nothing here."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args, **_kwargs: None


def main(path: str, done: list[str]) -> None:
    """Write a line of JSON for whatever there is to say; end without waiting for threads that cells left behind."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # what a cell, or a program that it starts, prints
    os.dup2(nowhere, 2)

    def say(**what: Any) -> None:
        print(json.dumps(what), file=channel, flush=True)

    try:
        sheet = read_sheet(Path(path))
    except InputError as error:
        say(refused=str(error))
    else:
        points = {exercise.id: exercise.points for exercise in sheet.exercises}
        say(points=points, remarks=sheet.remarks)
        for exercise in sheet.exercises:
            if exercise.id not in done:
                say(begins=exercise.id)
                say(result=vars(check_one(sheet, exercise)))
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
