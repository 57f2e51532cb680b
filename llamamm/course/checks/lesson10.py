"""Checks for lesson 10: the schedule, shifted and masked targets, the packed mask, uneven pieces, a hidden leak."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.course.checks.core import Exercise, Mistake
from llamamm.text.masks import packed_mask
from llamamm.train.config import TrainConfig
from llamamm.train.losses import IGNORE, cross_entropy_sum
from llamamm.train.optim import learning_rate

# ---- 10.1: warm-up and cosine ----


def _package_rate(step: int, *, steps: int, warmup: int, peak: float, floor: float) -> float:
    settings = {"output": "unused", "steps": steps, "warmup_steps": warmup, "learning_rate": peak}
    return learning_rate(step, TrainConfig.make({**settings, "min_learning_rate": floor}))


def _rate(
    step: int, *, steps: int, warmup: int, peak: float, floor: float, up: str = "step + 1", begin: str = "warmup",
    end: int = 1, wave: str = "half", low: str = "share",
) -> float:  # fmt: skip
    """The right rate; each argument plants one mistake."""
    if up != "none" and step < warmup:
        return peak * (step + 1 if up == "step + 1" else step) / warmup
    first = warmup if begin == "warmup" else 0
    done = (step - first) / (steps - end - first)
    left = {
        "half": (1 + math.cos(math.pi * done)) / 2, "whole": (1 + math.cos(2 * math.pi * done)) / 2,
        "quarter": math.cos(math.pi * done / 2), "plain": math.cos(math.pi * done),
        "double": 1 + math.cos(math.pi * done), "linear": 1 - done,
    }[wave]  # fmt: skip
    if low == "none":
        return peak * left
    if low == "clip":
        return peak * max(floor, left)
    if low == "absolute":
        return floor + (peak - floor) * left
    if low == "on top":
        return peak * (floor + left)
    return peak * (floor + (1 - floor) * left)


def _run_rates(answer: Callable, case: tuple) -> list[Any]:
    settings = dict(zip(("steps", "warmup", "peak", "floor"), case, strict=True))
    return [answer(step, **settings) for step in range(settings["steps"])]


SCHEDULE = Exercise(
    id="10.1", name="rate", minutes=8, level="warm-up",
    reference=_package_rate,
    cases=lambda _: [(9, 4, 1.0, 0.1), (12, 0, 3e-3, 0.05), (30, 5, 0.02, 0.0), (7, 2, 0.5, 1.0)],
    run=_run_rates,
    mistakes=(
        Mistake(partial(_rate, up="step"),
                "your first step has the rate 0 and changes nothing: take (step + 1) / warmup"),
        Mistake(partial(_rate, up="none"), "there is no warm-up: steps below `warmup` rise in a line"),
        Mistake(partial(_rate, begin="zero"),
                "your cosine begins at step 0: it starts to fall where the warm-up ends"),
        Mistake(partial(_rate, end=0),
                "the floor is never reached: the last step is steps - 1, since they are counted from 0"),
        Mistake(partial(_rate, wave="whole"),
                "your cosine comes up again: half a turn, from 0 to pi, is the whole fall"),
        Mistake(partial(_rate, wave="quarter"),
                "a quarter turn falls slowly and then fast: half a turn, (1 + cos(pi d)) / 2, is gentle at both ends"),
        Mistake(partial(_rate, wave="plain"),
                "a cosine goes from 1 to -1: (1 + cos(pi d)) / 2 goes from 1 to 0"),
        Mistake(partial(_rate, wave="double"),
                "1 + cos goes from 2 to 0: halve it"),
        Mistake(partial(_rate, wave="linear"), "that is a line: the fall is half a turn of a cosine"),
        Mistake(partial(_rate, low="none"), "it falls to 0: it should end at floor x peak"),
        Mistake(partial(_rate, low="clip"),
                "you cut the curve off at the floor: squeeze it, floor + (1 - floor) x what is left"),
        Mistake(partial(_rate, low="absolute"),
                "you took the floor for a rate: it is a share of the peak"),
        Mistake(partial(_rate, low="on top"),
                "you added the floor on top, so the rate begins above the peak: floor + (1 - floor) x what is left"),
    ),
    tolerance=1e-7,
)  # fmt: skip


# ---- 10.2: targets ----


def _targets(
    ids: Tensor, learn: Tensor, *, shift: int = 1, marks: str = "target", last: str = "ignore", ignore: int = IGNORE
) -> Tensor:
    if marks == "inverted":
        learn = ~learn
    masked = ids.where(learn, torch.tensor(ignore))
    if marks == "all":
        masked = ids
    if marks == "place":  # the mark of the place that predicts, not of the token that is predicted
        return torch.cat([ids[1:], ids.new_tensor([ignore])]).where(learn, torch.tensor(ignore))
    rolled = masked.roll(-shift)
    if shift > 0 and last == "ignore":
        rolled[-1] = IGNORE
    if shift < 0:
        rolled[0] = IGNORE
    return rolled[:-1] if last == "cut" else rolled


def _target_cases(g: torch.Generator) -> list[tuple]:
    cases = [(torch.tensor([5, 6, 7, 8]), torch.tensor([False, False, True, True])),
             (torch.tensor([9]), torch.tensor([True])),
             (torch.tensor([3, 0, 4, 2, 1]), torch.tensor([True, False, True, False, True]))]  # fmt: skip
    cases.append((torch.randint(50, (12,), generator=g), torch.rand(12, generator=g) < 0.5))
    return cases


TARGETS = Exercise(
    id="10.2", name="targets_of", minutes=8, level="core",
    reference=_targets,
    cases=_target_cases,
    mistakes=(
        Mistake(partial(_targets, shift=0),
                "you didn't shift: place t sees token t and predicts token t + 1; otherwise it learns to copy"),
        Mistake(partial(_targets, shift=-1),
                "you shifted the wrong way: place t would predict the token before it"),
        Mistake(partial(_targets, marks="place"),
                "you took the mark of the place: what counts is the mark of the token that is predicted, so mask "
                "before you shift"),
        Mistake(partial(_targets, marks="all"), "you learn everything: where learn is False the target is -100"),
        Mistake(partial(_targets, marks="inverted"), "your mask is the wrong way round: learn is True for answers"),
        Mistake(partial(_targets, last="wrap"),
                "the last place predicts the first token: nothing comes after the end, so its target is -100"),
        Mistake(partial(_targets, last="cut"), "one too short: the last place has a target too, -100"),
        Mistake(partial(_targets, ignore=0),
                "you marked places with 0, which is a token: cross-entropy ignores -100"),
        Mistake(partial(_targets, ignore=-1),
                "you marked places with -1: PyTorch's cross-entropy ignores -100"),
    ),
)  # fmt: skip


# ---- 10.3: the packed mask ----


def _mask(segments: Tensor, *, causal: str = "down", same: str = "segment", inverted: bool = False,
          heads: bool = False) -> Tensor:  # fmt: skip
    T = segments.shape[1]
    rows, columns = torch.arange(T)[:, None], torch.arange(T)[None, :]
    order = {"down": columns <= rows, "strict": columns < rows, "up": columns >= rows,
             "none": torch.ones(T, T, dtype=torch.bool)}[causal]  # fmt: skip
    if same == "row 0":
        segments = segments[:1].expand_as(segments)
    together = {
        "segment": segments[:, :, None] == segments[:, None, :],
        "row 0": segments[:, :, None] == segments[:, None, :],
        "earlier": segments[:, None, :] <= segments[:, :, None],
        "all": torch.ones_like(segments)[:, :, None] == torch.ones_like(segments)[:, None, :],
        "no filling": (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] > 0),
    }[same]
    mask = order & together
    mask = ~mask if inverted else mask
    return mask[:, None] if heads else mask


MASK = Exercise(
    id="10.3", name="rows_mask", minutes=10, level="core",
    reference=lambda segments: packed_mask(segments)[:, 0],
    cases=lambda g: [
        (torch.tensor([[1, 1, 2, 2, 2, 0]]),), (torch.tensor([[1, 2, 3], [1, 1, 1], [1, 2, 2]]),),
        (torch.tensor([[1]]),), (1 + torch.rand(2, 9, generator=g).cumsum(dim=1).long(),),
    ],
    mistakes=(
        Mistake(partial(_mask, causal="none"),
                "tokens see the future: within a text, a token sees itself and what came before it"),
        Mistake(partial(_mask, same="all"),
                "texts see each other: this is the plain causal mask; compare the segments too"),
        Mistake(partial(_mask, causal="up"),
                "rows and columns are swapped: row i is the token that looks, column j the one that is seen"),
        Mistake(partial(_mask, causal="strict"),
                "no token sees itself: the first of each text would see nothing, and a softmax over nothing is NaN"),
        Mistake(partial(_mask, same="earlier"),
                "a text still sees the texts before it: ask whether segments are equal, not whether they are smaller"),
        Mistake(partial(_mask, same="row 0"),
                "every row got row 0's mask: rows are packed differently, so the result is (B, T, T)"),
        Mistake(partial(_mask, same="no filling"),
                "the filling sees nothing, and a softmax over nothing is NaN: let it see itself, nobody learns it"),
        Mistake(partial(_mask, inverted=True),
                "your mask says who may NOT look: here True means that a token may attend"),
        Mistake(partial(_mask, heads=True), "leave out the dimension of heads: the result is (B, T, T)"),
    ),
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


def _accumulate_wrongly(weight: Tensor, pieces: Pieces, *, kind: str) -> float:
    sums = [F.cross_entropy(h @ weight.T, t, ignore_index=IGNORE, reduction="sum") for h, t in pieces]
    counts = [int((t != IGNORE).sum()) for _, t in pieces]
    places = sum(len(t) for _, t in pieces)
    kept = [s / n for s, n in zip(sums, counts, strict=True) if n]
    naive = [s / n for s, n in zip(sums, counts, strict=True)]  # 0 / 0 is NaN
    n = sum(counts)
    losses = {
        "means": sum(kept) / len(pieces), "means of those with targets": sum(kept) / len(kept),
        "NaN": sum(naive) / len(pieces), "sum of means": sum(kept), "sum of means with NaN": sum(naive),
        "sum": sum(sums), "places": sum(sums) / places, "pieces": sum(sums) / len(pieces), "mean": sum(sums) / n,
    }
    match kind:
        case "last" | "last, undivided":
            (sums[-1] / (n if kind == "last" else max(counts[-1], 1))).backward()
            return float(losses["mean"].detach())
        case "gradient of the sum":
            losses["sum"].backward()
            return float(losses["mean"].detach())
        case "returns the sum":
            losses["mean"].backward()
            return float(losses["sum"].detach())
        case "returns the last":
            losses["mean"].backward()
            return float(sums[-1].detach() / n)
    losses[kind].backward()
    return float(losses[kind].detach())


def _pieces_cases(g: torch.Generator) -> list[tuple]:
    def piece(n: int, learned: int) -> tuple[Tensor, Tensor]:
        targets = torch.randint(7, (n,), generator=g)
        targets[torch.randperm(n, generator=g)[learned:]] = IGNORE
        return torch.randn(n, 5, generator=g), targets

    sizes = [[(6, 6), (6, 6)], [(8, 1), (8, 7)], [(4, 4)], [(5, 3), (9, 0), (7, 2), (3, 3)]]
    return [(torch.randn(7, 5, generator=g), [piece(*size) for size in row]) for row in sizes]


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
    return {"loss": torch.tensor(loss), "gradient": weight.grad}


def _wrong(kind: str, message: str) -> Mistake:
    return Mistake(partial(_accumulate_wrongly, kind=kind), message)


_MEANS = ("you averaged the pieces' means: a token in a piece with few targets then counts more than one in a piece "
          "with many; divide each piece's sum by the targets of all pieces")

ACCUMULATE = Exercise(
    id="10.4", name="accumulate", minutes=20, level="hard",
    reference=_accumulate,
    cases=_pieces_cases,
    run=_run_pieces,
    mistakes=(
        _wrong("means", _MEANS),
        _wrong("means of those with targets", _MEANS),
        _wrong("NaN", "a piece without targets has the mean 0 / 0 = NaN, which poisons every gradient; and a mean of "
                      "means is the wrong mean: take sums, divided by the targets of all pieces"),
        _wrong("sum of means with NaN", "a piece without targets has the mean 0 / 0 = NaN, which poisons every "
                                        "gradient: take sums, divided by the targets of all pieces"),
        _wrong("sum of means", "you added up the pieces' means: the step grows with the number of pieces"),
        _wrong("sum", "you didn't divide: loss and gradient are sums, and the step grows with the batch"),
        _wrong("places", "you divided by all places: those with -100 are not learned and don't count"),
        _wrong("pieces", "you divided the sums by the number of pieces: divide by the targets of all pieces"),
        _wrong("last", "only the last piece's gradient is left: backward adds to .grad by itself, don't clear it "
                       "between pieces"),
        _wrong("last, undivided", "only the last piece's gradient is left: backward adds to .grad by itself, don't "
                                  "clear it between pieces"),
        _wrong("gradient of the sum", "the loss that you return is the mean, but the gradient is that of the sum: "
                                      "divide before backward"),
        _wrong("returns the sum", "the gradient is right, but you return the sum: return the mean"),
        _wrong("returns the last", "the gradient is right, but you return only the last piece's share of the loss"),
    ),
    tolerance=1e-5,
)  # fmt: skip


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


def _accept_hidden(result: Any, case: tuple) -> str | None:
    (text,) = case
    if not isinstance(result, str):
        return f"return a text, a str; got {type(result).__name__}"
    found = _sequences(text, SEEN) & _sequences(result, SEEN)
    if found:
        return (f"the detector finds {len(found)} sequences of {SEEN} words, such as {' '.join(min(found))!r}; it "
                f"looks at lower-case words only, so spelling, lines and punctuation hide nothing")  # fmt: skip
    if len(_words(result)) > 10 * len(_words(text)):
        return "your text is more than ten times as long as the held-out one"
    kept = _sequences(text, HIDDEN)
    share = len(kept & _sequences(result, HIDDEN)) / len(kept)
    if share < 0.5:
        return (f"the detector finds nothing, but only {share:.0%} of the sequences of {HIDDEN} words are left; at "
                f"least half must be: a model learns from short pieces, too")  # fmt: skip
    return None


LEAK = Exercise(
    id="10.5", name="smuggle", minutes=12, level="break it",
    reference=_hide,
    cases=lambda _: [(text,) for text in _TEXTS],
    accept=_accept_hidden,
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (SCHEDULE, TARGETS, MASK, ACCUMULATE, LEAK)
