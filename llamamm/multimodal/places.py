"""Where media stand among the ids of a prompt: their places counted, their spans, their features in one batch.

Built in notebooks 14 and 15.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from llamamm.errors import InputError


def require_matching(ids: Tensor, token: int, lengths: Sequence[int], kind: str) -> Tensor:
    """Where in ids (B, T) the places of one kind are, bool. lengths: how many places each image or sound takes.

    Raises InputError, with both counts, where there are other places, or an image's would lie in two prompts.
    """
    places = ids == token
    counts, n_features = places.sum(dim=1).tolist(), sum(lengths)
    if sum(counts) != n_features:
        raise InputError(f"the prompts hold {sum(counts)} place{'s'[sum(counts) == 1:]} for {kind} features, but "
                         f"{n_features} {'was' if n_features == 1 else 'were'} given: was a prompt cut, or one "
                         f"{kind} left out?")
    ends = {0, *accumulate(lengths)}
    for b, end in enumerate(accumulate(counts)):
        if end not in ends:
            raise InputError(f"prompt {b} holds {counts[b]} place{'s'[counts[b] == 1:]} for {kind} features, which are "
                             f"not whole ones; each {kind} takes {' or '.join(map(str, sorted(set(lengths))))}: "
                             f"was the prompt cut?")
    return places


def pad_right(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Features (N_i, ...) of different lengths as one batch, zeros behind. -> (B, N, ...), (B, N) bool: the real ones.
    """
    batch = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=batch.device)
    return batch, torch.arange(batch.shape[1], device=batch.device) < lengths[:, None]


def image_spans(ids: Sequence[int], image_token: int) -> list[tuple[int, int]]:
    """For each image token of a prompt, from where to where words look at its image: [begin, end).

    An image is seen from its own token up to the next image's; images in a row, without a word between, are seen
    together, as long as the last of them.
    """
    begins = [i for i, token in enumerate(ids) if token == image_token]
    spans: list[tuple[int, int]] = []
    for begin, following in zip(begins[::-1], [len(ids), *begins[:0:-1]], strict=False):
        neighbour = spans and following == begin + 1
        spans.append((begin, spans[-1][1] if neighbour else following))
    return spans[::-1]
