"""What lesson 16 trains on, how it runs a file of settings, and what it measures of a model after each stage.

    names.jsonl       300 pictures of easy-VQA and what they show, "red circle"
    questions.jsonl   a question about each of them, for its colour or its shape, and the answer
    text.jsonl        articles of Wikipedia
    said.jsonl        three spoken words in a row, of one voice each
    pairs.jsonl       "What is ...?", answered by an article's first sentence or by its first two

Nothing of any asset's test part is in these; it is what is measured on.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor

from llamamm.assets.corpora import load_records, text_of
from llamamm.assets.easy_vqa import load_questions, text_only_best
from llamamm.assets.fetch import fetch
from llamamm.assets.sentences import plain_words
from llamamm.assets.spoken_words import Clip, load_words
from llamamm.evals.answers import answers
from llamamm.evals.intervals import Interval, interval
from llamamm.evals.perplexity import bits_per_byte
from llamamm.generation.prompts import Image
from llamamm.multimodal.model import Features, Media, MultimodalLlama
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.senses.waves import save_wave
from llamamm.tasks.items import describe
from llamamm.tasks.senses import sound_features
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.config import TrainConfig
from llamamm.train.loop import Trainer
from llamamm.train.losses import IGNORE
from llamamm.train.preference import answer_log_probs, encode_pair
from llamamm.train.rows import encode_record
from llamamm.train.run import run_training

SENTENCE_END = re.compile(r"(?<=[a-z0-9)]\.) (?=[A-Z])")
GAP = 1600  # samples of silence between two words, a tenth of a second


@dataclass(frozen=True)
class Phrase:
    """Some spoken words in a row: wave (n_samples,) at 16 kHz, and whose voice."""

    wave: Tensor
    words: list[str]
    voice: str


@dataclass(frozen=True)
class Stage:
    """What is measured after a stage: held-out questions right, the same without a picture, and bits a byte of
    held-out texts, by those of the text model as it was: of articles, and of plays, which no stage reads."""

    answered: Interval
    blind: Interval
    articles: Interval
    plays: Interval


class Workshop:
    """The files, in `folder`, which goes away with the object; and what is held out: `names`, `pixels` of 120 pictures,
    questions, texts, phrases and pairs. The arguments say how many of each; texts: articles, and as many plays."""

    def __init__(
        self, *, pictures: int = 300, questions: int = 100, texts: int = 6, phrases: int = 200, heard: int = 96,
        pairs: int = 160, tried: int = 24,
    ) -> None:  # fmt: skip
        self.folder = folder = Path(tempfile.mkdtemp(prefix="lesson-16-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        train, test = load_questions(fetch("easy-vqa", progress=False))
        shown = dict(list(_names(describe(train)).items())[:pictures])
        for number in shown:
            _save_picture(folder / f"{number:04}.png", train.pixels[number])
        self._write("names", ({"image": f"{n:04}.png", "text": name} for n, name in shown.items()))
        asked = train.only(yes_no=False)
        one_each = dict(zip(asked.images, asked.pairs(), strict=True))  # of several about a picture the last
        self._write("questions", ({"image": f"{n:04}.png", "question": one_each[n][0], "answer": one_each[n][1]}
                                  for n in shown if n in one_each))  # fmt: skip
        self.test = test.only(yes_no=False).subset(questions)
        self.text_alone = text_only_best(asked, self.test)  # the share that the questions' texts give away
        known = dict(list(_names(describe(test)).items())[: min(120, pictures)])
        self.names, self.pixels = [*known.values()], [Image(test.pixels[n]) for n in known]
        self._seen = {n: Image(test.pixels[n]) for n in set(self.test.images)}

        articles = [load_records(fetch("wiki", progress=False), part) for part in ("train", "test")]
        random.Random(0).shuffle(articles[0])
        self._write("text", ({"text": text_of(article)} for article in articles[0][:pictures]))
        plays = load_records(fetch("shakespeare", progress=False), "test")
        self.texts = [text_of(record) for record in (*articles[1][:texts], *plays[:texts])]
        learned, self.pairs = _pairs(articles[0])[:pairs], _pairs(articles[1])[:tried]
        self._write("pairs", learned)

        clips = load_words(fetch("words", progress=False))
        spoken = join_words(clips.train, phrases, seed=0)
        for n, phrase in enumerate(spoken):
            save_wave(folder / f"said{n:03}.wav", phrase.wave)
        self._write("said", ({"audio": f"said{n:03}.wav", "text": " ".join(phrase.words)}
                             for n, phrase in enumerate(spoken)))  # fmt: skip
        self.phrases = join_words(clips.test, heard, seed=1)
        self._looked_at: Features | None = None
        self._listened_to: Features | None = None

    def _write(self, name: str, records: Iterable[dict[str, Any]]) -> None:
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (self.folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")

    def train(self, settings: str) -> Trainer:
        """Run a file of settings in this folder, as `llamamm train` does. Stages that are done are not run again."""
        with contextlib.chdir(self.folder):
            Path("settings.yaml").write_text(settings, encoding="utf-8")
            trainer = run_training(TrainConfig.from_yaml("settings.yaml"), resume=True, quiet=True)
        trainer.model.eval()
        return trainer

    @torch.no_grad()
    def tokens(self, model: MultimodalLlama, processor: MultimodalProcessor) -> Tensor:
        """Of the held-out pictures, in fp32; the eye is frozen and looks once. -> (n, 9, C)"""
        with _in_bf16():
            if self._looked_at is None:
                pixels = processor.image_processor([image.source for image in self.pixels])
                self._looked_at = model.perceive(Media(pixels))
            return model.bridged(self._looked_at)["image"][0].float()

    def reply(
        self, model: Llama3Model, reader: MultimodalProcessor | Tokenizer, question: str, picture: Image | None = None,
        *, max_new_tokens: int = 24,
    ) -> str:  # fmt: skip
        """What the model answers, greedily."""
        content = question if picture is None else [picture, question]
        with _in_bf16():
            return answers(model, reader, [[{"role": "user", "content": content}]], max_new_tokens=max_new_tokens)[0]

    def ask(self, model: MultimodalLlama, processor: MultimodalProcessor, *, blind: bool = False) -> list[str]:
        """The answers to the held-out questions, with their pictures or, blind, without."""
        pictures = [() if blind else (self._seen[n],) for n in self.test.images]
        asked = [[{"role": "user", "content": [*picture, question]}]
                 for picture, question in zip(pictures, self.test.questions, strict=True)]  # fmt: skip
        with _in_bf16():
            return answers(model, processor, asked, max_new_tokens=3, batch_size=60)

    def answered(self, said: Sequence[str]) -> Interval:
        """The share of the held-out questions with that answer and no other word; intervals by pictures."""
        right = [plain_words(a) == plain_words(b) for a, b in zip(said, self.test.answers, strict=True)]
        return interval(right, groups=self.test.images)

    def bits(self, model: Llama3Model, tokenizer: Tokenizer) -> list[float]:
        """Bits a byte of each held-out text: the articles, then the plays."""
        with _in_bf16():
            return bits_per_byte(model, tokenizer, self.texts, length=128)

    def measure(self, model: MultimodalLlama, processor: MultimodalProcessor, before: Sequence[float]) -> Stage:
        """All of `Stage`. before: `bits` of the text model as it was."""
        seen, blind = (self.answered(self.ask(model, processor, blind=blind)) for blind in (False, True))
        bits, n = self.bits(model, processor.tokenizer), len(self.texts) // 2
        return Stage(seen, blind, interval(bits[:n], before[:n]), interval(bits[n:], before[n:]))

    @torch.no_grad()
    def heard(self, model: MultimodalLlama) -> tuple[Tensor, Tensor]:
        """The held-out phrases through ear and bridge: tokens (n, M, C) in fp32, and which are real (n, M)."""
        with _in_bf16():
            if self._listened_to is None:
                waves = [phrase.wave for phrase in self.phrases]
                heard = sound_features(model.audio_encoder, waves, layer=model.multimodal_cfg.audio_layer)
                self._listened_to = Features(sounds=heard.sounds.float(), sound_mask=heard.sound_mask)
            tokens, mask = model.bridged(self._listened_to)["audio"]
        return tokens.float(), mask

    @torch.no_grad()
    def log_probs(self, model: Llama3Model, tokenizer: Tokenizer) -> Tensor:
        """Of both answers of each held-out pair. -> (P, 2)"""
        encode, rows = partial(encode_record, tokenizer=tokenizer), []
        for pair in self.pairs:
            row = []
            for example in encode_pair(pair, encode):
                ids, learn = torch.tensor([example.ids]), torch.tensor([example.learn])
                with _in_bf16():
                    row.append(answer_log_probs(model, ids[:, :-1], ids.where(learn, IGNORE)[:, 1:]).item())
            rows.append(row)
        return torch.tensor(rows)


def join_words(clips: Sequence[Clip], n: int, *, seed: int, length: int = 3) -> list[Phrase]:
    """n phrases of `length` clips of one voice, voice after voice, with a short silence between."""
    draw, voices = random.Random(seed), sorted({clip.voice for clip in clips})
    of = {voice: [clip for clip in clips if clip.voice == voice] for voice in voices}
    found = []
    for number in range(n):
        some = draw.sample(of[voices[number % len(voices)]], length)
        parts = [part for clip in some for part in (torch.zeros(GAP), clip.wave)]
        found.append(Phrase(torch.cat(parts[1:]), [clip.word for clip in some], some[0].voice))
    return found


def _in_bf16() -> torch.autocast:
    """As the models of this lesson have trained: frozen weights in bf16, those that learn in fp32."""
    return torch.autocast("cpu", torch.bfloat16)


def _names(described: dict[int, str]) -> dict[int, str]:
    return {number: name.removeprefix("a ") for number, name in sorted(described.items())}


def _save_picture(path: Path, pixels: Tensor) -> None:
    PillowImage.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())).save(path)


def _pairs(articles: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The first sentence of an article, preferred to the first two, where neither is long."""
    found = []
    for article in articles:
        first, *rest = SENTENCE_END.split(article["text"])
        if rest and 6 < len(first.split()) < 20 and len(rest[0].split()) < 20:
            found.append({"prompt": f"What is {article['title']}?", "chosen": first, "rejected": f"{first} {rest[0]}"})
    return found
