"""Checks of lesson 04: turning pairs, turning whole heads, Llama 3's rule, dynamic scaling, a blind choice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.core import Exercise, Mistake
from llamamm.text.config import RopeScaling
from llamamm.text.rope import apply_rope, rope_frequencies

# ---- 04.1: one pair ----


def _matrix(first: float, second: float, third: float, fourth: float, pair: Tensor) -> Tensor:
    return torch.tensor([[first, second], [third, fourth]], dtype=pair.dtype) @ pair


def _turned_pair(pair: Tensor, angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return _matrix(c, -s, s, c, pair)


def _overwritten_pair(pair: Tensor, angle: float) -> Tensor:
    x, y = pair.tolist()
    x = x * math.cos(angle) - y * math.sin(angle)
    return torch.tensor([x, x * math.sin(angle) + y * math.cos(angle)], dtype=pair.dtype)


def _pair_cases(generator: torch.Generator) -> list[tuple]:
    random = torch.randn(2, generator=generator)
    return [
        (torch.tensor([1.0, 0.0]), 0.5), (torch.tensor([0.0, 2.0]), 0.5), (random, 1.5), (random, 0.0), (random, -2.0),
        (random.double(), 100.0),
    ]  # fmt: skip


PAIR = Exercise(
    id="04.1", name="rotate_pair", minutes=3, level="warm-up", reference=_turned_pair, cases=_pair_cases,
    mistakes=(
        Mistake(lambda pair, angle: _turned_pair(pair, -angle),
                "you turned clockwise: counter-clockwise, the minus stands before y · sin in the first number"),
        Mistake(_overwritten_pair,
                "you overwrote x before you used it for the second number: both formulas need the old x and y"),
        Mistake(lambda pair, angle: _turned_pair(pair, math.radians(angle)),
                "you treated the angle as degrees: it is in radians already"),
        Mistake(lambda pair, angle: _matrix(math.cos(angle), math.sin(angle), math.sin(angle), math.cos(angle), pair),
                "the minus is missing: one of the two sines is subtracted, or the arrow changes its length"),
        Mistake(lambda pair, angle: _matrix(math.cos(angle), 0, 0, math.sin(angle), pair),
                "you scaled x by the cosine and y by the sine: each new number is a mixture of both old ones"),
        Mistake(lambda pair, angle: _matrix(math.sin(angle), -math.cos(angle), math.cos(angle), math.sin(angle), pair),
                "you took the sine where the cosine belongs and the other way round: an angle of 0 changes nothing"),
    ),
)  # fmt: skip

# ---- 04.2: (B, H, T, D) at given positions ----


def _rope_at(x: Tensor, positions: Tensor, freqs: Tensor) -> Tensor:
    cos, sin = _tables(positions, freqs)
    return apply_rope(x.float(), cos, sin).to(x.dtype)


def _tables(positions: Tensor, freqs: Tensor) -> tuple[Tensor, Tensor]:
    angles = torch.outer(positions.float(), freqs).repeat(1, 2)
    return angles.cos(), angles.sin()


def _interleaved(x: Tensor, positions: Tensor, freqs: Tensor) -> Tensor:
    angles = torch.outer(positions.float(), freqs)
    c, s = angles.cos(), angles.sin()
    a, b = x.float()[..., 0::2], x.float()[..., 1::2]
    return torch.stack((a * c - b * s, b * c + a * s), dim=-1).flatten(-2).to(x.dtype)


def _table_interleaved(x: Tensor, positions: Tensor, freqs: Tensor) -> Tensor:
    angles = torch.outer(positions.float(), freqs).repeat_interleave(2, dim=-1)
    return apply_rope(x.float(), angles.cos(), angles.sin()).to(x.dtype)


def _swapped_without_minus(x: Tensor, positions: Tensor, freqs: Tensor) -> Tensor:
    cos, sin = _tables(positions, freqs)
    a, b = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat((b, a), dim=-1) * sin).to(x.dtype)


def _in_low_precision(x: Tensor, positions: Tensor, freqs: Tensor) -> Tensor:
    angles = torch.outer(positions.to(x.dtype), freqs.to(x.dtype)).repeat(1, 2)
    return apply_rope(x, angles.cos(), angles.sin())


def _along_heads(x: Tensor, positions: Tensor, freqs: Tensor) -> Tensor:
    return _rope_at(x.transpose(1, 2), positions, freqs).transpose(1, 2)


def _head_cases(generator: torch.Generator) -> list[tuple]:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    freqs = rope_frequencies(8, theta=10_000.0)
    return [
        (random(1, 1, 1, 2), torch.tensor([3]), torch.tensor([0.3])),
        (random(2, 3, 3, 8), torch.tensor([0, 1, 2]), freqs),  # as many heads as tokens
        (random(1, 3, 3, 8), torch.tensor([7, 8, 20]), freqs),  # behind a cache, with a gap
        ((random(1, 3, 3, 64) / 4).bfloat16(), torch.tensor([300, 301, 2003]), rope_frequencies(64)),
    ]


HEADS = Exercise(
    id="04.2", name="rope_at", minutes=10, level="core", reference=_rope_at, cases=_head_cases,
    tolerance=0.01,  # bf16 numbers under 1 are 0.004 apart
    mistakes=(
        Mistake(_interleaved,
                "you paired neighbours, (0, 1), (2, 3), ...: half-split pairs are i and i + D/2"),
        Mistake(_table_interleaved,
                "your angles stand at 0 0 1 1 2 2 ..., your pairs at i and i + D/2: put the angles 0 1 2 ... 0 1 2 ... "
                "(repeat or cat, not repeat_interleave)"),
        Mistake(lambda x, positions, freqs: _rope_at(x, -positions, freqs),
                "you turned clockwise: the first half is a·cos − b·sin, the second b·cos + a·sin"),
        Mistake(_swapped_without_minus,
                "the minus is missing: the first half is a·cos − b·sin"),
        Mistake(lambda x, _, freqs: _rope_at(x, torch.arange(x.shape[2]), freqs),
                "you counted the tokens from 0: they stand at `positions`, which begin later when there is a cache"),
        Mistake(lambda x, positions, freqs: _rope_at(x, positions + 1, freqs),
                "you turned by one position too much: position 0 is not turned at all"),
        Mistake(_in_low_precision,
                "you computed the angles in x's dtype: bf16 cannot hold position 301; use fp32, round at the end"),
        Mistake(lambda x, positions, freqs: _rope_at(x.float(), positions, freqs),
                "the numbers are right, but the result must have x's dtype: end with .to(x.dtype)"),
        Mistake(_along_heads,
                "you turned head number h by position h: tokens are the third axis of (B, H, T, D)"),
    ),
)  # fmt: skip

# ---- 04.3 and 04.4: frequencies ----


def _share_of_plain(answer: Callable[..., Any], case: tuple) -> Any:
    """Frequencies span six powers of ten, so they are compared as shares of the unscaled ones."""
    got = answer(*case)
    plain = rope_frequencies(case[0], theta=case[1])
    if not isinstance(got, Tensor) or got.shape != plain.shape:
        return {"frequency / unscaled frequency": got}
    return {"frequency / unscaled frequency": got / plain}


def _llama3(
    head_dim: int, theta: float, factor: float, original: int, *, low: float = 1.0, high: float = 4.0
) -> Tensor:
    scaling = RopeScaling(
        factor=factor, low_freq_factor=low, high_freq_factor=high, original_context_length=original
    )  # fmt: skip
    return rope_frequencies(head_dim, theta=theta, scaling=scaling)


def _blend(plain: Tensor, keep: Tensor, factor: float) -> Tensor:
    return keep * plain + (1 - keep) * plain / factor


def _keep(plain: Tensor, original: int) -> Tensor:
    return (original * plain / (2 * math.pi) - 1) / 3


def _from_keep(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The rule with another share to keep."""

    def answer(head_dim: int, theta: float, factor: float, original: int) -> Tensor:
        plain = rope_frequencies(head_dim, theta=theta)
        return _blend(plain, change(_keep(plain, original)), factor)

    return answer


