"""Checks of lesson 11: tokens counted, patches cut, positions on another grid, SigLIP's loss, two pictures as one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.course.checks.compare import describe, difference
from llamamm.course.checks.core import Exercise, Property
from llamamm.course.checks.faults import fault_exercise
from llamamm.senses.contrastive import siglip_loss
from llamamm.senses.vision import resize_positions

# ---- 11.1: count ----


def _count(height: int, width: int, patch: int, hidden: int, cls: bool, faults: Collection[str]) -> tuple[int, int]:
    rows, columns = height // patch, width // patch
    if "rounded up" in faults:
        rows, columns = -(-height // patch), -(-width // patch)
    patches = rows * columns
    if "area" in faults:
        patches = height * width // patch**2
    if "pixels" in faults:
        patches = height * width
    if "overlap" in faults:
        patches = (height - patch + 1) * (width - patch + 1)
    if "one column" in faults:
        patches = rows
    if "one row" in faults:
        patches = columns
    tokens = patches + (0 if "no CLS" in faults else 1 if "always CLS" in faults else int(cls))
    entering = (1 if "one channel" in faults else 3) * (patch if "a line" in faults else patch**2)
    parameters = entering * hidden + (0 if "no bias" in faults else hidden)
    parameters *= patches if "for each patch" in faults else 1
    return (parameters, tokens) if "order" in faults else (tokens, parameters)


def _sides(height: int, width: int, patch: int, hidden: int, *cls: bool) -> Callable[[torch.Generator], list[tuple]]:
    return lambda _: [(height, width, patch, hidden, one) for one in cls]


_ONE_SIDE = "You count one side of the grid: a picture has rows times columns of patches"
COUNT = fault_exercise(
    _count,
    {
        "no CLS": "One token is missing: the CLS token is there beside the patches",
        "always CLS": "You count a CLS token always: some towers have none, then `cls` is False",
        "rounded up": "You rounded up: what is left over at the side, less than a patch, is not seen",
        "area": "You divided the area by a patch's area: round each side down by itself, rows times columns",
        "pixels": "You count pixels: a token is a whole patch",
        "overlap": "Your patches overlap: they lie side by side, a step is as wide as a patch",
        "one column": _ONE_SIDE, "one row": _ONE_SIDE,
        "one channel": "A pixel has three numbers, red, green and blue: 3 · P · P enter",
        "no bias": "The patch embedding comes with a bias of `hidden` numbers",
        "a line": "A patch is P high and P wide: 3 · P · P numbers enter",
        "for each patch": "All patches share one matrix: don't multiply its parameters by the patches",
        "order": "The two numbers are in the wrong order: tokens first",
    },
    {
        "the patches": (_sides(107, 79, 10, 7, True),
                        ("rounded up", "area", "pixels", "overlap", "one column", "one row")),
        "the CLS token": (_sides(110, 80, 10, 7, True, False), ("no CLS", "always CLS")),
        "the parameters": (_sides(107, 79, 10, 7, False), ("one channel", "no bias", "a line", "for each patch")),
        "the order": (_sides(107, 79, 10, 7, False), ("order",)),
    },
    lambda _: [(224, 224, 14, 384, True), (336, 336, 14, 1024, False), (100, 60, 16, 64, True), (40, 63, 8, 5, False)],
    tolerance=0.0,
    id="11.1", name="count", minutes=4, level="warm-up",
)  # fmt: skip


# ---- 11.2: cut ----


def _cut(pixels: Tensor, patch: int, faults: Collection[str]) -> Tensor:
    B, channels, H, W = pixels.shape
    rows, columns = H // patch, W // patch
    top, left = (H - rows * patch, W - columns * patch) if "bottom right" in faults else (0, 0)
    if "centre" in faults:
        top, left = (H - rows * patch) // 2, (W - columns * patch) // 2
    if "squeezed" in faults:
        pixels, top, left = F.interpolate(pixels, size=(rows * patch, columns * patch), mode="bilinear"), 0, 0
    pixels = pixels[:, :, top : top + rows * patch, left : left + columns * patch]
    if "viewed" in faults:
        return pixels.reshape(B, rows * columns, channels * patch**2)
    parts = pixels.reshape(B, channels, rows, patch, columns, patch)
    if "channels apart" in faults:
        return parts.transpose(3, 4).reshape(B, rows * columns, channels * patch**2)
    parts = parts.permute(0, 2, 4, 1, 3, 5)  # (B, r, c, 3, P, P)
    if "down" in faults:
        parts = parts.transpose(1, 2)
    inside = (0, 1, 2)
    if "channel last" in faults:
        inside = (1, 2, 0)
    if "tipped" in faults:
        inside = (0, 2, 1)
    if "tipped, channel last" in faults:
        inside = (2, 1, 0)
    return parts.flatten(1, 2).permute(0, 1, *(2 + i for i in inside)).flatten(2)


def _counted(H: int, W: int, patch: int) -> Callable[[torch.Generator], list[tuple]]:
    """One picture of the numbers 0, 1, 2 and so on, so that a number says where it comes from."""
    return lambda _: [(torch.arange(3.0 * H * W).view(1, 3, H, W), patch)]


def _pictures(g: torch.Generator) -> list[tuple]:
    sizes = [(1, 4, 4, 2), (2, 6, 9, 3), (1, 10, 11, 4), (3, 4, 4, 4)]
    return [(torch.randn(B, 3, H, W, generator=g), P) for B, H, W, P in sizes]


def _picture_in_words(case: tuple) -> str:
    pixels, patch = case
    numbers = ", the numbers 0, 1, 2, ...," if torch.equal(pixels.flatten(), torch.arange(1.0 * pixels.numel())) else ""
    return f"pixels {tuple(pixels.shape)}{numbers} and patch {patch}"


def _in_rows(got: Tensor, expected: Tensor) -> Tensor | None:
    """(B, 3PP, N) or (B, N, 3, P, P) -> (B, N, 3PP)."""
    if got.shape == expected.mT.shape:
        return got.mT
    return got.flatten(2) if got.dim() > 3 and got.flatten(2).shape == expected.shape else None


CUT = fault_exercise(
    _cut,
    {
        "viewed": "You only gave the numbers another shape, so a patch holds runs of rows: the rows of a square lie "
                  "apart in memory, split both sides and bring the two counts of patches to the front",
        "channels apart": "The channels came apart: a patch holds its red, its green and its blue square, one after "
                          "another; bring the counts of patches before the channels",
        "down": "Your patches go down the columns: they are read row by row from the top left",
        "channel last": "Inside a patch the channel comes last: it should come first, as in the weight (C, 3, P, P)",
        "tipped": "Each patch is tipped over: inside a patch, too, the row comes before the column",
        "tipped, channel last": "Inside a patch the order is column, row, channel: it should be channel, row, column",
        "bottom right": "You drop what is left over at the top and left: patches begin at the top left corner",
        "centre": "You drop half of what is left over at each side: patches begin at the top left corner",
        "squeezed": "You squeezed the picture until it fits: drop what is left over, less than a patch",
    },
    {
        "inside a patch": (_counted(4, 4, 2), ("viewed", "channels apart", "channel last", "tipped",
                                               "tipped, channel last")),
        "one patch after another": (_counted(4, 6, 2), ("down",)),
        "what is left over": (_counted(8, 11, 3), ("bottom right", "centre", "squeezed")),
    },
    _pictures,
    tolerance=1e-3, show=_picture_in_words, repair=_in_rows,
    form="Lay each patch out in one row: (B, N, 3 · P · P)",
    id="11.2", name="cut", minutes=10, level="core", forbids=("unfold", "conv1d", "conv2d", "conv3d"),
)  # fmt: skip


# ---- 11.3: positions on another grid ----


def _positions(table: Tensor, rows: int, columns: int, faults: Collection[str]) -> Tensor:
    first, places = table[:1], table[1:]
    if "zero" in faults:
        first = torch.zeros_like(first)
    g, C = int(len(places) ** 0.5), table.shape[1]
    if "CLS in line" in faults:
        return F.interpolate(table.T[None], size=1 + rows * columns, mode="linear", align_corners=False)[0].T
    if "line" in faults:
        new = F.interpolate(places.T[None], size=rows * columns, mode="linear", align_corners=False)[0].T
    elif "as they are" in faults:
        new = places[torch.arange(rows * columns) % len(places)]
    else:
        square = (places.reshape(C, g, g) if "viewed in" in faults else places.T.reshape(C, g, g))[None]
        square = square.mT if "tipped" in faults else square
        size = (columns, rows) if "swapped" in faults else (rows, columns)
        mode = "bilinear" if "bilinear" in faults else "bicubic"
        if "nearest" in faults:
            square = F.interpolate(square, size=size, mode="nearest")[0]
        else:
            square = F.interpolate(square, size=size, mode=mode, align_corners="corners" in faults)[0]
        new = square.reshape(-1, C) if "viewed out" in faults else square.flatten(1).T
    return torch.cat([new, first] if "last" in faults else [first, new])


def _small_table(g: torch.Generator) -> list[tuple]:
    return [(torch.randn(10, 4, generator=g), 2, 5)]


def _tables(g: torch.Generator) -> list[tuple]:
    return [(torch.randn(1 + old**2, 6, generator=g), rows, columns)
            for old, rows, columns in ((4, 2, 3), (3, 7, 5), (4, 4, 4), (2, 1, 3))]  # fmt: skip


def _with_cls(got: Tensor, expected: Tensor) -> Tensor | None:
    """One row too few -> with the CLS token's."""
    return torch.cat((expected[:1], got)) if got.shape == expected[1:].shape else None


