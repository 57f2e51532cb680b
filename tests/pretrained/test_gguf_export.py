"""pretrained.gguf_export and weights.gguf_writer: what was written is read back, number for number, with its
tokenizer."""

import gguf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamm import RopeScaling, from_pretrained
from llamamm.errors import CheckpointError, InputError, TokenizerError
from llamamm.fast.quantized import QuantizedLinear, quantize, rounded
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import MultimodalLlama
from llamamm.pretrained.gguf_export import export_gguf
from llamamm.text.tokenizer import Tokenizer
from llamamm.text.tokenizer_gguf import gguf_metadata
from llamamm.weights.gguf import GGUFFile
from llamamm.weights.gguf_writer import in_blocks
from tests.text.test_tokenizer import CORPUS, write_gguf
from tests.weights.test_loading import make_model

IDS = torch.arange(30)[None]
WIDE = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 320}


def small_tokenizer(folder, pre):
    return Tokenizer(write_gguf(folder / f"{pre}.gguf", pre=pre))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([8, 4]))
def test_blocks_are_what_the_gguf_package_reads(seed, bits):
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(seed))
    codes, scales = rounded(weight, bits, 32)
    kind = gguf.GGMLQuantizationType[f"Q{bits}_0"]
    found = torch.from_numpy(gguf.dequantize(in_blocks(codes, scales, bits).numpy(), kind))
    assert torch.equal(found, codes.float() * scales.float().repeat_interleave(32, dim=1))


@pytest.mark.parametrize(("bits", "group", "head", "tied"), [
    (8, 32, True, True), (4, 32, True, False), (4, 128, False, True), (None, 32, True, True), (None, 32, True, False),
])  # fmt: skip
def test_a_model_comes_back_number_for_number(tmp_path, bits, group, head, tied):
    scaling = RopeScaling(factor=8.0) if tied else None
    model = make_model(**WIDE, head_dim=32, tie_embeddings=tied, rope_scaling=scaling)
    model.half().float()  # numbers that F16 holds
    if bits:
        quantize(model, bits, group=group, head=head)
    export_gguf(model, tmp_path / "m.gguf", tokenizer=small_tokenizer(tmp_path, "smollm"))
    again, _ = from_pretrained(tmp_path / "m.gguf", fast=False)
    for path, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            assert torch.equal(again.get_submodule(path).weight, module.weight), path
    assert (again.lm_head.weight is again.embed_tokens.weight) == (tied and not (bits and head))
    assert again.cfg == model.cfg.replace(tie_embeddings=again.cfg.tie_embeddings)
    with torch.no_grad():
        torch.testing.assert_close(again(IDS), model(IDS), atol=1e-5, rtol=1e-5)
    types = {t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert types == {"F32", "F16"} | ({f"Q{bits}_0"} if bits else set())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "smollm.gguf"]


@pytest.mark.parametrize("pre", ["llama-bpe", "smollm", "gpt-2"])
def test_tokenizers_come_back(tmp_path, pre):
    tokenizer = small_tokenizer(tmp_path, pre)
    export_gguf(make_model(hidden_size=64, n_layers=1, vocab_size=320), tmp_path / "m.gguf", tokenizer=tokenizer)
    again, said = Tokenizer(tmp_path / "m.gguf"), GGUFFile(tmp_path / "m.gguf").metadata
    for text in CORPUS:
        assert again.encode(text) == tokenizer.encode(text), text
    roles = "stop_ids", "bos_id", "eos_id", "pad_id", "adds_bos", "chat_template"
    assert [getattr(again, role) for role in roles] == [getattr(tokenizer, role) for role in roles]
    names, types = (said(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    assert said("tokenizer.ggml.pre") == pre and types[tokenizer.eos_id] == 3
    assert names[-1] == "[PAD319]" and set(types[262:]) == {5} and len(names) == 320


def test_what_llama_cpp_is_told_of_llama_3(llama, monkeypatch):
    monkeypatch.setattr("llamamm.text.tokenizer._merges_from_ranks", lambda _: [(b"a", b" b")])  # seconds
    said = gguf_metadata(llama, 128_256)
    assert said["tokenizer.ggml.pre"] == "llama-bpe" and said["tokenizer.ggml.add_bos_token"] is True
    assert said["tokenizer.ggml.bos_token_id"] == 128_000 and said["tokenizer.ggml.eot_token_id"] == 128_009
    assert said["tokenizer.ggml.eom_token_id"] == 128_008 and said["tokenizer.ggml.merges"] == ["a Ġb"]
    assert said["tokenizer.ggml.tokens"][220] == "Ġ" and said["tokenizer.ggml.tokens"][128_009] == "<|eot_id|>"


def test_refusals(tmp_path):
    tokenizer = small_tokenizer(tmp_path, "gpt-2")
    with pytest.raises(InputError, match="sees or hears: write a folder"):
        export_gguf(MultimodalLlama(MultimodalConfig.tiny()), tmp_path / "m.gguf", tokenizer=tokenizer)
    with pytest.raises(InputError, match="the model has none"):
        export_gguf(make_model(), tmp_path / "m.gguf", tokenizer=None)
    with pytest.raises(TokenizerError, match="262 tokens, the model 64"):
        gguf_metadata(tokenizer, 64)
    model = make_model(vocab_size=320)
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[3, 3] = 1e6
    with pytest.raises(CheckpointError, match="ffn_up.weight has numbers .* too large for fp16"):
        export_gguf(model, tmp_path / "m.gguf", tokenizer=tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["gpt-2.gguf"]
