"""Checks of lesson 02: a fused SwiGLU, RMSNorm in any dtype, its backward, inputs that break it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.course.checks.core import Exercise, Mistake
from llamamm.text.layers import RMSNorm

# ---- 02.1: swiglu_fused(x, gate_up, down) ----


def _swiglu_fused(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = (x @ gate_up.T).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ down.T


def _swiglu_cases(g: torch.Generator) -> list[tuple]:
    def case(*lead: int) -> tuple:
        return tuple(torch.randn(*shape, generator=g) for shape in ((*lead, 4), (12, 4), (4, 6)))

    return [case(1, 1), case(2, 4), case(2, 3)]


def _fused(hidden: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A fused SwiGLU whose hidden vector is made from gate and up in another way."""
    return lambda x, gate_up, down: hidden(x @ gate_up.T) @ down.T


def _silu_on_up(h: Tensor) -> Tensor:
    gate, up = h.chunk(2, dim=-1)
    return gate * F.silu(up)


def _interleaved(h: Tensor) -> Tensor:
    return F.silu(h[..., ::2]) * h[..., 1::2]


def _silu_on_both(h: Tensor) -> Tensor:
    gate, up = F.silu(h).chunk(2, dim=-1)
    return gate * up


def _no_silu(h: Tensor) -> Tensor:
    gate, up = h.chunk(2, dim=-1)
    return gate * up


def _sigmoid(h: Tensor) -> Tensor:
    gate, up = h.chunk(2, dim=-1)
    return torch.sigmoid(gate) * up


def _sum(h: Tensor) -> Tensor:
    gate, up = h.chunk(2, dim=-1)
    return F.silu(gate) + up


# ---- 02.2: rms_norm(x, weight, eps) ----


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    norm = RMSNorm(weight.numel(), eps, dtype=weight.dtype)
    norm.weight.data = weight
    return norm(x).detach()


def _rms_norm_cases(g: torch.Generator) -> list[tuple]:
    weight = torch.tensor([0.5, -1.0, 2.0, 3.0])
    bf16 = torch.randn(3, 64, generator=g).bfloat16(), torch.randn(64, generator=g).bfloat16()
    return [
        (torch.tensor([[1.0, 2.0, 3.0, 6.0]]), weight, 1e-5),
        (1e-3 * torch.randn(2, 3, 4, generator=g), weight, 1e-5),  # the place of epsilon shows in small vectors
        (torch.zeros(1, 4), weight, 1e-5),
        (*bf16, 1e-5),  # rounding shows in bf16
        (torch.tensor([[300.0, -400.0, 500.0, 100.0]]).half(), weight.half(), 1e-5),  # overflow shows in fp16
    ]


def _scale(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)


