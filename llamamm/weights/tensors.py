"""A tensor that is still on disk: its name, shape and dtype are known, its numbers are read when asked for.

Every format (safetensors, GGUF, a dict in memory) becomes a dictionary of these, so that names, shapes and dtypes are
all checked before a single weight moves, and then one tensor at a time is read. Built in notebook 07.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorRef:
    """One tensor of a checkpoint. `read()` returns a fresh tensor that the caller may keep."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    def then(self, change: Callable[[Tensor], Tensor]) -> TensorRef:
        """The same tensor with `change` applied after reading; the shape must stay."""
        read = self.read
        return replace(self, read=lambda: change(read()))

    def reshaped(self, *shape: int) -> TensorRef:
        """The same numbers under another shape."""
        read = self.read
        return replace(self, shape=shape, read=lambda: read().reshape(shape))


def refs_of(params: Mapping[str, Tensor]) -> dict[str, TensorRef]:
    """Tensors in memory as references."""
    return {
        name: TensorRef(name, tuple(tensor.shape), tensor.dtype, lambda tensor=tensor: tensor)
        for name, tensor in params.items()
    }
