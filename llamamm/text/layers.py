"""The layers of a Llama block that look at one token at a time: RMSNorm, the SwiGLU feed-forward, and Linear.

RMSNorm keeps the scale of a vector in check, so that thirty blocks in a row neither explode nor vanish.
FeedForward is where a token's vector is transformed on its own, and where two thirds of the parameters live.
Linear is `nn.Linear`, faster on a CPU for the single row that generation sends through it at each step.

Sources: RMSNorm, arXiv:1910.07467; SwiGLU, arXiv:2002.05202. Built in notebook 02.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.text.config import TextConfig


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


class Linear(nn.Linear):
    """x Wᵀ, as `nn.Linear` without a bias. (..., C) -> (..., N)."""

    SLICES = 4
    FEW_ROWS = 4

    def __init__(self, in_features: int, out_features: int, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(in_features, out_features, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        few = x.numel() <= self.FEW_ROWS * self.in_features
        # Below 256 x 256 the weight sits in the CPU's cache, and slicing costs more than it saves.
        large = self.weight.numel() >= 65_536 and self.out_features % self.SLICES == 0
        plain = type(x) is Tensor  # not one that is spread over processes
        if few and large and plain and x.dtype == torch.float32 and x.device.type == "cpu":
            return few_rows_linear(x, self.weight, n_slices=self.SLICES)
        return F.linear(x, self.weight)


def few_rows_linear(x: Tensor, weight: Tensor, *, n_slices: int) -> Tensor:
    """The same product as a batch of `n_slices` products with slices of the weight's rows. (..., C) -> (..., N).

    For one row all time goes into reading the weight, and the batched kernel reads it about twice as fast as the plain
    one. No copy is made: a slice of rows is a view.
    """
    N, C = weight.shape
    columns = x.reshape(-1, C).t()  # (C, rows)
    # The kernel is chosen by the strides: `expand` of a transposed view gets the fast one, a (1, C, 1) view does not.
    out = torch.bmm(weight.view(n_slices, N // n_slices, C), columns.expand(n_slices, C, -1))  # (n, N/n, rows)
    return out.view(N, -1).t().reshape(*x.shape[:-1], N)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). (..., C) -> (..., C), through `intermediate_size` in between."""

    def __init__(self, cfg: TextConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(cfg.hidden_size, cfg.intermediate_size, dtype=cfg.dtype)
        self.up_proj = Linear(cfg.hidden_size, cfg.intermediate_size, dtype=cfg.dtype)
        self.down_proj = Linear(cfg.intermediate_size, cfg.hidden_size, dtype=cfg.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
