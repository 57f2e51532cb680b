"""Somebody else's code, run so that it can do no harm: in bounded time, with an end that is not ours, unheard.

It runs in a thread of its own. A loop that never ends is stopped from outside; what cannot be stopped, such as a sleep
of a year, is left behind. Where the processor is shared, there is more time, up to a limit. PyTorch keeps "gradients
off" for each thread: the caller's setting does not reach in.
"""

from __future__ import annotations

import ctypes
import io
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

TIME_LIMIT = 10.0  # seconds for all cases of an answer
BUSY = 6  # times as long may it take where the processor is shared
IDLE = 0.05  # of the time that passes: who computes less is asleep, however busy the machine
STRIKES, STRIKE_SECONDS = 5, 0.2  # some code catches everything, once or twice


class OutOfTimeError(BaseException):
    """Not an Exception, so that a learner's `except Exception` does not swallow it."""


@dataclass
class Outcome:
    """What a function returned, or what it raised: OutOfTimeError where its time was up."""

    value: Any = None
    error: BaseException | None = None


def run_limited(function: Callable[[], Any], seconds: float) -> Outcome:
    """Call a function in a thread and wait for it, no longer than it computes or sleeps for `seconds`, and a moment to
    stop it. Where it has to share its processor, BUSY times as many at most."""
    outcome = Outcome(error=OutOfTimeError())
    lock, over = threading.Lock(), False

    def work() -> None:
        nonlocal over
        try:
            try:
                outcome.value, outcome.error = function(), None
            except BaseException as error:  # SystemExit, too: it is the learner's
                outcome.error = error
            finally:
                with lock:
                    over = True
        except OutOfTimeError:  # struck at the very end
            pass

    def strike() -> None:
        with lock:  # never after the function has ended
            if not over:
                kind = ctypes.py_object(OutOfTimeError)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), kind)

    thread = threading.Thread(target=work, daemon=True)
    began, computed = time.monotonic(), time.process_time()

    def time_is_up() -> bool:
        passed, used = time.monotonic() - began, time.process_time() - computed
        return passed >= BUSY * seconds or used >= 0.9 * seconds or used < IDLE * passed

    thread.start()
    try:
        thread.join(seconds)
        while thread.is_alive() and not time_is_up():
            thread.join(seconds / 20)
    finally:  # after Ctrl-C, too
        late = thread.is_alive()
        for _ in range(STRIKES):
            if thread.is_alive():
                strike()
                thread.join(STRIKE_SECONDS)
    return Outcome(error=OutOfTimeError()) if late else outcome


class _Nowhere(io.TextIOBase):
    """Takes any amount of text and keeps none."""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


@contextmanager
def unheard() -> Iterator[None]:
    """What is printed or warned of in this block goes nowhere, and `input()` finds nobody."""
    with redirect_stdout(_Nowhere()), redirect_stderr(_Nowhere()), patch.object(sys, "stdin", io.StringIO()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
