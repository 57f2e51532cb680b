"""Whisper's decoder: a small language model that looks at a sound while it writes.

    ids (B, T), features (B, S, C) -> blocks: [tokens read, then the sound, then an MLP] -> scores (B, T, V)

A block has two attentions of one kind. In the first, queries, keys and values come from the tokens; in the second the
keys and values come from the encoder's features, so every token can ask the whole sound. Nothing there is masked: the
sound has been heard to its end. Positions are learned and added once; the head is the embedding.

Source: Whisper, arXiv:2212.04356, section 2.3; cross-attention: Transformer, arXiv:1706.03762. Built in notebook 12.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.errors import ConfigError, ContextOverflowError, InputError, require_whole
from llamamm.senses.audio import AudioEncoder
from llamamm.senses.config import AudioConfig, EncoderConfig
from llamamm.senses.encoder import MLP, init_weights


@dataclass(frozen=True)
class WhisperConfig:
    """A whole Whisper. audio: its encoder; decoder: the shape of its decoder's blocks; n_tokens: that it can write.

    Raises ConfigError with the numbers that disagree.
    """

    audio: AudioConfig
    decoder: EncoderConfig
    vocab_size: int
    n_tokens: int = 448

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_tokens"):
            require_whole(name, getattr(self, name))
        if self.decoder.hidden_size != self.audio.encoder.hidden_size:
            raise ConfigError(f"the decoder is {self.decoder.hidden_size} wide, the encoder "
                              f"{self.audio.encoder.hidden_size}; Whisper's are equally wide")

    @classmethod
    def whisper_tiny_en(cls) -> WhisperConfig:
        """openai/whisper-tiny.en: 37.8 million parameters."""
        audio = AudioConfig.whisper_tiny()
        return cls(audio, audio.encoder, vocab_size=51_864)

    @classmethod
    def tiny(cls) -> WhisperConfig:
        """One that fits in a test: two blocks each, width 32, one second of sound, 96 tokens."""
        audio = AudioConfig.tiny()
        return cls(audio, audio.encoder, vocab_size=96, n_tokens=24)

    @classmethod
    def from_hf(cls, data: Mapping[str, Any]) -> WhisperConfig:
        """Read Whisper's `config.json`. Raises ConfigError for another family or setting, naming it."""
        audio = AudioConfig.from_hf(data)
        missing = [key for key in ("decoder_layers", "decoder_attention_heads", "vocab_size") if data.get(key) is None]
        if missing:
            raise ConfigError(f"config.json lacks {', '.join(missing)}, which say what the decoder is")
        if data.get("scale_embedding"):
            raise ConfigError("config.json has scale_embedding=True; this package builds Whisper's own, without")
        e = audio.encoder
        decoder = EncoderConfig(
            e.hidden_size, data.get("decoder_ffn_dim") or 1536, data["decoder_layers"],
            data["decoder_attention_heads"], norm_eps=e.norm_eps, activation=e.activation, key_bias=False,
        )  # fmt: skip
        return cls(audio, decoder, data["vocab_size"], data.get("max_target_positions") or 448)


# ---- attention with its source named ----


class Attention(nn.Module):
    """Queries from one sequence, keys and values from a source: the same sequence, or another one."""

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        C = cfg.hidden_size
        self.n_heads = cfg.n_heads
        self.q_proj = nn.Linear(C, C)
        self.k_proj = nn.Linear(C, C, bias=False)
        self.v_proj = nn.Linear(C, C)
        self.out_proj = nn.Linear(C, C)

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """source (B, S, C) -> keys and values, each (B, H, S, D)."""
        return self._heads(self.k_proj(source)), self._heads(self.v_proj(source))

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, T, C) asks k, v (B, H, S, D) -> (B, T, C). mask: bool (T, S), True = may attend; None: all of it."""
        q = self._heads(self.q_proj(x))  # (B, H, T, D)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, k: Tensor) -> Tensor:
        """What each of x (B, T, C) looks at in keys (B, H, S, D), each row summing to 1. -> (B, H, T, S)."""
        q = self._heads(self.q_proj(x))
        return (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(dim=-1)

    def _heads(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        return x.view(B, N, self.n_heads, C // self.n_heads).transpose(1, 2)  # (B, H, N, D)


# ---- what is remembered of a clip ----


class DecoderCache:
    """Keys and values of one batch of clips: of the sound, computed once, and of the tokens read so far.

    `WhisperDecoder.listen` makes it. text: a preallocated pair for each block, (B, H, n_tokens, D).
    """

    def __init__(self, sound: list[tuple[Tensor, Tensor]], *, max_length: int) -> None:
        self.sound, self.max_length, self.length = sound, max_length, 0
        self.text = [tuple(t.new_empty(*t.shape[:2], max_length, t.shape[3]) for t in pair) for pair in sound]

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write a block's new (B, H, T, D) after the old ones; give all, (B, H, length + T, D)."""
        end = self.length + k.shape[2]
        keys, values = self.text[layer]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]


# ---- the decoder ----


