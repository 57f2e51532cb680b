"""Threads that make the same compiled call at the same time, each with its number.

Used in notebook 19.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue

import numpy as np

Call = Callable[[int], None]
_TASKS: dict[int, list[SimpleQueue[Callable[[], None]]]] = {}  # by process: threads do not live on in a fork


def run_all(call: Call, n_workers: int, counters: np.ndarray, given_up: int) -> None:
    """call(0) in this thread, and call(1) ... call(n - 1) in others, which must not hold Python's lock meanwhile.

    They wait for each other by counters[0], at their end, too: nobody asks whether the others have returned. Where this
    thread is interrupted before its call, or another fails, none of them would ever end; the count given_up lets them
    through. Raises what another raised.
    """
    errors: list[BaseException] = []

    def guarded(w: int) -> None:
        try:
            call(w)
        except BaseException as error:  # noqa: BLE001 (raised below, in the thread that asked)
            errors.append(error)
            counters[0] = given_up

    try:
        for w, tasks in enumerate(_helpers(n_workers - 1), 1):
            tasks.put(lambda w=w: guarded(w))
        call(0)
    except BaseException:
        counters[0] = given_up
        raise
    if errors:
        raise errors[0]


def _helpers(n: int) -> list[SimpleQueue[Callable[[], None]]]:
    """What n threads, which sleep until there is something, take their work from; made when they are needed first."""
    if os.getpid() not in _TASKS:
        _TASKS.clear()
        _TASKS[os.getpid()] = []
    mine = _TASKS[os.getpid()]
    while len(mine) < n:
        mine.append(_start_helper(f"llamamm-{len(mine) + 1}"))
    return mine[:n]


def _start_helper(name: str) -> SimpleQueue[Callable[[], None]]:
    tasks: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def serve() -> None:
        with suppress(SystemExit):
            while True:
                tasks.get()()  # held by no name: what it refers to may be large

    thread, process = threading.Thread(target=serve, daemon=True, name=name), os.getpid()
    thread.start()

    def stop() -> None:
        """Python ends a thread of this kind wherever it is, and in compiled code that ends the program with noise."""
        if os.getpid() == process:
            tasks.put(sys.exit)
            thread.join(timeout=5)

    atexit.register(stop)
    return tasks
