"""train.losses: the lean loss equals the plain one, in value and gradients, and never holds the whole table."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llamamm.errors import InputError
from llamamm.train.losses import IGNORE, cross_entropy_sum, plain_cross_entropy_sum


def problem(n, c, v, *, dtype=torch.float32, ignored=0.3, scale=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = (scale * torch.randn(n, c, generator=g)).to(dtype).requires_grad_()
    weight = torch.randn(v, c, generator=g).to(dtype).requires_grad_()
    targets = torch.randint(v, (n,), generator=g)
    targets[torch.rand(n, generator=g) < ignored] = IGNORE
    return hidden, weight, targets


def value_and_gradients(loss_fn, hidden, weight, targets, *, times=1.0, **options):
    hidden, weight = (x.detach().clone().requires_grad_() for x in (hidden, weight))
    loss = loss_fn(hidden, weight, targets, **options)
    (loss * times).backward()
    return loss.detach(), hidden.grad, weight.grad


def relative(a, b):
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def test_by_hand():
    """Two words with scores 0 and ln 3: probabilities 1/4 and 3/4."""
    hidden, weight = torch.tensor([[1.0], [1.0], [1.0]]), torch.tensor([[0.0], [math.log(3)]]).requires_grad_()
    loss = cross_entropy_sum(hidden, weight, torch.tensor([1, 0, IGNORE]))
    assert loss.item() == pytest.approx(math.log(4 / 3) + math.log(4))
    loss.backward()
    assert weight.grad.flatten().tolist() == pytest.approx([2 / 4 - 1, 2 * 3 / 4 - 1])


@settings(max_examples=60)
@given(n=st.integers(0, 40), c=st.integers(1, 9), v=st.integers(1, 30), chunk=st.integers(1, 50),
       ignored=st.sampled_from([0.0, 0.3, 1.0]), scale=st.sampled_from([0.1, 1.0, 30.0]), seed=st.integers(0, 999))
def test_value_and_both_gradients_equal_the_plain_loss(n, c, v, chunk, ignored, scale, seed):
    inputs = problem(n, c, v, dtype=torch.float64, ignored=ignored, scale=scale, seed=seed)
    ours = value_and_gradients(cross_entropy_sum, *inputs, times=0.37, chunk=chunk)
    plain = value_and_gradients(plain_cross_entropy_sum, *inputs, times=0.37)
    for a, b in zip(ours, plain, strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [None, 7, 64, 1000])
def test_fp32_is_as_exact_as_the_plain_loss(chunk):
    inputs = problem(150, 48, 3000)
    ours = value_and_gradients(cross_entropy_sum, *inputs, chunk=chunk)
    plain = value_and_gradients(plain_cross_entropy_sum, *inputs)
    assert max(relative(a, b) for a, b in zip(ours, plain, strict=True)) < 1e-5


def test_gradients_against_finite_differences():
    hidden, weight, targets = problem(6, 3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: cross_entropy_sum(h, w, targets, chunk=4), (hidden, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_lose_nothing_against_the_plain_loss(dtype):
    """Each as far from the exact gradient as the plain way in that type, though chunks are added up."""
    inputs = problem(300, 64, 500, dtype=dtype, scale=0.5)
    exact = value_and_gradients(plain_cross_entropy_sum, *(x.double() for x in inputs[:2]), inputs[2])
    plain = value_and_gradients(plain_cross_entropy_sum, *inputs)
    ours = value_and_gradients(cross_entropy_sum, *inputs, chunk=8)
    assert ours[0].dtype == torch.float32 and ours[1].dtype == ours[2].dtype == dtype
    for a, b, e in zip(ours, plain, exact, strict=True):
        assert relative(a.double(), e) < 1.5 * relative(b.double(), e) + 1e-6


def test_many_chunks_of_a_short_type_are_added_up_in_fp32():
    """Steps of one sign: a sum in bf16 stands still once it is 256 times larger than they are."""
    hidden, weight, targets = problem(600, 4, 3, ignored=0)
    inputs = [hidden.abs().bfloat16(), weight.bfloat16(), targets]
    plain, ours = (value_and_gradients(f, *inputs, **options)[2].double()
                   for f, options in ((plain_cross_entropy_sum, {}), (cross_entropy_sum, {"chunk": 1})))
    exact = value_and_gradients(plain_cross_entropy_sum, *(x.double() for x in inputs[:2]), targets)[2]
    assert relative(ours, exact) < 2 * relative(plain, exact)


def test_autocast_multiplies_in_its_type_and_gives_gradients_in_the_inputs_type():
    hidden, weight, targets = problem(60, 32, 400)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = value_and_gradients(cross_entropy_sum, hidden, weight, targets, chunk=16)
        plain = value_and_gradients(plain_cross_entropy_sum, hidden, weight, targets)
    exact = value_and_gradients(plain_cross_entropy_sum, hidden, weight, targets)
    assert [x.dtype for x in ours] == [torch.float32] * 3
    for a, b, e in zip(ours, plain, exact, strict=True):
        assert 1e-6 < relative(a, e) < 1.5 * relative(b, e) + 1e-4  # bf16 was used, as precisely as by autocast itself
    with torch.autocast("cpu", dtype=torch.bfloat16):  # what a block gives is bf16, the weight stays fp32
        cross_entropy_sum(hidden.bfloat16(), weight, targets).backward()
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize("n", [0, 5])
def test_nothing_to_learn_is_zero_with_zero_gradients(n):
    hidden, weight, _ = problem(n, 4, 9)
    loss, *gradients = value_and_gradients(cross_entropy_sum, hidden, weight, torch.full((n,), IGNORE))
    assert loss == 0
    assert [g.abs().sum().item() for g in gradients] == [0, 0]
    assert [tuple(g.shape) for g in gradients] == [(n, 4), (9, 4)]


def test_nan_in_is_nan_out_and_stays_out_of_the_loss_if_ignored():
    hidden, weight, targets = problem(8, 4, 9, ignored=0)
    with torch.no_grad():
        hidden[3, 0] = float("nan")
    assert cross_entropy_sum(hidden, weight, targets).isnan()
    targets[3] = IGNORE
    assert cross_entropy_sum(hidden, weight, targets).isfinite()


def test_scores_far_apart_do_not_overflow():
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[-5000.0], [5000.0]])
    assert cross_entropy_sum(hidden, weight, torch.tensor([0])) == 10_000


def test_a_frozen_head_gets_no_gradient_and_backward_may_run_twice():
    hidden, weight, targets = problem(20, 4, 9)
    loss = cross_entropy_sum(hidden, weight.detach(), targets)
    loss.backward(retain_graph=True)
    once = hidden.grad.clone()
    loss.backward()
    torch.testing.assert_close(hidden.grad, 2 * once)
    cross_entropy_sum(hidden.detach(), weight, targets).backward()
    assert weight.grad.any()


class Products(TorchDispatchMode):
    """Watches every operation: how many matrix products and one-hots there are, and how large a tensor gets."""

    def __init__(self):
        super().__init__()
        self.n_products = self.n_one_hots = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ARG002
        out = func(*args, **(kwargs or {}))
        self.n_products += func.overloadpacket.__name__ in ("mm", "addmm", "addmm_")
        self.n_one_hots += func.overloadpacket.__name__ == "scatter_add_"
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return out


def test_no_table_is_larger_than_a_chunk_and_evaluation_takes_one_product_of_three():
    hidden, weight, targets = problem(1000, 8, 2000, ignored=0)
    with Products() as training:
        cross_entropy_sum(hidden, weight, targets, chunk=50).backward()
    assert training.largest <= 50 * 2000
    assert training.n_products == 3 * 20
    with Products() as evaluation, torch.no_grad():
        loss = cross_entropy_sum(hidden, weight, targets, chunk=50)
    assert (evaluation.n_products, evaluation.n_one_hots) == (20, 0) and not loss.requires_grad
    with Products() as frozen:
        cross_entropy_sum(hidden, weight.detach(), targets, chunk=50)
    assert (frozen.n_products, frozen.n_one_hots) == (2 * 20, 20)
    with Products() as plain:
        plain_cross_entropy_sum(hidden, weight, targets)
    assert plain.largest == 1000 * 2000  # the watch sees it where it exists


def test_the_chunk_is_chosen_by_the_memory_of_its_scores(monkeypatch):
    hidden, weight, targets = problem(1000, 8, 2000, ignored=0)
    for rows_that_fit, rows in ((50, 50), (3, 32)):
        monkeypatch.setattr("llamamm.train.losses.CHUNK_BYTES", rows_that_fit * 2000 * 4)
        with Products() as watched:
            cross_entropy_sum(hidden, weight, targets)
        assert watched.largest == rows * 2000


def test_ignored_rows_take_no_work():
    hidden, weight, targets = problem(1000, 8, 50, ignored=0)
    targets[:900] = IGNORE
    with Products() as watched:
        cross_entropy_sum(hidden, weight, targets, chunk=50)
    assert watched.n_products == 3 * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(targets=torch.tensor([0, 9, 1])), "target 9 is outside the vocabulary of 9 "),
        (dict(targets=torch.tensor([0, -1, 1])), "target -1 is outside.*-100"),
        (dict(targets=torch.tensor([0, 1])), r"int64 of shape \(3,\).*\(2,\)"),
        (dict(targets=torch.tensor([0.0, 1, 1])), "int64.*float32"),
        (dict(hidden=torch.zeros(1, 3, 4)), r"\(1, 3, 4\).*flatten"),
        (dict(hidden=torch.zeros(3, 5)), r"\(3, 5\) and \(9, 4\)"),
        (dict(hidden=torch.zeros(3, 4).bfloat16()), "bfloat16 and weight torch.float32"),
        (dict(chunk=0), "chunk must be at least 1 row, got 0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(change, message):
    fits = dict(hidden=torch.zeros(3, 4), weight=torch.zeros(9, 4), targets=torch.tensor([0, 8, IGNORE]), chunk=None)
    hidden, weight, targets, chunk = {**fits, **change}.values()
    with pytest.raises(InputError, match=message):
        cross_entropy_sum(hidden, weight, targets, chunk=chunk)
