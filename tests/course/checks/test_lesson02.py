"""course.checks.lesson02: right answers pass, and each usual mistake is called by its name."""

import pytest
import torch
import torch.nn.functional as F

from llamamm.course.checks import check


def rms_norm(x, weight, eps):
    h = x.to(torch.float32)
    h = h / torch.sqrt((h**2).mean(-1, keepdim=True) + eps)
    return weight * h.to(x.dtype)


def swiglu_fused(x, gate_up, down):
    n = down.shape[1]
    hidden = F.linear(x, gate_up)
    return F.linear(F.silu(hidden[..., :n]) * hidden[..., n:], down)


def rms_norm_backward(x, weight, eps, grad):
    r = 1 / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    normed = x * r
    g = weight * grad
    dx = r * (g - normed * (g * normed).mean(-1, keepdim=True))
    return dx, (grad * normed).reshape(-1, x.shape[-1]).sum(0)


def breaking_inputs():
    large = torch.tensor([0.0, 0.0, -60_000.0, 1.0], dtype=torch.float16)
    return large, torch.tensor([1e-4, 0.0, -1e-4, 0.0], dtype=torch.float16)


RIGHT = [("02.1", swiglu_fused), ("02.2", rms_norm), ("02.3", rms_norm_backward), ("02.4", breaking_inputs)]


@pytest.mark.parametrize(("exercise", "answer"), RIGHT)
def test_the_right_answer_passes(exercise, answer):
    assert check(exercise, answer), check(exercise, answer).message


# ---- wrong answers ----


def eps_outside(x, weight, eps):
    h = x.float()
    return weight * (h / (torch.sqrt((h**2).mean(-1, keepdim=True)) + eps)).to(x.dtype)


def eps_forgotten(x, weight, eps):  # noqa: ARG001
    h = x.float()
    return weight * (h / torch.sqrt((h**2).mean(-1, keepdim=True))).to(x.dtype)


