"""weights.gguf: every quantisation by its own arithmetic, names, configuration, damaged files."""

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llamamm import Llama3Model, RopeScaling, TextConfig, from_pretrained
from llamamm.errors import CheckpointError, MissingDependencyError
from llamamm.pretrained.load import load_tokenizer
from llamamm.text.rope import rope_frequencies
from llamamm.weights.gguf import GGUFFile, convert_gguf
from llamamm.weights.names import GGUF_NAMES
from tests.weights.test_loading import in_other_names, make_model

Q = gguf.GGMLQuantizationType


def write_gguf(path, cfg: TextConfig, tensors, *, architecture="llama", leave_out=(), said=()):
    """A GGUF file: configuration as metadata, tensors as (values, quantisation) or plain fp32 values."""
    writer = gguf.GGUFWriter(path, architecture)
    facts = {
        "context_length": cfg.context_length, "embedding_length": cfg.hidden_size, "block_count": cfg.n_layers,
        "feed_forward_length": cfg.intermediate_size, "attention.head_count": cfg.n_heads,
        "attention.head_count_kv": cfg.n_kv_heads, "attention.key_length": cfg.head_dim,
    }  # fmt: skip
    for key, value in facts.items():
        if key not in leave_out:
            writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", cfg.norm_eps)
    writer.add_float32("llama.rope.freq_base", cfg.rope_theta)
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
           list: writer.add_array}  # fmt: skip
    for key, value in dict(said).items():
        add[type(value)](key, value)
    for name, tensor in tensors.items():
        values, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, np.ascontiguousarray(values), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors_of(model):
    return {name: tensor.detach().numpy() for name, tensor in in_other_names(model, GGUF_NAMES).items()}


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_in_fp32_comes_back_whole(tmp_path, tied):
    model = make_model(tie_embeddings=tied, head_dim=24)
    loaded = from_pretrained_without_tokenizer(write_gguf(tmp_path / "m.gguf", model.cfg, tensors_of(model)))
    assert loaded.cfg == model.cfg
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def from_pretrained_without_tokenizer(path) -> Llama3Model:
    from llamamm.weights.loading import build_from_refs

    file = GGUFFile(path)
    return build_from_refs(file.config, file.refs)


def by_hand_q8_0():
    """32 bytes times one fp16 scale."""
    q = np.arange(-16, 16, dtype=np.int8)
    return np.concatenate([np.array([0.5], np.float16).view(np.uint8), q.view(np.uint8)]), q * 0.5


def by_hand_q4_0():
    """32 nibbles less 8, times one scale; the low nibbles are the first 16 numbers."""
    low, high = np.arange(16, dtype=np.uint8), np.arange(15, -1, -1, dtype=np.uint8)
    block = np.concatenate([np.array([0.25], np.float16).view(np.uint8), low | high << 4])
    return block, (np.concatenate([low, high]).astype(np.float32) - 8) * 0.25


def by_hand_q4_1():
    """32 nibbles times a scale, plus a minimum."""
    low, high = np.arange(16, dtype=np.uint8), np.arange(15, -1, -1, dtype=np.uint8)
    block = np.concatenate([np.array([0.25, -3.0], np.float16).view(np.uint8), low | high << 4])
    return block, np.concatenate([low, high]).astype(np.float32) * 0.25 - 3.0


def by_hand_q6_k():
    """256 numbers of 6 bits less 32, times an 8-bit scale for each 16, times one fp16 scale. Here: low nibbles 5."""
    low, high = np.full(128, 0x55, np.uint8), np.zeros(64, np.uint8)
    scales = np.arange(1, 17, dtype=np.int8)
    block = np.concatenate([low, high, scales.view(np.uint8), np.array([0.5], np.float16).view(np.uint8)])
    return block, np.repeat(scales.astype(np.float32), 16) * (5 - 32) * 0.5


def by_hand_q4_k():
    """256 nibbles; 8 scales and 8 minima of 6 bits, times fp16 d and dmin. Here: scales 2, minima 3, nibbles 7."""
    packed = np.array([2] * 4 + [3] * 4 + [2 | 3 << 4] * 4, np.uint8)
    block = np.concatenate([np.array([0.5, 0.25], np.float16).view(np.uint8), packed, np.full(128, 0x77, np.uint8)])
    return block, np.full(256, 0.5 * 2 * 7 - 0.25 * 3, np.float32)


