"""course.checks.lesson09: right answers pass, and each usual mistake is called by its name."""

import numpy as np
import pytest
import torch
from torch import nn

from llamamm.course.checks import check

# ---- right answers, written another way than the reference ----


def count(cfg, r, targets):
    total = 0
    for name in targets:
        if name in ("q_proj", "o_proj"):
            total += cfg.hidden_size + cfg.n_heads * cfg.head_dim
        elif name in ("k_proj", "v_proj"):
            total += cfg.hidden_size + cfg.n_kv_heads * cfg.head_dim
        else:
            total += cfg.hidden_size + cfg.intermediate_size
    return total * r * cfg.n_layers


class Layer(nn.Module):
    def __init__(self, base, r, alpha):
        super().__init__()
        self.base, self.r, self.alpha = base, r, alpha
        for p in base.parameters():
            p.requires_grad = False
        self.a = nn.Parameter(torch.rand(r, base.in_features) - 0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, r))

    def forward(self, x):
        return self.base(x) + (x @ self.a.T @ self.b.T) * self.alpha / self.r


def merge(weight, a, b, alpha):
    out = torch.addmm(weight.float(), b, a, alpha=alpha / len(a))
    return out.to(weight.dtype)


def rank(update, share):
    energy = np.linalg.svd(update.numpy().astype(np.float64), compute_uv=False) ** 2
    held, r = 0.0, 0
    while held < (share - 1e-6) * energy.sum():
        held += energy[r]
        r += 1
    return r


def vanish(weight):
    return torch.full((1, weight.shape[1]), -0.0006), torch.ones(len(weight), 1)


@pytest.mark.parametrize(
    ("exercise", "answer"), [("09.1", count), ("09.2", Layer), ("09.3", merge), ("09.4", rank), ("09.5", vanish)]
)
def test_the_right_answer_passes(exercise, answer):
    result = check(exercise, answer)
    assert result, result.message


# ---- wrong answers ----


def all_heads(cfg, r, targets):
    total = 0
    for name in targets:
        wide = cfg.n_heads * cfg.head_dim if name in ("q_proj", "k_proj", "v_proj", "o_proj") else cfg.intermediate_size
        total += r * (cfg.hidden_size + wide)
    return cfg.n_layers * total


def only_a(cfg, r, targets):
    inputs = {"o_proj": cfg.n_heads * cfg.head_dim, "down_proj": cfg.intermediate_size}
    return sum(r * inputs.get(name, cfg.hidden_size) for name in targets) * cfg.n_layers


def only_b(cfg, r, targets):
    outputs = {"q_proj": cfg.n_heads * cfg.head_dim, "k_proj": cfg.n_kv_heads * cfg.head_dim,
               "v_proj": cfg.n_kv_heads * cfg.head_dim, "gate_proj": cfg.intermediate_size,
               "up_proj": cfg.intermediate_size}  # fmt: skip
    return sum(r * outputs.get(name, cfg.hidden_size) for name in targets) * cfg.n_layers


def width_for_queries(cfg, r, targets):
    total = 0
    for name in targets:
        other = {"q_proj": cfg.hidden_size, "o_proj": cfg.hidden_size, "k_proj": cfg.n_kv_heads * cfg.head_dim,
                 "v_proj": cfg.n_kv_heads * cfg.head_dim}.get(name, cfg.intermediate_size)  # fmt: skip
        total += cfg.hidden_size + other
    return total * r * cfg.n_layers


def narrow_feed_forward(cfg, r, targets):
    total = sum(2 * cfg.hidden_size for name in targets if name in ("gate_proj", "up_proj", "down_proj"))
    attention = [name for name in targets if name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    return total * r * cfg.n_layers + count(cfg, r, attention)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(all_heads, "n_kv_heads x head_dim"), (only_a, "A alone"), (only_b, "B alone"),
     (width_for_queries, "n_heads x head_dim numbers"), (narrow_feed_forward, "intermediate_size wide"),
     (lambda cfg, r, targets: count(cfg, r, targets) // cfg.n_layers, "one block"),
     (lambda cfg, r, targets: count(cfg, 1, targets) if r else 0, "left out the rank"),
     (lambda cfg, r, targets: 2 * count(cfg, r, targets), "r twice"),
     (lambda *_: "many", "should be a number"),
     (lambda cfg, r, targets: count(cfg, r, targets) + 1, "in case 1 of 5")],  # fmt: skip
)  # fmt: skip
def test_counting(answer, message):
    result = check("09.1", answer)
    assert not result
    assert message in result.message


class BothRandom(Layer):
    def __init__(self, base, r, alpha):
        super().__init__(base, r, alpha)
        self.b = nn.Parameter(torch.randn(base.out_features, r))


class BothZero(Layer):
    def __init__(self, base, r, alpha):
        super().__init__(base, r, alpha)
        nn.init.zeros_(self.a)


class AZero(BothRandom):
    def __init__(self, base, r, alpha):
        super().__init__(base, r, alpha)
        nn.init.zeros_(self.a)


class NoScale(Layer):
    def forward(self, x):
        return self.base(x) + (x @ self.a.T) @ self.b.T


class OnlyAlpha(Layer):
    def forward(self, x):
        return self.base(x) + self.alpha * (x @ self.a.T) @ self.b.T


