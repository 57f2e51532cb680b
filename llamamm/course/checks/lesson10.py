"""Checks of lesson 10: shifted and masked targets, the packed mask, pieces whose averaged means point the wrong way.

Gradients that add up, AdamW's step and the schedule are in `lesson10_steps`.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.course.checks.compare import describe
from llamamm.course.checks.core import Exercise, Property
from llamamm.course.checks.faults import fault_exercise, input_stays
from llamamm.course.checks.lesson10_steps import ACCUMULATE, ADAMW, SCHEDULE
from llamamm.text.masks import packed_mask
from llamamm.train.losses import IGNORE

# ---- 10.1: targets ----


def _targets(ids: Tensor, learn: Tensor, faults: Collection[str]) -> Tensor:
    ignore = 0 if {"0", "0 at the end"} & set(faults) else -1 if {"-1", "-1 at the end"} & set(faults) else IGNORE
    end = ignore if {"0 at the end", "-1 at the end"} & set(faults) else IGNORE
    if "inverted" in faults:
        learn = ~learn
    if "everything" in faults:
        learn = torch.ones_like(learn)
    shift = 0 if "unshifted" in faults else 1 if "backwards" in faults else -1
    targets, marks = ids.roll(shift), learn if "own mark" in faults else learn.roll(shift)
    marks = marks & learn if "both marks" in faults else marks
    marks = marks & (targets != 0) if "token 0" in faults else marks
    targets = targets.where(marks, torch.tensor(ignore))
    if shift and ("wraps" not in faults or shift > 0):
        targets[-1 if shift < 0 else 0] = end
    return targets


def _five_tokens(_: torch.Generator) -> list[tuple]:
    return [(torch.tensor([5, 6, 7, 8, 9]), torch.tensor([True, False, True, True, False]))]


def _target_cases(g: torch.Generator) -> list[tuple]:
    random = torch.randint(50, (12,), generator=g), torch.rand(12, generator=g) < 0.5
    return [(torch.tensor([5, 6, 7, 8]), torch.tensor([True, True, False, True])),
            (torch.tensor([9]), torch.tensor([True])),
            (torch.tensor([3, 0, 4, 2, 1]), torch.tensor([True, True, False, False, True])), random]  # fmt: skip


def _one_more(got: Tensor, expected: Tensor) -> Tensor | None:
    """One too short -> with -100 at the end."""
    return torch.cat((got, got.new_tensor([IGNORE]))) if got.shape == (len(expected) - 1,) else None


_ZERO = "You marked places with 0, which is a token: cross-entropy ignores −100"
_MINUS_ONE = "You marked places with −1: PyTorch's cross-entropy ignores −100"
TARGETS = fault_exercise(
    _targets,
    {
        "unshifted": "You didn't shift: place t sees token t and predicts token t + 1; otherwise it learns to copy",
        "backwards": "You shifted the wrong way: place t would predict the token before it",
        "own mark": "You took the mark of the place: what counts is the mark of the token that is predicted, so mask "
                    "before you shift",
        "everything": "You learn everything: where learn is False the target is −100",
        "inverted": "Your mask is the wrong way round: learn is True for what is learned",
        "wraps": "The last place predicts the first token: nothing comes after the end, so its target is −100",
        "0": _ZERO, "0 at the end": _ZERO, "-1": _MINUS_ONE, "-1 at the end": _MINUS_ONE,
        "both marks": "You lose the first token of each answer: the place before it isn't marked, but what counts is "
                      "the token that is predicted",
        "token 0": "You lose token 0: it is a token like any other, so mark what is not learned with −100 at once",
    },
    {
        "what a place predicts": (_five_tokens, ("unshifted", "backwards")),
        "which are learned": (_five_tokens, ("own mark", "everything", "inverted", "both marks")),
        "the end": (lambda g: [*_five_tokens(g), (torch.tensor([5, 6, 7]), torch.tensor([False, True, True]))],
                    ("wraps",)),
        "the mark of the others": (_five_tokens, ("0", "0 at the end", "-1", "-1 at the end")),
        "token 0": (lambda _: [(torch.tensor([4, 0, 6, 0, 8]), torch.tensor([True, True, False, False, True]))],
                    ("token 0",)),
    },
    _target_cases,
    repair=_one_more, form="One too short: the last place has a target too, −100", extra=(input_stays(_target_cases),),
    id="10.1", name="targets_of", minutes=6, level="core", importance=3,
)  # fmt: skip


# ---- 10.2: the packed mask ----


def _mask(segments: Tensor, faults: Collection[str]) -> Tensor:
    T = segments.shape[1]
    rows, columns = torch.arange(T)[:, None], torch.arange(T)[None, :]
    order = columns <= rows
    if "future" in faults:
        order = torch.ones(T, T, dtype=torch.bool)
    if "swapped" in faults:
        order = columns >= rows
    if "not itself" in faults:
        order = order & (columns != rows)
    seen = segments[:1].expand_as(segments) if "row 0" in faults else segments
    together = seen[:, :, None] == seen[:, None, :]
    if "earlier texts" in faults:
        together = seen[:, None, :] <= seen[:, :, None]
    if "all texts" in faults:
        together = torch.ones_like(together)
    if "no filling" in faults:
        together = together & (seen[:, None, :] > 0)
    mask = order & together
    return ~mask if "inverted" in faults else mask


def _one_row(_: torch.Generator) -> list[tuple]:
    return [(torch.tensor([[1, 1, 2, 2, 0]]),)]


def _mask_cases(g: torch.Generator) -> list[tuple]:
    return [
        (torch.tensor([[1, 1, 2, 2, 2, 0]]),), (torch.tensor([[1, 2, 3], [1, 1, 1], [1, 2, 2]]),),
        (torch.tensor([[1]]),), (1 + torch.rand(2, 9, generator=g).cumsum(dim=1).long(),),
    ]


def _no_heads(got: Tensor, expected: Tensor) -> Tensor | None:
    """(B, 1, T, T) -> (B, T, T)."""
    return got[:, 0] if got.shape == (len(expected), 1, *expected.shape[1:]) else None


MASK = fault_exercise(
    _mask,
    {
        "future": "Tokens see the future: within a text, a token sees itself and what came before it",
        "swapped": "Rows and columns are swapped: row i is the token that looks, column j the one that is seen",
        "not itself": "No token sees itself: the first of each text would see nothing, and a softmax over nothing is "
                      "NaN",
        "all texts": "Texts see each other: this mask knows no segments; compare the segments too",
        "earlier texts": "A text still sees the texts before it: ask whether segments are equal, not whether they are "
                         "smaller",
        "row 0": "Every row got row 0's mask: rows are packed differently, so the result is (B, T, T)",
        "no filling": "The filling sees nothing, and a softmax over nothing is NaN: let it see itself, nothing is "
                      "learned there",
        "inverted": "Your mask says who may NOT look: here True means that a token may attend",
    },
    {
        "before and after": (_one_row, ("future", "swapped", "not itself")),
        "one text and the next": (_one_row, ("all texts", "earlier texts")),
        "what True means": (_one_row, ("inverted",)),
        "rows of their own": (lambda _: [(torch.tensor([[1, 1, 2, 0], [1, 2, 2, 2]]),)], ("row 0",)),
        "the filling": (lambda _: [(torch.tensor([[1, 1, 2, 0, 0]]),)], ("no filling",)),
    },
    _mask_cases,
    repair=_no_heads, form="Leave out the dimension of heads",
    id="10.2", name="rows_mask", minutes=8, level="core", importance=3,
    reference=lambda segments: packed_mask(segments)[:, 0],
)  # fmt: skip


# ---- 10.4: break it ----

STEP, AGAINST = 0.01, 91.0  # of a move along the averaged means; degrees that count as the wrong way


def _misled() -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    strong, weak = torch.tensor([[2.0]]), torch.ones(3, 1)
    return torch.zeros(2, 1), [(strong, torch.tensor([0])), (weak, torch.tensor([1, 1, 1]))]


def _form(result: Any) -> str | None:
    """What keeps a result from being a head and pieces, or None."""
    if not isinstance(result, tuple | list) or len(result) != 2:
        return f"return two things, weight and pieces; got {describe(result)}"
    weight, pieces = result
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point() or weight.numel() == 0:
        return f"weight should be a tensor of numbers (V, C), got {describe(weight)}"
    if not isinstance(pieces, tuple | list) or len(pieces) < 2:
        return f"pieces should be a list of at least two pairs, got {describe(pieces)}"
    for n, piece in enumerate(pieces):
        if not isinstance(piece, tuple | list) or len(piece) != 2 or not all(isinstance(t, Tensor) for t in piece):
            return f"piece {n} should be two tensors, hidden and targets; got {describe(piece)}"
        hidden, targets = piece
        if hidden.dim() != 2 or hidden.shape[1] != weight.shape[1] or hidden.dtype != weight.dtype:
            return (f"piece {n}: hidden should be (N, {weight.shape[1]}) and {weight.dtype}, as weight is, got "
                    f"{tuple(hidden.shape)} and {hidden.dtype}")  # fmt: skip
        if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
            return (f"piece {n}: targets should be int64 of shape ({len(hidden)},), one for each row of hidden, got "
                    f"{targets.dtype} {tuple(targets.shape)}")  # fmt: skip
        learned = targets[targets != IGNORE]
        if not len(learned):
            return f"piece {n} has no target at all: its mean would be 0 / 0"
        if int(learned.min()) < 0 or int(learned.max()) >= len(weight):
            return f"piece {n}: targets run from 0 to {len(weight) - 1} with this weight, got {learned.tolist()}"
    if not all(bool(t.isfinite().all()) for t in (weight, *(hidden for hidden, _ in pieces))):
        return "all numbers should be finite"
    return None


def _gradients(weight: Tensor, pieces: Any) -> tuple[Tensor, Tensor, float, float]:
    """The gradient that is meant, that of the averaged means, and the mean loss before and after a step along it."""
    weight = weight.detach().double().requires_grad_()
    counts = [int((t != IGNORE).sum()) for _, t in pieces]
    sums = [F.cross_entropy(h.detach().double() @ weight.T, t, reduction="sum") for h, t in pieces]
    meant = sum(sums) / sum(counts)
    means = sum(s / n for s, n in zip(sums, counts, strict=True)) / len(pieces)
    right, wrong = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (meant, means))
    moved = weight.detach() - STEP * wrong / wrong.norm().clamp(min=1e-12)
    after = sum(F.cross_entropy(h.detach().double() @ moved.T, t, reduction="sum") for h, t in pieces) / sum(counts)
    return right, wrong, float(meant.detach()), float(after)


def _is_form(result: Any, _case: tuple) -> str | None:
    return _form(result)


def _goes_wrong(result: Any, _case: tuple) -> str | None:
    if _form(result):
        return None
    right, wrong, before, after = _gradients(*result)
    if not float(right.norm()) > 1e-6 or not float(wrong.norm()) > 1e-6:
        which = "that is meant" if not float(right.norm()) > 1e-6 else "of the averaged means"
        return f"the gradient {which} is 0, and 0 points nowhere"
    cosine = float((right * wrong).sum() / right.norm() / wrong.norm())
    angle = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
    if angle >= AGAINST and after > before:
        return None
    counts = [int((t != IGNORE).sum()) for _, t in result[1]]
    said = f"the two gradients are {angle:.0f} degrees apart, and more than 90 are needed"
    if len(set(counts)) == 1:
        return (f"{said}. Your pieces have {counts[0]} target{'s' * (counts[0] > 1)} each, so the mean of their means "
                f"is the mean of all")  # fmt: skip
    if angle >= AGAINST:
        return f"a step of {STEP} along the averaged means still lowers the loss, from {before:.6f} to {after:.6f}"
    return (f"{said}. With {', '.join(map(str, counts[:-1]))} and {counts[-1]} targets: let the piece with few of them "
            f"pull harder than one target of the others does, and less than all of them together")  # fmt: skip


MISLED = Exercise(
    id="10.4", name="misled", minutes=8, level="break it", importance=1, reference=_misled,
    properties=(
        Property("a head and pieces", lambda _: [()], accept=_is_form),
        Property("the wrong way", lambda _: [()], accept=_goes_wrong),
    ),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (TARGETS, MASK, ACCUMULATE, MISLED, ADAMW, SCHEDULE)
