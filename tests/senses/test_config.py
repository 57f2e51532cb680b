"""senses.config: presets against the repositories' numbers, config.json both ways, wrong numbers named."""

import pytest
import torch
from transformers import CLIPVisionConfig, Dinov2Config, SiglipVisionConfig, ViTConfig, WhisperConfig

from llamamm.errors import ConfigError
from llamamm.senses.audio import AudioEncoder
from llamamm.senses.config import AudioConfig, EncoderConfig, VisionConfig
from llamamm.senses.vision import VisionTower

# what the files on the Hub say, in part; the rest is the family's default
CLIP_336 = {
    "model_type": "clip", "projection_dim": 768, "text_config": {"hidden_size": 768},
    "vision_config": {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "num_attention_heads": 16,
                      "num_hidden_layers": 24, "patch_size": 14},
}  # fmt: skip
SO400M = {
    "model_type": "siglip", "text_config": {"hidden_size": 1152},
    "vision_config": {"hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "num_attention_heads": 16,
                      "num_hidden_layers": 27, "patch_size": 14, "model_type": "siglip_vision_model"},
}  # fmt: skip
DINO = {
    "model_type": "dinov2", "hidden_size": 384, "image_size": 518, "mlp_ratio": 4, "num_attention_heads": 6,
    "num_hidden_layers": 12, "patch_size": 14, "layerscale_value": 1.0, "use_swiglu_ffn": False, "qkv_bias": True,
}  # fmt: skip
VIT = {"model_type": "vit", "hidden_size": 768, "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-12}
TINY_EN = {
    "model_type": "whisper", "d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536,
    "num_mel_bins": 80, "max_source_positions": 1500, "activation_function": "gelu", "vocab_size": 51864,
}  # fmt: skip


@pytest.mark.parametrize(
    ("data", "preset", "n_positions"),
    [(CLIP_336, VisionConfig.clip_large(), 577), (SO400M, VisionConfig.siglip_so400m(), 729),
     (DINO, VisionConfig.dinov2_small(), 1370), (VIT, VisionConfig.vit_base(), 197)],
    ids=["clip", "siglip", "dinov2", "vit"],
)  # fmt: skip
def test_presets_are_what_the_repositories_say(data, preset, n_positions):
    assert VisionConfig.from_hf(data) == preset
    assert preset.n_positions == n_positions


@pytest.mark.parametrize(
    ("preset", "millions"),
    [(VisionConfig.vit_base(), 85.8), (VisionConfig.clip_large(), 303.5), (VisionConfig.siglip_so400m(), 428.2),
     (VisionConfig.dinov2_small(), 22.1)],
    ids=["vit", "clip", "siglip", "dinov2"],
)  # fmt: skip
def test_presets_have_the_published_numbers_of_parameters(preset, millions):
    with torch.device("meta"):
        n = sum(p.numel() for p in VisionTower(preset).parameters())
    assert n / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize(
    ("preset", "millions"), [(AudioConfig.whisper_tiny(), 8.2), (AudioConfig.whisper_base(), 20.6)]
)
def test_whispers_encoders_have_the_published_numbers_of_parameters(preset, millions):
    with torch.device("meta"):
        n = sum(p.numel() for p in AudioEncoder(preset).parameters())
    assert n / 1e6 == pytest.approx(millions, abs=0.05)


def test_whisper_from_its_file():
    assert AudioConfig.from_hf(TINY_EN) == AudioConfig.whisper_tiny()
    assert AudioConfig.whisper(1280, 32, 20, n_mels=128).encoder.intermediate_size == 5120  # large-v3


@pytest.mark.parametrize("config", [CLIPVisionConfig, SiglipVisionConfig, Dinov2Config, ViTConfig])
def test_there_and_back_and_transformers_reads_it(config):
    cfg = VisionConfig.from_hf(config(hidden_size=96, num_hidden_layers=3, num_attention_heads=6).to_dict())
    assert VisionConfig.from_hf(cfg.to_hf()) == cfg
    theirs = config(**cfg.to_hf())
    assert (theirs.hidden_size, theirs.num_hidden_layers, theirs.layer_norm_eps) == (96, 3, cfg.encoder.norm_eps)
    assert VisionConfig.from_hf(theirs.to_dict()) == cfg


def test_whisper_there_and_back():
    cfg = AudioConfig.from_hf(WhisperConfig(d_model=64, encoder_layers=2, encoder_attention_heads=4).to_dict())
    assert AudioConfig.from_hf(cfg.to_hf()) == cfg
    assert AudioConfig.from_hf(WhisperConfig(**cfg.to_hf()).to_dict()) == cfg


def test_siglip_may_lack_its_head():
    data = {**SO400M, "vision_config": {**SO400M["vision_config"], "vision_use_head": False}}
    assert not VisionConfig.from_hf(data).attention_pool


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EncoderConfig(10, 20, 1, 3), "hidden_size 10 is not a multiple of n_heads 3"),
        (lambda: EncoderConfig(0, 20, 1, 3), "hidden_size must be a whole number of at least 1, got 0"),
        (lambda: EncoderConfig(8, 20, 1, 2, norm_eps=0), "norm_eps"),
        (lambda: EncoderConfig(8, 20, 1, 2, activation="relu"), "gelu_tanh.*'relu'"),
        (lambda: VisionConfig.tiny("swin"), "swin"),
        (lambda: VisionConfig.tiny(patch_size=64), "patch_size 64 is larger than image_size 32"),
        (lambda: VisionConfig.tiny(encoder={"n_heads": 5}), "32 is not a multiple of n_heads 5"),
        (lambda: VisionConfig.from_hf({"model_type": "swin"}), "'swin'.*vit, clip, siglip, dinov2"),
        (lambda: VisionConfig.from_hf({**DINO, "use_swiglu_ffn": True}), "use_swiglu_ffn=True"),
        (lambda: VisionConfig.from_hf({**VIT, "num_channels": 1}), "num_channels=1"),
        (lambda: VisionConfig.from_hf({**VIT, "hidden_act": "relu"}), "'relu' is not implemented"),
        (lambda: VisionConfig.from_hf({**VIT, "image_size": [224, 448]}), "image_size=.224, 448."),
        (lambda: AudioConfig.from_hf({"model_type": "wav2vec2"}), "'wav2vec2'"),
        (lambda: AudioConfig.from_hf({"model_type": "whisper", "d_model": 8}), "lacks encoder_layers"),
        (lambda: AudioConfig.whisper(9, 1, 3), "must be even.*9"),
    ],
)
def test_wrong_numbers_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
