"""How well `senses` sees and hears, held out, beside what does not look or listen, and what it has forgotten.

    shapes     easy-VQA: right; blind; with the picture of another question; the most frequent answer for each text
    names      OpenMoji: named exactly, new tones and new things; the most frequent name
    tags       paintings: F1 of the museum's keywords; the five most frequent ones
    words      single words, of other voices and of people; the most frequent word
    speech     word errors, by what is new in a clip: voice, text, both; everyday sentences and an encyclopedia's
    forgotten  bits a byte on Wikipedia and Shakespeare, and twenty plain questions, of the text model and of senses

Every figure has its interval, see `evals.intervals.interval`. `llamamm eval senses` prints them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.table import Table

from llamamm.assets.arcade import load_sprites
from llamamm.assets.corpora import load_records, text_of
from llamamm.assets.easy_vqa import load_questions
from llamamm.assets.fetch import fetch
from llamamm.assets.openmoji import load_pictures
from llamamm.assets.paintings import ASKED, load_paintings
from llamamm.assets.sentences import NEW, Sentence, load_sentences, plain_words
from llamamm.assets.speech import load_speech
from llamamm.assets.spoken_words import load_words
from llamamm.evals.answers import answers
from llamamm.evals.intervals import Interval, interval
from llamamm.evals.perplexity import bits_per_byte
from llamamm.evals.transcripts import word_errors
from llamamm.experiments.release_data import NAME, SAID
from llamamm.generation.prompts import Image, Sound
from llamamm.multimodal.model import MultimodalLlama
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer

SHAPES, TEXTS = 600, 60  # questions asked, texts read
PLAIN = (
    ("What is the capital of France?", "paris"), ("What is the capital of Italy?", "rome"),
    ("What is the capital of Japan?", "tokyo"), ("What is two plus two?", "4|four"),
    ("How many days are in a week?", "7|seven"), ("How many months are in a year?", "12|twelve"),
    ("What color is the sky on a clear day?", "blue"), ("What color is grass?", "green"),
    ("What is the opposite of hot?", "cold"), ("What is the opposite of day?", "night"),
    ("Which planet do we live on?", "earth"), ("Which planet is known as the Red Planet?", "mars"),
    ("What is the largest ocean on Earth?", "pacific"), ("Who wrote Romeo and Juliet?", "shakespeare"),
    ("What do bees make?", "honey"), ("Which animal says meow?", "cat"),
    ("What is the chemical symbol for water?", "h2o"), ("In which country are the pyramids of Giza?", "egypt"),
    ("What is frozen water called?", "ice"), ("What language is spoken in Brazil?", "portuguese"),
)  # fmt: skip
Say = Callable[[str], None]
Transcriber = Callable[[Sequence[Sentence]], list[str]]


@dataclass(frozen=True)
class Line:
    """A figure and those beside it. better: "more" or "less". items: each question's answer, to be looked through."""

    what: str
    value: Interval
    beside: dict[str, Interval] = field(default_factory=dict)
    better: str = "more"
    items: list[dict[str, Any]] = field(default_factory=list, repr=False)


def _chat(question: str, medium: Image | Sound | None) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question if medium is None else [medium, question]}]


