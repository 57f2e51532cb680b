"""One token through all blocks, compiled: the loops that `TransformerBlock` is made of, written as loops.

    x (B, C) -> blocks -> x (B, C)        one new token for each of B rows, keys and values of those before in a cache

Decoding is some hundred small products a token, and in PyTorch each costs as much for being called as for its numbers.
Here a token is one call. numba compiles these functions with LLVM for the machine they run on, once, and keeps them.

Weights stay where the model has them: kernels are handed addresses, so nothing is copied, and what is merged or
trained is what is read. Workers, a thread each, make the same call; they share each product, tile by tile, and wait
for each other after it. Built in notebook 19.
"""

from __future__ import annotations

import sys

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from llamamm.fast.forms import F32, INT4, INT8, SUMS, add_scaled, compiled, dot, exp, f4, store
from llamamm.fast.heads import attended, chunk_of, together, turned
from llamamm.fast.quantized import LINE, TILE
from llamamm.fast.rows import long_rows
from llamamm.fast.whole import UNIT, rounded, tile_int4, tile_int8

# What the table says of each linear, int64: where it is and in what form, and an adapter beside it.
WEIGHT, KIND, SCALES, GROUP, N_OUT, N_IN, LORA_A, LORA_B, RANK, N_FIELDS = range(10)
Q, K, V, OUT, GATE, UP, DOWN, N_LINEARS = range(8)  # of a block, in the table's order
STAGES = 5  # of a block, with tiles to share: queries, keys and values; attention; out; gate and up; down
GIVEN_UP = 2**62  # more arrivals than there ever are
PATIENCE = 4000  # looks at a counter, some microseconds, before a waiting thread gives way
# The system's own; Windows calls it otherwise, and waits there go on looking.
give_way = types.ExternalFunction("sched_yield", types.int32()) if sys.platform != "win32" else njit(lambda: 0)
call = njit(fastmath=SUMS, cache=True, nogil=True)  # what Python calls, from each worker's thread


# ---- a linear ----


