"""Threads that make the same compiled call at the same time, each with its number, and how many of them pay.

Used in notebook 19.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from statistics import mean

import numpy as np

Call = Callable[[int], None]
RECENT, USUAL = 4, 64  # steps that tell how it goes, and those of which the fastest tells how it could
FEWEST, MOST = 16, 256  # steps that are taken by one worker less before all try again
_TASKS: dict[int, list[SimpleQueue[Callable[[], None]]]] = {}  # by process: threads do not live on in a fork


class Crew:
    """How many workers take a step: all, or one less for a while, where another program has taken a core.

    They wait for each other some hundred times a step; who shares a core is away for longer than a whole step, again
    and again. Steps that take twice as long as they could are the sign; what they take with one worker less decides.
    """

    def __init__(self, n_workers: int) -> None:
        self.n_workers = n_workers
        self._all: deque[float] = deque(maxlen=USUAL)  # seconds of steps by all
        self._fewer: list[float] = []  # and of those by one less, since it began
        self._left, self._stretch, self._patience = 0, FEWEST, 0

    @property
    def size(self) -> int:
        return self.n_workers - 1 if self._left else self.n_workers

    def note(self, seconds: float) -> None:
        """What a step has taken, by as many as `size` said."""
        if self._left:
            self._left -= 1
            self._fewer.append(seconds)
            return
        self._all.append(seconds)
        self._patience -= 1
        if self.n_workers == 1 or self._patience > 0 or len(self._all) < RECENT:
            return
        recent = list(self._all)[-RECENT:]
        if self._fewer:  # all have tried again
            worth_it = mean(self._fewer) < mean(recent)
            self._fewer = []
            self._stretch = min(2 * self._stretch, MOST) if worth_it else FEWEST
            self._left, self._patience = (self._stretch, RECENT) if worth_it else (0, USUAL)
        elif sorted(recent)[1] > 2 * min(self._all):  # all but one of them, which may be luck
            self._left, self._patience, self._stretch = FEWEST, RECENT, FEWEST


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