def _blend_by_wavelength(head_dim: int, theta: float, factor: float, original: int) -> Tensor:
    plain = rope_frequencies(head_dim, theta=theta)
    wavelength = 2 * math.pi / plain
    keep = (original - wavelength) / (original - original / 4)
    return _blend(plain, keep.clamp(0, 1), factor)


def _llama3_without_two_pi(head_dim: int, theta: float, factor: float, original: int) -> Tensor:
    plain = rope_frequencies(head_dim, theta=theta)
    return _blend(plain, ((original * plain - 1) / 3).clamp(0, 1), factor)


def _llama3_cases(_: torch.Generator) -> list[tuple]:
    return [(64, 500_000.0, 32.0, 8192), (128, 500_000.0, 8.0, 8192), (16, 10_000.0, 4.0, 512), (2, 10_000.0, 4.0, 64)]


LLAMA3 = Exercise(
    id="04.3", name="llama3_frequencies", minutes=15, level="core", reference=_llama3, cases=_llama3_cases,
    run=_share_of_plain, tolerance=1e-3,
    mistakes=(
        Mistake(lambda d, theta, _factor, _original: rope_frequencies(d, theta=theta),
                "nothing is scaled: these are the plain frequencies"),
        Mistake(lambda d, theta, factor, _original: rope_frequencies(d, theta=theta) / factor,
                "you slowed all pairs down: those with 4 turns or more within the original context are kept"),
        Mistake(_from_keep(lambda keep: 1 - keep.clamp(0, 1)),
                "the rule is upside down: keep the fast pairs, slow the slow ones down"),
        Mistake(_from_keep(lambda keep: keep),
                "the share to keep must be clamped between 0 and 1: yours goes beyond at both ends"),
        Mistake(_from_keep(lambda keep: (keep > 0).float()),
                "between 1 and 4 turns the two are blended: yours keeps all that makes more than one turn"),
        Mistake(_from_keep(lambda keep: (keep >= 1).float()),
                "between 1 and 4 turns the two are blended: yours slows down all that makes fewer than 4 turns"),
        Mistake(_blend_by_wavelength,
                "you blended in proportion to the wavelength: it goes by turns, original / wavelength"),
        Mistake(_llama3_without_two_pi,
                "2π is missing: a turn is 2π radians, so the turns are original · frequency / 2π"),
        Mistake(lambda d, theta, _factor, original: _llama3(d, theta, 8.0, original),
                "you wrote 8 in the place of `factor`: the small Llama 3.2 models use 32"),
        Mistake(lambda d, theta, _factor, original: _llama3(d, theta, 32.0, original),
                "you wrote 32 in the place of `factor`: Llama 3.1 uses 8"),
        Mistake(lambda d, theta, factor, _original: _llama3(d, theta, factor, 8192),
                "you wrote 8192 in the place of `original`: it is an argument"),
        Mistake(lambda d, theta, factor, original: _llama3(d, theta**0.5, factor, original),
                "the exponents run over half their range: they are 0, 2, 4, ... divided by head_dim, "
                "not 0, 1, 2, ..."),
    ),
)  # fmt: skip


