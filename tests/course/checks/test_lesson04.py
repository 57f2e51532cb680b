"""course.checks.lesson04: right answers pass, and each usual mistake is called by its name."""

import math
import re

import pytest
import torch

from llamamm.course.checks import check

PI = math.pi


def rotate_pair(pair, angle):
    turned = torch.view_as_real(torch.view_as_complex(pair) * complex(math.cos(angle), math.sin(angle)))
    return turned.to(pair.dtype)


def rope_at(x, positions, freqs):
    half = x.shape[-1] // 2
    angles = positions[:, None].float() * freqs[None, :]
    a, b = x[..., :half].float(), x[..., half:].float()
    out = torch.empty(x.shape)
    out[..., :half] = a * torch.cos(angles) - b * torch.sin(angles)
    out[..., half:] = a * torch.sin(angles) + b * torch.cos(angles)
    return out.to(x.dtype)


def with_rounded_tables(x, positions, freqs):
    """As the model does it: angles in fp32, their cosines and sines in x's dtype."""
    angles = torch.outer(positions.float(), freqs)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def plain(head_dim, theta):
    return torch.tensor([theta ** (-2 * i / head_dim) for i in range(head_dim // 2)])


def llama3_frequencies(head_dim, theta, factor, original):
    out = []
    for f in plain(head_dim, theta).tolist():
        turns = original * f / (2 * PI)
        if turns >= 4:
            out.append(f)
        elif turns <= 1:
            out.append(f / factor)
        else:
            keep = (turns - 1) / 3
            out.append(keep * f + (1 - keep) * f / factor)
    return torch.tensor(out)


def dynamic_frequencies(head_dim, theta, length, original):
    """Pair i is slowed by s^(i / (D/2 - 1)): from not at all to the whole stretch."""
    freqs = plain(head_dim, theta)
    if length <= original:
        return freqs
    last = head_dim // 2 - 1
    return freqs * torch.tensor([(original / length) ** (i / last) for i in range(last + 1)])


def blind_frequencies(head_dim, distance):
    turns = torch.arange(head_dim // 2, 0, -1) * 1.0  # fastest first
    return turns * (2 * PI / distance)


def also_blind(head_dim, distance):
    """Another right choice: one turn more than multiples of the distance, so that all move alike."""
    return 2 * PI * (1 + distance * torch.arange(head_dim // 2)) / distance


RIGHT = [("04.1", rotate_pair), ("04.2", rope_at), ("04.2", with_rounded_tables), ("04.3", llama3_frequencies),
         ("04.4", dynamic_frequencies), ("04.5", blind_frequencies), ("04.5", also_blind)]  # fmt: skip


@pytest.mark.parametrize(("exercise", "answer"), RIGHT)
def test_the_right_answer_passes(exercise, answer):
    assert check(exercise, answer), check(exercise, answer).message


# ---- wrong answers: one pair ----


def clockwise(pair, angle):
    x, y = pair
    return torch.stack((x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)))


def overwritten(pair, angle):
    pair[0] = pair[0] * math.cos(angle) - pair[1] * math.sin(angle)
    pair[1] = pair[0] * math.sin(angle) + pair[1] * math.cos(angle)
    return pair


def in_degrees(pair, angle):
    return rotate_pair(pair, angle * PI / 180)


def no_minus(pair, angle):
    x, y = pair
    c, s = math.cos(angle), math.sin(angle)
    return torch.stack((x * c + y * s, x * s + y * c))


def scaled(pair, angle):
    return pair * torch.tensor([math.cos(angle), math.sin(angle)], dtype=pair.dtype)


def sine_for_cosine(pair, angle):
    x, y = pair
    c, s = math.sin(angle), math.cos(angle)
    return torch.stack((x * c - y * s, x * s + y * c))


def a_list(pair, angle):
    return rotate_pair(pair, angle).tolist()


# ---- (B, H, T, D) ----


def tables(positions, freqs):
    angles = torch.outer(positions.float(), freqs)
    return angles.cos(), angles.sin()


def neighbours(x, positions, freqs):
    cos, sin = tables(positions, freqs)
    out = torch.empty_like(x)
    out[..., ::2] = x[..., ::2] * cos - x[..., 1::2] * sin
    out[..., 1::2] = x[..., ::2] * sin + x[..., 1::2] * cos
    return out


def half(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


def doubled_side_by_side(x, positions, freqs):
    cos, sin = (t.repeat_interleave(2, dim=-1) for t in tables(positions, freqs))
    return (x * cos + half(x) * sin).to(x.dtype)


def turned_back(x, positions, freqs):
    cos, sin = (torch.cat((t, t), dim=-1) for t in tables(positions, freqs))
    return (x * cos - half(x) * sin).to(x.dtype)


def forgot_the_minus(x, positions, freqs):
    cos, sin = tables(positions, freqs)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos + b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def own_positions(x, positions, freqs):
    return rope_at(x, torch.arange(len(positions)), freqs)


def from_one(x, positions, freqs):
    return rope_at(x, positions + 1, freqs)


def bf16_angles(x, positions, freqs):
    angles = positions[:, None].to(x.dtype) * freqs.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), dim=-1)


def stays_fp32(x, positions, freqs):
    cos, sin = (torch.cat((t, t), dim=-1) for t in tables(positions, freqs))
    return x * cos + half(x) * sin


def by_head(x, positions, freqs):
    cos, sin = (t[:, None] for t in tables(positions, freqs))
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


# ---- the rule "llama3" ----


def unscaled(head_dim, theta, _factor, _original):
    return plain(head_dim, theta)


def all_slower(head_dim, theta, factor, _original):
    return plain(head_dim, theta) / factor


def with_keep(change):
    def answer(head_dim, theta, factor, original):
        freqs = plain(head_dim, theta)
        keep = change((original * freqs / (2 * PI) - 1) / 3)
        return keep * freqs + (1 - keep) * freqs / factor

    return answer


def by_wavelength(head_dim, theta, factor, original):
    freqs = plain(head_dim, theta)
    low, high = original, original / 4
    keep = ((low - 2 * PI / freqs) / (low - high)).clamp(0, 1)
    return keep * freqs + (1 - keep) * freqs / factor


def radians_for_turns(head_dim, theta, factor, original):
    freqs = plain(head_dim, theta)
    keep = ((original * freqs - 1) / 3).clamp(0, 1)
    return keep * freqs + (1 - keep) * freqs / factor


def always_8(head_dim, theta, _factor, original):
    return llama3_frequencies(head_dim, theta, 8, original)


def always_32(head_dim, theta, _factor, original):
    return llama3_frequencies(head_dim, theta, 32, original)


def always_8192(head_dim, theta, factor, _original):
    return llama3_frequencies(head_dim, theta, factor, 8192)


def half_exponents(head_dim, theta, factor, original):
    freqs = theta ** (-torch.arange(head_dim // 2) / head_dim)
    keep = ((original * freqs / (2 * PI) - 1) / 3).clamp(0, 1)
    return keep * freqs + (1 - keep) * freqs / factor


def both_halves(head_dim, theta, factor, original):
    return llama3_frequencies(head_dim, theta, factor, original).repeat(2)


# ---- dynamic scaling ----


def with_base(change):
    def answer(head_dim, theta, length, original):
        stretch = length / original if length > original else 1.0
        return plain(head_dim, theta * change(stretch, head_dim))

    return answer


def faster_when_short(head_dim, theta, length, original):
    return plain(head_dim, theta * (length / original) ** (head_dim / (head_dim - 2)))


def whole_stretch(head_dim, theta, length, original):
    return plain(head_dim, theta * max(1, length // original) ** (head_dim / (head_dim - 2)))


def interpolated(head_dim, theta, length, original):
    return plain(head_dim, theta) * min(1.0, original / length)


def never(head_dim, theta, _length, _original):
    return plain(head_dim, theta)


# ---- break it ----


def standing_still(head_dim, _distance):
    return torch.zeros(head_dim // 2)


def half_turns(head_dim, distance):
    return PI * torch.arange(1, head_dim // 2 + 1) / distance


def wavelengths(head_dim, distance):
    return distance / torch.arange(1, head_dim // 2 + 1)


def longer_waves(head_dim, distance):
    return 2 * PI / (distance * torch.arange(1, head_dim // 2 + 1))


def all_the_same(head_dim, distance):
    return torch.ones(head_dim // 2) * 2 * PI / distance


def blind_everywhere(head_dim, _distance):
    return 2 * PI * torch.arange(1, head_dim // 2 + 1)


def in_turns(head_dim, distance):
    return torch.arange(1, head_dim // 2 + 1) / distance


def even_turns(head_dim, distance):
    return 4 * PI * torch.arange(1, head_dim // 2 + 1) / distance


def llamas_own(head_dim, _distance):
    return plain(head_dim, 500_000.0)


WRONG = [
    ("04.1", clockwise, "turned clockwise"),
    ("04.1", overwritten, "overwrote x"),
    ("04.1", in_degrees, "degrees"),
    ("04.1", no_minus, "minus is missing"),
    ("04.1", scaled, "mixture of both"),
    ("04.1", sine_for_cosine, "sine where the cosine"),
    ("04.1", a_list, "should be a tensor"),
    ("04.2", neighbours, "paired neighbours"),
    ("04.2", doubled_side_by_side, "not repeat_interleave"),
    ("04.2", turned_back, "turned clockwise"),
    ("04.2", forgot_the_minus, "minus is missing"),
    ("04.2", own_positions, "counted the tokens from 0"),
    ("04.2", from_one, "one position too much"),
    ("04.2", bf16_angles, "bf16 cannot hold position 301"),
    ("04.2", stays_fp32, "end with .to"),
    ("04.2", by_head, "third axis"),
    ("04.2", lambda x, *_: x[..., :1], "shape"),
    ("04.3", unscaled, "nothing is scaled"),
    ("04.3", all_slower, "slowed all pairs down"),
    ("04.3", with_keep(lambda k: 1 - k.clamp(0, 1)), "upside down"),
    ("04.3", with_keep(lambda k: k), "clamped"),
    ("04.3", with_keep(lambda k: (k > 0).float()), "keeps all that makes more than one turn"),
    ("04.3", with_keep(lambda k: (k >= 1).float()), "slows down all that makes fewer than 4"),
    ("04.3", by_wavelength, "in proportion to the wavelength"),
    ("04.3", radians_for_turns, "2π is missing"),
    ("04.3", always_8, "wrote 8 in the place"),
    ("04.3", always_32, "wrote 32 in the place"),
    ("04.3", always_8192, "wrote 8192"),
    ("04.3", half_exponents, "half their range"),
    ("04.3", both_halves, "shape should be"),
    ("04.4", never, "base must grow"),
    ("04.4", faster_when_short, "shorter than the original"),
    ("04.4", with_base(lambda s, _: s), "exponent D/.* is missing"),
    ("04.4", with_base(lambda s, d: s ** ((d - 2) / d)), "exponent is upside down"),
    ("04.4", whole_stretch, "use /, not //"),
    ("04.4", interpolated, "all pairs down alike"),
    ("04.4", with_base(lambda s, d: s ** (-d / (d - 2))), "yours shrinks"),
    ("04.4", lambda *_: None, "should be a tensor"),
    ("04.5", standing_still, "stand still"),
    ("04.5", half_turns, "π for a full turn"),
    ("04.5", wavelengths, "these are wavelengths"),
    ("04.5", longer_waves, "multiplied the wavelengths"),
    ("04.5", all_the_same, "turn alike"),
    ("04.5", blind_everywhere, "with every single token"),
    ("04.5", in_turns, "2π is missing"),
    ("04.5", even_turns, "already look alike"),
    ("04.5", llamas_own, "must be a whole number"),
    ("04.5", lambda head_dim, _: torch.ones(head_dim), "shape"),
    ("04.5", lambda *_: [1.0], "got list"),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), WRONG)
def test_a_usual_mistake_is_named(exercise, answer, message):
    result = check(exercise, answer)
    assert not result
    assert re.search(message, result.message), result.message
