"""Checks of lesson 13: tokens of a picture, neighbours merged, frames stacked, latents that look, a stuck gate."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.course.checks.core import Exercise, Property
from llamamm.course.checks.faults import fault_exercise
from llamamm.course.checks.inputs import inputs_stay
from llamamm.multimodal.bridge import pixel_shuffle, stack_frames

# ---- 13.1: places ----


def _places(rows: int, columns: int, merge: int, latents: int, gated: bool, faults: Collection[str]) -> int:
    square = 1 if "unmerged" in faults else merge if "not squared" in faults else merge**2
    merged = rows * columns // square
    given = latents // square if "merged latents" in faults else latents
    tokens = merged if "no latents" in faults else merged + given if "beside" in faults else given or merged
    frame = 0 if "no frame" in faults else 1 if "half a frame" in faults else 2
    if gated and "spliced" not in faults:
        return 0 if "nothing" in faults else 2 if "start and end" in faults else 1 + latents * ("counted" in faults)
    return tokens + frame


def _projected(_: torch.Generator) -> list[tuple]:
    return [(12, 12, 3, 0, False)]


def _perceived(_: torch.Generator) -> list[tuple]:
    return [(12, 12, 3, 51, False)]


def _gated(_: torch.Generator) -> list[tuple]:
    return [(12, 12, 3, 0, True), (12, 12, 3, 51, True)]


PLACES = fault_exercise(
    _places,
    {
        "no frame": "A start and an end stand around what is spliced: two more",
        "half a frame": "There is a start and an end: two more, not one",
        "not squared": "A square of merge × merge becomes one: divide by merge squared",
        "unmerged": "You didn't merge: merge × merge features become one token",
        "beside": "You count features beside the latents: only the latents are spliced",
        "merged latents": "You divided the latents: merging comes before the Perceiver, whose number is fixed",
        "no latents": "The Perceiver is missing: it gives as many tokens as it has latents",
        "nothing": "With gated blocks the learned start still stands in the prompt: one",
        "start and end": "With gated blocks no end is needed: the start alone stands in the prompt",
        "counted": "With gated blocks the latents aren't in the prompt either: the start alone stands there",
        "spliced": "With gated blocks nothing is spliced: one token, the start, stands for the picture",
    },
    {
        "what is spliced, without a Perceiver": (_projected, ("not squared", "unmerged", "no frame", "half a frame")),
        "what is spliced, with a Perceiver": (_perceived, ("beside", "merged latents", "no latents")),
        "with gated blocks": (_gated, ("nothing", "start and end", "counted", "spliced")),
    },
    lambda _: [(6, 6, 2, 0, False), (12, 6, 3, 0, False), (6, 6, 1, 8, False), (12, 12, 2, 16, False),
               (6, 6, 1, 0, True), (6, 6, 2, 8, True)],
    id="13.1", name="places", minutes=4, level="warm-up",
)  # fmt: skip


# ---- 13.2: shuffle ----


def _shuffle(features: Tensor, rows: int, columns: int, merge: int, faults: Collection[str]) -> Tensor:
    B, N, width = features.shape
    rows, columns = (columns, rows) if "grid" in faults else (rows, columns)
    if "runs" in faults:
        x = features.reshape(B, N // merge**2, merge, merge, width)
    elif "spread" in faults:  # what is far apart becomes one, not neighbours
        x = features.view(B, merge, rows // merge, merge, columns // merge, width).permute(0, 2, 4, 1, 3, 5)
    else:
        x = features.view(B, rows // merge, merge, columns // merge, merge, width).permute(0, 1, 3, 2, 4, 5)
    if "outer" in faults and "runs" not in faults:
        x = x.transpose(1, 2)
    x = x.reshape(B, N // merge**2, merge, merge, width)
    x = x.transpose(2, 3) if "inner" in faults else x
    if pooled := {"mean", "sum", "first"} & {*faults}:
        x = x.flatten(2, 3)
        x = {"mean": x.mean(dim=2), "sum": x.sum(dim=2), "first": x[:, :, 0]}[pooled.pop()]
        return x.repeat(1, 1, merge**2)  # as `_as_wide` makes of it
    return (x.permute(0, 1, 4, 2, 3) if "apart" in faults else x).reshape(B, N // merge**2, merge**2 * width)


def _as_wide(got: Tensor, expected: Tensor) -> Tensor | None:
    """One feature for each square -> as many numbers as all of them have."""
    if got.dim() != 3 or got.shape[:2] != expected.shape[:2] or not got.shape[2] or expected.shape[2] % got.shape[2]:
        return None
    return got.repeat(1, 1, expected.shape[2] // got.shape[2])


def _grid(rows: int, columns: int, merge: int, width: int) -> tuple:
    """Features that are numbered, so that a result says what stands where."""
    return torch.arange(rows * columns * width).float().view(1, -1, width), rows, columns, merge


SHUFFLE = fault_exercise(
    _shuffle,
    {
        "runs": "You only gave the numbers another shape, so runs of a row are merged: neighbours in a column lie a "
                "whole row apart, split both sides and change places",
        "spread": "You merge features that are far apart: split a side into (rows / merge, merge), so ordered",
        "grid": "You swapped rows and columns: the grid has `rows` rows of `columns` features",
        "outer": "Your squares go down the columns: they stand row by row",
        "inner": "Inside each square you go down the columns: there, too, the row comes first",
        "apart": "Inside a square the features came apart: each keeps its own numbers side by side",
        "mean": "You took the mean of a square: side by side, nothing is lost",
        "sum": "You added a square's features up: side by side, nothing is lost",
        "first": "You kept one feature of each square: put all of them side by side",
    },
    {
        "inside a square": (lambda _: [_grid(2, 2, 2, 2)], ("inner", "apart", "mean", "sum", "first")),
        "which features are merged": (lambda _: [_grid(4, 6, 2, 1)], ("runs", "spread", "grid", "outer")),
    },
    lambda g: [(torch.randn(B, rows * columns, width, generator=g), rows, columns, merge)
               for B, rows, columns, merge, width in ((1, 4, 6, 2, 3), (2, 6, 3, 3, 2), (1, 3, 5, 1, 4),
                                                      (2, 12, 8, 4, 5))],
    repair=_as_wide, form="One feature came out for each square",
    id="13.2", name="shuffle", minutes=10, level="core", importance=3,
    reference=lambda features, rows, columns, merge: pixel_shuffle(features, (rows, columns), merge=merge),
)  # fmt: skip


# ---- 13.3: stack ----


def _stack(features: Tensor, mask: Tensor, merge: int, faults: Collection[str]) -> tuple[Tensor, Tensor]:
    B, N, width = features.shape
    missing = -N % merge
    if "times mask" in faults:
        features = features * mask[..., None]
    elif "inverted" in faults:
        features = features.masked_fill(mask[..., None], 0)
    elif "not real" not in faults:
        features = features.where(mask[..., None], 0)
    if "drop" in faults:
        filled, real = features[:, : N - N % merge], mask[:, : N - N % merge]
    else:
        sides = (missing, 0) if "before" in faults else (0, missing)
        filled, real = F.pad(features, (0, 0, *sides)), F.pad(mask, sides)
        if "repeat" in faults and missing:
            filled = torch.cat([features, features[:, -1:].expand(-1, missing, -1)], dim=1)
    groups = real.view(B, -1, merge)
    M = groups.shape[1]
    of_stack = groups.all(dim=2) if "all" in faults else real[:, :M] if "head" in faults else groups[:, :, 0]
    of_stack = torch.ones_like(of_stack) if "every" in faults else of_stack
    x = filled.view(B, merge, M, width).transpose(1, 2) if "spread" in faults else filled.view(B, M, merge, width)
    if "mean" in faults:
        return x.mean(dim=2), of_stack
    return (x.transpose(2, 3) if "apart" in faults else x).reshape(B, M, -1), of_stack


def _frames(lengths: tuple[int, ...], n: int, merge: int, width: int) -> tuple:
    """Frames that are numbered from 1, those after a sound, too."""
    numbers = torch.arange(1, 1 + len(lengths) * n * width).float().view(len(lengths), n, width)
    return numbers, torch.arange(n) < torch.tensor(lengths)[:, None], merge


def _spoiled() -> tuple:
    """Two frames that are real; after them a stack of numbers, and one with NaN."""
    return torch.tensor([[1.0, 2, 7, 8, math.nan, 3]])[..., None], torch.arange(6)[None] < 2, 2


def _sounds(g: torch.Generator) -> list[tuple]:
    cases = [_frames((5, 3), 5, 2, 3), _frames((7, 4, 1), 7, 3, 3), _frames((4, 4), 4, 4, 3), _frames((2,), 6, 1, 3)]
    return [(torch.randn(features.shape, generator=g), mask, merge) for features, mask, merge in cases]


STACK = fault_exercise(
    _stack,
    {
        "not real": "What isn't real is still in the stacks: anything may follow a short sound, make it 0 by the mask "
                    "first",
        "inverted": "You made the real frames 0 and kept the rest: masked_fill fills where its mask is True, so give "
                    "it ~mask",
        "times mask": "You multiply by the mask, and 0 times NaN is NaN: choose instead, with torch.where or "
                      "masked_fill",
        "drop": "You drop the last frames where they don't fill a stack: fill it up with zeros",
        "before": "You fill up at the beginning: the last stack is the one that is filled",
        "repeat": "You fill the last stack with its last frame: zeros are asked for",
        "all": "Your mask calls a stack real only if all its frames are, or its last: its first one decides, else the "
               "end of a sound is lost",
        "every": "Your mask calls every stack real: one whose first frame isn't is filling",
        "head": "Your mask is the first M frames' own: take every merge-th one, mask[:, ::merge]",
        "spread": "You stack frames that are far apart: frames in a row become one",
        "apart": "Inside a stack the frames came apart: each keeps its numbers side by side",
        "mean": "You took the mean of the frames: side by side, nothing is lost",
    },
    {
        "frames in a row": (lambda _: [_frames((4,), 4, 2, 2)], ("spread", "apart", "mean")),
        "after a sound": (lambda _: [_frames((2,), 4, 2, 1), _frames((3,), 6, 2, 1)],
                          ("not real", "inverted")),
        "NaN after a sound": (lambda _: [_spoiled()], ("times mask",)),
        "which stacks are real": (lambda _: [_frames((3,), 8, 2, 1)], ("all", "every", "head")),
        "the last stack": (lambda _: [_frames((5,), 5, 3, 1)], ("drop", "before", "repeat")),
    },
    _sounds,
    extra=(inputs_stay(("features", "mask", "merge"), _sounds),),
    id="13.3", name="stack", minutes=10, level="core", importance=3,
    reference=lambda features, mask, merge: stack_frames(features, mask, merge=merge),
)  # fmt: skip


# ---- 13.4: fetch ----


def _fetch(
    latents: Tensor, features: Tensor, mask: Tensor, q: Tensor, k: Tensor, v: Tensor, faults: Collection[str]
) -> Tensor:
    L, C = latents.shape[1:]
    q, k, v = (q.T, k.T, v.T) if "transposed" in faults else (q, k, v)
    allowed = F.pad(~mask if "inverted" in faults else mask, (0, L), value=True)
    features = features * allowed[:, :-L, None] if "zeroed" in faults else features
    seen = torch.cat([latents, features] if "latents first" in faults else [features, latents], dim=1)
    if "features alone" in faults:
        seen, allowed = features, allowed[:, :-L]
    scores = (latents @ q) @ (seen @ k).mT
    scores = scores / (C if "by C" in faults else 1 if "not divided" in faults else math.sqrt(C))
    real, dim = allowed[:, None], 1 if "over latents" in faults else -1
    if "times mask" in faults:
        shares = (scores * real).softmax(dim=dim)
    elif {"no mask", "mask after", "zeroed"} & {*faults}:
        shares = scores.softmax(dim=dim) * (real if "mask after" in faults else 1)
    else:
        shares = scores.masked_fill(~real, -1e30).softmax(dim=dim)
    fetched = shares @ (seen if "no values" in faults else seen @ (k if "keys" in faults else v))
    return fetched if "not added" in faults else fetched + (latents @ q if "to queries" in faults else latents)


def _scene(g: torch.Generator, *shapes: tuple[int, int, int, int]) -> list[tuple]:
    cases = []
    for B, L, N, C in shapes:
        lengths = torch.tensor([[max(1, N - 1)], [max(1, N - 2)], [1]])[:B]
        matrices = [torch.randn(C, C, generator=g) for _ in range(3)]
        cases.append((torch.randn(B, L, C, generator=g), torch.randn(B, N, C, generator=g),
                      torch.arange(N) < lengths, *matrices))  # fmt: skip
    return cases


def _small_scene(g: torch.Generator) -> list[tuple]:
    (case,) = _scene(g, (1, 2, 4, 3))
    return [tuple((2 * t).round() / 2 if t.is_floating_point() else t for t in case)]


def _all_real(g: torch.Generator) -> list[tuple]:
    """Here it does not matter how a score was masked."""
    latents, features, mask, *matrices = _small_scene(g)[0]
    return [(latents, features, torch.ones_like(mask), *matrices)]


SEEN = ("features alone", "latents first", "inverted", "no mask", "times mask", "mask after", "zeroed")
FETCH = fault_exercise(
    _fetch,
    {
        "features alone": "Your latents see the features alone, not each other: keys and values come from the latents, "
                          "too, and the mask grows by L columns of True",
        "latents first": "Your mask is on the wrong columns: it begins with the features, so put the features first, "
                         "then the latents",
        "inverted": "Your mask is the wrong way round: True are the real features",
        "no mask": "The mask isn't used: latents look at filling, too",
        "times mask": "You multiply scores by the mask: a score of 0 still gets a share, make it −inf before the "
                      "softmax",
        "mask after": "You mask after the softmax, so shares no longer sum to 1: make scores −inf before it",
        "zeroed": "You make filling 0 and let latents look at it: a score of 0 still gets a share, make it −inf before "
                  "the softmax",
        "not divided": "Scores aren't divided: by the root of C",
        "by C": "You divide scores by C: by its root",
        "over latents": "Your shares sum to 1 over the latents: the softmax goes over what is seen, the last dimension",
        "not added": "You return only what was fetched: it is added to the latents",
        "to queries": "You add what was fetched to the queries: it is added to the latents themselves",
        "keys": "You took keys for values: values are seen @ v",
        "no values": "The matrix v isn't used: values are seen @ v",
        "transposed": "Your matrices are turned round, as F.linear does it: use them as they are, x @ q",
    },
    {
        "what is seen, where the last of 4 features is filling": (_small_scene, SEEN),
        "scores and shares, where all features are real": (_all_real, ("not divided", "by C", "over latents")),
        "what comes out": (_small_scene, ("not added", "to queries", "keys", "no values", "transposed")),
    },
    lambda g: _scene(g, (1, 2, 3, 4), (2, 3, 5, 8), (3, 4, 1, 4)),
    run=lambda answer, case: answer(*case),  # six matrices would hide the sentence
    extra=(inputs_stay(("latents", "features", "mask", "q", "k", "v"), lambda g: _scene(g, (1, 2, 3, 4))),),
    id="13.4", name="fetch", minutes=15, level="hard", forbids=("scaled_dot_product_attention",),
)  # fmt: skip


# ---- 13.5: gate ----

_POINTS = (0.0, 1.0, -1.0, 0.01, -0.01, 0.3, 2.0, 5.0, 20.0, 500.0, -20.0, -500.0)


def _with_slopes(gate: Callable[[Tensor], Tensor], case: tuple) -> tuple[Any, Tensor | None]:
    """What a gate gives and its slope at each point, None where there is no gradient at all."""
    a = case[0].requires_grad_()
    opened = gate(a)
    if not isinstance(opened, Tensor) or not opened.requires_grad:
        return opened, None
    (slopes,) = torch.autograd.grad(opened.sum(), a, allow_unused=True)
    return opened.detach(), slopes


def _is_gate(opened: Any, a: Tensor) -> bool:
    return isinstance(opened, Tensor) and opened.shape == a.shape and not bool(opened.isnan().any())


def _gate_form(result: tuple[Any, Tensor | None], case: tuple) -> str | None:
    opened, a = result[0], case[0]
    if not isinstance(opened, Tensor):
        return f"return a tensor of the shape of a, got {type(opened).__name__}"
    if opened.shape != a.shape:
        return f"the shape should stay {tuple(a.shape)}, got {tuple(opened.shape)}"
    if opened.isnan().any():
        return f"at {float(a[opened.isnan()][0]):g} your gate is NaN: it must work for large and negative a, too"
    return None


def _closed(result: tuple[Any, Tensor | None], case: tuple) -> str | None:
    opened, a = result[0], case[0]
    if not _is_gate(opened, a) or bool((opened[a == 0].abs() < 1e-6).all()):
        return None
    why = "; a sigmoid is half open from the start" if torch.allclose(opened, a.sigmoid()) else ""
    return f"at 0 your gate is {float(opened[a == 0][0]):.3g}: it should begin closed, at 0{why}"


def _bounded(result: tuple[Any, Tensor | None], case: tuple) -> str | None:
    opened, a = result[0], case[0]
    if not _is_gate(opened, a) or not bool((opened.abs() > 1 + 1e-6).any()):
        return None
    first = int(torch.where(opened.flatten().abs() > 1 + 1e-6, a.flatten().abs(), math.inf).argmin())
    at, value = float(a.flatten()[first]), float(opened.flatten()[first])
    why = "; a power grows without end" if _power(opened, a) else ""
    return f"at {at:g} your gate is {value:.3g}: it should stay between −1 and 1{why}"


def _power(opened: Tensor, a: Tensor) -> bool:
    """Whether the gate is, but for a factor, a power of a."""
    some = (a > 0) & (a <= 20)
    ratio, places = opened[some].abs().log(), a[some].log()
    slope = (ratio - ratio.mean()) @ (places - places.mean()) / (places - places.mean()).square().sum()
    return bool(slope > 0.5) and float((ratio - ratio.mean() - slope * (places - places.mean())).abs().max()) < 1e-3


def _opens(result: tuple[Any, Tensor | None], case: tuple) -> str | None:
    opened, a = result[0], case[0]
    if not _is_gate(opened, a) or bool((opened > 0.5).any()):
        return None
    what = "is closed everywhere" if not opened.any() else f"never gets above {max(0.0, float(opened.max())):.3g}"
    return f"your gate {what}: for a large a it should be above 0.5"


def _stuck(result: tuple[Any, Tensor | None], case: tuple) -> str | None:
    (opened, slopes), a = result, case[0]
    if not _is_gate(opened, a) or slopes is None:
        return None
    if slopes[a == 0].isnan().any():
        return "at 0 the slope of your gate is NaN, as where you take a root or divide by 0: it should be exactly 0"
    slope = float(slopes[a == 0][0])
    known = {"tanh itself": a.tanh(), "tanh(a / 2), as 2 sigmoid(a) − 1 is": (a / 2).tanh(), "sin": a.sin()}
    why = next((f"that is {name}; " for name, values in known.items() if torch.allclose(opened, values, atol=1e-3)), "")
    return f"at 0 the slope of your gate is {slope:.3g}: {why}training would open it; it should be exactly 0" if slope \
        else None  # fmt: skip


def _movable(result: tuple[Any, Tensor | None], case: tuple) -> str | None:
    (opened, slopes), a = result, case[0]
    if not _is_gate(opened, a):
        return None
    if slopes is None:
        return "no gradient reaches a at all: use functions that PyTorch can differentiate"
    if slopes[a == 1].isnan().any():
        return "at a = 1 the slope is NaN"
    return None if slopes[a == 1].any() else "at a = 1 the slope is 0, too: there training should be able to move it"


def _gate_cases(_: torch.Generator) -> list[tuple]:
    return [(torch.tensor(_POINTS),), (torch.tensor([[0.0], [1.0], [2.0], [30.0]]),)]


GATE = Exercise(
    id="13.5", name="gate", minutes=8, level="break it", reference=lambda a: a.tanh() ** 3,
    properties=tuple(Property(name, _gate_cases, run=_with_slopes, accept=accept) for name, accept in (
        ("form", _gate_form), ("closed at 0", _closed), ("between −1 and 1", _bounded), ("open for a large a", _opens),
        ("the slope at 0", _stuck), ("the slope at 1", _movable))),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (PLACES, SHUFFLE, STACK, FETCH, GATE)
