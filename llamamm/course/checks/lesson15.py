"""Checks of lesson 15: an image's tokens, its canvas, gated tiles, features side by side, who sees it, a wasteful
picture."""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.compare import describe, difference
from llamamm.course.checks.core import Exercise, Mistake, Property
from llamamm.course.checks.faults import fault_exercise
from llamamm.course.checks.inputs import inputs_stay
from llamamm.llama32_vision.config import TiledVisionConfig
from llamamm.llama32_vision.tiles import TileProcessor
from llamamm.llama32_vision.tower import MULTIPLE
from llamamm.multimodal.places import image_spans
from llamamm.senses.config import EncoderConfig


def _in_form(expected: Any, got: Any) -> Any:
    """got, with lists where the expected result has lists and tuples where it has tuples: either will do."""
    if not isinstance(expected, tuple | list) or not isinstance(got, tuple | list):
        return got
    return type(expected)(_in_form(expected[i], part) if i < len(expected) else part for i, part in enumerate(got))


def _differs(expected: Any, got: Any, tolerance: float | None = None) -> str | None:
    return difference(expected, _in_form(expected, got), tolerance)


def _is_whole(n: Any) -> bool:
    """Also of numpy or torch."""
    try:
        return operator.index(n) is not None
    except (TypeError, ValueError):
        return False


ROWS_OF_ANY_KIND = {"differs": _differs, "misshapen": partial(_differs, tolerance=math.inf)}

# ---- 15.1: tokens of an image ----


