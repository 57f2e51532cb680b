"""Small data and settings for the tests of training."""

import json
from pathlib import Path

import torch

from llamamm import Llama3Model, TextConfig
from llamamm.train.batches import Batches
from llamamm.train.config import TrainConfig
from llamamm.train.log import RunLog
from llamamm.train.loop import Trainer
from llamamm.train.rows import Example

TEXTS = [f"The number {i} is followed by {i + 1}." + " Then comes the next." * (i % 5) for i in range(60)]


def write_texts(folder: Path) -> Path:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


def bytes_example(text: str) -> Example:
    """A byte is a token: no tokenizer is needed."""
    ids = [1, *text.encode()]
    return Example(ids, [True] * len(ids))


def settings(folder: Path, **changes) -> TrainConfig:
    base = {"output": folder, "steps": 6, "method": "full", "batch_size": 4, "length": 48, "learning_rate": 3e-3,
            "warmup_steps": 2, "device": "cpu", "precision": "fp32", "eval_every": 3, "save_every": 2}  # fmt: skip
    return TrainConfig.make({**base, **changes})


def byte_model(**changes) -> Llama3Model:
    torch.manual_seed(0)
    return Llama3Model(TextConfig.tiny(vocab_size=256, hidden_size=32, intermediate_size=64, **changes))


def byte_batches(cfg: TrainConfig, **options) -> Batches:
    return Batches(TEXTS, bytes_example, batch_size=cfg.batch_size, length=cfg.length, seed=cfg.seed, pack=cfg.pack,
                   **options)  # fmt: skip


def byte_trainer(folder: Path, *, model: Llama3Model | None = None, **changes) -> Trainer:
    """A trainer of a tiny model on bytes, with two held-out batches."""
    options = {k: changes.pop(k) for k in ("saver", "sampler", "log") if k in changes}
    cfg = settings(folder, **changes)
    held_out = byte_batches(cfg, shuffle=False)
    return Trainer(model or byte_model(), byte_batches(cfg), cfg, eval_batches=[next(held_out), next(held_out)],
                   log=options.pop("log", RunLog(quiet=True)), **options)  # fmt: skip


def media_table(rows: list[dict]):
    """Rows as a set of the Hub has them: `image` and `audio` are the bytes of a file or None, `conversations` LLaVA's,
    all else text. No codec is needed."""
    import datasets

    file = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    media = {"image": datasets.Image(), "audio": datasets.Audio()}
    turns = [{"from": datasets.Value("string"), "value": datasets.Value("string")}]  # LLaVA's
    plain = {key: file if key in media else turns if key == "conversations" else datasets.Value("string")
             for key in rows[0]}  # fmt: skip
    cells = [{key: {"bytes": value, "path": None} if key in media and value is not None else value
              for key, value in row.items()} for row in rows]  # fmt: skip
    table = datasets.Dataset.from_list(cells, features=datasets.Features(plain))
    return table.cast(datasets.Features({key: media.get(key, kind) for key, kind in plain.items()}))
