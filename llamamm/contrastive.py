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
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.encoder import Encoder, init_weights
from llamamm.errors import InputError
from llamamm.tower_config import EncoderConfig, VisionConfig
from llamamm.vision import VisionTower

Number = Tensor | float
Loss = Literal["clip", "siglip"]
LOSSES = ("clip", "siglip")
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
        return (x * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True)

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
        """Of a batch of pairs. Equal texts in it are no wrong answers to each other."""
        images, names = self.encode_images(pixels), self.encode_texts(texts)
        groups = torch.tensor([texts.index(text) for text in texts], device=images.device)
        scale = self.log_scale.exp().clamp(max=100.0)  # CLIP's limit: steeper is not stable
        if kind == "clip":
            return clip_loss(images, names, scale, groups=groups)
        return siglip_loss(images, names, scale, self.bias, groups=groups)


# ---- training ----


def train_two_towers(
    pixels: Tensor,
    texts: Sequence[str],
    *,
    steps: int = 500,
    seed: int = 0,
    loss: Loss = "clip",
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    shift: int = 4,
    model: TwoTowers | None = None,
    device: torch.device | str = "cpu",
) -> tuple[TwoTowers, list[float]]:
    """A model trained on pairs of pictures, uint8 (N, 3, H, W), and texts, N of them; and its loss at each step.

    Pictures are moved about by up to `shift` pixels, on white, and never turned over: names say left and right.
    model: one to train on; by default a new TwoTowers with the texts' words and a bias that says yes to one pair in
    batch_size.
    The seed decides all; the caller's random numbers are left as they are. Raises InputError.
    """
    if len(pixels) != len(texts) or len(texts) < 2:
        raise InputError(f"each picture needs its text, and there must be two or more; got {len(pixels)} pictures and "
                         f"{len(texts)} texts")
    if loss not in LOSSES or steps < 1 or batch_size < 2:
        raise InputError(f"loss must be {' or '.join(LOSSES)}, steps at least 1, batch_size at least 2; got {loss!r}, "
                         f"{steps} and {batch_size}")
    curve, batch_size = [], min(batch_size, len(texts))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model is None:
            words = sorted({word for text in texts for word in split_words(text)})
            model = TwoTowers(words, bias=-math.log(batch_size - 1))
        model.to(device).train()
        groups = [{"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
                  {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]  # fmt: skip
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
        order = torch.empty(0, dtype=torch.int64)
        for step in range(steps):
            if len(order) < batch_size:
                order = torch.randperm(len(texts))  # an epoch; its last few, less than a batch, are left out
            chosen, order = order[:batch_size], order[batch_size:]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _share(step, steps)
            value = model.loss(moved(pixels[chosen], shift), [texts[i] for i in chosen.tolist()], loss)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            curve.append(value.item())
    return model.eval(), curve


def moved(pixels: Tensor, shift: int) -> Tensor:
    """Each picture moved by up to `shift` pixels each way, white where it was. uint8 (B, 3, H, W) -> the same."""
    H, W = pixels.shape[2:]
    padded = F.pad(pixels, [shift] * 4, value=255)
    corners = torch.randint(0, 2 * shift + 1, (len(pixels), 2)).tolist()
    return torch.stack([picture[:, y : y + H, x : x + W] for picture, (y, x) in zip(padded, corners, strict=True)])


def _share(step: int, steps: int, warmup: int = 20) -> float:
    """Of the learning rate: up in a line, then down along a cosine to nothing."""
    warmup = min(warmup, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
