"""What lesson 15 has the learner write, put into a tiny Llama 3.2 Vision. Each function takes an answer and gives a
verdict.

Its weights are random and its gates open: what comes out means nothing, but must equal what comes out with the
package's part.
"""

from __future__ import annotations

import math
import random
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from llamamm.course.swaps_verdict import ROUNDING, SAME, Verdict, apart, distance
from llamamm.llama32_vision.config import MllamaConfig
from llamamm.llama32_vision.model import MllamaModel, TiledImages
from llamamm.llama32_vision.tiles import TileProcessor
from llamamm.llama32_vision.tower import GatedTileEmbedding


@cache
def _tiny_mllama() -> MllamaModel:
    """Its gates are open. The tables of its tiles are large: where they are small, tanh hardly bends anything."""
    torch.manual_seed(1)
    model = MllamaModel(MllamaConfig.tiny()).eval()
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=1.0 if "tile_positional" in name else 0.15)
    return model


@torch.no_grad()
def best_canvas(answer: Any) -> Verdict:
    """15.2: pictures of many sizes, of which the model reads five."""
    model, tiles, rng = _tiny_mllama(), TileProcessor(tile_size=28), random.Random(0)
    sizes = [(60, 100), (20, 20), (28, 200), (90, 15), (29, 28)]
    sizes += [(rng.randint(1, 300), rng.randint(1, 300)) for _ in range(195)]
    other = [size for size in sizes if tuple(answer(*size, 28, 4)) != tiles.canvas(*size)]
    pictures = [torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(0)).byte() for size in sizes[:5]]
    ids = torch.tensor([[1, model.mllama_cfg.image_token, 5, 6, 7]])

    def logits() -> Tensor:
        return torch.cat([model(ids, images=tiles([[picture]])) for picture in pictures])

    right = logits()
    with patch.object(TileProcessor, "canvas", lambda self, h, w: tuple(answer(h, w, self.tile_size, self.max_tiles))):
        difference = apart(logits(), right)
    same = f"{len(sizes) - len(other)} of {len(sizes)} pictures"
    begin = (f"a tiny Llama 3.2 Vision with your best_canvas: {same} on the package's canvas "
             f"· {distance(difference)}: ")  # fmt: skip
    if difference <= ROUNDING and not other:
        return Verdict(True, begin + "the same")
    first = f", first for {other[0][0]} x {other[0][1]} pixels and tiles of 28" if other else ""
    return Verdict(False, f"{begin}it looks at different tiles{first}")


@torch.no_grad()
def add_gated(answer: Any) -> Verdict:
    """15.3: pictures of four aspect ratios, whose tiles get their tables from the answer, before and after the local
    blocks."""
    model = _tiny_mllama()
    ids = torch.tensor([[1, model.mllama_cfg.image_token, 5, 6, 7]] * 4)
    images = TiledImages(torch.randn(4, 1, 4, 3, 28, 28, generator=torch.Generator().manual_seed(0)),
                         torch.tensor([[1], [4], [6], [8]]), torch.tensor([[1], [4], [4], [4]]))  # fmt: skip

    def add(self: GatedTileEmbedding, x: Tensor, aspect_ratio_ids: Tensor) -> Tensor:
        return answer(x, self.embedding.weight, self.gate, aspect_ratio_ids)

    right = model(ids, images=images)
    with patch.object(GatedTileEmbedding, "forward", add):
        difference = apart(model(ids, images=images), right)
    begin = f"a tiny Llama 3.2 Vision with your add_gated, 4 pictures: {distance(difference)}: "
    if difference <= ROUNDING:
        return Verdict(True, begin + (SAME if difference else "the same"))
    if math.isnan(difference):
        return Verdict(False, "a tiny Llama 3.2 Vision with your add_gated, 4 pictures: its logits are NaN")
    return Verdict(False, begin + "its tiles are marked differently")


@torch.no_grad()
def visible(answer: Any) -> Verdict:
    """15.5: a prompt with three images, two of them side by side."""
    model = _tiny_mllama()
    image = model.mllama_cfg.image_token
    row = [1, 5, image, 6, 7, image, image, 8, 9]
    images = TiledImages(torch.randn(1, 3, 4, 3, 28, 28, generator=torch.Generator().manual_seed(0)),
                         torch.tensor([[2, 6, 1]]), torch.tensor([[2, 4, 1]]))  # fmt: skip

    def seen(_ids: Tensor, images: TiledImages, image_token: int) -> Tensor:
        marks = torch.zeros(1, len(row), 3, 4, dtype=torch.bool)
        for t, some in enumerate(answer(list(row), image_token)):
            for i in some:
                marks[0, t, i, : int(images.n_tiles[0, i])] = True
        return marks

    right = model(torch.tensor([row]), images=images)
    with patch("llamamm.llama32_vision.model.seen_tiles", seen):
        moved = (model(torch.tensor([row]), images=images) - right)[0].abs().amax(dim=1)
    begin = f"a tiny Llama 3.2 Vision with your visible, 3 images: {distance(float(moved.max()))}"
    if moved.max() <= ROUNDING:
        return Verdict(True, f"{begin}: the same")
    first = int((~(moved <= ROUNDING)).nonzero()[0])
    return Verdict(False, f"{begin}: from token {first} on it looks at different images")


SWAPS = {
    "15.2": best_canvas,
    "15.3": add_gated,
    "15.5": visible,
}