_IN_LINE = ("You stretched the table like a line: a place is a row and a column of a square, stretch it in both "
            "directions")
POSITIONS = fault_exercise(
    _positions,
    {
        "last": "The CLS token's row came to the end: it is the first",
        "zero": "The CLS token's row is zero: it has a learned position, too, and keeps it",
        "viewed in": "Going in, you gave the table the shape (C, g, g) without turning it: its rows are places, so the "
                     "channels must be brought to the front first",
        "viewed out": "Coming out, you gave (C, rows, columns) the shape (N, C) without turning it: bring the channels "
                      "to the end first",
        "swapped": "You swapped rows and columns of the new grid",
        "tipped": "Your square is tipped over: the table goes row by row, so view it as (g, g, C)",
        "line": _IN_LINE,
        "CLS in line": f"{_IN_LINE}; and keep the CLS token's row out of it",
        "bilinear": "That is bilinear: the reference takes bicubic",
        "nearest": "That is the nearest old place: between places there is a way, take bicubic",
        "corners": "With align_corners=True the outermost centres stay in place: the reference takes False, where the "
                   "edges do",
        "as they are": "You took the table's first rows as they are: place 5 of the old grid is elsewhere than place 5 "
                       "of the new one",
    },
    {
        "the CLS token": (_small_table, ("last", "zero", "CLS in line")),
        "rows, columns and channels": (_small_table, ("viewed in", "viewed out", "swapped", "tipped")),
        "between the old places": (_small_table, ("line", "bilinear", "nearest", "corners", "as they are")),
    },
    _tables,
    show=lambda case: f"a table {tuple(case[0].shape)}, {case[1]} rows and {case[2]} columns",
    repair=_with_cls, form="The CLS token's row is missing: it comes first, unchanged",
    id="11.3", name="positions_for", minutes=12, level="core",
    reference=lambda table, rows, columns: torch.cat(
        [table[:1], resize_positions(table[1:], old=math.isqrt(len(table) - 1), new=(rows, columns))]),
)  # fmt: skip


