"""Checks for lesson 11: tokens counted, patches cut, positions on another grid, SigLIP's loss, two pictures as one."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.course.checks.core import Exercise, Mistake
from llamamm.senses.contrastive import siglip_loss
from llamamm.senses.vision import resize_positions

# ---- 11.1: count ----


def _count(
    height: int, width: int, patch: int, hidden: int, cls: bool, *, rest: str = "drop", channels: int = 3,
    bias: bool = True, own: bool = True, part: str = "right", swapped: bool = False,
) -> tuple[int, int]:  # fmt: skip
    """The right two numbers; each keyword plants one mistake."""
    rows, columns = height // patch, width // patch
    if rest == "keep":
        rows, columns = -(-height // patch), -(-width // patch)
    patches = {
        "right": rows * columns, "area": height * width // patch**2, "pixels": height * width,
        "slide": (height - patch + 1) * (width - patch + 1), "side": rows,
    }[part]  # fmt: skip
    tokens = patches + (cls and own)
    matrix = channels * patch * hidden * (1 if part == "line" else patch)
    counted = tokens, matrix + bias * hidden
    return counted[::-1] if swapped else counted


def _without_square(height: int, width: int, patch: int, hidden: int, cls: bool) -> tuple[int, int]:
    tokens, _ = _count(height, width, patch, hidden, cls)
    return tokens, 3 * patch * hidden + hidden


def _each_patch_its_own(height: int, width: int, patch: int, hidden: int, cls: bool) -> tuple[int, int]:
    tokens, parameters = _count(height, width, patch, hidden, cls)
    return tokens, parameters * (height // patch) * (width // patch)


COUNT = Exercise(
    id="11.1", name="count", minutes=4, level="warm-up",
    reference=_count,
    cases=lambda _: [(224, 224, 14, 384, True), (336, 336, 14, 1024, False), (100, 60, 16, 64, True),
                     (40, 63, 8, 5, False)],
    mistakes=(
        Mistake(partial(_count, own=False), "one token is missing: the CLS token is there beside the patches"),
        Mistake(lambda h, w, p, c, _: _count(h, w, p, c, True),
                "you count a CLS token always: some towers have none, then `cls` is False"),
        Mistake(partial(_count, rest="keep"),
                "you rounded up: what is left over at the side, less than a patch, is not seen"),
        Mistake(partial(_count, part="area"),
                "you divided the area by a patch's area: round each side down by itself, rows times columns"),
        Mistake(partial(_count, part="pixels"), "you count pixels: a token is a whole patch"),
        Mistake(partial(_count, part="slide"),
                "your patches overlap: they lie side by side, a step is as wide as a patch"),
        Mistake(partial(_count, part="side"), "you count one column of patches: rows times columns"),
        Mistake(partial(_count, channels=1), "a pixel has three numbers, red, green and blue: 3 x P x P enter"),
        Mistake(partial(_count, bias=False), "the matrix is right, but it comes with a bias of `hidden` numbers"),
        Mistake(partial(_count, bias=False, channels=1),
                "a pixel has three numbers, red, green and blue: 3 x P x P enter, and there is a bias"),
        Mistake(_without_square, "a patch is P high and P wide: 3 x P x P numbers enter"),
        Mistake(_each_patch_its_own, "all patches share one matrix: don't multiply its parameters by the patches"),
        Mistake(partial(_count, swapped=True), "the two numbers are right, in the wrong order: tokens first"),
    ),
)  # fmt: skip


# ---- 11.2: cut ----


def _cut(
    pixels: Tensor, patch: int, *, order: str = "rows", inside: str = "chw", keep: str = "top left",
    flat: bool = True,
) -> Tensor:  # fmt: skip
    B, channels, H, W = pixels.shape
    rows, columns = H // patch, W // patch
    top, left = (H - rows * patch, W - columns * patch) if keep == "bottom right" else (0, 0)
    if keep == "centre":
        top, left = (H - rows * patch) // 2, (W - columns * patch) // 2
    if keep == "resize":
        pixels = F.interpolate(pixels, size=(rows * patch, columns * patch), mode="bilinear")
    pixels = pixels[:, :, top : top + rows * patch, left : left + columns * patch]
    parts = pixels.reshape(B, channels, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)  # (B, r, c, 3, P, P)
    if order == "columns":
        parts = parts.transpose(1, 2)
    parts = parts.flatten(1, 2)  # (B, N, 3, P, P)
    if not flat:
        return parts
    inner = {"chw": (0, 1, 2, 3, 4), "hwc": (0, 1, 3, 4, 2), "cwh": (0, 1, 2, 4, 3), "whc": (0, 1, 4, 3, 2)}[inside]
    return parts.permute(*inner).flatten(2)


def _only_viewed(pixels: Tensor, patch: int) -> Tensor:
    """Right shape, wrong numbers: runs of a row in place of squares."""
    like = _cut(pixels, patch)
    cropped = pixels[:, :, : pixels.shape[2] // patch * patch, : pixels.shape[3] // patch * patch]
    return cropped.reshape(like.shape)


def _channels_apart(pixels: Tensor, patch: int) -> Tensor:
    """Cut per channel, joined in the wrong place."""
    B, _, H, W = pixels.shape
    cropped = pixels[:, :, : H // patch * patch, : W // patch * patch]
    parts = cropped.reshape(B, 3, H // patch, patch, W // patch, patch).transpose(3, 4)  # (B, 3, r, c, P, P)
    return parts.reshape(B, (H // patch) * (W // patch), 3 * patch**2)


def _pictures(g: torch.Generator) -> list[tuple]:
    sizes = [(1, 4, 4, 2), (2, 6, 9, 3), (1, 10, 11, 4), (3, 4, 4, 4)]
    return [(torch.randn(B, 3, H, W, generator=g), P) for B, H, W, P in sizes]


CUT = Exercise(
    id="11.2", name="cut", minutes=10, level="core",
    reference=lambda pixels, patch: F.unfold(pixels, patch, stride=patch).transpose(1, 2),
    cases=_pictures,
    mistakes=(
        Mistake(_only_viewed,
                "you only gave the numbers another shape, so a patch holds runs of rows: the rows of a square lie "
                "apart in memory, split both sides and bring the two counts of patches to the front"),
        Mistake(_channels_apart,
                "the channels came apart: a patch holds its red, its green and its blue square, one after another; "
                "bring the counts of patches before the channels"),
        Mistake(partial(_cut, order="columns"),
                "your patches go down the columns: they are read row by row from the top left"),
        Mistake(partial(_cut, inside="hwc"),
                "inside a patch the channel comes last: it should come first, as in the weight (C, 3, P, P)"),
        Mistake(partial(_cut, inside="cwh"),
                "each patch is tipped over: inside a patch, too, the row comes before the column"),
        Mistake(partial(_cut, inside="whc"),
                "inside a patch the order is column, row, channel: it should be channel, row, column"),
        Mistake(partial(_cut, keep="bottom right"),
                "you drop what is left over at the top and left: patches begin at the top left corner"),
        Mistake(partial(_cut, keep="centre"),
                "you drop half of what is left over at each side: patches begin at the top left corner"),
        Mistake(partial(_cut, keep="resize"),
                "you squeezed the picture until it fits: drop what is left over, less than a patch"),
        Mistake(partial(_cut, flat=False), "lay each patch out in one row: (B, N, 3 * P * P)"),
    ),
    tolerance=0.0,
)  # fmt: skip


# ---- 11.3: positions on another grid ----


def _positions(table: Tensor, rows: int, columns: int) -> Tensor:
    old = int((len(table) - 1) ** 0.5)
    return torch.cat([table[:1], resize_positions(table[1:], old=old, new=(rows, columns))])


def _positions_wrongly(table: Tensor, rows: int, columns: int, *, kind: str) -> Tensor:
    first, places = table[:1], table[1:]
    g, C = int(len(places) ** 0.5), table.shape[1]
    square = places.reshape(C, g, g) if kind == "viewed" else places.T.reshape(C, g, g)
    mode = kind if kind in ("bilinear", "nearest") else "bicubic"
    corners = {"align_corners": kind == "corners"} if mode != "nearest" else {}
    size = (columns, rows) if kind == "swapped" else (rows, columns)
    new = F.interpolate(square[None], size=size, mode=mode, **corners)[0]  # (C, rows, columns)
    if kind == "tipped":
        new = F.interpolate(square[None].transpose(2, 3), size=size, mode=mode, align_corners=False)[0]
    new = new.reshape(-1, C) if kind == "viewed back" else new.flatten(1).T
    match kind:
        case "no cls":
            return new
        case "cls last":
            return torch.cat([new, first])
        case "cls zero":
            return torch.cat([torch.zeros_like(first), new])
        case "line":
            long = F.interpolate(places.T[None], size=rows * columns, mode="linear", align_corners=False)
            return torch.cat([first, long[0].T])
        case "cls in line":
            return F.interpolate(table.T[None], size=1 + rows * columns, mode="linear", align_corners=False)[0].T
        case "wrapped":
            return torch.cat([first, places[torch.arange(rows * columns) % len(places)]])
    return torch.cat([first, new])


def _wrong_positions(kind: str, message: str) -> Mistake:
    return Mistake(partial(_positions_wrongly, kind=kind), message)


_IN_LINE = ("you stretched the table like a line: a place is a row and a column of a square, stretch it in both "
            "directions")

POSITIONS = Exercise(
    id="11.3", name="positions_for", minutes=12, level="core",
    reference=_positions,
    cases=lambda g: [(torch.randn(1 + old**2, 6, generator=g), rows, columns)
                     for old, rows, columns in ((4, 2, 3), (3, 7, 5), (4, 4, 4), (2, 1, 3))],
    mistakes=(
        _wrong_positions("no cls", "the CLS token's row is missing: it comes first, unchanged"),
        _wrong_positions("cls last", "the CLS token's row came to the end: it is the first"),
        _wrong_positions("cls zero", "the CLS token's row is zero: it has a learned position, too, and keeps it"),
        _wrong_positions("viewed", "going in, you gave the table the shape (C, g, g) without turning it: its rows are "
                                   "places, so the channels must be brought to the front first"),
        _wrong_positions("viewed back", "coming out, you gave (C, rows, columns) the shape (N, C) without turning it: "
                                        "bring the channels to the end first"),
        _wrong_positions("swapped", "you swapped rows and columns of the new grid"),
        _wrong_positions("tipped", "your square is tipped over: the table goes row by row, so view it as (g, g, C)"),
        _wrong_positions("line", _IN_LINE),
        _wrong_positions("cls in line", _IN_LINE + "; and keep the CLS token's row out of it"),
        _wrong_positions("bilinear", "that is bilinear: the reference takes bicubic"),
        _wrong_positions("nearest", "that is the nearest old place: between places there is a way, take bicubic"),
        _wrong_positions("corners", "with align_corners=True the outermost centres stay in place: the reference takes "
                                    "False, where the edges do"),
        _wrong_positions("wrapped", "you took the table's first rows as they are: place 5 of the old grid is "
                                    "elsewhere than place 5 of the new one"),
    ),
)  # fmt: skip


# ---- 11.4: SigLIP's loss ----


def _siglip_wrongly(images: Tensor, texts: Tensor, scale: float, bias: float, *, kind: str) -> Tensor:
    if kind != "long":
        images, texts = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    logits = images @ texts.T * scale + bias
    if kind == "no bias":
        logits = images @ texts.T * scale
    if kind == "minus bias":
        logits = images @ texts.T * scale - bias
    if kind == "bias inside":
        logits = (images @ texts.T + bias) * scale
    if kind == "no scale":
        logits = images @ texts.T + bias
    if kind == "divided":
        logits = images @ texts.T / scale + bias
    n = len(logits)
    eye = torch.eye(n)
    sign = 2 * eye - 1
    losses = -F.logsigmoid(sign * logits)
    match kind:
        case "mean":
            return losses.mean()
        case "sum":
            return losses.sum()
        case "pairs":
            return losses.diagonal().sum() / n
        case "others":
            return (losses * (1 - eye)).sum() / n
        case "all yes":
            return -F.logsigmoid(logits).sum() / n
        case "zero one":
            return -F.logsigmoid(eye * logits).sum() / n
        case "flipped":
            return -F.logsigmoid(-sign * logits).sum() / n
        case "positive":
            return -losses.sum() / n
        case "unsafe":
            return -torch.log(torch.sigmoid(sign * logits)).sum() / n
        case "clip":
            right = torch.arange(n)
            return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
        case "softmax":
            return F.cross_entropy(logits, torch.arange(n))
    return losses.sum() / n


def _pairs(g: torch.Generator) -> list[tuple]:
    cases = [(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 2.0, -1.0),
             (torch.randn(1, 3, generator=g), torch.randn(1, 3, generator=g), 5.0, -2.0)]  # fmt: skip
    cases.append((torch.randn(6, 8, generator=g), torch.randn(6, 8, generator=g), 10.0, -3.0))
    cases.append((torch.eye(2), torch.eye(2).flip(0), 120.0, -4.0))  # wrong pairs at 116: sigmoid(-116) is 0
    return cases


def _wrong_loss(kind: str, message: str) -> Mistake:
    return Mistake(partial(_siglip_wrongly, kind=kind), message)


SIGLIP = Exercise(
    id="11.4", name="yes_or_no_loss", minutes=15, level="hard",
    reference=siglip_loss,
    cases=_pairs,
    mistakes=(
        _wrong_loss("long", "you left the vectors as long as they are: a similarity is a cosine, of length 1 each"),
        _wrong_loss("no bias", "the bias is missing: it is added to every logit"),
        _wrong_loss("minus bias", "you subtract the bias: it is below zero already, add it"),
        _wrong_loss("bias inside", "you scale the bias, too: scale the cosine, then add the bias"),
        _wrong_loss("no scale", "the scale is missing: a cosine alone goes from -1 to 1, too flat for a yes"),
        _wrong_loss("divided", "you divide by the scale: multiply the cosine by it"),
        _wrong_loss("mean", "you took the mean of all N x N losses: divide their sum by N, so that a pair counts the "
                            "same in a batch of any size"),
        _wrong_loss("sum", "you didn't divide: the sum of all losses, by N"),
        _wrong_loss("pairs", "you ask about the right pairs alone: a model that says yes to everything has no loss"),
        _wrong_loss("others", "you ask about the wrong pairs alone: the diagonal is missing"),
        _wrong_loss("all yes", "you ask every pair to be one: off the diagonal the right answer is no, so the logit's "
                               "sign turns"),
        _wrong_loss("zero one", "you multiply by 1 and 0: by 0 the wrong pairs teach nothing; it is 1 and -1"),
        _wrong_loss("flipped", "your signs are the wrong way round: 1 on the diagonal, -1 elsewhere"),
        _wrong_loss("positive", "your loss is below zero: log sigmoid is, so take minus it"),
        _wrong_loss("unsafe", "log(sigmoid(x)) is minus infinity for large logits, since sigmoid rounds to 0: "
                              "F.logsigmoid computes both at once"),
        _wrong_loss("clip", "that is CLIP's loss, a choice among the batch: here each of the N x N pairs is a question "
                            "of its own"),
        _wrong_loss("softmax", "that is half of CLIP's loss: here each of the N x N pairs is a question of its own, "
                               "without a softmax"),
    ),
)  # fmt: skip


# ---- 11.5: break it ----


def _twin(picture: Tensor, patch: int) -> Tensor:
    return picture.roll(patch, dims=1 if picture.shape[1] > patch else 2)


def _turned(picture: Tensor, patch: int) -> Tensor:  # noqa: ARG001
    return picture.rot90(2, dims=(1, 2))


def _patches(picture: Tensor, patch: int) -> Tensor:
    return _cut(picture[None], patch)[0]  # (N, 3 * P * P)


def _accept_twin(result: Any, case: tuple) -> str | None:
    picture, patch = case
    if not isinstance(result, Tensor):
        return f"return a picture, a tensor; got {type(result).__name__}"
    if result.shape != picture.shape:
        return f"the picture's shape should stay {tuple(picture.shape)}, got {tuple(result.shape)}"
    old, new = _patches(picture, patch), _patches(result.to(picture.dtype), patch)
    same = (new[:, None] == old[None, :]).all(dim=2)  # (N, N): which is which
    strange = int((~same.any(dim=1)).sum())
    if strange:
        return (f"{strange} of {len(new)} patches are none of the picture's: move whole patches, and leave what is in "
                f"them as it is")  # fmt: skip
    missing = int((~same.any(dim=0)).sum())
    if missing:
        return f"{missing} of the picture's {len(old)} patches are gone, and others stand twice: each once"
    stays = int(same.diagonal().sum())
    if stays:
        return (f"{stays} of {len(new)} patches are where they were, in a picture of {tuple(picture.shape)}: move them "
                f"all")  # fmt: skip
    return None


TWIN = Exercise(
    id="11.5", name="twin", minutes=10, level="break it",
    reference=_twin,
    cases=lambda g: [(torch.rand(3, H, W, generator=g), P) for H, W, P in ((8, 8, 4), (9, 9, 3), (4, 12, 4),
                                                                           (15, 5, 5))],
    accept=_accept_twin,
    mistakes=(
        Mistake(lambda picture, patch: picture.flip(2),  # noqa: ARG005
                "a mirror mirrors each patch, too: the matrix sees other numbers; move whole patches"),
        Mistake(lambda picture, patch: picture.flip(1),  # noqa: ARG005
                "upside down, each patch is upside down, too: the matrix sees other numbers; move whole patches"),
        Mistake(_turned, "half a turn turns each patch, too: the matrix sees other numbers; move whole patches"),
        Mistake(lambda picture, patch: picture.roll(1, dims=2),  # noqa: ARG005
                "you moved by one pixel, and every patch holds other pixels now: move by a whole patch"),
        Mistake(lambda picture, patch: picture,  # noqa: ARG005
                "that is the same picture: every patch should move"),
    ),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (COUNT, CUT, POSITIONS, SIGLIP, TWIN)
