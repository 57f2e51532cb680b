"""Configuration of a Llama with eyes and ears: the text model, the towers, and how features reach the text.

    image -> tower, hidden states `image_layer` -> bridge -> spliced between the words, or attended to at cross_layers

Built in notebooks 13 and 14.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from llamamm.errors import ConfigError, require_whole
from llamamm.senses.config import AudioConfig, EncoderConfig, VisionConfig
from llamamm.senses.config_keys import HARMLESS, require_known
from llamamm.text.config import TextConfig

PROJECTORS = ("linear", "mlp", "swiglu")
MODEL_TYPE = "llamamm"


@dataclass(frozen=True)
class BridgeConfig:
    """From a tower's features to tokens as wide as the text model's.

    projector: "linear"; "mlp", two linears with a GELU (LLaVA); "swiglu", with norms (Ultravox).
    width: numbers between the two linears of "mlp" and "swiglu", for the latter before its gate halves them;
    0: the text model's width, for "swiglu" twice that.
    merge: how many features become one first: of a picture merge x merge neighbours, of a sound `merge` in a row.
    tags: learned position tags, so many for rows and for columns of a picture, or for places of a sound; 0: none.
    compact: tokens are read as words, and those that say none moved to the end, see `llamamm.multimodal.compact`: for
    a sound's bridge that was aligned with words.
    latents: a Perceiver of so many latents after the projector; 0: none. depth: its blocks; heads: in each.
    Raises ConfigError with the value that is wrong.
    """

    projector: str = "mlp"
    merge: int = 1
    tags: int = 0
    latents: int = 0
    depth: int = 2
    heads: int = 4
    width: int = 0
    compact: bool = False

    def __post_init__(self) -> None:
        if self.projector not in PROJECTORS:
            raise ConfigError(f"projector must be one of {', '.join(PROJECTORS)}, got {self.projector!r}")
        for name, least in (("merge", 1), ("tags", 0), ("latents", 0), ("depth", 1), ("heads", 1), ("width", 0)):
            require_whole(name, getattr(self, name), least=least)
        if self.projector == "swiglu" and self.width % 2:
            raise ConfigError(f"width {self.width} of swiglu must be even: one half gates the other")
        if not isinstance(self.compact, bool):
            raise ConfigError(f"compact is true or false, got {self.compact!r}")
        if self.width and self.projector == "linear":
            raise ConfigError(f"width {self.width} is that between two linears, but the projector is a single one")


@dataclass(frozen=True)
class MultimodalConfig:
    """The whole model. Without `vision` it has no eye, without `audio` no ear.

    image_layer, audio_layer: which hidden states of a tower are taken, as `layer` of its call; None: the last, normed.
    image_size: (height, width) in pixels that pictures are brought to.
    cross_layers: blocks of the text model before which gated cross-attention looks at the features; (): no such
    blocks, features are spliced between the words. n_prompts: learned prompts in each of them.
    Raises ConfigError with the numbers that disagree.
    """

    text: TextConfig
    vision: VisionConfig | None = None
    audio: AudioConfig | None = None
    image_bridge: BridgeConfig = BridgeConfig()
    audio_bridge: BridgeConfig = BridgeConfig("swiglu", merge=8)
    image_layer: int | None = None
    audio_layer: int | None = None
    image_size: tuple[int, int] | None = None
    cross_layers: tuple[int, ...] = ()
    n_prompts: int = 0

    def __post_init__(self) -> None:
        if self.vision is None and self.audio is None:
            raise ConfigError("a multimodal model needs an eye or an ear; both vision and audio are None")
        wrong = [n for n in self.cross_layers if not 0 <= n < self.text.n_layers]
        if wrong or list(self.cross_layers) != sorted(set(self.cross_layers)):
            raise ConfigError(f"cross_layers {self.cross_layers} must be different blocks of {self.text.n_layers}, in "
                              f"their order")
        require_whole("n_prompts", self.n_prompts, least=0)
        if self.n_prompts and not self.cross_layers:
            raise ConfigError(f"n_prompts {self.n_prompts} stand in cross-attention blocks, but cross_layers is empty")
        if self.vision is not None:
            rows, columns = self.grid
            merge = self.image_bridge.merge
            if rows < 1 or columns < 1 or rows % merge or columns % merge:
                raise ConfigError(f"a picture of {rows} x {columns} patches does not merge by {merge} x {merge}; "
                                  f"change image_size or merge")

        for name, tower, layer in (("image_layer", self.vision, self.image_layer),
                                   ("audio_layer", self.audio, self.audio_layer)):  # fmt: skip
            if tower is not None and layer is not None:
                n = tower.encoder.n_layers
                if not -n - 1 <= layer <= n:
                    raise ConfigError(f"{name} {layer} is not among the hidden states -{n + 1} to {n} of {n} blocks")
        if self.vision is not None and 0 < self.image_bridge.tags < max(self.grid) // self.image_bridge.merge:
            raise ConfigError(f"tags {self.image_bridge.tags} are fewer than the {max(self.grid)} / "
                              f"{self.image_bridge.merge} rows or columns of a picture")

    @property
    def image_token(self) -> int:
        """The id that stands in a prompt for a feature of a picture: the first behind the vocabulary."""
        return self.text.vocab_size

    @property
    def audio_token(self) -> int:
        """The id that stands for a feature of a sound."""
        return self.text.vocab_size + 1

    @property
    def pixels(self) -> tuple[int, int]:
        """(height, width) of the pictures that the tower gets."""
        return self.image_size or (self.vision.image_size, self.vision.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches of a picture."""
        return self.pixels[0] // self.vision.patch_size, self.pixels[1] // self.vision.patch_size

    def n_image_tokens(self) -> int:
        """Tokens that the bridge makes of a picture."""
        rows, columns = self.grid
        return self.image_bridge.latents or rows * columns // self.image_bridge.merge**2

    def n_audio_tokens(self, n_places: int) -> int:
        """Tokens that the bridge makes of a sound of n_places features, 50 a second."""
        return self.audio_bridge.latents or -(-n_places // self.audio_bridge.merge)

    def n_image_places(self) -> int:
        """Ids that stand for a picture in a prompt: its tokens between a start and an end; one where they are spliced
        nowhere but attended to."""
        return 1 if self.cross_layers else self.n_image_tokens() + 2

    def n_audio_places(self, n_places: int) -> int:
        """Ids that stand for a sound of n_places features."""
        return 1 if self.cross_layers else self.n_audio_tokens(n_places) + 2

    @classmethod
    def tiny(cls, **changes: Any) -> MultimodalConfig:
        """A model that fits in a test."""
        audio = BridgeConfig("swiglu", merge=4)
        return cls(**{"text": TextConfig.tiny(), "vision": VisionConfig.tiny(), "audio": AudioConfig.tiny(),
                      "image_bridge": BridgeConfig(merge=2), "audio_bridge": audio, **changes})  # fmt: skip

    # ---- config.json ----

    def to_hf(self) -> dict[str, Any]:
        """The content of a `config.json`."""
        data = {"model_type": MODEL_TYPE, "architectures": ["MultimodalLlama"], "text_config": self.text.to_hf()}
        for name in ("vision", "audio"):
            tower = getattr(self, name)
            data[f"{name}_config"] = None if tower is None else asdict(tower)
        for name in ("image_bridge", "audio_bridge"):
            data[name] = asdict(getattr(self, name))
        for name in ("image_layer", "audio_layer", "image_size", "cross_layers", "n_prompts"):
            value = getattr(self, name)
            data[name] = list(value) if isinstance(value, tuple) else value
        return data

    @classmethod
    def from_hf(cls, data: Mapping[str, Any]) -> MultimodalConfig:
        """Read the content of a `config.json`. Raises ConfigError for another family, or what is missing or unknown."""
        if data.get("model_type") != MODEL_TYPE:
            raise ConfigError(f"model_type is {data.get('model_type')!r}; a model with eyes and ears is {MODEL_TYPE!r}")
        parts = ("text_config", "vision_config", "audio_config")
        parts += ("quantization_config",)  # read where the weights are, in `pretrained.packed`
        require_known(data, HARMLESS.union(parts, (field.name for field in fields(cls))), file="config.json")
        try:
            vision, audio = data["vision_config"], data["audio_config"]
            return cls(
                TextConfig.from_hf(data["text_config"]),
                vision and VisionConfig(**{**vision, "encoder": EncoderConfig(**vision["encoder"])}),
                audio and AudioConfig(**{**audio, "encoder": EncoderConfig(**audio["encoder"])}),
                BridgeConfig(**data["image_bridge"]),
                BridgeConfig(**data["audio_bridge"]),
                data["image_layer"],
                data["audio_layer"],
                data["image_size"] and tuple(data["image_size"]),
                tuple(data["cross_layers"]),
                data["n_prompts"],
            )
        except (KeyError, TypeError) as error:
            raise ConfigError(f"config.json is not whole: {error}; save the model again") from None