# ---- 11.4: SigLIP's loss ----


def _siglip(images: Tensor, texts: Tensor, scale: float, bias: float, faults: Collection[str]) -> Tensor:
    if "long" not in faults:
        images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    logits = images @ texts.T
    logits = logits + bias if "bias inside" in faults else logits
    logits = logits / scale if "divided" in faults else logits if "no scale" in faults else logits * scale
    if not {"bias inside", "no bias"} & set(faults):
        logits = logits - bias if "minus bias" in faults else logits + bias
    n = len(logits)
    eye = torch.eye(n)
    if "CLIP" in faults or "half CLIP" in faults:
        right = torch.arange(n)
        loss = F.cross_entropy(logits, right)
        return loss if "half CLIP" in faults else (loss + F.cross_entropy(logits.T, right)) / 2
    sign = eye if "1 and 0" in faults else torch.ones(n, n) if "all yes" in faults else 2 * eye - 1
    losses = -F.logsigmoid(-sign * logits if "flipped" in faults else sign * logits)
    losses = losses * eye if "right pairs" in faults else losses * (1 - eye) if "wrong pairs" in faults else losses
    loss = losses.mean() if "mean" in faults else losses.sum() if "sum" in faults else losses.sum() / n
    return -loss if "below zero" in faults else loss


def _three_pairs(_: torch.Generator) -> list[tuple]:
    return [(torch.tensor([[0.6, 0.3], [-0.2, 0.9], [0.5, -0.7]]), torch.tensor([[0.4, 0.5], [0.1, 0.8], [0.9, -0.2]]),
             3.0, -2.0)]  # fmt: skip


