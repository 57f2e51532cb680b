"""Rotary position embedding (RoPE), and the stretch that carries Llama 3 from 8 thousand to 128 thousand tokens.

Each pair of numbers in a query or key is an arrow; RoPE turns the arrow by an angle proportional to the token's
position. The dot product of a turned query and a turned key depends on the distance between them alone.
Pairs turn at different speeds: the first by one radian a token, the last so slowly that it tells pages apart.

    compute_rope_params: nothing -> cos, sin of shape (T, D)
    apply_rope: (B, H, T, D) -> (B, H, T, D)

Pairs are (0, D/2), (1, D/2 + 1), ...: the "half-split" layout of Hugging Face checkpoints. Meta's own files and GGUF
use neighbours, (0, 1), (2, 3), ...: the same rotation with rows in another order; `llamamm.weights` reorders them.

Sources: RoFormer, arXiv:2104.09864; scaling rule "llama3" as in the public Llama 3.1 and 3.2 configurations.
Built in notebook 04.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llamamm.errors import ConfigError
from llamamm.text.config import RopeScaling


def rope_frequencies(head_dim: int, theta: float = 500_000.0, *, scaling: RopeScaling | None = None) -> Tensor:
    """Radians per token of each pair, fastest first. -> (D/2,), fp32. Raises ConfigError for an odd head_dim."""
    if head_dim % 2:
        raise ConfigError(f"head_dim must be even, because RoPE turns pairs of numbers; got {head_dim}")
    exponent = torch.arange(0, head_dim, 2, device="cpu").float() / head_dim  # (D/2,) 0 ... almost 1
    freqs = 1.0 / theta**exponent
    return freqs if scaling is None else scale_frequencies(freqs, scaling)


def scale_frequencies(freqs: Tensor, scaling: RopeScaling) -> Tensor:
    """The "llama3" rule: keep what turns often within the original context, slow down what never finished a turn.

    freqs: (D/2,) radians per token -> (D/2,). In between, the two are blended.
    """
    wavelength = 2 * math.pi / freqs  # tokens per full turn
    turns = scaling.original_context_length / wavelength  # turns within the original context
    # 0 where the pair is slowed down by the whole factor, 1 where it is kept
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0.0, 1.0)
    return (1 - keep) * freqs / scaling.factor + keep * freqs


def compute_rope_params(
    head_dim: int,
    *,
    theta: float = 500_000.0,
    context_length: int = 8192,
    scaling: RopeScaling | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every angle that positions 0 ... context_length - 1 need. -> two (T, D), fp32.

    Each pair's angle stands twice, at i and at i + D/2, where the two numbers of the pair are.
    """
    freqs = rope_frequencies(head_dim, theta=theta, scaling=scaling)
    positions = torch.arange(context_length, device="cpu").float()
    angles = torch.outer(positions, freqs)  # (T, D/2) radians
    angles = torch.cat((angles, angles), dim=-1)  # (T, D)
    return angles.cos(), angles.sin()


def rotate_half(x: Tensor) -> Tensor:
    """A quarter turn of every pair: (a, b) -> (-b, a), with a in the first half and b in the second. (..., D)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of `x` by its token's angle. x: (B, H, T, D); cos, sin: (T, D) or (B, 1, T, D), same dtype.

    A turn by an angle is cos times the arrow plus sin times its quarter turn.
    """
    return x * cos + rotate_half(x) * sin
