"""fast.quantized: whole numbers and scales by llama.cpp's rule, side by side and back, beside adapters."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamm import Llama3Model, TextConfig, apply_lora, generate, merge_lora
from llamamm.errors import ConfigError, InputError
from llamamm.fast import quantized
from llamamm.fast.quantized import (
    NarrowLinear,
    QuantizedLinear,
    lay_side_by_side,
    narrow,
    quantize,
    quantized_linears,
    rounded,
)

CFG = TextConfig.tiny(hidden_size=64, intermediate_size=192, n_heads=4, n_kv_heads=4, vocab_size=512)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Llama3Model(CFG).eval()


def weights(n, c, seed=0):
    return torch.randn(n, c, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([8, 4]), st.sampled_from([32, 64, 128]), st.floats(1e-3, 1e3))
def test_each_number_is_the_nearest_that_its_scale_allows(seed, bits, group, size):
    weight = weights(64, 256, seed) * size
    codes, scales = rounded(weight, bits, group)
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    assert codes.min() >= low and codes.max() <= high
    step = scales.float().abs().repeat_interleave(group, dim=1)
    meant = codes.float() * scales.float().repeat_interleave(group, dim=1)
    clipped = codes == high if bits == 4 else torch.zeros_like(codes, dtype=torch.bool)
    assert ((weight - meant).abs() <= step * 0.51)[~clipped].all()
    assert ((weight - meant).abs() <= step * 1.01)[clipped].all()  # the end of the range is one short


def test_numbers_by_hand():
    weight = torch.zeros(64, 32)
    weight[0, :3] = torch.tensor([1.27, -0.5, 0.004])
    codes, scales = rounded(weight, 8, 32)
    assert codes[0, :3].tolist() == [127, -50, 0] and scales[0, 0].item() == pytest.approx(0.01, rel=1e-3)
    codes, scales = rounded(weight, 4, 32)
    assert codes[0, :3].tolist() == [-8, 3, 0] and scales[0, 0].item() == pytest.approx(-1.27 / 8, rel=1e-3)
    assert scales[1:].eq(0).all() and codes[1:].eq(0).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_side_by_side_and_back(bits, group):
    weight = weights(128, 256)
    codes, scales = rounded(weight, bits, group)
    linear = QuantizedLinear.of(weight, bits=bits, group=group)
    assert torch.equal(linear.whole_numbers(), codes)
    meant = codes.float() * scales.float().repeat_interleave(group, dim=1)
    assert torch.equal(linear.weight, meant)
    x = weights(3, 256, seed=1)
    torch.testing.assert_close(linear(x), x @ meant.T)
    n_bytes = sum(buffer.nbytes for buffer in linear.buffers())
    assert n_bytes == weight.numel() * bits // 8 + weight.numel() // group * 2


@pytest.mark.parametrize("bits", [8, 4])
def test_block_by_block_the_product_and_its_gradient_are_those_of_the_whole_weight(bits, monkeypatch):
    """Blocks of two tiles, and a last one that is shorter."""
    monkeypatch.setattr(quantized, "AT_ONCE", 2 * 64 * 128 + 1)
    linear = QuantizedLinear.of(weights(5 * 64, 128), bits=bits, group=64)
    assert [len(block) for block in linear.blocks()] == [128, 128, 64]
    x, whole = weights(3, 128, seed=1).requires_grad_(), weights(3, 128, seed=1).requires_grad_()
    wanted = torch.nn.functional.linear(whole, linear.weight)
    torch.testing.assert_close(linear(x), wanted)
    with torch.no_grad():
        torch.testing.assert_close(linear(x), wanted)
    weighting = weights(3, 320, seed=2)
    ((linear(x) * weighting).sum() + (wanted * weighting).sum()).backward()
    torch.testing.assert_close(x.grad, whole.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_of_the_weight_is_kept_for_the_gradient(dtype):
    linear, kept = QuantizedLinear.of(weights(256, 128), bits=8), []
    x = weights(3, 128, seed=1).to(dtype).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        out = linear(x)
        out.sum().backward()
    assert max(kept, default=0) < 256 * 128 and out.dtype == x.grad.dtype == dtype


@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_stays_on_its_device(bits):
    """The meta device computes nothing, and refuses what would go through another device."""
    linear = QuantizedLinear(128, 192, bits=bits, group=64).to("meta")
    x = torch.empty(2, 3, 128, device="meta", dtype=torch.bfloat16, requires_grad=True)
    out = linear(x)
    assert out.shape == (2, 3, 192) and out.device.type == "meta" and out.dtype == torch.bfloat16
    assert linear.weight.device.type == linear.rows()[0].device.type == "meta"


def test_a_model_in_eight_bits_is_near_and_smaller(model):
    ids = torch.arange(20)[None]
    with torch.no_grad():
        whole = model(ids)
        assert quantize(model, 8) is model
        assert (model(ids) - whole).abs().max() < 0.02 * whole.abs().max()
    assert {type(m) for n, m in model.named_modules() if n.endswith("_proj") or n == "lm_head"} == {QuantizedLinear}
    assert not any("proj" in name for name, _ in model.named_parameters())
    assert isinstance(model.embed_tokens.weight, torch.nn.Parameter)
    assert model.state_dict()["layers.0.mlp.up_proj.codes"].dtype == torch.uint8
    scales = model.bfloat16().layers[0].mlp.up_proj.scales
    assert scales.dtype == torch.float16  # whatever the rest is cast to


def test_side_by_side_nothing_is_different(model):
    plain = {name: parameter.clone() for name, parameter in model.named_parameters()}
    lay_side_by_side(model)
    assert all(torch.equal(parameter, plain[name]) for name, parameter in model.named_parameters())
    quantize(model, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lay_side_by_side(model)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()) and after.keys() == before.keys()
    linears = quantized_linears(model).values()
    assert len({b.untyped_storage().data_ptr() for linear in linears for b in linear.buffers()}) == 1
    assert all(b.data_ptr() % 64 == 0 for linear in linears for b in linear.buffers())
    other = copy.deepcopy(model)
    other.layers[0].mlp.up_proj.codes.zero_()
    assert model.layers[0].mlp.up_proj.codes.any(), "a copy shares the numbers of its model"


def test_what_has_no_whole_groups_stays():
    torch.manual_seed(0)
    model = quantize(Llama3Model(CFG.replace(vocab_size=500)), 4)
    assert type(model.lm_head) is not QuantizedLinear and type(model.layers[0].mlp.up_proj) is QuantizedLinear


def test_an_adapter_stands_beside_and_learns(model):
    quantize(model, 8)
    apply_lora(model, r=2, alpha=4)
    model(torch.arange(9)[None]).sum().backward()
    grads = [p.grad for n, p in model.named_parameters() if "lora_b" in n]
    assert grads and all(grad.abs().sum() > 0 for grad in grads)
    with pytest.raises(ConfigError, match="take no adapter into them"):
        merge_lora(model)
    assert generate(model, torch.arange(4)[None], 3).shape == (1, 7)


def test_refusals(model):
    for bits in (5, 16, True, "8", 4.0):
        with pytest.raises(InputError, match="8 or 4 bits"):
            quantize(model, bits)
    with pytest.raises(InputError, match="groups of 32, 64 or 128"):
        QuantizedLinear(64, 64, bits=8, group=48)
    with pytest.raises(InputError, match="no whole groups"):
        QuantizedLinear(64, 65, bits=8)
    assert type(model.lm_head) is not QuantizedLinear


# ---- 16 bits that hold all there is ----


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kept_in_16_bits_a_model_is_the_same_bit_for_bit(model, dtype):
    ids = torch.arange(20)[None]
    model.to(dtype).float()  # as a file in 16 bits is loaded with dtype=torch.float32
    with torch.no_grad():
        expected = [model(ids[:, :n]) for n in (8, 20)]
        before = sum(p.nbytes for p in model.parameters())
        assert narrow(model) is model
        assert all(torch.equal(model(ids[:, :n]), logits) for n, logits in zip((8, 20), expected, strict=True))
    linears = [m for name, m in model.named_modules() if name.endswith("_proj") or name == "lm_head"]
    assert {(type(m), m.weight.dtype) for m in linears} == {(NarrowLinear, dtype)}
    assert model.embed_tokens.weight.dtype == torch.float32
    assert sum(p.nbytes for p in model.parameters()) < 0.8 * before
    assert model.half().layers[0].mlp.up_proj.weight.dtype == dtype  # whatever the rest is cast to


def test_what_16_bits_do_not_hold_is_refused_and_nothing_is_changed(model):
    with pytest.raises(InputError, match="layers.0.self_attn.q_proj does not fit in 16 bits"):
        narrow(model)
    assert not any(isinstance(module, NarrowLinear) for module in model.modules())
