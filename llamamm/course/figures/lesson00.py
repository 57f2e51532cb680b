"""Pictures of lesson 00: what the model was shown."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

from llamamm.course.plots import show


def picture_shown(file: Path) -> None:
    """The picture that `senses` is asked about."""
    figure, ax = plt.subplots(figsize=(2.2, 2.2))
    ax.imshow(plt.imread(file))
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
    show(figure, alt="A blue rectangle in the top left corner of a pale ground.")
