"""course.checks.lesson02: right answers pass, each fault is named however it is spelled, and so are two at once."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llamamm.course.checks import check, exercises_of
from llamamm.text.layers import RMSNorm


def third_of_pairs(faults, apart, n):
    """Every third of the pairs that can stand together, from number n on: each spelling has its own third."""
    return [p for p in itertools.combinations(faults, 2) if not any({*p} <= some for some in apart)][n::3]


# ---- 02.1: rms_norm ----


def norm(x, weight, eps):
    h = x.to(torch.float32)
    h = h / torch.sqrt((h**2).mean(-1, keepdim=True) + eps)
    return weight * h.to(x.dtype)


def norm_by_einsum(x, weight, eps):
    h = x.float()
    square = torch.einsum("...c,...c->...", h, h) / x.shape[-1]
    return (h * (square + eps).pow(-0.5).unsqueeze(-1)).type_as(x) * weight


def norm_by_length(x, weight, eps):
    h = x.float()
    square = torch.linalg.vector_norm(h, dim=-1, keepdim=True) ** 2 / h.shape[-1]
    return torch.mul((h * (square + eps).rsqrt()).to(dtype=x.dtype), weight)


def norm_by_rows(x, weight, eps):
    rows = []
    for row in x.reshape(-1, x.shape[-1]).float():
        rows.append(row / math.sqrt(sum(float(v) ** 2 for v in row) / len(row) + eps))
    return torch.stack(rows).reshape(x.shape).to(x.dtype) * weight


def package_norm(x, weight, eps):
    module = RMSNorm(weight.numel(), eps, dtype=weight.dtype)
    with torch.no_grad():
        module.weight.copy_(weight)
        return module(x)


@pytest.mark.parametrize("answer", [norm, norm_by_einsum, norm_by_length, norm_by_rows, package_norm])
def test_right_norms_pass(answer):
    assert check("02.1", answer), check("02.1", answer).message


def spelled(spelling, *faults):
    """A norm with faults in it, in one of three spellings."""
    return {"plain": _plain, "methods": _methods, "in place": _in_place}[spelling](frozenset(faults))


def _plain(faults):
    def answer(x, weight, eps):
        h = x if "no cast" in faults else x.float()
        if "mean" in faults:
            h = h - torch.mean(h, dim=-1, keepdim=True)
        dim = {"dim": None} if "all" in faults else {"dim": -1, "keepdim": True}
        size = torch.sum(h * h, **dim) if "sum" in faults else torch.mean(h * h, **dim)
        if "outside" in faults:
            size = torch.sqrt(size) + eps
        else:
            size = size + (0 if "no eps" in faults else eps)
            size = size if "no root" in faults else torch.sqrt(size)
        out = h / size
        w = torch.ones_like(weight) if "no weight" in faults else weight
        if "weight first" in faults:
            return (w * out).to(x.dtype)
        return w * out if "fp32" in faults else w * out.to(x.dtype)

    return answer


def _methods(faults):
    def answer(x, weight, eps):
        h = x if "no cast" in faults else x.type(torch.float32)
        h = h.sub(h.mean(-1, keepdim=True)) if "mean" in faults else h
        square = torch.einsum("...i,...i->...", h, h).unsqueeze(-1)
        square = square.mean() if "all" in faults else square
        square = square if "sum" in faults else square / x.size(-1)
        square = square if {"no eps", "outside"} & faults else square.add(eps)
        if "no root" in faults:
            h = h.mul(square.reciprocal())
        elif "outside" in faults:
            h = h.div(square.pow(0.5).add(eps))
        else:
            h = h.mul(square.rsqrt())
        if "no weight" not in faults and "weight first" in faults:
            return h.mul(weight).type_as(x)
        h = h if "fp32" in faults else h.type_as(x)
        return h if "no weight" in faults else h.mul(weight)

    return answer


def _in_place(faults):
    def answer(x, weight, eps):
        h = x.clone() if "no cast" in faults else x.to(torch.float32, copy=True)
        if "mean" in faults:
            h -= h.mean(dim=-1, keepdim=True)
        power = h.clone()
        power *= h
        power = power.mean().reshape(1) if "all" in faults else power.mean(dim=-1, keepdim=True)
        if "sum" in faults:
            power *= h.shape[-1]
        if not {"no eps", "outside"} & faults:
            power += eps
        if "no root" not in faults:
            power.sqrt_()
        if "outside" in faults:
            power += eps
        h /= power
        weight = weight * 0 + 1 if "no weight" in faults else weight
        if "weight first" in faults:
            h *= weight
            return h.to(x.dtype)
        return (h if "fp32" in faults else h.to(x.dtype)) * weight

    return answer


NORM_FAULTS = {
    "outside": "outside the square root", "no eps": "epsilon is missing", "no weight": "forgot the weight",
    "weight first": "multiply by the weight after that", "no cast": "turn x into fp32 first",
    "fp32": "dtype should be torch.",
    "no root": "take its square root", "sum": "not their sum", "mean": "as LayerNorm does",
    "all": "when other vectors stand beside it",
}  # fmt: skip
MEANINGLESS = [
    {"outside", "no eps"},  # an epsilon that is missing stands nowhere
    {"outside", "no root"},  # without a root there is no outside
    {"weight first", "no weight"},  # a weight that is forgotten is not first
    {"weight first", "fp32"}, {"weight first", "no cast"},  # weights that come first are cast along, if anything is
    {"fp32", "no cast"},  # what never was fp32 doesn't stay so
]


NORMS = ["plain", "methods", "in place"]


@pytest.mark.parametrize("spelling", NORMS)
def test_each_fault_of_a_norm_is_named_alone_and_with_each_other(spelling):
    assert check("02.1", spelled(spelling))
    for fault, phrase in NORM_FAULTS.items():
        result = check("02.1", spelled(spelling, fault))
        if (spelling, fault) == ("methods", "no cast"):
            assert not result
            continue
        assert phrase in result.message, f"{fault}: {result.message}"
        others = [p for f, p in NORM_FAULTS.items() if f != fault]
        assert not [p for p in others if p in result.message], f"{fault}: {result.message}"
    for pair in third_of_pairs(NORM_FAULTS, MEANINGLESS, NORMS.index(spelling)):
        result = check("02.1", spelled(spelling, *pair))
        assert all(NORM_FAULTS[fault] in result.message for fault in pair), f"{pair}: {result.message}"


def clamped(x, weight, eps):
    h = x.float()
    return weight * (h / h.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=eps)).to(x.dtype)


def changes_its_input(x, weight, eps):
    h = x.float()
    h *= h.pow(2).mean(-1, keepdim=True).add(eps).rsqrt()
    return weight * h.to(x.dtype)


def changes_its_input_too(x, weight, eps):
    return weight * x.float().div_((x.float() ** 2).mean(-1, keepdim=True).add(eps).sqrt()).to(x.dtype)


def writes_into_its_input(x, weight, eps):
    x[:] = norm(x, torch.ones_like(weight), eps)
    return weight * x


def no_keepdim(x, weight, eps):
    h = x.float()
    return weight * (h / (h**2).mean(-1).add(eps).sqrt()).to(x.dtype)


OTHER_NORMS = [
    (clamped, "only a limit"),
    (lambda x, w, eps: norm(x, w, 0.0 * eps), "epsilon is missing"),
    (lambda x, w, _e: w * F.normalize(x.float(), dim=-1).mul(x.shape[-1] ** 0.5).to(x.dtype), "epsilon is missing"),
    (changes_its_input, "changes x"), (changes_its_input_too, "changes x"),
    (writes_into_its_input, "changes x"),
    (no_keepdim, "several vectors: "), (lambda x, w, eps: norm(x, 1 + w, eps), "1 + weight"),
    (lambda x, w, eps: norm(x, 1 / w, eps), "you divided by the weight"),
    (lambda x, w, _e: w * x, "you only multiplied by the weight"),
    (lambda x, w, eps: norm(x, w, eps)[..., 0], "shape"),
    (lambda x, w, _e: norm(x, w, 1e-5), "you did not add `eps` itself"),
    (lambda x, w, eps: norm(x, w, eps**2), "all numbers: "),
    (lambda x, w, eps: norm(x * w, torch.ones_like(w), eps), "multiplied by the weight before you divided"),
    (lambda x, w, eps: norm(x, torch.ones_like(w), eps) + w, "you added the weight"),
    (lambda x, w, eps: w * (x.float().var(-1, keepdim=True) + eps).rsqrt().mul(x).to(x.dtype), "with n − 1"),
    (lambda x, w, eps: w * (x.float() / (x.float().abs().mean(-1, keepdim=True) + eps)).to(x.dtype), "mean of |x|"),
    (lambda x, w, eps: w * (x.float() / (x.float().abs().amax(-1, keepdim=True) + eps)).to(x.dtype), "largest entry"),
    (lambda x, _w, eps: (x.float().pow(2).mean(-1, keepdim=True) + eps).sqrt(), "returned the root mean square itself"),
    (lambda *_: None, "rms_norm returns nothing: is the `return` missing?"),
    (lambda x, w, eps: F.rms_norm(x, w.shape, w, eps), "calls PyTorch's own rms_norm"),
    (lambda x, w, eps: torch.rms_norm(x, w.shape, w, eps), "calls PyTorch's own rms_norm"),
    (lambda x, w, eps: w * nn.RMSNorm(w.numel(), eps, dtype=x.dtype)(x), "calls PyTorch's own rms_norm"),
    (lambda x, w, eps: w * F.layer_norm(x, w.shape, eps=eps), "calls PyTorch's own layer_norm"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "phrase"), OTHER_NORMS)
def test_other_faults_of_a_norm_are_named(answer, phrase):
    result = check("02.1", answer)
    assert not result and phrase.lower() in result.message.lower(), result.message


MULTIPLIED = [
    lambda x, w, eps: w * (x.float() * (x.float().pow(2).mean(-1, keepdim=True) + eps).sqrt()).to(x.dtype),
    lambda x, w, eps: w * (x.float() / torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)).to(x.dtype),
    lambda x, w, eps: w * (x.float() * (torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True) ** 2 / x.shape[-1]
                                        + eps) ** 0.5).to(x.dtype),
    lambda x, w, eps: w * (x.float() / (x.float().mean(-1, keepdim=True) ** 2 + eps).sqrt()).to(x.dtype),
]  # fmt: skip


@pytest.mark.parametrize("answer", MULTIPLIED)
def test_what_is_far_too_large_is_not_blamed_on_epsilon_or_on_a_cast(answer):
    message = check("02.1", answer).message
    assert "multiplied by the root mean square" in message or "you squared the mean" in message.lower()
    assert "epsilon is" not in message and "x.float()" not in message, message


def test_a_failing_property_is_told_with_its_smallest_input():
    message = check("02.1", spelled("plain", "sum")).message
    assert message == (
        "9 of 10 properties hold\n  - a vector's size: for ([3, -3], [1, 1], 1e-06) [0] should be 1, got 0.707107. "
        "You divided by the vector's length: take the mean of the squares, not their sum"
    )


# ---- 02.2: rms_norm_backward ----


def backward(x, weight, eps, grad):
    r = 1 / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    normed = x * r
    g = weight * grad
    dx = r * (g - normed * (g * normed).mean(-1, keepdim=True))
    return dx, (grad * normed).reshape(-1, x.shape[-1]).sum(0)


def backward_by_jacobian(x, weight, eps, grad):
    C = x.shape[-1]
    rows, dw = [], torch.zeros(C)
    for v, d in zip(x.reshape(-1, C), grad.reshape(-1, C), strict=True):
        r = (v @ v / C + eps) ** -0.5
        jacobian = torch.diag(weight) * r - torch.outer(weight * v, v) * r**3 / C
        rows.append(jacobian.T @ d)
        dw += d * v * r
    return torch.stack(rows).view_as(x), dw


def backward_by_einsum(x, weight, eps, grad):
    s = torch.einsum("...c,...c->...", x, x) / x.shape[-1] + eps
    along = torch.einsum("...c,...c,c->...", x, grad, weight) / x.shape[-1]
    dx = torch.einsum("...,...c,c->...c", s**-0.5, grad, weight) - torch.einsum("...,...c->...c", along / s**1.5, x)
    return dx, torch.einsum("...c,...c,...->c", x, grad, s**-0.5)


@pytest.mark.parametrize("answer", [backward, backward_by_jacobian, backward_by_einsum])
def test_right_backward_passes_pass(answer):
    assert check("02.2", answer), check("02.2", answer).message


def spelled_backward(spelling, *faults):
    """A backward pass with faults in it, in one of three spellings."""

    def formula(x, weight, eps, grad):
        r = _r(x, eps)
        g = grad if "first weight" in faults else grad * weight
        along = (grad if "second weight" in faults else grad * weight) * x
        along = along.sum(-1, keepdim=True) if "sum" in faults else along.mean(-1, keepdim=True)
        power = 1 if "r" in faults else 2 if "r2" in faults else 3
        second = 0 if "constant" in faults else x * r**power * along
        return r * g + second if "sign" in faults else r * g - second, _dw(x, weight, r, grad)

    def factored(x, weight, eps, grad):
        r = _r(x, eps)
        normed = x.mul(r)
        inner = torch.einsum("...c,...c->...", normed, grad if "second weight" in faults else grad.mul(weight))
        inner = inner.unsqueeze(-1).div(1 if "sum" in faults else x.size(-1))
        inner = inner.mul(-1 if "sign" in faults else 0 if "constant" in faults else 1)
        inner = inner.div(r * r if "r" in faults else r if "r2" in faults else 1)
        first = grad if "first weight" in faults else grad.mul(weight)
        return r.mul(first).sub(r.mul(normed).mul(inner)), _dw(x, weight, r, grad)

    def loops(x, weight, eps, grad):
        C, dx = x.shape[-1], torch.zeros_like(x)
        out, rows, grads, r = dx.view(-1, C), x.reshape(-1, C), grad.reshape(-1, C), _r(x, eps)
        for i, (v, d, q) in enumerate(zip(rows, grads, r.reshape(-1), strict=True)):
            total = 0.0
            for c in range(C):
                total += float(d[c] * v[c] * (1 if "second weight" in faults else weight[c]))
            total /= 1 if "sum" in faults else C
            for c in range(C):
                out[i, c] = q * d[c] * (1 if "first weight" in faults else weight[c])
                if "constant" not in faults:
                    power = 1 if "r" in faults else 2 if "r2" in faults else 3
                    out[i, c] += (1 if "sign" in faults else -1) * v[c] * q**power * total
        return dx, _dw(x, weight, r, grad)

    def _r(x, eps):
        square = x.pow(2).mean(-1, keepdim=True)
        if "no eps" in faults:
            return square.rsqrt()
        return 1 / (square.sqrt() + eps) if "outside" in faults else (square + eps).rsqrt()

    def _dw(x, weight, r, grad):
        each = grad * x * (1 if "dw without r" in faults else r) * (weight if "weight in dw" in faults else 1)
        return each if "rows" in faults else each.reshape(-1, x.shape[-1]).sum(0)

    return {"formula": formula, "factored": factored, "loops": loops}[spelling]


BACKWARD_FAULTS = {
    "constant": "as a constant", "sign": "wrong sign", "second weight": "missing in the second term",
    "sum": "mean over the channels", "r": "r³, not r:", "r2": "r³, not r²", "first weight": "missing in dx",
    "rows": "um dw over all rows", "weight in dw": "does not belong in dw", "dw without r": "missing in dw",
    "outside": "outside the root", "no eps": "epsilon is missing",
}  # fmt: skip
IMPOSSIBLE = [
    *({"constant", f} for f in ("sign", "second weight", "sum", "r", "r2")),  # these stand in the term that is missing
    {"r", "r2"},  # one power stands there
    {"outside", "no eps"},  # an epsilon that is missing stands nowhere
    {"rows", "weight in dw"}, {"rows", "dw without r"}, {"weight in dw", "dw without r"},
    # of two faults in dw only the numbers are told
]


BACKWARDS = ["formula", "factored", "loops"]


@pytest.mark.parametrize("spelling", BACKWARDS)
def test_each_fault_of_a_backward_pass_is_named_alone_and_with_each_other(spelling):
    assert check("02.2", spelled_backward(spelling))
    for fault, phrase in BACKWARD_FAULTS.items():
        result = check("02.2", spelled_backward(spelling, fault))
        assert phrase in result.message, f"{fault}: {result.message}"
    for pair in third_of_pairs(BACKWARD_FAULTS, IMPOSSIBLE, BACKWARDS.index(spelling)):
        result = check("02.2", spelled_backward(spelling, *pair))
        assert all(BACKWARD_FAULTS[fault] in result.message for fault in pair), f"{pair}: {result.message}"


def by_autograd(x, weight, eps, grad):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    norm(x, weight, eps).backward(grad)
    return x.grad, weight.grad


def by_autograd_grad(x, weight, eps, grad):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    return torch.autograd.grad(norm(x, weight, eps), (x, weight), grad)


def second_term(x, weight, eps, grad, term):
    """A backward pass with this second term, of grad · w · x and r."""
    dx = weight * grad * _rsqrt(x, eps) - term(grad * weight * x, _rsqrt(x, eps))
    return dx, backward(x, weight, eps, grad)[1]


def one_r_for_all(x, weight, eps, grad):
    r = (x.pow(2).mean() + eps).rsqrt()
    g = weight * grad
    return r * g - x * r**3 * (g * x).mean(-1, keepdim=True), (grad * x * r).reshape(-1, x.shape[-1]).sum(0)


OTHER_BACKWARDS = [
    (by_autograd, "calls PyTorch's own backward"), (by_autograd_grad, "calls PyTorch's own grad"),
    (one_r_for_all, "when other vectors stand beside it"), (lambda *a: backward(*a)[0], "two tensors; got a tensor"),
    (lambda x, w, e, d: (backward(x, w, e, d)[0], backward(x, w, e, d)[1].sum()), "channels, too"),
    (lambda x, w, e, d: (backward(x, w, e, d)[0], torch.tensordot(d, x * _rsqrt(x, e), x.dim())), "channels, too"),
    (lambda x, w, e, d: (backward(x, w, e, d)[0], torch.einsum("...c,...c->", d, x * _rsqrt(x, e))), "channels, too"),
    (lambda x, w, e, d: (backward(x, w, e, d)[0], (d * x * _rsqrt(x, e)).sum(-1)), "channels: sum over the rows"),
    (lambda x, w, e, d: (backward(x, w, e, d)[0], (d * x * _rsqrt(x, e)).sum(0)), "not over the first alone"),
    (lambda x, w, e, d: (backward(x, w, e, d)[0], (d * x * _rsqrt(x, e)).flatten(0, -2).mean(0)), "not their mean"),
    (lambda x, w, e, d: (backward(x, w, e, d)[0], backward(x, w, e, d)[1][None]), "so sum without keepdim"),
    (lambda x, w, e, d: (backward(x, w, e, d)[0], d.reshape(-1, x.shape[-1]).sum(0)), "normed x is missing in dw"),
    (lambda x, w, e, d: (backward(x, w, e, d)[0], (d * _rsqrt(x, e)).reshape(-1, x.shape[-1]).sum(0)), "x is missing"),
    (lambda x, w, e, d: second_term(x, w, e, d, lambda g, r: x * r**3 * g), "one entry's grad · w · x"),
    (lambda x, w, e, d: second_term(x, w, e, d, lambda g, r: x * r**3 * g / x.shape[-1]), "one entry's grad · w · x"),
    (lambda x, w, e, d: second_term(x, w, e, d, lambda g, r: r**3 * g.mean(-1, keepdim=True)), "derivative of mean(x"),
    (lambda x, w, e, d: second_term(x, w, e, d, lambda g, r: 2 * x * r**3 * g.mean(-1, keepdim=True)), "twice as larg"),
    (lambda x, w, e, d: second_term(x, w, e, d, lambda g, r: x * r**3 * g.mean(-1, keepdim=True) / 2), "half as large"),
    (lambda x, w, e, d: second_term(x, w, e, d, lambda g, r: x * r**4 * g.mean(-1, keepdim=True)), "r³, not r⁴"),
    (lambda x, w, e, d: second_term(x, w, e, d, lambda g, r: x * r**3 * (g / x).mean(-1, keepdim=True)), "x is missi"),
    (lambda x, w, e, d: (backward(x, w, e, d)[0] - _rsqrt(x, e) * w * d, backward(x, w, e, d)[1]), "term is missing"),
]


def swapped(x, weight, eps, grad):
    dx, dw = backward(x, weight, eps, grad)
    return dw, dx


SWAPPED = [swapped, lambda *a: backward_by_einsum(*a)[::-1], lambda *a: [*reversed(backward_by_jacobian(*a))]]


@pytest.mark.parametrize("answer", SWAPPED)
def test_dw_before_dx_is_named_and_nothing_else(answer):
    message = check("02.2", answer).message
    assert message == "8 of 9 properties hold\n  - the order: you return (dw, dx): dx comes first, then dw"


@pytest.mark.parametrize("spelling", ["formula", "factored", "loops"])
def test_dw_before_dx_hides_no_other_fault(spelling):
    for fault, phrase in BACKWARD_FAULTS.items():
        message = check("02.2", lambda *a, f=fault: spelled_backward(spelling, f)(*a)[::-1]).message
        assert phrase in message, f"{fault}: {message}"
        assert "you return (dw, dx)" in message, f"{fault}: {message}"


def rows_by_flatten(x, weight, eps, grad):
    dx, _ = backward(x, weight, eps, grad)
    return dx, (grad * x * _rsqrt(x, eps)).flatten(0, -2).sum(0)


def rows_by_view(x, weight, eps, grad):
    rows = x.shape[0] * x.shape[1] if x.dim() > 2 else x.shape[-2]
    return backward(x, weight, eps, grad)[0], (grad * x * _rsqrt(x, eps)).view(rows, x.size(-1)).sum(0)


def rows_by_loop(x, weight, eps, grad):
    each = grad * x * _rsqrt(x, eps)
    while each.dim() != 1 or each is None:
        each = each.sum(dim=-2)
    return backward(x, weight, eps, grad)[0], each if x.dim() > 1 else each.sum(dim=-2)


@pytest.mark.parametrize("answer", [rows_by_flatten, rows_by_view, rows_by_loop])
def test_a_backward_pass_that_wants_rows_hears_of_the_single_vector_alone(answer):
    message = check("02.2", answer).message
    assert message.startswith("8 of 9 properties hold\n  - a single vector: for x of shape (2,), a single vector, it")
    assert "raised IndexError" in message and message.endswith("reshape(-1, C) makes rows of all of them")


def test_a_single_vector_gives_a_single_dx():
    message = check("02.2", lambda x, w, e, d: backward(x[None] if x.dim() < 2 else x, w, e, d)).message
    assert "return dx of shape (2,) and dw of shape (2,); yours are of shape ((1, 2), (2,))" in message


def _rsqrt(x, eps):
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


@pytest.mark.parametrize(("answer", "phrase"), OTHER_BACKWARDS)
def test_other_faults_of_a_backward_pass_are_named(answer, phrase):
    result = check("02.2", answer)
    assert not result and phrase.lower() in result.message.lower(), result.message


# ---- 02.3: swiglu ----


def swiglu(x, gate, up, down):
    g = F.linear(x, gate)
    return F.linear(g * torch.sigmoid(g) * F.linear(x, up), down)


def swiglu_by_einsum(x, gate, up, down):
    g, u = (torch.einsum("...c,nc->...n", x, m) for m in (gate, up))
    return torch.einsum("...n,cn->...c", g / (1 + torch.exp(-g)) * u, down)


def swiglu_fused(x, gate, up, down):
    g, u = (x @ torch.cat((gate, up)).T).chunk(2, dim=-1)
    F.silu(g, inplace=True)
    return g.mul_(u).matmul(down.mT)


@pytest.mark.parametrize("answer", [swiglu, swiglu_by_einsum, swiglu_fused])
def test_right_feed_forwards_pass(answer):
    assert check("02.3", answer), check("02.3", answer).message


def spelled_swiglu(spelling, *faults):
    """A SwiGLU with faults in it, in one of three spellings."""

    def functions(x, gate, up, down):
        g, u = (F.linear(x, m) for m in _two(gate, up))
        last = nn.Identity() if "no down" in faults else lambda hidden: F.linear(hidden, down)
        if "product" in faults:
            return last(_act(g * u, F.silu))
        if not {"none", "result"} & {*faults}:
            act = _act(g, F.silu)
            g, u = (g, _act(u, F.silu)) if "up" in faults else (act, _act(u, F.silu) if "both" in faults else u)
        if {"no up", "no gate"} & {*faults}:
            return last(g)
        out = last(g + u if "add" in faults else g * u)
        return _act(out, F.silu) if "result" in faults else out

    def methods(x, gate, up, down):
        gate, up = _two(gate, up)
        g, u = x.matmul(gate.t()), x.matmul(up.t())
        down = torch.eye(len(gate)) if "no down" in faults else down
        def own(v):
            return v.mul(v.sigmoid())

        if "product" in faults:
            return _act(g.mul(u), own).matmul(down.t())
        if "up" in faults:
            u = _act(u, own)
        elif not {"none", "result"} & {*faults}:
            g = _act(g, own)
            u = _act(u, own) if "both" in faults else u
        if {"no up", "no gate"} & {*faults}:
            u = torch.ones_like(g)
        out = (g.add(u) if "add" in faults else g.mul(u)).matmul(down.t())
        return _act(out, own) if "result" in faults else out

    def units(x, gate, up, down):
        gate, up = _two(gate, up)
        down = torch.diag(torch.ones(len(up))) if "no down" in faults else down
        out = torch.zeros(*x.shape[:-1], down.shape[0])
        for n in range(len(gate)):
            g, u = (x * gate[n]).sum(-1, keepdim=True), (x * up[n]).sum(-1, keepdim=True)
            if "product" in faults:
                out += _act(g * u, lambda v: v / (1 + (-v).exp())) * down[:, n]
                continue
            if {"no up", "no gate"} & {*faults}:
                u = u * 0 + 1
            a = g if {"none", "up", "result"} & {*faults} else _act(g, lambda v: v / (1 + (-v).exp()))
            b = _act(u, lambda v: v / (1 + (-v).exp())) if {"up", "both"} & {*faults} else u
            out += (a + b if "add" in faults else a * b) * down[:, n]
        return _act(out, lambda v: v / (1 + (-v).exp())) if "result" in faults else out

    def _two(gate, up):
        first = up if {"no gate", "up twice"} & {*faults} else gate
        return first, gate if "gate twice" in faults else up

    def _act(v, silu):
        kinds = {"sigmoid": torch.sigmoid, "relu": lambda v: v.clamp(min=0), "gelu": F.gelu, "tanh": torch.tanh,
                 "softplus": F.softplus, "opposite": lambda v: v / (1 + v.exp())}
        return next((f for name, f in kinds.items() if name in faults), silu)(v)

    return {"functions": functions, "methods": methods, "units": units}[spelling]


GATE_FAULTS = {
    "up": "silu to up", "both": "silu to gate and up", "none": "silu is missing", "sigmoid": "used sigmoid",
    "relu": "used ReLU", "gelu": "used GELU", "tanh": "used tanh", "add": "you added gate and up",
    "product": "to the product of", "result": "silu to the result", "softplus": "used softplus",
    "opposite": "sigmoid of −g", "no down": "`down` is missing", "no up": "`up` is missing",
    "no gate": "`gate` is missing", "gate twice": "took `gate` twice", "up twice": "took `up` twice",
}  # fmt: skip
ONE_OF = [
    {"up", "both", "none", "product", "result"},  # each says where silu goes
    {"no down", "no up", "no gate", "gate twice", "up twice"},  # each says which matrices there are
    *({one, other} for one in ("no up", "no gate") for other in ("up", "both", "product", "add", "result")),
    # with a single matrix there is nothing to multiply, and silu has one place
    *({"up", other} for other in ("gate twice", "up twice")),  # silu of either of two equal numbers
    *({"sigmoid", other} for other in ("gate twice", "up twice")),  # g · sigmoid(g) is silu(g)
    *({"result", other} for other in ("no down", "gate twice", "up twice")),  # seldom enough
    {"add", "product"},  # silu of a product: there is nothing left to add
    {"none", "sigmoid", "relu", "gelu", "tanh", "softplus", "opposite"},  # each says which function stands for silu
]


GATES = ["functions", "methods", "units"]


@pytest.mark.parametrize("spelling", GATES)
def test_each_fault_of_a_gate_is_named_alone_and_with_each_other(spelling):
    assert check("02.3", spelled_swiglu(spelling))
    alone = [(fault,) for fault in GATE_FAULTS]
    for faults in alone + third_of_pairs(GATE_FAULTS, ONE_OF, GATES.index(spelling)):
        result = check("02.3", spelled_swiglu(spelling, *faults))
        named = {fault for fault, phrase in GATE_FAULTS.items() if phrase.lower() in result.message.lower()}
        assert named == {*faults}, f"{faults}: {result.message}"


def exp_over_exp(x, gate, up, down):
    g = x @ gate.T
    return (g * g.exp() / (1 + g.exp()) * (x @ up.T)) @ down.T


OTHER_GATES = [
    (exp_over_exp, "exp overflows"),
    (lambda x, g, u, d: x + swiglu(x, g, u, d), "you added x"),
    (lambda x, g, u, d: (F.gelu(x @ g.T, approximate="tanh") * (x @ u.T)) @ d.T, "you used GELU"),
    (lambda x, g, u, d: (F.silu(x @ g) * (x @ u)) @ d, "used gate, up and down the wrong way round"),
    (lambda x, g, u, d: d @ (F.silu(g @ x) * (u @ x)), "take x @ gate.T and x @ up.T"),
    (lambda x, g, u, d: (F.silu(F.linear(x, g)) * F.linear(x, u)) * d, "and then @ down.T"),
    (lambda x, g, u, d: (F.silu(x @ g.T) * (x @ u.T)) @ d, "raised RuntimeError"),
    (lambda x, g, u, d: swiglu(x, g, u, d if d.shape[0] != d.shape[1] else d.T), "down the wrong way round"),
    (lambda x, g, u, d: swiglu(x, g if len(g) != x.shape[-1] else g.mT, u, d), "gate the wrong way round"),
    (lambda x, g, u, d: swiglu(x - x.mean(0), g, u, d) if x.dim() > 1 else swiglu(x, g, u, d), "tokens stand beside"),
    (lambda x, g, u, d: spelled_swiglu("methods", "both")(x, g, u, d if d.shape[0] != d.shape[1] else d.T), "up stays"),
    (lambda x, g, u, d: spelled_swiglu("units", "relu")(x, g, u, d if d.shape[0] != d.shape[1] else d.T), "down the"),
    (lambda x, g, u, d: F.silu(F.linear(x, g)) * F.linear(x, u) + 0 * d.sum(), "shape"),
]


@pytest.mark.parametrize(("answer", "phrase"), OTHER_GATES)
def test_other_faults_of_a_feed_forward_are_named(answer, phrase):
    result = check("02.3", answer)
    assert not result and phrase.lower() in result.message.lower(), result.message


@pytest.mark.parametrize("act", [F.leaky_relu, F.elu, F.mish, lambda g: g.softmax(-1)])
def test_a_function_that_agrees_with_a_known_one_for_some_gates_is_not_taken_for_it(act):
    message = check("02.3", lambda x, g, u, d: (act(x @ g.T) * (x @ u.T)) @ d.T).message
    assert "[0] should be 5.28478" in message and "ou used" not in message and "missing" not in message, message


# ---- 02.4: breaking_inputs ----


def breaking_inputs():
    large = torch.tensor([0.0, 0.0, -60_000.0, 1.0], dtype=torch.float16)
    return large, torch.tensor([1e-4, 0.0, -1e-4, 0.0], dtype=torch.float16)


def pair(large, small, dtype=torch.float16):
    return lambda: (torch.tensor([large, 0, 0, large], dtype=dtype), torch.tensor([small] * 4, dtype=dtype))


def test_inputs_that_break_the_norm_pass():
    assert check("02.4", breaking_inputs) and check("02.4", pair(400.0, 1e-5))
    smallest = torch.tensor([0, 6e-8, 0, 0]).half()
    assert check("02.4", lambda: (torch.full((4,), 999).half(), smallest))


@pytest.mark.parametrize(("answer", "phrases"), [
    (pair(300.0, 0.0), ["small is the zero vector"]), (pair(300.0, 1e-9), ["small is the zero vector"]),
    (lambda: (torch.full((4,), 300.0).half(), torch.zeros(4).half()), ["small is the zero vector"]),
    (pair(0.0, 1e-5), ["large is the zero vector"]), (pair(1e5, 1e-5), ["inf or NaN itself"]),
    (lambda: (torch.full((4,), 65_504.0).half() * 2, torch.full((4,), 1e-5).half()), ["inf or NaN itself"]),
    (pair(255.0, 1e-5), ["large survives"]), (pair(300.0, 0.01), ["small survives"]),
    (lambda: (torch.arange(4).half(), torch.arange(1, 5).half()), ["large survives", "small survives"]),
    (lambda: pair(300.0, 1e-5)()[::-1], ["large comes first, then small"]),
    (pair(300.0, 1e-5, torch.float32), ["large is not in fp16", "small is not in fp16"]),
    (pair(255.0, 0.0), ["large survives", "small is the zero vector"]),
    (lambda: [torch.tensor([300.0] * 4), torch.tensor([1e-3] * 4).half()], ["large is not in fp16", "small survives"]),
    (lambda: (torch.ones(5).half(), torch.ones(4).half()), ["shape", "small survives"]),
    (lambda: None, ["returns nothing: is the `return` missing?"]), (lambda: torch.ones(4).half(), ["two tensors"]),
])  # fmt: skip
def test_inputs_that_do_not_break_the_norm_are_told_why(answer, phrases):
    result = check("02.4", answer)
    assert not result
    assert all(phrase in result.message for phrase in phrases), result.message


def test_each_exercise_is_right_by_its_own_reference():
    for exercise in exercises_of("02"):
        assert check(exercise.id, exercise.reference) or exercise.id == "02.2"  # its reference asks autograd
    assert [e.level for e in exercises_of("02")] == ["core", "hard", "core", "break it"]


@pytest.mark.parametrize("value", [
    None, "x", [], (None, None), (torch.ones(2), None), math.nan, 10**400, print, torch.ones(0), torch.tensor([1, 2]),
    torch.ones(2, device="meta"), torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex64),
    torch.ones(2, requires_grad=True), (torch.ones(2, dtype=torch.complex64),) * 2,
])  # fmt: skip
def test_a_result_of_any_kind_gets_a_few_lines(value):
    for exercise in exercises_of("02"):
        result = check(exercise.id, lambda *_: value)
        assert not result
        assert len(result.message.splitlines()) <= 5 and all(len(line) < 500 for line in result.message.splitlines())


# ---- what a fresh reader's answers passed with ----


def with_deviation(x, weight, eps):
    h = x.float()
    return weight * (h / (h.var(-1, keepdim=True, unbiased=False) + eps).sqrt()).to(x.dtype)


def divided_in_16_bits(x, weight, eps):
    return x / (x.float().pow(2).mean(-1, keepdim=True) + eps).sqrt().to(x.dtype) * weight


def times_r_in_16_bits(x, weight, eps):
    return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps).to(x.dtype) * weight


def weight_twice(x, weight, eps, grad):
    r = (x.pow(2).mean(-1, keepdim=True) + eps) ** -0.5
    s = (grad * weight * x).sum(-1, keepdim=True)
    return weight * r * (grad - r**2 * x * s / x.shape[-1]), (grad * x * r).reshape(-1, x.shape[-1]).sum(0)


@pytest.mark.parametrize(("exercise", "answer", "message"), [
    ("02.1", with_deviation, "should be 2.26274, got 15.9997. You divided by the standard deviation"),
    ("02.1", divided_in_16_bits, "the division belongs into fp32"),
    ("02.1", times_r_in_16_bits, "the division belongs into fp32"),
    ("02.2", weight_twice, "all numbers: [0]["),
])  # fmt: skip
def test_what_each_property_alone_misses_does_not_pass(exercise, answer, message):
    result = check(exercise, answer)
    assert not result and message in result.message


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sound_steps_in_another_order_pass_in_16_bits(dtype):
    def sound(x, weight, eps):
        h = x.float()
        return weight * (h / torch.sqrt((h * h).sum(-1, keepdim=True) / h.shape[-1] + eps)).to(x.dtype)

    assert check("02.1", sound) and sound(torch.ones(2, 4, dtype=dtype), torch.ones(4, dtype=dtype), 0.0).dtype == dtype


# ---- what a second fresh reader's answers were told ----


def bullets(exercise, answer):
    result = check(exercise, answer)
    assert not result
    return result.message.splitlines()[1:]


@pytest.mark.parametrize("kind", [tuple, list])
def test_gradients_may_come_as_a_tuple_or_a_list(kind):
    assert check("02.2", lambda *case: kind(backward(*case)))


@pytest.mark.parametrize("of", [lambda dx, _dw: dx, lambda dx, dw: {"dx": dx, "dw": dw}, lambda dx, dw: (dx, dw, None)])
def test_what_is_no_pair_of_gradients_is_told_once(of):
    (told,) = bullets("02.2", lambda *case: of(*backward(*case)))
    assert "the order: return dx and dw, two tensors; got " in told


@pytest.mark.parametrize(("exercise", "right"), [("02.1", norm), ("02.3", lambda *case: swiglu(*case))])
@pytest.mark.parametrize("wrap", [lambda y: (y,), lambda y: y.tolist()])
def test_what_is_no_tensor_is_told_once(exercise, right, wrap):
    (told,) = bullets(exercise, lambda *case: wrap(right(*case)))
    assert "the result should be a tensor, got " in told


def test_a_feed_forward_in_the_wrong_dtype_hears_of_the_dtype():
    (told,) = bullets("02.3", lambda *case: swiglu(*case).half())
    assert "the dtype should be torch.float32, got torch.float16" in told


@pytest.mark.parametrize(("name", "n"), [("x", 0), ("weight", 1), ("grad", 3)])
def test_a_backward_pass_that_changes_an_input_is_told_which(name, n):
    def answer(*case):
        result = backward(*case)
        case[n].mul_(2)
        return result

    (told,) = bullets("02.2", answer)
    assert f"your function changes `{name}`" in told


def test_quotients_of_differences_are_not_taken_for_rows_that_mix():
    def answer(x, weight, eps, grad):
        def loss(x, weight):
            return (weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * grad).sum()

        def slopes(of, like):
            steps = 1e-3 * torch.eye(like.numel()).view(-1, *like.shape)
            return torch.stack([(of(like + h) - of(like - h)) / 2e-3 for h in steps]).view(like.shape)

        return slopes(lambda x: loss(x, weight), x), slopes(lambda w: loss(x, w), weight)

    assert "stand beside it" not in "".join(bullets("02.2", answer))


def test_a_wrong_dw_is_told_with_its_inputs():
    def answer(x, weight, eps, grad):
        return backward(x, weight, eps, grad)[0], (x * _rsqrt(x, eps)).reshape(-1, x.shape[-1]).sum(0)

    (told,) = bullets("02.2", answer)
    assert "dw: for x = [[" in told and "Grad is missing in dw" in told


@pytest.mark.parametrize("act", [lambda g: g * F.silu(g), lambda g: torch.sigmoid(g) * F.silu(g)])
def test_silu_times_one_of_its_factors_is_named(act):
    (told,) = bullets("02.3", lambda x, gate, up, down: (act(x @ gate.T) * (x @ up.T)) @ down.T)
    assert "once more: silu(g) already is g · sigmoid(g)" in told


def test_breaking_inputs_of_the_wrong_form_are_told_their_form():
    large, small = bullets("02.4", lambda: (torch.full((1, 4), 300.0).half(), [1e-5] * 4))
    assert "large should be a tensor of shape (4,), got a tensor of shape (1, 4)" in large
    assert "small should be a tensor of shape (4,), got [" in small


def test_small_entries_hear_how_small():
    (told,) = bullets("02.4", pair(300.0, 0.001))
    assert "below 0.00017" in told and check("02.4", pair(300.0, 0.00017)) and not check("02.4", pair(300.0, 0.00018))
