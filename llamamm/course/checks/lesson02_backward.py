"""What must hold of the backward pass of RMSNorm, for the exercise 02.2 of lesson 02.

Each property looks at one thing alone, whatever else is wrong: of dx its two terms apart, and what dw sums over.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.compare import describe, difference, explained, shown
from llamamm.course.checks.core import Exercise, Mistake, Property
from llamamm.course.checks.inputs import inputs_stay
from llamamm.text.layers import RMSNorm

Answer = Callable[..., Any]
INF = float("inf")


def rows_apart(got: Any, _case: tuple) -> str | None:
    """Of results for several vectors together and for each alone, what is wrong where they differ."""
    together, alone = got
    if not isinstance(together, Tensor):
        return None  # told elsewhere
    if together.shape == alone.shape and torch.allclose(together, alone, rtol=1e-3, atol=1e-5):
        return None
    return ("a vector's result changes when other vectors stand beside it: take the mean of each vector alone, with "
            "dim=-1 and keepdim=True")  # fmt: skip


def numbers(x: Tensor) -> str:
    """All numbers of a small tensor, (1, 0.5)."""
    return f"({', '.join(f'{v:.4g}' for v in x.flatten().tolist())})"


def _backward(x: Tensor, weight: Tensor, eps: float, grad: Tensor) -> tuple[Tensor, Tensor]:
    """By autograd, through the package's module."""
    norm = RMSNorm(weight.numel(), eps)
    norm.weight.data = weight
    x = x.detach().requires_grad_()
    norm(x).backward(grad)
    return x.grad, norm.weight.grad


def _scale(x: Tensor, eps: float) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)


def _called(answer: Answer, case: tuple) -> tuple[Any, Any]:
    """dx and dw, also where they come in the opposite order, where a single vector is too little, or where inputs are
    changed: each of these faults has its own property."""
    x, weight, eps, grad = (part.clone() if isinstance(part, Tensor) else part for part in case)
    got = answer(x, weight, eps, grad) if x.dim() > 1 else answer(x[None], weight, eps, grad[None])
    if not _is_pair(got):
        return _backward(*case)  # so that it is told by its own property alone
    dx, dw = got
    if _is_swapped(answer):
        dx, dw = dw, dx
    return (dx[0] if x.dim() == 1 and isinstance(dx, Tensor) and dx.dim() == 2 else dx), dw


def _is_pair(got: Any) -> bool:
    return isinstance(got, tuple | list) and len(got) == 2


def _is_swapped(answer: Answer) -> bool:
    """Whether dw comes first, as the shapes for two rows of three numbers show. Of two of the same shape dx is the one
    that is 0, since grad points where x points."""
    try:
        first, second = answer(torch.ones(2, 3), torch.ones(3), 0.0, torch.ones(2, 3))
    except Exception:  # told by the properties that call it
        return False
    if not isinstance(first, Tensor) or not isinstance(second, Tensor) or second.shape != (2, 3):
        return False
    return first.shape == (3,) or first.shape == (2, 3) and bool(second.abs().max() < 1e-5 < first.abs().min())


def _dx(answer: Answer, case: tuple) -> Any:
    return _called(answer, case)[0]


def _dw(answer: Answer, case: tuple) -> Any:
    return _called(answer, case)[1]


def _order(answer: Answer, case: tuple) -> str | None:
    if _is_swapped(answer):
        return "you return (dw, dx): dx comes first, then dw"
    got = answer(*case)
    return None if _is_pair(got) else f"return dx and dw, two tensors; got {describe(got)}"


def _one_vector(answer: Answer, case: tuple) -> tuple | str:
    """The shapes for a vector without any axis before its channels, or what it raised, where two rows raise nothing."""
    x, weight, eps, grad = case
    if not _is_pair(answer(x[None], weight, eps, grad[None])):  # told elsewhere, as is what it raises
        return (2,), (2,)
    try:
        return tuple(tuple(g.shape) for g in answer(*case))
    except Exception as error:
        return explained(error)


