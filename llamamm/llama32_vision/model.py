"""Llama 3.2 Vision: a Llama in whose blocks 3, 8, 13, ... text looks at images.

    ids (B, T)                                   -> embeddings -> blocks, some of them cross-attention -> logits
    images (B, I, t, 3, H, W) -> vision tower -> projector -> memory (B, I t N, C), read by the cross-attention blocks

The text's own blocks are those of lesson 06. Without images the cross-attention blocks are left out, and what remains
is the text model.

Source: "The Llama 3 Herd of Models", arXiv:2407.21783 (7). Built in notebook 15.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from llamamm.errors import InputError
from llamamm.llama32_vision.config import EXTRA_EMBEDDINGS, MllamaConfig
from llamamm.llama32_vision.tower import TiledVisionTower
from llamamm.multimodal.cross_attention import CrossAttentionBlock, CrossAttentionCache
from llamamm.multimodal.places import image_spans
from llamamm.text.attention import AttentionFn
from llamamm.text.layers import Linear
from llamamm.text.model import Llama3Model, TransformerBlock


@dataclass(frozen=True)
class TiledImages:
    """What the image processor makes of the images of B prompts, I at most in one, of t tiles at most.

    pixels (B, I, t, 3, H, W) float; aspect_ratio_ids (B, I) int64, 0 where there is no image; n_tiles (B, I) int64.
    """

    pixels: Tensor
    aspect_ratio_ids: Tensor
    n_tiles: Tensor

    def to(self, device: torch.device | str) -> TiledImages:
        return TiledImages(self.pixels.to(device), self.aspect_ratio_ids.to(device), self.n_tiles.to(device))


class MllamaModel(Llama3Model):
    """The whole model, with fresh random weights. It answers text alone as a Llama does.

    like_transformers: the two places where transformers 5 differs from Meta's code follow transformers: what text
    before the first image gets, and which side of a block the vision tower's intermediates are taken from.
    """

    def __init__(self, cfg: MllamaConfig, *, like_transformers: bool = False) -> None:
        text = cfg.text

        def blocks(attend: AttentionFn) -> Iterator[nn.Module]:
            # The text's blocks are numbered in the cache without the cross-attention blocks between them.
            slots = iter(range(text.n_layers))
            for n in range(text.n_layers):
                is_cross = n in cfg.cross_layers
                yield (CrossAttentionBlock(text, blind_rows_attend=like_transformers) if is_cross else
                       TransformerBlock(text, next(slots), attend=attend))

        super().__init__(text, make_blocks=blocks)
        self.mllama_cfg = cfg
        self.embed_tokens = nn.Embedding(text.vocab_size + EXTRA_EMBEDDINGS, text.hidden_size, dtype=text.dtype)
        self.lm_head = Linear(text.hidden_size, text.vocab_size, dtype=text.dtype)
        self.vision_model = TiledVisionTower(cfg.vision, after_blocks=like_transformers).to(text.dtype)
        self.multi_modal_projector = nn.Linear(cfg.vision.n_features, text.hidden_size, dtype=text.dtype)

    def forward(
        self,
        ids: Tensor,
        *,
        images: TiledImages | None = None,
        sees: Tensor | None = None,
        cache: CrossAttentionCache | None = None,
        padding: Tensor | None = None,
        segments: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Scores of each vocabulary entry as the next token. ids (B, T) int64 -> logits (B, T, V).

        images: those of the prompts, given once: a cache keeps what the blocks need of them.
        sees (B, T, I, t) bool: which tiles of which images each token may look at; None: as the image tokens in ids
        say, see `seen_tiles`; where ids hold none, all tiles in use.
        cache, padding, segments, last_only: as in `Llama3Model`; rows that pack several texts hold no images.
        Raises InputError, ContextOverflowError.
        """
        x = self.hidden_states(ids, images=images, sees=sees, cache=cache, padding=padding, segments=segments)
        return self.scores(x[:, -1:] if last_only else x)

    def hidden_states(
        self,
        ids: Tensor,
        *,
        images: TiledImages | None = None,
        sees: Tensor | None = None,
        cache: CrossAttentionCache | None = None,
        padding: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """What the head reads. Arguments as above. (B, T) -> (B, T, C)."""
        self._check(ids)
        if segments is not None and images is not None:
            raise InputError("rows that pack several texts hold no images; give a row for each text, without segments")
        x = self.embed_tokens(ids)  # (B, T, C)
        self._start(ids.shape[1], cache)  # before minutes of looking
        memory = None if images is None else self.memory(images)
        look = self._look(ids, images, sees, cache)
        if cache is not None and images is not None:
            cache.remember(look)

        def looked(n: int, x: Tensor) -> Tensor:
            layer = self.layers[n]
            if not isinstance(layer, CrossAttentionBlock):
                return x
            view = cache.views.get(n) if cache is not None else None
            if memory is not None:
                view = layer.keys_values(memory)
                if cache is not None:
                    cache.views[n] = view
            return x if view is None else layer(x, view, look)

        cross = self.mllama_cfg.cross_layers
        x = self.run_blocks(x, cache=cache, padding=padding, segments=segments, before=looked, skipped=cross)
        return self.norm(x)

    def memory(self, images: TiledImages) -> Tensor:
        """What cross-attention reads of the images: all tokens of all tiles in a row. -> (B, I t N, C)."""
        features = self.vision_model(images.pixels, images.aspect_ratio_ids, images.n_tiles)  # (B, I, t, N, F)
        return self.multi_modal_projector(features).flatten(1, 3)

    @property
    def full_config(self) -> MllamaConfig:
        """As in `Llama3Model`, with the vision tower."""
        return replace(self.mllama_cfg, text=super().full_config)

    @staticmethod
    def hf_name(name: str) -> str:
        """The name on disk of one of our parameters; `weights.mllama_names` goes the other way."""
        if name.startswith("vision_model."):
            name = re.sub(r"(?<=transformer)\.(?=\d)", ".layers.", name).replace(".layer_norm1.", ".input_layernorm.")
            return name.replace(".layer_norm2.", ".post_attention_layernorm.").replace(".out_proj.", ".o_proj.")
        if name.startswith("multi_modal_projector."):
            return name
        return f"language_model.{name}" if name.startswith("lm_head.") else f"language_model.model.{name}"

    def make_cache(self, batch_size: int = 1, max_length: int | None = None) -> CrossAttentionCache:
        """An empty cache on this model's device and in its dtype; max_length in tokens, by default the context."""
        own = self.cfg.replace(n_layers=self.cfg.n_layers - len(self.mllama_cfg.cross_layers))
        return CrossAttentionCache(own, batch_size=batch_size, max_length=max_length, **self.cache_options())

    def _look(
        self, ids: Tensor, images: TiledImages | None, sees: Tensor | None, cache: CrossAttentionCache | None
    ) -> Tensor | None:
        """Which tokens of the memory each word may look at: (B, 1, T, I t N) bool; None without images."""
        if images is None:
            if cache is None or cache.last_mask is None:
                return None
            return cache.last_mask.expand(-1, -1, ids.shape[1], -1)  # words to come see what the last one saw
        places = torch.arange(self.mllama_cfg.vision.max_tiles, device=ids.device)
        tiles = (places < images.n_tiles[..., None])[:, None].expand(-1, ids.shape[1], -1, -1)  # (B, T, I, t)
        if sees is None and (ids == self.mllama_cfg.image_token).any():
            sees = seen_tiles(ids, images, self.mllama_cfg.image_token)
        if sees is not None:
            if sees.shape != tiles.shape or sees.dtype != torch.bool:
                raise InputError(f"sees must be bool of shape {tuple(tiles.shape)}, a mark for each token and tile, "
                                 f"got {sees.dtype} {tuple(sees.shape)}")
            tiles = tiles & sees
        return tiles.flatten(2).repeat_interleave(self.mllama_cfg.vision.n_tokens, dim=2)[:, None]


def seen_tiles(ids: Tensor, images: TiledImages, image_token: int) -> Tensor:
    """Which tiles each token may look at. ids (B, T) -> (B, T, I, t) bool.

    Raises InputError, with both counts, where a prompt has more or fewer image tokens than images.
    """
    B, T = ids.shape
    shape = B, T, images.n_tiles.shape[1], images.pixels.shape[2]  # (B, T, I, t)
    marks = torch.zeros(shape, dtype=torch.bool, device=ids.device)
    for b in range(B):
        spans = image_spans(ids[b].tolist(), image_token)
        n_images = int((images.n_tiles[b] > 0).sum())
        if len(spans) != n_images:
            raise InputError(f"prompt {b} has {len(spans)} image token{'s'[len(spans) == 1:]} and {n_images} "
                             f"image{'s'[n_images == 1:]}; each image needs one")
        for i, (begin, end) in enumerate(spans):
            marks[b, begin:end, i, : int(images.n_tiles[b, i])] = True
    return marks
