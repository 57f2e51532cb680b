"""speech: texts by hand, drawn by their hashes, a folder of a synthesiser that beeps, and the real clips."""

import hashlib
import zipfile

import numpy as np
import pytest

from llamamm.assets import sentences, speech
from llamamm.assets.fetch import fetch
from llamamm.assets.sentences import PAUSE, RATE, TEST_VOICES, TRAIN_VOICES, plain_words, requests
from llamamm.assets.speech import FILES, LEARNED, TESTED, load_speech, read_texts, write_speech
from llamamm.errors import InputError
from llamamm.senses.waves import load_wave
from tests.assets.test_chitchat import LEARNED as KNOWN
from tests.assets.test_chitchat import TESTED as NEW_PEOPLE
from tests.assets.test_chitchat import chats, turns

# ---- texts ----


def texts_of(*said, people=KNOWN):
    """The sentences of one conversation, in alphabetical order."""
    return sorted(read_texts(chats((people[:2], [*turns(*said), *turns("x", "x", "x", "x")])))[0])


@pytest.mark.parametrize("text, found", [
    ("Hi there, friend! How are you doing today? Good.", ["hi there friend", "how are you doing today"]),
    ("I don’t know, it's fine.", ["i don't know it's fine"]),
    ("one two three four five six seven eight nine", ["one two three four five six seven eight nine"]),
    ("one two three four five six seven eight nine ten", []),
    ("a dog", []),
    ("Mr. Brown is here", ["brown is here"]),  # a split where there is no end; what is left is read as it is written
    ("it costs 5 dollars", []), ("that is so nice :)", []), ("he is here; she is not", []), ("so (they say) it is", []),
    ("hmm that is nice", []), ("do you like u and me", []), ("he said 'not now' to me", []), ("what ' is this", []),
])  # fmt: skip
def test_sentences_that_are_said_as_they_are_written(text, found):
    assert texts_of(text) == found


def test_lines_of_a_message_are_sentences():
    conversation = KNOWN[:2], [["first line here", "second line here"], *turns("x", "x", "x")]
    assert sorted(read_texts(chats(conversation))[0]) == ["first line here", "second line here"]


@pytest.mark.parametrize("word, is_odd", [
    ("a", False), ("i", False), ("u", True), ("o", True), ("y", True), ("my", False), ("hmm", True), ("tv", True),
    ("don't", False), ("'", True), ("'cause", True), ("dogs'", True), ("it's", False), ("yes", False),
])  # fmt: skip
def test_words_that_are_not_said_as_they_are_written(word, is_odd):
    assert speech._is_odd(word) == is_odd


def test_rare_words_are_in_no_sentence(monkeypatch):
    """Counted over both sides: "the" and "cat" 4 times, "sat" 3 times, "ran" and "dog" once."""
    monkeypatch.setattr(speech, "FREQUENT", 3)
    here = (KNOWN[:2], turns("the cat sat.", "the cat ran.", "sat the cat", "x"))
    there = (NEW_PEOPLE[:2], turns("the cat sat the dog.", "cat the the sat", "x", "x"))
    train, test = read_texts(chats(here, there))
    assert sorted(train) == ["sat the cat", "the cat sat"] and test == ["cat the the sat"]


def test_a_text_of_training_is_in_no_test_and_people_are_on_one_side():
    known = (KNOWN[:2], turns("both say this", "only he says it", "x", "x"))
    other = ((NEW_PEOPLE[0], KNOWN[0]), turns("both say this", "only she says it", "x", "x"))
    train, test = read_texts(chats(known, other))
    assert sorted(train) == ["both say this", "only he says it"] and test == ["only she says it"]


