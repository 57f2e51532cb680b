"""A small Llama 3.2 Vision that reads receipts: does it pay to cut a long one into tiles?

    picture (3, 24 n, 72), n lines -> tiles of 72 x 72 pixels, three lines each -> MllamaModel: "C?" -> "tea 4.75"

The reader is trained from nothing on receipts that fit one tile. `with_tiles` then gives it the tables that tell tiles
apart, their gates at 0: it answers as before, and may open them in further training. A line lies in one row of patches,
two characters in each, which is what lets the reader learn in half a minute.

Used in notebook 15.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Paper
from PIL import ImageDraw, ImageFont
from torch import Tensor, nn

from llamamm.errors import InputError
from llamamm.evals.intervals import wilson
from llamamm.generation.generate import generate
from llamamm.generation.prompts import Image
from llamamm.llama32_vision.config import MllamaConfig, TiledVisionConfig
from llamamm.llama32_vision.model import MllamaModel, TiledImages
from llamamm.llama32_vision.processor import MllamaProcessor
from llamamm.llama32_vision.tiles import TileProcessor, aspect_ratios
from llamamm.senses.config import EncoderConfig
from llamamm.text.config import TextConfig
from llamamm.train.config import TrainConfig
from llamamm.train.log import RunLog
from llamamm.train.loop import Trainer
from llamamm.train.losses import IGNORE
from llamamm.train.randomness import randomness_kept
from llamamm.train.tokenizer import train_tokenizer

SIDE, PATCH = 72, 12  # pixels along a side of a tile, and of a patch
LINE = 24  # pixels from a line to the next: every other row of patches is white
MOST_LETTERS = 26  # lines are asked for by letter
GOODS = ("apple", "bread", "corn", "eggs", "fish", "honey", "jam", "milk", "oil", "rice", "soap", "tea")
TOTAL = "total"
CENTS = 10, 499  # a price, from and to
MEAN, DEVIATION = (0.91,) * 3, (0.29,) * 3  # of a receipt's pixels, from 0 to 1
WIDTH = 64
TABLES = 4.0  # deviation of fresh tables that tell tiles apart: a gate that is hardly open lets them matter

Rule = Callable[[int, int, int, int], tuple[int, int]]  # height, width, tile_size, max_tiles -> rows, columns


# ---- receipts ----


@dataclass(frozen=True)
class Receipt:
    """lines: what stands on each, "tea 4.75", the total last. picture: (3, 24 lines, 72) uint8, black on white."""

    lines: tuple[str, ...]
    picture: Tensor


def make_receipts(n: int, *, seed: int, lines: tuple[int, int]) -> list[Receipt]:
    """n receipts of lines[0] to lines[1] lines, the total's among them; goods at random, their prices too.

    Raises InputError for fewer than 2 lines, or more than there are letters.
    """
    fewest, most = lines
    if not 2 <= fewest <= most <= MOST_LETTERS:
        raise InputError(f"a receipt has 2 to {MOST_LETTERS} lines, got {fewest} to {most}")
    draw, receipts = random.Random(seed), []
    for _ in range(n):
        goods = draw.choices(GOODS, k=draw.randint(fewest, most) - 1)
        cents = [draw.randint(*CENTS) for _ in goods]
        rows = [*zip(goods, cents, strict=True), (TOTAL, sum(cents))]
        receipts.append(print_receipt([f"{what} {price / 100:.2f}" for what, price in rows]))
    return receipts


def print_receipt(lines: Sequence[str]) -> Receipt:
    """Lines such as "tea 4.75" as a receipt: the word at the left, its price at the right."""
    paper = Paper.new("L", (SIDE, LINE * len(lines)), 255)
    pen, font = ImageDraw.Draw(paper), ImageFont.load_default_imagefont()  # 6 x 11 pixels a character
    for n, line in enumerate(lines):
        what, price = line.split(" ")
        pen.text((0, n * LINE), f"{what:5}{price:>7}", font=font, fill=0)
    pixels = torch.frombuffer(bytearray(paper.tobytes()), dtype=torch.uint8)
    return Receipt(tuple(lines), pixels.view(1, -1, SIDE).expand(3, -1, -1))


# ---- the reader ----


@dataclass(frozen=True)
class RuledTiles(TileProcessor):
    """A TileProcessor whose canvas a function chooses, where one is given."""

    rule: Rule | None = None

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        if self.rule is None:
            return super().canvas(height, width)
        return self.rule(height, width, self.tile_size, self.max_tiles)


def receipt_processor(rule: Rule | None = None, *, max_tiles: int = 4) -> MllamaProcessor:
    """A tokenizer made for receipts, in which each word is one token and so is each digit, and tiles by `rule`."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer([f" {word}" for word in (*GOODS, TOTAL)] * 3, Path(folder), vocab_size=400)
    tiles = RuledTiles(SIDE, max_tiles, MEAN, DEVIATION, rule)
    return MllamaProcessor(tokenizer, tiles, tokenizer.vocab_size)


