"""What all prompts of a batch begin with, such as the chat format's system message, read once and not in every row.

    prompts, n lists of ids -> begun -> a KV cache of n rows, in which their common beginning has been read

Keys and values of a token depend on the tokens before it alone, so each row gets a copy. Sources: RadixAttention,
arXiv:2312.07104; Hydragen, arXiv:2402.05099. Used in notebooks 14 to 18.
"""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix

import torch

from llamamm.text.cache import KVCache
from llamamm.text.model import Llama3Model


@torch.no_grad()
def begun(model: Llama3Model, prompts: Sequence[Sequence[int]], *, room: int = 0) -> KVCache | None:
    """A cache for the prompts as `pad_left` makes a batch of them, and for `room` tokens after each; the first columns,
    as many as the common beginning has tokens, have been read. A padded row has fewer of its tokens in them: all rows
    go on from the same column.

    None where nothing is saved, where a prompt passes the context, or where the model's cache holds more than keys and
    values. Ids behind the vocabulary, which stand for pictures and sounds, end the beginning.
    """
    longest, beginning = max(map(len, prompts)), commonprefix([list(ids) for ids in prompts])
    n = next((n for n, token in enumerate(beginning) if token >= model.cfg.vocab_size), len(beginning))
    n = min(n, longest - 1)  # one is left to read: its scores are needed
    if len(prompts) == 1 or n < 1 or longest > model.cfg.context_length:
        return None
    cache = model.make_cache(len(prompts), min(longest + room, model.cfg.context_length))
    if type(cache) is not KVCache:
        return None
    once = model.make_cache(1, n)
    model(torch.tensor([beginning[:n]], device=model.embed_tokens.weight.device), cache=once, last_only=True)
    for kept, read in ((cache.keys, once.keys), (cache.values, once.values)):  # (layers, n or 1, K, S, D)
        kept[..., :n, :] = 0  # padding is masked, which hides numbers, and not NaN
        for row, ids in enumerate(prompts):
            n_padded = min(longest - len(ids), n)
            kept[:, row, :, n_padded:n] = read[:, 0, :, : n - n_padded]
    cache.advance(n)
    return cache