@compiled
def prepared(linears, x, inner, whole):
    """What linears that read the same x need of it: A x of each adapter beside them, and x in 16 bits.

    linears: (M, N_FIELDS); x (B, C) -> inner (M, B, r) and whole (numbers, scales and sums, a row
    for each of x, and room for 64 sums).
    """
    numbers, scales, sums, _ = whole
    any_whole = False
    for m in range(linears.shape[0]):
        linear = linears[m]
        if linear[KIND] == INT8 or linear[KIND] == INT4:
            any_whole = True
        for b in range(x.shape[0]):
            for i in range(linear[RANK]):
                inner[m, b, i] = dot(F32, linear[LORA_A] + 4 * i * linear[N_IN], x[b], linear[N_IN])
    if any_whole:
        for b in range(x.shape[0]):
            rounded(x[b], numbers[b], scales[b, : x.shape[1] // UNIT], sums[b])


def n_counts(n_blocks: int, n_workers: int) -> int:
    """How many int64 the counters of a step take, the head's last: each has a line of memory of its own."""
    return LINE // 8 * (1 + (STAGES * n_blocks + 1) * n_workers)


@compiled
def n_tiles(linear):
    return (linear[N_OUT] + TILE - 1) // TILE


@compiled
def some_rows(linear, tile, x, whole, inner, scale, out):
    """64 rows of W x, or the last few, and of scale B (A x). x (B, C) -> out (B, N), in place."""
    kind, n, first = linear[KIND], linear[N_IN], tile * TILE
    last = min(first + TILE, linear[N_OUT])
    numbers, scales, sums, part = whole
    for b in range(x.shape[0]):
        if kind == INT8 or kind == INT4:
            of_tile = linear[SCALES] + 2 * first * (n // linear[GROUP])
            x_scales = scales[b, : n // UNIT]
            if kind == INT8:
                tile_int8(linear[WEIGHT] + first * n, of_tile, linear[GROUP], numbers[b], x_scales, sums[b], part,
                          out[b, first:last])
            else:
                tile_int4(linear[WEIGHT] + first * n // 2, of_tile, linear[GROUP], numbers[b], x_scales, sums[b], part,
                          out[b, first:last])
        else:
            long_rows(kind, linear[WEIGHT] + first * n * (4 if kind == F32 else 2), x[b], out[b, first:last])
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
    A count of GIVEN_UP lets everyone through: who should have come never will.
    """
    if n_workers == 1:
        return
    all_here = (count_up(counter) // n_workers + 1) * n_workers
    looks = 0
    while current(counter) < min(all_here, GIVEN_UP):
        looks += 1
        if looks > PATIENCE:
            give_way()


@compiled
def next_of(n, w, n_workers, counters):
    """The next of n pieces that nobody has taken yet: first of this worker's own run, then of the others'. -> its
    number, n where there is none. counters: address of a count for each worker, LINE bytes apart.

    What one worker reads lies side by side, which memory hands out up to a quarter faster than every second piece; who
    is late is helped.
    """
    for k in range(n_workers):
        owner = (w + k) % n_workers
        piece = owner * n // n_workers + count_up(counters + LINE * owner)
        if piece < (owner + 1) * n // n_workers:
            return piece
    return n


@call
def project(w, n_workers, linear, x, out, whole, counters):
    """x Wᵀ, a worker's part. linear: one row of the table, without an adapter; x (B, C) -> out (B, N), in place.
    whole: room for x in 16 bits, of all workers; counters: as of `through_blocks`, for one stage."""
    own = whole[0][w], whole[1][w], whole[2][w], whole[3][w, :TILE]
    prepared(linear.reshape(1, -1), x, x.reshape(1, *x.shape), own)
    rows_of_worker(w, n_workers, linear, x, own, x, f4(0), out, counters.ctypes.data + LINE)
    wait_for_all(counters.ctypes.data, n_workers)


@compiled
def rows_of_worker(w, n_workers, linear, x, whole, inner, scale, out, counters):
    """Tile after tile, as long as there are any. Arguments as of `some_rows` and `next_of`."""
    n = n_tiles(linear)
    tile = next_of(n, w, n_workers, counters)
    while tile < n:
        some_rows(linear, tile, x, whole, inner, scale, out)
        tile = next_of(n, w, n_workers, counters)


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


@call
def run_blocks(w, n_workers, x, table, lora_scales, norms, shape, eps, cache, begins, cos, sin, shared, private, whole,
               counters):  # fmt: skip
    """A worker's part of the blocks shape.first up to shape.last of all. x (B, C) is changed in place; the rest as of
    `through_blocks`."""
    private[0][w][:] = x
    wait_for_all(counters.ctypes.data, n_workers)  # before one writes to x
    through_blocks(w, n_workers, table, lora_scales, norms, shape, eps, cache, begins, cos, sin, shared, private, whole,
                   counters)  # fmt: skip
    if w == 0:
        x[:] = private[0][w]
    wait_for_all(counters.ctypes.data, n_workers)  # nobody reads any more what the next call may write


@call
def run_step(w, n_workers, ids, ends, table, lora_scales, norms, shape, eps, cache, begins, cos, sin, shared, private,
             whole, counters, scores):  # fmt: skip
    """A worker's part of a whole step, from ids (B,) to scores (B, V), in place.

    ends: addresses and kinds of the embeddings and of the last norm's weight, and the head, a row of the table. Of
    counters the last are for the head's tiles. The rest as of `through_blocks`.
    """
    rows, kind, last_norm, last_kind, head = ends
    x, normal = private[0][w], private[1][w]
    for b in range(x.shape[0]):
        x[b] = f4(0)
        add_scaled(kind, rows + ids[b] * x.shape[1] * (4 if kind == F32 else 2), f4(1), x[b], x.shape[1])
    through_blocks(w, n_workers, table, lora_scales, norms, shape, eps, cache, begins, cos, sin, shared, private, whole,
                   counters)  # fmt: skip
    normed(x, last_norm, last_kind, eps, normal)
    own_whole = whole[0][w], whole[1][w], whole[2][w], whole[3][w, :TILE]
    prepared(head.reshape(1, -1), normal, private[2][w], own_whole)
    counter = counters.ctypes.data + LINE * (1 + STAGES * table.shape[0] * n_workers)
    rows_of_worker(w, n_workers, head, normal, own_whole, x, f4(0), scores, counter)
    wait_for_all(counters.ctypes.data, n_workers)


@compiled
def through_blocks(w, n_workers, table, lora_scales, norms, shape, eps, cache, begins, cos, sin, shared, private, whole,
                   counters):  # fmt: skip
    """A worker's part of some blocks, one token for each row: its own x all along, and of each product the tiles that
    it is in time for.

    table (L, 7, N_FIELDS) int64, lora_scales (L, 7); norms (L, 3): addresses of two norms, and which layer of the cache
    is the block's; cache: addresses of keys and values (L, B, K, S, D), S, and the tokens in it; begins (B,): where
    each row's text begins; cos, sin (B, D): of this token; shared: what all workers write and read; private, whole: a
    row for each worker, the first of private x (B, C), changed in place; counters (see `n_counts`): a count of
    arrivals, and of what each worker's run has given away in each stage of each block, zeros at first.
    """
    H, n_kv, D, first_layer, last_layer, kind, norm_kind = shape
    keys, values, n_max, length = cache
    qkv, part_sums, parts, gate, up, out = shared
    own_x, normal, inner, turned_q, turned_k, scores, mixed = (
        private[0][w], private[1][w], private[2][w], private[3][w], private[4][w], private[5][w], private[6][w])
    own_whole = whole[0][w], whole[1][w], whole[2][w], whole[3][w, :TILE]
    B = own_x.shape[0]
    counter = counters.ctypes.data
    width = 4 if kind == F32 else 2
    n_q, n_k, per_kv, chunk = H * D, n_kv * D, H // n_kv, chunk_of(length + 1, n_workers)
    n_chunks = length // chunk + 1
    for layer in range(first_layer, last_layer):
        linears, scales = table[layer], lora_scales[layer]
        stage = counter + LINE * (1 + STAGES * layer * n_workers)
        # Queries, keys and values.
        normed(own_x, norms[layer, 0], norm_kind, eps, normal)
        prepared(linears[Q : V + 1], normal, inner, own_whole)
        tiles_q, tiles_k = n_tiles(linears[Q]), n_tiles(linears[K])
        n = tiles_q + 2 * tiles_k
        tile = next_of(n, w, n_workers, stage)
        while tile < n:
            if tile < tiles_q:
                m, first, own_tile = Q, 0, tile
            elif tile < tiles_q + tiles_k:
                m, first, own_tile = K, n_q, tile - tiles_q
            else:
                m, first, own_tile = V, n_q + n_k, tile - tiles_q - tiles_k
            some_rows(linears[m], own_tile, normal, own_whole, inner[m], scales[m], qkv[:, first:])
            tile = next_of(n, w, n_workers, stage)
        wait_for_all(counter, n_workers)
        # Attention: the heads that share a key, over a chunk of the text. Who has the last chunk stores the new token.
        stage, n = stage + LINE * n_workers, B * n_kv * n_chunks
        task = next_of(n, w, n_workers, stage)
        while task < n:
            b, g, c = task // (n_kv * n_chunks), task // n_chunks % n_kv, task % n_chunks
            at = ((norms[layer, 2] * B + b) * n_kv + g) * n_max * D * width
            first, last = g * per_kv, (g + 1) * per_kv
            for h in range(per_kv):
                turned(qkv[b, (first + h) * D : (first + h + 1) * D], D, cos[b], sin[b], turned_q[h])
            if c == n_chunks - 1:
                turned(qkv[b, n_q + g * D : n_q + (g + 1) * D], D, cos[b], sin[b], turned_k)
                store(kind, keys + at + length * D * width, turned_k, D)
                store(kind, values + at + length * D * width, qkv[b, n_q + n_k + g * D : n_q + n_k + (g + 1) * D], D)
            begin, end = max(c * chunk, begins[b]), min((c + 1) * chunk, length + 1)
            attended(turned_q, kind, keys + at, values + at, begin, max(begin, end), scores,
                     part_sums[b, c, first:last], parts[b, c, first:last])
            task = next_of(n, w, n_workers, stage)
        wait_for_all(counter, n_workers)
        for b in range(B):
            for h in range(H):
                together(part_sums[b, :n_chunks, h], parts[b, :n_chunks, h], mixed[b, h * D : (h + 1) * D])
        prepared(linears[OUT : OUT + 1], mixed, inner, own_whole)
        stage += LINE * n_workers
        rows_of_worker(w, n_workers, linears[OUT], mixed, own_whole, inner[0], scales[OUT], out, stage)
        wait_for_all(counter, n_workers)
        added(own_x, out)
        # SwiGLU: a tile of gate and the same of up, and what they make.
        normed(own_x, norms[layer, 1], norm_kind, eps, normal)
        prepared(linears[GATE : UP + 1], normal, inner, own_whole)
        stage, n = stage + LINE * n_workers, n_tiles(linears[GATE])
        tile = next_of(n, w, n_workers, stage)
        while tile < n:
            some_rows(linears[GATE], tile, normal, own_whole, inner[0], scales[GATE], gate)
            some_rows(linears[UP], tile, normal, own_whole, inner[1], scales[UP], up)
            first, last = tile * TILE, min((tile + 1) * TILE, linears[GATE, N_OUT])
            for b in range(B):
                gated(gate[b, first:last], up[b, first:last])
            tile = next_of(n, w, n_workers, stage)
        wait_for_all(counter, n_workers)
        prepared(linears[DOWN : DOWN + 1], gate, inner, own_whole)
        stage += LINE * n_workers
        rows_of_worker(w, n_workers, linears[DOWN], gate, own_whole, inner[0], scales[DOWN], out, stage)
        wait_for_all(counter, n_workers)
        added(own_x, out)


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
