"""The eye of Llama 3.2 Vision: an image as one to four tiles, read first apart from each other, then together.

    pixels (B, I, t, 3, H, W): I images of t tiles -> patches (B I, t, N, C) -> local blocks -> global blocks
    -> features (B, I, t, N, C (1 + intermediates))

All tiles of an image stand in one row, so that every token sees every other; what tells a tile's place is learned
embeddings, chosen by the image's aspect ratio. Each goes through a gate, a single learned number whose tanh begins at
zero: a tower trained on square images could be given tiles without being disturbed.

Source: "The Llama 3 Herd of Models", arXiv:2407.21783 (7); Meta's llama-models 0.3.0. Built in notebook 15.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.errors import InputError
from llamamm.llama32_vision.config import TiledVisionConfig
from llamamm.senses.config import EncoderConfig
from llamamm.senses.encoder import EncoderBlock, init_weights
from llamamm.senses.vision import embed_patches

MULTIPLE = 8  # tokens of a tile are filled up to one of these


class TileBlock(EncoderBlock):
    """A block whose attention has no bias at all, and whose two branches a gate may close. (B, N, C) -> (B, N, C)."""

    def __init__(self, cfg: EncoderConfig, *, gated: bool) -> None:
        super().__init__(cfg)
        self.self_attn.out_proj = nn.Linear(cfg.hidden_size, cfg.hidden_size, bias=False)
        self.gate_attn = nn.Parameter(torch.zeros(1)) if gated else None
        self.gate_ffn = nn.Parameter(torch.zeros(1)) if gated else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.gate_attn is None:
            return super().forward(x, mask)
        x = x + self.gate_attn.tanh() * self.self_attn(self.layer_norm1(x), mask)
        return x + self.gate_ffn.tanh() * self.mlp(self.layer_norm2(x))


class GatedTileEmbedding(nn.Module):
    """Adds to each tile what belongs to its place in the image. (B, t, N, C) -> (B, t, N, C).

    A row of the table for each aspect ratio, and row 0 for no image; in it the tiles' vectors one after the other.
    """

    def __init__(self, cfg: TiledVisionConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(cfg.aspect_ratios) + 1, cfg.max_tiles * cfg.encoder.hidden_size)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, aspect_ratio_ids: Tensor) -> Tensor:
        B, t, _, C = x.shape
        return x + self.gate.tanh() * self.embedding(aspect_ratio_ids).view(B, t, 1, C)


class GatedPositionEmbedding(nn.Module):
    """A patch's place in its tile, and, as far as the gate is open, in the whole image. (B, t, N, C) -> the same."""

    def __init__(self, cfg: TiledVisionConfig) -> None:
        super().__init__()
        C = cfg.encoder.hidden_size
        self.embedding = nn.Parameter(torch.randn(cfg.n_tokens, C) * C**-0.5)
        self.tile_embedding = nn.Embedding(len(cfg.aspect_ratios) + 1, cfg.max_tiles * cfg.n_tokens * C)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, aspect_ratio_ids: Tensor) -> Tensor:
        open_ = self.gate.tanh()
        return x + (1 - open_) * self.embedding + open_ * self.tile_embedding(aspect_ratio_ids).view_as(x)


