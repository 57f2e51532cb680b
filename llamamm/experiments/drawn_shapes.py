"""Pictures drawn to order, in pairs that differ in one thing: to find which tokens of a picture carry its colour.

    Scene("circle", "red", left=4, top=10, size=20) -> uint8 (3, 64, 64), in the manner of easy-VQA
    the same .with_other("colour") -> every other pixel as before
    touched(pixels, 3) -> the squares of a 3 x 3 grid that the shape lies on

Used in notebook 14.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from torch import Tensor

from llamamm.assets.easy_vqa import COLOURS, SHAPES, SIZE

RGB = dict(zip(COLOURS, ((0, 0, 0), (0, 0, 255), (165, 42, 42), (128, 128, 128), (0, 255, 0), (255, 0, 0),
                         (0, 128, 128), (255, 255, 0)), strict=True))  # fmt: skip
GROUND = (240, 245, 240)
FINER = 4  # drawn so many times larger, and made smaller for soft edges
SMALLEST, LARGEST = 14, 28  # pixels


@dataclass(frozen=True)
class Scene:
    """One shape of one colour in a box of size x size pixels, from (left, top) on; a rectangle is half as high."""

    shape: str
    colour: str
    left: int
    top: int
    size: int

    def draw(self) -> Tensor:
        """uint8 (3, 64, 64)."""
        image = PIL.Image.new("RGB", (SIZE * FINER, SIZE * FINER), GROUND)
        pen, fill = PIL.ImageDraw.Draw(image), RGB[self.colour]
        left, top, size = (FINER * n for n in (self.left, self.top, self.size))
        right, bottom = left + size - 1, top + size - 1
        if self.shape == "circle":
            pen.ellipse((left, top, right, bottom), fill=fill)
        elif self.shape == "rectangle":
            pen.rectangle((left, top + size // 4, right, bottom - size // 4), fill=fill)
        else:
            pen.polygon([(left, bottom), (left + size // 2, top), (right, bottom)], fill=fill)
        small = image.resize((SIZE, SIZE), PIL.Image.Resampling.BOX)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()

    def with_other(self, what: str) -> Scene:
        """The same scene with another "colour" or "shape": each becomes another one, and none is left out."""
        kinds, step = (COLOURS, 3) if what == "colour" else (SHAPES, 1)
        return replace(self, **{what: kinds[(kinds.index(getattr(self, what)) - step) % len(kinds)]})


def random_scenes(n: int, *, seed: int = 0) -> list[Scene]:
    """n scenes, each whole within its picture."""
    draw, scenes = random.Random(seed), []
    for _ in range(n):
        size = draw.randint(SMALLEST, LARGEST)
        left, top = draw.randint(0, SIZE - size), draw.randint(0, SIZE - size)
        scenes.append(Scene(draw.choice(SHAPES), draw.choice(COLOURS), left, top, size))
    return scenes


def touched(pixels: Tensor, n: int) -> Tensor:
    """Squares of an n x n grid that hold any pixel of a shape. uint8 (3, H, W) drawn by `Scene` -> (n * n,) bool.

    The squares' edges are at H k / n, rounded; a pixel on one counts for the square that it lies in mostly.
    """
    ground = torch.tensor(GROUND)[:, None, None]
    rows, columns = ((pixels.int() - ground).abs().sum(dim=0) > 0).nonzero().T  # of the shape
    H, W = pixels.shape[1:]
    squares = torch.zeros(n * n, dtype=torch.bool)
    squares[((2 * rows + 1) * n // (2 * H)) * n + (2 * columns + 1) * n // (2 * W)] = True
    return squares
