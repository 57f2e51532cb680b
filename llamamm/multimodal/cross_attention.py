"""A block in which text looks at something else: queries from the text, keys and values from features.

    x (B, T, C), memory (B, S, C) -> (B, T, C)

Two gates, tanh of one learned number each, stand before what the block adds. They begin at zero, so a block put into a
trained model changes nothing, bit for bit, until training opens it.

Learned prompts, where a block has them, stand in front of the memory. A word whose attention goes to them takes little
from the features: a gate for each word and head, beside the two that all words share.

Sources: Flamingo, arXiv:2204.14198; LLaMA-Adapter, arXiv:2303.16199 (prompts); "The Llama 3 Herd of Models",
arXiv:2407.21783 (7). Built in notebook 13.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.text.cache import KVCache
from llamamm.text.config import TextConfig
from llamamm.text.layers import FeedForward, Linear, RMSNorm

KeysValues = tuple[Tensor, Tensor]


class CrossAttention(nn.Module):
    """Grouped-query attention from one sequence to another, without positions.

    qk_norm: queries and keys are normalised, each head by itself.
    """

    def __init__(self, cfg: TextConfig, *, qk_norm: bool = True) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim
        self.q_proj = Linear(cfg.hidden_size, cfg.n_heads * cfg.head_dim, dtype=cfg.dtype)
        self.k_proj = Linear(cfg.hidden_size, cfg.n_kv_heads * cfg.head_dim, dtype=cfg.dtype)
        self.v_proj = Linear(cfg.hidden_size, cfg.n_kv_heads * cfg.head_dim, dtype=cfg.dtype)
        self.o_proj = Linear(cfg.n_heads * cfg.head_dim, cfg.hidden_size, dtype=cfg.dtype)
        self.q_norm = RMSNorm(cfg.head_dim, cfg.norm_eps, dtype=cfg.dtype) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(cfg.head_dim, cfg.norm_eps, dtype=cfg.dtype) if qk_norm else nn.Identity()

    def keys_values(self, memory: Tensor) -> KeysValues:
        """What queries of any step need of the features: computed once. (B, S, C) -> two (B, K, S, D)."""
        B, S, _ = memory.shape
        k = self.k_proj(memory).view(B, S, self.n_kv_heads, self.head_dim).transpose(1, 2)  # (B, K, S, D)
        v = self.v_proj(memory).view(B, S, self.n_kv_heads, self.head_dim).transpose(1, 2)  # (B, K, S, D)
        return self.k_norm(k), v

    def forward(self, x: Tensor, keys_values: KeysValues, mask: Tensor | None = None) -> Tensor:
        """x (B, T, C), mask (B, 1, T, S) bool, no row empty -> (B, T, C)."""
        B, T, _ = x.shape
        k, v = keys_values
        q = self.q_norm(self.q_proj(x).view(B, T, self.n_heads, self.head_dim).transpose(1, 2))  # (B, H, T, D)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=self.n_heads != self.n_kv_heads)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, self.n_heads * self.head_dim))


class CrossAttentionBlock(nn.Module):
    """Cross-attention and feed-forward, both gated, each added to the text. Keeps (B, T, C).

    n_prompts: learned prompts in front of the memory, open to every word that may see something.
    blind_rows_attend: what happens to text that may see nothing, such as words before the first image. Meta's code,
    the default here, adds nothing to it. transformers lets it look at everything, and drops the feed-forward alone.
    """

    def __init__(self, cfg: TextConfig, *, n_prompts: int = 0, blind_rows_attend: bool = False) -> None:
        super().__init__()
        prompts = torch.randn(n_prompts, cfg.hidden_size, dtype=cfg.dtype) * 0.02
        self.prompts = nn.Parameter(prompts) if n_prompts else None  # (P, C)
        self.blind_rows_attend = blind_rows_attend
        self.input_layernorm = RMSNorm(cfg.hidden_size, cfg.norm_eps, dtype=cfg.dtype)
        self.cross_attn = CrossAttention(cfg)
        self.cross_attn_attn_gate = nn.Parameter(torch.zeros(1, dtype=cfg.dtype))
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, cfg.norm_eps, dtype=cfg.dtype)
        self.mlp = FeedForward(cfg)
        self.cross_attn_mlp_gate = nn.Parameter(torch.zeros(1, dtype=cfg.dtype))

    def keys_values(self, memory: Tensor, real: Tensor | None = None) -> KeysValues:
        """Keys and values of the prompts and the memory (B, S, C): two (B, K, P + S, D).

        real: (B, S) bool; the memory's other places may hold anything, NaN too, and no word may look there. None: all.
        """
        if real is not None:
            memory = memory.where(real[..., None], 0)  # a weight of 0 times NaN is NaN
        if self.prompts is not None:
            memory = torch.cat([self.prompts.expand(len(memory), -1, -1), memory], dim=1)
        return self.cross_attn.keys_values(memory)

    def forward(self, x: Tensor, keys_values: KeysValues, mask: Tensor | None = None) -> Tensor:
        """mask: (B, 1, T, S) bool, True where a word may look at the memory; rows may be empty. None: all at all."""
        sees = None
        if mask is not None:
            sees = mask.any(dim=-1)[:, 0, :, None]  # (B, T, 1)
            mask = mask | ~sees[:, None]  # a softmax over nothing is NaN
            if self.prompts is not None:
                mask = F.pad(mask, (len(self.prompts), 0), value=True)  # (B, 1, T, P + S)
        attended = self.cross_attn(self.input_layernorm(x), keys_values, mask)
        if sees is not None and not self.blind_rows_attend:
            attended = attended.where(sees, 0)
        x = x + self.cross_attn_attn_gate.tanh() * attended
        fed = self.mlp(self.post_attention_layernorm(x))
        return x + self.cross_attn_mlp_gate.tanh() * (fed if sees is None else fed.where(sees, 0))


class CrossAttentionCache(KVCache):
    """The text's keys and values, those of the memory in each cross-attention block, and who looks at what of it."""

    def __init__(self, cfg: TextConfig, **options: Any) -> None:
        super().__init__(cfg, **options)
        self.views: dict[int, KeysValues] = {}
        self._look: Tensor | None = None  # (B, 1, T, S), of the words that came with the memory
        self._begin = 0  # where the first of them stands

    def remember(self, look: Tensor) -> None:
        """Keep what the words that now follow may look at, (B, 1, T, S) bool."""
        self._look, self._begin = look, self.length

    @property
    def last_mask(self) -> Tensor | None:
        """What the last word may look at, and words to come: (B, 1, 1, S); None where there is nothing."""
        if self._look is None or self.length <= self._begin:
            return None
        last = min(self.length - self._begin, self._look.shape[2]) - 1
        return self._look[:, :, last : last + 1]

    def rewind(self, length: int = 0) -> None:
        """As in `KVCache`; before the words that came with the memory, that is forgotten too."""
        super().rewind(length)
        if length <= self._begin:
            self.views, self._look, self._begin = {}, None, 0
