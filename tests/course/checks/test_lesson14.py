"""course.checks.lesson14: right answers pass, and each usual mistake is called by its name, alone and in pairs.

Each exercise is written in three ways that have little in common, and each way can have any of the faults in it.
"""

import math
import re

import pytest
import torch
import torch.nn.functional as F

from llamamm.course.checks import check
from llamamm.course.checks.core import exercises_of, find_exercise
from tests.course.checks.ways import assert_right, assert_told, with_faults

# ---- 14.1 in three ways: sums, ranges that are counted, a list of what stands in the prompt ----


def framed(has, medium):
    return 0 if f"bare {medium}" in has else 1 if f"half a {medium}" in has else 2


def length_by_sums(words, pictures, sounds, merge, stack, has):
    power = 0 if "unmerged" in has else 1 if "not squared" in has else 2
    stack = 1 if "unstacked" in has else stack
    rounded = math.floor if "rounded down" in has else math.ceil
    rounded = (lambda n: math.floor(n) + 1) if "one more" in has else rounded
    heard = rounded(sum(sounds) / stack) if "joint" in has else sum(rounded(n / stack) for n in sounds)
    seen = sum(math.prod(grid) // merge**power for grid in pictures)
    total = seen + framed(has, "picture") * len(pictures) + heard + framed(has, "sound") * len(sounds)
    return total if "no words" in has else total + words


def length_by_ranges(words, pictures, sounds, merge, stack, has):
    total = len(range(0 if "no words" in has else words))
    for rows, columns in pictures:
        down = range(0, rows, 1 if {"unmerged", "not squared"} & has else merge)
        across = range(0, columns, 1 if "unmerged" in has else merge)
        total += len(down) * len(across) + framed(has, "picture")
    together = 0
    for n in sounds:
        total += framed(has, "sound")
        together += n
        if "joint" not in has or len(sounds) == 0:
            total += length_of_sound(n, stack, has)
    return total + ("joint" in has) * length_of_sound(together, stack, has)


def length_of_sound(n, stack, has):
    if "unstacked" in has:
        return n
    tokens, rest = divmod(n, stack)
    return tokens + (rest > 0 and "rounded down" not in has or "one more" in has)


def length_by_lists(words, pictures, sounds, merge, stack, has):
    row = [] if "no words" in has else ["word"] * words
    begin, end = ["<"], [">"]
    for rows, columns in pictures:
        patches = [(r, c) for r in range(rows) for c in range(columns)]
        merged = {(r // merge, c if "not squared" in has else c // merge) for r, c in patches}
        kind = framed(has, "picture")
        row += begin * (kind > 0) + list(patches if "unmerged" in has else merged) + end * (kind == 2)
    for sound in [[0] * sum(sounds)] if "joint" in has else [[0] * n for n in sounds]:
        parts = [sound[i : i + stack] for i in range(0, len(sound), stack)]
        parts = [part for part in parts if "rounded down" not in has or len(part) == stack]
        parts += [[]] * ("one more" in has and len(sound) % stack == 0)
        row += sound if "unstacked" in has else parts
    kind = framed(has, "sound")
    return len(row + (begin * (kind > 0) + end * (kind == 2)) * len(sounds))


# ---- 14.2 in three ways: place by place, the number of each place, a matrix that picks ----


def must_fit(where, features, has):
    if "unchecked" not in has and where.count_nonzero() != features.shape[0]:
        raise ValueError("the counts differ")


def finished(out, x, features, has):
    out = x.copy_(out) if "in place" in has else out
    out = out.detach() if "detached" in has else out
    return out.to(features.dtype) if "its dtype" in has else out.to(x.dtype)


def splice_by_loops(x, where, features, has):
    must_fit(where, features, has)
    B, T, _ = x.shape
    side = 1 if "columns" in has else 0
    places = sorted(((b, t) for b in range(B) for t in range(T) if where[b, t]), key=lambda p: (p[side], p[1 - side]))
    left = [*features][::-1] if "reversed" in has else [*features]
    left = left[-1:] + left[:-1] if "shifted" in has else left
    out, line, n = x.clone(), None, 0
    for place in places:
        if "restart" in has and place[side] != line:
            line, n = place[side], 0
        if n < len(left):
            new = left[0 if "first" in has else n]
            out[place] = out[place] + new if "added" in has else new
        n += 1
    return finished(out, x, features, has)


def splice_by_numbers(x, where, features, has):
    must_fit(where, features, has)
    N = len(features)
    if not where.any():
        return finished(x.clone(), x, features, has)
    if "columns" in has:
        number = where.cumsum(0) if "restart" in has else where.T.flatten().cumsum(0).view(where.T.shape).T
    else:
        number = where.cumsum(1) if "restart" in has else where.flatten().cumsum(0).view(where.shape)
    number = torch.zeros_like(number) if "first" in has else number - 1
    number = (number - 1) % N if "shifted" in has else number
    number = N - 1 - number if "reversed" in has else number
    new = features[number.clamp(0, N - 1)]
    new = new + x if "added" in has else new
    return finished(torch.where(where.unsqueeze(-1), new.to(x.dtype), x), x, features, has)


def splice_by_a_matrix(x, where, features, has):
    must_fit(where, features, has)
    (B, T), N = where.shape, len(features)
    by_line = where.T if "columns" in has else where
    lines = [[0] * int(n) for n in by_line.sum(1)]
    counter = iter(range(B * T))
    lines = [list(range(len(line))) if "restart" in has else [next(counter) for _ in line] for line in lines]
    order = list(range(N))
    order = order[::-1] if "reversed" in has else order
    order = torch.tensor(order, dtype=torch.long).roll(1) if "shifted" in has else torch.tensor(order).long()
    ranks = torch.tensor([n for line in lines for n in line], dtype=torch.long)
    ranks = ranks * ("first" not in has)
    picks = F.one_hot(ranks.clamp(max=max(N - 1, 0)), max(N, 1))[:, :N].float() @ features[order]
    kept = torch.zeros(*by_line.shape, x.shape[2])
    kept[by_line] = picks
    kept = kept.transpose(0, 1) if "columns" in has else kept
    old = x if "added" in has else x * ~where[:, :, None]
    return finished(old + kept, x, features, has)


# ---- 14.3 in three ways: lists, masks, pairs of neighbours ----


def learned_by_lists(ids, learn, vocab_size, has):
    row = [(i, bool(w)) for i, w in zip(ids.tolist(), learn, strict=True) if i < vocab_size or "cut out" not in has]
    fill, targets = 0 if "zero" in has else -100, []
    for i, w in row:
        w = True if "all" in has else not w if "turned" in has else w
        targets.append((i, w and (i < vocab_size + ("over" in has) or "media" in has)))
    marks = [w for _, w in targets]
    if "no end" in has:
        marks[max(n for n, w in enumerate(marks) if w)] = False
    marks = [False, *marks[:-1]] if "mask first" in has else marks
    targets = [i if w else fill for (i, _), w in zip(targets, marks, strict=True)]
    read = [i for i, _ in row]
    if "long" in has:
        return torch.tensor(read), torch.tensor([*targets[1:], fill])
    read = read[1:] if "both shifted" in has else read[:-1]
    return torch.tensor(read), torch.tensor(targets[:-1] if "not shifted" in has else targets[1:])


def learned_by_masks(ids, learn, vocab_size, has):
    if "cut out" in has:
        ids, learn = ids.masked_select(ids < vocab_size), learn.masked_select(ids < vocab_size)
    off = torch.zeros_like(learn) if "all" in has else learn if "turned" in has else ~learn
    off = off if "media" in has else off | (ids > vocab_size if "over" in has else ids >= vocab_size)
    if "no end" in has:
        off = off.index_fill(0, (~off).nonzero()[-1], True)
    off = F.pad(off[:-1], (1, 0), value=True) if "mask first" in has else off
    targets = ids.masked_fill(off, 0 if "zero" in has else -100)
    if "long" in has:
        return ids, F.pad(targets[1:], (0, 1), value=0 if "zero" in has else -100)
    read = ids.narrow(0, int("both shifted" in has), len(ids) - 1)
    return read, targets.narrow(0, int("not shifted" not in has), len(ids) - 1)


def learned_by_neighbours(ids, learn, vocab_size, has):
    kept = [n for n in range(len(ids)) if "cut out" not in has or ids[n] < vocab_size]
    fill = {True: 0, False: -100}["zero" in has]
    wanted = {n for n in kept if "all" in has or bool(learn[n]) != ("turned" in has)}
    wanted = wanted if "media" in has else wanted - {n for n in kept if int(ids[n]) >= vocab_size + ("over" in has)}
    wanted = wanted - {max(wanted)} if "no end" in has else wanted
    step = 0 if "not shifted" in has else 1
    read, targets = [], []
    for here, n in enumerate(kept if "long" in has else kept[:-1]):
        read.append(int(ids[kept[here + 1] if "both shifted" in has else n]))
        at = here + step
        marked = kept[at - 1] if "mask first" in has and at > 0 else None if "mask first" in has else None
        if at >= len(kept):
            targets.append(fill)
            continue
        marked = marked if "mask first" in has else kept[at]
        targets.append(int(ids[kept[at]]) if marked in wanted else fill)
    return [torch.tensor(read), torch.tensor(targets)]


# ---- 14.4 in three ways: token by token, a mask, rows that are picked ----


def wanted_of(where, chosen, has):
    tokens = range(int(where.sum()) - 2)
    picked = [*tokens] if "whole" in has else [*chosen]
    return [] if "nothing" in has else [n for n in tokens if n not in picked] if "others" in has else picked


def patched_by_loops(x, donor, where, chosen, has):
    into, other = (donor, x) if "back" in has else (x, donor)
    out = [row for row in into]
    begin = 0 if "prompt" in has else where.tolist().index(True) + ("frame" not in has) + ("late" in has)
    inside = where.tolist().index(True) + 1
    for k, n in enumerate(wanted_of(where, chosen, has)):
        new = other[inside + k] if "order" in has else other[begin + n]
        out[begin + n] = out[begin + n] + new if "added" in has else new
    out = torch.stack(out)
    return x.copy_(out) if "in place" in has else out


def patched_by_a_mask(x, donor, where, chosen, has):
    into, other = (donor, x) if "back" in has else (x, donor)
    inner = where.nonzero()[1:-1, 0]
    wanted = torch.tensor(wanted_of(where, chosen, has), dtype=torch.long)
    mask = torch.zeros(len(x), dtype=torch.bool)
    at = wanted if "prompt" in has else inner[wanted] - ("frame" in has) * 1 + ("late" in has) * 1
    mask[at] = True
    new = other.clone()
    if "order" in has:
        new[at] = other[inner[: len(at)]]
    new = new + into if "added" in has else new
    out = torch.where(mask.unsqueeze(1), new, into)
    return x.copy_(out) if "in place" in has else out


def patched_by_picking(x, donor, where, chosen, has):
    both = torch.cat([x, donor])
    T, start = len(x), int(where.int().argmax())
    mine, theirs = (T, 0) if "back" in has else (0, T)
    rows = torch.arange(T) + mine
    base = 0 if "prompt" in has else start if "frame" in has else start + 1 + ("late" in has)
    wanted = wanted_of(where, chosen, has)
    for k, n in enumerate(wanted):
        rows[base + n] = theirs + (start + 1 + k if "order" in has else base + n)
    out = both[rows]
    if "added" in has and wanted:
        at = torch.tensor(wanted) + base
        out[at] += both[at + mine]
    return x.copy_(out) if "in place" in has else out


# ---- 14.5 in three ways: backward, grad of the log-probability, a Jacobian ----


def fool_by_backward(pixels, scores_of, answer, budget, has):
    if "same" in has:
        return pixels
    x = pixels.clone().requires_grad_()
    F.cross_entropy(scores_of(x).unsqueeze(0), torch.tensor([answer])).backward()
    way = x.grad if "gradient" in has else x.grad.sign()
    if "noise" in has:
        way = (torch.rand(pixels.shape, generator=torch.Generator().manual_seed(1)) - 0.5).sign()
    way = torch.ones_like(pixels) if "bright" in has else way
    step = (1 if "whole" in has else 2 * budget if "double" in has else budget) * way
    out = pixels - step if "down" in has else pixels + step
    return out if "unclamped" in has else out.clamp(0, 1)


def fool_by_log_probability(pixels, scores_of, answer, budget, has):
    leaf = pixels.detach().clone().requires_grad_(True)
    (down,) = torch.autograd.grad(scores_of(leaf).log_softmax(-1)[answer], leaf)
    up = down > 0 if "down" in has else down < 0
    if "bright" in has:
        up = torch.ones_like(up)
    if "noise" in has:
        up = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(2)) > 0.5
    size = torch.full_like(pixels, 1.0 if "whole" in has else budget * (1 + ("double" in has)))
    size = size * down.abs() if "gradient" in has else size * ("same" not in has)
    out = torch.where(up, pixels + size, pixels - size)
    return out if "unclamped" in has else out.minimum(torch.tensor(1.0)).maximum(torch.tensor(0.0))


def fool_by_jacobian(pixels, scores_of, answer, budget, has):
    loss = lambda x: scores_of(x).logsumexp(0) - scores_of(x)[answer]  # noqa: E731
    up = torch.autograd.functional.jacobian(loss, pixels)
    up = -up if "down" in has else up
    way = up if "gradient" in has else (up * 1e9).clamp(-1, 1)
    if "noise" in has:
        way = torch.arange(pixels.numel()).view(pixels.shape) % 2 * 2.0 - 1
    way = way.new_ones(way.shape) if "bright" in has else way
    scale = 0 if "same" in has else 1 if "whole" in has else budget + budget if "double" in has else budget
    out = torch.lerp(pixels, pixels + way, float(scale))
    return out if "unclamped" in has else F.hardtanh(out, 0, 1)


WAYS = {
    "14.1": (length_by_sums, length_by_ranges, length_by_lists),
    "14.2": (splice_by_loops, splice_by_numbers, splice_by_a_matrix),
    "14.3": (learned_by_lists, learned_by_masks, learned_by_neighbours),
    "14.4": (patched_by_loops, patched_by_a_mask, patched_by_picking),
    "14.5": (fool_by_backward, fool_by_log_probability, fool_by_jacobian),
}
# what a message must hold, for each fault
TOLD = {
    "14.1": {"no words": "words are missing", "bare picture": "A picture's start and end are missing",
             "half a picture": "one token around a picture", "not squared": "by its square",
             "unmerged": "didn't merge the patches", "bare sound": "A sound, too, stands",
             "half a sound": "one token around a sound", "rounded down": "You rounded down",
             "one more": "add a token to every sound", "joint": "round up each by itself", "unstacked": "didn't stack"},
    "14.2": {"restart": "begins with the first feature again", "columns": "column by column",
             "reversed": "from the last to the first", "shifted": "off by one",
             "first": "Every place gets the first", "added": "You add the features",
             "in place": "changed the embeddings", "its dtype": "the features' dtype",
             "detached": "no gradient reaches", "unchecked": "say nothing where the counts differ"},
    "14.3": {"not shifted": "not shifted", "both shifted": "shifted what is read", "long": "T - 1 in all",
             "cut out": "took the places out", "mask first": "one place late", "all": "The question is learned",
             "turned": "turn the mask around", "media": "Places of media are learned",
             "over": "vocab_size itself is a place", "zero": "has the target 0",
             "no end": "last learned token is missing"},
    "14.4": {"frame": "one place early", "late": "one place late", "nothing": "Nothing has changed",
             "prompt": "count from the beginning of the prompt",
             "others": "that were not chosen", "whole": "all of the picture's tokens",
             "order": "donor's first tokens", "added": "add the donor's tokens", "back": "wrong way round",
             "in place": "changes argument 1"},
    "14.5": {"down": "went down the loss", "gradient": "the gradient itself", "noise": "most of it cancels",
             "bright": "brighter everywhere", "unclamped": "some left 0..1", "double": "twice the budget",
             "whole": "budget is missing", "same": "the same picture"},
}  # fmt: skip
OTHERS = {"14.2": 4, "14.4": 1}  # faults of properties that are written by hand
APART = {
    "14.1": [
        {"bare picture", "half a picture"}, {"bare sound", "half a sound"},  # none of two is no longer one of two
        {"not squared", "unmerged"},  # who divides by nothing divides by no power
        *({"unstacked", other} for other in ("rounded down", "joint", "one more")),
        # without a division nothing is left to round
        {"rounded down", "one more"}, {"joint", "one more"},  # each says how to round
        *({some, "one more"} for some in ("bare sound", "half a sound")),  # one less and one more
    ],
    "14.2": [{"first", other} for other in ("restart", "columns", "reversed", "shifted")],  # one feature has no order
    "14.3": [
        {"not shifted", "both shifted", "long"},  # each says which tokens the two results hold
        {"all", "turned"},  # a mask that is True everywhere has no other side
        {"media", "over"},  # all places, or some
        {"cut out", "media"}, {"cut out", "over"},  # where the places are gone none can be learned
    ],
    "14.4": [
        *({"nothing", other} for other in ("frame", "late", "prompt", "others", "whole", "order", "added", "in place")),
        # what does not change has no place
        {"frame", "late", "prompt"},  # each says where to count from
        {"whole", "others"},  # where all are chosen there are no others
        {"whole", "order"},  # all of them are in order
    ],
    "14.5": [
        *({"same", other} for other in ("down", "gradient", "noise", "bright", "unclamped", "double", "whole")),
        # a picture that stays moves nowhere
        {"down", "noise", "bright"}, {"gradient", "noise"}, {"gradient", "bright"},  # each says which way to go
        {"double", "whole"},  # each says how far
        {"gradient", "double"}, {"gradient", "whole"},  # twice or ten times as tiny is still below the budget
        {"noise", "whole"},  # so large a noise changes the answer, and more is not asked
    ],
}  # fmt: skip


@pytest.mark.parametrize("exercise", WAYS)
def test_the_right_answer_passes_however_it_is_written(exercise):
    assert_right(exercise, WAYS[exercise])


@pytest.mark.parametrize("number", range(1, 6))
def test_the_reference_passes(number):
    assert check(f"14.{number}", find_exercise(f"14.{number}").reference)


@pytest.mark.parametrize("exercise", WAYS)
def test_each_fault_gets_its_sentence_alone_and_beside_another(exercise):
    assert_told(exercise, WAYS[exercise], TOLD[exercise], APART[exercise])


def test_every_fault_of_these_exercises_is_planted_here():
    for exercise in exercises_of("14")[:4]:
        planted = len({m.message for m in exercise.mistakes}) + OTHERS.get(exercise.id, 0)
        assert planted == len(TOLD[exercise.id])


def right(exercise, way=0):
    return with_faults(WAYS[exercise][way], ())


def no_fit(x, where, features):
    out = x.clone()
    out[where] = features.to(x.dtype)
    return out


OTHERWISE = [
    ("14.1", lambda *_: "15", "should be a number"),
    ("14.1", lambda *case: right("14.1")(*case) + 7, "all results: .*should be 18, got 25"),
    ("14.1", lambda *_: None, "returns nothing"),
    ("14.2", no_fit, "it raised RuntimeError: compare the counts"),
    ("14.2", lambda x, where, f: x[where], "it raised|shape should be"),  # noqa: ARG005
    ("14.2", lambda *case: -right("14.2")(*case), "all numbers: "),
    ("14.2", lambda *case: right("14.2")(*case).double(), "dtype should be"),
    ("14.2", lambda *case: right("14.2")(*case).tolist(), "should be a tensor"),
    ("14.2", lambda x, where, f: None, "returns nothing"),  # noqa: ARG005
    ("14.3", lambda *case: [part.float() for part in right("14.3")(*case)], "dtype should be torch.int64"),
    ("14.3", lambda *case: right("14.3")(*case)[0], "should"),
    ("14.3", lambda *case: [part + 1 for part in right("14.3")(*case)], "all results: "),
    ("14.3", lambda ids, *_: [ids[:-1]], "2 parts"),
    ("14.3", lambda *_: None, "returns nothing"),
    ("14.3", lambda ids, learn, V: (ids[:-1], ids.masked_fill_(~learn | (ids >= V), -100)[1:]), "changes argument 1"),
    ("14.3", lambda ids, learn, V: (ids[:-1], ids[1:].where(learn[:-1] & (ids[1:] < V), -100)), "one place late"),
    ("14.1", lambda w, p, s, m, k: w + sum(a * b // m**2 + 2 for a, b in p) + sum(round(n / k) + 2 for n in s),
     r"sounds|all results: [^.]*$"),
    ("14.3", lambda ids, learn, V: (ids[:-1], ids[1:]), "question is learned.*laces of media"),  # noqa: ARG005
    ("14.4", lambda *case: right("14.4")(*case)[None], "shape should be"),
    ("14.4", lambda *case: -right("14.4")(*case), "all numbers: "),
    ("14.4", lambda *case: right("14.4")(*case).tolist(), "should be a tensor"),
    ("14.4", lambda *_: None, "returns nothing"),
    ("14.4", lambda x, donor, where, chosen: x.clone(), "Nothing has changed"),  # noqa: ARG005
    ("14.5", lambda p, *more: p.copy_(right("14.5")(p, *more)), "changes argument 1"),
    ("14.5", lambda *case: right("14.5")(*case)[:2], "shape should stay"),
    ("14.5", lambda *case: right("14.5")(*case) * math.nan, "not finite"),
    ("14.5", lambda *case: right("14.5")(*case).double(), "dtype should stay"),
    ("14.5", lambda *case: right("14.5")(*case).numpy(), "return a picture"),
    ("14.5", lambda p, s, a, b: (p - 3 * b).clamp(0, 1), "moved by .*times the gradient's sign"),  # noqa: ARG005
    ("14.5", lambda p, s, a, b: (p - b / 2).clamp(0, 1), "darker everywhere"),  # noqa: ARG005
    ("14.5", lambda p, s, a, b: right("14.5")(p, s, a, b / 1000), "whole budget everywhere"),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), OTHERWISE)
def test_what_no_fault_explains_is_told_with_its_numbers(exercise, answer, message):
    result = check(exercise, answer)
    assert not result
    assert re.search(message, result.message, re.DOTALL), result.message