def reader_config(vocab_size: int, *, max_tiles: int = 4) -> MllamaConfig:
    """The smallest model with all that the 11-billion one has: 0.4 million parameters."""
    text = TextConfig(vocab_size=vocab_size, context_length=256, hidden_size=WIDTH, intermediate_size=2 * WIDTH,
                      n_layers=4, n_heads=2, n_kv_heads=2, rope_theta=10_000.0, tie_embeddings=False,
                      dtype=torch.float32)  # fmt: skip
    encoder = EncoderConfig(WIDTH, 2 * WIDTH, 2, 2, norm_eps=1e-5, attention_bias=False, key_bias=False)
    vision = TiledVisionConfig(encoder, n_global_layers=1, tile_size=SIDE, patch_size=PATCH, max_tiles=max_tiles,
                               intermediates=(1,), aspect_ratios=tuple(aspect_ratios(max_tiles)))  # fmt: skip
    return MllamaConfig(text, vision, cross_layers=(1, 3), image_token=vocab_size)


def new_reader(vocab_size: int, *, max_tiles: int = 1, seed: int = 0) -> MllamaModel:
    """A reader to train from nothing: the starting weights are larger than a wide model's, so that a narrow one learns
    fast, and all gates are half open but those of the tables that tell tiles apart. There is no trained text model to
    protect."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MllamaModel(reader_config(vocab_size, max_tiles=max_tiles))
        for name, p in model.named_parameters():
            if name == "embed_tokens.weight" or "embedding" in name and "patch" not in name and p.numel() > 1:
                nn.init.normal_(p)
            elif p.dim() > 1:
                nn.init.normal_(p, std=p[0].numel() ** -0.5)
            elif "gate" in name and not _of_tables(name):
                nn.init.constant_(p, 0.5)
            elif "q_norm" in name:
                nn.init.constant_(p, 2.0)  # with keys and queries of length 1, no word could look at one place alone
        n = SIDE // PATCH
        rows, columns = torch.randn(n, 1, WIDTH), torch.randn(1, n, WIDTH)
        model.vision_model.gated_positional_embedding.embedding.data[1:] = (rows + columns).flatten(0, 1)
    return model.eval()


def with_tiles(reader: MllamaModel, *, gate: float = 0.0, seed: int = 0) -> MllamaModel:
    """The same reader for up to four tiles: new random tables that tell tiles apart, their three gates at `gate`."""
    model = new_reader(reader.cfg.vocab_size, max_tiles=4, seed=seed)
    old = reader.state_dict()
    model.load_state_dict({name: own if own.shape != old[name].shape else old[name]
                           for name, own in model.state_dict().items()})  # fmt: skip
    with torch.no_grad():
        for name, p in model.named_parameters():
            if _of_tables(name):
                p.fill_(gate) if name.endswith(".gate") else p.mul_(TABLES)
    return model


def _of_tables(name: str) -> bool:
    """Whether a parameter belongs to the tables that tell tiles apart, or is one of their gates."""
    return "tile_positional" in name or "tile_embedding" in name or "positional_embedding.gate" in name


# ---- training ----


@dataclass(frozen=True)
class ReceiptBatch:
    """Pictures with questions about them: ids, targets (B, T) int64, targets IGNORE where nothing is learned."""

    ids: Tensor
    targets: Tensor
    images: TiledImages

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_targets(self) -> int:
        return int((self.targets != IGNORE).sum())

    @property
    def n_tokens(self) -> int:
        return self.ids.numel()

    def split(self, n_rows: int) -> list[ReceiptBatch]:
        pieces = (slice(i, i + n_rows) for i in range(0, len(self), n_rows))
        return [ReceiptBatch(self.ids[rows], self.targets[rows], _some(self.images, rows)) for rows in pieces]

    def inputs(self, device: torch.device | str) -> dict[str, Any]:
        return {"ids": self.ids.to(device), "targets": self.targets.to(device), "images": self.images.to(device)}


class ReceiptBatches:
    """An endless stream of batches: receipts drawn at random, up to twelve lines of each asked for in any order."""

    n_cut = 0

    def __init__(
        self, receipts: Sequence[Receipt], processor: MllamaProcessor, *, batch_size: int = 16, seed: int = 0,
        n_questions: int = 12,
    ) -> None:  # fmt: skip
        self.receipts, self.batch_size, self.n_questions = receipts, batch_size, n_questions
        self.images = processor.image_processor([[receipt.picture] for receipt in receipts])
        self.begin = processor.prompt([Image(receipts[0].picture)]).ids
        encode = processor.tokenizer.encode
        self.rows = [[(encode(question(n)), encode(f" {line}\n")) for n, line in enumerate(receipt.lines, 1)]
                     for receipt in receipts]  # fmt: skip
        self._draw, self._n_read = random.Random(seed), 0

    def __next__(self) -> ReceiptBatch:
        chosen = self._draw.sample(range(len(self.rows)), self.batch_size)
        self._n_read += len(chosen)
        texts = []
        for row in chosen:
            ids, targets = list(self.begin), [IGNORE] * len(self.begin)
            for asked, told in self._draw.sample(self.rows[row], min(self.n_questions, len(self.rows[row]))):
                ids, targets = ids + asked + told, targets + [IGNORE] * len(asked) + told
            texts.append((ids[:-1], targets[1:]))  # the target of a place is the token after it
        T = max(len(ids) for ids, _ in texts)
        ids, targets = (torch.tensor([part[i] + [fill] * (T - len(part[i])) for part in texts])
                        for i, fill in enumerate((0, IGNORE)))  # fmt: skip
        return ReceiptBatch(ids, targets, _some(self.images, torch.tensor(chosen)))

    @property
    def epoch_progress(self) -> float:
        return self._n_read / len(self.rows)

    def state_dict(self) -> dict[str, Any]:
        version, internal, gauss = self._draw.getstate()
        return {"n_read": self._n_read, "draw": [version, list(internal), gauss]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, internal, gauss = state["draw"]
        self._n_read = state["n_read"]
        self._draw.setstate((version, tuple(internal), gauss))


def train_reader(
    model: MllamaModel, processor: MllamaProcessor, receipts: Sequence[Receipt], *, steps: int, tables: bool = True,
    seed: int = 0, learning_rate: float = 4e-3, batch_size: int = 16,
) -> list[float]:  # fmt: skip
    """Train all of a reader, but without `tables` not those that tell tiles apart, nor their gates; the loss of each
    step. The caller's random numbers are left as they are."""
    for name, p in model.named_parameters():
        p.requires_grad_(tables or not _of_tables(name))
    cfg = TrainConfig.make({"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed,
                            "warmup_steps": steps // 10, "min_learning_rate": 0, "weight_decay": 0.01, "beta2": 0.98,
                            "precision": "fp32", "method": "full"})  # fmt: skip
    with randomness_kept():
        batches = ReceiptBatches(receipts, processor, batch_size=batch_size, seed=seed)
        trainer = Trainer(model, batches, cfg, log=RunLog(quiet=True))
        trainer.fit()
    model.requires_grad_(True).eval()
    return trainer.log.losses


