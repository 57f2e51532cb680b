"""Configuration: every number that decides the shape of a Llama, checked once, when it is made.

A wrong number found here costs a line of text; found later it costs a stack trace from inside a matrix product.
Presets carry the real numbers of the public checkpoints; `from_hf` reads a `config.json` in both spellings that
exist (the Hub's `rope_scaling` + `rope_theta` + `torch_dtype`, and transformers 5's `rope_parameters` + `dtype`).

Source: "The Llama 3 Herd of Models", arXiv:2407.21783; the `config.json` of meta-llama/Llama-3.2-1B.
Built in notebook 06.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from llamamm.errors import ConfigError, require_whole
from llamamm.text.config_keys import require_known_keys, require_known_rope_keys

# What the first outline of this course called some fields; `config["emb_dim"]` works beside `config.hidden_size`.
OUTLINE_NAMES = {"emb_dim": "hidden_size", "n_kv_groups": "n_kv_heads", "hidden_dim": "intermediate_size"}

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


@dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 and later stretch RoPE past the length they were first trained on (the "llama3" rule).

    factor: by how much slow frequencies are slowed down; 8 for Llama 3.1 and the Vision models, 32 for 1B and 3B.
    low_freq_factor, high_freq_factor: wavelengths over original/low are stretched, under original/high kept.
    original_context_length: tokens seen in the first training.
    """

    factor: float = 32.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_length: int = 8192

    def __post_init__(self) -> None:
        if not self.factor >= 1:
            raise ConfigError(f"rope scaling factor must be >= 1, got {self.factor}")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"rope scaling needs 0 < low_freq_factor < high_freq_factor, "
                f"got {self.low_freq_factor} and {self.high_freq_factor}"
            )
        require_whole("original_context_length", self.original_context_length)


