"""lora.adapter_files: the round trip with peft both ways, on SmolLM2 too; what does not fit is refused, untouched."""

import copy
import json
import warnings
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, MllamaForConditionalGeneration
from transformers import MllamaConfig as HFMllamaConfig

from llamamm import (
    AudioConfig,
    AudioEncoder,
    Llama3Model,
    TextConfig,
    VisionConfig,
    VisionTower,
    apply_lora,
    from_pretrained,
    load_adapter,
    merge_lora,
    save_adapter,
    save_pretrained,
    set_lora_enabled,
    unmerge_lora,
)
from llamamm.errors import CheckpointError, ConfigError
from llamamm.llama32_vision.config import MllamaConfig
from llamamm.llama32_vision.model import MllamaModel
from llamamm.lora.adapter_files import CONFIG_FILE, WEIGHTS_FILE, _spread
from llamamm.lora.lora import adapter_names, lora_modules
from tests.lora.test_lora import IDS, OPTIONS, hf_llama, pytestmark, randomize  # noqa: F401 (pytestmark filters a warning)


@pytest.fixture
def adapter(tiny_model, tmp_path) -> Path:
    """An adapter of rank 4 on q_proj and up_proj, made for `tiny_model`'s weights."""
    model = randomize(apply_lora(copy.deepcopy(tiny_model), r=4, alpha=8, targets=("q_proj", "up_proj")))
    save_adapter(model, tmp_path / "adapter", base="some/base")
    return tmp_path / "adapter"


WHERE = {
    "everywhere": {}, "by name": {"targets": ("q_proj", "down_proj")}, "one layer": {"layers": [1]},
}  # fmt: skip


