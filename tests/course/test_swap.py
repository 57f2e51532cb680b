"""course.swap: a learner's part in the real model, and the package's part back afterwards, always."""

import copy
import re

import pytest
import torch
from torch import nn

import llamamm.text.attention
import llamamm.text.model
from llamamm import apply_rope
from llamamm.course.swap import _read, _without, real_model, swap
from llamamm.errors import InputError
from llamamm.text.attention import fused_attention, readable_attention
from llamamm.text.cache import KVCache
from llamamm.text.layers import FeedForward, RMSNorm
from llamamm.text.masks import build_mask
from llamamm.text.model import TransformerBlock
from llamamm.text.rope import rotate_half


def right_norm(x, weight, eps):
    return weight * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def right_feed_forward(x, gate, up, down):
    return (nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


class RightNorm(nn.Module):
    def forward(self, x):
        return right_norm(x, self.weight, self.eps)


class RightBlock(nn.Module):
    def forward(self, x, cos, sin, *, mask=None, cache=None):
        y = self.self_attn(self.input_layernorm(x), cos, sin, mask=mask, cache=cache)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x))


class CatCache:
    def __init__(self, cfg, **_):
        self.parts, self.length, self.max_length = {}, 0, cfg.context_length

    def update(self, layer, k, v):
        if layer in self.parts:
            k, v = (torch.cat((old, new), dim=2) for old, new in zip(self.parts[layer], (k, v), strict=True))
        self.parts[layer] = k, v
        return k, v

    def advance(self, n):
        self.length += n


class LeakyCache(CatCache):
    def update(self, layer, k, v):
        return super().update(layer, k, torch.zeros_like(v))


def left_rope(x, cos, sin):
    return x * cos - rotate_half(x) * sin


RIGHT = {
    "rope": lambda x, cos, sin: x * cos + rotate_half(x) * sin, "norm": right_norm, "feed_forward": right_feed_forward,
    "attention": readable_attention, "mask": build_mask, "cache": CatCache, "block": RightBlock,
}  # fmt: skip
WRONG = {
    "rope": left_rope,
    "norm": lambda x, weight, eps: x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps),  # noqa: ARG005
    "feed_forward": lambda x, gate, up, down: ((x @ gate.T) * nn.functional.silu(x @ up.T)) @ down.T,
    "attention": lambda q, k, v, mask: readable_attention(q, k, v, torch.ones(q.shape[2], k.shape[2]).bool()),  # noqa: ARG005
    "cache": LeakyCache,
}


def state():
    return (llamamm.text.attention.apply_rope, llamamm.text.model.build_mask, llamamm.text.model.KVCache,
            RMSNorm.forward, FeedForward.forward, TransformerBlock.forward)  # fmt: skip


@pytest.fixture(autouse=True)
def everything_is_back():
    before = state()
    yield
    assert state() == before == (apply_rope, build_mask, KVCache, *before[3:])


@pytest.fixture
def three_layers(monkeypatch):
    """The real model's first three layers: as good for where a part goes in, and faster than all thirty."""
    whole, tokenizer = real_model()
    model = copy.copy(whole)
    model._modules = {**whole._modules, "layers": whole.layers[:3]}
    monkeypatch.setattr("llamamm.course.swap.real_model", lambda: (model, tokenizer))


def test_right_parts_leave_the_real_answer(capsys):
    with swap(**RIGHT) as report:
        assert len(report.model.layers) == 30
        assert report.logit_difference < 1e-3
        assert report.text == report.text_before == "The capital of France is Paris."
    assert "without: 'The capital of France is Paris.'\nthe same text\n" in capsys.readouterr().out


def test_a_wrong_part_loses_the_real_answer(capsys):
    with swap(rope=left_rope, max_new_tokens=9) as report:  # the right answer is whole with 8
        assert report.answer("What is the capital of France?", max_new_tokens=9) == report.text
        assert "Paris" not in report.text
    shown = f"without: 'The capital of France is Paris.'\nwith yours: {report.text!r}\n"
    assert capsys.readouterr().out.endswith(shown)
    assert "Paris" in report.answer("What is the capital of France?", max_new_tokens=9)
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("three_layers")
@pytest.mark.parametrize("part", RIGHT)
def test_a_right_part_changes_nothing_to_speak_of(part, capsys):
    with swap(max_new_tokens=5, **{part: RIGHT[part]}) as report:
        assert report.logit_difference < 1e-3
        assert report.text == report.text_before != ""
        assert "the same text" in capsys.readouterr().out


