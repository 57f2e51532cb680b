"""Pictures of lesson 14: a picture in a prompt, whether the model looks, which tokens say what, what fools it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from llamamm.course.plots import BLUE, GREEN, GREY, ORANGE, RED, SKY, show
from llamamm.evals.answers import Interval

WORDS = {"What": "1780", "is": "314", "this": "451", "?": "47"}  # ids of SmolLM2


def _picture(ax: Axes, pixels: Tensor, title: str = "", below: str = "") -> None:
    """uint8 or 0..1, (3, H, W)."""
    ax.imshow(pixels.permute(1, 2, 0), interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=10, loc="center")
    ax.set_xlabel(below, fontsize=10)
    ax.spines[:].set_visible(False)


def _box(ax: Axes, x: float, y: float, text: str, color: str, *, wide: float = 0.9) -> None:
    ax.add_patch(plt.Rectangle((x, y), wide, 0.8, facecolor=color, alpha=0.45, edgecolor="black", linewidth=0.8))
    ax.text(x + wide / 2, y + 0.4, text, ha="center", va="center", fontsize=9)


def asked(pictures: Sequence[Tensor], below: Sequence[str]) -> None:
    """Pictures of the test, (3, 64, 64) each, with what is asked and answered below."""
    figure, axes = plt.subplots(1, len(pictures), figsize=(8.6, 2.5))
    for ax, pixels, text in zip(axes, pictures, below, strict=True):
        _picture(ax, pixels, below=text)
    show(figure, alt="Small pictures with one coloured shape each on a light ground; below each a question and its "
                     "answer.")  # fmt: skip


def row() -> None:
    """A picture and four words: ids above, vectors below."""
    figure, ax = plt.subplots(figsize=(9.0, 2.6))
    names = ["start", *(f"p{n}" for n in range(9)), "end", *WORDS]
    for n, name in enumerate(names):
        color = GREY if name in WORDS else GREEN if name in ("start", "end") else SKY
        _box(ax, n, 1.6, WORDS.get(name, "V"), color)
        _box(ax, n, 0.0, name, color)
        ax.annotate("", (n + 0.45, 0.85), (n + 0.45, 1.55), arrowprops={"arrowstyle": "->", "color": "dimgrey"})
    ax.text(-0.2, 2.0, "ids", ha="right", va="center")
    ax.text(-0.2, 0.4, "vectors", ha="right", va="center")
    ax.text(5.5, -0.4, "from the eye through the bridge; start and end are learned", ha="center", va="center")
    ax.text(13, -0.4, "from the table", ha="center", va="center")
    ax.set(xlim=(-1.7, 15.1), ylim=(-0.7, 2.5))
    ax.axis("off")
    show(figure, alt="Two rows of 15 boxes. Above, ids: eleven times V, then four ids of words. Below, vectors: start, "
                     "nine pieces of the picture, end, and the words what, is, this, question mark.")  # fmt: skip


def intervals(groups: Mapping[str, Mapping[str, Interval]], *, xlabel: str, alt: str) -> None:
    """A bar with its interval for each name, one panel for each group; all panels have the same names."""
    names = list(next(iter(groups.values())))
    figure, axes = plt.subplots(1, len(groups), figsize=(8.6, 0.8 + 0.42 * len(names)), sharey=True, squeeze=False)
    for ax, (title, found) in zip(axes[0], groups.items(), strict=True):
        for n, value in enumerate(found.values()):
            ax.barh(n, value.value, color=BLUE if n == 0 else SKY, height=0.65)
            ax.plot([value.low, value.high], [n, n], color="black", linewidth=1.5)
            ax.text(1.06, n, f"{value.value:.0%}", va="center", ha="left", fontsize=10)
        ax.set(xlim=(0, 1.02), ylim=(len(names) - 0.45, -0.6), xlabel=xlabel, xticks=[0, 0.25, 0.5, 0.75, 1],
               xticklabels=["0", "25 %", "50 %", "75 %", "100 %"])  # fmt: skip
        ax.set_title(title, fontsize=11)
    axes[0, 0].set_yticks(range(len(names)), names)
    show(figure, alt=alt)


def labels(read: Sequence[str], wanted: Sequence[str]) -> None:
    """A training row: what is read at each place, and what is to come next there, "" where nothing is learned."""
    figure, ax = plt.subplots(figsize=(9.0, 2.1))
    for n, (here, target) in enumerate(zip(read, wanted, strict=True)):
        for y, text, color in ((1, here, SKY if here == "V" else GREY), (0, target, GREEN if target else "white")):
            ax.add_patch(plt.Rectangle((n, y), 0.92, 0.85, facecolor=color, alpha=0.45, edgecolor="black",
                                       linewidth=0.6))  # fmt: skip
            ax.text(n + 0.46, y + 0.42, text, ha="center", va="center", fontsize=9, rotation=90 if len(text) > 1 else 0)
    for y, name in ((1.42, "read"), (0.42, "target")):
        ax.text(-0.3, y, name, ha="right", va="center")
    ax.set(xlim=(-2.6, len(read)), ylim=(-0.1, 1.95))
    ax.axis("off")
    show(figure, alt="A row of boxes: the picture's eleven places, the question, the answer. Below, only the answer's "
                     "places have a target, one place early: the answer, and the end of the turn.")  # fmt: skip


def token_maps(pixels: Tensor, maps: Mapping[str, Tensor]) -> None:
    """A picture with its squares numbered, and for each question a share for each of the nine tokens, (9,)."""
    figure, axes = plt.subplots(1, 1 + len(maps), figsize=(8.6, 3.0))
    _picture(axes[0], pixels, "one of the pictures,\nwith the numbers of its squares")
    third = pixels.shape[1] / 3
    for k in (1, 2):
        axes[0].axhline(k * third - 0.5, color=GREY, linewidth=0.8)
        axes[0].axvline(k * third - 0.5, color=GREY, linewidth=0.8)
    for n in range(9):
        axes[0].text(n % 3 * third + 2, n // 3 * third + 2, str(n), va="top", fontsize=10)
    for ax, (title, shares) in zip(axes[1:], maps.items(), strict=True):
        image = ax.imshow(shares.view(3, 3), vmin=0, vmax=1)
        for n, share in enumerate(shares.tolist()):
            ax.text(n % 3, n // 3, f"{share:.0%}", ha="center", va="center", fontsize=11,
                    color="black" if share > 0.55 else "white")  # fmt: skip
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize=10, loc="center")
    figure.colorbar(image, ax=axes[1:], label="answers that change", ticks=[0, 0.5, 1], shrink=0.8)
    show(figure, alt="A picture cut into nine numbered squares, and two maps of nine numbers: how often the answer "
                     "changes when that one token alone comes from the other picture.")  # fmt: skip


def fooled(triples: Sequence[tuple[Sequence[Tensor], Sequence[str]]]) -> None:
    """For each picture four images (3, 64, 64) from 0 to 1: as it is, attacked, with noise, the attack enlarged; and
    four titles."""
    figure, axes = plt.subplots(len(triples), 4, figsize=(7.4, 2.1 * len(triples)), squeeze=False)
    for row_of, (images, titles) in zip(axes, triples, strict=True):
        for n, (ax, pixels, title) in enumerate(zip(row_of, images, titles, strict=True)):
            _picture(ax, pixels, title)
            ax.title.set_color(RED if n == 1 else "black")
    show(figure, alt="Rows of four: a picture; the same after the attack, which looks the same and is answered "
                     "differently; the same with noise of the same size, answered as before; and the attack enlarged "
                     "to be visible.")  # fmt: skip


def faults(shares: Mapping[str, tuple[Interval, int]], alone: int) -> None:
    """For each way to splice: right answers in a batch with the interval, and of pictures asked alone, how many."""
    figure, ax = plt.subplots(figsize=(8.0, 3.0))
    for n, (batch, single) in enumerate(shares.values()):
        ax.barh(n - 0.18, batch.value, color=BLUE, height=0.32)
        ax.plot([batch.low, batch.high], [n - 0.18] * 2, color="black", linewidth=1.5)
        ax.barh(n + 0.18, single / alone, color=ORANGE, height=0.32)
    ax.set_yticks(range(len(shares)), list(shares))
    ax.set(xlim=(0, 1.02), ylim=(len(shares) - 0.4, -0.6), xlabel="questions answered right")
    for name, color, y in (("in a batch", BLUE, 0.62), ("one at a time", ORANGE, 0.38)):
        ax.text(1.04, y, name, color=color, transform=ax.transAxes, va="center", fontsize=11)
    show(figure, alt="Bars for the right splice and for faulty ones, in a batch and one at a time. The right features "
                     "in the wrong prompts cost most in a batch and nothing one at a time.")  # fmt: skip