@pytest.mark.parametrize(
    ("kind", "make"),
    [(Q.Q8_0, by_hand_q8_0), (Q.Q4_0, by_hand_q4_0), (Q.Q4_1, by_hand_q4_1), (Q.Q6_K, by_hand_q6_k),
     (Q.Q4_K, by_hand_q4_k)],
    ids=lambda x: getattr(x, "name", ""),
)  # fmt: skip
def test_blocks_by_hand(tmp_path, kind, make):
    block, expected = make()
    tensors = {"token_embd.weight": np.zeros((4, 64), np.float32), "w": (np.stack([block, block]), kind)}
    ref = GGUFFile(write_gguf(tmp_path / "q.gguf", TextConfig.tiny(), tensors)).refs["w"]
    assert ref.shape == (2, len(expected))
    np.testing.assert_array_equal(ref.read().numpy(), np.stack([expected, expected]).astype(np.float32))


@pytest.mark.parametrize("kind", [Q.F16, Q.BF16])
def test_sixteen_bit_tensors_become_fp32_without_loss(tmp_path, kind):
    values = torch.randn(3, 8)
    half = values.to(torch.float16 if kind == Q.F16 else torch.bfloat16)
    stored = half.numpy() if kind == Q.F16 else half.view(torch.int16).numpy().view(np.uint16).view(np.uint8)
    tensors = {"token_embd.weight": np.zeros((4, 64), np.float32), "w": (stored, kind)}
    read = GGUFFile(write_gguf(tmp_path / "h.gguf", TextConfig.tiny(), tensors)).refs["w"].read()
    assert torch.equal(read, half.float())


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_rope_scaling_is_found_back_from_its_divisors(tmp_path, factor):
    scaling = RopeScaling(factor=factor)
    model = make_model(rope_theta=500_000.0, rope_scaling=scaling, head_dim=64)
    divisors = rope_frequencies(64) / rope_frequencies(64, scaling=scaling)
    tensors = {**tensors_of(model), "rope_freqs.weight": divisors.numpy()}
    path = write_gguf(tmp_path / "m.gguf", model.cfg, tensors)
    assert GGUFFile(path).config.rope_scaling == scaling
    assert torch.equal(from_pretrained_without_tokenizer(path).cos, model.cos)


def test_another_rope_rule_is_refused(tmp_path):
    tensors = {**tensors_of(make_model()), "rope_freqs.weight": np.linspace(1, 3, 8, dtype=np.float32)}
    with pytest.raises(CheckpointError, match="another rule"):
        _ = GGUFFile(write_gguf(tmp_path / "m.gguf", TextConfig.tiny(), tensors)).config


REFUSED = {
    "linear": ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, "rope.scaling.*factor=4.0"),
    "linear by llama.cpp's default": ({"llama.rope.scaling.factor": 2.0}, "rope.scaling: type=linear, factor=2.0"),
    "the oldest spelling": ({"llama.rope.scale_linear": 2.0}, "factor=2.0"),
    "yarn": ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
              "llama.rope.scaling.original_context_length": 128}, "type=yarn"),
    "longrope": ({"llama.rope.scaling.type": "longrope"}, "type=longrope"),
    "a factor of attention": ({"llama.rope.scaling.attn_factor": 1.5}, "attn_factor=1.5"),
    "a part of a head": ({"llama.rope.dimension_count": 8}, "rope.dimension_count=8, not 16"),
    "values of another size": ({"llama.attention.value_length": 8}, "value_length=8, not 16"),
    "another vocabulary": ({"llama.vocab_size": 500}, "vocab_size=500, not 512"),
    "experts": ({"llama.expert_count": 8, "llama.expert_used_count": 2}, "llama.expert_count=8"),
    "a window": ({"llama.attention.sliding_window": 128}, "sliding_window=128"),
    "both ways": ({"llama.attention.causal": False}, "attention.causal=False"),
    "a scale of attention": ({"llama.attention.scale": 0.5}, "attention.scale=0.5"),
    "of logits": ({"llama.logit_scale": 8.0}, "logit_scale=8.0"),
    "capped logits": ({"llama.attn_logit_softcapping": 50.0}, "softcapping=50.0"),
    "what is to come": ({"llama.new_trick": "on"}, "llama.new_trick='on'"),
    "an adapter": ({"general.type": "adapter"}, "type 'adapter'"),
    "a part": ({"split.count": 3}, "one of 3 parts"),
    "blocks that differ": ({"llama.attention.head_count_kv": [2, 4]}, r"head_count_kv=\[2, 4\]"),
}  # fmt: skip


