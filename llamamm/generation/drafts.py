"""Draft models: a smaller Llama that guesses for a larger one, which may be the larger one's own first blocks.

    ids -> small model, a token at a time -> guessed tokens (n) and what they were drawn from (n, V)

An early exit is the model itself, left after its first blocks: its embedding, blocks and head are shared, and what the
last of those blocks gives goes through a trained map that stands in for the blocks that are left out.

Sources: arXiv:2211.17192 (a draft model); LayerSkip, arXiv:2404.16710 (the first blocks as one); the tuned lens,
arXiv:2303.08112 (a map from an early block to the last).
"""

from __future__ import annotations

import copy
from itertools import takewhile

import torch
from torch import Tensor, nn

from llamamm.errors import InputError
from llamamm.generation.sampling import SamplingConfig
from llamamm.generation.speculation import Guess, probabilities
from llamamm.text.layers import RMSNorm
from llamamm.text.model import Llama3Model, TransformerBlock


class ModelDraft:
    """A model as a draft, with a cache of its own. It has the tokens of the model that it guesses for.

    n: tokens of a guess, at most; each costs a step of this model, right or not. Guesses are drawn with the settings
    of the answer, but for the repetition penalty.
    """

    def __init__(self, model: Llama3Model, *, n: int = 4) -> None:
        if n < 1:
            raise InputError(f"a draft guesses 1 token or more, got n={n}")
        if not isinstance(model, Llama3Model):
            raise InputError(f"a draft is made of a loaded model, from_pretrained(...)[0], not of a "
                             f"{type(model).__name__}")  # fmt: skip
        self.model, self.n = model, n
        self.vocab_size = model.cfg.vocab_size
        self.cache = model.make_cache(1)
        self._cached_ids: list[int] = []

    @torch.inference_mode()
    def propose(
        self, ids: list[int], n: int, sampling: SamplingConfig, generator: torch.Generator | None = None
    ) -> Guess:
        """As `Draft`: greedy at temperature 0, else drawn, with the distributions."""
        n = min(n, self.n, self.cache.max_length - len(ids))
        if n < 1 or max(ids) >= self.model.embed_tokens.num_embeddings:  # images and sounds are not for it
            return Guess([])
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._cached_ids, ids[:-1], strict=False)))
        self.cache.rewind(min(same, self.cache.length))
        new, tokens, probs = ids[self.cache.length :], [], []
        for _ in range(n):
            new = torch.tensor([new], device=self.cache.keys.device)
            logits = self.model(new, cache=self.cache, last_only=True)[:, -1]  # (1, V)
            if sampling.temperature == 0:
                tokens.append(int(logits.argmax()))
            else:
                probs.append(probabilities(logits, [], sampling, None))
                tokens.append(int(torch.multinomial(probs[-1], 1, generator=generator)))
            new = tokens[-1:]
        self._cached_ids = [*ids, *tokens[:-1]]
        return Guess(tokens, torch.cat(probs) if probs else None)


class Exit(nn.Module):
    """x + W x, then a norm: what stands between an early block and the head. Keeps (..., C)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.map = nn.Linear(size, size, bias=False)
        self.norm = RMSNorm(size, eps)
        nn.init.zeros_(self.map.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.map(x))


def early_exit(model: Llama3Model, n_blocks: int) -> Llama3Model:
    """A model of the first `n_blocks` blocks of another, which it shares, and an `Exit`, new, as its norm.

    Raises InputError for a number of blocks that the model has not, and for blocks that look at images.
    """
    if not 1 <= n_blocks < len(model.layers):
        raise InputError(f"an early exit comes after 1 to {len(model.layers) - 1} blocks, got {n_blocks}")
    blocks = list(model.layers[:n_blocks])
    if any(type(block) is not TransformerBlock for block in blocks):
        raise InputError(f"the first {n_blocks} blocks are not all of text: an early exit is for a text model")
    with torch.device("meta"):  # nothing of the model's own may be initialised again
        short = Llama3Model(model.cfg.replace(n_layers=n_blocks))
    short.layers, short.fast = nn.ModuleList(blocks), copy.deepcopy(model.fast)
    short.embed_tokens, short.lm_head, short.cos, short.sin = model.embed_tokens, model.lm_head, model.cos, model.sin
    weight = model.norm.weight
    short.norm = Exit(model.cfg.hidden_size, model.cfg.norm_eps).to(weight.device, weight.dtype)
    with torch.no_grad():
        short.norm.norm.weight.copy_(weight)
    return short.eval()
