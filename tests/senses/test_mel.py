"""senses.mel: the same spectrogram as openai-whisper and transformers, from the formulas."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import whisper
from hypothesis import given
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor
from whisper.audio import log_mel_spectrogram, pad_or_trim

from llamamm.assets.spoken_words import load_recordings
from llamamm.errors import InputError
from llamamm.senses.mel import (
    MAX_FRAMES,
    MAX_POSITIONS,
    MAX_SAMPLES,
    N_BINS,
    RATE,
    hz_to_mel,
    log_mel,
    mel_filterbank,
    mel_to_hz,
    n_frames,
    split_at_pauses,
    split_wave,
)
from llamamm.senses.waves import to_wave


def noise(n, seed=0):
    return 0.1 * torch.randn(n, generator=torch.Generator().manual_seed(seed))


def chirp(n):
    """From 100 to 7,900 Hz."""
    t = torch.arange(n, dtype=torch.float64) / RATE
    return (0.5 * torch.sin(2 * math.pi * (100 * t + 7800 * t**2 / (2 * n / RATE)))).float()


def speech_like(n):
    """A voice of 120 Hz, its harmonics under three formants, loud and soft four times a second."""
    t = torch.arange(n, dtype=torch.float64) / RATE
    wave = torch.zeros(n, dtype=torch.float64)
    for k in range(1, 60):
        hz = 120.0 * k
        strength = sum(math.exp(-(((hz - f) / w) ** 2)) for f, w in ((700, 150), (1200, 200), (2600, 300)))
        wave += strength * torch.sin(2 * math.pi * hz * t + k)
    return (0.1 * wave * torch.sin(4 * math.pi * t) ** 2).float()


SOUNDS = {
    "noise": noise(40_000), "silence": torch.zeros(16_000), "chirp": chirp(80_000), "speech": speech_like(48_000),
    "1 sample": torch.tensor([0.7]), "100 samples": noise(100), "0.3 s": speech_like(4800),
    "30 s of noise": noise(MAX_SAMPLES), "30 s of speech": speech_like(MAX_SAMPLES),
}  # fmt: skip


# ---- the bands ----


def test_the_mel_scale_by_hand():
    hz = torch.tensor([0.0, 200.0, 1000.0, 6400.0], dtype=torch.float64)
    mel = torch.tensor([0.0, 3.0, 15.0, 42.0], dtype=torch.float64)  # 200 Hz are 3 mel; a factor of 6.4 is 27
    torch.testing.assert_close(hz_to_mel(hz), mel)
    torch.testing.assert_close(mel_to_hz(mel), hz)


@given(st.floats(0, 8000))
def test_the_mel_scale_has_an_inverse(hz):
    hz = torch.tensor(hz, dtype=torch.float64)
    torch.testing.assert_close(mel_to_hz(hz_to_mel(hz)), hz)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_bands_equal_whispers(n_mels):
    with np.load(Path(whisper.__path__[0]) / "assets" / "mel_filters.npz") as file:
        want = torch.from_numpy(file[f"mel_{n_mels}"])
    assert mel_filterbank(n_mels).dtype == torch.float32
    torch.testing.assert_close(mel_filterbank(n_mels), want, rtol=0, atol=1e-8)


def test_bands_of_another_number():
    bands = mel_filterbank(40)
    assert bands.shape == (40, N_BINS)
    # Area 1, as a sum over bins of 40 Hz: well met by the wide bands above 1 kHz.
    torch.testing.assert_close(bands[20:].sum(dim=1) * 40, torch.ones(20), rtol=0.02, atol=0)
    assert (bands.argmax(dim=1).diff() > 0).all()


@pytest.mark.parametrize("n_mels, said", [(0, "at least 1, got 0"), (400, "n_mels 400 leaves")])
def test_numbers_of_bands_that_cannot_be_are_refused(n_mels, said):
    with pytest.raises(InputError, match=said):
        log_mel(noise(100), n_mels=n_mels)


# ---- the spectrogram ----


def test_constants():
    assert (RATE, MAX_SAMPLES, MAX_FRAMES, MAX_POSITIONS, N_BINS) == (16_000, 480_000, 3000, 1500, 201)


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("name", SOUNDS)
def test_equals_whisper(name, n_mels):
    ours = log_mel(SOUNDS[name], n_mels=n_mels)
    assert ours.shape == (n_mels, MAX_FRAMES) and ours.dtype == torch.float32
    torch.testing.assert_close(ours, log_mel_spectrogram(pad_or_trim(SOUNDS[name]), n_mels), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SOUNDS)
def test_equals_transformers(name):
    extractor = WhisperFeatureExtractor()
    wave = SOUNDS[name]
    ours = log_mel(wave)
    theirs = extractor(wave.numpy(), sampling_rate=RATE, return_tensors="pt").input_features[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    in_numpy = extractor._np_extract_fbank_features(pad_or_trim(wave.numpy())[None], "cpu")[0]
    torch.testing.assert_close(ours, torch.from_numpy(in_numpy), rtol=0, atol=1e-4)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_real_speech_equals_whisper(words_dir, n_mels):
    for name, recording in load_recordings(words_dir).items():
        theirs = log_mel_spectrogram(pad_or_trim(recording.wave), n_mels)
        assert theirs[:, : len(recording.wave) // 160].std() > 0.3, name  # no silence
        torch.testing.assert_close(log_mel(recording.wave, n_mels=n_mels), theirs, rtol=0, atol=1e-5, msg=name)


def test_numbers_by_hand():
    """Silence: log10(1e-10) = -10, (-10 + 4) / 4 = -1.5, and nothing lies further below."""
    assert torch.equal(log_mel(torch.zeros(5)), torch.full((80, MAX_FRAMES), -1.5))
    # A tone on bin 25 (1,000 Hz): Hann's window sums to 200, the half amplitude 0.5 makes |X| = 100, energy 10^4.
    t = torch.arange(RATE, dtype=torch.float64) / RATE
    mel = log_mel(torch.sin(2 * math.pi * 1000 * t))
    band = mel_filterbank()
    energy = 1e4 * band[:, 25] + 2.5e3 * (band[:, 24] + band[:, 26])  # the window leaves half of X on each neighbour
    loudest = energy.argmax()
    assert mel[:, 50].argmax() == loudest
    assert mel[loudest, 50].item() == pytest.approx((energy[loudest].log10().item() + 4) / 4, abs=1e-4)
    assert mel.max() - mel.min() == pytest.approx(2, abs=1e-6)  # 8 powers of ten, divided by 4


def test_a_batch_equals_one_by_one_at_any_loudness():
    waves = torch.stack([noise(9000), 1e-3 * noise(9000, seed=1), torch.zeros(9000), speech_like(9000)])
    batch = log_mel(waves)
    assert batch.shape == (4, 80, MAX_FRAMES)
    for one, wave in zip(batch, waves, strict=True):
        torch.testing.assert_close(one, log_mel(wave), rtol=0, atol=1e-6)


def test_arrays_and_other_floats():
    wave = noise(3000)
    want = log_mel(wave)
    assert torch.equal(log_mel(wave.numpy()), want)
    assert torch.equal(log_mel(wave.flip(0).numpy().astype(np.float64)[::-1]), want)
    assert torch.equal(log_mel(np.frombuffer(wave.numpy().tobytes(), np.float32)), want)  # read-only
    assert torch.equal(log_mel(wave.double()), want)
    assert torch.equal(log_mel(wave.half()), log_mel(wave.half().numpy()))


@pytest.mark.parametrize("wave, said", [
    (torch.zeros(480_001), "480001 samples, 30.0 s; the model sees 480000.*split_wave"),
    (torch.zeros(2, 480_160), "480160"),
    (torch.zeros(0), "empty"),
    (torch.zeros(3, 0), r"\(3, 0\)"),
    (torch.zeros(1, 2, 3), r"\(1, 2, 3\)"),
    (torch.tensor(1.0), r"\(\)"),
    (torch.tensor([0.0, float("nan"), float("inf")]), "2 samples NaN or infinite of 3"),
    (np.array([1e300, 0.0]), "1 sample NaN or infinite of 2"),
    (torch.zeros(5, dtype=torch.int16), "int16.*to_wave"),
    (np.zeros(5, np.int16), "int16.*to_wave"),
    ([0.0, 0.1], "list"),
])  # fmt: skip
def test_what_is_no_wave_is_refused(wave, said):
    with pytest.raises(InputError, match=said):
        log_mel(wave)


# ---- positions and pieces ----


@pytest.mark.parametrize("n, want", [(1, 1), (320, 1), (321, 2), (16_000, 50), (479_681, 1500), (480_000, 1500)])
def test_positions_that_hold_sound(n, want):
    assert n_frames(n) == want


@pytest.mark.parametrize("n", [1, 159, 160, 161, 320, 321, 5000, 160_000, 479_999, 480_000])
def test_positions_are_those_of_transformers_mask(n):
    mask = WhisperFeatureExtractor()(np.zeros(n, np.float32), sampling_rate=RATE, return_attention_mask=True)
    frames = int(np.asarray(mask["attention_mask"]).sum())
    assert n_frames(n) == (frames - 1) // 2 + 1  # what the encoder's second convolution makes of so many frames


@pytest.mark.parametrize("n", [0, -1, 480_001])
def test_positions_of_no_wave_are_refused(n):
    with pytest.raises(InputError, match=f"got {n}"):
        n_frames(n)


def test_pieces_by_hand():
    wave = torch.arange(10 * RATE, dtype=torch.float32)
    pieces = split_wave(wave, seconds=4.0)
    assert [len(p) for p in pieces] == [64_000, 64_000, 32_000]
    assert [p[0].item() for p in pieces] == [0, 64_000, 128_000]
    pieces = split_wave(wave, seconds=4.0, overlap=1.0)
    assert [(p[0].item() / RATE, len(p) / RATE) for p in pieces] == [(0, 4), (3, 4), (6, 4)]  # none from 9 on: heard
    assert pieces[0].data_ptr() == wave.data_ptr()
    assert [len(p) for p in split_wave(np.zeros(31 * RATE))] == [480_000, 16_000]


@given(n=st.integers(1, 400), length=st.integers(1, 90), shared=st.integers(0, 89))
def test_pieces_hold_every_sample_once_beside_the_overlap(n, length, shared):
    shared %= length
    wave = torch.arange(n, dtype=torch.float32)
    pieces = split_wave(wave, seconds=length / RATE, overlap=shared / RATE)
    assert all(len(p) == length for p in pieces[:-1]) and 1 <= len(pieces[-1]) <= length
    assert torch.equal(torch.cat([pieces[0], *(p[shared:] for p in pieces[1:])]), wave)
    assert all(len(p) > shared for p in pieces[1:])  # each brings something new


@pytest.mark.parametrize("options, said", [
    ({"seconds": 0}, "got 0"), ({"seconds": float("nan")}, "nan"), ({"seconds": float("inf")}, "inf"),
    ({"seconds": -1}, "-1"), ({"overlap": 30}, "got 30"), ({"overlap": -1}, "got -1"),
    ({"overlap": float("nan")}, "nan"), ({"overlap": float("inf")}, "inf"),
])  # fmt: skip
def test_pieces_that_cannot_be_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        split_wave(noise(100), **options)


def test_a_batch_is_not_split():
    with pytest.raises(InputError, match=r"\(2, 100\)"):
        split_wave(torch.zeros(2, 100))


@pytest.mark.parametrize("make", [lambda wave: wave.float(), lambda wave: wave.float().numpy(), lambda w: w.half()])
def test_amplitudes_that_nobody_divided_are_refused(make):
    amplitudes = (torch.sin(torch.arange(RATE) / 10) * 20_000).to(torch.int16)
    with pytest.raises(InputError, match="full scale is 1.*32,768"):
        log_mel(make(amplitudes))
    with pytest.raises(InputError, match="int16.*to_wave"):
        log_mel(amplitudes)
    assert log_mel(to_wave(amplitudes, rate=RATE)).shape == (80, 3000)


# ---- pieces that end in a pause ----


def test_a_long_wave_is_cut_where_it_is_quiet(generator):
    loud = 0.1 * torch.randn(70 * 16_000, generator=generator)
    loud[27 * 16_000 : 27 * 16_000 + 8000] = 0  # half a second, from 27 s
    loud[100:9000] = 0  # a pause too early to count
    pieces = split_at_pauses(loud)
    assert torch.equal(torch.cat(pieces), loud)
    assert 27 * 16_000 < len(pieces[0]) < 27.5 * 16_000
    assert all(24 * 16_000 <= len(piece) <= 30 * 16_000 for piece in pieces[:-1])
    assert [len(p) for p in split_at_pauses(loud[:480_000])] == [480_000]
    assert [len(p) for p in split_at_pauses(loud[:480_001])][1] > 0
    with pytest.raises(InputError, match="empty"):
        split_at_pauses(loud[:0])
