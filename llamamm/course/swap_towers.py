"""Your code in the real eye and the real ear: what is found again with it, and what without.

    with swap_patches(my_embed_patches): ...     the pretrained ViT;     (pixels, weight, bias) -> (B, N, C)
    with swap_mel(my_mel_filterbank): ...        the pretrained Whisper; n_mels -> (n_mels, 201)

A gallery of pictures or of spoken words is remembered as features, made with the package's part. Then each comes again
a little changed, a picture moved and made smaller, a word in another voice, and the features made with *your* part
look for the nearest in the gallery. For the block the package uses your part; afterwards its own is back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.assets.fetch import fetch
from llamamm.assets.openmoji import load_pictures
from llamamm.assets.spoken_words import Clip, load_words
from llamamm.errors import InputError
from llamamm.experiments.word_recognition import clip_features
from llamamm.pretrained.towers import load_audio_encoder, load_image_processor, load_vision_tower
from llamamm.senses.audio import AudioEncoder
from llamamm.senses.image_processor import ImageProcessor
from llamamm.senses.vision import VisionTower

N_PICTURES = 24
GALLERY_VOICES, QUERY_VOICES = 5, 2  # of the training's, each word their mean; of the held-out ones


@dataclass(frozen=True)
class TowerReport:
    """What a swap changed: how many of n were found without and with your part, which were taken for which instead,
    and the largest difference of a feature, relative to the largest feature."""

    n: int
    found_before: int
    found: int
    mistakes: list[tuple[str, str]]
    difference: float

    def __str__(self) -> str:
        text = (f"largest difference of a feature: {self.difference:.2g} of the largest\n"
                f"found again without: {self.found_before} of {self.n}, with yours: {self.found} of {self.n}")
        if self.mistakes:
            text += "\nsuch as: " + ", ".join(f"{own!r} taken for {other!r}" for own, other in self.mistakes[:3])
        return text


def swap_patches(embed_patches: Callable[..., Tensor], *, quiet: bool = False) -> Any:
    """Put your `embed_patches` into the real ViT for a block: `with swap_patches(mine) as report:`.

    quiet=True prints nothing. What your part raises comes out of the `with` line.
    """
    return swap_part("llamamm.senses.vision.embed_patches", embed_patches, real_pictures, quiet)


def swap_mel(mel_filterbank: Callable[..., Tensor], *, quiet: bool = False) -> Any:
    """Put your `mel_filterbank` before the real Whisper for a block. Arguments as in `swap_patches`."""
    return swap_part("llamamm.senses.mel.mel_filterbank", mel_filterbank, real_words, quiet)


@contextmanager
def swap_part(place: str, part: Callable, prepare: Callable, quiet: bool) -> Iterator[TowerReport]:
    if not callable(part):
        raise InputError(f"a swap takes a function, got {part!r}")
    gallery, names, expected, before, features = prepare()
    with patch(place, part):
        after = features()
        if after.shape != before.shape or not after.isfinite().all():
            raise InputError(f"with your part the features have shape {tuple(after.shape)} and "
                             f"{int((~after.isfinite()).sum())} of them are not finite; expected shape "
                             f"{tuple(before.shape)} and finite numbers")
        taken = [_nearest(queries, gallery) for queries in (before, after)]
        found = [[name == own for name, own in zip((names[i] for i in t), expected, strict=True)] for t in taken]
        mistakes = [(own, names[i]) for own, i in zip(expected, taken[1], strict=True) if names[i] != own]
        difference = float((after - before).abs().max() / before.abs().max())
        report = TowerReport(len(expected), sum(found[0]), sum(found[1]), mistakes, difference)
        if not quiet:
            print(report)
        yield report


def _nearest(queries: Tensor, gallery: Tensor) -> list[int]:
    """For each query (M, C) the place of the most similar of the gallery (N, C), both seen from the gallery's mean."""
    mean = gallery.mean(dim=0)
    return (F.normalize(queries - mean, dim=1) @ F.normalize(gallery - mean, dim=1).T).argmax(dim=1).tolist()


# ---- pictures ----


@cache
def real_eye() -> tuple[VisionTower, ImageProcessor]:
    """The pretrained ViT-S and its processor, loaded once."""
    return load_vision_tower("vit-s"), load_image_processor("vit-s")


@cache
def real_pictures() -> tuple[Tensor, list[str], list[str], Tensor, Callable[[], Tensor]]:
    """The gallery's features and names, the queries' right names and features, and what makes the latter anew."""
    tower, processor = real_eye()
    processor = replace(processor, resize=168, crop=(168, 168))  # half the work of 224, and as many are found
    _, test = load_pictures(fetch("openmoji", progress=False))
    things = test.only("thing")
    step = len(things) // N_PICTURES
    pixels, names = things.pixels[::step][:N_PICTURES], things.names[::step][:N_PICTURES]
    smaller = F.interpolate(pixels.float(), size=(48, 48), mode="bilinear", antialias=True).round().byte()
    moved = F.pad(smaller, (12, 4, 10, 6), value=255)  # 48 x 48 in 64 x 64, off the middle

    @torch.no_grad()
    def look(pictures: Tensor) -> Tensor:
        return tower.pooled(processor(list(pictures)))  # (n, C)

    return look(pixels), names, names, look(moved), lambda: look(moved)


# ---- words ----


@cache
def real_ear() -> AudioEncoder:
    """The encoder of the pretrained Whisper tiny.en, loaded once."""
    return load_audio_encoder("whisper-tiny", dtype=torch.float32)


@cache
def real_words() -> tuple[Tensor, list[str], list[str], Tensor, Callable[[], Tensor]]:
    """As `real_pictures`."""
    encoder = real_ear()
    words = load_words(fetch("words", progress=False))
    known = _of_voices(words.train, GALLERY_VOICES)
    queries = list({(clip.voice, clip.word): clip for clip in _of_voices(words.test, QUERY_VOICES)}.values())
    names = sorted({clip.word for clip in known})

    heard, waves = clip_features(encoder, [clip.wave for clip in known]), [clip.wave for clip in queries]
    gallery = torch.stack([heard[[clip.word == name for clip in known]].mean(dim=0) for name in names])
    right = [clip.word for clip in queries]
    return gallery, names, right, clip_features(encoder, waves), lambda: clip_features(encoder, waves)


def _of_voices(clips: list[Clip], n: int) -> list[Clip]:
    """The clips of the first n voices."""
    voices = list(dict.fromkeys(clip.voice for clip in clips))[:n]
    return [clip for clip in clips if clip.voice in voices]