def _takes_one_vector(got: tuple | str, case: tuple) -> str | None:
    if isinstance(got, str):
        return (f"for x of shape {tuple(case[0].shape)}, a single vector, it raised {got}; x may have any number of "
                f"axes before the last, or none: reshape(-1, C) makes rows of all of them")  # fmt: skip
    shapes = f"dx of shape {tuple(case[0].shape)} and dw of shape {tuple(case[1].shape)}"
    return None if got == ((2,), (2,)) else f"for a single vector, return {shapes}; yours are of shape {got}"


def _second_term(got: Any, case: tuple) -> str | None:
    """By what number the second term is wrong, and which faults together give that number."""
    x, weight, eps, grad = case
    if not isinstance(got, Tensor) or got.shape != x.shape:
        return f"the shape of dx should be {tuple(x.shape)}"
    first, got, expected = got[..., 0], got[..., 1:], _dx(_backward, case)[..., 1:]
    if torch.allclose(got, expected, rtol=1e-3, atol=1e-7):
        return None
    problem = f"where grad is 0, dx should still be {numbers(expected)}, got {numbers(got)}"
    ratio, r = got / expected, float(_scale(x, eps))
    if float(ratio.abs().max()) < 1e-6:
        alone = grad[0] * r
        if not any(abs(float(first / alone) - of) < 1e-3 for of in (1.0, float(weight[0]))):
            return (f"{problem}: every entry of x changes r, and r scales the whole row, so the second term holds the "
                    f"mean of grad · w · x over the row, not one entry's")  # fmt: skip
        return (f"{problem}: you treated the root mean square as a constant, but it depends on every entry of x; "
                f"the second term is missing")  # fmt: skip
    if torch.allclose(got, got[..., :1].expand_as(got), rtol=1e-3):
        return f"{problem}: x is missing in the second term: the derivative of mean(x²) is 2x / C"
    if not torch.allclose(ratio, ratio[..., :1].expand_as(ratio), rtol=1e-3):
        return problem
    sign = "the second term has the wrong sign: a larger x makes r smaller, so subtract it"
    why = [sign] if float(ratio[0]) < 0 else []
    faults = [
        ("in the second term, take the mean over the channels, not the sum", x.shape[-1]),
        ("the weight is missing in the second term: it, too, contains w · grad", 1 / float(weight[0])),
        ("the second term needs r³, not r: the derivative of s^(-1/2) is -1/2 · s^(-3/2)", r**-2),
        ("the second term needs r³, not r²: s^(-3/2) is r³", r**-1),
        ("the second term needs r³, not r⁴: s^(-3/2) is r³", r),
        ("the mean in the second term is of w · grad · x: x is missing in it", 1 / float(x[0])),
        ("the second term is twice as large: the 2 of the derivative of x² and the 1/2 of the root cancel", 2.0),
        ("the second term is half as large: the 2 of the derivative of x² and the 1/2 of the root cancel", 0.5),
    ]
    for n in range(4):
        for some in itertools.combinations(faults, n):
            product = torch.tensor([factor for _, factor in some]).prod()
            if abs(abs(float(ratio[0])) / float(product) - 1) < 1e-3:
                return f"{problem}: {'. Also, '.join(why + [text for text, _ in some])}"
    return problem


def _backward_epsilon(got: Any, case: tuple) -> str | None:
    """Of a zero vector, where only the first term is left: it is grad / √ε."""
    grad = case[-1]
    if not isinstance(got, Tensor) or got.shape != grad.shape or torch.allclose(got, 2 * grad):
        return None
    problem = f"dx of a zero vector should be {numbers(2 * grad)}, got {numbers(got)}"
    why = "missing" if not got.isfinite().all() else "outside the root" if torch.allclose(got, 4 * grad) else ""
    return f"{problem}: epsilon is {why}; r is (mean(x²) + ε)^(-1/2)" if why else problem


