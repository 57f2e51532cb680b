"""From what a tower saw or heard to what a text model can read: fewer features, as wide as its own tokens.

    features (B, N, F), mask (B, N) -> merged -> projected -> position tags -> Perceiver -> tokens (B, M, C), mask

Each step but the projection may be missing. The tokens can be spliced between those of the words, framed by a learned
start and end, or be the memory that cross-attention looks at (`llamamm.multimodal.cross_attention`).

Sources: LLaVA 1.5, arXiv:2310.03744 (two linears); Idefics3, arXiv:2408.12637 (pixel shuffle); Ultravox (stacked
frames, SwiGLU); Flamingo, arXiv:2204.14198, and Idefics2, arXiv:2405.02246 (Perceiver). Built in notebook 13.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.errors import InputError
from llamamm.multimodal.config import BridgeConfig
from llamamm.multimodal.cross_attention import CrossAttention
from llamamm.senses.encoder import init_weights
from llamamm.text.config import TextConfig
from llamamm.text.layers import FeedForward, RMSNorm

AUDIO_EPS = 1e-6  # Ultravox's


# ---- fewer: neighbours merged ----


def pixel_shuffle(features: Tensor, grid: tuple[int, int], *, merge: int) -> Tensor:
    """merge x merge neighbours become one, their numbers side by side. (B, N, F) -> (B, N / merge², merge² F).

    grid: (rows, columns) of the features, row by row. Nothing is lost: space becomes width. Raises InputError.
    """
    B, N, n_numbers = features.shape
    rows, columns = grid
    if rows * columns != N or rows % merge or columns % merge:
        raise InputError(f"{N} features in a grid of {rows} x {columns} do not merge by {merge} x {merge}")
    x = features.view(B, rows // merge, merge, columns // merge, merge, n_numbers)
    x = x.transpose(2, 3)  # (B, rows / m, columns / m, m, m, F)
    return x.reshape(B, N // merge**2, merge**2 * n_numbers)


def stack_frames(features: Tensor, mask: Tensor | None, *, merge: int) -> tuple[Tensor, Tensor]:
    """So many frames in a row become one; zeros fill the last. (B, N, F) -> (B, ceil(N / merge), merge F), mask.

    mask (B, N) bool: the real frames, which stand first; None: all. A stack is real if its first frame is. What is not
    real becomes 0, whatever it was: 0 times NaN would be NaN.
    """
    B, N, n_numbers = features.shape
    if mask is None:
        mask = torch.ones(B, N, dtype=torch.bool, device=features.device)
    features = F.pad(features.where(mask[..., None], 0), (0, 0, 0, -N % merge))
    return features.reshape(B, -1, merge * n_numbers), mask[:, ::merge]


# ---- as wide as the text: projectors ----


class LinearProjector(nn.Module):
    """One matrix. (B, N, F) -> (B, N, C)."""

    def __init__(self, n_numbers: int, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(n_numbers, hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_1(features)


class MLPProjector(nn.Module):
    """LLaVA's: linear, GELU, linear. (B, N, F) -> (B, N, C). width: between the two, by default C."""

    def __init__(self, n_numbers: int, hidden_size: int, *, width: int | None = None) -> None:
        super().__init__()
        width = width or hidden_size
        self.linear_1 = nn.Linear(n_numbers, width)
        self.linear_2 = nn.Linear(width, hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(features)))


