"""The global random generators, PyTorch's on each device, Python's and numpy's: seeded, kept, written down.

Built in notebook 10.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """All of them: dropout and whatever the data's code draws from them."""
    torch.manual_seed(seed)  # the GPUs' too
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def randomness_kept() -> Iterator[None]:
    """After the block the generators are where they were before it."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)


def random_state() -> dict[str, Any]:
    """Where every generator is, for JSON."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "torch": _pack(torch.get_rng_state()),
        "cuda": [_pack(s) for s in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
        "python": [version, list(internal), gauss_next],
        "numpy": [kind, keys.tolist(), position, has_gauss, gauss],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators where `random_state` saw them."""
    torch.set_rng_state(_unpack(state["torch"]))
    if len(state["cuda"]) == torch.cuda.device_count() and state["cuda"]:
        torch.cuda.set_rng_state_all([_unpack(s) for s in state["cuda"]])
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))


def _pack(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _unpack(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