def _dynamic(head_dim: int, theta: float, length: int, original: int) -> Tensor:
    stretch = max(1.0, length / original)
    return rope_frequencies(head_dim, theta=theta * stretch ** (head_dim / (head_dim - 2)))


def _dynamic_without_floor(head_dim: int, theta: float, length: int, original: int) -> Tensor:
    return rope_frequencies(head_dim, theta=theta * (length / original) ** (head_dim / (head_dim - 2)))


def _with_base(change: Callable[[float, int], float]) -> Callable[..., Tensor]:
    """Dynamic scaling with the base multiplied by something else. change(stretch, head_dim) -> multiple."""

    def answer(head_dim: int, theta: float, length: int, original: int) -> Tensor:
        return rope_frequencies(head_dim, theta=theta * change(max(1.0, length / original), head_dim))

    return answer


def _dynamic_cases(_: torch.Generator) -> list[tuple]:
    return [(64, 10_000.0, 8192, 2048), (8, 10_000.0, 3000, 2048), (4, 500_000.0, 4096, 2048),
            (64, 10_000.0, 2048, 2048), (64, 10_000.0, 100, 2048)]  # fmt: skip


DYNAMIC = Exercise(
    id="04.4", name="dynamic_frequencies", minutes=20, level="hard", reference=_dynamic, cases=_dynamic_cases,
    run=_share_of_plain, tolerance=1e-3,
    mistakes=(
        Mistake(lambda d, theta, _length, _original: rope_frequencies(d, theta=theta),
                "nothing is scaled: beyond `original` tokens the base must grow"),
        Mistake(_dynamic_without_floor,
                "a text shorter than the original length must have the plain frequencies: yours are faster there"),
        Mistake(_with_base(lambda s, _: s),
                "you multiplied the base by length / original: the slowest pair is then slowed by less; "
                "the exponent D/(D−2) is missing"),
        Mistake(_with_base(lambda s, d: s ** ((d - 2) / d)),
                "the exponent is upside down: it is D/(D−2), a little over 1"),
        Mistake(_with_base(lambda s, d: float(int(s)) ** (d / (d - 2))),
                "you divided length by original without the fraction: use /, not //"),
        Mistake(lambda d, theta, length, original: rope_frequencies(d, theta=theta) / max(1.0, length / original),
                "you slowed all pairs down alike: only the slowest is slowed by length / original, pair 0 not at all"),
        Mistake(_with_base(lambda s, d: 1 / s ** (d / (d - 2))),
                "the base must grow with the length: yours shrinks, so the hands get faster"),
    ),
)  # fmt: skip

