"""evals.figures: values by hand, intervals by groups, and two models on the same items."""

import numpy as np
import pytest

from llamamm.errors import InputError
from llamamm.evals.figures import Figure


def share(right, groups=None, **options):
    return Figure.ratio("right", right, groups=groups or list(range(len(right))), better="more", **options)


def test_a_share_and_a_rate_by_hand():
    assert share([1, 0, 1, 1]).value == 0.75 and share([1, 0]).unit == "share"
    errors = Figure.ratio("words wrong", [1, 3], [10, 2], groups=["a", "b"], better="less")
    assert errors.value == pytest.approx(4 / 12)
    assert errors.interval.low == pytest.approx(0.1) and errors.interval.high == pytest.approx(1.5)  # aa, bb


def test_any_function_of_sums_is_a_figure():
    bits = np.array([[8.0, 4], [16, 4]])
    perplexity = Figure("perplexity", bits, lambda sums: 2 ** (sums[..., 0] / sums[..., 1]), groups=[0, 1])
    assert perplexity.value == pytest.approx(2 ** (24 / 8))
    assert (perplexity.interval.low, perplexity.interval.high) == (pytest.approx(4), pytest.approx(16))


def test_items_of_one_group_are_one_item():
    right = [1] * 50 + [0] * 50
    alone, together = share(right).interval, share(right, ["a"] * 50 + ["b"] * 50).interval
    assert 0.15 < alone.high - alone.low < 0.25 and (together.low, together.high) == (0, 1)


def test_where_all_are_right_or_all_are_wrong_the_interval_still_has_a_width():
    none, every = share([0] * 20).interval, share([1] * 20).interval
    assert none.low == none.value == 0 and none.high == pytest.approx(0.1611, abs=1e-4)  # 1.96² / (20 + 1.96²)
    assert every.high == every.value == 1 and every.low == pytest.approx(1 - none.high)
    assert share([0] * 20, [0, 1] * 10).interval.high == pytest.approx(1.96**2 / (2 + 1.96**2))  # two groups
    assert Figure.ratio("by chance", [0.5] * 9, groups=list(range(9))).interval.high == 0.5


def test_two_models_are_compared_item_by_item():
    rng = np.random.default_rng(0)
    hard = rng.random(400) < 0.5  # both fail on these
    one, other = np.where(hard, 0, 1), np.where(hard, 0, rng.random(400) < 0.9)
    one, other = share(one.tolist()), share(other.tolist())
    found = one.against(other)
    assert found.verdict == "better" and other.against(one).verdict == "worse"
    assert found.value == pytest.approx(one.value - other.value)
    assert one.interval.low < other.interval.high  # the two intervals overlap: alone they would not tell
    assert one.against(one).verdict == "can't tell" and one.against(one).low == one.against(one).high == 0


def test_fewer_errors_are_better():
    some, many = (Figure.ratio("wrong", [n] * 30, [10] * 30, groups=list(range(30)), better="less") for n in (1, 4))
    assert some.against(many).verdict == "better" and some.against(many).value == pytest.approx(-0.3)


def test_what_does_not_fit_is_told():
    with pytest.raises(InputError, match="0 items"):
        share([])
    with pytest.raises(InputError, match="2 items in 1 groups"):
        share([1, 1], ["a"])
    with pytest.raises(InputError, match="same items"):
        share([1, 1]).against(share([1, 1], ["a", "b"]))


def test_values_are_written_in_their_unit():
    assert share([1, 0]).written(0.5) == "50.0%"
    assert Figure.ratio("bits a byte", [1], [2], groups=[0], unit="number").written(0.12345) == "0.123"
