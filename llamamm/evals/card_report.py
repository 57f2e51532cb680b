"""A score card for people: a table for the terminal, one in Markdown, and a picture; of one model, or of two on the
same items, with a verdict for each figure. Used in notebook 17.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from llamamm.errors import InputError, counted
from llamamm.evals.figures import Figure
from llamamm.evals.intervals import Difference, Interval
from llamamm.evals.score_card import Card
from llamamm.files import write_file

BRACKETS = "95 % intervals in brackets, items drawn again by groups"


@dataclass(frozen=True, eq=False)
class Row:
    """A figure of a set; of a second model the same figure, if it has that, and where one is the better way up, how
    much more the first has."""

    title: str
    figure: Figure
    other: Figure | None = None
    difference: Difference | None = None

    @property
    def verdict(self) -> str:
        """"better", "worse", "can't tell", or "" where nothing is compared."""
        return self.difference.verdict if self.difference is not None else ""

    def cells(self, n: int) -> list[str]:
        """The first n of a table: the set, what is counted, items, the figure; the other's, the difference, the
        verdict."""
        other = "" if self.other is None else told(self.other)
        difference = "" if self.difference is None else told_difference(self.figure, self.difference)
        found = [self.title, self.figure.name, f"{len(self.figure.sums):,}", told(self.figure)]
        return [*found, other, difference, self.verdict][:n]


def rows(card: Card, against: Card | None = None) -> Iterator[Row]:
    """Of every figure; with another card, beside those that it has. Raises InputError where they share no set, or
    where a set of one name holds other items."""
    if against is not None and not set(card.sets) & set(against.sets):
        raise InputError(f"{card.model} and {against.model} were asked nothing in common: "
                         f"{', '.join(card.sets)} against {', '.join(against.sets)}")
    for name, mine in card.sets.items():
        theirs = against.sets.get(name) if against is not None else None
        if theirs is not None and theirs.held_out.mark != mine.held_out.mark:
            raise InputError(f"{name}: {card.model} was asked {len(mine.held_out)} items and {against.model} "
                             f"{len(theirs.held_out)}, which are not the same: measure both with the same suite")
        others = {figure.name: figure for figure in theirs.figures} if theirs else {}
        for figure in mine.figures:
            other = others.get(figure.name)
            difference = figure.against(other) if other is not None and figure.better else None
            yield Row(mine.held_out.title, figure, other, difference)


def told(figure: Figure) -> str:
    """41.5% (37.4% to 45.3%)."""
    found = figure.interval
    return f"{figure.written(found.value)} ({figure.written(found.low)} to {figure.written(found.high)})"


def told_difference(figure: Figure, difference: Interval) -> str:
    """With signs; shares in points, which are not percent of anything."""
    scale, unit = (100, " points") if figure.unit == "share" else (1, "")
    low, high = difference.low * scale, difference.high * scale
    digits = 1 if figure.unit == "share" else 3
    return f"{difference.value * scale:+.{digits}f}{unit} ({low:+.{digits}f} to {high:+.{digits}f})"


def heads(card: Card, against: Card | None = None) -> list[str]:
    """Of the columns."""
    names = ["held out", "what is counted", "n", card.model]
    return names if against is None else [*names, against.model, "difference", "verdict"]


def table(card: Card, against: Card | None = None) -> Table:
    """For a terminal."""
    names, last = heads(card, against), ""
    found = Table(*names, title=BRACKETS)
    for row in rows(card, against):
        first, *rest = row.cells(len(names))
        found.add_row("" if first == last else first, *rest)
        last = first
    return found


def markdown(card: Card, against: Card | None = None) -> str:
    """The same, and what was left out and why."""
    names = heads(card, against)
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    lines += [f"| {' | '.join(row.cells(len(names)))} |" for row in rows(card, against)]
    notes = [f"{measured.held_out.title}: {counted(measured.n_read, 'item')} left out, which the training has read"
             for measured in card.sets.values() if measured.n_read]
    notes += [f"{name}: not measured, {why}" for name, why in card.left_out.items()]
    return "\n".join([*lines, *(f"\n{note}" for note in notes)]) + "\n"


def _made_with(card: Card) -> str:
    guard = f", with a guard ({card.about['guard']})" if card.about.get("guard") else ""
    return f"llamamm {card.about.get('llamamm')}, torch {card.about.get('torch')}, {card.about.get('dtype')}{guard}"


def save(card: Card, folder: Path, against: Card | None = None) -> None:
    """card.md and, where the card holds a share that can be drawn, card.png. Raises WriteError."""
    made = "; ".join(dict.fromkeys(_made_with(one) for one in (card, against) if one is not None))
    write_file(folder / "card.md", f"{markdown(card, against)}\n{BRACKETS}. Measured with {made}.\n")
    if not any(row.figure.unit == "share" for row in rows(card, against)):
        return
    picture = io.BytesIO()
    draw(card, against).savefig(picture, format="png", dpi=120)
    write_file(folder / "card.png", picture.getvalue())


def draw(card: Card, against: Card | None = None):  # noqa: ANN201 (matplotlib is imported where it is used)
    """A matplotlib Figure: shares as points with their intervals, a row each; of two models both."""
    from matplotlib.figure import Figure as Canvas

    found = [row for row in rows(card, against) if row.figure.unit == "share"]
    if not found:
        raise InputError("the card holds no shares to draw")
    canvas = Canvas(figsize=(9, 1.2 + 0.32 * len(found)), layout="constrained")
    ax = canvas.subplots()
    sides = [(card.model, "figure", "C0")] + ([(against.model, "other", "C1")] if against else [])
    for n, (name, side, colour) in enumerate(sides):
        shown = [(place, getattr(row, side).interval) for place, row in enumerate(found) if getattr(row, side)]
        places = [place + 0.22 * n for place, _ in shown]
        values = [100 * i.value for _, i in shown]
        spans = [[100 * max(0.0, gap) for gap in gaps]
                 for gaps in ([i.value - i.low for _, i in shown], [i.high - i.value for _, i in shown])]
        ax.errorbar(values, places, xerr=spans, fmt="o", color=colour, capsize=3, label=name)
    arrows = {"more": "→ better", "less": "← better", "": ""}
    ax.set_yticks(range(len(found)), [f"{row.title}: {row.figure.name}  {arrows[row.figure.better]}" for row in found])
    for label, row in zip(ax.get_yticklabels(), found, strict=True):
        label.set_color({"better": "C2", "worse": "C3"}.get(row.verdict, "black"))
    ax.set_ylim(len(found) - 0.5, -0.5)  # the first above, and half a row of air at both ends
    ax.set_xlim(-3, max(103, ax.get_xlim()[1]))
    ax.set_xlabel("%, with 95 % intervals")
    ax.grid(axis="x", alpha=0.3)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    return canvas
