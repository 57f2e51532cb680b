"""Pictures of lesson 15: small print, pictures on their canvases, shares of lines, a receipt read, who sees what."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF

from llamamm.course.plots import BLUE, GREEN, GREY, ORANGE, RED, show
from llamamm.experiments.receipts import Lines
from llamamm.llama32_vision.tiles import TileProcessor

SMALL = 9.5


MARGIN = 4  # pixels of white that a whole receipt is shown with


def _paper(ax: Axes, picture: Tensor, *, whole: bool = False) -> None:
    """A picture (3, H, W) uint8 in a thin frame; a whole receipt with its own proportions and a white margin."""
    picture = F.pad(picture, [MARGIN] * 4, value=255) if whole else picture
    ax.imshow(picture.permute(1, 2, 0), interpolation="nearest", aspect="equal" if whole else "auto")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color=GREY)


def small_print(receipt: Tensor, scales: Sequence[float], names: Sequence[str]) -> None:
    """receipt: (3, H, W) uint8; its last four lines as each scale leaves them, shown equally large."""
    fig, axes = plt.subplots(1, 1 + len(scales), figsize=(8.6, 3.9), width_ratios=(0.6, *[1.3] * len(scales)))
    _paper(axes[0], receipt, whole=True)
    axes[0].set_title("the receipt")
    height, width = receipt.shape[1:]
    for ax, scale, name in zip(axes[1:], scales, names, strict=True):
        scaled = tvF.resize(receipt, [round(scale * height), round(scale * width)], antialias=True)
        _paper(ax, scaled[:, -round(scale * 48) :])
        ax.set_box_aspect(0.62)
        ax.set_title(f"{name}\n{scaled.shape[1]} x {scaled.shape[2]} pixels")
    show(fig, alt="A long receipt, and its last four lines three times: squeezed into one square they are grey smears; "
                  "in a square of twice the side one can guess some letters; at full size every letter is "
                  "sharp.")  # fmt: skip


def canvases(pictures: Sequence[Tensor], processor: TileProcessor) -> None:
    """Each picture (3, H, W) uint8 on its canvas, the tiles apart and numbered."""
    side, gap = processor.tile_size, processor.tile_size // 12
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processor.mean, processor.std))
    cut = [processor.tiles(picture) for picture in pictures]
    fig, axes = plt.subplots(1, len(cut), figsize=(8.6, 4.6), width_ratios=[grid[1] + 0.25 for _, grid in cut])
    most = max(grid[0] for _, grid in cut)
    for ax, picture, (tiles, (rows, columns)) in zip(axes, pictures, cut, strict=True):
        sheet = torch.ones(3, most * (side + gap), columns * (side + gap) - gap)
        for n, tile in enumerate(tiles):
            top, left = (n // columns) * (side + gap), (n % columns) * (side + gap)
            sheet[:, top : top + side, left : left + side] = (tile * std + mean).clamp(0, 1)
            ax.text(left + side - 3, top + side - 4, str(n + 1), color="white", fontsize=SMALL, weight="bold",
                    ha="right", bbox={"facecolor": BLUE, "edgecolor": "none", "pad": 1.5})  # fmt: skip
            ax.add_patch(plt.Rectangle((left - 0.5, top - 0.5), side, side, fill=False, edgecolor=GREY, linewidth=1))
        ax.imshow(sheet.permute(1, 2, 0), interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"{picture.shape[1]} x {picture.shape[2]}\n{rows} x {columns}", fontsize=11)
        ax.spines[:].set_visible(False)
    show(fig, alt="Four pictures on their canvases: a long receipt on four tiles one above the other; two receipts "
                  "side by side on two times two tiles; a short one on a single tile; and one that is a single line "
                  "too long for a tile, whose second tile is almost all black.")  # fmt: skip


def shares(scores: Sequence[Lines], *, marked: str) -> None:
    """A bar for each way, the first on top, with its interval; the one named `marked` is blue."""
    fig, ax = plt.subplots(figsize=(7.6, 0.55 * len(scores) + 0.8))
    for place, score in enumerate(reversed(scores)):
        low, high = score.interval
        ax.barh(place, 100 * score.right / score.n, 0.6, color=BLUE if score.name == marked else GREY)
        ax.plot([100 * low, 100 * high], [place, place], color="black", linewidth=1.4, marker="|", markersize=8)
        ax.text(100 * high + 2, place, f"{score.right} of {score.n}", va="center", fontsize=SMALL)
    ax.set_yticks(range(len(scores)), [score.name for score in reversed(scores)])
    ax.set(xlim=(0, 118), xticks=range(0, 101, 20), xlabel="lines read without a mistake, per cent")
    told = "; ".join(f"{score.name}, {score.right} of {score.n}" for score in scores)
    show(fig, alt=f"Bars of how many lines are read right: {told}.")


def reading(receipt: Tensor, said: Sequence[str], truth: Sequence[str]) -> None:
    """A receipt, and beside each of its lines what the reader says: green where it is right, red where it is not."""
    height, n = receipt.shape[1], len(truth)
    fig, (left, right) = plt.subplots(1, 2, figsize=(4.0, 0.35 * n + 0.4), width_ratios=(1, 1.6))
    _paper(left, receipt, whole=True)
    left.set_title("the picture", fontsize=11)
    for line, (ours, theirs) in enumerate(zip(said, truth, strict=True)):
        text = f"{chr(ord('A') + line)}?  {ours}"
        right.text(0.04, (line + 0.25) * height / n + MARGIN, text, va="center", family="monospace", fontsize=SMALL,
                   color=GREEN if ours == theirs else RED, weight="bold")  # fmt: skip
    right.set(xlim=(0, 1), ylim=(height + 2 * MARGIN, 0), xticks=[], yticks=[])
    right.spines[:].set_visible(False)
    right.set_title("asked, and answered", fontsize=11)
    wrong = sum(a != b for a, b in zip(said, truth, strict=True))
    show(fig, alt=f"A receipt of {n} lines, and beside each line what the model reads there; {n - wrong} of {n} are "
                  f"right, and the last says {said[-1]!r}.")  # fmt: skip


def seen_by(words: Sequence[str], marks: Tensor) -> None:
    """marks: (T, I, t) bool, which tiles of which image each word may look at, of two images."""
    T, n_images, t = marks.shape
    fig, ax = plt.subplots(figsize=(6.4, 4.4))
    for image, color in zip(range(n_images), (BLUE, ORANGE), strict=False):
        for word in range(T):
            for tile in range(t):
                face = color if marks[word, image, tile] else "#eeeeee"
                ax.add_patch(plt.Rectangle((image * (t + 0.6) + tile, word), 0.92, 0.88, color=face, linewidth=0))
        ax.text(image * (t + 0.6) + t / 2, -1.0, f"image {image + 1}", ha="center", color=color, weight="bold")
        for tile in range(t):
            ax.text(image * (t + 0.6) + tile + 0.46, -0.3, f"tile {tile + 1}", ha="center", fontsize=SMALL)
    ax.set_yticks([word + 0.44 for word in range(T)], words)
    ax.tick_params(length=0)
    ax.set(xlim=(-0.1, n_images * (t + 0.6)), ylim=(T, -1.5), xticks=[])
    ax.spines[:].set_visible(False)
    show(fig, alt="A grid of words and tiles. Words from the first image's token on see its two tiles, words from the "
                  "second's on its four; the two words before any image see nothing.")  # fmt: skip
