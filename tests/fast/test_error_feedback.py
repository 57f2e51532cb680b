"""fast.error_feedback: less error of the product than rounding to nearest, equal to it where inputs have nothing in
common, and never NaN."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamm import Llama3Model, TextConfig
from llamamm.errors import InputError
from llamamm.fast.error_feedback import Moments, fed_back, quantize_by_feedback
from llamamm.fast.quantized import QuantizedLinear, quantize, rounded

CFG = TextConfig.tiny(hidden_size=64, intermediate_size=192, n_heads=4, n_kv_heads=4, vocab_size=512)
IDS = torch.randint(0, 512, (8, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Llama3Model(CFG).eval()


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(n, c, seed=0):
    """Inputs that share directions, as activations do, some of them large."""
    return normal(n, 8, seed=seed) @ normal(8, c, seed=seed + 1) * normal(c, seed=seed + 2) + 0.1 * normal(n, c, seed=3)


def meant(codes, scales, group):
    return codes.float() * scales.float().repeat_interleave(group, dim=1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([8, 4]), st.sampled_from([32, 64, 128]))
def test_the_product_is_nearer_than_by_rounding(seed, bits, group):
    weight, x = normal(64, 256, seed=seed), correlated(512, 256, seed)
    fed, plain = fed_back(weight, (x.T @ x).double(), bits, group), rounded(weight, bits, group)
    errors = [(x @ (weight - meant(*of, group)).T).square().mean() for of in (fed, plain)]
    assert errors[0] < 0.8 * errors[1]
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    assert fed[0].min() >= low and fed[0].max() <= high and fed[1].dtype == torch.float16


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([8, 4]), st.sampled_from([32, 64, 128]))
def test_inputs_with_nothing_in_common_give_rounding_to_nearest(seed, bits, group):
    weight = normal(64, 128, seed=seed)
    found = fed_back(weight, normal(128, seed=seed + 1).square().diag().double(), bits, group)
    assert all(torch.equal(a, b) for a, b in zip(found, rounded(weight, bits, group), strict=True))


def test_one_step_by_hand():
    """Two columns that always agree: what the first loses, the second gives back."""
    weight = torch.zeros(64, 32)
    weight[:, :3] = torch.tensor([0.4, 0.4, 8.0])  # a scale of -1: 0.4 is rounded to 0
    x = torch.zeros(10, 32)
    x[:, 0], x[:, 1] = 1.0, 1.0
    codes, scales = fed_back(weight, (x.T @ x).double(), 4, 32, damping=1e-6)
    assert scales.eq(-1).all() and codes[0, :3].tolist() == [0, -1, -8]  # 0.4 + 0.4 is nearer to 1 than to 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["dead", "all dead", "few", "huge", "zero weights", "twins"]))
def test_never_nan(seed, trouble):
    weight, x = normal(64, 128, seed=seed), correlated(300, 128, seed)
    if trouble == "dead":
        x[:, 5:40] = 0
    elif trouble == "all dead":
        x.zero_()
    elif trouble == "few":
        x = x[:2]
    elif trouble == "huge":
        x *= 1e6
    elif trouble == "twins":
        x[:, 64:] = x[:, :64]
    else:
        weight[:, :64] = 0
    codes, scales = fed_back(weight, (x.T @ x).double(), 4, 32)
    assert meant(codes, scales, 32).isfinite().all()
    if "dead" in trouble:  # what the text does not show is rounded to nearest
        dead = slice(8, 32) if trouble == "dead" else slice(None)
        step = scales.float().abs().repeat_interleave(32, dim=1)[:, dead]
        assert ((weight - meant(codes, scales, 32))[:, dead].abs() <= 1.01 * step).all()


def test_a_model_answers_more_like_itself(model):
    with torch.no_grad():
        whole = model(IDS)
        plain = quantize(copy.deepcopy(model), 4)(IDS)
        told = []
        fed = quantize_by_feedback(copy.deepcopy(model), 4, IDS, say=lambda n, all_: told.append((n, all_)))
        kinds = {type(m) for n, m in fed.named_modules() if n.endswith("_proj") or n == "lm_head"}
        assert kinds == {QuantizedLinear} and told == [(1, 3), (2, 3), (3, 3)]
        assert (fed(IDS) - whole).square().mean() < 0.7 * (plain - whole).square().mean()
        again = quantize_by_feedback(copy.deepcopy(model), 4, IDS, batch_size=3)  # the batch changes nothing
        assert (again(IDS) - fed(IDS)).abs().max() < 0.1 * (fed(IDS) - whole).abs().max()


def test_a_block_reads_what_quantized_blocks_before_it_give(model, monkeypatch):
    seen, add = [], Moments.add

    def note(self, x):
        seen.append(x.clone())
        add(self, x)

    monkeypatch.setattr(Moments, "add", note)
    fed = quantize_by_feedback(model, 4, IDS, batch_size=8)
    entered = []
    fed.layers[1].self_attn.q_proj.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    with torch.no_grad():
        fed(IDS)
    assert any(torch.allclose(x, entered[0], atol=1e-5) for x in seen if x.shape == entered[0].shape)


def test_refusals_leave_the_model_as_it_was(model):
    before = dict(model.named_modules())
    with pytest.raises(InputError, match=r"has 64 tokens, and the widest linear 192 inputs.*give more text"):
        quantize_by_feedback(model, 4, IDS[:2])
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf
    with pytest.raises(InputError, match=r"layers.1.mlp\.\w+: .*not finite"):
        quantize_by_feedback(model, 4, IDS)
    assert dict(model.named_modules()) == before
    with pytest.raises(InputError, match="8 or 4 bits"):
        quantize_by_feedback(model, 3, IDS)
