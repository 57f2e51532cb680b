"""Twenty spoken words: clips of a synthesiser's voices to learn from, and a few recordings of people to be tried on.

    a wheel, an sdist, eSpeak NG -> train, test, real: .jsonl and .wav; recordings/; the credits, LICENSE.txt

    train   16 voices of eSpeak NG, each word twice: another accent, speed and pitch
    test    12 other voices, likewise
    real    33 words of people: ten digits of one man, and words cut out of recordings that speech recognisers are tried
            on. Where each begins and ends was found by forced alignment with the recogniser pocketsphinx

Silence at a clip's ends is cut off. No random numbers: up to rounding everybody's clips are equal, the synthetic ones
for one version of eSpeak NG. It is under GPL-3: a tool to make data, an extra (`pip install 'llamamm[speech]'`), which
`llamamm/assets/espeak.py` runs in a process of its own and nothing here imports.

Fetched by `llamamm.assets.fetch` as "words". Used from notebook 12 on.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.errors import FetchError, InputError, MissingDependencyError, counted
from llamamm.files import write_file
from llamamm.senses.waves import RATE, load_wave, resample, save_wave

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "clubs", "diamonds",
         "hearts", "spades", "queen", "king", "go", "forward", "meters")  # fmt: skip

TRAIN_VOICES = ("Andrea", "Andy", "Annie", "Denis", "Gene", "Lee", "Michael", "Reed", "anika", "aunty", "benjamin",
                "david", "f2", "grandpa", "m3", "shelby")  # fmt: skip
TEST_VOICES = ("Alicia", "adam", "belinda", "grandma", "Mike", "linda", "steph", "paul", "klatt4", "Nguyen", "f4", "m7")
TAKES = 2
# Of lengths without a common divisor, so that they meet in ever new combinations.
ACCENTS = ("en-us", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-us-nyc", "en")
SPEEDS = (150, 120, 180, 135, 165, 195, 110)  # words a minute
PITCHES = (50, 35, 65, 42, 58)

POCKETSPHINX = "pocketsphinx-5.1.1/"
# {recording: [(word, first and last hundredth of a second), ...]}, of the words of WORDS alone.
CUTS: dict[str, list[tuple[str, int, int]]] = {
    "cards/001.wav": [("ten", 0, 33), ("clubs", 45, 108)],
    "cards/002.wav": [("four", 30, 76), ("queen", 77, 103), ("clubs", 119, 171)],
    "cards/003.wav": [("seven", 7, 55), ("clubs", 70, 153)],
    "cards/004.wav": [("five", 30, 82), ("five", 83, 123)],
    "cards/005.wav": [("eight", 19, 41), ("spades", 53, 124), ("four", 125, 153), ("clubs", 164, 221),
                      ("seven", 222, 262), ("hearts", 274, 325)],
    "goforward.raw": [("go", 46, 63), ("forward", 64, 116), ("ten", 117, 153), ("meters", 154, 211)],
    "numbers.raw": [("three", 74, 118), ("six", 199, 237), ("two", 268, 325)],
    "something.raw": [("go", 43, 62)],
}  # fmt: skip
# Kept whole: {file in recordings/: (recording, what is said)}
RECORDINGS = {
    "goforward.wav": ("goforward.raw", "go forward ten meters"),
    "cards-005.wav": ("cards/005.wav", "eight of spades four of clubs seven of hearts"),
    "sense-and-sensibility.wav": (
        "librivox/sense_and_sensibility_01_austen_64kb-0870.wav",
        "and mister john dashwood had then leisure to consider how much there might be prudently in his power to do "
        "for them",
    ),
}

SETS = ("train", "test", "real")
FILES = (*(f"{side}.{kind}" for side in SETS for kind in ("jsonl", "wav")), "recordings.json",
         *(f"recordings/{name}" for name in RECORDINGS), "LICENSE.txt")  # fmt: skip

MARGIN = 3  # hundredths of a second that are kept before and after what is loud
QUIET = 0.02  # as loud as 1/50 of a clip's loudest hundredth of a second: silence

SPEAK_SECONDS = 300  # for 1,120 texts; measured: 0.6
BATCH = 64  # clips that are resampled at a time: many more do not fit into a processor's cache


class Clip(NamedTuple):
    """One spoken word: wave (n_samples,) float32 at 16 kHz, the word, and whose voice or which recording."""

    wave: Tensor
    word: str
    voice: str


class Recording(NamedTuple):
    """Real speech: wave (n_samples,) float32 at 16 kHz, and what is said, in lower case without punctuation."""

    wave: Tensor
    text: str


@dataclass(frozen=True)
class Words:
    """Clips to learn from, clips of voices that are not among them, and clips of people."""

    train: list[Clip]
    test: list[Clip]
    real: list[Clip]


def load_words(folder: str | Path) -> Words:
    """The folder that `fetch("words")` gives. Raises InputError where it is not whole."""
    folder = Path(folder)
    try:
        return Words(*(_read_clips(folder, side) for side in SETS))
    except (OSError, KeyError, TypeError, ValueError) as error:  # InputError is a ValueError
        raise _not_whole(folder, error) from None


def load_recordings(folder: str | Path) -> dict[str, Recording]:
    """{file name: recording} of the same folder, whole sentences. Raises InputError where it is not whole."""
    folder = Path(folder)
    try:
        texts = json.loads((folder / "recordings.json").read_bytes())
        return {name: Recording(load_wave(folder / "recordings" / name), text) for name, text in texts.items()}
    except (OSError, AttributeError, ValueError) as error:
        raise _not_whole(folder, error) from None


def _read_clips(folder: Path, side: str) -> list[Clip]:
    wave, clips = load_wave(folder / f"{side}.wav"), []
    for line in (folder / f"{side}.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        begin, end = record["begin"], record["end"]
        if not 0 <= begin < end <= len(wave):
            raise InputError(f"{side}.jsonl has a clip from {begin} to {end}, {side}.wav has {len(wave)} samples")
        clips.append(Clip(wave[begin:end], record["word"], record["voice"]))
    if not clips:
        raise InputError(f"{side}.jsonl has no clips")
    return clips


def _not_whole(folder: Path, error: Exception) -> InputError:
    return InputError(f"{folder} holds no whole set of words ({error}); delete it and run `llamamm fetch words` again")


# ---- synthetic voices ----


def requests(voices: Sequence[str]) -> list[dict[str, Any]]:
    """What `speak` is asked for: each word TAKES times in each voice, in an accent, speed and pitch of each take."""
    takes = [voice for voice in voices for _ in range(TAKES)]
    return [
        {"text": word, "voice": f"{ACCENTS[n % len(ACCENTS)]}+{voice}", "speed": SPEEDS[n % len(SPEEDS)],
         "pitch": PITCHES[n % len(PITCHES)]}
        for n, voice in enumerate(takes)
        for word in WORDS
    ]  # fmt: skip


def speak(asked: Sequence[dict[str, Any]], *, timeout: float = SPEAK_SECONDS) -> tuple[int, list[np.ndarray]]:
    """Have eSpeak NG say texts, in a process of its own -> its rate, and int16 (n_samples,) for each.

    asked: {"text", "voice", "speed", "pitch"} each; a voice is an accent and a variant, "en-us+Andy".
    Raises MissingDependencyError without the `speech` extra, or where it does not work; FetchError where it takes
    longer than `timeout` seconds.
    """
    if importlib.util.find_spec("espeakng_loader") is None:
        raise MissingDependencyError("synthetic voices need the espeakng-loader package: pip install 'llamamm[speech]'")
    # -P: the folder of this package must not be where that program looks for modules.
    command = [sys.executable, "-P", str(Path(__file__).with_name("espeak.py"))]
    try:
        done = subprocess.run(command, input=json.dumps(list(asked)).encode(), capture_output=True, timeout=timeout,
                              check=False, env={**os.environ, "PYTHONWARNINGS": "ignore"})  # fmt: skip
    except subprocess.TimeoutExpired:
        raise FetchError(f"eSpeak NG did not say {counted(len(asked), 'text')} within {timeout:g} s; "
                         f"run it again when this machine is less busy") from None
    found = _samples(done.stdout) if done.returncode == 0 else None
    if found is None or len(found[1]) != len(asked):
        words = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        heard = "none" if found is None else len(found[1])
        raise MissingDependencyError(f"eSpeak NG said {heard} of {counted(len(asked), 'text')} (exit status "
                                     f"{done.returncode}: {words[-1]}); "
                                     f"install it again: pip install --force-reinstall espeakng-loader")
    return found


def _samples(data: bytes) -> tuple[int, list[np.ndarray]] | None:
    """What espeak.py writes, taken apart; None where it is cut short."""
    try:
        (rate,), place, texts = struct.unpack_from("<i", data), 4, []
        while place < len(data):
            (count,) = struct.unpack_from("<i", data, place)
            texts.append(np.frombuffer(data, "<i2", count, place + 4))
            place += 4 + 2 * count
    except (struct.error, ValueError):
        return None
    return rate, texts


# ---- clips ----


def to_waves(samples: Sequence[np.ndarray], *, rate: int) -> list[Tensor]:
    """int16 (n,) of `rate` -> float32 (ceil(n * 16000 / rate),) at 16 kHz, each as `to_wave` gives it, but faster."""
    waves: list[Tensor] = []
    for start in range(0, len(samples), BATCH):
        some = samples[start : start + BATCH]
        longest = max(map(len, some))
        padded = torch.stack([F.pad(torch.from_numpy(s.astype(np.float32)), (0, longest - len(s))) for s in some])
        new = resample(padded / 32768, rate=rate, new_rate=RATE).clamp(-1, 1)  # beyond its end a wave is silence
        waves += [wave[: -(-len(s) * RATE // rate)] for wave, s in zip(new, some, strict=True)]
    return waves


def trimmed(wave: Tensor) -> Tensor:
    """A wave (n_samples,) without the silence at its ends, in steps of 10 ms; one that is all silence as it is."""
    step = RATE // 100
    frames = F.pad(wave, (0, -len(wave) % step)).view(-1, step)  # (n_steps, 160)
    loudness = frames.square().mean(dim=1).sqrt()
    loud = (loudness > QUIET * loudness.max()).nonzero()[:, 0]
    if len(loud) == 0:
        return wave
    return wave[max(0, int(loud[0]) - MARGIN) * step : (int(loud[-1]) + 1 + MARGIN) * step]


def read_digits(wheel: ZipFile) -> list[Clip]:
    """The ten digits of the wheel spokennumbers."""
    return [Clip(load_wave(wheel.read(f"spokennumbers/default/{digit}.wav")), word, "spokennumbers")
            for digit, word in enumerate(WORDS[:10])]  # fmt: skip


def read_recordings(sdist: tarfile.TarFile) -> dict[str, Tensor]:
    """{name: wave} of pocketsphinx' test recordings that CUTS and RECORDINGS name."""
    names = dict.fromkeys([*CUTS, *(name for name, _ in RECORDINGS.values())])
    return {name: _recording(sdist, name) for name in names}


