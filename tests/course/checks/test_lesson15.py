"""course.checks.lesson15: right answers pass, and each usual mistake is called by its name, alone and in pairs.

Each exercise is written in three ways that have little in common, and each way can have any of the faults in it.
"""

import math
import re
from itertools import product

import numpy as np
import pytest
import torch

from llamamm.course.checks import check
from llamamm.course.checks.core import exercises_of, find_exercise
from tests.course.checks.ways import assert_right, assert_told, with_faults

# ---- 15.1 in three ways: whole numbers, a loop over tiles, floats ----


def tokens_of_integers(side, n_tiles, patch=14, has=()):
    patch = 14 if "always 14" in has else patch
    n = side // patch if "one row" in has else (side // patch) * (side // patch)
    n = n if "no CLS" in has else n + 1
    k = 1 if "one tile" in has else n_tiles
    up = 0 if "rounded down" in has else 7
    filled = k * ((n + up) // 8 * 8)
    filled = (k * n + 7) // 8 * 8 if "sum filled" in has else k * n if "never filled" in has else filled
    return k * n, filled


def tokens_in_a_loop(side, n_tiles, patch=14, has=()):
    size = patch if "always 14" not in has else 14
    text = tower = 0
    for _ in range(1 if "one tile" in has else n_tiles):
        tile = [(y, x) for y in range(1 if "one row" in has else side // size) for x in range(side // size)]
        tile = tile if "no CLS" in has else ["CLS", *tile]
        row = len(tile)
        while row % 8 and "never filled" not in has and "sum filled" not in has:
            row += -1 if "rounded down" in has else 1
        text, tower = text + len(tile), tower + row
    while tower % 8 and "sum filled" in has:
        tower += 1
    return text, tower


def tokens_of_floats(side, n_tiles, patch=14, has=()):
    n = (side / (14 if "always 14" in has else patch)) // 1
    n = n ** (2 - ("one row" in has)) + 1 - ("no CLS" in has)
    k = n_tiles ** ("one tile" not in has)
    filled = (math.floor if "rounded down" in has else math.ceil)(n / 8) * 8 * k
    if "sum filled" in has:
        filled = 8 * math.ceil(k * n / 8)
    return int(k * n), int(k * n if "never filled" in has else filled)


# ---- 15.2 in three ways: loops with a key, numpy, sorting ----


def canvas_by_key(height, width, side, max_tiles=4, has=()):
    height, width = (width, height) if "transposed" in has else (height, width)
    max_tiles = 4 if "always 4" in has else max_tiles
    best = None
    for rows in range(1, max_tiles + 1):
        for columns in range(1, max_tiles // rows + 1):
            if "all tiles" in has and rows * columns != max_tiles:
                continue
            factors = rows * side / height, columns * side / width
            scale = max(factors) if "larger factor" in has else min(factors)
            # those that hold the image before those that do not; then least enlarged, or least lost; then fewest
            small = scale < 1 and "always largest" not in has
            rising = "smallest" in has or not small and "always largest" not in has
            key = (small, scale if rising else -scale, rows * columns * (-1 if "most tiles" in has else 1))
            best = (key, (rows, columns)) if best is None or key < best[0] else best
    return best[1]


def canvas_by_numpy(height, width, side, max_tiles=4, has=()):
    n = 4 if "always 4" in has else max_tiles
    rows, columns = np.meshgrid(np.arange(1, n + 1), np.arange(1, n + 1), indexing="ij")
    there = rows * columns == n if "all tiles" in has else rows * columns <= n
    rows, columns = rows[there], columns[there]
    sides = (width, height) if "transposed" in has else (height, width)
    scale = (np.maximum if "larger factor" in has else np.minimum)(rows * side / sides[0], columns * side / sides[1])
    if "always largest" not in has and (scale >= 1).any():
        best = scale[scale >= 1].min()
    else:
        best = scale.min() if "smallest" in has else scale.max()
    equal = np.flatnonzero(scale == best)
    tiles = (rows * columns)[equal]
    chosen = equal[tiles.argmax() if "most tiles" in has else tiles.argmin()]
    return int(rows[chosen]), int(columns[chosen])


def canvas_by_sorting(height, width, side, max_tiles=4, has=()):
    if "always 4" in has:
        max_tiles = 4
    if "transposed" in has:
        height, width = width, height
    grids = list(product(range(1, max_tiles + 1), repeat=2))
    grids = [g for g in grids if math.prod(g) <= max_tiles and ("all tiles" not in has or math.prod(g) == max_tiles)]
    pick = max if "larger factor" in has else min

    def scale(grid):
        return pick(grid[0] * side / height, grid[1] * side / width)

    grids.sort(key=math.prod, reverse="most tiles" in has)
    enough = [] if "always largest" in has else [grid for grid in grids if scale(grid) >= 1]
    if enough:
        return min(enough, key=scale)
    return min(grids, key=scale) if "smallest" in has else max(grids, key=scale)


# ---- 15.3 in three ways: a view, loops, einsum with one-hot rows ----


def gated_by_view(x, table, gate, ids, has):
    B, t, _, C = x.shape
    opened = torch.sigmoid(gate) if "sigmoid" in has else gate if "no tanh" in has else torch.tanh(gate)
    opened = gate * 0 + 1 if "no gate" in has else opened
    ids = ids - 1 if "other row" in has else ids
    rows = table[ids[0]].expand(B, -1) if "first image" in has else table[ids]
    tiles = rows.reshape(B, C, t).mT if "interleaved" in has else rows.reshape(B, t, C)
    tiles = tiles[:, 0:1].expand(B, t, C) if "one tile" in has else tiles
    old = x * (1 - opened) if "blend" in has else x * opened if "all gated" in has else x
    return old + opened * tiles.unsqueeze(2)


def gated_in_loops(x, table, gate, ids, has):
    g, out = float(gate), x.clone()
    share = 1 / (1 + math.exp(-g)) if "sigmoid" in has else g if "no tanh" in has else math.tanh(g)
    share = 1 if "no gate" in has else share
    B, t, _, C = x.shape
    for b in range(B):
        row = table[ids[0 if "first image" in has else b] - int("other row" in has)]
        for i in range(t):
            at = 0 if "one tile" in has else i
            vector = row[at::t] if "interleaved" in has else row[at * C : (at + 1) * C]
            kept = 1 - share if "blend" in has else share if "all gated" in has else 1
            out[b, i] = kept * x[b, i] + share * vector
    return out


def gated_by_einsum(x, table, gate, ids, has):
    B, t, _, C = x.shape
    if "first image" in has:
        ids = torch.full_like(ids, int(ids[0]))
    ids = ids - int("other row" in has)
    one_hot = torch.nn.functional.one_hot(ids, len(table)).float()
    tables = table.unflatten(1, (C, t)).transpose(1, 2) if "interleaved" in has else table.unflatten(1, (t, C))
    added = torch.einsum("br,rtc->btc", one_hot, tables)[:, :, None].expand_as(x)
    if "one tile" in has:
        added = added[:, [0] * t]
    w = 1 - 2 / (1 + (2 * gate).exp())
    w = (gate / 2).tanh() / 2 + 0.5 if "sigmoid" in has else gate if "no tanh" in has else w
    w = torch.ones(1) if "no gate" in has else w
    if "blend" in has:
        return torch.lerp(x, added.contiguous(), w)
    return (x + added) * w if "all gated" in has else torch.addcmul(x, added, w)


# ---- 15.4 in three ways: states in a list, recursion, an empty tensor that is filled ----


def hand_out_from_states(embedded, blocks, norm, after, keep, has):
    states = [embedded]
    for block in blocks:
        states.append(block(states[-1]))
    kept = [states[n - ("from 1" in has) + ("leaves" in has)] for n in keep if n >= ("from 1" in has)]
    kept = [norm(k) for k in kept] if "normed" in has else kept
    kept = list(reversed(kept)) if "reversed" in has else kept
    x = states[-1]
    if "no norm" not in has and "norm last" not in has:
        x = norm(x)
    for block in after:
        x = x if "no after" in has else block(x)
    x = norm(x) if "norm last" in has else x
    B, N, C = x.shape
    out = torch.empty(B, N, C * len(kept))
    for k, state in enumerate(kept):
        if "blocks" in has:
            out[..., k * C : (k + 1) * C] = state
        else:
            out[..., k :: len(kept)] = state
    if "stacked" in has:
        return torch.cat([x, *kept], -1).unflatten(-1, (-1, C)).mT.flatten(2)
    return torch.cat([out, x] if "kept first" in has else [x, out], -1)


def hand_out_by_recursion(embedded, blocks, norm, after, keep, has):
    def through(x, n):
        if n == len(blocks):
            return x, []
        left = blocks[n](x)
        own = [left if "leaves" in has else x] if n + ("from 1" in has) in keep else []
        end, others = through(left, n + 1)
        return end, (others + own if "reversed" in has else own + others)

    x, kept = through(embedded, 0)
    functions = [*([] if {"no norm", "norm last"} & {*has} else [norm]), *([] if "no after" in has else after),
                 *([norm] if "norm last" in has else [])]  # fmt: skip
    for function in functions:
        x = function(x)
    if "normed" in has:
        kept = list(map(norm, kept))
    if "stacked" in has:
        return torch.stack((x, *kept), 3).flatten(2)
    wide = torch.stack(kept, 2 if "blocks" in has else 3).reshape(*x.shape[:2], -1)
    return torch.cat((wide, x), 2) if "kept first" in has else torch.cat((x, wide), 2)


def hand_out_by_place(embedded, blocks, norm, after, keep, has):
    B, N, C = embedded.shape
    keep = [n - 1 for n in keep if n] if "from 1" in has else keep
    K = len(keep)
    out = torch.zeros(B, N, K + 1, C)  # the final features, then each kept one
    x = embedded
    for n, block in enumerate(blocks):
        before, x = x, block(x)
        if n in keep:
            k = list(keep).index(n)
            value = x if "leaves" in has else before
            out[:, :, K - k if "reversed" in has else k + 1] = norm(value) if "normed" in has else value
    if {"no norm", "norm last"}.isdisjoint(has):
        x = norm(x)
    if "no after" not in has:
        for block in after:
            x = block(x)
    out[:, :, 0] = norm(x) if "norm last" in has else x
    if "stacked" in has:
        return out.transpose(2, 3).flatten(2)
    wide = out[:, :, 1:] if "blocks" in has else out[:, :, 1:].transpose(2, 3)
    parts = [out[:, :, 0], wide.flatten(2)]
    return torch.cat(parts[::-1] if "kept first" in has else parts, 2)


# ---- 15.5 in three ways: backwards from each token, spans, one walk ----


def with_more_faults(rows, ids, image_token, has):
    """Rows as they come out where a row is written to after it was given, or where words before images see all."""
    if "one list" in has:
        return rows[-1:] * len(rows)
    if "together" in has:
        for i in range(len(ids) - 1, 0, -1):
            if ids[i - 1] == ids[i] == image_token:
                rows[i - 1] = rows[i]
    everything = [n + ("from 1" in has) for n in range(ids.count(image_token))]
    return [row or everything for row in rows] if "all before" in has else rows


def visible_looking_back(ids, image_token, has):
    rows, first = [], 1 if "from 1" in has else 0
    for i in range(len(ids)):
        end = i if "from the next" in has else i + 1
        seen = [j for j in range(end) if ids[j] == image_token]
        if "to the end" in has:
            start = 0
            run = seen
            if "apart" not in has and run:
                run = seen
            rows.append([k + first for k in range(start, len(run))])
            continue
        run = seen[-1:]
        while run and run[0] - 1 in seen and "apart" not in has:
            run = [run[0] - 1, *run]
        rows.append([seen.index(j) + first for j in run])
    if "words before" in has and image_token in ids:
        rows = [row or [first] for row in rows]
    return with_more_faults(rows, ids, image_token, has)


def visible_by_spans(ids, image_token, has):
    places = [i for i, token in enumerate(ids) if token == image_token]
    spans = []
    for place in places:
        end = place + 1
        while end < len(ids) and ids[end] == image_token and "apart" not in has:
            end += 1
        while end < len(ids) and ids[end] != image_token or "to the end" in has and end < len(ids):
            end += 1
        late = "from the next" in has
        spans.append((place + late, end + late))
    rows = [[n + ("from 1" in has) for n, (a, b) in enumerate(spans) if a <= i < b] for i in range(len(ids))]
    rows = [row if row or not places or "words before" not in has else [int("from 1" in has)] for row in rows]
    return with_more_faults(rows, ids, image_token, has)


def visible_in_one_walk(ids, image_token, has):
    numbers, rows, before = iter(range("from 1" in has, 100)), [], None
    sight = []
    for token in ids:
        old = sight
        if token == image_token:
            kept = "to the end" in has or before == image_token and "apart" not in has
            sight = (sight if kept else []) + [next(numbers)]
        rows.append(old if "from the next" in has else sight)
        before = token
    if "words before" in has:
        rows = [list(row) if row or image_token not in ids else [0 + ("from 1" in has)] for row in rows]
    return with_more_faults(rows, ids, image_token, has)


WAYS = {
    "15.1": (tokens_of_integers, tokens_in_a_loop, tokens_of_floats),
    "15.2": (canvas_by_key, canvas_by_numpy, canvas_by_sorting),
    "15.3": (gated_by_view, gated_in_loops, gated_by_einsum),
    "15.4": (hand_out_from_states, hand_out_by_recursion, hand_out_by_place),
    "15.5": (visible_looking_back, visible_by_spans, visible_in_one_walk),
}
# what a message must hold, for each fault
TOLD = {
    "15.1": {"no CLS": "CLS token", "one row": "one row of patches", "one tile": "That is one tile",
             "always 14": "wrote 14 where", "sum filled": "by itself", "never filled": "not filled up",
             "rounded down": "round down"},
    "15.2": {"always largest": "always take the largest scale", "smallest": "you take the smallest scale",
             "most tiles": "with most tiles", "transposed": "are exchanged", "larger factor": "larger of the two",
             "all tiles": "only look at canvases", "always 4": "wrote 4 where"},
    "15.3": {"sigmoid": "begin half open", "all gated": "stands before the table alone", "no tanh": "by its tanh",
             "blend": "x stays whole", "one tile": "first tile's vector", "interleaved": "view it as (t, C)",
             "first image": "first image's row", "no gate": "the table in full", "other row": "a different row"},
    "15.5": {"apart": "seen together", "to the end": "not to the end", "from the next": "own token sees it already",
             "words before": "see nothing", "from 1": "counted from 0", "all before": "see nothing, not all",
             "together": "the images after it", "one list": "are the same list"},
    "15.4": {"leaves": "keep what enters", "normed": "not normalised", "no norm": "leave out the norm",
             "norm last": "not after them", "no after": "leave out the functions", "blocks": "block after block",
             "reversed": "opposite order", "kept first": "final features come first", "from 1": "blocks from 1",
             "stacked": "stack the final features, too"},
}  # fmt: skip
# faults that cannot stand in one answer, or of which one hides the other
APART = {
    "15.1": [
        {"sum filled", "never filled", "rounded down"},  # each says what is filled up
        {"one tile", "sum filled"},  # the sum of one tile is that tile
    ],
    "15.2": [{"most tiles", "all tiles"}],  # with all tiles, equal scales have equally many
    "15.3": [
        {"sigmoid", "no tanh", "no gate"},  # each says what the gate's function is
        {"all gated", "blend", "no gate"},  # each says what becomes of x, nothing where the gate is 1
        {"one tile", "interleaved"},  # each says which vector a tile gets
    ],
    "15.5": [
        {"apart", "to the end"},  # what stays in sight to the end is seen together
        {"words before", "all before"},  # each says what words before an image see
        *({"one list", other} for other in ("words before", "all before", "from the next", "together", "apart")),
        *({"together", other} for other in ("apart", "from the next")),  # it concerns the image's own token
    ],
    "15.4": [
        {"norm last", "no norm"}, {"norm last", "no after"},  # nothing stands before the norm
        {"leaves", "from 1"},  # what leaves a block enters the next
        {"stacked", "blocks", "kept first", "reversed"},  # each says where things are laid
    ],
}


@pytest.mark.parametrize("exercise", WAYS)
def test_the_right_answer_passes_however_it_is_written(exercise):
    assert_right(exercise, WAYS[exercise])


@pytest.mark.parametrize("number", range(1, 7))
def test_the_reference_passes(number):
    assert check(f"15.{number}", find_exercise(f"15.{number}").reference)


@pytest.mark.parametrize("exercise", WAYS)
def test_each_fault_gets_its_sentence_alone_and_beside_another(exercise):
    assert_told(exercise, WAYS[exercise], TOLD[exercise], APART[exercise])


def test_every_fault_of_these_exercises_is_planted_here():
    for exercise in exercises_of("15")[:5]:
        assert len(exercise.mistakes) == len(TOLD[exercise.id])


def test_a_message_names_the_property_the_smallest_input_and_both_results():
    message = check("15.2", with_faults(WAYS["15.2"][1], ("always largest",))).message
    assert "small images: for (100, 150, 224) the result should be (1, 1), got (2, 2). You always take" in message
    message = check("15.5", with_faults(WAYS["15.5"][1], ("apart",))).message
    assert "side by side: for ((9, 9, 4, 9), 9) at [1]: the result should have 2 parts, got 1. Images side" in message


@pytest.mark.parametrize(("exercise", "answer"), [
    ("15.1", lambda *case: [*tokens_of_integers(*case)]),
    ("15.2", lambda *case: tuple(np.array(canvas_by_key(*case)))),
    ("15.5", lambda *case: tuple(map(tuple, visible_by_spans(*case, ())))),
    ("15.6", lambda side: np.array([side + 1, side + 1]).tolist()),
    ("15.6", lambda side: tuple(np.array([side + 1, side + 1]))),
])  # fmt: skip
def test_lists_tuples_and_whole_numbers_of_any_kind_pass(exercise, answer):
    result = check(exercise, answer)
    assert result, result.message


def hand_out_in_place(embedded, blocks, norm, after, keep):
    result = hand_out_by_place(embedded, blocks, norm, after, keep, ())
    embedded.zero_()
    return result


def visible_emptying(ids, image_token):
    rows = visible_by_spans(ids, image_token, ())
    ids.clear()
    return rows


def rows_appended_to(ids, image_token):
    """Each row is the list in sight itself, and later images are appended to it."""
    rows, sight, n = [], [], 0
    for i, token in enumerate(ids):
        if token == image_token:
            if i and ids[i - 1] != image_token:
                sight.clear()
            sight.append(n)
            n += 1
        rows.append(sight)
    return rows


OTHERWISE = [
    ("15.1", lambda side, n, patch=14: (n * ((side // patch) ** 2 + 1), n * -(-(side // patch) ** 2 // 8) * 8),
     "fill up the patches alone"),
    ("15.4", hand_out_in_place, "changes `embedded`"),
    ("15.5", visible_emptying, "changes `ids`"),
    ("15.5", rows_appended_to, "before the first image: .*are the same list"),
    ("15.6", lambda side: (4 * side + 1, 4 * side + 1), "scaled down to fill it"),
    ("15.1", lambda side, n, patch=14: tokens_of_floats(side, n, patch, ())[0], "form: .*result should be"),
    ("15.1", lambda side, n, patch=14: (side, n + patch), "all results: for .*got 560"),
    ("15.1", lambda side: side, "it raised TypeError"),
    ("15.2", lambda *case: 1 if len(case) > 2 else 0, "form: .*two whole numbers, got 1"),
    ("15.2", lambda *_: (1, 1), "all images: for .* got (1, 1)".replace("(", r"\(").replace(")", r"\)")),
    ("15.3", lambda *case: gated_by_view(*case, ())[0], "shape should be"),
    ("15.3", lambda *case: -gated_by_view(*case, ()), "all numbers: "),
    ("15.3", lambda x, *rest: x.copy_(gated_by_view(x, *rest, ())), "changes `x`"),
    ("15.5", lambda *_: 0, "list"),
    ("15.5", lambda ids, _: [[] for _ in ids], "form: .* at .* should have 1 part, got 0"),
    ("15.5", lambda ids, token: visible_by_spans(ids, token, ())[:-1], "form: .*parts"),
    ("15.4", lambda *case: hand_out_by_place(*case, ())[..., :-1], "shape should be"),
    ("15.4", lambda *case: -hand_out_by_place(*case, ()), "all numbers: "),
    ("15.6", lambda side: (side // 2, side // 2), "enlarged to fill it"),
    ("15.6", lambda side: (side, side), "enlarged to fill it"),
    ("15.6", lambda side: (side + 1, side), "one direction"),
    ("15.6", lambda side: (side, 4 * side), "one direction"),
    ("15.6", lambda side: (2 * side - 3, 2 * side - 3), "how much of the second row"),
    ("15.6", lambda side: (1, side), "at least 2"),
    ("15.6", lambda side: side + 1, "two whole numbers"),
    ("15.6", lambda side: (side + 1.0, side + 1), "two whole numbers"),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), OTHERWISE)
def test_what_no_fault_explains_is_told_with_its_numbers(exercise, answer, message):
    result = check(exercise, answer)
    assert not result
    assert re.search(message, result.message), result.message


@pytest.mark.parametrize("answer", [lambda side: (side + 2, side + 2), lambda side: [side + 1, side + 2],
                                    lambda side: (int(side * 1.05), side + 1)])  # fmt: skip
def test_wasteful_pictures_pass(answer):
    result = check("15.6", answer)
    assert result, result.message
