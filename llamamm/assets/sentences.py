"""Sentences read by many synthetic voices: what an ear and its bridge learn to write down, and are measured on.

    two wheels, eSpeak NG -> train, test: WAV files of 16 kHz, and metadata.jsonl; the credits, LICENSE.txt

Texts are sentences of the corpora `wiki` and `dialogues`, short ones, without numbers, without names but the first
word, without words that no other text has: what is written is what is said. Each is read twice in training, by two of
31 voices, in another accent, speed and pitch each time. Held out are voices and texts; three parts of the test say what
is new:

    "voice"   sentences of training, read by 11 voices that read none there
    "text"    other sentences, read by voices of training
    "both"    the same other sentences, read by the 11 voices

Texts are held out by article and by question, 1 in 10 by hash; among them are all that the test parts of the two
corpora hold. The 11 voices are held out of the asset `words`, too. No random numbers: up to rounding everybody's clips
are equal, for one version of eSpeak NG, which is under GPL-3, a tool to make data: see `spoken_words`.

To measure: transcribe the test's clips, take `plain_words` of what comes out and `Sentence.words`, and count words
that must be put in, taken out or changed, over all words; once for each of the three parts. These voices are hard to
understand: Whisper tiny.en, which never heard them, gets 30 words in 100 of "both" wrong, 8 clips or so at a time.

Fetched by `llamamm.assets.fetch` as "sentences". For training an ear on speech.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.assets.corpora import CREDITS, question_key, read_dialogues, read_wiki
from llamamm.assets.media_folders import FILES as FOLDER_FILES
from llamamm.assets.media_folders import Record, read_sides, write_side
from llamamm.assets.splits import held_out
from llamamm.assets.spoken_words import TEST_VOICES as HELD_OUT_VOICES
from llamamm.assets.spoken_words import speak, trimmed
from llamamm.files import write_file
from llamamm.senses.waves import RATE, wav_bytes

FILES = (*FOLDER_FILES, "LICENSE.txt")
NEW = ("voice", "text", "both")  # what is new in a held-out clip

# No robot, no whisper, no joke, none in which Whisper tiny.en misses every fourth word or more, and no sister of a
# voice that is held out, such as "steph2". Of lengths without a common divisor, so that voices meet accents, speeds and
# pitches in ever new combinations.
TRAIN_VOICES = ("Alex", "Andy", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Lee", "Marco", "Mario",
                "Michael", "Reed", "anika", "antonio", "benjamin", "boris", "caleb", "david", "ed", "f1", "f2", "f3",
                "f5", "grandpa", "m1", "m3", "m4", "miguel", "rob", "shelby")  # fmt: skip
TEST_VOICES = tuple(voice for voice in HELD_OUT_VOICES if voice != "Alicia")
ACCENTS = ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en")
SPEEDS = (150, 140, 165, 130, 155, 175, 145)  # words a minute; at 200 Whisper tiny.en understands little
PITCHES = (50, 40, 60, 45)

TAKES = 2  # readings of a text in training
ONE_IN = 10  # articles, and questions, that are held out
SHORTEST, LONGEST = 3, 60  # words; characters: four seconds or so
SEEN = 2  # times that each word of a sentence is said in all texts together, or more
PAUSE = 0.25, 0.1  # seconds of silence before and after a clip: of a word at once an ear misses the begin
BATCH = 256  # texts that are spoken at a time: their samples are all in memory


class Sentence(NamedTuple):
    """A clip's file, what is said in it as it is written, and who says it. new: one of NEW; "" in training.

    `llamamm.senses.waves.load_wave(path)` gives its wave (n_samples,).
    """

    path: Path
    text: str
    voice: str
    new: str

    @property
    def words(self) -> list[str]:
        """What is said, without capitals and punctuation: what a rate of word errors counts."""
        return plain_words(self.text)


def load_sentences(folder: str | Path) -> tuple[list[Sentence], list[Sentence]]:
    """(train, test) of a folder that `fetch("sentences")` gives. Raises InputError for any other."""
    return read_spoken(folder, asset="sentences")


def read_spoken(folder: str | Path, *, asset: str) -> tuple[list[Sentence], list[Sentence]]:
    """(train, test) of an asset's folder of spoken sentences. Raises InputError for any other folder."""
    sides = read_sides(folder, ("text", "voice", "new"), asset=asset)
    train, test = ([Sentence(r["path"], r["text"], r["voice"], r["new"]) for r in side] for side in sides)
    return train, test


def plain_words(text: str) -> list[str]:
    """"Don't stop, please." to ["don't", "stop", "please"]: of what a model wrote, too, before errors are counted."""
    return re.findall(r"[a-z0-9']+", text.lower().replace("’", "'"))


# ---- texts ----


def plain_sentences(text: str) -> Iterator[str]:
    """The whole sentences of a text that are read as they are written: no numbers, no names but the first word."""
    is_begin = True
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        is_whole = bool(re.search(r"[a-z]{3}[.!?]$", sentence))  # else it may end within, as "c." does
        is_plain = re.fullmatch(r"[A-Z][a-z']*(,? ([a-z']+|I))+[.!?]", sentence)
        if is_begin and is_whole and is_plain and len(sentence.split()) >= SHORTEST and len(sentence) <= LONGEST:
            yield sentence
        is_begin = is_whole


