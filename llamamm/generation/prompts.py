"""Prompts that hold images and sounds among the words, before and after a model's processor has read them.

    ["Compare ", Image("a.png"), " with ", Image("b.png")]  ->  Prompt: ids with places for the media, and the media

What a user types is text and nothing else, also where it looks like a marker: `place_media` alone gives a meaning to
`<image>` and `<audio>`, and only where images and sounds were given beside the text. Built in notebook 14.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import PIL.Image
import torch
from torch import Tensor

from llamamm.errors import InputError
from llamamm.generation.generate import pad_left
from llamamm.senses.images import ImageLike
from llamamm.senses.waves import load_wave, to_wave
from llamamm.text.chat import chat_format
from llamamm.text.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Image:
    """A picture in a prompt: a path, bytes, a PIL image, an array or a tensor, whatever `load_image` takes."""

    source: ImageLike


@dataclass(frozen=True, eq=False)
class Sound:
    """A sound in a prompt: a file's path or bytes, or a wave (n_samples,) with its rate in samples a second."""

    source: str | Path | bytes | Tensor
    rate: int = 16_000

    def wave(self) -> Tensor:
        """(n_samples,) float32 at 16 kHz. Raises InputError for a sound that cannot be read."""
        if isinstance(self.source, str | Path | bytes):
            return load_wave(self.source)
        return to_wave(self.source, rate=self.rate)


Part = str | Image | Sound
Messages = Sequence[Mapping[str, Any]]  # {"role", "content"}; content: a str, or a list of parts


@dataclass(frozen=True)
class Prompt:
    """A prompt as a model reads it: token ids, the media that stand in it, and what the model is given beside ids.

    inputs: keyword arguments of the model's call, none for text alone.
    """

    ids: list[int]
    media: tuple[Image | Sound, ...] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)


class Processor(Protocol):
    """What turns words, images and sounds into a model's input."""

    tokenizer: Tokenizer

    def prompt(self, parts: Sequence[Part], *, bos: bool = True) -> Prompt: ...

    def chat(self, messages: Messages, *, add_generation_prompt: bool = True) -> Prompt: ...

    def batch(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Mapping[str, Any]]: ...


class TextProcessor:
    """That of a model that reads text alone: the tokenizer and its chat format."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def prompt(self, parts: Sequence[Part], *, bos: bool = True) -> Prompt:
        """Words as they stand, behind the begin-of-text token where the tokenizer has one in front of texts, or where
        there are none. Raises InputError for images and sounds."""
        text = "".join(self._words(part) for part in check_parts(parts))
        return Prompt(self.tokenizer.encode(text, bos=bos and (self.tokenizer.adds_bos or not text)))

    def chat(self, messages: Messages, *, add_generation_prompt: bool = True) -> Prompt:
        """A conversation in the tokenizer's chat format. Raises InputError, also for images and sounds."""
        for message in messages:
            if isinstance(message, Mapping) and isinstance(message.get("content"), list):
                for part in check_parts(message["content"]):
                    self._words(part)
        return Prompt(chat_format(self.tokenizer).encode(messages, add_generation_prompt=add_generation_prompt))

    def batch(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Mapping[str, Any]]:
        """Prompts as one batch, filled on the left: ids (B, T), padding (B, T) bool, and nothing beside."""
        return *pad_left([prompt.ids for prompt in prompts]), {}

    def _words(self, part: Part) -> str:
        if not isinstance(part, str):
            raise InputError(f"this model reads text alone, but the prompt holds {_named(part)}; "
                             f"take a model that sees and hears")
        return part


def _named(part: Image | Sound) -> str:
    return "an image" if isinstance(part, Image) else "a sound"


def as_processor(reader: Tokenizer | Processor) -> Processor:
    """The second of what `from_pretrained` gives, as a processor in any case."""
    return TextProcessor(reader) if isinstance(reader, Tokenizer) else reader


def check_parts(parts: Sequence[Any]) -> list[Part]:
    """Words, images and sounds, PIL images made `Image`s. Raises InputError for anything else."""
    if isinstance(parts, str) or not isinstance(parts, Sequence):
        raise InputError(f"a prompt is a list of text, Image(...) and Sound(...), got {type(parts).__name__}")
    checked: list[Part] = []
    for n, part in enumerate(parts):
        part = Image(part) if isinstance(part, PIL.Image.Image) else part
        if not isinstance(part, str | Image | Sound):
            raise InputError(f"part {n} of the prompt is a {type(part).__name__}; parts are text, Image(...) and "
                             f"Sound(...)")
        checked.append(part)
    return checked


def place_media(text: str, *, images: Sequence[Image] = (), sounds: Sequence[Sound] = ()) -> list[Part]:
    """A text and its media as parts: each in the place of a marker, `<image>` or `<audio>`, in their order.

    Without any marker of a kind, those of that kind come first. Raises InputError, with both counts, where markers and
    media do not match.
    """
    left = {"<image>": list(images), "<audio>": list(sounds)}
    first: list[Part] = []
    for marker, media in left.items():
        n_markers = text.count(marker) if media else 0
        if n_markers == 0:
            first += media
            media.clear()
        elif n_markers != len(media):
            raise InputError(f"the prompt has {n_markers} {marker} markers, but {len(media)} were given; each needs "
                             f"one")
    pieces = re.split("(<image>|<audio>)", text)
    return first + [left[piece].pop(0) if left.get(piece) else piece for piece in pieces if piece]


def on_device(inputs: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """A prompt's inputs, moved to where the model is."""
    return {name: value.to(device) for name, value in inputs.items()}
