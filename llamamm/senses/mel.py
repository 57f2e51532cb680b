"""Sound as a picture: the log-mel spectrogram that Whisper hears.

Pressure over time says little to a network; the energy in each band of frequency, a hundred times a second, says
nearly all that an ear reports. The bands are even in mel, a scale of heard pitch: linear up to 1,000 Hz, then
logarithmic. The energies are put in decibel-like steps, and all that lies 80 dB under the loudest is cut off.

    wave (n_samples,) -> padded with silence (480000,) -> STFT (201, 3000) -> mel (n_mels, 3000) -> log, scaled

Sources: Whisper, arXiv:2212.04356, section 2.2; M. Slaney, Auditory Toolbox, 1998, for scale and bands.
Built in notebook 12.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.errors import InputError, counted
from llamamm.senses.waves import RATE, require_not_too_loud  # 16,000 samples a second

N_FFT = 400  # 25 ms: long enough to tell harmonics of a voice apart (40 Hz a bin), short enough to stand still
HOP = 160  # 10 ms between frames
N_BINS = N_FFT // 2 + 1  # 201 frequencies, 0 to 8,000 Hz
MAX_SAMPLES = 30 * RATE  # 480,000: the model always sees 30 s
MAX_FRAMES = MAX_SAMPLES // HOP  # 3,000
SAMPLES_PER_POSITION = 2 * HOP  # the encoder's second convolution halves the frames: 50 positions a second
PAUSE_WITHIN, PAUSE_STEP = 6 * RATE, RATE // 10  # where a long wave is cut: of its last 6 s, looked at by 0.1 s
MAX_POSITIONS = MAX_SAMPLES // SAMPLES_PER_POSITION  # 1,500


# ---- the bands ----

LINEAR_HZ = 1000.0  # up to here mel is linear,
HZ_PER_MEL = 200 / 3  # with this slope,
LINEAR_MEL = LINEAR_HZ / HZ_PER_MEL  # which makes 15 mel;
LOG_STEP = math.log(6.4) / 27  # above, 27 mel are a factor of 6.4 in frequency


def hz_to_mel(hz: Tensor) -> Tensor:
    """Slaney's mel scale, any shape."""
    above = LINEAR_MEL + torch.log(hz.clamp(min=LINEAR_HZ) / LINEAR_HZ) / LOG_STEP
    return torch.where(hz < LINEAR_HZ, hz / HZ_PER_MEL, above)


def mel_to_hz(mel: Tensor) -> Tensor:
    """The inverse of `hz_to_mel`."""
    above = LINEAR_HZ * torch.exp((mel - LINEAR_MEL).clamp(min=0) * LOG_STEP)
    return torch.where(mel < LINEAR_MEL, mel * HZ_PER_MEL, above)


def mel_filterbank(n_mels: int = 80) -> Tensor:
    """Weights (n_mels, 201) float32 that gather the STFT's energies in triangular bands.

    A band rises from the centre of the one below to its own and falls to that of the one above. Its area is 1, as
    high bands are wide and would else sound louder. Raises InputError for n_mels under 1, or so many that a band
    falls between two frequencies of the STFT.
    """
    if n_mels < 1:
        raise InputError(f"n_mels must be at least 1, got {n_mels}")
    top = hz_to_mel(torch.tensor(RATE / 2, dtype=torch.float64))
    edges = mel_to_hz(torch.linspace(0, 1, n_mels + 2, dtype=torch.float64) * top)  # of band m: edges m, m+1, m+2
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]  # each (n_mels, 1)
    hz = torch.linspace(0, RATE / 2, N_BINS, dtype=torch.float64)  # (201,)
    triangles = torch.minimum((hz - low) / (centre - low), (high - hz) / (high - centre)).clamp(min=0)
    n_empty = int((triangles.sum(dim=1) == 0).sum())
    if n_empty:
        raise InputError(f"n_mels {n_mels} leaves {n_empty} bands without any of the {N_BINS} frequencies; Whisper's "
                         f"models use 80 or 128")
    return (triangles * 2 / (high - low)).float()


# ---- the spectrogram ----


def log_mel(wave: Tensor | np.ndarray, *, n_mels: int = 80) -> Tensor:
    """wave (n_samples,) or (B, n_samples), 16 kHz mono in [-1, 1], 30 s at most -> (n_mels, 3000) or (B, n_mels, 3000).

    float32, on the wave's device; about -1 to 1.5, the loudest band of a clip at most 2 above its quietest.
    Raises InputError for another rank, integers, also as floats, NaN, nothing, or more than 30 s.
    """
    wave = _checked(wave, ranks=(1, 2), scaled=True)
    n_samples = wave.shape[-1]
    if n_samples > MAX_SAMPLES:
        raise InputError(f"the wave has {n_samples} samples, {n_samples / RATE:.1f} s; the model sees {MAX_SAMPLES}, "
                         f"30 s: cut it with split_wave")
    wave = F.pad(wave, (0, MAX_SAMPLES - n_samples))
    # Frames are centred on every 160th sample, the wave mirrored at its ends; periodic Hann window.
    window = torch.hann_window(N_FFT, device=wave.device)
    spectrum = torch.stft(wave, N_FFT, HOP, window=window, center=True, pad_mode="reflect", return_complex=True)
    energies = spectrum[..., :-1].abs() ** 2  # (..., 201, 3000): the last frame, centred on the very end, is dropped
    mel = mel_filterbank(n_mels).to(wave.device) @ energies  # (..., n_mels, 3000)
    log = mel.clamp(min=1e-10).log10()
    loudest = log.amax(dim=(-2, -1), keepdim=True)  # of each clip: a neighbour in the batch changes nothing
    return (torch.maximum(log, loudest - 8.0) + 4.0) / 4.0


