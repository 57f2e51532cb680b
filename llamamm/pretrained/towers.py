"""From a name to an encoder that sees or hears, and to what prepares its pictures.

Built in notebooks 11 and 12.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar, Unpack

import torch
from torch import nn

from llamamm.files import read_json
from llamamm.generation.transcribe import SpeechTokens
from llamamm.pretrained.locate import HubOptions, locate
from llamamm.senses.audio import AudioEncoder
from llamamm.senses.config import AudioConfig, VisionConfig
from llamamm.senses.config_keys import read_image_settings, read_processor_part, require_whispers_spectrogram
from llamamm.senses.image_processor import ImageProcessor
from llamamm.senses.vision import VisionTower
from llamamm.senses.whisper_decoder import Whisper, WhisperConfig
from llamamm.text.tokenizer import Tokenizer
from llamamm.weights.checkpoint import open_checkpoint
from llamamm.weights.loading import choose_dtype, fill, only_dtype
from llamamm.weights.tensors import TensorRef
from llamamm.weights.tower_names import audio_names, speech_names, vision_names

M = TypeVar("M", bound=nn.Module)


def load_vision_tower(
    repo_or_dir: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    **hub: Unpack[HubOptions],
) -> VisionTower:
    """A trained ViT, CLIP, SigLIP or DINOv2, ready to see: pixels (B, 3, H, W) -> features (B, N, C).

    repo_or_dir: "facebook/dinov2-small", a folder, or an asset's name such as "vit-s". A CLIP or SigLIP of two towers
    gives its eye. dtype: what to cast to; None keeps the file's own.
    Raises FetchError, CheckpointError or ConfigError with the remedy.
    """
    folder = _folder(repo_or_dir, "vision", **hub)
    data = read_json(folder / "config.json")
    cfg = VisionConfig.from_hf(data)
    named = vision_names(open_checkpoint(folder), with_head=cfg.attention_pool)
    return _build(lambda: VisionTower(cfg), named, choose_dtype(dtype, named, data), device)


def load_audio_encoder(
    repo_or_dir: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    **hub: Unpack[HubOptions],
) -> AudioEncoder:
    """The encoder of a trained Whisper, ready to hear: mel (B, n_mels, 3000) -> features (B, 1500, C).

    repo_or_dir: "openai/whisper-tiny.en", a folder, or an asset's name such as "whisper-tiny".
    dtype: what to cast to; None keeps the file's own. Raises FetchError, CheckpointError or ConfigError.
    """
    folder = _folder(repo_or_dir, "audio", **hub)
    data = read_json(folder / "config.json")
    cfg, named = AudioConfig.from_hf(data), audio_names(open_checkpoint(folder))
    _require_spectrogram(folder, cfg)
    return _build(lambda: AudioEncoder(cfg), named, choose_dtype(dtype, named, data), device)


def load_whisper(
    repo_or_dir: str | Path = "whisper-tiny",
    *,
    language: str = "en",
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    **hub: Unpack[HubOptions],
) -> tuple[Whisper, SpeechTokens]:
    """A whole trained Whisper and what its ids mean: `transcribe(*load_whisper(), wave)` gives a recording's words.

    repo_or_dir and dtype: as in `load_audio_encoder`. language: what a multilingual model is to write, as "de".
    Raises FetchError, CheckpointError, ConfigError, TokenizerError or InputError with the remedy.
    """
    folder = _folder(repo_or_dir, "audio", **hub)
    data = read_json(folder / "config.json")
    cfg = WhisperConfig.from_hf(data)
    _require_spectrogram(folder, cfg.audio)
    tokens = SpeechTokens.read(Tokenizer(folder), read_json(folder / "generation_config.json"), language=language)
    named = speech_names(open_checkpoint(folder))
    return _build(lambda: Whisper(cfg), named, choose_dtype(dtype, named, data), device), tokens


def load_image_processor(repo_or_dir: str | Path, **hub: Unpack[HubOptions]) -> ImageProcessor:
    """What turns pictures into a tower's pixels, as its `preprocessor_config.json` or `processor_config.json` says.

    Raises FetchError, CheckpointError or ConfigError with the remedy.
    """
    folder = _folder(repo_or_dir, "vision", **hub)
    return ImageProcessor.from_hf(read_image_settings(folder)[1])


def _folder(name: str | Path, kind: str, **hub: Unpack[HubOptions]) -> Path:
    return locate(name, kind=kind, progress=None if sys.stderr.isatty() else False, **hub)


def _require_spectrogram(folder: Path, cfg: AudioConfig) -> None:
    if found := read_processor_part(folder, "feature_extractor"):
        require_whispers_spectrogram(found[1], n_mels=cfg.n_mels, n_positions=cfg.n_positions, file=found[0].name)


def _build(
    make: Callable[[], M], named: Mapping[str, TensorRef], dtype: torch.dtype | None, device: torch.device | str
) -> M:
    return fill(make, named, dtype=dtype or only_dtype(named), device=device).to(device).eval()
