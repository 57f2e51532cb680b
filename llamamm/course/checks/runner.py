"""`llamamm check 03`: find a student's notebook, and check it outside Jupyter, in a process of its own.

Nothing that a cell does can end or block the caller: a child that is silent for too long is ended, one that ends early
leaves its reason, and in both cases another child goes on with the exercises that are left.
"""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from llamamm.course.checks.limits import TIME_LIMIT
from llamamm.course.checks.report import CheckResult, Report
from llamamm.errors import InputError, LlamammError

START_SECONDS = 300.0  # until Python has imported PyTorch, on a busy machine
EXERCISE_SECONDS = 6 * TIME_LIMIT  # each of its parts has a limit of its own; this is for what holds Python itself


def find_notebook(lesson: str, folder: Path) -> Path:
    """The student's notebook of a lesson, "03" or a path. Raises InputError saying where it was looked for."""
    if not re.fullmatch(r"\d\d?", lesson):
        if not Path(lesson).is_file():
            raise InputError(f"{lesson} does not exist; give a lesson, such as 03, or the path of a notebook")
        return Path(lesson)
    places = [folder / "notebooks" / "workbooks", folder / "workbooks", folder]
    for place in places:
        found = sorted(place.glob(f"{lesson:0>2}_*.ipynb"))
        if len(found) > 1:
            raise InputError(f"{place} has {', '.join(p.name for p in found)}; give the path of the one to be checked")
        if found:
            return found[0]
    raise InputError(f"no notebook {lesson:0>2}_*.ipynb in {', '.join(map(str, places))}; give its path")


def check_notebook(path: Path) -> Report:
    """Check every exercise of a notebook's lesson. Raises InputError for what is no notebook of exercises.

    In this process, which a cell can still end, or block for good: `check_apart` guards against that, too.
    """
    from llamamm.course.checks.cells import check_one  # these import PyTorch, which `check_apart` does without
    from llamamm.course.checks.sheet import read_sheet

    sheet = read_sheet(path)
    return Report([check_one(sheet, exercise, TIME_LIMIT) for exercise in sheet.exercises], sheet.remarks)


def check_apart(path: Path, *, seconds: float = EXERCISE_SECONDS) -> Report:
    """As `check_notebook`, whatever the cells do."""
    done: dict[str, CheckResult] = {}
    while True:
        points, remarks = _one_child(path, done, seconds)
        if points.keys() == done.keys():
            return Report([done[exercise_id] for exercise_id in points], remarks)


def _one_child(path: Path, done: dict[str, CheckResult], seconds: float) -> tuple[dict[str, int], list[str]]:
    """Let a child check what is not done, and add the results. Returns the points of all exercises, and remarks."""
    command = [sys.executable, "-m", "llamamm.course.checks.cells", str(path.absolute()), *done]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=lambda: [*map(lines.put, child.stdout), lines.put(b"")], daemon=True).start()
    points: dict[str, int] = {}
    remarks: list[str] = []
    now = ""
    try:
        while not points or points.keys() != done.keys():
            line = lines.get(timeout=seconds if now else START_SECONDS)
            if not line:
                raise EOFError
            said: dict[str, Any] = json.loads(line)
            if "refused" in said:
                raise InputError(said["refused"])
            points, remarks = said.get("points", points), said.get("remarks", remarks)
            now = said.get("begins", now)
            if "result" in said:
                done[now] = CheckResult(**said["result"])
    except (EOFError, queue.Empty) as error:
        silent = isinstance(error, queue.Empty)
        how = "did not answer" if silent else f"ended with exit code {child.wait()}"
        if not now or now in done:
            raise LlamammError(f"the checks could not run: `python -m llamamm.course.checks.cells` {how}") from None
        text = f"still running after {seconds:g} seconds, and could not be stopped" if silent else (
            f"the cell ended Python itself: it {how}")  # fmt: skip
        done[now] = CheckResult(now, False, text, points[now])
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    return points, remarks
