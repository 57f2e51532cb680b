"""course.plots: pictures are sharp and small, and keep their alternative text in a page that nbconvert makes."""

import base64
import io
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import PIL.Image
import pytest
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter
from PIL import Image

from llamamm.course import plots

ROOT = Path(__file__).parents[2]
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def shown_by(monkeypatch, figure, alt):
    outputs = []
    monkeypatch.setattr(plots, "display", lambda data, **options: outputs.append((data, options)))
    plots.show(figure, alt)
    ((data, options),) = outputs
    assert options.pop("raw")
    return data, options["metadata"]


def image_in(text):
    return Image.open(io.BytesIO(base64.b64decode(re.search(r'base64,([^"]*)"', text)[1])))


def test_a_picture_is_shown_in_150_dpi_with_its_alternative_text(monkeypatch):
    with plt.rc_context():
        plots.use_style()
        figure, axes = plt.subplots(figsize=(6, 3))
        axes.plot([1, 2])
        data, metadata = shown_by(monkeypatch, figure, 'a "line" that rises, 1 < 2')
    assert data["text/html"].startswith('<img alt="a &quot;line&quot; that rises, 1 &lt; 2" width="')
    image = image_in(data["text/html"])
    assert 850 < image.width < 950 and round(image.info["dpi"][0]) == 150
    assert metadata["image/png"] == {"alt": 'a "line" that rises, 1 < 2', "width": round(image.width / 1.5)}
    assert f'width="{round(image.width / 1.5)}"' in data["text/html"]
    assert data["image/png"] in data["text/html"]
    assert data["text/plain"] == "<Figure size 600x300 with 1 Axes>"
    assert not plt.fignum_exists(figure.number)


def png_of(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_a_picture_of_few_colours_shrinks_and_looks_the_same():
    rows = np.linspace(0, 255, 300).astype(np.uint8)
    pixels = np.stack(np.broadcast_arrays(rows[:, None], rows[None, ::-1] // 8 * 8, np.uint8(9)), axis=-1)
    png = png_of(np.repeat(pixels // 32 * 32, 2, axis=0))
    small = plots.small_png(png)
    assert len(small) < len(png)
    before, after = (np.asarray(Image.open(io.BytesIO(p)).convert("RGB"), dtype=int) for p in (png, small))
    assert np.abs(before - after).max() <= 1


def test_a_picture_of_many_colours_stays_as_it_is_and_is_stored_once():
    random = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    noise = png_of(random[:100, :100])
    assert plots.small_png(noise) == noise and len(noise) < plots.LARGE
    assert len(plots.small_png(png_of(random))) < 0.4 * len(png_of(random)) and len(png_of(random)) > plots.LARGE
    photo = np.tile(np.linspace(0, 255, 300, dtype=np.uint8)[:, None, None], (1, 300, 3)) + random[:1, :1]
    photo = (photo + np.random.default_rng(1).integers(0, 40, photo.shape)).clip(0, 255).astype(np.uint8)
    photo[10:12], photo[20:22] = (55, 120, 190), (60, 160, 110)  # two thin lines, one blue and one green
    assert len(png_of(photo)) > plots.LARGE
    small = np.asarray(PIL.Image.open(io.BytesIO(plots.small_png(png_of(photo)))).convert("RGB"), dtype=int)
    (_, green, blue), (_, other_green, other_blue) = small[11, 50], small[21, 50]
    assert blue > green + 20 and other_green > other_blue + 20
    data, metadata = plots.shown(noise, "noise", scale=0.5)
    assert set(data) == {"text/html"} and metadata == {} and 'width="50"' in data["text/html"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_every_picture_of_an_exported_lesson_has_alternative_text(path):
    """Nbconvert itself writes "No description has been provided" where it finds none. Text and code are left out."""
    lesson = nbformat.read(path, as_version=4)
    lesson.cells = [{**cell, "source": ""} for cell in lesson.cells if cell.get("outputs")]
    page, _ = HTMLExporter().from_notebook_node(nbformat.from_dict(lesson))
    pictures = BeautifulSoup(page, "html.parser").select(".jp-OutputArea-output img")
    assert pictures
    for picture in pictures:
        assert picture["src"].startswith("data:image/png;base64,")
        assert len(picture["alt"]) > 20 and "No description" not in picture["alt"]


def test_the_band_of_each_line_has_its_lines_hue_in_lesson_04():
    notebook = nbformat.read(ROOT / "notebooks" / "04_rope.ipynb", as_version=4)
    (output,) = (o for cell in notebook.cells if "figures.reach" in cell.source and cell.cell_type == "code"
                 for o in cell.outputs if o.output_type == "display_data")  # fmt: skip
    pixels = np.asarray(image_in(output.data["text/html"]).convert("RGB"), dtype=int)
    for color in (plots.PINK, plots.ORANGE, plots.BLUE):
        band = np.array([255 - (255 - int(color[i : i + 2], 16)) / 4 for i in (1, 3, 5)])  # a quarter of it, on white
        assert (np.abs(pixels - band).max(axis=-1) <= 12).sum() > 2000, color
