"""How well two towers find a picture's name, and a name's picture, among pictures that they have not seen.

Recall@k: the share of queries whose own is among the k nearest, against chance, k / N. `assets.openmoji` says what
"new thing" and "new tone" mean: of the first a model has seen none of the family, of the second the thing but not the
tone. Most new things (113 of 153) have a word in their name that training never says: no model can know it from these
data.

Used from notebook 11 on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from llamamm.assets.openmoji import Pictures
from llamamm.errors import InputError
from llamamm.senses.contrastive import LOSSES, Loss, TwoTowers, recall_at, similarities, split_words

AT = (1, 5)


@dataclass(frozen=True)
class Recall:
    """n: pairs. to_text, to_picture: recall@1 and @5, 0..1, of the names for a picture and of the pictures for a name;
    chance: what a blind draw gets."""

    n: int
    to_text: tuple[float, ...]
    to_picture: tuple[float, ...]
    chance: tuple[float, ...]


@dataclass(frozen=True)
class Retrieval:
    """A trained model, its loss at each step, the seconds it took, and its recall by kind of picture."""

    model: TwoTowers
    curve: list[float]
    seconds: float
    recall: dict[str, Recall]

    def table(self) -> Table:
        table = Table(title=f"{len(self.curve)} steps, {self.seconds:.0f} s", title_justify="left")
        table.add_column("pictures")
        for title in ("N", *(f"{way} @{k}" for way in ("name", "picture", "chance") for k in AT)):
            table.add_column(title, justify="right")
        for kind, found in self.recall.items():
            shares = (*found.to_text, *found.to_picture, *found.chance)
            table.add_row(kind, str(found.n), *(f"{share:.1%}" for share in shares))
        return table


def measure_retrieval(
    train: Pictures,
    test: Pictures,
    *,
    steps: int = 500,
    seed: int = 0,
    loss: Loss = "clip",
    device: torch.device | str = "cpu",
) -> Retrieval:
    """Train two towers on `train` and find the pictures and names of `test`. Raises InputError.

    Of as many pictures as are held out, the first of training by a draw with the seed, recall is measured too: the
    distance to it is what was learned by heart.
    """
    begin = time.perf_counter()
    model, curve = train_two_towers(train.pixels, train.names, steps=steps, seed=seed, loss=loss, device=device)
    seconds = time.perf_counter() - begin
    seen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[: len(test)].tolist()
    recall = {"held out": recall_of(model, test.pixels, test.names)}
    for kind in sorted(set(test.new)):
        part = test.only(kind)
        recall[f"  new {kind}"] = recall_of(model, part.pixels, part.names)
    recall["seen in training"] = recall_of(model, train.pixels[seen], [train.names[i] for i in seen])
    return Retrieval(model, curve, seconds, recall)


@torch.no_grad()
def recall_of(model: TwoTowers, pixels: Tensor, texts: list[str]) -> Recall:
    """Recall of N pictures, uint8 (N, 3, H, W), among N texts and the other way round. Raises InputError."""
    images = torch.cat([model.encode_images(part) for part in pixels.split(256)])
    names = torch.cat([model.encode_texts(texts[i : i + 256]) for i in range(0, len(texts), 256)])
    found = similarities(images, names)
    at = [min(k, len(texts)) for k in AT]
    return Recall(
        len(texts), tuple(recall_at(found, k) for k in at), tuple(recall_at(found.T, k) for k in at),
        tuple(k / len(texts) for k in at),
    )  # fmt: skip


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
