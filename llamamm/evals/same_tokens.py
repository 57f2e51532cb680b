"""Whether compiled decoding writes what PyTorch writes: greedy answers, compared token by token.

The compiled steps write each answer alone. PyTorch then reads prompt and answer in one call, by the model as it is
without them, and has to find at each place that the token written there is its own best. So all places before being
equal, the whole answers are. Used in notebook 19.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from llamamm.assets.corpora import load_records, text_of
from llamamm.assets.fetch import fetch
from llamamm.errors import InputError, counted
from llamamm.evals.score_card import Say
from llamamm.evals.speculation_speed import TEXTS
from llamamm.fast.decoder import FastDecoder
from llamamm.generation.prompts import as_processor
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer

TIE = 1e-4  # two logits nearer than this are equally right: sums in another order differ by about so much
WIKI_TOKENS = 48  # of an article, to be continued


class Difference(NamedTuple):
    """A place where PyTorch's best token is another: by how much its logit is higher."""

    prompt: int
    place: int
    gap: float


class Comparison(NamedTuple):
    """Of n_tokens in all; where the best differ, ties left out; and the largest difference of two logits."""

    n_prompts: int
    n_tokens: int
    n_ties: int
    differences: tuple[Difference, ...]
    largest: float

    def written(self) -> str:
        same = self.n_tokens - self.n_ties - len(self.differences)
        text = (f"{counted(self.n_prompts, 'answer')}, {counted(self.n_tokens, 'token')}: {same:,} are PyTorch's best, "
                f"{self.n_ties} tie with it within {TIE:g}, {len(self.differences)} are others; the largest "
                f"difference of two logits is {self.largest:.1e}")  # fmt: skip
        worst = sorted(self.differences, key=lambda d: -d.gap)[:3]
        return "".join([text, *(f"\n  answer {d.prompt}, token {d.place}: PyTorch's best is {d.gap:.2g} higher"
                                for d in worst)])  # fmt: skip


def prompts_for(tokenizer: Tokenizer, n: int = 20) -> list[list[int]]:
    """n prompts as ids: what `bench speculate` asks, in the chat's format, then beginnings of encyclopedia articles."""
    if n < 1:
        raise InputError(f"the comparison needs 1 prompt or more, got {n}")
    processor = as_processor(tokenizer)
    asked = [processor.chat([{"role": "user", "content": text}]).ids for texts in TEXTS.values() for text in texts]
    begun = [tokenizer.encode(text_of(record), bos=tokenizer.adds_bos)[:WIKI_TOKENS]
             for record in load_records(fetch("wiki"), "test")[: max(n - len(asked), 0)]]  # fmt: skip
    return [*asked, *begun][:n]


@torch.inference_mode()
def compare_tokens(
    model: Llama3Model, prompts: Sequence[Sequence[int]], *, new_tokens: int = 128,
    say: Say = lambda _title, _n, _all: None,
) -> Comparison:  # fmt: skip
    """A Comparison of compiled steps with PyTorch on the same weights, each answer new_tokens long, whatever it says.

    model: one that decodes by compiled steps. Raises InputError for another, and where nothing is to be compared.
    """
    if not isinstance(model.fast, FastDecoder):
        raise InputError("this model does not decode by compiled steps, so there is nothing to compare: give fast=True")
    if new_tokens < 1 or not prompts:
        raise InputError("the comparison needs a prompt and a new token, or more of them")
    n_ties, largest, differences = 0, 0.0, []
    for p, ids in enumerate(prompts):
        say("answers", p, len(prompts))
        tokens, logits = _written(model, ids, new_tokens)
        decoder, model.fast = model.fast, None
        try:
            read = model(torch.tensor([[*ids, *tokens[:-1]]]))[0, len(ids) - 1 :].float()  # (new_tokens, V)
        finally:
            model.fast = decoder
        largest = max(largest, float((read - logits).abs().max()))
        gaps = read.amax(dim=-1) - read[torch.arange(new_tokens), torch.tensor(tokens)]
        n_ties += int(((gaps > 0) & (gaps <= TIE)).sum())
        differences += [Difference(p, int(i), float(gaps[i])) for i in (gaps > TIE).nonzero()[:, 0]]
    say("answers", len(prompts), len(prompts))
    return Comparison(len(prompts), len(prompts) * new_tokens, n_ties, tuple(differences), largest)


def _written(model: Llama3Model, ids: Sequence[int], n: int) -> tuple[list[int], torch.Tensor]:
    """n greedy tokens, and the logits that each was the best of, (n, V)."""
    cache, rows = model.make_cache(1, len(ids) + n), []
    step, tokens = torch.tensor([ids]), []
    for _ in range(n):
        rows.append(model(step, cache=cache, last_only=True)[0, -1].float())
        tokens.append(int(rows[-1].argmax()))
        step = torch.tensor([tokens[-1:]])
    return tokens, torch.stack(rows)
