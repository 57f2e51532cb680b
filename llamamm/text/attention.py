"""Grouped-query attention (GQA): many query heads share few key/value heads, which shrinks the KV cache.

    x (B, T, C) -> q (B, H, T, D), k and v (B, K, S, D) -> (B, T, C), with H a multiple of K

Two paths compute the same: `readable_attention`, which shows every step, and `fused_attention`, PyTorch's kernel.
A test holds them equal.

Sources: GQA, arXiv:2305.13245; scaled dot-product attention, arXiv:1706.03762. Built in notebook 03.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.text.cache import KVCache
from llamamm.text.config import TextConfig
from llamamm.text.layers import Linear
from llamamm.text.masks import causal_mask
from llamamm.text.rope import apply_rope


def readable_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q kᵀ / sqrt(D)) v, step by step. q (B, H, T, D), k and v (B, K, S, D) -> (B, H, T, D).

    mask: bool, broadcast to (B, H, T, S), True = may attend; None: causal, with T == S or T == 1.
    """
    group = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(group, dim=1)  # (B, H, S, D): each key head serves `group` neighbouring query heads
    v = v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])  # (B, H, T, S)
    if mask is None:
        mask = causal_mask(q.shape[2], start=k.shape[2] - q.shape[2], device=q.device)
    scores = scores.masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores.float(), dim=-1).to(q.dtype)  # each row sums to 1
    return weights @ v


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The same, in one kernel that never writes the (T, S) scores to memory. Arguments as in `readable_attention`."""
    is_causal = mask is None
    if q.shape[2] == 1:
        # The kernel's own causal rule lines up queries and keys from the first: right for an empty cache, wrong for a
        # single query behind a filled one, which sees everything.
        is_causal = False
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1]
    )


AttentionFn = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


class GroupedQueryAttention(nn.Module):
    """Self-attention with RoPE, H query heads and K key/value heads. (B, T, C) -> (B, T, C).

    layer: this block's number, its place in the KV cache.
    """

    def __init__(self, cfg: TextConfig, layer: int = 0, *, attend: AttentionFn = fused_attention) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        self.layer = layer
        self.attend = attend
        self.q_proj = Linear(cfg.hidden_size, cfg.n_heads * cfg.head_dim, dtype=cfg.dtype)
        self.k_proj = Linear(cfg.hidden_size, cfg.n_kv_heads * cfg.head_dim, dtype=cfg.dtype)
        self.v_proj = Linear(cfg.hidden_size, cfg.n_kv_heads * cfg.head_dim, dtype=cfg.dtype)
        self.o_proj = Linear(cfg.n_heads * cfg.head_dim, cfg.hidden_size, dtype=cfg.dtype)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """cos, sin: (T, D) or (B, 1, T, D), the angles of these tokens; mask: see `llamamm.text.masks.build_mask`."""
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.n_heads, self.head_dim).transpose(1, 2)  # (B, H, T, D)
        k = self.k_proj(x).view(B, T, self.n_kv_heads, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        v = self.v_proj(x).view(B, T, self.n_kv_heads, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)  # (B, K, S, D): keys are stored already turned
        out = self.attend(q, k, v, mask)  # (B, H, T, D)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, self.n_heads * self.head_dim))
