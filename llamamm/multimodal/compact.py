"""Tokens read as words, and those that say nothing moved out of the way.

    tokens of a sound     _ well _ _ it was was _ nice _         ("_": nearest to the mean of all embeddings)
    compacted             well it was nice _ _ _ _ _ _

A bridge that was aligned by CTC puts each word somewhere along the sound, with nothing before and after it. A model
copies what stands side by side, so words move up, in their order; what repeats the token before counts once, as CTC
reads it. And it reads words, so each token becomes the mean of the embeddings of the words that it may be, weighted by
their probabilities: a sure one is that word's embedding, one between "two" and "too" stands between them.

Sources: CTC-based compression, Gaido et al., EACL 2021, arXiv:2102.01578, which averages and drops where this moves;
LegoSLM, Ma et al., arXiv:2505.11352 (embeddings weighted by CTC's probabilities). Built in notebook 16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHARPNESS = 4.0  # of the scores; embeddings of SmolLM2 are about 3 long


def word_scores(tokens: Tensor, embeddings: Tensor, mean: Tensor) -> Tensor:
    """How near each token is to "nothing here", in column 0, and to each word. (..., C), (V, C), (C,) -> (..., 1 + V).

    -|h - e|² / 2, times SHARPNESS. A token's own length is the same for all words and left out: h · e - |e|² / 2.
    """
    places = torch.cat([mean[None], embeddings])
    return SHARPNESS * (tokens @ places.T - places.square().sum(dim=1) / 2)


@torch.no_grad()
def says_something(scores: Tensor, mask: Tensor) -> Tensor:
    """Which tokens are nearest to a word, and not to that of the token before: scores (B, M, 1 + V) as above, mask
    (B, M) of the real ones -> (B, M) bool."""
    best = torch.where(mask, scores.argmax(dim=-1), 0)  # (B, M)
    before = torch.cat([torch.zeros_like(best[:, :1]), best[:, :-1]], dim=1)
    return (best > 0) & (best != before)


def compacted(tokens: Tensor, mask: Tensor, embeddings: Tensor, known: Tensor | None = None) -> Tensor:
    """Tokens (B, M, C) as words: those that say something first, then "nothing here". Gradients reach the first.

    mask (B, M): real tokens; embeddings (V, C) of the vocabulary; known (V,) bool: its words that tokens may say, by
    default all.
    """
    table = embeddings.detach().float()
    nothing, words = table.mean(dim=0), table if known is None else table[known]
    with torch.autocast(tokens.device.type, enabled=False):
        scores = word_scores(tokens.float(), words, nothing)
        spoken = says_something(scores, mask)
        order = (~spoken).long().argsort(dim=1, stable=True)  # (B, M)
        longest = int(spoken.sum(dim=1).max()) if len(spoken) else 0
        first = order[:, :longest]
        read = scores.gather(1, first[..., None].expand(-1, -1, scores.shape[2])).softmax(dim=-1)
        read = read @ torch.cat([nothing[None], words])  # (B, longest, C)
    out = nothing.expand_as(tokens).to(tokens.dtype)
    there = torch.arange(tokens.shape[1], device=tokens.device) < spoken.sum(dim=1, keepdim=True)
    return torch.where(there[..., None], F.pad(read, (0, 0, 0, tokens.shape[1] - longest)).to(tokens.dtype), out)
