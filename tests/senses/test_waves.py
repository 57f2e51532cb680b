"""senses.waves: any sound becomes one kind of wave; resampling keeps tones, folds nothing back; bad files say so."""

import io
import math
import struct
import subprocess
import sys
import wave as wave_files

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamamm.errors import InputError, MissingDependencyError
from llamamm.senses import sound_file
from llamamm.senses import waves as waves_module
from llamamm.senses.waves import load_wave, resample, save_wave, to_wave, wav_bytes


def tone(hz, rate, seconds=1.0, *, phase=0.3):
    """float64, so that it is also what a resampled tone is compared with."""
    t = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    return torch.sin(2 * math.pi * hz * t + phase)


def riff(*chunks):
    """A WAV file of (name, bytes) chunks."""
    body = b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


def fmt(code=1, channels=1, rate=16_000, bits=16, *, frame=None, rest=b""):
    frame = channels * bits // 8 if frame is None else frame
    return struct.pack("<HHIIHH", code, channels, rate, rate * frame % 2**32, frame, bits) + rest


def wav(samples, *, rate=16_000, kind="PCM_16", container="WAV"):
    """A sound file by libsndfile. samples (n,) or (n, channels)."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.asarray(samples), rate, subtype=kind, format=container)
    return buffer.getvalue()


# ---- resampling ----

RATES = [(44_100, 16_000), (48_000, 16_000), (8000, 16_000), (11_025, 16_000), (22_050, 16_000), (16_000, 44_100),
         (44_101, 16_000)]  # fmt: skip


@pytest.mark.parametrize("old, new", RATES)
@pytest.mark.parametrize("part", [0.01, 0.5, 0.9])
def test_a_tone_keeps_frequency_amplitude_and_phase(old, new, part):
    hz, seconds = part * min(old, new) / 2, 0.4
    got = resample(tone(hz, old, seconds).float(), rate=old, new_rate=new)
    middle = slice(new // 20, -new // 20)  # the ends border on silence
    torch.testing.assert_close(got.double()[middle], tone(hz, new, seconds)[middle], rtol=0, atol=5e-4)


@pytest.mark.parametrize("old, new", [(o, n) for o, n in RATES if o > n])
@pytest.mark.parametrize("part", [1.0, 1.05, 1.2, 1.35])
def test_nothing_folds_back(old, new, part):
    hz = part * new / 2
    got = resample(tone(hz, old, 0.4).float(), rate=old, new_rate=new)[new // 20 : -new // 20]
    assert got.abs().max() < 10 ** (-80 / 20)


@given(n=st.integers(1, 500), old=st.sampled_from([8000, 11_025, 16_000, 24_000, 44_100]),
       new=st.sampled_from([8000, 16_000, 22_050]))
def test_lengths(n, old, new):
    got = resample(torch.ones(n), rate=old, new_rate=new)
    assert len(got) == math.ceil(n * new / old) and got.dtype == torch.float32
    assert got.isfinite().all()


@pytest.mark.parametrize("old, new", RATES)
def test_a_constant_stays_and_the_first_sample_stays_first(old, new):
    n = 4000
    got = resample(torch.full((n,), 0.5), rate=old, new_rate=new)
    torch.testing.assert_close(got[len(got) // 2], torch.tensor(0.5), rtol=0, atol=1e-5)
    click = torch.zeros(n)
    click[1000] = 1.0
    assert abs(resample(click, rate=old, new_rate=new).argmax().item() / new - 1000 / old) <= 0.5 / new


def test_up_and_down_again_is_the_same():
    wave = tone(900, 8000, 0.3).float() * torch.hann_window(2400)
    back = resample(resample(wave, rate=8000, new_rate=44_100), rate=44_100, new_rate=8000)
    torch.testing.assert_close(back, wave, rtol=0, atol=1e-4)


def test_the_same_rate_changes_nothing():
    wave = torch.randn(50)
    assert torch.equal(resample(wave, rate=16_000, new_rate=16_000), wave)


# ---- numbers ----


@pytest.mark.parametrize("dtype, samples, want", [
    (np.uint8, [0, 64, 128, 192], [-1, -0.5, 0, 0.5]), (np.int8, [-128, 0, 64], [-1, 0, 0.5]),
    (np.int16, [-32_768, 0, 16_384], [-1, 0, 0.5]), (np.int32, [-(2**31), 0, 2**30], [-1, 0, 0.5]),
    (np.float32, [-1, 0.25, 1.5], [-1, 0.25, 1]), (np.float64, [0.125, -2], [0.125, -1]),
])  # fmt: skip
def test_samples_are_scaled_by_their_type(dtype, samples, want):
    array = np.array(samples, dtype)
    for given_ in (array, torch.from_numpy(array)):
        wave = to_wave(given_, rate=16_000)
        assert wave.dtype == torch.float32 and wave.tolist() == want


def test_channels_are_averaged():
    left, right = np.array([8192, 0, -16_384], np.int16), np.array([8192, 16_384, 16_384], np.int16)
    assert to_wave(np.stack([left, right]), rate=16_000).tolist() == [0.25, 0.25, 0]
    assert to_wave(torch.ones(1, 3) / 2, rate=16_000).tolist() == [0.5] * 3
    assert to_wave(torch.ones(3, dtype=torch.bfloat16, requires_grad=True) / 2, rate=16_000).tolist() == [0.5] * 3


def test_another_rate_is_resampled_and_stays_in_range():
    wave = to_wave(torch.sign(tone(300, 48_000)), rate=48_000)  # a square wave overshoots
    assert len(wave) == 16_000 and wave.abs().max() == 1
    assert len(to_wave(torch.zeros(100), rate=16_000.0, new_rate=np.int64(8000))) == 50


@pytest.mark.parametrize("samples, said", [
    (np.zeros(0), r"\(0,\)"), (np.zeros((2, 0)), r"\(2, 0\)"), (np.zeros((0, 5)), r"\(0, 5\)"),
    (np.zeros((48_000, 2)), r"48000 channels.*\.T"), (np.zeros((9, 100)), "9 channels"), (np.zeros((3, 2)), "3 chan"),
    (np.zeros((1, 2, 3)), r"\(1, 2, 3\)"), (np.float32(1), "float32"), (torch.tensor(1.0), r"\(\)"),
    (np.array([0.0, np.nan]), "1 sample NaN or infinite of 2"), (torch.tensor([np.inf, -np.inf, 0]), "2 samples NaN"),
    (np.array([0.0, 1e300]), "1 sample NaN or infinite of 2"),
    (np.zeros(4, np.int64), "int64"), (np.zeros(4, np.uint16), "uint16"), (np.zeros(4, bool), "bool"),
    (np.zeros(4, complex), "complex"), (np.array([0.0, 20_000.0]), "20000.*32,768"), ([0.0], "list"),
    ("speech.wav", "load_wave"),
])  # fmt: skip
def test_what_is_no_sound_is_refused_with_its_numbers(samples, said):
    with pytest.raises(InputError, match=said):
        to_wave(samples, rate=16_000)


@pytest.mark.parametrize("rate", [0, -16_000, 999, 384_001, 16_000.5, float("nan"), float("inf"), "16000", None, True])
def test_rates_that_make_no_sense_are_refused(rate):
    for options in ({"rate": rate}, {"rate": 16_000, "new_rate": rate}):
        with pytest.raises(InputError, match="a rate is"):
            to_wave(torch.zeros(9), **options)
    with pytest.raises(InputError, match="a rate is"):
        load_wave(wav(np.zeros(9)), rate=rate)
    with pytest.raises(InputError, match="a rate is"):
        save_wave("never.wav", torch.zeros(9), rate=rate)


def test_hours_are_capped_with_a_word():
    """Two hours, as a view of one sample: nothing that long is ever held."""
    two_hours = torch.full((1,), 0.5).expand(2 * 3600 * 1000)
    with pytest.warns(UserWarning, match="longer than 3600 s") as caught:
        wave = to_wave(two_hours, rate=1000, new_rate=1000)
    assert len(wave) == 3600 * 1000 and wave[-1] == 0.5
    assert caught[0].filename == __file__
    assert len(to_wave(two_hours[: 3600 * 1000], rate=1000, new_rate=1000)) == 3600 * 1000  # without a word


@pytest.mark.parametrize("container", ["WAV", "FLAC"])
def test_long_files_are_capped_with_a_word(container, monkeypatch):
    monkeypatch.setattr(waves_module, "MAX_SECONDS", 2.0)
    monkeypatch.setattr(sound_file, "BLOCK", 3000)
    samples = tone(50, 8000, 3.0).numpy()
    with pytest.warns(UserWarning, match="longer than 2 s") as caught:
        wave = load_wave(wav(samples, rate=8000, container=container), rate=8000)
    assert caught[0].filename == __file__
    np.testing.assert_allclose(wave, samples[:16_000], atol=1e-4)
    assert len(load_wave(wav(samples[:16_000], rate=8000, container=container), rate=8000)) == 16_000


@pytest.mark.parametrize("container", ["WAV", "FLAC"])
def test_what_lies_behind_the_cap_is_not_read(container, monkeypatch, tmp_path):
    monkeypatch.setattr(waves_module, "MAX_SECONDS", 0.5)
    monkeypatch.setattr(sound_file, "BLOCK", 3000)
    data = wav(np.random.default_rng(0).uniform(-1, 1, 400_000), rate=8000, container=container)
    n_read = []

    class Counting(io.FileIO):
        def read(self, size=-1):
            got = super().read(size)
            n_read.append(len(got))
            return got

        def readinto(self, buffer):
            n_read.append(super().readinto(buffer))
            return n_read[-1]

    (tmp_path / "a").write_bytes(data)
    monkeypatch.setattr(waves_module, "_opened", Counting)
    with pytest.warns(UserWarning, match="longer than 0.5 s"):
        load_wave(tmp_path / "a")
    assert 4000 < sum(n_read) < len(data) / 4


# ---- files ----


@pytest.mark.parametrize("kind, tolerance", [
    ("PCM_U8", 2**-7), ("PCM_16", 2**-15), ("PCM_24", 2**-23), ("PCM_32", 1e-7), ("FLOAT", 1e-7), ("DOUBLE", 1e-7),
    ("ULAW", 0.03), ("ALAW", 0.03),
])  # fmt: skip
@pytest.mark.parametrize("container", ["WAV", "WAVEX"])
def test_wav_of_every_kind(kind, tolerance, container, tmp_path):
    samples = 0.9 * tone(440, 16_000, 0.1).numpy()
    data = wav(samples, kind=kind, container=container)
    wave = load_wave(data)
    assert wave.dtype == torch.float32
    np.testing.assert_allclose(wave, samples, atol=tolerance)
    (tmp_path / "a.wav").write_bytes(data)
    for path in (tmp_path / "a.wav", str(tmp_path / "a.wav")):
        assert torch.equal(load_wave(path), wave)


@pytest.mark.parametrize("container, kind, tolerance", [
    ("FLAC", "PCM_16", 1e-4), ("OGG", "VORBIS", 0.05), ("MP3", "MPEG_LAYER_III", 0.05), ("AIFF", "PCM_16", 1e-4),
])  # fmt: skip
def test_other_formats(container, kind, tolerance):
    samples = 0.5 * tone(440, 16_000, 0.5).numpy()
    wave = load_wave(wav(samples, container=container, kind=kind))
    assert abs(len(wave) - len(samples)) < 2000  # MP3 has frames of a fixed size
    n = min(len(wave), len(samples))
    inner = slice(2000, n - 2000)
    np.testing.assert_allclose(wave.numpy()[inner], samples[inner], atol=tolerance)


@pytest.mark.parametrize("kind", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT"])
def test_stereo_of_another_rate(kind):
    left, right = tone(300, 44_100, 0.3).numpy(), tone(300, 44_100, 0.3, phase=1.0).numpy()
    wave = load_wave(wav(0.9 * np.stack([left, right], axis=1), rate=44_100, kind=kind))
    assert len(wave) == 4800
    want = 0.45 * (tone(300, 16_000, 0.3) + tone(300, 16_000, 0.3, phase=1.0))
    np.testing.assert_allclose(wave[800:-800], want[800:-800], atol=0.01 if kind == "PCM_U8" else 5e-4)


@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("container, kind", [("WAV", "PCM_24"), ("WAV", "PCM_16"), ("FLAC", "PCM_16")])
def test_reading_block_by_block_changes_nothing(block, container, kind, monkeypatch):
    data = wav(np.stack([tone(440, 16_000, 0.02), tone(700, 16_000, 0.02)], axis=1), container=container, kind=kind)
    whole = load_wave(data)
    monkeypatch.setattr(sound_file, "BLOCK", block)
    assert torch.equal(load_wave(data), whole)


def test_chunks_that_are_not_sound_are_skipped():
    samples = np.array([1000, -2000, 3000], "<i2")
    data = riff((b"LIST", b"odd"), (b"fmt ", fmt()), (b"junk", b"12345"), (b"data", samples.tobytes()), (b"id3 ", b"x"))
    assert (load_wave(data) * 32_768).tolist() == [1000, -2000, 3000]


def test_pythons_own_wav_files_are_read():
    buffer = io.BytesIO()
    with wave_files.open(buffer, "wb") as file:
        file.setparams((2, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.array([[8192, 0], [-16_384, 16_384]], "<i2").tobytes())
    assert load_wave(buffer.getvalue()).tolist() == [0.125, 0]


def test_a_float_file_with_nan_is_refused():
    with pytest.raises(InputError, match="1 sample NaN or infinite of 3"):
        load_wave(wav(np.array([0, np.nan, 0.5], np.float32), kind="FLOAT"))


TWO = np.zeros(2, "<i2").tobytes()


@pytest.mark.parametrize("data, said", [
    (b"", "0 bytes"),
    (b"RIFF", "known format"),
    (riff(), "no sound"),
    (riff((b"fmt ", fmt())), "no sound"),
    (riff((b"data", TWO)), "does not say its format"),
    (riff((b"fmt ", fmt()), (b"data", b"")), "0 samples"),
    (riff((b"fmt ", fmt()[:14]), (b"data", TWO)), "14 bytes, it needs 16"),
    (riff((b"fmt ", fmt()), (b"data", TWO))[:-2], "should have 4 bytes, 2 are left"),
    (riff((b"fmt ", fmt()))[:12] + b"fmt \xff\xff\xff\xff" + fmt(), "4294967295 bytes, 16 are left"),
    (riff((b"fmt ", fmt())) + b"data\xff\xff\xff\x6f" + TWO, "1879048191 bytes, 4 are left"),
    (riff((b"fmt ", fmt(channels=0)), (b"data", TWO)), "0 bytes for 0 samples"),
    (riff((b"fmt ", fmt(frame=3)), (b"data", TWO)), "3 bytes for 1 samples"),
    (riff((b"fmt ", fmt(bits=12, frame=1)), (b"data", TWO)), "12 bits"),
    (riff((b"fmt ", fmt(code=3, bits=16)), (b"data", TWO)), "16 bits"),
    (riff((b"fmt ", fmt(rate=0)), (b"data", TWO)), "a rate is.*got 0"),
    (riff((b"fmt ", fmt(rate=4_000_000_000)), (b"data", TWO)), "got 4000000000"),
    (riff((b"fmt ", fmt(code=77)), (b"data", TWO)), "known format"),
    (b"hello, this is no sound at all", "convert it to WAV"),
])  # fmt: skip
def test_files_that_lie_or_end_early_are_refused(data, said, tmp_path):
    with pytest.raises(InputError, match=said):
        load_wave(data)
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(InputError):
        load_wave(tmp_path / "a.wav")


def test_a_file_cut_while_it_is_read_is_refused(monkeypatch):
    data = io.BytesIO(VALID)
    monkeypatch.setattr(waves_module, "_opened", lambda _: data)
    monkeypatch.setattr(sound_file, "BLOCK", 20)
    header = sound_file._wav_header

    def then_cut(file, name):
        found = header(file, name)
        file.truncate(len(VALID) - 50)
        return found

    monkeypatch.setattr(sound_file, "_wav_header", then_cut)
    with pytest.raises(InputError, match="bytes early"):
        load_wave("a.wav")


@pytest.mark.parametrize("container, kind", [("FLAC", "PCM_16"), ("OGG", "VORBIS")])
def test_cut_files_of_other_formats_give_an_error_or_their_begin(container, kind):
    samples = 0.5 * tone(440, 16_000, 1.0).numpy()
    data = wav(samples, container=container, kind=kind)
    for part in (20, len(data) // 2):
        try:
            wave = load_wave(data[:part])
        except InputError:
            continue
        assert 0 < len(wave) < len(samples)


@pytest.mark.parametrize("source, said", [
    ("https://example.org/a.wav", "download"), ("no-such.wav", "No such file"), ("a\0.wav", "null"), (12, "int"),
    (np.zeros(4), "to_wave"),
])  # fmt: skip
def test_what_is_no_file_is_refused(source, said):
    with pytest.raises(InputError, match=said):
        load_wave(source)


def test_headerless_samples_are_refused(tmp_path):
    (tmp_path / "a.raw").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match="known format"):
        load_wave(tmp_path / "a.raw")


def test_without_the_extra_wav_is_read_and_the_rest_names_it(monkeypatch):
    kinds = [(kind, container) for kind in ("PCM_16", "PCM_24", "FLOAT") for container in ("WAV", "WAVEX")]
    plain = [wav(np.zeros(5), kind=kind, container=container) for kind, container in kinds]
    packed = wav(np.zeros(5), container="FLAC")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert [len(load_wave(data)) for data in plain] == [5] * 6
    with pytest.raises(MissingDependencyError, match=r"llamamm\[audio\]"):
        load_wave(packed)


VALID = riff((b"fmt ", fmt(channels=2, rate=8000)), (b"data", np.arange(-40, 40, dtype="<i2").tobytes()))


def finite_or_refused(data):
    try:
        wave = load_wave(data)
    except InputError:
        return
    assert wave.ndim == 1 and len(wave) > 0 and wave.isfinite().all() and wave.abs().max() <= 1


@settings(max_examples=200)
@given(st.one_of(st.binary(max_size=200), st.binary(max_size=100).map(lambda b: VALID[:12] + b),
                 st.binary(max_size=60).map(lambda b: riff((b"fmt ", fmt(code=3, bits=32)), (b"data", b)))))
@example(riff((b"fmt ", fmt(code=3, bits=32)), (b"data", b"\0\0\x81\x7f")))  # a signalling NaN
@example(b"fLaC" + b"\0" * 50)
@example(b"OggS" + b"\0" * 50)
def test_any_bytes_give_a_finite_wave_or_the_named_error(data):
    finite_or_refused(data)


@settings(max_examples=200)
@given(st.data())
def test_any_damage_gives_a_finite_wave_or_the_named_error(data):
    whole = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, 50))] = data.draw(st.integers(0, 255))
    finite_or_refused(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


# ---- saving ----


def test_saved_waves_come_back(tmp_path):
    wave = torch.cat([0.9 * tone(440, 16_000, 0.1).float(), torch.tensor([-1.0, 1.0, 1.5])])
    save_wave(tmp_path / "a.wav", wave)
    assert (tmp_path / "a.wav").read_bytes() == wav_bytes(wave)
    back = load_wave(tmp_path / "a.wav")
    torch.testing.assert_close(back, wave.clamp(-1, 1), rtol=0, atol=2**-15)
    save_wave(tmp_path / "a.wav", back.numpy(), rate=8000)  # over the old one
    with wave_files.open(str(tmp_path / "a.wav")) as file:
        assert file.getparams()[:4] == (1, 2, 8000, len(wave))
    assert torch.equal(load_wave(tmp_path / "a.wav", rate=8000), back)  # a second time without loss
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_a_wave_that_cannot_be_saved_leaves_the_old_file(tmp_path):
    save_wave(tmp_path / "a.wav", torch.zeros(4))
    before = (tmp_path / "a.wav").read_bytes()
    for bad in (torch.tensor([math.nan]), torch.zeros(0), torch.zeros(5, 5, 5)):
        with pytest.raises(InputError):
            save_wave(tmp_path / "a.wav", bad)
    assert (tmp_path / "a.wav").read_bytes() == before


# ---- files whose writer could not go back ----

SIX = np.array([1000, -2000, 3000, -4000, 5000, -6000], "<i2")
SIX_BYTES = SIX.tobytes()


def streamed(size, *chunks, riff_size=None, container=b"RIFF", data=SIX_BYTES):
    """A WAV file as a program writes it into a pipe: `size` before its sound, which goes on to the end."""
    body = b"".join(name + struct.pack("<I", len(part)) + part + b"\0" * (len(part) % 2) for name, part in chunks)
    riff_size = min(size + 36, 2**32 - 1) if riff_size is None else riff_size
    head = container + struct.pack("<I", riff_size) + b"WAVE" + body + b"fmt " + struct.pack("<I", 16) + fmt()
    return head + b"data" + struct.pack("<I", size) + data


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0xFFFFFFFF - 36, 0x7FFFFFD8, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 0])
@pytest.mark.parametrize("chunks", [(), ((b"LIST", b"INFOISFT\x0d\0\0\0Lavf60.16.100\0"),)])
def test_what_was_written_into_a_pipe_is_read_to_its_end(size, chunks, tmp_path):
    data = streamed(size, *chunks)
    if size:  # libsndfile takes 0 for no sound, ffmpeg as here
        assert soundfile.read(io.BytesIO(data), dtype="int16")[0].tolist() == SIX.tolist()
    assert (load_wave(data) * 32_768).tolist() == SIX.tolist()
    (tmp_path / "a.wav").write_bytes(data + b"\x07")  # killed in the middle of a sample
    assert (load_wave(tmp_path / "a.wav") * 32_768).tolist() == SIX.tolist()


def test_a_pipe_itself_is_read():
    script = ("import sys; from llamamm.senses.waves import load_wave; "
              "print((load_wave(sys.stdin.buffer) * 32768).tolist())")
    done = subprocess.run([sys.executable, "-c", script], input=streamed(0xFFFFFFFF), capture_output=True, check=True)
    assert done.stdout.decode().strip() == str([float(n) for n in SIX])


@pytest.mark.parametrize("size", [13, 0x10000000, 0x7FFEFFFF, 0x80000001, 0xFFFEFFFF])
def test_an_ordinary_size_that_is_not_there_is_cut_short(size):
    with pytest.raises(InputError, match=f"{size} bytes, 12 are left: cut short"):
        load_wave(streamed(size))


def ds64(n_bytes):
    return b"ds64", struct.pack("<QQQI", 2**64 - 1 if n_bytes > 2**62 else n_bytes + 80, n_bytes, n_bytes // 2, 0)


@pytest.mark.parametrize("container", [b"RF64", b"BW64"])
@pytest.mark.parametrize("said, want", [(12, 6), (8, 4), (0, 6), (2**64 - 1, 6)])
def test_files_with_sizes_of_64_bits(container, said, want):
    data = streamed(0xFFFFFFFF, ds64(said), container=container)
    assert (load_wave(data) * 32_768).tolist() == SIX[:want].tolist()


def test_libsndfiles_own_rf64_is_read():
    samples = tone(440, 16_000, 0.1).numpy()
    data = wav(samples, container="RF64")
    assert data[:4] == b"RF64"
    np.testing.assert_allclose(load_wave(data), samples, atol=1e-4)


def test_a_cut_file_with_sizes_of_64_bits_is_cut_short():
    with pytest.raises(InputError, match="5000000000 bytes, 12 are left"):
        load_wave(streamed(0xFFFFFFFF, ds64(5_000_000_000), container=b"RF64"))


def test_a_file_without_sound_but_with_notes_stays_empty():
    for rest in (b"LIST" + struct.pack("<I", 4) + b"INFO", b"id3 " + struct.pack("<I", 3) + b"abc"):
        with pytest.raises(InputError, match="0 samples"):
            load_wave(streamed(0, data=rest))


def test_notes_after_the_sound_are_no_sound():
    data = riff((b"fmt ", fmt()), (b"data", SIX.tobytes()), (b"LIST", b"INFOISFT\4\0\0\0abc\0"))
    assert (load_wave(data) * 32_768).tolist() == SIX.tolist()
    one_byte = riff((b"fmt ", fmt(bits=8)), (b"data", b"\xc0"), (b"LIST", b"INFO"))  # odd, filled up
    assert load_wave(one_byte).tolist() == [0.5]


def test_a_part_of_odd_length_whose_filler_was_forgotten():
    head = b"RIFF" + struct.pack("<I", 53) + b"WAVE" + b"LIST" + struct.pack("<I", 5) + b"INFOx"
    data = head + b"fmt " + struct.pack("<I", 16) + fmt() + b"data" + struct.pack("<I", 12) + SIX.tobytes()
    assert (load_wave(data) * 32_768).tolist() == SIX.tolist()


GUID = b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"  # of every long form, behind the two bytes of its code


@pytest.mark.parametrize("size", [12, 0xFFFFFFFF])
@pytest.mark.parametrize("valid", [16, 12])
def test_the_long_form_of_a_format(size, valid):
    long = fmt(code=0xFFFE, rest=struct.pack("<HHIH", 22, valid, 4, 1) + GUID)
    data = riff((b"fmt ", long)) + b"data" + struct.pack("<I", size) + SIX.tobytes()
    assert (load_wave(data) * 32_768).tolist() == SIX.tolist()
    assert soundfile.read(io.BytesIO(data), dtype="int16")[0].tolist() == SIX.tolist()


def test_samples_of_twelve_bits_stand_at_the_top_of_two_bytes():
    data = riff((b"fmt ", fmt(bits=12, frame=2)), (b"data", np.array([16, -32_768, 16_384], "<i2").tobytes()))
    assert load_wave(data).tolist() == [2**-11, -1.0, 0.5]


@pytest.mark.parametrize("container, kind", [("FLAC", "PCM_16"), ("AIFF", "PCM_16"), ("W64", "PCM_16"),
                                             ("AU", "PCM_16")])
def test_other_formats_without_a_length(container, kind):
    samples = 0.5 * tone(440, 16_000, 0.2).numpy()
    data = bytearray(wav(samples, container=container, kind=kind))
    if container == "FLAC":
        data[21] &= 0xF0  # 36 bits of a sample count: unknown
        data[22:26] = b"\0" * 4
    if container == "AU":
        data[8:12] = b"\xff" * 4
    np.testing.assert_allclose(load_wave(bytes(data)), samples, atol=1e-4)


# ---- open files ----


def test_open_files_are_read_from_where_they_stand_and_stand_there_again(tmp_path):
    want = load_wave(VALID)
    (tmp_path / "a.wav").write_bytes(b"junk" + VALID)
    opened = (open(tmp_path / "a.wav", "rb", buffering=size) for size in (-1, 0))
    for file in (io.BytesIO(b"junk" + VALID), *opened):
        with file:
            file.seek(4)
            assert torch.equal(load_wave(file), want) and torch.equal(load_wave(file), want)
            assert file.tell() == 4
    assert torch.equal(load_wave(memoryview(VALID)), want) and torch.equal(load_wave(bytearray(VALID)), want)


def test_open_files_that_cannot_be_read_say_why(tmp_path):
    (tmp_path / "a.wav").write_bytes(VALID)
    with open(tmp_path / "a.wav", encoding="latin-1") as text, pytest.raises(InputError, match="mode 'rb'"):
        load_wave(text)
    written = io.BytesIO()
    written.write(VALID)
    with pytest.raises(InputError, match=r"seek\(0\)"):
        load_wave(written)
    written.close()
    with pytest.raises(InputError, match="closed"):
        load_wave(written)


@pytest.mark.parametrize("data", [b"hello, this is no sound at all",
                                  wav(np.zeros(100), container="OGG", kind="VORBIS")[:60]], ids=["words", "a cut file"])
def test_messages_name_no_object_in_memory(data):
    for source in (data, io.BytesIO(data)):
        with pytest.raises(InputError, match=f"the {len(data)} bytes") as caught:
            load_wave(source)
        assert "object at" not in str(caught.value)
