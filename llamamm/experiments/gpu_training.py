"""Two steps of LoRA as `llamamm train` takes them, with seconds and memory, for a run on a GPU."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from llamamm.evals.speed import wait_for
from llamamm.pretrained.load import from_pretrained
from llamamm.train.batches import Batch
from llamamm.train.config import TrainConfig
from llamamm.train.log import RunLog
from llamamm.train.loop import Trainer, resolve_precision
from llamamm.train.losses import IGNORE
from llamamm.train.plan import plan_memory
from llamamm.train.prepare import make_trainable, weights_dtype


@dataclass(frozen=True)
class TwoSteps:
    """losses: before each step; seconds: of the second; peak: bytes that PyTorch took of a GPU, 0 elsewhere; planned:
    what `llamamm plan` says, which knows no weights of fewer than 16 bits."""

    losses: list[float]
    seconds: float
    peak: int
    planned: int


class _SameBatch:
    """A stream of one batch."""

    n_cut, epoch_progress = 0, 0.0

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __next__(self) -> Batch:
        return self.batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def two_steps(path: str, ids: Tensor, *, device: torch.device, precision: str, bits: int | None = None) -> TwoSteps:
    """ids (B, T): rows of one text each, learned twice. bits: of the frozen weights, as in `from_pretrained`."""
    cfg = TrainConfig.make({
        "output": Path("unused"), "model": path, "steps": 2, "batch_size": len(ids), "length": ids.shape[1],
        "warmup_steps": 0, "device": str(device), "precision": precision})  # fmt: skip
    dtype = weights_dtype(cfg, device, resolve_precision(precision, device)[0])
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(0)  # the same fresh adapter each time
    model, _ = from_pretrained(path, dtype=dtype, device=device, bits=bits, fast=False, progress=False)
    make_trainable(model, cfg)
    batch = Batch(ids, pad(ids[:, 1:], (0, 1), value=IGNORE), torch.ones_like(ids))
    trainer = Trainer(model, _SameBatch(batch), cfg, log=RunLog(quiet=True))
    losses, seconds = [], 0.0
    for _ in range(cfg.steps):
        start = time.perf_counter()
        losses.append(trainer.train_step())
        wait_for(device)
        seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return TwoSteps(losses, seconds, peak, plan_memory(cfg)[0].total)
