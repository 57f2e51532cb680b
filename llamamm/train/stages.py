"""One stage of a multimodal training: steps in which chosen parts learn from tasks, asked in one version.

A step sees one kind of task, drawn by its share; questions about pictures come with nothing now and then, so that the
model learns what a question alone gives away. The towers stay frozen. Which stages follow each other, the experiment
`small_multimodal` says.

Source: LLaVA's stages, arXiv:2304.08485. Used in notebook 14.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import nn

from llamamm.multimodal.model import MultimodalLlama
from llamamm.tasks.items import Task
from llamamm.train.config import TrainConfig
from llamamm.train.losses import IGNORE
from llamamm.train.media_rows import RowMaker, epochs
from llamamm.train.optim import learning_rate, make_optimizer

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


def train_stage(
    model: MultimodalLlama,
    encoder: RowMaker,
    tasks: Mapping[str, Task],
    stage: Stage,
    *,
    seed: int = 0,
    batch_size: int = 32,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train on tasks, by kind, and give the loss of each step. on_step: called with its number and its loss.

    A step sees one kind, drawn by SHARES of those that there are. The seed decides all; model is left in training mode.
    Raises ConfigError where nothing trains.
    """
    if stage.steps == 0:
        return []
    model.set_trainable(text=stage.text, bridges=stage.bridges).train()
    cfg = TrainConfig.make({"output": "unused", "steps": stage.steps, "learning_rate": stage.learning_rate,
                            "warmup_steps": min(50, stage.steps // 4), "min_learning_rate": 0.05,
                            "weight_decay": 0.05, "beta2": 0.98})  # fmt: skip
    optimizer = make_optimizer(model, cfg)
    draw = np.random.Generator(np.random.PCG64(seed))
    orders = {kind: epochs(len(task), batch_size=batch_size, generator=draw) for kind, task in tasks.items()}
    shares = np.array([SHARES[kind] for kind in tasks])
    device, curve = model.embed_tokens.weight.device, []
    for step in range(stage.steps):
        kind = draw.choice(list(tasks), p=shares / shares.sum())
        blind = stage.version == "told" and kind == "vqa" and draw.random() < BLIND
        ids, targets, features = encoder.batch(tasks[kind], next(orders[kind]), "blind" if blind else stage.version)
        targets = targets.to(device)
        hidden = model.hidden_states(ids.to(device), features=features and features.to(device))
        learned = targets != IGNORE
        loss = F.cross_entropy(model.lm_head(hidden[learned]), targets[learned])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, cfg)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], cfg.clip_norm)
        optimizer.step()
        curve.append(loss.item())
        if on_step is not None:
            on_step(step, curve[-1])
    return curve
