"""Threads that make the same compiled call at the same time, each with its number.

Used in notebook 19.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

MOST_HELPERS = 1024  # none may wait for another to end; each is made when it is needed first
_HELPERS: dict[int, ThreadPoolExecutor] = {}  # by process: threads do not live on in a fork


def helpers() -> ThreadPoolExecutor:
    """Threads that wait for work and sleep meanwhile; made at the first call."""
    if os.getpid() not in _HELPERS:
        _HELPERS.clear()
        _HELPERS[os.getpid()] = ThreadPoolExecutor(MOST_HELPERS, thread_name_prefix="llamamm")
    return _HELPERS[os.getpid()]


def run_all(call: Callable[[int], None], n_workers: int, counters: np.ndarray, given_up: int) -> None:
    """call(0) in this thread, and call(1) ... call(n - 1) in others, which must not hold Python's lock meanwhile.

    They wait for each other by counters[0]. Where this thread is interrupted before its call, none of them would ever
    end; the count given_up lets them through.
    """
    if n_workers == 1:
        call(0)
        return
    others = []
    try:
        others.extend(helpers().submit(call, w) for w in range(1, n_workers))
        call(0)
    except BaseException:
        counters[0] = given_up
        raise
    for other in others:
        other.result()
