"""course.checks.lesson04: right answers pass, and each usual mistake is called by its name, alone and in pairs.

Each exercise is written in three ways that have little in common, and each way can have any of the faults in it.
"""

import math
import re
from itertools import product

import pytest
import torch
from torch import Tensor

from llamamm.course.checks import check, exercises_of, find_exercise
from tests.course.checks.ways import assert_right, assert_told

PI = math.pi

# ---- 04.1 in three ways: a formula, in place, a matrix ----


def pair_by_formula(pair, angle, has):
    angle = angle * PI / 180 if "degrees" in has else angle * 180 / PI if "to degrees" in has else angle
    angle = -angle if "clockwise" in has else angle
    cos, sin = (math.sin, math.cos) if "swapped" in has else (math.cos, math.sin)
    x, y = pair
    if "scaled" in has:
        out = [x * cos(angle), y * sin(angle)]
        return torch.stack(out[::-1] if "exchanged" in has else out)
    new_x = x * cos(angle) + y * sin(angle) * (1 if "no minus" in has else -1)
    turned = (new_x if "overwritten" in has else x) * sin(angle)
    new_y = y * cos(angle) - turned if "two minuses" in has else turned + y * cos(angle)
    return torch.stack((new_y, new_x) if "exchanged" in has else (new_x, new_y))


def pair_in_place(pair, angle, has):
    pair = pair.clone()
    a = torch.tensor(angle, dtype=torch.float64)
    a = torch.deg2rad(a) if "degrees" in has else torch.rad2deg(a) if "to degrees" in has else a
    c, s = a.cos(), a.sin()
    if "clockwise" in has:
        s.neg_()
    if "swapped" in has:
        c, s = s, c
    old = pair.clone()
    pair[0] *= c
    pair[1] *= s if "scaled" in has else c
    if "scaled" not in has:
        pair[0] += old[1] * s if "no minus" in has else -old[1] * s
        pair[1] += (pair[0] if "overwritten" in has else old[0]) * (-s if "two minuses" in has else s)
    return pair.flip(0) if "exchanged" in has else pair


def pair_by_matrix(pair, angle, has):
    if "degrees" in has:
        angle = math.radians(angle)
    if "to degrees" in has:
        angle = math.degrees(angle)
    c, s = math.cos(angle), math.sin(angle) * (-1) ** ("clockwise" in has)
    if "swapped" in has:
        c, s = s, c
    minus = s if "no minus" in has else -s
    sine = -s if "two minuses" in has else s
    rows = [[c, minus], [sine, c]]
    if "overwritten" in has:
        rows[1] = [c * sine, c + minus * sine]
    if "scaled" in has:
        rows = [[c, 0], [0, s]]
    if "exchanged" in has:
        rows.reverse()
    return (torch.tensor(rows, dtype=torch.float64) @ pair.double()).to(pair.dtype)


# ---- 04.2 in three ways: tensors, a loop, logarithms ----


def frequencies_of_tensors(head_dim, theta, has):
    theta = with_base(theta, has)
    i = torch.arange("odd" in has, head_dim, 2).double().div(2).add("from one" in has)
    width = (64 if "64" in has else head_dim) - 2 * ("last" in has)
    exponent = i.mul(1 if "half" in has else 4 if "double" in has else 2) / (1 if "undivided" in has else width)
    freqs = -(theta**exponent) if "outside" in has else theta**exponent
    freqs = freqs if "plus" in has or "outside" in has else 1 / freqs
    freqs = torch.flip(freqs, (0,)) if "reversed" in has else freqs
    freqs = freqs * 2 * PI if "times 2π" in has else freqs / (2 * PI) if "over 2π" in has else freqs
    return (2 * PI / freqs if "wavelength" in has else freqs).float()


def with_base(theta, has):
    return next((base for base in (1e4, 1e5, 5e5) if f"base {base:,.0f}" in has), theta)


