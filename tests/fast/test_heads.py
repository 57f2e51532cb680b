"""fast.heads and fast.rows: attention in pieces, and sums of eight rows, against PyTorch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba")
from llamamm.fast import forms, heads, kernels, rows  # noqa: E402

FORMS = {torch.float32: forms.F32, torch.float16: forms.F16, torch.bfloat16: forms.BF16}


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", FORMS)
@pytest.mark.parametrize("shape", [(16, 64), (19, 576), (8, 80), (9, 48), (64, 7)])
def test_long_rows(dtype, shape):
    weight, x = drawn(*shape).to(dtype), drawn(shape[1], seed=1)
    out = np.full(shape[0], np.nan, np.float32)
    rows.long_rows(FORMS[dtype], weight.data_ptr(), x.numpy(), out)
    torch.testing.assert_close(torch.from_numpy(out), weight.float() @ x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", FORMS)
@pytest.mark.parametrize("size", [64, 16, 20, 128])
@pytest.mark.parametrize("n, begin, cuts", [(1, 0, []), (8, 0, []), (37, 3, [16]), (100, 0, [40, 72]), (50, 49, [])])
def test_attention_in_pieces(dtype, size, n, begin, cuts):
    G, kind = 3, FORMS[dtype]
    q, keys, values = drawn(G, size), drawn(n, size, seed=1).to(dtype), drawn(n, size, seed=2).to(dtype)
    ends = [begin, *cuts, n]
    sums, parts = np.empty((len(ends) - 1, G, 2), np.float32), np.empty((len(ends) - 1, G, size), np.float32)
    for c, (first, last) in enumerate(zip(ends, ends[1:], strict=False)):
        heads.attended(q.numpy(), kind, keys.data_ptr(), values.data_ptr(), first, last, np.empty((G, n), np.float32),
                       sums[c], parts[c])  # fmt: skip
    mixed = np.empty((G, size), np.float32)
    for h in range(G):
        heads.together(sums[:, h], parts[:, h], mixed[h])
    seen = slice(begin, n)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, keys[seen].float(), values[seen].float())
    torch.testing.assert_close(torch.from_numpy(mixed), wanted, atol=2e-6, rtol=1e-5)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 200_000), st.integers(1, 64))
def test_a_text_is_cut_into_few_pieces(n_tokens, n_workers):
    chunk = heads.chunk_of(n_tokens, n_workers)
    pieces = (n_tokens - 1) // chunk + 1
    assert chunk >= heads.CHUNK and pieces <= 4 * n_workers
    assert pieces == 1 or pieces * chunk < n_tokens + chunk
    assert heads.chunk_of(n_tokens + 1, n_workers) >= chunk  # room for a long text is room for a shorter one


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 50), st.integers(1, 9), st.randoms(use_true_random=False))
def test_each_piece_is_taken_once_whoever_is_late(n, n_workers, random):
    counters = np.zeros(kernels.n_counts(0, n_workers), np.int64)
    taken, working = [], random.sample(range(n_workers), random.randint(1, n_workers))  # the others never come
    while working:
        w = random.choice(working)
        piece = kernels.next_of(n, w, n_workers, counters.ctypes.data)
        if piece == n:
            working.remove(w)
        else:
            taken.append(piece)
    assert sorted(taken) == list(range(n))


def test_what_a_worker_takes_lies_side_by_side():
    counters = np.zeros(kernels.n_counts(0, 2), np.int64)
    turns = [[kernels.next_of(10, w, 2, counters.ctypes.data) for w in (0, 1)] for _ in range(5)]
    assert turns == [[0, 5], [1, 6], [2, 7], [3, 8], [4, 9]]
