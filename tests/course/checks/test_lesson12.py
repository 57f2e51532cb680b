"""course.checks.lesson12: right answers pass, and each usual mistake is called by its name."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llamamm.course.checks import check
from llamamm.course.checks.core import find_exercise
from llamamm.senses.mel import N_BINS, hz_to_mel, log_mel, mel_filterbank, mel_to_hz
from llamamm.senses.waves import resample

# ---- right answers, written another way than the reference ----


def sizes(n_samples, rate):
    samples = (n_samples * 16_000 + rate - 1) // rate
    return samples, (samples + 159) // 160, (samples + 319) // 320


def hann(N):
    return torch.sin(math.pi * torch.arange(N) / N) ** 2


def energies(frames):
    N = frames.shape[-1]
    spectrum = torch.fft.fft(frames * hann(N))[..., : N // 2 + 1]
    return spectrum.real**2 + spectrum.imag**2


def triangles(edges, hz):
    rows = []
    for low, centre, high in edges.unfold(0, 3, 1).double().tolist():
        rows.append(np.interp(hz.double(), [low, centre, high], [0, 2 / (high - low), 0]))
    return torch.tensor(np.stack(rows)).float()


def kernel(half=40, edge=0.5, beta=8.0):
    k = torch.arange(-half, half + 1)
    weights = torch.sinc(edge * k) * torch.kaiser_window(2 * half + 1, periodic=False, beta=beta)
    return weights / weights.sum()


def halve(wave, weights=None):
    weights = kernel() if weights is None else weights
    return F.conv1d(wave[None, None], weights[None, None], padding=len(weights) // 2)[0, 0, ::2]


def twin(wave):
    spectrum = torch.fft.fft(wave)
    n = len(wave)
    spectrum[1 : (n + 1) // 2] *= 2  # the analytic wave: no negative frequencies
    spectrum[(n + 1) // 2 + (n % 2 == 0) :] = 0
    return torch.fft.ifft(spectrum).imag


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [("12.1", sizes), ("12.2", energies), ("12.3", triangles), ("12.4", halve), ("12.5", twin),
     ("12.4", lambda wave: resample(wave, rate=2, new_rate=1)), ("12.5", lambda wave: -twin(wave))],
)  # fmt: skip
def test_the_right_answer_passes(exercise, answer):
    result = check(exercise, answer)
    assert result, result.message


@pytest.mark.parametrize("number", range(1, 6))
def test_the_reference_passes(number):
    assert check(f"12.{number}", find_exercise(f"12.{number}").reference)


def test_the_bands_are_the_packages():
    edges = mel_to_hz(torch.linspace(0, 1, 82).double() * hz_to_mel(torch.tensor(8000.0).double()))
    ours = find_exercise("12.3").reference(edges, torch.linspace(0, 8000, N_BINS).double())
    torch.testing.assert_close(ours.float(), mel_filterbank(80))


# ---- wrong answers ----


@pytest.mark.parametrize(
    ("answer", "message"),
    [(lambda n, _: (n, math.ceil(n / 160), math.ceil(n / 320)), "the recording's own rate"),
     (lambda n, r: (n * 16_000 // r, n * 16_000 // r // 160, n * 16_000 // r // 320), "you round down"),
     (lambda n, r: (sizes(n, r)[0], sizes(n, r)[0] // 160, math.ceil(sizes(n, r)[0] // 160 / 2)), "frames down"),
     (lambda n, r: (*sizes(n, r)[:2], sizes(n, r)[1] // 2), "places down"),
     (lambda n, r: (n * 16_000 // r, *sizes(n * 16_000 // r, 16_000)[1:]), "samples down"),
     (lambda n, r: (m := sizes(n, r)[0], 1 + m // 160, (2 + m // 160) // 2), "STFT"),
     (lambda n, r: (*sizes(n, r)[:2], sizes(n, r)[1]), "as many places as frames"),
     (lambda n, r: sizes(n, r)[:2], "3 parts"), (lambda n, r: sizes(n, r)[2], "result should be"),
     (lambda n, r: tuple(round(x) for x in (n * 16_000 / r, n * 100 / r, n * 50 / r)), "not full counts")],
)  # fmt: skip
def test_sizes(answer, message):
    result = check("12.1", answer)
    assert not result
    assert message in result.message


def power(frames, window=None):
    return torch.fft.rfft(frames if window is None else frames * window).abs().square()


def symmetric(N):
    return torch.sin(math.pi * torch.arange(N) / (N - 1)) ** 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [(power, "there is no window"), (lambda x: power(x, symmetric(x.shape[-1])), "symmetric window"),
     (lambda x: power(x, 1 - hann(x.shape[-1])), "MINUS half a cosine"),
     (lambda x: power(x, 0.5 - 0.5 * torch.cos(math.pi * torch.arange(x.shape[-1]) / x.shape[-1])), "only rises"),
     (lambda x: power(x, 0.08 + 0.92 * hann(x.shape[-1])), "Hamming"),
     (lambda x: torch.fft.rfft(x * hann(x.shape[-1])).abs(), "those are amplitudes"),
     (lambda x: torch.fft.rfft(x * hann(x.shape[-1])).real ** 2, "the cosines alone"),
     (lambda x: energies(x) / x.shape[-1], "divided by N"),
     (lambda x: torch.fft.fft(x * hann(x.shape[-1])).abs() ** 2, "all N bins"),
     (lambda x: torch.fft.rfft(x * hann(x.shape[-1])), "dtype should be"),
     (lambda x: energies(x).tolist(), "should be a tensor")],
)  # fmt: skip
def test_energies(answer, message):
    result = check("12.2", answer)
    assert not result
    assert message in result.message


def lines(edges, hz):
    low, centre, high = (e.unsqueeze(1) for e in (edges[:-2], edges[1:-1], edges[2:]))
    return (hz - low) / (centre - low), (high - hz) / (high - centre), high - low


def unfloored(edges, hz):
    up, down, width = lines(edges, hz)
    return torch.where(up < down, up, down) * 2 / width


def peaks(edges, hz):
    return triangles(edges, hz) * lines(edges, hz)[2] / 2


def larger(edges, hz):
    up, down, width = lines(edges, hz)
    return torch.maximum(up, down).relu() * 2 / width


def rising(edges, hz):
    up, _, width = lines(edges, hz)
    return torch.where((up >= 0) & (up <= 1), up, 0.0) * 2 / width


def boxes(edges, hz):
    up, down, width = lines(edges, hz)
    return ((up > 0) & (down > 0)).float() * 2 / width


def side_by_side(edges, hz):
    pairs = torch.stack([edges[:-2], (edges[:-2] + edges[1:-1]) / 2, edges[1:-1]], dim=1)
    return torch.cat([triangles(row, hz) for row in pairs])


@pytest.mark.parametrize(
    ("answer", "message"),
    [(peaks, "height 1, not area 1"), (lambda e, hz: triangles(e, hz) / 2, "areas are a half"),
     (lambda e, hz: F.normalize(peaks(e, hz), p=1, dim=1), "sum to 1"), (unfloored, "go on below 0"),
     (larger, "the larger of the two"), (rising, "only the rising side"), (boxes, "those are boxes"),
     (side_by_side, "side by side"), (lambda e, hz: triangles(e, hz).T, "rows and columns"),
     (lambda e, hz: triangles(e, hz)[:-1], "shape should be"), (lambda e, hz: None, "returns nothing")],  # noqa: ARG005
)  # fmt: skip
def test_triangles(answer, message):
    result = check("12.3", answer)
    assert not result
    assert message in result.message


def late(wave):
    return F.conv1d(F.pad(wave, (64, 0))[None, None], hinted()[None, None], stride=2)[0, 0]


def hinted(edge=0.5):
    k = torch.arange(-32, 33)
    weights = torch.sinc(edge * k) * torch.cos(math.pi * k / 66) ** 2
    return weights / weights.sum()


def mirrored(wave):
    if len(wave) < 40:
        return halve(wave)
    return F.conv1d(F.pad(wave[None, None], (40, 40), mode="reflect"), kernel()[None, None], stride=2)[0, 0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [(lambda w: w[::2], "nothing was filtered"), (lambda w: halve(w, kernel(edge=1.0)), "nothing was filtered"),
     (lambda w: F.avg_pool1d(F.pad(w, (0, len(w) % 2))[None], 2)[0], "mean of two"),
     (lambda w: halve(w, 2 * hinted()), "twice as loud"), (late, "32 samples late"),
     (lambda w: F.conv1d(w[None, None, ::2], hinted()[None, None], padding=32)[0, 0], "filtered then"),
     (lambda w: halve(w, hinted(0.25)), "edge lies at 2,000"),
     (lambda w: halve(w, kernel(edge=0.6)), "a longer kernel"),
     (lambda w: halve(w, kernel(half=6)), "kernel long enough"),
     (lambda w: halve(w, kernel(edge=0.35)), "times as strong"),
     (lambda w: halve(F.pad(w, (1, 0)))[: (len(w) + 1) // 2], "1.0 old samples too late"), (mirrored, "is silence"),
     (lambda w: halve(w)[: len(w) // 2], "floats of shape (1,)"), (lambda w: halve(w).tolist(), "got list"),
     (lambda w: halve(w) * math.nan, "NaN")],
)  # fmt: skip
def test_half_the_rate(answer, message):
    result = check("12.4", answer)
    assert not result
    assert message in result.message


def noise(wave):
    return torch.randn(len(wave)) * wave.std()


@pytest.mark.parametrize(
    ("answer", "message"),
    [(torch.clone, "the wave itself"), (torch.neg, "but a correlation of -1"), (lambda w: w + w, "grows by 0.15"),
     (lambda w: torch.flip(w, (0,)), "in the wrong order"), (lambda w: torch.cat([w[-160:], w[:-160]]), "one frame"),
     (lambda w: torch.fft.irfft(torch.fft.rfft(w).abs(), len(w)), "in one click"), (noise, "that can be heard"),
     (lambda w: 0.5 * w, "still related"), (torch.zeros_like, "silence"), (lambda w: w[:-1], "of shape (9000,)"),
     (lambda w: twin(w).numpy(), "got ndarray")],
)  # fmt: skip
def test_twins(answer, message):
    result = check("12.5", answer)
    assert not result
    assert message in result.message


def test_a_twin_is_one_for_a_real_filterbank_too():
    (wave,) = find_exercise("12.5").cases(torch.Generator().manual_seed(0))[0]
    assert (log_mel(twin(wave)) - log_mel(wave)).abs().mean() < 0.01
