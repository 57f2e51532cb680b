"""Stages of a multimodal training: steps in which chosen parts learn from tasks, asked in one version.

A step sees one kind of task, drawn by its share; questions about pictures come with nothing now and then, so that the
model learns what a question alone gives away. The towers stay frozen. Which stages follow each other, the experiment
`small_multimodal` says; the steps are the `Trainer`'s.

Source: LLaVA's stages, arXiv:2304.08485. Used in notebook 14.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llamamm.errors import InputError
from llamamm.multimodal.model import MultimodalLlama
from llamamm.tasks.items import Task
from llamamm.train.batches import Batch
from llamamm.train.config import TrainConfig
from llamamm.train.log import RunLog
from llamamm.train.loop import Trainer
from llamamm.train.media_rows import Epochs, MediaObjective, RowMaker
from llamamm.train.processes import Processes
from llamamm.train.randomness import randomness_kept

SHARES = {"vqa": 0.35, "caption": 0.4, "word": 0.1, "both": 0.15}  # of the steps
BLIND = 0.25  # of the steps in which questions about pictures come with nothing: what a question alone gives away


@dataclass(frozen=True)
class Stage:
    """Steps of one kind. version: how items are asked, one of media_rows.VERSIONS; text, bridges: what trains."""

    name: str
    version: str
    steps: int
    text: bool
    bridges: bool
    learning_rate: float = 1e-3

    def settings(self, **changes: Any) -> TrainConfig:
        """Those of its trainer. Raises ConfigError."""
        return TrainConfig.make({
            "steps": self.steps, "learning_rate": self.learning_rate, "warmup_steps": min(50, self.steps // 4),
            "min_learning_rate": 0.05, "weight_decay": 0.05, "beta2": 0.98, "precision": "fp32", "method": "full",
            **changes,
        })  # fmt: skip


class TaskBatches:
    """An endless stream of batches, each of one kind of task, drawn by `shares`, SHARES by default, of those there are.

    version: as in `Stage`; "told" asks some questions about pictures with nothing. The seed decides all. Of several
    processes each reads the same stream and keeps every world_size-th row.
    """

    n_cut = 0  # rows are as long as they need to be

    def __init__(
        self, rows: RowMaker, tasks: Mapping[str, Task], version: str, *, batch_size: int = 32, seed: int = 0,
        shares: Mapping[str, float] | None = None, rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        if batch_size % world_size:
            raise InputError(f"batch_size {batch_size} is not a multiple of world_size {world_size}")
        self.rows, self.tasks, self.version, self.seed = rows, tasks, version, seed
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self._draw = np.random.Generator(np.random.PCG64(seed))
        self._orders = {kind: Epochs(len(task), batch_size=batch_size, generator=self._draw)
                        for kind, task in tasks.items()}  # fmt: skip
        weights = np.array([(shares or SHARES)[kind] for kind in tasks])
        self._shares, self._n_read = weights / weights.sum(), 0

    def __next__(self) -> Batch:
        kind = str(self._draw.choice(list(self.tasks), p=self._shares))
        blind = self.version == "told" and kind == "vqa" and self._draw.random() < BLIND
        chosen = next(self._orders[kind])[self.rank :: self.world_size]
        self._n_read += 1
        return self.rows.batch(self.tasks[kind], chosen, "blind" if blind else self.version)

    @property
    def epoch_progress(self) -> float:
        """Items read, as a share of all that there are."""
        return self._n_read * self.batch_size / sum(map(len, self.tasks.values()))

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch, for JSON."""
        return {"settings": self._settings(), "n_read": self._n_read, "generator": self._draw.bit_generator.state,
                "left": {kind: order.left for kind, order in self._orders.items()}}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batch that `state` was taken behind. Raises InputError for other data or settings."""
        if state.get("settings") != self._settings():
            raise InputError(f"the state was saved with {state.get('settings')}, here it is {self._settings()}; "
                             f"resume with the same data and settings, or begin anew")
        self._n_read, self._draw.bit_generator.state = state["n_read"], state["generator"]
        for kind, order in self._orders.items():
            order.left = list(state["left"][kind])

    def _settings(self) -> dict[str, Any]:
        return {"seed": self.seed, "batch_size": self.batch_size, "version": self.version,
                "items": {kind: len(task) for kind, task in self.tasks.items()}}  # fmt: skip


def stage_trainer(
    model: MultimodalLlama, rows: RowMaker, tasks: Mapping[str, Task], stage: Stage, *, seed: int = 0,
    batch_size: int = 32, shares: Mapping[str, float] | None = None,
    on_step: Callable[[int, float], None] | None = None, processes: Processes | None = None, **changes: Any,
) -> Trainer:  # fmt: skip
    """The trainer of a stage, ready for its first step. changes: of its settings. Raises ConfigError where nothing
    trains."""
    model.set_trainable(text=stage.text, bridges=stage.bridges)
    share = {} if processes is None else {"rank": processes.rank, "world_size": processes.world_size}
    batches = TaskBatches(rows, tasks, stage.version, batch_size=batch_size, seed=seed, shares=shares, **share)
    cfg = stage.settings(seed=seed, batch_size=batch_size, **changes)
    return Trainer(model, batches, cfg, objective=MediaObjective(model), processes=processes,
                   log=RunLog(quiet=True, on_step=on_step))  # fmt: skip


def run_stage(
    model: MultimodalLlama, rows: RowMaker, tasks: Mapping[str, Task], stage: Stage, **options: Any
) -> list[float]:
    """All steps of a stage; the loss of each. options: of `stage_trainer`. The caller's random numbers are left as they
    are, the model in training mode. Raises as `stage_trainer`, and TrainingError."""
    if stage.steps == 0:
        return []
    with randomness_kept():
        trainer = stage_trainer(model, rows, tasks, stage, **options)
        trainer.fit()
    return trainer.log.losses