@pytest.mark.parametrize("where", WHERE.values(), ids=WHERE)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_ours_loads_in_peft_with_equal_logits(tiny_model, tmp_path, where, options):
    hf = hf_llama(tiny_model)
    model = randomize(apply_lora(tiny_model, r=4, alpha=6, **where, **options)).eval()
    save_adapter(model, tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(hf, tmp_path / "a").eval()
    with torch.no_grad():
        assert (model(IDS) - theirs(IDS).logits).abs().max() < 1e-5
    count = sum(p.numel() for n, p in theirs.named_parameters() if "lora_" in n)
    assert count == sum(p.numel() for n, p in model.named_parameters() if ".lora_" in n)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_pefts_loads_here_with_equal_logits(tiny_model, tmp_path, options):
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["v_proj", "gate_proj"], layers_to_transform=[0],
                             use_rslora="rslora" in options, use_dora="dora" in options)  # fmt: skip
    theirs = peft.get_peft_model(hf_llama(tiny_model), config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    theirs.save_pretrained(tmp_path / "a")
    load_adapter(tiny_model, tmp_path / "a")
    with torch.no_grad():
        assert (tiny_model(IDS) - theirs(IDS).logits).abs().max() < 1e-5
    assert sorted(lora_modules(tiny_model)) == ["layers.0.mlp.gate_proj", "layers.0.self_attn.v_proj"]


def test_round_trip_of_the_real_model_through_peft(smollm2_dir, tmp_path):
    model, _ = from_pretrained(smollm2_dir)
    randomize(apply_lora(model, r=8, alpha=16), size=0.02)
    save_adapter(model, tmp_path / "ours", base=str(smollm2_dir))
    ids = torch.arange(40)[None] + 1000
    with torch.no_grad():
        expected = model(ids)
    hf = AutoModelForCausalLM.from_pretrained(smollm2_dir)
    theirs = peft.PeftModel.from_pretrained(hf, tmp_path / "ours").eval()
    with torch.no_grad():
        assert (theirs(ids).logits - expected).abs().max() < 1e-3
    theirs.save_pretrained(tmp_path / "theirs")
    again, _ = from_pretrained(smollm2_dir)
    load_adapter(again, tmp_path / "theirs")
    with torch.no_grad():
        assert torch.equal(again(ids), expected)


def test_any_module_can_carry_an_adapter_file(tmp_path):
    def tower():
        torch.manual_seed(0)
        return nn.ModuleDict({"in_proj": nn.Linear(4, 6), "out_proj": nn.Linear(6, 4)})

    ours = randomize(apply_lora(tower(), r=2, alpha=2, targets="*_proj"))
    save_adapter(ours, tmp_path / "a")
    again = tower()
    load_adapter(again, tmp_path / "a")
    x = torch.randn(3, 4)
    assert torch.equal(again["in_proj"](x), ours["in_proj"](x))
    theirs = peft.PeftModel.from_pretrained(tower(), tmp_path / "a")
    assert torch.allclose(theirs.base_model.model["in_proj"](x), ours["in_proj"](x), atol=1e-6)


def test_several_adapters_of_one_base(tiny_model, adapter):
    base = tiny_model(IDS)
    load_adapter(tiny_model, adapter, name="first")
    first = tiny_model(IDS)
    apply_lora(tiny_model, r=2, alpha=2, name="second")
    load_adapter(tiny_model, adapter, name="third")
    assert set(adapter_names(tiny_model)) == {"first", "second", "third"}
    assert torch.equal(tiny_model(IDS), first)
    load_adapter(tiny_model, adapter, name="third")  # again: replaced
    assert torch.equal(tiny_model(IDS), first) and len(adapter_names(tiny_model)) == 3
    set_lora_enabled(tiny_model, False)
    assert torch.equal(tiny_model(IDS), base)


def test_an_adapter_fits_its_base_in_another_precision_and_while_another_is_merged(tiny_model, adapter, tmp_path):
    half = copy.deepcopy(tiny_model).to(torch.bfloat16)
    load_adapter(half, adapter)
    model = randomize(apply_lora(tiny_model, r=2, alpha=8), size=1.0)
    merge_lora(model)
    save_adapter(model, tmp_path / "merged")  # names the base's own weights, not the merged ones
    torch.manual_seed(0)
    load_adapter(Llama3Model(TextConfig.tiny()), tmp_path / "merged")


# ---- what a file says ----


def hf_tiny(**changes):
    torch.manual_seed(0)
    model = Llama3Model(TextConfig.tiny(**changes)).eval()
    return model, hf_llama(model)


def in_peft(hf, folder, *, size=0.1, **settings):
    """A trained adapter of peft's in a folder, and its logits."""
    theirs = peft.get_peft_model(hf, peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **settings})).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
        theirs.save_pretrained(folder)
        return theirs(IDS).logits


PATTERNS = {
    "rank": {"rank_pattern": {"v_proj": 2}},
    "alpha": {"alpha_pattern": {"layers.1.self_attn.v_proj": 32}},
    "both, as regular expressions, the first counts": {
        "rank_pattern": {r"layers\.[01]\.mlp\.up_proj": 1, "up_proj": 7}, "alpha_pattern": {".*_proj": 3, "q_proj": 99}
    },
    "the whole name": {"rank_pattern": {"model.layers.0.self_attn.q_proj": 8}, "use_rslora": True},
    "with dora": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 5}, "use_dora": True},
}  # fmt: skip


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
@pytest.mark.parametrize("patterns", PATTERNS.values(), ids=PATTERNS)
def test_rank_and_alpha_by_module_as_peft_computes_them_there_and_back(tmp_path, patterns):
    model, hf = hf_tiny()
    expected = in_peft(hf, tmp_path / "a", target_modules=["q_proj", "v_proj", "up_proj"], **patterns)
    load_adapter(model, tmp_path / "a")
    assert (model(IDS) - expected).abs().max() < 1e-5
    save_adapter(model, tmp_path / "b")
    again, hf = hf_tiny()
    load_adapter(again, tmp_path / "b")
    assert torch.equal(again(IDS), model(IDS))
    theirs = peft.PeftModel.from_pretrained(hf, tmp_path / "b").eval()
    assert (theirs(IDS).logits - expected).abs().max() < 1e-5
    merge_lora(model)
    assert (model(IDS) - expected).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"alpha_pattern": {"lm_head": 20}}], ids=str)
