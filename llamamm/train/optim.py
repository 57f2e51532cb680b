"""The optimizer and its learning rate: AdamW, decay on matrices only, warm-up, then a fall.

Sources: AdamW, arXiv:1711.05101; warm-up and cosine, arXiv:1608.03983; learning-rate finder, arXiv:1506.01186.
Built in notebook 10.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from llamamm.errors import ConfigError
from llamamm.train.config import TrainConfig


def learning_rate(step: int, cfg: TrainConfig) -> float:
    """The learning rate of a step, counted from 0: up in a line over warmup_steps, then down by cfg.schedule."""
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (step + 1) / cfg.warmup_steps
    if cfg.schedule == "constant":
        return cfg.learning_rate
    done = min(1.0, (step - cfg.warmup_steps) / max(1, cfg.steps - 1 - cfg.warmup_steps))  # 0 .. 1
    left = 1 - done if cfg.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return cfg.learning_rate * (cfg.min_learning_rate + (1 - cfg.min_learning_rate) * left)


def make_optimizer(model: nn.Module, cfg: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that train. Weight decay pulls matrices to zero; a norm's weight belongs near one.

    Raises ConfigError where nothing trains.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError("no parameter trains: apply_lora(model, ...) or model.requires_grad_(True) first")
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": cfg.weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    # fused: one call for all tensors instead of ten small ones for each; the same arithmetic
    fused = trainable[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=(cfg.beta1, cfg.beta2), fused=fused)