def _first_term_cases(_g: torch.Generator) -> list[tuple]:
    """The second term is 0: grad is perpendicular to x, and all weights are equal. Its mean is 0, too."""
    return [(torch.tensor([1.0, 2.0, 3.0]), torch.full((3,), 2.0), 0.0, torch.tensor([1.0, -2.0, 1.0]))]


def _backward_rows(answer: Answer, case: tuple) -> tuple[Tensor, Tensor]:
    x, weight, eps, grad = case
    together, alone = _dx(answer, case), [_dx(answer, (a, weight, eps, b)) for a, b in zip(x, grad, strict=True)]
    return together, torch.stack(alone) if isinstance(together, Tensor) else alone


def _backward_rows_apart(got: Any, case: tuple) -> str | None:
    """As for the norm; rows that differ no more than by a method's own rounding, as quotients of differences do, are
    told by the numbers."""
    together, alone = got
    same = isinstance(together, Tensor) and difference(together, alone, INF) is None
    return None if same and torch.allclose(together, alone, rtol=0.02, atol=2e-3) else rows_apart(got, case)


def _call(case: tuple) -> str:
    """The arguments by their names, for a learner to type in."""
    x, weight, eps, grad = case
    return f"x = {shown(x)}, weight = {shown(weight)}, eps = {eps:g}, grad = {shown(grad)}"


def _dw_cases(g: torch.Generator) -> list[tuple]:
    return [(torch.randn(s, generator=g), 2 + torch.rand(s[-1], generator=g), 0.0, torch.randn(s, generator=g))
            for s in ((1, 2), (3, 4), (2, 3, 5))]  # fmt: skip


