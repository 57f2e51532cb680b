"""What lessons 11 to 13 have the learner write, put into the real eye (ViT-S), the real ear (Whisper tiny), and bridges
after them. Each function takes an answer and gives a verdict.

The bridges of 13 have random weights: what comes out means nothing, but must equal what comes out with the package's
part.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.assets.fetch import fetch
from llamamm.assets.openmoji import load_pictures
from llamamm.assets.spoken_words import load_words
from llamamm.course.swap import real_model
from llamamm.course.swap_towers import real_ear, real_eye, real_words, swap_part
from llamamm.course.swaps_verdict import ROUNDING, SAME, Verdict, apart, distance
from llamamm.multimodal.bridge import Bridge
from llamamm.multimodal.config import BridgeConfig
from llamamm.multimodal.processor import make_media
from llamamm.senses.mel import HOP, MAX_SAMPLES, N_BINS, N_FFT, RATE, cut_mel, hz_to_mel, mel_filterbank, mel_to_hz

EAR_ROUNDING = 1e-4  # of the ear's features: lopsided triangles made symmetric move them by six times as much
WIDTH = 384  # of what the eye gives, and the ear
N_WORDS = 20  # spoken words with a bridge behind them, each in two voices


def _found(
    who: str, things: str, place: str, part: Callable, prepare: Callable, rounding: float = ROUNDING
) -> Verdict:
    """The verdict on features by which pictures or words are looked for in a gallery."""
    with swap_part(place, part, prepare, quiet=True) as report:
        begin = (f"{who}: {report.found} of {report.n} {things} found again, {report.found_before} with the package's "
                 f"· {distance(report.difference, 'features')}: ")  # fmt: skip
        if report.difference <= rounding:
            return Verdict(True, begin + (SAME if report.difference else "the same"))
        such = ""
        if report.found < report.found_before:
            such = ", such as {!r} taken for {!r}".format(*report.mistakes[0])
        return Verdict(False, f"{begin}different features{such}")


# ---- 11: the eye ----


def _small(pictures: Tensor) -> Tensor:
    """64 x 64 pixels as the eye wants them, but smaller: 8 x 10 patches, and a rest at the right and below."""
    return F.interpolate(real_eye()[1](list(pictures)), size=(118, 143), mode="bilinear", antialias=True)


@cache
def _things() -> tuple[Tensor, list[str]]:
    """24 pictures and their names."""
    things = load_pictures(fetch("openmoji", progress=False))[1].only("thing")
    return things.pixels[::6][:24], things.names[::6][:24]


@cache
def _pictures() -> tuple[Tensor, list[str], list[str], Tensor, Callable[[], Tensor]]:
    """As `real_pictures`, of smaller ones: the queries are made smaller and moved."""
    (pixels, names), tower = _things(), real_eye()[0]
    smaller = F.interpolate(pixels.float(), size=(52, 52), mode="bilinear", antialias=True).round().byte()
    moved = F.pad(smaller, (8, 4, 7, 5), value=255)

    @torch.no_grad()
    def look(pictures: Tensor) -> Tensor:
        return tower.pooled(_small(pictures))

    return look(pixels), names, names, look(moved), lambda: look(moved)


def cut(answer: Any) -> Verdict:
    """11.1"""
    def embed(pixels: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return answer(pixels, weight.shape[-1]) @ weight.flatten(1).T + bias

    return _found("ViT-S with your cut", "pictures", "llamamm.senses.vision.embed_patches", embed, _pictures)


def positions_for(answer: Any) -> Verdict:
    """11.3: the tower was trained on 37 x 37 patches and sees 8 x 10 here."""
    table = real_eye()[0].position_embedding.detach()

    def resize(_positions: Tensor, *, old: int, new: tuple[int, int]) -> Tensor:  # noqa: ARG001
        return answer(table.clone(), *new)[1:]

    verdict = _found("ViT-S with your positions_for", "pictures", "llamamm.senses.vision.resize_positions", resize,
                     _pictures)  # fmt: skip
    if verdict.same and apart(answer(table.clone(), 8, 10)[:1], table[:1]) > ROUNDING:
        return Verdict(False, f"{verdict.line}, but the CLS token's own position has changed")
    return verdict


# ---- 12: the ear ----


def energies(answer: Any) -> Verdict:
    """12.1"""
    def log_mel(wave: Tensor, *, n_mels: int = 80) -> Tensor:
        wave = F.pad(wave, (0, MAX_SAMPLES - len(wave)))
        mirrored = F.pad(wave[None], (N_FFT // 2, N_FFT // 2), mode="reflect")[0]
        frames = mirrored.unfold(0, N_FFT, HOP)[:-1].clone()  # (3000, 400)
        log = (mel_filterbank(n_mels) @ answer(frames).T).clamp(min=1e-10).log10()
        return (torch.maximum(log, log.max() - 8.0) + 4.0) / 4.0

    return _found("Whisper with your energies", "words", "llamamm.senses.mel.log_mel", log_mel, real_words,
                  EAR_ROUNDING)  # fmt: skip


def triangles(answer: Any) -> Verdict:
    """12.2"""
    def filterbank(n_mels: int = 80) -> Tensor:
        top = hz_to_mel(torch.tensor(RATE / 2, dtype=torch.float64))
        edges = mel_to_hz(torch.linspace(0, 1, n_mels + 2, dtype=torch.float64) * top)
        return answer(edges, torch.linspace(0, RATE / 2, N_BINS, dtype=torch.float64)).float()

    return _found("Whisper with your triangles", "words", "llamamm.senses.mel.mel_filterbank", filterbank, real_words,
                  EAR_ROUNDING)  # fmt: skip


# ---- 13: bridges ----


@torch.no_grad()
def _random_bridge(merge: int, *, flat: bool) -> Bridge:
    torch.manual_seed(0)
    return Bridge(BridgeConfig("linear", merge=merge), real_model()[0].cfg, n_numbers=WIDTH, flat=flat).eval()


@cache
def _bridged_pictures() -> tuple[Tensor, list[str], list[str], Tensor, Callable[[], Tensor]]:
    """24 pictures as 20 tokens each from a random bridge, and again from paler pictures."""
    (pixels, names), tower, bridge = _things(), real_eye()[0], _random_bridge(2, flat=False)

    @torch.no_grad()
    def seen(pictures: Tensor) -> Tensor:
        return tower(_small(pictures), cls=False)  # (24, 80, 384)

    @torch.no_grad()
    def tokens(features: Tensor) -> Tensor:
        return bridge(features, grid=(8, 10))[0].flatten(1)

    pale = seen((pixels.float() * 0.6 + 60).byte())
    return tokens(seen(pixels)), names, names, tokens(pale), lambda: tokens(pale)


@cache
def _bridged_words() -> tuple[Tensor, list[str], list[str], Tensor, Callable[[], Tensor]]:
    """Spoken words, four places as one token by a random bridge, its tokens' mean; and again in different voices."""
    words, bridge = load_words(fetch("words", progress=False)), _random_bridge(4, flat=True)

    def heard(clips: list) -> tuple[Tensor, Tensor]:
        media = make_media([], [cut_mel(clip.wave) for clip in clips])
        with torch.no_grad():
            features = real_ear()(media.mel)  # without lengths: after a word's end stands something, and NaN, too
        features = features[:, : (features.shape[1] - 1) // 4 * 4 + 1]  # four places a token, and one is left over
        mask = torch.arange(features.shape[1]) < media.lengths[:, None]
        return features.where(mask[..., None] | (torch.arange(WIDTH) > 0), float("nan")), mask

    @torch.no_grad()
    def tokens(features: Tensor, mask: Tensor) -> Tensor:
        out, real = bridge(features, mask)
        return (out * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)

    spoken = [list({clip.word: clip for clip in clips}.values())[:N_WORDS] for clips in (words.train, words.test)]
    (known, unknown), names = (heard(clips) for clips in spoken), [[clip.word for clip in clips] for clips in spoken]
    return tokens(*known), names[0], names[1], tokens(*unknown), lambda: tokens(*unknown)


def shuffle(answer: Any) -> Verdict:
    """13.2"""
    def part(features: Tensor, grid: tuple[int, int], *, merge: int) -> Tensor:
        return answer(features, *grid, merge)

    return _found("ViT-S and a bridge with your shuffle", "pictures", "llamamm.multimodal.bridge.pixel_shuffle", part,
                  _bridged_pictures)  # fmt: skip


def stack(answer: Any) -> Verdict:
    """13.3"""
    def part(features: Tensor, mask: Tensor, *, merge: int) -> tuple[Tensor, Tensor]:
        return answer(features.clone(), mask.clone(), merge)

    return _found("Whisper and a bridge with your stack", "words", "llamamm.multimodal.bridge.stack_frames", part,
                  _bridged_words)  # fmt: skip


SWAPS = {
    "11.1": cut,
    "11.3": positions_for,
    "12.1": energies,
    "12.2": triangles,
    "13.2": shuffle,
    "13.3": stack,
}