@pytest.mark.parametrize(("said", "message"), REFUSED.values(), ids=REFUSED)
def test_metadata_that_changes_results_is_refused_by_name(tmp_path, said, message):
    leave_out = [key.removeprefix("llama.") for key in said]
    path = write_gguf(tmp_path / "m.gguf", TextConfig.tiny(), tensors_of(make_model()), leave_out=leave_out, said=said)
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(path)


def test_metadata_that_says_what_a_llama_does_is_read(tmp_path):
    said = {
        "llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0, "llama.rope.scaling.finetuned": False,
        "llama.rope.scaling.original_context_length": 128, "llama.rope.scaling.attn_factor": 1.0,
        "llama.rope.dimension_count": 16, "llama.attention.value_length": 16, "llama.vocab_size": 512,
        "llama.expert_count": 0, "llama.attention.causal": True, "llama.attention.head_count_kv": [2, 2],
        "llama.tensor_data_layout": "Meta AI original pth", "general.type": "model", "general.name": "tiny",
        "general.file_type": 1, "tokenizer.ggml.model": "no_vocab", "quantize.imatrix.file": "x",
    }  # fmt: skip
    model = make_model()
    leave_out = ["attention.head_count_kv"]
    path = write_gguf(tmp_path / "m.gguf", model.cfg, tensors_of(model), leave_out=leave_out, said=said)
    loaded, tokenizer = from_pretrained(path)
    assert loaded.cfg == model.cfg and tokenizer is None
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


def test_a_file_without_a_vocabulary_has_no_tokenizer_and_can_be_converted(tmp_path):
    model = make_model(tie_embeddings=False)
    path = write_gguf(tmp_path / "m.gguf", model.cfg, tensors_of(model))
    assert from_pretrained(path)[1] is None and load_tokenizer(path) is None
    (tmp_path / "folder").mkdir()
    convert_gguf(path, tmp_path / "folder")
    again, tokenizer = from_pretrained(tmp_path / "folder")
    assert tokenizer is None and again.cfg == model.cfg
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_other_architectures_and_missing_facts_are_refused(tmp_path):
    tensors = tensors_of(make_model())
    with pytest.raises(CheckpointError, match="'mamba'"):
        _ = GGUFFile(write_gguf(tmp_path / "a.gguf", TextConfig.tiny(), tensors, architecture="mamba")).config
    with pytest.raises(CheckpointError, match="llama.block_count"):
        _ = GGUFFile(write_gguf(tmp_path / "b.gguf", TextConfig.tiny(), tensors, leave_out=["block_count"])).config


@pytest.mark.parametrize("keep", [0, 3, 100, 2000, -1])
def test_truncated_files_are_refused(tmp_path, keep):
    path = write_gguf(tmp_path / "m.gguf", TextConfig.tiny(), tensors_of(make_model()))
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    with pytest.raises(CheckpointError, match="download it again"):
        GGUFFile(path)


def test_without_the_gguf_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingDependencyError, match=r"llamamm\[gguf\]"):
        GGUFFile(tmp_path / "m.gguf")


# ---- the real file ----


def test_smollm2_gguf_equals_its_converted_folder(smollm2_gguf, smollm2):
    model, tokenizer = smollm2
    direct, direct_tokenizer = from_pretrained(smollm2_gguf)
    assert direct.cfg == model.cfg == TextConfig.smollm2_135m().replace(dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(direct.parameters(), model.parameters(), strict=True))
    assert direct_tokenizer.encode("Naïve café?") == tokenizer.encode("Naïve café?")


def test_transformers_reads_the_converted_folder(smollm2_dir, smollm2):
    model, tokenizer = smollm2
    theirs = AutoModelForCausalLM.from_pretrained(smollm2_dir).eval()
    text = "The capital of France is"
    ids = AutoTokenizer.from_pretrained(smollm2_dir)(text, return_tensors="pt").input_ids
    assert ids[0].tolist() == tokenizer.encode(text)
    with torch.no_grad():
        assert (model(ids) - theirs(ids).logits).abs().max() < 1e-4
