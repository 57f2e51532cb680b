"""Exercises of lesson 03: attention weights, masks, grouped-query attention."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.core import Exercise, Mistake
from llamamm.text.attention import readable_attention
from llamamm.text.config import TextConfig
from llamamm.text.masks import build_mask, causal_mask
from llamamm.text.model import Llama3Model

# ---- 03.1: the weights of one query ----


def _weights_cases(rng: torch.Generator) -> list[tuple]:
    sizes = [(2, 2), (4, 3), (64, 7), (3, 16), (8, 1)]  # D, S
    by_hand = torch.tensor([2.0, 0.0]), torch.eye(2)
    return [by_hand, *((torch.randn(D, generator=rng), torch.randn(S, D, generator=rng)) for D, S in sizes)]


def _weights(q: Tensor, keys: Tensor) -> Tensor:
    return torch.softmax(keys @ q / math.sqrt(len(q)), dim=-1)


# ---- 03.2: a causal mask behind a cache ----


def _mask_cases(_: torch.Generator) -> list[tuple]:
    return [(1, 0), (3, 0), (2, 3), (1, 4), (4, 1), (3, 3)]


def _strict(n_queries: int, start: int) -> Tensor:
    return torch.arange(start + n_queries)[None, :] < torch.arange(start, start + n_queries)[:, None]


# ---- 03.3: grouped-query attention ----


def _attention_cases(rng: torch.Generator) -> list[tuple]:
    cases = []
    for B, H, K, T, S, D in ((1, 2, 2, 4, 4, 8), (2, 4, 2, 5, 5, 6), (1, 9, 3, 2, 6, 4), (2, 4, 1, 1, 3, 8)):
        q = torch.randn(B, H, T, D, generator=rng)
        k, v = torch.randn(2, B, K, S, D, generator=rng)
        mask = causal_mask(T, start=S - T)
        if B == 2 and T > 1:
            padding = torch.ones(B, S, dtype=torch.bool)
            padding[0, :2] = False
            mask = build_mask(T, start=S - T, padding=padding)
        cases.append((q, k, v, mask))
    return cases


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, fault: str = "") -> Tensor:
    group = q.shape[1] // k.shape[1]
    if fault == "in turns":
        k, v = k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1)
    else:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scale = {"no scale": 1.0, "scale D": q.shape[-1]}.get(fault, math.sqrt(q.shape[-1]))
    scores = q @ k.transpose(2, 3) / scale
    if fault == "late mask":
        return (scores.softmax(dim=-1) * mask) @ v
    if fault == "zero scores":
        return scores.masked_fill(~mask, 0.0).softmax(dim=-1) @ v
    if fault == "inverted":
        mask = ~mask
    if fault != "no mask":
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-2 if fault == "queries" else -1) @ v


def _attention_mistake(fault: str, message: str) -> Mistake:
    return Mistake(lambda q, k, v, mask: _attention(q, k, v, mask, fault=fault), message)


# ---- 03.4: a mask with padding ----


def _padding_cases(_: torch.Generator) -> list[tuple]:
    plain = torch.tensor([[False, True, True], [True, True, True]])
    three = torch.tensor([[False] * 3 + [True] * 2, [False, True, True, True, True], [True] * 5])
    return [(plain, 0), (three, 0), (three, 2), (three, 4), (torch.tensor([[True]]), 0), (torch.ones(2, 4).bool(), 1)]


def _padded(padding: Tensor, start: int) -> Tensor:
    return build_mask(padding.shape[1] - start, start=start, padding=padding)


def _empty_rows(padding: Tensor, start: int) -> Tensor:
    return (causal_mask(padding.shape[1] - start, start=start) & padding[:, None])[:, None]


def _see_all(padding: Tensor, start: int) -> Tensor:
    mask = _empty_rows(padding, start)
    return mask | ~mask.any(dim=-1, keepdim=True)


def _hidden_rows(padding: Tensor, start: int) -> Tensor:
    n_queries = padding.shape[1] - start
    return (causal_mask(n_queries, start=start) & padding[:, start:, None])[:, None]


def _not_causal(padding: Tensor, start: int) -> Tensor:
    itself = torch.eye(padding.shape[1], dtype=torch.bool)[start:]
    return (padding[:, None] | itself)[:, None]


def _no_offset(padding: Tensor, start: int) -> Tensor:
    B, S = padding.shape
    triangle = torch.ones(S - start, S).tril().bool()
    return (triangle & padding[:, None] | torch.eye(S, dtype=torch.bool)[: S - start])[:, None]


def _no_offset_cured(padding: Tensor, start: int) -> Tensor:
    S = padding.shape[1]
    triangle = torch.ones(S - start, S).tril().bool()
    return (triangle & padding[:, None] | torch.eye(S, dtype=torch.bool)[start:])[:, None]


# ---- 03.5: inputs that give a model without a mask away ----


@cache
def _two_models(vocab_size: int) -> tuple[Llama3Model, Llama3Model]:
    """The same random weights, with the mask and without."""
    cfg = TextConfig.tiny(vocab_size=vocab_size, hidden_size=32, intermediate_size=32, head_dim=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        healthy = Llama3Model(cfg).eval()
    for parameter in healthy.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(20)  # fresh weights hardly attend at all
    dropped = Llama3Model(cfg, attend=lambda q, k, v, _mask: _attention(q, k, v, None, fault="no mask")).eval()
    dropped.load_state_dict(healthy.state_dict())
    return healthy, dropped


def _try_inputs(answer: Any, case: tuple) -> dict[str, bool] | str:
    """What the two models do with a learner's inputs; a sentence where they cannot be run."""
    (vocab_size,) = case
    result = answer(vocab_size)
    if not isinstance(result, tuple | list) or len(result) != 3:
        return "return three things: ids a, ids b and a position t"
    a, b, t = result
    for name, ids in (("a", a), ("b", b)):
        if not isinstance(ids, Tensor) or ids.dim() != 2 or len(ids) != 1 or ids.dtype != torch.int64:
            what = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            return f"{name} should be a tensor of whole numbers of shape (1, T), got {what}"
        if not ids.numel() or int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
            return f"{name} should hold at least one id, all from 0 to {vocab_size - 1}, got {ids.tolist()}"
    if isinstance(t, bool) or not isinstance(t, int) or not 0 <= t < min(a.shape[1], b.shape[1]):
        return f"t should be a position in both texts, 0 to {min(a.shape[1], b.shape[1]) - 1}, got {t!r}"
    with torch.no_grad():
        differs = [float((m(a)[0, t] - m(b)[0, t]).abs().max()) > 1e-4 for m in _two_models(vocab_size)]
    return {
        "same text": torch.equal(a, b),
        "differ before t": not torch.equal(a[:, :t], b[:, :t]),
        "differ at t": not torch.equal(a[:, t], b[:, t]),
        "healthy differs": differs[0],
        "dropped differs": differs[1],
    }


