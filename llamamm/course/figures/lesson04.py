"""Pictures of lesson 04: arrows that turn, the angles of all pairs, how far back a model can reach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.patches import Wedge
from torch import Tensor

from llamamm.course.plots import BLUE, GREEN, GREY, ORANGE, PINK, show


def turned_arrows(places: Sequence[tuple[int, int, Tensor, Tensor]]) -> None:
    """A circle for each (query's position, key's position, query's arrow, key's arrow) and the angle between them."""
    figure, axes = plt.subplots(1, len(places), figsize=(7.6, 3.4))
    for ax, (query_at, key_at, query, key) in zip(axes, places, strict=True):
        ax.add_patch(plt.Circle((0, 0), 1, fill=False, color=GREY, linewidth=1))
        start, end = (math.degrees(math.atan2(float(y), float(x))) for x, y in (query, key))
        if (end - start) % 360 > 180:  # the short way round
            start, end = end, start
        between = (end - start) % 360
        ax.add_patch(Wedge((0, 0), 0.45, start, start + between, color=GREEN, alpha=0.3, linewidth=0))
        middle = math.radians(start + between / 2)
        ax.text(0.62 * math.cos(middle), 0.62 * math.sin(middle), f"{math.radians(between):.1f}", color=GREEN,
                ha="center", va="center")  # fmt: skip
        for name, position, arrow, color in (("query", query_at, query, BLUE), ("key", key_at, key, ORANGE)):
            x, y = arrow.tolist()
            style = {"arrowstyle": "-|>", "lw": 2.2, "color": color, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", (x, y), (0, 0), arrowprops=style)
            ax.text(1.12 * x, 1.12 * y, f"{name} at {position}", color=color, va="bottom" if y > 0 else "top",
                    ha="left" if x > 0 else "right" if x < -0.3 else "center")  # fmt: skip
        ax.set(xlim=(-1.6, 1.75), ylim=(-1.3, 1.3), aspect="equal", xticks=[], yticks=[])
        ax.set_title(f"positions {query_at} and {key_at}", loc="center")
        ax.spines[:].set_visible(False)
    show(figure, alt="Two circles with two arrows each. At positions 12 and 15 the arrows point elsewhere than at 2 "
                     "and 5; the angle between them is 0.9 radians in both.")  # fmt: skip


def angle_map(cosines: Tensor, wavelengths: Tensor) -> None:
    """cosines: (positions, pairs), of each pair's angle at each position; wavelengths: (pairs,), tokens for a turn."""
    n_positions, n_pairs = cosines.shape
    figure, ax = plt.subplots(figsize=(7.8, 3.8))
    image = ax.imshow(cosines.T, aspect="auto", interpolation="nearest", vmin=-1, vmax=1)
    pairs = [0, 8, 16, 24, n_pairs - 1]
    for pair in pairs:
        ax.text(n_positions * 1.015, pair, f"{wavelengths[pair].item():,.0f} tokens", va="center", fontsize=10)
    ax.text(n_positions * 1.015, -2.4, "one full turn:", va="center", fontsize=10)
    ax.set(xlabel="position of the token", ylabel="pair", yticks=pairs)
    figure.colorbar(image, ax=ax, label="cosine of the angle", ticks=[-1, 0, 1], pad=0.02)
    show(figure, alt="Heat map of cosines. The top rows flicker from position to position; the rows from 16 on hardly "
                     "change in 200 positions.")  # fmt: skip


def reach(gaps: Sequence[int], losses: Mapping[str, Sequence[Sequence[float]]], never_told: Sequence[float]) -> None:
    """losses: name -> a row for each gap, a number for each fact. A line is the mean, its band the range."""
    figure, ax = plt.subplots(figsize=(7.6, 3.6))
    places = range(len(gaps))
    end = len(gaps) - 1
    mean = sum(never_told) / len(never_told)
    ax.axhline(mean, color=GREY, linewidth=1.2, linestyle="--")
    ax.text(0.02, mean + 0.2, "never told", color="dimgrey", va="bottom")
    for (name, rows), color in zip(losses.items(), (PINK, ORANGE, BLUE), strict=False):
        means = [sum(row) / len(row) for row in rows]
        ax.plot(places, means, color=color, linewidth=2, marker="o", markersize=4)
        ax.fill_between(places, [min(row) for row in rows], [max(row) for row in rows], color=color, alpha=0.25,
                        linewidth=0)  # fmt: skip
        ax.text(end + 0.1, means[-1], name, color=color, va="center")
    ax.set(xticks=list(places), xticklabels=[f"{gap:,}" for gap in gaps], xlim=(-0.1, end + 0.05), ylim=(0, None),
           xlabel="tokens between telling and asking", ylabel="loss of what was told")  # fmt: skip
    show(figure, alt="Loss against the gap between telling and asking. With plain angles it is low up to 2,000 tokens "
                     "and as high as never told from 8,000 on; slowing all pairs is bad everywhere; with the llama3 "
                     "rule it stays low.")  # fmt: skip
