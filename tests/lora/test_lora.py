"""lora.lora: equality with peft, toggling bit for bit, merging there and back, only the adapter trains."""

import copy

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from llamamm import (
    Llama3Model,
    LoraLinear,
    TextConfig,
    apply_lora,
    from_pretrained,
    merge_lora,
    save_pretrained,
    set_adapter,
    set_lora_enabled,
    unmerge_lora,
)
from llamamm.errors import CheckpointError, ConfigError
from llamamm.llama32_vision.config import MllamaConfig
from llamamm.llama32_vision.model import MllamaModel
from llamamm.lora.lora import adapter_names, delete_adapter, lora_modules, remove_lora
from llamamm.lora.settings import ALL_TARGETS
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import MultimodalLlama
from llamamm.text.layers import Linear

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

IDS = torch.randint(512, (2, 20), generator=torch.Generator().manual_seed(0))


def randomize(model, *, seed=1, size=0.1):
    """Adapters as after training: B and the magnitudes no longer as they began."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in (m for m in lora_modules(model).values() if m.active):
            module.lora_b[module.active].normal_(0, size, generator=generator)
            if module.active in module.lora_magnitude:
                module.lora_magnitude[module.active].mul_(1.1)
    return model


def hf_llama(model):
    """transformers' model with the same weights."""
    hf = AutoModelForCausalLM.from_config(LlamaConfig(**model.cfg.to_hf()), dtype=model.cfg.dtype).eval()
    hf.load_state_dict({k if k == "lm_head.weight" else f"model.{k}": v for k, v in model.state_dict().items()})
    return hf


