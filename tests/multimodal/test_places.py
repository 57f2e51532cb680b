"""multimodal.places: counts that match, padding, the span of words that see an image."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamm.errors import InputError
from llamamm.multimodal.places import image_spans, pad_right, require_matching


def test_places_that_match_by_hand():
    ids = torch.tensor([[1, 9, 9], [9, 1, 1]])
    assert require_matching(ids, 9, [2, 1], "image").tolist() == [[False, True, True], [True, False, False]]
    assert not require_matching(ids, 8, [], "audio").any()


def test_an_image_does_not_lie_in_two_prompts():  # 1 + 3 places for two images of 2: the sums agree
    with pytest.raises(InputError, match="prompt 0 holds 1 place for .*each image takes 2.*cut"):
        require_matching(torch.tensor([[1, 1, 9], [9, 9, 9]]), 9, [2, 2], "image")


@pytest.mark.parametrize("n", [0, 2, 4])
def test_places_that_do_not_match(n):  # fault 22, with both counts
    with pytest.raises(InputError, match=f"3 places for image features, but {n} were given.*cut"):
        require_matching(torch.tensor([[1, 9, 9], [9, 1, 1]]), 9, [1] * n, "image")


def test_one_is_counted_as_one():
    ids = torch.tensor([[1, 9, 9]])
    for kind in ("image", "audio"):
        with pytest.raises(InputError, match=f"2 places for {kind} features, but 1 was given.*or one {kind} left out"):
            require_matching(ids, 9, [1], kind)
    with pytest.raises(InputError, match="1 place for image features, but 2 were given"):
        require_matching(ids, 1, [2], "image")


@settings(max_examples=30)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_pad_right(lengths):
    rows = [torch.randn(n, 3) for n in lengths]
    batch, real = pad_right(rows)
    assert batch.shape == (len(rows), max(lengths), 3) and real.shape == batch.shape[:2]
    for b, row in enumerate(rows):
        assert torch.equal(batch[b][real[b]], row) and real[b, : len(row)].all()
        assert batch[b, len(row) :].eq(0).all()


def test_image_spans_by_hand():
    I = 9  # noqa: E741
    assert image_spans([1, 2, 3], I) == []
    assert image_spans([I], I) == [(0, 1)]
    assert image_spans([1, I, 2, 3, I, 4], I) == [(1, 4), (4, 6)]
    assert image_spans([I, I, 2, I, 3], I) == [(0, 3), (1, 3), (3, 5)]  # two in a row are seen together
    assert image_spans([1, I, I, I], I) == [(1, 4), (2, 4), (3, 4)]


@given(st.lists(st.sampled_from([7, 9]), max_size=20))
def test_image_spans_are_what_they_say(ids):
    spans = image_spans(ids, 9)
    assert [begin for begin, _ in spans] == [i for i, token in enumerate(ids) if token == 9]
    for begin, end in spans:
        run = begin  # the last image of the run that begins here
        while run + 1 < len(ids) and ids[run + 1] == 9:
            run += 1
        following = [i for i in range(run + 1, len(ids)) if ids[i] == 9]
        assert end == (following[0] if following else len(ids))
