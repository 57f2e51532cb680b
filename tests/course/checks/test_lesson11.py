"""course.checks.lesson11: right answers pass, and each usual mistake is called by its name, alone and in pairs.

Each exercise is written in three ways that have little in common, and each way can have any of the faults in it.
"""

import math
import re

import pytest
import torch
import torch.nn.functional as F

from llamamm.course.checks import check, exercises_of
from tests.course.checks.ways import assert_right, assert_told, with_faults

# ---- 11.1 in three ways: reshape, slices, gathered indices ----


def corner(pixels, patch, has):
    """The picture without what is left over, in the ways of the faults."""
    H, W = (side // patch * patch for side in pixels.shape[2:])
    if "squeezed" in has:
        return F.interpolate(pixels, (H, W), mode="bilinear", align_corners=False)
    dy, dx = pixels.shape[2] - H, pixels.shape[3] - W
    dy, dx = (dy, dx) if "bottom right" in has else (dy // 2, dx // 2) if "centre" in has else (0, 0)
    return pixels[..., dy : dy + H, dx : dx + W]


def order_inside(has):
    return {"channel last": "yxc", "tipped": "cxy", "tipped, channel last": "xyc"}.get(
        next((f for f in ("tipped, channel last", "channel last", "tipped") if f in has), ""), "cyx")  # fmt: skip


def cut_by_reshape(pixels, patch, has):
    x = corner(pixels, patch, has)
    B, C, H, W = x.shape
    r, c = H // patch, W // patch
    if "viewed" in has:
        return x.reshape(B, r * c, -1)
    if "scattered" in has:
        x = x.reshape(B, C, patch, r, patch, c).permute(0, 1, 3, 2, 5, 4)
    else:
        x = x.view(B, C, r, patch, c, patch) if x.is_contiguous() else x.reshape(B, C, r, patch, c, patch)
    if "channels apart" in has:
        return x.permute(0, 1, 2, 4, 3, 5).reshape(B, r * c, -1)
    axes = [4, 2] if "down" in has else [2, 4]
    axes += [{"c": 1, "y": 3, "x": 5}[axis] for axis in order_inside(has)]
    return x.permute(0, *axes).reshape(B, r * c, -1)


def cut_by_slices(pixels, patch, has):
    x = corner(pixels, patch, has)
    rows, columns = range(0, x.shape[2], patch), range(0, x.shape[3], patch)
    if "viewed" in has:
        return torch.stack(x.flatten(1).chunk(len(rows) * len(columns), 1), 1)
    places = [(r, c) for c in columns for r in rows] if "down" in has else [(r, c) for r in rows for c in columns]
    squares = [x[:, :, r : r + patch, c : c + patch] for r, c in places]
    if "scattered" in has:
        squares = [x[:, :, r // patch :: len(rows), c // patch :: len(columns)] for r, c in places]
    if "channels apart" in has:
        each = [square[:, k].flatten(1) for k in range(3) for square in squares]
        return torch.cat(each, 1).unflatten(1, (len(squares), -1))
    axes = [{"c": 1, "y": 2, "x": 3}[axis] for axis in order_inside(has)]
    return torch.stack([square.permute(0, *axes).flatten(1) for square in squares], 1)


def cut_by_indices(pixels, patch, has):
    x = corner(pixels, patch, has)
    B, C, H, W = x.shape
    n, size = (H // patch) * (W // patch), C * patch * patch
    table = torch.arange(C * H * W).view(C, H, W)
    if not {"viewed"} & {*has}:
        where = []
        for i in range(n):
            r, c = (i % (H // patch), i // (H // patch)) if "down" in has else divmod(i, W // patch)
            part = table[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
            part = table[:, r :: H // patch, c :: W // patch] if "scattered" in has else part
            where.append(torch.einsum(f"cyx->{order_inside(has)}", part).reshape(-1))
        table = torch.stack(where)
        if "channels apart" in has:
            table = torch.cat([part for part in table.view(n, C, -1).unbind(1)]).reshape(n, size)
    return x.reshape(B, -1)[:, table.reshape(-1)].view(B, n, size)


# ---- 11.3 in three ways: permute, einsum-like moves, channel by channel ----


def how(has):
    mode = "bilinear" if "bilinear" in has else "nearest" if "nearest" in has else "bicubic"
    return {"mode": mode} if mode == "nearest" else {"mode": mode, "align_corners": "corners" in has}


def new_size(rows, columns, has):
    return (columns, rows) if "swapped" in has else (rows, columns)


def shifted(table, has):
    """The table as it is, or with the CLS token's row where the grid's first should be."""
    return torch.cat([table[:1], table[:-1]]) if "CLS as a place" in has else table


def with_first(table, new, has):
    first = table[:1] * 0 if "zero" in has else table[:1]
    return torch.cat([new, first]) if "last" in has else torch.cat([first, new])


def positions_by_permute(table, rows, columns, has):
    table, g, C = shifted(table, has), math.isqrt(len(table) - 1), table.shape[1]
    if "CLS in line" in has:
        return F.interpolate(table.T[None], rows * columns + 1, mode="linear")[0].T
    if "line" in has:
        return with_first(table, F.interpolate(table[1:].T[None], rows * columns, mode="linear")[0].T, has)
    if "as they are" in has:
        return with_first(table, table[1:].repeat(rows * columns, 1)[: rows * columns], has)
    square = table[1:].view(1, C, g, g) if "viewed in" in has else table[1:].view(1, g, g, C).permute(0, 3, 1, 2)
    square = square.transpose(2, 3) if "tipped" in has else square
    new = F.interpolate(square, size=new_size(rows, columns, has), **how(has))
    new = new.reshape(-1, C) if "viewed out" in has else new.permute(0, 2, 3, 1).reshape(-1, C)
    return with_first(table, new, has)


def positions_by_movedim(table, rows, columns, has):
    table = shifted(table, has)
    places, C = table[1:], table.shape[-1]
    side = round(len(places) ** 0.5)
    if {"line", "CLS in line"} & {*has}:
        source = table if "CLS in line" in has else places
        n = rows * columns + ("CLS in line" in has)
        at = ((torch.arange(n) + 0.5) * len(source) / n - 0.5).clamp(0, len(source) - 1)
        low, high = at.floor().long(), at.ceil().long()
        new = source[low] * (1 - at + low)[:, None] + source[high] * (at - low)[:, None]
        return new if "CLS in line" in has else with_first(table, new, has)
    if "as they are" in has:
        return with_first(table, torch.stack([places[i % len(places)] for i in range(rows * columns)]), has)
    square = places.reshape(C, side, side) if "viewed in" in has else places.unflatten(0, (side, side)).movedim(-1, 0)
    square = square.mT if "tipped" in has else square
    new = F.interpolate(square.unsqueeze(0), new_size(rows, columns, has), **how(has)).squeeze(0)
    new = new.flatten().view(-1, C) if "viewed out" in has else new.movedim(0, -1).flatten(0, 1)
    return with_first(table, new, has)


def positions_by_channel(table, rows, columns, has):
    table, g, C = shifted(table, has), int(len(table) ** 0.5), table.shape[1]
    if {"line", "CLS in line", "as they are"} & {*has}:
        if "as they are" in has:
            index = [i % (g * g) + 1 for i in range(rows * columns)]
            return with_first(table, table[index], has)
        source = table if "CLS in line" in has else table[1:]
        line = source.T.unsqueeze(1).unsqueeze(2)  # a picture of one row
        new = F.interpolate(line, (1, rows * columns + ("CLS in line" in has)), mode="bilinear").flatten(1).T
        return new if "CLS in line" in has else with_first(table, new, has)
    layers = []
    for c in range(C):
        square = table[1:, c].reshape(g, g)
        if "viewed in" in has:
            square = table[1:].flatten()[c * g * g : (c + 1) * g * g].reshape(g, g)
        square = square.t() if "tipped" in has else square
        layers.append(F.interpolate(square[None, None], new_size(rows, columns, has), **how(has)).flatten())
    new = torch.cat(layers).reshape(-1, C) if "viewed out" in has else torch.stack(layers, 1)
    return with_first(table, new, has)


# ---- 11.4 in three ways: cat, a tensor that is filled, picture by picture ----


def rows_of(places, has):
    """The places as they are added, a row for each token, the CLS token's first."""
    places = places.flip(0) if "places from the end" in has else places
    places = torch.cat([places[-1:], places[:-1]]) if "off by one" in has else places
    places = torch.cat([places[:1], places[:-1]]) if "patches off by one" in has else places
    keep = torch.ones(len(places), 1)
    keep[0] = 0.0 if {"CLS without", "none"} & {*has} else 1.0
    keep[1:] = 0.0 if {"patches without", "none"} & {*has} else 1.0
    return places * keep


def joined(x, rows, has):
    return x * rows if "times" in has else x - rows if "minus" in has else x + rows


def enter_by_cat(patches, cls, places, has):
    rows = rows_of(places, has)
    first = cls.repeat(len(patches), 1)
    first = torch.cat([first[:1], torch.zeros_like(first[1:])]) if "first picture alone" in has else first
    first, rest = joined(first, rows[0], has), joined(patches + cls * ("to all" in has), rows[1:], has)
    return torch.cat([rest, first[:, None]] if "last" in has else [first[:, None], rest], dim=1)


def enter_by_filling(patches, cls, places, has):
    B, N, C = patches.shape
    x = patches.new_zeros(B, N + 1, C)
    x[:, 1:] = patches
    x[: 1 if "first picture alone" in has else B, 0] = cls
    if "to all" in has:
        x[:, 1:] += cls
    x = joined(x, rows_of(places, has), has)
    return x[:, [*range(1, N + 1), 0]] if "last" in has else x


def enter_by_pictures(patches, cls, places, has):
    pictures, rows = [], rows_of(places, has).unbind()
    for n, picture in enumerate(patches):
        first = torch.zeros_like(cls) if n and "first picture alone" in has else cls
        tokens = [first, *(token + cls if "to all" in has else token for token in picture)]
        tokens = [joined(token, row, has) for token, row in zip(tokens, rows, strict=True)]
        pictures.append(torch.stack(tokens[1:] + tokens[:1] if "last" in has else tokens))
    return torch.stack(pictures)


# ---- 11.5 in three ways: cross-entropy, logsumexp, a loop over queries ----


def halves(one, other, n, has):
    loss = one if "rows" in has else other if "columns" in has else one + other if "not halved" in has else (
        one + other) / 2
    return loss * (n if "sum" in has else 1) * (-1 if "below zero" in has else 1)


def scaled(cos, scale, has):
    return cos / scale if "divided" in has else cos if "no scale" in has else scale * cos


def clip_by_cross_entropy(images, texts, scale, has):
    if "long" not in has:
        images, texts = (F.normalize(x, dim=0 if "wrong axis" in has else 1) for x in (images, texts))
    if "right pairs" in has:
        return 1 - (images * texts).sum(dim=1).mean()
    logits, n = scaled(images @ texts.T, scale, has), len(images)

    def choice(x):
        if "no logarithm" in has:
            return 1 - x.softmax(1).diagonal().mean()
        loss = F.cross_entropy(x.softmax(1) if "softmax twice" in has else x, torch.arange(n))
        if "others alone" in has:
            loss = loss + (1 - x.softmax(1).diagonal()).log().mean()
        return loss

    return halves(choice(logits), choice(logits.mT), n, has)


def clip_by_logsumexp(images, texts, scale, has):
    dim = 0 if "wrong axis" in has else 1
    if "long" not in has:
        images, texts = images / images.norm(dim=dim, keepdim=True), texts / texts.norm(dim=dim, keepdim=True)
    cos = torch.einsum("ne,me->nm", images, texts)
    if "right pairs" in has:
        return torch.mean(1 - cos.diag())
    logits = scaled(cos, scale, has)
    losses = []
    for axis in (1, 0):
        x = logits.softmax(axis) if "softmax twice" in has else logits
        if "no logarithm" in has:
            losses.append((1 - x.softmax(axis).diag()).mean())
            continue
        among = x.clone().fill_diagonal_(-math.inf) if "others alone" in has else x
        losses.append((among.logsumexp(axis) - x.diag()).mean())
    return halves(*losses, len(images), has)


def clip_by_loop(images, texts, scale, has):
    def unit(x):
        length = (x * x).sum(0 if "wrong axis" in has else 1, keepdim=True).sqrt()
        return x if "long" in has else x / length

    a, b, n = unit(images), unit(texts), len(images)
    if "right pairs" in has:
        return torch.stack([1 - a[i] @ b[i] for i in range(n)]).mean()
    totals = []
    for queries, others in ((a, b), (b, a)):
        losses = []
        for i, query in enumerate(queries):
            x = scaled(torch.stack([query @ other for other in others]), scale, has)
            x = torch.softmax(x, 0) if "softmax twice" in has else x
            among = torch.cat([x[:i], x[i + 1 :]]) if "others alone" in has else x
            loss = torch.logsumexp(among, 0) - x[i]
            losses.append(1 - torch.exp(-loss) if "no logarithm" in has else loss)
        totals.append(sum(losses) / n)
    return halves(*totals, n, has)


# ---- 11.6 in three ways: logsigmoid, binary cross-entropy, a loop over pairs ----


def logit_of(cos, scale, bias, has):
    scaled = cos / scale if "divided" in has else cos if "no scale" in has else cos * scale
    if "bias inside" in has:
        return (cos + bias) / scale if "divided" in has else cos + bias if "no scale" in has else (cos + bias) * scale
    return scaled if "no bias" in has else scaled - bias if "minus bias" in has else scaled + bias


def divided(losses, has):
    n = len(losses)
    loss = losses.sum() if "sum" in has else losses.sum() / n**2 if "mean" in has else losses.sum() / n
    return loss * (-1 if "below zero" in has else 1)


def choices(logits, has):
    right = torch.arange(len(logits))
    one = F.cross_entropy(logits, right)
    return one if "half CLIP" in has else (one + F.cross_entropy(logits.mT, right)) / 2


def loss_by_logsigmoid(images, texts, scale, bias, has):
    if "long" not in has:
        images, texts = images / images.norm(dim=1, keepdim=True), texts / texts.norm(dim=1, keepdim=True)
    logits = logit_of(images @ texts.T, scale, bias, has)
    if {"CLIP", "half CLIP"} & {*has}:
        return choices(logits, has)
    sign = torch.eye(len(logits)) if "1 and 0" in has else 2 * torch.eye(len(logits)) - 1
    sign = torch.ones_like(sign) if "all yes" in has else sign
    losses = -F.logsigmoid((-1 if "flipped" in has else 1) * sign * logits)
    losses = losses.tril().triu() if "right pairs" in has else losses
    losses = losses - losses.diag().diag() if "wrong pairs" in has else losses
    return divided(losses, has)


def loss_by_entropy(images, texts, scale, bias, has):
    cos = torch.cosine_similarity(images[:, None], texts[None], dim=-1)
    cos = torch.einsum("ne,me->nm", images, texts) if "long" in has else cos
    logits = logit_of(cos, scale, bias, has)
    if {"CLIP", "half CLIP"} & {*has}:
        p = -logits.log_softmax(1).diag().mean()
        return p if "half CLIP" in has else (p - logits.log_softmax(0).diag().mean()) / 2
    n = len(logits)
    right = torch.eye(n)
    logits = logits * right if "1 and 0" in has else logits
    target = torch.ones(n, n) if {"all yes", "1 and 0"} & {*has} else right
    target = 1 - target if "flipped" in has else target
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    losses[~right.bool() if "right pairs" in has else right.bool() & ("wrong pairs" in has)] = 0
    return divided(losses, has)


def loss_by_loop(images, texts, scale, bias, has):
    n = len(images)
    logits, losses = torch.zeros(n, n), torch.zeros(n, n)
    for i in range(n):
        for j in range(n):
            a, b = images[i], texts[j]
            cos = a @ b if "long" in has else a @ b / (a @ a).sqrt() / (b @ b).sqrt()
            logits[i, j] = x = logit_of(cos, scale, bias, has)
            if ("right pairs" in has and i != j) or ("wrong pairs" in has and i == j):
                continue
            sign = 1 if i == j or "all yes" in has else -1
            sign = int(i == j) if "1 and 0" in has else sign
            losses[i, j] = F.softplus(sign * x if "flipped" in has else -sign * x)
    return choices(logits, has) if {"CLIP", "half CLIP"} & {*has} else divided(losses, has)


WAYS = {
    "11.1": (cut_by_reshape, cut_by_slices, cut_by_indices),
    "11.3": (positions_by_permute, positions_by_movedim, positions_by_channel),
    "11.4": (enter_by_cat, enter_by_filling, enter_by_pictures),
    "11.5": (clip_by_cross_entropy, clip_by_logsumexp, clip_by_loop),
    "11.6": (loss_by_logsigmoid, loss_by_entropy, loss_by_loop),
}
ONE_SIDE = "one side of the grid"
IN_LINE = "like a line: a place is a row and a column of a square, stretch it in both directions"
# what a message must hold, for each fault
TOLD = {
    "11.1": {"viewed": "runs of rows", "scattered": "pixels that lie apart",
             "channels apart": "channels came apart", "down": "go down the columns",
             "channel last": "channel comes last", "tipped": "is tipped over",
             "tipped, channel last": "column, row, channel", "bottom right": "at the top and left",
             "centre": "at each side", "squeezed": "squeezed the picture"},
    "11.3": {"last": "came to the end", "zero": "row is zero", "CLS as a place": "row for the first place",
             "viewed in": "Going in", "viewed out": "Coming out",
             "swapped": "swapped rows", "tipped": "tipped over", "line": IN_LINE,
             "CLS in line": IN_LINE + "; and keep the CLS token's row out of it", "bilinear": "That is bilinear",
             "nearest": "nearest old place", "corners": "align_corners=True", "as they are": "as they are"},
    "11.4": {"last": "stands last", "first picture alone": "Only the first picture", "off by one": "off by one",
             "patches off by one": "off by one", "places from the end": "from the end to the start",
             "none": "No places were added",
             "CLS without": "The CLS token has no place", "patches without": "The patches have no places",
             "times": "You multiplied by the places", "minus": "You subtracted the places",
             "to all": "added the CLS vector to the patches"},
    "11.5": {"long": "as long as they are", "wrong axis": "the columns of length 1", "no scale": "scale is missing",
             "divided": "divided by the scale", "rows": "pictures choose among the texts, but not",
             "columns": "texts choose among the pictures, but not", "not halved": "added both directions",
             "sum": "added up the pairs", "no logarithm": "There is no logarithm",
             "softmax twice": "the softmax of a softmax", "others alone": "by the wrong pairs alone",
             "right pairs": "at the right pairs alone", "below zero": "below zero: a logarithm"},
    "11.6": {"long": "as long as they are", "no bias": "bias is missing", "minus bias": "subtract the bias",
             "bias inside": "scale the bias", "no scale": "scale is missing", "divided": "divide by the scale",
             "mean": "took the mean", "sum": "You didn't divide", "right pairs": "right pairs alone",
             "wrong pairs": "wrong pairs alone", "all yes": "every pair to be one", "1 and 0": "multiply by 1 and 0",
             "flipped": "wrong way round", "below zero": "below zero: log", "CLIP": "That is CLIP",
             "half CLIP": "That is half"},
}  # fmt: skip
# faults that cannot stand in one answer, or of which one hides the other
APART = {
    "11.1": [
        {"viewed", "channels apart", "channel last", "tipped", "tipped, channel last"},  # how a patch's numbers stand
        {"viewed", "scattered"}, {"viewed", "down"}, {"channels apart", "down"},  # no token is a patch
        {"bottom right", "centre", "squeezed"},  # each says what is left of a picture that doesn't fit
    ],
    "11.3": [
        {"last", "CLS in line"}, {"zero", "CLS in line"}, {"CLS as a place", "CLS in line"},
        # a CLS row that is stretched along has no place of its own
        {"bilinear", "nearest"}, {"nearest", "corners"},  # the nearest place needs no rule for corners
        *({one, other} for one in ("line", "CLS in line", "as they are") for other in (
            "viewed in", "viewed out", "swapped", "tipped", "line", "CLS in line", "bilinear", "nearest", "corners",
            "as they are")),  # in a line, or unstretched, there is no square to be mistaken
    ],
    "11.4": [
        {"none", one} for one in ("places from the end", "off by one", "patches off by one", "CLS without",
                                  "patches without", "times", "minus")] + [  # nothing is left to be added wrongly
        {"places from the end", "off by one", "patches off by one"},  # each says which row belongs to which token
        {"patches off by one", "CLS without"}, {"patches off by one", "patches without"},  # no CLS row, no patch's row
        {"CLS without", "patches without"},  # together they are "none"
        {"off by one", "patches without"},  # the CLS token gets the last row, as from the end
        {"times", "minus"},  # each says what is done with a place
        *({"times", one} for one in ("CLS without", "patches without")),  # times nothing is nothing
    ],
    "11.5": [
        {"long", "wrong axis"},  # each says how long a vector is
        {"no scale", "divided"},  # each says what becomes of the scale
        {"rows", "columns"}, {"rows", "not halved"}, {"columns", "not halved"},  # each says which directions count
        {"no logarithm", "softmax twice"}, {"no logarithm", "others alone"},  # each says what a choice costs
        {"softmax twice", "others alone"},
        *({"right pairs", one} for one in (
            "no scale", "divided", "rows", "columns", "not halved", "sum", "no logarithm", "softmax twice",
            "others alone", "below zero")),  # nobody chooses
    ],
    "11.6": [
        {"no bias", "minus bias", "bias inside"},  # each says what becomes of the bias
        {"no scale", "divided"}, {"no scale", "bias inside"},  # without a scale nothing can be scaled wrongly
        {"mean", "sum"},  # one number divides the sum
        {"right pairs", "wrong pairs"},  # each says which pairs count
        {"right pairs", "all yes"}, {"right pairs", "1 and 0"},  # of the right pairs all are 1
        {"all yes", "1 and 0"},  # each says what the wrong pairs are multiplied by
        {"wrong pairs", "flipped"},  # without the diagonal that is "all yes"
        *({one, other} for one in ("CLIP", "half CLIP") for other in (
            "CLIP", "half CLIP", "mean", "sum", "right pairs", "wrong pairs", "all yes", "1 and 0", "flipped",
            "below zero")),  # a softmax looks at no pair alone
        *({one, other} for one in ("CLIP", "half CLIP") for other in ("no bias", "minus bias", "bias inside")),
        # and does not feel a bias
    ],
}  # fmt: skip


@pytest.mark.parametrize("exercise", WAYS)
def test_the_right_answer_passes_however_it_is_written(exercise):
    assert_right(exercise, WAYS[exercise])


@pytest.mark.parametrize("exercise", WAYS)
def test_each_fault_gets_its_sentence_alone_and_beside_another(exercise):
    assert_told(exercise, WAYS[exercise], TOLD[exercise], APART[exercise])


def cut(pixels, patch):
    return cut_by_reshape(pixels, patch, ())


def positions_for(*case):
    return positions_by_permute(*case, ())


def enter(*case):
    return enter_by_cat(*case, ())


def clip_of(*case):
    return clip_by_cross_entropy(*case, ())


def loss_of(*case):
    return loss_by_logsigmoid(*case, ())


def by_unfold(pixels, patch):
    return F.unfold(pixels, patch, stride=patch).mT


def by_methods(pixels, patch):
    return pixels.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def by_convolution(pixels, patch):
    n = 3 * patch**2
    return F.conv2d(pixels, torch.eye(n).view(n, 3, patch, patch), stride=patch).flatten(2).mT


@pytest.mark.parametrize("answer", [by_unfold, by_methods, by_convolution])
def test_cutting_by_what_the_exercise_forbids_is_noticed(answer):
    assert "calls PyTorch's own" in check("11.1", answer).message


def by_hand(toward):
    """The loss, with a road of its own to -log of the sigmoid of x."""
    def answer(images, texts, scale, bias):
        logits = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T * scale + bias
        return toward((2 * torch.eye(len(logits)) - 1) * logits).sum() / len(logits)

    return answer


@pytest.mark.parametrize("toward", [
    lambda x: -torch.log(torch.sigmoid(x)), lambda x: -torch.log(1 / (1 + torch.exp(-x))),
    lambda x: torch.log(1 + torch.exp(-x)), lambda x: -(x.exp() / (1 + x.exp())).log(),
])  # fmt: skip
def test_a_loss_that_overflows_is_told(toward):
    message = check("11.6", by_hand(toward)).message
    assert "large logits: " in message and "F.logsigmoid computes both at once" in message
    assert not any(told in message for told in TOLD["11.6"].values()), message


@pytest.mark.parametrize("toward", [
    lambda x: -torch.log(torch.sigmoid(x) + 1e-9), lambda x: -torch.sigmoid(x).clamp(min=1e-12).log(),
    lambda x: -torch.log(torch.sigmoid(x.clamp(-40, 40))),
])  # fmt: skip
def test_a_loss_that_is_cut_off_is_told(toward):
    message = check("11.6", by_hand(toward)).message
    assert message.startswith("6 of 7 properties hold") and "A large loss is cut off" in message


def test_a_loss_that_overflows_is_told_beside_another_fault():
    message = check("11.6", lambda a, b, scale, _: by_hand(lambda x: -x.sigmoid().log())(a, b, scale, 0.0)).message
    assert "bias is missing" in message and "not finite" in message


def clip_by_hand(toward):
    """CLIP's loss, with a road of its own from logits to -log of the softmax."""
    def answer(images, texts, scale):
        logits = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T * scale
        return (toward(logits).diagonal() + toward(logits.T).diagonal()).mean() / 2

    return answer


@pytest.mark.parametrize("toward", [
    lambda x: -torch.log(torch.softmax(x, dim=1)), lambda x: -(x.exp() / x.exp().sum(dim=1, keepdim=True)).log(),
    lambda x: x.exp().sum(dim=1, keepdim=True).log() - x,
    lambda x: -(y := (x - x.max()).exp()).div(y.sum(dim=1, keepdim=True)).log(),
])  # fmt: skip
def test_a_choice_that_overflows_is_told(toward):
    message = check("11.5", clip_by_hand(toward)).message
    assert "large logits: " in message and "logsumexp avoid both" in message
    assert not any(told in message for told in TOLD["11.5"].values()), message


@pytest.mark.parametrize("toward", [
    lambda x: -torch.log(torch.softmax(x, dim=1) + 1e-9), lambda x: -torch.softmax(x, dim=1).clamp(min=1e-12).log(),
    lambda x: -torch.log_softmax(x.clamp(-40, 40), dim=1),
])  # fmt: skip
def test_a_choice_that_is_cut_off_is_told(toward):
    message = check("11.5", clip_by_hand(toward)).message
    assert message.startswith("6 of 7 properties hold") and "F.cross_entropy needs no clamp" in message


def test_tokens_put_first_in_place_are_told():
    def in_place(patches, cls, places):
        patches += places[1:]
        return torch.cat([(cls + places[0]).expand(len(patches), 1, -1), patches], dim=1)

    assert "your function changes `patches`" in check("11.4", in_place).message


OTHERWISE = [
    ("11.1", lambda x, p: cut(x, p).mT, r"got \(1, 12, 4\). Lay each patch out in one row"),
    ("11.1", lambda x, p: cut(x, p).unflatten(2, (3, p, p)), "Lay each patch out in one row"),
    ("11.1", lambda x, p: cut(x, p).unflatten(2, (3, -1)), "Lay each patch out in one row"),
    ("11.1", lambda x, p: cut(x, p).double(), "dtype should be torch.float32"),
    ("11.1", lambda x, p: cut(x, p)[:, :-1], r"shape should be \(1, 4, 12\), got \(1, 3, 12\)"),
    ("11.1", lambda x, p: cut(x, p) / 255, "all numbers: "),
    ("11.3", lambda *case: positions_for(*case)[1:], r"got \(6, 6\). The CLS token's row is missing"),
    ("11.3", lambda t, r, c: positions_for(t, r, c).split((1, r * c))[1], "The CLS token's row is missing"),
    ("11.3", lambda t, r, c: torch.stack([*positions_for(t, r, c)][1:]), "The CLS token's row is missing"),
    ("11.3", lambda *case: positions_for(*case).T, r"shape should be \(7, 6\), got \(6, 7\)"),
    ("11.3", lambda t, r, c: F.interpolate(t, (r, c)), "it raised"),
    ("11.3", lambda *case: positions_for(*case) * 2, "all numbers: "),
    ("11.4", lambda *case: enter(*case)[:, 1:], "The CLS token is missing: it is a token of its own"),
    ("11.4", lambda p, c, places: p + places[1:], "The CLS token is missing: it is a token of its own"),  # noqa: ARG005
    ("11.4", lambda *case: enter(*case).transpose(1, 2), r"shape should be \(1, 5, 6\), got \(1, 6, 5\)"),
    ("11.4", lambda p, c, places: torch.cat([c, p], dim=1) + places, "it raised"),
    ("11.4", lambda *case: 2 * enter(*case), "all numbers: "),
    ("11.5", lambda *case: clip_of(*case)[None], r"shape should be \(\)"),
    ("11.5", lambda *_: 0.0, "should be a tensor"),
    ("11.5", lambda *case: clip_of(*case) + 0.1, "all numbers: "),
    ("11.6", lambda *case: loss_of(*case)[None], r"shape should be \(\)"),
    ("11.6", lambda *_: 0.0, "should be a tensor"),
    ("11.6", lambda *case: loss_of(*case) + 0.1, "all numbers: "),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), OTHERWISE)
def test_what_no_fault_explains_is_told_with_its_numbers(exercise, answer, message):
    result = check(exercise, answer)
    assert not result
    assert re.search(message, result.message, re.S), result.message
    assert not any(told in result.message for told in TOLD[exercise].values()), result.message


def test_a_message_names_the_property_the_input_and_both_numbers():
    message = check("11.1", with_faults(WAYS["11.1"][0], ("tipped", "down"))).message
    assert "inside a patch: for pixels (1, 3, 4, 4), the numbers 0, 1, 2, ..., and patch 2: [" in message
    assert "one patch after another: for pixels (1, 3, 4, 6), " in message
    message = check("11.4", with_faults(WAYS["11.4"][0], ("CLS without",))).message
    assert ("the places: for patches (2, 3, 2), cls (2,), places (4, 2): [0, 0, 1] should be 17, got 2. The CLS token "
            "has no place") in message  # fmt: skip


# ---- 11.2: many answers are right ----


def put(patches, picture, patch):
    return F.fold(patches.T[None], picture.shape[1:], patch, stride=patch)[0]


def in_order(order):
    """The patches in another order: order(n) gives, for each place, which patch comes there."""
    return lambda picture, patch: put((p := cut(picture[None], patch)[0])[order(len(p))], picture, patch)


def mirrored_by_loop(picture, _):
    return torch.stack([picture[:, :, x] for x in reversed(range(picture.shape[2]))], 2)


def rolled(across, down=0):
    return lambda picture, _: picture.roll((across, down), (2, 1))


@pytest.mark.parametrize("order", [
    lambda n: torch.arange(n).roll(1), lambda n: torch.arange(n).roll(-1), lambda n: [n - 1, *range(n - 1)],
])  # fmt: skip
def test_every_picture_of_moved_patches_passes(order):
    result = check("11.2", in_order(order))
    assert result, result.message


@pytest.mark.parametrize(("answer", "phrases"), [
    (lambda x, _: x.flip(-1), ["A mirror mirrors"]), (mirrored_by_loop, ["A mirror mirrors"]),
    (lambda x, _: x[..., torch.arange(x.shape[2] - 1, -1, -1)], ["A mirror mirrors"]),
    (lambda x, _: x.flip(-2), ["Upside down"]), (lambda x, _: torch.stack([*x.mT.flip(2)]).mT, ["Upside down"]),
    (lambda x, _: x[:, list(range(x.shape[1]))[::-1]], ["Upside down"]),
    (lambda x, _: x.flip(-1, -2), ["Half a turn"]), (lambda x, _: torch.rot90(x, 2, (1, 2)), ["Half a turn"]),
    (lambda x, _: x.flatten(1).flip(1).view_as(x), ["Half a turn"]),
    (rolled(1), ["one pixel"]), (lambda x, _: torch.cat([x[..., -1:], x[..., :-1]], -1), ["one pixel"]),
    (rolled(0, -1), ["one pixel"]), (rolled(1, 1), ["one pixel"]),
    (lambda x, p: x.flip(0).roll(p, 1), ["colours"]), (lambda x, _: 1 - x, ["colours"]),
    (lambda x, _: x[[2, 1, 0]], ["colours"]),
    (lambda x, _: x.flip(0).flip(2), ["colours", "A mirror mirrors"]),
    (lambda x, _: (1 - x).roll(1, 2), ["colours", "one pixel"]),
    (lambda x, _: x.roll(1, 2).flip(1), ["Upside down", "one pixel"]),
    (lambda x, _: x.clone(), ["the same picture"]), (rolled(0), ["the same picture"]),
    (in_order(lambda n: torch.arange(n)), ["the same picture"]),
    (lambda x, p: put(cut(x[None], p)[0].roll(1, 1), x, p), ["4 of 4 patches are none of the picture's: move whole"]),
    (in_order(lambda n: [0] * n), ["stand twice", "1 of 4 patches are where they were"]),
    (in_order(lambda n: [1, *[0] * (n - 1)]), ["stand twice"]),
    (lambda x, p: x[:, :p, :p].repeat(1, x.shape[1] // p, x.shape[2] // p), ["stand twice", "where they were"]),
    (in_order(lambda n: [1, 0, *range(2, n)]), ["2 of 4 patches are where they were"]),
    (lambda x, p: x.roll(p, dims=2), ["for a picture (3, 15, 5)", "the same picture"]),
    (lambda x, p: cut(x[None], p), ["shape should stay (3, 8, 8)"]), (lambda x, _: x.tolist(), ["return a picture"]),
    (lambda *_: "a picture", ["return a picture"]),
])  # fmt: skip
def test_two_pictures_that_are_told_apart_are_told_why(answer, phrases):
    result = check("11.2", answer)
    assert not result
    assert all(phrase in result.message for phrase in phrases), result.message


def test_every_fault_of_an_exercise_is_planted_here():
    for exercise in exercises_of("11"):
        assert len(exercise.mistakes) == len(TOLD.get(exercise.id, {}))


@pytest.mark.parametrize("value", [
    None, "x", [], (None, None), math.nan, 10**400, print, torch.ones(0), torch.tensor([1, 2]),
    torch.ones(2, device="meta"), torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex64),
    torch.ones(2, requires_grad=True), {1: 2}, torch.ones(3, 8, 8, device="meta"), torch.tensor(1j),
])  # fmt: skip
def test_a_result_of_any_kind_gets_a_few_lines(value):
    for exercise in exercises_of("11"):
        result = check(exercise.id, lambda *_: value)
        assert not result
        assert len(result.message.splitlines()) <= 5 and all(len(line) < 500 for line in result.message.splitlines())
