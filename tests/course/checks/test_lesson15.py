"""course.checks.lesson15: right answers pass, and each usual mistake is called by its name."""

import pytest
import torch

from llamamm.course.checks import check

# ---- right answers, written another way than the reference ----


def image_tokens(side, n_tiles, patch=14):
    patches = (side // patch) * (side // patch)
    row = patches + 1
    while row % 8:
        row += 1
    return n_tiles * (patches + 1), n_tiles * row


def best_canvas(height, width, side, max_tiles=4):
    best = None
    for rows in range(1, max_tiles + 1):
        for columns in range(1, max_tiles // rows + 1):
            scale = min(rows * side / height, columns * side / width)
            # those that hold the image before those that do not; then least enlarged, or least lost; then fewest
            key = (scale < 1, scale if scale >= 1 else -scale, rows * columns)
            if best is None or key < best[0]:
                best = (key, (rows, columns))
    return best[1]


def visible(ids, image_token):
    rows = []
    for i in range(len(ids)):
        last = max((j for j in range(i + 1) if ids[j] == image_token), default=None)
        if last is None:
            rows.append([])
            continue
        first = last
        while first > 0 and ids[first - 1] == image_token:
            first -= 1
        n = sum(token == image_token for token in ids[:first])
        rows.append(list(range(n, n + last - first + 1)))
    return rows


def hand_out(embedded, blocks, norm, after, keep):
    states = [embedded]
    for block in blocks:
        states.append(block(states[-1]))
    x = norm(states[-1])
    for block in after:
        x = block(x)
    B, N, C = x.shape
    out = torch.empty(B, N, C * (1 + len(keep)))
    out[..., :C] = x
    for k, n in enumerate(keep):
        out[..., C + k :: len(keep)] = states[n]
    return out


def wasteful(side):
    return side + 2, side + 2


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [("15.1", image_tokens), ("15.2", best_canvas), ("15.3", visible), ("15.4", hand_out), ("15.5", wasteful)],
)
def test_right_answers_pass(exercise, answer):
    result = check(exercise, answer)
    assert result, result.message


# ---- wrong ones ----


def no_cls(side, n_tiles, patch=14):
    n = (side // patch) ** 2
    return n * n_tiles, n_tiles * ((n + 7) // 8 * 8)


def filled_sum(side, n_tiles, patch=14):
    n = n_tiles * ((side // patch) ** 2 + 1)
    return n, (n + 7) // 8 * 8


def never_filled(side, n_tiles, patch=14):
    n = n_tiles * ((side // patch) ** 2 + 1)
    return n, n


def largest_scale(height, width, side, max_tiles=4):
    counts = range(1, max_tiles + 1)
    grids = [(r, c) for r in counts for c in counts if r * c <= max_tiles]
    return max(grids, key=lambda g: (min(g[0] * side / height, g[1] * side / width), -g[0] * g[1]))


def columns_first(height, width, side, max_tiles=4):
    return best_canvas(height, width, side, max_tiles)[::-1]


def exchanged(height, width, side, max_tiles=4):
    return best_canvas(width, height, side, max_tiles)


def only_last(ids, image_token):
    rows, n = [], -1
    for token in ids:
        n += token == image_token
        rows.append([n] if n >= 0 else [])
    return rows


def to_the_end(ids, image_token):
    rows, seen = [], []
    for token in ids:
        if token == image_token:
            seen = [*seen, len(seen)]
        rows.append(seen)
    return rows


def from_the_next(ids, image_token):
    return [[]] + visible(ids, image_token)[:-1]


def outputs_kept(embedded, blocks, norm, after, keep):
    x, kept = embedded, []
    for n, block in enumerate(blocks):
        x = block(x)
        if n in keep:
            kept.append(x)
    x = norm(x)
    for block in after:
        x = block(x)
    return torch.cat([x, torch.stack(kept, -1).flatten(2)], -1)


def block_after_block(embedded, blocks, norm, after, keep):
    whole = hand_out(embedded, blocks, norm, after, keep)
    C, k = embedded.shape[-1], len(keep)
    return torch.cat([whole[..., :C]] + [whole[..., C + i :: k] for i in range(k)], -1)


def kept_first(embedded, blocks, norm, after, keep):
    whole = hand_out(embedded, blocks, norm, after, keep)
    C = embedded.shape[-1]
    return torch.cat([whole[..., C:], whole[..., :C]], -1)


@pytest.mark.parametrize(
    ("exercise", "answer", "message"),
    [
        ("15.1", no_cls, "CLS token"),
        ("15.1", filled_sum, "by itself"),
        ("15.1", never_filled, "not filled up"),
        ("15.2", largest_scale, "always take the largest scale"),
        ("15.2", columns_first, "rows and columns are exchanged"),
        ("15.2", exchanged, "rows go with the height"),
        ("15.3", only_last, "seen together"),
        ("15.3", to_the_end, "not to the end"),
        ("15.3", from_the_next, "own token sees it already"),
        ("15.4", outputs_kept, "keep what enters"),
        ("15.4", block_after_block, "for each channel"),
        ("15.4", kept_first, "final features come first"),
        ("15.5", lambda side: (side // 2, side // 2), "enlarged to fill its one tile"),
        ("15.5", lambda side: (side + 1, side), "one direction"),
        ("15.5", lambda side: (2 * side - 3, 2 * side - 3), "how much of the second row"),
        ("15.5", lambda side: (1, side), "at least 2"),
        ("15.5", lambda side: side + 1, "two whole numbers"),
        ("15.3", lambda *_: None, "returns nothing"),
    ],
)
def test_mistakes_are_called_by_their_names(exercise, answer, message):
    result = check(exercise, answer)
    assert not result
    assert message in result.message