def _large(_: torch.Generator) -> list[tuple]:
    """Wrong pairs at 116: sigmoid(-116) is 0 in fp32."""
    return [(torch.eye(2), torch.eye(2).flip(0), 120.0, -4.0)]


def _pairs(g: torch.Generator) -> list[tuple]:
    cases = [(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 2.0, -1.0),
             (torch.randn(1, 3, generator=g), torch.randn(1, 3, generator=g), 5.0, -2.0)]  # fmt: skip
    return [*cases, (torch.randn(6, 8, generator=g), torch.randn(6, 8, generator=g), 10.0, -3.0)]


def _stays_finite(result: Any, _case: tuple) -> str | None:
    if not isinstance(result, Tensor) or result.isfinite().all():
        return None
    return ("the loss is not finite: log(sigmoid(x)) is minus infinity for large logits, since sigmoid rounds to 0. "
            "F.logsigmoid computes both at once")  # fmt: skip


def _small_and_large(answer: Callable, case: tuple) -> tuple[Any, Any]:
    return answer(*_pairs(torch.Generator().manual_seed(0))[0]), answer(*case)


def _not_cut_off(result: Any, case: tuple) -> str | None:
    """Of a loss that is right for small logits alone."""
    small, large = siglip_loss(*_pairs(torch.Generator().manual_seed(0))[0]), siglip_loss(*case)
    if difference(small, result[0], 1e-4) or difference(large, result[1], math.inf) or not result[1].isfinite():
        return None
    off = difference(large, result[1], 1e-2)
    return f"{off}. A large loss is cut off: F.logsigmoid needs no clamp and no small number added" if off else None


_SIGLIP = fault_exercise(
    _siglip,
    {
        "long": "You left the vectors as long as they are: a similarity is a cosine, of vectors of length 1",
        "no bias": "The bias is missing: it is added to every logit",
        "minus bias": "You subtract the bias: it is below zero already, add it",
        "bias inside": "You scale the bias, too: scale the cosine, then add the bias",
        "no scale": "The scale is missing: a cosine alone goes from −1 to 1, too flat for a yes",
        "divided": "You divide by the scale: multiply by it",
        "mean": "You took the mean of all N · N losses: divide their sum by N, so that a pair counts the same in a "
                "batch of any size",
        "sum": "You didn't divide: the sum of all losses, by N",
        "right pairs": "You ask about the right pairs alone: a model that says yes to everything has no loss",
        "wrong pairs": "You ask about the wrong pairs alone: the diagonal is missing",
        "all yes": "You ask every pair to be one: off the diagonal the right answer is no, so the logit's sign turns",
        "1 and 0": "You multiply by 1 and 0: by 0 the wrong pairs teach nothing; it is 1 and −1",
        "flipped": "Your signs are the wrong way round: 1 on the diagonal, −1 elsewhere",
        "below zero": "Your loss is below zero: log sigmoid is, so take minus it",
        "CLIP": "That is CLIP's loss, a choice among the batch: here each of the N · N pairs is a question of its own",
        "half CLIP": "That is half of CLIP's loss: here each of the N · N pairs is a question of its own, without a "
                     "softmax",
    },
    {
        "the logits": (_three_pairs, ("long", "no bias", "minus bias", "bias inside", "no scale", "divided")),
        "the right answers": (_three_pairs, ("all yes", "1 and 0", "flipped", "CLIP", "half CLIP")),
        "what is added up": (_three_pairs, ("mean", "sum", "right pairs", "wrong pairs", "below zero")),
    },
    _pairs,
    id="11.4", name="yes_or_no_loss", minutes=15, level="hard", reference=siglip_loss,
)  # fmt: skip

SIGLIP = replace(_SIGLIP, properties=(
    *_SIGLIP.properties,
    Property("large logits", _large, accept=_stays_finite),
    Property("large losses", _large, run=_small_and_large, accept=_not_cut_off),
))  # fmt: skip


# ---- 11.5: break it ----


def _twin(picture: Tensor, patch: int) -> Tensor:
    return picture.roll(patch, dims=1 if picture.shape[1] > patch else 2)


def _patches(picture: Tensor, patch: int) -> Tensor:
    return _cut(picture[None], patch, ())[0]  # (N, 3 * P * P)


