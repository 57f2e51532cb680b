"""An adapter's numbers, and the linears it may stand beside. Needs no torch: a command's help reads it.

Built in notebook 09.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llamamm.errors import ConfigError, require_whole

ATTENTION_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD_TARGETS = ("gate_proj", "up_proj", "down_proj")
ALL_TARGETS = ATTENTION_TARGETS + FEED_FORWARD_TARGETS


@dataclass(frozen=True)
class LoraSettings:
    """One adapter's numbers. r: rank; alpha: strength; rslora: scale by sqrt(r), for large ranks; dora: learn lengths.

    Raises ConfigError for numbers outside their range.
    """

    r: int
    alpha: float
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        require_whole("r, the rank,", self.r)
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"alpha must be a positive number, got {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1, got {self.dropout}")

    @property
    def scale(self) -> float:
        """What B (A x) is multiplied by."""
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)
