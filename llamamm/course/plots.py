"""One look for every picture of the course: colours that colour-blind readers tell apart, plain axes, one size.

Colours: Okabe and Ito, "Color Universal Design", jfly.uni-koeln.de/color.
"""

from __future__ import annotations

import base64
import html
import io
import struct

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image

DPI = 150  # of a picture's pixels; on a page it is as wide as `figure.dpi` says
LARGE = 35_000  # bytes of a picture above which it loses colours that are seen
TWICE = 12_000  # bytes of a picture up to which a notebook holds it in both forms

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
    """Show a figure in 150 dpi with `alt`, the text that a screen reader says instead."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    data, metadata = shown(small_png(buffer.getvalue()), alt, scale=figure.dpi / DPI)
    display({"text/plain": repr(figure), **data}, metadata=metadata, raw=True)
    plt.close(figure)


def shown(png: bytes, alt: str, *, scale: float) -> tuple[dict, dict]:
    """A picture as Jupyter shows it, `scale` times as wide as it has pixels: data and metadata of an output.

    It is HTML, since that alone keeps its alternative text in a page that nbconvert makes; and, where it is small, also
    a plain picture, for exports that take no HTML.
    """
    text = base64.b64encode(png).decode()
    width = round(struct.unpack(">I", png[16:20])[0] * scale)
    image = f'<img alt="{html.escape(alt)}" width="{width}" src="data:image/png;base64,{text}">'
    if len(png) > TWICE:
        return {"text/html": image}, {}
    return {"text/html": image, "image/png": text}, {"image/png": {"alt": alt, "width": width}}


def small_png(png: bytes) -> bytes:
    """The same picture in 256 colours, where the eye can't tell the difference: a third of the bytes. A large one,
    such as a photo, in as many as keep it small, and the rare ones among them: two lines of a plot stay apart."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    if len(png) <= LARGE:
        fewer = image.quantize(256, dither=Image.Dither.NONE)
        difference = np.abs(np.asarray(image, dtype=int) - np.asarray(fewer.convert("RGB"), dtype=int)).mean()
        small = _as_png(fewer)
        return small if difference < 1 and len(small) < len(png) else png
    for colours in (64, 32, 16):
        small = _as_png(image.quantize(colours, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE))
        if len(small) <= LARGE:
            break
    return small if len(small) < len(png) else png


def _as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True, dpi=(DPI, DPI))
    return buffer.getvalue()
