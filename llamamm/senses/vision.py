"""A vision tower: a picture cut into patches, each patch a token, all tokens read at once.

    pixels (B, 3, H, W) -> patches (B, N, C), N = (H / P) (W / P) -> positions added -> encoder -> features (B, N, C)

One class for ViT, CLIP, SigLIP and DINOv2; `VisionConfig` says in which of five small things they differ.

Sources: ViT, arXiv:2010.11929; CLIP, arXiv:2103.00020; SigLIP, arXiv:2303.15343; DINOv2, arXiv:2304.07193.
Built in notebook 11.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.errors import ConfigError, InputError
from llamamm.senses.config import VisionConfig
from llamamm.senses.encoder import MLP, Encoder, init_weights


def embed_patches(pixels: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Each patch times one matrix, row by row from the top left. (B, 3, H, W) -> (B, N, C).

    weight (C, 3, P, P). A convolution whose step is as wide as its kernel does just that; what is left over at the
    right and at the bottom, less than a patch, is not seen.
    """
    return F.conv2d(pixels, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)


def resize_positions(positions: Tensor, *, old: int, new: tuple[int, int]) -> Tensor:
    """Learned positions of an old x old grid, for a grid of new = (rows, columns). (old², C) -> (rows * columns, C).

    Bicubic in fp32, as the reference does it.
    """
    if (old, old) == new:
        return positions
    square = positions.float().view(1, old, old, -1).permute(0, 3, 1, 2)  # (1, C, old, old)
    resized = F.interpolate(square, size=new, mode="bicubic", align_corners=False)  # (1, C, rows, columns)
    return resized.flatten(2)[0].T.to(positions.dtype)


class PatchEmbedding(nn.Conv2d):
    """The matrix of `embed_patches`. (B, 3, H, W) -> (B, N, C)."""

    def __init__(self, cfg: VisionConfig) -> None:
        P = cfg.patch_size
        super().__init__(3, cfg.encoder.hidden_size, kernel_size=P, stride=P, bias=cfg.patch_bias)

    def forward(self, pixels: Tensor) -> Tensor:
        return embed_patches(pixels, self.weight, self.bias)


class AttentionPool(nn.Module):
    """SigLIP's summary of a picture: one learned query looks over all tokens. (B, N, C) -> (B, C)."""

    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        C = cfg.encoder.hidden_size
        self.probe = nn.Parameter(torch.randn(1, 1, C) * 0.02)
        self.attention = nn.MultiheadAttention(C, cfg.encoder.n_heads, batch_first=True)
        self.layernorm = nn.LayerNorm(C, eps=cfg.encoder.norm_eps)
        self.mlp = MLP(cfg.encoder)

    def forward(self, x: Tensor) -> Tensor:
        probe = self.probe.expand(len(x), -1, -1)  # (B, 1, C)
        x, _ = self.attention(probe, x, x, need_weights=False)
        return (x + self.mlp(self.layernorm(x)))[:, 0]


class VisionTower(nn.Module):
    """A picture's features, with fresh random weights; `load_vision_tower` gives trained ones."""

    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        self.cfg = cfg
        C, eps = cfg.encoder.hidden_size, cfg.encoder.norm_eps
        self.patch_embedding = PatchEmbedding(cfg)
        self.class_embedding = nn.Parameter(torch.randn(C) * 0.02) if cfg.cls_token else None
        self.position_embedding = nn.Parameter(torch.randn(cfg.n_positions, C) * 0.02)  # the CLS token's first
        self.pre_layernorm = nn.LayerNorm(C, eps=eps) if cfg.pre_norm else nn.Identity()
        self.encoder = Encoder(cfg.encoder)
        self.post_layernorm = nn.LayerNorm(C, eps=eps)
        self.head = AttentionPool(cfg) if cfg.attention_pool else None
        self.apply(init_weights)

    def forward(self, pixels: Tensor, *, layer: int | None = None, cls: bool = True) -> Tensor:
        """pixels (B, 3, H, W), prepared by the tower's image processor -> features (B, N, C), the CLS token first.

        H and W may be other than the training's: positions are resized.
        layer: None for the last, after the final norm where the model has one for all tokens (all but CLIP); -2 for
        what leaves the block before the last, and so on, without that norm.
        cls=False leaves the CLS token out. Raises InputError.
        """
        x = self.encoder(self.embed(pixels), layer=layer)
        if layer is None and self.cfg.norm_tokens:
            x = self.post_layernorm(x)
        return x if cls else x[:, int(self.cfg.cls_token) :]

    def pooled(self, pixels: Tensor) -> Tensor:
        """One vector for a picture, as the model was trained to give it. (B, 3, H, W) -> (B, C).

        Raises ConfigError for a SigLIP tower without its head.
        """
        x = self(pixels)
        if self.head is not None:
            return self.head(x)
        if not self.cfg.cls_token:
            raise ConfigError("this tower has neither a CLS token nor an attention-pool head: average its features")
        return x[:, 0] if self.cfg.norm_tokens else self.post_layernorm(x[:, 0])

    def attention_weights(self, pixels: Tensor, *, layer: int = -1) -> Tensor:
        """Which token looks at which, in the block that makes hidden states `layer`. -> (B, H, N, N)."""
        return self.encoder.attention_weights(self.embed(pixels), layer=layer)

    def embed(self, pixels: Tensor) -> Tensor:
        """What enters the first block. (B, 3, H, W) -> (B, N, C)."""
        rows, columns = self.grid(pixels)
        x = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype))  # (B, rows * columns, C)
        special, patches = self.position_embedding.split([int(self.cfg.cls_token), self.cfg.grid**2])
        x = x + resize_positions(patches, old=self.cfg.grid, new=(rows, columns))
        if self.class_embedding is not None:
            first = (self.class_embedding + special).expand(len(x), 1, -1)  # (B, 1, C)
            x = torch.cat([first, x], dim=1)
        return self.pre_layernorm(x)

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """Rows and columns of patches. Raises InputError for what is no batch of pictures."""
        P = self.cfg.patch_size
        if pixels.dim() != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            raise InputError(f"pixels must be floats of shape (B, 3, H, W), got {pixels.dtype} {tuple(pixels.shape)}; "
                             f"load_image_processor(...)(image) makes them")
        device = self.patch_embedding.weight.device
        if pixels.device != device:
            raise InputError(f"pixels are on {pixels.device}, the tower on {device}; move them with "
                             f"pixels.to({str(device)!r})")
        H, W = pixels.shape[2:]
        if min(H, W) < P:
            raise InputError(f"a picture of {H} x {W} pixels is smaller than one patch of {P} x {P}; resize it")
        return H // P, W // P
