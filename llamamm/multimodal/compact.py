"""Tokens read as words, and those that say nothing moved out of the way.

    tokens of a sound     _ well _ _ it was was _ nice _         ("_": nearest to the mean of all embeddings)
    compacted             well it was nice _ _ _ _ _ _

A bridge that was aligned by CTC puts each word somewhere along the sound, with nothing before and after it. A model
copies what stands side by side, so words move up, in their order; what repeats the token before counts once, as CTC
reads it. Gradients reach the tokens that stay.

Source: CTC-based compression, Gaido et al., EACL 2021, arXiv:2102.01578, which averages and drops where this moves.
Built in notebook 16.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHARPNESS = 4.0  # of the scores; embeddings of SmolLM2 are about 3 long


def word_scores(tokens: Tensor, embeddings: Tensor, mean: Tensor) -> Tensor:
    """How near each token is to "nothing here", in column 0, and to each word. (..., C), (V, C), (C,) -> (..., 1 + V).

    -|h - e|² / 2, times SHARPNESS. A token's own length is the same for all words and left out: h · e - |e|² / 2.
    """
    places = torch.cat([mean[None], embeddings])
    return SHARPNESS * (tokens @ places.T - places.square().sum(dim=1) / 2)


@torch.no_grad()
def says_something(tokens: Tensor, mask: Tensor, embeddings: Tensor) -> Tensor:
    """Which tokens (B, M, C) are nearest to a word, and not to that of the token before. mask (B, M) -> (B, M) bool."""
    embeddings = embeddings.float()
    best = word_scores(tokens.float(), embeddings, embeddings.mean(dim=0)).argmax(dim=-1)  # (B, M)
    best = torch.where(mask, best, 0)
    before = torch.cat([torch.zeros_like(best[:, :1]), best[:, :-1]], dim=1)
    return (best > 0) & (best != before)


def compacted(tokens: Tensor, mask: Tensor, embeddings: Tensor) -> Tensor:
    """Tokens (B, M, C), those that say something first, then "nothing here". mask (B, M); embeddings (V, C)."""
    spoken = says_something(tokens, mask, embeddings)
    order = (~spoken).long().argsort(dim=1, stable=True)  # (B, M)
    moved = tokens.gather(1, order[..., None].expand_as(tokens))
    n_spoken = spoken.sum(dim=1, keepdim=True)
    first = torch.arange(tokens.shape[1], device=tokens.device) < n_spoken
    return torch.where(first[..., None], moved, embeddings.detach().float().mean(dim=0).to(tokens.dtype))
