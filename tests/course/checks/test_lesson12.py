"""course.checks.lesson12: right answers pass, and each usual mistake is called by its name, alone and in pairs.

Each exercise is written in three ways that have little in common, and each way can have any of the faults in it.
"""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llamamm.course.checks import check
from llamamm.course.checks.core import exercises_of, find_exercise
from llamamm.senses.mel import N_BINS, hz_to_mel, log_mel, mel_filterbank, mel_to_hz
from tests.course.checks.ways import assert_right, assert_told, with_faults

PI = math.pi

# ---- 12.1 in three ways: rfft, the whole fft in double precision, a matrix of cosines and sines ----


def windows(N, has):
    """By sines, where the reference has cosines."""
    n = torch.arange(N, dtype=torch.float64)
    hann = torch.sin(PI * n / N) ** 2
    window = 1 - hann if "peak at 0" in has else torch.sin(PI * n / (2 * N)) ** 2 if "rises" in has else hann
    window = torch.sin(PI * n / (N - 1)) ** 2 if "symmetric" in has else window
    window = 0.08 + 0.92 * hann if "Hamming" in has else hann.sqrt() if "sine" in has else window
    return torch.ones(N) if "no window" in has else window.float()


def energies_by_rfft(frames, has):
    spectrum = torch.fft.rfft(frames * windows(frames.shape[-1], has))
    spectrum = spectrum / frames.shape[-1] if "over N" in has else spectrum
    part = spectrum.real if "cosines" in has else spectrum.imag if "sines" in has else spectrum.abs()
    energy = part.square() / frames.shape[-1] if "energy over N" in has else part.square()
    return energy.sqrt() if "amplitudes" in has else energy