def test_a_lora_linear_by_hand():
    linear = Linear(2, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    model = apply_lora(nn.Sequential(linear), r=1, alpha=3, targets="0")
    with torch.no_grad():
        model[0].lora_a["default"].copy_(torch.tensor([[1.0, -1.0]]))
        model[0].lora_b["default"].copy_(torch.tensor([[0.0], [2.0]]))
    # W x = (5, 11); A x = -1; B (A x) = (0, -2); times alpha / r = 3
    assert model(torch.tensor([1.0, 2.0])).tolist() == [5.0, 5.0]
    assert model[0].merged_weight().tolist() == [[1.0, 2.0], [9.0, -2.0]]


def test_a_fresh_adapter_changes_nothing(tiny_model):
    before = tiny_model(IDS)
    for options in ({}, {"dora": True}):
        model = apply_lora(copy.deepcopy(tiny_model), r=4, alpha=8, **options)
        assert torch.allclose(model(IDS), before, atol=1e-6)


OPTIONS = {
    "plain": {}, "rslora": {"rslora": True}, "dora": {"dora": True}, "both": {"rslora": True, "dora": True},
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_logits_and_gradients_equal_peft(tiny_model, options):
    hf = hf_llama(tiny_model)
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=list(ALL_TARGETS), use_rslora="rslora" in options,
                             use_dora="dora" in options)  # fmt: skip
    theirs = peft.get_peft_model(hf, config)
    ours = randomize(apply_lora(tiny_model, r=4, alpha=6, **options))
    with torch.no_grad():
        for path, module in lora_modules(ours).items():
            layer = theirs.get_submodule(f"base_model.model.model.{path}")
            layer.lora_A["default"].weight.copy_(module.lora_a["default"])
            layer.lora_B["default"].weight.copy_(module.lora_b["default"])
            if "dora" in options:
                layer.lora_magnitude_vector["default"].weight.copy_(module.lora_magnitude["default"])
    out, expected = ours(IDS), theirs(IDS).logits
    assert (out - expected).abs().max() < 1e-5
    out.pow(2).sum().backward()
    expected.pow(2).sum().backward()
    for path, module in lora_modules(ours).items():
        layer = theirs.get_submodule(f"base_model.model.model.{path}")
        pairs = [(module.lora_a["default"].grad, layer.lora_A["default"].weight.grad),
                 (module.lora_b["default"].grad, layer.lora_B["default"].weight.grad)]  # fmt: skip
        if "dora" in options:
            pairs.append((module.lora_magnitude["default"].grad, layer.lora_magnitude_vector["default"].weight.grad))
        for ours_grad, their_grad in pairs:
            assert torch.allclose(ours_grad, their_grad, rtol=1e-3, atol=1e-4), path


@pytest.mark.parametrize("merged", [False, True])
def test_switched_off_it_equals_the_base_bit_for_bit(tiny_model, merged):
    before = tiny_model(IDS)
    model = randomize(apply_lora(tiny_model, r=4, alpha=8))
    with_adapter = model(IDS)
    assert (with_adapter - before).abs().max() > 0.01
    if merged:
        merge_lora(model)
    set_lora_enabled(model, False)
    assert torch.equal(model(IDS), before)
    set_lora_enabled(model, True)
    assert torch.allclose(model(IDS), with_adapter, atol=1e-5)


@settings(max_examples=20)
@given(r=st.integers(1, 9), alpha=st.floats(0.5, 32), dora=st.booleans(), rslora=st.booleans(),
       dtype=st.sampled_from([torch.float32, torch.bfloat16]), seed=st.integers(0, 1000))  # fmt: skip
def test_merged_equals_unmerged_and_unmerging_is_exact(r, alpha, dora, rslora, dtype, seed):
    torch.manual_seed(seed)
    model = Llama3Model(TextConfig.tiny(dtype=dtype)).eval()
    own = {k: v.clone() for k, v in model.state_dict().items()}
    randomize(apply_lora(model, r=r, alpha=alpha, dora=dora, rslora=rslora), seed=seed, size=0.02)
    with torch.no_grad():
        apart = model(IDS)
        for _ in range(2):  # twice: idempotent
            merge_lora(model)
            tolerance = 1e-5 if dtype == torch.float32 else 0.05
            assert (model(IDS) - apart).abs().max() <= tolerance * max(1, float(apart.abs().max()))
        for _ in range(2):
            unmerge_lora(model)
            assert torch.equal(model(IDS), apart)
    remove_lora(model)
    assert all(torch.equal(own[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("keep_base", [True, False])
def test_a_merge_that_would_not_be_finite_is_refused_with_nothing_merged(tiny_model, value, keep_base):
    own = {k: v.clone() for k, v in tiny_model.state_dict().items()}
    model = randomize(apply_lora(tiny_model, r=2, alpha=2))
    with torch.no_grad():
        model.layers[1].mlp.down_proj.lora_a["default"][0, 0] = value
    with pytest.raises(ConfigError, match="1 weight, such as layers.1.mlp.down_proj"):
        merge_lora(model, keep_base=keep_base)
    assert not any(m.merged for m in lora_modules(model).values())
    remove_lora(model)
    assert all(torch.equal(own[k], v) for k, v in model.state_dict().items())


def test_merging_for_good_leaves_an_ordinary_model(tiny_model, tmp_path):
    model = randomize(apply_lora(tiny_model, r=4, alpha=8))
    expected = model(IDS)
    with pytest.raises(CheckpointError, match="merge_lora"):
        save_pretrained(model, tmp_path / "no")
    merge_lora(model)
    save_pretrained(model, tmp_path / "kept")
    merge_lora(model, keep_base=False)
    assert not lora_modules(model) and all(p.requires_grad for p in model.parameters())
    save_pretrained(model, tmp_path / "merged")
    for folder in ("kept", "merged"):
        assert torch.allclose(from_pretrained(tmp_path / folder)[0](IDS), expected, atol=1e-5)


def test_only_the_adapter_trains(tiny_model):
    model = apply_lora(tiny_model, r=2, alpha=4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    for _ in range(2):  # B begins at zero, so A moves only from the second step on
        model(IDS).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if ".lora_" in k}
    assert len(changed) == 2 * 7 * 2


def test_several_adapters_switch_and_go(tiny_model):
    base = tiny_model(IDS)
    model = randomize(apply_lora(tiny_model, r=2, alpha=4, name="a"), seed=1)
    first = model(IDS)
    randomize(apply_lora(model, r=3, alpha=4, targets=("q_proj", "o_proj"), layers=[1], name="b"), seed=2)
    second = model(IDS)
    trainable = {k for k, p in model.named_parameters() if p.requires_grad}
    assert trainable and all(k.startswith("layers.1.self_attn") and k.endswith(".b") for k in trainable)
    set_adapter(model, "a")
    assert torch.equal(model(IDS), first)
    set_adapter(model, "b")
    assert torch.equal(model(IDS), second) and not torch.equal(first, second)
    merge_lora(model)
    with pytest.raises(ConfigError, match="unmerge_lora"):
        set_adapter(model, "a")
    with pytest.raises(ConfigError, match="unmerge_lora"):
        apply_lora(model, r=1, alpha=1, name="c")
    unmerge_lora(model)
    randomize(apply_lora(model, r=1, alpha=1, name="c"), seed=3)
    third = model(IDS)
    delete_adapter(model, "b")  # which is not the active one
    assert torch.equal(model(IDS), third) and adapter_names(model) == ["a", "c"]
    set_lora_enabled(model, False)
    delete_adapter(model, "c")
    assert torch.equal(model(IDS), base)  # what was switched off stays off
    set_lora_enabled(model, True)
    assert torch.equal(model(IDS), first) and adapter_names(model) == ["a"]
    delete_adapter(model, "a")
    assert torch.equal(model(IDS), base) and not lora_modules(model)


@pytest.mark.parametrize(
    ("targets", "layers", "expected"),
    [
        ("q_proj", None, ["layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"]),
        (("mlp.up_proj",), [1], ["layers.1.mlp.up_proj"]),
        ("layers.0.mlp.down_proj", None, ["layers.0.mlp.down_proj"]),
        ("*attn.[kv]_proj", [0], ["layers.0.self_attn.k_proj", "layers.0.self_attn.v_proj"]),
    ],
)
def test_targets_by_name_end_of_path_and_pattern(tiny_model, targets, layers, expected):
    apply_lora(tiny_model, r=1, alpha=1, targets=targets, layers=layers)
    assert list(lora_modules(tiny_model)) == expected


def multimodal():
    return MultimodalLlama(MultimodalConfig.tiny())


def gated():
    return MultimodalLlama(MultimodalConfig.tiny(cross_layers=(1,)))


@pytest.mark.parametrize("make", [multimodal, gated, lambda: MllamaModel(MllamaConfig.tiny())])
def test_without_targets_a_model_that_sees_gets_adapters_in_its_text_blocks_alone(make):
    model = make()
    apply_lora(model, r=1, alpha=1)
    found = list(lora_modules(model))
    assert all(path.startswith("layers.") for path in found) and len(found) == 7 * len(model.layers)
    remove_lora(model)
    tower = [path for path, _ in model.named_modules() if path.endswith("out_proj")][-1]
    apply_lora(model, r=1, alpha=1, targets=tower)  # by name, any linear
    assert list(lora_modules(model)) == [tower]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "qproj"}, "no linear is called qproj; there are down_proj, gate_proj"),
        ({"targets": ()}, "nothing"),
        ({"layers": [0, 2]}, "no layer 2; the targets are in 0 to 1"),
        ({"targets": "lm_head"}, "lm_head shares its weight"),
        ({"targets": "lm_head", "layers": [0]}, "no layer"),
        ({"r": 0}, "rank.*got 0"),
        ({"alpha": -1}, "alpha.*got -1"),
        ({"dropout": 1.0}, "dropout.*got 1.0"),
        ({"name": "my adapter"}, "letters, digits"),
    ],
)
def test_what_cannot_be_applied_is_refused_with_nothing_changed(tiny_model, options, message):
    with pytest.raises(ConfigError, match=message):
        apply_lora(tiny_model, **{"r": 2, "alpha": 2, **options})
    assert not lora_modules(tiny_model) and all(p.requires_grad for p in tiny_model.parameters())


