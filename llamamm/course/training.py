"""What lesson 10 trains on, and its runs: the first sentences of articles, a tokenizer of them, a small Llama; and
dialogues as SmolLM2's head reads them.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llamamm.assets.fetch import fetch
from llamamm.generation.generate import TextStream
from llamamm.generation.sampling import SamplingConfig
from llamamm.text.chat import ChatML
from llamamm.text.config import TextConfig
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.batches import Batch, Batches
from llamamm.train.config import TrainConfig
from llamamm.train.documents import open_documents
from llamamm.train.log import RunLog
from llamamm.train.loop import Trainer
from llamamm.train.rows import Example, encode_dialogue, encode_text
from llamamm.train.tokenizer import train_tokenizer

VOCAB = 4096
SHAPE = TextConfig(vocab_size=VOCAB, context_length=256, hidden_size=128, intermediate_size=320, n_layers=3, n_heads=4,
                   n_kv_heads=2, dtype=torch.float32)  # fmt: skip
SMALL = SHAPE.replace(hidden_size=64, intermediate_size=160, n_layers=2)
SENTENCE = re.compile(r".{20,}?[a-z0-9)]\.(?= |$)|.*", re.DOTALL)  # ends after a small letter: not at "John F."
N_HELD_OUT = 3  # batches of 16 rows, in an evaluation
TINY = {"hidden_size": 32, "intermediate_size": 64, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1}


class Encyclopedia:
    """entries, held_out: records with a `text` each, also as train.jsonl and test.jsonl in `folder`, where the
    tokenizer lies, too. test_rows: some of the held-out ones as batches. The folder goes away with the object."""

    def __init__(self) -> None:
        self.folder = folder = Path(tempfile.mkdtemp(prefix="lesson-10-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        for part in ("train", "test"):
            articles = open_documents(fetch("wiki") / f"{part}.jsonl")
            lines = (json.dumps({"text": first_sentence(article["text"])}) + "\n" for article in articles)
            (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
        self.entries, self.held_out = (open_documents(folder / f"{part}.jsonl") for part in ("train", "test"))
        self.tokenizer = train_tokenizer((entry["text"] for entry in self.entries), folder, vocab_size=VOCAB)
        rows = Batches(self.held_out, self.encode, batch_size=16, length=128, shuffle=False)
        self.test_rows: Sequence[Batch] = list(islice(rows, N_HELD_OUT))

    def encode(self, entry: Mapping[str, Any]) -> Example:
        """An entry's ids, all of them learned."""
        return encode_text(entry["text"], self.tokenizer)

    def batches(self, *, batch_size: int = 4, length: int = 128, seed: int = 0, **options: Any) -> Batches:
        """Rows of the entries, in an order that the seed decides. options: those of `Batches`."""
        return Batches(self.entries, self.encode, batch_size=batch_size, length=length, seed=seed, **options)

    def settings(self, **changes: Any) -> TrainConfig:
        """The lesson's settings, with changes."""
        usual = {"output": self.folder / "run", "steps": 800, "method": "full", "device": "cpu", "precision": "fp32",
                 "batch_size": 4, "length": 128, "learning_rate": 4e-3, "warmup_steps": 40, "min_learning_rate": 0.05,
                 "weight_decay": 0.1}  # fmt: skip
        return TrainConfig.make({**usual, **changes})

    def tiny_run(self, output: Path) -> TrainConfig:
        """Settings of a run over some seconds that `run_training`, or another process, finds all it needs in."""
        return self.settings(output=output, steps=240, save_every=30, learning_rate=0.01, batch_size=2, length=32,
                             data=str(self.folder / "train.jsonl"), tokenizer=str(self.folder), shape=TINY)  # fmt: skip

    def new_folder(self) -> Path:
        """An empty one inside `folder`."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def trainer(self, shape: TextConfig = SHAPE, **changes: Any) -> Trainer:
        """A fresh model of this shape and its data, both by the seed; nothing is written but its records."""
        cfg = self.settings(**changes)
        torch.manual_seed(cfg.seed)
        batches = self.batches(batch_size=cfg.batch_size, length=cfg.length, seed=cfg.seed)
        return Trainer(Llama3Model(shape), batches, cfg, log=RunLog(quiet=True), eval_batches=self.test_rows)

    @torch.no_grad()
    def write(self, model: Llama3Model, title: str, *, seed: int = 0) -> str:
        """What the model makes of a title, on one line."""
        sampling = SamplingConfig(temperature=0.7, top_p=0.95)
        stream = TextStream(model, self.tokenizer, self.tokenizer.encode(title), max_new_tokens=40, seed=seed,
                            sampling=sampling)  # fmt: skip
        return " ".join((title + "".join(stream)).split())

    def unigram_perplexity(self) -> float:
        """Of `test_rows`, where each token always has its share of the training text. Each counts one more, so that
        none has probability 0."""
        counts = Counter(i for entry in self.entries for i in self.encode(entry).ids)
        total = sum(counts.values()) + VOCAB
        targets = torch.cat([rows.targets.flatten() for rows in self.test_rows]).tolist()
        return math.exp(-sum(math.log((counts[i] + 1) / total) for i in targets) / len(targets))


def first_sentence(text: str) -> str:
    """All of a text up to its first full stop after 20 characters that ends no initial."""
    return SENTENCE.match(text)[0]


@torch.no_grad()
def read_dialogues(
    model: Llama3Model, tokenizer: Tokenizer, which: Sequence[int]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of some dialogues of the asset: what the model's head reads (T - 1, C), the tokens that follow, and whether each
    of those is to be learned (T - 1,)."""
    chat = ChatML(tokenizer, default_system=None)  # no system message: it would take as many tokens again
    dialogues, read = open_documents(fetch("dialogues") / "train.jsonl"), []
    for i in which:
        example = encode_dialogue(dialogues[i]["messages"], tokenizer, chat=chat)
        ids = torch.tensor(example.ids)
        read.append((model.hidden_states(ids[None])[0, :-1], ids[1:], torch.tensor(example.learn)[1:]))
    return read
