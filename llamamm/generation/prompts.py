"""Prompts that hold images and sounds among the words, before and after a model's processor has read them.

    ["Compare ", Image("a.png"), " with ", Image("b.png")]  ->  Prompt: ids with places for the media, and the media

What a user types is text and nothing else, also where it looks like a marker: `place_media` alone gives a meaning to
`<image>` and `<audio>`, and only where images and sounds were given beside the text. Built in notebook 14.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
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
    """A sound in a prompt: a file's path, bytes or open, or a wave (n_samples,) with its rate in samples a second."""

    source: str | Path | bytes | BinaryIO | Tensor
    rate: int = 16_000

    def wave(self) -> Tensor:
        """(n_samples,) float32 at 16 kHz. Raises InputError for a sound that cannot be read."""
        if isinstance(self.source, Tensor | np.ndarray):
            return to_wave(self.source, rate=self.rate)
        return load_wave(self.source)


Part = str | Image | Sound
Conversation = Sequence[Mapping[str, Any]]  # {"role", "content"}; content: a str, or a sequence of parts


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

    def chat(self, messages: Conversation, *, add_generation_prompt: bool = True) -> Prompt: ...

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

    def chat(self, messages: Conversation, *, add_generation_prompt: bool = True) -> Prompt:
        """A conversation in the tokenizer's chat format. Raises InputError, also for images and sounds."""
        words = place_contents(messages, self._words)
        return Prompt(chat_format(self.tokenizer).encode(words, add_generation_prompt=add_generation_prompt))

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
    """Words, images and sounds, PIL images made `Image`s, dicts read. Raises InputError for anything else."""
    if isinstance(parts, str) or not isinstance(parts, Sequence):
        raise InputError(f"a prompt is a list of text, Image(...) and Sound(...), got {type(parts).__name__}")
    checked: list[Part] = []
    for n, part in enumerate(parts):
        part = as_part(part, n)
        if not isinstance(part, str | Image | Sound):
            raise InputError(f"part {n} of the prompt is of type {type(part).__name__}; parts are text, Image(...) and "
                             f"Sound(...)")
        checked.append(part)
    return checked


def as_part(part: Any, n: int = 0) -> Any:
    """A PIL image as an `Image`; a part as dicts spell it as text, an `Image` or a `Sound`; the rest as it is.

    {"type": "text", "text"}, {"type": "image", "image" | "url" | "path"}, {"type": "image_url", "image_url": {"url"}},
    {"type": "audio", "audio" | "url" | "path"}, {"type": "input_audio", "input_audio": {"data"}}; an url is a file's
    path or a data: one. n: its place, for messages. Raises InputError for other dicts, with an example.
    """
    if isinstance(part, PIL.Image.Image):
        return Image(part)
    if not isinstance(part, Mapping):
        return part
    kind, keys = part.get("type"), _SPELLINGS.get(str(part.get("type")), ())
    found = [part[key] for key in keys if part.get(key) is not None]
    if len(found) != 1 or set(part) - {"type", "detail", *keys}:
        shown = ", ".join(f"{key!r}: ..." if key != "type" else f"'type': {kind!r}" for key in part)
        raise InputError(f"part {n} of the prompt is a dict of no known form, {{{shown}}}; write \"What is this?\", "
                         f"Image(\"cat.png\") or Sound(\"word.wav\"), or {{'type': 'text', 'text': 'What is this?'}}, "
                         f"{{'type': 'image', 'path': 'cat.png'}}, {{'type': 'audio', 'path': 'word.wav'}}")
    source = found[0]
    if isinstance(source, Mapping):  # as OpenAI nests it
        source = source.get("url") or source.get("data")
    if kind == "text":
        if not isinstance(source, str):
            raise InputError(f"the text of a part is of type {type(source).__name__}; it must be a str")
        return source
    if isinstance(source, str) and (kind == "input_audio" or source.startswith("data:")):
        source = _decoded(source)
    if isinstance(source, Image | Sound):
        return source
    return Image(source) if kind.startswith("image") else Sound(source)


_SPELLINGS = {
    "text": ("text",),
    "image": ("image", "url", "path"), "image_url": ("image_url",),
    "audio": ("audio", "url", "path"), "audio_url": ("audio_url",), "input_audio": ("input_audio",),
}  # fmt: skip


def _decoded(data: str) -> bytes:
    """The bytes of base64, with or without `data:image/png;base64,` in front."""
    try:
        return base64.b64decode(data.rpartition(",")[2], validate=True)
    except ValueError:
        raise InputError(f"{data[:40]!r} is not base64: give a file's path or its bytes, Image(\"cat.png\")") from None


def place_contents(messages: Conversation, place: Callable[[Image | Sound], str | list[int]]) -> Any:
    """A conversation as the chat formats take it: `place` gives what stands for each image and sound.

    A content of text alone is joined. What is no conversation, or no content, is left for them to refuse.
    """
    if not isinstance(messages, Sequence):
        return messages
    placed = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, Sequence) and not isinstance(content, str | bytes):
            parts = check_parts(content)
            pieces = [part if isinstance(part, str) else place(part) for part in parts]
            alone = all(isinstance(piece, str) for piece in pieces)
            message = {**message, "content": "".join(pieces) if alone else pieces}
        placed.append(message)
    return placed


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
            raise InputError(f"the prompt has {n_markers} {marker} marker{'s'[n_markers == 1:]}, but {len(media)} "
                             f"{'was' if len(media) == 1 else 'were'} given; each needs one")
    pieces = re.split("(<image>|<audio>)", text)
    return first + [left[piece].pop(0) if left.get(piece) else piece for piece in pieces if piece]


def on_device(inputs: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """A prompt's inputs, moved to where the model is."""
    return {name: value.to(device) for name, value in inputs.items()}
