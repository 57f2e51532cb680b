"""Pictures of lesson 13: three bridges, merged neighbours, the gate, learning rates and runs compared, attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from llamamm.course.plots import BLUE, GREEN, GREY, ORANGE, PINK, RED, show
from llamamm.experiments.fusion_record import Record

SMALL = 9.5
COLOURS = {"projection": ORANGE, "perceiver": GREEN, "cross-attention": BLUE}
LIGHT = {BLUE: "#bfdcec", ORANGE: "#f9e4b8", GREEN: "#b5e6d3", PINK: "#f2dae8"}
MARKERS = {"projection": "o", "perceiver": "s", "cross-attention": "^"}


def _box(ax: Axes, x: float, y: float, text: str, colour: str, width: float, height: float = 0.56) -> None:
    corner = x - width / 2, y - height / 2
    ax.add_patch(plt.Rectangle(corner, width, height, facecolor=LIGHT[colour], linewidth=0))
    ax.add_patch(plt.Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=1.3))
    ax.text(x, y, text, ha="center", va="center", fontsize=SMALL)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "dimgrey", "lw": 1.3, "shrinkA": 0,
                                            "shrinkB": 0})  # fmt: skip


def _trains(tuned: bool) -> str:
    return "tuned" if tuned else "frozen"


def three_ways() -> None:
    """From 36 features of the eye to the Llama: what is spliced among the words, and what they look at instead."""
    fig, axes = plt.subplots(1, 3, figsize=(9.6, 3.9))
    for ax, title in zip(axes, ("Projection", "Perceiver", "Gated cross-attention"), strict=True):
        _box(ax, 1.5, 0.3, "36 features × 384", ORANGE, 2.6)
        ax.set(xlim=(-0.15, 5.6), ylim=(-0.1, 4.8), xticks=[], yticks=[])
        ax.set_title(title, loc="center")
        ax.spines[:].set_visible(False)
    for ax, steps, n in ((axes[0], ("merged: 9 × 1,536", "two linears: 9 × 128"), 9),
                         (axes[1], ("one linear: 36 × 128", "8 latents look: 8 × 128"), 8)):  # fmt: skip
        for i, step in enumerate(steps):
            _box(ax, 1.5, 1.2 + 0.9 * i, step, GREEN, 3.2)
            _arrow(ax, (1.5, 0.58 + 0.9 * i), (1.5, 0.92 + 0.9 * i))
        _box(ax, 1.5, 3.0, f"start, {n} tokens, end", GREEN, 3.0)
        _box(ax, 4.4, 3.0, "words of the\nquestion", BLUE, 2.2, 0.8)
        _box(ax, 2.75, 4.3, "Llama", BLUE, 5.5, 0.7)
        _arrow(ax, (1.5, 2.38), (1.5, 2.72))
        _arrow(ax, (1.5, 3.28), (1.5, 3.95))
        _arrow(ax, (4.4, 3.4), (4.4, 3.95))
    ax = axes[2]
    _box(ax, 1.5, 1.2, "two linears: 36 × 128", GREEN, 3.0)
    _box(ax, 4.4, 1.2, "start, words", BLUE, 2.2)
    for y, text, colour in ((2.1, "Llama, block 0", BLUE), (3.15, "gated block", GREEN), (4.3, "Llama, block 1", BLUE)):
        _box(ax, 4.4, y, text, colour, 2.2, 0.7 if y > 3 else 0.56)
    for begin, end in ((1.48, 1.82), (2.38, 2.8), (3.5, 3.95)):
        _arrow(ax, (4.4, begin), (4.4, end))
    _arrow(ax, (1.5, 0.58), (1.5, 0.92))
    ax.plot([1.5, 1.5], [1.48, 3.15], color="dimgrey", linewidth=1.3)
    _arrow(ax, (1.5, 3.15), (3.3, 3.15))
    ax.text(1.4, 2.4, "keys and\nvalues", fontsize=SMALL, va="center", ha="right")
    show(fig, alt="Three schemes. The projection merges 36 features to 9 and the Perceiver's latents fetch 8 tokens; "
         "both stand between a start and an end beside the question's words before the Llama. With gated "
         "cross-attention a new block between the Llama's two looks at all 36 features.")  # fmt: skip


def merged(tokens: Tensor) -> None:
    """tokens (4, 4): what each square of a 4 x 4 grid of numbers 0 to 15 became."""
    colours = (BLUE, ORANGE, GREEN, PINK)
    fig, ax = plt.subplots(figsize=(7.2, 2.9))
    for i in range(16):
        row, column = divmod(i, 4)
        _box(ax, column, 3 - row, str(i), colours[row // 2 * 2 + column // 2], 0.92, 0.92)
    for n, token in enumerate(tokens.int().tolist()):
        for k, number in enumerate(token):
            _box(ax, 7.0 + k, 3 - n, str(number), colours[n], 0.92, 0.86)
    _arrow(ax, (3.9, 1.5), (6.1, 1.5))
    ax.text(5.0, 1.65, "merge 2 × 2", ha="center", va="bottom", fontsize=SMALL + 0.5)
    ax.set(xlim=(-0.6, 10.6), ylim=(-0.6, 3.6), xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set_visible(False)
    show(fig, alt="A grid of 4 by 4 numbers, coloured by squares of 2 by 2, and beside it four rows: 0 1 4 5; 2 3 6 7; "
         "8 9 12 13; 10 11 14 15.")  # fmt: skip


def gate() -> None:
    """tanh, where it begins, and its slope there."""
    a = torch.linspace(-3, 3, 121)
    fig, ax = plt.subplots(figsize=(6.4, 3.1))
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.axvline(0, color=GREY, linewidth=0.8)
    ax.plot(a, a.tanh(), color=BLUE, linewidth=2.2)
    ax.plot([-0.95, 0.95], [-0.95, 0.95], color=ORANGE, linestyle="--", linewidth=1.8)
    ax.plot(0, 0, marker="o", color=RED, markersize=8)
    ax.text(0.25, -0.25, "begins here: closed", color=RED, va="top")
    ax.text(1.0, 1.02, "slope 1", color="#8a5f00", va="bottom", ha="left")
    ax.text(2.0, 0.82, "tanh(a)", color=BLUE, va="top")
    ax.set(xlabel="a, the learned number", ylabel="the gate", ylim=(-1.25, 1.3))
    show(fig, alt="The curve of tanh from -1 to 1, with its tangent of slope 1 at 0, where the gate begins.")


def searched(record: Record) -> None:
    """The share right on the validation part at each learning rate; a ring around the rate that each way gets."""
    fig, axes = plt.subplots(1, 2, figsize=(9.4, 3.7), sharey=True)
    for ax, tune_text, title in zip(axes, (False, True), ("Text model frozen", "Text model tuned, too"), strict=True):
        best, rates = record.rates(tune_text), sorted({run.rate for run in record.search})
        places = range(len(rates))
        for way, colour in COLOURS.items():
            share = {run.rate: 100 * run.share for run in record.search if (run.way, run.tune_text) == (way, tune_text)}
            ax.plot(places, [share[rate] for rate in rates], color=colour, marker=MARKERS[way], markersize=5, label=way)
            ax.plot(rates.index(best[way]), share[best[way]], marker="o", markersize=13, markerfacecolor="none",
                    markeredgecolor=colour, markeredgewidth=1.6)  # fmt: skip
        ax.set(title=title, xlabel="learning rate", ylim=(0, 106), xticks=list(places),
               xticklabels=[f"{rate:g}" for rate in rates])  # fmt: skip
    axes[0].set_ylabel("right on the validation part, %")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    said = "; ".join(f"{_trains(tuned)}: " + ", ".join(f"{way} {rate:g}" for way, rate in record.rates(tuned).items())
                     for tuned in (False, True))  # fmt: skip
    show(fig, alt="Share right against six learning rates, a line for each way, text model frozen on the left and "
         f"tuned on the right. The lines rise and fall and cross each other. Chosen, {said}.")  # fmt: skip


def reported(record: Record, live: Mapping[tuple[str, bool], float], blind: float) -> None:
    """Three seeds of each way, frozen and tuned, as dots; the range as a line; `live` shares as crosses; `blind`, what
    a question alone gives away."""
    fig, ax = plt.subplots(figsize=(9.0, 3.9))
    rows = [(way, tuned) for tuned in (False, True) for way in COLOURS]
    for y, (way, tuned) in enumerate(rows):
        shares = [100 * share for share in record.shares(way, tuned)]
        ax.plot([min(shares), max(shares)], [y, y], color=COLOURS[way], linewidth=6, alpha=0.3, solid_capstyle="round")
        ax.plot(shares, [y] * len(shares), color=COLOURS[way], marker=MARKERS[way], linestyle="none", markersize=7)
        if (way, tuned) in live:
            ax.plot(100 * live[way, tuned], y, marker="x", color="black", markersize=9, markeredgewidth=1.8,
                    linestyle="none", label="this run" * (y == 0))  # fmt: skip
    ax.axvline(100 * blind, color=GREY, linestyle="--", linewidth=1.2)
    ax.text(100 * blind + 1, len(rows) - 0.55, "question alone", color="dimgrey", va="center", fontsize=SMALL + 0.5)
    ax.set(yticks=range(len(rows)), yticklabels=[f"{way}, {_trains(tuned)}" for way, tuned in rows],
           xlim=(0, 102), ylim=(len(rows) - 0.2, -0.6), xlabel="right on the test part, %")  # fmt: skip
    if live:
        ax.legend(loc="upper left", bbox_to_anchor=(0.0, 1.0))
    said = "; ".join(f"{way}, {_trains(tuned)}: " + ", ".join(f"{100 * s:.0f}" for s in record.shares(way, tuned))
                     for way, tuned in rows)  # fmt: skip
    show(fig, alt=f"Per cent right with three seeds each. {said}. The question alone gives {100 * blind:.0f}.")


def attention_maps(pictures: Tensor, questions: Sequence[str], maps: Mapping[str, Tensor]) -> None:
    """pictures uint8 (n, 3, H, W), a question each; maps: name -> (n, 36) shares. One scale for all."""
    fig, axes = plt.subplots(len(pictures), 1 + len(maps), figsize=(9.2, 1.62 * len(pictures) + 0.4))
    top = float(max(shares.max() for shares in maps.values()))
    for row, (picture, question) in enumerate(zip(pictures, questions, strict=True)):
        axes[row, 0].imshow(picture.permute(1, 2, 0))
        axes[row, 0].set_ylabel("\n".join(question.rsplit(" ", 2)[:1] + [" ".join(question.rsplit(" ", 2)[1:])]),
                                fontsize=SMALL)  # fmt: skip
        for ax, (name, shares) in zip(axes[row, 1:], maps.items(), strict=True):
            image = ax.imshow(shares[row].view(6, 6), interpolation="nearest", vmin=0, vmax=top)
            if row == 0:
                ax.set_title(name, loc="center", fontsize=SMALL + 1)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    fig.colorbar(image, ax=axes, shrink=0.7, label="share of the attention")
    show(fig, alt="Pictures of a coloured shape, each with maps of 6 by 6 squares. Untrained, all squares are alike; "
         "trained, a few squares on the shape get most of the attention.")  # fmt: skip
