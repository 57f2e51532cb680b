"""spoken: clips by hand, small archives, eSpeak NG in its own process, and the real asset."""

import ast
import io
import json
import math
import shutil
import subprocess
import sys
import tarfile
import time
import wave as wave_files
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamamm.assets import spoken_words as spoken
from llamamm.assets.spoken_words import (
    CUTS,
    FILES,
    RECORDINGS,
    TEST_VOICES,
    TRAIN_VOICES,
    WORDS,
    cut,
    load_recordings,
    load_words,
    read_digits,
    read_recordings,
    requests,
    speak,
    to_waves,
    trimmed,
    write_words,
)
from llamamm.errors import FetchError, InputError, MissingDependencyError
from llamamm.senses.waves import save_wave, to_wave
from tests.processes import finish

# ---- what is asked of the synthesiser ----


def test_requests_by_hand():
    asked = requests(["Andy", "f2"])
    assert [r["text"] for r in asked] == list(WORDS) * 4
    assert [(r["voice"], r["speed"], r["pitch"]) for r in asked[::20]] == [
        ("en-us+Andy", 150, 50), ("en-gb-x-rp+Andy", 120, 35), ("en-gb-scotland+f2", 180, 65), ("en-029+f2", 135, 42)]
    assert all(len({(r["voice"], r["speed"], r["pitch"]) for r in asked[i : i + 20]}) == 1 for i in (0, 20, 40, 60))


def test_no_voice_is_on_both_sides():
    assert (len(TRAIN_VOICES), len(TEST_VOICES)) == (len(set(TRAIN_VOICES)), len(set(TEST_VOICES))) == (16, 12)
    assert not set(TRAIN_VOICES) & set(TEST_VOICES)
    takes = {(r["voice"], r["speed"], r["pitch"]) for r in requests(TRAIN_VOICES)}
    assert len(takes) == 32 and len({manner[1:] for manner in takes}) == 32  # no two takes of a speed and a pitch


# ---- eSpeak NG ----


def ask(voice, text="seven", speed=150, pitch=50):
    return {"text": text, "voice": voice, "speed": speed, "pitch": pitch}


def test_speaking_twice_gives_the_same_and_each_setting_counts():
    asked = [ask("en-us+Andy"), ask("en-us+f2"), ask("en-us+f2", speed=110), ask("en-us+f2", pitch=80),
             ask("en-gb-scotland+f2"), ask("en-gb-scotland+f2", text="go")]  # fmt: skip
    rate, said = speak(asked)
    assert rate == 22_050 and all(s.dtype == np.int16 and 5000 < len(s) < 30_000 for s in said)
    time.sleep(1.01)  # the breath in f2 is noise that would depend on the second
    assert [s.tolist() for s in speak(asked)[1]] == [s.tolist() for s in said]
    assert len({s.tobytes() for s in said}) == len(said)
    assert len(said[2]) > 1.2 * len(said[1])  # slower


def test_no_text_begins_with_the_echo_of_the_one_before():
    said = speak([ask("en-gb-scotland+f2", text=text) for text in ("clubs", "go", "meters", "go")])[1]
    assert [np.abs(said[k][:200]).max() for k in (1, 3)] == [0, 0]


def test_the_program_imports_no_more_than_it_says_and_is_not_imported():
    tree = ast.parse(Path(spoken.__file__).with_name("espeak.py").read_text(encoding="utf-8"))
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"__future__", "ctypes", "json", "struct", "sys", "typing", "espeakng_loader"}
    script = ("import sys; from llamamm.assets.spoken_words import speak; "
              "speak([{'text': 'go', 'voice': 'en', 'speed': 150, 'pitch': 50}]); "
              "sys.exit('espeakng_loader' in sys.modules or 'llamamm.assets.espeak' in sys.modules)")  # fmt: skip
    assert finish([sys.executable, "-c", script]).returncode == 0


