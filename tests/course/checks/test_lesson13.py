"""course.checks.lesson13: right answers pass, and each usual mistake is called by its name, alone and in pairs.

Each exercise is written in three ways that have little in common, and each way can have any of the faults in it.
"""

import math
import re

import pytest
import torch
import torch.nn.functional as F

from llamamm.course.checks import check
from llamamm.course.checks.core import exercises_of, find_exercise
from tests.course.checks.ways import assert_right, assert_told

# ---- 13.1 in three ways: ifs, a product, a list of what stands in the prompt ----


def places_by_ifs(rows, columns, merge, latents, gated, has):
    if gated and "spliced" not in has:
        return 0 if "nothing" in has else 2 if "start and end" in has else 1 + latents if "counted" in has else 1
    side = 1 if "unmerged" in has else merge
    tokens = rows * columns // side if "not squared" in has else (rows // side) * (columns // side)
    if latents and "no latents" not in has:
        if "merged latents" in has:
            latents = latents // side if "not squared" in has else latents // side // side
        tokens = tokens + latents if "beside" in has else latents
    return tokens if "no frame" in has else tokens + 1 if "half a frame" in has else tokens + 2


def places_by_products(rows, columns, merge, latents, gated, has):
    power = 0 if "unmerged" in has else 1 if "not squared" in has else 2
    features, given = int(rows * columns / merge**power), latents
    given = math.floor(given / merge**power) if "merged latents" in has else given
    keep = latents == 0 or "beside" in has or "no latents" in has
    spliced = keep * features + ("no latents" not in has) * given
    all_of_it = spliced + 2 - 2 * ("no frame" in has) - ("half a frame" in has)
    gate = 1 - ("nothing" in has) + ("start and end" in has) + latents * ("counted" in has)
    return all_of_it if not gated or "spliced" in has else gate


