"""Sound from anywhere, made one kind: a wave of 16,000 samples a second, one channel, float32 in [-1, 1].

    WAV, FLAC, OGG, MP3, array (n,) or (channels, n), integers or floats, any rate -> tensor (n_samples,)

Files are opened by `sound_file`: WAV without help, the rest by the `soundfile` package (an extra:
`pip install 'llamamm[audio]'`). Another rate is reached by windowed-sinc interpolation: each new sample is a weighted
sum of the old ones around its time.

Source: J. O. Smith, Digital Audio Resampling Home Page, https://ccrma.stanford.edu/~jos/resample/. Built in
notebook 12.
"""

from __future__ import annotations

import io
import math
import re
import warnings
import wave as wave_files
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.errors import InputError, counted
from llamamm.files import read_open, write_file
from llamamm.senses.sound_file import read_blocks

RATE = 16_000  # what Whisper was trained on: speech has little above 8 kHz
MAX_SECONDS = 3600.0  # an hour at 16 kHz is 230 MB of float32; of longer sound only this much is kept
MIN_RATE, MAX_RATE = 1000, 384_000  # below: no speech; above: no recorder

MAX_CHANNELS = 8  # in an array: more rows than this are samples, not channels
TOO_LOUD = 4.0  # floats a little over 1 are an overshoot and are cut; over this they are unscaled integers


# ---- from numbers ----


def to_wave(samples: Tensor | np.ndarray, *, rate: int, new_rate: int = RATE) -> Tensor:
    """Samples (n,) or (channels, n) of `rate` a second -> (ceil(n * new_rate / rate),) float32 in [-1, 1], on the CPU.

    Integers (uint8, int8, int16, int32) are divided by their type's range; channels, 8 at most, are averaged. Floats
    are taken as they are, up to 4 times over full scale cut to it. Of more than MAX_SECONDS the rest is left out,
    with a warning. Raises InputError for nothing, NaN, another shape or type, or a rate outside 1,000 to 384,000.
    """
    rate, new_rate = _checked_rate(rate), _checked_rate(new_rate)
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu()
        samples = (samples.float() if samples.is_floating_point() else samples).numpy()  # numpy has no bfloat16
    if not isinstance(samples, np.ndarray):
        raise InputError(f"samples must be an array or a tensor, got {type(samples).__name__}; files: load_wave")
    shape = samples.shape
    if samples.ndim == 1:
        samples = samples[None]
    if samples.ndim != 2:
        raise InputError(f"samples must be (n,) or (channels, n), got shape {shape}")
    if 0 in shape:
        raise InputError(f"samples of shape {shape} hold no sound")
    if samples.shape[0] > min(MAX_CHANNELS, samples.shape[1]):
        raise InputError(f"samples of shape {shape} would be {shape[0]} channels of {shape[1]} samples, at most "
                         f"{MAX_CHANNELS} channels are mixed; (n, channels) is transposed with .T")
    limit = round(MAX_SECONDS * rate)
    mono = _mixed(samples[:, : limit + 1])
    return resample(_capped(mono, rate), rate=rate, new_rate=new_rate).clamp(-1, 1)


def _mixed(samples: np.ndarray) -> Tensor:
    """(channels, n) of any sample type -> (n,) float32."""
    kind, width = samples.dtype.kind, samples.dtype.itemsize
    if kind == "f":
        with np.errstate(all="ignore"):  # what is NaN, or too large for float32, is counted later
            scaled = samples.astype(np.float32)
    elif samples.dtype in (np.uint8, np.int8, np.int16, np.int32):
        full = 2.0 ** (8 * width - 1)  # 32,768 for int16
        scaled = ((samples - 128.0 if kind == "u" else samples) / full).astype(np.float32)  # uint8 is centred on 128
    else:
        raise InputError(f"samples must be float, uint8, int8, int16 or int32, got {samples.dtype}; convert them to "
                         f"the type that they were recorded in, which says what full scale is")
    return torch.from_numpy(scaled).mean(dim=0)


def _capped(wave: Tensor, rate: int) -> Tensor:
    """The wave, checked, not longer than MAX_SECONDS, in [-1, 1]."""
    if len(wave) == 0:
        raise InputError("the sound has 0 samples; it needs at least 1")
    limit = round(MAX_SECONDS * rate)
    if len(wave) > limit:
        warnings.warn(f"the sound is longer than {MAX_SECONDS:g} s; what comes after is left out: cut long "
                      f"recordings into files", stacklevel=3)
        wave = wave[:limit]
    n_bad = int((~torch.isfinite(wave)).sum())
    if n_bad:
        raise InputError(f"the sound has {counted(n_bad, 'sample')} NaN or infinite of {len(wave)}: repair it")
    require_not_too_loud(wave)
    return wave.clamp(-1, 1)


def require_not_too_loud(wave: Tensor, limit: float = TOO_LOUD) -> None:
    """Raises InputError for floats that must have been integers, which nobody divided by their range."""
    loudest = float(wave.abs().max())
    if loudest > limit:
        raise InputError(f"float samples reach {loudest:g}, full scale is 1: divide them by the range of the integers "
                         f"that they were, 32,768 for 16 bits")


def _checked_rate(rate: int) -> int:
    is_number = isinstance(rate, (int, float, np.integer)) and not isinstance(rate, bool)
    if not (is_number and MIN_RATE <= rate <= MAX_RATE and int(rate) == rate):
        raise InputError(f"a rate is a whole number of samples a second, {MIN_RATE} to {MAX_RATE}, got {rate!r}")
    return int(rate)


