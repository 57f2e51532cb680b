"""Images from anywhere, made one kind: RGB, 8 bit, upright, opaque.

A model is trained on pixels, not on files. What a file may do besides (a palette, transparency, four inks, 16 bits, a
note that says "turn me", a second frame, a header that promises a million pixels on a side) ends here.

    path, bytes, PIL image, array (H, W, 3), tensor (3, H, W), ... -> PIL image, mode RGB

Built in notebook 11.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from llamamm.errors import InputError
from llamamm.files import read_open

# What a learner meets. Pillow knows more, among them formats that start other programs (EPS runs Ghostscript).
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000")
CHANNELS = (1, 3, 4)  # grey, RGB, RGBA

ImageLike = Image.Image | str | Path | bytes | BinaryIO | np.ndarray | Tensor


def load_image(image: ImageLike) -> Image.Image:
    """Any image -> a PIL image of mode RGB. What was given is left as it is.

    path, bytes, open binary file: of an animation the first frame, turned upright by its EXIF note. No URL.
    PIL image: any mode. What is transparent shows white; 16 bits are divided by 257.
    array: (H, W) or (H, W, 1 | 3 | 4); tensor: (H, W) or (1 | 3 | 4, H, W); uint8, or float in [0, 1].
    Raises InputError for what is damaged, empty, out of range, or larger than twice PIL's `Image.MAX_IMAGE_PIXELS`.
    """
    match image:
        case Image.Image():
            return _decoded(image, "the PIL image")
        case str() | Path():
            return _from_path(image)
        case bytes() | bytearray() | memoryview():
            return _from_file(io.BytesIO(image), f"the {len(image):,} bytes")
        case np.ndarray():
            return _from_array(image, "array (H, W) or (H, W, 1|3|4)")
        case Tensor():
            array = image.detach().cpu()
            array = (array.float() if array.is_floating_point() else array).numpy()  # numpy has no bfloat16
            return _from_array(np.moveaxis(array, 0, -1) if array.ndim == 3 else array,
                               "tensor (H, W) or (1|3|4, H, W)", shape=tuple(image.shape))  # fmt: skip
    if hasattr(image, "read"):  # an open file, or what behaves as one
        data, name = read_open(image, "image"), getattr(image, "name", None)
        return _from_file(io.BytesIO(data), name if isinstance(name, str) else f"the {len(data):,} bytes")
    raise InputError(f"an image is a path, bytes, an open binary file, a PIL image, an array or a tensor; got "
                     f"{type(image).__name__}")


# ---- files ----


def _from_path(path: str | Path) -> Image.Image:
    if re.match(r"data:|[a-z][a-z0-9+.-]+:/", str(path), re.I):
        raise InputError(f"{str(path)[:80]!r} is a URL; nothing is fetched here: download it and give the file's path")
    try:
        file = open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise InputError(f"cannot open the image {os.fspath(path)!r}: {getattr(error, 'strerror', error)}") from None
    with file:
        return _from_file(file, str(path))


def _from_file(file: io.IOBase, name: str) -> Image.Image:
    Image.init()
    try:
        image = Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN])
    except Image.UnidentifiedImageError:
        raise InputError(f"{name} is no whole image of a known format: {', '.join(FORMATS)}; get or convert it "
                         f"again") from None
    except Exception as error:  # decoders raise nearly anything for damaged bytes
        raise _unreadable(name, error) from None
    with image:
        return _decoded(image, name)


def _decoded(image: Image.Image, name: str) -> Image.Image:
    if 0 in image.size:
        raise InputError(f"{name} is {image.width} x {image.height} pixels: there is nothing to see")
    try:
        image = _keyed(image)
        image.load()  # until here a file's pixels were not read
        return _to_rgb(ImageOps.exif_transpose(image))
    except InputError:
        raise
    except Exception as error:
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: Exception) -> InputError:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return InputError(f"{name} is refused: {error} Make it smaller with a program you trust")
    said = re.sub(r"<[^<>]*object at 0x[^<>]*>", "it", str(error))
    return InputError(f"{name} cannot be decoded ({type(error).__name__}: {said}): damaged, cut short, or of a kind "
                      f"that Pillow cannot convert; get or convert it again")


# ---- modes ----

PNG_START = b"\x89PNG\r\n\x1a\n"


def _keyed(image: Image.Image) -> Image.Image:
    """A PNG file may call one colour transparent (its tRNS), said in the file's own depth, of 1 to 16 bits.

    Pillow compares that number with pixels already brought to 8 bits. So the comparison is made here where the two
    differ: RGB of 16 bits, of which a copy with its alpha comes back, and grey of 2 or 4.
    """
    key, raw = image.info.get("transparency"), image.tile[0][3] if getattr(image, "tile", None) else ""
    if image.mode == "L" and isinstance(key, int) and raw in ("L;2", "L;4"):
        depth = int(raw[-1])
        key = (key & (1 << depth) - 1) * 255 // ((1 << depth) - 1)  # as Pillow stretches the pixels
        copy = image.copy()
        copy.info["transparency"] = key
        return copy
    if image.mode != "RGB" or not isinstance(key, tuple) or not (raw == "RGB;16B" or max(key) > 255):
        return image
    wide = _wide_pixels(image) if raw == "RGB;16B" else None
    image.load()
    if wide is None:  # already decoded: of the 16 bits the upper 8 are left
        wide, key = np.array(image).astype(np.int32), tuple(value >> 8 for value in key)
    alpha = np.where((wide == np.array(key)).all(axis=-1), 0, 255).astype(np.uint8)
    copy = image.copy()
    del copy.info["transparency"]
    copy.putalpha(Image.fromarray(alpha))
    return copy


def _wide_pixels(image: Image.Image) -> np.ndarray | None:
    """All 16 bits of a PNG file that Pillow has opened and not yet read, (H, W, 3); None where it cannot be read."""
    from torchvision.io import ImageReadMode, decode_png

    place = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(place)
    if not data.startswith(PNG_START):
        return None
    with warnings.catch_warnings():  # torchvision says in which release it will stop reading pictures
        warnings.simplefilter("ignore", DeprecationWarning)
        pixels = decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    return pixels.to(torch.int32).permute(1, 2, 0).numpy()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_wide(image)
    if image.mode in ("La", "RGBa"):  # colours already multiplied by alpha
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")  # a copy, even of RGB


def _from_wide(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits. Pillow's own conversion cuts all above 255 to white.

    I;16 and I (what Pillow makes of 16-bit PGM): 0..65535. F: 0..1, or 0..255 as `convert("F")` leaves it.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    most = 65535.0 if image.mode != "F" else 1.0 if high <= 1 else 255.0
    if not (0 <= low and high <= most):  # NaN fails too
        raise InputError(f"an image of mode {image.mode} has values from {low:g} to {high:g}; they must be in "
                         f"0..{most:g}: scale them first")
    grey = np.round(values * (255.0 / most)).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey = np.where(values == transparent, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")


# ---- arrays ----


def _from_array(array: np.ndarray, wanted: str, *, shape: tuple[int, ...] | None = None) -> Image.Image:
    """array: channels last. shape: that of what the caller gave, for messages."""
    shape = array.shape if shape is None else shape
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in CHANNELS:
        raise InputError(f"an image is given as {wanted}, got shape {tuple(shape)}; several images go in a list")
    if array.size == 0:
        raise InputError(f"an image of shape {tuple(shape)} has 0 pixels")
    array = _to_bytes(array)  # (H, W, 1 | 3 | 4) uint8
    return _to_rgb(Image.fromarray(array[..., 0] if array.shape[2] == 1 else np.ascontiguousarray(array)))


def _to_bytes(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise InputError(f"an image's values must be uint8 (0..255) or float (0..1), got {array.dtype}; "
                         f"convert them, knowing their range")
    n_bad = int((~np.isfinite(array)).sum())
    if n_bad:
        raise InputError(f"{n_bad} of an image's {array.size} values are NaN or infinite")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        raise InputError(f"an image of floats must be in 0..1, got {low:g} to {high:g}; divide by 255, undo the "
                         f"normalisation, or pass uint8")
    return np.round(array.astype(np.float32) * 255).astype(np.uint8)


def image_tensor(image: ImageLike) -> Tensor:
    """Any image -> (3, H, W) uint8. Errors as in `load_image`."""
    return torch.from_numpy(np.array(load_image(image))).permute(2, 0, 1).contiguous()
