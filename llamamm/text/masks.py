"""Who may look at whom: one builder for every boolean mask of the model.

True means "may attend". A row is a query, a column a key. With keys cached, the first query is not token 0 but token
`start`: a mask that forgets this lets every token see the future, or nothing.

    causal_mask: -> (T, S)
    build_mask:  -> (B or 1, 1, T, S), ready to broadcast over heads, or None
    packed_mask: segments (B, T) -> (B, 1, T, T), for training rows that hold several texts

Built in notebooks 03 and 10.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamamm.errors import InputError


def causal_mask(n_queries: int, start: int = 0, *, device: torch.device | str | None = None) -> Tensor:
    """Query i stands at position start + i and sees every position up to its own. -> (T, S) with S = start + T."""
    queries = torch.arange(start, start + n_queries, device=device)
    keys = torch.arange(start + n_queries, device=device)
    return keys[None, :] <= queries[:, None]  # (T, S)


def build_mask(
    n_queries: int,
    *,
    start: int = 0,
    padding: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor | None:
    """The mask for `n_queries` new tokens after `start` cached ones. -> (B or 1, 1, T, S), or None.

    padding: (B, S) bool, True for real tokens and False for padding, over cached and new tokens together.
    None means that the kernel's own rule is enough: a single query sees everything, an empty cache is plainly causal.
    Raises InputError where padding does not fit.
    """
    if padding is None:
        if n_queries == 1 or start == 0:
            return None
        return causal_mask(n_queries, start=start, device=device)[None, None]
    n_keys = start + n_queries
    if padding.dtype != torch.bool or padding.dim() != 2 or padding.shape[1] != n_keys:
        raise InputError(
            f"padding must be bool of shape (B, {n_keys}) for {start} cached and {n_queries} new tokens, "
            f"got {padding.dtype} {tuple(padding.shape)}"
        )
    mask = causal_mask(n_queries, start=start, device=padding.device) & padding[:, None, :]  # (B, T, S)
    # A padding query would see nothing, and a softmax over nothing is NaN: let it see itself. Nobody reads its output.
    itself = torch.arange(start, n_keys, device=padding.device)
    mask[:, torch.arange(n_queries, device=padding.device), itself] = True
    return mask[:, None]  # (B, 1, T, S)


def packed_mask(segments: Tensor) -> Tensor:
    """Several texts in one row: a token sees its own text up to itself, nothing of its neighbours. -> (B, 1, T, T).

    segments: (B, T) whole numbers, the same for the tokens of one text, another for the next text in that row.
    """
    same = segments[:, :, None] == segments[:, None, :]  # (B, T, T)
    return (same & causal_mask(segments.shape[1], device=segments.device))[:, None]


def packed_positions(segments: Tensor) -> Tensor:
    """The place of each token in its own text, from 0. segments as in `packed_mask`. (B, T) -> (B, T)."""
    places = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return places - (places * begins).cummax(dim=1).values
