"""What is written for a processor's vectors by hand, in LLVM's words: numbers side by side, from and to addresses.

For loops that numba does not make wide enough by itself. LLVM cuts vectors to what the processor has. Used in notebook
19.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from llamamm.fast.forms import BF16, F16, F32

I8, I16, I32, I64 = map(ir.IntType, (8, 16, 32, 64))
FLOAT, HALF = ir.FloatType(), ir.HalfType()
WIDE = 16  # numbers of a vector of fp32
FLOATS = ir.VectorType(FLOAT, WIDE)
_ANY_ORDER = ("reassoc", "nsz", "contract", "arcp")


@intrinsic
def largest_size(_typing, address):  # noqa: ARG001
    """Of 32 numbers in fp32 at an address: the largest without its sign, as its bits, int32. Numbers are ordered as
    their bits are, and NaN comes last."""
    def codegen(_context, builder, _signature, args):
        bits = ir.VectorType(I32, WIDE)
        halves = [load(builder, args[0], place, bits) for place in (0, 4 * WIDE)]
        sizes = [builder.and_(half, constant(0x7FFFFFFF, bits)) for half in halves]
        larger = builder.select(builder.icmp_signed(">", *sizes), *sizes)
        kind = ir.FunctionType(I32, [bits])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.smax.v16i32"),
                            [larger])  # fmt: skip

    return types.int32(types.int64), codegen


def splat(builder: ir.IRBuilder, value: ir.Value, n: int) -> ir.Value:
    """The same number in all n lanes."""
    one = builder.insert_element(ir.Constant(ir.VectorType(value.type, n), ir.Undefined), value, I32(0))
    return shuffled(builder, one, one, [0] * n)


def constant(number: int, vector: ir.VectorType) -> ir.Constant:
    return ir.Constant(vector, [number] * vector.count)


def shuffled(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, lanes: Sequence[int]) -> ir.Value:
    """Of the lanes of a, and behind them those of b, the ones named."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))


def load(builder: ir.IRBuilder, address: ir.Value, offset: ir.Value | int, kind: ir.Type) -> ir.Value:
    loaded = builder.load(_place(builder, address, offset, kind))
    loaded.align = 1
    return loaded


def store(builder: ir.IRBuilder, value: ir.Value, address: ir.Value, offset: ir.Value | int) -> None:
    builder.store(value, _place(builder, address, offset, value.type)).align = 1


def load_floats(builder: ir.IRBuilder, form: int, address: ir.Value, offset: ir.Value | int) -> ir.Value:
    """16 numbers in one of the three forms, as fp32."""
    if form == F32:
        return load(builder, address, offset, FLOATS)
    if form == F16:
        return builder.fpext(load(builder, address, offset, ir.VectorType(HALF, WIDE)), FLOATS)
    assert form == BF16
    wide = ir.VectorType(I32, WIDE)
    bits = builder.zext(load(builder, address, offset, ir.VectorType(I16, WIDE)), wide)
    return builder.bitcast(builder.shl(bits, constant(16, wide)), FLOATS)


def multiply_add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, total: ir.Value) -> ir.Value:
    """total + a * b, rounded once where the processor can."""
    return builder.fadd(total, builder.fmul(a, b, flags=_ANY_ORDER), flags=_ANY_ORDER)


def added(builder: ir.IRBuilder, vectors: Sequence[ir.Value]) -> ir.Value:
    """The sum of 2, 4, 8 ... vectors, in pairs."""
    while len(vectors) > 1:
        vectors = [builder.fadd(a, b, flags=_ANY_ORDER) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]


def sums_of_each(builder: ir.IRBuilder, vectors: Sequence[ir.Value]) -> ir.Value:
    """8 vectors of 16 -> one of 8: the sum of the numbers of each. Halves are added to halves, two vectors in one."""
    block = WIDE // 2
    vectors = list(vectors)
    while len(vectors) > 1:
        first = [lane for lane in range(2 * WIDE) if lane % (2 * block) < block]
        second = [lane + block for lane in first]
        vectors = [builder.fadd(shuffled(builder, a, b, first), shuffled(builder, a, b, second), flags=_ANY_ORDER)
                   for a, b in zip(vectors[::2], vectors[1::2], strict=True)]  # fmt: skip
        block //= 2
    pairs = vectors[0]
    even, odd = (shuffled(builder, pairs, pairs, range(k, WIDE, 2)) for k in (0, 1))
    return builder.fadd(even, odd, flags=_ANY_ORDER)


def _place(builder: ir.IRBuilder, address: ir.Value, offset: ir.Value | int, kind: ir.Type) -> ir.Value:
    return builder.inttoptr(builder.add(address, I64(offset) if isinstance(offset, int) else offset), kind.as_pointer())
