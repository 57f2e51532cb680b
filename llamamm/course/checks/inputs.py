"""Whether an answer leaves its inputs as they are: the caller still needs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.exercise import Property


def inputs_stay(names: Sequence[str], cases: Callable[[torch.Generator], Sequence[tuple]]) -> Property:
    """No tensor or list of numbers that an answer is given may be changed by it. names: of its arguments, in order."""
    return Property("the inputs stay as they are", cases, run=_afterwards,
                    accept=lambda got, case: _changed(names, case, got))  # fmt: skip


def _afterwards(answer: Any, case: tuple) -> tuple:
    answer(*case)
    return case


def _changed(names: Sequence[str], before: tuple, after: tuple) -> str | None:
    for name, old, new in zip(names, before, after, strict=True):
        if isinstance(old, Tensor) and not torch.equal(old, new):
            return (f"your function changes `{name}`, which the caller still needs: make a new tensor, without steps "
                    f"in place (*=, masked_fill_, {name}[0] = ...)")  # fmt: skip
        if type(old) is list and all(isinstance(part, int | float) for part in old) and old != new:
            return f"your function changes `{name}`, which the caller still needs: work on a copy, {name}[:]"
    return None
