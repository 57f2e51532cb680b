"""Linears whose weights are whole numbers of 8 or 4 bits, with a scale for each group of columns.

    weight (N, C) -> codes, scales: weight[i, j] is about codes[i, j] * scales[i, j // group]

Round to nearest, group by group. In 8 bits a group's largest number becomes 127; in 4 bits it becomes -8, the end of a
range, -8 to 7, that is longer below: the rules of llama.cpp's Q8_0 and Q4_0, whose groups have 32 columns.

64 rows stand side by side, as `kernels` reads them. Without numba, and for prompts, the weight is spread out again for
each product, and PyTorch multiplies. Built in notebook 19.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.errors import InputError
from llamamm.text.layers import Linear
from llamamm.wiring import find_linears, put_module

TILE = 64  # rows that stand side by side, and of which a thread takes a run at a time
GROUPS = (32, 64, 128)
BLOCKS = ("layers.*.self_attn.*", "layers.*.mlp.*")


class QuantizedLinear(nn.Linear):
    """x Wᵀ. (..., C) -> (..., N). An adapter may stand beside it, as beside any linear.

    codes: (N/64, C, 64) int8, or (N/64, C/2, 64) uint8 with two columns in a byte, the first in the lower half, each
    plus 8; scales: (N/64, C/group, 64) fp16. Nothing of it trains.
    """

    def __init__(self, in_features: int, out_features: int, *, bits: int, group: int = 32) -> None:
        nn.Module.__init__(self)  # a linear, but for its weight
        if bits not in (8, 4) or group not in GROUPS:
            raise InputError(f"weights are quantized to 8 or 4 bits in groups of 32, 64 or 128; got {bits} and {group}")
        if out_features % TILE or in_features % group:
            raise InputError(f"a ({out_features}, {in_features}) weight has no whole groups of {group} columns and "
                             f"{TILE} rows")  # fmt: skip
        self.in_features, self.out_features, self.bits, self.group = in_features, out_features, bits, group
        self.bias = None
        tiles = out_features // TILE
        shape, dtype = ((tiles, in_features, TILE), torch.int8) if bits == 8 else (
            (tiles, in_features // 2, TILE), torch.uint8)  # fmt: skip
        self.register_buffer("codes", torch.zeros(shape, dtype=dtype))
        self.register_buffer("scales", torch.zeros(tiles, in_features // group, TILE, dtype=torch.float16))

    @classmethod
    def of(cls, weight: Tensor, *, bits: int, group: int = 32) -> QuantizedLinear:
        """The nearest to a weight (N, C), on its device. Raises InputError."""
        linear = cls(weight.shape[1], weight.shape[0], bits=bits, group=group).to(weight.device)
        linear.fill(*rounded(weight.detach(), bits, group))
        return linear

    def fill(self, codes: Tensor, scales: Tensor) -> None:
        """Whole numbers (N, C), -128 to 127 or -8 to 7, and scales (N, C/group), put side by side."""
        N, C = self.out_features, self.in_features
        tiles = codes.view(N // TILE, TILE, C).transpose(1, 2)  # (N/64, C, 64)
        if self.bits == 4:
            tiles = (tiles + 8).to(torch.uint8)
            tiles = tiles[:, ::2] | (tiles[:, 1::2] << 4)
        self.codes.copy_(tiles)
        self.scales.copy_(scales.view(N // TILE, TILE, -1).transpose(1, 2))

    def whole_numbers(self) -> Tensor:
        """The codes, row by row: (N, C) int8."""
        tiles = self.codes
        if self.bits == 4:
            low, high = (tiles & 15).to(torch.int8) - 8, (tiles >> 4).to(torch.int8) - 8
            tiles = torch.stack((low, high), dim=2).flatten(1, 2)  # (N/64, C, 64)
        return tiles.transpose(1, 2).reshape(self.out_features, self.in_features)

    @property
    def weight(self) -> Tensor:
        """What these numbers stand for, (N, C) fp32: made anew each time."""
        scales = self.scales.transpose(1, 2).reshape(self.out_features, -1, 1)
        codes = self.whole_numbers().view(self.out_features, -1, self.group)
        return (codes.to(torch.float32) * scales.to(torch.float32)).view(self.out_features, -1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))

    def _apply(self, fn, recurse: bool = True) -> QuantizedLinear:  # noqa: ANN001 (as PyTorch's)
        super()._apply(fn, recurse)
        self.scales = self.scales.to(torch.float16)  # which `model.to(dtype)` would have cast
        return self

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group={self.group}"


def rounded(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Round to nearest. (N, C) -> whole numbers (N, C) int8, scales (N, C/group) fp16.

    The scale is rounded to fp16 first, and the numbers by that one. A group of zeros has the scale 0.
    """
    groups = weight.float().view(len(weight), -1, group)
    if bits == 8:
        scales = groups.abs().amax(dim=2) / 127
    else:
        extreme = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))[..., 0]  # with its sign
        scales = extreme / -8
    scales = scales.half()
    inverse = torch.where(scales == 0, 0, 1 / scales.float())[..., None]
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    codes = (groups * inverse).round().clamp(low, high)
    return codes.to(torch.int8).view(weight.shape), scales


def quantize(model: nn.Module, bits: int, *, group: int = 32, head: bool = True) -> nn.Module:
    """Give the linears of a Llama's blocks, and its head, weights of 8 or 4 bits, in place; returns the model.

    What has no whole groups stays as it is, and so do embeddings, norms, towers and bridges. A tied head becomes a
    matrix of its own, of which the embedding is the unrounded copy. Raises InputError.
    """
    if bits not in (8, 4):
        raise InputError(f"weights are quantized to 8 or 4 bits, got {bits}")
    for path in [*find_linears(model, BLOCKS), *(["lm_head"] if head else [])]:
        linear = model.get_submodule(path)
        if type(linear) is Linear and linear.out_features % TILE == 0 and linear.in_features % group == 0:
            put_module(model, path, QuantizedLinear.of(linear.weight, bits=bits, group=group))
    return model
