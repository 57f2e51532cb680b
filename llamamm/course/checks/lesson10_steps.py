"""Checks of lesson 10's steps: gradients over uneven pieces, AdamW, the learning rate's schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.course.checks.compare import describe
from llamamm.course.checks.core import Property
from llamamm.course.checks.faults import fault_exercise, input_stays
from llamamm.train.config import TrainConfig
from llamamm.train.losses import IGNORE, cross_entropy_sum
from llamamm.train.optim import learning_rate

EPS = 1e-8

# ---- 10.3: gradient accumulation over uneven pieces ----

Pieces = list[tuple[Tensor, Tensor]]


def _accumulate(weight: Tensor, pieces: Pieces) -> float:
    n_targets = sum(int((targets != IGNORE).sum()) for _, targets in pieces)
    total = 0.0
    for hidden, targets in pieces:
        loss = cross_entropy_sum(hidden, weight, targets) / n_targets
        loss.backward()
        total += float(loss.detach())
    return total


def _accumulated(weight: Tensor, pieces: Pieces, faults: Collection[str]) -> dict[str, Tensor]:
    """The loss that is returned and the gradient that is left."""
    weight = weight.detach().requires_grad_()
    sums = [F.cross_entropy(h @ weight.T, t, ignore_index=IGNORE, reduction="sum") for h, t in pieces]
    counts = [int((t != IGNORE).sum()) for _, t in pieces]
    with_targets = [n for n in counts if n]
    shares = [1 / sum(counts)] * len(pieces)  # by what each piece's sum is multiplied
    if {"means", "means of some", "added means"} & set(faults):
        over = 1 if "added means" in faults else len(pieces) if "means" in faults else len(with_targets)
        shares = [1 / n / over if n else 0.0 for n in counts]
    if "no division" in faults:
        shares = [1.0] * len(pieces)
    if "places" in faults:
        shares = [1 / sum(len(t) for _, t in pieces)] * len(pieces)
    if "pieces" in faults:
        shares = [1 / len(pieces)] * len(pieces)
    if "so far" in faults:
        shares = [1 / max(sum(counts[: n + 1]), 1) for n in range(len(pieces))]
    if "0 / 0" in faults:
        shares = [share if n else math.nan for share, n in zip(shares, counts, strict=True)]
    losses = [s * share for s, share in zip(sums, shares, strict=True)]
    loss = sum(losses)
    left = sums if "undivided gradient" in faults else losses
    left = left[-1:] if "last alone" in faults else left[:1] if "first alone" in faults else left
    sum(left).backward()
    if "returns the sum" in faults:
        loss = sum(sums)
    if "returns the last" in faults:
        loss = losses[-1]
    if "divides again" in faults and "no division" not in faults:  # a first division is told as "pieces"
        loss = loss / len(pieces)
    return {"loss": loss.detach(), "weight.grad": weight.grad}


def _pieces(*sizes: tuple[int, int]) -> Callable[[torch.Generator], list[tuple]]:
    """sizes: of each piece the places, and those of them that have a target."""

    def piece(n: int, learned: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
        targets = torch.randint(7, (n,), generator=g)
        targets[torch.randperm(n, generator=g)[learned:]] = IGNORE
        return torch.randn(n, 5, generator=g), targets

    return lambda g: [(torch.randn(7, 5, generator=g), [piece(*size, g) for size in sizes])]


def _all_pieces(g: torch.Generator) -> list[tuple]:
    sizes = [[(6, 6), (6, 6)], [(8, 1), (8, 7)], [(4, 4)], [(5, 3), (9, 0), (7, 2), (3, 3)]]
    return [case for row in sizes for case in _pieces(*row)(g)]


def _pieces_in_words(case: tuple) -> str:
    pieces = [f"{int((t != IGNORE).sum())} of {len(t)}" for _, t in case[1]]
    return f"pieces with targets in {' and '.join([', '.join(pieces[:-1])] * (len(pieces) > 1) + pieces[-1:])} places"


def _run_pieces(answer: Callable, case: tuple) -> dict[str, Tensor]:
    weight, pieces = case
    weight.requires_grad_()
    loss = answer(weight, pieces)
    if weight.grad is None:
        raise ValueError("weight.grad is None afterwards: each piece's loss needs a backward()")
    try:
        loss = float(loss.detach() if isinstance(loss, Tensor) else loss)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"return the mean loss, a number; got {type(loss).__name__}") from None
    return {"loss": torch.tensor(loss), "weight.grad": weight.grad}


def _count_backwards(answer: Callable, case: tuple) -> int:
    """How often a gradient comes to the weight."""
    weight, pieces = case
    times = []
    weight.requires_grad_().register_hook(times.append)
    answer(weight, pieces)
    return len(times)


def _once_for_each_piece(times: int, case: tuple) -> str | None:
    wanted = sum(bool((targets != IGNORE).any()) for _, targets in case[1])
    if times >= wanted or not times:
        return None
    return (f"backward ran {times} time{'s' * (times > 1)} for {wanted} pieces, so the scores of several are kept "
            f"until then: call it for each piece, which frees them")  # fmt: skip


def _afterwards(answer: Callable, case: tuple) -> tuple:
    case[0].requires_grad_()
    answer(*case)
    return case


def _unchanged(now: tuple, before: tuple) -> str | None:
    if not torch.equal(now[0], before[0]):
        return "your function changes the weight itself: it leaves the gradient, and takes no step"
    pairs = zip(now[1], before[1], strict=True)
    same = all(torch.equal(a, b) for piece, old in pairs for a, b in zip(piece, old, strict=True))
    return None if same else "your function changes its pieces, which the caller still needs"


_MEANS = ("You averaged the pieces' means: a token in a piece with few targets then counts more than one in a piece "
          "with many; divide each piece's sum by the targets of all pieces")
_UNEVEN, _EMPTY = _pieces((4, 1), (6, 3), (3, 3)), _pieces((5, 3), (4, 0), (3, 2))

_ACCUMULATE = fault_exercise(
    _accumulated,
    {
        "means": _MEANS, "means of some": _MEANS,
        "added means": "You added up the pieces' means: the step grows with the number of pieces; divide each piece's "
                       "sum by the targets of all pieces",
        "no division": "You didn't divide: loss and gradient are sums, and the step grows with the batch",
        "places": "You divided by all places: those with −100 are not learned and don't count",
        "pieces": "You divided the sums by the number of pieces: divide by the targets of all pieces",
        "so far": "You divided by the targets counted so far: count those of all pieces before the first backward",
        "0 / 0": "A piece without targets has the mean 0 / 0 = NaN, which poisons every gradient: take sums, divided "
                 "by the targets of all pieces",
        "last alone": "Only the last piece's gradient is left: backward adds to .grad by itself, don't clear it "
                      "between pieces",
        "first alone": "Only the first piece's gradient is there: call backward for each piece",
        "undivided gradient": "The gradient is that of the sum: divide before backward, not after it",
        "returns the sum": "You return the sum of the losses: return the mean",
        "returns the last": "You return only the last piece's share of the loss: add up all of them",
        "divides again": "The loss that you return is divided by the pieces again: their shares add up to the mean",
    },
    {
        "how much a piece counts": (_UNEVEN, ("means", "added means", "no division", "places", "pieces",
                                               "so far")),
        "the gradient that is left": (_UNEVEN, ("last alone", "first alone", "undivided gradient")),
        "the loss that is returned": (_UNEVEN, ("returns the sum", "returns the last", "divides again")),
        "a piece without targets": (_EMPTY, ("0 / 0",)),
    },
    _all_pieces,
    run=_run_pieces, show=_pieces_in_words, tolerance=1e-5,
    id="10.3", name="accumulate", minutes=12, level="hard", importance=3, reference=_accumulate,
)  # fmt: skip

ACCUMULATE = replace(_ACCUMULATE, properties=(
    *_ACCUMULATE.properties,
    Property("one piece after another", _UNEVEN, run=_count_backwards, accept=_once_for_each_piece,
             show=_pieces_in_words),
    Property("the weight stays as it is", _UNEVEN, run=_afterwards, accept=_unchanged, show=_pieces_in_words),
))  # fmt: skip


# ---- 10.5: AdamW's step ----

NAMES = ("weight", "grad", "m", "v", "t", "rate", "decay")


def _adamw(weight: Tensor, grad: Tensor, m: Tensor, v: Tensor, t: int, rate: float, decay: float,
           faults: Collection[str] = ()) -> dict[str, Tensor]:
    """The weight and the two means after the step."""
    b1, b2 = (0.95, 0.9) if "betas swapped" in faults else (0.9, 0.999 if "0.999" in faults else 0.95)
    if "decay in gradient" in faults:
        grad = grad + decay * weight
    old = m, v
    k1, k2 = (1 - b1, 1 - b2) if "shares swapped" in faults else (b1, b2)  # what each keeps of itself
    m = k1 * m + (1 - k1) * grad
    v = k2 * v + (1 - k2) * (grad.abs() if "sizes" in faults else grad**2)
    n = t + ("late" in faults) - ("early" in faults)
    both = "no correction" in faults
    m_hat = m if both or "m uncorrected" in faults else m / (1 - b1**n)
    v_hat = v if both or "v uncorrected" in faults else v / (1 - b2**n)
    if "old means" in faults:
        m_hat, v_hat = old[0] / (1 - b1**n), old[1] / (1 - b2**n)
    if "eps inside" in faults:
        step = m_hat / (v_hat + EPS).sqrt()
    else:
        step = m_hat / ((v_hat if "no root" in faults else v_hat.sqrt()) + EPS)
    step = -step if "uphill" in faults else step
    kept = 1 - rate * decay
    if {"no decay", "decay in gradient", "decay last"} & set(faults):
        kept = 1.0
    kept = 1 - decay if "decay without rate" in faults else 1 + rate * decay if "decay grows" in faults else kept
    weight = kept * weight - rate * step
    weight = weight * (1 - rate * decay) if "decay last" in faults else weight
    if "corrected state" in faults:
        m, v = m_hat, v_hat
    return {"weight": weight, "m": m, "v": v}


def _run_adamw(answer: Callable, case: tuple) -> dict[str, Any]:
    result = answer(*case)
    if not isinstance(result, tuple | list) or len(result) != 3:
        raise TypeError(f"return three tensors, weight, m and v; got {describe(result)}")
    return dict(zip(("weight", "m", "v"), result, strict=True))


def _state(*rows: list[float]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(row) for row in rows)


def _first_step(_: torch.Generator) -> list[tuple]:
    return [(*_state([1.0, -2.0], [0.5, -4.0], [0.0, 0.0], [0.0, 0.0]), 1, 0.5, 0.0)]


def _third_step(_: torch.Generator) -> list[tuple]:
    """And no two faults alike: all numbers differ."""
    return [(*_state([1.0, -2.0, 3.0], [0.5, -4.0, 2.0], [0.25, 1.5, -1.0], [0.75, 6.0, 2.5]), 3, 0.5, 0.2)]


def _tiny(_: torch.Generator) -> list[tuple]:
    return [(*_state([0.5, -0.5], [2e-5, -3e-5], [1e-5, 1e-5], [3e-10, 4e-10]), 5, 0.5, 0.0)]


def _adamw_cases(g: torch.Generator) -> list[tuple]:
    def case(t: int, rate: float, decay: float, *shape: int) -> tuple:
        weight, grad, m = torch.randn(3, *shape, generator=g)
        return weight, grad, m, torch.rand(shape, generator=g) + 0.1, t, rate, decay

    return [*_first_step(g), case(7, 0.1, 0.3, 4), case(2, 0.3, 0.0, 2, 3), case(1000, 0.01, 1.0, 5, 2)]


def _adamw_in_words(case: tuple) -> str:
    parts = [[float(f"{x:g}") for x in p.flatten().tolist()] if isinstance(p, Tensor) else p for p in case]
    return ", ".join(f"{name} {part}" for name, part in zip(NAMES, parts, strict=True))


ADAMW = fault_exercise(
    _adamw,
    {
        "no correction": "Nothing is corrected: both means begin at 0, so divide m by 1 − 0.9ᵗ and v by 1 − 0.95ᵗ",
        "m uncorrected": "m is not corrected: divide it by 1 − 0.9ᵗ",
        "v uncorrected": "v is not corrected: divide it by 1 − 0.95ᵗ",
        "corrected state": "You return the corrected means: correct copies of them, and hand on m and v as they are",
        "late": "Your exponent is t + 1: t counts from 1",
        "betas swapped": "The two memories are swapped: m keeps 0.9 of itself, v 0.95",
        "0.999": "v keeps 0.95 of itself here: 0.999 is PyTorch's default",
        "sizes": "v is the mean of the gradient's square: yours takes its size",
        "no root": "The root of v is missing: v is a square",
        "eps inside": "ε stands outside the root: √v̂ + ε",
        "uphill": "You step up the slope: subtract",
        "no decay": "Nothing decays: the old weight is multiplied by 1 − rate · decay",
        "decay in gradient": "You added the decay to the gradient, and so to m and v: the W in AdamW keeps it out",
        "decay without rate": "You multiplied by 1 − decay: it is 1 − rate · decay",
        "decay grows": "You multiplied by 1 + rate · decay: the weight should shrink",
        "decay last": "You let the new weight decay: take the old one",
        "early": "Your exponent is t − 1, and the first correction divides by 0: t counts from 1 already",
        "old means": "You stepped with the old m and v: bring them up to date first",
        "shares swapped": "You swapped the shares: m keeps 0.9 of itself and takes 0.1 of the gradient, v 0.95 and "
                          "0.05",
    },
    {
        "the first step": (_first_step, ("no correction", "m uncorrected", "v uncorrected", "no root", "uphill",
                                         "corrected state", "late", "early")),
        "the two means": (_third_step, ("betas swapped", "0.999", "sizes", "old means", "shares swapped")),
        "the decay": (_third_step, ("no decay", "decay in gradient", "decay without rate", "decay grows",
                                    "decay last")),
        "tiny gradients": (_tiny, ("eps inside",)),
    },
    _adamw_cases,
    run=_run_adamw, show=_adamw_in_words, extra=(input_stays(_first_step),),
    id="10.5", name="adamw_step", minutes=10, level="hard", importance=2,
)  # fmt: skip


# ---- 10.6: warm-up and cosine ----


def _package_rate(step: int, *, steps: int, warmup: int, peak: float, floor: float) -> float:
    settings = {"output": "unused", "steps": steps, "warmup_steps": warmup, "learning_rate": peak}
    return learning_rate(step, TrainConfig.make({**settings, "min_learning_rate": floor}))


def _rate(step: int, steps: int, warmup: int, peak: float, floor: float, faults: Collection[str]) -> float:
    if step < warmup + ("too long" in faults) and "no warm-up" not in faults:
        up = (step + ("from 0" not in faults)) / max(warmup + ("short of the peak" in faults), 1)
        return peak * (floor + (1 - floor) * up if "from the floor" in faults else up)
    first = 0 if "falls from 0" in faults else warmup
    done = (step - first) / (steps - ("late" not in faults) - first)
    left = (1 + math.cos(math.pi * done)) / 2
    if "whole turn" in faults:
        left = (1 + math.cos(2 * math.pi * done)) / 2
    if "quarter" in faults:
        left = math.cos(math.pi * done / 2)
    if "plain" in faults:
        left = math.cos(math.pi * done)
    if "double" in faults:
        left = 1 + math.cos(math.pi * done)
    if "line" in faults:
        left = 1 - done
    if "to 0" in faults:
        return peak * left
    if "cut off" in faults:
        return peak * max(floor, left)
    if "absolute" in faults:
        return floor + (peak - floor) * left
    if "on top" in faults:
        return peak * (floor + left)
    return peak * (floor + (1 - floor) * left)


def _rates(which: range, steps: int, warmup: int, peak: float, floor: float, faults: Collection[str]) -> dict:
    return {f"step {step}": _rate(step, steps, warmup, peak, floor, faults) for step in which}


def _run_rates(answer: Callable, case: tuple) -> dict[str, Any]:
    which, *settings = case
    named = dict(zip(("steps", "warmup", "peak", "floor"), settings, strict=True))
    return {f"step {step}": answer(step, **named) for step in which}


def _in_words(case: tuple) -> str:
    return "steps {}, warmup {}, peak {:g}, floor {:g}".format(*case[1:])


def _fall(_: torch.Generator) -> list[tuple]:
    """After the warm-up, down to 0."""
    return [(range(4, 9), 9, 4, 0.5, 0.0)]


SCHEDULE = fault_exercise(
    _rates,
    {
        "from 0": "Your first step has the rate 0 and changes nothing: take (step + 1) / warmup",
        "no warm-up": "There is no warm-up: steps below `warmup` rise in a line",
        "falls from 0": "Your cosine begins at step 0: it starts to fall where the warm-up ends",
        "late": "The floor is never reached: the last step is steps − 1, since they are counted from 0",
        "whole turn": "Your cosine comes up again: half a turn, from 0 to π, is the whole fall",
        "quarter": "A quarter turn falls slowly and then fast: half a turn, (1 + cos(πd)) / 2, is gentle at both ends",
        "plain": "A cosine goes from 1 to −1: (1 + cos(πd)) / 2 goes from 1 to 0",
        "double": "1 + cos goes from 2 to 0: halve it",
        "line": "That is a line: the fall is half a turn of a cosine",
        "to 0": "It falls to 0: it should end at floor · peak",
        "cut off": "You cut the curve off at the floor: squeeze it, floor + (1 − floor) · what is left",
        "absolute": "You took the floor for a rate: it is a share of the peak",
        "on top": "You added the floor on top, so the rate begins above the peak: floor + (1 − floor) · what is left",
        "short of the peak": "Your warm-up ends below the peak: its last step is warmup − 1, so divide step + 1 by "
                             "warmup",
        "from the floor": "Your warm-up begins at the floor: it rises from 0, and only the fall ends at the floor",
        "too long": "Your warm-up is a step too long: step `warmup` is the first of the fall, with the rate peak",
    },
    {
        "the warm-up": (lambda _: [(range(4), 9, 4, 0.5, 0.1)], ("from 0", "no warm-up", "short of the peak",
                                                               "from the floor")),
        "when it falls": (_fall, ("falls from 0", "late", "too long")),
        "how it falls": (_fall, ("whole turn", "quarter", "plain", "double", "line")),
        "the floor": (lambda _: [(range(7), 7, 0, 0.5, 0.3)], ("to 0", "cut off", "absolute", "on top")),
    },
    lambda _: [(range(n), n, *rest) for n, *rest in ((9, 4, 1.0, 0.1), (12, 0, 3e-3, 0.05), (30, 5, 0.02, 0.0),
                                                    (7, 2, 0.5, 1.0))],
    run=_run_rates, show=_in_words, tolerance=1e-7,
    id="10.6", name="rate", minutes=6, level="warm-up", reference=_package_rate,
)  # fmt: skip