def _norm_eps_outside(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x32 = x.float()
    return weight * (x32 / (x32.pow(2).mean(dim=-1, keepdim=True).sqrt() + eps)).to(x.dtype)


def _norm_no_eps(x: Tensor, weight: Tensor, eps: float) -> Tensor:  # noqa: ARG001
    x32 = x.float()
    return weight * (x32 * _scale(x32, 0.0)).to(x.dtype)


def _norm_no_weight(x: Tensor, weight: Tensor, eps: float) -> Tensor:  # noqa: ARG001
    x32 = x.float()
    return (x32 * _scale(x32, eps)).to(x.dtype)


def _norm_weight_first(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x32 = x.float()
    return (weight * (x32 * _scale(x32, eps))).to(x.dtype)


def _norm_no_cast(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * (x * _scale(x, eps))


def _norm_no_cast_back(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x32 = x.float()
    return weight * (x32 * _scale(x32, eps))


def _norm_no_root(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x32 = x.float()
    return weight * (x32 / (x32.pow(2).mean(dim=-1, keepdim=True) + eps)).to(x.dtype)


def _norm_sum(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x32 = x.float()
    return weight * (x32 * torch.rsqrt(x32.pow(2).sum(dim=-1, keepdim=True) + eps)).to(x.dtype)


def _layer_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * F.layer_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype)


# ---- 02.3: rms_norm_backward(x, weight, eps, grad) ----


def _backward(x: Tensor, weight: Tensor, eps: float, grad: Tensor) -> tuple[Tensor, Tensor]:
    """By autograd, through the package's module."""
    norm = RMSNorm(weight.numel(), eps)
    norm.weight.data = weight
    x = x.detach().requires_grad_()
    norm(x).backward(grad)
    return x.grad, norm.weight.grad


def _backward_cases(g: torch.Generator) -> list[tuple]:
    shapes = [(1, 2), (1, 6), (3, 4), (2, 3, 5)]
    return [(torch.randn(s, generator=g), torch.randn(s[-1], generator=g), 0.1, torch.randn(s, generator=g))
            for s in shapes]  # fmt: skip


def _wrong_backward(
    sign: float = -1.0, *, second: bool = True, weighted: bool = True, mean: bool = True, whole: bool = True,
    power: int = 3, first_weight: bool = True,
) -> Callable[..., tuple[Tensor, Tensor]]:  # fmt: skip
    """The formula of the backward pass with a part of it changed."""

    def backward(x: Tensor, weight: Tensor, eps: float, grad: Tensor) -> tuple[Tensor, Tensor]:
        r = _scale(x, eps)
        g = grad * weight if first_weight else grad
        along = (g if weighted else grad) * x
        along = along.mean(dim=-1, keepdim=True) if mean else along.sum(dim=-1, keepdim=True)
        dx = r * g + (sign * x * r**power * along if second else 0)
        dw = grad * x * r
        return dx, dw.flatten(0, -2).sum(dim=0) if whole else dw

    return backward


# ---- 02.4: breaking_inputs() ----

BREAKS = "breaks the norm"


def _fp16_norm(x: Tensor, eps: float) -> Tensor:
    """RMSNorm without the cast: squares, mean and root in the dtype of x."""
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)


def _verdict(answer: Callable[[], tuple[Tensor, Tensor]], case: tuple) -> str:
    """What one of the two inputs does: the first thing that is wrong with it, or BREAKS."""
    name, eps = case
    large, small = answer()
    x = large if name == "large" else small
    if not isinstance(x, Tensor) or x.shape != (4,):
        return f"{name} is not a tensor of shape (4,)"
    if x.dtype != torch.float16:
        return f"{name} is not in fp16"
    if not x.isfinite().all():
        return f"{name} holds inf or NaN itself"
    if not x.any():
        return f"{name} is the zero vector"
    out = _fp16_norm(x, eps)
    broken = not out.any() if name == "large" else not out.isfinite().all()
    return BREAKS if broken else f"{name} survives"


def _pair(large: float = 300.0, small: float = 1e-5, dtype: torch.dtype = torch.float16) -> Callable[[], tuple]:
    return lambda: (torch.full((4,), large, dtype=dtype), torch.full((4,), small, dtype=dtype))


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        id="02.1", name="swiglu_fused", minutes=5, level="warm-up", reference=_swiglu_fused, cases=_swiglu_cases,
        mistakes=(
            Mistake(_fused(_silu_on_up), "silu is on the wrong half: the first N rows are the gate, silu goes there"),
            Mistake(_fused(_interleaved), "you took every second row: the gate is the first half, up the second half"),
            Mistake(_fused(_silu_on_both), "you applied silu to both halves: up stays as it is"),
            Mistake(_fused(_no_silu), "silu is missing: without it nothing opens or closes the gate"),
            Mistake(_fused(_sigmoid), "that is sigmoid(gate): silu(gate) is gate · sigmoid(gate)"),
            Mistake(_fused(_sum), "you added gate and up: a gate multiplies"),
        ),
    ),
    Exercise(
        id="02.2", name="rms_norm", minutes=10, level="core", reference=_rms_norm, cases=_rms_norm_cases,
        mistakes=(
            Mistake(_norm_eps_outside, "your epsilon is outside the square root: add it to the mean square"),
            Mistake(_norm_no_eps, "epsilon is missing: a zero vector becomes 0/0, a tiny one is blown up to size 1"),
            Mistake(_norm_no_weight, "you forgot the weight: each channel is scaled by its own learned number"),
            Mistake(
                _norm_weight_first,
                "right in fp32, but in bf16 you multiply by the weight before casting back: cast back first",
            ),
            Mistake(_norm_no_cast, "you took the squares in x's own dtype: 300² overflows in fp16; compute in fp32"),
            Mistake(_norm_no_cast_back, "you stayed in fp32: cast back to x.dtype before the weight"),
            Mistake(_norm_no_root, "you divided by the mean square itself: take its square root"),
            Mistake(_norm_sum, "you divided by the vector's length: take the mean of the squares, not their sum"),
            Mistake(_layer_norm, "that is LayerNorm: RMSNorm subtracts no mean"),
        ),
    ),
    Exercise(
        id="02.3", name="rms_norm_backward", minutes=25, level="hard",
        reference=_backward, cases=_backward_cases,
        mistakes=(
            Mistake(
                _wrong_backward(second=False),
                "you treated the root mean square as a constant: it depends on every entry of x, which gives a "
                "second term",
            ),
            Mistake(_wrong_backward(sign=1.0), "the second term has the wrong sign: a larger x makes 1/RMS smaller"),
            Mistake(
                _wrong_backward(weighted=False),
                "the weight is missing in the second term: it, too, starts from w · grad",
            ),
            Mistake(_wrong_backward(mean=False), "in the second term take the mean over channels, not the sum"),
            Mistake(
                _wrong_backward(power=1),
                "the second term needs r³, not r: the derivative of s^(-1/2) is -1/2 · s^(-3/2)",
            ),
            Mistake(_wrong_backward(power=2), "the second term needs r³, not r²: s^(-3/2) is r³"),
            Mistake(
                _wrong_backward(first_weight=False, weighted=False),
                "the weight is missing in dx: the gradient passes through it first, w · grad",
            ),
            Mistake(
                _wrong_backward(whole=False),
                "dx is right; dw must be summed over all rows, since every row used the same weight: shape (C,)",
            ),
        ),
    ),
    Exercise(
        id="02.4", name="breaking_inputs", minutes=10, level="break it",
        reference=_pair(), cases=lambda _: [("large", 1e-5), ("small", 0.0)], run=_verdict,
        mistakes=(
            Mistake(_pair(small=0.0), "small is the zero vector, as fp16 stores it: it needs an entry that isn't 0"),
            Mistake(_pair(large=0.0), "large is the zero vector: take numbers whose squares are over 65,504"),
            Mistake(_pair(large=torch.inf), "large holds inf or NaN itself: fp16 ends at 65,504, stay below"),
            Mistake(_pair(large=200.0), "large survives: the squares must be over 65,504, the largest fp16 number"),
            Mistake(
                _pair(small=1e-3),
                "small survives without epsilon: its squares must round to 0 in fp16, below 3e-8",
            ),
            Mistake(_pair(dtype=torch.float32), "your tensors are not in fp16: give them dtype=torch.float16"),
        ),
    ),
)  # fmt: skip
