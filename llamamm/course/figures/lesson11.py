"""Pictures of lesson 11: two sizes of tokens, a heap of patches, learned places, what patches hold, neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.cbook import get_sample_data
from PIL.Image import Image
from torch import Tensor

from llamamm.course.plots import BLUE, GREEN, ORANGE, RED, show
from llamamm.senses.image_processor import ImageProcessor
from llamamm.senses.images import load_image

GAP = 6  # pixels between two drawings of 64 x 64


def photo() -> Image:
    """Rear Admiral Grace Hopper, taken by the US Navy, public domain; it comes with matplotlib."""
    return load_image(get_sample_data("grace_hopper.jpg", asfileobj=False))


def _bare(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _spread(square: Tensor, side: int) -> Tensor:
    """(3, side P, side P), 0..1 -> its side x side patches with white gaps between, (H, W, 3)."""
    P = square.shape[1] // side
    patches = square.view(3, side, P, side, P).permute(1, 3, 2, 4, 0)  # (side, side, P, P, 3)
    framed = torch.ones(side, side, P + P // 4, P + P // 4, 3)
    framed[:, :, :P, :P] = patches
    return framed.transpose(1, 2).flatten(2, 3).flatten(0, 1)


def _square(picture: Image, processor: ImageProcessor, side: int) -> Tensor:
    """The middle of a picture as the processor cuts it out, (3, side, side), 0..1."""
    return replace(processor, resize=side, crop=(side, side), mean=None, std=None)(picture)[0]


def token_sizes(picture: Image, processor: ImageProcessor) -> None:
    """A picture as 256 tokens, of a pixel each or of a patch of 14 x 14 pixels each."""
    tiny, square = _square(picture, processor, 16), _square(picture, processor, 224)
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.9))
    for ax, shown, title, n in ((axes[0], tiny.permute(1, 2, 0), "A token is a pixel", 3),
                                (axes[1], _spread(square, 16), "A token is a patch", 588)):  # fmt: skip
        ax.imshow(shown, interpolation="nearest")
        _bare(ax)
        ax.set(title=title, xlabel=f"256 tokens of {n} numbers")
    show(figure, alt="The same photo twice. Shrunk to 16 by 16 pixels, only a head and shoulders can be guessed; cut "
         "into 16 by 16 patches with thin gaps between, a woman in uniform can be seen.")  # fmt: skip


def place_maps(table: Tensor, untrained: Tensor) -> None:
    """How like the row of one place is to all others, by cosine: three of a table (side², C), one of an untrained."""
    figure, axes = plt.subplots(1, 4, figsize=(9.6, 2.75), sharey=True)
    side, drawn = round(len(table) ** 0.5), ((table, 18, 18), (table, 5, 30), (table, 30, 18), (untrained, 18, 18))
    for ax, (rows, row, column) in zip(axes, drawn, strict=True):
        directions = F.normalize(rows, dim=1).view(side, side, -1)
        image = ax.imshow(directions @ directions[row, column], vmin=-0.5, vmax=1, interpolation="nearest")
        ax.plot(column, row, marker="s", color=RED, markersize=9, markerfacecolor="none", markeredgewidth=1.8)
        ax.set(xticks=[0, 18, 36], yticks=[0, 18, 36], xlabel="column")
        ax.set_title("untrained" if rows is untrained else f"row {row}, column {column}", fontsize=11)
        ax.spines[:].set_visible(False)
    axes[0].set_ylabel("row")
    figure.colorbar(image, ax=axes, label="cosine", ticks=[-0.5, 0, 0.5, 1], shrink=0.75)
    show(figure, alt="Four maps of 37 by 37 places. In the three of the trained table a place is like its neighbours, "
         "its row and its column: a bright spot on a bright cross. In the untrained table only the place itself is "
         "bright.")  # fmt: skip


def place_map(table: Tensor, row: int, column: int) -> None:
    """As `place_maps`, of one place of a table."""
    figure, ax = plt.subplots(figsize=(3.6, 3.2))
    side = round(len(table) ** 0.5)
    directions = F.normalize(table, dim=1).view(side, side, -1)
    ax.imshow(directions @ directions[row, column], vmin=-0.5, vmax=1, interpolation="nearest")
    ax.plot(column, row, marker="s", color=RED, markersize=9, markerfacecolor="none", markeredgewidth=1.8)
    ax.set(xlabel="column of the place", ylabel="row of the place")
    show(figure, alt=f"Map of 37 by 37 places: how like each is to row {row}, column {column}.")


def insides(picture: Image, processor: ImageProcessor, rows: Mapping[str, tuple[Sequence[Tensor], Tensor]]) -> None:
    """Name of an eye -> features of a picture's patches (N, C) at three depths, and how much the CLS token takes from
    each, (N,)."""
    square = _square(picture, processor, 224)
    figure, axes = plt.subplots(len(rows), 5, figsize=(9.6, 4.1))
    titles = ("the photo", "entering block 0", "after block 5", "after block 11", "CLS, block 11")
    for n, (line, (name, (depths, look))) in enumerate(zip(axes, rows.items(), strict=True)):
        side = round(len(look) ** 0.5)
        line[0].imshow(square.permute(1, 2, 0))
        for ax, features in zip(line[1:4], depths, strict=True):
            ax.imshow(_components(features).view(side, side, 3), interpolation="nearest")
        line[4].imshow((look / look.max()).view(side, side), cmap="magma", interpolation="nearest", vmin=0, vmax=1)
        for ax, title in zip(line, titles, strict=True):
            _bare(ax)
            if n == 0:
                ax.set_title(title, fontsize=11, loc="center")
        line[0].set_ylabel(name)
    show(figure, alt="Two rows of mosaics, of the trained and of an untrained eye. In the trained one, patches of "
         "face, uniform and background have one colour each after block 11, and the CLS token looks at the woman. In "
         "the untrained one the colours stay much as they were when they entered, and the CLS token looks everywhere "
         "alike.")  # fmt: skip


def _components(features: Tensor) -> Tensor:
    """Three principal components of N features (N, C) as colours, (N, 3), 0..1."""
    x = features - features.mean(dim=0)
    x = x @ torch.linalg.svd(x, full_matrices=False)[2][:3].T  # (N, 3)
    x = x * x.gather(0, x.abs().argmax(dim=0, keepdim=True)).sign()  # a direction has no sign of its own: fix it
    low, high = x.quantile(0.02, dim=0), x.quantile(0.98, dim=0)
    return ((x - low) / (high - low)).clamp(0, 1)


def neighbours(chosen_on: Sequence[float], best: int, reported: Mapping[str, tuple[float, float, float]],
               drawings: Tensor, nearest: Mapping[str, Tensor], hits: Mapping[str, Tensor]) -> None:
    """Shares of drawings whose neighbour is of their group: after each block, on the drawings for the choice; on the
    others, name -> share and the ends of its interval. Below eight of these and their neighbours.

    drawings: the others, uint8 (N, 3, 64, 64). nearest, hits: name -> place of each one's neighbour, (N,), and whether
    that is of its group."""
    figure, axes = plt.subplot_mosaic("CCR;SSS", figsize=(9.2, 7.0), height_ratios=(1, 1.12))
    left, right, below = axes["C"], axes["R"], axes["S"]
    left.plot(range(len(chosen_on)), chosen_on, color=BLUE, marker="o", markersize=4)
    left.plot(best, chosen_on[best], color=RED, marker="o", markersize=11, markerfacecolor="none", markeredgewidth=2)
    left.text(best, chosen_on[best] + 0.06, f"block {best} is chosen", ha="right", color=RED)
    left.set(xlabel="CLS token after block", ylabel="neighbour in the same group", ylim=(0, 0.75),
             xticks=range(len(chosen_on)), title="Drawings for choosing")  # fmt: skip
    for n, (share, low, high) in enumerate(reported.values()):
        color = (BLUE, GREEN)[n] if n < 2 else ORANGE
        right.errorbar(n, share, yerr=[[share - low], [high - share]], fmt="o", color=color, capsize=4, linewidth=2)
    right.set_xticks(range(len(reported)), reported, rotation=40, ha="right", rotation_mode="anchor")
    right.set(title="The other drawings", xlim=(-0.5, len(reported) - 0.5), ylim=(0, 0.75))
    some = range(4, len(drawings), 13)[:8]
    rows = {"asked": [drawings[i] for i in some]}
    for name in list(nearest)[:2]:
        rows[f"by {name}"] = [drawings[nearest[name][i]] for i in some]
    marks = [(x, y) for y, name in enumerate(list(nearest)[:2], start=1) for x, i in enumerate(some) if hits[name][i]]
    _draw_sheet(below, rows, marks)
    told = ", ".join(f"{name} {share:.2f}" for name, (share, *_) in reported.items())
    show(figure, alt="The share of drawings whose neighbour is of their group, after each of twelve blocks: it rises "
         f"to block {best}, then falls. On other drawings, with intervals: {told}. Below, eight drawings and "
         "their nearest by the trained eye and by pixels.")  # fmt: skip


def _draw_sheet(ax: Axes, rows: Mapping[str, Sequence[Tensor]], marks: Sequence[tuple[int, int]]) -> None:
    """Rows of drawings, uint8 (3, 64, 64), with their names; green frames at the marks, (column, row)."""
    step = 64 + GAP
    sheet = torch.full((3, step * len(rows), step * len(next(iter(rows.values())))), 255, dtype=torch.uint8)
    for y, row in enumerate(rows.values()):
        for x, drawing in enumerate(row):
            sheet[:, y * step + GAP // 2 :, x * step + GAP // 2 :][:, :64, :64] = drawing
    ax.imshow(sheet.permute(1, 2, 0))
    for x, y in marks:
        ax.add_patch(plt.Rectangle((x * step + 1, y * step + 1), step - 3, step - 3, fill=False, color=GREEN,
                                   linewidth=2.4))  # fmt: skip
    _bare(ax)
    ax.set_yticks([y * step + step / 2 for y in range(len(rows))], rows)
    ax.tick_params(length=0)


def cosine_tables(tables: Mapping[str, Tensor]) -> None:
    """Title -> cosines of n pictures (rows) with their n names (columns). One colour scale."""
    figure, axes = plt.subplots(1, len(tables), figsize=(9.6, 3.0))
    for ax, (title, cosines) in zip(axes, tables.items(), strict=True):
        image = ax.imshow(cosines, vmin=-1, vmax=1, interpolation="nearest")
        ax.set(xticks=[], yticks=[], xlabel="names")
        ax.set_title(title, fontsize=11)
        ax.spines[:].set_visible(False)
    axes[0].set_ylabel("pictures")
    figure.colorbar(image, ax=axes, label="cosine", ticks=[-1, 0, 1], shrink=0.8)
    show(figure, alt="Tables of cosines, pictures against names. Trained with attraction alone: one bright colour "
         "everywhere. Trained with a choice: a bright diagonal for pictures seen in training; for new tones a bright "
         "diagonal with bright blocks; for new things hardly any diagonal.")  # fmt: skip


def found_pictures(pixels: Tensor, names: Sequence[str], cosines: Tensor, asked: Sequence[int]) -> None:
    """The six nearest drawings of some names. pixels: uint8 (N, 3, 64, 64); cosines: (N names, N drawings)."""
    found = {i: cosines[i].topk(6).indices.tolist() for i in asked}
    rows = {names[i].replace(", ", ",\n"): [pixels[j] for j in near] for i, near in found.items()}
    marks = [(near.index(i), y) for y, (i, near) in enumerate(found.items()) if i in near]
    figure, ax = plt.subplots(figsize=(7.8, 5.8))
    _draw_sheet(ax, rows, marks)
    told = ", ".join(f"{names[i]}: {'yes' if i in near else 'no'}" for i, near in found.items())
    show(figure, alt=f"Six names with their six nearest drawings each. Is the right one among them? {told}.")
