"""What a small multimodal Llama learns from: questions about pictures, names of pictures, spoken words.

    easy-VQA  "is there a blue shape?"       -> "yes"            "What is this?" -> "a blue circle"
    OpenMoji  "what does the picture show?"  -> "red apple"      "What is this?" -> "red apple"
    words     "which word is said?"          -> "seven"          "What is this?" -> "seven"
    both      a question about one of the two, or                "What is this?" -> "a blue circle and seven"

Each item can be asked in three ways: with its picture or sound; with that in words, "a blue circle", from which a text
model learns to read what is described; or with nothing, which shows what a question alone gives away. The features of
frozen towers are computed once and kept.

Used in notebook 14.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llamamm.assets import fetch
from llamamm.audio import AudioEncoder
from llamamm.data import Example, encode_dialogue
from llamamm.errors import InputError, MissingDependencyError
from llamamm.image_processor import ImageProcessor
from llamamm.losses import IGNORE
from llamamm.mel import log_mel, n_frames
from llamamm.multimodal import Features, Media
from llamamm.multimodal_config import MultimodalConfig
from llamamm.multimodal_processor import MultimodalProcessor, make_media
from llamamm.pictures import Pictures, load_pictures
from llamamm.prompts import Messages, Prompt, pad_right
from llamamm.questions import COLOURS, SHAPES, Questions, load_questions
from llamamm.spoken import Clip, load_words
from llamamm.tokenizer import Tokenizer
from llamamm.vision import VisionTower

CAPTION, WORD, ANY = "what does the picture show?", "which word is said?", "What is this?"
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
VERSIONS = ("shown", "told", "blind")  # with the picture or sound; with that in words; with neither
BATCH = 32  # pictures or sounds at a time through a tower


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

    def features_of(self, items: Sequence[Item]) -> Features:
        """What some items are about, in fp32, sounds no longer than the longest of them."""
        images, rows = None, [item.row for item in items]
        if self.features.images is not None:
            images = self.features.images[rows].float()
            rows = [item.sound for item in items if item.sound is not None]
        if not rows:
            return Features(images)
        mask = self.features.sound_mask[rows]
        n = int(mask.sum(dim=1).max())
        return Features(images, self.features.sounds[rows, :n].float(), mask[:, :n])


@dataclass(frozen=True, eq=False)
class Tasks:
    """train: by kind, "vqa", "caption", "word" and "both"; test: held-out ones by what is new in them."""

    train: dict[str, Task]
    test: dict[str, Task]


# ---- the three assets as tasks ----


def load_tasks(
    cfg: MultimodalConfig,
    vision: VisionTower,
    audio: AudioEncoder,
    images: ImageProcessor,
    *,
    only_tests: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> Tasks:
    """The assets easy-vqa, openmoji and words, fetched if they must be, with the towers' features. say: of each step.

    only_tests: leave out the features of the training's, which nothing is measured on.
    Raises FetchError, InputError.
    """
    train, test = load_questions(fetch("easy-vqa"))
    drawn, unseen = load_pictures(fetch("openmoji"))
    words = load_words(fetch("words"))

    def seen(pixels: Tensor) -> Features:
        say(f"looking at {len(pixels):,} pictures")
        return Features(images=picture_features(vision, images, pixels, layer=cfg.image_layer))

    def heard(clips: Sequence[Clip]) -> Features:
        say(f"listening to {len(clips):,} sounds")
        return sound_features(audio, [clip.wave for clip in clips], layer=cfg.audio_layer)

    def both(name: str, pictures: Task, sounds: Task) -> Task:
        features = Features(pictures.features.images, sounds.features.sounds, sounds.features.sound_mask)
        return Task(name, both_items(pictures.items, sounds.items), features)

    nothing = Features()
    learned = {
        "vqa": Task("vqa", question_items(train, describing=True), nothing if only_tests else seen(train.pixels)),
        "caption": Task("caption", caption_items(drawn, (CAPTION, ANY)), nothing if only_tests else seen(drawn.pixels)),
        "word": Task("word", word_items(words.train, (WORD, ANY)), nothing if only_tests else heard(words.train)),
    }
    held_out = {"questions": Task("vqa", question_items(test), seen(test.pixels))}
    for new in sorted(set(unseen.new)):
        part = unseen.only(new)
        held_out[f"new {new}s"] = Task("caption", caption_items(part), seen(part.pixels))
    held_out["other voices"] = Task("word", word_items(words.test), heard(words.test))
    held_out["people"] = Task("word", word_items(words.real), heard(words.real))
    learned["both"] = both("both", learned["vqa"], learned["word"])
    held_out["picture and voice"] = both("both", held_out["questions"], held_out["other voices"]).first(1500)
    return Tasks(learned, held_out)


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


# ---- features, once ----


@torch.no_grad()
def picture_features(
    tower: VisionTower, processor: ImageProcessor, pixels: Tensor, *, layer: int | None = None
) -> Tensor:
    """uint8 (n, 3, H, W) -> (n, N, F) fp16 on the CPU, without the CLS token."""
    device = tower.position_embedding.device
    parts = (tower(processor(list(some)).to(device), layer=layer, cls=False) for some in pixels.split(BATCH))
    return torch.cat([part.half().cpu() for part in parts])


@torch.no_grad()
def sound_features(encoder: AudioEncoder, waves: Sequence[Tensor], *, layer: int | None = None) -> Features:
    """Waves (n_samples,) at 16 kHz, up to 30 s each -> sounds (n, N, F) fp16 on the CPU, and their mask."""
    found: list[Tensor] = []
    for i in range(0, len(waves), BATCH):
        mels = [log_mel(wave, n_mels=encoder.cfg.n_mels)[:, : 2 * n_frames(len(wave))] for wave in waves[i : i + BATCH]]
        media: Media = make_media([], mels).to(encoder.conv1.weight.device)
        features = encoder(media.mel, layer=layer, lengths=media.lengths).half().cpu()
        found += [one[:n] for one, n in zip(features, media.lengths.tolist(), strict=True)]
    sounds, mask = pad_right(found)
    return Features(sounds=sounds, sound_mask=mask)


# ---- words ----


def train_tokenizer(texts: Iterable[str], folder: Path, *, vocab_size: int) -> Tokenizer:
    """A byte-level BPE with Llama 3's special tokens, made of these texts, in `folder`. Raises
    MissingDependencyError without the tokenizers package."""
    try:
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers
    except ImportError:
        raise MissingDependencyError("training a tokenizer needs the tokenizers package: "
                                     "pip install 'llamamm[train]'") from None
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL), show_progress=False,
                                  initial_alphabet=alphabet)  # fmt: skip
    library.train_from_iterator(texts, trainer)
    library.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


def texts_of(tasks: Tasks) -> list[str]:
    """All that training says, for a tokenizer: also the words of the chat format, often enough to become tokens."""
    texts = ["user", "assistant", "\n\n"] * 1000
    for task in tasks.train.values():
        texts += [text for item in task.items for text in (item.question, f" {item.answer}", item.answer, item.words)]
    return texts


def encode_conversation(messages: Messages, processor: MultimodalProcessor) -> tuple[Example, Prompt]:
    """A conversation with images and sounds as something to learn from: ids with marks, and the model's inputs.

    The assistant's words are learned, never a place of an image or a sound. Raises InputError as `encode_dialogue`.
    """
    examples: list[Example] = []

    def encode(with_ids: Messages) -> list[int]:
        examples.append(encode_dialogue(with_ids, processor.tokenizer))
        return examples[0].ids

    prompt = processor.placed(messages, encode)
    return examples[0], prompt


class Encoder:
    """Items as rows of ids, in the chat format of the tokenizer; remembers what it has made.

    Only the answer and the token that ends it are learned: no question, and no place of a picture or a sound.
    """

    def __init__(self, cfg: MultimodalConfig, tokenizer: Tokenizer) -> None:
        self.cfg, self.tokenizer = cfg, tokenizer
        self._rows: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}

    def batch(self, task: Task, chosen: Sequence[int], version: str) -> tuple[Tensor, Tensor, Features | None]:
        """ids, targets (B, T) int64, filled on the right, and what stands in them. version: one of VERSIONS.

        Raises InputError for another version.
        """
        if version not in VERSIONS:
            raise InputError(f"version must be one of {', '.join(VERSIONS)}, got {version!r}")
        items = [task.items[i] for i in chosen]
        rows = [self._row(item, task, version) for item in items]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        targets = torch.full_like(ids, IGNORE)
        for b, (row, wanted) in enumerate(rows):
            ids[b, : len(row)], targets[b, : len(row)] = row, wanted
        features = task.features_of(items) if version == "shown" else None
        return ids, targets, features

    def _row(self, item: Item, task: Task, version: str) -> tuple[Tensor, Tensor]:
        """ids (T,) and, for each, what comes next if it is learned, else IGNORE."""
        content: str | list[str | list[int]] = item.question
        if version == "shown":
            content = [self._places(task, item), item.question]
        elif version == "told" and item.words:
            content = f"{item.words}. {item.question}"
        key = (str(content), item.answer)
        if key not in self._rows:
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": item.answer}]
            example = encode_dialogue(messages, self.tokenizer)
            ids = torch.tensor(example.ids)
            wanted = ids.where(torch.tensor(example.learn), IGNORE)
            self._rows[key] = ids[:-1], wanted[1:]
        return self._rows[key]

    def _places(self, task: Task, item: Item) -> list[int]:
        """The picture's, then the sound's."""
        ids, row = [], item.row
        if task.features.images is not None:
            ids, row = [self.cfg.image_token] * self.cfg.n_image_places(), item.sound
        if row is not None:
            n_places = int(task.features.sound_mask[row].sum())
            ids += [self.cfg.audio_token] * self.cfg.n_audio_places(n_places)
        return ids


def epochs(n: int, *, batch_size: int, generator: np.random.Generator) -> Iterator[list[int]]:
    """Endless batches of numbers below n, each epoch in an order of its own; what is left of one goes into the next."""
    left: list[int] = []
    while True:
        while len(left) < batch_size:
            left += generator.permutation(n).tolist()
        chosen, left = left[:batch_size], left[batch_size:]
        yield chosen