def test_what_needs_an_adapter_says_so(tiny_model):
    for act in (merge_lora, unmerge_lora, remove_lora, lambda m: set_lora_enabled(m, True)):
        with pytest.raises(ConfigError, match="no LoRA adapter"):
            act(tiny_model)
    apply_lora(tiny_model, r=1, alpha=1)
    with pytest.raises(ConfigError, match="already"):
        apply_lora(tiny_model, r=1, alpha=1)
    with pytest.raises(ConfigError, match="'b'; the model has default"):
        set_adapter(tiny_model, "b")


def test_an_untied_head_and_any_other_module_can_be_adapted():
    torch.manual_seed(0)
    model = Llama3Model(TextConfig.tiny(tie_embeddings=False))
    apply_lora(model, r=2, alpha=2, targets="lm_head")
    assert list(lora_modules(model)) == ["lm_head"]
    tower = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))  # with biases
    x = torch.randn(5, 3)
    randomize(apply_lora(tower, r=1, alpha=1, targets="*"))
    before = tower(x)
    merge_lora(tower, keep_base=False)
    assert isinstance(tower[0], nn.Linear) and torch.allclose(tower(x), before, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("dora", [True, False])
def test_with_biases_it_equals_peft_and_merged_equals_unmerged(dora):
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(5, 6)
    theirs = peft.get_peft_model(copy.deepcopy(tower), peft.LoraConfig(r=2, lora_alpha=4, use_dora=dora,
                                                                       target_modules=["0", "2"]))  # fmt: skip
    ours = randomize(apply_lora(tower, r=2, alpha=4, targets=("0", "2"), dora=dora), size=1.0)
    for path, module in lora_modules(ours).items():
        layer = theirs.get_submodule(f"base_model.model.{path}")
        layer.lora_A["default"].weight.copy_(module.lora_a["default"])
        layer.lora_B["default"].weight.copy_(module.lora_b["default"])
        if dora:
            layer.lora_magnitude_vector["default"].weight.copy_(module.lora_magnitude["default"])
    apart = ours(x)
    assert torch.allclose(apart, theirs.eval()(x), atol=1e-5)
    merge_lora(ours)
    assert torch.allclose(ours(x), apart, atol=1e-5)


def test_dropout_acts_on_the_adapter_alone_and_only_in_training():
    model = apply_lora(nn.Sequential(nn.Linear(64, 8)), r=2, alpha=2, dropout=0.5, targets="0").train()
    x = torch.ones(1, 64)
    assert torch.equal(model(x), model(x))  # B is zero: what is dropped adds nothing
    randomize(model)
    torch.manual_seed(0)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_an_adapter_put_on_a_model_in_eval_mode_does_not_drop(tiny_model):
    model = randomize(apply_lora(tiny_model.eval(), r=2, alpha=2, dropout=0.5))
    assert torch.equal(model(IDS), model(IDS)) and not any(m.training for m in model.modules())


def test_half_precision_weights_get_fp32_adapters():
    model = apply_lora(nn.Sequential(nn.Linear(4, 4, dtype=torch.bfloat16)), r=2, alpha=2, targets="0")
    assert isinstance(model[0], LoraLinear) and model[0].lora_a["default"].dtype == torch.float32
    assert model(torch.ones(1, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
