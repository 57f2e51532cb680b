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
from tests.weights.test_loading import make_model

IDS = torch.arange(30)[None]
WIDE = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 49_152}
TEXT = "It's 1234 o'clock\n\n  naïve 東京 <|im_end|> tokens"


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
def test_a_model_comes_back_number_for_number(tmp_path, smol, bits, group, head, tied):
    scaling = RopeScaling(factor=8.0, original_context_length=64) if tied else None
    model = make_model(**WIDE, head_dim=32, tie_embeddings=tied, rope_scaling=scaling)
    model.half().float()  # numbers that F16 holds
    if bits:
        quantize(model, bits, group=group, head=head)
    export_gguf(model, tmp_path / "m.gguf", tokenizer=smol)
    again, tokenizer = from_pretrained(tmp_path / "m.gguf", fast=False)
    for path, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            assert torch.equal(again.get_submodule(path).weight, module.weight), path
    assert (again.lm_head.weight is again.embed_tokens.weight) == (tied and not (bits and head))
    if scaling is None:  # else the rule is found back from the numbers that it gives
        assert again.cfg == model.cfg.replace(tie_embeddings=again.cfg.tie_embeddings)
    else:
        assert again.cfg.rope_scaling.factor == 8.0
    with torch.no_grad():
        torch.testing.assert_close(again(IDS), model(IDS), atol=1e-5, rtol=1e-5)
    types = {t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert types == {"F32", "F16"} | ({f"Q{bits}_0"} if bits else set())
    assert tokenizer.encode(TEXT) == smol.encode(TEXT) and [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_tokenizers_come_back(tmp_path, smol, llama):
    for name, tokenizer in (("smol", smol), ("llama", llama)):
        model = make_model(hidden_size=64, n_layers=1, vocab_size=tokenizer.vocab_size + 5)
        export_gguf(model, tmp_path / name, tokenizer=tokenizer)
        again = Tokenizer(tmp_path / name)
        texts = [TEXT, "  12 345", "def f(x):\n\treturn x\n"]
        assert [again.encode(t, bos=again.adds_bos) for t in texts] == [
            tokenizer.encode(t, bos=tokenizer.adds_bos) for t in texts]
        assert again.stop_ids == tokenizer.stop_ids and again.chat_template == tokenizer.chat_template
        assert (again.bos_id, again.eos_id, again.adds_bos) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos)
        said = GGUFFile(tmp_path / name).metadata
        assert said("tokenizer.ggml.pre") == {"smol": "smollm", "llama": "llama-bpe"}[name]
        assert said("tokenizer.ggml.tokens")[-1] == f"[PAD{tokenizer.vocab_size + 4}]"
        assert set(said("tokenizer.ggml.token_type")[-5:]) == {5}
        assert said("tokenizer.ggml.token_type")[tokenizer.eos_id] == 3


def test_refusals(tmp_path, smol):
    with pytest.raises(InputError, match="sees or hears: write a folder"):
        export_gguf(MultimodalLlama(MultimodalConfig.tiny()), tmp_path / "m.gguf", tokenizer=smol)
    with pytest.raises(InputError, match="the model has none"):
        export_gguf(make_model(), tmp_path / "m.gguf", tokenizer=None)
    with pytest.raises(TokenizerError, match="49152 tokens, the model 512"):
        gguf_metadata(smol, 512)
    model = make_model(vocab_size=49_152)
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[3, 3] = 1e6
    with pytest.raises(CheckpointError, match="ffn_up.weight has numbers .* too large for fp16"):
        export_gguf(model, tmp_path / "m.gguf", tokenizer=smol)
    assert not list(tmp_path.iterdir())