def _tokens(side: int, n_tiles: int, *rest: Any) -> tuple[int, int]:
    """rest: the patch's side where a case has one, and the faults."""
    patch, faults = (14, *rest)[-2:]
    patch = 14 if "always 14" in faults else patch
    n = (side // patch) ** (1 if "one row" in faults else 2) + ("no CLS" not in faults)
    k = 1 if "one tile" in faults else n_tiles
    if "never filled" in faults:
        return k * n, k * n
    if "sum filled" in faults:
        return k * n, -(-k * n // 8) * 8
    return k * n, k * (n // 8 if "rounded down" in faults else -(-n // 8)) * 8


def _package_tokens(side: int, n_tiles: int, patch: int = 14) -> tuple[int, int]:
    encoder = EncoderConfig(8, 8, 1, 1)
    n = TiledVisionConfig(encoder, tile_size=side, patch_size=patch, intermediates=()).n_tokens
    return n_tiles * n, n_tiles * (n + -n % MULTIPLE)


def _three_tiles(_: torch.Generator) -> list[tuple]:
    return [(42, 3)]


TOKENS = fault_exercise(
    _tokens,
    {
        "no CLS": "You count the patches alone: each tile has a CLS token, too",
        "one row": "side / patch is one row of patches: a tile has that many rows of them",
        "one tile": "That is one tile: multiply by how many there are",
        "always 14": "You wrote 14 where `patch` belongs: it is an argument",
        "sum filled": "You fill up the sum of all tiles: each tile is filled up by itself, to a multiple of 8",
        "never filled": "The second number is not filled up: each tile's tokens to a multiple of 8",
        "rounded down": "You round down to a multiple of 8, or fill up the patches alone: tokens are added, none is "
                        "dropped",
    },
    {
        "the tokens of a tile": (_three_tiles, ("no CLS", "one row")),
        "several tiles": (_three_tiles, ("one tile",)),
        "a different patch": (lambda _: [(42, 3, 7)], ("always 14",)),
        "filled up to 8": (_three_tiles, ("sum filled", "never filled", "rounded down")),
    },
    lambda _: [(560, 1), (560, 4), (448, 3), (28, 2, 7), (56, 1, 7), (98, 4)],
    id="15.1", name="image_tokens", minutes=4, level="warm-up", reference=_package_tokens,
    **ROWS_OF_ANY_KIND,
)  # fmt: skip


# ---- 15.2: the canvas ----


def _canvas(height: int, width: int, side: int, *rest: Any) -> tuple[int, int]:
    """rest: the most tiles where a case has them, and the faults."""
    max_tiles, faults = (4, *rest)[-2:]
    if "transposed" in faults:
        height, width = width, height
    max_tiles = 4 if "always 4" in faults else max_tiles
    counts = range(1, max_tiles + 1)
    least = max_tiles if "all tiles" in faults else 1
    grids = [(r, c) for r in counts for c in counts if least <= r * c <= max_tiles]
    fit = max if "larger factor" in faults else min
    scale = {(r, c): fit(r * side / height, c * side / width) for r, c in grids}
    up = [] if "always largest" in faults else [s for s in scale.values() if s >= 1]
    best = min(up) if up else min(scale.values()) if "smallest" in faults else max(scale.values())
    most = -1 if "most tiles" in faults else 1
    return min((grid for grid in grids if scale[grid] == best), key=lambda grid: most * grid[0] * grid[1])


WASTED = {
    "always largest": "You always take the largest scale: a small image would fill four tiles. Among scales of 1 and "
                      "more the smallest wastes least",
    "smallest": "Where no canvas holds the image you take the smallest scale, or `//` makes all of them 0: the largest "
                "loses least",
    "most tiles": "Of canvases with equal scale you take the one with most tiles: the fewest cost least",
    "transposed": "Rows and columns are exchanged: rows go with the height, and come first",
    "larger factor": "You take the larger of the two factors: then the image sticks out on the other side",
    "all tiles": "You only look at canvases of max_tiles tiles: fewer are allowed",
    "always 4": "You wrote 4 where `max_tiles` belongs: it is an argument",
}  # fmt: skip


@cache
def _images() -> tuple[tuple[int, ...], ...]:
    """Height, width, the tile's side and sometimes the most tiles, the smallest first. One image tells few faults from
    each other, all of them tell each."""
    draw = random.Random(0)
    fixed = [(100, 150, 224), (224, 224, 224), (225, 224, 224), (300, 100, 224), (400, 400, 224), (600, 512, 224),
             (100, 900, 224), (1500, 1000, 224), (3000, 300, 224), (10, 10_000, 224)]  # fmt: skip
    more = [(150, 350, 100, 9), (50, 150, 100, 9), (900, 200, 100, 6), (150, 500, 100, 12)]
    return *fixed, *more, *((draw.randint(1, 1500), draw.randint(1, 1500), 224) for _ in range(50))


@cache
def _canvases(faults: tuple[str, ...]) -> list[tuple[int, int]]:
    return [_canvas(*image, faults) for image in _images()]


def _for_images(answer: Callable[..., Any], _case: tuple) -> list[Any]:
    return [answer(*image) for image in _images()]


def _wrong_form(got: Any) -> bool:
    return not isinstance(got, tuple | list) or len(got) != 2 or not all(map(_is_whole, got))


def _two_numbers(results: list[Any], _case: tuple) -> str | None:
    wrong = next((i for i, got in enumerate(results) if _wrong_form(got)), None)
    return None if wrong is None else (
        f"for {_images()[wrong]} give (rows, columns), two whole numbers, got {describe(results[wrong])}"
    )  # fmt: skip


def _canvas_faults(*own: str) -> Callable[[list[Any], tuple], str | None]:
    """own: the faults to tell of; none: what no fault explains."""

    def accept(results: list[Any], _case: tuple) -> str | None:
        if any(map(_wrong_form, results)):
            return None
        results, right = [tuple(map(int, got)) for got in results], _canvases(())
        wrong = [i for i, got in enumerate(results) if got != right[i]]
        sets = (faults for n in range(4) for faults in combinations(WASTED, n))
        found = next((faults for faults in sets if _canvases(faults) == results), None)
        if not wrong or own and found is None or not own and found is not None:
            return None
        told = [fault for fault in found or () if fault in own]
        if own and not told:
            return None
        first = next((i for i in wrong if told and _canvases((told[0],))[i] == results[i]), wrong[0])
        problem = f"for {_images()[first]} the result should be {right[first]}, got {results[first]}"
        return ". ".join([problem, *(WASTED[fault] for fault in told)])

    return accept


CANVAS = Exercise(
    id="15.2", name="best_canvas", minutes=10, level="core", importance=3,
    reference=lambda height, width, side, max_tiles=4: TileProcessor(tile_size=side, max_tiles=max_tiles).canvas(
        height, width),
    properties=tuple(
        Property(name, lambda _: [()], run=_for_images, accept=accept) for name, accept in (
            ("form", _two_numbers), ("small images", _canvas_faults("always largest")),
            ("large images", _canvas_faults("smallest")), ("equal scales", _canvas_faults("most tiles")),
            ("height and width", _canvas_faults("transposed", "larger factor")),
            ("which canvases there are", _canvas_faults("all tiles", "always 4")), ("all images", _canvas_faults()))
    ),
    mistakes=tuple(Mistake(lambda *image, f=fault: _canvas(*image, (f,)), told) for fault, told in WASTED.items()),
)  # fmt: skip


# ---- 15.3: tiles and a gate ----


def _add_gated(x: Tensor, table: Tensor, gate: Tensor, ids: Tensor, faults: Collection[str] = ()) -> Tensor:
    B, t, _, C = x.shape
    opened = gate.sigmoid() if "sigmoid" in faults else gate if "no tanh" in faults else gate.tanh()
    opened = torch.ones(1) if "no gate" in faults else opened
    ids = ids - 1 if "other row" in faults else ids
    rows = table[ids[:1].expand(B) if "first image" in faults else ids]  # (B, t C)
    tiles = rows.view(B, C, t).transpose(1, 2) if "interleaved" in faults else rows.view(B, t, C)
    tiles = tiles[:, :1] if "one tile" in faults else tiles
    added = opened * tiles[:, :, None]
    if "blend" in faults:
        return (1 - opened) * x + added
    return opened * x + added if "all gated" in faults else x + added


def _gated(g: torch.Generator, gate: float, shape: tuple[int, ...] = (1, 2, 2, 3)) -> tuple:
    B, t, _, C = shape
    ids = torch.arange(1, B + 1)
    return torch.randn(shape, generator=g), torch.randn(B + 1, t * C, generator=g), torch.tensor([gate]), ids


ADD_GATED = fault_exercise(
    _add_gated,
    {
        "sigmoid": "A sigmoid is 0.5 at 0, so the gate would begin half open: tanh is 0 there",
        "no gate": "You add the table in full: multiply it by tanh(gate)",
        "all gated": "The gate stands before the table alone: what comes in as x must pass whatever the gate",
        "no tanh": "You multiply by the gate itself: by its tanh, which stays between -1 and 1",
        "blend": "You blend x and the table: x stays whole, and the table is added to it",
        "one tile": "You add the first tile's vector to every tile: each has its own",
        "interleaved": "In a row of the table the first C numbers are tile 1's, the next C tile 2's: view it as (t, C)",
        "first image": "You take the first image's row for all images: each has its own number in `ids`",
        "other row": "You take a different row of the table: an image with the number n in `ids` has table[n]",
    },
    {
        "a gate at 0": (lambda g: [_gated(g, 0.0)], ("sigmoid", "no gate")),
        "an open gate": (lambda g: [_gated(g, 0.8)], ("all gated", "no tanh", "blend")),
        "which tile": (lambda g: [_gated(g, 0.8)], ("one tile", "interleaved")),
        "several images": (lambda g: [_gated(g, 0.8, (2, 2, 1, 2))], ("first image", "other row")),
    },
    lambda g: [_gated(g, 0.8), _gated(g, -1.5, (3, 4, 5, 6)), _gated(g, 0.0, (2, 4, 3, 8))],
    extra=(inputs_stay(("x", "table", "gate", "ids"), lambda g: [_gated(g, 0.8)]),),
    id="15.3", name="add_gated", minutes=6, level="core", importance=3,
)  # fmt: skip


# ---- 15.4: side by side ----


def _hand_out(
    embedded: Tensor, blocks: Sequence[Callable], norm: Callable, after: Sequence[Callable], keep: Sequence[int],
    faults: Collection[str] = (),
) -> Tensor:  # fmt: skip
    x, kept = embedded, []
    for n, block in enumerate(blocks):
        entered, x = x, block(x)
        if n + ("from 1" in faults) in keep:
            kept.append(x if "leaves" in faults else entered)
    x = x if {"norm last", "no norm"} & {*faults} else norm(x)
    for block in () if "no after" in faults else after:
        x = block(x)
    x = norm(x) if "norm last" in faults else x
    kept = [norm(k) for k in kept] if "normed" in faults else kept
    kept = kept[::-1] if "reversed" in faults else kept
    if "stacked" in faults:
        return torch.stack([*kept, x] if "kept first" in faults else [x, *kept], dim=-1).flatten(2)
    wide = torch.cat(kept, dim=-1) if "blocks" in faults else torch.stack(kept, dim=-1).flatten(2)
    return torch.cat([wide, x] if "kept first" in faults else [x, wide], dim=-1)


def _mix(weight: Tensor, x: Tensor) -> Tensor:
    return x + (x @ weight).tanh()


def _centred(x: Tensor) -> Tensor:
    return (x - x.mean(dim=-1, keepdim=True)) / (x.std(dim=-1, keepdim=True) + 1)


def _tower(g: torch.Generator, B: int, N: int, C: int, n: int, n_after: int, keep: tuple[int, ...]) -> tuple:
    blocks, after = ([partial(_mix, torch.randn(C, C, generator=g) / C) for _ in range(k)] for k in (n, n_after))
    return torch.randn(B, N, C, generator=g), blocks, _centred, after, keep


def _small_tower(g: torch.Generator) -> list[tuple]:
    return [_tower(g, 1, 1, 3, 3, 1, (1, 2))]


HAND_OUT = fault_exercise(
    _hand_out,
    {
        "leaves": "You keep what leaves the blocks (as transformers 5 does): keep what enters them",
        "from 1": "You count the blocks from 1: the first block's number is 0",
        "normed": "The kept features are not normalised",
        "no norm": "You leave out the norm after the blocks",
        "norm last": "The norm stands before the functions in `after`, not after them",
        "no after": "You leave out the functions in `after`",
        "blocks": "The kept features stand block after block: for each channel its kept values stand together; stack "
                  "on the last dimension, then flatten",
        "stacked": "You stack the final features, too: they stay together, and only the kept ones alternate",
        "reversed": "The kept features stand in the opposite order: that of `keep`, the earliest block first",
        "kept first": "The final features come first, then the kept ones",
    },
    {
        "what is kept": (_small_tower, ("leaves", "from 1", "normed")),
        "the final features": (_small_tower, ("no norm", "norm last", "no after")),
        "how they are laid side by side": (_small_tower, ("blocks", "stacked", "reversed", "kept first")),
    },
    lambda g: [_tower(g, 1, 1, 3, 3, 1, (0, 2)), _tower(g, 2, 4, 5, 5, 2, (1, 2, 4)), _tower(g, 1, 3, 4, 2, 0, (1,))],
    run=lambda answer, case: answer(*case),  # functions are no input that can be shown
    extra=(inputs_stay(("embedded", "blocks", "norm", "after", "keep"), _small_tower),),
    id="15.4", name="hand_out", minutes=15, level="hard",
)  # fmt: skip


# ---- 15.5: who sees which image ----


def _visible(ids: Sequence[int], image_token: int, faults: Collection[str]) -> list[list[int]]:
    out, sight, n = [], [], 0
    for i, token in enumerate(ids):
        before = sight
        if token == image_token:
            beside = i > 0 and ids[i - 1] == image_token
            number = n + ("from 1" in faults)
            if "apart" in faults or not beside:
                sight = [*sight, number] if "to the end" in faults else [number]
            else:
                sight = [*sight, number]
            n += 1
        out.append(list(before if "from the next" in faults else sight))
    for i in reversed(range(len(ids) - 1) if "together" in faults else ()):
        out[i] = out[i + 1] if ids[i] == ids[i + 1] == image_token else out[i]
    if "one list" in faults:
        return [list(sight) for _ in out]
    if {"words before", "all before"} & {*faults} and n:
        first = int("from 1" in faults)
        return [row or [*range(first, first + (n if "all before" in faults else 1))] for row in out]
    return out


def _by_spans(ids: Sequence[int], image_token: int) -> list[list[int]]:
    spans = image_spans(ids, image_token)
    return [[n for n, (begin, end) in enumerate(spans) if begin <= i < end] for i in range(len(ids))]


VISIBLE = fault_exercise(
    _visible,
    {
        "apart": "Images side by side are seen together by the words after them: your second hides the first",
        "to the end": "An image is seen up to the next image's token, not to the end: a word looks at the last one "
                      "before it",
        "from the next": "An image's own token sees it already",
        "words before": "Words before the first image see nothing: an empty list",
        "all before": "Words before the first image see nothing, not all images: an empty list",
        "from 1": "Images are counted from 0",
        "together": "An image's token does not see the images after it. If you append to a list, give each row a copy",
        "one list": "All rows are the same list, and you change it later: give each row a copy",
    },
    {
        "before the first image": (lambda _: [([4, 9, 4, 9], 9)], ("words before", "all before", "one list")),
        "an image's own token": (lambda _: [([4, 9, 4], 9), ([9, 4, 9, 4], 9)], ("from the next",)),
        "how images are counted": (lambda _: [([4, 9, 4], 9)], ("from 1",)),
        "side by side": (lambda _: [([9, 9, 4, 9], 9)], ("apart", "together")),
        "one after the other": (lambda _: [([9, 4, 9, 4], 9)], ("to the end",)),
    },
    lambda _: [([1, 2, 3], 9), ([9, 1, 2], 9), ([1, 9, 2, 3, 9, 4], 9), ([1, 9, 9, 2, 3], 9), ([9, 9, 9], 9),
               ([1, 9, 9, 2, 9, 3, 3], 9), ([5, 5, 7, 5, 7, 7, 5], 7), ([4, 1], 4)],
    id="15.5", name="visible", minutes=12, level="core", reference=_by_spans,
    extra=(inputs_stay(("ids", "image_token"), lambda _: [([4, 9, 4], 9)]),), **ROWS_OF_ANY_KIND,
)  # fmt: skip


# ---- 15.6: a wasteful picture ----


def _picture(size: Any) -> tuple[int, int] | None:
    right = isinstance(size, tuple | list) and len(size) == 2 and all(_is_whole(n) and n >= 2 for n in size)
    return tuple(map(int, size)) if right else None


def _is_picture(size: Any, _case: tuple) -> str | None:
    if _picture(size):
        return None
    if not isinstance(size, tuple | list) or len(size) != 2 or not all(map(_is_whole, size)):
        return f"give (height, width), two whole numbers; got {size!r}"
    return f"height and width must be at least 2, got {size[0]} x {size[1]}"


def _wastes(size: Any, case: tuple) -> str | None:
    if _picture(size) is None:
        return None
    (side,), (height, width) = case, size
    processor = TileProcessor(tile_size=side)
    rows, columns = processor.canvas(height, width)
    fitted = processor.fitted(height, width, rows, columns)
    black = 1 - fitted[0] * fitted[1] / (rows * columns * side**2)
    if black > 0.7:
        return None
    seen = f"with tiles of {side}, {height} x {width} gets {rows} x {columns} tile{'s' * (rows * columns > 1)} and " \
           f"{black:.0%} of the canvas is black"  # fmt: skip
    if rows * columns == 1:
        return f"{seen}: a picture that fits in one tile is enlarged to fill it; make it a little too large for one"
    if height > rows * side or width > columns * side:
        return f"{seen}: a picture larger than its canvas is scaled down to fill it; make it smaller"
    if rows == 1 or columns == 1:
        return f"{seen}: you waste in one direction; what if the second row and the second column are nearly empty?"
    return f"{seen}: how much of the second row do you need to get one?"


def _tile_sizes(_: torch.Generator) -> list[tuple]:
    return [(28,), (224,), (448,), (560,)]


WASTEFUL = Exercise(
    id="15.6", name="wasteful", minutes=10, level="break it", importance=1, reference=lambda side: (side + 1, side + 1),
    properties=(
        Property("two whole numbers", _tile_sizes, accept=_is_picture),
        Property("more than 70% is black", _tile_sizes, accept=_wastes),
    ),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (TOKENS, CANVAS, ADD_GATED, HAND_OUT, VISIBLE, WASTEFUL)