class TiledVisionTower(nn.Module):
    """The tower, with fresh random weights.

    after_blocks: take each intermediate from after its block instead of from before it. Meta's code, with which the
    public weights were trained, takes what enters the block; transformers 5 what leaves it.
    """

    def __init__(self, cfg: TiledVisionConfig, *, after_blocks: bool = False) -> None:
        super().__init__()
        self.cfg, self.after_blocks = cfg, after_blocks
        C, P = cfg.encoder.hidden_size, cfg.patch_size
        self.patch_embedding = nn.Conv2d(3, C, kernel_size=P, stride=P, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(C) * C**-0.5)
        self.gated_positional_embedding = GatedPositionEmbedding(cfg)
        self.pre_tile_positional_embedding = GatedTileEmbedding(cfg)
        self.post_tile_positional_embedding = GatedTileEmbedding(cfg)
        self.layernorm_pre = nn.LayerNorm(C)
        self.layernorm_post = nn.LayerNorm(C)
        self.transformer = nn.ModuleList(TileBlock(cfg.encoder, gated=False) for _ in range(cfg.encoder.n_layers))
        self.global_transformer = nn.ModuleList(TileBlock(cfg.encoder, gated=True) for _ in range(cfg.n_global_layers))
        self.apply(init_weights)

    def forward(self, pixels: Tensor, aspect_ratio_ids: Tensor, n_tiles: Tensor) -> Tensor:
        """pixels (B, I, t, 3, H, W); aspect_ratio_ids (B, I) int64, 0 for no image; n_tiles (B, I): tiles in use.

        -> features (B, I, t, N, C (1 + intermediates)); those of unused tiles mean nothing. Raises InputError.
        """
        B, I, t = self._check(pixels, aspect_ratio_ids, n_tiles)  # noqa: E741
        C, N = self.cfg.encoder.hidden_size, self.cfg.n_tokens
        ids = aspect_ratio_ids.reshape(B * I)
        weight = self.patch_embedding.weight
        x = embed_patches(pixels.flatten(0, 2).to(weight.dtype), weight, None)  # (B I t, N - 1, C)
        x = self.pre_tile_positional_embedding(x.view(B * I, t, N - 1, C), ids)
        x = torch.cat([self.class_embedding.expand(B * I, t, 1, C), x], dim=2)  # (B I, t, N, C)
        x = self.layernorm_pre(self.gated_positional_embedding(x, ids))
        x = F.pad(x, (0, 0, 0, -N % MULTIPLE))  # (B I, t, N', C)
        in_use = n_tiles.reshape(B * I).clamp(min=1)  # where there is no image, a black tile is read, and never seen
        mask = tile_mask(in_use, n_tiles=t, n_tokens=N, filled=x.shape[2])
        rows, kept = x.flatten(1, 2), []  # (B I, t N', C)
        for n, block in enumerate(self.transformer):
            before, rows = rows, block(rows, mask)
            if n in self.cfg.intermediates:
                kept.append(rows if self.after_blocks else before)
        x = self.post_tile_positional_embedding(self.layernorm_post(rows).view_as(x), ids)
        rows = x.flatten(1, 2)
        for block in self.global_transformer:
            rows = block(rows, mask)
        # The intermediates' numbers stand interleaved after the final ones: of each channel all blocks, then the next.
        features = torch.cat([rows, torch.stack(kept, dim=-1).flatten(2)], dim=-1) if kept else rows
        return features.view(B, I, t, x.shape[2], -1)[:, :, :, :N]

    def _check(self, pixels: Tensor, aspect_ratio_ids: Tensor, n_tiles: Tensor) -> tuple[int, int, int]:
        t, side = self.cfg.max_tiles, self.cfg.tile_size
        if pixels.dim() != 6 or tuple(pixels.shape[2:]) != (t, 3, side, side):
            raise InputError(f"pixels must have shape (B, I, {t}, 3, {side}, {side}), got {tuple(pixels.shape)}; the "
                             f"model's image processor makes them")
        for name, numbers, most in (("aspect_ratio_ids", aspect_ratio_ids, len(self.cfg.aspect_ratios)),
                                    ("n_tiles", n_tiles, t)):  # fmt: skip
            if numbers.shape != pixels.shape[:2]:
                raise InputError(f"{name} must have shape {tuple(pixels.shape[:2])}, a number for each image, got "
                                 f"{tuple(numbers.shape)}")
            low, high = int(numbers.min()), int(numbers.max())
            if low < 0 or high > most:
                raise InputError(f"{name} must be from 0 to {most}, got {low} to {high}")
        return pixels.shape[0], pixels.shape[1], t


def tile_mask(tiles_in_use: Tensor, *, n_tiles: int, n_tokens: int, filled: int) -> Tensor:
    """Who may look at whom, among all tokens of an image. tiles_in_use (B,) -> (B, 1, t N', t N') bool.

    Only a filling token is barred from the filling; a real token *does* see it. So the weights were trained, and
    without it the features differ.
    """
    device = tiles_in_use.device
    tile = torch.arange(n_tiles, device=device)[:, None] < tiles_in_use[:, None, None]  # (B, t, 1)
    real = (tile & (torch.arange(filled, device=device) < n_tokens)).flatten(1)  # (B, t N')
    return (real[:, :, None] | real[:, None, :])[:, None]