def test_an_adapter_on_the_head_by_peft_with_the_base_beside_it(tmp_path, tied, options):
    model, hf = hf_tiny(tie_embeddings=tied)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of what is tested here: merging a tied head
        expected = in_peft(hf, tmp_path / "a", target_modules=["lm_head", "q_proj"], **options)
    assert "base_model.model.lm_head.base_layer.weight" in load_file(tmp_path / "a" / WEIGHTS_FILE)
    embedding = model.embed_tokens.weight.clone()
    load_adapter(model, tmp_path / "a")
    assert (model(IDS) - expected).abs().max() < 1e-5
    for _ in range(2):
        merge_lora(model)
        assert (model(IDS) - expected).abs().max() < 1e-5
        assert torch.equal(model.embed_tokens.weight, embedding)
        save_pretrained(model, tmp_path / "kept")
        unmerge_lora(model)
        assert (model.lm_head.weight is model.embed_tokens.weight) == tied
    merge_lora(model)
    set_lora_enabled(model, False)
    assert torch.equal(model(IDS), hf_tiny(tie_embeddings=tied)[0](IDS))
    merge_lora(copy.deepcopy(model).to(torch.float64), keep_base=False)
    merge_lora(model, keep_base=False)
    assert not model.cfg.tie_embeddings
    save_pretrained(model, tmp_path / "merged")
    for folder in ("kept", "merged"):
        assert (from_pretrained(tmp_path / folder)[0](IDS) - expected).abs().max() < 1e-5
        assert (AutoModelForCausalLM.from_pretrained(tmp_path / folder)(IDS).logits - expected).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_merged_adapter_goes_along_to_another_dtype_and_back(dtype, tiny_model):
    base = copy.deepcopy(tiny_model).to(dtype)(IDS)
    model = randomize(apply_lora(tiny_model, r=2, alpha=4))
    merge_lora(model)
    model.to(dtype)
    copied = copy.deepcopy(model)
    unmerge_lora(model)
    set_lora_enabled(model, False)
    assert torch.equal(model(IDS), base) and not torch.equal(copied(IDS), base)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::UserWarning")  # peft: "Could not find a config file" and more
@pytest.mark.parametrize("tied", [True, False])
def test_our_adapter_on_the_head_is_read_by_peft(tmp_path, tied):
    model, hf = hf_tiny(tie_embeddings=tied)
    in_peft(hf, tmp_path / "a", target_modules=["lm_head", "up_proj"])
    load_adapter(model, tmp_path / "a")
    save_adapter(model, tmp_path / "b")
    assert json.loads((tmp_path / "b" / CONFIG_FILE).read_text())["target_modules"] == ["lm_head", "up_proj"]
    assert "base_model.model.lm_head.lora_A.weight" in load_file(tmp_path / "b" / WEIGHTS_FILE)
    theirs = peft.PeftModel.from_pretrained(hf_tiny(tie_embeddings=tied)[1], tmp_path / "b").eval()
    assert (theirs(IDS).logits - model(IDS)).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_base_in_the_file_that_is_not_the_models_is_refused(tmp_path):
    model, hf = hf_tiny(tie_embeddings=False)
    in_peft(hf, tmp_path / "a", target_modules=["lm_head"])
    key = "base_model.model.lm_head.base_layer.weight"
    change_tensors(tmp_path / "a", lambda t: {**t, key: t[key] + 1})
    with pytest.raises(CheckpointError, match="lm_head.base_layer.weight: a weight of the base itself, and another"):
        load_adapter(model, tmp_path / "a")
    assert not lora_modules(model)