@pytest.mark.usefixtures("three_layers")
@pytest.mark.parametrize("part", WRONG)
def test_a_wrong_part_shows(part, capsys):
    with swap(max_new_tokens=5, **{part: WRONG[part]}) as report:
        assert report.logit_difference > 0.1
    out = capsys.readouterr().out
    assert re.search(f"largest logit difference: .*\nwithout: {re.escape(repr(report.text_before))}\n", out)


@pytest.mark.usefixtures("three_layers")
def test_a_module_class_is_taken_too():
    with swap(norm=RightNorm, quiet=True, max_new_tokens=2) as report:
        assert report.logit_difference < 1e-3


@pytest.mark.usefixtures("three_layers")
def test_a_part_that_makes_nan_is_named_as_the_culprit(capsys):
    with swap(norm=lambda x, weight, eps: weight * torch.log(x) + eps, max_new_tokens=2) as report:
        assert "your part" in report.answer("Why is the sky blue?")
    out = capsys.readouterr().out
    assert "largest logit difference: nan" in out and "with your part in it, the model's logits are NaN" in out


@pytest.mark.usefixtures("three_layers")
def test_nested_swaps_and_exceptions_are_undone_in_order():
    with pytest.raises(ZeroDivisionError), swap(norm=right_norm, quiet=True, max_new_tokens=1):
        inner = RMSNorm.forward
        with swap(rope=left_rope, quiet=True, max_new_tokens=1):
            assert llamamm.text.attention.apply_rope is left_rope
        assert llamamm.text.attention.apply_rope is apply_rope and RMSNorm.forward is inner
        raise ZeroDivisionError


@pytest.mark.usefixtures("three_layers")
def test_what_the_part_raises_comes_out_with_the_model_restored():
    def broken(*_):
        raise RuntimeError("not today")

    with pytest.raises(RuntimeError, match="not today"), swap(attention=broken, max_new_tokens=1):
        pass
    with swap(attention=fused_attention, quiet=True, max_new_tokens=1) as report:
        assert report.logit_difference == 0


@pytest.mark.parametrize(
    ("parts", "message"),
    [({}, "nothing"), ({"ropes": apply_rope}, "rope, norm.*ropes"), ({"rope": 3}, "function or class, got 3")],
)
def test_what_cannot_be_swapped_is_refused(parts, message):
    with pytest.raises(InputError, match=message):
        swap(**parts)


def test_a_block_must_be_a_module_class():
    with pytest.raises(InputError, match="module class"), swap(block=lambda x: x, max_new_tokens=1):
        pass


@pytest.mark.usefixtures("three_layers")
def test_the_model_as_it_is_is_read_once_and_one_inside_another_swap_anew(monkeypatch):
    """What is not changed gives the same each time; inside a swap, "without" is with the outer part alone."""
    _without.cache_clear()
    read = []
    monkeypatch.setattr("llamamm.course.swap._read", lambda *given: read.append(given) or _read(*given))
    with swap(norm=right_norm, quiet=True, max_new_tokens=1):
        pass
    assert len(read) == 2
    with swap(rope=left_rope, quiet=True, max_new_tokens=1) as outer:
        assert len(read) == 3
        with swap(norm=right_norm, quiet=True, max_new_tokens=1) as inner:
            assert len(read) == 5
    assert outer.logit_difference > 1 and inner.logit_difference < 1e-3 and swap.n_open == 0
    with torch.no_grad(), swap(rope=left_rope, quiet=True, max_new_tokens=1):
        assert len(read) == 6
    weight = real_model()[0].norm.weight
    before = weight.data.clone()
    with torch.no_grad():
        weight.zero_()
        with swap(norm=right_norm, quiet=True, max_new_tokens=1) as report:
            assert len(read) == 8 and report.logit_difference == 0
        weight.copy_(before)
