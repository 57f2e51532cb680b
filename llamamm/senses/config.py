"""Configuration of the encoders that see and hear: ViT, CLIP, SigLIP and DINOv2 for pictures, Whisper's for sound.

The four vision towers are one architecture with small differences, and each difference is a field here:

              CLS token   patch bias   norm before blocks   norm after blocks   LayerScale   activation    pooled by
    ViT       yes         yes          no                   every token         no           GELU          CLS
    CLIP      yes         no           yes                  the pooled CLS      no           quick GELU    CLS
    SigLIP    no          yes          no                   every token         no           tanh GELU     attention
    DINOv2    yes         yes          no                   every token         yes          GELU          CLS

Sources: ViT, arXiv:2010.11929; CLIP, arXiv:2103.00020; SigLIP, arXiv:2303.15343; DINOv2, arXiv:2304.07193; Whisper,
arXiv:2212.04356; the `config.json` of their repositories. Built in notebooks 11 and 12.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llamamm.errors import ConfigError, require_whole
from llamamm.senses.config_keys import AUDIO_READ, HARMLESS, VISION_READ, given, require_known

# Hugging Face's names of activations -> ours
ACTIVATION_NAMES = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of a stack of blocks in which every token sees every other.

    activation: "gelu", "gelu_tanh" or "quick_gelu". layer_scale: a learned factor on each branch of a block.
    attention_bias: whether q, v and the output have biases; key_bias: whether k has one.
    Raises ConfigError with the numbers that disagree.
    """

    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    norm_eps: float = 1e-6
    activation: str = "gelu"
    layer_scale: bool = False
    attention_bias: bool = True
    key_bias: bool = True

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "n_layers", "n_heads"):
            require_whole(name, getattr(self, name))
        if self.hidden_size % self.n_heads:
            raise ConfigError(f"hidden_size {self.hidden_size} is not a multiple of n_heads {self.n_heads}")
        if not (math.isfinite(self.norm_eps) and self.norm_eps > 0):
            raise ConfigError(f"norm_eps must be a small positive number, got {self.norm_eps}")
        if self.activation not in ACTIVATION_NAMES.values():
            raise ConfigError(f"activation must be one of {', '.join(ACTIVATION_NAMES.values())}, "
                              f"got {self.activation!r}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.n_heads


@dataclass(frozen=True)
class VisionConfig:
    """A vision tower. image_size: the side in pixels of the pictures it was trained on; patch_size: of a patch.

    norm_tokens: the norm after the blocks is for every token; else for the pooled one alone (CLIP).
    attention_pool: SigLIP's head, a learned query that looks over all tokens.
    Raises ConfigError with the numbers that disagree.
    """

    family: str
    encoder: EncoderConfig
    image_size: int
    patch_size: int
    cls_token: bool = True
    patch_bias: bool = True
    pre_norm: bool = False
    norm_tokens: bool = True
    attention_pool: bool = False

    def __post_init__(self) -> None:
        _require_family(self.family)
        for name in ("image_size", "patch_size"):
            require_whole(name, getattr(self, name))
        if self.patch_size > self.image_size:
            raise ConfigError(f"patch_size {self.patch_size} is larger than image_size {self.image_size}")

    @property
    def grid(self) -> int:
        """Patches along a side of a picture of image_size."""
        return self.image_size // self.patch_size

    @property
    def n_positions(self) -> int:
        """Learned positions: one for each patch, and one for the CLS token."""
        return self.grid**2 + self.cls_token

    def replace(self, **changes: Any) -> VisionConfig:
        """A changed copy, validated again; `encoder` takes a dict of changes too."""
        if isinstance(changes.get("encoder"), Mapping):
            changes["encoder"] = replace(self.encoder, **changes["encoder"])
        return replace(self, **changes)

    # ---- presets ----

    @classmethod
    def vit_base(cls) -> VisionConfig:
        """google/vit-base-patch16-224: 86 million parameters, 14 x 14 patches."""
        return cls("vit", EncoderConfig(768, 3072, 12, 12, norm_eps=1e-12), image_size=224, patch_size=16)

    @classmethod
    def clip_large(cls) -> VisionConfig:
        """openai/clip-vit-large-patch14-336, the eye of LLaVA: 303 million parameters, 24 x 24 patches."""
        return cls._of("clip", EncoderConfig(1024, 4096, 24, 16, norm_eps=1e-5, activation="quick_gelu"), 336, 14)

    @classmethod
    def siglip_so400m(cls) -> VisionConfig:
        """google/siglip-so400m-patch14-384: 428 million parameters, 27 x 27 patches."""
        return cls._of("siglip", EncoderConfig(1152, 4304, 27, 16, activation="gelu_tanh"), 384, 14)

    @classmethod
    def dinov2_small(cls) -> VisionConfig:
        """facebook/dinov2-small: 22 million parameters, 37 x 37 patches."""
        return cls._of("dinov2", EncoderConfig(384, 1536, 12, 6, layer_scale=True), 518, 14)

    @classmethod
    def tiny(cls, family: str = "vit", **changes: Any) -> VisionConfig:
        """A tower that fits in a test: two blocks, width 32, pictures of 32 x 32 in patches of 8."""
        encoder = EncoderConfig(32, 64, 2, 4, layer_scale=family == "dinov2")
        return cls._of(family, encoder, 32, 8).replace(**changes)

    @classmethod
    def _of(cls, family: str, encoder: EncoderConfig, image_size: int, patch_size: int) -> VisionConfig:
        _require_family(family)
        return cls(family, encoder, image_size, patch_size, **_FAMILIES[family][1])

    # ---- config.json ----

    @classmethod
    def from_hf(cls, data: Mapping[str, Any]) -> VisionConfig:
        """Read a Hugging Face `config.json` of a tower, or of a model of two towers (CLIP, SigLIP).

        Raises ConfigError for another family or a setting this package does not implement, naming it.
        """
        kind = str(data.get("model_type"))
        family = kind.removesuffix("_vision_model")
        if family not in _FAMILIES:
            raise ConfigError(f"model_type is {kind!r}; vision towers here are {', '.join(_FAMILIES)}")
        defaults, features = _FAMILIES[family]
        own = (data.get("vision_config_dict") if family == "clip" else None) or data.get("vision_config") or data
        require_known(own, VISION_READ | HARMLESS, file="config.json")
        got = {**defaults, **given(own)}  # a file may say only what differs from the family's first model
        for key, expected in (("num_channels", 3), ("use_swiglu_ffn", False)):
            if got.get(key, expected) != expected:
                raise ConfigError(f"config.json has {key}={got[key]!r}; this package builds {key}={expected!r}")
        hidden_size = got["hidden_size"]
        encoder = EncoderConfig(
            hidden_size=hidden_size,
            intermediate_size=got.get("intermediate_size") or int(hidden_size * got["mlp_ratio"]),
            n_layers=got["num_hidden_layers"],
            n_heads=got["num_attention_heads"],
            norm_eps=got["layer_norm_eps"],
            activation=_activation(got["hidden_act"]),
            layer_scale=family == "dinov2",
            attention_bias=got.get("qkv_bias", True),
            key_bias=got.get("qkv_bias", True),
        )
        if family == "siglip":
            features = {**features, "attention_pool": got["vision_use_head"]}
        return cls(family, encoder, _side("image_size", got), _side("patch_size", got), **features)

    def to_hf(self) -> dict[str, Any]:
        """The content of a `config.json` of this tower alone."""
        e = self.encoder
        kind = self.family if self.family in ("vit", "dinov2") else f"{self.family}_vision_model"
        own = {
            "vit": {"intermediate_size": e.intermediate_size, "qkv_bias": e.attention_bias},
            "clip": {"intermediate_size": e.intermediate_size},
            "siglip": {"intermediate_size": e.intermediate_size, "vision_use_head": self.attention_pool},
            "dinov2": {"mlp_ratio": e.intermediate_size // e.hidden_size, "qkv_bias": e.attention_bias},
        }[self.family]
        return {
            "model_type": kind, "hidden_size": e.hidden_size, "num_hidden_layers": e.n_layers,
            "num_attention_heads": e.n_heads, "layer_norm_eps": e.norm_eps, "hidden_act": _hf_activation(e.activation),
            "image_size": self.image_size, "patch_size": self.patch_size, "num_channels": 3, **own,
        }  # fmt: skip


@dataclass(frozen=True)
class AudioConfig:
    """Whisper's encoder. n_mels: bands of the spectrogram; n_positions: places for 30 s of sound, 50 a second."""

    encoder: EncoderConfig
    n_mels: int = 80
    n_positions: int = 1500

    def __post_init__(self) -> None:
        for name in ("n_mels", "n_positions"):
            require_whole(name, getattr(self, name))
        if self.encoder.hidden_size % 2:
            raise ConfigError(f"hidden_size must be even, half sines and half cosines; got {self.encoder.hidden_size}")

    @classmethod
    def whisper(cls, hidden_size: int, n_layers: int, n_heads: int, *, n_mels: int = 80) -> AudioConfig:
        """Any of Whisper's encoders by its three numbers."""
        encoder = EncoderConfig(hidden_size, 4 * hidden_size, n_layers, n_heads, norm_eps=1e-5, key_bias=False)
        return cls(encoder, n_mels)

    @classmethod
    def whisper_tiny(cls) -> AudioConfig:
        """openai/whisper-tiny and tiny.en: 8.2 million parameters."""
        return cls.whisper(384, 4, 6)

    @classmethod
    def whisper_base(cls) -> AudioConfig:
        """openai/whisper-base: 20.6 million parameters."""
        return cls.whisper(512, 6, 8)

    @classmethod
    def tiny(cls) -> AudioConfig:
        """An encoder that fits in a test: two blocks, width 32, one second of sound."""
        return replace(cls.whisper(32, 2, 4, n_mels=16), n_positions=50)

    @classmethod
    def from_hf(cls, data: Mapping[str, Any]) -> AudioConfig:
        """Read Whisper's `config.json`. Raises ConfigError for another family or setting, naming it."""
        if data.get("model_type") != "whisper":
            raise ConfigError(f"model_type is {data.get('model_type')!r}; the audio encoder here is 'whisper'")
        data = given(data)
        missing = [k for k in ("d_model", "encoder_layers", "encoder_attention_heads") if k not in data]
        if missing:
            raise ConfigError(f"config.json lacks {', '.join(missing)}")
        require_known(data, AUDIO_READ | HARMLESS, file="config.json")
        encoder = EncoderConfig(
            hidden_size=data["d_model"],
            intermediate_size=data.get("encoder_ffn_dim", 1536),  # tiny's, which transformers takes for all
            n_layers=data["encoder_layers"],
            n_heads=data["encoder_attention_heads"],
            norm_eps=1e-5,  # PyTorch's default, which the reference takes
            activation=_activation(data.get("activation_function", "gelu")),
            key_bias=False,
        )
        return cls(encoder, data.get("num_mel_bins", 80), data.get("max_source_positions", 1500))

    def to_hf(self) -> dict[str, Any]:
        """What a `config.json` says of the encoder."""
        e = self.encoder
        return {
            "model_type": "whisper", "d_model": e.hidden_size, "encoder_layers": e.n_layers,
            "encoder_attention_heads": e.n_heads, "encoder_ffn_dim": e.intermediate_size,
            "activation_function": _hf_activation(e.activation), "num_mel_bins": self.n_mels,
            "max_source_positions": self.n_positions,
        }  # fmt: skip


# family: (what its config.json may leave out, what makes the architecture)
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224}
_FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vit": ({**_BASE, "intermediate_size": 3072, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-12}, {}),
    "clip": (
        {**_BASE, "intermediate_size": 3072, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
        {"patch_bias": False, "pre_norm": True, "norm_tokens": False},
    ),
    "siglip": (
        {**_BASE, "intermediate_size": 3072, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh",
         "layer_norm_eps": 1e-6, "vision_use_head": True},
        {"cls_token": False, "attention_pool": True},
    ),
    "dinov2": ({**_BASE, "mlp_ratio": 4, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6}, {}),
}  # fmt: skip


def _require_family(family: str) -> None:
    if family not in _FAMILIES:
        raise ConfigError(f"family must be one of {', '.join(_FAMILIES)}, got {family!r}")


def _activation(name: str) -> str:
    if name not in ACTIVATION_NAMES:
        raise ConfigError(f"activation {name!r} is not implemented; there are {', '.join(ACTIVATION_NAMES)}")
    return ACTIVATION_NAMES[name]


def _hf_activation(ours: str) -> str:
    return next(name for name, value in ACTIVATION_NAMES.items() if value == ours)


def _side(key: str, data: Mapping[str, Any]) -> int:
    """A size that some files give as [height, width]."""
    value = data[key]
    if isinstance(value, list | tuple):
        if len(set(value)) != 1:
            raise ConfigError(f"config.json has {key}={value!r}; this package builds square ones")
        value = value[0]
    return value