@dataclass(frozen=True)
class TextConfig:
    """The shape of a text-only Llama. Immutable; `config.replace(n_layers=2)` gives a changed copy.

    `head_dim=None` means hidden_size / n_heads; a checkpoint may fix another value.
    `dtype` is the type that parameters are created in.
    Raises ConfigError with the numbers that disagree.
    """

    vocab_size: int
    context_length: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = True
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "hidden_size", "intermediate_size", "n_layers", "n_heads",
                     "n_kv_heads"):
            require_whole(name, getattr(self, name))
        if self.head_dim is None:
            if self.hidden_size % self.n_heads:
                raise ConfigError(
                    f"hidden_size {self.hidden_size} is not a multiple of n_heads {self.n_heads}; "
                    f"give head_dim to use another size"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.n_heads)
        require_whole("head_dim", self.head_dim)
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even, because RoPE turns pairs of numbers; got {self.head_dim}")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}: "
                f"each key/value head must serve the same number of query heads"
            )
        if not (math.isfinite(self.norm_eps) and self.norm_eps > 0):
            raise ConfigError(f"norm_eps must be a small positive number, got {self.norm_eps}")
        if not (math.isfinite(self.rope_theta) and self.rope_theta > 1):
            raise ConfigError(f"rope_theta must be greater than 1, got {self.rope_theta}")
        if self.dtype not in _DTYPES.values():
            raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, got {self.dtype}")

    # ---- the outline's mapping access: cfg["emb_dim"] ----

    def __getitem__(self, key: str) -> Any:
        name = OUTLINE_NAMES.get(key, key)
        if name not in self.keys():
            raise KeyError(f"{key!r} is not a configuration field; there are {', '.join(self.keys())}")
        return getattr(self, name)

    def keys(self) -> list[str]:
        """Field names, so that `dict(config)` works."""
        return [f.name for f in fields(self)]

    def replace(self, **changes: Any) -> TextConfig:
        """A changed copy, validated again. A change of hidden_size or n_heads needs head_dim too (None: recompute)."""
        return replace(self, **changes)

    # ---- presets ----

    @classmethod
    def llama32_1b(cls) -> TextConfig:
        """Llama 3.2 1B: 1,235,814,400 parameters."""
        return cls(vocab_size=128_256, context_length=131_072, hidden_size=2048, intermediate_size=8192, n_layers=16,
                   n_heads=32, n_kv_heads=8, head_dim=64, rope_scaling=RopeScaling(factor=32.0))

    @classmethod
    def llama32_3b(cls) -> TextConfig:
        """Llama 3.2 3B: 3,212,749,824 parameters."""
        return cls(vocab_size=128_256, context_length=131_072, hidden_size=3072, intermediate_size=8192, n_layers=28,
                   n_heads=24, n_kv_heads=8, head_dim=128, rope_scaling=RopeScaling(factor=32.0))

    @classmethod
    def smollm2_135m(cls) -> TextConfig:
        """SmolLM2-135M, the same architecture in small: 134,515,008 parameters."""
        return cls(vocab_size=49_152, context_length=8192, hidden_size=576, intermediate_size=1536, n_layers=30,
                   n_heads=9, n_kv_heads=3, head_dim=64, rope_theta=100_000.0)

    @classmethod
    def tiny(cls, **changes: Any) -> TextConfig:
        """A Llama that fits in a test: two layers, four heads on two key/value heads, 512 tokens, fp32."""
        base: dict[str, Any] = dict(vocab_size=512, context_length=256, hidden_size=64, intermediate_size=128,
                                    n_layers=2, n_heads=4, n_kv_heads=2, rope_theta=10_000.0, dtype=torch.float32)
        return cls(**{**base, **changes})

    # ---- config.json ----

    @classmethod
    def from_hf(cls, data: Mapping[str, Any]) -> TextConfig:
        """Read the content of a Hugging Face `config.json`, in the Hub's or in transformers 5's spelling.

        Raises ConfigError for another model family, and for a key that may change results and is not known, naming it.
        """
        if data.get("model_type", "llama") != "llama":
            raise ConfigError(f"model_type is {data['model_type']!r}; this package builds 'llama' text models")
        missing = [k for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                               "num_attention_heads") if k not in data]
        if missing:
            raise ConfigError(f"config.json lacks {', '.join(missing)}")
        require_known_keys(data)
        data = {key: value for key, value in data.items() if value is not None}  # null: what transformers takes
        rope = data.get("rope_scaling") or data.get("rope_parameters") or {}  # in this order, as transformers
        rope = {key: value for key, value in rope.items() if value is not None}
        if "original_max_position_embeddings" in data:  # transformers lets this place go before the one inside
            rope["original_max_position_embeddings"] = data["original_max_position_embeddings"]
        return cls(
            vocab_size=data["vocab_size"],
            context_length=data.get("max_position_embeddings", 2048),
            hidden_size=data["hidden_size"],
            intermediate_size=data["intermediate_size"],
            n_layers=data["num_hidden_layers"],
            n_heads=data["num_attention_heads"],
            n_kv_heads=data.get("num_key_value_heads", data["num_attention_heads"]),
            head_dim=data.get("head_dim"),
            norm_eps=data.get("rms_norm_eps", 1e-6),
            rope_theta=rope.get("rope_theta", data.get("rope_theta", 10_000.0)),
            rope_scaling=_rope_scaling_from_hf(rope),
            tie_embeddings=data.get("tie_word_embeddings", False),
            dtype=parse_dtype(data.get("dtype") or data.get("torch_dtype") or "float32"),
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of a `config.json` in the Hub's spelling, which every version of transformers reads."""
        scaling = self.rope_scaling and {
            "rope_type": "llama3",
            "factor": self.rope_scaling.factor,
            "low_freq_factor": self.rope_scaling.low_freq_factor,
            "high_freq_factor": self.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": self.rope_scaling.original_context_length,
        }
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.context_length,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "rms_norm_eps": self.norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "tie_word_embeddings": self.tie_embeddings,
            "torch_dtype": str(self.dtype).removeprefix("torch."),
        }


def parse_dtype(name: str | torch.dtype) -> torch.dtype:
    """`"bfloat16"`, `"torch.bfloat16"`, `"bf16"` or a torch.dtype -> torch.dtype. Raises ConfigError."""
    if isinstance(name, torch.dtype):
        return name
    short = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
    plain = name.removeprefix("torch.").lower()
    plain = short.get(plain, plain)
    if plain not in _DTYPES:
        raise ConfigError(f"unknown dtype {name!r}; use one of {', '.join([*_DTYPES, *short])}")
    return _DTYPES[plain]


def _rope_scaling_from_hf(rope: Mapping[str, Any]) -> RopeScaling | None:
    require_known_rope_keys(rope)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default" or (kind == "linear" and rope.get("factor") == 1):
        return None
    if kind != "llama3":
        raise ConfigError(f"rope scaling {kind!r} is not implemented; Llama 3.2 uses 'llama3' or none")
    missing = [k for k in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
               if k not in rope]
    if missing:
        raise ConfigError(f"llama3 rope scaling in config.json lacks {', '.join(missing)}")
    return RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_context_length=rope["original_max_position_embeddings"],
    )


LLAMA32_CONFIG = TextConfig.llama32_1b()
LLAMA32_3B_CONFIG = TextConfig.llama32_3b()
SMOLLM2_CONFIG = TextConfig.smollm2_135m()