# ---- another rate ----


def resample(wave: Tensor, *, rate: int, new_rate: int) -> Tensor:
    """wave (..., n) of `rate` -> (..., ceil(n * new_rate / rate)) of `new_rate`, float32, from the same instant on.

    Flat up to 0.9 of the lower rate's half; what would fold back, from that half on, is 85 dB down. Beyond its ends
    the wave is silence.
    """
    if rate == new_rate:
        return wave.float()
    divisor = math.gcd(rate, new_rate)
    old, new = rate // divisor, new_rate // divisor  # `old` samples last as long as `new` ones do
    length = -(-wave.shape[-1] * new // old)
    half = math.ceil(48 / _cutoff(old, new))  # 48 zeros of the sinc on each side
    padded = F.pad(wave.float(), (half - 1, half)).reshape(-1, 1, wave.shape[-1] + 2 * half - 1)
    out = padded.new_empty(len(padded), length)
    for phase in range(min(new, length)):  # new samples phase, phase + new, ... lie alike between old ones
        start, count = phase * old // new, len(range(phase, length, new))
        piece = padded[..., start : start + (count - 1) * old + 2 * half]
        out[:, phase::new] = F.conv1d(piece, _kernel(old, new, phase).to(padded)[None, None], stride=old)[:, 0]
    return out.view(*wave.shape[:-1], length)


def _cutoff(old: int, new: int) -> float:
    """Of the old rate's half; the rest is for the filter to fall in."""
    return 0.95 * min(1.0, new / old)


@lru_cache(maxsize=2048)  # 44,100 to 16,000 Hz has 160 phases, 11,025 has 640
def _kernel(old: int, new: int, phase: int) -> Tensor:
    """The windowed sinc of one phase, (2 * half,) fp32."""
    cutoff = _cutoff(old, new)
    half = math.ceil(48 / cutoff)
    taps = torch.arange(1 - half, half + 1, dtype=torch.float64)
    t = taps - phase * old % new / new  # from the new sample to the old ones around it
    kernel = torch.sinc(cutoff * t) * torch.i0(8.0 * (1 - (t / half) ** 2).clamp(min=0).sqrt())  # Kaiser's window
    return (kernel / kernel.sum()).float()  # a constant stays what it was


# ---- files ----


def load_wave(source: str | Path | bytes | BinaryIO, *, rate: int = RATE) -> Tensor:
    """A sound file, by its path, its bytes or open -> (n_samples,) float32 in [-1, 1], mono, `rate` samples a second.

    Channels are averaged. Of more than MAX_SECONDS the rest is left out, with a warning.
    Raises InputError for a file that is damaged, cut short, empty, or has NaN samples; MissingDependencyError for
    another format than WAV without the `audio` extra.
    """
    rate = _checked_rate(rate)
    own_name = getattr(source, "name", None)  # of an open file
    if hasattr(source, "read"):
        source = read_open(source, "sound")
    if isinstance(source, (bytes, bytearray, memoryview)):
        name = own_name if isinstance(own_name, str) else f"the {len(source):,} bytes"
        file = io.BytesIO(source)
    else:
        file, name = _opened(source), str(source)
    with file:
        mono, own_rate = _read(file, name)
    return resample(_capped(mono, own_rate), rate=own_rate, new_rate=rate).clamp(-1, 1)


def save_wave(path: str | Path, wave: Tensor | np.ndarray, *, rate: int = RATE) -> None:
    """Write a wave (n_samples,) of floats in [-1, 1] as a mono WAV file of 16 bits, whole or not at all.

    Raises InputError as `to_wave`.
    """
    write_file(path, wav_bytes(wave, rate=rate))


def wav_bytes(wave: Tensor | np.ndarray, *, rate: int = RATE) -> bytes:
    """The file that `save_wave` writes. Raises InputError as `to_wave`."""
    wave = to_wave(wave, rate=rate, new_rate=rate)
    samples = (wave * 32768).round().clamp(-32768, 32767).to(torch.int16)
    buffer = io.BytesIO()
    with wave_files.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, len(samples), "NONE", ""))
        file.writeframes(samples.numpy().astype("<i2").tobytes())
    return buffer.getvalue()


def _opened(path: str | Path) -> BinaryIO:
    if not isinstance(path, (str, Path)):
        raise InputError(f"a sound file is given as its path, its bytes or open, got {type(path).__name__}; numbers: "
                         f"to_wave")
    if re.match(r"[a-z][a-z0-9+.-]+:/", str(path), re.I):
        raise InputError(f"{str(path)[:80]!r} is a URL; nothing is fetched here: download it and give the file's path")
    try:
        return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise InputError(f"cannot open the sound {str(path)!r}: {getattr(error, 'strerror', error)}") from None


def _read(file: BinaryIO, name: str) -> tuple[Tensor, int]:
    """A file's samples, mixed down, and their rate; a sample more than MAX_SECONDS hold where there are that many."""
    rate, blocks = read_blocks(file, name)
    rate = _checked_rate(rate)
    pieces, n_left = [torch.empty(0)], round(MAX_SECONDS * rate) + 1
    for block in blocks:  # (channels, n)
        pieces.append(_mixed(block[:, :n_left]))
        n_left -= len(pieces[-1])
        if n_left == 0:
            break
    return torch.cat(pieces), rate
