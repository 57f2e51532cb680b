"""What a measurement returns: rows of figures for one side or several, their table, and lines below it.

A figure is a list, one value a round. A row shows medians, and of two sides the median of the rounds' ratios.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from rich.table import Table

OURS, THEIRS, LLAMA_CPP = "llamamm", "transformers", "llama.cpp"


@dataclass(frozen=True)
class Row:
    """One line: what was measured, and each side's values by round, in the unit that the title names."""

    key: str
    title: str
    values: dict[str, list[float]]
    lower_is_better: bool = False

    def median(self, side: str = OURS) -> float:
        return statistics.median(self.values[side])

    def ratio(self, other: str = THEIRS) -> float:
        """Ours by another's. Raises KeyError where one side was measured alone."""
        return statistics.median(a / b for a, b in zip(self.values[OURS], self.values[other], strict=True))

    def cells(self, sides: list[str]) -> list[str]:
        """A median for each side, with lowest and highest where there are several rounds; then ours by each other's."""
        cells = ["" if side not in self.values else _figure(self.median(side), 4) for side in sides]
        if max(map(len, self.values.values())) > 2:
            cells = [f"{cell} ({_figure(min(values), 3)} to {_figure(max(values), 3)})" if values else ""
                     for cell, values in zip(cells, map(self.values.get, sides), strict=True)]  # fmt: skip
        less = " (less is better)" if self.lower_is_better else ""
        ratios = [f"{self.ratio(side):.2f} x{less}" if side in self.values else "" for side in sides[1:]]
        return cells + ratios


def _figure(value: float, digits: int) -> str:
    """So many digits; a large number in whole, not as 1.2e+04."""
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


@dataclass(frozen=True)
class Report:
    """title: what was measured and on what; notes: lines below the table; names: what a column says for a side."""

    title: str
    rows: list[Row]
    notes: list[str]
    names: dict[str, str]

    def __getitem__(self, key: str) -> Row:
        return next(row for row in self.rows if row.key == key)

    def table(self) -> Table:
        sides = list(self.names)
        others = [self.names[side] for side in sides[1:]]
        ratios = ["ratio"] if len(others) == 1 else [f"by {name}" for name in others]
        table = Table("", *self.names.values(), *ratios)
        for row in self.rows:
            table.add_row(row.title, *row.cells(sides))
        return table
