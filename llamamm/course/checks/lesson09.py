"""Checks of lesson 09: a rank from its energy, merging, an adapter that vanishes. Those of the
layer and its gradients stand in `lesson09_layer`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.compare import describe, difference
from llamamm.course.checks.core import Exercise, Property
from llamamm.course.checks.faults import fault_exercise
from llamamm.course.checks.inputs import inputs_stay
from llamamm.course.checks.lesson09_layer import GRADIENTS, LAYER

# ---- 09.1: which rank is enough ----


def _rank(update: Tensor, share: float, faults: Collection[str]) -> int:
    power = 1 if "values" in faults else 4 if "squared twice" in faults else 2
    energy = torch.linalg.svdvals(update.double()).pow(power)
    slack = 1e-6 if "more than" in faults else -1e-6
    off = ("too many" in faults) - ("too few" in faults)
    if "of the largest" in faults:  # how many are at least this share of the strongest
        return int((energy >= (share + slack) * energy[0]).sum()) + off
    if "weakest first" in faults:
        energy = energy.flip(0)
    if "residue" in faults:  # stops where what is left has the share, not what is held
        return min(int((energy.sum() - energy.cumsum(0) > (share + slack) * energy.sum()).sum()) + 1, len(energy)) + off
    return min(int((energy.cumsum(0) < (share + slack) * energy.sum()).sum()) + 1, len(energy)) + off


def _ranks(strengths: tuple[float, ...], shares: tuple[float, ...], n: int, c: int, faults: Collection[str]) -> dict:
    update = _of_strengths(strengths, n, c)
    return {f"share {share:g}": _rank(update, share, faults) for share in shares}


def _of_strengths(strengths: tuple[float, ...], n: int, c: int) -> Tensor:
    """A matrix (n, c) with these singular values."""
    if len(strengths) == n == c:
        return torch.diag(torch.tensor(strengths))
    g = torch.Generator().manual_seed(len(strengths))
    u, v = (torch.linalg.qr(torch.randn(side, len(strengths), generator=g)).Q for side in (n, c))
    return u @ torch.diag(torch.tensor(strengths)) @ v.T


def _run_ranks(answer: Callable, case: tuple) -> dict[str, Any]:
    strengths, shares, n, c = case
    return {f"share {share:g}": answer(_of_strengths(strengths, n, c), share) for share in shares}


def _rank_of_zeros(result: Any, _case: tuple) -> str | None:
    right = isinstance(result, int | float | Tensor) and not isinstance(result, bool) and result == 0
    return None if right else f"should be 0, got {describe(result)}: an update of zeros needs no rank at all"


def _despite_rounding(result: Any, case: tuple) -> str | None:
    problem = difference({f"share {share:g}": len(case[0]) for share in case[1]}, result, 0.0)
    return problem and f"{problem}. Rounding leaves the sum a little below the share: ask for a millionth less"


def _strengths_in_words(case: tuple) -> str:
    strengths, _, n, c = case
    return f"an update ({n}, {c}) of the strengths {', '.join(f'{s:g}' for s in strengths)}"


def _in_steps(_: torch.Generator) -> list[tuple]:
    return [((6.0, 5.0, 3.0, 2.0), (0.1, 0.3, 0.4, 0.95), 4, 4)]


_RANK = fault_exercise(
    _ranks,
    {
        "values": "You added up singular values: the energy is the sum of their squares",
        "squared twice": "You squared twice: the energy is the sum of the squared singular values",
        "too few": "One too few: place i of the running sum holds what rank i + 1 holds",
        "too many": "One too many: the first rank that reaches the share is enough",
        "more than": "You ask for more than the share: a rank that holds exactly the share is enough",
        "weakest first": "You began with the weakest: the best approximation keeps the strongest",
        "of the largest": "You compared each with the largest one: it is the sum of the first r that must reach the "
                          "share",
        "residue": "You stop where the rest is down to the share: it is what is kept that must reach the share",
    },
    {
        "the energy": (_in_steps, ("values", "squared twice")),
        "what is added up": (_in_steps, ("weakest first", "of the largest", "residue")),
        "how many": (_in_steps, ("too few", "too many")),
        "exactly the share": (lambda _: [((2.0, 2.0), (0.3, 0.5), 2, 2)], ("more than",)),
    },
    lambda _: [
        ((3.0, 1.0), (0.9, 0.91), 2, 2), ((5.0, 4.0, 3.0, 2.0, 1.0), (0.5,), 12, 9),
        ((5.0, 4.0, 3.0, 2.0, 1.0), (0.9,), 9, 12),
    ],
    run=_run_ranks, tolerance=0.0, show=_strengths_in_words,
    id="09.1", name="smallest_rank", minutes=10, level="warm-up", importance=2,
    reference=lambda update, share: _rank(update, share, ()) if update.any() else 0,
)  # fmt: skip

RANK = replace(_RANK, properties=(
    *_RANK.properties,
    Property("an update of zeros", lambda _: [(torch.zeros(3, 5), 0.9)], accept=_rank_of_zeros),
    Property("despite rounding", lambda _: [((4.0, 2.0, 1.0), (1.0,), 8, 8), ((24.0**0.5,), (0.99, 1.0), 4, 6)],
             run=_run_ranks, accept=lambda *_: None, otherwise=_despite_rounding, show=_strengths_in_words),
))  # fmt: skip


# ---- 09.4: merging ----


def _merged(weight: Tensor, a: Tensor, b: Tensor, alpha: float, faults: Collection[str]) -> Tensor:
    scale = alpha / a.shape[0]
    if "no scale" in faults:
        scale = 1.0
    if "alpha alone" in faults:
        scale = alpha
    if "whole" in faults:
        scale = alpha // a.shape[0]
    if "by C" in faults:
        scale = alpha / a.shape[1]
    if "by N" in faults:
        scale = alpha / b.shape[0]
    if "subtracted" in faults:
        scale = -scale
    if "strips rounded" in faults:
        delta = scale * (b.to(weight.dtype) @ a.to(weight.dtype))
    else:
        delta = scale * (b @ a)
    if "update rounded" in faults:
        delta = delta.to(weight.dtype)
    return (weight.float() * ("update alone" not in faults) + delta.float()).to(weight.dtype)


def _small_merge(_: torch.Generator) -> list[tuple]:
    """r, N, C and alpha are 2, 3, 4 and 27, so each wrong scale is another number."""
    strips = torch.tensor([[1.0, 2, 4, 0], [3, 0, 1, 2]]), torch.tensor([[1.0, 0], [2, 1], [0, 3]])
    return [(100 * torch.arange(1.0, 13).view(3, 4), *strips, 27.0)]


def _in_thousandths(g: torch.Generator, *shape: int) -> Tensor:
    """Random numbers of which products and sums are exact in fp32, in whatever order they are added up."""
    return torch.randint(-1023, 1024, shape, generator=g) / 1024


def _rounded_merge(g: torch.Generator) -> list[tuple]:
    return [(_in_thousandths(g, 8, 4).bfloat16(), _in_thousandths(g, 2, 4), _in_thousandths(g, 8, 2), 1.0)]


def _merges(g: torch.Generator) -> list[tuple]:
    cases = []
    for n, c, r, alpha, dtype in ((5, 7, 2, 3.0, torch.float32), (4, 4, 1, 2.0, torch.float32),
                                  (16, 24, 4, 2.0, torch.bfloat16), (3, 2, 4, 8.0, torch.float16)):  # fmt: skip
        strips = _in_thousandths(g, r, c), _in_thousandths(g, n, r)
        cases.append((torch.randn(n, c, generator=g).to(dtype), *strips, alpha))
    return cases


def _never_rounded(result: Any, case: tuple) -> str | None:
    """Only what has the right numbers for a narrower dtype, in fp32 still."""
    if not isinstance(result, Tensor) or result.dtype == case[0].dtype or result.shape != case[0].shape:
        return None
    return (f"the result is {str(result.dtype).removeprefix('torch.')}, the weight "
            f"{str(case[0].dtype).removeprefix('torch.')}. Give it back in the weight's own dtype")  # fmt: skip


def _weight_after(answer: Callable, case: tuple) -> Tensor:
    answer(*case)
    return case[0]


def _left_as_it_was(weight: Tensor, case: tuple) -> str | None:
    if torch.equal(weight, case[0]):
        return None
    return "the given weight is no longer what it was. You changed it in place: make a new tensor"


_MERGE = fault_exercise(
    _merged,
    {
        "no scale": "You left out the scale, alpha / r",
        "alpha alone": "You multiplied by alpha: divide it by r, the number of rows of a",
        "whole": "You cut off the fraction of alpha / r: divide with /, not //",
        "by C": "You divided alpha by the columns of a: r is the number of its rows",
        "by N": "You divided alpha by the rows of b: r is the number of its columns, and of the rows of a",
        "update alone": "You return the update alone: add it to the weight",
        "subtracted": "You subtracted the update: that is how one would unmerge",
        "update rounded": "You rounded the update to the weight's dtype before adding: add in fp32, round once at the "
                          "end",
        "strips rounded": "You converted a and b to the weight's dtype: keep them in fp32, convert the weight, round "
                          "at the end",
    },
    {
        "the scale": (_small_merge, ("no scale", "alpha alone", "whole", "by C", "by N")),
        "weight plus update": (_small_merge, ("update alone", "subtracted")),
        "one rounding, at the end": (_rounded_merge, ("update rounded", "strips rounded")),
    },
    _merges,
    tolerance=1e-6,
    id="09.4", name="merged_weight", minutes=5, level="core", importance=3,
)  # fmt: skip

MERGE = replace(_MERGE, properties=(
    *_MERGE.properties[:3],
    Property("the weight's dtype", _merges, accept=_never_rounded),
    Property("the given weight", _small_merge, run=_weight_after, accept=_left_as_it_was),
    *_MERGE.properties[3:],
))  # fmt: skip


# ---- 09.5: break it ----


def _vanish_cases(g: torch.Generator) -> list[tuple]:
    cases = []
    for n, c in ((4, 8), (16, 64), (1, 1)):
        size = 0.5 + 0.5 * torch.rand(n, c, generator=g)
        sign = 2 * torch.randint(0, 2, (n, c), generator=g) - 1
        weight = (size * sign).bfloat16()
        weight[0, 0] = 0.5 if (n + c) % 3 == 0 else -0.5
        weight[-1, -1] = -1.0 if n > 1 else weight[-1, -1]
        cases.append((weight,))
    return cases


def _strips(result: Any, case: tuple) -> str | None:
    """What is wrong with the form of the two strips, or None."""
    N, C = case[0].shape
    if not (isinstance(result, tuple | list) and len(result) == 2 and all(isinstance(t, Tensor) for t in result)):
        return f"return two tensors, a and b; got {describe(result)}"
    a, b = result
    if tuple(a.shape) != (1, C) or tuple(b.shape) != (N, 1):
        swapped = " You swapped the two" if tuple(a.shape) == (N, 1) and tuple(b.shape) == (1, C) else ""
        return f"a should be (1, {C}) and b ({N}, 1), got {tuple(a.shape)} and {tuple(b.shape)}.{swapped}".rstrip(".")
    if a.dtype != torch.float32 or b.dtype != torch.float32:
        return f"a and b should be fp32, got {a.dtype} and {b.dtype}"
    return None if (b @ a).isfinite().all() else "the update holds NaN or infinity"


def _nothing_is_left(result: Any, case: tuple) -> str | None:
    if _strips(result, case):
        return None
    delta, (weight,) = result[1] @ result[0], case
    changed = int(((weight.float() + delta).bfloat16() != weight).sum())
    if not changed:
        return None
    of_all, largest = f"{changed} of {weight.numel()} weights change", float(delta.abs().max())
    if largest < 1 / 512:
        return (f"{of_all}. Above 0.5 the update is rounded away, since it is below 1/512, half the distance of "
                f"neighbours. Just below 0.5 that half is 1/1024, so a weight of exactly 0.5 can move towards zero")
    return f"{of_all}: entries of the update reach {largest:.3g}, and only those below 1/512 are rounded away"


def _it_speaks(result: Any, case: tuple) -> str | None:
    if _strips(result, case):
        return None
    (a, b), C = result, case[0].shape[1]
    if not (b @ a).any():
        return "the update is zero, so the adapter says nothing apart either"
    quietest = float((b @ (a @ torch.ones(C, 1))).abs().min())
    if quietest >= C / 2000 - 1e-7:
        return None
    why = ""
    if float((b.abs() @ a.abs().sum(1, keepdim=True)).min()) >= C / 2000 - 1e-7:
        why = ". The entries of a cancel out when they are added up: give them the same sign"
    moves = f"for x of all ones an output moves by {quietest:.2g} only, not by C / 2000 = {C / 2000:.2g}"
    return f"it whispers: {moves}{why}"


def _weight_in_words(case: tuple) -> str:
    return f"a weight {tuple(case[0].shape)}"


VANISH = Exercise(
    id="09.5", name="vanishing_adapter", minutes=10, level="break it",
    reference=lambda weight: (torch.full((1, weight.shape[1]), 1 / 1100), torch.ones(weight.shape[0], 1)),
    properties=(
        Property("two strips", _vanish_cases, accept=_strips, show=_weight_in_words),
        Property("merged, nothing is left", _vanish_cases, accept=_nothing_is_left, show=_weight_in_words),
        Property("apart, it speaks", _vanish_cases, accept=_it_speaks, show=_weight_in_words),
        inputs_stay(("weight",), lambda g: _vanish_cases(g)[:1]),
    ),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (RANK, GRADIENTS, LAYER, MERGE, VANISH)
