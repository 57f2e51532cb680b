"""pretrained.packed: quantized models saved and loaded give equal logits; odd configurations and files are refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from llamamm import from_pretrained, save_adapter, save_pretrained
from llamamm.errors import CheckpointError, ConfigError, InputError
from llamamm.evals.score_card import mark_of
from llamamm.fast.quantized import QuantizedLinear, out_of_bytes, quantize, quantized_linears
from llamamm.lora.lora import apply_lora, remove_lora
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import MultimodalLlama
from llamamm.pretrained.ready import load_ready
from llamamm.text.config import TextConfig
from tests.weights.test_loading import make_model

IDS = torch.arange(30)[None]
WIDE = {"hidden_size": 128, "intermediate_size": 256}


def scores(model):
    with torch.no_grad():
        return model(IDS)


def config(folder):
    return json.loads((folder / "config.json").read_text())


def change(folder, **changes):
    (folder / "config.json").write_text(json.dumps({**config(folder), **changes}))


@pytest.mark.parametrize(("bits", "group", "head", "tied", "dtype"), [
    (8, 32, True, True, torch.float32), (4, 64, True, False, torch.bfloat16), (4, 128, False, True, torch.float16),
    (8, 128, False, False, torch.float32),
])  # fmt: skip
def test_saved_and_loaded_logits_are_equal_bit_for_bit(tmp_path, bits, group, head, tied, dtype):
    model = quantize(make_model(**WIDE, tie_embeddings=tied, dtype=dtype), bits, group=group, head=head)
    save_pretrained(model, tmp_path / "q", max_shard_bytes=60_000)
    again, _ = from_pretrained(tmp_path / "q", fast=False)
    assert torch.equal(scores(again), scores(model))
    assert again.embed_tokens.weight.dtype == dtype and (again.lm_head.weight is again.embed_tokens.weight) == (
        tied and not head)
    save_pretrained(again, tmp_path / "r")  # once more
    assert torch.equal(scores(from_pretrained(tmp_path / "r", fast=False)[0]), scores(model))
    assert config(tmp_path / "r") == config(tmp_path / "q")
    assert config(tmp_path / "q")["quantization_config"] == {
        "quant_method": "llamamm", "bits": bits, "group_size": group}
    cast, _ = from_pretrained(tmp_path / "q", dtype=torch.float64, fast=False)
    assert cast.norm.weight.dtype == torch.float64 and cast.layers[0].mlp.up_proj.scales.dtype == torch.float16


def test_codes_lie_row_by_row_in_the_file(tmp_path):
    model = quantize(make_model(**WIDE), 4)
    save_pretrained(model, tmp_path / "q")
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    codes, scales = (tensors[f"model.layers.1.mlp.down_proj.{name}"] for name in ("codes", "scales"))
    assert codes.shape == (128, 128) and scales.shape == (128, 8)
    meant = out_of_bytes(codes).float() * scales.float().repeat_interleave(32, dim=1)
    assert torch.equal(meant, model.layers[1].mlp.down_proj.weight)
    assert "model.layers.1.mlp.down_proj.weight" not in tensors


def test_weights_are_never_spread_out_while_loading(tmp_path, monkeypatch):
    save_pretrained(quantize(make_model(**WIDE), 8), tmp_path / "q")

    def weight(linear):
        assert linear.codes.is_meta, "the weight was spread out"
        return torch.empty(0)

    monkeypatch.setattr(QuantizedLinear, "weight", property(weight))
    model, _ = from_pretrained(tmp_path / "q", fast=False)
    assert len(quantized_linears(model)) == 7 * model.cfg.n_layers + 1
    assert all(buffer.device.type == "cpu" for buffer in model.buffers())


@pytest.mark.parametrize("cross_layers", [(), (1,)], ids=["spliced", "gated"])
def test_a_model_that_sees_and_hears(tmp_path, cross_layers):
    torch.manual_seed(0)
    cfg = MultimodalConfig.tiny(text=TextConfig.tiny(**WIDE), cross_layers=cross_layers)
    model = quantize(MultimodalLlama(cfg).eval(), 8)
    save_pretrained(model, tmp_path / "q")
    again, _ = from_pretrained(tmp_path / "q", fast=False)
    assert len(quantized_linears(again)) == 15 and torch.equal(scores(again), scores(model))
    there = dict(again.named_parameters())
    assert all(torch.equal(there[name], p) for name, p in model.named_parameters())


def test_quantized_is_not_quantized_again_and_other_bits_are_other_models(tmp_path):
    models = {bits: quantize(make_model(**WIDE), bits, group=64) for bits in (8, 4)}
    assert mark_of(models[8]) != mark_of(models[4])
    save_pretrained(models[4], tmp_path / "q")
    with pytest.raises(InputError, match="quantized already, to 4 bits in groups of 64: leave bits out, or take"):
        from_pretrained(tmp_path / "q", bits=8)


def test_an_adapter_beside_it_is_not_saved_with_it(tmp_path):
    model = quantize(make_model(**WIDE), 8)
    apply_lora(model, r=2, alpha=4)
    with pytest.raises(CheckpointError, match="not merged"):
        save_pretrained(model, tmp_path / "q")
    remove_lora(model)
    save_pretrained(model, tmp_path / "q")
    assert torch.equal(scores(from_pretrained(tmp_path / "q", fast=False)[0]), scores(model))


def test_an_adapter_that_was_trained_on_it_stands_beside_it(tmp_path, smol):
    model = quantize(make_model(**WIDE, vocab_size=49_152), 8)
    save_pretrained(model, tmp_path / "q", tokenizer=smol)
    apply_lora(model, r=2, alpha=4)
    with torch.no_grad():
        model.layers[0].mlp.up_proj.lora_b["default"].normal_()
    save_adapter(model, tmp_path / "a", base=str(tmp_path / "q"))
    _, again, _ = load_ready(adapter=tmp_path / "a", fast=False)
    assert torch.equal(scores(again), scores(model))
    whole = make_model(**WIDE, vocab_size=49_152)
    apply_lora(whole, r=2, alpha=4)
    save_adapter(whole, tmp_path / "b")
    with pytest.raises(CheckpointError, match="another"):
        load_ready(str(tmp_path / "q"), tmp_path / "b")


def test_different_forms_do_not_fit_one_folder(tmp_path):
    model = quantize(make_model(**WIDE), 8, head=False)
    model.lm_head = QuantizedLinear.of(model.lm_head.weight, bits=4)
    with pytest.raises(CheckpointError, match="different bits or groups"):
        save_pretrained(model, tmp_path / "q")
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize(("said", "message"), [
    ({"quant_method": "gptq", "bits": 4}, r"\(gptq\).*does not read.*GGUF"),
    ({"quant_method": "awq"}, r"\(awq\)"), ({"load_in_4bit": True}, r"\(unnamed\)"), ("int8", "quantization_config"),
    ({"quant_method": "llamamm", "bits": 3, "group_size": 32}, "bits=3"),
    ({"quant_method": "llamamm", "bits": True, "group_size": 32}, "bits=True"),
    ({"quant_method": "llamamm", "bits": 8}, "group_size=None"),
    ({"quant_method": "llamamm", "bits": 8, "group_size": 48}, "group_size=48"),
    ({"quant_method": "llamamm", "bits": 8, "group_size": 32, "zero_point": True}, "zero_point=True.*newer"),
    (None, "no quantization_config|unexpected"),
])  # fmt: skip
@pytest.mark.parametrize("multimodal", [False, True])
def test_odd_configurations(tmp_path, said, message, multimodal):
    if multimodal:
        model = MultimodalLlama(MultimodalConfig.tiny(text=TextConfig.tiny(**WIDE)))
    else:
        model = make_model(**WIDE)
    save_pretrained(quantize(model, 8), tmp_path / "q")
    change(tmp_path / "q", quantization_config=said)
    with pytest.raises((ConfigError, CheckpointError), match=message) as error:
        from_pretrained(tmp_path / "q")
    assert said is None or "\n" not in str(error.value)


def drop(name):
    return lambda tensors: tensors.pop(name)


UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(("spoil", "message"), [
    (drop(f"{UP}.scales"), "lacks layers.0.mlp.up_proj.scales"), (drop(f"{UP}.codes"), "lacks .*up_proj.codes"),
    (lambda t: (t.pop(f"{UP}.scales"), t.pop(f"{UP}.codes")), "missing"),
    (lambda t: t.update({f"{UP}.weight": torch.zeros(256, 128)}), "up_proj twice"),
    (lambda t: t.update({f"{UP}.codes": t[f"{UP}.codes"][:64]}), r"up_proj.codes is int8 \(64, 128\).*\(256, 128\)"),
    (lambda t: t.update({f"{UP}.scales": t[f"{UP}.scales"].float()}), "up_proj.scales is float32"),
    (lambda t: t.update({"model.head.codes": t[f"{UP}.codes"].clone(), "model.head.scales": t[f"{UP}.scales"].clone()}),
     "no linear head"),
])  # fmt: skip
def test_odd_files(tmp_path, spoil, message):
    save_pretrained(quantize(make_model(**WIDE), 8), tmp_path / "q")
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    spoil(tensors)
    save_file(tensors, tmp_path / "q" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(tmp_path / "q")


def test_a_configuration_that_promises_what_the_file_lacks(tmp_path):
    save_pretrained(make_model(**WIDE), tmp_path / "m")
    change(tmp_path / "m", quantization_config={"quant_method": "llamamm", "bits": 8, "group_size": 32})
    with pytest.raises(CheckpointError, match="has quantization_config, and the checkpoint no codes"):
        from_pretrained(tmp_path / "m")