class Measured:
    """A model under measurement. size: a share of the items of each set, 1 for all: a quick look takes fewer."""

    def __init__(
        self, model: MultimodalLlama, processor: MultimodalProcessor, *, size: float = 1.0,
        say: Say = lambda _line: None,
    ) -> None:  # fmt: skip
        self.model, self.processor, self.size, self.say = model, processor, size, say

    def some(self, items: Sequence[Any]) -> list[Any]:
        """So many of the items, spread evenly over them."""
        n = max(1, round(self.size * len(items)))
        return [items[i * len(items) // n] for i in range(n)]

    def asked(self, what: str, conversations: Sequence[list[dict[str, Any]]], **options: Any) -> list[str]:
        def told(n: int) -> None:
            if n % 160 < options.get("batch_size", 16) or n == len(conversations):
                self.say(f"{what}: {n:,} of {len(conversations):,}")

        return answers(self.model, self.processor, conversations, say=told, **options)

    # ---- pictures ----

    def shapes(self) -> Line:
        """Questions about easy-VQA's pictures; groups: pictures."""
        train, test = load_questions(fetch("easy-vqa"))
        test = test.subset(max(1, round(SHAPES * self.size)))
        pictures = [Image(test.pixels[i]) for i in test.images]
        others = other_pictures(test.images)
        pairs: dict[str, Counter[str]] = {}
        for question, answer in train.pairs():
            pairs.setdefault(question, Counter())[answer] += 1
        by_text = [pairs[question].most_common(1)[0][0] for question in test.questions]
        answered = {
            "shapes": self.asked("shapes", [_chat(q, p) for q, p in zip(test.questions, pictures, strict=True)]),
            "blind": self.asked("shapes, blind", [_chat(q, None) for q in test.questions]),
            "another's picture": self.asked(
                "shapes, another's picture",
                [_chat(q, pictures[other]) for q, other in zip(test.questions, others, strict=True)],
            ),
            "most frequent for the text": by_text,
        }
        figures = {
            how: interval([plain_words(a) == plain_words(b) for a, b in zip(found, test.answers, strict=True)],
                          groups=test.images)
            for how, found in answered.items()
        }  # fmt: skip
        columns = zip(test.questions, test.answers, answered["shapes"], answered["blind"], strict=True)
        items = [{"question": q, "answer": a, "given": g, "blind": b} for q, a, g, b in columns]
        return Line("easy-VQA, questions answered", figures.pop("shapes"), figures, items=items)

    def names(self, new: str) -> Line:
        """Names of OpenMoji's held-out pictures of one kind."""
        train, test = load_pictures(fetch("openmoji"))
        test = test.only(new)
        rows = self.some(range(len(test)))
        names = [test.names[row] for row in rows]
        frequent = Counter(train.names).most_common(1)[0][0]
        return self._named(f"OpenMoji, new {new}s named", [Image(test.pixels[row]) for row in rows], names, frequent)

    def sprites(self) -> Line:
        """Names of sprites that training has not seen."""
        train, test = load_sprites(fetch("arcade"))
        test = self.some(test)
        frequent = Counter(sprite.name for sprite in train).most_common(1)[0][0]
        return self._named("sprites named", [Image(s.path) for s in test], [s.name for s in test], frequent)

    def _named(
        self, what: str, media: Sequence[Image | Sound], names: Sequence[str], frequent: str,
        groups: Sequence[str] | None = None,
    ) -> Line:  # fmt: skip
        question = NAME[0] if isinstance(media[0], Image) else SAID[0]
        given = self.asked(what, [_chat(question, medium) for medium in media])
        right, always = ([plain_words(a) == plain_words(b) for a, b in zip(found, names, strict=True)]
                         for found in (given, [frequent] * len(names)))  # fmt: skip
        words = interval([len({*plain_words(a)} & {*plain_words(b)}) for a, b in zip(given, names, strict=True)],
                         [len({*plain_words(b)}) for b in names], groups=groups)  # fmt: skip
        beside = {"most frequent": interval(always, groups=groups), "of the names' words": words}
        items = [{"answer": a, "given": g} for a, g in zip(names, given, strict=True)]
        return Line(what, interval(right, groups=groups), beside, items=items)

    def tags(self) -> Line:
        """Keywords of paintings: F1 over all of them."""
        train, test = load_paintings(fetch("paintings"))
        test = self.some(test)
        given = self.asked("paintings", [_chat(ASKED, Image(p.path)) for p in test], max_new_tokens=40)
        frequent = [tag for tag, _ in Counter(tag for p in train for tag in p.tags).most_common(5)]
        found = [{tag.strip().lower() for tag in text.split(",") if tag.strip()} for text in given]
        truth = [{tag.lower() for tag in p.tags} for p in test]
        figures = []
        for guesses in (found, [{tag.lower() for tag in frequent}] * len(test)):
            both = [2 * len(a & b) for a, b in zip(guesses, truth, strict=True)]
            figures.append(interval(both, [len(a) + len(b) for a, b in zip(guesses, truth, strict=True)]))
        items = [{"answer": p.text, "given": g} for p, g in zip(test, given, strict=True)]
        return Line("paintings, F1 of keywords", figures[0], {"most frequent five": figures[1]}, items=items)

    # ---- sounds ----

    def words(self, who: str) -> Line:
        """Single words of other voices ("test"), or of people ("real"); groups: voices, or recordings."""
        clips = self.some(getattr(load_words(fetch("words")), who))
        frequent = Counter(clip.word for clip in clips).most_common(1)[0][0]
        of = {"test": "other voices", "real": "people"}[who]
        waves, words, voices = zip(*clips, strict=True)
        return self._named(f"words of {of}", [Sound(wave) for wave in waves], words, frequent, groups=voices)

    def speech(self, name: str, new: str, transcribe: Transcriber | None) -> Line:
        """Word errors of one part of an asset of sentences, beside Whisper's; groups: voices where they are new."""
        load = {"speech": load_speech, "sentences": load_sentences}[name]
        clips = self.some([clip for clip in load(fetch(name))[1] if clip.new == new])
        title = {"speech": "everyday sentences", "sentences": "an encyclopedia's sentences"}[name]
        what = f"{title}, new {'voice and text' if new == 'both' else new}: words wrong"
        heard = {"": self.asked(what, [_chat(SAID[0], Sound(clip.path)) for clip in clips], max_new_tokens=32)}
        if transcribe is not None:
            heard["Whisper tiny.en"] = transcribe(clips)
        said = [clip.words for clip in clips]
        voices = None if new == "text" else [clip.voice for clip in clips]
        figures = {
            who: interval([word_errors(a, plain_words(b)) for a, b in zip(said, texts, strict=True)],
                          [len(words) for words in said], groups=voices)
            for who, texts in heard.items()
        }  # fmt: skip
        items = [{"answer": " ".join(a), "given": g, "voice": clip.voice}
                 for a, g, clip in zip(said, heard[""], clips, strict=True)]
        return Line(what, figures.pop(""), figures, better="less", items=items)

    # ---- what was known before ----

    def forgotten(self, base: Llama3Model, tokenizer: Tokenizer) -> list[Line]:
        """Text and plain questions, beside the text model's own figures. Of Wikipedia, `senses` has read other articles
        in training, of Shakespeare nothing."""
        read = [self._read(of, asset, base, tokenizer)
                for of, asset in (("Wikipedia", "wiki"), ("Shakespeare", "shakespeare"))]
        asked = [_chat(question, None) for question, _ in self.some(PLAIN)]
        keys = [key for _, key in self.some(PLAIN)]
        mine, theirs = self.asked("plain questions", asked), answers(base, tokenizer, asked)
        figures = [interval([not {*key.split("|")}.isdisjoint(plain_words(text)) for key, text in
                             zip(keys, found, strict=True)]) for found in (mine, theirs)]
        items = [{"question": a[0]["content"], "answer": k, "given": g, "SmolLM2": t}
                 for a, k, g, t in zip(asked, keys, mine, theirs, strict=True)]
        return [*read, Line("plain questions answered", figures[0], {"SmolLM2": figures[1]}, items=items)]

    def _read(self, of: str, asset: str, base: Llama3Model, tokenizer: Tokenizer) -> Line:
        """Bits a byte of an asset's held-out texts, or of where they begin."""
        texts = [text_of(record) for record in self.some(load_records(fetch(asset), "test"))[:TEXTS]]
        self.say(of)
        mine, theirs = (bits_per_byte(model, tokenizer, texts) for model in (self.model, base))
        beside = {"SmolLM2": interval(theirs), "times SmolLM2's": interval(mine, theirs)}
        return Line(f"{of}, bits a byte", interval(mine), beside, better="less")


def other_pictures(images: Sequence[int]) -> list[int]:
    """For each question, by its picture's number, a different question's row, drawn, about a different picture where
    there is one."""
    drawn = np.random.Generator(np.random.PCG64(0)).permutation(len(images)).tolist()
    found = [0] * len(images)
    for n, row in enumerate(drawn):
        later = drawn[n + 1 :] + drawn[:n]
        found[row] = next((other for other in later if images[other] != images[row]), row)
    return found


def measure_release(
    model: MultimodalLlama, processor: MultimodalProcessor, base: Llama3Model, *, size: float = 1.0,
    transcribe: Transcriber | None = None, say: Say = lambda _line: None,
) -> list[Line]:  # fmt: skip
    """Everything above. base: the text model that senses was made from; transcribe: Whisper's cascade, if any."""
    at = Measured(model, processor, size=size, say=say)
    beside = {"both": transcribe}  # where all is new; it takes longer than senses
    return [
        at.shapes(), at.names("tone"), at.names("thing"), at.sprites(), at.tags(), at.words("test"), at.words("real"),
        *(at.speech(name, new, beside.get(new)) for name in ("speech", "sentences") for new in NEW),
        *at.forgotten(base, processor.tokenizer),
    ]  # fmt: skip


def cascade() -> Transcriber:
    """Whisper's own decoder on the ear that senses hears with: sentences -> what it writes."""
    from llamamm.generation.transcribe import transcribe_all
    from llamamm.pretrained.towers import load_whisper
    from llamamm.senses.waves import load_wave

    model, tokens = load_whisper("whisper-tiny")
    return lambda clips: transcribe_all(model, tokens, [load_wave(clip.path) for clip in clips], batch_size=8)


def figure(value: Interval, what: str) -> str:
    """A share in percent, bits and ratios as they are."""
    if "bits" in what or "times" in what:
        return f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"
    return f"{value.value:.1%} ({value.low:.1%} to {value.high:.1%})"


def as_json(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The figures with every answer, for a file: a result can be looked through."""
    return [asdict(line) for line in lines]


def card_table(lines: Sequence[Line]) -> Table:
    """The figures for a terminal."""
    table = Table("held out", "n", "senses", "beside it", title="95 % intervals in brackets")
    for line in lines:
        beside = "\n".join(f"{name}: {figure(value, line.what + name)}" for name, value in line.beside.items())
        table.add_row(line.what, f"{line.value.n:,}", figure(line.value, line.what), beside)
    return table


def card_markdown(lines: Sequence[Line]) -> str:
    """The same for a model card."""
    rows = ["| held out | n | senses | beside it |", "|---|---|---|---|"]
    for line in lines:
        beside = "; ".join(f"{name} {figure(value, line.what + name)}" for name, value in line.beside.items())
        rows.append(f"| {line.what} | {line.value.n:,} | {figure(line.value, line.what)} | {beside} |")
    return "\n".join(rows)