def _recording(sdist: tarfile.TarFile, name: str) -> Tensor:
    data = _read(sdist, f"test/data/{name}")
    if name.endswith(".wav"):
        return load_wave(data)
    return torch.from_numpy(np.frombuffer(data, "<i2").astype(np.float32)) / 32768  # without a header: 16 kHz


def cut(recordings: dict[str, Tensor]) -> list[Clip]:
    """The words that CUTS names."""
    step = RATE // 100
    return [Clip(recordings[name][begin * step : (end + 1) * step], word, re.sub(r"\.\w+$", "", name))
            for name, words in CUTS.items() for word, begin, end in words]  # fmt: skip


def _read(sdist: tarfile.TarFile, name: str) -> bytes:
    file = sdist.extractfile(POCKETSPHINX + name)
    assert file is not None  # a plain file, in an archive whose hash was checked
    return file.read()


# ---- the folder ----


def write_words(digits: Path, recordings: Path, folder: Path) -> None:
    """Write FILES into `folder`, from the wheel spokennumbers, the sdist pocketsphinx and eSpeak NG.

    Raises MissingDependencyError and FetchError as `speak`.
    """
    asked = {side: requests(voices) for side, voices in (("train", TRAIN_VOICES), ("test", TEST_VOICES))}
    rate, samples = speak([*asked["train"], *asked["test"]])
    waves = iter(to_waves(samples, rate=rate))
    for side, some in asked.items():
        clips = [Clip(next(waves), r["text"], r["voice"].partition("+")[2]) for r in some]
        _write_clips(folder, side, clips)
    with ZipFile(digits) as wheel, tarfile.open(recordings, "r:gz") as sdist:
        found = read_recordings(sdist)
        _write_clips(folder, "real", read_digits(wheel) + cut(found))
        own = [wheel.read("spokennumbers-1.0.0.dist-info/LICENSE"), _read(sdist, "LICENSE")]
    (folder / "recordings").mkdir()
    for name, (source, _) in RECORDINGS.items():
        save_wave(folder / "recordings" / name, found[source])
    texts = {name: text for name, (_, text) in RECORDINGS.items()}
    write_file(folder / "recordings.json", json.dumps(texts, indent=2) + "\n")
    write_file(folder / "LICENSE.txt", CREDIT.format(*(text.decode().strip() for text in own)))