def weight_forgotten(x, weight, eps):  # noqa: ARG001
    h = x.float()
    return (h / torch.sqrt((h**2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def cast_last(x, weight, eps):
    h = x.float()
    return (weight * h / torch.sqrt((h**2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def no_cast(x, weight, eps):
    return weight * (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps))


def stays_in_fp32(x, weight, eps):
    h = x.float()
    return weight * (h / torch.sqrt((h**2).mean(-1, keepdim=True) + eps))


def mean_square(x, weight, eps):
    h = x.float()
    return weight * (h / ((h**2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def vector_length(x, weight, eps):
    h = x.float()
    return weight * (h / torch.sqrt((h**2).sum(-1, keepdim=True) + eps)).to(x.dtype)


def layer_norm(x, weight, eps):
    h = x.float()
    h = h - h.mean(-1, keepdim=True)
    return weight * (h / torch.sqrt((h**2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def split(x, gate_up, down):
    return *F.linear(x, gate_up).split(gate_up.shape[0] // 2, dim=-1), down


def silu_on_up(x, gate_up, down):
    gate, up, down = split(x, gate_up, down)
    return F.linear(gate * F.silu(up), down)


def every_second_row(x, gate_up, down):
    return F.linear(F.silu(F.linear(x, gate_up[0::2])) * F.linear(x, gate_up[1::2]), down)


def silu_on_both(x, gate_up, down):
    gate, up, down = split(x, gate_up, down)
    return F.linear(F.silu(gate) * F.silu(up), down)


def no_silu(x, gate_up, down):
    gate, up, down = split(x, gate_up, down)
    return F.linear(gate * up, down)


def sigmoid(x, gate_up, down):
    gate, up, down = split(x, gate_up, down)
    return F.linear(up / (1 + torch.exp(-gate)), down)


def added(x, gate_up, down):
    gate, up, down = split(x, gate_up, down)
    return F.linear(F.silu(gate) + up, down)


def down_not_transposed(x, gate_up, down):
    gate, up, down = split(x, gate_up, down)
    return (F.silu(gate) * up) @ down


def parts(x, weight, eps, grad):
    r = (x.pow(2).mean(-1, keepdim=True) + eps) ** -0.5
    return r, weight * grad, (grad * x * r).reshape(-1, x.shape[-1]).sum(0)


def rms_is_constant(x, weight, eps, grad):
    r, g, dw = parts(x, weight, eps, grad)
    return r * g, dw


def wrong_sign(x, weight, eps, grad):
    r, g, dw = parts(x, weight, eps, grad)
    return r * g + x * r**3 * (g * x).mean(-1, keepdim=True), dw


def weight_not_in_second_term(x, weight, eps, grad):
    r, g, dw = parts(x, weight, eps, grad)
    return r * g - x * r**3 * (grad * x).mean(-1, keepdim=True), dw


def sum_of_channels(x, weight, eps, grad):
    r, g, dw = parts(x, weight, eps, grad)
    return r * g - x * r**3 * (g * x).sum(-1, keepdim=True), dw


def r_not_cubed(x, weight, eps, grad):
    r, g, dw = parts(x, weight, eps, grad)
    return r * g - x * r * (g * x).mean(-1, keepdim=True), dw


def r_squared(x, weight, eps, grad):
    r, g, dw = parts(x, weight, eps, grad)
    return r * g - x * r * r * (g * x).mean(-1, keepdim=True), dw


def no_weight_in_dx(x, weight, eps, grad):
    r, _, dw = parts(x, weight, eps, grad)
    return r * grad - x * r**3 * (grad * x).mean(-1, keepdim=True), dw


def rows_not_summed(x, weight, eps, grad):
    r, g, _ = parts(x, weight, eps, grad)
    return r * g - x * r**3 * (g * x).mean(-1, keepdim=True), grad * x * r


def only_dx(x, weight, eps, grad):
    return rms_norm_backward(x, weight, eps, grad)[0]


def pair(large, small, dtype=torch.float16):
    return lambda: (torch.tensor([large, 0, 0, large], dtype=dtype), torch.tensor([small] * 4, dtype=dtype))


WRONG = [
    ("02.2", eps_outside, "outside the square root"),
    ("02.2", eps_forgotten, "epsilon is missing"),
    ("02.2", weight_forgotten, "forgot the weight"),
    ("02.2", cast_last, "cast back first"),
    ("02.2", no_cast, "overflows in fp16"),
    ("02.2", stays_in_fp32, "stayed in fp32"),
    ("02.2", mean_square, "divided by the mean square"),
    ("02.2", vector_length, "not their sum"),
    ("02.2", layer_norm, "LayerNorm"),
    ("02.2", lambda x, _weight, _eps: x[..., 0], "shape should be"),
    ("02.1", silu_on_up, "wrong half"),
    ("02.1", every_second_row, "every second row"),
    ("02.1", silu_on_both, "both halves"),
    ("02.1", no_silu, "silu is missing"),
    ("02.1", sigmoid, "sigmoid"),
    ("02.1", added, "a gate multiplies"),
    ("02.1", down_not_transposed, "raised RuntimeError"),
    ("02.3", rms_is_constant, "as a constant"),
    ("02.3", wrong_sign, "wrong sign"),
    ("02.3", weight_not_in_second_term, "missing in the second term"),
    ("02.3", sum_of_channels, "mean over channels"),
    ("02.3", r_not_cubed, "r³, not r:"),
    ("02.3", r_squared, "r³, not r²"),
    ("02.3", no_weight_in_dx, "missing in dx"),
    ("02.3", rows_not_summed, "summed over all rows"),
    ("02.3", only_dx, "the result should be"),
    ("02.4", pair(300.0, 0.0), "small is the zero vector"),
    ("02.4", pair(300.0, 1e-9), "small is the zero vector"),  # fp16 stores 0
    ("02.4", pair(0.0, 1e-5), "large is the zero vector"),
    ("02.4", pair(1e5, 1e-5), "inf or NaN itself"),  # fp16 stores inf
    ("02.4", pair(255.0, 1e-5), "large survives"),
    ("02.4", pair(300.0, 0.01), "small survives"),
    ("02.4", pair(300.0, 1e-5, torch.float32), "not in fp16"),
    ("02.4", lambda: (torch.ones(5).half(), torch.ones(4).half()), "shape"),
    ("02.4", lambda: None, "raised TypeError"),
]


@pytest.mark.parametrize(("exercise", "answer", "phrase"), WRONG)
def test_each_mistake_is_named(exercise, answer, phrase):
    result = check(exercise, answer)
    assert not result
    assert phrase in result.message


def test_phrases_are_distinct_messages():
    from llamamm.course.checks.lesson02 import EXERCISES

    for exercise in EXERCISES:
        wrong = [m.message for m in exercise.mistakes]
        assert len(wrong) >= 3
        for mistake in exercise.mistakes:
            assert check(exercise.id, mistake.answer).message == mistake.message