def test_texts_are_drawn_by_their_hashes_and_a_larger_draw_holds_a_smaller(monkeypatch):
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    all_ = [f"this is {word}" for word in words]
    archive = chats((KNOWN[:2], turns(*all_)), (NEW_PEOPLE[:2], turns(*(f"that is {word}" for word in words))))
    by_hash = sorted(all_, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    assert by_hash != all_ and read_texts(archive)[0] == by_hash
    monkeypatch.setattr(speech, "LEARNED", 3)
    monkeypatch.setattr(speech, "TESTED", 2)
    train, test = read_texts(archive)
    assert train == by_hash[:3] and len(test) == 2 and all(text.startswith("that is") for text in test)


# ---- the folder ----


def beep(asked):
    """A synthesiser that says the k-th text of a batch for 0.1 s with a loudness of 2000 + 100 k."""
    sine = np.sin(2 * np.pi * 1000 * np.arange(2205) / 22_050)
    return 22_050, [((2000 + 100 * k) * sine).round().astype(np.int16) for k, _ in enumerate(asked)]


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(sentences, "speak", beep)
    monkeypatch.setattr(sentences, "BATCH", 3)
    archive = chats((KNOWN[:2], turns("this is one", "this is two", "this is three", "this is four")),
                    (NEW_PEOPLE[:2], turns("that is one", "that is two", "x", "x")))  # fmt: skip
    (tmp_path / "wheel").write_bytes(archive.fp.getvalue())
    with zipfile.ZipFile(tmp_path / "wheel", "a") as wheel:
        wheel.writestr("chitchat_dataset-0.9.0.dist-info/LICENSE", "Permission is hereby granted")
    folder = tmp_path / "made"
    folder.mkdir()
    write_speech(tmp_path / "wheel", folder)
    return folder, read_texts(archive)


def test_each_clip_has_its_own_text_and_voice(small):
    folder, (learned, tested) = small
    train, test = load_speech(folder)
    assert len(learned) == 4 and len(tested) == 2
    assert [(s.text, s.new) for s in train] == [(text, "") for text in learned]
    assert [(s.text, s.new) for s in test] == [
        *((text, "voice") for text in learned[:2]), *((text, "text") for text in tested),
        *((text, "both") for text in tested)]  # fmt: skip
    for some, voices in ((train, TRAIN_VOICES), ([s for s in test if s.new == "text"], TRAIN_VOICES),
                         ([s for s in test if s.new == "voice"], TEST_VOICES)):  # fmt: skip
        assert [s.voice for s in some] == [r["voice"].split("+")[1] for r in requests([s.text for s in some], voices)]
    assert {s.voice for s in test if s.new == "both"} <= set(TEST_VOICES)
    begin, end = (round(seconds * RATE) for seconds in PAUSE)
    for side in (train, test):
        for n, sentence in enumerate(side):
            wave = load_wave(sentence.path)
            assert len(wave) == begin + 1600 + end and not wave[:begin].any()
            assert wave[begin + 400 : -end - 400].abs().max() * 32768 == pytest.approx(2000 + 100 * (n % 3), abs=30)
    assert all((folder / name).is_file() for name in FILES)
    text = (folder / "LICENSE.txt").read_text(encoding="utf-8")
    assert all(part in text for part in ("GPL-3", "eSpeak NG", "Brigham Young", "Permission is"))


def test_a_folder_that_is_not_whole_is_refused_by_this_name(small):
    folder, _ = small
    (folder / "test" / "0003.wav").unlink()
    with pytest.raises(InputError, match="0003.wav is missing from test.*llamamm fetch speech"):
        load_speech(folder)


# ---- the real texts; their clips take minutes, and are 663 MB ----

HASHES = ("764fac2961e9b04e", "717b4c2e5cd649bc")  # of the texts, a line each: what everybody's must be


@pytest.fixture(scope="module")
def texts():
    [wheel] = fetch("chitchat", progress=False).parent.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return read_texts(archive)


def test_the_real_texts(texts):
    train, test = texts
    assert tuple(hashlib.sha256("\n".join(side).encode()).hexdigest()[:16] for side in texts) == HASHES
    assert len(train) == LEARNED == len({*train}) and len(test) == TESTED and not {*train} & {*test}
    assert all(3 <= len(text.split()) <= 9 and text == " ".join(plain_words(text)) for text in train + test)


def test_some_of_them_are_spoken(texts, tmp_path, monkeypatch):
    some = texts[0][:2], texts[1][:1]
    monkeypatch.setattr(speech, "read_texts", lambda _archive: some)
    [wheel] = fetch("chitchat", progress=False).parent.glob("*.whl")
    speech.write_speech(wheel, tmp_path / "speech")
    train, test = load_speech(tmp_path / "speech")
    assert [s.text for s in train] == some[0] and [(s.text, s.new) for s in test] == [
        (some[0][0], "voice"), (some[1][0], "text"), (some[1][0], "both")]
    assert (test[0].voice in TEST_VOICES, test[1].voice in TRAIN_VOICES) == (True, True)
    for sentence in train + test:
        wave = load_wave(sentence.path)
        assert 0.5 < len(wave) / RATE < 7 and wave.abs().max() > 0.05
