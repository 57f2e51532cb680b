"""Pictures of lesson 03: the path through attention, the division by √D, masks, heads of the real model, the sink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from llamamm.course import plots
from llamamm.course.plots import BLUE, GREEN, GREY, ORANGE, RED

SMALL = 9.5


def _box(ax: Axes, x: float, y: float, text: str, *, edge: str = "black", fill: str = "white") -> None:
    ax.text(x, y, text, ha="center", va="center", fontsize=SMALL, linespacing=1.35,
            bbox={"boxstyle": "round,pad=0.4", "fc": fill, "ec": edge, "lw": 1.3})  # fmt: skip


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str = "black") -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.2,
                                            "shrinkA": 0, "shrinkB": 0})  # fmt: skip


def attention_path() -> None:
    """From the tokens' vectors to q, k, v, to scores, weights, the heads' results, and back, with shapes."""
    fig, ax = plt.subplots(figsize=(9.6, 4.3))
    _box(ax, 0.6, 2.2, "x\n(T, 576)")
    for y, text, color in ((3.7, "q: 9 heads\n(9, T, 64)", BLUE), (2.2, "k: 3 heads\n(3, T, 64)", GREEN),
                           (0.7, "v: 3 heads\n(3, T, 64)", ORANGE)):  # fmt: skip
        _arrow(ax, (0.97, 2.2 + (y - 2.2) * 0.1), (2.4, y))
        _box(ax, 2.85, y, text, edge=color)
    ax.text(1.45, 3.2, "q_proj", fontsize=SMALL, ha="right")
    ax.text(1.66, 2.27, "k_proj", fontsize=SMALL, ha="center")
    ax.text(1.45, 1.15, "v_proj", fontsize=SMALL, ha="right")
    _box(ax, 4.95, 2.95, "scores\nq · k / √64\n(9, T, T)")
    _arrow(ax, (3.3, 3.6), (4.5, 3.15), BLUE)
    _arrow(ax, (3.3, 2.3), (4.5, 2.75), GREEN)
    _box(ax, 6.85, 2.95, "weights\nmask, softmax\n(9, T, T)")
    _arrow(ax, (5.38, 2.95), (6.27, 2.95))
    _box(ax, 6.85, 0.7, "heads' results\nweights · v\n(9, T, 64)")
    _arrow(ax, (6.85, 2.62), (6.85, 1.04))
    _arrow(ax, (3.3, 0.7), (6.29, 0.7), ORANGE)
    _box(ax, 8.75, 0.7, "side by side\n9 · 64 = 576\n(T, 576)")
    _arrow(ax, (7.41, 0.7), (8.24, 0.7))
    _box(ax, 8.75, 2.95, "result\n(T, 576)")
    _arrow(ax, (8.75, 1.04), (8.75, 2.7))
    ax.text(8.85, 1.9, "o_proj", fontsize=SMALL, va="center")
    ax.text(4.95, 3.82, "key head 0 serves q heads 0, 1, 2;\nkey head 1 serves 3, 4, 5; and so on", fontsize=SMALL,
            ha="left", va="center")  # fmt: skip
    ax.set(xlim=(0, 9.5), ylim=(0.1, 4.25))
    ax.axis("off")
    plots.show(fig, alt="From x of shape (T, 576), q_proj, k_proj and v_proj make 9 query heads, 3 key heads and 3 "
               "value heads of 64 numbers. Queries and keys give scores (9, T, T); mask and softmax turn them into "
               "weights; weights times values give (9, T, 64); side by side that is (T, 576), and o_proj gives "
               "the result, (T, 576).")  # fmt: skip


def scale_matters(weights: Mapping[int, tuple[Tensor, Tensor]]) -> None:
    """Average weights of eight keys, the largest first, for each D: without the division and with it."""
    fig, axes = plt.subplots(1, len(weights), figsize=(8.6, 3.0), sharey=True)
    for ax, (D, (plain, scaled)) in zip(axes, weights.items(), strict=True):
        ax.bar(torch.arange(8) - 0.2, plain, 0.4, color=RED, label="without √D")
        ax.bar(torch.arange(8) + 0.2, scaled, 0.4, color=BLUE, label="divided by √D")
        ax.set(title=f"D = {D}", xlabel="key, by weight", xticks=range(8), xticklabels=range(1, 9))
    axes[0].set_ylabel("attention weight")
    axes[-1].legend(loc="upper right")
    plots.show(fig, alt="Weights of eight keys for three values of D: the larger D, the more the first key takes "
               "without the division; with it the weights are the same for every D.")  # fmt: skip


def masks(drawn: Sequence[tuple[str, Tensor, int]]) -> None:
    """Masks (T, S), each with a title and the position of its first query; a filled square may look."""
    fig, axes = plt.subplots(1, len(drawn), figsize=(8.6, 3.1))
    for n, (ax, (title, mask, first)) in enumerate(zip(axes, drawn, strict=True)):
        for row, column in mask.nonzero().tolist():
            ax.add_patch(plt.Rectangle((column - 0.45, first + row - 0.45), 0.9, 0.9, color=BLUE if n < 2 else RED))
        ax.set(xlim=(-0.6, 4.6), ylim=(4.6, -0.6), xticks=range(5), yticks=range(5), aspect="equal", title=title,
               xlabel="key's position")  # fmt: skip
    axes[0].set_ylabel("query's position")
    plots.show(fig, alt="Three masks of 5 keys: a full triangle; its rows 3 and 4, which see keys 0 to 3 and 0 to 4, "
               "and the same two rows without the offset, which see key 0 and keys 0 to 1.")  # fmt: skip


def head_maps(maps: Mapping[str, Tensor], pieces: Sequence[str], mark: tuple[int, int]) -> None:
    """Weights (T, T) of some heads on one sentence, one scale for all. mark: query and key framed in the second map."""
    fig, axes = plt.subplots(1, len(maps), figsize=(9.6, 4.1), sharey=True)
    for ax, (title, weights) in zip(axes, maps.items(), strict=True):
        image = ax.imshow(weights, cmap="Blues", vmin=0, vmax=1)
        ax.set_title(title)
        ax.set_xticks(range(len(pieces)), pieces, rotation=90, fontsize=SMALL)
        ax.set_yticks(range(len(pieces)), pieces, fontsize=SMALL)
        ax.spines[:].set_visible(False)
    axes[1].add_patch(plt.Rectangle((mark[1] - 0.5, mark[0] - 0.5), 1, 1, fill=False, edgecolor=ORANGE, lw=2.5))
    axes[0].set_ylabel("query: the token that looks")
    fig.supxlabel("key: the token looked at", fontsize=11)
    fig.colorbar(image, ax=axes, shrink=0.7, label="weight")
    plots.show(fig, alt="Three tables of weights on one sentence: a diagonal just below the main one; a table in which "
               "the row of 'it' is dark at 'dog'; and one whose first column is dark from top to bottom.")  # fmt: skip


def sink(on_first: Mapping[str, Tensor], size: Tensor, even: float) -> None:
    """For each block, the weight on the first token, as it is and with changes, and the first token's size on entry."""
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(8.6, 5.2), sharex=True, height_ratios=(3, 2))
    styles: list[dict[str, Any]] = [{"color": BLUE, "lw": 2.2}, {"color": RED, "lw": 1.8, "ls": "--"},
                                    {"color": GREEN, "lw": 1.2, "marker": "o", "ms": 3.5}]  # fmt: skip
    for (label, weights), style in zip(on_first.items(), styles, strict=True):
        top.plot(weights, label=label, **style)
    top.axhline(even, color=GREY, lw=1.2, ls=":", label=f"an even share, {even:.2f}")
    top.set(ylim=(0, 1), ylabel="weight on the first token")
    top.legend(loc="upper left", bbox_to_anchor=(0.0, 1.28), ncols=2, fontsize=SMALL)
    bottom.bar(range(len(size)), size, color=ORANGE)
    bottom.set(yscale="log", ylabel="first token's RMS,\nothers' median = 1", xlabel="block")
    bottom.set_yticks([1, 10, 100], ["1", "10", "100"])
    bottom.set_xticks(range(0, len(size), 3))
    plots.show(fig, alt="Above, the weight on the first token in each of 30 blocks: near 0.15 in blocks 0 and 1, 0.6 "
               "to 0.8 in blocks 3 to 9, 0.07 in block 11, and around 0.65 from block 12 on. Without block 11's "
               "addition to the first token it falls to nearly 0 in the later blocks; without that to the second token "
               "nothing changes. Below, the first token's size going into each block: about 9 times the others' in "
               "blocks 3 to 6, as large as theirs in block 11, 175 times in block 12.")  # fmt: skip