class DecoderBlock(nn.Module):
    """Tokens, then sound, then MLP, each on a normalised copy and added back. (B, T, C) -> (B, T, C)."""

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        C, eps = cfg.hidden_size, cfg.norm_eps
        self.self_attn_layer_norm = nn.LayerNorm(C, eps=eps)
        self.self_attn = Attention(cfg)
        self.encoder_attn_layer_norm = nn.LayerNorm(C, eps=eps)
        self.encoder_attn = Attention(cfg)
        self.final_layer_norm = nn.LayerNorm(C, eps=eps)
        self.mlp = MLP(cfg)

    def forward(self, x: Tensor, mask: Tensor, cache: DecoderCache, layer: int) -> Tensor:
        """mask (T, S): which tokens are read; cache: what has been heard and read, and where this block is in it."""
        own = self.self_attn_layer_norm(x)
        k, v = cache.update(layer, *self.self_attn.keys_values(own))
        x = x + self.self_attn(own, k, v, mask)
        x = x + self.encoder_attn(self.encoder_attn_layer_norm(x), *cache.sound[layer])
        return x + self.mlp(self.final_layer_norm(x))


class WhisperDecoder(nn.Module):
    """Scores for the next token, given the sound and the tokens so far, with fresh random weights."""

    def __init__(self, cfg: WhisperConfig) -> None:
        super().__init__()
        self.cfg = cfg
        C = cfg.decoder.hidden_size
        self.embed_tokens = nn.Embedding(cfg.vocab_size, C)
        self.embed_positions = nn.Parameter(torch.empty(cfg.n_tokens, C))
        self.layers = nn.ModuleList(DecoderBlock(cfg.decoder) for _ in range(cfg.decoder.n_layers))
        self.layer_norm = nn.LayerNorm(C, eps=cfg.decoder.norm_eps)
        self.apply(init_weights)
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        nn.init.normal_(self.embed_positions, std=0.02)

    def listen(self, features: Tensor, *, max_length: int | None = None) -> DecoderCache:
        """The encoder's features (B, S, C) as keys and values of every block, once for all tokens to come.

        max_length: tokens that the cache has room for; None is all that the model can write. Raises InputError.
        """
        C, longest = self.cfg.decoder.hidden_size, self.cfg.n_tokens
        if features.dim() != 3 or features.shape[2] != C or features.shape[1] < 1:
            raise InputError(f"features must be (B, S, {C}), as this Whisper's encoder gives them, got "
                             f"{tuple(features.shape)}")
        if max_length is not None and not 1 <= max_length <= longest:
            raise ContextOverflowError(f"a cache of {max_length} tokens does not fit: the decoder writes "
                                       f"1 to {longest}")
        features = features.to(self.layer_norm.weight.dtype)
        sound = [layer.encoder_attn.keys_values(features) for layer in self.layers]
        return DecoderCache(sound, max_length=max_length or longest)

    def forward(self, ids: Tensor, heard: Tensor | DecoderCache) -> Tensor:
        """ids (B, T): the tokens that follow those in the cache -> scores (B, T, V).

        heard: features (B, S, C), or what `listen` made of them, which then holds these tokens too.
        Raises InputError; ContextOverflowError where the tokens pass what the cache holds.
        """
        cache = heard if isinstance(heard, DecoderCache) else self.listen(heard, max_length=_room(ids))
        self._check(ids, cache)
        start, end = cache.length, cache.length + ids.shape[1]
        x = self.embed_tokens(ids) + self.embed_positions[start:end]  # (B, T, C)
        places = torch.arange(end, device=ids.device)
        mask = places[start:, None] >= places  # (T, S)
        for i, layer in enumerate(self.layers):
            x = layer(x, mask, cache, i)
        cache.length = end
        return self.layer_norm(x) @ self.embed_tokens.weight.T

    @torch.no_grad()
    def looks(self, ids: Tensor, features: Tensor, *, layer: int) -> Tensor:
        """Where each of ids (B, T) looks in the sound, in block number `layer`, from 0. -> (B, H, T, S), rows sum to 1.

        Raises InputError as `forward`, and for a block that does not exist.
        """
        if not 0 <= layer < len(self.layers):
            raise InputError(f"layer must be from 0 to {len(self.layers) - 1}, got {layer}")
        asked: list[Tensor] = []
        block = self.layers[layer].encoder_attn
        hook = block.register_forward_pre_hook(lambda _, given: asked.append(block.weights(*given[:2])))
        try:
            self(ids, features)
        finally:
            hook.remove()
        return asked[0]

    def _check(self, ids: Tensor, cache: DecoderCache) -> None:
        B, V = len(cache.sound[0][0]), self.cfg.vocab_size
        if ids.dim() != 2 or ids.dtype != torch.int64 or not ids.numel():
            raise InputError(f"ids must be int64 of shape (B, T), got {ids.dtype} {tuple(ids.shape)}")
        if len(ids) != B:
            raise InputError(f"ids are for {len(ids)} clips, {B} were heard")
        if cache.length + ids.shape[1] > cache.max_length:
            raise ContextOverflowError(f"{cache.length} tokens and {ids.shape[1]} more pass the {cache.max_length} "
                                       f"that there is room for; cut the sound with split_at_pauses")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= V:
            raise InputError(f"ids must be from 0 to {V - 1}, got {low} to {high}")


def _room(ids: Tensor) -> int:
    return max(1, ids.shape[-1]) if ids.dim() else 1


class Whisper(nn.Module):
    """The ear and the mouth: `encoder` hears a log-mel, `decoder` writes what it heard."""

    def __init__(self, cfg: WhisperConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = AudioEncoder(cfg.audio)
        self.decoder = WhisperDecoder(cfg)

    def forward(self, mel: Tensor, ids: Tensor) -> Tensor:
        """mel (B, n_mels, 3000), ids (B, T) -> scores (B, T, V). Raises InputError as the two do."""
        return self.decoder(ids, self.encoder(mel))
