"""Products of whole numbers: weights of 8 or 4 bits with x in 16, 64 rows that stand side by side.

    x (C,) -> 16-bit numbers with a scale for each 32 of them
    INT8    codes (N/64, C/32, 8, 4, 4, 8, 2) int8, scales (N/64, C/group, 64) fp16
    INT4    codes (N/64, C/32, 8, 4, 8, 4) uint8, two columns in a byte, each number plus 8

A processor multiplies sixteen pairs of 16-bit numbers, and adds the two products of each pair, in one instruction
(x86's pmaddwd; others have the like). A lane is a row: no sum runs across a register, and a scale for each group of
columns costs next to nothing. x in 16 bits is as good as fp32 beside weights of 8. Built in notebook 19.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from llamamm.fast.forms import compiled, f4, from_bits, to_bits
from llamamm.fast.quantized import TILE

UNIT = 32  # columns that are added up in whole numbers, before they get their scale: the smallest group
LANES = 8  # rows in one register
_i8, _i16, _i32, _f32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_ROWS_32 = ir.VectorType(_i32, LANES)
_HAS_PMADDWD = get_host_cpu_features().get("avx2", False)


@compiled
def rounded(x, numbers, scales, sums):
    """x (C,) to numbers (C,) int16, in place, scales (C/32,) and the numbers' sums (C/32,). Of eight numbers the first
    stands with the fifth, and so on. NaN and infinity make their scale so."""
    for u in range(x.size // UNIT):
        part = x[u * UNIT : (u + 1) * UNIT]
        largest = np.int32(0)
        for j in range(UNIT):  # without their sign, numbers are ordered as their bits are, and NaN comes last
            largest = max(largest, np.int32(to_bits(part[j]) & np.uint32(0x7FFFFFFF)))
        scale = from_bits(np.uint32(largest)) / f4(32767)
        scales[u] = scale
        inverse = f4(0) if scale == f4(0) else f4(1) / scale
        total = np.int32(0)
        for e in range(u * UNIT, (u + 1) * UNIT, 8):
            for k in range(4):
                a, b = np.int16(np.rint(x[e + k] * inverse)), np.int16(np.rint(x[e + 4 + k] * inverse))
                numbers[e + 2 * k], numbers[e + 2 * k + 1] = a, b
                total += np.int32(a) + np.int32(b)
        sums[u] = total


def _splat(builder, value, n=LANES):
    """The same number in all n lanes."""
    vector = ir.VectorType(value.type, n)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _i32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_i32, n), [0] * n))


def _load(builder, address, offset, kind):
    place = builder.inttoptr(builder.add(address, ir.IntType(64)(offset)), kind.as_pointer())
    loaded = builder.load(place)
    loaded.align = 1
    return loaded


def _pairs_added(builder, a, b):
    """<16 x i16> twice -> <8 x i32>: a0 b0 + a1 b1, and so on."""
    if _HAS_PMADDWD:
        kind = ir.FunctionType(_ROWS_32, [ir.VectorType(_i16, 2 * LANES)] * 2)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pmadd.wd"), [a, b])
    products = []
    for first in (0, 1):
        lanes = ir.Constant(_ROWS_32, list(range(first, 2 * LANES, 2)))
        products.append(builder.mul(*(builder.sext(builder.shuffle_vector(v, v, lanes), _ROWS_32) for v in (a, b))))
    return builder.add(*products)


def _add_scaled(builder, sums, lane, scales, x_scale, out):
    """out[8 rows] += sums * scales * x_scale."""
    halves = _load(builder, scales, 2 * LANES * lane, ir.VectorType(ir.HalfType(), LANES))
    floats = ir.VectorType(_f32, LANES)
    scale = builder.fmul(builder.fpext(halves, floats), _splat(builder, x_scale))
    total = builder.fadd(_load(builder, out, 4 * LANES * lane, floats),
                         builder.fmul(builder.sitofp(sums, floats), scale))  # fmt: skip
    place = builder.inttoptr(builder.add(out, ir.IntType(64)(4 * LANES * lane)), floats.as_pointer())
    builder.store(total, place).align = 1


def _x_pair(builder, numbers, pair):
    """Two neighbours of x's 16-bit numbers, in all lanes."""
    return builder.bitcast(_splat(builder, _load(builder, numbers, 4 * pair, _i32)), ir.VectorType(_i16, 2 * LANES))


@intrinsic
def add_unit_int8(_typing, codes, numbers, scales, x_scale, out):  # noqa: ARG001
    """64 rows, 32 columns: out[r] += scales[r] * x_scale * (sum of codes times numbers). All but x_scale: addresses."""
    def codegen(context, builder, _signature, args):
        codes, numbers, scales, x_scale, out = args
        for lane in range(TILE // LANES):
            sums = ir.Constant(_ROWS_32, [0] * LANES)
            for pair in range(UNIT // 2):
                eight_bits, sixteen_bits = (ir.VectorType(kind, 2 * LANES) for kind in (_i8, _i16))
                w = _load(builder, codes, (lane * UNIT // 2 + pair) * 2 * LANES, eight_bits)
                w = builder.sext(w, sixteen_bits)
                sums = builder.add(sums, _pairs_added(builder, w, _x_pair(builder, numbers, pair)))
            _add_scaled(builder, sums, lane, scales, x_scale, out)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.float32, types.int64), codegen


@intrinsic
def add_unit_int4(_typing, codes, numbers, scales, x_scale, x_sum, out):  # noqa: ARG001
    """As above. A code is its number plus 8: eight times the sum of x is where the sums begin, below zero."""
    def codegen(context, builder, _signature, args):
        codes, numbers, scales, x_scale, x_sum, out = args
        start = _splat(builder, builder.mul(x_sum, _i32(-8)))
        halves = ir.Constant(_ROWS_32, [0x000F000F] * LANES)
        for lane in range(TILE // LANES):
            sums = start
            for eight in range(UNIT // 8):
                words = _load(builder, codes, (lane * UNIT // 8 + eight) * 4 * LANES, _ROWS_32)  # 8 rows, 8 columns
                for k in range(4):
                    moved = builder.lshr(words, ir.Constant(_ROWS_32, [4 * k] * LANES)) if k else words
                    w = builder.bitcast(builder.and_(moved, halves), ir.VectorType(_i16, 2 * LANES))
                    sums = builder.add(sums, _pairs_added(builder, w, _x_pair(builder, numbers, 4 * eight + k)))
            _add_scaled(builder, sums, lane, scales, x_scale, out)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.float32, types.int32, types.int64), codegen


@compiled
def tile_int8(codes, scales, group, numbers, x_scales, part, out):
    """64 rows with x, as `rounded` gives it. codes, scales: addresses of this tile's. -> out (64,)

    Sums are made in part (64,): out's neighbours are another worker's, and cores do not share a line in peace.
    """
    part[:] = f4(0)
    for u in range(x_scales.size):
        add_unit_int8(codes + u * UNIT * TILE, numbers.ctypes.data + 2 * u * UNIT,
                      scales + 2 * (u * UNIT // group) * TILE, x_scales[u], part.ctypes.data)
    out[:] = part


@compiled
def tile_int4(codes, scales, group, numbers, x_scales, x_sums, part, out):
    """As above."""
    part[:] = f4(0)
    for u in range(x_scales.size):
        add_unit_int4(codes + u * UNIT * TILE // 2, numbers.ctypes.data + 2 * u * UNIT,
                      scales + 2 * (u * UNIT // group) * TILE, x_scales[u], x_sums[u], part.ctypes.data)
    out[:] = part
