"""Pictures of lesson 18: figures of filters with their intervals, alarms at a base rate, scores of sentences in coats,
a sentence in a picture and in a sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
from torch import Tensor

from llamamm.course.plots import BLUE, GREY, RED, show
from llamamm.senses.waves import RATE

Ends = tuple[float, float, float]  # a figure, and the ends of its interval
CHANCE = {"AUC": 0.5}
PER_ROW = 28  # squares
JITTER = 0.09


def filters(rows: Mapping[str, Mapping[str, Ends]]) -> None:
    """A line for each filter or split, a panel for each figure, with 95 % intervals."""
    columns = list(next(iter(rows.values())))
    figure, axes = plt.subplots(1, len(columns), figsize=(7.9, 1.2 + 0.42 * len(rows)), sharey=True, squeeze=False)
    for ax, column in zip(axes[0], columns, strict=True):
        for n, found in enumerate(rows.values()):
            value, low, high = found[column]
            ax.plot([low, high], [n, n], color=BLUE, linewidth=2.5)
            ax.plot(value, n, "o", color=BLUE, markersize=7)
            ax.text(1.06, n, f"{value:.2f}", va="center", fontsize=10)
        if column in CHANCE:
            ax.axvline(CHANCE[column], color=GREY, linestyle="--", linewidth=1.5)
            ax.text(CHANCE[column], -0.72, "chance", ha="center", va="bottom", fontsize=9.5)
        ax.set(xlim=(-0.03, 1.04), xticks=[0, 0.5, 1], ylim=(len(rows) - 0.5, -0.7), yticks=range(len(rows)),
               yticklabels=list(rows))  # fmt: skip
        ax.set_xlabel(f"{column} false positives" if column.endswith("%") else column, fontsize=11)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
    told = [f"{name}: " + ", ".join("{} {:.2f} ({:.2f} to {:.2f})".format(column, *found[column]) for column in columns)
            for name, found in rows.items()]  # fmt: skip
    show(figure, alt=f"Points with intervals. {'; '.join(told)}.")


def alarms(true: int, false: int) -> None:
    """A square for each alarm."""
    figure, ax = plt.subplots(figsize=(7.2, 1.9))
    for n in range(true + false):
        y, x = divmod(n, PER_ROW)
        ax.add_patch(plt.Rectangle((x, -y), 0.8, 0.8, color=RED if n < true else GREY, linewidth=0))
    rows = -(-(true + false) // PER_ROW)
    for x, colour, text in ((0, RED, f"{true} attacks"), (7, GREY, f"{false} false alarms")):
        ax.add_patch(plt.Rectangle((x, 1.35), 0.8, 0.8, color=colour, linewidth=0))
        ax.text(x + 1.2, 1.75, text, va="center", fontsize=11)
    ax.set(xlim=(-0.2, PER_ROW), ylim=(-rows + 0.8, 2.3), aspect="equal")
    ax.axis("off")
    show(figure, alt=f"Squares, one for each alarm: {true} red ones are attacks, {false} grey ones false alarms.")


def coats(scores: np.ndarray, names: Sequence[str], n_attacks: int, threshold: float) -> None:
    """Scores (sentences, coats), the attacks first: a column of points for each coat."""
    scores = np.asarray(scores)
    figure, ax = plt.subplots(figsize=(7.6, 3.3))
    for rows, colour, marker, label, side in ((scores[:n_attacks], RED, "o", "attacks", -1),
                                              (scores[n_attacks:], BLUE, "D", "harmless sentences", 1)):  # fmt: skip
        for k in range(len(names)):
            x = k + side * 0.16 + JITTER * np.linspace(-1, 1, len(rows))
            ax.plot(x, rows[:, k], marker, color=colour, markersize=6, label=label if k == 0 else None)
    ax.axhline(threshold, color=GREY, linestyle="--", linewidth=1.5)
    ax.text(len(names) - 0.42, threshold, "threshold", va="center", fontsize=9.5)
    ax.set(xlim=(-0.5, len(names) - 0.45), ylim=(-0.03, 1.03), xticks=range(len(names)), xticklabels=list(names),
           ylabel="guard's score")  # fmt: skip
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    flagged = [f"{name}: {(scores[:n_attacks, k] >= threshold).sum()} attacks and "
               f"{(scores[n_attacks:, k] >= threshold).sum()} harmless ones" for k, name in enumerate(names)]
    show(figure, alt=f"A guard's scores, a column for each coat. At or above the threshold lie, {'; '.join(flagged)}.")


def carriers(picture: PIL.Image.Image, wave: Tensor) -> None:
    """Words written in a picture, and a sentence as a wave (n_samples,) of 16 kHz."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.8, 2.5), width_ratios=(1, 2))
    left.imshow(picture)
    left.set(xticks=[], yticks=[], xlabel="a picture")
    left.spines[:].set_visible(True)  # or the stripe with the words is taken for a caption
    seconds = np.arange(len(wave)) / RATE
    right.plot(seconds, wave.numpy(), color=BLUE, linewidth=0.6)
    right.set(xlabel="a sound (seconds)", yticks=[], xlim=(0, seconds[-1]))
    right.spines["left"].set_visible(False)
    show(figure, alt=f"Left: a picture in which words are written. Right: the waveform of {seconds[-1]:.1f} "
                     f"seconds in which a sentence is spoken.")  # fmt: skip
