"""text.layers: hand-computed values, and equality with transformers."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from llamamm import FeedForward, RMSNorm, TextConfig
from llamamm.text.layers import Linear


def test_rmsnorm_by_hand():
    norm = RMSNorm(2, eps=0.5)
    norm.weight.data = torch.tensor([1.0, 10.0])
    # mean of squares of (3, 4) is 12.5; with eps 13; 1 / sqrt(13) = 0.27735
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0])), torch.tensor([0.83205, 11.09400]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rmsnorm_equals_transformers_bit_for_bit(dtype, generator):
    ours, theirs = RMSNorm(64, eps=1e-5, dtype=dtype), LlamaRMSNorm(64, eps=1e-5).to(dtype)
    ours.weight.data = torch.randn(64, generator=generator).to(dtype)
    theirs.weight.data = ours.weight.data.clone()
    x = (100 * torch.randn(3, 5, 64, generator=generator)).to(dtype)
    assert torch.equal(ours(x), theirs(x))
    assert ours(x).dtype == dtype


def test_rmsnorm_of_large_bf16_numbers_does_not_overflow():
    x = torch.full((4,), 3e38, dtype=torch.bfloat16) / 1e19
    assert torch.isfinite(RMSNorm(4, dtype=torch.bfloat16)(x)).all()


def test_feed_forward_by_hand():
    ff = FeedForward(TextConfig.tiny(hidden_size=2, n_heads=1, n_kv_heads=1, intermediate_size=1))
    ff.gate_proj.weight.data = torch.tensor([[1.0, 0.0]])
    ff.up_proj.weight.data = torch.tensor([[0.0, 1.0]])
    ff.down_proj.weight.data = torch.tensor([[1.0], [-1.0]])
    # gate 2, silu(2) = 2 / (1 + e^-2) = 1.76159; up 3; product 5.28478
    out = ff(torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(out, torch.tensor([5.28478, -5.28478]), rtol=1e-5, atol=0)


def test_feed_forward_equals_transformers(generator):
    cfg = TextConfig.tiny()
    ours, theirs = FeedForward(cfg), LlamaMLP(LlamaConfig(**cfg.to_hf()))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, cfg.hidden_size, generator=generator)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("rows", [(1,), (1, 1), (4,), (2, 2), (5,), (1, 300)])
@pytest.mark.parametrize("shape", [(576, 192), (300, 516), (512, 513), (8, 8)])
def test_linear_equals_torch_for_any_number_of_rows(rows, shape, generator):
    layer = Linear(*shape)
    x = torch.randn(*rows, shape[0], generator=generator)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight), rtol=0, atol=1e-5)


def test_few_rows_make_no_copy_of_the_weight_and_pass_gradients(generator, monkeypatch):
    layer = Linear(512, 512)
    x = torch.randn(1, 512, generator=generator, requires_grad=True)
    seen = []
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: seen.append((a, b)) or bmm(a, b))
    layer(x).sum().backward()
    (weight, columns), *_ = seen
    assert weight.data_ptr() == layer.weight.data_ptr()
    assert columns.stride() == (0, 1, 512)  # what the fast kernel is chosen by
    torch.testing.assert_close(x.grad[0], layer.weight.sum(dim=0), rtol=0, atol=1e-4)
    torch.testing.assert_close(layer.weight.grad[0], x[0])
