"""The KV cache: keys and values of the tokens already read, so that each is computed once.

Without it, token 1,000 costs a thousand tokens' work; with it, one. All memory is taken at the start, so a long answer
cannot run out of it halfway, and nothing is copied to grow.

    update: (B, K, T, D) new keys and values -> (B, K, S, D) all of them, S = length + T

Built in notebook 05.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamamm.errors import ContextOverflowError, InputError
from llamamm.text.config import TextConfig


class KVCache:
    """Keys and values of every layer, preallocated for `max_length` tokens.

    keep: what they are rounded to while they are kept, such as float16 beside fp32, in half the room; by default dtype.
    A forward pass calls `update` once a layer and `advance` once at its end, so that an error in between leaves the
    cache as it was. Raises ContextOverflowError when `length + T` passes `max_length`.
    """

    def __init__(
        self,
        cfg: TextConfig,
        *,
        batch_size: int = 1,
        max_length: int | None = None,
        dtype: torch.dtype | None = None,
        keep: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.max_length = cfg.context_length if max_length is None else max_length
        if not 1 <= self.max_length <= cfg.context_length:
            raise ContextOverflowError(
                f"a cache of {self.max_length} tokens does not fit: the model's context is 1 to {cfg.context_length}"
            )
        shape = (cfg.n_layers, batch_size, cfg.n_kv_heads, self.max_length, cfg.head_dim)
        self.dtype = dtype or cfg.dtype  # of what comes and goes
        self.keys = torch.empty(shape, dtype=keep or self.dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's new tokens behind the cached ones; return all of them. (B, K, T, D) -> (B, K, S, D)."""
        end = self.length + k.shape[2]
        if end > self.max_length:
            raise ContextOverflowError(
                f"the KV cache holds {self.max_length} tokens, but start {self.length} + {k.shape[2]} new = {end}; "
                f"make it longer (max_length) or give fewer tokens"
            )
        if k.shape[0] != self.keys.shape[1]:
            raise InputError(f"the KV cache was made for a batch of {self.keys.shape[1]}, got {k.shape[0]}")
        if k.dtype != self.dtype or k.device != self.keys.device:
            raise InputError(
                f"the KV cache is {self.dtype} on {self.keys.device}, the new keys are {k.dtype} on {k.device}"
            )
        keys, values = self.keys[layer], self.values[layer]  # (B, K, max_length, D)
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end].to(k.dtype), values[:, :, :end].to(k.dtype)  # views, if kept as they came

    def advance(self, n_tokens: int) -> None:
        """Count `n_tokens` as read: called once, after every layer has been updated."""
        self.length += n_tokens

    def rewind(self, length: int = 0) -> None:
        """Forget everything after the first `length` tokens; what they left is reused, or overwritten."""
        if not 0 <= length <= self.length:
            raise InputError(f"cannot rewind to {length}: the cache holds {self.length} tokens")
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes taken: 2 x layers x batch x kv heads x max_length x head_dim x bytes per number."""
        return self.keys.nbytes + self.values.nbytes
