"""Checks of lesson 12: places of a recording, energies of a frame, triangular bands, half the rate, a twin."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.course.checks.core import Exercise, Property
from llamamm.course.checks.faults import fault_exercise
from llamamm.senses.mel import HOP, N_BINS, hz_to_mel, log_mel, mel_to_hz, n_frames
from llamamm.senses.waves import RATE

# ---- 12.1: samples, frames, places ----


def _sizes(n_samples: int, rate: int, faults: Collection[str]) -> tuple[int, int, int]:
    def divided(a: int, b: int, fault: str) -> int:
        return a // b if fault in faults else -(-a // b)

    n = divided(n_samples * RATE, rate, "samples")
    n = n_samples if "own rate" in faults else divided(n_samples * rate, RATE, "samples") if "inverse" in faults else n
    n_columns = 1 + n // HOP if "extra" in faults else divided(n, HOP, "frames")
    return n, n_columns, n_columns if "not halved" in faults else divided(n_columns, 2, "places")


def _package_sizes(n_samples: int, rate: int) -> tuple[int, int, int]:
    n = -(-n_samples * RATE // rate)
    return n, -(-n // HOP), n_frames(n)


SIZES = fault_exercise(
    _sizes,
    {
        "own rate": "You count in samples of the recording's own rate: first it becomes 16,000 a second",
        "inverse": "Your factor is the wrong way round: a second has `rate` samples and becomes 16,000",
        "samples": "A last sample that is not full counts, so round up: the new wave lasts at least as long as the old",
        "frames": "A last frame that is not full counts, so round up: one sample fills a frame",
        "extra": "1 + n // 160 is what the STFT gives: a frame centred on the very end holds no sound of its own",
        "places": "A last place that is not full counts, so round up: an odd number of frames needs one place more",
        "not halved": "As many places as frames: the second convolution has a step of 2",
    },
    {
        "samples": (lambda _: [(31, 44_100)], ("own rate", "inverse", "samples")),
        "frames": (lambda _: [(161, RATE), (320, RATE)], ("frames", "extra")),
        "places": (lambda _: [(480, RATE), (320, RATE)], ("places", "not halved")),
    },
    lambda _: [(1, RATE), (16_000, RATE), (480, RATE), (44_101, 44_100), (20_001, 8_000), (100_000, 48_000)],
    id="12.1", name="sizes", minutes=5, level="warm-up", reference=_package_sizes,
)  # fmt: skip


# ---- 12.2: energies of a frame ----

WINDOWS: dict[str, Callable[[Tensor, int], Tensor]] = {  # from n = 0, 1, ... and N
    "": lambda n, N: 0.5 - 0.5 * torch.cos(2 * math.pi * n / N),
    "symmetric": lambda n, N: 0.5 - 0.5 * torch.cos(2 * math.pi * n / (N - 1)),
    "no window": lambda n, _: torch.ones_like(n),
    "Hamming": lambda n, N: 0.54 - 0.46 * torch.cos(2 * math.pi * n / N),
    "peak at 0": lambda n, N: 0.5 + 0.5 * torch.cos(2 * math.pi * n / N),
    "rises": lambda n, N: 0.5 - 0.5 * torch.cos(math.pi * n / N),
    "sine": lambda n, N: torch.sin(math.pi * n / N),
}


def _energies(frames: Tensor, faults: Collection[str]) -> Tensor:
    N = frames.shape[-1]
    name = next((name for name in WINDOWS if name in faults), "")
    window = WINDOWS[name](torch.arange(N).float(), N)
    spectrum = torch.fft.rfft(frames * window, norm="forward" if "over N" in faults else None)
    real, imag = spectrum.real * ("sines" not in faults), spectrum.imag * ("cosines" not in faults)
    energy = real**2 + imag**2
    energy = energy / N if "energy over N" in faults else energy
    return energy.sqrt() if "amplitudes" in faults else energy


def _one_frame(_: torch.Generator) -> list[tuple]:
    return [(torch.tensor([3.0, 5, 9, 2, 7, -4]),)]


FRAME = fault_exercise(
    _energies,
    {
        "no window": "There is no window: multiply the frame by Hann's before",
        "symmetric": "That is the symmetric window, 0 at both ends: the periodic one divides by N, not by N − 1",
        "peak at 0": "Your window is 1 at the ends and 0 in the middle: it is 0.5 MINUS half a cosine",
        "rises": "Your window only rises: its cosine makes a whole turn, 2πn / N",
        "Hamming": "That is Hamming's window: Hann's is 0.5 − 0.5 cos",
        "sine": "Your window is a sine: Hann's is its square, 0.5 − 0.5 cos",
        "amplitudes": "Those are amplitudes: an energy is their square",
        "cosines": "You took the cosines alone: energy is real part squared plus imaginary part squared",
        "sines": "You took the sines alone: energy is real part squared plus imaginary part squared",
        "over N": "You divided the transform by N: here it is the plain sum",
        "energy over N": "You divided the energies by N: the transform here is the plain sum, and so is its square",
    },
    {
        "the window": (_one_frame, tuple(WINDOWS)),
        "from the transform to energies": (_one_frame, ("amplitudes", "cosines", "sines")),
        "their size": (_one_frame, ("over N", "energy over N")),
    },
    lambda g: [(torch.randn(n, generator=g),) for n in ((8,), (3, 400), (2, 3, 16), (1, 2))],
    tolerance=1e-3, repair=lambda got, e: got[..., : e.shape[-1]] if got.shape == (*e.shape[:-1], 2 * e.shape[-1] - 2)
    else None, form="You return all N bins: those above N / 2 mirror the ones below, for a real wave",
    id="12.2", name="energies", minutes=10, level="core", forbids=("hann_window", "stft"),
)  # fmt: skip


# ---- 12.3: triangles ----


def _triangles(edges: Tensor, hz: Tensor, faults: Collection[str]) -> Tensor:
    n = len(edges) - 2
    low, centre, top = edges[:n, None], edges[1 : n + 1, None], edges[2:, None]
    if "side by side" in faults:  # each ends where the next begins
        top = edges[1 : n + 1, None]
        centre = (low + top) / 2
    rising, falling = (hz - low) / (centre - low), (top - hz) / (top - centre)
    lines = torch.maximum(rising, falling) if "larger" in faults else torch.minimum(rising, falling)
    if "rising" in faults or "falling" in faults:
        there = hz <= centre if "rising" in faults else hz >= centre
        lines = torch.where(there, rising if "rising" in faults else falling, torch.zeros_like(rising))
    if "box" in faults or "flat box" in faults:
        lines = ((hz > low) & (hz < top)).to(hz.dtype)
    lines = lines if "no floor" in faults else lines.clamp(min=0)
    if "sum" in faults:
        total = lines.sum(dim=1, keepdim=True)
        return lines / torch.where(total == 0, 1, total)
    width = 1 if "height 1" in faults else top - low
    return lines * (1 if {"height 1", "half"} & {*faults} else 2) / width / (2 if "flat box" in faults else 1)


def _two_bands(_: torch.Generator) -> list[tuple]:
    return [(torch.tensor([0.0, 2, 6, 9]), torch.tensor([1.0, 1.5, 3, 5, 8]))]


def _bands(g: torch.Generator) -> list[tuple]:
    bins = torch.linspace(0, RATE / 2, N_BINS)
    slaney = mel_to_hz(torch.linspace(0, 1, 82) * hz_to_mel(torch.tensor(RATE / 2)))
    uneven = torch.rand(7, generator=g).cumsum(dim=0) + 0.1
    return [(torch.tensor([1.0, 2, 3]), torch.tensor([1.5])), (torch.tensor([0.0, 2, 6, 8]), torch.arange(9.0)),
            (slaney, bins), (uneven, torch.linspace(0, 5, 23))]  # fmt: skip


BANDS = fault_exercise(
    _triangles,
    {
        "height 1": "Your bands have height 1, not area 1: multiply by 2 / width",
        "half": "Your heights are 1 / width: a triangle's area is half its width times its height, so 2 / width",
        "sum": "You made the weights of the bins sum to 1: it is the triangle's area that is 1, wherever bins lie",
        "no floor": "Outside the triangles your lines go on below 0: nothing is under 0",
        "larger": "You took the larger of the two lines, which is high outside: the triangle is under both",
        "rising": "Only the rising side is there: after the centre it falls",
        "falling": "Only the falling side is there: before the centre it rises",
        "box": "Those are boxes: weights rise to the centre and fall",
        "flat box": "Those are boxes: weights rise to the centre and fall",
        "side by side": "Your bands lie side by side: each reaches over two steps, from edge m to edge m + 2",
    },
    {
        "the sides of a band": (_two_bands, ("no floor", "larger", "rising", "falling", "box", "flat box")),
        "its width": (_two_bands, ("side by side",)),
        "its area": (_two_bands, ("height 1", "half", "sum")),
    },
    _bands,
    tolerance=1e-5, repair=lambda got, expected: got.T if got.T.shape == expected.shape else None,
    form="Rows and columns are swapped: (M, F), a row for each band",
    id="12.3", name="triangles", minutes=12, level="core",
)  # fmt: skip


# ---- 12.4: half the rate. An answer is measured, whatever its filter: tones, a bump, a constant ----

ENDS = 200  # new samples at each end that are left out: there a tone begins and stops
LENGTH, BUMP = 2001, 1000  # samples of a test wave; where its bump stands
PASS, STOP = (500, 1500, 3000), (5000, 6000, 7500)
DAMPED = 0.98  # of a tone's strength: what stays to 2% is right


def _tone(hz: int) -> Tensor:
    return torch.cos(2 * math.pi * hz / RATE * torch.arange(LENGTH, dtype=torch.float64)).float()


def _bump() -> Tensor:
    return torch.exp(-(((torch.arange(LENGTH) - BUMP) / 40.0) ** 2))


def _measured(answer: Callable[[Tensor], Tensor], case: tuple) -> dict[Any, Any]:
    """Of each tone in Hz what came and its strength, as a part of the constant's; the constant's; samples too late."""
    del case
    constant, bump = answer(torch.ones(LENGTH)), answer(_bump())
    n = (LENGTH + 1) // 2
    found: dict[Any, Any] = {"ok": False}
    tones = {hz: answer(_tone(hz)) for hz in (*PASS, *STOP)}
    waves = (constant, bump, *tones.values())
    if not all(isinstance(wave, Tensor) and wave.shape == (n,) and wave.isfinite().all() for wave in waves):
        return found
    gain = float(constant[ENDS:-ENDS].double().mean())
    if not abs(gain) > 0.05:
        return {**found, "gain": gain}
    place = 2 * torch.arange(n, dtype=torch.float64)
    found |= {"ok": True, "gain": gain, "late": float((bump.double() @ place) / bump.double().sum()) - BUMP,
              "constant": constant.double() / gain}  # fmt: skip
    for hz, wave in tones.items():
        turns = torch.exp(-2j * math.pi * hz / RATE * place)[ENDS:-ENDS]
        middle, wanted = wave.double()[ENDS:-ENDS] / gain, _tone(hz).double()[::2][ENDS:-ENDS]
        ratio = (middle * turns).sum() / (wanted * turns).sum()
        found[hz] = float(middle.square().mean().sqrt() / wanted.square().mean().sqrt())
        pure = ratio.abs() * torch.cos(2 * math.pi * hz / RATE * place[ENDS:-ENDS] + ratio.angle())
        found["off", hz] = float((middle - pure).abs().max())
        found["turned", hz] = float(-ratio.angle())
    return found


def _kind(found: dict[Any, Any]) -> str:
    """What kind of wrong filter passes tones in this way, "" for none of those that are known."""

    def like(hz: int, strength: float) -> bool:
        return abs(found[hz] - strength) < 0.02

    if all(like(hz, 1) for hz in (*PASS, *STOP)):
        return "none"
    if all(like(hz, math.cos(math.pi * hz / RATE)) for hz in (*PASS, *STOP)):
        return "mean"
    # whatever comes after every second sample was dropped treats a tone as it treats the one that it has become
    folded = all(like(RATE // 2 - hz, found[hz]) for hz in (500, 3000)) and found[3000] < DAMPED
    return "folded" if folded and found[500] > 0.5 else ""


def _loudness(found: dict[Any, Any], _: tuple) -> str | None:
    if "gain" not in found or abs(found["gain"] - 1) <= 0.02:
        return None
    why = "; sinc(k / 2) sums to 2, so divide the weights by their sum" if abs(found["gain"] - 2) < 0.1 else \
        ": make the weights sum to 1"  # fmt: skip
    return f"a constant 1 comes out as {found['gain']:.2f}{why}"


def _in_time(found: dict[Any, Any], _: tuple) -> str | None:
    if not found["ok"] or _kind(found) == "mean" or abs(found["late"]) <= 0.05:
        return None
    late = found["late"]
    why = "centre the kernel on old sample 2i, with as much padding before as after"
    if late > 2:
        why = "as where all padding stands before the wave: half before, half after"
    return (f"a bump at old sample {BUMP:,} comes out at {BUMP + late:,.1f}, {abs(late):.1f} old samples too "
            f"{'late' if late > 0 else 'early'}: {why}")  # fmt: skip


def _low_tones(found: dict[Any, Any], _: tuple) -> str | None:
    kind = found["ok"] and _kind(found)
    if not found["ok"] or kind == "mean" or kind == "folded" and found[1500] >= DAMPED:
        return None  # told with the high tones
    for hz in PASS:
        if abs(found[hz] - 1) > 0.02:
            edge = "your filter's edge lies too low: the new wave can hold up to 4,000 Hz, sinc(k / 2)"
            small = "is the filter's edge near 4,000 Hz, the kernel long enough?"
            kept = kind != "folded" and found[500] >= DAMPED and found[3000] < 0.3 or found[1500] < 0.3
            return (f"a tone of {hz:,} Hz comes out {found[hz]:.2f} times as strong as a constant; up to 3,000 Hz "
                    f"nothing should change: {edge if kept else small}")  # fmt: skip
        later = _wrapped(found["turned", hz] - 2 * math.pi * hz / RATE * found["late"]) / (2 * math.pi * hz) * RATE
        if abs(later) > 0.05:
            return (f"a tone of {hz:,} Hz comes {abs(later):.1f} old samples {'later' if later > 0 else 'earlier'} "
                    f"than a slow bump: use a kernel that is symmetric about old sample 2i")  # fmt: skip
        if found["off", hz] > 0.03:
            return f"a tone of {hz:,} Hz is off by {found['off', hz]:.2f} in places: it isn't a plain tone"
    return None


def _wrapped(angle: float) -> float:
    return math.remainder(angle, 2 * math.pi)


def _high_tones(found: dict[Any, Any], _: tuple) -> str | None:
    strong = [hz for hz in STOP if found["ok"] and found[hz] > 0.01]
    if not strong:
        return None
    hz, kind = strong[0], _kind(found)
    why = {
        "none": "nothing was filtered: every second sample as it is, or with torch.sinc(k), which is 0 but for k = 0",
        "mean": "a mean or sum of two is a weak filter, and half a sample off: take more, weighted by sinc(k / 2)",
        "folded": "you kept every second sample first and filtered then: what has folded back can't be told apart",
        "": "filter first, then keep every second sample; a longer kernel falls more steeply",
    }[kind]
    return (f"a tone of {hz:,} Hz comes back as {RATE // 2 - hz:,} Hz with {found[hz]:.0%} of its strength; 1% is "
            f"allowed: {why}")  # fmt: skip


def _silent_ends(found: dict[Any, Any], _: tuple) -> str | None:
    """At the time of the first sample half the kernel meets silence; with a delay, that time comes later."""
    if not found["ok"] or _kind(found) in ("none", "mean") or abs(found["late"]) > 2 * ENDS:
        return None
    late = found["late"] / 2
    near = found["constant"] if late >= 0 else found["constant"].flip(0)
    at, between = int(abs(late)), abs(late) % 1
    edge = float(torch.lerp(near[at], near[at + 1], between))
    return None if 0.4 <= edge <= 0.95 else (
        f"a constant 1 {'begins' if late >= 0 else 'ends'} with {edge:.2f} of its strength: beyond its ends the wave "
        f"is silence, so about half of the weights meet zeros; pad with zeros")  # fmt: skip


def _halved_form(result: Any, case: tuple) -> str | None:
    (wave,) = case
    n = -(-len(wave) // 2)
    if not isinstance(result, Tensor) or result.shape != (n,) or not result.is_floating_point():
        got = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        return f"of {len(wave)} sample{'s' * (len(wave) > 1)} you should make floats of shape ({n},), got {got}"
    if not result.isfinite().all():
        return f"{int((~result.isfinite()).sum())} of the {n} new samples are NaN or infinite"
    return None


def _halved(wave: Tensor) -> Tensor:
    k = torch.arange(-32, 33)
    weights = torch.sinc(k / 2) * torch.hann_window(67, periodic=False)[1:-1]
    return F.conv1d(wave[None, None], (weights / weights.sum())[None, None], padding=32, stride=2)[0, 0]


def _whole_wave(_: torch.Generator) -> list[tuple]:
    return [()]


HALVE = Exercise(
    id="12.4", name="halve", minutes=20, level="hard", reference=_halved,
    properties=(
        Property("length", lambda _: [(torch.ones(n),) for n in (1, 2, 7, 500, LENGTH)],
                 run=lambda answer, case: answer(*case), accept=_halved_form),
        Property("loudness", _whole_wave, run=_measured, accept=_loudness),
        Property("in time", _whole_wave, run=_measured, accept=_in_time),
        Property("tones up to 3,000 Hz", _whole_wave, run=_measured, accept=_low_tones),
        Property("tones from 5,000 Hz on", _whole_wave, run=_measured, accept=_high_tones),
        Property("silence beyond the ends", _whole_wave, run=_measured, accept=_silent_ends),
    ),
)  # fmt: skip


# ---- 12.5: a twin ----

LIKE, ALONE = 0.01, 0.1  # mean difference of the log-mel, correlation


def _quarter_turn(wave: Tensor) -> Tensor:
    return torch.fft.irfft(-1j * torch.fft.rfft(wave), len(wave))


def _voices(g: torch.Generator) -> list[tuple[Tensor]]:
    """Buzzes with a falling pitch under bumps of loudness, and breath: much like a vowel."""
    cases = []
    for n, pitch in ((9000, 110.0), (16_000, 190.0)):
        t = torch.arange(n) / RATE
        phase = 2 * math.pi * (pitch * t - 20 * t**2)
        buzz = sum(torch.cos(k * phase + 0.7 * k * k) / (1 + abs(k * pitch - 700) / 300) for k in range(1, 25))
        # the bump leans to one side, or a wave read backwards would be as loud at the same times
        loud = torch.sin(math.pi * (t * RATE / n) ** 0.5) ** 2
        wave = buzz * loud + 0.02 * torch.randn(n, generator=g)
        cases.append((0.5 * wave / wave.abs().max(),))
    return cases


def _is_wave(result: Any, wave: Tensor) -> bool:
    fits = isinstance(result, Tensor) and result.shape == wave.shape and result.is_floating_point()
    return fits and bool(result.isfinite().all()) and not _silent(result, wave)


def _silent(result: Tensor, wave: Tensor) -> bool:
    return float(result.norm()) < 1e-3 * float(wave.norm())


def _twin_form(result: Any, case: tuple) -> str | None:
    (wave,) = case
    if _is_wave(result, wave):
        return None
    if not isinstance(result, Tensor) or result.shape != wave.shape or not result.is_floating_point():
        got = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        return f"give a wave of floats of shape {tuple(wave.shape)}, got {got}"
    if not result.isfinite().all():
        return f"{int((~result.isfinite()).sum())} of your {len(result)} samples are NaN or infinite"
    return "your wave is silence; did you turn the negative frequencies of torch.fft.fft by −1j, too? They need +1j"


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


def _shift(result: Tensor, wave: Tensor) -> tuple[float, int]:
    """How well the result agrees with the wave where it fits best, whatever angle all phases were turned by, and by how
    many samples it is shifted there."""
    n = len(wave)
    product = torch.fft.fft(result.double()) * torch.fft.fft(wave.double()).conj()
    product[n // 2 + 1 :] = 0  # the positive frequencies alone: its size is the same for each angle
    agreement = 2 * torch.fft.ifft(product).abs() / float(result.double().norm() * wave.double().norm())
    at = int(agreement.argmax())
    return float(agreement[at]), at if at <= n // 2 else at - n


def _unrelated(result: Any, case: tuple) -> str | None:
    (wave,) = case
    if not _is_wave(result, wave):
        return None
    result = result.detach().float()
    alike = _correlation(result, wave)
    if abs(alike) <= ALONE:
        return None
    agreement, shift = _shift(result, wave)
    why = "sample by sample they are still related"
    if alike > 0.9999:
        factor = float(result.norm() / wave.norm())
        why = "that is the wave itself" if abs(factor - 1) < 1e-3 else "a factor changes nothing of a correlation"
    elif alike < -0.9999:
        why = "it is the same wave but for the sign"
    elif agreement > 0.99 and shift == 0:
        angle = math.degrees(math.acos(max(-1.0, min(1.0, alike / agreement))))
        why = f"all phases were turned by {angle:.0f}°: the correlation is the angle's cosine, 0 for a quarter turn"
    elif agreement > 0.99:
        why = f"it is the wave shifted by {abs(shift)} sample{'s' * (abs(shift) != 1)}, still related to it"
    return f"the correlation with the wave is {alike:.2f}, it must lie between −{ALONE} and {ALONE}: {why}"


def _same_energies(result: Any, case: tuple) -> str | None:
    (wave,) = case
    if not _is_wave(result, wave):
        return None
    result = result.detach().float()
    n = 2 * n_frames(len(wave))
    off = float((log_mel(result)[:, :n] - log_mel(wave)[:, :n]).abs().mean())
    if off < LIKE:
        return None
    why = " ".join(f"{reason}." for reason in _reasons(result, wave)).rstrip(".")
    return f"the log-mels differ by {off:.3f} on average, {LIKE} is allowed: that can be heard{why and f'. {why}'}"


def _reasons(result: Tensor, wave: Tensor) -> list[str]:
    """Why the log-mels differ: a factor, another time, other phases; nothing where each frequency's energy changed."""
    ours, theirs = torch.fft.rfft(wave.double()), torch.fft.rfft(result.double())
    factor = float(theirs.norm() / ours.norm())
    if float((theirs.abs() / factor - ours.abs()).norm() / ours.norm()) > 0.02:
        return []
    found = []
    if abs(factor - 1) > 0.02:
        found.append(f"It is {factor:.3g} times as strong as the wave, so the log-mel changes by "
                     f"{math.log10(factor) / 2:.2f}: undo the factor")  # fmt: skip
    (agreement, shift), (backwards, turned) = _shift(result, wave), _shift(result, wave.flip(0))
    if agreement > 0.98 and shift:
        found.append(f"It comes {abs(shift)} samples too {'late' if shift > 0 else 'early'}: the log-mel differs "
                     f"wherever the sound changes")  # fmt: skip
    elif backwards > 0.98:
        found.append("Backwards every frequency keeps its energy, but at another time: frames come in the wrong order")
        if turned % len(wave):
            found.append(f"It is shifted by {abs(turned)} samples, too")
    elif float(theirs.imag.norm()) < 0.01 * float(theirs.norm()) and float(theirs.real.sum()) > 0:
        found.append("You set all phases to 0, so all frequencies meet at time 0 in one click: the energies must stay "
                     "where they are in time, too; turn all phases by the same angle")  # fmt: skip
    elif agreement < 0.98:
        found.append("Every frequency keeps its energy, but at another time: turn all phases by the same angle")
    return found


TWIN = Exercise(
    id="12.5", name="twin", minutes=15, level="break it", reference=_quarter_turn,
    properties=(
        Property("form", _voices, run=lambda answer, case: answer(*case), accept=_twin_form),
        Property("sample by sample", _voices, run=lambda answer, case: answer(*case), accept=_unrelated),
        Property("how it sounds", _voices, run=lambda answer, case: answer(*case), accept=_same_energies),
    ),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (SIZES, FRAME, BANDS, HALVE, TWIN)
