"""Pictures and words in one space: two towers, trained so that a picture lies nearest to its own name.

    pictures (B, 3, H, W) -> vision tower -> projection -> (B, E), length 1
    names, B of them      -> text tower   -> projection -> (B, E), length 1      similarity = images @ textsᵀ  (B, B)

No label is needed but the pairs themselves: every other name of the batch is a wrong answer. CLIP's loss is a choice
among the batch, once for each picture and once for each name; SigLIP's is a yes or no for every pair.

Sources: CLIP, arXiv:2103.00020; SigLIP, arXiv:2303.15343. Built in notebook 11.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.errors import InputError
from llamamm.senses.config import EncoderConfig, VisionConfig
from llamamm.senses.encoder import Encoder, init_weights
from llamamm.senses.vision import VisionTower

Number = Tensor | float
LossName = Literal["clip", "siglip"]
Loss = LossName | Callable[[Tensor, Tensor, Tensor], Tensor]  # or a function of images, texts (B, E) and the scale
LOSSES = get_args(LossName)
SMALL_VISION = VisionConfig("vit", EncoderConfig(64, 256, n_layers=4, n_heads=2), image_size=64, patch_size=16)
SMALL_TEXT = EncoderConfig(64, 256, n_layers=2, n_heads=2)

def clip_loss(images: Tensor, texts: Tensor, scale: Number, *, groups: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of choosing the right text for each image, and the right image for each text, halved.

    images, texts: (N, E), pair by pair; made of length 1 here. scale: the similarity, a cosine, is multiplied by it.
    groups: (N,) whole numbers, equal where two pairs have the same text: neither is a wrong answer to the other.
    """
    logits = similarities(images, texts) * scale  # (N, N), a row for an image
    logits = logits.masked_fill(_twins(logits, groups), float("-inf"))
    right = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def siglip_loss(images: Tensor, texts: Tensor, scale: Number, bias: Number, *, groups: Tensor | None = None) -> Tensor:
    """For each of the N² pairs, is it one? Sum of the log losses over N. Arguments as in `clip_loss`.

    bias: added to every logit. It starts below zero, since all but one pair in N are wrong ones.
    """
    logits = similarities(images, texts) * scale + bias  # (N, N)
    sign = 2 * torch.eye(len(logits), device=logits.device, dtype=logits.dtype) - 1  # 1 for a pair, -1 for no pair
    losses = -F.logsigmoid(sign * logits).masked_fill(_twins(logits, groups), 0.0)
    return losses.sum() / len(logits)


def similarities(images: Tensor, texts: Tensor) -> Tensor:
    """The cosine of each image with each text. (N, E), (M, E) -> (N, M). Raises InputError for other shapes."""
    if images.dim() != 2 or texts.dim() != 2 or images.shape[1] != texts.shape[1]:
        raise InputError(f"images and texts must be vectors of one width, (N, E) and (M, E); got "
                         f"{tuple(images.shape)} and {tuple(texts.shape)}")
    return F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T


def _twins(logits: Tensor, groups: Tensor | None) -> Tensor:
    """(N, N) bool, True for two pairs of one group, but not for a pair with itself."""
    if logits.shape[0] != logits.shape[1]:
        raise InputError(f"each image needs its text: got {logits.shape[0]} images and {logits.shape[1]} texts")
    itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return torch.zeros_like(itself) if groups is None else (groups[:, None] == groups[None, :]) & ~itself


def recall_at(similarity: Tensor, k: int) -> float:
    """Of N queries, how many find their own among the k most similar: row i should find column i. (N, N) -> 0..1.

    The other way round: recall_at(similarity.T, k). Where several are equally similar, the chance that a fair draw
    puts the right one among the k: a model that says the same of everything gets k / N. Raises InputError.
    """
    n = len(similarity)
    if similarity.shape != (n, n) or n == 0:
        raise InputError(f"similarity must be square, (N, N) with N pairs; got {tuple(similarity.shape)}")
    if not 1 <= k <= n:
        raise InputError(f"k must be from 1 to {n}, the number of pairs; got {k}")
    if similarity.isnan().any():
        raise InputError(f"{int(similarity.isnan().sum())} of {n * n} similarities are NaN")
    own = similarity.diagonal()[:, None]  # (N, 1)
    better = (similarity > own).sum(dim=1)  # (N,)
    equal = (similarity == own).sum(dim=1)  # itself too
    return ((k - better) / equal).clamp(0, 1).mean().item()


# ---- the two towers ----


