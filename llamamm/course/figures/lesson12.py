"""Pictures of lesson 12: a wave, triangles of mel, a log-mel, what fades, from a wave to words, where it looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from llamamm.course import plots
from llamamm.course.plots import BLUE, GREEN, GREY, ORANGE, PINK
from llamamm.experiments.word_recognition import Kept
from llamamm.senses.mel import HOP

SMALL = 9.5


def _outline(ax: Axes, wave: Tensor) -> None:
    """From the lowest to the highest of every 10 ms: all samples would be a blot."""
    pieces = wave[: len(wave) // HOP * HOP].view(-1, HOP)
    ax.fill_between(torch.arange(len(pieces)) / 100, pieces.amin(dim=1), pieces.amax(dim=1), color=BLUE, linewidth=0)


def wave(samples: Tensor, *, at: int) -> None:
    """A whole wave (n_samples,), and 400 samples of it from `at` on."""
    fig, axes = plt.subplots(1, 2, figsize=(8.6, 2.5), width_ratios=(2, 1))
    _outline(axes[0], samples)
    axes[0].set(xlabel="seconds", ylabel="pressure", title=f"{len(samples):,} samples ...")
    axes[1].plot(torch.arange(400) / 16, samples[at : at + 400], color=BLUE, linewidth=1.2)
    axes[1].set(xlabel="milliseconds", title="... and 400 of them")
    plots.show(fig, alt="Left, a wave with several bursts of speech. Right, 25 milliseconds of it: a shape that "
                        "repeats about every 8 milliseconds.")  # fmt: skip


def mel_triangles(edges: Tensor, bands: Tensor) -> None:
    """edges (n_mels + 2,) in Hz, bands (n_mels, 201): the lowest triangles with the bins in them, and every eighth."""
    fig, axes = plt.subplots(1, 2, figsize=(8.8, 3.1), width_ratios=(1, 1.25))
    colors = (BLUE, ORANGE, GREEN, PINK)
    for ax, chosen in ((axes[0], range(6)), (axes[1], range(0, len(bands), 8))):
        for n, m in enumerate(chosen):
            low, centre, high = edges[m : m + 3].tolist()
            top, color = 2 / (high - low), colors[n % len(colors)]
            ax.plot([low, centre, high], [0, top, 0], color=color, linewidth=1.6)
            if ax is axes[0]:
                inside = (bands[m] > 0).nonzero()[:, 0]
                ax.plot(40 * inside, bands[m, inside], "o", color=color, markersize=6)
        ax.set(xlabel="frequency, Hz", ylim=(0, None))
    axes[0].set(ylabel="weight", title="The six lowest, and the bins in them", xlim=(0, 265))
    axes[1].set(title="Every eighth of the 80", xlim=(0, 8000))
    plots.show(fig, alt="Left, six narrow triangles side by side, each reaching over two steps, with a dot or two on "
                        "each where a bin lies. Right, every eighth triangle: tall and narrow below 1,000 Hz, then "
                        "ever lower and wider.")  # fmt: skip


def log_mel(samples: Tensor, mel: Tensor, words: Sequence[tuple[str, float, float]]) -> None:
    """A wave over its log-mel (80, frames), with each word between its begin and end in seconds."""
    fig, axes = plt.subplots(2, 1, figsize=(8.2, 4.6), sharex=True, height_ratios=(1, 2.2))
    seconds = mel.shape[1] / 100
    _outline(axes[0], samples)
    axes[0].set(ylabel="pressure")
    image = axes[1].imshow(mel, origin="lower", aspect="auto", extent=(0, seconds, 0, 80), interpolation="nearest")
    axes[1].set(xlabel="seconds", ylabel="mel band", xlim=(0, seconds), yticks=[0, 20, 40, 60, 80])
    for word, begin, end in words:
        axes[0].text((begin + end) / 2, float(samples.max()) * 1.15, word, ha="center", va="bottom")
        for ax, color in zip(axes, (GREY, "white"), strict=True):
            ax.axvline(begin, color=color, linewidth=1, linestyle=":")
    fig.colorbar(image, ax=axes[1], label="log-mel", pad=0.01)
    plots.show(fig, alt="Above, a wave with the words go, forward, ten, meters over it. Below, its log-mel: each word "
                        "is a group of bright bars that bend.")  # fmt: skip


def fading(trained: Mapping[str, Kept], random: Sequence[Mapping[str, Kept]]) -> None:
    """The mean cosine of two words in one voice and of one word in two voices, at each stage; for random encoders the
    mean, with the range as a band."""
    fig, axes = plt.subplots(1, 2, figsize=(8.8, 3.4), sharey=True)
    places = range(len(trained))
    for ax, field, title in ((axes[0], "same_voice", "Same voice, different word"),
                             (axes[1], "same_word", "Same word, different voice")):  # fmt: skip
        rows = [[getattr(kept, field) for kept in some.values()] for some in random]
        columns = list(zip(*rows, strict=True))
        mean = [sum(column) / len(column) for column in columns]
        ax.fill_between(places, *([pick(column) for column in columns] for pick in (min, max)), color=GREY, alpha=0.35,
                        linewidth=0)  # fmt: skip
        ax.plot(places, mean, "o-", color=GREY, markersize=4)
        values = [getattr(kept, field) for kept in trained.values()]
        ax.plot(places, values, "o-", color=BLUE, linewidth=2, markersize=5)
        high = values[-1] > mean[-1]
        ax.text(len(places) - 0.85, values[-1], "Whisper", color=BLUE, va="bottom" if high else "center")
        ax.text(len(places) - 0.85, mean[-1], "random\nweights", color="dimgrey", va="top" if high else "center")
        ax.axhline(0, color="lightgrey", linewidth=0.8, zorder=0)
        names = ["mel", "conv.", *list(trained)[2:]]
        ax.set(xticks=list(places), xticklabels=names, xlabel="block", title=title, xlim=(-0.2, len(places) + 0.4))
    axes[0].set(ylabel="mean cosine")
    plots.show(fig, alt="Two panels over six stages. For two words of one voice Whisper's line falls from about 0.4 to "
                        "nearly 0, while random weights keep it near 0.3. For one word in two voices Whisper's line "
                        "rises, and that of random weights falls.")  # fmt: skip


def _box(ax: Axes, x: float, y: float, text: str, *, color: str = "black") -> None:
    ax.text(x, y, text, ha="center", va="center", fontsize=SMALL, linespacing=1.35,
            bbox={"boxstyle": "round,pad=0.45", "fc": "white", "ec": color, "lw": 1.4})  # fmt: skip


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str = "black") -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.3, "shrinkA": 0,
                                            "shrinkB": 0})  # fmt: skip


def ear_and_mouth() -> None:
    """A wave's way through the encoder, and a decoder block that asks what came of it."""
    fig, ax = plt.subplots(figsize=(8.8, 3.9))
    for x, text in ((0.8, "wave\n480,000"), (2.7, "log-mel\n80 × 3,000"), (4.7, "encoder\n4 blocks"),
                    (7.0, "sound\n1,500 × 384")):  # fmt: skip
        _box(ax, x, 3.4, text, color=BLUE)
    for start, end in ((1.4, 2.05), (3.35, 4.1), (5.3, 6.3)):
        _arrow(ax, (start, 3.4), (end, 3.4), BLUE)
    for x, text, color in ((0.8, "tokens so far\nGo forward", ORANGE), (3.3, "1. look at\nthe tokens", ORANGE),
                           (5.3, "2. look at\nthe sound", GREEN), (7.0, "3. MLP", ORANGE),
                           (8.9, "next token\n10", ORANGE)):  # fmt: skip
        _box(ax, x, 1.0, text, color=color)
    for start, end in ((1.6, 2.72), (3.9, 4.72), (5.88, 6.55), (7.45, 8.3)):
        _arrow(ax, (start, 1.0), (end, 1.0), ORANGE)
    _arrow(ax, (6.6, 2.98), (5.6, 1.45), GREEN)
    ax.text(6.35, 2.15, "keys and values", fontsize=SMALL, color=GREEN, ha="left")
    ax.text(4.2, 1.12, "queries", fontsize=SMALL, color="dimgrey", ha="center", va="bottom")
    ax.plot([2.35, 7.62, 7.62, 2.35, 2.35], [0.35, 0.35, 1.62, 1.62, 0.35], color=GREY, linewidth=1, linestyle="--")
    ax.text(2.4, 1.7, "one of 4 decoder blocks", fontsize=SMALL, color="dimgrey", va="bottom")
    ax.set(xlim=(0, 9.7), ylim=(0.2, 4.0))
    ax.axis("off")
    plots.show(fig, alt="Above, from left to right: a wave of 480,000 samples, a log-mel of 80 by 3,000, an encoder of "
                        "4 blocks, the sound as 1,500 places of 384 numbers. Below, the tokens so far, Go "
                        "forward, enter a decoder block: it looks at the tokens, then at the "
                        "sound, whose keys and values come from above, then an MLP; out comes 10.")  # fmt: skip


def looks(weights: Tensor, tokens: Sequence[str], spans: Sequence[tuple[str, float, float]]) -> None:
    """weights (tokens, places): where each token looks in the sound. spans: words with begin and end in seconds."""
    seconds = weights.shape[1] / 50
    fig, ax = plt.subplots(figsize=(8.2, 3.5))
    rows = weights / weights.amax(dim=1, keepdim=True)
    image = ax.imshow(rows, aspect="auto", interpolation="nearest", extent=(0, seconds, len(tokens) - 0.5, -0.5))
    for word, begin, end in spans:
        for x in (begin, end):
            ax.axvline(x, color="white", linewidth=1, linestyle=":")
        ax.text((begin + end) / 2, -0.6, word, ha="center", va="bottom")
    ax.set(xlabel="seconds", ylabel="token that comes next", yticks=range(len(tokens)), yticklabels=tokens)
    fig.colorbar(image, ax=ax, label="share of the row's largest", pad=0.01)
    plots.show(fig, alt="A row for each token that Whisper writes, time from left to right. The bright places form "
                        "a staircase: each word is written while looking at the stretch where it is said.")  # fmt: skip
