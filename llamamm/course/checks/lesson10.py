"""Checks of lesson 10: the schedule, shifted and masked targets, the packed mask, uneven pieces, a hidden leak."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.course.checks.compare import describe
from llamamm.course.checks.core import Exercise, Property
from llamamm.course.checks.faults import fault_exercise
from llamamm.text.masks import packed_mask
from llamamm.train.config import TrainConfig
from llamamm.train.losses import IGNORE, cross_entropy_sum
from llamamm.train.optim import learning_rate

# ---- 10.1: warm-up and cosine ----


def _package_rate(step: int, *, steps: int, warmup: int, peak: float, floor: float) -> float:
    settings = {"output": "unused", "steps": steps, "warmup_steps": warmup, "learning_rate": peak}
    return learning_rate(step, TrainConfig.make({**settings, "min_learning_rate": floor}))


def _rate(step: int, steps: int, warmup: int, peak: float, floor: float, faults: Collection[str]) -> float:
    if step < warmup and "no warm-up" not in faults:
        return peak * (step + ("from 0" not in faults)) / warmup
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
    },
    {
        "the warm-up": (lambda _: [(range(4), 9, 4, 0.5, 0.1)], ("from 0", "no warm-up")),
        "when it falls": (_fall, ("falls from 0", "late")),
        "how it falls": (_fall, ("whole turn", "quarter", "plain", "double", "line")),
        "the floor": (lambda _: [(range(7), 7, 0, 0.5, 0.3)], ("to 0", "cut off", "absolute", "on top")),
    },
    lambda _: [(range(n), n, *rest) for n, *rest in ((9, 4, 1.0, 0.1), (12, 0, 3e-3, 0.05), (30, 5, 0.02, 0.0),
                                                    (7, 2, 0.5, 1.0))],
    run=_run_rates, show=_in_words, tolerance=1e-7,
    id="10.1", name="rate", minutes=8, level="warm-up", reference=_package_rate,
)  # fmt: skip


# ---- 10.2: targets ----


def _targets(ids: Tensor, learn: Tensor, faults: Collection[str]) -> Tensor:
    ignore = 0 if {"0", "0 at the end"} & set(faults) else -1 if {"-1", "-1 at the end"} & set(faults) else IGNORE
    end = ignore if {"0 at the end", "-1 at the end"} & set(faults) else IGNORE
    if "inverted" in faults:
        learn = ~learn
    if "everything" in faults:
        learn = torch.ones_like(learn)
    shift = 0 if "unshifted" in faults else 1 if "backwards" in faults else -1
    targets, marks = ids.roll(shift), learn if "own mark" in faults else learn.roll(shift)
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
            (torch.tensor([3, 0, 4, 2, 1]), torch.tensor([True, False, True, False, True])), random]  # fmt: skip


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
    },
    {
        "what a place predicts": (_five_tokens, ("unshifted", "backwards")),
        "which are learned": (_five_tokens, ("own mark", "everything", "inverted")),
        "the end": (lambda g: [*_five_tokens(g), (torch.tensor([5, 6, 7]), torch.tensor([False, True, True]))],
                    ("wraps",)),
        "the mark of the others": (_five_tokens, ("0", "0 at the end", "-1", "-1 at the end")),
    },
    _target_cases,
    repair=_one_more, form="One too short: the last place has a target too, −100",
    id="10.2", name="targets_of", minutes=8, level="core",
)  # fmt: skip


# ---- 10.3: the packed mask ----


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
    id="10.3", name="rows_mask", minutes=10, level="core", reference=lambda segments: packed_mask(segments)[:, 0],
)  # fmt: skip


# ---- 10.4: gradient accumulation over uneven pieces ----

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
        nothing = math.nan if "0 / 0" in faults else 0.0
        shares = [1 / n / over if n else nothing for n in counts]
    if "no division" in faults:
        shares = [1.0] * len(pieces)
    if "places" in faults:
        shares = [1 / sum(len(t) for _, t in pieces)] * len(pieces)
    if "pieces" in faults:
        shares = [1 / len(pieces)] * len(pieces)
    losses = [s * share for s, share in zip(sums, shares, strict=True)]
    loss = sum(losses)
    left = sums if "undivided gradient" in faults else losses
    left = left[-1:] if "last alone" in faults else left[:1] if "first alone" in faults else left
    sum(left).backward()
    if "returns the sum" in faults:
        loss = sum(sums)
    if "returns the last" in faults:
        loss = losses[-1]
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
        "0 / 0": "A piece without targets has the mean 0 / 0 = NaN, which poisons every gradient: take sums, divided "
                 "by the targets of all pieces",
        "last alone": "Only the last piece's gradient is left: backward adds to .grad by itself, don't clear it "
                      "between pieces",
        "first alone": "Only the first piece's gradient is there: call backward for each piece",
        "undivided gradient": "The gradient is that of the sum: divide before backward, not after it",
        "returns the sum": "You return the sum of the losses: return the mean",
        "returns the last": "You return only the last piece's share of the loss: add up all of them",
    },
    {
        "how much a piece counts": (_UNEVEN, ("means", "added means", "no division", "places", "pieces")),
        "the gradient that is left": (_UNEVEN, ("last alone", "first alone", "undivided gradient")),
        "the loss that is returned": (_UNEVEN, ("returns the sum", "returns the last")),
        "a piece without targets": (_EMPTY, ("0 / 0",)),
    },
    _all_pieces,
    run=_run_pieces, show=_pieces_in_words, tolerance=1e-5,
    id="10.4", name="accumulate", minutes=20, level="hard", reference=_accumulate,
)  # fmt: skip

ACCUMULATE = replace(_ACCUMULATE, properties=(
    *_ACCUMULATE.properties,
    Property("one piece after another", _UNEVEN, run=_count_backwards, accept=_once_for_each_piece,
             show=_pieces_in_words),
))  # fmt: skip


# ---- 10.5: break it ----

SEEN, HIDDEN = 8, 5  # words in a row that the detector looks for, and that must survive


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def _sequences(text: str, n: int) -> set[tuple[str, ...]]:
    words = _words(text)
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


_TEXTS = (
    "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer The slings and arrows of "
    "outrageous fortune, Or to take arms against a sea of troubles, And by opposing end them.",
    "Now my charms are all o'erthrown, And what strength I have's mine own, Which is most faint: now, 'tis true, I "
    "must be here confined by you, Or sent to Naples. Let me not, Since I have my dukedom got And pardon'd the "
    "deceiver, dwell In this bare island by your spell; But release me from my bands With the help of your good hands.",
)


def _hide(text: str) -> str:
    words = _words(text)
    return " hem ".join(" ".join(words[i : i + SEEN - 1]) for i in range(0, len(words), 3))


def _is_text(result: Any, _case: tuple) -> str | None:
    return None if isinstance(result, str) else f"return a text, a str; got {describe(result)}"


def _is_hidden(result: Any, case: tuple) -> str | None:
    found = _sequences(case[0], SEEN) & _sequences(result, SEEN) if isinstance(result, str) else set()
    if not found:
        return None
    return (f"the detector finds {len(found)} sequences of {SEEN} words, such as {' '.join(min(found))!r}; it looks at "
            f"lower-case words only, so spelling, lines and punctuation hide nothing")  # fmt: skip


def _is_short(result: Any, case: tuple) -> str | None:
    if not isinstance(result, str) or len(_words(result)) <= 10 * len(_words(case[0])):
        return None
    return f"your text has {len(_words(result))} words, more than ten times the {len(_words(case[0]))} held-out ones"


def _is_told(result: Any, case: tuple) -> str | None:
    if not isinstance(result, str):
        return None
    kept = _sequences(case[0], HIDDEN)
    share = len(kept & _sequences(result, HIDDEN)) / len(kept)
    if share >= 0.5:
        return None
    return (f"only {share:.0%} of the sequences of {HIDDEN} words are left, and at least half must be: a model learns "
            f"from short pieces, too")  # fmt: skip


def _held_out(_: torch.Generator) -> list[tuple]:
    return [(text,) for text in _TEXTS]


def _text_in_words(case: tuple) -> str:
    return f"{' '.join(case[0].split()[:6])} ..."


LEAK = Exercise(
    id="10.5", name="smuggle", minutes=12, level="break it", reference=_hide,
    properties=tuple(Property(name, _held_out, accept=accept, show=_text_in_words) for name, accept in (
        ("a text", _is_text), ("no 8 words in a row", _is_hidden), ("half of the 5 words in a row", _is_told),
        ("its length", _is_short),
    )),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (SCHEDULE, TARGETS, MASK, ACCUMULATE, LEAK)
