"""How well two towers find a picture's name, and a name's picture, among pictures that they have not seen.

Recall@k: the share of queries whose own is among the k nearest, against chance, k / N. `llamamm.pictures` says what
"new thing" and "new tone" mean: of the first a model has seen none of the family, of the second the thing but not the
tone. Most new things (113 of 153) have a word in their name that training never says: no model can know it from these
data.

Used from notebook 11 on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from rich.table import Table
from torch import Tensor

from llamamm.contrastive import Loss, TwoTowers, recall_at, similarities, train_two_towers
from llamamm.pictures import Pictures

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
