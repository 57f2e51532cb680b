"""Attention of one new token over the keys and values of those before, for the heads that share a key.

    q (G, D), keys and values (n, D) -> out (G, D), in pieces of a long text that are put together

Eight tokens at a time: their sums are taken side by side, where one sum after another would cost more than its
products. Built in notebook 19.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from llamamm.fast import vectors as v
from llamamm.fast.forms import BF16, F16, F32, add_scaled_rows, compiled, dots, exp, f4
from llamamm.fast.rows import EIGHT, eight_short_rows

CHUNK = 256  # tokens of the cache that are one piece of work, or more where a text is long


def _adds_values(form: int):
    @intrinsic
    def add_values(_typing, weights, values, size, out):  # noqa: ARG001
        """out (size,) += weights (8,) times the values of eight tokens, (8, size) in one form. Addresses, as above."""
        def codegen(context, builder, _signature, args):
            weights, values, size, out = args
            n_bytes = 4 if form == F32 else 2
            pitch = builder.mul(size, v.I64(n_bytes))
            rows = [(v.splat(builder, v.load(builder, weights, 4 * t, v.FLOAT), v.WIDE),
                     builder.add(values, builder.mul(pitch, v.I64(t)))) for t in range(EIGHT)]  # fmt: skip
            with cgutils.for_range(builder, builder.udiv(size, v.I64(v.WIDE))) as loop:
                place = builder.mul(loop.index, v.I64(4 * v.WIDE))
                offset = builder.mul(loop.index, v.I64(n_bytes * v.WIDE))
                total = v.load(builder, out, place, v.FLOATS)
                for weight, row in rows:
                    total = v.multiply_add(builder, weight, v.load_floats(builder, form, row, offset), total)
                v.store(builder, total, out, place)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.int64), codegen

    return add_values


add_values_f32, add_values_f16, add_values_bf16 = map(_adds_values, (F32, F16, BF16))


@compiled
def chunk_of(n_tokens, n_workers):
    """Tokens of one piece, of a text of n_tokens: enough pieces to be shared, and few, since each worker has to fetch
    what the others have made of theirs."""
    pieces = 4 * n_workers
    return max(CHUNK, (n_tokens + pieces - 1) // pieces)


@compiled
def turned(x, D, cos, sin, out):
    """RoPE on one head: each pair of numbers, half a head apart, by its angle. x, cos, sin, out: (D,)."""
    half = D // 2
    for j in range(half):
        a, b = x[j], x[half + j]
        out[j] = a * cos[j] - b * sin[j]
        out[half + j] = b * cos[half + j] + a * sin[half + j]


@compiled
def attended(q, kind, keys, values, begin, end, scores, sums, out):
    """The heads that share a key, over the tokens begin ... end - 1 of its cache, one pass over keys and values.

    q (G, D); keys, values: addresses of (S, D). -> out (G, D), not yet divided by its sum, and sums (G, 2): the largest
    score and the sum of the weights, by which pieces of a long text are put together (`together`). scores: (G, chunk).
    """
    G, D = q.shape
    pitch, scale, n = D * (4 if kind == F32 else 2), f4(1 / math.sqrt(D)), end - begin
    keys, values = keys + begin * pitch, values + begin * pitch
    eights = n // EIGHT * EIGHT if D % v.WIDE == 0 else 0  # the rest goes token by token
    for t in range(0, eights, EIGHT):  # keys stay in the nearest cache while all heads read them
        for h in range(G):
            eight_short_rows(kind, keys + t * pitch, q[h], scores[h, t : t + EIGHT])
    for h in range(G):
        dots(kind, keys + eights * pitch, q[h], D, scores[h, eights:n])
        weights, most, total = scores[h, :n], f4(-np.inf), f4(0)
        for t in range(n):
            weights[t] *= scale
            most = max(most, weights[t])
        for t in range(n):
            weights[t] = exp(weights[t] - most)
            total += weights[t]
        sums[h, 0], sums[h, 1] = most, total
        out[h] = f4(0)
    for t in range(0, eights, EIGHT):
        for h in range(G):
            if kind == F32:
                add_values_f32(scores[h, t:].ctypes.data, values + t * pitch, D, out[h].ctypes.data)
            elif kind == F16:
                add_values_f16(scores[h, t:].ctypes.data, values + t * pitch, D, out[h].ctypes.data)
            else:
                add_values_bf16(scores[h, t:].ctypes.data, values + t * pitch, D, out[h].ctypes.data)
    for h in range(G):
        add_scaled_rows(kind, values + eights * pitch, scores[h, eights:n], out[h], D)


@compiled
def together(sums, parts, mixed):
    """Of each head the pieces of a text, (n, 2) and (n, D), put together: flash decoding's rule. -> mixed (D,)"""
    most, total = f4(-np.inf), f4(0)
    for c in range(sums.shape[0]):
        most = max(most, sums[c, 0])
    mixed[:] = f4(0)
    for c in range(sums.shape[0]):
        if sums[c, 1] != f4(0):  # NaN, too
            share = exp(sums[c, 0] - most)
            total += share * sums[c, 1]
            for j in range(mixed.size):
                mixed[j] += share * parts[c, j]
    for j in range(mixed.size):
        mixed[j] /= total