@pytest.mark.parametrize("asked, said", [
    ([ask("en-us"), ask("xx-nowhere")], "no voice 'xx-nowhere'"),
    ([ask("en-us", text=" ")], "silent at ' '"),
])  # fmt: skip
def test_what_cannot_be_said_is_an_error_in_words(asked, said):
    with pytest.raises(MissingDependencyError, match=f"said none of {len(asked)} texts?.*1: .*{said}.*pip install"):
        speak(asked)


def test_a_synthesiser_that_hangs_is_stopped():
    with pytest.raises(FetchError, match="1 text within 0.001 s; run it again"):
        speak([ask("en-us")], timeout=0.001)


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(MissingDependencyError, match=r"espeakng-loader.*llamamm\[speech\]"):
        speak([ask("en-us")])


ONE = b"\x22\x56\0\0" + b"\2\0\0\0" + b"\1\0\2\0"  # the rate, 2 samples: 1 and 2


@pytest.mark.parametrize("output, said", [
    (ONE[:-1], "said none of 2"), (ONE + b"\1", "said none of 2"), (b"", "said none of 2"), (ONE, "said 1 of 2"),
])  # fmt: skip
def test_an_output_cut_short_is_refused(monkeypatch, output, said):
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, output, b""))
    assert [s.tolist() for s in spoken._samples(ONE)[1]] == [[1, 2]]
    with pytest.raises(MissingDependencyError, match=said):
        speak([ask("en-us"), ask("en-us")])


# ---- clips ----


def test_many_clips_at_once_equal_one_by_one(monkeypatch):
    monkeypatch.setattr(spoken, "BATCH", 3)
    rng = np.random.default_rng(0)
    samples = [rng.integers(-9000, 9000, n).astype(np.int16) for n in (1, 441, 5000, 3001, 777)]
    waves = to_waves(samples, rate=22_050)
    assert [len(w) for w in waves] == [1, 320, 3629, 2178, 564]
    for wave, one in zip(waves, samples, strict=True):
        torch.testing.assert_close(wave, to_wave(one, rate=22_050), rtol=0, atol=1e-6)


def test_silence_at_the_ends_is_cut_by_hand():
    wave = torch.zeros(16_000)
    wave[4800:8000] = 0.5  # from 0.30 to 0.50 s
    wave[:160], wave[8000:8160], wave[-160:] = 0.009, 0.011, 0.009  # under and over a fiftieth
    assert torch.equal(trimmed(wave), wave[4800 - 480 : 8160 + 480])
    assert torch.equal(trimmed(0.01 * wave), 0.01 * wave[4320:8640])  # whatever the loudness


def test_what_is_short_or_silent_stays():
    assert torch.equal(trimmed(torch.zeros(500)), torch.zeros(500))
    assert torch.equal(trimmed(torch.tensor([0.5])), torch.tensor([0.5]))


@given(st.lists(st.sampled_from([0.0, 0.001, 0.03, 1.0]), min_size=1, max_size=30), st.integers(1, 160))
def test_cutting_again_changes_nothing(levels, last):
    wave = torch.tensor(levels).repeat_interleave(160)[: 160 * (len(levels) - 1) + last]
    once = trimmed(wave)
    assert 0 < len(once) <= len(wave) and torch.equal(trimmed(once), once)
    assert once.square().sum() >= 0.99 * wave.square().sum()


# ---- recordings ----


def wav(samples, rate=16_000):
    path = io.BytesIO()
    with wave_files.open(path, "wb") as file:
        file.setparams((1, 2, rate, len(samples), "NONE", ""))
        file.writeframes(np.asarray(samples, "<i2").tobytes())
    return path.getvalue()


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The wheel and the sdist. Sample i of the k-th recording is i // 16 + 3000 k, digit d is 100 (d + 1) all along."""
    here = tmp_path_factory.mktemp("archives")
    wheel, sdist = here / "digits.whl", here / "sphinx.tar.gz"
    with zipfile.ZipFile(wheel, "w") as archive:
        for digit in range(10):
            archive.writestr(f"spokennumbers/default/{digit}.wav", wav([100 * (digit + 1)] * 4000))
        archive.writestr("spokennumbers-1.0.0.dist-info/LICENSE", "MIT of Daniel {x}\n")
    names = list(dict.fromkeys([*CUTS, *(name for name, _ in RECORDINGS.values())]))
    with tarfile.open(sdist, "w:gz") as archive:
        for k, name in enumerate(names):
            samples = np.arange(330 * 160) // 16 + 3000 * k
            data = wav(samples) if name.endswith(".wav") else samples.astype("<i2").tobytes()
            add(archive, f"pocketsphinx-5.1.1/test/data/{name}", data)
        add(archive, "pocketsphinx-5.1.1/LICENSE", b"BSD of CMU")
    return wheel, sdist, names


