"""Checks of lesson 04: one pair, the frequencies, whole heads and their gradient, Llama 3's rule, a blind choice."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.compare import difference
from llamamm.course.checks.core import Exercise, Mistake, Property
from llamamm.course.checks.faults import fault_exercise, input_stays
from llamamm.course.checks.lesson04_readings import (
    dtypes,
    formulas,
    how_many,
    ifs,
    joints,
    kept,
    mixture,
    powers,
    widths,
    with_readings,
)  # fmt: skip
from llamamm.text.config import RopeScaling
from llamamm.text.rope import apply_rope, rope_frequencies

# ---- 04.1: one pair ----


def _pair(pair: Tensor, angle: float, faults: Collection[str]) -> Tensor:
    x, y = pair.double().tolist()
    angle = math.radians(angle) if "degrees" in faults else math.degrees(angle) if "to degrees" in faults else angle
    c, s = math.cos(-angle if "clockwise" in faults else angle), math.sin(-angle if "clockwise" in faults else angle)
    if "swapped" in faults:
        c, s = s, c
    first = x * c - y * s
    if "no minus" in faults:
        first = x * c + y * s
    if "overwritten" in faults:
        x = first
    turned = [x * c, y * s] if "scaled" in faults else [first, (-x if "two minuses" in faults else x) * s + y * c]
    if "exchanged" in faults:
        turned.reverse()
    return torch.tensor(turned, dtype=torch.float64).to(pair.dtype)


def _pair_cases(generator: torch.Generator) -> list[tuple]:
    random = torch.randn(2, generator=generator)
    return [(torch.tensor([2.0, 5.0]), 0.7), (torch.tensor([-3.0, -1.0]), 1.2), (random, 2.0), (random.double(), 100.0)]


def _pair_parts(case: tuple) -> tuple[float, float, float, float]:
    pair, angle = case
    return *pair.tolist(), math.cos(angle), math.sin(angle)


PAIR = with_readings(fault_exercise(
    _pair,
    {
        "clockwise": "You turned clockwise: counter-clockwise, the minus stands before y · sin in the first number",
        "overwritten": "You overwrote x before you used it for the second number: both formulas need the old x, y",
        "degrees": "You took the angle for degrees: it is in radians already",
        "to degrees": "You turned the angle into degrees: `cos` and `sin` take radians",
        "no minus": "The minus is missing: one of the two sines is subtracted, or the arrow changes its length",
        "two minuses": "You subtracted both sines: only the one in the first number has a minus",
        "swapped": "You took the sine where the cosine belongs: an angle of 0 must change nothing",
        "scaled": "You multiplied x by the cosine and y by the sine: each new number is a mixture of both old ones",
        "exchanged": "Your two numbers come in the opposite order: the new x first, then the new y",
    },
    {
        "which way it turns": (_pair_cases, ("clockwise", "exchanged")),
        "how far it turns": (_pair_cases, ("degrees", "to degrees", "swapped")),
        "its length": (_pair_cases, ("overwritten", "no minus", "two minuses", "scaled")),
    },
    _pair_cases, extra=(input_stays(_pair_cases),), hint=dtypes,
    id="04.1", name="rotate_pair", minutes=3, level="warm-up", importance=2,
), {"all numbers": formulas(("x", "y"), ("first number", "second number"), _pair_parts)})  # fmt: skip

# ---- 04.2: frequencies ----


BASES = {"base 10,000": 10_000.0, "base 100,000": 100_000.0, "base 500,000": 500_000.0}
NOT_THETA = {fault: f"You wrote {base:,.0f} where `theta` belongs" for fault, base in BASES.items()}


def _frequencies(head_dim: int, theta: float, faults: Collection[str]) -> Tensor:
    i = torch.arange(head_dim // 2, dtype=torch.float64) + ("from one" in faults) + ("odd" in faults) / 2
    width = 64 if "64" in faults else 1 if "undivided" in faults else head_dim
    width = width - 2 if "last" in faults else width
    exponent = i * (1 if "half" in faults else 4 if "double" in faults else 2) / width
    base = next((base for fault, base in BASES.items() if fault in faults), theta)
    freqs = base ** (exponent if {"plus", "outside"} & {*faults} else -exponent)
    freqs = freqs.flip(0) if "reversed" in faults else freqs
    freqs = -freqs if "outside" in faults else freqs
    freqs = freqs * 2 * math.pi if "times 2π" in faults else freqs / (2 * math.pi) if "over 2π" in faults else freqs
    return (2 * math.pi / freqs if "wavelength" in faults else freqs).float()


def _one_for_each_pair(got: Tensor, expected: Tensor) -> Tensor | None:
    """D frequencies, each twice -> D/2."""
    if got.shape != (2 * len(expected),):
        return None
    halves = got.chunk(2)
    return halves[0] if torch.equal(*halves) else got[::2] if torch.equal(got[::2], got[1::2]) else None


def _frequency_cases(_: torch.Generator) -> list[tuple]:
    return [(8, 50.0), (12, 1234.0), (64, 100_000.0)]


TWICE = "There is one frequency for each pair, so half as many as numbers: the table is doubled later"
FREQUENCIES = with_readings(fault_exercise(
    _frequencies,
    {
        "plus": "The minus in the exponent is missing: each pair is slower than the one before it",
        "half": "The exponents run over half their range: they are 0, 2, 4, ... divided by head_dim",
        "double": "The exponents run twice too far: pair i has 2i / head_dim, and arange(0, head_dim, 2) is 2i",
        "from one": "The first exponent is 0, so pair 0 turns by 1 radian a token",
        "last": "Your last exponent is 1, as if you had divided by head_dim − 2: it stops one step short of 1",
        "odd": "Your exponents begin with 1 / head_dim, 3 / head_dim: begin with arange(0, head_dim, 2)",
        "64": "You divided by 64: the exponents are divided by `head_dim`, whatever it is",
        "undivided": "Your exponents are not divided by head_dim: pair i has 2i / head_dim",
        **NOT_THETA,
        "outside": "Yours are negative: Python reads -theta ** x as -(theta ** x), so write theta ** -x",
        "times 2π": "You multiplied by 2π: pair 0 turns by 1 radian a token, less than a sixth of a turn",
        "over 2π": "You divided by 2π, which gives turns per token: the frequency is in radians per token",
        "wavelength": "These are wavelengths, tokens per turn: the frequency is in radians per token",
        "reversed": "The fastest pair comes first: yours are in the opposite order",
    },
    {
        "the first pair": (_frequency_cases, ("from one", "odd", "reversed", "wavelength", "times 2π", "over 2π")),
        "faster or slower": (_frequency_cases, ("plus", "outside")),
        "the step from pair to pair": (_frequency_cases, ("half", "double", "last", "64", "undivided")),
        "the base": (_frequency_cases, tuple(BASES)),
    },
    _frequency_cases,
    relative=True, repair=_one_for_each_pair, form=TWICE,
    id="04.2", name="rope_frequencies", minutes=4, level="core", importance=3,
    reference=lambda head_dim, theta: rope_frequencies(head_dim, theta=theta),
), {"shape and dtype": how_many, "all numbers": powers})  # fmt: skip

# ---- 04.3 and 04.4: (B, H, T, D), forth and back ----


def _turned(x: Tensor, cos: Tensor, sin: Tensor, faults: Collection[str], *, forth: bool) -> Tensor:
    """All heads turned; `forth` is the way of the right answer, `turn` that of this one."""
    if "one token" in faults:
        cos, sin = cos[:1], sin[:1]
    if "heads" in faults and x.shape[1] == x.shape[2]:
        cos, sin = cos[:, None], sin[:, None]
    if "swapped" in faults:
        cos, sin = sin, cos
    if "by the angle" in faults:
        cos, sin, forth = -sin, cos, not forth
    half = x.shape[-1] // 2
    places = _columns(half, faults)  # of the angles: for the first numbers of the pairs, for the second
    (c, s), (c_b, s_b) = ((cos[..., at], sin[..., at]) for at in places)
    neighbours = {name for name in ("neighbours", "neighbours in", "neighbours out", "own columns") if name in faults}
    a, b = (x[..., :half], x[..., half:]) if neighbours <= {"neighbours out"} else (x[..., ::2], x[..., 1::2])
    first, second = (-1, 1) if forth != ("other way" in faults) else (1, -1)
    if "no minus" in faults:
        first = second = 1
    if "one road" in faults:
        first = second = 0
    new_a = a * c + first * b * s
    new_b = b * c_b + second * (new_a if "overwritten" in faults else a) * s_b
    if "negated" in faults:
        new_a, new_b = -new_a, -new_b
    if "exchanged" in faults:
        new_a, new_b = new_b, new_a
    if neighbours <= {"neighbours in"}:
        return torch.cat((new_a, new_b), -1)
    return torch.stack((new_a, new_b), -1).flatten(-2)


def _columns(half: int, faults: Collection[str]) -> tuple[Tensor, Tensor]:
    """Which columns hold the angles of the pairs: 0, 1, 2, ... or 0, 2, 4, ..., or of each number its own."""
    if "own columns" in faults:
        return torch.arange(0, 2 * half, 2), torch.arange(1, 2 * half, 2)
    at = torch.arange(half) * (2 if "table" in faults else 0 if "one speed" in faults else 1)
    return at, at


def _tables(positions: list[int], freqs: Tensor) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.tensor(positions).float(), freqs).repeat(1, 2)
    return angles.cos(), angles.sin()


def _one_pair(_: torch.Generator) -> list[tuple]:
    return [(torch.tensor([[[[2.0, 5.0]]]]), *_tables([1], torch.tensor([0.6])))]


def _one_pair_parts(case: tuple) -> tuple[float, float, float, float]:
    x, cos, sin = case
    return *x.flatten().tolist(), float(cos[0, 0]), float(sin[0, 0])


def _three_pairs(_: torch.Generator) -> list[tuple]:
    """And once with a text for each number, which alone is 1."""
    x, speeds = torch.tensor([[[[1.0, 2.0, 3.0, 5.0, 7.0, 11.0]]]]), torch.tensor([0.6, 0.25, 0.1])
    return [(x, *_tables([1], speeds)), (torch.eye(6)[:, None, None], *_tables([1], speeds))]


def _heads(generator: torch.Generator) -> list[tuple]:
    def case(positions: list[int], *shape: int) -> tuple:
        freqs = rope_frequencies(shape[-1], theta=100.0)
        return torch.randn(*shape, generator=generator), *_tables(positions, freqs)

    return [case([1, 2], 1, 2, 2, 4), case([7, 8, 20], 2, 3, 3, 8), case([5], 1, 9, 1, 64)]


def _heads_and_bfloat16(generator: torch.Generator) -> list[tuple]:
    x, angles = torch.randn(1, 2, 2, 8, generator=generator), _tables([300, 301], rope_frequencies(8, theta=100.0))
    return [*_heads(generator), tuple(t.bfloat16() for t in (x, *angles))]


def _any_width(right: Callable[..., Tensor]) -> Property:
    """The answer is right for heads of 64 numbers alone; other wrong answers are told elsewhere."""

    def compared(answer: Callable[..., Any], cases: tuple) -> list[bool]:
        results = [(answer(*case), right(*case)) for case in cases]
        return [difference(expected, got, 1e-4) is None for got, expected in results]

    def fits(equal: list[bool], _: tuple) -> str | None:
        return ("yours is right for 64 numbers a head, and not for 4: half of them is x.shape[-1] // 2, not always 32"
                if equal == [False, True] else None)  # fmt: skip

    return Property("any head size", lambda g: [tuple(_heads(g)[::2])], run=compared, accept=fits)


PLACES = {
    "neighbours": "You paired neighbours, (0, 1), (2, 3), ...: half-split pairs are i and i + D/2",
    "neighbours in": "You took neighbours, (0, 1), (2, 3), ..., and joined them as halves: half-split pairs are i and "
                     "i + D/2 in x, too",
    "neighbours out": "You took halves, and joined them as neighbours: torch.cat puts the new halves one after the "
                      "other",
    "own columns": "Your partners are neighbours, (0, 1), (2, 3), ..., and turn by different angles: half-split pairs "
                   "are i and i + D/2",
    "one speed": "All pairs turn by the first pair's angle: pair i has its angle in columns i and i + D/2",
    "one token": "All tokens turn by the first token's angle: row t of cos and sin belongs to token t",
    "table": "Your pairs take the angles of columns 0, 2, 4, ...: pair i has its angle in columns i and i + D/2",
    "heads": "You turned head h by the angle of token h: tokens are the third axis of (B, H, T, D)",
    "swapped": "You took the sine where the cosine belongs: at position 0 nothing may change",
    "overwritten": "You overwrote the first half before you used it for the second: both need the old halves",
    "exchanged": "Your two halves come in the opposite order: put the new a first, then the new b",
}
TURNS = {
    "which way a pair turns": (_one_pair, ("other way", "no minus", "one road", "swapped", "overwritten", "negated",
                                           "exchanged")),
    "which numbers are a pair": (_three_pairs, ("neighbours", "neighbours in", "neighbours out", "own columns")),
    "which angle a pair turns by": (_three_pairs, ("table", "one speed")),
    "each token's own angle": (_heads, ("heads", "one token")),
}
TURN = with_readings(fault_exercise(
    lambda x, cos, sin, faults: _turned(x, cos, sin, faults, forth=True),
    {
        "other way": "You turned clockwise: the first half is a·cos − b·sin, the second b·cos + a·sin",
        "no minus": "The minus is missing: the first half is a·cos − b·sin",
        "one road": "You only multiplied by the cosine: each new number is a mixture of both numbers of its pair",
        "negated": "All numbers have the opposite sign: that is half a turn too many",
        **PLACES,
        **{fault: f"{PLACES[fault]}. (Scores do not notice: queries and keys are reordered alike)"
           for fault in ("neighbours out", "exchanged")},
    },
    TURNS,
    _heads_and_bfloat16, extra=(input_stays(_heads_and_bfloat16), _any_width(apply_rope)), hint=widths,
    id="04.3", name="apply_rope", minutes=7, level="core", importance=3, reference=apply_rope,
), {"which way a pair turns": formulas(("a", "b"), ("new a", "new b"), _one_pair_parts),
    "which numbers are a pair": mixture, "shape and dtype": joints})  # fmt: skip
BACK = with_readings(fault_exercise(
    lambda grad, cos, sin, faults: _turned(grad, cos, sin, faults, forth=False),
    {
        "other way": "You turned the gradient as the numbers were turned: it has to be turned back, by minus the "
                     "angle",
        "no minus": "The minus is missing: the gradient of b is b's own times cos, minus a's times sin",
        "one road": "You only multiplied by the cosine: each number also went into its partner, times the sine",
        "negated": "All numbers have the opposite sign: cos(−a) is cos a, so minus the angle changes the sign of the "
                   "sine alone",
        "by the angle": "You took the derivative with respect to the angle: cos and sin are constants here, and x is "
                        "what the gradient is of",
        **PLACES,
    },
    {**TURNS, "which way a pair turns": (_one_pair, (*TURNS["which way a pair turns"][1], "by the angle"))},
    _heads_and_bfloat16, hint=widths,
    extra=(input_stays(_heads_and_bfloat16), _any_width(lambda grad, cos, sin: apply_rope(grad, cos, -sin))),
    id="04.4", name="apply_rope_backward", minutes=5, level="hard", importance=2,
    reference=lambda grad, cos, sin: apply_rope(grad, cos, -sin), forbids=("grad", "backward", "vjp", "jacobian"),
), {"which way a pair turns": formulas(("first", "second"), ("gradient of a", "gradient of b"), _one_pair_parts),
    "which numbers are a pair": mixture, "shape and dtype": joints})  # fmt: skip

# ---- 04.5: the rule "llama3" ----


def _llama3(head_dim: int, theta: float, factor: float, original: int, faults: Collection[str]) -> Tensor:
    plain = _frequencies(head_dim, theta, faults).double()
    factor = 8.0 if "factor 8" in faults else 32.0 if "factor 32" in faults else factor
    original = 8192 if "original" in faults else original * factor if "new length" in faults else original
    turns = original * plain / (1 if "no 2π" in faults else 2 * math.pi)
    turns = 1 / turns if "turned over" in faults else turns
    keep = (turns - 1) / 3
    if "by wavelength" in faults:
        keep = (original - original / turns) / (original - original / 4)
    low, high = "no lower clamp" in faults or "no clamp" in faults, "no upper clamp" in faults or "no clamp" in faults
    keep = keep.clamp(-math.inf if low else 0, math.inf if high else 1)
    keep = (keep > 0).double() if "steps down" in faults else (keep >= 1).double() if "steps up" in faults else keep
    keep = 1 - keep if "upside down" in faults else keep
    if "all" in faults or "none" in faults:
        keep = torch.full_like(keep, float("none" in faults))
    slow = plain * factor if "multiplied" in faults else plain / factor
    return (keep * plain + (1 - keep) * slow).float()


def _llama3_cases(_: torch.Generator) -> list[tuple]:
    """With a factor of 4, a share of −1/3 would make a speed of exactly 0, of which fp32 leaves rounding alone."""
    return [(128, 1_000_000.0, 10.0, 512)]


def _llama3_real_cases(generator: torch.Generator) -> list[tuple]:
    return [*_llama3_cases(generator), (64, 500_000.0, 32.0, 8192), (128, 500_000.0, 8.0, 8192), (2, 10_000.0, 4.0, 64),
            (64, 100_000.0, 16.0, 2048)]  # fmt: skip


LLAMA3 = with_readings(fault_exercise(
    _llama3,
    {
        "none": "Nothing is scaled: these are the plain frequencies",
        "all": "You slowed all pairs down: those that make 4 turns or more are kept",
        "upside down": "The rule is upside down: keep the fast pairs, slow the slow ones down",
        "no clamp": "Clamp the share to keep between 0 and 1: yours goes beyond both",
        "no lower clamp": "Clamp the share to keep at 0, too: for pairs of less than one turn yours is negative",
        "no upper clamp": "Clamp the share to keep at 1, too: for pairs of more than 4 turns yours is larger",
        "steps down": "Between 1 and 4 turns the two are blended: yours has a step at 1 turn",
        "steps up": "Between 1 and 4 turns the two are blended: yours has a step at 4 turns",
        "by wavelength": "You blended in proportion to the wavelength: it goes by turns, original / wavelength",
        "no 2π": "2π is missing: a turn is 2π radians, so the turns are original · frequency / 2π",
        "new length": "You counted the turns within the new length, original · factor: count those within `original`",
        "turned over": "Your turns are wavelength / original: they are original / wavelength",
        "multiplied": "You multiplied the slow speeds by `factor`: divide them by it",
        **NOT_THETA,
        "factor 8": "You wrote 8 where `factor` belongs: the small Llama 3.2 models use 32",
        "factor 32": "You wrote 32 where `factor` belongs: Llama 3.1 uses 8",
        "original": "You wrote 8192 where `original` belongs: it is an argument",
        "half": "The exponents run over half their range: they are 0, 2, 4, ... divided by head_dim",
    },
    {
        "which pairs are slowed down": (_llama3_cases, ("none", "all", "upside down")),
        "between 1 and 4 turns": (_llama3_cases, ("no clamp", "no lower clamp", "no upper clamp", "steps down",
                                                  "steps up", "by wavelength")),
        "the number of turns": (_llama3_cases, ("no 2π", "original", "new length", "turned over", "half")),
        "the factor": (_llama3_cases, ("factor 8", "factor 32", "multiplied")),
        "the base": (_llama3_cases, tuple(BASES)),
    },
    _llama3_real_cases,
    relative=True, repair=_one_for_each_pair, form=TWICE, hint=ifs,
    id="04.5", name="llama3_frequencies", minutes=8, level="core", importance=2,
    reference=lambda head_dim, theta, factor, original: rope_frequencies(
        head_dim, theta=theta, scaling=RopeScaling(factor=factor, original_context_length=original)),
), {"all numbers": kept, "shape and dtype": how_many})  # fmt: skip

# ---- 04.6: break it ----


TURN_OF = {"half turns": math.pi, "no 2π": 1.0, "degrees": 360.0}


def _blind(head_dim: int, distance: int, faults: Collection[str] = ()) -> Tensor:
    turns = torch.arange(1, head_dim // 2 + 1).double()
    turns = torch.ones_like(turns) if "same" in faults else turns
    if "every token" in faults:
        turns = turns * distance
    if "wavelengths" in faults:
        return (distance / turns).float()
    turns = 1 / turns if "longer" in faults else turns
    turn = next((turn for fault, turn in TURN_OF.items() if fault in faults), 2 * math.pi)
    return (turn * turns / distance).float()


LOOKS_ALIKE = {
    "half turns": "You used π for a full turn: after `distance` tokens your first pair points the opposite way",
    "degrees": "You used 360 for a full turn, which is in degrees: in radians it is 2π",
    "wavelengths": "These are wavelengths, in tokens per turn: the frequency is 2π divided by the wavelength",
    "longer": "You multiplied the wavelengths, so only the first pair comes round: multiply the turns",
    "no 2π": "2π is missing: you count turns, but frequencies are in radians per token",
    "same": "1, 2, 3, ... turns within the distance are different",
    "every token": "Your pairs make whole turns with every single token: then no two places can be told apart",
}


def _why(freqs: Tensor, case: tuple, own: Collection[str]) -> str:
    for n in (1, 2):
        for faults in combinations(LOOKS_ALIKE, n):
            if bool((freqs / _blind(*case, faults) - 1).abs().max() < 1e-4):
                return "".join(f". {LOOKS_ALIKE[fault]}" for fault in faults if fault in own)
    return ""


def _turns(freqs: Any, case: tuple) -> Tensor | None:
    """Turns of each pair within the distance; None for what is no tensor of this length, or not finite."""
    fits = isinstance(freqs, Tensor) and freqs.shape == (case[0] // 2,) and bool(torch.isfinite(freqs).all())
    return freqs.double() * case[1] / (2 * math.pi) if fits else None


def _whole(freqs: Any, case: tuple) -> str | None:
    turns = _turns(freqs, case)
    if turns is None or float((turns - turns.round()).abs().max()) <= 1e-3:
        return None
    pair = int((turns - turns.round()).abs().argmax())
    why = _why(freqs, case, ("half turns", "degrees", "wavelengths", "longer", "no 2π"))
    if float(turns[pair]) > 1e4:
        why = why or ". With so many turns fp32 has no digits left for the angle, so take small numbers of turns"
    return f"pair {pair} has made {float(turns[pair]):.4g} turns after {case[1]} tokens: make it a whole number{why}"


def _all_turn(freqs: Any, case: tuple) -> str | None:
    if _turns(freqs, case) is None:
        got = f"shape {tuple(freqs.shape)}" if isinstance(freqs, Tensor) else type(freqs).__name__
        return f"the result should be {case[0] // 2} finite numbers, one for each pair, in a tensor; got {got}"
    if not bool((freqs > 0).all()):
        least = float(freqs.min())
        still = "" if least else ": a pair that stands still is too easy"
        return f"all frequencies must be positive, got {least:.4g}{still}"
    if float((freqs.sort().values.diff() / freqs.min()).min() if len(freqs) > 1 else 1) < 1e-4:
        return f"two frequencies are equal: all pairs must turn at different speeds{_why(freqs, case, ('same',))}"
    return None


def _nearer(freqs: Any, case: tuple) -> str | None:
    turns = _turns(freqs, case)
    if turns is None or not bool((freqs > 0).all()) or _whole(freqs, case):
        return None
    for nearer in range(1, case[1]):
        if bool(((turns.round() * nearer) % case[1] == 0).all()):
            why = _why(freqs, case, ("every token",))
            return f"places {nearer} apart already look alike, and only those {case[1]} apart should{why}"
    return None


def _blind_cases(_: torch.Generator) -> list[tuple]:
    return [(4, 12), (8, 100), (64, 101), (2, 12), (6, 2)]


BLIND = Exercise(
    id="04.6", name="blind_frequencies", minutes=5, level="break it", importance=1, reference=_blind,
    properties=(
        Property("after `distance` tokens", _blind_cases, accept=_whole),
        Property("all turn, each at its own speed", _blind_cases, accept=_all_turn),
        Property("nearer places", _blind_cases, accept=_nearer),
    ),
    mistakes=tuple(Mistake(partial(_blind, faults=(fault,)), told) for fault, told in LOOKS_ALIKE.items()),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (PAIR, FREQUENCIES, TURN, BACK, LLAMA3, BLIND)
