"""course.checks.compare: what is equal, and how a difference is told."""

import re

import numpy as np
import pytest
import torch

from llamamm.course.checks.compare import difference, text_of


class Agreeable:
    """Equal to everything, and not to be printed."""

    def __eq__(self, other):
        return True

    __hash__ = None

    def __repr__(self):
        raise ValueError("no")


@pytest.mark.parametrize(
    ("expected", "got", "message"),
    [
        (1.0, 1.00001, None),
        (1.0, torch.tensor(1.0), None),
        (1.0, 1.1, "should be 1, got 1.1"),
        (1, "1", "should be a number"),
        (True, 1, None),
        (True, np.True_, None),
        (True, torch.tensor(True), None),
        (True, torch.tensor([True, False]), "should be True"),
        (True, np.array([1, 0]), "should be True"),
        (1.0, np.float32(1), None),
        (1, np.int64(1), None),
        (float("nan"), float("nan"), None),
        (1.0, float("nan"), "should be 1, got nan"),
        (1, 10**400, "should be 1, got inf"),
        ((1, 2), torch.Size([1, 2]), None),
        ([1], [1, 2], "1 part, got 2"),
        (torch.ones(2), torch.ones(2, device="meta"), "dense tensor on cpu, got a dense one on meta"),
        (torch.ones(2), torch.ones(2).to_sparse(), "dense tensor on cpu, got a sparse_coo one on cpu"),
        ([1, 2], [1, 2], None),
        ([1, 2], (1, 2), "list.*tuple"),
        ([1, 2], [1], "2 parts, got 1"),
        ({"a": torch.ones(1)}, {"a": torch.zeros(1)}, r"^\['a'\]\[0\] should be 1, got 0"),
        ([[1, 2]], [[1, 3]], r"^at \[0\]\[1\]: the result should be 2, got 3"),
        ({"a": 1}, {"b": 1}, "keys"),
        ("ab", "ba", "'ab'.*'ba'"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), r"\[1\] should be 2, got 3"),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([float("nan"), 1.0]), None),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([7.0, 1.0]), "0 of 2 numbers are NaN, 1 should be"),
        (torch.tensor(float("-inf")), torch.tensor(float("-inf")), None),
        (torch.tensor([float("-inf"), 0.0]), torch.tensor([0.0, 0.0]), r"\[0\] should be -inf, got 0"),
    ],
)
def test_differences_in_words(expected, got, message):
    problem = difference(expected, got, 1e-4)
    assert problem is None if message is None else re.search(message, problem)


def test_an_object_that_claims_to_equal_everything_is_not_believed():
    for expected in ("text", True, None, 1.0, [1], {"a": 1}, torch.ones(1)):
        assert difference(expected, Agreeable(), 1e-4), expected


@pytest.mark.parametrize(
    ("expected", "got", "message"),
    [
        (torch.tensor([1.0, 2]), torch.tensor([3.0, float("nan")]), None),
        (torch.tensor([1, 2]), torch.tensor([3, 4]), None),
        (torch.tensor([1.0, 2]), torch.tensor([1.0]), "shape should be (2,), got (1,)"),
        (("a", 1), ("b", 2), None),
        (("a", 1), ("b", "2"), "at [1]: the result should be a number, got '2' (str)"),
        ({"a": True}, {"a": False}, None),
        (["a"], ["a", "b"], "should have 1 part, got 2"),
        ("a", None, "should be 'a' (str), got None"),
    ],
)
def test_an_infinite_tolerance_compares_the_form_alone(expected, got, message):
    found = difference(expected, got, float("inf"))
    assert found is None if message is None else message in found


@pytest.mark.parametrize(("expected", "got", "told"), [
    (5_636_096, 5_636_097, "should be 5636096, got 5636097"), (1.0, 2.0, "should be 1, got 2"),
    (1.0, 1.0 + 1e-8, "should be 1, got 1.00000001"),
    (torch.tensor([7_000_000]), torch.tensor([7_000_001]), "[0] should be 7000000, got 7000001"),
])  # fmt: skip
def test_two_numbers_that_differ_are_told_with_enough_digits(expected, got, told):
    assert told in difference(expected, got, 0.0)


@pytest.mark.parametrize(
    "use",
    [lambda x: x - x.max(-1), lambda x: x.min(dim=0).exp(), lambda x: torch.exp(x.max(-1)), lambda x: x - x.topk(1),
     lambda x: -x.sort()],
)  # fmt: skip
def test_what_max_gives_along_an_axis_is_explained_where_it_is_taken_for_a_tensor(use):
    with pytest.raises((TypeError, AttributeError)) as raised:
        use(torch.ones(2, 3))
    assert "two things, values and indices: take its .values" in text_of(raised.value)


def test_other_errors_are_left_as_they_are():
    with pytest.raises(RuntimeError) as raised:
        torch.ones(2) + torch.ones(3)
    assert text_of(raised.value) == " ".join(str(raised.value).split())


def test_what_max_gives_along_an_axis_is_explained_where_it_is_returned():
    message = difference(torch.ones(2), torch.ones(2, 3).max(-1), None)
    assert message.endswith("got what torch.max returns: along an axis, it gives two things, values and indices: take "
                            "its .values")  # fmt: skip