MOVES: dict[str, tuple[Callable[[Tensor, int], Tensor], str]] = {
    "mirror": (lambda picture, _: picture.flip(2), "A mirror mirrors each patch, too"),
    "upside down": (lambda picture, _: picture.flip(1), "Upside down, each patch is upside down, too"),
    "half a turn": (lambda picture, _: picture.rot90(2, dims=(1, 2)), "Half a turn turns each patch, too"),
    "pixel right": (lambda picture, _: picture.roll(1, dims=2), "You moved by one pixel, not by a whole patch"),
    "pixel down": (lambda picture, _: picture.roll(1, dims=1), "You moved by one pixel, not by a whole patch"),
    "pixel left": (lambda picture, _: picture.roll(-1, dims=2), "You moved by one pixel, not by a whole patch"),
    "pixel up": (lambda picture, _: picture.roll(-1, dims=1), "You moved by one pixel, not by a whole patch"),
    "half a patch": (lambda picture, patch: picture.roll(patch // 2, dims=2), "You moved by half a patch, not by a "
                                                                             "whole one"),
    "colours": (lambda picture, _: picture.flip(0), "You changed the colours of each patch, too"),
    "brightness": (lambda picture, _: 1 - picture, "You changed the colours of each patch, too"),
}


def _how_it_moved(result: Tensor, picture: Tensor, patch: int) -> str:
    """What was done to the picture, where it is one or two of the usual moves, perhaps beside a right one."""
    before = (picture, picture.roll(patch, dims=1), picture.roll(patch, dims=2))
    for n in (1, 2):
        for names in combinations(MOVES, n):
            for made in before:
                for name in names:
                    made = MOVES[name][0](made, patch)
                if torch.equal(made, result):
                    told = dict.fromkeys(MOVES[name][1] for name in names)
                    return f". {'. '.join(told)}: the matrix sees other numbers; move whole patches"
    return ": move whole patches, and leave what is in them as it is"


def _same_patches(result: Any, case: tuple) -> Tensor | None:
    """(N, N), whether new patch i is old patch j; None where the picture has another form."""
    picture, patch = case
    if _form_of_twin(result, case):
        return None
    new, old = _patches(result.to(picture.dtype), patch), _patches(picture, patch)
    return (new[:, None] == old[None, :]).all(dim=2)


def _form_of_twin(result: Any, case: tuple) -> str | None:
    if not isinstance(result, Tensor):
        return f"return a picture, a tensor; got {describe(result)}"
    if result.shape != case[0].shape:
        return f"the picture's shape should stay {tuple(case[0].shape)}, got {tuple(result.shape)}"
    if result.is_complex() or result.device != case[0].device or result.layout != case[0].layout:
        return f"return a picture of numbers like the one given; got {describe(result)}, {result.dtype}"
    return None


def _whole_patches(result: Any, case: tuple) -> str | None:
    same = _same_patches(result, case)
    strange = 0 if same is None else int((~same.any(dim=1)).sum())
    if not strange:
        return None
    return f"{strange} of {len(same)} patches are none of the picture's{_how_it_moved(result.to(case[0]), *case)}"


def _each_once(result: Any, case: tuple) -> str | None:
    same = _same_patches(result, case)
    missing = 0 if same is None else int((~same.any(dim=0)).sum())
    twice = 0 if same is None else int((same.sum(dim=0) > 1).sum())
    if not missing or not twice:
        return None
    return f"{missing} of the picture's {len(same)} patches are gone, and others stand twice: each once"


def _none_stays(result: Any, case: tuple) -> str | None:
    same = _same_patches(result, case)
    stays = 0 if same is None else int(same.diagonal().sum())
    if not stays:
        return None
    if stays == len(same):
        return "that is the same picture: every patch should move"
    return f"{stays} of {len(same)} patches are where they were: move them all"


def _grids(g: torch.Generator) -> list[tuple]:
    return [(torch.rand(3, H, W, generator=g), P) for H, W, P in ((8, 8, 4), (9, 9, 3), (4, 12, 4), (15, 5, 5))]


def _grid_in_words(case: tuple) -> str:
    return f"a picture {tuple(case[0].shape)} and patch {case[1]}"


TWIN = Exercise(
    id="11.5", name="twin", minutes=10, level="break it", reference=_twin,
    properties=tuple(Property(name, _grids, accept=accept, show=_grid_in_words) for name, accept in (
        ("a picture", _form_of_twin), ("whole patches", _whole_patches), ("each patch once", _each_once),
        ("every patch elsewhere", _none_stays),
    )),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (COUNT, CUT, POSITIONS, SIGLIP, TWIN)