class TextTower(nn.Module):
    """A text's words, read at once. Texts -> (B, C), the mean over its tokens.

    A word of `words` is one token; any other is spelled, a token for each byte. Longer texts are cut to max_tokens.
    """

    def __init__(self, cfg: EncoderConfig, words: Sequence[str] = (), *, max_tokens: int = 48) -> None:
        super().__init__()
        self.ids = {word: 256 + i for i, word in enumerate(words)}  # the bytes come first
        self.max_tokens = max_tokens
        self.token_embedding = nn.Embedding(256 + len(self.ids), cfg.hidden_size)
        self.position_embedding = nn.Parameter(torch.randn(max_tokens, cfg.hidden_size) * 0.02)
        self.encoder = Encoder(cfg)
        self.final_layernorm = nn.LayerNorm(cfg.hidden_size, eps=cfg.norm_eps)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.apply(init_weights)

    def forward(self, texts: Sequence[str]) -> Tensor:
        ids, real = self.tokenize(texts)
        x = self.token_embedding(ids) + self.position_embedding[: ids.shape[1]]  # (B, T, C)
        x = self.final_layernorm(self.encoder(x, mask=real[:, None, None, :]))  # filling is seen by none
        return x.where(real[..., None], 0).sum(dim=1) / real.sum(dim=1, keepdim=True)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts -> ids (B, T), filled up to the longest, and where they are real, (B, T) bool. Raises InputError."""
        rows = [[i for word in split_words(text) for i in self._token_ids(word)][: self.max_tokens] for text in texts]
        if not rows or not all(rows):
            raise InputError(f"a text tower reads one text or more, each of one word or more; got {list(texts)!r}")
        device, T = self.position_embedding.device, max(map(len, rows))
        ids = torch.tensor([row + [0] * (T - len(row)) for row in rows], device=device)
        return ids, torch.arange(T, device=device) < torch.tensor([[len(row)] for row in rows], device=device)

    def _token_ids(self, word: str) -> list[int]:
        return [self.ids[word]] if word in self.ids else list(f" {word}".encode())  # the space tells where it begins


def split_words(text: str) -> list[str]:
    """Lower-case words and marks: "Woman's hat, red" -> woman's hat , red"""
    return re.findall(r"[\w']+|[^\w'\s]", text.lower())


class TwoTowers(nn.Module):
    """A vision tower and a text tower with one space for both, width E; by default the size that a laptop trains.

    words: what the text tower reads as one token each. bias: where SigLIP's starts; it and the scale are learned too.
    """

    def __init__(
        self,
        words: Sequence[str] = (),
        *,
        vision: VisionConfig = SMALL_VISION,
        text: EncoderConfig = SMALL_TEXT,
        width: int = 128,
        bias: float = -10.0,
    ) -> None:
        super().__init__()
        self.vision_tower = VisionTower(vision)
        self.text_tower = TextTower(text, words)
        self.visual_projection = nn.Linear(vision.encoder.hidden_size, width, bias=False)
        self.text_projection = nn.Linear(text.hidden_size, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))  # as a logarithm, it stays above zero
        self.bias = nn.Parameter(torch.tensor(bias))

    def encode_images(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, H, W), prepared here -> (B, E), each of length 1. Raises InputError for another type."""
        if pixels.dtype != torch.uint8:
            raise InputError(f"pixels must be uint8, 0..255, as load_pictures gives them; got {pixels.dtype}")
        x = pixels.to(self.bias.device).float() / 127.5 - 1  # -1..1
        return F.normalize(self.visual_projection(self.vision_tower.pooled(x)), dim=1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """B texts -> (B, E), each of length 1."""
        return F.normalize(self.text_projection(self.text_tower(texts)), dim=1)

    def loss(self, pixels: Tensor, texts: Sequence[str], kind: Loss = "clip") -> Tensor:
        """Of a batch of pairs. Equal texts in it are no wrong answers to each other. kind: a loss's name, or a function
        of images, texts (B, E), both of length 1, and the scale."""
        images, names = self.encode_images(pixels), self.encode_texts(texts)
        groups = torch.tensor([texts.index(text) for text in texts], device=images.device)
        scale = self.log_scale.exp().clamp(max=100.0)  # CLIP's limit: steeper is not stable
        if callable(kind):
            return kind(images, names, scale)
        if kind == "clip":
            return clip_loss(images, names, scale, groups=groups)
        return siglip_loss(images, names, scale, self.bias, groups=groups)


# ---- training ----
