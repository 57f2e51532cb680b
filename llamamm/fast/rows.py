"""Rows of weights, or of keys, with x, eight at a time, in three forms of floating point.

    rows (N, C), x (C,) -> (N,)

The sums of eight rows are taken side by side: one after another they would cost as much as the products, since a
processor adds up across a register in steps that wait for each other. Built in notebook 19.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from llamamm.fast import vectors as v
from llamamm.fast.forms import BF16, F16, F32, compiled, dots

EIGHT = 8  # rows
AT_ONCE = 4  # vectors of a long row with a sum each: as many as a processor has products under way


def _products(form: int, *, one_by_one: bool):
    """An intrinsic: eight rows, one behind the other, with x, to out (8,).

    one_by_one: row after row, as memory hands out long rows fastest; else column after column of all eight.
    """
    n_bytes = 4 if form == F32 else 2

    def added(builder: ir.IRBuilder, x: ir.Value, row: ir.Value, begin: ir.Value, total: ir.Value) -> None:
        """Add the products of 16 columns to what is at an address."""
        part = v.load(builder, x, builder.mul(begin, v.I64(4)), v.FLOATS)
        numbers = v.load_floats(builder, form, row, builder.mul(begin, v.I64(n_bytes)))
        builder.store(v.multiply_add(builder, numbers, part, builder.load(total)), total)

    @intrinsic
    def products(_typing, rows, x, size, out):  # noqa: ARG001
        def codegen(context, builder, _signature, args):
            rows, x, size, out = args
            pitch = builder.mul(size, v.I64(n_bytes))
            places = [builder.add(rows, builder.mul(pitch, v.I64(r))) for r in range(EIGHT)]
            zero, wide = v.constant(0, v.FLOATS), v.I64(v.WIDE)
            if one_by_one:
                sums, step = [], v.I64(AT_ONCE * v.WIDE)
                n_steps = builder.udiv(size, step)
                rest = builder.mul(n_steps, step)
                for row in places:
                    totals = [cgutils.alloca_once_value(builder, zero) for _ in range(AT_ONCE)]
                    with cgutils.for_range(builder, n_steps) as loop:
                        for k, total in enumerate(totals):
                            added(builder, x, row, builder.add(builder.mul(loop.index, step), v.I64(k * v.WIDE)), total)
                    with cgutils.for_range(builder, builder.udiv(builder.sub(size, rest), wide)) as loop:
                        added(builder, x, row, builder.add(rest, builder.mul(loop.index, wide)), totals[0])
                    sums.append(v.added(builder, [builder.load(total) for total in totals]))
            else:
                totals = [cgutils.alloca_once_value(builder, zero) for _ in places]
                with cgutils.for_range(builder, builder.udiv(size, wide)) as loop:
                    for row, total in zip(places, totals, strict=True):
                        added(builder, x, row, builder.mul(loop.index, wide), total)
                sums = [builder.load(total) for total in totals]
            v.store(builder, v.sums_of_each(builder, sums), out, 0)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.int64), codegen

    return products


long_f32, long_f16, long_bf16 = (_products(form, one_by_one=True) for form in (F32, F16, BF16))
short_f32, short_f16, short_bf16 = (_products(form, one_by_one=False) for form in (F32, F16, BF16))


@compiled
def eight_short_rows(kind, address, x, out):
    """Keys: rows of one head's numbers, a multiple of 16. x (C,) -> out (8,)."""
    if kind == F32:
        short_f32(address, x.ctypes.data, x.size, out.ctypes.data)
    elif kind == F16:
        short_f16(address, x.ctypes.data, x.size, out.ctypes.data)
    else:
        short_bf16(address, x.ctypes.data, x.size, out.ctypes.data)


@compiled
def long_rows(kind, address, x, out):
    """As many rows of weights as out has numbers, one behind the other at an address, with x (C,)."""
    pitch = x.size * (4 if kind == F32 else 2)
    eights = out.size // EIGHT * EIGHT if x.size % v.WIDE == 0 else 0
    for i in range(0, eights, EIGHT):
        place, into = address + i * pitch, out[i : i + EIGHT].ctypes.data
        if kind == F32:
            long_f32(place, x.ctypes.data, x.size, into)
        elif kind == F16:
            long_f16(place, x.ctypes.data, x.size, into)
        else:
            long_bf16(place, x.ctypes.data, x.size, into)
    dots(kind, address + eights * pitch, x, x.size, out[eights:])
