"""Pictures of lesson 17: a model that always says A, figures with their intervals, draws of a bootstrap, how many items
a difference needs, a table of word errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

from llamamm.course.plots import BLUE, GREY, ORANGE, RED, SKY, show
from llamamm.evals.intervals import Interval, needed_items

SMALL = 9.5
BROWN = "#9A6A00"
TICKS = [0, 0.25, 0.5, 0.75, 1]


def letters(first: Sequence[float], second: Sequence[float]) -> None:
    """Of each question ln p(A) - ln p(B): with the right choice as A, and with the same choice as B."""
    order = np.argsort(first)
    figure, ax = plt.subplots(figsize=(7.6, 3.2))
    top = max(*first, *second, 0.5) * 1.12
    ax.axhspan(-1.6, 0, color=GREY, alpha=0.18, linewidth=0)
    ax.plot(np.asarray(first)[order], "o", color=BLUE, markersize=6, label="right choice is A")
    ax.plot(np.asarray(second)[order], "D", color=BROWN, markersize=5, markerfacecolor="white",
            label="right choice is B")  # fmt: skip
    for y, text in ((0.25, "says A"), (-0.85, "would say B")):
        ax.text(len(first) + 1.2, y, text, va="bottom", fontsize=10)
    ax.set(xlabel="questions, sorted", ylabel="ln p(A) − ln p(B)", xticks=[], ylim=(min(-1.6, *first, *second), top),
           xlim=(-1, len(first) + 7.5))  # fmt: skip
    ax.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=2)
    show(figure, alt="Two points for each question: how much more probable the letter A is than B, with the right "
                     "choice as A and as B. All points lie above zero, and the two of a question lie close "
                     "together.")  # fmt: skip


def shares(rows: Mapping[str, Interval], chance: Mapping[str, float]) -> None:
    """A point with its interval for each figure, beside dashed lines, each with its name."""
    figure, ax = plt.subplots(figsize=(7.8, 1.1 + 0.42 * len(rows)))
    for n, figure_of in enumerate(rows.values()):
        ax.plot([figure_of.low, figure_of.high], [n, n], color=BLUE, linewidth=2.5)
        ax.plot(figure_of.value, n, "o", color=BLUE, markersize=8)
        ax.text(1.07, n, f"{figure_of.value:.0%}", va="center", ha="left", fontsize=10)
    for name, share in chance.items():
        ax.axvline(share, color=ORANGE, linestyle="--", linewidth=1.6)
        ax.text(share, -0.75, name, ha="center", va="bottom", fontsize=SMALL)
    ax.set(xlim=(-0.03, 1.05), xticks=TICKS, xticklabels=["0", "25 %", "50 %", "75 %", "100 %"],
           yticks=range(len(rows)), yticklabels=list(rows), ylim=(len(rows) - 0.5, -0.7))  # fmt: skip
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    told = [f"{name} {row.value:.0%}, from {row.low:.0%} to {row.high:.0%}" for name, row in rows.items()]
    lines = [f"{name} {share:.0%}" for name, share in chance.items()]
    show(figure, alt=f"Points with intervals: {'; '.join(told)}. Dashed: {', '.join(lines)}.")


def draws(figures: Sequence[float], low: float, high: float) -> None:
    """How often each share came, of sets that were drawn again; the ends of the interval."""
    values, counts = np.unique(np.round(figures, 6), return_counts=True)
    inside = (values >= low) & (values <= high)
    figure, ax = plt.subplots(figsize=(7.4, 2.9))
    ax.bar(values, counts, width=0.06, color=[BLUE if kept else GREY for kept in inside])
    for x in (low, high):
        ax.text(x, max(counts) * 1.03, f"{x:.0%}", ha="center", va="bottom", fontsize=11, color=RED)
        ax.plot([x, x], [0, max(counts)], color=RED, linewidth=1.5, linestyle="--")
    ax.set(xlim=(-0.05, 1.05), xticks=[0, 0.2, 0.4, 0.6, 0.8, 1], ylim=(0, max(counts) * 1.18),
           xticklabels=["0", "20 %", "40 %", "60 %", "80 %", "100 %"],
           xlabel="right, in a set that was drawn again", ylabel="sets")  # fmt: skip
    show(figure, alt="Bars: how many of 1,000 sets drawn again had each share of right answers. They form a hill; two "
                     "dashed red lines mark the ends between which 95 of 100 sets lie.")  # fmt: skip


def needed(differences: Sequence[float], *, share: float, differ: float) -> None:
    """How many questions it takes to see a difference, unpaired and paired."""
    rows = (("each its own questions", BLUE, "o", [needed_items(d, share) for d in differences]),
            (f"the same questions, {differ:.0%} decided differently", BROWN, "D",
             [needed_items(d, share, differ=differ) for d in differences]))  # fmt: skip
    figure, ax = plt.subplots(figsize=(7.6, 3.3))
    for name, colour, marker, found in rows:
        ax.plot(differences, found, marker=marker, color=colour, linewidth=2, label=name)
    ax.set(xscale="log", yscale="log", xlabel="difference, in points", ylabel="questions needed", xticks=differences,
           yticks=[30, 100, 300, 1000, 3000, 10000, 30000])  # fmt: skip
    ax.set_xticklabels([f"{100 * d:g}" for d in differences])
    ax.set_yticklabels(["30", "100", "300", "1,000", "3,000", "10,000", "30,000"])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(loc="upper right")
    show(figure, alt="Two falling lines on logarithmic axes: the smaller a difference, the more questions it takes. "
                     "Two models on the same questions need fewer than on questions of their own.")  # fmt: skip


def errors(table: Sequence[Sequence[int]] | Tensor, said: Sequence[str], heard: Sequence[str]) -> None:
    """A table of word errors, a row for each word said, and a way from its corner back to the start."""
    rows = [list(map(int, row)) for row in table]
    height, width = len(rows), len(rows[0])
    path = _way_back(rows)
    figure, ax = plt.subplots(figsize=(1.6 + 0.78 * width, 0.7 + 0.42 * height))
    for n in range(height):
        for k in range(width):
            on = (n, k) in path
            ax.add_patch(plt.Rectangle((k, n), 1, 1, facecolor=SKY if on else "white", alpha=0.6, edgecolor=GREY,
                                       linewidth=0.8))  # fmt: skip
            ax.text(k + 0.5, n + 0.5, str(rows[n][k]), ha="center", va="center", fontsize=11)
    ax.set(xlim=(0, width), ylim=(height, 0), xticks=[k + 0.5 for k in range(width)], xticklabels=["", *heard],
           yticks=[n + 0.5 for n in range(height)], yticklabels=["", *said])  # fmt: skip
    ax.xaxis.tick_top()
    ax.tick_params(length=0, labelsize=10)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("heard", fontsize=10)
    ax.xaxis.set_label_position("top")
    ax.set_ylabel("said", fontsize=10)
    show(figure, alt="A table of numbers, a row for each word said and a column for each word heard. Coloured cells "
                     "lead from the upper left corner to the lower right one, whose number is the errors in "
                     "all.")  # fmt: skip


def _way_back(rows: Sequence[Sequence[int]]) -> set[tuple[int, int]]:
    """From the corner, each time to the neighbour with the fewest errors, the diagonal one first."""
    n, k = len(rows) - 1, len(rows[0]) - 1
    found = {(n, k)}
    while n or k:
        steps = [(n - down, k - right) for down, right in ((1, 1), (1, 0), (0, 1)) if n >= down and k >= right]
        n, k = min(steps, key=lambda to: rows[to[0]][to[1]])
        found.add((n, k))
    return found
