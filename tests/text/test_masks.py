"""text.masks: masks by hand, no empty row, padding that hides nothing else, texts that share a row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamamm.errors import InputError
from llamamm.text.masks import build_mask, causal_mask, packed_mask, packed_positions

T, F = True, False


def test_causal_by_hand():
    assert causal_mask(3).tolist() == [[T, F, F], [T, T, F], [T, T, T]]


def test_offset_by_hand():
    assert causal_mask(2, start=2).tolist() == [[T, T, T, F], [T, T, T, T]]


def test_padding_by_hand():
    mask = build_mask(3, padding=torch.tensor([[F, T, T], [T, T, T]]))
    assert mask.shape == (2, 1, 3, 3)
    assert mask[0, 0].tolist() == [[T, F, F], [F, T, F], [F, T, T]]  # the padding row sees itself alone
    assert mask[1, 0].tolist() == [[T, F, F], [T, T, F], [T, T, T]]


def test_none_only_where_the_kernel_knows():
    assert build_mask(5) is None
    assert build_mask(1, start=7) is None
    assert build_mask(2, start=7).shape == (1, 1, 2, 9)


@given(pads=st.lists(st.integers(0, 6), min_size=1, max_size=4), start=st.integers(0, 5), n=st.integers(1, 5))
def test_no_row_is_empty_and_no_future_or_padding_is_seen(pads, start, n):
    total = start + n
    padding = torch.stack([torch.arange(total) >= min(p, total - 1) for p in pads])
    mask = build_mask(n, start=start, padding=padding)[:, 0]  # (B, T, S)
    assert mask.any(dim=-1).all()
    real_rows = padding[:, start:]
    assert not (mask & ~padding[:, None, :])[real_rows].any()
    assert not (mask & ~causal_mask(n, start=start)).any()


@pytest.mark.parametrize("padding", [torch.ones(2, 3), torch.ones(2, 4).bool(), torch.ones(3).bool()])
def test_padding_that_does_not_fit_is_refused(padding):
    with pytest.raises(InputError, match=r"\(B, 3\)"):
        build_mask(2, start=1, padding=padding)


def test_packed_mask_by_hand():
    mask = packed_mask(torch.tensor([[1, 1, 2, 0], [1, 1, 1, 1]]))
    assert mask.shape == (2, 1, 4, 4)
    assert mask[0, 0].tolist() == [[T, F, F, F], [T, T, F, F], [F, F, T, F], [F, F, F, T]]
    assert mask[1, 0].tolist() == causal_mask(4).tolist()


def test_packed_positions_by_hand():
    segments = torch.tensor([[1, 1, 1, 2, 2, 3], [7, 4, 4, 0, 0, 0], [1, 1, 2, 2, 1, 1]])
    assert packed_positions(segments).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 0, 1, 2], [0, 1, 0, 1, 0, 1]]


ROWS_OF_TEXTS = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=5), min_size=1, max_size=3)


@given(rows=ROWS_OF_TEXTS)
def test_each_text_of_a_packed_row_has_its_own_causal_mask_and_positions(rows):
    width = max(map(sum, rows))
    segments = torch.zeros(len(rows), width, dtype=torch.int64)
    for row, lengths in enumerate(rows):
        numbers = torch.arange(1, len(lengths) + 1).repeat_interleave(torch.tensor(lengths))
        segments[row, : len(numbers)] = numbers
    mask, positions = packed_mask(segments)[:, 0], packed_positions(segments)
    for row, lengths in enumerate(rows):
        blocks = [*lengths, width - sum(lengths)]  # the filling, too, sees itself alone: no row is empty
        assert torch.equal(mask[row], torch.block_diag(*(causal_mask(n) for n in blocks if n)).bool())
        assert positions[row].tolist() == [i for n in blocks for i in range(n)]
