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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from llamamm.assets.openmoji import Pictures
from llamamm.errors import ConfigError, InputError
from llamamm.evals.intervals import told_share, wilson
from llamamm.senses.contrastive import LOSSES, Loss, TwoTowers, recall_at, similarities, split_words
from llamamm.train.config import TrainConfig
from llamamm.train.log import RunLog
from llamamm.train.loop import Trainer
from llamamm.train.randomness import randomness_kept

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
            shares = [told_share(round(share * found.n), found.n) for share in (*found.to_text, *found.to_picture)]
            table.add_row(kind, str(found.n), *shares, *(f"{share:.1%}" for share in found.chance))
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
    found = cosines_of(model, pixels, texts)
    at = [min(k, len(texts)) for k in AT]
    return Recall(
        len(texts), tuple(recall_at(found, k) for k in at), tuple(recall_at(found.T, k) for k in at),
        tuple(k / len(texts) for k in at),
    )  # fmt: skip


@torch.no_grad()
def cosines_of(model: TwoTowers, pixels: Tensor, texts: list[str]) -> Tensor:
    """Of N pictures, uint8 (N, 3, H, W), with M texts. -> (N, M). Raises InputError."""
    images = torch.cat([model.encode_images(part) for part in pixels.split(256)])
    names = torch.cat([model.encode_texts(texts[i : i + 256]) for i in range(0, len(texts), 256)])
    return similarities(images, names)


def share_of(hits: Tensor) -> tuple[float, float, float]:
    """The share of hits, (N,) bool, and the ends of its 95% interval: Wilson's, right near 0 and 1, too."""
    return hits.float().mean().item(), *wilson(int(hits.sum()), len(hits))


def lead_of(ours: Tensor, theirs: Tensor, *, draws: int = 5000) -> tuple[float, float, float]:
    """How far our share of hits lies above theirs on the same N items, and the ends of its 95% interval.

    By drawing items anew: what is easy or hard for both does not widen it. The draws are the same each time.
    """
    lead = ours.float() - theirs.float()  # (N,)
    places = torch.randint(len(lead), (draws, len(lead)), generator=torch.Generator().manual_seed(0))
    low, high = lead[places].mean(dim=1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return lead.mean().item(), low, high


class Pairs:
    """A batch: pictures, uint8 (B, 3, H, W), and their texts. Each is a wrong answer to the others: no pieces.
    """

    def __init__(self, pixels: Tensor, texts: Sequence[str]) -> None:
        self.pixels, self.texts = pixels, list(texts)
        self.n_targets = self.n_tokens = len(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    def split(self, n_rows: int) -> list[Pairs]:
        """Raises ConfigError for fewer rows than there are."""
        if n_rows < len(self):
            raise ConfigError(f"a contrastive loss compares all {len(self)} pairs of a batch, pieces of {n_rows} have "
                              f"another loss: leave micro_batch_size out, or take a smaller batch_size")
        return [self]

    def inputs(self, device: torch.device | str) -> dict[str, Any]:
        return {"pixels": self.pixels.to(device), "texts": self.texts}


class PairStream:
    """An endless stream of `Pairs`, epoch after epoch; an epoch's last few, less than a batch, are left out.

    Pictures are moved about by up to `shift` pixels. Draws come from PyTorch's global generator, which the trainer
    seeds and its checkpoints keep.
    """

    n_cut = 0

    def __init__(self, pixels: Tensor, texts: Sequence[str], *, batch_size: int, shift: int) -> None:
        self.pixels, self.texts, self.batch_size, self.shift = pixels, texts, batch_size, shift
        self._order, self._n_read = torch.empty(0, dtype=torch.int64), 0

    def __next__(self) -> Pairs:
        if len(self._order) < self.batch_size:
            self._order = torch.randperm(len(self.texts))
        chosen, self._order = self._order[: self.batch_size], self._order[self.batch_size :]
        self._n_read += self.batch_size
        return Pairs(moved(self.pixels[chosen], self.shift), [self.texts[i] for i in chosen.tolist()])

    @property
    def epoch_progress(self) -> float:
        return self._n_read / len(self.texts)

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch, for JSON."""
        return {"order": self._order.tolist(), "n_read": self._n_read, "n_pairs": len(self.texts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises InputError for other data."""
        if state["n_pairs"] != len(self.texts):
            raise InputError(f"the state is of {state['n_pairs']} pairs, here are {len(self.texts)}")
        self._order, self._n_read = torch.tensor(state["order"], dtype=torch.int64), state["n_read"]


class ContrastiveObjective(nn.Module):
    """Two towers and their loss, times the pairs: the trainer divides by them."""

    def __init__(self, model: TwoTowers, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, pixels: Tensor, texts: list[str]) -> Tensor:
        return self.model.loss(pixels, texts, self.loss) * len(texts)


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
    loss: "clip", "siglip", or a function of images, texts (B, E) and the scale.
    model: one to train on; by default a new TwoTowers with the texts' words and a bias that says yes to one pair in
    batch_size.
    The seed decides all; the caller's random numbers are left as they are. Raises InputError.
    """
    if len(pixels) != len(texts) or len(texts) < 2:
        raise InputError(f"each picture needs its text, and there must be two or more; got {len(pixels)} pictures and "
                         f"{len(texts)} texts")
    if not (callable(loss) or loss in LOSSES) or steps < 1 or batch_size < 2:
        raise InputError(f"loss must be {' or '.join(LOSSES)}, steps at least 1, batch_size at least 2; got {loss!r}, "
                         f"{steps} and {batch_size}")
    batch_size = min(batch_size, len(texts))
    with randomness_kept():
        torch.manual_seed(seed)
        if model is None:
            words = sorted({word for text in texts for word in split_words(text)})
            model = TwoTowers(words, bias=-math.log(batch_size - 1))
        model.to(device)
        cfg = TrainConfig.make({"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed,
                                "warmup_steps": min(20, steps // 10), "min_learning_rate": 0, "weight_decay": 0.1,
                                "beta2": 0.98, "precision": "fp32", "method": "full"})  # fmt: skip
        trainer = Trainer(model, PairStream(pixels, texts, batch_size=batch_size, shift=shift), cfg,
                          objective=ContrastiveObjective(model, loss), log=RunLog(quiet=True))  # fmt: skip
        trainer.fit()
    return model.eval(), trainer.log.losses


def moved(pixels: Tensor, shift: int) -> Tensor:
    """Each picture moved by up to `shift` pixels each way, white where it was. uint8 (B, 3, H, W) -> the same."""
    H, W = pixels.shape[2:]
    padded = F.pad(pixels, [shift] * 4, value=255)
    corners = torch.randint(0, 2 * shift + 1, (len(pixels), 2)).tolist()
    return torch.stack([picture[:, y : y + H, x : x + W] for picture, (y, x) in zip(padded, corners, strict=True)])