# ---- 04.5: break it ----


def _blind(head_dim: int, distance: int) -> Tensor:
    return 2 * math.pi * torch.arange(1, head_dim // 2 + 1).float() / distance


def _what_still_sees(freqs: Any, case: tuple) -> str | None:
    head_dim, distance = case
    if not isinstance(freqs, Tensor) or freqs.shape != (head_dim // 2,):
        got = f"shape {tuple(freqs.shape)}" if isinstance(freqs, Tensor) else type(freqs).__name__
        return f"for head_dim {head_dim}, return a tensor of shape ({head_dim // 2},); got {got}"
    if not bool(torch.isfinite(freqs).all()) or not bool((freqs > 0).all()):
        return "all frequencies must be positive numbers: a hand that stands still is too easy"
    turns = freqs.double() * distance / (2 * math.pi)
    off = (turns - turns.round()).abs()
    if float(off.max()) > 1e-3:
        pair = int(off.argmax())
        return (
            f"with distance {distance}, pair {pair} has made {float(turns[pair]):.4g} turns after {distance} tokens: "
            f"it must be a whole number"
        )
    whole = turns.round()
    if len(whole.unique()) < len(whole):
        return "two of the frequencies are equal: all pairs must turn at different speeds"
    for nearer in range(1, distance):
        if bool(((whole * nearer) % distance == 0).all()):
            return f"places {nearer} apart already look alike, though only {distance} apart should"
    return None


def _blind_cases(_: torch.Generator) -> list[tuple]:
    return [(8, 100), (64, 101), (2, 12), (6, 2)]


BLIND = Exercise(
    id="04.5", name="blind_frequencies", minutes=10, level="break it", reference=_blind, cases=_blind_cases,
    accept=_what_still_sees,
    mistakes=(
        Mistake(lambda d, _: torch.zeros(d // 2),
                "hands that stand still see nothing at all: frequencies must be positive, and nearer places distinct"),
        Mistake(lambda d, distance: _blind(d, distance) / 2,
                "you used π for a full turn: after `distance` tokens your first pair points the opposite way"),
        Mistake(lambda d, distance: distance / torch.arange(1, d // 2 + 1).float(),
                "these are wavelengths, in tokens per turn: the frequency is 2π divided by the wavelength"),
        Mistake(lambda d, distance: 2 * math.pi / (distance * torch.arange(1, d // 2 + 1).float()),
                "you multiplied the wavelengths: then only the first pair comes round after `distance` tokens; "
                "multiply the turns"),
        Mistake(lambda d, distance: torch.full((d // 2,), 2 * math.pi / distance),
                "all pairs turn alike: the frequencies must be different, as 1, 2, 3, ... turns are"),
        Mistake(lambda d, _: 2 * math.pi * torch.arange(1, d // 2 + 1).float(),
                "these hands make whole turns with every single token: then no two places can be told apart"),
        Mistake(lambda d, distance: torch.arange(1, d // 2 + 1).float() / distance,
                "2π is missing: you count turns, but frequencies are in radians per token"),
    ),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (PAIR, HEADS, LLAMA3, DYNAMIC, BLIND)
