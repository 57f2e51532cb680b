"""Numbers in memory, in three floating-point forms, read and written by compiled loops that compute in fp32.

    F32, F16, BF16    (N, C), row after row; INT8 and INT4 are in `whole`

Built in notebook 19.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

F32, F16, BF16, INT8, INT4 = range(5)
f4 = np.float32
LONG = 256  # numbers of a row, from which on it is read alone
# Sums may be taken in any order, so that they run 16 wide; NaN and infinity keep their meaning.
SUMS = {"reassoc", "nsz", "contract", "arcp"}
compiled = njit(fastmath=SUMS, cache=True)
LOG2_E, LN_2 = f4(math.log2(math.e)), f4(math.log(2))


def _pointer_to(element: types.Type):
    @intrinsic
    def pointer(_typing, address):
        def codegen(context, builder, _signature, args):
            return builder.inttoptr(args[0], context.get_value_type(types.CPointer(element)))

        return types.CPointer(element)(address), codegen

    return pointer


as_f32, as_16 = map(_pointer_to, (types.float32, types.uint16))


@intrinsic
def from_half(_typing, bits):  # noqa: ARG001
    """fp16, as its 16 bits -> fp32."""
    def codegen(_context, builder, _signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), codegen


@intrinsic
def to_half(_typing, number):  # noqa: ARG001
    """fp32 -> fp16, as its 16 bits, to the nearest."""
    def codegen(_context, builder, _signature, args):
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), codegen


@intrinsic
def from_bits(_typing, bits):  # noqa: ARG001
    """The fp32 number that 32 bits are."""
    def codegen(_context, builder, _signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@intrinsic
def to_bits(_typing, number):  # noqa: ARG001
    """The 32 bits that an fp32 number is."""
    def codegen(_context, builder, _signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@compiled
def from_bf16(bits):
    return from_bits(np.uint32(np.uint32(bits) << np.uint32(16)))


@compiled
def to_bf16(number):
    """To the nearest, ties to even; NaN stays NaN."""
    bits = to_bits(number)
    if number != number:
        return np.uint16((bits >> np.uint32(16)) | np.uint32(64))
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@compiled
def exp(x):
    """e^x = 2^n 2^f with n whole and |f| <= 1/2, where 2^f is a short polynomial, 16 at a time. To 4e-7 for
    |x| < 4, and to 6e-6 at the ends, where x itself is told no better."""
    t = min(max(x * LOG2_E, f4(-126)), f4(127))
    n = np.floor(t + f4(0.5))
    f = (t - n) * LN_2
    power = f4(1) + f * (f4(1) + f * (f4(1 / 2) + f * (f4(1 / 6) + f * (f4(1 / 24) + f * (f4(1 / 120)
            + f * f4(1 / 720))))))  # fmt: skip
    return power * from_bits(np.uint32(np.int32(n) + np.int32(127)) << np.uint32(23))


# ---- one row of weights, or 64 ----


@compiled
def dot(kind, address, x, n):
    """Of n numbers at an address with x, in one of the three forms of floating point."""
    total = f4(0)
    if kind == F32:
        w = carray(as_f32(address), n)
        for j in range(n):
            total += w[j] * x[j]
    elif kind == F16:
        h = carray(as_16(address), n)
        for j in range(n):
            total += from_half(h[j]) * x[j]
    else:
        b = carray(as_16(address), n)
        for j in range(n):
            total += from_bf16(b[j]) * x[j]
    return total


@compiled
def four_dots(kind, address, pitch, x, n, out):
    """Of four rows, `pitch` bytes apart: a number of x is fetched once for all. -> out (4,)"""
    a = b = c = d = f4(0)
    second, third, fourth = address + pitch, address + 2 * pitch, address + 3 * pitch
    if kind == F32:
        w0, w1 = carray(as_f32(address), n), carray(as_f32(second), n)
        w2, w3 = carray(as_f32(third), n), carray(as_f32(fourth), n)
        for j in range(n):
            a, b, c, d = a + w0[j] * x[j], b + w1[j] * x[j], c + w2[j] * x[j], d + w3[j] * x[j]
    else:
        h0, h1 = carray(as_16(address), n), carray(as_16(second), n)
        h2, h3 = carray(as_16(third), n), carray(as_16(fourth), n)
        if kind == F16:
            for j in range(n):
                a, b = a + from_half(h0[j]) * x[j], b + from_half(h1[j]) * x[j]
                c, d = c + from_half(h2[j]) * x[j], d + from_half(h3[j]) * x[j]
        else:
            for j in range(n):
                a, b = a + from_bf16(h0[j]) * x[j], b + from_bf16(h1[j]) * x[j]
                c, d = c + from_bf16(h2[j]) * x[j], d + from_bf16(h3[j]) * x[j]
    out[0], out[1], out[2], out[3] = a, b, c, d


@compiled
def dots(kind, address, x, n, out):
    """Of as many rows as out has numbers, one behind the other at an address, with x (n,).

    Long rows come from memory, which hands out one stream of numbers up to twice as fast as four; short ones, a head's
    keys, are four to a page, and adding up across a register costs more than the rest.
    """
    pitch = n * (4 if kind == F32 else 2)
    fours = out.size // 4 * 4 if n < LONG else 0
    for i in range(0, fours, 4):
        four_dots(kind, address + i * pitch, pitch, x, n, out[i : i + 4])
    for i in range(fours, out.size):
        out[i] = dot(kind, address + i * pitch, x, n)


@compiled
def add_scaled(kind, address, scale, out, n):
    """out += scale times n numbers at an address."""
    if kind == F32:
        w = carray(as_f32(address), n)
        for j in range(n):
            out[j] += scale * w[j]
    elif kind == F16:
        h = carray(as_16(address), n)
        for j in range(n):
            out[j] += scale * from_half(h[j])
    else:
        b = carray(as_16(address), n)
        for j in range(n):
            out[j] += scale * from_bf16(b[j])


@compiled
def add_scaled_rows(kind, address, scales, out, n):
    """out += of as many rows as there are scales, one behind the other, each times its own: four in one pass."""
    whole = scales.size // 4 * 4
    pitch = n * (4 if kind == F32 else 2)
    for i in range(0, whole, 4):
        s0, s1, s2, s3 = scales[i], scales[i + 1], scales[i + 2], scales[i + 3]
        if kind == F32:
            w = carray(as_f32(address + i * pitch), 4 * n)
            for j in range(n):
                out[j] += s0 * w[j] + s1 * w[n + j] + s2 * w[2 * n + j] + s3 * w[3 * n + j]
        elif kind == F16:
            h = carray(as_16(address + i * pitch), 4 * n)
            for j in range(n):
                out[j] += (s0 * from_half(h[j]) + s1 * from_half(h[n + j])
                           + s2 * from_half(h[2 * n + j]) + s3 * from_half(h[3 * n + j]))
        else:
            b = carray(as_16(address + i * pitch), 4 * n)
            for j in range(n):
                out[j] += (s0 * from_bf16(b[j]) + s1 * from_bf16(b[n + j])
                           + s2 * from_bf16(b[2 * n + j]) + s3 * from_bf16(b[3 * n + j]))
    for i in range(whole, scales.size):
        add_scaled(kind, address + i * pitch, scales[i], out, n)


@compiled
def store(kind, address, x, n):
    """Write n numbers to an address in its form."""
    if kind == F32:
        w = carray(as_f32(address), n)
        for j in range(n):
            w[j] = x[j]
    elif kind == F16:
        h = carray(as_16(address), n)
        for j in range(n):
            h[j] = to_half(x[j])
    else:
        b = carray(as_16(address), n)
        for j in range(n):
            b[j] = to_bf16(x[j])
