"""Checks for lesson 12: places of a recording, energies of a frame, triangular bands, half the rate, a twin."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.course.checks.core import Exercise, Mistake
from llamamm.senses.mel import HOP, N_BINS, hz_to_mel, log_mel, mel_to_hz, n_frames
from llamamm.senses.waves import RATE

# ---- 12.1: samples, frames, places ----


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _down(a: int, b: int) -> int:
    return a // b


def _sizes(
    n_samples: int, rate: int, *, samples: Callable = _up, frames: Callable = _up, places: Callable = _up,
    resampled: bool = True, extra: int = 0, halved: bool = True,
) -> tuple[int, int, int]:  # fmt: skip
    """The right sizes; each argument plants one mistake."""
    n = samples(n_samples * RATE, rate) if resampled else n_samples
    n_columns = frames(n, HOP) + extra
    return n, n_columns, places(n_columns, 2) if halved else n_columns


def _package_sizes(n_samples: int, rate: int) -> tuple[int, int, int]:
    n = _up(n_samples * RATE, rate)
    return n, _up(n, HOP), n_frames(n)


SIZES = Exercise(
    id="12.1", name="sizes", minutes=5, level="warm-up",
    reference=_package_sizes,
    cases=lambda _: [(16_000, RATE), (1, RATE), (480, RATE), (44_101, 44_100), (20_001, 8_000), (100_000, 48_000)],
    mistakes=(
        Mistake(partial(_sizes, resampled=False),
                "you count in samples of the recording's own rate: first it becomes 16,000 a second"),
        Mistake(partial(_sizes, samples=_down, frames=_down, places=_down),
                "you round down: a last piece that is not full counts, so one sample fills a frame and a place"),
        Mistake(partial(_sizes, frames=_down),
                "you round the frames down: a last frame that is not full counts"),
        Mistake(partial(_sizes, places=_down),
                "you round the places down: an odd number of frames needs one place more"),
        Mistake(partial(_sizes, samples=_down),
                "you round the samples down: the new wave lasts at least as long as the old"),
        Mistake(partial(_sizes, frames=_down, extra=1),
                "1 + n // 160 is what the STFT gives: a frame centred on the very end holds no sound of its own"),
        Mistake(partial(_sizes, halved=False),
                "as many places as frames: the second convolution has a step of 2"),
    ),
)  # fmt: skip


# ---- 12.2: energies of a frame ----


def _energies(
    frames: Tensor, *, window: str = "periodic", square: bool = True, part: str = "both", scale: bool = False,
    bins: str = "half",
) -> Tensor:  # fmt: skip
    N = frames.shape[-1]
    faded = {
        "periodic": lambda: torch.hann_window(N), "symmetric": lambda: torch.hann_window(N, periodic=False),
        "none": lambda: torch.ones(N), "hamming": lambda: torch.hamming_window(N),
        "peak at 0": lambda: 0.5 + 0.5 * torch.cos(2 * math.pi * torch.arange(N) / N),
        "half": lambda: 0.5 - 0.5 * torch.cos(math.pi * torch.arange(N) / N),
    }[window]()  # fmt: skip
    transform = torch.fft.rfft if bins == "half" else torch.fft.fft
    spectrum = transform(frames * faded, norm="ortho" if scale else None)
    if part == "real":
        return spectrum.real**2
    return spectrum.abs() ** 2 if square else spectrum.abs()


FRAME = Exercise(
    id="12.2", name="energies", minutes=10, level="core",
    reference=_energies,
    cases=lambda g: [(torch.randn(n, generator=g),) for n in ((8,), (3, 400), (2, 3, 16), (1, 2))],
    mistakes=(
        Mistake(partial(_energies, window="none"), "there is no window: multiply the frame by Hann's before"),
        Mistake(partial(_energies, window="symmetric"),
                "that is the symmetric window, 0 at both ends: the periodic one divides by N, not by N - 1"),
        Mistake(partial(_energies, window="peak at 0"),
                "your window is 1 at the ends and 0 in the middle: it is 0.5 MINUS half a cosine"),
        Mistake(partial(_energies, window="half"),
                "your window only rises: its cosine makes a whole turn, 2 pi n / N"),
        Mistake(partial(_energies, window="hamming"), "that is Hamming's window: Hann's is 0.5 - 0.5 cos"),
        Mistake(partial(_energies, square=False), "those are amplitudes: an energy is their square"),
        Mistake(partial(_energies, part="real"),
                "you took the cosines alone: energy is real part squared plus imaginary part squared"),
        Mistake(partial(_energies, scale=True), "you divided by N: the transform here is the plain sum"),
        Mistake(partial(_energies, bins="all"),
                "you return all N bins: those above N / 2 mirror the ones below, for a real wave"),
    ),
    tolerance=1e-3,
)  # fmt: skip


# ---- 12.3: triangles ----


def _triangles(
    edges: Tensor, hz: Tensor, *, shape: str = "smaller", floor: bool = True, area: str = "one", high: int = 2,
    turned: bool = False,
) -> Tensor:  # fmt: skip
    n = len(edges) - 2
    low, centre, top = edges[:n, None], edges[1 : n + 1, None], edges[2:, None]
    if high == 1:  # bands side by side: each ends where the next begins
        top = edges[1 : n + 1, None]
        centre = (low + top) / 2
    rising, falling = (hz - low) / (centre - low), (top - hz) / (top - centre)
    weights = {
        "smaller": torch.minimum(rising, falling), "larger": torch.maximum(rising, falling),
        "rising": torch.where(hz <= centre, rising, torch.zeros(())), "box": ((hz > low) & (hz < top)).float(),
    }[shape]  # fmt: skip
    weights = weights.clamp(min=0) if floor else weights
    if area == "one":
        weights = weights * 2 / (top - low)
    elif area == "width":
        weights = weights / (top - low)
    elif area == "sum":
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)
    return weights.T if turned else weights


def _edges(g: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    bins = torch.linspace(0, RATE / 2, N_BINS)
    slaney = mel_to_hz(torch.linspace(0, 1, 82) * hz_to_mel(torch.tensor(RATE / 2)))
    uneven = torch.rand(7, generator=g).cumsum(dim=0) + 0.1
    return [(torch.tensor([0.0, 2.0, 6.0, 8.0]), torch.arange(9.0)), (slaney, bins), (uneven, torch.linspace(0, 5, 23)),
            (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.5]))]  # fmt: skip


BANDS = Exercise(
    id="12.3", name="triangles", minutes=12, level="core",
    reference=_triangles,
    cases=_edges,
    mistakes=(
        Mistake(partial(_triangles, area="none"), "your triangles have height 1, not area 1: multiply by 2 / width"),
        Mistake(partial(_triangles, area="width"),
                "your areas are a half: a triangle's area is half its width times its height"),
        Mistake(partial(_triangles, area="sum"),
                "you made the weights of the bins sum to 1: it is the triangle's area that is 1, wherever bins lie"),
        Mistake(partial(_triangles, floor=False),
                "outside the triangles your lines go on below 0: nothing is under 0"),
        Mistake(partial(_triangles, shape="larger"),
                "you took the larger of the two lines, which is high outside: the triangle is under both"),
        Mistake(partial(_triangles, shape="rising"), "only the rising side is there: after the centre it falls"),
        Mistake(partial(_triangles, shape="box"), "those are boxes: weights rise to the centre and fall"),
        Mistake(partial(_triangles, high=1),
                "your bands lie side by side: each reaches over two steps, from edge m to edge m + 2"),
        Mistake(partial(_triangles, turned=True), "rows and columns are swapped: (M, F), a row for each band"),
    ),
    tolerance=1e-5,
)  # fmt: skip


# ---- 12.4: half the rate ----

ENDS = 200  # new samples at each end that are left out: there a tone begins and stops


def _filtered(
    wave: Tensor, *, gain: float = 1.0, delay: int = 0, cutoff: float = 0.5, first: bool = True, mode: str = "constant"
) -> Tensor:
    k = torch.arange(-32, 33)
    weights = torch.sinc(cutoff * k) * torch.hann_window(67, periodic=False)[1:-1]
    weights = (gain * weights / weights.sum())[None, None]
    padded = F.pad(wave[None, None] if first else wave[None, None, ::2], (32 + delay, 32 - delay), mode=mode)
    return F.conv1d(padded, weights, stride=2 if first else 1)[0, 0]


def _in_pairs(wave: Tensor) -> Tensor:
    return F.pad(wave, (0, len(wave) % 2)).view(-1, 2).mean(dim=1)


def _tones(_: torch.Generator) -> list[tuple[float | None, Tensor]]:
    def tone(hz: float, n: int = 4001) -> tuple[float | None, Tensor]:
        return hz, torch.cos(2 * math.pi * hz / RATE * torch.arange(n, dtype=torch.float64)).float()

    tones = [tone(hz) for hz in (0, 500, 1500, 3000, 5000, 6000, 7500)]
    return [(None, torch.ones(1)), *tones, tone(1000, 4000), (None, torch.ones(500))]


def _accept_halved(result: Any, case: tuple) -> str | None:
    hz, wave = case
    n = _up(len(wave), 2)
    if not isinstance(result, Tensor) or result.shape != (n,) or not result.is_floating_point():
        got = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        return f"of {len(wave)} samples you should make floats of shape ({n},), got {got}"
    if not result.isfinite().all():
        return f"{int((~result.isfinite()).sum())} of the new samples are NaN or infinite"
    if hz is None:
        edge = float(result[0])
        return None if len(wave) == 1 or 0.4 <= edge <= 0.95 else (
            f"a constant 1 begins with {edge:.2f}: before its first sample the wave is silence, so about half of the "
            f"weights meet zeros; pad with zeros")  # fmt: skip
    middle, wanted = result.double()[ENDS:-ENDS], wave.double()[::2][ENDS:-ENDS]
    strength = float(middle.square().mean().sqrt() / wanted.square().mean().sqrt())
    if hz >= 5000:
        return None if strength <= 0.01 else (
            f"a tone of {hz:,} Hz comes back as {RATE // 2 - hz:,} Hz with {strength:.0%} of its strength; 1% is "
            f"allowed: filter first, then keep every second sample; a longer kernel falls more steeply")  # fmt: skip
    places = torch.arange(len(middle), dtype=torch.float64)
    turns = torch.exp(-4j * math.pi * hz / RATE * places)
    ratio = complex((middle * turns).sum() / (wanted * turns).sum())
    if abs(abs(ratio) - 1) > 0.02:
        return (f"a tone of {hz:,} Hz comes out {abs(ratio):.2f} times as strong; up to 3,000 Hz nothing should "
                f"change: do the weights sum to 1, is the edge near 4,000 Hz, the kernel long enough?")  # fmt: skip
    late = -math.atan2(ratio.imag, ratio.real) / (2 * math.pi * hz) * RATE if hz else 0.0
    if abs(late) > 0.05:
        return (f"a tone of {hz:,} Hz comes {abs(late):.1f} old samples too {'late' if late > 0 else 'early'}: centre "
                f"the kernel on old sample 2i, with as much padding before as after")  # fmt: skip
    error = float((middle - wanted).abs().max())
    return None if error <= 0.03 else f"a tone of {hz:,} Hz is off by {error:.2f} in places: it isn't a plain tone"


HALVE = Exercise(
    id="12.4", name="halve", minutes=20, level="hard",
    reference=_filtered,
    cases=_tones,
    run=lambda answer, case: answer(case[1]),
    accept=_accept_halved,
    mistakes=(
        Mistake(lambda wave: wave[::2],
                "nothing was filtered: every second sample as it is, or with torch.sinc(k), which is 0 but for k = 0; "
                "all tones over 4,000 Hz fold back"),
        Mistake(_in_pairs,
                "a mean of two is a weak filter, and half a sample late: 5,000 Hz comes through half as strong"),
        Mistake(partial(_filtered, gain=2.0),
                "everything is twice as loud: the weights sinc(k / 2) sum to 2; divide them by their sum"),
        Mistake(partial(_filtered, delay=32),
                "all padding stands before the wave, so the new one comes 32 samples late: half before, half after"),
        Mistake(partial(_filtered, first=False),
                "you kept every second sample first and filtered then: what has folded back can't be told apart"),
        Mistake(partial(_filtered, cutoff=0.25),
                "your filter's edge lies at 2,000 Hz, the new wave can hold up to 4,000 Hz: sinc(k / 2)"),
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
        wave = buzz * torch.sin(math.pi * t * RATE / n) ** 2 + 0.02 * torch.randn(n, generator=g)
        cases.append((0.5 * wave / wave.abs().max(),))
    return cases


def _accept_twin(result: Any, case: tuple) -> str | None:
    (wave,) = case
    if not isinstance(result, Tensor) or result.shape != wave.shape or not result.is_floating_point():
        got = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        return f"give a wave of floats of shape {tuple(wave.shape)}, got {got}"
    if not result.isfinite().all() or result.norm() == 0:
        return "your wave is silence, or has NaN in it"
    result = result.detach().float()
    alike = float(result @ wave / (result.norm() * wave.norm()))
    if abs(alike) > ALONE:
        return (f"the correlation with the wave is {alike:.2f}, it must lie between {-ALONE} and {ALONE}: sample by "
                f"sample they are still related")  # fmt: skip
    n = 2 * n_frames(len(wave))
    off = float((log_mel(result)[:, :n] - log_mel(wave)[:, :n]).abs().mean())
    return None if off < LIKE else f"the log-mels differ by {off:.3f} on average, {LIKE} is allowed: that can be heard"


TWIN = Exercise(
    id="12.5", name="twin", minutes=15, level="break it",
    reference=_quarter_turn,
    cases=_voices,
    accept=_accept_twin,
    mistakes=(
        Mistake(lambda wave: wave, "that is the wave itself: the twin must have nothing in common with it"),
        Mistake(lambda wave: -wave,
                "upside down it has the same log-mel, but a correlation of -1: it is the same wave but for the sign"),
        Mistake(lambda wave: 2 * wave, "a factor changes nothing of a correlation, and the log-mel grows by 0.15"),
        Mistake(lambda wave: wave.flip(0),
                "backwards every frequency keeps its energy, but at another time: frames come in the wrong order"),
        Mistake(lambda wave: wave.roll(160),
                "a shift by one hop shifts the log-mel by one frame: it differs wherever the sound changes"),
        Mistake(lambda wave: torch.fft.irfft(torch.fft.rfft(wave).abs(), len(wave)),
                "you set all phases to 0, so all frequencies meet at time 0 in one click: the energies must stay where "
                "they are in time, too; turn all phases by the same angle"),
    ),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (SIZES, FRAME, BANDS, HALVE, TWIN)
