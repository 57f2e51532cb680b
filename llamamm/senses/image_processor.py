"""The way from an image to the numbers a vision model was trained on: resize, crop, rescale, normalise.

    images (any size) -> resized -> cropped (3, H, W) uint8 -> * 1/255 -> (x - mean) / std -> (B, 3, H, W) float32

Every checkpoint comes with its own settings in `preprocessor_config.json`, and a model given other ones does not fail:
it sees a little worse, without a word. So the settings travel with the weights, in both directions.

Resizing works on uint8 tensors with antialiasing, as transformers' processors do, and gives their pixels exactly;
PIL's own resize differs from it by a step or two of 255 in one value of two hundred. Built in notebook 11.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llamamm.errors import ConfigError, InputError
from llamamm.senses.config_keys import IMAGES_HARMLESS, IMAGES_READ, given, require_known
from llamamm.senses.images import ImageLike, image_tensor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # as mean and std: [0, 1] -> [-1, 1]

# A stripe of 1 x 100,000 whose short side becomes 224 would be 5 billion pixels. 2^28 uint8 RGB pixels are 805 MB.
MAX_RESIZED_PIXELS = 2**28

_RESAMPLE = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # PIL's numbers, which the JSON files use
_MODES = {"nearest": "NEAREST_EXACT", "bilinear": "BILINEAR", "bicubic": "BICUBIC"}  # as torchvision calls them


@dataclass(frozen=True)
class ImageProcessor:
    """Settings that turn images into a model's input. Immutable; call it. Defaults: CLIP's, also those of LLaVA.

    resize: int: the short side gets this length, the long one follows; (height, width): exactly; None: left alone.
    crop: (height, width) from the centre, with black where the image is smaller; None: nothing is cropped.
    scale: what pixels of 0..255 are multiplied by; None: not. mean, std: of each channel after it; both None: not.
    kind: the name of the class in transformers that does the same, for `to_hf`.
    Raises ConfigError for settings that cannot work.
    """

    resize: int | tuple[int, int] | None = 224
    crop: tuple[int, int] | None = (224, 224)
    scale: float | None = 1 / 255
    mean: tuple[float, float, float] | None = CLIP_MEAN
    std: tuple[float, float, float] | None = CLIP_STD
    interpolation: str = "bicubic"
    kind: str = "CLIPImageProcessor"

    def __post_init__(self) -> None:
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            sides = size if isinstance(size, tuple) else (size, size)
            if name == "crop" and isinstance(size, int) or len(sides) != 2:
                raise ConfigError(f"{name} must be (height, width), got {size}")
            if size is not None and any(type(n) is not int or n < 1 for n in sides):
                raise ConfigError(f"{name} must be whole numbers of 1 or more, got {size!r}")
        if (self.mean is None) != (self.std is None):
            raise ConfigError(f"mean and std come together, got {self.mean} and {self.std}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and (len(values) != 3 or not all(_is_number(v) for v in values)):
                raise ConfigError(f"{name} must be 3 numbers, one for each channel, got {values}")
        if self.std is not None and min(self.std) <= 0:
            raise ConfigError(f"std divides the pixels and must be positive, got {self.std}")
        if self.scale is not None and not (_is_number(self.scale) and self.scale > 0):
            raise ConfigError(f"scale must be a positive number, 1/255 for most models, got {self.scale!r}")
        if self.interpolation not in _MODES:
            raise ConfigError(f"interpolation must be one of {', '.join(_MODES)}, got {self.interpolation!r}")
        if self.kind not in _KINDS:
            raise ConfigError(f"kind must be one of {', '.join(_KINDS)}, got {self.kind!r}")

    # ---- presets: what the classes in transformers do by default ----

    @classmethod
    def clip(cls, size: int = 224) -> ImageProcessor:
        """CLIP and LLaVA: the short side to 224 (or 336), the centre square of it."""
        return cls(resize=size, crop=(size, size))

    @classmethod
    def siglip(cls, size: int = 224) -> ImageProcessor:
        """SigLIP: squeezed into a square, [-1, 1]."""
        return cls(resize=(size, size), crop=None, mean=HALF, std=HALF, kind="SiglipImageProcessor")

    @classmethod
    def vit(cls, size: int = 224) -> ImageProcessor:
        """ViT: as SigLIP, but bilinear."""
        return replace(cls.siglip(size), interpolation="bilinear", kind="ViTImageProcessor")

    @classmethod
    def dinov2(cls) -> ImageProcessor:
        """DINOv2: the short side to 256, the centre 224 x 224, ImageNet's mean and std."""
        return cls(resize=256, crop=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD, kind="BitImageProcessor")

    # ---- at work ----

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Tensor:
        """One image, or a list or tuple of them (anything `load_image` takes) -> (B, 3, H, W) float32.

        Raises InputError for images that cannot be read, none at all, or results of different size.
        """
        images = images if isinstance(images, (list, tuple)) else [images]
        if not images:
            raise InputError("got 0 images; a batch needs at least one")
        pixels = [self._one(image) for image in images]
        sizes = sorted({tuple(p.shape[1:]) for p in pixels})
        if len(sizes) > 1:
            raise InputError(f"images of one batch came out in {len(sizes)} sizes, {sizes[0]} and {sizes[-1]} among "
                             f"them: set crop, or give them one by one")
        return torch.stack(pixels)

    def _one(self, image: ImageLike) -> Tensor:
        from torchvision.transforms.v2 import InterpolationMode  # here: models of text alone do not wait for it
        from torchvision.transforms.v2 import functional as tvF

        x = image_tensor(image)  # (3, H, W) uint8
        if self.resize is not None:
            mode = InterpolationMode[_MODES[self.interpolation]]
            x = tvF.resize(x, self._resized(x.shape[1], x.shape[2]), mode, antialias=True)
        if self.crop is not None:
            x = _centre_crop(x, *self.crop)
        x = x.float()
        if self.scale is not None:
            x = x * self.scale
        return x if self.mean is None else tvF.normalize(x, self.mean, self.std)

    def _resized(self, height: int, width: int) -> list[int]:
        if isinstance(self.resize, int):
            short = min(height, width)
            size = [self.resize * height // short, self.resize * width // short]  # one of them is self.resize
        else:
            size = list(self.resize)
        if size[0] * size[1] > MAX_RESIZED_PIXELS:
            raise InputError(f"an image of {height} x {width} pixels would be resized to {size[0]} x {size[1]}, more "
                             f"than {MAX_RESIZED_PIXELS:,} pixels; cut it to a squarer shape first")
        return size

    # ---- preprocessor_config.json ----

    @classmethod
    def from_hf(cls, data: Mapping[str, Any]) -> ImageProcessor:
        """Read the content of a `preprocessor_config.json`, of any age. What it leaves out is its class's default.

        Raises ConfigError for a class that this package does not have, and for settings that it would have to ignore.
        """
        kind = _kind_of(data)
        base, int_is_short_side = _KINDS[kind]
        said = given(data)
        known = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
        for key, value in said.items():
            if key.startswith("do_") and key not in known and value:
                raise ConfigError(f"the image processor asks for {key}; this package does {', '.join(known)}")
        require_known(said, IMAGES_READ | IMAGES_HARMLESS, file="the image processor's file")
        int_is_short_side = not data.get("default_to_square", not int_is_short_side)  # a null is a no, as there

        settings: dict[str, Any] = {"kind": kind}
        if not said.get("do_resize", True):
            settings["resize"] = None
        elif "size" in said:
            settings["resize"] = _size(said["size"], "size", int_is_short_side=int_is_short_side)
        if not said.get("do_center_crop", base().crop is not None):
            settings["crop"] = None
        elif "crop_size" in said:
            settings["crop"] = _size(said["crop_size"], "crop_size", int_is_short_side=False)
        elif base().crop is None:
            raise ConfigError(f"{kind} has do_center_crop but no crop_size, and its class has no default")
        if not said.get("do_rescale", True):
            settings["scale"] = None
        elif "rescale_factor" in said:
            settings["scale"] = said["rescale_factor"]
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
            if not said.get("do_normalize", True):
                settings[ours] = None
            elif theirs in said:
                values = said[theirs]
                settings[ours] = tuple(values) if isinstance(values, (list, tuple)) else (values,) * 3
        if "resample" in said:
            if said["resample"] not in _RESAMPLE:
                raise ConfigError(f"resample must be one of {_RESAMPLE}, got {said['resample']!r}")
            settings["interpolation"] = _RESAMPLE[said["resample"]]
        return replace(base(), **settings)

    def to_hf(self) -> dict[str, Any]:
        """The content of a `preprocessor_config.json`, with every setting spelled out."""
        data: dict[str, Any] = {"image_processor_type": self.kind, "do_convert_rgb": True,
                                "resample": next(n for n, name in _RESAMPLE.items() if name == self.interpolation)}
        data["do_resize"] = self.resize is not None
        if self.resize is not None:
            short_side = isinstance(self.resize, int)
            data["size"] = {"shortest_edge": self.resize} if short_side else _named(self.resize)
        data["do_center_crop"] = self.crop is not None
        if self.crop is not None:
            data["crop_size"] = _named(self.crop)
        data["do_rescale"] = self.scale is not None
        if self.scale is not None:
            data["rescale_factor"] = self.scale
        data["do_normalize"] = self.mean is not None
        if self.mean is not None:
            data["image_mean"], data["image_std"] = list(self.mean), list(self.std)
        return data


# name in transformers -> (its defaults, whether a bare number as size means the short side)
_KINDS: dict[str, tuple[Callable[[], ImageProcessor], bool]] = {
    "CLIPImageProcessor": (ImageProcessor.clip, True),
    "SiglipImageProcessor": (ImageProcessor.siglip, True),
    "ViTImageProcessor": (ImageProcessor.vit, False),
    # DINOv2's files name this class and spell out all that differs; what is left out has the class's default: CLIP's
    "BitImageProcessor": (lambda: replace(ImageProcessor.clip(), kind="BitImageProcessor"), True),
}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _kind_of(data: Mapping[str, Any]) -> str:
    if not isinstance(data, Mapping):
        raise ConfigError(f"an image processor's settings are a JSON object, got {type(data).__name__}")
    name = data.get("image_processor_type") or data.get("feature_extractor_type")
    if not isinstance(name, str):
        raise ConfigError(f"the image processor's settings have no image_processor_type; known are {', '.join(_KINDS)}")
    kind = name.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if kind not in _KINDS:
        raise ConfigError(f"the image processor is of type {name}; this package has {', '.join(_KINDS)}")
    return kind


def _size(value: Any, name: str, *, int_is_short_side: bool) -> int | tuple[int, int]:
    """A number, [height, width], {"height", "width"} or {"shortest_edge"}, the last for `size` alone."""
    value = given(value) if isinstance(value, Mapping) else value
    match value:
        case bool():
            pass
        case int():
            return value if int_is_short_side else (value, value)
        case [height, width]:
            return height, width
        case {"height": height, "width": width} if len(value) == 2:
            return height, width
        case {"shortest_edge": short} if len(value) == 1 and name == "size":
            return short
    raise ConfigError(f"{name} {value!r} is not understood; it may be a number, {{'height', 'width'}} or, for size, "
                      f"{{'shortest_edge'}}")


def _named(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


def _centre_crop(x: Tensor, height: int, width: int) -> Tensor:
    """x (3, H, W) -> (3, height, width). Of an odd rest the larger half is cut off, or filled in, below and right.

    torchvision's own centre crop rounds half a pixel to even, transformers' down: they disagree for every odd rest
    of the form 4n + 3.
    """
    from torchvision.transforms.v2 import functional as tvF

    missing_h, missing_w = max(height - x.shape[1], 0), max(width - x.shape[2], 0)
    if missing_h or missing_w:
        left, top = missing_w // 2, missing_h // 2
        x = tvF.pad(x, [left, top, missing_w - left, missing_h - top])
    return tvF.crop(x, (x.shape[1] - height) // 2, (x.shape[2] - width) // 2, height, width)