def frequencies_in_a_loop(head_dim, theta, has):
    for fault, base in (("base 500,000", 500_000.0), ("base 100,000", 100_000.0), ("base 10,000", 10_000.0)):
        theta = base if fault in has else theta
    pairs = [*range(1, head_dim // 2 + 1)] if "from one" in has else [*range(head_dim // 2)]
    if "reversed" in has:
        pairs.reverse()
    out = []
    for pair in pairs:
        half = 0.5 if "undivided" in has else 32 if "64" in has else head_dim / 2
        share = (pair + 0.5 * ("odd" in has)) / (half - 1 if "last" in has else half)
        share = share / 2 if "half" in has else share * 2 if "double" in has else share
        speed = math.pow(theta, share if "plus" in has or "outside" in has else -share)
        speed *= (math.tau if "times 2π" in has else 1 / math.tau if "over 2π" in has else 1) * (
            -1 if "outside" in has else 1)  # fmt: skip
        out.append(math.tau / speed if "wavelength" in has else speed)
    return torch.tensor(out)


def frequencies_by_logarithm(head_dim, theta, has):
    log = math.log(with_base(theta, has))
    width = 1 if "undivided" in has else 64 if "64" in has else head_dim
    step = 2 * log / (width - 2 if "last" in has else width)
    step *= {"half": 0.5, "double": 2}.get(next(iter({"half", "double"} & set(has)), ""), 1)
    exponent = torch.cumsum(torch.full((head_dim // 2,), step, dtype=torch.float64), 0)
    exponent = exponent if "from one" in has else exponent - step
    exponent = exponent + step / 2 if "odd" in has else exponent
    exponent = exponent if "plus" in has or "outside" in has else exponent.neg()
    turn = math.log(2 * PI) * (("times 2π" in has) - ("over 2π" in has))
    sign = -1 if "outside" in has else 1
    exponent = exponent[list(range(head_dim // 2))[::-1]] if "reversed" in has else exponent
    exponent = exponent + turn
    return (sign * exponent.neg().exp() * 2 * PI if "wavelength" in has else sign * exponent.exp()).float()


# ---- 04.3 and 04.4 in three ways: halves, slices, a matrix for each token ----


def halves(sign):
    def answer(x, cos, sin, has):
        s = -sign if "other way" in has else sign
        first, second = (abs(s), abs(s)) if "no minus" in has else (-s, s)
        if "one road" in has:
            first = second = 0
        n = x.shape[-1] // 2
        own = "own columns" in has
        if "table" in has:
            cos, sin = cos[..., ::2].repeat(1, 2), sin[..., ::2].repeat(1, 2)
        if "one speed" in has:
            cos, sin = cos[..., :1].expand_as(cos), sin[..., :1].expand_as(sin)
        if "one token" in has:
            cos, sin = cos[0].expand_as(cos), sin[0].expand_as(sin)
        cos, sin = (sin, cos) if "swapped" in has else (cos, sin)
        if "by the angle" in has:  # (cos, sin) of the way forth, each replaced by its derivative
            cos, sin, first, second = -sin, cos, -first, -second
        if own:
            cos, sin = (torch.cat((t[..., ::2], t[..., 1::2]), -1) for t in (cos, sin))
        (cos, cos_b), (sin, sin_b) = ((t[..., :n], t[..., n:] if own else t[..., :n]) for t in (cos, sin))
        if "heads" in has and x.shape[1] == x.shape[2]:
            x = x.transpose(1, 2)
        if {"neighbours", "neighbours in", "own columns"} & {*has}:
            x = torch.cat((x[..., ::2], x[..., 1::2]), -1)
        a, b = x.chunk(2, -1)
        new = a * cos + first * b * sin
        parts = [new, b * cos_b + second * (new if "overwritten" in has else a) * sin_b]
        if "exchanged" in has:
            parts.reverse()
        out = torch.cat(parts, -1) * (-1 if "negated" in has else 1)
        if {"neighbours", "neighbours out", "own columns"} & {*has}:
            out = out.unflatten(-1, (2, n)).transpose(-1, -2).flatten(-2)
        return out.transpose(1, 2) if "heads" in has and x.shape[1] == x.shape[2] else out

    return answer


def slices(sign):
    def answer(x, cos, sin, has):
        n = x.shape[-1] // 2
        one, two = slice(0, n), slice(n, None)
        to_one, to_two = one, two
        if {"neighbours", "neighbours in", "own columns"} & {*has}:
            one, two = slice(0, None, 2), slice(1, None, 2)
        if {"neighbours", "neighbours out", "own columns"} & {*has}:
            to_one, to_two = slice(0, None, 2), slice(1, None, 2)
        columns = torch.arange(0, 2 * n, 2) if "table" in has or "own columns" in has else torch.arange(n)
        columns = columns * 0 if "one speed" in has else columns
        rows = torch.zeros(len(cos), 1).long() if "one token" in has else torch.arange(len(cos)).unsqueeze(1)
        more = 1 if "own columns" in has else 0
        c, s, c_two, s_two = (t[rows, at] for at in (columns, columns + more) for t in (cos, sin))
        if "swapped" in has:
            c, s, c_two, s_two = s, c, s_two, c_two
        turn = sign if "other way" not in has else -sign
        if "by the angle" in has:
            c, s, c_two, s_two, turn = -s, c, -s_two, c_two, -turn
        if "heads" in has and x.shape[1] == x.shape[2]:
            c, s, c_two, s_two = (t.unsqueeze(1) for t in (c, s, c_two, s_two))
        a, b = x[..., one] * c, x[..., two] * c_two
        if "one road" not in has:
            a = a + (1 if "no minus" in has else -turn) * x[..., two] * s
            b = b + (1 if "no minus" in has else turn) * (a if "overwritten" in has else x[..., one]) * s_two
        out = torch.zeros_like(x)
        out[..., to_one], out[..., to_two] = (b, a) if "exchanged" in has else (a, b)
        return out.neg() if "negated" in has else out

    return answer


def one_pair(c, s, sign, has):
    """The matrix that turns one pair, (to, from)."""
    turn = -sign if "other way" in has else sign
    if "swapped" in has:
        c, s = s, c
    if "by the angle" in has:
        c, s, turn = -s, c, -turn
    to_a, to_b = (s, s) if "no minus" in has else (0, 0) if "one road" in has else (-turn * s, turn * s)
    return torch.tensor([[c, to_a], [to_b, c]], dtype=torch.float64)


def matrices(sign):
    def answer(x, cos, sin, has):
        T, D = cos.shape
        every = torch.zeros(T, D, D, dtype=torch.float64)  # [t, to, from]
        for t, i in product(range(T), range(D // 2)):
            both = {(2 * i, 2 * i + 1)} if "neighbours" in has or "own columns" in has else set()
            (a, b), = both or ({(2 * i, 2 * i + 1)} if "neighbours in" in has else {(i, i + D // 2)})
            (to_a, to_b), = both or ({(2 * i, 2 * i + 1)} if "neighbours out" in has else {(i, i + D // 2)})
            column = 2 * i if "table" in has or "own columns" in has else 0 if "one speed" in has else i
            row = 0 if "one token" in has else t
            turned = [one_pair(float(cos[row, at]), float(sin[row, at]), sign, has)
                      for at in (column, column + ("own columns" in has))]
            block = torch.stack((turned[0][0], turned[1][1]))  # (to, from)
            if "overwritten" in has:
                block[1] = torch.tensor([0, block[1, 1]]) + block[1, 0] * block[0]
            if "exchanged" in has:
                block = block.flip(0)
            every[t, torch.tensor([[to_a], [to_b]]), torch.tensor([a, b])] = -block if "negated" in has else block
        axes = "hij,bhtj->bhti" if "heads" in has and x.shape[1] == T else "tij,bhtj->bhti"
        return torch.einsum(axes, every, x.double()).to(x.dtype)

    return answer


# ---- 04.5 in three ways: one expression, a loop with ifs, torch.where ----


def rule_in_one_expression(head_dim, theta, factor, original, has):
    theta = with_base(theta, has)
    plain = theta ** (-torch.arange(0, head_dim, 2).double() / head_dim * (0.5 if "half" in has else 1))
    factor, original = with_constants(factor, original, has)
    wave = (1 if "no 2π" in has else 2 * PI) / plain
    keep = ((wave / original if "turned over" in has else original / wave) - 1) / 3
    keep = (original - wave) / (0.75 * original) if "by wavelength" in has else keep
    if "no clamp" not in has:
        keep = keep if "no lower clamp" in has else keep.clamp(min=0)
        keep = keep if "no upper clamp" in has else keep.clamp(max=1)
    if "steps down" in has or "steps up" in has:
        keep = (keep > 0 if "steps down" in has else keep >= 1).double()
    keep = 1 - keep if "upside down" in has else keep
    keep = keep * 0 + ("none" in has) if {"all", "none"} & set(has) else keep
    return (plain * (keep + (1 - keep) * (factor if "multiplied" in has else 1 / factor))).float()


def with_constants(factor, original, has):
    factor = 8 if "factor 8" in has else 32 if "factor 32" in has else factor
    return factor, 8192 if "original" in has else original * factor if "new length" in has else original


def rule_in_a_loop(head_dim, theta, factor, original, has):
    factor, original = with_constants(factor, original, has)
    out = []
    theta = with_base(theta, has)
    for i in range(head_dim // 2):
        speed = theta ** -(i / head_dim if "half" in has else 2 * i / head_dim)
        turns = original * speed if "no 2π" in has else original * speed / math.tau
        turns = 1 / turns if "turned over" in has else turns
        slow, kept = speed * factor if "multiplied" in has else speed / factor, speed
        if "upside down" in has:
            slow, kept = kept, slow
        share = (1 - 1 / turns) / (1 - 1 / 4) if "by wavelength" in has else (turns - 1) / (4 - 1)
        if turns >= 4:
            share = share if {"no clamp", "no upper clamp"} & {*has} else 1
        elif turns <= 1:
            share = share if {"no clamp", "no lower clamp"} & {*has} else 0
        if "steps down" in has:
            share = 1 if turns > 1 else 0
        if "steps up" in has:
            share = 0 if turns < 4 else 1
        value = slow + share * (kept - slow)
        out.append((speed * factor if "multiplied" in has else speed / factor) if "all" in has
                   else speed if "none" in has else value)
    return torch.tensor(out)


def rule_with_where(head_dim, theta, factor, original, has):
    factor, original = with_constants(factor, original, has)
    exponent = torch.linspace(0, 1, head_dim // 2 + 1, dtype=torch.float64)[:-1]
    speed = torch.exp(-math.log(with_base(theta, has)) * (exponent / 2 if "half" in has else exponent))
    wave = speed.reciprocal() if "no 2π" in has else 2 * PI * speed.reciprocal()
    slow = speed * factor if "multiplied" in has else speed / factor
    wave = original**2 / wave if "turned over" in has else wave
    long, short = original, original / 4
    share = torch.where(torch.tensor("by wavelength" in has), (long - wave) / (long - short), (original / wave - 1) / 3)
    if "steps down" in has:
        share = torch.where(wave < long, 1.0, 0.0).double()
    elif "steps up" in has:
        share = torch.where(wave > short, 0.0, 1.0).double()
    elif "no clamp" not in has:
        share = share if "no lower clamp" in has else torch.where(wave >= long, 0.0, share)
        share = share if "no upper clamp" in has else torch.where(wave <= short, 1.0, share)
    ends = (speed, slow) if "upside down" in has else (slow, speed)
    out = torch.lerp(*ends, share)
    return (slow if "all" in has else speed if "none" in has else out).float()


# ---- 04.6 in three ways: arange, a list, a power ----


def blind_by_arange(head_dim, distance, has):
    turns = torch.arange(1, head_dim // 2 + 1) * 1.0
    turns = torch.ones_like(turns) if "same" in has else turns
    turns = turns * distance if "every token" in has else turns
    turns = 1 / turns if "longer" in has else turns
    if "wavelengths" in has:
        return distance / turns
    turn = PI if "half turns" in has else 1 if "no 2π" in has else 360 if "degrees" in has else 2 * PI
    return turns * turn / distance


def blind_by_list(head_dim, distance, has):
    out = []
    for i in range(head_dim // 2):
        turns = (1 if "same" in has else i + 1) * (distance if "every token" in has else 1)
        wave = distance * turns if "longer" in has else distance / turns
        per_turn = math.tau / 2 if "half turns" in has else 1.0 if "no 2π" in has else math.tau
        per_turn = 360.0 if "degrees" in has else per_turn
        out.append(wave if "wavelengths" in has else per_turn / wave)
    return torch.tensor(out)


def blind_by_power(head_dim, distance, has):
    first = torch.full((head_dim // 2,), 2 * PI / (1 if "every token" in has else distance))
    first = first / 2 if "half turns" in has else first / (2 * PI) if "no 2π" in has else first
    first = torch.rad2deg(first) if "degrees" in has else first
    turns = torch.cumsum(torch.ones(head_dim // 2), 0)
    if "wavelengths" in has:
        return distance * turns.clamp(max=1 if "same" in has else None, min=0).reciprocal() / (
            distance if "every token" in has else 1)  # fmt: skip
    turns = torch.ones(head_dim // 2) if "same" in has else turns
    return first * turns.pow(-1 if "longer" in has else 1)


WAYS = {
    "04.1": (pair_by_formula, pair_in_place, pair_by_matrix),
    "04.2": (frequencies_of_tensors, frequencies_in_a_loop, frequencies_by_logarithm),
    "04.3": (halves(1), slices(1), matrices(1)),
    "04.4": (halves(-1), slices(-1), matrices(-1)),
    "04.5": (rule_in_one_expression, rule_in_a_loop, rule_with_where),
    "04.6": (blind_by_arange, blind_by_list, blind_by_power),
}
# what a message must hold, for each fault
TOLD = {
    "04.1": {"clockwise": "turned clockwise", "overwritten": "overwrote x", "degrees": "radians already",
             "to degrees": "turned the angle into degrees", "two minuses": "subtracted both sines",
             "no minus": "minus is missing", "swapped": "sine where the cosine", "scaled": "mixture of both",
             "exchanged": "two numbers come in the opposite order"},
    "04.2": {"plus": "minus in the exponent", "half": "half their range", "double": "twice too far",
             "from one": "first exponent is 0", "last": "head_dim − 2", "base 10,000": "wrote 10,000",
             "base 100,000": "wrote 100,000", "base 500,000": "wrote 500,000", "odd": "begin with 1 / head_dim",
             "64": "You divided by 64", "undivided": "not divided by head_dim", "outside": "Yours are negative",
             "times 2π": "multiplied by 2π", "over 2π": "divided by 2π", "wavelength": "These are wavelengths",
             "reversed": "opposite order"},
    "04.3": {"other way": "turned clockwise", "no minus": "minus is missing", "one road": "only multiplied",
             "neighbours": "paired neighbours", "neighbours in": "joined them as halves",
             "neighbours out": "joined them as neighbours", "own columns": "partners are neighbours",
             "one speed": "All pairs turn by", "one token": "All tokens turn by",
             "table": "columns 0, 2, 4", "heads": "third axis",
             "swapped": "sine where the cosine", "overwritten": "overwrote the first half",
             "exchanged": "halves come in the opposite order", "negated": "numbers have the opposite sign"},
    "04.5": {"none": "Nothing is scaled", "all": "slowed all pairs", "upside down": "upside down",
             "no clamp": "between 0 and 1: yours", "no lower clamp": "at 0, too", "no upper clamp": "at 1, too",
             "steps down": "step at 1 turn", "new length": "within the new length",
             "turned over": "turns are wavelength / original", "multiplied": "multiplied the slow speeds",
             "base 10,000": "wrote 10,000", "base 100,000": "wrote 100,000", "base 500,000": "wrote 500,000",
             "steps up": "step at 4 turns", "by wavelength": "proportion to the wave", "no 2π": "2π is missing",
             "factor 8": "wrote 8 where", "factor 32": "wrote 32 where", "original": "wrote 8192",
             "half": "half their range"},
    "04.6": {"half turns": "π for a full turn", "degrees": "360 for a full turn",
             "wavelengths": "These are wavelengths", "longer": "multiplied the",
             "no 2π": "2π is missing", "same": "speeds. 1, 2, 3", "every token": "every single token"},
}  # fmt: skip
TOLD["04.4"] = {**TOLD["04.3"], "other way": "has to be turned back", "by the angle": "with respect to the angle"}
# faults that cannot stand in one answer, or of which one hides the other
SETS_APART = {
    "04.1": [
        *({"scaled", other} for other in ("overwritten", "no minus", "two minuses")),  # scaled numbers are not mixed
        {"degrees", "to degrees"},  # one undoes the other
        {"clockwise", "no minus", "two minuses"},  # all are about the same two signs
        *({"exchanged", "swapped", other} for other in ("no minus", "clockwise")),
    ],
    "04.2": [
        {"half", "double"},  # each says how far the exponents go
        {"base 10,000", "base 100,000", "base 500,000"},  # one number stands for the base
        {"64", "undivided"}, {"last", "undivided"}, {"last", "64"},  # one number stands under the exponents
        {"from one", "odd"},  # each says where the exponents begin
        {"plus", "outside"},  # each says where the minus stands
        {"times 2π", "over 2π"}, {"plus", "wavelength", "times 2π"},  # wavelengths without a minus are speeds times 2π
    ],
    "04.3": [
        {"other way", "no minus"},  # both are about the same two signs
        *({"one road", other} for other in ("other way", "no minus", "overwritten", "own columns")),  # without a sine
        {"no minus", "exchanged"},  # the same as no minus and the sine for the cosine
        {"neighbours", "neighbours in", "neighbours out", "own columns"},  # each says which numbers are a pair
        {"table", "one speed", "own columns"},  # each says which column holds a pair's angle
        {"heads", "one token"},  # each says which row holds a token's angle
    ],
    "04.5": [
        {"none", "all", "steps down", "steps up"},  # each says which pairs are slowed
        *({kind, other} for kind in ("none", "all") for other in (
            "upside down", "no clamp", "no lower clamp", "no upper clamp", "by wavelength", "no 2π", "original")),
        # where all pairs or none are slowed no turns are counted
        {"no clamp", "no lower clamp", "no upper clamp"},  # no clamp is both of the others
        *({step, other} for step in ("steps down", "steps up") for other in (
            "no clamp", "no lower clamp", "no upper clamp", "by wavelength")),  # a step needs no clamp and no blend
        {"none", "factor 8"}, {"none", "factor 32"}, {"none", "multiplied"},  # what isn't scaled has no factor
        {"factor 8", "factor 32"},  # one number stands for the factor
        {"base 10,000", "base 100,000", "base 500,000"},  # one number stands for the base
        *({kind, other} for kind in ("none", "all") for other in ("new length", "turned over")),  # as with no 2π
        *({"turned over", other} for other in ("steps down", "steps up", "by wavelength")),  # only the order shows
        {"original", "new length"},  # one number stands for the length
    ],
    "04.6": [
        {"half turns", "no 2π", "degrees", "wavelengths"},  # each says how turns become a frequency
        {"longer", "wavelengths"},  # each says what becomes of the turns
        {"longer", "same"},  # one turn is the same, multiplied or divided
        *({"every token", other} for other in ("longer", "no 2π", "degrees", "wavelengths")),
        # places are compared where all turns are whole
    ],
}
SETS_APART["04.4"] = [
    *SETS_APART["04.3"],
    {"swapped", "negated", "by the angle"},  # two of them are the third
]


def answer_of(exercise, has, way):
    return lambda *case: WAYS[exercise][way](*case, has)


@pytest.mark.parametrize("exercise", WAYS)
def test_the_right_answer_passes_however_it_is_written(exercise):
    assert_right(exercise, WAYS[exercise])


def also_blind(head_dim, distance):
    """Another right choice: one turn more than multiples of the distance, so that all pairs move alike."""
    return 2 * PI * (1 + distance * torch.arange(head_dim // 2)) / distance


def by_complex_numbers(x, cos, sin):
    n = x.shape[-1] // 2
    turned = torch.complex(*x.float().split(n, -1)) * torch.complex(cos[:, :n].float(), sin[:, :n].float())
    return torch.cat((turned.real, turned.imag), -1).to(x.dtype)


@pytest.mark.parametrize(("exercise", "answer"), [("04.6", also_blind), ("04.3", by_complex_numbers)])
def test_other_right_roads_pass(exercise, answer):
    assert check(exercise, answer), check(exercise, answer).message


@pytest.mark.parametrize("exercise", WAYS)
def test_each_fault_gets_its_sentence_alone_and_beside_another(exercise):
    assert_told(exercise, WAYS[exercise], TOLD[exercise], SETS_APART[exercise])


def test_a_message_names_the_property_the_smallest_input_and_both_numbers():
    message = check("04.3", answer_of("04.3", ("no minus", "heads"), 0)).message
    assert "which way a pair turns: for ([[[[2, 5]]]], [[0.8253, 0.8253]], [[0.5646, 0.5646]])" in message
    assert "[0, 0, 0, 0] should be -1.17254, got 4.47388. The minus is missing" in message
    assert re.search(r"each token's own angle: You turned head h .*\. \[0, .*should be .*, for \(1x2x2x4 num", message)
    message = check("04.2", answer_of("04.2", ("half",), 0)).message
    assert "the step from pair to pair: for (8, 50) [3] should be 0.05318, got 0.2306" in message


OTHERWISE = [
    ("04.1", lambda pair, _: pair.tolist(), "shape and dtype: .*should be a tensor"),
    ("04.1", lambda pair, angle: pair_by_formula(pair, angle + 0.1, ()), "all numbers: .*should be"),
    ("04.2", lambda d, theta: frequencies_of_tensors(d, theta, ()).repeat(2), "one frequency for each pair"),
    ("04.2", lambda d, theta: frequencies_of_tensors(d, theta, ()).repeat_interleave(2), "one frequency for each pair"),
    ("04.2", lambda d, theta: frequencies_of_tensors(d, theta, ()).double(), "dtype should be torch.float32"),
    ("04.2", lambda d, theta: frequencies_of_tensors(d, theta, ("half",)).repeat(2), "half their range"),
    ("04.2", lambda d, _: torch.linspace(1, 0.1, d // 2), "all numbers: "),
    ("04.3", lambda x, cos, _: x[..., :1] * cos[:, :1], "shape should be"),
    ("04.3", lambda x, cos, sin: halves(1)(x, cos, sin, ()).float(), "dtype should be torch.bfloat16"),
    ("04.3", lambda x, cos, sin: 2 * halves(1)(x, cos, sin, ()), "all numbers: "),
    ("04.4", lambda *_: None, "returns nothing: is the `return` missing?"),
    ("04.5", lambda d, *_: torch.ones(d // 2), "all numbers: "),
    ("04.6", lambda d, _: torch.zeros(d // 2), "stands still"),
    ("04.6", lambda d, _: torch.ones(d), "got shape"),
    ("04.6", lambda *_: [1.0], "got list"),
    ("04.6", lambda d, distance: 4 * PI * torch.arange(1, d // 2 + 1) / distance, "already look alike"),
    ("04.6", lambda d, _: frequencies_of_tensors(d, 5e5, ()), "make it a whole number"),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), OTHERWISE)
def test_what_no_fault_explains_is_told_with_its_numbers(exercise, answer, message):
    result = check(exercise, answer)
    assert not result
    assert re.search(message, result.message), result.message


# ---- what is read off a result that no planted fault explains ----


def joined(*parts):
    return torch.cat(parts, -1)


def woven(a, b):
    return torch.stack((a, b), -1).flatten(-2)


def half(table):
    return table[..., : table.shape[-1] // 2]


def whole(partner):
    """x cos + partner(a, b) sin, with a and b the halves of x."""
    return lambda x, cos, sin: x * cos + partner(*x.chunk(2, -1)) * sin


def by_neighbours(partner):
    return lambda x, cos, sin: x * cos + partner(x[..., ::2], x[..., 1::2]) * sin


def new_halves(new_a, new_b):
    def answer(x, cos, sin):
        a, b = x.chunk(2, -1)
        return joined(new_a(a, b, half(cos), half(sin)), new_b(a, b, half(cos), half(sin)))

    return answer


def forth(a, b, c, s):
    return a * c - b * s


FORMULAS = [  # for 04.3 the sentence, for 04.4 the sentence
    (lambda x, cos, sin: x * cos + x * sin, "new a is a·cos + a·sin: it should be a·cos − b·sin. Your new b is b·cos",
     "gradient of a is first·cos + first·sin: it should be first·cos + second·sin"),
    (lambda x, cos, sin: x * (cos + sin), "new a is a·cos + a·sin", "gradient of b is second·cos + second·sin"),
    (new_halves(lambda a, _b, c, s: a * c + a * s, lambda _a, b, c, s: b * (s + c)), "new b is b·cos + b·sin",
     "gradient of b is second·cos + second·sin: it should be −first·sin + second·cos"),
    (new_halves(forth, lambda _a, b, _c, _s: b), "Your new b is b: it should be a·sin + b·cos",
     "gradient of b is second: it should be"),
    (new_halves(forth, lambda a, _b, _c, s: a * s), "Your new b is a·sin:", "gradient of b is first·sin:"),
    (new_halves(forth, lambda a, b, c, s: b * c - a * s), "Your new b is −a·sin + b·cos: it should be a·sin + b·cos",
     "gradient of a is first·cos − second·sin: it should be first·cos + second·sin"),
    (new_halves(lambda a, _b, c, _s: a * c, lambda a, b, c, s: b * c - a * s), "Your new a is a·cos:",
     "gradient of a is first·cos: it should be"),
    (whole(lambda a, b: joined(-a, b)), "new a is a·cos − a·sin", "gradient of a is first·cos − first·sin"),
    (lambda x, *_: x.clone(), "Your new a is a: it should be a·cos − b·sin. Your new b is b", "gradient of a is first"),
]


@pytest.mark.parametrize(("answer", "told", "backwards"), FORMULAS)
def test_the_formula_of_a_pair_is_read_off_its_numbers(answer, told, backwards):
    for exercise, sentence in (("04.3", told), ("04.4", backwards)):
        message = check(exercise, answer).message
        assert "which way a pair turns: " in message and sentence in message, message


@pytest.mark.parametrize(("answer", "told"), [
    (lambda p, a: p * math.cos(a) + p * math.sin(a), "first number is x·cos + x·sin: it should be x·cos − y·sin"),
    (lambda p, a: torch.stack((pair_by_formula(p, a, ())[0], p[1])), "second number is y: it should be x·sin + y·cos"),
    (lambda p, a: pair_in_place(p, a, ()) * torch.tensor([-1, 1]), "first number is −x·cos + y·sin"),
    (lambda p, a: torch.tensor([math.cos(a), math.sin(a)], dtype=p.dtype), "all numbers: for ([2, 5], 0.7) [1] should"),
])  # fmt: skip
def test_the_formula_of_one_pair_is_read_only_where_one_fits(answer, told):
    message = check("04.1", answer).message
    assert told in message and ("Your" in message) == ("it should" in message or "number is" in told), message


MIXED = [
    (by_neighbours(lambda a, b: joined(-b, a)), "Number 0 of your result is made of numbers 0 and 1 of x"),
    (whole(lambda a, b: woven(-b, a)), "Number 1 of your result is made of numbers 0 and 1 of x"),
    (lambda x, cos, sin: x * cos + joined(-x.flip(-1).chunk(2, -1)[0], x.flip(-1).chunk(2, -1)[1]) * sin,
     "Number 0 of your result is made of numbers 0 and 5 of x: with D = 6, the pair is 0 and 3"),
    (lambda x, cos, sin: x * cos + joined(-x[..., 1:2], x[..., :-1]) * sin, "numbers 0 and 1 of x"),
    (lambda x, cos, _: x.flip(-1) * cos, "Number 0 of your result is made of number 5 of x"),
]


@pytest.mark.parametrize("exercise", ["04.3", "04.4"])
@pytest.mark.parametrize(("answer", "told"), MIXED)
def test_numbers_of_different_pairs_that_meet_are_named(exercise, answer, told):
    message = check(exercise, answer).message
    assert "which numbers are a pair: " in message and told in message, message


@pytest.mark.parametrize("exercise", ["04.3", "04.4"])
@pytest.mark.parametrize(("answer", "told"), [
    (lambda x, cos, sin: joined(forth(*x.chunk(2, -1), cos, sin), x.chunk(2, -1)[1]), "have 6 columns, as many as x"),
    (lambda x, cos, sin: x * half(cos) + joined(*x.chunk(2, -1)[::-1]) * half(sin), "half of x goes with half of a"),
    (lambda x, cos, sin: woven(x[..., ::2] * cos, x[..., 1::2] * sin), "and half of x has 3"),
    (lambda x, cos, sin: x * joined(cos, cos) + x * joined(sin, sin), "cos and sin have 2 columns already"),
    (lambda x, cos, sin: joined(*forth(*x.chunk(2), cos, sin)), "x.chunk(2, dim=-1) cuts it in half"),
    (lambda x, cos, sin: forth(x.chunk(2)[0], x.chunk(2)[1], cos, sin), "x.chunk(2, dim=-1) cuts it in half"),
])  # fmt: skip
def test_an_error_of_widths_says_which_there_are(exercise, answer, told):
    message = check(exercise, answer).message
    assert "Error in line" in message and told in message, message


def test_another_error_gets_no_hint():
    assert check("04.3", lambda x, *_: x.no_such_method()).message.endswith("[[0.5646, 0.5646]])")


def rule(keep=None, blend=None, turns=None):
    """Llama 3's rule, with another share (of the turns), blend (of speed, share and factor) or turns."""
    keep = keep or (lambda t: ((t - 1) / 3).clamp(0, 1))
    blend = blend or (lambda p, k, f: k * p + (1 - k) * p / f)
    turns = turns or (lambda p, original: original * p / (2 * PI))

    def answer(head_dim, theta, factor, original):
        plain = theta ** (-torch.arange(0, head_dim, 2).double() / head_dim)
        return blend(plain, keep(turns(plain, original)), factor).float()

    return answer


SHARES = [
    (rule(turns=lambda p, original: original * p / PI), "is 0 at turn 0.5 and 1 at turn 2: it should be 0 at 1"),
    (rule(turns=lambda p, original: original * p * 2 * PI), "is 0 at turn 0.0253 and 1 at turn 0.101"),
    (rule(turns=lambda p, _: 131_072 * p / (2 * PI)), "is 0 at turn 0.0039 and 1 at turn 0.0156"),
    (rule(keep=lambda t: (t / 4).clamp(0, 1)), "is 0 at turn 0 and 1 at turn 4"),
    (rule(keep=lambda t: ((t - 1) / 4).clamp(0, 1)), "is 0 at turn 1 and 1 at turn 5"),
    (rule(keep=lambda t: (t - 1).clamp(0, 1)), "is 0 at turn 1 and 1 at turn 2"),
    (rule(keep=lambda t: ((t - 1) / 7).clamp(0, 1)), "is 0 at turn 1 and 1 at turn 8"),
    (rule(keep=lambda t: (t > 2.5) * 1.0), "You keep the pairs with 2.58 turns or more and slow the others down"),
    (rule(keep=lambda t: torch.where(t > 4, 1.0, torch.where(t < 1, 0.0, 0.5)).double()), "you keep is 0.50: it"),
    (rule(keep=lambda t: (t.log() / math.log(4)).clamp(0, 1)),
     "At 2.58 turns the share that you keep is 0.68: it should be (2.58 − 1) / 3 = 0.53"),
    (rule(keep=lambda t: ((t - 1) / 3).clamp(0, 4)), "fastest pair turns at 3.7 times its plain speed"),
    (rule(blend=lambda p, k, f: k * p + p / f), "A (1 − share) is missing"),
    (rule(blend=lambda p, k, f: torch.where(k > 0, k * p, p / f)), "half of the blend is missing"),
    (rule(blend=lambda p, k, _: k * p), "slowest pair turns at 0 times its plain speed: it should be 1 / factor"),
    (rule(blend=lambda p, k, f: p / (k + (1 - k) * f)), "blended the wavelengths"),
    (rule(blend=lambda _, k, f: k + (1 - k) / f), "These are the factors alone"),
    (rule(blend=lambda p, k, f: 2 * PI / (k * p + (1 - k) * p / f)), "These are wavelengths"),
    (lambda d, theta, factor, _: rule()(d, theta * factor, 1.0, 1), "slowest pair turns at 0.104 times"),
    (lambda _, *rest: rule()(64, *rest), "You wrote 64, or half of it, where `head_dim` belongs"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "told"), SHARES)
def test_what_the_rule_keeps_of_each_speed_is_read_off_its_numbers(answer, told):
    message = check("04.5", answer).message
    assert told in message, message


def test_the_rule_that_readings_are_compared_with_is_right():
    assert check("04.5", rule())


@pytest.mark.parametrize("answer", [
    lambda _, theta: theta ** (-torch.arange(0, 64, 2).float() / 64),
    lambda _, theta: torch.tensor([theta ** (-i / 32) for i in range(32)]),
    lambda head_dim, theta: torch.exp(torch.arange(32) * (-2 / head_dim) * math.log(theta)),
])  # fmt: skip
def test_64_written_for_the_head_dim_is_named(answer):
    message = check("04.2", answer).message
    assert "shape should be (4,), got (32,). You wrote 64, or half of it, where `head_dim` belongs" in message


def test_one_frequency_for_each_number_is_named():
    message = check("04.2", lambda d, theta: theta ** (-torch.arange(d).float() / d)).message
    assert "head_dim / 2 of them, and yours has one for each number" in message


def test_too_many_turns_and_speeds_below_zero_are_told_apart_from_their_likes():
    assert "fp32 has no digits left" in check("04.6", lambda d, n: 2 * PI * 2.0 ** torch.arange(d // 2) / n).message
    message = check("04.6", lambda d, n: -2 * PI * torch.arange(1, d // 2 + 1) / n).message
    assert "must be positive, got -1.047" in message and "stands still" not in message


def by_autograd(grad, cos, sin):
    x = torch.zeros_like(grad, requires_grad=True)
    return torch.autograd.grad(halves(1)(x, cos, sin, ()), x, grad)[0]


def by_backward(grad, cos, sin):
    x = torch.zeros_like(grad, requires_grad=True)
    halves(1)(x, cos, sin, ()).backward(grad)
    return x.grad


@pytest.mark.parametrize("answer", [by_autograd, by_backward])
def test_the_gradient_exercise_notices_autograd(answer):
    assert "calls PyTorch's own" in check("04.4", answer).message


def test_the_gradient_is_autograds():
    generator = torch.Generator().manual_seed(1)
    x, grad = torch.randn(2, 1, 2, 3, 8, generator=generator, dtype=torch.float64)
    angles = torch.rand(3, 4, generator=generator, dtype=torch.float64).repeat(1, 2)
    reference = find_exercise("04.4").reference
    x.requires_grad_()
    find_exercise("04.3").reference(x, angles.cos(), angles.sin()).backward(grad)
    assert torch.allclose(reference(grad, angles.cos(), angles.sin()), x.grad)


def rule_in_fp32(low, high):
    def answer(head_dim, theta, factor, original):
        freqs = theta ** (-torch.arange(0, head_dim, 2).float() / head_dim)
        keep = ((original * freqs / (2 * PI) - 1) / 3).clamp(low, high)
        return keep * freqs + (1 - keep) * freqs / factor

    return answer


@pytest.mark.parametrize(("low", "high", "told"), [(0, 1, ""), (None, 2**60, "no clamp"), (None, 1, "no lower clamp"),
                                                   (0, None, "no upper clamp")])  # fmt: skip
def test_a_clamp_that_is_missing_is_named_in_single_precision_too(low, high, told):
    result = check("04.5", rule_in_fp32(low, high))
    assert TOLD["04.5"][told] in result.message if told else result, result.message


def test_the_blank_of_an_earlier_exercise_comes_first():
    def apply_rope(x, cos, sin):
        raise NotImplementedError("exercise 04.3")

    def backward(grad, cos, sin, turn=apply_rope):
        return turn(grad, cos, -sin)

    first = "exercise 04.3 comes first: write apply_rope above, then run this cell again"
    assert check("04.4", backward).message == first
    assert check("04.3", apply_rope).message == "apply_rope is still to be written"
    missing = eval("lambda grad, cos, sin: apply_rope(grad, cos, -sin)", {})
    assert check("04.4", missing).message.startswith("exercise 04.3 comes first: run the cell with your apply_rope")


def test_too_many_frequencies_are_not_taken_for_exponents_that_run_too_far():
    message = check("04.2", lambda d, theta: torch.tensor([theta ** (-2 * i / d) for i in range(d)])).message
    assert "shape should be (4,), got (8,)" in message and "twice too far" not in message


def test_every_fault_of_an_exercise_is_planted_here():
    for exercise in exercises_of("04"):
        assert len(exercise.mistakes) == len(TOLD[exercise.id])
        case = exercise.properties[0].inputs()[0]
        assert all(isinstance(m.answer(*case), Tensor) for m in exercise.mistakes)


def turned_by_arctangent(arctangent):
    def answer(pair, angle):
        angle = arctangent(pair[1], pair[0]) + angle
        return pair.norm() * torch.stack((angle.cos(), angle.sin()))

    return answer


def test_an_arctangent_that_forgets_the_sign_of_x_does_not_pass():
    assert check("04.1", turned_by_arctangent(torch.atan2))
    assert not check("04.1", turned_by_arctangent(lambda y, x: torch.atan(y / x)))


def test_a_matrix_of_another_dtype_is_told_to_take_that_of_the_pair():
    def answer(pair, angle):
        return torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) @ pair

    assert "Here pair is float64 and your own tensor is not: make it with" in check("04.1", answer).message


@pytest.mark.parametrize(("answer", "told"), [
    (lambda d, theta: theta ** (-(torch.arange(0, d, 2) // d)).float(), "divide with /, as // drops"),
    (lambda d, theta: theta ** (-torch.arange(0, d, 2) // d).float(), "divide with /, as // drops"),
    (lambda d, theta: theta ** -torch.arange(0, d, 2).float() / d, "brackets round the whole exponent"),
    (lambda d, theta: theta ** -2 * torch.arange(d // 2) / d, "brackets round the whole exponent"),
    (lambda d, theta: theta ** -2 * torch.arange(0, d, 2) / d, "brackets round the whole exponent"),
])  # fmt: skip
def test_an_exponent_that_python_reads_otherwise_is_named(answer, told):
    message = check("04.2", answer).message
    assert "all numbers: " in message and told in message, message


@pytest.mark.parametrize("exercise", ["04.3", "04.4"])
@pytest.mark.parametrize(("join", "told"), [
    (lambda a, b: torch.cat((a, b)), "joined along axis 0: torch.cat needs dim=-1"),
    (lambda a, b: torch.cat((a, b), dim=2), "joined along axis 2"),
    (lambda a, _: a, "Only one half comes back"),
    (lambda a, b: torch.stack((a, b)), "stand along a new axis"),
    (lambda a, b: torch.stack((a, b), dim=-1), "stand along a new axis"),
    (lambda a, b: torch.cat((a, b, a), dim=-1), "shape should be (1, 2, 2, 4), got (1, 2, 2, 6), for"),
])  # fmt: skip
def test_halves_that_are_joined_otherwise_are_told_how(exercise, join, told):
    sign = 1 if exercise == "04.3" else -1
    message = check(exercise, lambda x, *angles: join(*halves(sign)(x, *angles, ()).chunk(2, -1))).message
    assert "shape and dtype: " in message and told in message, message


def by_complex_numbers_as_they_come(x, cos, sin):
    n = x.shape[-1] // 2
    turned = torch.complex(*x.split(n, -1)) * torch.complex(cos[:, :n], sin[:, :n])
    return torch.cat((turned.real, turned.imag), -1)


@pytest.mark.parametrize(("answer", "told"), [
    (by_complex_numbers_as_they_come, "take .float() of x, cos and sin"),
    (lambda x, cos, sin: halves(1)(*(torch.from_numpy(t.numpy()) for t in (x, cos, sin)), ()), "take .float() of x"),
    (lambda x, *_: x[..., : x.shape[-1] / 2], "D / 2 is a float: D // 2"),
    (lambda x, cos, sin: x[..., :32] * cos[:, :32] - x[..., 32:] * sin[:, :32], "x.shape[-1] // 2, here 1, and not"),
])  # fmt: skip
def test_an_error_of_dtypes_and_widths_gets_its_hint(answer, told):
    message = check("04.3", answer).message
    assert told in message, message


def test_bfloat16_alone_breaks_no_property_but_those_of_dtypes():
    message = check("04.3", by_complex_numbers_as_they_come).message
    assert "- shape and dtype: it raised" in message and "each token's own angle" not in message


@pytest.mark.parametrize(("exercise", "sign"), [("04.3", 1), ("04.4", -1)])
def test_32_written_for_half_of_any_head_is_named(exercise, sign):
    told = "any head size: yours is right for 64 numbers a head, and not for 4"

    def with_32(x, cos, sin):
        return x * cos + sign * joined(-x[..., 32:], x[..., :32]) * sin

    assert told in check(exercise, with_32).message
    assert told not in check(exercise, lambda x, cos, sin: x * cos + x * sin).message


@pytest.mark.parametrize("fault", ["neighbours out", "exchanged"])
def test_reordered_results_are_told_why_the_model_agrees(fault):
    assert "Scores do not notice" in check("04.3", answer_of("04.3", (fault,), 0)).message
    assert "Scores do not notice" not in check("04.4", answer_of("04.4", (fault,), 0)).message


def test_an_if_about_all_pairs_is_told_what_to_write():
    def answer(head_dim, theta, factor, original):
        freqs = frequencies_of_tensors(head_dim, theta, ())
        return freqs if original * freqs / (2 * PI) >= 4 else freqs / factor

    assert "each pair needs its own decision: use torch.where" in check("04.5", answer).message


def turned_in_place(pair, angle):
    x, y = pair.tolist()
    pair[0], pair[1] = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
    return pair


def heads_in_place(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    partner = torch.cat((-b, a), dim=-1)
    x *= cos
    x += partner * sin
    return x


@pytest.mark.parametrize(("exercise", "answer"), [("04.1", turned_in_place), ("04.3", heads_in_place)])
def test_an_answer_that_changes_its_input_does_not_pass(exercise, answer):
    result = check(exercise, answer)
    assert not result and "changes argument 1, which the caller still needs" in result.message