def add(archive, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def test_digits_are_in_order(archives):
    with zipfile.ZipFile(archives[0]) as wheel:
        clips = read_digits(wheel)
    assert [clip.word for clip in clips] == list(WORDS[:10]) and {clip.voice for clip in clips} == {"spokennumbers"}
    assert [round(clip.wave[100].item() * 32768) for clip in clips] == [100 * (digit + 1) for digit in range(10)]


def test_words_are_cut_where_the_table_says(archives):
    _, sdist, names = archives
    with tarfile.open(sdist) as archive:
        clips = cut(read_recordings(archive))
    go = next(clip for clip in clips if clip.voice == "goforward")
    assert go.word == "go" and len(go.wave) == (63 - 46 + 1) * 160
    k = names.index("goforward.raw")
    values = (go.wave * 32768).round()
    assert (values[0], values[-1]) == (46 * 10 + 3000 * k, 64 * 10 - 1 + 3000 * k)  # 10 of the ramp are 10 ms
    assert Counter(clip.voice for clip in clips)["cards/005"] == 6
    assert all(set(word for word, _, _ in words) <= set(WORDS) for words in CUTS.values())


# ---- the folder ----


@pytest.fixture(scope="module")
def made(archives, tmp_path_factory):
    """A folder of small archives and of a synthesiser that says the k-th text with a loudness of 20 + 8 k."""

    def beep(asked):
        sine = np.sin(2 * math.pi * 1000 * np.arange(2205) / 22_050)
        return 22_050, [((20 + 8 * k) * sine).round().astype(np.int16) for k, _ in enumerate(asked)]

    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spoken, "speak", beep)
        write_words(archives[0], archives[1], folder)
    return folder


@pytest.fixture
def small(made, tmp_path):
    """A copy of it, to be spoiled."""
    return Path(shutil.copytree(made, tmp_path / "small"))


def test_each_clip_has_its_own_word_and_voice(small):
    words = load_words(small)
    assert (len(words.train), len(words.test), len(words.real)) == (640, 480, 33)
    asked = [*requests(TRAIN_VOICES), *requests(TEST_VOICES)]
    for k in (0, 1, 77, 639, 640, 1119):
        clip = (words.train + words.test)[k]
        assert (clip.word, clip.voice) == (asked[k]["text"], asked[k]["voice"].split("+")[1])
        inside = clip.wave[400:1200]  # at the ends a tone that is cut overshoots
        assert inside.abs().max() * 32768 == pytest.approx(20 + 8 * k, abs=1.5) and len(clip.wave) == 1600
    assert {clip.voice for clip in words.train} == set(TRAIN_VOICES)
    assert {clip.voice for clip in words.test} == set(TEST_VOICES)
    seven = words.real[7]
    assert (seven.word, seven.voice) == ("seven", "spokennumbers") and seven.wave[100] * 32768 == 800
    assert [clip.word for clip in words.real[10:]] == [word for cuts in CUTS.values() for word, _, _ in cuts]
    assert all(clip.wave.dtype == torch.float32 for clip in words.real)


