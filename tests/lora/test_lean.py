"""lora.lean: the outputs and gradients of the blocks themselves, with less kept; all else is left to the blocks."""

from contextlib import nullcontext

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from llamamm.lora.lean import lean_blocks
from llamamm.lora.lora import apply_lora, lora_modules, merge_lora
from llamamm.text import attention
from llamamm.text.config import TextConfig
from llamamm.text.layers import RMSNorm
from llamamm.text.masks import causal_mask
from llamamm.text.model import Llama3Model

B, T = 2, 12
SEGMENTS = torch.tensor([[1] * 5 + [2] * 7, [1] * 9 + [2] * 2 + [0]])  # rows of two texts, one with filling


@pytest.fixture
def ids():
    return torch.randint(0, 256, (B, T), generator=torch.Generator().manual_seed(1))


def build(**options):
    """A small Llama with adapters that are no longer zero, and norms that are not all ones."""
    torch.manual_seed(0)
    model = Llama3Model(TextConfig.tiny(vocab_size=256))
    for module in model.modules():
        if isinstance(module, RMSNorm):
            torch.nn.init.normal_(module.weight, mean=1.0, std=0.3)
        elif isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.2)
    apply_lora(model, **{"r": 3, "alpha": 5.0, **options})
    for module in lora_modules(model).values():
        for b in module.lora_b.values():
            torch.nn.init.normal_(b, std=0.2)
    return model.train()


def trained(model, ids, *, lean, **options):
    """Output, gradients by name, and the numbers that PyTorch keeps for them besides parameters."""
    model.zero_grad()
    kept = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with lean_blocks(model) if lean else nullcontext(), saved_tensors_hooks(note, lambda tensor: tensor):
        out = model.hidden_states(ids, **options)
    if out.requires_grad:
        out.square().sum().backward()
    return out.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


def assert_same(model, ids, **options):
    """-> how much of the memory is kept."""
    plain, wanted, most = trained(model, ids, lean=False, **options)
    lean, found, kept = trained(model, ids, lean=True, **options)
    torch.testing.assert_close(lean, plain, rtol=1e-5, atol=1e-5)
    assert found.keys() == wanted.keys() and wanted
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-4 * float(grad.abs().max()), msg=name)
    return kept / most


@pytest.mark.parametrize(
    "options",
    [{}, {"targets": ["q_proj", "v_proj"]}, {"targets": ["down_proj", "o_proj", "k_proj"]}, {"layers": [1]},
     {"rslora": True, "r": 1}],
    ids=str,
)  # fmt: skip
def test_gradients_are_those_of_the_blocks(ids, options):
    assert assert_same(build(**options), ids) < (1 if "targets" in options or "layers" in options else 0.75)


def test_texts_that_share_a_row_do_not_see_each_other(ids):
    assert assert_same(build(), ids, segments=SEGMENTS) < 0.75


def test_what_enters_the_first_block_gets_its_gradient(ids):
    model = build()
    model.embed_tokens.weight.requires_grad_(True)  # as a picture's tokens do, whose bridge trains
    assert_same(model, ids)


def test_a_frozen_model_passes_gradients_on(ids):
    model = build()
    model.requires_grad_(False)
    model.embed_tokens.weight.requires_grad_(True)
    assert assert_same(model, ids) < 1


def test_only_the_active_adapter_learns(ids):
    model = build()
    apply_lora(model, r=2, alpha=4.0, targets=["up_proj"], name="other")
    assert_same(model, ids)
    merge_lora(model)
    model.embed_tokens.weight.requires_grad_(True)
    assert_same(model, ids)


def test_gradients_add_up_over_pieces(ids):
    model = build()
    with lean_blocks(model):
        for row in ids:
            model.hidden_states(row[None]).square().sum().backward()
    summed = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    _, wanted, _ = trained(model, ids, lean=False)
    for name, grad in wanted.items():
        torch.testing.assert_close(summed[name], grad, rtol=1e-4, atol=1e-4 * float(grad.abs().max()))


def test_backward_may_run_twice(ids):
    model = build()
    with lean_blocks(model):
        loss = model.hidden_states(ids).square().sum()
    loss.backward(retain_graph=True)
    once = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    loss.backward()
    for name, grad in once.items():
        torch.testing.assert_close(model.get_parameter(name).grad, 2 * grad)


# ---- what it leaves to the blocks ----


def hooked(model, _patch):
    model.layers[0].mlp.up_proj.register_forward_hook(lambda _module, _inputs, out: out * 2)
    model.layers[1].mlp.up_proj.register_forward_hook(lambda _module, _inputs, out: out * 2)


def own_norm(_model, patch):
    patch.setattr(RMSNorm, "forward", lambda self, x: x * self.weight)


def own_rope(_model, patch):
    patch.setattr(attention, "apply_rope", lambda x, cos, sin: x * cos * 2 + sin)


def trained_norm(model, _patch):
    for layer in model.layers:
        layer.input_layernorm.weight.requires_grad_(True)


@pytest.mark.parametrize("change", [hooked, own_norm, own_rope, trained_norm])
def test_what_a_block_does_differently_is_done(ids, change, monkeypatch):
    model = build()
    change(model, monkeypatch)
    assert assert_same(model, ids) == 1


def test_dora_and_dropout_run_as_before(ids):
    assert assert_same(build(dora=True), ids) == 1
    model = build(dropout=0.5)
    outs = []
    for lean in (False, True):
        torch.manual_seed(2)
        outs.append(trained(model, ids, lean=lean)[0])
    assert torch.equal(*outs)
    model.eval()  # nothing is dropped
    assert assert_same(model, ids) < 0.75


def test_autocast_runs_as_before(ids):
    model = build()
    with torch.autocast("cpu", torch.bfloat16):
        plain, lean = (trained(model, ids, lean=lean)[0] for lean in (False, True))
    assert torch.equal(plain, lean)


def test_attention_is_the_models_own(ids):
    model = build()
    for layer in model.layers:
        layer.self_attn.attend = lambda q, k, v, mask: attention.readable_attention(
            q, k, v, causal_mask(T)[None, None] if mask is None else mask) + 1  # fmt: skip
    assert_same(model, ids)


def test_afterwards_the_model_is_as_it_was():
    model = build()
    with pytest.raises(RuntimeError, match="in the block"), lean_blocks(model):
        assert all("forward" in layer.__dict__ for layer in model.layers)
        raise RuntimeError("in the block")
    assert not any("forward" in layer.__dict__ for layer in model.layers)


def test_without_gradients_blocks_run_themselves(ids):
    model = build()
    with torch.no_grad():
        plain, lean = (trained(model, ids, lean=lean)[0] for lean in (False, True))
    assert torch.equal(plain, lean)
    cache = model.make_cache(B)
    with torch.no_grad(), lean_blocks(model):
        torch.testing.assert_close(model.hidden_states(ids, cache=cache), plain)
    assert cache.length == T
