"""Items and conversations with images and sounds as rows of ids to learn from. Used in notebook 14."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from llamamm.errors import InputError
from llamamm.generation.prompts import Conversation, Prompt
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import Features
from llamamm.multimodal.processor import MultimodalProcessor
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


class RowMaker:
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