def n_frames(n_samples: int) -> int:
    """How many of the encoder's 1,500 positions hold sound, of a wave with n_samples; the rest is padding.

    Raises InputError for none, or more than 30 s.
    """
    if not 1 <= n_samples <= MAX_SAMPLES:
        raise InputError(f"a wave for the model has 1 to {MAX_SAMPLES} samples (30 s), got {n_samples}; cut longer "
                         f"ones with split_wave")
    return -(-n_samples // SAMPLES_PER_POSITION)  # rounded up


def cut_mel(wave: Tensor | np.ndarray, *, n_mels: int = 80) -> Tensor:
    """The log-mel of a wave (n_samples,) without the silence after it: (n_mels, 2 n_frames(n_samples)).

    Raises InputError as `log_mel`.
    """
    return log_mel(wave, n_mels=n_mels)[..., : 2 * n_frames(wave.shape[-1])]


def split_wave(wave: Tensor | np.ndarray, *, seconds: float = 30.0, overlap: float = 0.0) -> list[Tensor]:
    """Cut a wave (n_samples,) into pieces of `seconds` in order, the last one as long as it is; views, not copies.

    overlap: seconds that a piece shares with the one before, so that a word on the edge is whole in one of them.
    Raises InputError for what is no wave, pieces without length, or an overlap as long as a piece.
    """
    wave = _checked(wave, ranks=(1,))
    if not (math.isfinite(seconds) and round(seconds * RATE) >= 1):
        raise InputError(f"seconds must be at least 1/{RATE}, one sample, got {seconds}")
    length = round(seconds * RATE)
    if not (0 <= overlap < math.inf and round(overlap * RATE) < length):
        raise InputError(f"overlap must be from 0 to less than a piece of {seconds} s, got {overlap}")
    step = length - round(overlap * RATE)
    # A piece that begins in the last `overlap` would repeat what its predecessor ends with.
    n_pieces = 1 + max(0, -(-(len(wave) - length) // step))
    return [wave[i * step : i * step + length] for i in range(n_pieces)]


def split_at_pauses(wave: Tensor | np.ndarray) -> list[Tensor]:
    """Cut a wave (n_samples,) into pieces of at most 30 s, each but the last where it is quietest in its last 6 s.

    So a word is seldom cut in two. Views, not copies. Raises InputError for what is no wave.
    """
    wave, pieces = _checked(wave, ranks=(1,)), []
    while len(wave) > MAX_SAMPLES:
        late = wave[MAX_SAMPLES - PAUSE_WITHIN : MAX_SAMPLES].view(-1, PAUSE_STEP)  # (n_steps, 1600)
        loudness = late.square().mean(dim=1)
        around = loudness[:-2] + loudness[1:-1] + loudness[2:]  # 0.3 s, so that a pause inside a word does not count
        end = MAX_SAMPLES - PAUSE_WITHIN + (int(around.argmin()) + 1) * PAUSE_STEP + PAUSE_STEP // 2
        pieces.append(wave[:end])
        wave = wave[end:]
    return [*pieces, wave]


def _checked(wave: Tensor | np.ndarray, *, ranks: tuple[int, ...], scaled: bool = False) -> Tensor:
    if isinstance(wave, np.ndarray) and wave.dtype.kind == "f":
        with np.errstate(all="ignore"):  # what is NaN, or too large for float32, is counted below
            wave = torch.from_numpy(np.array(wave, dtype=np.float32))  # a copy: torch takes no reversed array
    if not (isinstance(wave, Tensor) and wave.is_floating_point()):
        raise InputError(f"a wave must be a tensor or an array of floats, got {getattr(wave, 'dtype', type(wave))}; "
                         f"to_wave makes one of integers")
    if wave.ndim not in ranks:
        wanted = " or ".join(("(n_samples,)", "(B, n_samples)")[rank - 1] for rank in ranks)
        raise InputError(f"a wave here must be {wanted}, got shape {tuple(wave.shape)}; to_wave mixes channels down")
    if wave.numel() == 0:
        raise InputError(f"the wave is empty, of shape {tuple(wave.shape)}: it needs at least 1 sample")
    n_bad = int((~torch.isfinite(wave)).sum())
    if n_bad:
        raise InputError(f"the wave has {counted(n_bad, 'sample')} NaN or infinite of {wave.numel()}; repair it")
    if scaled:
        require_not_too_loud(wave, 64.0)  # a sound may be computed, and overshoot; integers reach hundreds
    return wave.float()
