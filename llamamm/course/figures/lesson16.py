"""Pictures of lesson 16: what trains in each stage, what tokens say before and after, what was learned and forgotten, a
sound's path, margins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from llamamm.course.plots import BLUE, GREEN, GREY, ORANGE, SKY, show
from llamamm.evals.intervals import Interval

SMALL = 9.5
BROWN = "#9A6A00"
ALT = ("Two panels of points with intervals for three models. Left, questions answered with and without the picture; "
       "right, bits a byte of Shakespeare and Wikipedia beside a dashed line at 1, SmolLM2 itself. With LoRA most are "
       "answered, and Wikipedia takes more bits; with replay fewer are, and both texts take less.")  # fmt: skip


def stages(trains: Mapping[str, Sequence[str]]) -> None:
    """A row for each stage, a box for each part; green where it learns."""
    parts = ("eye, ear", "picture's bridge", "sound's bridge", "text", "LoRA")
    figure, ax = plt.subplots(figsize=(8.6, 0.5 + 0.62 * len(trains)))
    for row, (name, learning) in enumerate(trains.items()):
        ax.text(-0.15, row + 0.4, name, ha="right", va="center", fontsize=11)
        for n, part in enumerate(parts):
            learns, absent = part in learning, part == "LoRA" and "no LoRA" in learning
            ax.add_patch(plt.Rectangle((n * 1.25, row), 1.15, 0.8, facecolor=GREEN if learns else "white",
                                       alpha=0.55 if learns else 1, edgecolor=GREY if absent else "black",
                                       linestyle=":" if absent else "-", linewidth=0.9))  # fmt: skip
            ax.text(n * 1.25 + 0.575, row + 0.4, part, ha="center", va="center", fontsize=SMALL,
                    color="dimgrey" if absent else "black")  # fmt: skip
    ax.set(xlim=(-1.9, 6.3), ylim=(len(trains) + 0.1, -0.2))
    ax.axis("off")
    show(figure, alt="A row of five boxes for each stage: the towers, two bridges, the text model and LoRA. Green are "
                     "those that learn: the picture's bridge in alignment; it and LoRA in instruction tuning; the "
                     "sound's bridge alone in the last stage. Towers and text are never green.")  # fmt: skip


def _tokens(ax: Axes, words: Sequence[str], title: str) -> None:
    """Nine words in three rows."""
    for n, word in enumerate(words):
        said = word != "·"
        ax.add_patch(plt.Rectangle((n % 3, n // 3), 1, 1, facecolor=SKY if said else "white", alpha=0.55,
                                   edgecolor=GREY, linewidth=0.8))  # fmt: skip
        ax.text(n % 3 + 0.5, n // 3 + 0.5, word, ha="center", va="center", fontsize=SMALL)
    ax.set(xlim=(0, 3), ylim=(3, 0), xticks=[], yticks=[])
    ax.set_title(title, fontsize=10, loc="center")
    ax.spines[:].set_visible(False)


def nearest(pictures: Sequence[Tensor], rows: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """Pictures (3, H, W), and below each the words that its nine tokens lie nearest to, at each time."""
    figure, axes = plt.subplots(1 + len(rows), len(pictures), figsize=(2.2 * len(pictures), 1.6 + 1.55 * len(rows)),
                                height_ratios=[1.15, *[1.1] * len(rows)], squeeze=False)  # fmt: skip
    for n, pixels in enumerate(pictures):
        axes[0, n].imshow(pixels.permute(1, 2, 0), interpolation="nearest")
        axes[0, n].set(xticks=[], yticks=[])
        axes[0, n].spines[:].set_visible(False)
        for k, (title, words) in enumerate(rows.items(), start=1):
            _tokens(axes[k, n], words[n], title)
    show(figure, alt="Pictures of one coloured shape each. Below, nine boxes with the word nearest to each token. "
                     "Before alignment nearly all say John; afterwards some say the shape's colour or its name, and "
                     "the others show a dot, which is nothing.")  # fmt: skip


def _points(ax: Axes, y: float, value: Interval, colour: str, *, hollow: bool = False) -> None:
    ax.plot([value.low, value.high], [y, y], color=colour, linewidth=2)
    ax.plot(value.value, y, "o", color=colour, markerfacecolor="white" if hollow else colour, markersize=8)


def learned_and_forgotten(rows: Mapping[str, Sequence[Interval]]) -> None:
    """Of each model: questions answered, the same without a picture, and bits a byte of articles and of plays, by those
    of the text model as it was."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.8, 1.3 + 0.55 * len(rows)), sharey=True)
    for n, (answered, blind, articles, plays) in enumerate(rows.values()):
        _points(left, n - 0.13, answered, BLUE)
        _points(left, n + 0.17, blind, BROWN, hollow=True)
        _points(right, n - 0.13, plays, BLUE)
        _points(right, n + 0.17, articles, BROWN, hollow=True)
    left.set(xlim=(-0.03, 1.03), xticks=[0, 0.25, 0.5, 0.75, 1], xticklabels=["0", "25 %", "50 %", "75 %", "100 %"],
             yticks=range(len(rows)), yticklabels=list(rows), ylim=(len(rows) - 0.5, -0.6),
             xlabel="questions answered")  # fmt: skip
    figure.get_layout_engine().set(w_pad=0.15)
    right.axvline(1, color=ORANGE, linestyle="--", linewidth=1.5)
    right.set(xlabel="bits a byte, by SmolLM2's own")
    for ax, solid, hollow in ((left, "with the picture", "without"), (right, "Shakespeare", "Wikipedia")):
        ax.plot([], [], "o", color=BLUE, label=solid)
        ax.plot([], [], "o", color=BROWN, markerfacecolor="white", label=hollow)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=10, columnspacing=1.2)
    show(figure, alt=ALT)


def path(shares: Tensor, names: Sequence[str], best: Sequence[str]) -> None:
    """How probable each word is at each token of a sound: (M, 1 + V), with a row for "_" and each word named."""
    figure, ax = plt.subplots(figsize=(8.6, 0.9 + 0.3 * len(names)))
    image = ax.imshow(shares.T, aspect="auto", vmin=0, vmax=1, cmap="cividis")
    ax.set(yticks=range(len(names)), yticklabels=list(names), xticks=range(len(best)),
           xlabel="the likeliest of each token")  # fmt: skip
    ax.set_xticklabels(list(best), fontsize=SMALL, rotation=90)
    ax.tick_params(length=0)
    figure.colorbar(image, ax=ax, label="probability", ticks=[0, 0.5, 1])
    show(figure, alt="A map of probabilities, a column for each token and a row for each word. Most columns are sure "
                     "of nothing here; three short runs of columns are sure of one word each.")  # fmt: skip


def margins(after: Tensor) -> None:
    """Of each pair, how far the chosen answer has moved ahead of the rejected one, sorted."""
    figure, ax = plt.subplots(figsize=(7.4, 2.7))
    ax.bar(range(len(after)), after.sort().values, color=BLUE, width=0.8)
    ax.plot([0, len(after) - 1], [0, 0], color=ORANGE, linewidth=3)
    ax.text(0.02, 0.93, "orange: before training, 0 for all", transform=ax.transAxes, va="top", fontsize=SMALL)
    ax.set(xlabel="held-out pairs, sorted", ylabel="margin", xticks=[], ylim=(-2 + min(0, float(after.min())), None))
    ax.spines["bottom"].set_visible(False)
    show(figure, alt="Bars of held-out pairs, sorted: after training all margins are above an orange line at zero, "
                     "where they were before.")  # fmt: skip
