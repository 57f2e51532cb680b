"""course.checks.inputs: an answer that changes what it is given is told which argument."""

import torch

from llamamm.course.checks.inputs import inputs_stay


def told(answer):
    prop = inputs_stay(("x", "n", "y"), lambda _: [(torch.tensor([1.0, -torch.inf]), 3, torch.ones(2).bool())])
    (case,) = prop.inputs()
    return prop.problem(None, prop.result(answer, case), case)


def test_inputs_that_stay_are_fine():
    assert told(lambda x, n, y: x * n + y) is None


def test_the_argument_that_is_changed_is_named():
    assert "your function changes `x`" in told(lambda x, n, _y: x.mul_(n))
    assert "your function changes `y`" in told(lambda _x, _n, y: y.logical_not_())
