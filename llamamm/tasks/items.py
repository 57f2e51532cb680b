"""Questions with right answers about pictures and sounds, made from three assets: to learn from, and to be measured on.

    easy-VQA  "is there a blue shape?"       -> "yes"            "What is this?" -> "a blue circle"
    OpenMoji  "what does the picture show?"  -> "red apple"      "What is this?" -> "red apple"
    words     "which word is said?"          -> "seven"          "What is this?" -> "seven"
    both      a question about one of the two, or                "What is this?" -> "a blue circle and seven"

Each item can be asked in three ways: with its picture or sound; with that in words, "a blue circle", from which a text
model learns to read what is described; or with nothing, which shows what a question alone gives away. A `Task` holds
items with the features of what they are about, which `tasks.senses` computes.

Used in notebook 14.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from llamamm.assets.easy_vqa import COLOURS, SHAPES, Questions, right_without_looking
from llamamm.assets.openmoji import Pictures
from llamamm.assets.spoken_words import Clip
from llamamm.multimodal.model import Features

CAPTION, WORD, ANY = "what does the picture show?", "which word is said?", "What is this?"


@dataclass(frozen=True)
class Item:
    """A question, its answer, what it is about and that in words, "" if not known.

    row: of the task's images, or of its sounds where it has no images; sound: of a sound beside the image.
    """

    question: str
    answer: str
    row: int
    words: str = ""
    sound: int | None = None


@dataclass(frozen=True, eq=False)
class Task:
    """Items, and the features of all they are about: `images` or `sounds` with their mask, fp16 to save memory."""

    name: str
    items: list[Item]
    features: Features

    def __len__(self) -> int:
        return len(self.items)

    def first(self, n: int) -> Task:
        """The first n items, with the same features."""
        return replace(self, items=self.items[:n])

    def seen_of(self, item: Item) -> tuple[list[Tensor], list[Tensor]]:
        """The features, (N, F) each, of the pictures and of the sounds that an item is about."""
        images, sound = [], item.row
        if self.features.images is not None:
            images, sound = [self.features.images[item.row]], item.sound
        if sound is None:
            return images, []
        return images, [self.features.sounds[sound][self.features.sound_mask[sound]]]


@dataclass(frozen=True, eq=False)
class Tasks:
    """train: by kind, "vqa", "caption", "word" and "both"; test: held-out ones by what is new in them."""

    train: dict[str, Task]
    test: dict[str, Task]


# ---- the three assets as tasks ----


def question_items(questions: Questions, *, describing: bool = False) -> list[Item]:
    """An item for each question, in their order; describing: behind them, what each known picture is, in words."""
    words = describe(questions)
    triples = zip(questions.questions, questions.answers, questions.images, strict=True)
    items = [Item(question, answer, image, words.get(image, "")) for question, answer, image in triples]
    return items + [Item(ANY, text, image, text) for image, text in words.items()] * describing


def caption_items(pictures: Pictures, asked: Sequence[str] = (CAPTION,)) -> list[Item]:
    """What does the picture show? Its name. An item for each picture and each of the questions `asked`."""
    return [Item(question, name, row, name) for question in asked for row, name in enumerate(pictures.names)]


def word_items(clips: Sequence[Clip], asked: Sequence[str] = (WORD,)) -> list[Item]:
    """Which word is said? An item for each clip and each of the questions `asked`."""
    return [Item(question, clip.word, row, clip.word) for question in asked for row, clip in enumerate(clips)]


def both_items(pictures: Sequence[Item], sounds: Sequence[Item]) -> list[Item]:
    """For each question about a described picture a sound beside it, and asked in turn: that question, which word is
    said, and what both are. Pairs are made by counting, without random numbers."""
    items = []
    for n, picture in enumerate(p for p in pictures if p.words and p.question != ANY):
        sound = sounds[n * 7 % len(sounds)]  # neighbours in `sounds` are often the same word
        words = f"{picture.words} and {sound.answer}"
        question, answer = ((picture.question, picture.answer), (WORD, sound.answer), (ANY, words))[n % 3]
        items.append(Item(question, answer, picture.row, words, sound.row))
    return items


def describe(questions: Questions) -> dict[int, str]:
    """{image: "a blue circle"}, for those whose shape and colour both follow from the answers about them."""
    known: dict[int, dict[str, str]] = {}
    for question, answer, image in zip(questions.questions, questions.answers, questions.images, strict=True):
        named = [word for word in question.strip("?").split() if word in SHAPES + COLOURS]
        negated = {"not", "no"} & set(question.split())
        is_so = not question.startswith("what") and (answer == "yes") != bool(negated)
        facts = known.setdefault(image, {})
        # "what is the blue shape?" says blue, and its answer the shape
        for word in named * (is_so or question.startswith("what")) + [answer]:
            if word in SHAPES + COLOURS:
                facts["shape" if word in SHAPES else "colour"] = word
    return {image: f"a {f['colour']} {f['shape']}" for image, f in known.items() if len(f) == 2}


# ---- what can be had without looking ----


def right_blind(train: Task, test: Task) -> tuple[int, int]:
    """How many items of `test` two answers that look at nothing get right; see `easy_vqa.right_without_looking`."""
    pairs = ([(item.question, item.answer) for item in task.items] for task in (train, test))
    return right_without_looking(*pairs)


# ---- words ----


def texts_of(tasks: Tasks) -> list[str]:
    """All that training says, for a tokenizer: also the words of the chat format, often enough to become tokens."""
    texts = ["user", "assistant", "\n\n"] * 1000
    for task in tasks.train.values():
        texts += [text for item in task.items for text in (item.question, f" {item.answer}", item.answer, item.words)]
    return texts