class SwiGLUProjector(nn.Module):
    """Ultravox's: norm, linear, silu(gate) * x, norm, linear; no biases. (B, N, F) -> (B, N, C).

    width: what linear_1 gives, x and gate together; by default twice the text model's.
    norm_middle: the second norm stands before linear_2 (from version 0.5 on); else behind it.
    """

    def __init__(
        self, n_numbers: int, hidden_size: int, *, width: int | None = None, norm_middle: bool = True
    ) -> None:
        super().__init__()
        width = width or 2 * hidden_size
        self.ln_pre = RMSNorm(n_numbers, AUDIO_EPS)
        self.linear_1 = nn.Linear(n_numbers, width, bias=False)
        self.ln_mid = RMSNorm(width // 2, AUDIO_EPS) if norm_middle else nn.Identity()
        self.linear_2 = nn.Linear(width // 2, hidden_size, bias=False)
        self.ln_post = nn.Identity() if norm_middle else RMSNorm(hidden_size, AUDIO_EPS)

    def forward(self, features: Tensor) -> Tensor:
        x, gate = self.linear_1(self.ln_pre(features)).chunk(2, dim=-1)  # (B, N, width / 2) each
        return self.ln_post(self.linear_2(self.ln_mid(F.silu(gate) * x)))


def make_projector(cfg: BridgeConfig, n_numbers: int, hidden_size: int) -> nn.Module:
    """The one that cfg names, with fresh weights."""
    if cfg.projector == "linear":
        return LinearProjector(n_numbers, hidden_size)
    kind = MLPProjector if cfg.projector == "mlp" else SwiGLUProjector
    return kind(n_numbers, hidden_size, width=cfg.width or None)


# ---- where a token stood ----


class PositionTags(nn.Module):
    """Learned vectors added to tokens: one for the row and one for the column, or one for the place in a line.

    They begin near zero. (B, N, C) -> (B, N, C).
    """

    def __init__(self, n_tags: int, hidden_size: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(n_tags, hidden_size) * 0.02)
        self.columns = nn.Parameter(torch.randn(n_tags, hidden_size) * 0.02)  # of a sound: all that is used

    def forward(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """grid: (rows, columns) of the tokens; None: they stand in a line. Raises InputError past the last tag."""
        rows, columns = grid or (0, tokens.shape[1])
        if max(rows, columns) > len(self.rows):
            raise InputError(f"tokens in {rows or 1} rows of {columns} have more places than there are tags, "
                             f"{len(self.rows)}; build the bridge with more")
        tags = self.columns[:columns]
        if grid is not None:
            tags = (self.rows[:rows, None] + tags).flatten(0, 1)  # (rows columns, C)
        return tokens + tags


# ---- a fixed number: the Perceiver ----


class PerceiverBlock(nn.Module):
    """Latents look at the features and at each other, then think. (B, L, C), (B, N, C) -> (B, L, C)."""

    def __init__(self, cfg: TextConfig) -> None:
        super().__init__()
        self.input_latents_norm = RMSNorm(cfg.hidden_size, cfg.norm_eps)
        self.input_context_norm = RMSNorm(cfg.hidden_size, cfg.norm_eps)
        self.self_attn = CrossAttention(cfg, qk_norm=False)
        self.post_attention_layernorm = RMSNorm(cfg.hidden_size, cfg.norm_eps)
        self.mlp = FeedForward(cfg)

    def forward(self, latents: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: (B, 1, 1, N + L) bool, True where latents may look; None: at all."""
        queries = self.input_latents_norm(latents)
        seen = torch.cat([self.input_context_norm(context), queries], dim=1)  # (B, N + L, C)
        latents = latents + self.self_attn(queries, self.self_attn.keys_values(seen), mask)
        return latents + self.mlp(self.post_attention_layernorm(latents))


class PerceiverResampler(nn.Module):
    """As many tokens out as there are latents, however many features come in. (B, N, C) -> (B, L, C).

    cfg: width, heads and the feed-forward's size of its blocks. Idefics2's, without its separate head size.
    """

    def __init__(self, cfg: TextConfig, *, n_latents: int, depth: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(n_latents, cfg.hidden_size) * 0.02)
        self.layers = nn.ModuleList(PerceiverBlock(cfg) for _ in range(depth))
        self.norm = RMSNorm(cfg.hidden_size, cfg.norm_eps)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: (B, N) bool, True for real features; None: all are. The others may hold anything, NaN too."""
        latents = self.latents.expand(len(features), -1, -1)  # (B, L, C)
        if mask is not None:
            features = features.where(mask[..., None], 0)  # no weight is small enough for NaN
            mask = F.pad(mask, (0, len(self.latents)), value=True)[:, None, None]  # latents see each other
        for layer in self.layers:
            latents = layer(latents, features, mask)
        return self.norm(latents)


# ---- all of it ----


class Bridge(nn.Module):
    """A tower's features -> tokens for a text model of the shape `text`, with fresh weights in fp32.

    n_numbers: the width F of the features. flat: they stand in a line (sound), not in a grid (picture).
    known: of a compact one, the ids of the vocabulary that its tokens may say, (V,) of 1 or 0: all, until aligned.
    """

    def __init__(self, cfg: BridgeConfig, text: TextConfig, *, n_numbers: int, flat: bool) -> None:
        super().__init__()
        self.cfg, self.flat = cfg, flat
        C = text.hidden_size
        merged = n_numbers * (cfg.merge if flat else cfg.merge**2)
        self.projector = make_projector(cfg, merged, C)
        self.tags = PositionTags(cfg.tags, C) if cfg.tags else None
        self.resampler = None
        if cfg.latents:
            shape = text.replace(n_heads=cfg.heads, n_kv_heads=cfg.heads, head_dim=None, intermediate_size=4 * C,
                                 dtype=torch.float32)  # fmt: skip
            self.resampler = PerceiverResampler(shape, n_latents=cfg.latents, depth=cfg.depth)
        self.start = nn.Parameter(torch.randn(C) * 0.02)
        self.end = nn.Parameter(torch.randn(C) * 0.02)
        if cfg.compact:
            self.known = nn.Parameter(torch.ones(text.vocab_size), requires_grad=False)  # goes wherever weights go
        self.projector.apply(init_weights)

    def forward(
        self, features: Tensor, mask: Tensor | None = None, *, grid: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """features (B, N, F); mask (B, N) bool, True for real ones, which stand first; grid: (rows, columns) of a
        picture's. -> tokens (B, M, C), mask (B, M) bool. Raises InputError.
        """
        merge = self.cfg.merge
        features = features.to(self.start.dtype)
        if self.flat:
            features, mask = stack_frames(features, mask, merge=merge)
        else:
            features = pixel_shuffle(features, grid, merge=merge)
            grid = (grid[0] // merge, grid[1] // merge)
            mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        tokens = self.projector(features)
        if self.tags is not None:
            tokens = self.tags(tokens, None if self.flat else grid)
        if self.resampler is not None:
            tokens = self.resampler(tokens, mask)
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return tokens, mask

    def framed(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The learned start before the tokens, the learned end behind. (B, M, C), (B, M) -> (B, M + 2, C), mask."""
        start, end = (part.expand(len(tokens), 1, -1) for part in (self.start, self.end))
        return torch.cat([start, tokens, end], dim=1), F.pad(mask, (1, 1), value=True)
