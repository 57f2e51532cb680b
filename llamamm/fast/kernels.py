"""One token through all blocks, compiled: the loops that `TransformerBlock` is made of, written as loops.

    x (B, C) -> blocks -> x (B, C)        one new token for each of B rows, keys and values of those before in a cache

Decoding is some hundred small products a token, and in PyTorch each costs as much for being called as for its numbers.
Here a token is one call. numba compiles these functions with LLVM for the machine they run on, once, and keeps them.

Weights stay where the model has them: kernels are handed addresses, so nothing is copied, and what is merged or
trained is what is read. Workers share each product, tile by tile, and wait for each other after it.
Built in notebook 19.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from llamamm.fast.forms import (
    F32,
    INT4,
    INT8,
    SUMS,
    TILE,
    add_scaled,
    compiled,
    dot,
    dots,
    exp,
    f4,
    store,
    tile_int4,
    tile_int8,
)

# What the table says of each linear, int64: where it is and in what form, and an adapter beside it.
WEIGHT, KIND, SCALES, GROUP, N_OUT, N_IN, LORA_A, LORA_B, RANK, N_FIELDS = range(10)
Q, K, V, OUT, GATE, UP, DOWN, N_LINEARS = range(8)  # of a block, in the table's order
PATIENCE = 4000  # looks at a counter, some microseconds, before a waiting thread gives way
# The system's own; Windows calls it otherwise, and waits there go on looking.
give_way = types.ExternalFunction("sched_yield", types.int32()) if sys.platform != "win32" else njit(lambda: 0)


# ---- a linear ----


@compiled
def beside(linear, x, inner):
    """A x of an adapter that stands beside a linear. x (B, C) -> inner (B, r), in place."""
    for b in range(x.shape[0]):
        for i in range(linear[RANK]):
            inner[b, i] = dot(F32, linear[LORA_A] + 4 * i * linear[N_IN], x[b], linear[N_IN])


@compiled
def n_tiles(linear):
    return (linear[N_OUT] + TILE - 1) // TILE


@compiled
def some_rows(linear, tile, x, inner, scale, out, part):
    """64 rows of W x, or the last few, and of scale B (A x). x (B, C) -> out (B, N), in place. part: room for 64."""
    kind, n, first = linear[KIND], linear[N_IN], tile * TILE
    last = min(first + TILE, linear[N_OUT])
    for b in range(x.shape[0]):
        if kind == INT8:
            tile_int8(linear[WEIGHT] + first * n, linear[SCALES] + 2 * first * (n // linear[GROUP]), linear[GROUP],
                      x[b], n, out[b, first:last], part)
        elif kind == INT4:
            tile_int4(linear[WEIGHT] + first * n // 2, linear[SCALES] + 2 * first * (n // linear[GROUP]),
                      linear[GROUP], x[b], n, out[b, first:last], part)
        else:
            dots(kind, linear[WEIGHT] + first * n * (4 if kind == F32 else 2), x[b], n, out[b, first:last])
        r = linear[RANK]
        if r > 0:
            for i in range(first, last):
                out[b, i] += scale * dot(F32, linear[LORA_B] + 4 * i * r, inner[b], r)


# ---- many threads ----


@intrinsic
def count_up(_typing, address):  # noqa: ARG001
    """Add one to the int64 at an address, of which all threads know at once. -> what it was"""
    def codegen(_context, builder, _signature, args):
        counter = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.IntType(64)(1), "seq_cst")

    return types.int64(types.int64), codegen


@intrinsic
def current(_typing, address):  # noqa: ARG001
    """The int64 at an address, as it is now."""
    def codegen(_context, builder, _signature, args):
        return builder.load_atomic(builder.inttoptr(args[0], ir.IntType(64).as_pointer()), "acquire", 8)

    return types.int64(types.int64), codegen


@compiled
def wait_for_all(counter, n_workers):
    """Until every worker is here. counter: address of how often workers have been here.

    The others are a microsecond away, or their core has been given to another program: then this one gives way, too.
    """
    if n_workers == 1:
        return
    all_here = (count_up(counter) // n_workers + 1) * n_workers
    looks = 0
    while current(counter) < all_here:
        looks += 1
        if looks > PATIENCE:
            give_way()


@njit(parallel=True, fastmath=SUMS, cache=True, nogil=True)
def project(linear, x, out, n_workers):
    """x Wᵀ. linear: one row of the table, without an adapter; x (B, C) -> out (B, N), in place."""
    parts, counters = np.empty((n_workers, TILE), np.float32), np.zeros(1, np.int64)
    for w in prange(n_workers):
        rows_of_worker(linear, x, x, f4(0), out, parts[w], counters.ctypes.data)


@compiled
def rows_of_worker(linear, x, inner, scale, out, part, counter):
    """Tile after tile, as long as there are any: a worker that is late takes fewer. Arguments as of `some_rows`."""
    tile = count_up(counter)
    while tile < n_tiles(linear):
        some_rows(linear, tile, x, inner, scale, out, part)
        tile = count_up(counter)


# ---- a block ----


@compiled
def normed(x, address, kind, eps, out):
    """RMSNorm of each row, its weight read as it is."""
    n = x.shape[1]
    for b in range(x.shape[0]):
        total = f4(0)
        for j in range(n):
            total += x[b, j] * x[b, j]
        r = f4(1) / np.sqrt(total / f4(n) + eps)
        for j in range(n):
            out[b, j] = f4(0)
        add_scaled(kind, address, r, out[b], n)
        for j in range(n):
            out[b, j] *= x[b, j]


@compiled
def turned(x, D, cos, sin, out):
    """RoPE on one head: each pair of numbers, half a head apart, by its angle. x, cos, sin, out: (D,)."""
    half = D // 2
    for j in range(half):
        a, b = x[j], x[half + j]
        out[j] = a * cos[j] - b * sin[j]
        out[half + j] = b * cos[half + j] + a * sin[half + j]


@compiled
def attended(q, k, v, keys, values, kind, begin, length, D, scores, out):
    """One head over the tokens begin ... length - 1 of its cache, and over the new one. q, k, v, out: (D,); keys,
    values: addresses of (S, D)."""
    pitch, scale, n = D * (4 if kind == F32 else 2), f4(1 / math.sqrt(D)), length - begin
    weights = scores[: n + 1]
    dots(kind, keys + begin * pitch, q, D, weights[:n])
    newest = f4(0)
    for j in range(D):
        newest += q[j] * k[j]
    weights[n] = newest
    most, total = f4(-np.inf), f4(0)
    for t in range(n + 1):
        weights[t] *= scale
        most = max(most, weights[t])
    for t in range(n + 1):
        weights[t] = exp(weights[t] - most)
        total += weights[t]
    for j in range(D):
        out[j] = weights[n] * v[j]
    for t in range(n):
        add_scaled(kind, values + (begin + t) * pitch, weights[t], out, D)
    for j in range(D):
        out[j] /= total


@njit(parallel=True, fastmath=SUMS, cache=True, nogil=True)
def run_blocks(x, table, lora_scales, norms, shape, eps, cache, begins, cos, sin, shared, private):
    """Blocks shape.first up to shape.last of all, one token for each row; x (B, C) is changed in place.

    table (L, 7, N_FIELDS) int64, lora_scales (L, 7); norms (L, 3): addresses of two norms, and which layer of the cache
    is the block's; cache: addresses of keys and values (L, B, K, S, D), S, and the tokens in it; begins (B,): where
    each row's text begins; cos, sin (B, D): of this token; shared: what all workers write and read; private: a row for
    each worker, which are as many as it has rows.
    """
    n_workers = private[0].shape[0]
    counters = np.zeros(1 + 5 * table.shape[0], np.int64)
    for w in prange(n_workers):
        blocks_of_worker(w, n_workers, x, table, lora_scales, norms, shape, eps, cache, begins, cos, sin, shared,
                         private, counters.ctypes.data)


@compiled
def blocks_of_worker(w, n_workers, x, table, lora_scales, norms, shape, eps, cache, begins, cos, sin, shared, private,
                     counter):  # fmt: skip
    """What one of the workers does: its own x all along, and of each product the tiles that it is in time for.

    counter: address of a count of arrivals, and behind it one count of tiles for each of five products of a block.
    """
    H, n_kv, D, first_layer, last_layer, kind, norm_kind = shape
    keys, values, n_max, length = cache
    qkv, mixed, gate, up, out = shared
    own_x, normal, inner, part, turn, scores = (private[0][w], private[1][w], private[2][w], private[3][w],
                                                private[4][w], private[5][w])  # fmt: skip
    B, C = x.shape
    width = 4 if kind == F32 else 2
    n_q, n_k, per_kv = H * D, n_kv * D, H // n_kv
    for b in range(B):
        for j in range(C):
            own_x[b, j] = x[b, j]
    wait_for_all(counter, n_workers)
    for layer in range(first_layer, last_layer):
        linears, scales, tiles = table[layer], lora_scales[layer], counter + 8 * (1 + 5 * layer)
        # Queries, keys and values.
        normed(own_x, norms[layer, 0], norm_kind, eps, normal)
        for m in range(Q, V + 1):
            beside(linears[m], normal, inner[m])
        tiles_q, tiles_k = n_tiles(linears[Q]), n_tiles(linears[K])
        tile = count_up(tiles)
        while tile < tiles_q + 2 * tiles_k:
            if tile < tiles_q:
                some_rows(linears[Q], tile, normal, inner[Q], scales[Q], qkv[:, :n_q], part)
            elif tile < tiles_q + tiles_k:
                some_rows(linears[K], tile - tiles_q, normal, inner[K], scales[K], qkv[:, n_q : n_q + n_k], part)
            else:
                some_rows(linears[V], tile - tiles_q - tiles_k, normal, inner[V], scales[V], qkv[:, n_q + n_k :], part)
            tile = count_up(tiles)
        wait_for_all(counter, n_workers)
        # Attention, a head at a time. Heads that share a key turn it each for itself; the first of them stores it.
        task = count_up(tiles + 8)
        while task < B * H:
            b, h = task // H, task % H
            g = h // per_kv
            v = qkv[b, n_q + n_k + g * D : n_q + n_k + (g + 1) * D]
            turned(qkv[b, h * D : (h + 1) * D], D, cos[b], sin[b], turn[0])
            turned(qkv[b, n_q + g * D : n_q + (g + 1) * D], D, cos[b], sin[b], turn[1])
            at = ((norms[layer, 2] * B + b) * n_kv + g) * n_max * D * width
            attended(turn[0], turn[1], v, keys + at, values + at, kind, begins[b], length, D, scores,
                     mixed[b, h * D : (h + 1) * D])
            if h % per_kv == 0:
                store(kind, keys + at + length * D * width, turn[1], D)
                store(kind, values + at + length * D * width, v, D)
            task = count_up(tiles + 8)
        wait_for_all(counter, n_workers)
        beside(linears[OUT], mixed, inner[OUT])
        rows_of_worker(linears[OUT], mixed, inner[OUT], scales[OUT], out, part, tiles + 16)
        wait_for_all(counter, n_workers)
        added(own_x, out)
        # SwiGLU: a tile of gate and the same of up, and what they make.
        normed(own_x, norms[layer, 1], norm_kind, eps, normal)
        for m in range(GATE, UP + 1):
            beside(linears[m], normal, inner[m])
        tile = count_up(tiles + 24)
        while tile < n_tiles(linears[GATE]):
            some_rows(linears[GATE], tile, normal, inner[GATE], scales[GATE], gate, part)
            some_rows(linears[UP], tile, normal, inner[UP], scales[UP], up, part)
            first, last = tile * TILE, min((tile + 1) * TILE, linears[GATE, N_OUT])
            for b in range(B):
                gated(gate[b, first:last], up[b, first:last])
            tile = count_up(tiles + 24)
        wait_for_all(counter, n_workers)
        beside(linears[DOWN], gate, inner[DOWN])
        rows_of_worker(linears[DOWN], gate, inner[DOWN], scales[DOWN], out, part, tiles + 32)
        wait_for_all(counter, n_workers)
        added(own_x, out)
    if w == 0:
        for b in range(B):
            for j in range(C):
                x[b, j] = own_x[b, j]


@compiled
def added(x, out):
    for b in range(x.shape[0]):
        for j in range(x.shape[1]):
            x[b, j] += out[b, j]


@compiled
def gated(gate, up):
    """silu(gate) * up, in the gate's place."""
    for i in range(gate.size):
        gate[i] *= up[i] / (f4(1) + exp(-gate[i]))


def is_compiled() -> bool:
    """Whether an earlier run has left the compiled code on this machine."""
    return any(Path(run_blocks.stats.cache_path).glob("kernels.run_blocks-*.nbi"))
