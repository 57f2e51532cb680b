"""How probable a model finds continuations: the sum of the logarithms, for many pairs of texts, with little reading.

A question with four answers is four pairs with one context, and questions after the same worked examples share their
beginning, too. Read pair by pair, nearly all work is done again and again. Here each token is read once:

    a beginning that many contexts share    read alone, into a KV cache
    the contexts                            behind it, as batches of similar length; their last scores give the first
                                            token of every continuation, and so all of one that is a single letter
    the continuations                       behind copies of their context's keys and values, as batches

    [(context, continuation), ...] -> [Likelihood, ...], in that order

The head, a third of a small model's work, scores only what is asked for. Multiple choice by such sums: GPT-3,
arXiv:2005.14165, section 2.4. Used in notebook 17.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from llamamm.errors import ContextOverflowError, InputError
from llamamm.generation.generate import pad_left
from llamamm.text.cache import KVCache
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer

Pair = tuple[Sequence[int], Sequence[int]]  # ids of a context, ids of its continuation
Ids = tuple[int, ...]

LEAST_SHARED = 16  # tokens: a shorter beginning is read again sooner than kept
LEAST_SAVED = 64  # tokens: a group of its own makes batches smaller, and each reads all weights once more
HEAD_ROWS = 512  # scored at a time: as fp32 they take 100 MB for 49,152 words


@dataclass(frozen=True)
class Likelihood:
    """total: the sum of the natural logarithms of a continuation's n_tokens probabilities, each given all before it;
    is_greedy: whether each token is the most probable one in its place."""

    total: float
    is_greedy: bool
    n_tokens: int


@torch.inference_mode()
def log_likelihoods(
    model: Llama3Model, requests: Sequence[Pair], *, batch_tokens: int = 8192,
    say: Callable[[int], None] = lambda _n: None,
) -> list[Likelihood]:  # fmt: skip
    """What the model gives to each continuation after its context, in the order of the requests.

    batch_tokens: keys and values kept at a time, in tokens, padding with them. say: told how many requests are done.
    A context is not empty: where nothing comes before, it is the begin-of-text token.
    Raises InputError for an empty context or continuation, ContextOverflowError with both lengths.
    """
    if batch_tokens < 1:
        raise InputError(f"batch_tokens must be at least 1, got {batch_tokens}")
    asked: dict[Ids, dict[Ids, list[int]]] = {}  # context -> continuation -> places in requests
    for n, (context, continuation) in enumerate(requests):
        _check(n, len(context), len(continuation), model.cfg.context_length)
        asked.setdefault(tuple(context), {}).setdefault(tuple(continuation), []).append(n)
    found: dict[int, Likelihood] = {}
    for n_shared, contexts in families(sorted(asked)):
        start = _read_shared(model, contexts[0][:n_shared])
        by_length = sorted(contexts, key=len)
        for some in _batches(by_length, lambda context: (len(context),), lambda width, n: n * width <= batch_tokens):
            pairs = [(row, words) for row, context in enumerate(some) for words in asked[context]]
            for (row, words), likelihood in _scored(model, start, some, pairs, batch_tokens):
                found |= dict.fromkeys(asked[some[row]][words], likelihood)
            say(len(found))
    return [found[n] for n in range(len(requests))]


def _check(n: int, n_context: int, n_new: int, limit: int) -> None:
    if n_context == 0:
        raise InputError(f"request {n} has an empty context: give the begin-of-text token, or whatever stands in front "
                         f"of a text")
    if n_new == 0:
        raise InputError(f"request {n} has an empty continuation: there is nothing to score")
    if n_context + n_new - 1 > limit:  # the last token is scored and not read
        raise ContextOverflowError(f"request {n} has a context of {n_context} tokens and {n_new} to score; all but the "
                                   f"last are read, {n_context + n_new - 1}, and the model's context is {limit}: "
                                   f"shorten its context")


# ---- what is shared ----


def families(contexts: Sequence[Ids]) -> Iterator[tuple[int, Sequence[Ids]]]:
    """Different contexts, in order, in groups: how many first tokens are read once for a group, and the contexts.

    At least one token of each context is left over, for its scores. Groups are cut where that saves more reading; all
    contexts for which it saves too little are the last group, which shares nothing.
    """
    common = [_n_common(a, b) for a, b in zip(contexts, contexts[1:], strict=False)]
    alone: list[Ids] = []
    for begin, end, n_shared in _cut(common, 0, len(contexts), LEAST_SHARED)[1]:
        if (end - begin - 1) * n_shared < LEAST_SAVED:
            alone += contexts[begin:end]
        else:
            yield n_shared, contexts[begin:end]
    if alone:
        yield 0, alone


def _cut(common: list[int], begin: int, end: int, least: int) -> tuple[int, list[tuple[int, int, int]]]:
    """Tokens saved, and (begin, end, tokens shared) of each group. common: tokens that neighbours have in common."""
    saved, groups = 0, []
    borders = [begin, *(n + 1 for n in range(begin, end - 1) if common[n] < least), end]
    for first, last in zip(borders, borders[1:], strict=False):
        if last - first <= 1:
            groups += [(first, last, 0)] if last > first else []
            continue
        shared = min(common[first : last - 1])
        whole = (last - first - 1) * shared
        finer, parts = _cut(common, first, last, 2 * shared)  # twice as long each time: a few levels, not thousands
        saved += max(whole, finer)
        groups += parts if finer > whole else [(first, last, shared)]
    return saved, groups


def _n_common(one: Ids, other: Ids) -> int:
    """How many first tokens two contexts have in common, the last of the shorter not counted."""
    length = min(len(one), len(other)) - 1
    return next((n for n in range(length) if one[n] != other[n]), length)


# ---- reading and scoring ----


def _read_shared(model: Llama3Model, ids: Ids) -> KVCache:
    cache = model.make_cache(1, max(len(ids), 1))
    if ids:
        model.hidden_states(torch.tensor([ids], device=model.embed_tokens.weight.device), cache=cache)
    return cache


def _scored(
    model: Llama3Model, start: KVCache, contexts: Sequence[Ids], pairs: Sequence[tuple[int, Ids]], batch_tokens: int
) -> Iterator[tuple[tuple[int, Ids], Likelihood]]:
    """The likelihood of each pair (row of a context, continuation), in any order. start: what the contexts share."""
    n_shared, rests = start.length, [context[start.length :] for context in contexts]
    cache = _copied(model, start, rows=[0] * len(rests), n_first=n_shared, n_last=0, room=max(map(len, rests)))
    x, real = _read(model, cache, rests, before=torch.ones(len(rests), n_shared, dtype=torch.bool))
    first = _score(model, x[:, -1], [(row, words[0]) for row, words in pairs])
    heads = dict(zip(pairs, first, strict=True))
    yield from ((pair, Likelihood(*heads[pair], 1)) for pair in pairs if len(pair[1]) == 1)

    def fits(width: int, n: int) -> bool:
        return n * width <= batch_tokens and width <= model.cfg.context_length

    # By the length of what is still to be read: padding among what is cached already costs next to nothing.
    longer = sorted((pair for pair in pairs if len(pair[1]) > 1), key=lambda pair: (len(pair[1]), len(rests[pair[0]])))
    for some in _batches(longer, lambda pair: (n_shared, len(rests[pair[0]]), len(pair[1]) - 1), fits):
        rows, read = [row for row, _ in some], [words[:-1] for _, words in some]
        n_last = max(len(rests[row]) for row in rows)
        copy = _copied(model, cache, rows=rows, n_first=n_shared, n_last=n_last, room=max(map(len, read)))
        before = torch.cat((real[rows, :n_shared], real[rows, real.shape[1] - n_last :]), dim=1)
        x, now = _read(model, copy, read, before=before)
        later = iter(_score(model, x[now[:, -x.shape[1] :].to(x.device)],
                            list(enumerate(word for _, words in some for word in words[1:]))))
        for pair in some:
            scores = [heads[pair], *islice(later, len(pair[1]) - 1)]
            yield pair, Likelihood(sum(s for s, _ in scores), all(best for _, best in scores), len(scores))


def _read(model: Llama3Model, cache: KVCache, texts: Sequence[Ids], *, before: Tensor) -> tuple[Tensor, Tensor]:
    """Read a batch behind what the cache holds. before: (B, S) bool, what of that is real.

    -> what the head reads, (B, T, C), texts padded on the left; and what of all is real, (B, S + T) bool.
    """
    ids, padding = pad_left(texts)
    real, device = torch.cat((before, padding), dim=1), model.embed_tokens.weight.device
    given = None if real.all() else real.to(device)
    return model.hidden_states(ids.to(device), cache=cache, padding=given), real


def _copied(model: Llama3Model, cache: KVCache, *, rows: list[int], n_first: int, n_last: int, room: int) -> KVCache:
    """A cache with these rows of another, its first and last tokens, and room for more. Keys hold their positions."""
    new, end = model.make_cache(len(rows), n_first + n_last + room), cache.length
    for mine, other in ((new.keys, cache.keys), (new.values, cache.values)):  # (layers, B, K, S, D)
        mine[:, :, :, :n_first] = other[:, rows, :, :n_first]
        mine[:, :, :, n_first : n_first + n_last] = other[:, rows, :, end - n_last : end]
    new.advance(n_first + n_last)
    return new


def _score(model: Llama3Model, x: Tensor, asked: Sequence[tuple[int, int]]) -> list[tuple[float, bool]]:
    """Of each (row of x, word), rows ascending: ln p of the word there, and whether it is the most probable one."""
    found = []
    rows, words = torch.tensor(asked, device=x.device).T
    for begin in range(0, len(x), HEAD_ROWS):
        scores = model.lm_head(x[begin : begin + HEAD_ROWS]).float()  # (n, V)
        here = (begin <= rows) & (rows < begin + HEAD_ROWS)
        at, word = rows[here] - begin, words[here]
        totals = scores[at, word] - scores.logsumexp(dim=1)[at]
        found += zip(totals.tolist(), (scores.argmax(dim=1)[at] == word).tolist(), strict=True)
    return found


def _batches(
    items: Iterable[Any], lengths: Callable[[Any], tuple[int, ...]], fits: Callable[[int, int], bool]
) -> Iterator[list[Any]]:
    """Neighbours together, as many as fit, or one alone. lengths: the parts of an item's row, each of which is padded
    to the longest of its batch; fits: told the width of such a row, and how many rows."""
    batch: list[Any] = []
    longest: tuple[int, ...] = ()
    for item in items:
        parts = lengths(item)
        both = tuple(map(max, longest, parts)) if batch else parts
        if batch and not fits(sum(both), len(batch) + 1):
            yield batch
            batch, both = [], parts
        batch.append(item)
        longest = both
    if batch:
        yield batch


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """A context and what follows it as ids, as the tokenizer splits them together; a space between the two belongs to
    the continuation. An empty context is the begin-of-text token, or the one that ends texts."""
    kept = len(context) - len(context.rstrip())
    context, continuation = context[: len(context) - kept], context[len(context) - kept :] + continuation
    if not context:
        start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        return [start], tokenizer.encode(continuation, bos=False)
    before = tokenizer.encode(context, bos=tokenizer.adds_bos)
    return before, tokenizer.encode(context + continuation, bos=tokenizer.adds_bos)[len(before) :]
