"""Checks of lesson 12: energies of a frame, triangular bands, a twin; the mouth's are apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.core import Exercise, Property
from llamamm.course.checks.faults import fault_exercise
from llamamm.course.checks.inputs import inputs_stay
from llamamm.course.checks.lesson12_mouth import MOUTH
from llamamm.senses.mel import N_BINS, hz_to_mel, log_mel, mel_to_hz, n_frames
from llamamm.senses.waves import RATE

# ---- 12.1: energies of a frame ----

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
    extra=(inputs_stay(("frames",), _one_frame),),
    id="12.1", name="energies", minutes=10, level="warm-up", forbids=("hann_window", "stft"),
)  # fmt: skip


# ---- 12.2: triangles ----


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
    extra=(inputs_stay(("edges", "hz"), _two_bands),),
    id="12.2", name="triangles", minutes=12, level="core",
)  # fmt: skip


# ---- 12.6: a twin ----

LIKE, ALONE = 0.01, 0.1  # mean difference of the log-mel, correlation


def _quarter_turn(wave: Tensor) -> Tensor:
    return torch.fft.irfft(-1j * torch.fft.rfft(wave), len(wave))


def _voices(g: torch.Generator) -> list[tuple[Tensor]]:
    """Buzzes with a falling pitch under bumps of loudness, and breath: much like a vowel. One length is odd."""
    cases = []
    for n, pitch in ((9001, 110.0), (16_000, 190.0)):
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
        found.append(f"It comes {abs(shift)} sample{'s' * (abs(shift) != 1)} too {'late' if shift > 0 else 'early'}: "
                     f"the log-mel differs wherever the sound changes")  # fmt: skip
    elif backwards > 0.98:
        found.append("Backwards every frequency keeps its energy, but at another time: frames come in the wrong order")
        if turned % len(wave):
            found.append(f"It is shifted by {abs(turned)} sample{'s' * (abs(turned) != 1)}, too")
    elif float(theirs.imag.norm()) < 0.01 * float(theirs.norm()) and float(theirs.real.sum()) > 0:
        found.append("You set all phases to 0, so all frequencies meet at time 0 in one click: the energies must stay "
                     "where they are in time, too; turn all phases by the same angle")  # fmt: skip
    elif agreement < 0.98:
        found.append("Every frequency keeps its energy, but at another time: turn all phases by the same angle")
    return found


TWIN = Exercise(
    id="12.6", name="twin", minutes=15, level="break it", reference=_quarter_turn,
    properties=(
        Property("form", _voices, run=lambda answer, case: answer(*case), accept=_twin_form),
        Property("sample by sample", _voices, run=lambda answer, case: answer(*case), accept=_unrelated),
        Property("how it sounds", _voices, run=lambda answer, case: answer(*case), accept=_same_energies),
        inputs_stay(("wave",), lambda g: _voices(g)[:1]),
    ),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (FRAME, BANDS, *MOUTH, TWIN)