def energies_by_fft(frames, has):
    N = frames.shape[-1]
    spectrum = torch.fft.fft(frames.double() * windows(N, has)).narrow(-1, 0, N // 2 + 1)
    energy = (spectrum * spectrum.conj()).real
    if "cosines" in has or "sines" in has:
        energy = spectrum.real.pow(2) if "cosines" in has else spectrum.imag.pow(2)
    energy = energy / N**2 if "over N" in has else energy
    energy = energy / N if "energy over N" in has else energy
    return (energy**0.5 if "amplitudes" in has else energy).float()


def energies_by_matrix(frames, has):
    N = frames.shape[-1]
    turns = torch.outer(torch.arange(N).double(), torch.arange(N // 2 + 1).double()) * 2 * PI / N
    faded = frames.double() * windows(N, has) / (N if "over N" in has else 1)
    parts = [faded @ turns.cos()] * ("sines" not in has) + [faded @ turns.sin()] * ("cosines" not in has)
    energy = torch.stack(parts).square().sum(0) / (N if "energy over N" in has else 1)
    return (energy.sqrt() if "amplitudes" in has else energy).float()


# ---- 12.2 in three ways: whole tensors, numpy row by row, number by number ----


def triangles_of_tensors(edges, hz, has):
    low, centre, high = (e.unsqueeze(1) for e in (edges[:-2], edges[1:-1], edges[2:]))
    if "side by side" in has:
        low, centre, high = low, (low + centre) / 2, centre
    up, down = (hz - low) / (centre - low), (high - hz) / (high - centre)
    weights = torch.where((up < down) ^ ("larger" in has), up, down)
    weights = up * (hz <= centre) if "rising" in has else down * (hz >= centre) if "falling" in has else weights
    if "box" in has or "flat box" in has:
        weights = ((up > 0) & (down > 0)).float()
    weights = weights if "no floor" in has else weights.relu()
    if "sum" in has:
        total = weights.sum(1, keepdim=True)
        return weights / total.where(total != 0, torch.ones(()))
    if "height 1" in has:
        return weights
    return weights * (1 if "half" in has or "flat box" in has else 2) / (high - low)


def triangles_by_rows(edges, hz, has):
    rows = []
    x = hz.double().numpy()
    for i in range(len(edges) - 2):
        low, centre, high = edges[i : i + 3].double().tolist()
        if "side by side" in has:
            centre, high = (low + centre) / 2, centre
        up, down = (x - low) / (centre - low), (high - x) / (high - centre)
        row = np.maximum(up, down) if "larger" in has else np.minimum(up, down)
        if "rising" in has:
            row = np.where(x <= centre, up, 0)
        elif "falling" in has:
            row = np.where(x >= centre, down, 0)
        elif "box" in has or "flat box" in has:
            row = np.sign(np.clip(row, 0, None))
        row = row if "no floor" in has else np.clip(row, 0, None)
        area = (high - low) / 2
        area = row.sum() or 1 if "sum" in has else 1 if "height 1" in has else area
        rows.append(row / (2 * area if "half" in has or "flat box" in has else area))
    return torch.tensor(np.stack(rows)).float()


def triangles_by_numbers(edges, hz, has):
    edges, hz = edges.double().tolist(), hz.double().tolist()

    def weight(m, f):
        low, centre, high = edges[m], edges[m + 1], edges[m + 2]
        if "side by side" in has:
            centre, high = (low + centre) / 2, centre
        rising, falling = (f - low) / (centre - low), 1 - (f - centre) / (high - centre)
        w = rising if f < centre else falling
        if "larger" in has:
            w = falling if f < centre else rising
        if "rising" in has and f > centre or "falling" in has and f < centre:
            w = 0.0
        if "box" in has or "flat box" in has:
            w = 1.0 if low < f < high else 0.0
        w = w if "no floor" in has else max(w, 0.0)
        return w if {"height 1", "sum"} & {*has} else w / (high - low) * (1 if {"half", "flat box"} & {*has} else 2)

    rows = [[weight(m, f) for f in hz] for m in range(len(edges) - 2)]
    if "sum" in has:
        rows = [[w / (sum(row) or 1) for w in row] for row in rows]
    return torch.tensor(rows, dtype=torch.float32)


WAYS = {
    "12.1": (energies_by_rfft, energies_by_fft, energies_by_matrix),
    "12.2": (triangles_of_tensors, triangles_by_rows, triangles_by_numbers),
}
# what a message must hold, for each fault
TOLD = {
    "12.1": {"no window": "There is no window", "symmetric": "symmetric window", "peak at 0": "MINUS half a cosine",
             "rises": "only rises", "Hamming": "Hamming's window", "sine": "window is a sine",
             "amplitudes": "Those are amplitudes", "cosines": "cosines alone", "sines": "the sines alone",
             "over N": "divided the transform", "energy over N": "divided the energies"},
    "12.2": {"height 1": "height 1, not area 1", "half": "heights are 1 / width", "sum": "bins sum to 1",
             "no floor": "go on below 0", "larger": "larger of the two", "rising": "Only the rising",
             "falling": "Only the falling", "box": "Those are boxes", "flat box": "Those are boxes",
             "side by side": "side by side"},
}  # fmt: skip
# faults that cannot stand in one answer, or of which one hides the other
APART = {
    "12.1": [
        {"no window", "symmetric", "peak at 0", "rises", "Hamming", "sine"},  # each says which window is taken
        {"cosines", "sines"},  # each leaves the other out
    ],
    "12.2": [
        {"height 1", "half", "sum"},  # each says how high a triangle is
        {"larger", "rising", "falling", "box", "flat box"},  # each says what is made of the two slopes
        {"no floor", "larger"}, {"no floor", "box"}, {"no floor", "flat box"},  # these have no slope below 0
        {"half", "box"}, *({"flat box", height} for height in ("height 1", "half", "sum")),  # a box has its own height
    ],
}


@pytest.mark.parametrize("exercise", WAYS)
def test_the_right_answer_passes_however_it_is_written(exercise):
    assert_right(exercise, WAYS[exercise])


@pytest.mark.parametrize("number", range(1, 7))
def test_the_reference_passes(number):
    assert check(f"12.{number}", find_exercise(f"12.{number}").reference)


@pytest.mark.parametrize("exercise", WAYS)
def test_each_fault_gets_its_sentence_alone_and_beside_another(exercise):
    assert_told(exercise, WAYS[exercise], TOLD[exercise], APART[exercise])


def test_every_fault_of_these_exercises_is_planted_here():
    for exercise in exercises_of("12")[:2]:
        assert len(exercise.mistakes) == len(TOLD[exercise.id])


def test_a_message_names_the_property_the_smallest_input_and_both_numbers():
    message = check("12.2", with_faults(WAYS["12.2"][1], ("half",))).message
    assert "its area: for ([0, 2, 6, 9], [1, 1.5, 3, 5, 8]) [" in message


OTHERWISE = [
    ("12.1", lambda x: torch.fft.fft(x * windows(x.shape[-1], ())).abs() ** 2, "return all N bins"),
    ("12.1", lambda x: torch.fft.fft(x * windows(x.shape[-1], ())).abs(), "return all N bins"),
    ("12.1", lambda x: torch.fft.fft(x * windows(x.shape[-1], ())).abs(), "Those are amplitudes"),
    ("12.1", lambda x: torch.fft.rfft(x * windows(x.shape[-1], ())), "dtype should be"),
    ("12.1", lambda x: energies_by_rfft(x, ()).tolist(), "should be a tensor"),
    ("12.1", lambda x: 3 * energies_by_rfft(x, ()), r"all numbers: \[0\] should be .*, got .*, for \(\["),
    ("12.1", lambda x: torch.fft.rfft(x * torch.hann_window(x.shape[-1])).abs() ** 2, "PyTorch's own hann_window"),
    ("12.2", lambda e, hz: triangles_of_tensors(e, hz, ()).T, "Rows and columns are swapped"),
    ("12.2", lambda e, hz: triangles_of_tensors(e, hz, ("half",)).T, "heights are 1 / width"),
    ("12.2", lambda e, hz: triangles_of_tensors(e, hz, ())[:-1], "shape should be"),
    ("12.2", lambda *_: [], "should be a tensor"),
    ("12.1", lambda x: energies_by_rfft(x.mul_(1.5), ()) / 2.25, "your function changes `frames`"),
    ("12.2", lambda e, hz: triangles_of_tensors(e.mul_(2), 2 * hz, ()) * 2, "your function changes `edges`"),
    ("12.2", lambda e, hz: triangles_of_tensors(e, hz, ()) ** 2, "all numbers: for .* should be"),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), OTHERWISE)
def test_what_no_fault_explains_is_told_with_its_numbers(exercise, answer, message):
    result = check(exercise, answer)
    assert not result
    assert re.search(message, result.message), result.message


@pytest.mark.parametrize("answer", [lambda x: energies_by_rfft(x, ()) * 3,
                                    lambda x: energies_by_rfft(x, ()).roll(1, -1)])  # fmt: skip
def test_nonsense_is_told_no_reason(answer):
    message = check("12.1", answer).message
    assert not any(text in message for text in TOLD["12.1"].values())


def test_the_bands_are_the_packages():
    edges = mel_to_hz(torch.linspace(0, 1, 82).double() * hz_to_mel(torch.tensor(8000.0).double()))
    ours = find_exercise("12.2").reference(edges, torch.linspace(0, 8000, N_BINS).double())
    torch.testing.assert_close(ours.float(), mel_filterbank(80))


# ---- 12.6 in three ways: rfft, the analytic wave, Hilbert's kernel in double precision ----


def twin_by_rfft(wave):
    return torch.fft.irfft(torch.fft.rfft(wave) * torch.tensor(1j), len(wave))


def twin_by_analytic_wave(wave):
    spectrum, n = torch.fft.fft(wave), len(wave)
    spectrum[1 : (n + 1) // 2] *= 2  # no negative frequencies
    spectrum[(n + 1) // 2 + (n % 2 == 0) :] = 0
    return torch.fft.ifft(spectrum).imag


def twin_by_signs(wave):
    turned = torch.fft.fft(wave.double()) * -1j * torch.sign(torch.fft.fftfreq(len(wave))).double()
    return torch.fft.ifft(turned).real.float()


TWINS = (twin_by_rfft, twin_by_analytic_wave, twin_by_signs)
CHANGES = {
    "itself": (torch.clone, lambda w: w + 0, lambda w: torch.fft.irfft(torch.fft.rfft(w), len(w))),
    "negative": (torch.neg, lambda w: w * -1, lambda w: torch.fft.irfft(-torch.fft.rfft(w), len(w))),
    "factor": (lambda w: 2 * w, lambda w: w / 3, lambda w: torch.fft.irfft(torch.fft.rfft(w) * 4, len(w))),
    "backwards": (lambda w: w.flip(0), lambda w: w[list(range(len(w)))[::-1]],
                  lambda w: torch.fft.irfft(torch.fft.rfft(w).conj(), len(w))),
    "shift": (lambda w: w.roll(400), lambda w: torch.cat([w[-400:], w[:-400]]), lambda w: F.pad(w, (400, -400))),
    "click": (lambda w: torch.fft.irfft(torch.fft.rfft(w).abs(), len(w)),
              lambda w: torch.fft.ifft(torch.fft.fft(w).abs()).real,
              lambda w: torch.fft.irfft(torch.polar(torch.fft.rfft(w).abs(), torch.zeros(len(w) // 2 + 1)), len(w))),
    "angle": (lambda w: (w + twin_by_rfft(w)) / 2**0.5, lambda w: torch.fft.irfft(1j**0.5 * torch.fft.rfft(w), len(w)),
              lambda w: w * math.cos(PI / 4) - twin_by_signs(w) * math.sin(PI / 4)),
}  # fmt: skip
TOLD_TWIN = {
    "itself": "that is the wave itself", "negative": "same wave but for the sign", "factor": "undo the factor",
    "backwards": "in the wrong order", "shift": "400 samples too late", "click": "in one click",
    "angle": "turned by 45°",
}  # fmt: skip
# of these the first hides the second: the wave itself is no pair with anything, a click has no sign or angle, and with
# a wave that is shifted or backwards the correlation is small for any sign
TWIN_APART = [
    *({"itself", fault} for fault in CHANGES if fault != "itself"), {"click", "shift"}, {"click", "backwards"},
    {"shift", "backwards"}, *({a, b} for a in ("click", "backwards", "shift") for b in ("negative", "angle")),
    {"negative", "angle"},
]  # fmt: skip


@pytest.mark.parametrize("answer", [*TWINS, lambda w: -twin_by_rfft(w)])
def test_twins_pass(answer):
    result = check("12.6", answer)
    assert result, result.message


def changed(way, faults):
    def answer(wave):
        for fault in faults:
            wave = CHANGES[fault][way](wave)
        return wave

    return answer


@pytest.mark.parametrize("way", range(3))
def test_what_is_no_twin_and_why(way):
    assert_told("12.6", [way], TOLD_TWIN, TWIN_APART, changed)


@pytest.mark.parametrize("way", range(3))
@pytest.mark.parametrize("fault", ["factor", "backwards", "shift", "click"])
def test_a_twin_with_one_more_change(fault, way):
    """The correlation is small, as it should be; still it sounds otherwise."""
    found = check("12.6", lambda wave: CHANGES[fault][way](TWINS[way](wave))).message
    assert TOLD_TWIN[fault] in found and "how it sounds" in found


def noise(wave):
    return torch.randn(len(wave)) * wave.std()


def any_phases(wave):
    spectrum = torch.fft.rfft(wave)
    return torch.fft.irfft(spectrum * torch.exp(2j * PI * torch.rand(len(spectrum))), len(wave))


@pytest.mark.parametrize(
    ("answer", "message"),
    [(noise, "that can be heard$"), (any_phases, "turn all phases by the same angle"),
     (lambda w: w.roll(1), "shifted by 1 sample, still"), (torch.zeros_like, "silence"),
     (lambda w: torch.fft.ifft(-1j * torch.fft.fft(w)).real, "They need"), (lambda w: w[:-1], r"of shape \(9001,\)"),
     (lambda w: w * math.inf, "NaN or infinite"), (lambda w: twin_by_rfft(w).numpy(), "got ndarray"),
     (lambda w: torch.fft.irfft(-1j * torch.fft.rfft(w)), r"of shape \(9001,\), got torch.float32 \(9000,\)"),
     (lambda w: twin_by_rfft(w.mul_(2).div(2)), "your function changes `wave`"),
     (lambda w: w + w.std() * torch.randn(len(w)), "sample by sample they are still related")],
)  # fmt: skip
def test_other_waves_are_no_twins(answer, message):
    result = check("12.6", answer)
    assert not result
    assert re.search(message, result.message), result.message


def test_a_twin_is_one_for_a_real_filterbank_too():
    (wave,) = find_exercise("12.6").properties[0].inputs()[0]
    assert (log_mel(twin_by_rfft(wave)) - log_mel(wave)).abs().mean() < 0.01

