"""Products of whole numbers: weights of 8 or 4 bits with x in 16, 64 rows that stand side by side.

    x (C,) -> 16-bit numbers, as two of 8 bits, with a scale for each 32 of them
    INT8    codes (N/64, C/32, 8, 64, 4) uint8, each number plus 128, scales (N/64, C/group, 64) fp16
    INT4    codes (N/64, C/32, 4, 64, 4) uint8, two columns in a byte, each number plus 8

Processors multiply bytes four at a time, and add the four products to a sum, in each of 16 lanes by one instruction
(x86's VNNI; others multiply pairs of 16-bit numbers). A lane is a row: no sum runs across a register, and a scale for
each group of columns costs next to nothing. The bytes of weights have no sign, so what was added to them is taken off
the sums. x in 16 bits is as good as fp32 beside weights of 8. Built in notebook 19.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from llamamm.fast import vectors as v
from llamamm.fast.forms import compiled, f4, from_bits
from llamamm.fast.quantized import TILE

UNIT = 32  # columns that are added up in whole numbers, before they get their scale: the smallest group
LARGEST = 127 * 256  # of x's numbers: a multiple of 256, so that both bytes have a sign
_FEATURES = {name[1:] for name in (config.CPU_FEATURES or get_host_cpu_features()).split(",") if name[:1] == "+"}
_HAS_PMADDWD = "avx2" in _FEATURES
LANES = 16 if "avx512bw" in _FEATURES else 8  # rows in one register
_HAS_VNNI = {16: "avx512vnni", 8: "avxvnni"}[LANES] in _FEATURES
_ROWS, _FLOATS, _PAIRS = ir.VectorType(v.I32, LANES), ir.VectorType(v.FLOAT, LANES), ir.VectorType(v.I16, 2 * LANES)


@compiled
def rounded(x, numbers, scales, sums):
    """x (C,) to numbers (C/32, 2, 32) int8, in place: of each number n the upper byte and then the lower one, each with
    a sign, n = 256 * upper + lower; scales (C/32,), and the numbers' sums (C/32,). NaN and infinity make their scale
    so."""
    for u in range(scales.size):
        part = x[u * UNIT : (u + 1) * UNIT]
        largest = v.largest_size(part.ctypes.data)
        scales[u] = from_bits(np.uint32(largest)) * f4(1 / LARGEST)
        inverse = f4(0) if largest == 0 else f4(LARGEST) / from_bits(np.uint32(largest))
        uppers, lowers, total = numbers[u, 0], numbers[u, 1], np.int32(0)
        for j in range(UNIT):
            number = np.int32(np.floor(part[j] * inverse + f4(0.5)))
            upper = (number + np.int32(128)) >> np.int32(8)
            uppers[j] = np.int8(upper)
            lowers[j] = np.int8(number - (upper << np.int32(8)))
            total += number
        sums[u] = total


# ---- what a processor multiplies ----


def _call(builder: ir.IRBuilder, name: str, *args: ir.Value) -> ir.Value:
    kind = ir.FunctionType(_ROWS, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _pairs_added(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """16-bit numbers, two in each lane -> a0 b0 + a1 b1 in 32 bits."""
    if _HAS_PMADDWD:
        return _call(builder, {16: "llvm.x86.avx512.pmaddw.d.512", 8: "llvm.x86.avx2.pmadd.wd"}[LANES], a, b)
    products = []
    for first in (0, 1):
        lanes = range(first, 2 * LANES, 2)
        products.append(builder.mul(*(builder.sext(v.shuffled(builder, x, x, lanes), _ROWS) for x in (a, b))))
    return builder.add(*products)


class _FourColumns:
    """Four of x's numbers, in all lanes, and the sums of what they are multiplied with."""

    def __init__(self, builder: ir.IRBuilder, numbers: ir.Value, four: int) -> None:
        self.builder = builder
        places = 4 * four, UNIT + 4 * four  # of upper and lower bytes
        self.upper, self.lower = (v.splat(builder, v.load(builder, numbers, k, v.I32), LANES) for k in places)
        if not _HAS_VNNI:  # 16-bit numbers: the first and third, the second and fourth
            upper, lower = (builder.bitcast(x, _PAIRS) for x in (self.upper, self.lower))
            eight = v.constant(8, _PAIRS)
            first = builder.add(builder.shl(upper, eight), builder.ashr(builder.shl(lower, eight), eight))
            second = builder.add(builder.and_(upper, v.constant(-256, _PAIRS)), builder.ashr(lower, eight))
            self.pairs = first, second

    def add_to(self, sums: tuple[ir.Value, ir.Value], w: ir.Value) -> tuple[ir.Value, ir.Value]:
        """sums of upper and of lower bytes (without VNNI, all in the second), w: four bytes without a sign a lane."""
        builder = self.builder
        if _HAS_VNNI:
            name = f"llvm.x86.avx512.vpdpbusd.{32 * LANES}"
            return _call(builder, name, sums[0], w, self.upper), _call(builder, name, sums[1], w, self.lower)
        low_bytes = v.constant(0x00FF00FF, _ROWS)
        even = builder.bitcast(builder.and_(w, low_bytes), _PAIRS)
        odd = builder.bitcast(builder.and_(builder.lshr(w, v.constant(8, _ROWS)), low_bytes), _PAIRS)
        both = builder.add(_pairs_added(builder, even, self.pairs[0]), _pairs_added(builder, odd, self.pairs[1]))
        return sums[0], builder.add(sums[1], both)


