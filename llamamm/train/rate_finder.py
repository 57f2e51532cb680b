"""The learning-rate finder: losses over a range of rates, tried on a copy. Built in notebook 10."""

from __future__ import annotations

import copy

import torch

from llamamm.train.loop import Trainer


def find_learning_rate(
    trainer: Trainer, *, low: float = 1e-6, high: float = 1.0, steps: int = 40
) -> list[tuple[float, float]]:
    """Loss while the learning rate grows from low to high: [(rate, loss), ...], ended where the loss explodes.

    A good rate lies well before the lowest loss, where the curve falls fastest. The trainer is left as it was.
    """
    optimizer, scaler = trainer.optimizer, trainer.scaler
    weights = [(p, p.detach().clone()) for group in optimizer.param_groups for p in group["params"]]
    state, scale, data = copy.deepcopy(optimizer.state_dict()), scaler.state_dict(), trainer.batches.state_dict()
    curve: list[tuple[float, float]] = []
    with torch.random.fork_rng():
        for i in range(steps):
            rate = low * (high / low) ** (i / (steps - 1))
            loss, _, finite = trainer.update(next(trainer.batches), rate)
            if not finite or (curve and loss > 4 * min(v for _, v in curve)):
                break
            curve.append((rate, loss))
    with torch.no_grad():
        for p, before in weights:
            p.copy_(before)
    optimizer.load_state_dict(state)
    scaler.load_state_dict(scale)
    trainer.batches.load_state_dict(data)
    return curve
