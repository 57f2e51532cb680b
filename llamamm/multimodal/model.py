"""A Llama that reads, sees and hears: any text model of this package with towers and bridges around it.

    pixels (n, 3, H, W) -> vision tower  -> bridge -> tokens (n, M, C)
    mel (m, n_mels, T)  -> audio encoder -> bridge -> tokens (m, M, C)
    ids (B, T), with ids behind the vocabulary where media stand -> words and tokens, spliced (B, T, C)
    -> the text model's blocks, before some of them gated ones that look at tokens that were not spliced -> logits

Media of a batch stand in one list, in the order of their places in ids, row after row: prompts may have any number of
them. It is the text model and more: without media it computes what that computes, bit for bit.

Sources: LLaVA, arXiv:2304.08485 (splicing); Flamingo, arXiv:2204.14198 (gated blocks). Built in notebook 14.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from llamamm.errors import ConfigError, InputError
from llamamm.multimodal.bridge import Bridge
from llamamm.multimodal.compact import compacted
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.cross_attention import CrossAttentionBlock, CrossAttentionCache
from llamamm.multimodal.places import image_spans, pad_right, require_matching
from llamamm.senses.audio import AudioEncoder
from llamamm.senses.vision import VisionTower
from llamamm.text.cache import KVCache
from llamamm.text.model import Llama3Model

Tokens = tuple[Tensor, Tensor]  # (n, M, C) and which of them are real, (n, M) bool


@dataclass(frozen=True)
class Media:
    """What the towers read: pixels (n, 3, H, W); mel (m, n_mels, T) and lengths (m,), places with sound; None: all."""

    pixels: Tensor | None = None
    mel: Tensor | None = None
    lengths: Tensor | None = None

    def to(self, device: torch.device | str) -> Media:
        return Media(*(t if t is None else t.to(device) for t in (self.pixels, self.mel, self.lengths)))


@dataclass(frozen=True)
class Features:
    """What the towers give: images (n, N, F); sounds (m, N, F) and sound_mask (m, N) bool. Frozen ones give it once."""

    images: Tensor | None = None
    sounds: Tensor | None = None
    sound_mask: Tensor | None = None

    def to(self, device: torch.device | str) -> Features:
        return Features(*(t if t is None else t.to(device) for t in (self.images, self.sounds, self.sound_mask)))


class MultimodalLlama(Llama3Model):
    """The whole model. text, vision, audio: trained parts of the shapes in cfg, taken as they are; None: fresh ones.

    Raises ConfigError where a part has another shape.
    """

    TOWERS = ("vision_tower", "audio_encoder")
    ADDED = ("image_bridge", "audio_bridge", "gated")  # what joins the towers to the text model

    def __init__(
        self,
        cfg: MultimodalConfig,
        *,
        text: Llama3Model | None = None,
        vision: VisionTower | None = None,
        audio: AudioEncoder | None = None,
    ) -> None:
        for name, part in (("text", text), ("vision", vision), ("audio", audio)):
            if part is not None and part.cfg != getattr(cfg, name):
                raise ConfigError(f"the {name} model has {part.cfg}, the configuration {getattr(cfg, name)}")
        with torch.device("meta" if text is not None else torch.get_default_device()):
            super().__init__(cfg.text)
        if text is not None:
            for name, module in text.named_children():
                setattr(self, name, module)
            self.cos, self.sin = text.cos, text.sin
        self.multimodal_cfg = cfg
        if cfg.vision is not None:
            self.vision_tower = vision if vision is not None else VisionTower(cfg.vision)
            self.image_bridge = Bridge(cfg.image_bridge, cfg.text, flat=False, n_numbers=cfg.vision.encoder.hidden_size)
        if cfg.audio is not None:
            self.audio_encoder = audio if audio is not None else AudioEncoder(cfg.audio)
            self.audio_bridge = Bridge(cfg.audio_bridge, cfg.text, flat=True, n_numbers=cfg.audio.encoder.hidden_size)
        self.gated = nn.ModuleDict(
            {str(n): CrossAttentionBlock(cfg.text, n_prompts=cfg.n_prompts) for n in cfg.cross_layers}
        )
        if text is not None:
            self.to(text.embed_tokens.weight.device)

    def forward(
        self,
        ids: Tensor,
        *,
        media: Media | None = None,
        features: Features | None = None,
        cache: KVCache | None = None,
        padding: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Scores of each vocabulary entry as the next token. ids (B, T) int64 -> logits (B, T, V).

        media: images and sounds whose places stand in ids; features: the same, from `perceive`, in place of it.
        cache, padding, last_only: as in `Llama3Model`. Raises InputError, ContextOverflowError.
        """
        x = self.hidden_states(ids, media=media, features=features, cache=cache, padding=padding)
        return self.scores(x[:, -1:] if last_only else x)

    def hidden_states(
        self,
        ids: Tensor,
        *,
        media: Media | None = None,
        features: Features | None = None,
        cache: KVCache | None = None,
        padding: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """What the head reads. Arguments as above. (B, T) -> (B, T, C)."""
        cfg = self.multimodal_cfg
        places = torch.stack([ids == token for _, token, _ in self._senses()]).any(dim=0)
        self._check(ids.masked_fill(places, 0))
        if media is not None and features is not None:
            raise InputError("media and features are two forms of the same; give one of them")
        if media is not None:
            features = self.perceive(media)
        tokens = self._read(self.bridged(features or Features()))
        x = self._embedded(ids, places, tokens)
        before = self._looking(ids, tokens, cache, segments) if cfg.cross_layers else None
        return self.norm(self.run_blocks(x, cache=cache, padding=padding, segments=segments, before=before))

    # ---- the media ----

    def perceive(self, media: Media) -> Features:
        """The towers at work. No gradients are kept for towers of which nothing trains. Raises InputError."""
        cfg, images, sounds, mask = self.multimodal_cfg, None, None, None
        if media.pixels is not None:
            self._require(cfg.vision, "eye", "images")
            with _gradients_of(self.vision_tower):
                images = self.vision_tower(media.pixels, layer=cfg.image_layer, cls=False)
        if media.mel is not None:
            self._require(cfg.audio, "ear", "sounds")
            with _gradients_of(self.audio_encoder):
                sounds = self.audio_encoder(media.mel, layer=cfg.audio_layer, lengths=media.lengths)
            if media.lengths is not None:
                mask = torch.arange(sounds.shape[1], device=sounds.device) < media.lengths[:, None]
        return Features(images, sounds, mask)

    def bridged(self, features: Features) -> dict[str, Tokens]:
        """Tokens as wide as the text's, by kind: "image", "audio". Raises InputError."""
        tokens = {}
        if features.images is not None:
            self._require(self.multimodal_cfg.vision, "eye", "images")
            tokens["image"] = self.image_bridge(features.images, grid=self.multimodal_cfg.grid)
        if features.sounds is not None:
            self._require(self.multimodal_cfg.audio, "ear", "sounds")
            tokens["audio"] = self.audio_bridge(features.sounds, features.sound_mask)
        return tokens

    def _read(self, tokens: dict[str, Tokens]) -> dict[str, Tokens]:
        """The bridges' tokens as the text model reads them: as words and these first, where a bridge asks for it."""
        table = self.embed_tokens.weight
        return {kind: (compacted(found, mask, table, bridge.known > 0.5) if bridge.cfg.compact else found, mask)
                for kind, _, bridge in self._senses() if kind in tokens for found, mask in [tokens[kind]]}

    def _embedded(self, ids: Tensor, places: Tensor, tokens: dict[str, Tokens]) -> Tensor:
        """Words from the table, media from the bridges: all framed tokens, or, where gated blocks look at them, a
        start alone, which says that there is something to look at. -> (B, T, C)."""
        cfg = self.multimodal_cfg
        x = self.embed_tokens(ids.masked_fill(places, 0))
        for kind, token, bridge in self._senses():
            spliced, lengths = x.new_empty(0, x.shape[2]), []
            if kind in tokens:
                found, mask = tokens[kind]
                if cfg.cross_layers:
                    spliced, lengths = bridge.start.expand(len(found), -1), [1] * len(found)
                else:
                    framed, mask = bridge.framed(found, mask)
                    spliced, lengths = framed[mask], mask.sum(dim=1).tolist()  # (all places, C)
            where = require_matching(ids, token, lengths, kind)
            if len(spliced):
                x = x.masked_scatter(where[..., None], spliced.to(x.dtype))
        return x

    def _looking(
        self, ids: Tensor, tokens: dict[str, Tokens], cache: CrossAttentionCache | None, segments: Tensor | None
    ) -> Callable[[int, Tensor], Tensor] | None:
        """What the gated blocks do before a block of the text; None where there is nothing to look at."""
        memory, look = self._memory(ids, tokens, segments)
        if cache is not None and cache.length == 0:
            cache.rewind()  # forgets what a reading that failed has left
        if memory is None:
            if cache is None or cache.last_mask is None:
                return None
            look = cache.last_mask.expand(-1, -1, ids.shape[1], -1)  # words to come see what the last one saw
        elif cache is not None:
            if cache.length:
                raise InputError(f"the cache holds {cache.length} tokens already; images and sounds that gated blocks "
                                 f"look at go with the first ones: rewind it")
            cache.remember(look)

        def before(n: int, x: Tensor) -> Tensor:
            if str(n) not in self.gated:
                return x
            block = self.gated[str(n)]
            view = cache.views[n] if memory is None else block.keys_values(memory)
            if cache is not None:
                cache.views[n] = view
            return block(x, view, look)

        return before

    def _memory(
        self, ids: Tensor, tokens: dict[str, Tokens], segments: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Each prompt's tokens in a row, (B, S, C), and which of its words look at which, (B, 1, T, S) bool.

        A picture is seen from its place up to the next picture's, a sound up to the next sound's, and neither by
        another text of its row.
        """
        if not tokens:
            return None, None
        rows: list[list[Tensor]] = [[] for _ in ids]
        spans: list[list[tuple[int, int]]] = [[] for _ in ids]
        for kind, token, _ in self._senses():
            found = iter(zip(*tokens[kind], strict=True)) if kind in tokens else iter(())
            for b, row in enumerate(ids.tolist()):
                for begin, end in image_spans(row, token):
                    if segments is not None:
                        end = min(end, 1 + int((segments[b] == segments[b, begin]).nonzero().max()))
                    span = begin, end
                    one, mask = next(found)
                    rows[b].append(one[mask].to(self.embed_tokens.weight.dtype))
                    spans[b].append(span)
        empty = self.embed_tokens.weight.new_zeros(0, self.cfg.hidden_size)
        memory, _ = pad_right([torch.cat([empty, *some]) for some in rows])
        look = torch.zeros(len(ids), 1, ids.shape[1], memory.shape[1], dtype=torch.bool, device=ids.device)
        for b, some in enumerate(rows):
            behind = 0
            for one, (begin, end) in zip(some, spans[b], strict=True):
                look[b, 0, begin:end, behind : (behind := behind + len(one))] = True
        return memory, look

    def _senses(self) -> list[tuple[str, int, Bridge]]:
        cfg = self.multimodal_cfg
        eye = [] if cfg.vision is None else [("image", cfg.image_token, self.image_bridge)]
        return eye + ([] if cfg.audio is None else [("audio", cfg.audio_token, self.audio_bridge)])

    def _require(self, tower: object, organ: str, media: str) -> None:
        if tower is None:
            raise InputError(f"this model has no {organ}, but {media} were given; leave them out, or take another "
                             f"model")

    # ---- training ----

    def set_trainable(self, *, text: bool = False, towers: bool = False, bridges: bool = True) -> MultimodalLlama:
        """Which parts learn: the text model; the towers; the bridges and gated blocks. Returns the model."""
        for name, parameter in self.named_parameters():
            part = name.split(".")[0]
            parameter.requires_grad_(
                towers if part in ("vision_tower", "audio_encoder")
                else bridges if part in self.ADDED else text
            )  # fmt: skip
        if towers and self.multimodal_cfg.audio is not None:
            self.audio_encoder.embed_positions.requires_grad_(False)  # fixed sines
        for _, _, bridge in self._senses():
            if bridge.cfg.compact:
                bridge.known.requires_grad_(False)  # noted, not learned
        return self

    def added_parameters(self) -> Iterator[nn.Parameter]:
        """Those of bridges and gated blocks."""
        for name, module in self.named_children():
            if name in self.ADDED:
                yield from module.parameters()

    @property
    def full_config(self) -> MultimodalConfig:
        """As in `Llama3Model`, with towers and bridges."""
        return replace(self.multimodal_cfg, text=super().full_config)

    def make_cache(self, batch_size: int = 1, max_length: int | None = None) -> KVCache:
        """An empty cache on this model's device and in its dtype; max_length in tokens, by default the context."""
        kind = CrossAttentionCache if self.multimodal_cfg.cross_layers else KVCache
        return kind(self.cfg, batch_size=batch_size, max_length=max_length, **self.cache_options())


def _gradients_of(tower: nn.Module) -> torch.set_grad_enabled:
    """Keep what a backward pass needs only where something of the tower trains."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and any(p.requires_grad for p in tower.parameters()))