def _adds_unit(added: int, weights: Callable[[ir.IRBuilder, ir.Value], list[ir.Value]], fours: int):
    """An intrinsic: 64 rows, 32 columns, out[r] += scales[r] * x_scale * (sum of codes times numbers).

    added: what each code is more than its number; weights: of four bytes a row, those of its next four columns, and
    `fours` times so.
    """
    @intrinsic
    def add_unit(_typing, codes, numbers, scales, x_scale, x_sum, out):  # noqa: ARG001
        def codegen(context, builder, _signature, args):
            codes, numbers, scales, x_scale, x_sum, out = args
            lanes = range(TILE // LANES)
            start = v.splat(builder, builder.mul(x_sum, v.I32(-added)), LANES)
            sums = [(v.constant(0, _ROWS), start) for _ in lanes]
            for k in range(UNIT // 4 // fours):
                x = [_FourColumns(builder, numbers, fours * k + i) for i in range(fours)]
                for lane in lanes:
                    loaded = v.load(builder, codes, 4 * (k * TILE + lane * LANES), _ROWS)
                    for columns, w in zip(x, weights(builder, loaded), strict=True):
                        sums[lane] = columns.add_to(sums[lane], w)
            x_scales = v.splat(builder, x_scale, LANES)
            for lane in lanes:
                total = builder.add(builder.shl(sums[lane][0], v.constant(8, _ROWS)), sums[lane][1])
                halves = v.load(builder, scales, 2 * LANES * lane, ir.VectorType(v.HALF, LANES))
                scale = builder.fmul(builder.fpext(halves, _FLOATS), x_scales)
                before = v.load(builder, out, 4 * LANES * lane, _FLOATS)
                summed = v.multiply_add(builder, builder.sitofp(total, _FLOATS), scale, before)
                v.store(builder, summed, out, 4 * LANES * lane)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.float32, types.int32, types.int64), codegen

    return add_unit


def _nibbles(builder: ir.IRBuilder, loaded: ir.Value) -> list[ir.Value]:
    low = v.constant(0x0F0F0F0F, _ROWS)
    return [builder.and_(loaded, low), builder.and_(builder.lshr(loaded, v.constant(4, _ROWS)), low)]


add_unit_int8 = _adds_unit(128, lambda _builder, loaded: [loaded], fours=1)
add_unit_int4 = _adds_unit(8, _nibbles, fours=2)


@compiled
def tile_int8(codes, scales, group, numbers, x_scales, x_sums, part, out):
    """64 rows with x, as `rounded` gives it. codes, scales: addresses of this tile's. -> out (64,)

    Sums are made in part (64,): out's neighbours are another worker's, and cores do not share a line in peace.
    """
    part[:] = f4(0)
    for u in range(x_scales.size):
        add_unit_int8(codes + u * UNIT * TILE, numbers.ctypes.data + 2 * u * UNIT,
                      scales + 2 * (u * UNIT // group) * TILE, x_scales[u], x_sums[u], part.ctypes.data)
    out[:] = part


@compiled
def tile_int4(codes, scales, group, numbers, x_scales, x_sums, part, out):
    """As above."""
    part[:] = f4(0)
    for u in range(x_scales.size):
        add_unit_int4(codes + u * UNIT * TILE // 2, numbers.ctypes.data + 2 * u * UNIT,
                      scales + 2 * (u * UNIT // group) * TILE, x_scales[u], x_sums[u], part.ctypes.data)
    out[:] = part
