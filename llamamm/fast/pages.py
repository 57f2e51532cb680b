"""Large pages for weights, on Linux: what is read from end to end for each token is found 512 times less often.

A processor looks up each page of memory that it comes to, and reads ahead no farther than a page's end. Weights that
lie in pages of 2 MB instead of 4 kB are read up to a third faster. The system moves them when it is asked to (since
Linux 6.1; madvise(2), MADV_COLLAPSE), which takes as long as some tens of tokens: long enough to wait until a text has
become long. Numbers and addresses stay as they are. Used in notebook 19.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Iterable

import torch

LARGE = 2**21  # bytes of a large page
NEAR = 16 * mmap.PAGESIZE  # between two tensors lies what the allocator notes of them
WANTED, NOW = 14, 25  # MADV_HUGEPAGE and MADV_COLLAPSE


def use_large_pages(storages: Iterable[torch.UntypedStorage]) -> int:
    """Move what lies on a CPU into large pages, as far as there are any. -> bytes that are in some now; 0 where the
    system has none. Others may read meanwhile."""
    if sys.platform != "linux":
        return 0
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    moved = 0
    for begin, end in _stretches((s.data_ptr(), s.nbytes()) for s in storages if s.device.type == "cpu"):
        begin, end = -(-begin // LARGE) * LARGE, end // LARGE * LARGE
        if begin >= end:
            continue
        advise(begin, end - begin, WANTED)
        for page in range(begin, end, LARGE):
            moved += LARGE if advise(page, LARGE, NOW) == 0 else 0
    return moved


def use_large_pages_beside(storages: Iterable[torch.UntypedStorage]) -> threading.Thread:
    """The same in a thread of its own, which ends with the program at the latest."""
    thread = threading.Thread(target=use_large_pages, args=(list(storages),), daemon=True, name="llamamm-pages")
    thread.start()
    return thread


def _stretches(places: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(address, bytes) of tensors -> (begin, end) of the stretches of memory that they fill, neighbours in one."""
    found: list[tuple[int, int]] = []
    for begin, size in sorted(set(places)):
        if found and begin <= found[-1][1] + NEAR:
            found[-1] = found[-1][0], max(found[-1][1], begin + size)
        elif size:
            found.append((begin, begin + size))
    return found