def places_by_lists(rows, columns, merge, latents, gated, has):
    features = [(r, c) for r in range(rows) for c in range(columns)]
    if "not squared" in has:
        features = features[::merge]
    elif "unmerged" not in has:
        features = [(r, c) for r, c in features if r % merge == 0 and c % merge == 0]
    given = ["latent"] * latents
    if "merged latents" in has and "unmerged" not in has:
        given = given[: latents // (merge if "not squared" in has else merge * merge)]
    prompt = features if not latents or "no latents" in has else given
    prompt = features + given if "beside" in has else prompt
    prompt = prompt if "no frame" in has else ["start", *prompt] if "half a frame" in has else ["<", *prompt, ">"]
    if gated and "spliced" not in has:
        prompt = [] if "nothing" in has else ["<", ">"] if "start and end" in has else ["<"]
        prompt = prompt + ["latent"] * latents if "counted" in has else prompt
    return len(prompt)


# ---- 13.2 in three ways: squares cut out, indices, unfold ----


def arranged(squares, has):
    """Squares (B, row, column, i, j, F) laid out, with the faults inside a square."""
    squares = squares.transpose(1, 2) if "outer" in has else squares
    squares = squares.transpose(3, 4) if "inner" in has else squares
    squares = squares.flatten(1, 2)
    if "mean" in has:
        return squares.mean((2, 3))
    if "sum" in has:
        return squares.flatten(2, 3).sum(2)
    if "first" in has:
        return squares[:, :, 0, 0]
    return (squares.permute(0, 1, 4, 2, 3) if "apart" in has else squares).flatten(2)


def shuffle_by_slices(features, rows, columns, merge, has):
    rows, columns = (columns, rows) if "grid" in has else (rows, columns)
    if "runs" in has:
        cut = features.reshape(len(features), rows // merge, columns // merge, merge, merge, -1)
        return arranged(cut, has - {"outer"})
    grid = features.unflatten(1, (rows, columns))
    R, C = rows // merge, columns // merge
    cut = [[grid[:, y::R, x::C] if "spread" in has else grid[:, y * merge :, x * merge :][:, :merge, :merge]
            for x in range(C)] for y in range(R)]  # fmt: skip
    return arranged(torch.stack([torch.stack(row, 1) for row in cut], 1), has)


def shuffle_by_index(features, rows, columns, merge, has):
    B, _, width = features.shape
    rows, columns = (columns, rows) if "grid" in has else (rows, columns)
    R, C = rows // merge, columns // merge
    out = torch.empty(B, R * C, merge, merge, width)
    for n in range(R * C):
        r, c = (n % R, n // R) if "outer" in has and "runs" not in has else divmod(n, C)
        for i in range(merge):
            for j in range(merge):
                y, x = (i * R + r, j * C + c) if "spread" in has else (r * merge + i, c * merge + j)
                at = (n * merge + i) * merge + j if "runs" in has else y * columns + x
                place = (j, i) if "inner" in has else (i, j)
                out[(slice(None), n, *place)] = features[:, at]
    out = out.flatten(2, 3)
    pooled = {"mean": out.mean(2), "sum": out.sum(2), "first": out[:, :, 0]}
    return next((pooled[f] for f in pooled if f in has), (out.transpose(2, 3) if "apart" in has else out).flatten(2))


def shuffle_by_einops_like_steps(features, rows, columns, merge, has):
    B, N, width = features.shape
    rows, columns = (columns, rows) if "grid" in has else (rows, columns)
    R, C = rows // merge, columns // merge
    if "runs" in has:
        x = features.view(B, R * C, merge, merge, width)
    else:
        x = features.view(B, merge, R, merge, C, width) if "spread" in has else None
        x = x.movedim((1, 3), (3, 4)) if x is not None else features.view(B, R, merge, C, merge, width).swapaxes(2, 3)
        x = x.swapaxes(1, 2) if "outer" in has else x
        x = x.reshape(B, R * C, merge, merge, width)
    x = torch.einsum("bnijf->bnjif", x) if "inner" in has else x
    if {"mean", "sum", "first"} & has:
        weights = torch.ones(merge, merge) / (merge**2 if "mean" in has else 1)
        weights = F.pad(torch.ones(1, 1), (0, merge - 1, 0, merge - 1)) if "first" in has else weights
        return torch.einsum("bnijf,ij->bnf", x, weights)
    return torch.einsum("bnijf->bnfij", x).reshape(B, R * C, -1) if "apart" in has else x.reshape(B, R * C, -1)


# ---- 13.3 in three ways: whole tensors, part by part, by an index ----


def stack_of_tensors(features, mask, merge, has):
    B, N, width = features.shape
    clean = features if {"not real", "times mask"} & {*has} else features.masked_fill(~mask[:, :, None], 0.0)
    clean = clean * mask[:, :, None] if "times mask" in has else clean
    clean = features.masked_fill(mask[:, :, None], 0.0) if "inverted" in has else clean
    n = -N % merge
    if "drop" in has:
        clean, mask, n = clean[:, : N // merge * merge], mask[:, : N // merge * merge], 0
    side = (n, 0) if "before" in has else (0, n)
    mask, old = F.pad(mask, side), clean
    clean = F.pad(clean, (0, 0, *side))
    if "repeat" in has and n:
        clean = torch.cat([old] + [features[:, -1:]] * n, 1)
    M = clean.shape[1] // merge
    real = mask[:, ::merge]
    real = mask[:, :M] if "head" in has else mask.unflatten(1, (M, merge)).all(-1) if "all" in has else real
    real = real | True if "every" in has else real
    frames = clean.unflatten(1, (merge, M)).transpose(1, 2) if "spread" in has else clean.unflatten(1, (M, merge))
    return (frames.mean(2) if "mean" in has else frames.mT.flatten(2) if "apart" in has else frames.flatten(2)), real


def stack_by_parts(features, mask, merge, has):
    B, N, width = features.shape
    rows = []
    for f, m in zip(features.unbind(1), mask.unbind(1), strict=True):
        clean = f * m[:, None].float() if "times mask" in has else torch.where(m[:, None], f, torch.zeros_like(f))
        clean = torch.where(m[:, None], 0.0, f) if "inverted" in has else clean
        rows.append(f if "not real" in has else clean)
    marks = list(mask.unbind(1))
    empty = torch.zeros(B, width)
    while len(rows) % merge:
        if "drop" in has:
            rows, marks = rows[:-1], marks[:-1]
        elif "before" in has:
            rows, marks = [empty, *rows], [torch.zeros(B, dtype=torch.bool), *marks]
        else:
            rows = [*rows, features[:, -1] if "repeat" in has else empty]
            marks.append(torch.zeros(B, dtype=torch.bool))
    M = len(rows) // merge
    stacks, real = [], []
    for m in range(M):
        own = [m + i * M for i in range(merge)] if "spread" in has else [m * merge + i for i in range(merge)]
        frames = torch.stack([rows[i] for i in own], dim=-1 if "apart" in has else 1)
        stacks.append(torch.stack([rows[i] for i in own]).mean(0) if "mean" in has else frames.flatten(1))
        of_stack = marks[m * merge : (m + 1) * merge]
        mark = marks[m] if "head" in has else of_stack[0]
        mark = of_stack[-1] & of_stack[0] if "all" in has else mark
        real.append(torch.ones(B, dtype=torch.bool) if "every" in has else mark)
    return torch.stack(stacks, 1), torch.stack(real, 1)


def stack_by_index(features, mask, merge, has):
    B, N, width = features.shape
    M = N // merge if "drop" in has else (N + merge - 1) // merge
    at = torch.arange(M * merge).view(M, merge) - (-N % merge if "before" in has else 0)
    marks = F.pad(mask, (1, M * merge))[:, at.clamp(min=-1).flatten() + 1].view(B, M, merge)
    at = at.flatten().view(merge, M).T if "spread" in has else at
    source = torch.where(mask[..., None] | torch.tensor("not real" in has), features, 0.0)
    source = torch.einsum("bnf,bn->bnf", features, mask.float()) if "times mask" in has else source
    source = torch.where(mask[..., None], 0.0, features) if "inverted" in has else source
    last = features[:, -1:] if "repeat" in has else torch.zeros(B, 1, width)
    source = torch.cat([torch.zeros(B, 1, width), source, last], 1)
    frames = source[:, at.clamp(-1, N) + 1]  # (B, M, merge, F)
    real = marks.prod(2).bool() if "all" in has else marks.flatten(1)[:, :M] if "head" in has else marks[..., 0]
    real = real.logical_or(torch.tensor(True)) if "every" in has else real
    if "mean" in has:
        return frames.sum(2) / merge, real
    return torch.cat(frames.unbind(3 if "apart" in has else 2), -1), real


# ---- 13.4 in three ways: whole tensors, sound by sound in double precision, einsum ----


def fetch_of_tensors(latents, features, mask, q, k, v, has):
    L, C = latents.shape[1:]
    q, k, v = [m.T for m in (q, k, v)] if "transposed" in has else (q, k, v)
    mask = ~mask if "inverted" in has else mask
    features = features.masked_fill(~mask[..., None], 0.0) if "zeroed" in has else features
    parts = [latents, features] if "latents first" in has else [features, latents]
    real = torch.cat([mask, mask.new_ones(len(mask), L)], 1)
    context = torch.cat(parts, 1)
    if "features alone" in has:
        context, real = features, mask
    scores = latents @ q @ (context @ k).transpose(1, 2)
    scores = scores if "not divided" in has else scores / C if "by C" in has else scores * C**-0.5
    real = real.unsqueeze(1).expand_as(scores)
    dim = 1 if "over latents" in has else 2
    soft = torch.where(real, scores, 0.0 if "times mask" in has else -1e30)
    shares = (scores if {"no mask", "mask after", "zeroed"} & {*has} else soft).softmax(dim)
    shares = shares.where(real, 0.0) if "mask after" in has else shares
    values = context if "no values" in has else context @ k if "keys" in has else context @ v
    rest = {"not added": 0.0}.get(next(iter({"not added"} & {*has}), ""), latents)
    return shares @ values + (latents @ q if "to queries" in has else rest)


def fetch_one_by_one(latents, features, mask, q, k, v, has):
    out = []
    for z, x, real in zip(latents.double(), features.double(), mask, strict=True):
        Q, K, V = [(m.T if "transposed" in has else m).double() for m in (q, k, v)]
        real = ~real if "inverted" in has else real
        x = x * real[:, None] if "zeroed" in has else x
        seen = torch.cat((z, x) if "latents first" in has else (x, z)) if "features alone" not in has else x
        real = real if "features alone" in has else torch.cat([real, torch.ones(len(z), dtype=torch.bool)])
        scores = (z @ Q) @ (seen @ K).T / (1 if "not divided" in has else len(Q) if "by C" in has else len(Q) ** 0.5)
        if "times mask" in has:
            scores = scores * real
        weights = (scores - scores.max()).exp()
        if not {"times mask", "no mask", "mask after", "zeroed"} & {*has}:
            weights = weights * real
        total = weights.sum(0 if "over latents" in has else 1, keepdim=True)
        shares = torch.where(total > 0, weights / total, 1 / (len(z) if "over latents" in has else len(seen)))
        shares = shares * real if "mask after" in has else shares
        value = seen if "no values" in has else seen @ (K if "keys" in has else V)
        add = 0 if "not added" in has else z @ Q if "to queries" in has else z
        out.append(add + shares @ value)
    return torch.stack(out).float()


def fetch_by_einsum(latents, features, mask, q, k, v, has):
    B, L, C = latents.shape
    mask = mask.logical_not() if "inverted" in has else mask
    q, k, v = torch.stack([q, k, v]).mT if "transposed" in has else (q, k, v)
    seen = features = torch.where(mask[..., None], features, 0.0) if "zeroed" in has else features
    if "features alone" not in has:
        seen = torch.cat([features, latents], 1)
        seen = seen.roll(L, 1) if "latents first" in has else seen
        mask = torch.cat([mask, torch.ones(B, L) > 0], -1)
    scores = torch.einsum("blc,cd,bne,ed->bln", latents, q, seen, k)
    scores = scores if "not divided" in has else scores * C ** (-1 if "by C" in has else -0.5)
    bias = torch.zeros(mask.shape).masked_fill(~mask, -1e9)[:, None]
    if "times mask" in has:
        scores = scores * mask.float()[:, None]
    elif not {"no mask", "mask after", "zeroed"} & {*has}:
        scores = scores * mask[:, None] + bias
    shares = F.softmax(scores.mT, -1).mT if "over latents" in has else F.softmax(scores, -1)
    shares = torch.einsum("bln,bn->bln", shares, mask.float()) if "mask after" in has else shares
    matrix = torch.eye(C) if "no values" in has else k if "keys" in has else v
    fetched = torch.einsum("bln,bnc,cd->bld", shares, seen, matrix)
    return fetched if "not added" in has else fetched + (torch.einsum("blc,cd->bld", latents, q) if "to queries" in has
                                                         else latents)  # fmt: skip


WAYS = {
    "13.1": (places_by_ifs, places_by_products, places_by_lists),
    "13.2": (shuffle_by_slices, shuffle_by_index, shuffle_by_einops_like_steps),
    "13.3": (stack_of_tensors, stack_by_parts, stack_by_index),
    "13.4": (fetch_of_tensors, fetch_one_by_one, fetch_by_einsum),
}
# what a message must hold, for each fault
TOLD = {
    "13.1": {"no frame": "around what is spliced", "half a frame": "two more, not one", "not squared": "merge squared",
             "unmerged": "didn't merge", "beside": "beside the latents", "merged latents": "divided the latents",
             "no latents": "Perceiver is missing", "nothing": "learned start", "start and end": "no end is needed",
             "counted": "latents aren't in the prompt", "spliced": "nothing is spliced"},
    "13.2": {"runs": "runs of a row", "spread": "far apart", "grid": "swapped rows and columns",
             "outer": "squares go down", "inner": "Inside each square", "apart": "features came apart",
             "mean": "the mean of a square", "sum": "added a square's", "first": "kept one feature"},
    "13.3": {"not real": "isn't real is still", "inverted": "real frames 0", "times mask": "0 times NaN",
             "drop": "drop the last frames", "before": "at the beginning", "repeat": "its last frame:",
             "all": "only if all", "every": "every stack real", "head": "first M frames", "spread": "far apart",
             "apart": "came apart", "mean": "mean of the frames"},
    "13.4": {"features alone": "features alone", "latents first": "wrong columns", "inverted": "wrong way round",
             "no mask": "mask isn't used", "times mask": "multiply scores", "zeroed": "make filling 0",
             "mask after": "after the softmax",
             "not divided": "aren't divided", "by C": "divide scores by C", "over latents": "over the latents",
             "not added": "only what was fetched", "to queries": "to the queries", "keys": "keys for values",
             "no values": "matrix v isn't used", "transposed": "turned round"},
}  # fmt: skip
# faults that cannot stand in one answer, or of which one hides the other
APART = {
    "13.1": [
        {"no frame", "half a frame"},  # each says how many tokens stand around
        {"not squared", "unmerged"}, {"unmerged", "merged latents"},  # where nothing is merged there is no divisor
        {"beside", "no latents"}, {"merged latents", "no latents"},  # without latents none are counted
        {"nothing", "start and end", "counted", "spliced"},  # each says what stands in the prompt with gated blocks
    ],
    "13.2": [
        *({"runs", other} for other in ("spread", "grid", "outer")),  # runs of a row know no grid
        {"mean", "sum", "first", "inner"},  # each makes one feature of a square, in which order doesn't matter
        {"mean", "sum", "first", "apart"},  # nor are there several to come apart
    ],
    "13.3": [
        {"not real", "inverted", "times mask"},  # each says what becomes of what isn't real
        {"drop", "before", "repeat"},  # each says what becomes of the last stack
        {"all", "every", "head"},  # each says which stacks are real
        *({"inverted", other} for other in ("repeat", "spread", "apart")),  # of a whole sound all is 0
        {"apart", "mean"},  # a mean is no longer several frames
    ],
    "13.4": [
        {"features alone", "latents first"},  # without latents none are first
        {"no mask", "times mask", "zeroed", "mask after"},  # each says what the mask does
        {"zeroed", "latents first"},  # what is made 0 is in no column
        {"no mask", "inverted"}, {"no mask", "latents first"},  # a mask that isn't used is on no column
        {"not divided", "by C"},  # each says what the scores are divided by
        {"times mask", "over latents"},  # over the latents a masked column has even shares, too
        {"zeroed", "over latents"},  # that is what a mask after the softmax does then
        {"not added", "to queries"},  # each says what is added
        {"keys", "no values"},  # each says what the values are
    ],
}


@pytest.mark.parametrize("exercise", WAYS)
def test_the_right_answer_passes_however_it_is_written(exercise):
    assert_right(exercise, WAYS[exercise])


@pytest.mark.parametrize("number", range(1, 6))
def test_the_reference_passes(number):
    assert check(f"13.{number}", find_exercise(f"13.{number}").reference)


@pytest.mark.parametrize("exercise", WAYS)
def test_each_fault_gets_its_sentence_alone_and_beside_another(exercise):
    assert_told(exercise, WAYS[exercise], TOLD[exercise], APART[exercise])


def test_every_fault_of_these_exercises_is_planted_here():
    for exercise in exercises_of("13")[:4]:
        assert len({m.message for m in exercise.mistakes}) == len(TOLD[exercise.id])


OTHERWISE = [
    ("13.1", lambda *case: str(places_by_ifs(*case, ())), "should be a number"),
    ("13.1", lambda r, c: r * c, "it raised TypeError"),
    ("13.1", lambda *_: 7, "all results: for .* got 7"),
    ("13.2", lambda *case: shuffle_by_index(*case, set()).transpose(1, 2), r"shape should be \(1, 6, 12\)"),
    ("13.2", lambda *case: shuffle_by_index(*case, set()).double(), "dtype should be torch.float32"),
    ("13.2", lambda *case: shuffle_by_index(*case, {"mean"}), r"shape should be \(1, 6, 12\), got \(1, 6, 3\). One"),
    ("13.2", lambda *case: -shuffle_by_index(*case, set()), "all numbers: "),
    ("13.2", lambda x, r, c, m: x.view(r, c, m), "it raised RuntimeError"),
    ("13.3", lambda *case: stack_by_index(*case, set())[0], "form: .*(tuple)"),
    ("13.3", lambda *case: [t.float() for t in stack_by_index(*case, set())],
     r"should be a tuple of tensors of shapes \(2, 3, 6\), \(2, 3\), got a list of tensors of"),
    ("13.3", lambda x, m, n: (stack_by_index(x, m, n, set())[0], m[:, ::n].float()), "dtype should be torch.bool"),
    ("13.3", lambda x, m, n: (-stack_by_index(x, m, n, set())[0], m[:, ::n]), "all results: "),
    ("13.4", lambda *case: fetch_by_einsum(*case, ()).transpose(1, 2), r"shape should be \(1, 2, 4\)"),
    ("13.4", lambda *case: fetch_by_einsum(*case, ()) * 2, "all numbers: "),
    ("13.4", lambda z, *rest: z.copy_(fetch_by_einsum(z, *rest, ())), "your function changes `latents`"),
    ("13.4", lambda z, x, *_: z @ x, "it raised RuntimeError"),
    ("13.4", lambda z, x, _, q, k, v: z + F.scaled_dot_product_attention(z @ q, x @ k, x @ v), "PyTorch's own"),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), OTHERWISE)
def test_what_no_fault_explains_is_told_with_its_numbers(exercise, answer, message):
    result = check(exercise, answer)
    assert not result
    assert re.search(message, result.message), result.message


def over_latents_with_infinity(z, x, m, q, k, v):
    seen, real = torch.cat([x, z], 1), F.pad(m, (0, z.shape[1]), value=True)[:, None]
    scores = z @ q @ (seen @ k).mT / z.shape[2] ** 0.5
    return z + scores.masked_fill(~real, -torch.inf).softmax(1) @ (seen @ v)


def test_a_softmax_over_latents_that_ends_in_nan_is_told_too():
    assert "over the latents" in check("13.4", over_latents_with_infinity).message


# ---- 13.5: many gates are right ----


@pytest.mark.parametrize(
    "answer",
    [lambda a: a * a / (1 + a * a) * torch.sign(a), lambda a: a.abs() * a / (1 + a**2),
     lambda a: 1 - torch.exp(-(a**2)), lambda a: F.relu(a).tanh(), lambda a: torch.tanh(a) * torch.tanh(a),
     lambda a: (1 - a.cos()) / 2],
)  # fmt: skip
def test_gates_that_never_open_pass(answer):
    result = check("13.5", answer)
    assert result, result.message


@pytest.mark.parametrize(
    ("answer", "messages"),
    [(torch.tanh, ("that is tanh itself",)), (lambda a: 2 * torch.sigmoid(2 * a) - 1, ("that is tanh itself",)),
     (lambda a: 1 - 2 / (a.clamp(-40, 40).mul(2).exp() + 1), ("that is tanh itself",)),
     (torch.sigmoid, ("half open", "slope of your gate is 0.25")),
     (lambda a: (a / 2).tanh() / 2 + 0.5, ("half open", "slope of")), (lambda a: 1 / (1 + (-a).exp()), ("half open",)),
     (lambda a: (a / 2).tanh(), ("that is tanh(a / 2)",)), (lambda a: 2 * a.sigmoid() - 1, ("that is tanh(a / 2)",)),
     (lambda a: a.sigmoid() - (-a).sigmoid(), ("that is tanh(a / 2)",)),
     (torch.sin, ("that is sin",)), (lambda a: (math.pi / 2 - a).cos(), ("that is sin",)),
     (lambda a: (a + 2 * math.pi).sin(), ("that is sin",)),
     (lambda a: a * 0, ("closed everywhere", "at a = 1 the slope is 0")),
     (torch.zeros_like, ("closed everywhere", "no g")),
     (lambda a: 0.4 * a.tanh() ** 3, ("never gets above 0.4",)),
     (lambda a: 0.4 * a.tanh(), ("never gets above 0.4", "slope of your gate is 0.4")),
     (lambda a: a * a, ("at 2 your gate is 4", "power grows")), (lambda a: a.pow(3), ("at 2 your gate is 8", "power")),
     (lambda a: 3 * a * a * a, ("at 1 your gate is 3", "power")), (lambda a: a, ("slope of your gate is 1", "power")),
     (lambda a: (2 * a).tanh() * 1.5, ("at 1 your gate is 1.45", "slope of your gate is 3")),
     (lambda a: a.sigmoid() * 3, ("begin closed", "slope", "between −1 and 1: at 0 your gate is 1.5")),
     (lambda a: (a > 0).float(), ("no gradient reaches",)),
     (lambda a: a.detach().sigmoid(), ("half open", "no gradient")),
     (lambda a: (-1 / a**2).exp(), ("the slope of your gate is NaN, as where",)),
     (lambda a: -(a.tanh() ** 3), ("never gets above 0:",)),
     (lambda a: a.abs().sqrt().tanh(), ("the slope at 0: at 0 the slope of your gate is",)),
     (lambda a: F.hardtanh(F.relu(a - 2)), ("at a = 1 the slope is 0",)), (lambda a: a.cos(), ("begin closed",)),
     (lambda a: a / a.abs(), ("at 0 your gate is NaN",)), (lambda a: a.sum(), ("shape should stay (12,)",)),
     (lambda _: 0.0, ("return a tensor",))],
)  # fmt: skip
def test_gates_that_open_or_are_none(answer, messages):
    result = check("13.5", answer)
    assert not result
    assert all(message in result.message for message in messages), result.message
