"""Linears whose weights are whole numbers of 8 or 4 bits, with a scale for each group of columns.

    weight (N, C) -> codes, scales: weight[i, j] is about codes[i, j] * scales[i, j // group]

Beside them, linears that keep what was 16 bits all along so, and compute in fp32.

Round to nearest, group by group. In 8 bits a group's largest number becomes 127; in 4 bits it becomes -8, the end of a
range, -8 to 7, that is longer below: the rules of llama.cpp's Q8_0 and Q4_0, whose groups have 32 columns.

64 rows stand side by side, as `whole` reads them; files hold them row by row. Without numba, for prompts, and on a GPU
the weight is spread out again for each product, a block of rows at a time, and PyTorch multiplies. Built in notebook
19.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.errors import InputError
from llamamm.fast.pages import room_in_large_pages, use_large_pages
from llamamm.text.layers import Linear
from llamamm.wiring import find_linears, put_module

TILE = 64  # rows that stand side by side, and of which a thread takes a run at a time
GROUPS = (32, 64, 128)
LINE = 64  # bytes that a processor fetches at a time
AT_ONCE = 2**24  # numbers of a weight that are spread out at a time: 64 MB in fp32, where a head would take a gigabyte
BLOCKS = ("layers.*.self_attn.*", "layers.*.mlp.*")


class QuantizedLinear(nn.Linear):
    """x Wᵀ. (..., C) -> (..., N). An adapter may stand beside it, as beside any linear.

    codes: as `whole` reads them, uint8: 32 columns of 64 rows and then the next 32; in those, 4 columns of all rows and
    then the next 4, (N/64, C/32, 8, 64, 4), each plus 128; or 8 columns, two in a byte, the first beside the fifth,
    which is in the upper half, and so on, (N/64, C/32, 4, 64, 4), each plus 8.
    scales: (N/64, C/group, 64) fp16. Nothing of it trains.
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
        shape = tiles, in_features // 32, bits, TILE, 4
        self.register_buffer("codes", torch.zeros(shape, dtype=torch.uint8))
        self.register_buffer("scales", torch.zeros(tiles, in_features // group, TILE, dtype=torch.float16))

    @classmethod
    def of(cls, weight: Tensor, *, bits: int, group: int = 32) -> QuantizedLinear:
        """The nearest to a weight (N, C), on its device. Raises InputError."""
        linear = cls(weight.shape[1], weight.shape[0], bits=bits, group=group).to(weight.device)
        linear.fill(*rounded(weight.detach(), bits, group))
        return linear

    def fill(self, codes: Tensor, scales: Tensor) -> None:
        """Whole numbers (N, C), -128 to 127 or -8 to 7, and scales (N, C/group), put side by side."""
        self.put(in_bytes(codes) if self.bits == 4 else codes, scales)

    def put(self, codes: Tensor, scales: Tensor) -> None:
        """The same from the form that `rows` gives."""
        tiles = self.out_features // TILE
        if self.bits == 8:
            self.codes.copy_((codes.view(torch.uint8) ^ 128).view(tiles, TILE, -1, 8, 4).permute(0, 2, 3, 1, 4))
        else:  # of 8 columns in 4 bytes, (0 1) (2 3) (4 5) (6 7), to (0 4) (1 5) (2 6) (3 7)
            first, second = codes.view(tiles, TILE, -1, 4, 2, 2).permute(4, 0, 2, 3, 1, 5)
            low, high = (first & 15) | (second & 15) << 4, (first >> 4) | (second & 240)
            self.codes.copy_(torch.stack((low, high), dim=-1).flatten(-2))
        self.scales.copy_(scales.view(tiles, TILE, -1).transpose(1, 2))

    def rows(self, tiles: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """As files hold them, row by row: codes (N, C) int8 or (N, C/2) uint8, scales (N, C/group) fp16; of some tiles
        of 64 rows alone where they are named."""
        codes, scales = self.codes[tiles], self.scales[tiles].transpose(1, 2)
        if self.bits == 8:
            codes = (codes ^ 128).view(torch.int8)
        else:
            low, high = codes[..., ::2], codes[..., 1::2]
            codes = torch.stack(((low & 15) | (high & 15) << 4, (low >> 4) | (high & 240)), dim=4).flatten(-2)
        return tuple(t.reshape(len(t) * TILE, -1) for t in (codes.permute(0, 3, 1, 2, 4), scales))

    def whole_numbers(self) -> Tensor:
        """The codes, row by row: (N, C) int8."""
        codes = self.rows()[0]
        return out_of_bytes(codes) if self.bits == 4 else codes

    @property
    def weight(self) -> Tensor:
        """What these numbers stand for, (N, C) fp32: made anew each time."""
        return self._spread(slice(None))

    def _spread(self, tiles: slice) -> Tensor:
        codes, scales = self.rows(tiles)
        codes = (out_of_bytes(codes) if self.bits == 4 else codes).view(len(codes), -1, self.group)
        return (codes.to(torch.float32) * scales[..., None].to(torch.float32)).flatten(1)

    def blocks(self) -> Iterator[Tensor]:
        """The weight in blocks of rows, (n, C) fp32, each made when it is asked for."""
        step = max(1, AT_ONCE // (TILE * self.in_features))
        yield from (self._spread(slice(first, first + step)) for first in range(0, len(self.codes), step))

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self) if torch.is_grad_enabled() and x.requires_grad else _product(x, self)

    def _apply(self, fn, recurse: bool = True) -> QuantizedLinear:  # noqa: ANN001 (as PyTorch's)
        super()._apply(fn, recurse)
        self.scales = self.scales.to(torch.float16)  # which `model.to(dtype)` would have cast
        return self

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, group={self.group}"


def _product(x: Tensor, linear: QuantizedLinear) -> Tensor:
    return torch.cat([F.linear(x, block.to(x.dtype)) for block in linear.blocks()], dim=-1)


class _Product(torch.autograd.Function):
    """The product, of which nothing is kept for the gradient: the weight is spread out a second time instead."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: QuantizedLinear) -> Tensor:
        ctx.linear, ctx.dtype = linear, x.dtype
        return _product(x, linear)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total, first = torch.zeros((), device=gradient.device), 0  # fp32, whatever the blocks' products are
        for block in ctx.linear.blocks():
            total = total + gradient[..., first : first + len(block)] @ block.to(gradient.dtype)
            first += len(block)
        return total.to(ctx.dtype), None


class NarrowLinear(nn.Linear):
    """x Wᵀ in x's dtype, with W kept in 16 bits that hold it exactly. (..., C) -> (..., N).

    What was trained in bf16 and is computed in fp32 needs no more, and decoding waits for memory: half the bytes are
    half the time.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))

    def _apply(self, fn, recurse: bool = True) -> NarrowLinear:  # noqa: ANN001 (as PyTorch's)
        dtype = self.weight.dtype
        super()._apply(fn, recurse)
        self.weight.data = self.weight.data.to(dtype)  # which `model.to(dtype)` would have cast
        return self


def narrow(model: nn.Module) -> nn.Module:
    """Keep the linears of a Llama's blocks, and its head, in the 16 bits that hold them, in place; returns the model.

    The numbers stay the same. Embeddings, norms, towers and bridges stay as they are. Raises InputError where a weight
    has more than 16 bits of its own, as after an adapter was merged or a training in fp32.
    """
    found = {}
    for path in [*find_linears(model, BLOCKS), "lm_head"]:
        linear = model.get_submodule(path)
        if type(linear) is Linear and linear.weight.dtype == torch.float32:
            found[path] = NarrowLinear(linear.in_features, linear.out_features, bias=False, device="meta")
            found[path].weight = nn.Parameter(_in_16_bits(path, linear.weight.detach()), requires_grad=False)
    for path, linear in found.items():
        put_module(model, path, linear)
    return model


def _in_16_bits(path: str, weight: Tensor) -> Tensor:
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal((kept := weight.to(dtype)).float(), weight):
            return kept
    raise InputError(f"{path} does not fit in 16 bits as it is, and bits=16 rounds nothing: leave bits out, or load "
                     f"the model with dtype=torch.bfloat16")


def rounded(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Round to nearest. (N, C) -> whole numbers (N, C) int8, scales (N, C/group) fp16. Raises InputError.

    The scale is rounded to fp16 first, and the numbers by that one. A group of zeros has the scale 0.
    """
    groups = weight.float().view(len(weight), -1, group)
    scales = scales_of(groups, bits)
    return nearest(groups, scales[..., None], bits).view(weight.shape), scales


def scales_of(groups: Tensor, bits: int) -> Tensor:
    """What one step is worth: (..., group) fp32 -> (...) fp16. Raises InputError where a weight has no finite one."""
    if bits == 8:
        scales = groups.abs().amax(dim=-1) / 127
    else:
        extreme = groups.gather(-1, groups.abs().argmax(dim=-1, keepdim=True))[..., 0]  # with its sign
        scales = extreme / -8
    scales = scales.half()
    if not scales.isfinite().all():
        raise InputError("a weight is not finite, or too large for a scale in fp16: `llamamm doctor FILE` says where")
    return scales


def nearest(weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The whole numbers nearest to weight / scales, int8; scales fp16, of a shape that fits."""
    inverse = torch.where(scales == 0, 0, 1 / scales.float())
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    return (weight * inverse).round().clamp(low, high).to(torch.int8)


def lay_side_by_side(model: nn.Module) -> None:
    """Put the whole numbers of all linears, and their scales, into one piece of memory, in the order of the blocks, in
    place: what is read from end to end for each token is read faster from large pages (`pages`)."""
    linears = [linear for linear in quantized_linears(model).values() if linear.codes.device.type == "cpu"]
    if not linears:
        return
    room = room_in_large_pages(sum(-(-buffer.nbytes // LINE) * LINE for x in linears for buffer in x.buffers()))
    begin = 0
    for linear in linears:
        for name, buffer in linear.named_buffers():
            place = room[begin : begin + buffer.nbytes].view(buffer.dtype).view(buffer.shape)
            setattr(linear, name, place.copy_(buffer))
            begin += -(-buffer.nbytes // LINE) * LINE
    use_large_pages([room.untyped_storage()])  # where the room had been somebody's before


def in_bytes(codes: Tensor) -> Tensor:
    """-8 to 7, (N, C) int8 -> (N, C/2) uint8: two columns in a byte, the first in the lower half, each plus 8."""
    codes = (codes + 8).to(torch.uint8)
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def out_of_bytes(codes: Tensor) -> Tensor:
    """The inverse of `in_bytes`."""
    low, high = (codes & 15).to(torch.int8) - 8, (codes >> 4).to(torch.int8) - 8
    return torch.stack((low, high), dim=2).flatten(1)


def quantize(model: nn.Module, bits: int, *, group: int = 32, head: bool = True) -> nn.Module:
    """Give the linears of a Llama's blocks, and its head, weights of 8 or 4 bits, in place; returns the model.

    What has no whole groups stays as it is, and so do embeddings, norms, towers and bridges. A tied head becomes a
    matrix of its own, of which the embedding is the unrounded copy. Raises InputError, also for a model that is
    quantized already.
    """
    for path in quantizable(model, bits, group=group, head=head):
        put_module(model, path, QuantizedLinear.of(model.get_submodule(path).weight, bits=bits, group=group))
    return model


def quantizable(model: nn.Module, bits: int, *, group: int = 32, head: bool = True) -> list[str]:
    """Paths of the linears that `quantize` replaces, the head's last. Raises InputError as it does."""
    if not isinstance(bits, int) or bits not in (8, 4):
        raise InputError(f"weights are quantized to 8 or 4 bits, got {bits!r}")
    if not isinstance(group, int) or group not in GROUPS:
        raise InputError(f"weights are quantized in groups of 32, 64 or 128, got {group!r}")
    if there := quantized_linears(model):
        one = next(iter(there.values()))
        raise InputError(f"the model is quantized already, to {one.bits} bits in groups of {one.group}: leave bits "
                         f"out, or take the model that it was made of")
    linears = {path: model.get_submodule(path) for path in find_linears(model, BLOCKS) + ["lm_head"] * head}
    return [path for path, linear in linears.items()
            if type(linear) is Linear and linear.out_features % TILE == 0 and linear.in_features % group == 0]


def quantized_linears(model: nn.Module) -> dict[str, QuantizedLinear]:
    """Those that a model has, by path, without the names of what stands around them."""
    return {path.removesuffix(".base"): module for path, module in model.named_modules()
            if isinstance(module, QuantizedLinear)}


def n_bytes(model: nn.Module) -> int:
    """What all weights of a model take, whole numbers and their scales among them."""
    whole = (buffer for linear in quantized_linears(model).values() for buffer in linear.buffers())
    return sum(tensor.nbytes for tensor in [*model.parameters(), *whole])
