"""train.prepare: which weights may be short, and what a stage leaves alone."""

from types import SimpleNamespace

import pytest
import torch

from llamamm import Llama3Model, TextConfig, save_pretrained
from llamamm.errors import ConfigError
from llamamm.fast.quantized import quantize
from llamamm.lora.lora import apply_lora
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import MultimodalLlama
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.pretrained.skill import save_skill
from llamamm.senses.image_processor import ImageProcessor
from llamamm.train.config import TrainConfig
from llamamm.train.prepare import load_model, make_trainable, weights_dtype
from llamamm.train.tokenizer import train_tokenizer

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(("method", "precision", "device", "low", "dtype"), [
    ("lora", "bf16", "cpu", BF16, BF16),  # asked for
    ("align", "bf16", "cpu", BF16, BF16),
    ("lora", "auto", "cpu", BF16, FP32),  # not asked for: a CPU may be slow at it
    ("lora", "fp32", "cpu", None, FP32),
    ("full", "bf16", "cpu", BF16, FP32),  # AdamW moves all of it
    ("lora", "auto", "cuda", BF16, BF16),
    ("lora", "fp16", "cuda", FP16, FP16),
    ("full", "bf16", "cuda", BF16, FP32),
    ("lora", "fp32", "cuda", None, FP32),
])  # fmt: skip
def test_frozen_weights_may_be_short_and_others_not(method, precision, device, low, dtype):
    cfg = SimpleNamespace(method=method, precision=precision)
    assert weights_dtype(cfg, torch.device(device), low) == dtype


@pytest.mark.parametrize(
    ("method", "precision", "frozen"),
    [("lora", "bf16", {BF16}), ("lora", "fp32", {FP32}), ("dpo", "bf16", {BF16}), ("full", "bf16", set())],
)
def test_what_trains_of_a_text_model_is_fp32(tmp_path, method, precision, frozen):
    words = train_tokenizer(["user assistant"] * 9, tmp_path, vocab_size=280)
    save_pretrained(Llama3Model(TextConfig.tiny(vocab_size=words.vocab_size)), tmp_path / "text", tokenizer=words)
    cfg = TrainConfig.make({"model": str(tmp_path / "text"), "steps": 1, "output": tmp_path / "run", "method": method,
                            "precision": precision, "device": "cpu"})  # fmt: skip
    model, _ = load_model(cfg, torch.device("cpu"))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {FP32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == frozen


@pytest.mark.parametrize("changes", [{"method": "align"}, {"trains": ["lora"]}, {"trains": ["bridges", "lora"]}])
def test_a_stage_begins_with_the_bridges_of_the_one_before_bit_for_bit(tmp_path, changes):
    words = train_tokenizer(["user assistant"] * 9, tmp_path, vocab_size=280)
    cfg = MultimodalConfig.tiny(text=TextConfig.tiny(vocab_size=words.vocab_size))
    model = MultimodalLlama(cfg)
    save_pretrained(model, tmp_path / "base", processor=MultimodalProcessor(cfg, words, ImageProcessor.vit(32)))
    for parameter in model.added_parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)  # numbers that bf16 does not hold
    apply_lora(model, r=2, alpha=4.0, targets=["layers.*.q_proj"])
    save_skill(model, tmp_path / "skill")
    stage = TrainConfig.make({"model": str(tmp_path / "base"), "adapter": tmp_path / "skill", "steps": 1,
                              "output": tmp_path / "run", "precision": "bf16", "device": "cpu", **changes})  # fmt: skip
    begun, _ = load_model(stage, torch.device("cpu"))
    assert begun.embed_tokens.weight.dtype == BF16
    assert all(map(torch.equal, begun.added_parameters(), model.added_parameters()))


def test_whole_numbers_do_not_train(tmp_path):
    model = quantize(Llama3Model(TextConfig.tiny(vocab_size=512)), 8)
    settings = {"model": "q", "data": "d", "output": tmp_path, "device": "cpu", "steps": 1}
    with pytest.raises(ConfigError, match="q is quantized.*take method: lora"):
        make_trainable(model, TrainConfig(**settings, method="full"))
    make_trainable(model, TrainConfig(**settings, method="lora"))
    assert any(p.requires_grad for n, p in model.named_parameters() if "lora_b" in n)
