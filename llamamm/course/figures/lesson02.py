"""Pictures of lesson 02: the growing stream, two norms in space, the gate, one hidden unit."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.course.plots import BLUE, GREY, ORANGE, RED, show


def stream_growth(sizes: Tensor) -> None:
    """RMS of each token's vector going into block 0 and coming out of each block. (blocks + 1, T)."""
    figure, ax = plt.subplots(figsize=(7.4, 3.5))
    passed = range(len(sizes))
    ax.semilogy(passed, sizes[:, 2:], color=GREY, linewidth=0.7)
    ax.semilogy(passed, sizes[:, 1], color=GREY, linewidth=0.7, label="each other token")
    ax.semilogy(passed, sizes[:, 1:].median(dim=1).values, color=BLUE, linewidth=2.2, label="their median")
    ax.semilogy(passed, sizes[:, 0], color=ORANGE, linewidth=2.2, label="first token")
    places = [0, *range(1, len(sizes), 5), len(sizes) - 1]
    ax.set_xticks(places, ["in", *(str(p - 1) for p in places[1:])])
    ax.set(xlabel="after block", ylabel="RMS", ylim=(0.05, 3000))
    ax.set_title("The residual stream of SmolLM2")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    show(figure, alt=f"Lines on a logarithmic scale. The median token grows from {sizes[0, 1:].median():.2f} to "
         f"{sizes[-1, 1:].median():.0f} over {len(sizes) - 1} blocks; the first token leaps to {sizes.max():.0f} in "
         f"block {int(sizes[1:, 0].argmax())}, stays there and comes down at the end.")  # fmt: skip


def norms_in_space(points: Tensor, by_layer_norm: Tensor, by_rms_norm: Tensor) -> None:
    """Points of three numbers before and after two norms. Each (N, 3)."""
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 4.0), subplot_kw={"projection": "3d"})
    for ax, after, title in zip(axes, (by_layer_norm, by_rms_norm),
                                ("LayerNorm: onto a circle", "RMSNorm: onto the sphere"), strict=True):  # fmt: skip
        _sphere(ax)
        _ring(ax)
        ax.plot(*zip((-1.7, -1.7, -1.7), (1.9, 1.9, 1.9), strict=True), color="black", linestyle=":", linewidth=1.2,
                label="all entries equal")  # fmt: skip
        for a, b in zip(points.tolist(), after.tolist(), strict=True):
            ax.plot(*zip(a, b, strict=True), color=BLUE, linewidth=0.9)
        ax.scatter(*points.T, color=BLUE, s=22, depthshade=False, label="before")
        ax.scatter(*after.T, color=RED, s=34, depthshade=False, label="after")
        ax.set(xlim=(-2, 2), ylim=(-2, 2), zlim=(-2, 2))
        ax.set_title(title, loc="center")
        ax.set_box_aspect((1, 1, 1), zoom=1.25)
        ax.view_init(elev=20, azim=-20)
        ax.set_axis_off()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    show(figure, alt=f"Two views of a sphere. Left, LayerNorm moves {len(points)} points onto a circle in the plane at "
         "right angles to (1, 1, 1), two of them onto the same point. Right, RMSNorm moves each along its own ray onto "
         "the sphere.")  # fmt: skip


def _sphere(ax) -> None:
    """The vectors of RMS 1: a sphere of radius √3."""
    across, down = torch.meshgrid(torch.linspace(0, 2 * torch.pi, 37), torch.linspace(0, torch.pi, 19), indexing="ij")
    round_ = (down.sin() * across.cos(), down.sin() * across.sin(), down.cos())
    ax.plot_wireframe(*(3**0.5 * part.numpy() for part in round_), color=GREY, linewidth=0.35, alpha=0.45)


def _ring(ax) -> None:
    """Those of the sphere whose mean is 0."""
    angle = torch.linspace(0, 2 * torch.pi, 121)[:, None]
    first, second = torch.tensor([1.0, -1, 0]) / 2**0.5, torch.tensor([1.0, 1, -2]) / 6**0.5
    ax.plot(*(3**0.5 * (angle.cos() * first + angle.sin() * second)).T, color=GREY, linewidth=1.8, label="mean 0")


def silu_and_gates(gates: Tensor) -> None:
    """SiLU beside ReLU, and a histogram of the real model's gates, any shape."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4))
    g = torch.linspace(-6, 4, 301)
    left.plot(g, torch.relu(g), color=GREY, linestyle="--", label="ReLU")
    left.plot(g, F.silu(g), color=BLUE, linewidth=2, label="SiLU")
    left.plot(-1.278, -0.278, "o", color=BLUE, label="lowest, −0.28")
    left.set(xlabel="g", ylabel="what passes", xlim=(-6, 4), title="A corner and a soft corner")
    left.legend(loc="upper left")
    n_outside = float(((gates < -6) | (gates > 4)).float().mean())
    right.hist(gates.flatten().numpy(), bins=100, range=(-6, 4), color=BLUE, alpha=0.75)
    right.axvline(0, color="black", linewidth=1)
    right.set(xlabel="g", ylabel="gates", xlim=(-6, 4), title=f"SmolLM2: {100 * (gates < 0).float().mean():.0f}% "
              "are negative")  # fmt: skip
    show(figure, alt="Left, ReLU has a corner at 0, SiLU a soft one with its lowest point at -1.28. Right, a histogram "
         f"of {gates.numel():,} gates: most lie between -3 and 2, the peak left of 0; {100 * n_outside:.1f}% lie "
         "outside the picture.")  # fmt: skip


def unit_on_words(pieces: Sequence[str], opening: Tensor, is_chosen: Tensor, *, title: str) -> None:
    """How far one hidden unit opens for each token of a text. opening, is_chosen (T,)."""
    figure, ax = plt.subplots(figsize=(8.4, 3.2))
    ax.bar(range(len(pieces)), opening, color=[ORANGE if chosen else GREY for chosen in is_chosen])
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_xticks(range(len(pieces)), [p.strip() for p in pieces], rotation=60, ha="right", rotation_mode="anchor")
    ax.set(ylabel="silu(g)", title=title)
    chosen = ", ".join(p.strip() for p, c in zip(pieces, is_chosen, strict=True) if c)
    show(figure, alt=f"A bar for each token, coloured for {chosen}: {title}.")
