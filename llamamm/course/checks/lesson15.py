"""Checks for lesson 15: an image's tokens, its canvas, who sees it, features side by side, a wasteful picture."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.core import Exercise, Mistake
from llamamm.llama32_vision.config import TiledVisionConfig
from llamamm.llama32_vision.tiles import TileProcessor
from llamamm.llama32_vision.tower import MULTIPLE
from llamamm.multimodal.places import image_spans
from llamamm.senses.config import EncoderConfig

# ---- 15.1: tokens of an image ----


def _tokens(
    side: int, n_tiles: int, patch: int = 14, *, cls: int = 1, fill: str = "tile", tiles: bool = True,
    squared: bool = True,
) -> tuple[int, int]:  # fmt: skip
    """The right numbers; each argument plants one mistake."""
    n = (side // patch) ** (2 if squared else 1) + cls
    k = n_tiles if tiles else 1
    filled = {"tile": k * -(-n // 8) * 8, "sum": -(-k * n // 8) * 8, "none": k * n, "down": k * (n // 8) * 8}[fill]
    return k * n, filled


def _package_tokens(side: int, n_tiles: int, patch: int = 14) -> tuple[int, int]:
    encoder = EncoderConfig(8, 8, 1, 1)
    n = TiledVisionConfig(encoder, tile_size=side, patch_size=patch, intermediates=()).n_tokens
    return n_tiles * n, n_tiles * (n + -n % MULTIPLE)


TOKENS = Exercise(
    id="15.1", name="image_tokens", minutes=4, level="warm-up",
    reference=_package_tokens,
    cases=lambda _: [(560, 1), (560, 4), (448, 3), (28, 2, 7), (56, 1, 7), (98, 4)],
    mistakes=(
        Mistake(partial(_tokens, cls=0), "you count the patches alone: each tile has a CLS token, too"),
        Mistake(partial(_tokens, fill="sum"),
                "you fill up the sum of all tiles: each tile is filled up by itself, to a multiple of 8"),
        Mistake(partial(_tokens, fill="none"),
                "the second number is not filled up: each tile's tokens to a multiple of 8"),
        Mistake(partial(_tokens, fill="down"), "you round down to a multiple of 8: tokens are added, none is dropped"),
        Mistake(partial(_tokens, tiles=False), "that is one tile: multiply by how many there are"),
        Mistake(partial(_tokens, squared=False),
                "side / patch is one row of patches: a tile has that many rows of them"),
    ),
)  # fmt: skip


# ---- 15.2: the canvas ----


def _canvas(
    height: int, width: int, side: int, max_tiles: int = 4, *, enough: str = "smallest", otherwise: str = "largest",
    pick: str = "fewest", transposed: bool = False, fit: Callable = min, exact: bool = False,
) -> tuple[int, int]:  # fmt: skip
    if transposed:
        height, width = width, height
    counts = range(1, max_tiles + 1)
    grids = [(r, c) for r in counts for c in counts if (r * c == max_tiles if exact else r * c <= max_tiles)]
    scale = {(r, c): fit(r * side / height, c * side / width) for r, c in grids}
    up = [s for s in scale.values() if s >= 1] if enough != "ignored" else []
    if up:
        best = min(up)
    else:
        best = max(scale.values()) if otherwise == "largest" else min(scale.values())
    equal = [grid for grid in grids if scale[grid] == best]
    if pick == "fewest":
        return min(equal, key=lambda grid: grid[0] * grid[1])
    return equal[0] if pick == "first" else max(equal, key=lambda grid: grid[0] * grid[1])


def _package_canvas(height: int, width: int, side: int, max_tiles: int = 4) -> tuple[int, int]:
    return TileProcessor(tile_size=side, max_tiles=max_tiles).canvas(height, width)


def _sizes(_: torch.Generator) -> list[tuple]:
    draw = random.Random(0)
    fixed = [(600, 512, 224), (100, 100, 224), (224, 224, 224), (225, 224, 224), (100, 900, 224), (3000, 300, 224),
             (10, 10_000, 224), (400, 400, 224), (300, 300, 224, 9), (900, 200, 100, 6)]  # fmt: skip
    return fixed + [(draw.randint(1, 1500), draw.randint(1, 1500), 224) for _ in range(200)]


CANVAS = Exercise(
    id="15.2", name="best_canvas", minutes=10, level="core",
    reference=_package_canvas,
    cases=_sizes,
    run=lambda answer, case: list(answer(*case)),
    mistakes=(
        Mistake(partial(_canvas, enough="ignored"),
                "you always take the largest scale: a small image would fill four tiles. Among scales of 1 and more "
                "the smallest wastes least"),
        Mistake(partial(_canvas, otherwise="smallest"),
                "where no canvas holds the image you take the smallest scale: the largest loses least"),
        Mistake(partial(_canvas, pick="most"),
                "of canvases with equal scale you take the one with most tiles: the fewest cost least"),
        Mistake(lambda *case: _canvas(*case)[::-1],
                "rows and columns are exchanged: rows go with the height, and come first"),
        Mistake(partial(_canvas, transposed=True), "rows and columns are exchanged: rows go with the height"),
        Mistake(partial(_canvas, fit=max),
                "you take the larger of the two factors: then the image sticks out on the other side"),
        Mistake(partial(_canvas, exact=True),
                "you only look at canvases of max_tiles tiles: fewer are allowed"),
    ),
)  # fmt: skip


# ---- 15.3: who sees which image ----


def _visible(
    ids: Sequence[int], image_token: int, *, neighbours: str = "together", own: bool = True, keep: bool = False,
    before: bool = False,
) -> list[list[int]]:  # fmt: skip
    out, sight, n = [], [], 0
    for i, token in enumerate(ids):
        if token == image_token:
            side_by_side = neighbours == "together" and i > 0 and ids[i - 1] == image_token
            if not own:
                out.append(list(sight))
            sight = [*sight, n] if side_by_side or keep else [n]
            n += 1
            if own:
                out.append(list(sight))
        else:
            out.append(list(sight))
    if before and n:
        out = [row or [0] for row in out]
    return out


def _by_spans(ids: Sequence[int], image_token: int) -> list[list[int]]:
    spans = image_spans(ids, image_token)
    return [[n for n, (begin, end) in enumerate(spans) if begin <= i < end] for i in range(len(ids))]


VISIBLE = Exercise(
    id="15.3", name="visible", minutes=12, level="core",
    reference=_by_spans,
    cases=lambda _: [([1, 2, 3], 9), ([9, 1, 2], 9), ([1, 9, 2, 3, 9, 4], 9), ([1, 9, 9, 2, 3], 9), ([9, 9, 9], 9),
                     ([1, 9, 9, 2, 9, 3, 3], 9), ([5, 5, 7, 5, 7, 7, 5], 7), ([4, 1], 4)],
    mistakes=(
        Mistake(partial(_visible, neighbours="apart"),
                "images side by side are seen together by the words behind them: your second hides the first"),
        Mistake(partial(_visible, own=False), "an image's own token sees it already"),
        Mistake(partial(_visible, keep=True),
                "an image is seen up to the next image's token, not to the end: a word looks at the last before it"),
        Mistake(partial(_visible, before=True),
                "words before the first image see nothing: an empty list"),
        Mistake(lambda ids, token: [[n + 1 for n in row] for row in _visible(ids, token)], "images are counted from 0"),
    ),
)  # fmt: skip


# ---- 15.4: side by side ----


def _hand_out(
    embedded: Tensor, blocks: Sequence[Callable], norm: Callable, after: Sequence[Callable], keep: Sequence[int], *,
    side: str = "before", order: str = "final first", layout: str = "interleaved", normed: bool = False,
    norm_last: bool = False, globals_: bool = True,
) -> Tensor:  # fmt: skip
    x, kept = embedded, []
    for n, block in enumerate(blocks):
        entered, x = x, block(x)
        if n in keep:
            kept.append(entered if side == "before" else x)
    x = x if norm_last else norm(x)
    for block in after if globals_ else ():
        x = block(x)
    x = norm(x) if norm_last else x
    kept = [norm(k) for k in kept] if normed else kept
    wide = torch.stack(kept, dim=-1).flatten(2) if layout == "interleaved" else torch.cat(kept, dim=-1)
    return torch.cat([x, wide] if order == "final first" else [wide, x], dim=-1)


def _towers(generator: torch.Generator) -> list[tuple]:
    def blocks(n: int, width: int) -> list[Callable]:
        return [partial(_mix, torch.randn(width, width, generator=generator) / width) for _ in range(n)]

    cases = []
    for B, N, C, n, n_after, keep in ((1, 1, 3, 3, 1, (0, 2)), (2, 4, 5, 5, 2, (1, 2, 4)), (1, 3, 4, 2, 0, (1,))):
        cases.append((torch.randn(B, N, C, generator=generator), blocks(n, C), _centred, blocks(n_after, C), keep))
    return cases


def _mix(weight: Tensor, x: Tensor) -> Tensor:
    return x + (x @ weight).tanh()


def _centred(x: Tensor) -> Tensor:
    return (x - x.mean(dim=-1, keepdim=True)) / (x.std(dim=-1, keepdim=True) + 1)


HAND_OUT = Exercise(
    id="15.4", name="hand_out", minutes=15, level="hard",
    reference=_hand_out,
    cases=_towers,
    mistakes=(
        Mistake(partial(_hand_out, side="after"),
                "you keep what leaves the blocks (as transformers 5 does): keep what enters them"),
        Mistake(partial(_hand_out, layout="blocks"),
                "the kept features stand block after block: for each channel its kept values stand together; stack "
                "on the last dimension, then flatten"),
        Mistake(partial(_hand_out, order="kept first"), "the final features come first, then the kept ones"),
        Mistake(partial(_hand_out, normed=True), "the kept features are not normalised"),
        Mistake(partial(_hand_out, norm_last=True), "the norm stands before the blocks in `after`, not behind them"),
        Mistake(partial(_hand_out, globals_=False), "you leave out the functions in `after`"),
    ),
)  # fmt: skip


# ---- 15.5: a wasteful picture ----


def _accept_wasteful(size: Any, case: tuple) -> str | None:
    (side,) = case
    if not isinstance(size, tuple | list) or len(size) != 2 or not all(type(n) is int for n in size):
        return f"give (height, width), two whole numbers; got {size!r}"
    height, width = size
    if min(size) < 2:
        return f"both must be at least 2, got {height} x {width}"
    processor = TileProcessor(tile_size=side)
    rows, columns = processor.canvas(height, width)
    fitted = processor.fitted(height, width, rows, columns)
    black = 1 - fitted[0] * fitted[1] / (rows * columns * side**2)
    if black > 0.7:
        return None
    seen = f"with tiles of {side}, {height} x {width} gets {rows} x {columns} tiles and {black:.0%} of them is black"
    if rows * columns == 1:
        return f"{seen}: a small picture is enlarged to fill its one tile; a canvas of several is never filled so"
    if rows == 1 or columns == 1:
        return f"{seen}: you waste in one direction; what if the second row and the second column are nearly empty?"
    return f"{seen}: how much of the second row do you need to get one?"


WASTEFUL = Exercise(
    id="15.5", name="wasteful", minutes=10, level="break it",
    reference=lambda side: (side + 1, side + 1),
    cases=lambda _: [(224,), (448,), (560,), (28,)],
    accept=_accept_wasteful,
)  # fmt: skip

EXERCISES = (TOKENS, CANVAS, VISIBLE, HAND_OUT, WASTEFUL)
