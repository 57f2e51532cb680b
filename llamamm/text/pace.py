"""How many threads share the products of one token: as many as pay, by the clock.

Decoding is some hundred short products a token, each shared among the threads and each ending when the last of them is
done. On an idle machine that is faster. Where another program has taken a core, one thread is late at every product,
and the others spin for it: a token can take seconds, while a single thread, on the core that is left, takes no longer
than before. So now and then a few blocks run with half or twice the threads, and whichever was faster goes on.

The numbers are the same, bit for bit, with any number of threads: a product of few rows is, and attention, which is
not, is held to a number that the clock has no part in.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

FEW_ROWS = 4
TRIAL = 8  # blocks
FIRST_WAIT, LONGEST_WAIT = 16, 2048  # blocks between trials: from within the first token to every seventieth
GAIN = 1.15  # by how much a trial must be faster; less is noise
SLOWER = 1.5  # so much slower than at the last trial, and something has changed: the next trial is now
SMALL = 2**18  # numbers of keys that one thread reads sooner than two threads meet


class Pace:
    """The number of threads for one model's decoding, at most the number that PyTorch is set to.

    It touches decoding alone: one new token for each of up to 4 rows, fp32, on a CPU. Outside of `run` and `follow` the
    number of threads is what it was.
    """

    def __init__(self) -> None:
        self._limit = 0  # what PyTorch is set to; 0: nothing has run yet
        self._inside = False

    def run(self, block: Callable[..., Tensor], x: Tensor, *args: Any, cache: Any = None, **options: Any) -> Tensor:
        """block(x, ...), timed, with the number of threads that is best so far, or on trial. x (B, T, C)."""
        if cache is None or not self._applies(x):
            return block(x, *args, cache=cache, **options)
        self._meet(torch.get_num_threads())
        n = self._trial or self._best
        self._inside, begin = True, time.perf_counter()
        try:
            out = self._with(n, block, x, *args, cache=cache, **options)
        finally:
            self._inside = False
        self._note(time.perf_counter() - begin)
        return out

    def follow(self, layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """layer(x), a product, with the number of threads that is best so far. (B, T, C) -> (B, T, N)."""
        if not self._applies(x) or not self._limit or torch.get_num_threads() != self._limit:
            return layer(x)
        return self._with(self._best, layer, x)

    def steady(self, attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`attend` with a fixed number of threads where `run` runs it, since its last digits depend on that number."""
        return partial(self._attend, attend)

    def _attend(self, attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if not self._inside:
            return attend(q, k, v, mask)
        return self._with(1 if k.numel() <= SMALL else self._limit, attend, q, k, v, mask)

    @staticmethod
    def _with(n: int, function: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
        before = torch.get_num_threads()
        if n == before:
            return function(*args, **options)
        torch.set_num_threads(n)  # a quarter of a microsecond
        try:
            return function(*args, **options)
        finally:
            torch.set_num_threads(before)

    @staticmethod
    def _applies(x: Tensor) -> bool:
        if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype != torch.float32:
            return False
        return x.shape[1] == 1 and x.shape[0] <= FEW_ROWS and torch.get_num_threads() > 1

    def _meet(self, limit: int) -> None:
        """Begin anew where PyTorch is set to another number of threads than before."""
        if limit != self._limit:
            self._limit, self._best, self._trial, self._up = limit, limit, 0, False
            self._seconds: deque[float] = deque(maxlen=TRIAL)  # of the last blocks with the best number
            self._tried: list[float] = []
            self._usual = float("inf")  # seconds of a block at the last trial
            self._wait = self._left = FIRST_WAIT

    def _note(self, seconds: float) -> None:
        """Count one block: begin a trial where it is time, end one as soon as it is won or lost."""
        if not self._trial:
            self._seconds.append(seconds)
            self._left -= 1
            changed = fmean(self._seconds) > SLOWER * self._usual and self._wait - self._left >= TRIAL
            if len(self._seconds) == TRIAL and (self._left <= 0 or changed):
                self._usual, self._tried, self._trial = fmean(self._seconds), [], self._other()
                self._wait = FIRST_WAIT if changed else self._wait
            return
        self._tried.append(seconds)
        lost = sum(self._tried) > TRIAL * self._usual / GAIN
        if not lost and len(self._tried) < TRIAL:
            return
        if lost:
            self._wait = min(2 * self._wait, LONGEST_WAIT)
        else:
            self._best, self._wait, self._usual = self._trial, FIRST_WAIT, fmean(self._tried)
            self._seconds.clear()
        self._trial, self._left = 0, self._wait

    def _other(self) -> int:
        """The next number to try: half the best and twice the best in turn, from 1 to the limit."""
        self._up = self._best == 1 or (self._best < self._limit and not self._up)
        return min(2 * self._best, self._limit) if self._up else self._best // 2
