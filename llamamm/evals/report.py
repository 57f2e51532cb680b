"""What a measurement returns: rows of figures for one side or two, their table, and lines below it.

A figure is a list, one value a round. A row shows medians, and of two sides the median of the rounds' ratios.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from rich.table import Table

OURS, THEIRS = "llamamm", "transformers"


@dataclass(frozen=True)
class Row:
    """One line: what was measured, and each side's values by round, in the unit that the title names."""

    key: str
    title: str
    values: dict[str, list[float]]
    lower_is_better: bool = False

    def median(self, side: str = OURS) -> float:
        return statistics.median(self.values[side])

    def ratio(self) -> float:
        """Ours by theirs. Raises KeyError where one side was measured alone."""
        return statistics.median(a / b for a, b in zip(self.values[OURS], self.values[THEIRS], strict=True))


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
        both = len(self.names) == 2
        table = Table("", *self.names.values(), *(["ratio"] if both else []))
        for row in self.rows:
            cells = [f"{row.median(side):.4g}" for side in self.names]
            if both:
                cells.append(f"{row.ratio():.2f} x" + (" (less is better)" if row.lower_is_better else ""))
            table.add_row(row.title, *cells)
        return table
