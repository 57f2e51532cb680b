"""Pictures of lesson 14: a picture in a prompt, whether the model looks, which tokens say what, what fools it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from llamamm.course.plots import BLUE, GREEN, GREY, ORANGE, RED, SKY, show
from llamamm.evals.intervals import Interval

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


def _bars(ax: Axes, found: Mapping[str, Interval], xlabel: str) -> None:
    """A bar with its interval for each name."""
    for n, value in enumerate(found.values()):
        ax.barh(n, value.value, color=BLUE if n == 0 else SKY, height=0.65)
        ax.plot([value.low, value.high], [n, n], color="black", linewidth=1.5)
        ax.text(1.05, n, f"{value.value:.0%}", va="center", ha="left", fontsize=10)
    ax.set(xlim=(0, 1.02), ylim=(len(found) - 0.45, -0.6), xlabel=xlabel, xticks=[0, 0.25, 0.5, 0.75, 1],
           xticklabels=["0", "25 %", "50 %", "75 %", "100 %"], yticks=range(len(found)),
           yticklabels=[name.strip() for name in found])  # fmt: skip


def looks(shares: Mapping[str, Interval], text_alone: float) -> None:
    """Right answers with its own picture, with another's, with none; a line for the text alone."""
    figure, ax = plt.subplots(figsize=(7.6, 2.3))
    _bars(ax, shares, "questions answered right")
    ax.axvline(text_alone, color=ORANGE, linestyle="--", linewidth=1.8)
    ax.text(text_alone, -0.68, "the text alone, at its best", color="black", ha="center", va="bottom", fontsize=10)
    show(figure, alt="Three bars. With its own picture the model answers most questions, far above the line for the "
                     "text alone; with another's picture it falls to that line, with none far below it.")  # fmt: skip


def patched(groups: Mapping[str, Mapping[str, Interval]]) -> None:
    """question -> which tokens come from the donor -> how often the answer becomes the donor's."""
    names = list(next(iter(groups.values())))
    figure, axes = plt.subplots(1, len(groups), figsize=(8.8, 0.8 + 0.42 * len(names)), sharey=True)
    for ax, (question, found) in zip(axes, groups.items(), strict=True):
        _bars(ax, found, "answer becomes the donor's")
        ax.set_title(question, fontsize=11)
    show(figure, alt="Two panels of five bars. All nine tokens flip every answer, and so, nearly always, do the few "
                     "that lie near a word; as many others hardly ever do. The tokens under the shape flip no more "
                     "colours than as many others, but every shape, and as many others none.")  # fmt: skip


def token_maps(pixels: Tensor, maps: Mapping[str, Tensor]) -> None:
    """A picture with its squares numbered, and for each question a share for each of the nine tokens, (9,)."""
    figure, axes = plt.subplots(1, 1 + len(maps), figsize=(8.6, 3.0))
    _picture(axes[0], pixels, "a scene, its squares")
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


def fooled(rows: Sequence[tuple[Sequence[Tensor], Sequence[str]]]) -> None:
    """For each picture, (3, 64, 64) from 0 to 1: as it is, attacked, with noise, each with its answer."""
    figure, axes = plt.subplots(len(rows), 4, figsize=(7.8, 2.15 * len(rows)), squeeze=False)
    for row_of, ((pixels, attacked, noisy), answers) in zip(axes, rows, strict=True):
        step = attacked - pixels
        images = (pixels, attacked, noisy, 0.5 + step / step.abs().max() / 2)
        titles = [f"{what}: {answer}" for what, answer in zip(("as it is", "attacked", "noise"), answers, strict=True)]
        for n, (ax, image, title) in enumerate(zip(row_of, images, [*titles, "the attack's steps"], strict=True)):
            _picture(ax, image, title)
            ax.title.set_color(RED if n == 1 else "black")
    show(figure, alt="Rows of four: a picture; the same after the attack, which looks almost the same and gets a "
                     "different answer; the same with noise of the same size; and the attack's steps, enlarged to be "
                     "visible.")  # fmt: skip


def faults(shares: Mapping[str, tuple[Interval, Interval]]) -> None:
    """For each fault: right answers in a batch, and of pictures asked about one at a time."""
    figure, ax = plt.subplots(figsize=(8.0, 3.1))
    for n, both in enumerate(shares.values()):
        for value, color, y in zip(both, (BLUE, ORANGE), (n - 0.19, n + 0.19), strict=True):
            ax.barh(y, value.value, color=color, height=0.34)
            ax.plot([value.low, value.high], [y, y], color="black", linewidth=1.5)
    ax.set(xlim=(0, 1.02), ylim=(len(shares) - 0.4, -0.6), xlabel="questions answered right", yticks=range(len(shares)),
           yticklabels=list(shares), xticks=[0, 0.25, 0.5, 0.75, 1],
           xticklabels=["0", "25 %", "50 %", "75 %", "100 %"])  # fmt: skip
    for name, color, y in (("in a batch of 16", BLUE, 0.62), ("one at a time", "#9A6A00", 0.42)):
        ax.text(1.03, y, name, color=color, transform=ax.transAxes, va="center", fontsize=11)
    show(figure, alt="Two bars for the right splice and for each of four faults. Off by one picture leaves few right "
                     "answers in a batch, and as many as the right splice one at a time. Off by one token and "
                     "backwards cost nothing. With all tokens alike few answers are right.")  # fmt: skip
