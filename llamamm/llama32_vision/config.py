"""Configuration of Llama 3.2 Vision: a Llama with cross-attention blocks, and a vision tower that reads tiles.

Sources: "The Llama 3 Herd of Models", arXiv:2407.21783 (7); the `config.json` of meta-llama/Llama-3.2-11B-Vision.
Built in notebook 15.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llamamm.errors import ConfigError
from llamamm.senses.config import EncoderConfig
from llamamm.senses.config_keys import HARMLESS, TILED_READ, given, require_known
from llamamm.text.config import RopeScaling, TextConfig

# (rows, columns) of tiles; an image's number is its place here plus 1, and 0 stands for no image
ASPECT_RATIOS = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))
EXTRA_EMBEDDINGS = 8  # rows of the token table beyond the vocabulary; the first is the image token's


@dataclass(frozen=True)
class TiledVisionConfig:
    """A vision tower for up to max_tiles tiles of tile_size x tile_size pixels, each with its own patches and CLS.

    encoder: the local blocks; n_global_layers: gated ones after them. intermediates: blocks whose input is kept
    beside the final features. aspect_ratios: (rows, columns) of tiles. Raises ConfigError.
    """

    encoder: EncoderConfig
    n_global_layers: int = 8
    tile_size: int = 448
    patch_size: int = 14
    max_tiles: int = 4
    intermediates: tuple[int, ...] = (3, 7, 15, 23, 30)
    aspect_ratios: tuple[tuple[int, int], ...] = ASPECT_RATIOS

    def __post_init__(self) -> None:
        if self.tile_size % self.patch_size:
            raise ConfigError(f"tile_size {self.tile_size} is not a multiple of patch_size {self.patch_size}")
        wrong = [n for n in self.intermediates if not 0 <= n < self.encoder.n_layers]
        if wrong:
            raise ConfigError(f"intermediates {wrong} are no blocks of an encoder with {self.encoder.n_layers}")
        wide = [ratio for ratio in self.aspect_ratios if ratio[0] * ratio[1] > self.max_tiles]
        if wide or not self.aspect_ratios:
            raise ConfigError(f"aspect ratio {wide[0] if wide else 'none'} needs more than max_tiles {self.max_tiles}")

    @property
    def n_tokens(self) -> int:
        """Of a tile: its patches and the CLS token."""
        return (self.tile_size // self.patch_size) ** 2 + 1

    @property
    def n_features(self) -> int:
        """Numbers for a token: the final ones, and one more set for each intermediate."""
        return self.encoder.hidden_size * (1 + len(self.intermediates))


@dataclass(frozen=True)
class MllamaConfig:
    """The whole model. cross_layers: which of text.n_layers blocks look at images and do not at text.

    Raises ConfigError with the numbers that disagree.
    """

    text: TextConfig
    vision: TiledVisionConfig
    cross_layers: tuple[int, ...] = (3, 8, 13, 18, 23, 28, 33, 38)
    image_token: int = 128_256

    def __post_init__(self) -> None:
        wrong = [n for n in self.cross_layers if not 0 <= n < self.text.n_layers]
        if wrong or len(set(self.cross_layers)) != len(self.cross_layers):
            raise ConfigError(f"cross_layers {self.cross_layers} must be different blocks of {self.text.n_layers}")
        if self.text.tie_embeddings:
            raise ConfigError(f"tie_embeddings must be False: the token table has {EXTRA_EMBEDDINGS} rows more than "
                              f"the {self.text.vocab_size} of the head")
        if not 0 <= self.image_token < self.text.vocab_size + EXTRA_EMBEDDINGS:
            raise ConfigError(f"image_token {self.image_token} has no row in a table of "
                              f"{self.text.vocab_size + EXTRA_EMBEDDINGS}")

    @classmethod
    def llama32_11b_vision(cls, *, tile_size: int = 560) -> MllamaConfig:
        """Llama 3.2 11B Vision: 10.67 billion parameters. tile_size: 560 for Instruct, 448 for the base model."""
        text = TextConfig(vocab_size=128_256, context_length=131_072, hidden_size=4096, intermediate_size=14_336,
                          n_layers=40, n_heads=32, n_kv_heads=8, rope_scaling=RopeScaling(factor=8.0),
                          tie_embeddings=False)  # fmt: skip
        return cls(text, TiledVisionConfig(_tile_encoder(1280, 5120, 32, 16), tile_size=tile_size))

    @classmethod
    def tiny(cls, **changes: Any) -> MllamaConfig:
        """A model that fits in a test: four blocks of which one and three look at images, tiles of 28 x 28 pixels."""
        text = TextConfig.tiny(n_layers=4, tie_embeddings=False)
        vision = TiledVisionConfig(_tile_encoder(32, 64, 4, 4), 2, tile_size=28, patch_size=7, intermediates=(1, 2))
        return replace(cls(text, vision, cross_layers=(1, 3), image_token=text.vocab_size), **changes)

    @classmethod
    def from_hf(cls, data: Mapping[str, Any]) -> MllamaConfig:
        """Read the content of a Hugging Face `config.json`. Raises ConfigError for another family or setting."""
        if data.get("model_type") != "mllama":
            raise ConfigError(f"model_type is {data.get('model_type')!r}; Llama 3.2 Vision is 'mllama'")
        text, vision = (dict(data.get(key) or {}) for key in ("text_config", "vision_config"))
        vision = given(vision)
        require_known(vision, TILED_READ | HARMLESS, file="vision_config")
        parts = ("text_config", "vision_config", "image_token_index", "quantization_config")
        require_known(data, HARMLESS.union(parts), file="config.json")
        big = cls.llama32_11b_vision(tile_size=448)  # what a file leaves out is as in the first model
        own = {"architectures", "model_type", "torch_dtype"}
        if {"rope_scaling", "rope_parameters"} & set(text):  # also where it says: none
            own.add("rope_scaling")
        defaults = {k: v for k, v in big.text.to_hf().items() if k not in own}
        text = {**defaults, **{k: v for k, v in text.items() if v is not None}, "model_type": "llama"}
        layers = text.pop("cross_attention_layers", None) or big.cross_layers
        text.pop("architectures", None)  # it says how transformers names this part alone
        dtype = next((d[k] for d in (data, text) for k in ("dtype", "torch_dtype") if d.get(k)), "float32")
        text_cfg = TextConfig.from_hf({**text, "dtype": dtype, "head_dim": None})
        encoder = _tile_encoder(
            vision.get("hidden_size", 1280), vision.get("intermediate_size", 5120),
            vision.get("num_hidden_layers", 32), vision.get("attention_heads") or vision.get("num_attention_heads", 16),
            norm_eps=vision.get("norm_eps", 1e-5),
        )  # fmt: skip
        for key, expected in (("hidden_act", "gelu"), ("num_channels", 3)):
            if vision.get(key, expected) != expected:
                raise ConfigError(f"vision_config has {key}={vision[key]!r}; this package builds {expected!r}")
        vision_cfg = TiledVisionConfig(
            encoder,
            n_global_layers=vision.get("num_global_layers", 8),
            tile_size=vision.get("image_size", 448),
            patch_size=vision.get("patch_size", 14),
            max_tiles=vision.get("max_num_tiles", 4),
            intermediates=tuple(vision.get("intermediate_layers_indices") or (3, 7, 15, 23, 30)),
            aspect_ratios=tuple(map(tuple, vision.get("supported_aspect_ratios") or ASPECT_RATIOS)),
        )
        if vision.get("vision_output_dim", vision_cfg.n_features) != vision_cfg.n_features:
            raise ConfigError(f"vision_output_dim is {vision['vision_output_dim']}, the tower gives "
                              f"{vision_cfg.n_features}: hidden_size times 1 + {len(vision_cfg.intermediates)}")
        return cls(text_cfg, vision_cfg, tuple(layers), data.get("image_token_index", 128_256))

    def to_hf(self) -> dict[str, Any]:
        """The content of a `config.json`."""
        text = {**self.text.to_hf(), "model_type": "mllama_text_model", "cross_attention_layers": [*self.cross_layers]}
        for key in ("architectures", "attention_bias", "mlp_bias", "head_dim"):
            text.pop(key)
        text["pad_token_id"] = None  # left out, transformers takes row 128,004, which a small table lacks
        e, v = self.vision.encoder, self.vision
        vision = {
            "model_type": "mllama_vision_model", "hidden_size": e.hidden_size, "intermediate_size": e.intermediate_size,
            "num_hidden_layers": e.n_layers, "num_global_layers": v.n_global_layers, "attention_heads": e.n_heads,
            "norm_eps": e.norm_eps, "hidden_act": "gelu", "image_size": v.tile_size, "patch_size": v.patch_size,
            "max_num_tiles": v.max_tiles, "intermediate_layers_indices": [*v.intermediates],
            "vision_output_dim": v.n_features, "supported_aspect_ratios": [[*ratio] for ratio in v.aspect_ratios],
        }  # fmt: skip
        dtype = str(self.text.dtype).removeprefix("torch.")
        return {"architectures": ["MllamaForConditionalGeneration"], "model_type": "mllama", "torch_dtype": dtype,
                "image_token_index": self.image_token, "text_config": text, "vision_config": vision}  # fmt: skip


def _tile_encoder(
    hidden_size: int, intermediate_size: int, n_layers: int, n_heads: int, *, norm_eps: float = 1e-5
) -> EncoderConfig:
    return EncoderConfig(hidden_size, intermediate_size, n_layers, n_heads, norm_eps=norm_eps, attention_bias=False,
                         key_bias=False)


