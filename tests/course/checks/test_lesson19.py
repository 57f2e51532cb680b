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
        total += rows * columns * (bits // 8 if "whole bytes" in has else bits / (8 if "bits" not in has else 1))
        n = rows if "one a row" in has else columns // group if "one row" in has else rows * (columns // group)
        least = 8 if "8 alone" in has else 4
        if (least <= bits < 16 + ("16 too" in has) or "scales everywhere" in has) and "no scales" not in has:
            total += n * (4 if "scales of 4" in has else 1 if "scales of 1" in has else 2)
    return int(total) * (8 if "all in bits" in has else 1)


def bytes_by_sums(shapes, bits, group, has):
    shapes = shapes[: 1 if "first" in has else None]
    weights = sum(r * c for r, c in shapes) * (bits // 8 * 8 if "whole bytes" in has else bits)
    if "one a row" in has:
        n = sum(r for r, _ in shapes)
    else:
        n = sum((1 if "one row" in has else r) * c / group for r, c in shapes)
    scale = {"scales of 4": 4, "scales of 1": 1}.get(next(iter(has & {"scales of 4", "scales of 1"}), ""), 2)
    scaled = [8] + [4] * ("8 alone" not in has) + [16] * ("16 too" in has)
    with_scales = "no scales" not in has and (bits in scaled or "scales everywhere" in has)
    size = weights / (1 if "bits" in has else 8) + scale * n * with_scales
    return 8 * size if "all in bits" in has else size


def bytes_by_arrays(shapes, bits, group, has):
    rows, columns = np.array(shapes[:1] if "first" in has else shapes).T
    unit = 8.0 if "all in bits" in has else 1.0
    found = unit * (rows * columns * bits).sum() / (1.0 if "bits" in has else 8.0)
    if "whole bytes" in has:
        found = (rows * columns).sum() * np.floor(bits / 8)
    bare = {32, 16} - ({16} if "16 too" in has else set()) | ({4} if "8 alone" in has else set())
    if "no scales" in has or (bits in bare and "scales everywhere" not in has):
        return found
    groups = (columns / group) * (1 if "one row" in has else rows) if "one a row" not in has else rows
    return found + unit * groups.sum() * (4 if "scales of 4" in has else 1 if "scales of 1" in has else 2)


# ---- 19.2: groups of a view, a loop over rows, NumPy ----

ROUNDED = {"truncated": "trunc", "floor": "floor", "ceil": "ceil"}


def rounded_by(library, q, has):
    """q as whole numbers, by functions of torch or numpy."""
    if "half up" in has:
        return library.trunc(q + 0.5)
    return getattr(library, next((name for fault, name in ROUNDED.items() if fault in has), "round"))(q)


def quantized_by_views(weight, group, has):
    groups = weight.view(len(weight), -1, weight.shape[1] if "row" in has else group)
    if "strided" in has:
        groups = torch.stack([weight[:, i :: weight.shape[1] // group] for i in range(weight.shape[1] // group)], dim=1)
    top = (groups if "no abs" in has else groups.abs()).max(dim=-1, keepdim=True).values
    if "signed" in has:
        top = torch.where(groups.amax(-1, keepdim=True) == top, top, -top)
    top = top.amax(1, keepdim=True).expand_as(top) if "row, repeated" in has else top
    top = torch.full_like(top, float(top.max())) if "matrix" in has else top
    step = top / (128 if "128" in has else 7 if "4 bits" in has else 127)
    codes = groups * step if "times" in has else groups / step
    codes = rounded_by(torch, codes, has).to(torch.int8)  # without a clamp: what is too large wraps around
    codes = codes.transpose(1, 2) if "strided" in has else codes
    return codes.reshape(weight.shape), (1 / step if "inverse" in has else step).squeeze(-1)


def quantized_by_loops(weight, group, has):
    size = weight.shape[1] if "row" in has else group
    codes, scales = torch.zeros(weight.shape, dtype=torch.int8), torch.zeros(len(weight), weight.shape[1] // size)
    most = {"128": 128, "4 bits": 7}.get(next(iter(has & {"128", "4 bits"}), ""), 127)
    n = weight.shape[1] // size
    places = [slice(g, None, n) if "strided" in has else slice(g * size, (g + 1) * size) for g in range(n)]
    tops = torch.stack([(weight[:, at] if "no abs" in has else abs(weight[:, at])).amax(1) for at in places], dim=1)
    tops = tops.amax(1, keepdim=True).repeat(1, n) if "row, repeated" in has else tops
    for i in range(len(weight)):
        for g, part in enumerate(places):
            s = (tops.max() if "matrix" in has else tops[i, g]) / most
            s = max(weight[i, part], key=abs) / most if "signed" in has else s
            found = weight[i, part] * s if "times" in has else weight[i, part] / s
            found = rounded_by(torch, found, has)
            codes[i, part], scales[i, g] = found.clamp(-128, 127).to(torch.int8), 1 / s if "inverse" in has else s
    return codes, scales


def quantized_by_numpy(weight, group, has):
    w = weight.numpy().reshape(len(weight), -1, weight.shape[1] if "row" in has else group)
    w = w.reshape(len(w), group, -1).swapaxes(1, 2) if "strided" in has else w
    top = w.max(-1) if "no abs" in has else np.abs(w).max(-1)
    top = np.where(-w.min(-1) == top, -top, top) if "signed" in has else top
    top = np.repeat(top.max(-1, keepdims=True), top.shape[1], axis=1) if "row, repeated" in has else top
    top = np.broadcast_to(top.max(), top.shape) if "matrix" in has else top
    s = (top / (128 if "128" in has else 7 if "4 bits" in has else 127)).astype(np.float32)
    q = w * s[..., None] if "times" in has else w / s[..., None]
    q = np.clip(rounded_by(np, q, has), -127, 127)
    q = q.swapaxes(1, 2) if "strided" in has else q
    return q.astype(np.int8).reshape(weight.shape), np.reciprocal(s) if "inverse" in has else s


# ---- 19.3: loops, sums of slices, a table ----


def row_by_loops(codes, scales, x, has):
    size = len(scales) if "group length" in has else len(codes) // len(scales)
    result, total = np.float32(0), np.float32(0)
    for g in range(len(scales) - ("last lost" in has)):
        total = total if "carried" in has else np.float32(0)
        for j in range(size - ("last column" in has)):
            code = np.float32(codes[j if "codes restart" in has else g * size + j])
            total += code * x[j if "x restarts" in has else g * size + j]
        s = np.float32(1) if "no scale" in has else scales[0] if "first scale" in has else scales[g]
        part = total / s if "divided" in has else total * s * (s if "twice" in has else 1)
        result = part if "overwritten" in has else result + part
        if "early" in has:
            return result
    return result


def row_by_slices(codes, scales, x, has):
    n = len(scales)
    size = n if "group length" in has else len(codes) // n
    most, sums = size - ("last column" in has), []
    for at in range(0, n * size, size):
        row = codes[0 if "codes restart" in has else at :][:most].astype(float)
        sums.append(float(row @ x[0 if "x restarts" in has else at :][:most]))
    sums = np.cumsum(sums) if "carried" in has else np.array(sums)
    factors = np.ones(n) if "no scale" in has else np.full(n, scales[0]) if "first scale" in has else scales
    factors = factors**2 if "twice" in has else factors
    parts = sums / factors if "divided" in has else sums * factors
    parts = parts[:-1] if "last lost" in has else parts[:1] if "early" in has else parts
    return parts[-1] if "overwritten" in has else parts.sum()


def row_by_a_table(codes, scales, x, has):
    codes, scales, x = (torch.from_numpy(t.astype(np.float64)) for t in (codes, scales, x))
    n = len(scales)
    if "group length" in has:
        codes, x = codes[: n * n], x[: n * n]
    codes, x = codes.view(n, -1), x.view(n, -1)
    codes = codes[:1].expand(n, -1) if "codes restart" in has else codes
    table = (codes * (x[:1] if "x restarts" in has else x))[:, : codes.shape[1] - ("last column" in has)]
    sums = table.sum(1).cumsum(0) if "carried" in has else table.sum(1)
    scales = torch.ones(n) if "no scale" in has else scales[:1].expand(n) if "first scale" in has else scales
    scales = scales.square() if "twice" in has else scales
    n = n - 1 if "last lost" in has else 1 if "early" in has else n
    parts = (sums / scales if "divided" in has else sums * scales)[:n]
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
    if {"counted", "counted, guess"} & has:
        n = sum(g == c for g, c in zip(guess, choices, strict=False))
        return (choices if "counted" in has else guess)[:n] + [choices[n]]
    if "unread" in has or (not guess and "nothing of nothing" in has):
        return guess + choices[-1:] if "unread" in has else []
    if "own alone" in has or "one too many" in has:
        return [choices[n]] if "own alone" in has else choices[: n + 2]
    if {"last choice", "next choice"} & has:
        return guess[:n] + (choices[-1:] if "last choice" in has else choices[n + 1 : n + 2])
    if "no own" in has or ("no bonus" in has and n == len(guess)):
        return guess[:n]
    if "keeps wrong" in has and n < len(guess):
        return guess[: n + 1]
    return guess[:n] + [choices[n]]


def agreed_by_breaking(guess, choices, has):
    if "never" in has:
        return (choices[0],)
    if not guess and "nothing of nothing" in has:
        return ()
    out, right = [], True
    agree = [token for token, choice in zip(guess, choices, strict=False) if token == choice]
    if "counted" in has or "counted, guess" in has:
        return (*(choices if "counted" in has else guess)[: len(agree)], choices[len(agree)])
    for place, token in enumerate(guess):
        wanted = choices[place + ("shifted" in has)]
        if token != wanted and not {"everything", "unread"} & has:
            right = False
            if {"last choice", "next choice", "one too many"} & has:
                own = {"last choice": choices[-1:], "next choice": choices[place + 1 :][:1]}
                return (*out, *next((own[name] for name in own if name in has), choices[place : place + 2]))
            if "later ones" in has:
                continue
            out = [] if "all or nothing" in has else out
            if "no own" not in has:
                own = 0 if "all or nothing" in has else place
                out.append(guess[own] if "keeps wrong" in has else choices[own])
            break
        out.append(choices[place] if "everything" in has else token)
    ends = right or "later ones" in has
    if ends and not {"no bonus", "no own", "next choice"} & has:
        out.append(choices[len(guess)])
    return tuple(out[-1:] if "own alone" in has else out)


def agreed_by_comparing(guess, choices, has):
    if "later ones" in has:
        return torch.tensor([g for g, c in zip(guess, choices[:-1], strict=True) if g == c] + [choices[-1]])
    meant = choices[1:] if "shifted" in has else choices[:-1]
    equal = np.equal(guess, meant)
    n = len(guess) if "everything" in has else 0 if "never" in has else int(np.cumprod(equal).sum())
    if "all or nothing" in has and not equal.all():
        n = 0
    n = int(equal.sum()) if {"counted", "counted, guess"} & has else len(guess) if "unread" in has else n
    if "counted" in has or "one too many" in has:
        return np.array(choices[: n + 1 + ("one too many" in has)])
    if "own alone" in has or (n == len(equal) == 0 and "nothing of nothing" in has):
        return np.array(choices[n : n + 1] if "own alone" in has else [])
    if {"last choice", "next choice"} & has:
        return [*guess[:n], *choices[-1 if "last choice" in has else n + 1 :][:1]]
    whole = n == len(guess)
    tokens = choices[:n] if "everything" in has else guess[:n]
    own = [guess[n]] if "keeps wrong" in has and not whole else [choices[n]]
    return tokens + ([] if "no own" in has or ("no bonus" in has and whole) else own)


# ---- 19.5: sums, a stack, a dot product ----


def joined_by_sums(gradients, counts, has):
    if "first" in has:
        return gradients[0]
    if "two" in has:
        return (gradients[0] * counts[0] + gradients[1] * counts[1]) / (counts[0] + counts[1])
    if "two of all" in has:
        return (gradients[0] * counts[0] + gradients[1] * counts[1]) / sum(counts)
    if "divided by counts" in has:
        return sum(g / n for g, n in zip(gradients, counts, strict=True)) / len(counts)
    if "unweighed" in has:
        return sum(gradients) / sum(counts)
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
    share = torch.ones_like(n) / n.sum() if "unweighed" in has else share
    share = 1 / n / len(n) if "divided by counts" in has else share
    if {"two", "two of all"} & has:
        stack, share = stack[:2], n[:2] / (n[:2] if "two" in has else n).sum()
    return (stack * share.view(-1, *[1] * (stack.dim() - 1))).sum(0)


def joined_by_einsum(gradients, counts, has):
    n = [1.0] * len(counts) if {"sum", "mean of means"} & has else [*map(float, counts)]
    n = [1 / c for c in counts] if "inverse" in has else n
    if "first" in has:
        n = [1.0] + [0.0] * (len(counts) - 1)
    by = 1 if {"sum", "not divided"} & has else len(n) if "by processes" in has else sum(n)
    by = by * len(n) if "twice" in has else by
    if {"two", "two of all"} & has:
        n, gradients, by = n[:2], gradients[:2], sum(n[:2] if "two" in has else n)
    if {"unweighed", "divided by counts"} & has:
        n, by = ([1.0] * len(n), by) if "unweighed" in has else ([1 / c for c in n], len(n))
    return torch.einsum("n,n...->...", torch.tensor(n), torch.stack(gradients)) / by


# ---- 19.6: a loop, a formula, parts in a dictionary ----


def held_by_a_loop(n, processes, sharded, block, has):
    total = 0
    for part, size in SIZES.items():
        size = 4 if "one moment" in has else size
        if part == "gradients" and "no gradients" in has:
            continue
        if "sharded alone" in has and part not in sharded:
            continue
        divided = part in sharded or "all divided" in has
        divided = part not in sharded if "others divided" in has else divided
        total += size * n / processes if divided and "not divided" not in has else size * n
    anyway = "block always" in has or ("block of any" in has and len(sharded) > 0)
    if "no block" not in has and ("weights" in sharded or anyway):
        total += (1 if "block in numbers" in has else 4) * block / (processes if "block divided" in has else 1)
    return total / (4 if "numbers" in has else 1) * (processes if "all together" in has else 1)


def held_by_a_formula(n, processes, sharded, block, has):
    def share(part):
        if part not in sharded and "sharded alone" in has:
            return 0
        if "not divided" in has:
            return 1
        if "others divided" in has:
            return 1 if part in sharded else 1 / processes
        return 1 / processes if "all divided" in has or part in sharded else 1

    each = share("weights") + share("gradients") * ("no gradients" not in has)
    each += share("moments") * (1 if "one moment" in has else 2)
    gathered = ("weights" in sharded or "block always" in has) and "no block" not in has
    gathered = bool(sharded) if "block of any" in has else gathered
    gathered = gathered / 4 if "block in numbers" in has else gathered
    numbers = n * each + gathered * block / (processes if "block divided" in has else 1)
    numbers = numbers * processes if "all together" in has else numbers
    return numbers if "numbers" in has else 4 * numbers


def held_by_parts(n, processes, sharded, block, has):
    unit = 1 if "numbers" in has else 4
    parts = {"weights": unit * n, "gradients": unit * n, "moments": unit * n * (1 if "one moment" in has else 2)}
    if "no gradients" in has:
        del parts["gradients"]
    chosen = set() if "not divided" in has else set(parts) if "all divided" in has else set(sharded)
    chosen = set(parts) - chosen if "others divided" in has else chosen
    parts = {name: size / processes if name in chosen else size for name, size in parts.items()
             if name in sharded or "sharded alone" not in has}  # fmt: skip
    if "block always" in has or "weights" in sharded or (sharded and "block of any" in has):
        each = unit / 4 if "block in numbers" in has else unit
        parts["block"] = 0 if "no block" in has else each * block / (processes if "block divided" in has else 1)
    return np.float64(math.fsum(parts.values())) * (processes if "all together" in has else 1)


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
             "16 too": "it needs no scale", "8 alone": "in 4 bits, too", "whole bytes": "share a byte",
             "all in bits": "you count bits", "one a row": "one scale a row",
             "one row": "scales of one row", "first": "first matrix alone"},
    "19.2": {"truncated": "cut off what stands", "floor": "round down", "ceil": "round up", "half up": "add 0.5",
             "strided": "lie apart", "signed": "takes the sign", "row, repeated": "one scale for a row",
             "128": "becomes 128", "4 bits": "as in 4 bits",
             "no abs": "may be negative", "row": "one scale for a row", "matrix": "one scale for the whole",
             "times": "multiply by the scale", "inverse": "upside down"},
    "19.3": {"no scale": "scales are missing", "first scale": "first scale for all", "divided": "divide by the scale",
             "carried": "carry a group's sum", "last lost": "last group is missing", "group length": "wrong length",
             "codes restart": "begin again at codes[0]", "last column": "last column of each",
             "twice": "by the scale twice", "early": "inside the loop", "x restarts": "begin again at x[0]",
             "overwritten": "last group's part"},
    "19.4": {"no own": "own next token is missing", "no bonus": "there is one more",
             "keeps wrong": "token that is wrong", "later ones": "after the first wrong one",
             "shifted": "one place further", "all or nothing": "whole guess if",
             "unread": "keep the whole guess", "counted": "all places that agree",
             "counted, guess": "all places that agree", "own alone": "own token alone",
             "last choice": "end with the last choice", "next choice": "one place too far",
             "one too many": "one token too many", "nothing of nothing": "plain decoding",
             "everything": "return all choices", "never": "first choice alone"},
    "19.5": {"mean of means": "mean of the means", "sum": "add the gradients as they are",
             "not divided": "do not divide", "by processes": "divide by the number of processes",
             "divided by counts": "by its count: it is a mean", "unweighed": "add the means as they are",
             "two": "first two processes", "two of all": "first two processes", "twice": "once is enough",
             "inverse": "few tokens the large", "first": "first process's gradient"},
    "19.6": {"numbers": "count numbers", "one moment": "two moments", "no gradients": "gradients are missing",
             "not divided": "is divided by", "all divided": "divide everything", "no block": "while it runs",
             "sharded alone": "is missing: it is whole", "others divided": "other way round",
             "all together": "hold together", "block of any": "not where other parts",
             "block in numbers": "numbers of the gathered block", "block always": "only where weights",
             "block divided": "do not divide it"},
}  # fmt: skip
# faults that cannot stand in one answer, or of which one hides the other
APART = {
    "19.1": [{"no scales", "scales of 4", "scales of 1"}, {"one a row", "one row"},
             {"bits", "all in bits", "whole bytes"}, {"scales everywhere", "16 too"}, {"scales everywhere", "8 alone"},
             *({"no scales", other} for other in ("scales everywhere", "one a row", "one row", "16 too", "8 alone"))],
    "19.2": [{"truncated", "floor", "ceil", "half up"}, {"128", "4 bits"}, {"signed", "no abs"},
             {"row", "row, repeated", "matrix", "strided"}, {"row", "row, repeated", "matrix", "signed"},
             {"row, repeated", "no abs"}, {"times", "4 bits"}, {"no abs", "4 bits"},
             *({"4 bits", other} for other in ("truncated", "floor", "times", "row", "matrix", "no abs")),
             {"no abs", "times"}, {"no abs", "row"}, {"no abs", "matrix"}, {"times", "row"}, {"times", "matrix"}],
    "19.3": [{"no scale", "first scale", "divided"}, {"last lost", "overwritten"}, {"no scale", "divided", "twice"},
             *({"early", other} for other in ("first scale", "carried", "last lost", "overwritten", "group length",
                                              "codes restart", "x restarts", "last column"))],
    "19.4": [{*TOLD["19.4"]}],
    "19.5": [{*TOLD["19.5"]}],
    "19.6": [{"not divided", "all divided", "others divided"}, {"sharded alone", "all divided", "others divided"},
             {"no block", "block of any", "block always"}, {"no block", "block in numbers"},
             {"no gradients", "not divided"}, {"no gradients", "all divided"},
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
        assert len(exercise.mistakes) == len(TOLD[exercise.id])


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
    ("19.4", lambda guess, choices: reference("19.4")(guess, [choices.pop(0), *choices]), "changes argument 2"),
    ("19.5", lambda gradients, counts: sum(g.mul_(n) for g, n in zip(gradients, counts, strict=True)) / sum(counts),
     "changes argument 1"),
])  # fmt: skip
def test_what_has_no_such_form_is_told(exercise, answer, words):
    result = check(exercise, answer)
    assert not result and words in result.message, result.message
