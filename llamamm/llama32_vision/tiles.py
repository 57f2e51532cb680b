"""An image as tiles, as Llama 3.2 Vision wants it: scaled to fit a canvas of one to four tiles, then cut.

    images of any size -> canvas (rows, columns) of tiles -> scaled, filled up with black -> tiles -> normalised
    -> pixels (B, I, t, 3, H, W), aspect-ratio ids, numbers of tiles

A tall receipt becomes four tiles one above the other, a square photo four in a square: the details stay, at four times
the tokens.

Source: Meta's llama-models 0.3.0; the processor of meta-llama/Llama-3.2-11B-Vision. Built in notebook 15.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llamamm.errors import ConfigError, InputError, require_whole
from llamamm.llama32_vision.model import TiledImages
from llamamm.senses.config_keys import IMAGES_HARMLESS, IMAGES_READ, given, require_known
from llamamm.senses.image_processor import CLIP_MEAN, CLIP_STD
from llamamm.senses.images import ImageLike, image_tensor


@dataclass(frozen=True)
class TileProcessor:
    """Settings; call it. tile_size: pixels along a side of a tile. Raises ConfigError for numbers that cannot work."""

    tile_size: int = 448
    max_tiles: int = 4
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        for name in ("tile_size", "max_tiles"):
            require_whole(name, getattr(self, name))
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ConfigError(f"mean and std must be 3 numbers each, std positive; got {self.mean} and {self.std}")

    def __call__(self, images: Sequence[Sequence[ImageLike]]) -> TiledImages:
        """The images of each of B prompts, in their order -> what the model reads. Raises InputError.

        A prompt may have none; then all its places are empty. At least one of them has an image.
        """
        most = max((len(some) for some in images), default=0)
        if most == 0:
            raise InputError("there is no image in any of the prompts: call the model without images")
        side, t = self.tile_size, self.max_tiles
        pixels = torch.zeros(len(images), most, t, 3, side, side)
        ids = torch.zeros(len(images), most, dtype=torch.int64)
        n_tiles = torch.zeros_like(ids)
        for b, some in enumerate(images):
            for i, image in enumerate(some):
                tiles, (rows, columns) = self.tiles(image)
                pixels[b, i, : len(tiles)] = tiles
                ids[b, i] = 1 + aspect_ratios(t).index((rows, columns))
                n_tiles[b, i] = len(tiles)
        return TiledImages(pixels, ids, n_tiles)

    def tiles(self, image: ImageLike) -> tuple[Tensor, tuple[int, int]]:
        """One image -> its tiles (n, 3, H, W), row by row from the top left, and (rows, columns). Raises InputError."""
        from torchvision.transforms.v2 import InterpolationMode  # here: models of text alone do not wait for it
        from torchvision.transforms.v2 import functional as tvF

        x = image_tensor(image)  # (3, H, W) uint8
        side = self.tile_size
        rows, columns = self.canvas(x.shape[1], x.shape[2])
        size = self.fitted(x.shape[1], x.shape[2], rows, columns)
        x = tvF.resize(x, list(size), InterpolationMode.BILINEAR, antialias=True)
        x = tvF.pad(x, [0, 0, columns * side - size[1], rows * side - size[0]])  # black, at the right and below
        x = tvF.normalize(x.float() / 255, self.mean, self.std)
        x = x.view(3, rows, side, columns, side).permute(1, 3, 0, 2, 4)  # (rows, columns, 3, side, side)
        return x.flatten(0, 1), (rows, columns)

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of tiles for an image: the smallest enlargement, or, where none holds it, the least loss.

        Of equals the one with fewest tiles.
        """
        side, options = self.tile_size, aspect_ratios(self.max_tiles)
        scales = [min(rows * side / height, columns * side / width) for rows, columns in options]
        up = [scale for scale in scales if scale >= 1]
        best = min(up) if up else max(scales)
        return min((o for o, scale in zip(options, scales, strict=True) if scale == best), key=lambda o: o[0] * o[1])

    def fitted(self, height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
        """The size an image is scaled to: as large as the canvas holds, but not enlarged beyond one tile."""
        side = self.tile_size
        target_h = min(max(height, side), rows * side)
        target_w = min(max(width, side), columns * side)
        scale_h, scale_w = target_h / height, target_w / width
        if scale_w < scale_h:
            return min(int(height * scale_w) or 1, target_h), target_w
        return target_h, min(int(width * scale_h) or 1, target_w)

    @classmethod
    def from_hf(cls, data: Mapping[str, Any]) -> TileProcessor:
        """Read the content of a `preprocessor_config.json`. Raises ConfigError for another kind or setting."""
        name = str(data.get("image_processor_type"))
        if not name.startswith("MllamaImageProcessor"):
            raise ConfigError(f"the image processor is of type {name}; Llama 3.2 Vision has MllamaImageProcessor")
        data = given(data)
        for key, expected in (("do_resize", True), ("do_pad", True), ("do_rescale", True), ("do_normalize", True),
                              ("do_center_crop", False),
                              ("resample", 2), ("rescale_factor", 1 / 255)):  # fmt: skip
            if data.get(key, expected) != expected:
                raise ConfigError(f"preprocessor_config.json has {key}={data[key]!r}; this package does {expected!r}")
        require_known(data, IMAGES_READ | IMAGES_HARMLESS, file="preprocessor_config.json")
        size = data.get("size", {"height": 224, "width": 224})
        size = given(size) if isinstance(size, Mapping) else {"height": size, "width": size}
        side = size.get("height")
        if size != {"height": side, "width": side}:
            raise ConfigError(f"tiles are square, preprocessor_config.json has size {size}")
        mean, std = (data.get(key, 0.5) for key in ("image_mean", "image_std"))
        mean, std = (tuple(some) if isinstance(some, list | tuple) else (some,) * 3 for some in (mean, std))
        return cls(side, data.get("max_image_tiles", 4), mean, std)

    def to_hf(self) -> dict[str, Any]:
        """The content of a `preprocessor_config.json`."""
        size = {"height": self.tile_size, "width": self.tile_size}
        return {"image_processor_type": "MllamaImageProcessor", "do_convert_rgb": True, "do_resize": True,
                "do_pad": True, "do_rescale": True, "do_normalize": True, "resample": 2, "rescale_factor": 1 / 255,
                "size": size, "max_image_tiles": self.max_tiles, "image_mean": [*self.mean],
                "image_std": [*self.std]}  # fmt: skip


def aspect_ratios(max_tiles: int) -> list[tuple[int, int]]:
    """All (rows, columns) of at most max_tiles tiles, in the order in which their embeddings are numbered."""
    counts = range(1, max_tiles + 1)
    return [(rows, columns) for rows in counts for columns in counts if rows * columns <= max_tiles]