def _wrong_dw(of: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Answer:
    """A wrong dw of x, weight, r and grad."""
    return lambda x, weight, eps, grad: (x, of(x, weight, _scale(x, eps), grad))


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _no_weight_in_first(x: Tensor, _w: Tensor, eps: float, grad: Tensor) -> tuple[Tensor, Tensor]:
    return grad * _scale(x, eps), x


ONE_ENTRY = "your second term holds one entry's grad · w · x: it needs their mean over the row"


def _entry_by_entry(C: int) -> Answer:
    """A second term without a mean, divided by C."""
    return lambda x, w, eps, d: (d * w * _scale(x, eps) - x * _scale(x, eps) ** 3 * d * w * x / C, x)


def _gradient_cases(g: torch.Generator) -> list[tuple]:
    return [(torch.randn(s, generator=g), 0.5 + torch.rand(s[-1], generator=g), 1e-5, torch.randn(s, generator=g))
            for s in ((2, 3), (3, 5), (2, 3, 4))]  # fmt: skip


BACKWARD = Exercise(
    id="02.2", name="rms_norm_backward", minutes=20, level="hard", importance=2, reference=_backward,
    forbids=("backward", "grad", "vjp", "rms_norm"),
    properties=(
        Property("the order", lambda _: [(torch.ones(2, 3), torch.ones(3), 0.0, torch.ones(2, 3))], run=_order,
                 accept=lambda problem, _: problem),
        Property("a single vector", lambda _: [(torch.tensor([3.0, 4.0]), torch.ones(2), 0.0, torch.tensor([1.0, 0]))],
                 run=_one_vector, accept=_takes_one_vector),
        # the other properties have none
        Property("epsilon", lambda _: [(torch.zeros(2), torch.ones(2), 0.25, torch.tensor([1.0, -2.0]))], run=_dx,
                 accept=_backward_epsilon),
        Property("dw", _dw_cases, run=_dw, strict=True, show=_call, mistakes=(
            Mistake(_wrong_dw(lambda x, _w, r, d: d * x * r),
                    "sum dw over all rows, since every row used the same weight: its shape is (C,)"),
            Mistake(_wrong_dw(lambda x, _w, r, d: (d * x * r).sum()),
                    "you summed dw over the channels, too: sum over the rows alone, and its shape is (C,)"),
            Mistake(_wrong_dw(lambda x, _w, r, d: (d * x * r).sum(dim=-1)),
                    "you summed dw over the channels: sum over the rows, and its shape is (C,)"),
            Mistake(_wrong_dw(lambda x, _w, r, d: (d * x * r).sum(dim=0)),
                    "sum dw over all dimensions but the last, not over the first alone: its shape is (C,)"),
            Mistake(_wrong_dw(lambda x, _w, r, d: _rows(d * x * r).mean(dim=0)),
                    "take the sum over the rows for dw, not their mean"),
            Mistake(_wrong_dw(lambda x, w, r, d: _rows(d * w * x * r).sum(dim=0)),
                    "the weight does not belong in dw: the derivative of w · x · r with respect to w is x · r"),
            Mistake(_wrong_dw(lambda x, _w, _r, d: _rows(d * x).sum(dim=0)),
                    "r is missing in dw: the weight multiplies the normed x, so it is x · r"),
            Mistake(_wrong_dw(lambda x, _w, r, d: _rows(d * x * r).sum(dim=0, keepdim=True)),
                    "dw keeps an axis of the rows: its shape is (C,), so sum without keepdim"),
            Mistake(_wrong_dw(lambda _x, _w, r, d: _rows(d * r).sum(dim=0)),
                    "x is missing in dw: the weight multiplies the normed x, so it is x · r"),
            Mistake(_wrong_dw(lambda _x, _w, _r, d: _rows(d).sum(dim=0)),
                    "the normed x is missing in dw: the weight multiplies it, so multiply grad by x · r"),
            Mistake(_wrong_dw(lambda x, _w, r, d: _rows(d * x / r).sum(dim=0)),
                    "you multiplied dw by the root mean square: r is 1 divided by it"),
            Mistake(_wrong_dw(lambda x, _w, r, _d: _rows(x * r).sum(dim=0)),
                    "grad is missing in dw: multiply it by x · r before you sum"),
        )),
        Property("dx, first term", _first_term_cases, run=_dx, show=_call, mistakes=(
            Mistake(_no_weight_in_first,
                    "the weight is missing in dx: the gradient passes back through it first, w · grad"),
            Mistake(lambda x, w, _e, d: (d * w, x), "r is missing in dx's first term: it is w · grad · r"),
            Mistake(lambda x, _w, _e, _d: (0 * x, x), "dx's first term is missing: it is w · grad · r"),
            Mistake(lambda x, w, eps, d: (d * w / _scale(x, eps), x),
                    "you multiplied dx's first term by the root mean square: r is 1 divided by it"),
            Mistake(_entry_by_entry(1), ONE_ENTRY), Mistake(_entry_by_entry(3), ONE_ENTRY),
        )),
        # r² = 1/65: each fault, and each two of them, multiply by a number of their own
        Property("dx, second term", lambda _: [
            (torch.tensor([7.0, 5.0, 11.0]), torch.tensor([5.0, 1, 1]), 0.0, torch.tensor([100.0, 0, 0]))
        ], run=_dx, accept=_second_term),
        Property("several vectors", lambda g: [
            (torch.randn(s, generator=g) * torch.tensor([1.0, 10]).view(2, *[1] * (len(s) - 1)), torch.ones(s[-1]), 0.0,
             torch.randn(s, generator=g)) for s in ((2, 2), (2, 3, 4))
        ], run=_backward_rows, accept=_backward_rows_apart),
        inputs_stay(("x", "weight", "eps", "grad"), lambda g: _gradient_cases(g)[:1]),
        Property("all numbers", _gradient_cases, accept=lambda *_: None,
                 otherwise=lambda got, case: difference(_backward(*case), tuple(got), 1e-4)),
    ),
)  # fmt: skip