def test_the_folder_holds_whole_recordings_and_the_credits(small):
    assert sorted(p.relative_to(small).as_posix() for p in small.rglob("*") if p.is_file()) == sorted(FILES)
    found = load_recordings(small)
    assert found["goforward.wav"].text == "go forward ten meters" and list(found) == list(RECORDINGS)
    assert all(len(recording.wave) == 330 * 160 for recording in found.values())
    text = (small / "LICENSE.txt").read_text(encoding="utf-8")
    assert "MIT of Daniel {x}" in text and text.rstrip().endswith("BSD of CMU") and "GPL-3" in text


@pytest.mark.parametrize("spoil", [
    lambda d: (d / "test.wav").unlink(),
    lambda d: (d / "real.jsonl").unlink(),
    lambda d: (d / "real.jsonl").write_text(""),
    lambda d: (d / "real.jsonl").write_text('{"word": "go"'),
    lambda d: (d / "real.jsonl").write_text("[]"),
    lambda d: (d / "real.jsonl").write_text('{"word": "go", "begin": 0, "end": 9}'),
    lambda d: (d / "real.jsonl").write_text('{"word": "go", "voice": "a", "begin": 9, "end": 9}'),
    lambda d: (d / "real.jsonl").write_text('{"word": "go", "voice": "a", "begin": -9, "end": 9}'),
    lambda d: (d / "real.jsonl").write_text('{"word": "go", "voice": "a", "begin": 0, "end": 99999999}'),
    lambda d: (d / "real.jsonl").write_text('{"word": "go", "voice": "a", "begin": "0", "end": 9}'),
    lambda d: save_wave(d / "train.wav", torch.zeros(500)),
    lambda d: (d / "train.wav").write_bytes((d / "train.wav").read_bytes()[:-100]),
])  # fmt: skip
def test_a_folder_that_is_not_whole_is_refused(small, spoil):
    spoil(small)
    with pytest.raises(InputError, match="no whole set of words .*llamamm fetch words"):
        load_words(small)


@pytest.mark.parametrize("spoil", [
    lambda d: (d / "recordings" / "goforward.wav").unlink(),
    lambda d: (d / "recordings.json").write_text("{"),
    lambda d: (d / "recordings.json").write_text("[1]"),
])  # fmt: skip
def test_recordings_that_are_not_whole_are_refused(small, spoil):
    spoil(small)
    with pytest.raises(InputError, match="llamamm fetch words"):
        load_recordings(small)


# ---- the real ones ----


def test_the_real_clips(words_dir):
    words = load_words(words_dir)
    assert (len(words.train), len(words.test), len(words.real)) == (640, 480, 33)
    assert Counter(clip.word for clip in words.train) == dict.fromkeys(WORDS, 32)
    assert Counter(clip.word for clip in words.test) == dict.fromkeys(WORDS, 24)
    assert Counter(clip.word for clip in words.real) == {
        **dict.fromkeys(("zero", "one", "nine", "queen", "hearts", "spades", "forward", "meters"), 1),
        **dict.fromkeys(("two", "three", "six", "eight", "ten", "go"), 2), "four": 3, "five": 3, "seven": 3,
        "clubs": 4}  # fmt: skip
    for clip in (*words.train, *words.test, *words.real):
        assert 0.1 < len(clip.wave) / 16_000 < 1.6 and clip.wave.abs().max() > 0.02, clip
    seconds = [sum(len(clip.wave) for clip in clips) / 16_000 for clips in (words.train, words.test, words.real)]
    assert seconds == pytest.approx([316.4, 250.9, 16.9], abs=0.5)


def test_real_sentences_and_credits(words_dir):
    found = load_recordings(words_dir)
    lengths = {name: len(recording.wave) for name, recording in found.items()}
    assert lengths == {"goforward.wav": 44_580, "cards-005.wav": 56_040, "sense-and-sensibility.wav": 113_600}
    texts = json.loads((words_dir / "recordings.json").read_text())
    assert texts == {name: recording.text for name, recording in found.items()}
    credit = (words_dir / "LICENSE.txt").read_text(encoding="utf-8")
    for part in ("Daniel Andersson", "Carnegie Mellon University", "LibriVox", "eSpeak NG", "forced alignment"):
        assert part in credit
