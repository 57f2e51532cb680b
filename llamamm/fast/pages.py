"""Large pages for weights, on Linux: what is read from end to end for each token is found 512 times less often.

A processor looks up each page of memory that it comes to, and reads ahead no farther than a page's end. Weights that
lie in pages of 2 MB instead of 4 kB are read up to a third faster. The system moves them when it is asked to (since
Linux 6.1; madvise(2), MADV_COLLAPSE), which takes as long as some tens of tokens: long enough to wait until a text has
become long. Numbers and addresses stay as they are. Used in notebook 19.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterable

import torch

LARGE = 2**21  # bytes of a large page
WANTED, NOW = 14, 25  # MADV_HUGEPAGE and MADV_COLLAPSE


def use_large_pages(storages: Iterable[torch.UntypedStorage]) -> int:
    """Move what lies on a CPU into large pages, as far as there are any, and whatever lies between. -> bytes that are
    in some now; 0 where the system has none. Others may read meanwhile."""
    moved = 0
    for begin, end in _mostly_filled((s.data_ptr(), s.nbytes()) for s in storages if s.device.type == "cpu"):
        _advise(begin, end - begin, WANTED)
        if _advise(begin, end - begin, NOW):
            moved += end - begin
        else:  # one of them cannot be moved
            moved += sum(LARGE for page in range(begin, end, LARGE) if _advise(page, LARGE, NOW))
    return moved


def use_large_pages_beside(storages: Iterable[torch.UntypedStorage]) -> threading.Thread:
    """The same in a thread of its own, which ends with the program at the latest."""
    thread = threading.Thread(target=use_large_pages, args=(list(storages),), daemon=True, name="llamamm-pages")
    thread.start()
    return thread


def room_in_large_pages(n_bytes: int) -> torch.Tensor:
    """(n_bytes,) uint8, not filled yet, which will lie in large pages from the start where the system has any and the
    memory is new."""
    room = torch.empty(n_bytes + LARGE, dtype=torch.uint8)
    skipped = -room.data_ptr() % LARGE
    _advise(room.data_ptr() + skipped, n_bytes // LARGE * LARGE, WANTED)
    return room[skipped : skipped + n_bytes]


def _advise(address: int, n_bytes: int, what: int) -> bool:
    """Whether the system did it."""
    if sys.platform != "linux" or not n_bytes:
        return False
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return madvise(address, n_bytes, what) == 0


def _mostly_filled(places: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(address, bytes) of tensors -> (begin, end) of the runs of large pages that they fill by half or more."""
    filled: dict[int, int] = {}
    for address, n_bytes in set(places):
        for page in range(address // LARGE * LARGE, address + n_bytes, LARGE):
            filled[page] = filled.get(page, 0) + min(address + n_bytes, page + LARGE) - max(address, page)
    found: list[tuple[int, int]] = []
    for page in sorted(page for page, n_bytes in filled.items() if 2 * n_bytes >= LARGE):
        begin = found.pop()[0] if found and found[-1][1] == page else page
        found.append((begin, page + LARGE))
    return found
