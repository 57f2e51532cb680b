"""A transformer that reads all at once: every token sees every other. Pictures and sounds have no "next".

    x (B, N, C) -> n_layers blocks -> (B, N, C)

Against a block of the Llama: LayerNorm (with mean and bias) for RMSNorm, one activation for SwiGLU, biases, as many key
heads as query heads, no mask, and no RoPE: positions are added once, before the first block, by the tower around it.

Sources: Transformer, arXiv:1706.03762; ViT, arXiv:2010.11929; LayerScale, arXiv:2103.17239. Built in notebook 11.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.errors import InputError
from llamamm.senses.config import EncoderConfig


def activate(x: Tensor, name: str) -> Tensor:
    """GELU, x times the share of a normal distribution below x, or one of its two cheap approximations."""
    if name == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


class SelfAttention(nn.Module):
    """Attention without a direction. (B, N, C) -> (B, N, C)."""

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        C = cfg.hidden_size
        self.n_heads = cfg.n_heads
        self.q_proj = nn.Linear(C, C, bias=cfg.attention_bias)
        self.k_proj = nn.Linear(C, C, bias=cfg.key_bias)
        self.v_proj = nn.Linear(C, C, bias=cfg.attention_bias)
        self.out_proj = nn.Linear(C, C)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: bool, broadcast to (B, H, N, N), True = may attend; None: all see all."""
        q, k, v = (self._heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, H, N, D)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # (B, N, C)

    def weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Who looks at whom, each row summing to 1: what the kernel above never writes down. -> (B, H, N, N)."""
        q, k = self._heads(self.q_proj(x)), self._heads(self.k_proj(x))
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])  # (B, H, N, N)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(dim=-1)

    def _heads(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        return x.view(B, N, self.n_heads, C // self.n_heads).transpose(1, 2)  # (B, H, N, D)


class MLP(nn.Module):
    """Two linears with an activation between. (..., C) -> (..., C)."""

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        self.activation = cfg.activation
        self.fc1 = nn.Linear(cfg.hidden_size, cfg.intermediate_size)
        self.fc2 = nn.Linear(cfg.intermediate_size, cfg.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(activate(self.fc1(x), self.activation))


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch, so that a deep stack can start nearly as the identity."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.lambda1


class EncoderBlock(nn.Module):
    """Attention, then MLP, each on a normalised copy and added back. (B, N, C) -> (B, N, C)."""

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(cfg.hidden_size, eps=cfg.norm_eps)
        self.self_attn = SelfAttention(cfg)
        self.layer_scale1 = LayerScale(cfg.hidden_size) if cfg.layer_scale else nn.Identity()
        self.layer_norm2 = nn.LayerNorm(cfg.hidden_size, eps=cfg.norm_eps)
        self.mlp = MLP(cfg)
        self.layer_scale2 = LayerScale(cfg.hidden_size) if cfg.layer_scale else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.layer_scale1(self.self_attn(self.layer_norm1(x), mask))
        return x + self.layer_scale2(self.mlp(self.layer_norm2(x)))


class Encoder(nn.Module):
    """The stack of blocks."""

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderBlock(cfg) for _ in range(cfg.n_layers))

    def forward(self, x: Tensor, *, mask: Tensor | None = None, layer: int | None = None) -> Tensor:
        """x (B, N, C) -> (B, N, C). layer: stop where the hidden states of that number are; see `n_blocks`."""
        for block in self.layers[: self.n_blocks(layer)]:
            x = block(x, mask)
        return x

    def attention_weights(self, x: Tensor, *, mask: Tensor | None = None, layer: int = -1) -> Tensor:
        """The attention of the block that makes hidden states number `layer`, the last by default. -> (B, H, N, N)."""
        n = self.n_blocks(layer)
        if n == 0:
            raise InputError("layer 0 is what enters the first block: no block makes it")
        for block in self.layers[: n - 1]:
            x = block(x, mask)
        block = self.layers[n - 1]
        return block.self_attn.weights(block.layer_norm1(x), mask)

    def n_blocks(self, layer: int | None) -> int:
        """How many blocks to run. Hidden states are counted as everywhere: 0 enters the first block, -1 leaves the
        last, -2 the one before. Raises InputError for a number that does not exist."""
        n = len(self.layers)
        if layer is None:
            return n
        if not -n - 1 <= layer <= n:
            raise InputError(f"layer must be from {-n - 1} to {n} for {n} blocks, got {layer}")
        return layer if layer >= 0 else n + 1 + layer


def init_weights(module: nn.Module) -> None:
    """Small normal weights and zero biases, for towers that are trained from nothing."""
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
