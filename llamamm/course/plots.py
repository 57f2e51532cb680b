"""One look for every picture of the course: colours that colour-blind readers tell apart, plain axes, one size.

Colours: Okabe and Ito, "Color Universal Design", jfly.uni-koeln.de/color.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
from cycler import cycler
from IPython.display import display
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW, GREY = COLORS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999",
)  # fmt: skip


def use_style() -> None:
    """Set matplotlib's defaults for the rest of the session."""
    plt.rcParams.update(
        {
            "figure.figsize": (7.0, 3.6),
            "figure.dpi": 100,
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.titlesize": 12,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": cycler(color=COLORS),
            "image.cmap": "cividis",
            "legend.frameon": False,
        }
    )


def show(figure: Figure, alt: str) -> None:
    """Show a figure with `alt`, the text that a screen reader says in its place."""
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)
