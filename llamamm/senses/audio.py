"""Whisper's encoder: a spectrogram of up to 30 seconds becomes 1,500 tokens, all read at once.

    mel (B, n_mels, 3000) -> two convolutions, the second with step 2 -> (B, 1500, C) -> encoder -> (B, 1500, C)

Source: Whisper, arXiv:2212.04356. Built in notebook 12.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.errors import InputError
from llamamm.senses.config import AudioConfig
from llamamm.senses.encoder import Encoder, init_weights
from llamamm.senses.mel import cut_mel, split_wave


def sinusoids(n_positions: int, hidden_size: int) -> Tensor:
    """Fixed positions: sines, then cosines, of wavelengths from 2 pi to 10,000 times that. -> (n_positions, C)."""
    half = hidden_size // 2
    speeds = torch.exp(-math.log(10_000) / max(half - 1, 1) * torch.arange(half))  # (C/2,)
    angles = torch.arange(n_positions)[:, None] * speeds  # (n_positions, C/2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class AudioEncoder(nn.Module):
    """A sound's features, with fresh random weights; `load_audio_encoder` gives trained ones."""

    def __init__(self, cfg: AudioConfig) -> None:
        super().__init__()
        self.cfg = cfg
        C = cfg.encoder.hidden_size
        self.conv1 = nn.Conv1d(cfg.n_mels, C, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(C, C, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Parameter(sinusoids(cfg.n_positions, C), requires_grad=False)
        self.encoder = Encoder(cfg.encoder)
        self.layer_norm = nn.LayerNorm(C, eps=cfg.encoder.norm_eps)
        self.apply(init_weights)

    def forward(self, mel: Tensor, *, layer: int | None = None, lengths: Tensor | None = None) -> Tensor:
        """mel (B, n_mels, T), from `log_mel`; T is even and at most 3000 -> features (B, T / 2, C).

        A clip is read whole with the silence that pads it, as Whisper was trained; a cut mel takes less time.
        lengths (B,): how many of the T / 2 places hold sound. The others may hold anything, NaN too; they are not seen,
        and come back as zeros: each clip of a batch has the features that it has when cut and read alone.
        layer: None for the last, after the final norm; -2 for what leaves the block before the last, and so on.
        Raises InputError.
        """
        T = self._check(mel, lengths)
        mel = mel.to(self.conv1.weight.dtype)
        places = keys = None
        if lengths is not None:
            # Cut off before each convolution, which would carry what lies after a clip's end across the border; with
            # `where`, since 0 times NaN is NaN.
            places = (torch.arange(T // 2, device=mel.device) < lengths[:, None])[..., None]  # (B, T/2, 1)
            frames = places.repeat_interleave(2, dim=1).transpose(1, 2)  # (B, 1, T)
            keys = places[:, None].transpose(2, 3)  # (B, 1, 1, T/2)
        x = mel if places is None else mel.where(frames, 0)
        x = F.gelu(self.conv1(x))  # (B, C, T)
        x = x if places is None else x.where(frames, 0)
        x = F.gelu(self.conv2(x)).transpose(1, 2)  # (B, T/2, C)
        x = self.encoder(x + self.embed_positions[: T // 2], mask=keys, layer=layer)
        x = self.layer_norm(x) if layer is None else x
        return x if places is None else x.where(places, 0)

    def _check(self, mel: Tensor, lengths: Tensor | None) -> int:
        n_mels, longest = self.cfg.n_mels, 2 * self.cfg.n_positions
        if mel.dim() != 3 or mel.shape[1] != n_mels or not mel.is_floating_point():
            raise InputError(f"mel must be floats of shape (B, {n_mels}, T), got {mel.dtype} {tuple(mel.shape)}; "
                             f"log_mel(wave, n_mels={n_mels})[None] makes it")
        device = self.conv1.weight.device
        if mel.device != device:
            raise InputError(f"mel is on {mel.device}, the encoder on {device}; move it with mel.to({str(device)!r})")
        T = mel.shape[2]
        if T % 2 or not 2 <= T <= longest:
            raise InputError(f"mel has {T} frames; it must have an even number of them, from 2 to {longest}")
        if lengths is not None:
            if lengths.shape != (len(mel),):
                raise InputError(f"lengths must have shape ({len(mel)},), a number for each clip, "
                                 f"got {tuple(lengths.shape)}")
            low, high = int(lengths.min()), int(lengths.max())
            if low < 1 or high > T // 2:
                raise InputError(f"lengths must be from 1 to {T // 2}, the places of {T} frames; got {low} to {high}")
        return T


def encode_wave(encoder: AudioEncoder, wave: Tensor, *, layer: int | None = None) -> Tensor:
    """A sound of any length, piece by piece of 30 s, without the silence behind it. -> (n_places, C), 50 a second.

    wave (n_samples,): 16 kHz mono in [-1, 1]. Pieces do not hear each other. Raises InputError.
    """
    weight, features = encoder.conv1.weight, []
    for piece in split_wave(wave):
        mel = cut_mel(piece, n_mels=encoder.cfg.n_mels).to(weight.device)
        features.append(encoder(mel[None], layer=layer)[0])
    return torch.cat(features)  # (n_places, C)