def read_texts(wiki: ZipFile, dialogues: ZipFile) -> tuple[list[str], list[str]]:
    """(train, test) sentences, each once, from the two wheels."""
    sources = [(record["title"], record["text"]) for side in read_wiki(wiki) for record in side]
    for side in read_dialogues(dialogues):
        for record in side:
            key = question_key(record["messages"][0]["content"])
            sources += [(key, message["content"]) for message in record["messages"]]
    counts = Counter(word for _, text in sources for word in plain_words(text))
    sides: tuple[dict[str, None], dict[str, None]] = {}, {}
    for key, text in sources:
        common = (s for s in plain_sentences(text) if all(counts[word] >= SEEN for word in plain_words(s)))
        sides[held_out(key, ONE_IN)].update(dict.fromkeys(common))
    train, test = sides
    return list(train), [text for text in test if text not in train]


# ---- who reads what ----


def requests(texts: Iterable[str], voices: Sequence[str], *, first: int = 0) -> list[dict[str, Any]]:
    """What `speak` is asked for: each text by the next voice, in the next accent, speed and pitch. first: to begin."""
    return [
        {"text": text, "voice": f"{ACCENTS[n % len(ACCENTS)]}+{voices[n % len(voices)]}",
         "speed": SPEEDS[n % len(SPEEDS)], "pitch": PITCHES[n % len(PITCHES)]}
        for n, text in enumerate(texts, first)
    ]  # fmt: skip


def readings(train: Sequence[str], test: Sequence[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(train, test) of what is asked for, each with "new": every text TAKES times, and the three parts of the test."""
    learned = [r for take in range(TAKES) for r in requests(train, TRAIN_VOICES, first=take * (len(train) + 1))]
    known = train[:: max(1, len(train) // len(test))][: len(test)]
    parts = {"voice": requests(known, TEST_VOICES), "text": requests(test, TRAIN_VOICES),
             "both": requests(test, TEST_VOICES, first=1)}  # fmt: skip
    return [{**r, "new": ""} for r in learned], [{**r, "new": new} for new, some in parts.items() for r in some]


# ---- clips ----


def to_16k(samples: np.ndarray, *, rate: int) -> Tensor:
    """int16 (n,) of `rate` -> float32 (ceil(n * 16000 / rate),): the spectrum, cut at 8 kHz and turned back.

    As `resample` up to 7.5 kHz, and many times as fast on thousands of clips; its tone is cut more sharply.
    """
    gcd = np.gcd(rate, RATE)
    old, new = int(rate // gcd), int(RATE // gcd)  # `old` samples last as long as `new` ones do
    blocks = -(-len(samples) // old) + 8  # with silence at the end: the transform takes both ends for neighbours
    padded = torch.zeros(blocks * old)
    padded[: len(samples)] = torch.from_numpy(samples.astype(np.float32)) / 32768
    spectrum = torch.fft.rfft(padded)[: blocks * new // 2 + 1]
    wave = torch.fft.irfft(spectrum, n=blocks * new) * (new / old)
    return wave[: -(-len(samples) * new // old)].clamp(-1, 1)


# ---- the folder ----


def write_sentences(wiki: Path, dialogues: Path, folder: Path) -> None:
    """Write FILES and the clips into `folder`, from the two wheels and eSpeak NG.

    Raises MissingDependencyError and FetchError as `speak`.
    """
    with ZipFile(wiki) as first, ZipFile(dialogues) as second:
        texts = read_texts(first, second)
    for side, asked in zip(("train", "test"), readings(*texts), strict=True):
        write_side(folder / side, spoken_clips(asked))
    write_file(folder / "LICENSE.txt", f"{CREDIT}\n{CREDITS['wiki']}\n{CREDITS['dialogues']}")


def spoken_clips(asked: Sequence[dict[str, Any]]) -> Iterator[tuple[Record, bytes]]:
    """What is asked of `speak`, each with "new", as records and WAV files for `write_side`."""
    for begin in range(0, len(asked), BATCH):
        some = asked[begin : begin + BATCH]
        rate, said = speak(some)
        for n, (request, samples) in enumerate(zip(some, said, strict=True), begin):
            accent, voice = request["voice"].split("+")
            record = {"file_name": f"{n:04}.wav", "text": request["text"], "voice": voice, "accent": accent,
                      "speed": request["speed"], "pitch": request["pitch"], "new": request["new"]}  # fmt: skip
            yield record, wav_bytes(F.pad(trimmed(to_16k(samples, rate=rate)), [round(s * RATE) for s in PAUSE]))


CREDIT = """\
Clips: spoken by eSpeak NG, https://github.com/espeak-ng/espeak-ng, as packed in espeakng-loader. The program is under
GPL-3; nothing of it is here, only what it said. The texts are sentences of two collections, whose credits and licences
follow: of the first, under CC BY-SA 4.0, whose terms hold for these clips, and of the second.
"""
