"""Items and conversations with images and sounds as rows of ids to learn from. Used in notebook 14."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llamamm.errors import InputError
from llamamm.generation.prompts import Conversation, Image, Prompt, Sound, place_contents
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import Features, Media, MultimodalLlama
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.tasks.items import Item, Task
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.batches import Batch
from llamamm.train.loop import Objective
from llamamm.train.losses import IGNORE
from llamamm.train.processes import Processes
from llamamm.train.records import Record, read_record
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
    record: Mapping[str, Any] | Record, processor: MultimodalProcessor, *,
    look: Callable[[Image | Sound], Tensor] | None = None,
) -> Example:  # fmt: skip
    """A record of any form that `read_record` knows, with its pictures and sounds: loaded, or as the features that
    `look` gives, (N, F) each.

    Raises InputError, also for a file that is missing or cannot be read.
    """
    read = read_record(record)
    if read.text is not None:
        return encode_text(read.text, processor.tokenizer)
    if look is None:
        return encode_conversation(read.messages, processor)[0]
    cfg = processor.cfg
    images: list[Tensor] = []
    sounds: list[Tensor] = []

    def places(medium: Image | Sound) -> list[int]:
        is_image = isinstance(medium, Image)
        if (cfg.vision if is_image else cfg.audio) is None:
            raise InputError(f"this model has no {'eye' if is_image else 'ear'}, but the record holds "
                             f"{'a picture' if is_image else 'a sound'}")
        if is_image:
            images.append(look(medium))
            return [cfg.image_token] * cfg.n_image_places()
        pieces = look(medium).split(cfg.audio.n_positions)  # of 30 s, as the processor cuts it
        sounds.extend(pieces)
        return [token for piece in pieces for token in [cfg.audio_token] * cfg.n_audio_places(len(piece))]

    example = encode_dialogue(place_contents(read.messages, places), processor.tokenizer)
    return replace(example, images=tuple(images), sounds=tuple(sounds))


class MediaObjective(Objective):
    """The loss of a model that sees and hears.

    A bridge, or a tower that trains, with nothing to do in a batch gets gradients of zero: so several processes, whose
    rows hold different things, all have the same ones to send. What no process had to do is then left alone, see
    `drop_idle`.
    """

    def __init__(self, model: MultimodalLlama) -> None:
        super().__init__(model)
        self.used: set[str] = set()

    def forward(self, ids: Tensor, targets: Tensor, segments: Tensor | None = None, **media: Any) -> Tensor:
        """As in `Objective`; media: `media` or `features`, as in `MultimodalLlama`."""
        loss = super().forward(ids, targets, segments, **media)
        used = {"gated"} if media else set()
        for given in media.values():
            seen, heard = (given.images, given.sounds) if isinstance(given, Features) else (given.pixels, given.mel)
            used |= {"image_bridge", "vision_tower"} if seen is not None else set()
            used |= {"audio_bridge", "audio_encoder"} if heard is not None else set()
        self.used |= used if self.training else set()  # what an evaluation looks at has no gradients
        parts = (getattr(self.model, name, nn.Module()) for name in (*self.model.ADDED, *self.model.TOWERS))
        idle = [p.sum() for part in parts for p in part.parameters() if p.requires_grad]
        return loss + 0.0 * sum(idle) if idle else loss

    def drop_idle(self, processes: Processes) -> None:
        """Take the gradients away from what no process has used since the last call: they are zero, and the optimizer
        would shrink the weights all the same. All processes must call it."""
        for name in (*self.model.ADDED, *self.model.TOWERS):
            if not processes.any(name in self.used):
                for parameter in getattr(self.model, name, nn.Module()).parameters():
                    parameter.grad = None
        self.used.clear()


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