@pytest.mark.parametrize("init", ["pissa", "olora", "gaussian", "eva", "orthogonal", False])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_init_of_peft_gives_its_logits_or_is_refused_by_name(tmp_path, init):
    model, hf = hf_tiny()
    expected = in_peft(hf, tmp_path / "a", target_modules=["q_proj", "up_proj"], init_lora_weights=init)
    if init in ("pissa", "olora"):
        with pytest.raises(CheckpointError, match=f"init_lora_weights='{init}'"):
            load_adapter(model, tmp_path / "a")
        assert not lora_modules(model)
        return
    load_adapter(model, tmp_path / "a")
    with torch.no_grad():
        assert (model(IDS) - expected).abs().max() < 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_converted_pissa_adapter_is_an_ordinary_one(tmp_path):
    model, hf = hf_tiny()
    theirs = peft.get_peft_model(hf, peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa")).eval()
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        theirs.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.mul_(1.5)
        expected = theirs(IDS).logits
        theirs.save_pretrained(tmp_path / "a", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
        load_adapter(model, tmp_path / "a")
        assert (model(IDS) - expected).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("front", ["base_model.model._orig_mod.", "module.base_model.model."])
def test_what_compiling_and_parallel_training_put_before_names_is_taken_off(adapter, front, tiny_model):
    load_adapter(tiny_model, adapter)
    expected = tiny_model(IDS)
    change_tensors(adapter, lambda t: {k.replace("base_model.model.", front, 1): v for k, v in t.items()})
    load_adapter(tiny_model, adapter)
    assert torch.equal(tiny_model(IDS), expected)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_llama_32_vision_and_peft_agree_on_names(tmp_path):
    cfg = MllamaConfig.tiny()
    torch.manual_seed(0)
    model = MllamaModel(cfg).eval()
    targets = ("q_proj", "lm_head", "vision_model.transformer.0.self_attn.out_proj")
    save_adapter(randomize(apply_lora(model, r=2, alpha=4, targets=targets)), tmp_path / "a")
    hf = MllamaForConditionalGeneration(HFMllamaConfig(**cfg.to_hf()))
    theirs = peft.PeftModel.from_pretrained(hf, tmp_path / "a")
    written = load_file(tmp_path / "a" / WEIGHTS_FILE)
    found = peft.get_peft_model_state_dict(theirs, save_embedding_layers=False)
    assert {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in written.items()}
    theirs.save_pretrained(tmp_path / "b", save_embedding_layers=False)
    before = model(IDS)
    load_adapter(model, tmp_path / "b")
    assert torch.equal(model(IDS), before)


# ---- faults ----


def change_config(folder, **changes):
    file = folder / CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_tensors(folder, change):
    save_file(change(load_file(folder / WEIGHTS_FILE)), folder / WEIGHTS_FILE, metadata={"format": "pt"})


def drop_one(tensors):
    return {k: v for k, v in tensors.items() if not k.endswith("1.self_attn.q_proj.lora_B.weight")}


FAULTS = {
    "rank in the config": (lambda f: change_config(f, r=8), r"\(4, 64\), rank 8"),
    "a name the model lacks": (
        lambda f: change_tensors(f, lambda t: {k.replace("up_proj", "fc1"): v for k, v in t.items()}),
        "layers.0.mlp.fc1.*no such linear",
    ),
    "another prefix": (
        lambda f: change_tensors(f, lambda t: {"x." + k: v for k, v in t.items()}), "no such linear"
    ),
    "half of a pair": (lambda f: change_tensors(f, drop_one), "holds lora_a, it should hold lora_a and lora_b"),
    "no tensors": (lambda f: change_tensors(f, lambda _: {}), "holds no tensors"),
    "another kind": (lambda f: change_config(f, peft_type="IA3"), "type IA3"),
    "biases": (lambda f: change_config(f, bias="all"), "bias='all'"),
    "whole modules": (lambda f: change_config(f, modules_to_save=["lm_head"]), "modules_to_save"),
    "ranks by module": (lambda f: change_config(f, rank_pattern={"q_proj": 2}), r"\(4, 64\), rank 2 of rank_pattern"),
    "a pattern that is none": (lambda f: change_config(f, alpha_pattern={"(": 2}), "'.*' is no pattern"),
    "patterns in a list": (lambda f: change_config(f, rank_pattern=["q_proj"]), "rank_pattern must be a table"),
    "fewer targets": (lambda f: change_config(f, target_modules=["q_proj"]), "up_proj.*not among the targets"),
    "fewer layers": (lambda f: change_config(f, layers_to_transform=[1]), "layers.0.*not among the targets"),
    "excluded": (lambda f: change_config(f, exclude_modules=["layers.1.mlp.up_proj"]), "layers.1.mlp.up_proj.*targets"),
    "a key to come": (lambda f: change_config(f, new_trick=0.5), "new_trick=0.5"),
    **{f"init {init}": (lambda f, init=init: change_config(f, init_lora_weights=init), f"init_lora_weights='{init}'")
       for init in ("pissa", "pissa_niter_4", "PiSSA", "olora", "corda", "loftq", "lora_ga", "to come")},
    **{key: (lambda f, key=key, value=value: change_config(f, **{key: value}), key) for key, value in {
        "fan_in_fan_out": True, "lora_bias": True, "use_qalora": True, "trainable_token_indices": [1, 2],
        "target_parameters": ["x"], "layer_replication": [[0, 2]], "alora_invocation_tokens": [1],
        "megatron_config": {"a": 1}, "arrow_config": {"top_k": 3}, "ensure_weight_tying": True,
    }.items()},
    "dora without lengths": (lambda f: change_config(f, use_dora=True), "lora_magnitude"),
    "no rank": (lambda f: change_config(f, r=None), "rank, must be"),
    "cut short": (lambda f: (f / WEIGHTS_FILE).write_bytes((f / WEIGHTS_FILE).read_bytes()[:-9]), "again"),
    "no config": (lambda f: (f / CONFIG_FILE).unlink(), "no adapter_config.json"),
    "no weights": (lambda f: (f / WEIGHTS_FILE).unlink(), f"{WEIGHTS_FILE} is not there: the folder is not whole"),
    "config is no JSON": (lambda f: (f / CONFIG_FILE).write_text("{"), "not JSON"),
}


@pytest.mark.parametrize(("damage", "message"), FAULTS.values(), ids=FAULTS)
def test_an_adapter_that_does_not_fit_is_refused_before_anything_changes(tiny_model, adapter, damage, message):
    load_adapter(tiny_model, adapter)
    before = {k: v.clone() for k, v in tiny_model.state_dict().items()}
    damage(adapter)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load_adapter(tiny_model, adapter)
    after = tiny_model.state_dict()
    assert list(after) == list(before) and all(torch.equal(v, before[k]) for k, v in after.items())
    assert adapter_names(tiny_model) == ["default"]


def test_of_a_training_run_the_folder_inside_is_named(tiny_model, adapter, tmp_path):
    adapter.rename(tmp_path / "last")
    with pytest.raises(CheckpointError, match="training run; what it has made is in .*last"):
        load_adapter(tiny_model, tmp_path)


def test_a_damaged_adapter_is_not_merged_and_it_is_said_what_helps(tiny_model):
    model = randomize(apply_lora(tiny_model, r=2, alpha=4, targets=("q_proj",)))
    linear = next(iter(lora_modules(model).values()))
    with torch.no_grad():
        linear.lora_b[linear.active][0] = float("nan")
    with pytest.raises(ConfigError, match="NaN or infinity into 1 weight.*take an earlier one"):
        merge_lora(model)


def test_another_base_is_refused_by_shape_and_by_weights(adapter):
    torch.manual_seed(1)
    for other, message in (
        (Llama3Model(TextConfig.tiny(hidden_size=32)), r"\(4, 64\)"),
        (Llama3Model(TextConfig.tiny(n_layers=1)), "layers.1.*no such linear"),
        (Llama3Model(TextConfig.tiny()), "another base.*check_base=False"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_adapter(other, adapter)
        assert not lora_modules(other)
    load_adapter(other, adapter, check_base=False)
    assert lora_modules(other)


@pytest.mark.parametrize("n", [1, 7, 49_152 * 576, 128_256 * 2048, 128_256 * 4096])  # the last: embeddings of 1B, 8B
@pytest.mark.parametrize("count", [1, 2, 256])
def test_samples_of_the_base_are_taken_inside_a_weight_of_any_size(n, count):
    places = _spread(n, count)
    assert len(places) == count and places[0] == 0 and places[-1] == (n - 1 if count > 1 else 0)
    assert (places.diff() >= 0).all()


def test_the_folder_is_replaced_whole_or_not_at_all(tiny_model, adapter, monkeypatch):
    before = {f.name: f.read_bytes() for f in adapter.iterdir()}
    model = apply_lora(tiny_model, r=1, alpha=1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llamamm.lora.adapter_files.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_adapter(model, adapter)
    assert {f.name: f.read_bytes() for f in adapter.iterdir()} == before
    (adapter / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="notes.txt"):
        save_adapter(model, adapter)


def test_the_config_notes_the_base_and_short_names_where_they_suffice(tiny_model, adapter, tmp_path):
    config = json.loads((adapter / CONFIG_FILE).read_text())
    assert config["base_model_name_or_path"] == "some/base"
    assert config["target_modules"] == ["q_proj", "up_proj"]
    apply_lora(tiny_model, r=1, alpha=1, targets="q_proj", layers=[1])
    save_adapter(tiny_model, tmp_path / "b")
    assert json.loads((tmp_path / "b" / CONFIG_FILE).read_text())["target_modules"] == [
        "model.layers.1.self_attn.q_proj"
    ]
    with pytest.raises(ConfigError, match="no adapter 'x'; the model has default"):
        save_adapter(tiny_model, tmp_path / "c", name="x")


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "x"),
    [(lambda: VisionTower(VisionConfig.tiny("clip")), torch.ones(1, 3, 32, 32)),
     (lambda: AudioEncoder(AudioConfig.tiny()), torch.ones(1, 16, 100))],
    ids=["vision", "audio"],
)  # fmt: skip
def test_towers_carry_adapters_in_files_too(make, x, tmp_path):
    torch.manual_seed(0)
    tower = make().eval()
    base = tower(x)
    other = copy.deepcopy(tower)
    apply_lora(tower, r=2, alpha=4, targets=("q_proj", "out_proj", "fc2"), layers=[1])
    for name, parameter in tower.named_parameters():
        if ".lora_b." in name:
            torch.nn.init.normal_(parameter)
    save_adapter(tower, tmp_path / "adapter")
    load_adapter(other, tmp_path / "adapter")
    assert torch.equal(other(x), tower(x)) and (other(x) - base).abs().max() > 1e-3
    torch.manual_seed(1)
    with pytest.raises(CheckpointError, match="another base"):
        load_adapter(make(), tmp_path / "adapter")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("settings", [
    {"target_modules": r".*\.(q|v)_proj"}, {"target_modules": "all-linear"},
    {"target_modules": ["mlp.up_proj", "q_proj"], "exclude_modules": ["layers.0.mlp.up_proj"]},
    {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
    {"target_modules": r"model\.layers\.1\..*_proj", "exclude_modules": r".*mlp.*"},
], ids=str)  # fmt: skip
def test_every_way_of_peft_to_name_targets_is_read(tmp_path, settings):
    model, hf = hf_tiny()
    expected = in_peft(hf, tmp_path / "a", **settings)
    load_adapter(model, tmp_path / "a")
    with torch.no_grad():
        assert (model(IDS) - expected).abs().max() < 1e-5
