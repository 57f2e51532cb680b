"""Items and conversations with images and sounds as rows of ids to learn from. Used in notebook 14."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llamamm.errors import InputError
from llamamm.generation.prompts import Conversation, Prompt
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import Features
from llamamm.multimodal.places import pad_right
from llamamm.multimodal.processor import MultimodalProcessor, make_media
from llamamm.tasks.items import Item, Task
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.losses import IGNORE
from llamamm.train.rows import Example, encode_dialogue

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
    return examples[0], prompt


@dataclass(frozen=True)
class MediaBatch:
    """Rows of a step: ids, targets, segments (B, T) as in `Batch`, and the pictures and sounds in each row, in order.

    looked_at: they are features of a tower, (N, F) each, mostly frozen; else pixels (3, H, W) and log-mels (n_mels, T).
    """

    ids: Tensor
    targets: Tensor
    segments: Tensor
    images: list[list[Tensor]]
    sounds: list[list[Tensor]]
    looked_at: bool = True

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_targets(self) -> int:
        """How many places are learned: what a summed loss is divided by."""
        return int((self.targets != IGNORE).sum())

    @property
    def n_tokens(self) -> int:
        """How many places are no filling, those of pictures and sounds too."""
        return int((self.segments > 0).sum())

    def split(self, n_rows: int) -> list[MediaBatch]:
        """In pieces of n_rows rows, each with its pictures and sounds; the last may have fewer."""
        return [MediaBatch(*(part[i : i + n_rows] for part in (self.ids, self.targets, self.segments, self.images,
                                                                self.sounds)), self.looked_at)
                for i in range(0, len(self), n_rows)]  # fmt: skip

    def inputs(self, device: torch.device | str) -> dict[str, Any]:
        """What the objective is called with: ids, targets, segments where a row has several, features or media."""
        given: dict[str, Any] = {"ids": self.ids.to(device), "targets": self.targets.to(device)}
        if (self.segments > 1).any():
            given["segments"] = self.segments.to(device)
        images = [image for row in self.images for image in row]
        sounds = [sound for row in self.sounds for sound in row]
        if not images and not sounds:
            return given
        if not self.looked_at:
            return {**given, "media": make_media(images, sounds).to(device)}
        heard, mask = pad_right(sounds) if sounds else (None, None)
        seen = torch.stack(images).float() if images else None
        return {**given, "features": Features(seen, None if heard is None else heard.float(), mask).to(device)}


class RowMaker:
    """Items as rows of ids, in the chat format of the tokenizer; remembers what it has made.

    Only the answer and the token that ends it are learned: no question, and no place of a picture or a sound.
    """

    def __init__(self, cfg: MultimodalConfig, tokenizer: Tokenizer) -> None:
        self.cfg, self.tokenizer = cfg, tokenizer
        self._rows: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}

    def batch(self, task: Task, chosen: Sequence[int], version: str) -> MediaBatch:
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
        return MediaBatch(ids, targets, segments, [images for images, _ in seen], [sounds for _, sounds in seen])

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