def _judge_inputs(result: dict[str, bool] | str, case: tuple) -> str | None:
    if isinstance(result, str):
        return result
    if result["same text"]:
        return f"for {case[0]} tokens a and b are the same text: no model can tell them apart"
    if result["healthy differs"]:
        return ("a healthy model gives other logits at t too, since a and b differ at t or before it: "
                "change only tokens after t")  # fmt: skip
    if not result["dropped differs"]:
        return "both models give the same logits at t: a token after t has to differ"
    return None


def _inputs(a: list[int], b: list[int], t: int) -> Any:
    return lambda _vocab_size: (torch.tensor([a]), torch.tensor([b]), t)


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        id="03.1", name="attention_weights", minutes=5, level="warm-up",
        reference=_weights, cases=_weights_cases,
        mistakes=(
            Mistake(lambda q, keys: keys @ q / math.sqrt(len(q)),
                    "these are the scores: softmax is missing, so they are not positive and do not sum to 1"),
            Mistake(lambda q, keys: keys @ q, "these are the dot products: divide by √D, then softmax"),
            Mistake(lambda q, keys: torch.softmax(keys @ q, dim=-1), "you forgot to divide the scores by √D"),
            Mistake(lambda q, keys: torch.softmax(keys @ q / len(q), dim=-1),
                    "you divided by D: the spread of a sum of D products is √D"),
            Mistake(lambda q, keys: torch.softmax(keys @ q / math.sqrt(len(keys)), dim=-1),
                    "you divided by √S, the number of keys: it is the length D of the query that makes scores large"),
            Mistake(lambda q, keys: torch.softmax(keys @ q, dim=-1) / math.sqrt(len(q)),
                    "you divided by √D after the softmax: divide the scores, or the weights no longer sum to 1"),
            Mistake(lambda q, keys: (keys @ q) / (keys @ q).sum(),
                    "you divided by the sum without e to the power: such weights can be negative; use softmax"),
        ),
    ),
    Exercise(
        id="03.2", name="my_causal_mask", minutes=10, level="core",
        reference=lambda n_queries, start: causal_mask(n_queries, start=start), cases=_mask_cases,
        mistakes=(
            Mistake(lambda n, start: torch.ones(n, start + n).tril().bool(),
                    "you forgot the offset: query i stands at position start + i, not at i, so the first row sees "
                    "the cached tokens and itself"),
            Mistake(_strict, "a token should see itself: its own key counts (<= and not <)"),
            Mistake(lambda n, start: ~causal_mask(n, start=start),
                    "True and False are the wrong way round: True means that a query may look"),
            Mistake(lambda n, start: causal_mask(n),  # noqa: ARG005
                    "you have columns for the new tokens only: the cached keys come first, S = start + n_queries"),
            Mistake(lambda n, start: ~_strict(n, start),
                    "you show the future and hide the past: compare the other way round"),
            Mistake(lambda n, start: causal_mask(n, start=start).T,
                    "rows and columns are exchanged: a row is a query, a column is a key"),
            Mistake(lambda n, start: causal_mask(n, start=start).float(),
                    "the pattern is right, but the mask should be bool: add .bool()"),
            Mistake(lambda n, start: torch.zeros(n, start + n).masked_fill(~causal_mask(n, start=start), -math.inf),
                    "this is a mask to be added to the scores (0 and -inf): here it should be bool"),
        ),
    ),
    Exercise(
        id="03.3", name="grouped_attention", minutes=15, level="core",
        reference=readable_attention, cases=_attention_cases,
        mistakes=(
            _attention_mistake("in turns", "the groups are in turns (0 1 2 0 1 2 ...): neighbouring query heads share "
                               "a key head (0 0 0 1 1 1 ...); repeat_interleave does that, repeat does not"),
            _attention_mistake("no mask", "you took the mask and did not use it: every query sees the future"),
            _attention_mistake("inverted", "the mask is the wrong way round: True means may look, so fill where it is "
                               "False (~mask)"),
            _attention_mistake("no scale", "you forgot to divide the scores by √D"),
            _attention_mistake("scale D", "you divided by D: the scores' spread is √D"),
            _attention_mistake("queries", "your softmax goes over the queries: it is the keys, the last axis, whose "
                               "weights sum to 1"),
            _attention_mistake("late mask", "you masked after the softmax, so the rows no longer sum to 1: put -inf "
                               "into the scores before it"),
            _attention_mistake("zero scores", "you set hidden scores to 0, but e to the power 0 is 1, a weight like "
                               "others: use minus infinity"),
        ),
    ),
    Exercise(
        id="03.4", name="my_build_mask", minutes=20, level="hard",
        reference=_padded, cases=_padding_cases,
        mistakes=(
            Mistake(_empty_rows, "a padding query sees nothing: a softmax over nothing is NaN; let it see itself"),
            Mistake(_see_all, "your padding queries see everything, the future too: no NaN, but let them see only "
                    "themselves"),
            Mistake(_hidden_rows, "you hid the rows of padding and not the columns: real tokens still look at padding"),
            Mistake(_not_causal, "padding is hidden, but every token sees the future: the causal mask is missing"),
            Mistake(_no_offset, "you forgot the offset: new token i stands at position start + i"),
            Mistake(_no_offset_cured, "your causal part forgets the offset: new token i stands at position start + i"),
            Mistake(lambda padding, start: _padded(padding, start)[:, 0],
                    "the mask has no axis for the heads: (B, 1, T, S), with a 1 in second place"),
            Mistake(lambda padding, start: _padded(~padding, start),
                    "you took True for padding: in `padding`, True means a real token"),
            Mistake(lambda padding, start: causal_mask(padding.shape[1] - start, start=start)
                    .repeat(len(padding), 1, 1)[:, None], "the mask is causal, but padding is visible to real tokens"),
        ),
    ),
    Exercise(
        id="03.5", name="give_away", minutes=10, level="break it",
        reference=_inputs([0, 1, 2], [0, 1, 3], 1), cases=lambda _: [(16,), (512,)],
        run=_try_inputs, accept=_judge_inputs,
        mistakes=(
            Mistake(_inputs([0, 1, 2], [0, 1, 3], 2),
                    "a and b differ at t itself, and a token sees itself in a healthy model, too: look at an earlier "
                    "position"),
            Mistake(_inputs([0, 1, 2], [3, 1, 2], 1),
                    "a healthy model gives other logits at t too: a token before t, which t may see, differs"),
            Mistake(_inputs([0, 1, 2], [0, 1, 2], 1),
                    "a and b are the same text: no model can tell them apart"),
        ),
    ),
)  # fmt: skip