def _write_clips(folder: Path, side: str, clips: Sequence[Clip]) -> None:
    waves = [trimmed(clip.wave) for clip in clips]
    lines, begin = io.StringIO(), 0
    for clip, wave in zip(clips, waves, strict=True):
        end = begin + len(wave)
        lines.write(json.dumps({"word": clip.word, "voice": clip.voice, "begin": begin, "end": end}) + "\n")
        begin = end
    save_wave(folder / f"{side}.wav", torch.cat(waves))
    write_file(folder / f"{side}.jsonl", lines.getvalue())


CREDIT = """\
train.wav and test.wav: spoken by eSpeak NG, https://github.com/espeak-ng/espeak-ng, as packed in espeakng-loader. The
program is under GPL-3; nothing of it is here, only what it said.

real.wav, ten digits: recordings of the package spokennumbers 1.0.0, https://github.com/Penlect/spokennumbers, by
Daniel Andersson. Changed here: 16 kHz, one channel; silence at the ends cut off. Licence:

{}

real.wav, the other words, and recordings/: recordings of the test data of pocketsphinx 5.1.1,
https://github.com/cmusphinx/pocketsphinx. sense-and-sensibility.wav is cut there from LibriVox, https://librivox.org,
whose readings are in the public domain. Changed here: real.wav holds single words, cut where a forced alignment with
pocketsphinx found them. Licence of pocketsphinx, of whose code nothing is used:

{}
"""
