"""What `senses` learns from: the assets' training parts, as files of records that `llamamm train` reads.

    shapes.jsonl      easy-VQA: a picture and its name, "red circle"
    questions.jsonl   five questions about it
    drawings.jsonl    OpenMoji's drawings and arcade sprites, with their names
    paintings.jsonl   paintings, with the museum's keywords
    speech.jsonl      sentences read by 31 voices, with their words
    words.jsonl       single words
    sounds.jsonl      sounds of games, with their names
    plain.jsonl       questions without a picture or a sound
    text.jsonl        articles of Wikipedia

The answers of plain.jsonl are the text model's own, so that it goes on saying what it said; the articles are for what
it knew before.
Each question about a medium is asked in a few ways. Nothing of any asset's test part is here.
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from llamamm.assets.arcade import load_sounds, load_sprites
from llamamm.assets.corpora import load_records, text_of
from llamamm.assets.easy_vqa import load_questions
from llamamm.assets.fetch import fetch
from llamamm.assets.openmoji import load_pictures
from llamamm.assets.paintings import ASKED as PAINTING
from llamamm.assets.paintings import load_paintings
from llamamm.assets.sentences import load_sentences
from llamamm.assets.speech import load_speech
from llamamm.assets.spoken_words import load_words
from llamamm.files import replace_folder, write_file
from llamamm.generation.generate import generate, pad_left
from llamamm.pretrained.load import from_pretrained
from llamamm.senses.waves import wav_bytes
from llamamm.tasks.items import describe
from llamamm.text.chat import chat_format

NAME = ("What is this?", "What does the picture show?", "Describe the picture.", "What do you see?")
SAID = ("What is said?", "Transcribe the recording.", "What does the voice say?", "Write down what you hear.")
SOUND = ("What makes this sound?", "What do you hear?")
A_PICTURE = 5  # questions of a conversation about it
PLAIN, PLAIN_WORDS, AT_ONCE = 200, 48, 20  # questions without a medium; tokens of an answer; in a batch

Record = dict[str, Any]


def write_data(folder: Path, *, seed: int = 0, say: Callable[[str], None] = lambda _line: None) -> None:
    """Write all the files into `folder`, which is made. The assets are fetched where they are not there."""
    draw = random.Random(seed)
    with replace_folder(folder) as new:
        (new / "media").mkdir()
        for name, records in (("shapes", _shapes(new, draw)), ("drawings", _drawings(new, draw)),
                              ("paintings", _paintings()), ("speech", _speech(draw)), ("words", _words(new, draw)),
                              ("sounds", _sounds(draw)), ("plain", _plain()), ("text", _text())):  # fmt: skip
            made = list(records)
            say(f"{name}: {len(made):,} records")
            if name == "shapes":
                _write(new / "shapes.jsonl", [record for record in made if "text" in record])
                made, name = [record for record in made if "messages" in record], "questions"
            _write(new / f"{name}.jsonl", made)


def _write(path: Path, records: Iterable[Record]) -> None:
    write_file(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _asked(kind: str, path: Path | str, question: str, answer: str) -> Record:
    return {kind: str(path), "question": question, "answer": answer}


# ---- pictures ----


def _shapes(folder: Path, draw: random.Random) -> Iterator[Record]:
    """Of each picture its name, and a conversation of questions in an order that is drawn."""
    train, _ = load_questions(fetch("easy-vqa"))
    named = describe(train)
    by_image: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, image in zip(train.questions, train.answers, train.images, strict=True):
        by_image[image].append((question, answer))
    for image, asked in sorted(by_image.items()):
        path = _png(folder, f"shape{image:04}", train.pixels[image])
        if name := named.get(image, "").removeprefix("a "):
            yield {"image": path, "text": name}
            asked = [*asked, (draw.choice(NAME), name)]
        draw.shuffle(asked)
        turns = [turn for question, answer in asked[:A_PICTURE]
                 for turn in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})]
        yield {"messages": [{"role": "user", "content": f"<image>\n{turns[0]['content']}"}, *turns[1:]],
               "images": [path]}


def _drawings(folder: Path, draw: random.Random) -> Iterator[Record]:
    train, _ = load_pictures(fetch("openmoji"))
    for n, (name, pixels) in enumerate(zip(train.names, train.pixels, strict=True)):
        yield _asked("image", _png(folder, f"drawing{n:04}", pixels), draw.choice(NAME), name)
    for sprite in load_sprites(fetch("arcade"))[0]:
        yield _asked("image", sprite.path, draw.choice(NAME), sprite.name)


def _paintings() -> Iterator[Record]:
    for painting in load_paintings(fetch("paintings"))[0]:
        yield _asked("image", painting.path, PAINTING, painting.text)


def _png(folder: Path, name: str, pixels: Tensor) -> str:
    """Write uint8 (3, H, W) as a file. -> its path, relative to the folder."""
    from PIL import Image

    Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())).save(folder / "media" / f"{name}.png")
    return f"media/{name}.png"


# ---- sounds ----


def _speech(draw: random.Random) -> Iterator[Record]:
    for name, load in (("speech", load_speech), ("sentences", load_sentences)):
        for sentence in load(fetch(name))[0]:
            yield _asked("audio", sentence.path, draw.choice(SAID), " ".join(sentence.words))


def _words(folder: Path, draw: random.Random) -> Iterator[Record]:
    for n, clip in enumerate(load_words(fetch("words")).train):
        path = folder / "media" / f"word{n:04}.wav"
        write_file(path, wav_bytes(clip.wave))
        yield _asked("audio", f"media/{path.name}", draw.choice(SAID), clip.word)


def _sounds(draw: random.Random) -> Iterator[Record]:
    for sound in load_sounds(fetch("arcade"))[0]:
        yield _asked("audio", sound.path, draw.choice(SOUND), sound.name)


# ---- plain questions ----


def _plain() -> Iterator[Record]:
    """Questions of the asset `dialogues`, with what the text model answers to them, greedily, up to its last whole
    sentence."""
    model, tokenizer = from_pretrained("smollm2")
    dialogues = load_records(fetch("dialogues"), "train")
    questions = list(dict.fromkeys(dialogue["messages"][0]["content"] for dialogue in dialogues))
    questions = questions[:: max(1, len(questions) // PLAIN)][:PLAIN]
    chat = chat_format(tokenizer)
    for begin in range(0, len(questions), AT_ONCE):
        asked = [[{"role": "user", "content": question}] for question in questions[begin : begin + AT_ONCE]]
        ids, padding = pad_left([chat.encode(messages) for messages in asked])
        out = generate(model, ids, PLAIN_WORDS, padding=padding, stop_ids=tokenizer.stop_ids)
        for messages, answer in zip(asked, out[:, ids.shape[1] :].tolist(), strict=True):
            text = tokenizer.decode(answer[: next((i for i, t in enumerate(answer) if t in tokenizer.stop_ids), None)])
            if whole := re.match(r".*[.!?]", text, re.DOTALL):
                yield {"messages": [*messages, {"role": "assistant", "content": whole[0]}]}


# ---- text ----


def _text() -> Iterator[Record]:
    for article in load_records(fetch("wiki"), "train"):
        yield {"text": text_of(article)}
