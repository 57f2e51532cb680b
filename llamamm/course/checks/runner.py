"""`llamamm check 03`: run the checks of a student's notebook outside Jupyter, one exercise after another.

Each exercise's cell is executed in a namespace of its own and then checked, so that one that fails does not hide the
others.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from llamamm.course.checks.core import TIME_LIMIT, CheckResult, OutOfTimeError, find_exercise, time_limit
from llamamm.errors import InputError

MARK = "# exercise: "
CHECK_IMPORT = "from llamamm.course.checks import check\n"


def split_check(source: str) -> tuple[str, str]:
    """A lesson's cell, which ends with its check, in two: the exercise and the check; "" where there is none."""
    code, mark, check = source.partition("\n" + CHECK_IMPORT)
    return code.rstrip("\n") + "\n", mark.lstrip("\n") + check


def find_notebook(lesson: str, folder: Path) -> Path:
    """The student's notebook of a lesson, "03" or a path. Raises InputError saying where it was looked for."""
    if lesson.endswith(".ipynb"):
        if not Path(lesson).is_file():
            raise InputError(f"{lesson} does not exist")
        return Path(lesson)
    places = [folder / "notebooks" / "exercises", folder / "exercises", folder]
    for place in places:
        found = sorted(place.glob(f"{lesson}_*.ipynb"))
        if found:
            return found[0]
    raise InputError(f"no notebook {lesson}_*.ipynb in {', '.join(map(str, places))}; give its path")


def check_notebook(path: Path) -> Iterator[CheckResult]:
    """The result of every exercise in a notebook, in order. Raises InputError where it holds none."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is not a notebook") from None
    exercises = [(n, source) for n, source in enumerate(code) if source.startswith(MARK)]
    if not exercises:
        raise InputError(f"{path} holds no exercise, no cell that begins with {MARK!r}")
    for n, source in exercises:
        exercise_id = source.splitlines()[0].removeprefix(MARK).strip()
        find_exercise(exercise_id)
        source, check = split_check(source)
        if not check and n + 1 < len(code):
            check = code[n + 1]
        yield _run(exercise_id, source, check)


def _run(exercise_id: str, source: str, check: str) -> CheckResult:
    namespace: dict[str, Any] = {"__name__": "__exercise__"}
    try:
        with time_limit(TIME_LIMIT), redirect_stdout(StringIO()):
            exec(compile(source, f"exercise {exercise_id}", "exec"), namespace)
        with redirect_stdout(StringIO()):
            result = _last_value(check, namespace)
    except OutOfTimeError:
        return CheckResult(exercise_id, False, f"the cell is still running after {TIME_LIMIT:g} seconds")
    except Exception as error:  # whatever the student's cell raises
        return CheckResult(exercise_id, False, f"the cell raised {type(error).__name__}: {error}")
    if not isinstance(result, CheckResult):
        return CheckResult(exercise_id, False, f'the cell after it no longer ends with check("{exercise_id}", ...)')
    return result


def _last_value(source: str, namespace: dict[str, Any]) -> Any:
    """Run a cell; the value of its last line, as Jupyter shows it."""
    tree = ast.parse(source)
    if not tree.body or not isinstance(tree.body[-1], ast.Expr):
        exec(source, namespace)
        return None
    last = ast.Expression(tree.body.pop().value)
    exec(compile(tree, "check", "exec"), namespace)
    return eval(compile(last, "check", "eval"), namespace)
