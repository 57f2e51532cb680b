"""Pictures of lesson 09: what is in an update, the strips of a block to scale, two ways to learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from llamamm.course.manners import half_width
from llamamm.course.plots import BLUE, GREEN, GREY, ORANGE, RED, show
from llamamm.text.model import TransformerBlock


def update_by_rank(
    updates: Mapping[str, Tensor], kept: Mapping[int, Tensor], random: tuple[int, Tensor], untuned: Tensor,
    tuned: Tensor,
) -> None:
    """updates: name -> (N, C). kept: rank -> losses, one a question; random: a rank and its losses, as of the untuned
    model and of the tuned one.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.1))
    generator = torch.Generator().manual_seed(0)
    for (name, update), color, dashes in zip(updates.items(), (BLUE, GREEN), ("--", ":"), strict=True):
        for matrix, label, c, style in (
            (update, f"update of {name}", color, "-"),
            (torch.randn(update.shape, generator=generator), f"random, as large as {name}", "dimgrey", dashes),
        ):
            energy = torch.linalg.svdvals(matrix).pow(2)
            left.plot(range(1, len(energy) + 1), energy.cumsum(0) / energy.sum(), style, color=c, linewidth=2,
                      label=label)  # fmt: skip
    left.set(xscale="log", xlabel="rank r", ylabel="share of the energy", xticks=[1, 8, 64, 576],
             xticklabels=[1, 8, 64, 576], ylim=(0, 1.03), title="What the r strongest tables hold")  # fmt: skip
    left.minorticks_off()

    def point(x: int, losses: Tensor, **style) -> None:
        right.errorbar(x, losses.mean(), yerr=half_width(losses), capsize=3, **style)

    right.axhline(untuned.mean(), color=GREY, linewidth=1.5, linestyle="--", label="untuned model")
    right.axhline(tuned.mean(), color=ORANGE, linewidth=1.5, label="full model")
    right.plot(list(kept), [losses.mean() for losses in kept.values()], color=BLUE, linewidth=1.5)
    for i, (rank, losses) in enumerate(kept.items()):
        point(rank, losses, fmt="o", color=BLUE, label="" if i else "the r strongest tables")
    point(random[0], random[1], fmt="X", color=RED, markersize=8, label=f"{random[0]} random directions")
    right.set(xscale="log", yscale="log", xlabel="rank r", ylabel="loss, questions held out", xticks=list(kept),
              xticklabels=list(kept), yticks=[0.25, 0.5, 1, 2, 4], yticklabels=[0.25, 0.5, 1, 2, 4], ylim=(0.18, 6),
              title="What they do in the model")  # fmt: skip
    right.minorticks_off()
    for ax in (left, right):
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1, fontsize=10)
    show(figure, alt="Left, share of the energy against rank: two real updates rise far above random matrices. Right, "
         f"held-out loss against rank on logarithmic axes: it falls from {kept[min(kept)].mean():.2f} at rank "
         f"{min(kept)} to {kept[max(kept)].mean():.2f} at rank {max(kept)}, where the full model has "
         f"{tuned.mean():.2f}; {random[0]} random directions stay at {random[1].mean():.2f}, near the untuned "
         f"{untuned.mean():.2f}.")  # fmt: skip


def strips_to_scale(block: TransformerBlock, r: int) -> None:
    """The matrices of a block and the two strips of rank r beside each."""
    linears = {**dict(block.self_attn.named_children()), **dict(block.mlp.named_children())}
    figure, ax = plt.subplots(figsize=(9, 3.0))
    left, gap = 0, 330
    for name, linear in linears.items():
        N, C = linear.weight.shape
        first = not left
        ax.add_patch(plt.Rectangle((left, 0), C, N, facecolor=GREY, alpha=0.4, label="W, frozen" if first else None))
        for place, width, height, color, label in ((left, C, -r, BLUE, "A, trained"),
                                                   (left + C + 40, r, N, ORANGE, "B, trained")):  # fmt: skip
            y = 0 if height > 0 else -40
            ax.add_patch(plt.Rectangle((place, y), width, height, facecolor=color, edgecolor=color, linewidth=0.6,
                                       label=label if first else None))  # fmt: skip
        text = f"{name}\n{N} × {C}\n{100 * r * (N + C) / (N * C):.1f}%"
        ax.text(left + C / 2, -130, text, ha="center", va="top", fontsize=10)
        left += C + gap
    ax.set(xlim=(-60, left - gap + 100), ylim=(-520, 1620), aspect="equal")
    ax.axis("off")
    ax.legend(loc="upper left", ncols=3, fontsize=10)
    show(figure, alt=f"The seven matrices of a block as grey rectangles to scale, each with a thin blue line below it, "
         f"A, and a thin orange one beside it, B. Together the {r} rows and {r} columns have 2 to 6% of the numbers.")


def loss_curves(losses: Mapping[str, Sequence[float]]) -> None:
    """name -> the loss of each batch."""
    figure, ax = plt.subplots(figsize=(7.4, 3.2))
    for (name, values), color, marker in zip(losses.items(), (ORANGE, BLUE, RED), "os^", strict=False):
        ax.plot(range(1, len(values) + 1), values, color=color, marker=marker, markersize=4, linewidth=1.8, label=name)
    ax.set(xlabel="step", ylabel="loss of the batch", yscale="log", yticks=[0.02, 0.1, 0.5, 2, 5],
           yticklabels=[0.02, 0.1, 0.5, 2, 5], title="The same batches in the same order")  # fmt: skip
    ax.minorticks_off()
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    ends = "; ".join(f"{name}: the last is {values[-1]:.2f}" for name, values in losses.items())
    show(figure, alt=f"Loss against the step on a logarithmic axis: {ends}.")
