"""The two small layers of a Llama block that look at one token at a time: RMSNorm and the SwiGLU feed-forward.

RMSNorm keeps the scale of a vector in check, so that thirty blocks in a row neither explode nor vanish.
FeedForward is where a token's vector is transformed on its own, and where two thirds of the parameters live.

Sources: RMSNorm, arXiv:1910.07467; SwiGLU, arXiv:2002.05202. Built in notebook 02.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.config import TextConfig


class RMSNorm(nn.Module):
    """Divide a vector by its root mean square, then scale each channel by a learned weight.

    (..., C) -> (..., C). Unlike LayerNorm it subtracts no mean and adds no bias.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-5, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        # Squares of bf16 numbers lose their last digits, so the norm is taken in fp32; the cast back comes before
        # the weight, as in the reference: the other order gives other bf16 logits.
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). (..., C) -> (..., C), through `intermediate_size` in between."""

    def __init__(self, cfg: TextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False, dtype=cfg.dtype)
        self.up_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False, dtype=cfg.dtype)
        self.down_proj = nn.Linear(cfg.intermediate_size, cfg.hidden_size, bias=False, dtype=cfg.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