# ---- reading ----


def question(n: int) -> str:
    """How line n is asked for, counted from 1: "A?" for the first."""
    return f"{chr(ord('A') + n - 1)}?"


@torch.no_grad()
def read_lines(
    model: MllamaModel, processor: MllamaProcessor, pictures: Sequence[Tensor], numbers: Sequence[int]
) -> list[str]:
    """What the reader says stands on line numbers[i] of pictures[i], always taking the likeliest token."""
    end, texts = processor.tokenizer.encode("\n")[0], []
    for i in range(0, len(pictures), 50):
        prompts = [processor.prompt([Image(picture), question(n)])
                   for picture, n in zip(pictures[i : i + 50], numbers[i : i + 50], strict=True)]  # fmt: skip
        ids, padding, inputs = processor.batch(prompts)
        said = generate(model, ids, 12, padding=padding, inputs=inputs, stop_ids=(end,))[:, ids.shape[1] :]
        texts += [processor.tokenizer.decode(row).partition("\n")[0].strip() for row in said.tolist()]
    return texts


def one_question_each(receipts: Sequence[Receipt], *, most: int = MOST_LETTERS, seed: int = 0) -> list[int]:
    """The number of a line of each receipt, at random and `most` at the most: answers about different receipts tell
    nothing of each other."""
    draw = random.Random(seed)
    return [draw.randint(1, min(most, len(receipt.lines))) for receipt in receipts]


@dataclass(frozen=True)
class Lines:
    """right of n lines were read without a mistake. As text, with the interval of the share."""

    name: str
    right: int
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the share, from 0 to 1."""
        return wilson(self.right, self.n)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.name:34} {self.right:3} of {self.n} lines right, {low:.0%} to {high:.0%}"


def measure(
    name: str, model: MllamaModel, processor: MllamaProcessor, receipts: Sequence[Receipt], *,
    pictures: Sequence[Tensor] | None = None, most: int = MOST_LETTERS,
) -> Lines:  # fmt: skip
    """How many lines the reader reads, one of each receipt, drawn from the first `most`. pictures: shown instead of
    the receipts' own."""
    numbers = one_question_each(receipts, most=most)
    said = read_lines(model, processor, pictures or [receipt.picture for receipt in receipts], numbers)
    right = sum(text == r.lines[n - 1] for text, r, n in zip(said, receipts, numbers, strict=True))
    return Lines(name, right, len(receipts))


def _some(images: TiledImages, rows: Tensor | slice) -> TiledImages:
    return TiledImages(images.pixels[rows], images.aspect_ratio_ids[rows], images.n_tiles[rows])
