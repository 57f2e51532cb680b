"""What the tokens of a picture carry: a question asked about pictures whose tokens can be exchanged, and pixels with
gradients.

    pictures -> tokens_of -> (n, 9, C), exchanged as you like -> asked_about -> vectors (n, T, C) -> first_scores (n, V)
    pixels (..., 3, H, W) -> pixel_scores -> (..., V), differentiable

Sources: activation patching, Zhang and Nanda, arXiv:2309.16042; the sign of the gradient, arXiv:1412.6572. Built in
notebook 14.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.generation.prompts import Image
from llamamm.multimodal.model import Media, MultimodalLlama
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.senses.images import ImageLike

Splice = Callable[[Tensor, Tensor, Tensor], Tensor]  # vectors (B, T, C), places (B, T), features (N, C) -> (B, T, C)


def fill_places(x: Tensor, where: Tensor, features: Tensor) -> Tensor:
    """The places `where` (B, T) of x (B, T, C) filled with features (N, C), row after row."""
    return x.masked_scatter(where[..., None], features.to(x.dtype))


@torch.no_grad()
def tokens_of(llama: MultimodalLlama, processor: MultimodalProcessor, pictures: Iterable[ImageLike]) -> Tensor:
    """What eye and bridge make of n pictures. -> (n, M, C)"""
    media = Media(processor.image_processor(list(pictures)))
    return llama.bridged(llama.perceive(media))["image"][0]


def asked_about(
    llama: MultimodalLlama, processor: MultimodalProcessor, tokens: Tensor, question: str, fill: Splice = fill_places
) -> tuple[Tensor, Tensor]:
    """The same question about n pictures, from their tokens (n, M, C). -> vectors (n, T, C), places (n, T) bool"""
    blank = Image(torch.zeros(3, 64, 64, dtype=torch.uint8))  # for its places alone
    prompt = processor.chat([{"role": "user", "content": [blank, question]}])
    ids = torch.tensor([prompt.ids] * len(tokens))
    where = ids == llama.multimodal_cfg.image_token
    framed, real = llama.image_bridge.framed(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))
    return fill(llama.embed_tokens(ids.masked_fill(where, 0)), where, framed[real]), where


def first_scores(llama: MultimodalLlama, x: Tensor) -> Tensor:
    """Scores of the answer's first token. Vectors (n, T, C) -> (n, V)"""
    return llama.lm_head(llama.norm(through_blocks(llama, x)[:, -1]))


def through_blocks(llama: MultimodalLlama, x: Tensor) -> Tensor:
    """The text model's blocks. (n, T, C) -> (n, at least the last of T, C)

    Without gradients, the vectors that all rows begin with, as those of the same words, go through the blocks once.
    """
    n_same = int((x == x[:1]).all(dim=2).all(dim=0).cumprod(dim=0).sum())
    n_same = min(n_same, x.shape[1] - 1)
    if torch.is_grad_enabled() or len(x) == 1 or n_same < 1:
        return llama.run_blocks(x)
    one, cache = llama.make_cache(1, n_same), llama.make_cache(len(x), x.shape[1])
    llama.run_blocks(x[:1, :n_same], cache=one)
    cache.keys[..., :n_same, :], cache.values[..., :n_same, :] = one.keys, one.values
    cache.advance(n_same)
    return llama.run_blocks(x[:, n_same:], cache=cache)


def pixel_scores(
    llama: MultimodalLlama, processor: MultimodalProcessor, pixels: Tensor, question: str
) -> Tensor:
    """The same from pictures' pixels, 0 to 1, with gradients. (3, H, W) -> (V,), or (n, 3, H, W) -> (n, V)

    Pixels are resized before they are rounded to whole numbers, which have no gradient.
    """
    cfg, looks = llama.multimodal_cfg, processor.image_processor
    pictures = pixels.view(-1, *pixels.shape[-3:])
    large = F.interpolate(pictures, size=cfg.image_size, mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (looks.mean, looks.std))
    features = llama.vision_tower((large - mean) / std, layer=cfg.image_layer, cls=False)
    tokens, _ = llama.image_bridge(features, grid=cfg.grid)
    scores = first_scores(llama, asked_about(llama, processor, tokens, question)[0])
    return scores.view(*pixels.shape[:-3], -1)


def noise_like(step: Tensor, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Pixels moved as far as by `step` in every number, the way chosen by a coin where both stay between 0 and 1."""
    signs = torch.randint(2, step.shape, generator=generator) * 2 - 1
    turned = pixels + signs * step
    return torch.where((turned >= 0) & (turned <= 1), turned, pixels + step)


def as_many_others(chosen: Sequence[Sequence[int]], n: int, *, seed: int = 0) -> list[list[int]]:
    """For each list of numbers below n as many that are not in it, drawn at random; fewer where no more are left."""
    draw = random.Random(seed)
    rest = [[i for i in range(n) if i not in some] for some in chosen]
    return [draw.sample(others, min(len(some), len(others))) for some, others in zip(chosen, rest, strict=True)]
