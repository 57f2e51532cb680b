"""Checks for lesson 13: tokens of a picture, neighbours merged, frames stacked, latents that look, a stuck gate."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.course.checks.core import Exercise, Mistake
from llamamm.multimodal.bridge import pixel_shuffle, stack_frames

# ---- 13.1: places ----


def _places(
    rows: int, columns: int, merge: int, latents: int, gated: bool, *,
    frame: int = 2, squared: bool = True, part: str = "right", gate: str = "one",
) -> int:  # fmt: skip
    """The right number; each keyword plants one mistake."""
    merged = rows * columns // (merge**2 if squared else merge)
    tokens = latents or merged
    if part == "unmerged":
        tokens = latents or rows * columns
    if part == "beside":
        tokens = merged + latents
    if part == "merged latents":
        tokens = latents // merge**2 or merged
    if part == "no latents":
        tokens = merged
    if gated and gate == "one":
        return 1
    if gated and gate == "none":
        return 0
    return tokens + frame


PLACES = Exercise(
    id="13.1", name="places", minutes=4, level="warm-up",
    reference=_places,
    cases=lambda _: [(6, 6, 2, 0, False), (12, 6, 3, 0, False), (6, 6, 1, 8, False), (12, 12, 2, 16, False),
                     (6, 6, 1, 0, True), (6, 6, 2, 8, True)],
    mistakes=(
        Mistake(partial(_places, frame=0), "a start and an end stand around what is spliced: two more"),
        Mistake(partial(_places, frame=1), "there is a start and an end: two more, not one"),
        Mistake(partial(_places, squared=False), "a square of merge x merge becomes one: divide by merge squared"),
        Mistake(partial(_places, part="unmerged"), "you didn't merge: merge x merge features become one token"),
        Mistake(partial(_places, part="beside"), "you count features beside the latents: only the latents are spliced"),
        Mistake(partial(_places, part="merged latents"),
                "you divided the latents: merging comes before the Perceiver, whose number is fixed"),
        Mistake(partial(_places, part="no latents"),
                "the Perceiver is missing: behind it are as many tokens as latents"),
        Mistake(partial(_places, gate="none"), "with gated blocks the learned start still stands in the prompt: one"),
        Mistake(partial(_places, gate="all"),
                "with gated blocks nothing is spliced: one token, the start, stands for the picture"),
    ),
)  # fmt: skip


# ---- 13.2: shuffle ----


def _shuffle(features: Tensor, rows: int, columns: int, merge: int, *, order: str = "brcijf") -> Tensor:
    """order: batch, rows and columns of squares, row (i) and column (j) inside, numbers (f), as they lie in the end."""
    B, N, width = features.shape
    x = features.view(B, rows // merge, merge, columns // merge, merge, width)
    x = x.permute(*("bricjf".index(axis) for axis in order))
    return x.reshape(B, N // merge**2, merge**2 * width)


def _runs(features: Tensor, _rows: int, _columns: int, merge: int) -> Tensor:
    B, N, width = features.shape
    return features.reshape(B, N // merge**2, merge**2 * width)


def _grid_swapped(features: Tensor, rows: int, columns: int, merge: int) -> Tensor:
    return _shuffle(features, columns, rows, merge)


def _pooled(features: Tensor, rows: int, columns: int, merge: int, *, how: str) -> Tensor:
    squares = _shuffle(features, rows, columns, merge).unflatten(2, (merge**2, -1))
    return {"mean": squares.mean(dim=2), "sum": squares.sum(dim=2), "first": squares[:, :, 0]}[how]


def _spread(features: Tensor, rows: int, columns: int, merge: int) -> Tensor:
    """What is far apart becomes one, not neighbours."""
    B, N, width = features.shape
    x = features.view(B, merge, rows // merge, merge, columns // merge, width).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(B, N // merge**2, merge**2 * width)


SHUFFLE = Exercise(
    id="13.2", name="shuffle", minutes=10, level="core",
    reference=lambda features, rows, columns, merge: pixel_shuffle(features, (rows, columns), merge=merge),
    cases=lambda g: [(torch.randn(B, rows * columns, width, generator=g), rows, columns, merge)
                     for B, rows, columns, merge, width in ((1, 4, 6, 2, 3), (2, 6, 3, 3, 2), (1, 3, 5, 1, 4),
                                                            (2, 12, 8, 4, 5))],
    mistakes=(
        Mistake(_runs, "you only gave the numbers another shape, so runs of a row are merged: neighbours in a column "
                       "lie a whole row apart, split both sides and change places"),
        Mistake(partial(_shuffle, order="bcrijf"), "your squares go down the columns: they stand row by row"),
        Mistake(partial(_shuffle, order="brcjif"),
                "inside each square you go down the columns: there, too, the row comes first"),
        Mistake(partial(_shuffle, order="bcrjif"), "the grid is tipped over, squares and what is inside: row by row"),
        Mistake(partial(_shuffle, order="brcfij"),
                "inside a square the features came apart: each keeps its own numbers side by side"),
        Mistake(partial(_shuffle, order="brcfji"),
                "inside a square the features came apart, and go down the columns: each keeps its numbers together"),
        Mistake(_grid_swapped, "you swapped rows and columns: the grid has `rows` rows of `columns` features"),
        Mistake(_spread, "you merge features that are far apart: split a side into (rows / merge, merge), so ordered"),
        Mistake(partial(_pooled, how="mean"), "you took the mean of a square: side by side, nothing is lost"),
        Mistake(partial(_pooled, how="sum"), "you added a square's features up: side by side, nothing is lost"),
        Mistake(partial(_pooled, how="first"), "you kept one feature of each square: put all of them side by side"),
    ),
    tolerance=1e-6,
)  # fmt: skip


# ---- 13.3: stack ----


def _stack(
    features: Tensor, mask: Tensor, merge: int, *, zero: bool = True, rest: str = "behind", real: str = "first",
    pick: str = "runs",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    B, N, width = features.shape
    missing = -N % merge
    features = features * mask[..., None] if zero else features
    if rest == "drop":
        features, mask = features[:, : N - N % merge], mask[:, : N - N % merge]
    else:
        sides = (missing, 0) if rest == "before" else (0, missing)
        features, mask = F.pad(features, (0, 0, *sides)), F.pad(mask, sides)
        if rest == "repeat" and missing:
            features = torch.cat([features[:, :N], features[:, N - 1 : N].expand(-1, missing, -1)], dim=1)
    groups = mask.view(B, -1, merge)
    of_stack = {"first": groups[:, :, 0], "all": groups.all(dim=2),
                "every": torch.ones_like(groups[:, :, 0]), "head": mask[:, : groups.shape[1]]}[real]  # fmt: skip
    M = groups.shape[1]
    if pick == "spread":
        return features.view(B, merge, M, width).transpose(1, 2).reshape(B, M, -1), of_stack
    if pick == "apart":
        return features.view(B, M, merge, width).transpose(2, 3).reshape(B, M, -1), of_stack
    if pick == "mean":
        return features.view(B, M, merge, width).mean(dim=2), of_stack
    return features.reshape(B, M, merge * width), of_stack


def _sounds(g: torch.Generator) -> list[tuple]:
    cases = []
    for lengths, n, merge in (((5, 3), 5, 2), ((7, 4, 1), 7, 3), ((4, 4), 4, 4), ((2,), 6, 1)):
        mask = torch.arange(n) < torch.tensor(lengths)[:, None]
        cases.append((torch.randn(len(lengths), n, 3, generator=g), mask, merge))
    return cases


def _wrong_stack(message: str, **how: Any) -> Mistake:
    return Mistake(partial(_stack, **how), message)


STACK = Exercise(
    id="13.3", name="stack", minutes=10, level="core",
    reference=lambda features, mask, merge: stack_frames(features, mask, merge=merge),
    cases=_sounds,
    mistakes=(
        _wrong_stack("what isn't real is still in the stacks: behind a short sound may be anything, make it 0 by the "
                     "mask first", zero=False),
        _wrong_stack("you drop the last frames where they don't fill a stack: fill it up with zeros", rest="drop"),
        _wrong_stack("you fill up at the beginning: the last stack is the one that is filled", rest="before"),
        _wrong_stack("you fill the last stack with its last frame: zeros are asked for", rest="repeat"),
        _wrong_stack("your mask calls a stack real only if all its frames are, or its last: its first one decides, "
                     "else the end of a sound is lost", real="all"),
        _wrong_stack("your mask calls every stack real: one whose first frame isn't is filling", real="every"),
        _wrong_stack("your mask is the first M frames' own: take every merge-th one, mask[:, ::merge]", real="head"),
        _wrong_stack("you stack frames that are far apart: frames in a row become one", pick="spread"),
        _wrong_stack("inside a stack the frames came apart: each keeps its numbers side by side", pick="apart"),
        _wrong_stack("you took the mean of the frames: side by side, nothing is lost", pick="mean"),
    ),
)  # fmt: skip


# ---- 13.4: fetch ----


def _fetch(
    latents: Tensor, features: Tensor, mask: Tensor, q: Tensor, k: Tensor, v: Tensor, *,
    seen: str = "both", scale: str = "root", masking: str = "right", residual: str = "latents", dim: int = -1,
    values: str = "v",
) -> Tensor:  # fmt: skip
    L, C = latents.shape[1:]
    context = {"both": torch.cat([features, latents], dim=1), "features": features,
               "first": torch.cat([latents, features], dim=1)}[seen]  # fmt: skip
    allowed = mask if seen == "features" else F.pad(mask, (0, L), value=True)
    if masking == "inverted":
        allowed = F.pad(~mask, (0, L), value=True)
    if masking == "none":
        allowed = torch.ones_like(allowed)
    scores = (latents @ q) @ (context @ k).mT
    scores = scores / {"root": math.sqrt(C), "none": 1.0, "width": C}[scale]
    if masking == "zero":
        shares = (scores * allowed[:, None]).softmax(dim=dim)
    elif masking == "after":
        shares = scores.softmax(dim=dim) * allowed[:, None]
    else:
        shares = scores.masked_fill(~allowed[:, None], float("-inf")).softmax(dim=dim)
    fetched = shares @ (context @ (k if values == "k" else v) if values != "raw" else context)
    return fetched + {"latents": latents, "none": torch.zeros_like(latents), "queries": latents @ q}[residual]


def _scenes(g: torch.Generator) -> list[tuple]:
    cases = []
    for B, L, N, C in ((1, 2, 3, 4), (2, 3, 5, 8), (3, 4, 1, 4)):
        lengths = torch.tensor([[N], [max(1, N - 2)], [1]])[:B]
        matrices = [torch.randn(C, C, generator=g) for _ in range(3)]
        cases.append((torch.randn(B, L, C, generator=g), torch.randn(B, N, C, generator=g),
                      torch.arange(N) < lengths, *matrices))  # fmt: skip
    return cases


def _wrong_fetch(message: str, **how: Any) -> Mistake:
    return Mistake(partial(_fetch, **how), message)


FETCH = Exercise(
    id="13.4", name="fetch", minutes=15, level="hard",
    reference=_fetch,
    cases=_scenes,
    mistakes=(
        _wrong_fetch("your latents see the features alone, not each other: keys and values come from the latents, too, "
                     "and the mask grows by L columns of True", seen="features"),
        _wrong_fetch("your mask is on the wrong columns: it begins with the features, so put the features first and "
                     "the latents behind", seen="first"),
        _wrong_fetch("your mask is the wrong way round: True are the real features", masking="inverted"),
        _wrong_fetch("the mask isn't used: latents look at filling, too", masking="none"),
        _wrong_fetch("you multiply scores by the mask: a score of 0 still gets a share, make it -inf before the "
                     "softmax",
                     masking="zero"),
        _wrong_fetch("you mask after the softmax, so shares no longer sum to 1: make scores -inf before it",
                     masking="after"),
        _wrong_fetch("scores aren't divided: by the root of C", scale="none"),
        _wrong_fetch("you divide scores by C: by its root", scale="width"),
        _wrong_fetch("your shares sum to 1 over the latents: the softmax goes over what is seen, the last dimension",
                     dim=1),
        _wrong_fetch("you return only what was fetched: it is added to the latents", residual="none"),
        _wrong_fetch("you add what was fetched to the queries: it is added to the latents themselves",
                     residual="queries"),
        _wrong_fetch("you took keys for values: values are seen @ v", values="k"),
        _wrong_fetch("the matrix v isn't used: values are seen @ v", values="raw"),
    ),
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


def _judge_gate(result: tuple[Any, Tensor | None], case: tuple) -> str | None:
    opened, slopes = result
    a = case[0]
    if not isinstance(opened, Tensor):
        return f"return a tensor of the shape of a, got {type(opened).__name__}"
    if opened.shape != a.shape:
        return f"the shape should stay {tuple(a.shape)}, got {tuple(opened.shape)}"
    if opened.isnan().any():
        return "some gates are NaN: it must work for large and negative a, too"
    if bool(opened[a == 0].any()):
        return f"at 0 your gate is {opened[a == 0][0].item():.3g}: it should begin closed, at 0"
    if opened.abs().max() > 1:
        worst = opened.abs().argmax()
        return f"at {a[worst].item():g} your gate is {opened[worst].item():.3g}: it should stay between -1 and 1"
    if opened.max() <= 0.5:
        return f"your gate never gets above {opened.max().item():.3g}: for a large a it should be above 0.5"
    if slopes is None:
        return "no gradient reaches a at all: use functions that PyTorch can differentiate"
    if slopes.isnan().any():
        return "the slope is NaN somewhere (at 0, as of a root?): at 0 it should be exactly 0"
    if bool(slopes[a == 0].any()):
        return (f"at 0 the slope of your gate is {slopes[a == 0][0].item():.3g}: training would open it; it should be "
                f"exactly 0")
    if not bool(slopes[a == 1].any()):
        return "at a = 1 the slope is 0, too: there training should be able to move it"
    return None


GATE = Exercise(
    id="13.5", name="gate", minutes=8, level="break it",
    reference=lambda a: a.tanh() ** 3,
    cases=lambda _: [(torch.tensor(_POINTS),), (torch.tensor([[0.0], [1.0], [30.0]]),)],
    run=_with_slopes,
    accept=_judge_gate,
    mistakes=(
        Mistake(torch.tanh, "that is tanh itself: its slope at 0 is 1, so training opens it"),
        Mistake(torch.sigmoid, "a sigmoid is 0.5 at 0: half open from the start"),
        Mistake(lambda a: 2 * torch.sigmoid(a) - 1,
                "2 sigmoid(a) - 1 is tanh(a / 2): its slope at 0 is 0.5, so training opens it"),
        Mistake(lambda a: a * 0, "that gate is closed everywhere: for a large a it should be above 0.5"),
        Mistake(lambda a: a**2, "a squared has slope 0 at 0, but grows without end: keep it between -1 and 1"),
        Mistake(lambda a: a**3, "a cubed has slope 0 at 0, but grows without end: keep it between -1 and 1"),
        Mistake(torch.sin, "sin has slope 1 at 0, as tanh has: training opens it"),
    ),
)  # fmt: skip


EXERCISES: tuple[Exercise, ...] = (PLACES, SHUFFLE, STACK, FETCH, GATE)
