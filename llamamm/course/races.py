"""Calls that take turns against the clock, their operations counted, and a learner's loop as one of them: compiled,
where numba is installed, and run over all rows of a matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llamamm.fast.decoder import is_available


def take_turns(calls: Mapping[str, Callable[[], Any]], rounds: int, *, threads: int | None = None) -> dict[str, float]:
    """The median seconds of each call, name -> call; each is called once before, and then each in turn, so that a slow
    moment of the machine hits all of them. threads: of PyTorch, meanwhile."""
    before = torch.get_num_threads()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    try:
        torch.set_num_threads(threads or before)
        with torch.inference_mode():
            for call in calls.values():
                call()
            for _ in range(rounds):
                for name, call in calls.items():
                    start = perf_counter()
                    call()
                    taken[name].append(perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return {name: median(seconds) for name, seconds in taken.items()}


class _Operations(TorchDispatchMode):
    n = 0

    def __torch_dispatch__(self, function, _types, args=(), kwargs=None):  # noqa: ANN001 (as PyTorch calls it)
        self.n += 1
        return function(*args, **(kwargs or {}))


def count_operations(call: Callable[[], Any]) -> int:
    """How many operations of PyTorch a call runs."""
    with torch.inference_mode(), _Operations() as counted:
        call()
    return counted.n


def over_rows(
    row: Callable[[Any, Any, Any], float], rows: np.ndarray, scales: np.ndarray, x: np.ndarray
) -> Callable[[], np.ndarray] | None:
    """A call without arguments: `row(rows[i], scales[i], x)` for each i, (N, C), (N, G), (C,) -> (N,) fp32.

    None, with a word on why, where numba is missing or cannot compile the function.
    """
    if not is_available():
        print("numba is not installed (pip install 'llamamm[fast]'): nothing is compiled")
        return None
    from numba import njit  # here: a second's import, and optional
    from numba.core.errors import NumbaError

    one = njit(fastmath=True)(row)

    @njit
    def product(rows: np.ndarray, scales: np.ndarray, x: np.ndarray) -> np.ndarray:
        out = np.empty(len(rows), np.float32)
        for i in range(len(rows)):
            out[i] = one(rows[i], scales[i], x)
        return out

    try:
        product(rows[:1], scales[:1], x)
    except NumbaError:
        print(f"numba cannot compile your {row.__name__}: write it with loops, slices and numbers alone")
        return None
    return lambda: product(rows, scales, x)
