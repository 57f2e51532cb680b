"""Items and conversations with images and sounds as rows of ids to learn from. Used in notebook 14."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llamamm.errors import InputError
from llamamm.generation.prompts import Conversation, Prompt
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import Media
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.tasks.items import Item, Task
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.batches import Batch
from llamamm.train.losses import IGNORE
from llamamm.train.records import read_record
from llamamm.train.rows import Example, encode_dialogue, encode_text

VERSIONS = ("shown", "told", "blind")  # with the picture or sound; with that in words; with neither


def encode_conversation(messages: Conversation, processor: MultimodalProcessor) -> tuple[Example, Prompt]:
    """A conversation with images and sounds as something to learn from: ids with marks, and the model's inputs.

    The assistant's words are learned, never a place of an image or a sound. Raises InputError as `encode_dialogue`.
    """
    examples: list[Example] = []

    def encode(with_ids: Conversation) -> list[int]:
        examples.append(encode_dialogue(with_ids, processor.tokenizer))
        return examples[0].ids

    prompt = processor.placed(messages, encode)
    media = prompt.inputs.get("media", Media())
    images = () if media.pixels is None else tuple(media.pixels)
    sounds = () if media.mel is None else tuple(
        mel[:, : 2 * n] for mel, n in zip(media.mel, media.lengths.tolist(), strict=True)
    )  # fmt: skip
    return replace(examples[0], images=images, sounds=sounds), prompt


def encode_media_record(
    record: Mapping[str, Any], processor: MultimodalProcessor, *, folder: Path | None = None
) -> Example:
    """A record of any form that `read_record` knows, its pictures and sounds loaded. folder: where paths begin.

    Raises InputError, also for a file that is missing or cannot be read.
    """
    read = read_record(record, folder=folder)
    if read.text is not None:
        return encode_text(read.text, processor.tokenizer)
    return encode_conversation(read.messages, processor)[0]


class RowMaker:
    """Items as rows of ids, in the chat format of the tokenizer; remembers what it has made.

    Only the answer and the token that ends it are learned: no question, and no place of a picture or a sound.
    """

    def __init__(self, cfg: MultimodalConfig, tokenizer: Tokenizer) -> None:
        self.cfg, self.tokenizer = cfg, tokenizer
        self._rows: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}

    def batch(self, task: Task, chosen: Sequence[int], version: str) -> Batch:
        """Some items of a task, a row each, filled on the right, with what stands in them. version: one of VERSIONS.

        Raises InputError for another version.
        """
        if version not in VERSIONS:
            raise InputError(f"version must be one of {', '.join(VERSIONS)}, got {version!r}")
        items = [task.items[i] for i in chosen]
        rows = [self._row(item, task, version) for item in items]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        targets, segments = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
        for b, (row, wanted) in enumerate(rows):
            ids[b, : len(row)], targets[b, : len(row)], segments[b, : len(row)] = row, wanted, 1
        seen = [task.seen_of(item) if version == "shown" else ([], []) for item in items]
        return Batch(ids, targets, segments, [images for images, _ in seen], [sounds for _, sounds in seen],
                     looked_at=True)

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


class Epochs:
    """Endless batches of numbers below n, each epoch in an order of its own; what is left of one goes into the next."""

    def __init__(self, n: int, *, batch_size: int, generator: np.random.Generator) -> None:
        self.n, self.batch_size, self.generator = n, batch_size, generator
        self.left: list[int] = []

    def __next__(self) -> list[int]:
        while len(self.left) < self.batch_size:
            self.left += self.generator.permutation(self.n).tolist()
        chosen, self.left = self.left[: self.batch_size], self.left[self.batch_size :]
        return chosen