class Trains(Layer):
    def __init__(self, base, r, alpha):
        super().__init__(base, r, alpha)
        base.requires_grad_(True)


class NoBase(Layer):
    def forward(self, x):
        return (x @ self.a.T @ self.b.T) * self.alpha / self.r


class NoBias(Layer):
    def forward(self, x):
        return x @ self.base.weight.T + (x @ self.a.T @ self.b.T) * self.alpha / self.r


class Unused(Layer):
    def forward(self, x):
        return self.base(x)


class Tensors(nn.Module):
    def __init__(self, base, r, alpha):  # noqa: ARG002 (the exercise's arguments)
        super().__init__()
        self.a, self.b = torch.randn(r, base.in_features), torch.zeros(base.out_features, r)


class Transposed(Layer):
    def __init__(self, base, r, alpha):
        super().__init__(base, r, alpha)
        self.a = nn.Parameter(torch.randn(base.in_features, r))


@pytest.mark.parametrize(
    ("answer", "message"),
    [(BothRandom, "B begins random"), (BothZero, "neither ever gets a gradient"), (AZero, "the other way round"),
     (NoScale, "left out the scale"), (OnlyAlpha, "divide it by r"), (Trains, "base still trains"),
     (NoBase, "update alone"), (NoBias, "base's bias"), (Unused, "never uses A and B"),
     (Tensors, "no nn.Parameter called a and b"), (Transposed, "a should have the shape (2, 7)")],  # fmt: skip
)  # fmt: skip
def test_the_layer(answer, message):
    result = check("09.2", answer)
    assert not result
    assert message in result.message


def in_place(weight, a, b, alpha):
    weight += (alpha / a.shape[0] * (b @ a)).to(weight.dtype)
    return weight


@pytest.mark.parametrize(
    ("answer", "message"),
    [(lambda w, a, b, alpha: (w.float() + b @ a).to(w.dtype), "left out the scale"),  # noqa: ARG005 (the mistake)
     (lambda w, a, b, alpha: (w.float() + alpha * b @ a).to(w.dtype), "divide it by r"),
     (lambda w, a, b, alpha: w + (alpha / len(a) * b @ a).to(w.dtype), "before adding"),
     (lambda w, a, b, alpha: w + alpha / len(a) * (b.to(w.dtype) @ a.to(w.dtype)), "keep them in fp32"),
     (lambda w, a, b, alpha: w.float() + alpha / len(a) * b @ a, "weight's own dtype"),
     (lambda w, a, b, alpha: (alpha / len(a) * b @ a).to(w.dtype), "update alone"),
     (lambda w, a, b, alpha: w.copy_(merge(w, a, b, alpha)), "changed the weight that was given"),
     (in_place, ""),
     (lambda w, a, b, alpha: merge(w, b, a, alpha), "it raised")],  # fmt: skip
)  # fmt: skip
def test_merging(answer, message):
    result = check("09.3", answer)
    assert not result
    assert message in result.message


def by_values(update, share):
    s = torch.linalg.svdvals(update)
    return 0 if s.sum() == 0 else int((s.cumsum(0) < (share - 1e-6) * s.sum()).sum()) + 1


def one_too_few(update, share):
    return rank(update, share) - 1


def above_share_of_largest(update, share):
    e = torch.linalg.svdvals(update) ** 2
    return 0 if e.sum() == 0 else int((e >= share * e[0]).sum())


def weakest_first(update, share):
    e = torch.linalg.svdvals(update.double()).flip(0) ** 2
    return 0 if e.sum() == 0 else int((e.cumsum(0) < (share - 1e-6) * e.sum()).sum()) + 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [(by_values, "sum of their squares"), (one_too_few, "one too few"), (weakest_first, "weakest"),
     (above_share_of_largest, "compared each with the largest"),
     (lambda update, share: rank(update, share) + 1, "one too many"),
     (lambda update, share: rank(update, share) if update.any() else 1, "zeros needs no rank"),
     (lambda *_: float("nan"), "should be 1, got nan"),
     (lambda update, _: int(torch.linalg.matrix_rank(update)), "in case 1 of 7")],  # fmt: skip
)  # fmt: skip
def test_rank(answer, message):
    result = check("09.4", answer)
    assert not result
    assert message in result.message


def strips(step):
    return lambda weight: (torch.full((1, weight.shape[1]), step), torch.ones(len(weight), 1))


@pytest.mark.parametrize(
    ("answer", "message"),
    [(strips(0.0), "update is zero"), (strips(0.1), "more than rounding takes away"),
     (strips(1 / 600), "exactly 0.5"), (strips(-1 / 600), "exactly 0.5"), (strips(1e-5), "it whispers"),
     (lambda w: (torch.full((1, w.shape[1]), 1 / 1100), torch.cat((torch.ones(1, 1), torch.zeros(len(w) - 1, 1)))),
      "it whispers"),
     (strips(float("inf")), "NaN or infinity"),
     (lambda w: (torch.ones(w.shape[1], 1), torch.ones(1, len(w))), "a should be (1, 8)"),
     (lambda w: tuple(t.bfloat16() for t in vanish(w)), "fp32"),
     (lambda w: vanish(w)[0], "return two tensors")],  # fmt: skip
)  # fmt: skip
def test_an_adapter_that_does_not_vanish(answer, message):
    result = check("09.5", answer)
    assert not result
    assert message in result.message
