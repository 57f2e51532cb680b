"""What turns words, images and sounds into the input of a `MultimodalLlama`: ids with places for the media, and those.

    ["What is this? ", Image("a.png")] -> ids [..., 512, 512, ..., 512], Media(pixels (1, 3, H, W))

An id behind the vocabulary stands once for each token that the bridge will make, so the length of a prompt is known
before any tower has run. Built in notebook 14.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.errors import ConfigError, InputError
from llamamm.files import read_json, write_file
from llamamm.generation.generate import pad_left
from llamamm.generation.prompts import Conversation, Image, Part, Prompt, Sound, check_parts, place_contents
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import Media
from llamamm.senses.config_keys import PREPROCESSOR, read_image_settings
from llamamm.senses.image_processor import ImageProcessor
from llamamm.senses.mel import cut_mel, split_wave
from llamamm.text.chat import ChatML, Llama3Chat, chat_format
from llamamm.text.tokenizer import Tokenizer


class MultimodalProcessor:
    """The settings of one model. image_processor: makes the tower's pixels; None for a model without an eye.

    Raises ConfigError for an eye without it.
    """

    def __init__(
        self, cfg: MultimodalConfig, tokenizer: Tokenizer, image_processor: ImageProcessor | None = None
    ) -> None:
        if cfg.vision is not None and image_processor is None:
            raise ConfigError("a model with an eye needs an image processor; load_image_processor(...) gives a tower's")
        self.cfg, self.tokenizer, self.image_processor = cfg, tokenizer, image_processor

    @property
    def stop_ids(self) -> frozenset[int]:
        return self.tokenizer.stop_ids

    def prompt(self, parts: Sequence[Part], *, bos: bool = True) -> Prompt:
        """Words, images and sounds in any order and number, as they stand, behind the begin-of-text token.

        Raises InputError for parts that are none of these or cannot be read, or that the model has no organ for.
        """
        parts = check_parts(parts)
        ids = self.tokenizer.encode("", bos=bos and (self.tokenizer.adds_bos or not any(parts)))
        loaded = _Loaded(self)
        for part in parts:
            ids += self.tokenizer.encode(part) if isinstance(part, str) else loaded.places(part)
        return Prompt(ids, tuple(loaded.media), loaded.inputs())

    def chat(
        self, messages: Conversation, *, add_generation_prompt: bool = True, chat: Llama3Chat | ChatML | None = None
    ) -> Prompt:
        """A conversation, {"role", "content"} each, in whose contents images and sounds may stand among the words.

        chat: the format, by default that of the tokenizer. Raises InputError as `prompt`, and for wrong messages.
        """
        format_ = chat_format(self.tokenizer) if chat is None else chat
        return self.placed(
            messages, lambda with_ids: format_.encode(with_ids, add_generation_prompt=add_generation_prompt)
        )

    def placed(self, messages: Conversation, encode: Callable[[Conversation], list[int]]) -> Prompt:
        """The prompt of a conversation whose ids `encode` makes, from contents with lists of ids for the media."""
        loaded = _Loaded(self)
        ids = encode(place_contents(messages, loaded.places))
        return Prompt(ids, tuple(loaded.media), loaded.inputs())

    def batch(self, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor, Mapping[str, Any]]:
        """Prompts as one batch, filled on the left: ids (B, T), padding (B, T) bool, and what the model gets beside."""
        ids, padding = pad_left([prompt.ids for prompt in prompts])
        media = join_media([prompt.inputs["media"] for prompt in prompts if prompt.inputs])
        return ids, padding, {} if media is None else {"media": media}

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's and the image processor's files into a folder that exists."""
        self.tokenizer.save(folder)
        if self.image_processor is not None:
            write_file(Path(folder) / PREPROCESSOR, json.dumps(self.image_processor.to_hf(), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path, tokenizer: Tokenizer) -> MultimodalProcessor:
        """That of a model's folder. Raises CheckpointError, ConfigError."""
        cfg = MultimodalConfig.from_hf(read_json(folder / "config.json"))
        images = None if cfg.vision is None else ImageProcessor.from_hf(read_image_settings(folder)[1])
        return cls(cfg, tokenizer, images)


class _Loaded:
    """The media of one prompt, in their order."""

    def __init__(self, processor: MultimodalProcessor) -> None:
        self.cfg, self.image_processor = processor.cfg, processor.image_processor
        self.media: list[Image | Sound] = []
        self.pixels: list[Tensor] = []  # (3, H, W) each
        self.mels: list[Tensor] = []  # (n_mels, T) each

    def places(self, part: Image | Sound) -> list[int]:
        """Read it; the ids that stand for it."""
        self.media.append(part)
        return self._image(part) if isinstance(part, Image) else self._sound(part)

    def inputs(self) -> dict[str, Any]:
        if not self.pixels and not self.mels:
            return {}
        return {"media": make_media(self.pixels, self.mels)}

    def _image(self, image: Image) -> list[int]:
        if self.image_processor is None:
            raise InputError("this model has no eye, but the prompt holds an image; leave it out, or take another "
                             "model")
        pixels = self.image_processor([image.source])[0]
        if pixels.shape[1:] != self.cfg.pixels:
            raise InputError(f"the image processor gives {tuple(pixels.shape[1:])} pixels, the model reads "
                             f"{self.cfg.pixels}; set its resize or crop")
        self.pixels.append(pixels)
        return [self.cfg.image_token] * self.cfg.n_image_places()

    def _sound(self, sound: Sound) -> list[int]:
        if self.cfg.audio is None:
            raise InputError("this model has no ear, but the prompt holds a sound; leave it out, or take another "
                             "model")
        ids = []
        for piece in split_wave(sound.wave(), seconds=self.cfg.audio.n_positions / 50):  # of 30 s, for Whisper
            self.mels.append(cut_mel(piece, n_mels=self.cfg.audio.n_mels))
            ids += [self.cfg.audio_token] * self.cfg.n_audio_places(self.mels[-1].shape[1] // 2)
        return ids


def make_media(pixels: Sequence[Tensor], mels: Sequence[Tensor]) -> Media:
    """Pictures (3, H, W) of one size, and log-mels (n_mels, T) of any even lengths, as the towers read them."""
    images = torch.stack(list(pixels)) if pixels else None
    if not mels:
        return Media(images)
    longest = max(mel.shape[1] for mel in mels)
    padded = torch.stack([F.pad(mel, (0, longest - mel.shape[1])) for mel in mels])  # (m, n_mels, T)
    return Media(images, padded, torch.tensor([mel.shape[1] // 2 for mel in mels]))


def join_media(media: Sequence[Media]) -> Media | None:
    """The media of several prompts in one list; None where there are none."""
    pixels = [one for some in media if some.pixels is not None for one in some.pixels]
    mels = [mel[:, : 2 * n] for some in media if some.mel is not None
            for mel, n in zip(some.mel, some.lengths.tolist(), strict=True)]  # fmt: skip
    return make_media(pixels, mels) if pixels or mels else None
