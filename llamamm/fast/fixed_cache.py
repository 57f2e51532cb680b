"""A decoding step whose shapes never change, so that torch.compile makes one graph of it, for all lengths.

    x (B, 1, C), position -> blocks -> x (B, 1, C)        the keys of all `length` places are read, behind a mask

`KVCache` hands out as many keys as there are: another shape for each token. Here attention reads the whole cache, and
a mask hides the places that are not filled yet. That costs the same for the first token as for the last, and what is
bought with it is that nothing is compiled again, and that a GPU can replay the step without asking Python: there a
small model waits for its launches. On a CPU measure first, `llamamm bench compile`.

Sources: gpt-fast, the static cache of `transformers`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llamamm.errors import InputError
from llamamm.text.cache import KVCache

if TYPE_CHECKING:
    from llamamm.text.model import Llama3Model


class FixedCacheStep:
    """Takes a model's steps of one token a row: `model.fast = FixedCacheStep(2048)`.

    length: places of its cache; streams that need more, and rows with padding, are left to PyTorch. mode, backend: as
    in `torch.compile`; "reduce-overhead" records CUDA graphs. The first step compiles, which takes a minute. It lends
    its own memory to the cache of the stream that decodes; a stream in between gets a copy of its own back.
    """

    def __init__(self, length: int, *, mode: str | None = None, backend: str | Callable[..., Any] = "inductor") -> None:
        if length < 1:
            raise InputError(f"a cache holds 1 token or more, got {length}")
        self.length, self._options = length, {"mode": mode, "backend": backend}
        self._step = torch.compile(_run_blocks, fullgraph=True, dynamic=False, **self._options)
        self._keys = self._values = torch.empty(0)
        self._borrower: Callable[[], KVCache | None] = lambda: None

    def run_blocks(
        self, model: Llama3Model, x: Tensor, cache: KVCache | None, padding: Tensor | None,
        before: Callable[[int, Tensor], Tensor] | None, skipped: Collection[int],
    ) -> Tensor | None:  # fmt: skip
        """As `Llama3Model.run_blocks` with one token for each row, x (B, 1, C); None where PyTorch has to do it."""
        if cache is None or padding is not None or before is not None or skipped or torch.is_grad_enabled():
            return None
        if type(cache) is not KVCache or not cache.length < cache.max_length <= self.length:
            return None
        self._lend(cache)
        position = torch.full((1,), cache.length, device=x.device)
        x = self._step(model.layers, x, model.cos, model.sin, self._keys, self._values, position)
        cache.advance(1)
        return x

    def head(self, _model: Llama3Model, _x: Tensor) -> Tensor | None:
        """The head is one product: PyTorch's."""
        return None

    def step(self, _model: Llama3Model, _ids: Tensor, _cache: KVCache | None, _padding: Tensor | None) -> Tensor | None:
        return None  # blocks and head apart, as above

    @torch.inference_mode(False)
    @torch.no_grad()
    def _lend(self, cache: KVCache) -> None:
        """Have a cache keep its keys and values in this memory, whose address and shape stay."""
        borrower = self._borrower()
        if borrower is cache:
            return
        if borrower is not None:
            borrower.keys, borrower.values = borrower.keys.clone(), borrower.values.clone()
        L, B, K, n, D = cache.keys.shape
        wanted = torch.empty((L, B, K, self.length, D), dtype=cache.keys.dtype, device="meta")
        if (self._keys.shape, self._keys.dtype, self._keys.device) != (wanted.shape, wanted.dtype, cache.keys.device):
            # Zeros, since a hidden place counts 0 times what stands there, and that may be no number.
            self._keys = torch.zeros_like(wanted, device=cache.keys.device)
            self._values = torch.zeros_like(self._keys)
            for memory in (self._keys, self._values):
                torch._dynamo.mark_static_address(memory)  # or CUDA graphs would copy it at each step
        for name, memory in (("keys", self._keys), ("values", self._values)):
            memory[:, :, :, : cache.length] = getattr(cache, name)[:, :, :, : cache.length]
            setattr(cache, name, memory[:, :, :, :n])
        self._borrower = weakref.ref(cache)

    def __deepcopy__(self, _memo: dict[int, Any]) -> FixedCacheStep:
        return FixedCacheStep(self.length, **self._options)  # a copy of a model has a cache of its own


class _AllPlaces:
    """A cache of fixed shape as attention sees it: the new token is put in its place, and all places are handed out."""

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        self.keys, self.values, self.position = keys, values, position

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, 1, D) -> (B, K, length, D)."""
        for memory, new in ((self.keys, k), (self.values, v)):
            memory[layer].index_copy_(2, self.position, new)
        return self.keys[layer], self.values[layer]


def _run_blocks(
    layers: nn.ModuleList, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, position: Tensor
) -> Tensor:
    """x (B, 1, C); cos, sin (context, D); keys, values (L, B, K, length, D); position (1,) int64 -> (B, 1, C)."""
    mask = (torch.arange(keys.shape[3], device=x.device) <= position)[None, None, None]  # (1, 1, 1, length)
    cos, sin = cos[position].to(x.dtype), sin[position].to(x.dtype)  # (1, D)
    cache = _AllPlaces(keys, values, position)
    for layer in layers:
        x = layer(x, cos, sin, mask=mask, cache=cache)
    return x
