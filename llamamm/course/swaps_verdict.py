"""How a verdict on a learner's part in a real model is worded: what came out, how far it is from the package's, and
what that means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

ROUNDING = 1e-3  # logits of the real models reach about 30; other orders of summation move them by less than this
SAME = "the same up to rounding"
NOTHING = "it writes nothing at all"


@dataclass(frozen=True)
class Verdict:
    """One line, and whether what the learner wrote does as the package's own."""

    same: bool
    line: str

    def __str__(self) -> str:
        return " ".join(self.line.split())


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two tensors; NaN where there is any, infinite where the shapes differ."""
    return float((ours - theirs).detach().abs().max()) if ours.shape == theirs.shape else math.inf


def distance(difference: float, what: str = "logits") -> str:
    """"logits at most 5.9e-05 apart"."""
    if difference == 0:
        return f"{what} equal to the last digit"
    size = f"at most {difference:.1e}" if difference <= ROUNDING else f"up to {difference:.2g}"
    return f"{what} {size} apart"


def of_answers(who: str, difference: float, text: str, package: str, *, but: str = "") -> Verdict:
    """A model's answer with the learner's part, and with the package's. but: what else is wrong with it."""
    if math.isnan(difference):
        return Verdict(False, f"{who}: its logits are NaN, so it cannot choose a word")
    begin = f"{who}: {repr(text) if text else NOTHING} · {distance(difference)}: "
    if difference > ROUNDING:
        same_text = ", although it says the same here"
        other = same_text if text == package else f"; with the package's own it says {package!r}"
        return Verdict(False, f"{begin}a different model{other}")
    same = SAME if difference else "the same"
    return Verdict(not but, begin + (f"{same}, but {but}" if but else same))
