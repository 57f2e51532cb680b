"""Pictures of lesson 10: what is learned, filled rows, steps beside the one that was meant, rates, a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import cos, radians, sin

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap
from torch import Tensor

from llamamm.course.plots import BLUE, COLORS, GREEN, GREY, ORANGE, RED, show

EMPTY = "#E6E6E6"
SMALL = 9.5
WIDE = 74  # characters in a line of tokens


def learned_tokens(names: Sequence[str], learned: Sequence[bool]) -> None:
    """A dialogue's tokens in lines, those that are learned in colour."""
    lines: list[list[tuple[str, bool]]] = [[]]
    for name, mark in zip(names, learned, strict=True):
        if sum(len(n) + 1 for n, _ in lines[-1]) + len(name) + 1 > WIDE:
            lines.append([])
        lines[-1].append((name, mark))
    figure, ax = plt.subplots(figsize=(8.2, 0.25 + 0.36 * len(lines)))
    for row, line in enumerate(lines):
        left = 0.0
        for name, mark in line:
            width = len(name) + 1.0
            ax.barh(-row, width - 0.2, left=left, height=0.8, color=ORANGE if mark else EMPTY)
            ax.text(left + width / 2 - 0.1, -row, name, ha="center", va="center", fontsize=SMALL, family="monospace")
            left += width
    ax.set(xlim=(0, WIDE), ylim=(0.6 - len(lines), 0.6))
    ax.axis("off")
    said = " ".join(name for name, mark in zip(names, learned, strict=True) if mark)
    show(figure, alt=f"The tokens of a dialogue. Those of the answer and its end are orange: {said}. All others, the "
         "question and the marks of the format, are grey.")  # fmt: skip


def filled_rows(rows: Mapping[str, Tensor], wasted: Mapping[str, float]) -> None:
    """Segments (B, T) of a batch for each way to fill rows, and the share of filling."""
    figure, axes = plt.subplots(1, len(rows), figsize=(9.2, 2.5))
    for ax, (name, segments) in zip(axes, rows.items(), strict=True):
        colours = torch.where(segments > 0, (segments - 1) % 5 + 1, 0)
        ax.imshow(colours, aspect="auto", interpolation="none", vmin=0, vmax=5,
                  cmap=ListedColormap([EMPTY, *COLORS[:5]]))  # fmt: skip
        ax.set(xlabel="place", yticks=[], title=f"{name}\n{wasted[name]:.0%} filling")
    axes[0].set_ylabel("8 rows")
    shares = ", ".join(f"{name}: {share:.0%}" for name, share in wasted.items())
    show(figure, alt="Eight rows of a batch, filled in three ways; colours are texts, grey is filling. Filling: "
         f"{shares}.")  # fmt: skip


def three_triangles(mask: Tensor, segments: Tensor, names: Sequence[str]) -> None:
    """A packed row's mask (T, T): who may see whom, coloured by text."""
    figure, ax = plt.subplots(figsize=(5.6, 4.4))
    ax.imshow(mask * segments, cmap=ListedColormap([EMPTY, *COLORS[:3]]), interpolation="none")
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=SMALL)
    ax.set_yticks(range(len(names)), names, fontsize=SMALL)
    ax.set(ylabel="this token ...", xlabel="... may see this one")
    show(figure, alt="A square of tokens against tokens. Three coloured triangles lie along the diagonal, one for each "
         "text; everything else is grey.")  # fmt: skip


