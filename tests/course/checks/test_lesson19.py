"""course.checks.lesson19: right answers pass, and each usual mistake is called by its name, alone and in pairs.

Each exercise is written in three ways that have little in common, and each way can have any of the faults in it.
"""

import math

import numpy as np
import pytest
import torch

from llamamm.course.checks import check
from llamamm.course.checks.core import exercises_of, find_exercise
from llamamm.fast import quantized as package
from tests.course.checks.ways import assert_right, assert_told

SIZES = {"weights": 4, "gradients": 4, "moments": 8}

# ---- 19.1: a loop, sums of all matrices, bits first ----


def bytes_by_a_loop(shapes, bits, group, has):
    total = 0
    for rows, columns in shapes if "first" not in has else shapes[:1]:
        total += rows * columns * bits / (8 if "bits" not in has else 1)
        n = rows if "one a row" in has else columns // group if "one row" in has else rows * (columns // group)
        if (bits < 16 or "scales everywhere" in has) and "no scales" not in has:
            total += n * (4 if "scales of 4" in has else 1 if "scales of 1" in has else 2)
    return int(total)


def bytes_by_sums(shapes, bits, group, has):
    shapes = shapes[: 1 if "first" in has else None]
    weights = sum(r * c for r, c in shapes) * bits
    if "one a row" in has:
        n = sum(r for r, _ in shapes)
    else:
        n = sum((1 if "one row" in has else r) * c / group for r, c in shapes)
    scale = {"scales of 4": 4, "scales of 1": 1}.get(next(iter(has & {"scales of 4", "scales of 1"}), ""), 2)
    with_scales = "no scales" not in has and (bits in (8, 4) or "scales everywhere" in has)
    return weights / (1 if "bits" in has else 8) + scale * n * with_scales


def bytes_by_arrays(shapes, bits, group, has):
    rows, columns = np.array(shapes[:1] if "first" in has else shapes).T
    found = (rows * columns * bits).sum() / (1.0 if "bits" in has else 8.0)
    if "no scales" in has or (bits > 8 and "scales everywhere" not in has):
        return found
    groups = (columns / group) * (1 if "one row" in has else rows) if "one a row" not in has else rows
    return found + groups.sum() * (4 if "scales of 4" in has else 1 if "scales of 1" in has else 2)


# ---- 19.2: groups of a view, a loop over rows, NumPy ----


def quantized_by_views(weight, group, has):
    groups = weight.view(len(weight), -1, weight.shape[1] if "row" in has else group)
    top = (groups if "no abs" in has else groups.abs()).max(dim=-1, keepdim=True).values
    top = torch.full_like(top, float(top.max())) if "matrix" in has else top
    step = top / (128 if "128" in has else 7 if "4 bits" in has else 127)
    codes = groups * step if "times" in has else groups / step
    codes = codes if "truncated" in has else codes.floor() if "floor" in has else codes.round()
    codes = codes.clamp(-128, 127).to(torch.int8)
    return codes.reshape(weight.shape), (1 / step if "inverse" in has else step).squeeze(-1)


