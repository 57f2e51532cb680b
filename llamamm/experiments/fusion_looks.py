"""Where the ways of `fusion_ways` that hold attention look: shares of a picture's features. Used in notebook 13."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.errors import InputError
from llamamm.experiments.fusion_ways import Way
from llamamm.multimodal.cross_attention import CrossAttention
from llamamm.tasks.items import Task
from llamamm.train.losses import IGNORE


@torch.no_grad()
def attention_shares(attention: CrossAttention, run: Callable[[], Any]) -> Tensor:
    """The shares of attention, which the fused kernel never writes down, in the last call of `attention` while run()
    runs. -> (B, H, T, S), each row sums to 1."""
    caught: list[tuple] = []
    handle = attention.register_forward_pre_hook(lambda _, arguments: caught.append(arguments))
    try:
        run()
    finally:
        handle.remove()
    x, (k, _), mask = caught[-1]
    q = attention.q_proj(x).view(*x.shape[:2], attention.n_heads, attention.head_dim).transpose(1, 2)
    k = k.repeat_interleave(attention.n_heads // attention.n_kv_heads, dim=1)  # (B, H, S, D)
    scores = attention.q_norm(q) @ k.mT / attention.head_dim**0.5  # (B, H, T, S)
    return (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(dim=-1)


def patch_shares(way: Way, task: Task, items: Sequence[int]) -> Tensor:
    """Where a way looks in the pictures of some items, heads averaged, of what goes to features at all. -> (n, N).

    Cross-attention: the token from which the answer's first is written. A Perceiver: the mean of its latents.
    Raises InputError for a projection, which has no attention.
    """
    model = way.model
    inputs = way.encoder.batch(task, items, "shown").inputs(model.embed_tokens.weight.device)
    targets, features = inputs.pop("targets"), inputs["features"]
    if model.gated:
        block = next(iter(model.gated.values()))
        n_prompts = 0 if block.prompts is None else len(block.prompts)
        last = (targets != IGNORE).int().argmax(dim=1)  # (n,)
        shares = attention_shares(block.cross_attn, lambda: model(**inputs))
        shares = shares[torch.arange(len(items)), :, last, n_prompts:]  # (n, H, N)
    elif model.image_bridge.resampler is not None:
        attention = model.image_bridge.resampler.layers[-1].self_attn
        shares = attention_shares(attention, lambda: model.bridged(features))
        shares = shares[..., : -shares.shape[2]].mean(dim=2)  # what latents give each other stands last
    else:
        raise InputError(f"{way.name} has no attention to look at")
    shares = shares.mean(dim=1)
    return shares / shares.sum(dim=1, keepdim=True)


def shape_patches(pixels: Tensor, side: int = 6) -> Tensor:
    """Which of side x side patches a drawn shape covers to at least a tenth. uint8 (n, 3, H, W) -> (n, side²) bool.

    Whatever differs from the picture's most common brightness is shape.
    """
    seen = pixels.float() / 255
    ground = seen.flatten(2).median(dim=2).values[..., None, None]  # (n, 3, 1, 1)
    shape = ((seen - ground).abs().amax(dim=1, keepdim=True) > 0.15).float()
    return F.adaptive_avg_pool2d(shape, side).flatten(1) > 0.1