def steps_taken(ways: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """For each way, steps as (degrees from the one that was meant, length as a share of its)."""
    figure, axes = plt.subplots(1, len(ways), figsize=(8.6, 3.0), sharex=True, sharey=True)
    for ax, (name, steps) in zip(axes, ways.items(), strict=True):
        for n, (angle, length) in enumerate(steps):
            x, y = length * cos(radians(angle)), length * sin(radians(angle))
            ax.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "lw": 1.8, "color": RED, "shrinkA": 0,
                                                        "shrinkB": 0})  # fmt: skip
            ax.plot([], [], color=RED, lw=1.8, label="taken" if n == 0 else None)
        ax.annotate("", (1, 0), (0, 0), arrowprops={"arrowstyle": "-|>", "lw": 2.6, "color": BLUE, "shrinkA": 0,
                                                    "shrinkB": 0})  # fmt: skip
        ax.plot([], [], color=BLUE, lw=2.6, label="meant")
        ax.set(title=name, aspect="equal", xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    ends = [(n * cos(radians(a)), n * sin(radians(a))) for steps in ways.values() for a, n in steps] + [(1.0, 0.0)]
    axes[0].set(xlim=(-0.1, 1.1 * max(x for x, _ in ends)), ylim=(-0.15, 1.1 * max(y for _, y in ends)))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    said = "; ".join(f"{name}: {', '.join(f'{a:.0f} degrees and {n:.1f} times as long' for a, n in steps)}"
                     for name, steps in ways.items())  # fmt: skip
    show(figure, alt=f"Arrows for the step that was meant and the steps taken. {said}.")


def rate_finder(rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], *, taken: float,
                lowest: float) -> None:  # fmt: skip
    """The loss while the learning rate grows, with the rate that is taken and the one where the loss is lowest."""
    figure, ax = plt.subplots(figsize=(7.6, 3.2))
    ax.plot(rates, losses, color=GREY, lw=1, label="each step")
    ax.plot(rates, smoothed, color=BLUE, lw=2.2, label="smoothed")
    for rate, color, name, side in ((taken, GREEN, f"taken: {taken:g} ", "right"),
                                    (lowest, RED, " lowest: too much", "left")):  # fmt: skip
        ax.axvline(rate, color=color, lw=1.4, ls="--")
        ax.text(rate, 1.02, name, color=color, ha=side, va="bottom", transform=ax.get_xaxis_transform())
    ax.set(xscale="log", xlabel="learning rate, raised at each step", ylabel="loss",
           ylim=(min(losses) - 0.3, losses[0] + 1.5))  # fmt: skip
    ax.legend(loc="lower left")
    show(figure, alt=f"Loss against a rising learning rate: flat at {losses[0]:.1f}, then falling to "
         f"{min(smoothed):.1f} near a rate of {lowest:.1g}, then exploding. The rate taken, {taken:g}, lies on the "
         "falling part.")  # fmt: skip


def run(perplexities: Sequence[float], held_out: Mapping[int, float], rulers: Mapping[str, float],
        rates: Sequence[float]) -> None:  # fmt: skip
    """Perplexity of each training step, smoothed, and of held-out text at some steps; below it each step's rate.

    rulers: name -> perplexity.
    """
    figure, (ax, below) = plt.subplots(2, 1, figsize=(8.4, 4.6), sharex=True, height_ratios=(3, 1))
    steps = len(perplexities)
    ax.semilogy(range(1, steps + 1), perplexities, color=BLUE, lw=1.6, label="training text, smoothed")
    ax.semilogy(list(held_out), list(held_out.values()), color=ORANGE, lw=2, marker="o", ms=5, label="held-out text")
    for name, value in rulers.items():
        ax.axhline(value, color=GREY, lw=1.2, ls=":")
        ax.text(steps * 1.06, value, f"{name}: {value:,.0f}", color="dimgrey", va="center")
    ax.set(ylabel="perplexity", xlim=(0, steps * 1.04))
    ticks = [4000, 2000, 1000, 500, 250, 125]
    ax.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.minorticks_off()
    ax.legend(loc="upper right", bbox_to_anchor=(1.0, 0.92))
    below.plot(range(1, steps + 1), rates, color=GREEN, lw=1.8)
    below.set(xlabel="step", ylabel="learning\nrate", ylim=(0, 1.15 * max(rates)))
    show(figure, alt=f"Perplexity over {steps} steps on a logarithmic scale: held-out text falls from "
         f"{held_out[0]:,.0f} to {list(held_out.values())[-1]:,.0f}, training text with it. Rulers: "
         f"{', '.join(f'{name} {value:,.0f}' for name, value in rulers.items())}. Below, the learning rate rises in a "
         "short line and falls along half a cosine.")  # fmt: skip