def quantized_by_loops(weight, group, has):
    size = weight.shape[1] if "row" in has else group
    codes, scales = torch.zeros(weight.shape, dtype=torch.int8), torch.zeros(len(weight), weight.shape[1] // size)
    most = {"128": 128, "4 bits": 7}.get(next(iter(has & {"128", "4 bits"}), ""), 127)
    tops = torch.stack([(part if "no abs" in has else abs(part)).amax(1) for part in weight.split(size, dim=1)], dim=1)
    for i in range(len(weight)):
        for g in range(weight.shape[1] // size):
            part = slice(g * size, (g + 1) * size)
            s = (tops.max() if "matrix" in has else tops[i, g]) / most
            found = weight[i, part] * s if "times" in has else weight[i, part] / s
            step = torch.trunc if "truncated" in has else torch.floor if "floor" in has else torch.round
            found = step(found)
            codes[i, part], scales[i, g] = found.clamp(-128, 127).to(torch.int8), 1 / s if "inverse" in has else s
    return codes, scales


def quantized_by_numpy(weight, group, has):
    w = weight.numpy().reshape(len(weight), -1, weight.shape[1] if "row" in has else group)
    top = w.max(-1) if "no abs" in has else np.abs(w).max(-1)
    top = np.broadcast_to(top.max(), top.shape) if "matrix" in has else top
    s = (top / (128 if "128" in has else 7 if "4 bits" in has else 127)).astype(np.float32)
    q = w * s[..., None] if "times" in has else w / s[..., None]
    q = np.clip((np.trunc if "truncated" in has else np.floor if "floor" in has else np.round)(q), -128, 127)
    return q.astype(np.int8).reshape(weight.shape), np.reciprocal(s) if "inverse" in has else s


# ---- 19.3: loops, sums of slices, a table ----


def row_by_loops(codes, scales, x, has):
    size = len(scales) if "group length" in has else len(codes) // len(scales)
    result, total = np.float32(0), np.float32(0)
    for g in range(len(scales) - ("last lost" in has)):
        total = total if "carried" in has else np.float32(0)
        for j in range(size):
            total += np.float32(codes[g * size + j]) * x[j if "x restarts" in has else g * size + j]
        s = np.float32(1) if "no scale" in has else scales[0] if "first scale" in has else scales[g]
        part = total / s if "divided" in has else total * s
        result = part if "overwritten" in has else result + part
    return result


def row_by_slices(codes, scales, x, has):
    n = len(scales)
    size = n if "group length" in has else len(codes) // n
    sums = [float(codes[g * size : (g + 1) * size].astype(float) @
                  x[: size] if "x restarts" in has else codes[g * size : (g + 1) * size].astype(float) @
                  x[g * size : (g + 1) * size]) for g in range(n)]  # fmt: skip
    sums = np.cumsum(sums) if "carried" in has else np.array(sums)
    factors = np.ones(n) if "no scale" in has else np.full(n, scales[0]) if "first scale" in has else scales
    parts = sums / factors if "divided" in has else sums * factors
    parts = parts[:-1] if "last lost" in has else parts
    return parts[-1] if "overwritten" in has else parts.sum()


def row_by_a_table(codes, scales, x, has):
    codes, scales, x = (torch.from_numpy(t.astype(np.float64)) for t in (codes, scales, x))
    n = len(scales)
    if "group length" in has:
        codes, x = codes[: n * n], x[: n * n]
    table = codes.view(n, -1) * (x[: codes.numel() // n] if "x restarts" in has else x.view(n, -1))
    sums = table.sum(1).cumsum(0) if "carried" in has else table.sum(1)
    scales = torch.ones(n) if "no scale" in has else scales[:1].expand(n) if "first scale" in has else scales
    parts = (sums / scales if "divided" in has else sums * scales)[: n - 1 if "last lost" in has else n]
    return parts[-1:] if "overwritten" in has else parts.sum()


# ---- 19.4: while, a loop that breaks, a product of comparisons ----


def agreed_by_while(guess, choices, has):
    if {"everything", "never"} & has:
        return choices if "everything" in has else choices[:1]
    if "later ones" in has:
        return [g for g, c in zip(guess, choices, strict=False) if g == c] + choices[-1:]
    n, off = 0, int("shifted" in has)
    while n < len(guess) and guess[n] == choices[n + off]:
        n += 1
    n = 0 if "all or nothing" in has and n < len(guess) else n
    if "no own" in has or ("no bonus" in has and n == len(guess)):
        return guess[:n]
    if "keeps wrong" in has and n < len(guess):
        return guess[: n + 1]
    return guess[:n] + [choices[n]]


def agreed_by_breaking(guess, choices, has):
    if "never" in has:
        return (choices[0],)
    out, right = [], True
    for place, token in enumerate(guess):
        wanted = choices[place + ("shifted" in has)]
        if token != wanted and "everything" not in has:
            right = False
            if "later ones" in has:
                continue
            out = [] if "all or nothing" in has else out
            if "no own" not in has:
                own = 0 if "all or nothing" in has else place
                out.append(guess[own] if "keeps wrong" in has else choices[own])
            break
        out.append(choices[place] if "everything" in has else token)
    ends = right or "later ones" in has
    if ends and "no bonus" not in has and "no own" not in has:
        out.append(choices[len(guess)])
    return tuple(out)


def agreed_by_comparing(guess, choices, has):
    if "later ones" in has:
        return torch.tensor([g for g, c in zip(guess, choices[:-1], strict=True) if g == c] + [choices[-1]])
    meant = choices[1:] if "shifted" in has else choices[:-1]
    equal = np.equal(guess, meant)
    n = len(guess) if "everything" in has else 0 if "never" in has else int(np.cumprod(equal).sum())
    if "all or nothing" in has and not equal.all():
        n = 0
    whole = n == len(guess)
    tokens = choices[:n] if "everything" in has else guess[:n]
    own = [guess[n]] if "keeps wrong" in has and not whole else [choices[n]]
    return tokens + ([] if "no own" in has or ("no bonus" in has and whole) else own)


# ---- 19.5: sums, a stack, a dot product ----


def joined_by_sums(gradients, counts, has):
    if "first" in has:
        return gradients[0]
    if {"sum", "mean of means"} & has:
        total = gradients[0] + sum(gradients[1:])
        return total if "sum" in has else total / len(gradients)
    if "inverse" in has:
        return sum(g / n for g, n in zip(gradients, counts, strict=True)) / sum(1 / n for n in counts)
    total = sum(g * n for g, n in zip(gradients, counts, strict=True))
    for name, n in {"by processes": len(counts), "twice": len(counts) * sum(counts), "not divided": 1}.items():
        if name in has:
            return total / n
    return total / sum(counts)


def joined_by_a_stack(gradients, counts, has):
    stack, n = torch.stack(gradients), torch.tensor(counts, dtype=torch.float)
    if "first" in has:
        return stack[0]
    share = n / n.sum()
    if {"sum", "mean of means"} & has:
        share = torch.ones_like(n) / (len(n) if "mean of means" in has else 1)
    share = (1 / n) / (1 / n).sum() if "inverse" in has else share
    share = n if "not divided" in has else n / len(n) if "by processes" in has else share
    share = share / len(n) if "twice" in has else share
    return (stack * share.view(-1, *[1] * (stack.dim() - 1))).sum(0)


def joined_by_einsum(gradients, counts, has):
    n = [1.0] * len(counts) if {"sum", "mean of means"} & has else [*map(float, counts)]
    n = [1 / c for c in counts] if "inverse" in has else n
    if "first" in has:
        n = [1.0] + [0.0] * (len(counts) - 1)
    by = 1 if {"sum", "not divided"} & has else len(n) if "by processes" in has else sum(n)
    by = by * len(n) if "twice" in has else by
    return torch.einsum("n,n...->...", torch.tensor(n), torch.stack(gradients)) / by


# ---- 19.6: a loop, a formula, parts in a dictionary ----


def held_by_a_loop(n, processes, sharded, block, has):
    total = 0
    for part, size in SIZES.items():
        size = 4 if "one moment" in has else size
        if part == "gradients" and "no gradients" in has:
            continue
        divided = part in sharded or "all divided" in has
        total += size * n / processes if divided and "not divided" not in has else size * n
    if "no block" not in has and ("weights" in sharded or "block always" in has):
        total += 4 * block / (processes if "block divided" in has else 1)
    return total / (4 if "numbers" in has else 1)


def held_by_a_formula(n, processes, sharded, block, has):
    def share(part):
        if "not divided" in has:
            return 1
        return 1 / processes if "all divided" in has or part in sharded else 1

    each = share("weights") + share("gradients") * ("no gradients" not in has)
    each += share("moments") * (1 if "one moment" in has else 2)
    gathered = ("weights" in sharded or "block always" in has) and "no block" not in has
    numbers = n * each + gathered * block / (processes if "block divided" in has else 1)
    return numbers if "numbers" in has else 4 * numbers


def held_by_parts(n, processes, sharded, block, has):
    unit = 1 if "numbers" in has else 4
    parts = {"weights": unit * n, "gradients": unit * n, "moments": unit * n * (1 if "one moment" in has else 2)}
    if "no gradients" in has:
        del parts["gradients"]
    chosen = set() if "not divided" in has else set(parts) if "all divided" in has else set(sharded)
    parts = {name: size / processes if name in chosen else size for name, size in parts.items()}
    if "block always" in has or "weights" in sharded:
        parts["block"] = 0 if "no block" in has else unit * block / (processes if "block divided" in has else 1)
    return np.float64(math.fsum(parts.values()))


WAYS = {
    "19.1": (bytes_by_a_loop, bytes_by_sums, bytes_by_arrays),
    "19.2": (quantized_by_views, quantized_by_loops, quantized_by_numpy),
    "19.3": (row_by_loops, row_by_slices, row_by_a_table),
    "19.4": (agreed_by_while, agreed_by_breaking, agreed_by_comparing),
    "19.5": (joined_by_sums, joined_by_a_stack, joined_by_einsum),
    "19.6": (held_by_a_loop, held_by_a_formula, held_by_parts),
}
# what a message must hold, for each fault
TOLD = {
    "19.1": {"bits": "you count bits", "no scales": "leave out the scales", "scales of 4": "2 bytes, and not 4",
             "scales of 1": "count the scales, and not", "scales everywhere": "so no scales",
             "one a row": "one scale a row", "one row": "scales of one row", "first": "first matrix alone"},
    "19.2": {"truncated": "cut off what stands", "floor": "round down", "128": "becomes 128", "4 bits": "as in 4 bits",
             "no abs": "may be negative", "row": "one scale for a row", "matrix": "one scale for the whole",
             "times": "multiply by the scale", "inverse": "upside down"},
    "19.3": {"no scale": "scales are missing", "first scale": "first scale for all", "divided": "divide by the scale",
             "carried": "carry a group's sum", "last lost": "last group is missing", "group length": "wrong length",
             "x restarts": "begin again at x[0]", "overwritten": "last group's part"},
    "19.4": {"no own": "own next token is missing", "no bonus": "there is one more",
             "keeps wrong": "token that is wrong", "later ones": "after the first wrong one",
             "shifted": "one place further", "all or nothing": "whole guess if",
             "everything": "return all choices", "never": "first choice alone"},
    "19.5": {"mean of means": "mean of the means", "sum": "add the gradients as they are",
             "not divided": "do not divide", "by processes": "divide by the number of processes",
             "twice": "once is enough", "inverse": "few tokens the large", "first": "first process's gradient"},
    "19.6": {"numbers": "count numbers", "one moment": "two moments", "no gradients": "gradients are missing",
             "not divided": "is divided by", "all divided": "divide everything", "no block": "while it runs",
             "block always": "only where weights", "block divided": "do not divide it"},
}  # fmt: skip
# faults that cannot stand in one answer, or of which one hides the other
APART = {
    "19.1": [{"no scales", "scales of 4", "scales of 1"}, {"one a row", "one row"},
             *({"no scales", other} for other in ("scales everywhere", "one a row", "one row"))],
    "19.2": [{"truncated", "floor"}, {"128", "4 bits"}, {"row", "matrix"}, {"times", "4 bits"}, {"no abs", "4 bits"},
             *({"4 bits", other} for other in ("truncated", "floor", "times", "row", "matrix", "no abs")),
             {"no abs", "times"}, {"no abs", "row"}, {"no abs", "matrix"}, {"times", "row"}, {"times", "matrix"}],
    "19.3": [{"no scale", "first scale", "divided"}, {"last lost", "overwritten"}, {"no scale", "divided"}],
    "19.4": [{*TOLD["19.4"]}],
    "19.5": [{*TOLD["19.5"]}],
    "19.6": [{"not divided", "all divided"}, {"no gradients", "not divided"}, {"no gradients", "all divided"},
             {"no block", "block always", "block divided"}],
}  # fmt: skip


@pytest.mark.parametrize("exercise", WAYS)
def test_the_right_answer_passes_however_it_is_written(exercise):
    assert_right(exercise, WAYS[exercise])


@pytest.mark.parametrize("number", range(1, 7))
def test_the_reference_passes(number):
    assert check(f"19.{number}", find_exercise(f"19.{number}").reference)


@pytest.mark.parametrize("exercise", WAYS)
def test_each_fault_gets_its_sentence_alone_and_beside_another(exercise):
    assert_told(exercise, WAYS[exercise], TOLD[exercise], APART[exercise])


def test_every_fault_of_these_exercises_is_planted_here():
    for exercise in exercises_of("19"):
        assert len({m.message for m in exercise.mistakes}) == len(TOLD[exercise.id])


def reference(exercise):
    return find_exercise(exercise).reference


def test_values_by_hand():
    assert reference("19.1")([(4, 64)], 8, 32) == 272
    codes, scales = reference("19.2")(torch.tensor([[0.254, -0.1]]), 2)
    assert codes.tolist() == [[127, -50]] and scales.tolist() == [[pytest.approx(0.002)]]
    row = np.array([3, -1, 2, 4], np.int8), np.array([0.5, 0.25], np.float32), np.array([1, 2, 3, 1], np.float32)
    assert reference("19.3")(*row) == 3
    assert reference("19.4")([5, 7, 9], [5, 7, 2, 8]) == [5, 7, 2] and reference("19.4")([5, 7], [5, 7, 3]) == [5, 7, 3]
    assert reference("19.5")([torch.tensor([6.0]), torch.tensor([2.0])], [1, 3]).tolist() == [3.0]
    assert reference("19.6")(1000, 4, {"weights", "gradients", "moments"}, 100) == 4400
    assert reference("19.6")(1000, 4, {"moments"}, 100) == 10_000


def test_bytes_are_those_of_the_packages_linears():
    for bits in (8, 4):
        linear = package.QuantizedLinear(128, 64, bits=bits, group=64)
        assert reference("19.1")([(64, 128)], bits, 64) == linear.codes.nbytes + linear.scales.nbytes


def test_codes_are_the_packages_where_its_scales_are_exact():
    weight = torch.randint(-127, 128, (64, 96), generator=torch.Generator().manual_seed(0)) / 64
    weight[:, ::32] = 127 / 64
    for ours, theirs in zip(reference("19.2")(weight, 32), package.rounded(weight, 8, 32), strict=True):
        assert torch.equal(ours.float(), theirs.float())


@pytest.mark.parametrize(("exercise", "answer", "words"), [
    ("19.2", lambda weight, group: weight, "two tensors, codes and scales"),  # noqa: ARG005
    ("19.2", lambda weight, group: reference("19.2")(weight, group)[::-1], "the codes should be int8"),
    ("19.3", lambda codes, scales, x: codes * x, "should be a number"),  # noqa: ARG005
    ("19.4", lambda guess, choices: 3, "give a list of tokens"),  # noqa: ARG005
    ("19.1", lambda shapes, bits, group: "many", "should be a number"),  # noqa: ARG005
    ("19.5", lambda gradients, counts: [0.0, 0.0], "should"),  # noqa: ARG005
])  # fmt: skip
def test_what_has_no_such_form_is_told(exercise, answer, words):
    result = check(exercise, answer)
    assert not result and words in result.message, result.message
