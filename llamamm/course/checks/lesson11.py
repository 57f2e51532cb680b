"""Checks of lesson 11: patches cut, two pictures as one, positions on a different grid, the CLS token put first.

The two losses are in `lesson11_losses`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.course.checks.compare import describe
from llamamm.course.checks.core import Exercise, Property
from llamamm.course.checks.faults import fault_exercise
from llamamm.course.checks.inputs import inputs_stay
from llamamm.course.checks.lesson11_losses import CLIP, SIGLIP
from llamamm.senses.vision import resize_positions

# ---- 11.1: cut ----


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
    if "scattered" in faults:
        parts = pixels.reshape(B, channels, patch, rows, patch, columns).permute(0, 1, 3, 2, 5, 4)
    else:
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
        "scattered": "Your patches are made of pixels that lie apart: split H into (rows, P), not into (P, rows), and "
                     "W likewise",
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
        "inside a patch": (_counted(4, 4, 2), ("viewed", "scattered", "channels apart", "channel last", "tipped",
                                               "tipped, channel last")),
        "one patch after another": (_counted(4, 6, 2), ("down",)),
        "what is left over": (_counted(8, 11, 3), ("bottom right", "centre", "squeezed")),
    },
    _pictures,
    tolerance=1e-3, show=_picture_in_words, repair=_in_rows,
    form="Lay each patch out in one row: (B, N, 3 · P · P)",
    id="11.1", name="cut", minutes=10, level="core", importance=3, forbids=("unfold", "conv1d", "conv2d", "conv3d"),
)  # fmt: skip


# ---- 11.2: break it ----


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
    id="11.2", name="twin", minutes=8, level="break it", reference=_twin, importance=1,
    properties=tuple(Property(name, _grids, accept=accept, show=_grid_in_words) for name, accept in (
        ("a picture", _form_of_twin), ("whole patches", _whole_patches), ("each patch once", _each_once),
        ("every patch elsewhere", _none_stays),
    )),
)  # fmt: skip

# ---- 11.3: positions on a different grid ----


def _positions(table: Tensor, rows: int, columns: int, faults: Collection[str]) -> Tensor:
    first, places = table[:1], table[:-1] if "CLS as a place" in faults else table[1:]
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
        "CLS as a place": "You took the CLS token's row for the first place of the grid, and left out the last: the "
                          "grid's rows are table[1:]",
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
        "the CLS token": (_small_table, ("last", "zero", "CLS as a place", "CLS in line")),
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


# ---- 11.4: the CLS token put first, and every token told its place ----


def _enter(patches: Tensor, cls: Tensor, places: Tensor, faults: Collection[str]) -> Tensor:
    first = cls.expand(len(patches), 1, -1)
    if "first picture alone" in faults:
        first = first * (torch.arange(len(patches)) == 0)[:, None, None]
    is_first = (torch.arange(len(places)) == 0)[:, None]
    if "places from the end" in faults:
        places = places.flip(0)
    if "off by one" in faults:
        places = places.roll(1, dims=0)
    if "patches off by one" in faults:
        places = torch.cat((places[:1], places[:-1]))
    if "none" in faults:
        places = torch.zeros_like(places)
    if "CLS without" in faults:
        places = places.masked_fill(is_first, 0.0)
    if "patches without" in faults:
        places = places.masked_fill(~is_first, 0.0)
    x = torch.cat((first, patches + cls if "to all" in faults else patches), dim=1)
    x = x * places if "times" in faults else x - places if "minus" in faults else x + places
    return x.roll(-1, dims=1) if "last" in faults else x  # each with its own place, wherever it stands


def _three_patches(_: torch.Generator) -> list[tuple]:
    """Hundreds for pictures, tens for places, ones for the CLS token: one sees in a number what was added up."""
    patches = torch.tensor([[[100.0, 110.0], [120.0, 130.0], [140.0, 150.0]],
                            [[200.0, 210.0], [220.0, 230.0], [240.0, 250.0]]])  # fmt: skip
    return [(patches, torch.tensor([1.0, 2.0]), torch.tensor([[10.0, 15.0], [23.0, 28.0], [31.0, 37.0], [45.0, 49.0]]))]


def _entering(g: torch.Generator) -> list[tuple]:
    return [(torch.randn(B, N, C, generator=g), torch.randn(C, generator=g), torch.randn(1 + N, C, generator=g))
            for B, N, C in ((1, 4, 6), (3, 2, 5), (4, 3, 4))]  # fmt: skip


def _with_first(got: Tensor, expected: Tensor) -> Tensor | None:
    """One token too few -> with the CLS token."""
    return torch.cat((expected[:, :1], got), dim=1) if got.shape == expected[:, 1:].shape else None


_OFF_BY_ONE = "The places are off by one: row 0 belongs to the CLS token, row 1 to the first patch"
ENTER = fault_exercise(
    _enter,
    {
        "last": "The CLS token stands last: it comes first, where the summary is read later",
        "first picture alone": "Only the first picture got the CLS token: every picture of the batch gets one",
        "places from the end": "The places go from the end to the start: row 0 belongs to the CLS token",
        "off by one": _OFF_BY_ONE,
        "patches off by one": _OFF_BY_ONE,
        "none": "No places were added",
        "CLS without": "The CLS token has no place: row 0 of the places is its own",
        "patches without": "The patches have no places: rows 1 to N are theirs",
        "times": "You multiplied by the places: add them",
        "minus": "You subtracted the places: add them",
        "to all": "You added the CLS vector to the patches: it is a token of its own",
    },
    {
        "the CLS token": (_three_patches, ("last", "first picture alone", "to all")),
        "the places": (_three_patches, ("places from the end", "off by one", "patches off by one", "none",
                                        "CLS without", "patches without", "times", "minus")),
    },
    _entering,
    show=lambda case: f"patches {tuple(case[0].shape)}, cls {tuple(case[1].shape)}, places {tuple(case[2].shape)}",
    repair=_with_first, form="The CLS token is missing: it is a token of its own, before the patches",
    extra=(inputs_stay(("patches", "cls", "places"), _entering),),
    id="11.4", name="enter", minutes=5, level="warm-up", importance=3,
)  # fmt: skip


EXERCISES: tuple[Exercise, ...] = (CUT, TWIN, POSITIONS, ENTER, CLIP, SIGLIP)
