"""A figure of a score card: its value, its 95 % interval, and which of two models is the better one.

    sums (n, k)    of each item what the figure adds up, such as (right, 1), or (bits, bytes)
    statistic      sums over items (..., k) -> the figure (...): the first by the second, by default

To see how far a figure might lie from that of another set drawn like this one, items are drawn again, 1,000 times, by
groups: five questions about one picture count as one picture. Two models are compared on the same items, which are
drawn for both together: what is hard for both then weighs nothing, and the interval of the difference is narrower than
the two intervals suggest. Source: the paired bootstrap, Koehn 2004, https://aclanthology.org/W04-3250. Used in
notebook 17.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from llamamm.errors import InputError
from llamamm.evals.intervals import DRAWS, Interval

Statistic = Callable[[np.ndarray], np.ndarray]
BETTER, WORSE, CANT_TELL = "better", "worse", "can't tell"


def ratio(sums: np.ndarray) -> np.ndarray:
    """(..., 2) -> (...): the first by the second."""
    return sums[..., 0] / sums[..., 1]


@dataclass(frozen=True, eq=False)
class Figure:
    """name: what is counted. better: which way is up; "" for what is shown beside it and not compared.
    unit: a "share" is written in percent, a "number" as it is. groups: of each item. Raises InputError for no items.
    """

    name: str
    sums: np.ndarray
    statistic: Statistic = ratio
    groups: Sequence[Hashable] = ()
    better: Literal["more", "less", ""] = ""
    unit: Literal["share", "number"] = "number"
    _drawn: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.sums) == 0 or len(self.groups) != len(self.sums):
            raise InputError(f"{self.name}: {len(self.sums)} items in {len(self.groups)} groups; a figure needs at "
                             f"least one item, and a group for each")

    @classmethod
    def ratio(
        cls, name: str, parts: Sequence[float], wholes: Sequence[float] | None = None, *, groups: Sequence[Hashable],
        **options: Any,
    ) -> Figure:  # fmt: skip
        """sum(parts) / sum(wholes). wholes: 1 each by default, and then a share."""
        unit = options.pop("unit", "share")
        whole = np.ones(len(parts)) if wholes is None else np.asarray(wholes, dtype=float)
        return cls(name, np.stack([np.asarray(parts, dtype=float), whole], axis=1), groups=groups, unit=unit, **options)

    @property
    def value(self) -> float:
        return float(self.statistic(self.sums.sum(axis=0)))

    @property
    def interval(self) -> Interval:
        """With the ends of its 95 % interval, by the bootstrap."""
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = self.statistic(_draw(self.sums, self.groups))
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        return Interval(self.value, float(low), float(high), len(self.sums))

    def against(self, other: Figure) -> tuple[Interval, str]:
        """How much more this figure is than that of another model on the same items, in the same order; and BETTER,
        WORSE or CANT_TELL, the last where the interval of the difference holds zero. Raises InputError."""
        if len(self.sums) != len(other.sums) or list(self.groups) != list(other.groups):
            raise InputError(f"{self.name}: two models are compared on the same items, got {len(self.sums)} and "
                             f"{len(other.sums)}")
        both = _draw(np.concatenate([self.sums, other.sums], axis=1), self.groups)
        k = self.sums.shape[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = self.statistic(both[:, :k]) - other.statistic(both[:, k:])
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        found = Interval(self.value - other.value, float(low), float(high), len(self.sums))
        if not self.better or found.low <= 0 <= found.high:
            return found, CANT_TELL
        return found, BETTER if (found.low > 0) == (self.better == "more") else WORSE

    def written(self, value: float) -> str:
        """A value in the figure's unit."""
        return f"{value:.1%}" if self.unit == "share" else f"{value:.3f}"


def _draw(sums: np.ndarray, groups: Sequence[Hashable], seed: int = 0) -> np.ndarray:
    """(n, k) -> (DRAWS, k): sums over groups that are drawn again, as many as there are."""
    names = {name: n for n, name in enumerate(dict.fromkeys(groups))}
    by_group = np.zeros((len(names), sums.shape[1]))
    np.add.at(by_group, [names[group] for group in groups], sums)
    generator = np.random.Generator(np.random.PCG64(seed))
    return by_group[generator.integers(len(names), size=(DRAWS, len(names)))].sum(axis=1)
