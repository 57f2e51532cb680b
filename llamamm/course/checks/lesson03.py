"""Exercises of lesson 03: softmax and its gradient, masks, grouped-query attention, a model without a mask.

What must hold of softmax and of masks stands in `lesson03_softmax` and `lesson03_masks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.compare import difference
from llamamm.course.checks.core import Exercise, Mistake, Property
from llamamm.course.checks.inputs import inputs_stay
from llamamm.course.checks.lesson03_masks import MASK_PROPERTIES, PADDING_PROPERTIES
from llamamm.course.checks.lesson03_softmax import BACKWARD, SOFTMAX, backward, compared, softmax, with_others
from llamamm.text.attention import readable_attention
from llamamm.text.config import TextConfig
from llamamm.text.masks import build_mask, causal_mask
from llamamm.text.model import Llama3Model

INF = math.inf


# ---- 03.3: grouped-query attention ----


def _scores(q: Tensor, k: Tensor, faults: set[str]) -> Tensor:
    """q (B, H, T, D), k (B, H, S, D) -> (B, H, T, S)."""
    (H, S), D = k.shape[1:3], q.shape[-1]
    scale = {"no scale": 1, "late scale": 1, "scale D": D, "scale S": S**0.5, "scale heads": H**0.5,
             "scale width": (H * D) ** 0.5, "times": D**-0.5}  # fmt: skip
    return q @ k.mT / next((scale[fault] for fault in scale if fault in faults), D**0.5)


def _masked(scores: Tensor, mask: Tensor, faults: set[str]) -> Tensor:
    if {"no mask", "late mask", "late -inf"} & faults:
        return scores
    if "added" in faults:
        return scores + mask
    if "first mask" in faults and mask.dim() == 4:
        mask = mask[:1]
    if "own mask" in faults or "own mask, no offset" in faults:
        T, S = scores.shape[2:]
        mask = torch.ones(T, S).tril(S - T if "own mask" in faults else 0).bool()
    mask = mask[:, None] if "mask axis" in faults else mask
    return scores.masked_fill(mask if "inverted" in faults else ~mask, 0.0 if "zero scores" in faults else -INF)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, faults: Sequence[str] = ()) -> Tensor:
    found, H, K, D = {*faults}, q.shape[1], k.shape[1], q.shape[-1]
    order = {"near": torch.arange(H) // (H // K), "turns": torch.arange(H) % K, "first": torch.zeros(H).long()}
    if "keys as values" in found:
        v = k
    elif "exchanged" in found:
        k, v = v, k
    if "three times" in found:
        order = dict.fromkeys(order, torch.arange(3 * K) // 3)
    if "mean head" in found:
        k, v = (t.mean(1, keepdim=True).expand_as(t) for t in (k, v))
    for fault, first in (("in turns", "turns"), ("first head", "first")):
        order["near"] = order[first] if fault in found else order["near"]
    k = k[:, order["turns" if "keys in turns" in found else "near"]]
    v = v[:, order["turns" if "values in turns" in found else "near"]]
    scores = _masked(_scores(q, k, found), mask, found)
    if "no softmax" in found:
        return scores.masked_fill(~mask, 0.0) @ v
    if "powers" in found:
        return scores.exp() @ v
    weights = scores.softmax(dim=-2 if "queries" in found else 1 if "heads" in found else 0 if "texts" in found else -1)
    if "late mask" in found or "late -inf" in found:
        weights = weights.masked_fill(~mask, 0.0 if "late mask" in found else -INF)
    if "weights alone" in found:
        return weights
    result = (weights / math.sqrt(D) if "late scale" in found else weights) @ v
    result = result.transpose(1, 2) if {"heads last", "flat"} & found else result
    return result.flatten(2) if "flat" in found else result


def _equal_scores(rng: torch.Generator) -> list[tuple]:
    """No scale matters where all scores are equal."""
    return [
        (torch.ones(1, 1, T, D), torch.ones(1, 1, S, D), torch.randn(1, 1, S, D, generator=rng), torch.ones(T, S) == 1)
        for T, S, D in ((1, 2, 2), (2, 3, 2), (3, 4, 8))
    ]


def _fitting(_: torch.Generator) -> list[tuple]:
    """Query n fits key n, with a dot product of 2, so that the table of scores is symmetric, and either axis gives the
    same weights; as many key heads as query heads. The values are the identity, so the result is the weights."""
    return [
        (*(n * torch.eye(S, D).repeat(B, H, 1, 1) for n in (2, 1, 1)), torch.ones(S, S) == 1)
        for B, H, S, D in ((1, 1, 2, 2), (1, 3, 2, 16), (2, 2, 3, 5))
    ]


def _groups(_: torch.Generator) -> list[tuple]:
    """Weights that neither scale nor axis changes: one key alone, or all on key t + n for query t and key head n."""
    cases = []
    for B, H, K in ((1, 4, 2), (2, 9, 3)):
        values = torch.arange(2.0, K + 2).view(1, K, 1, 1).repeat(B, 1, 1, 2)
        cases.append((torch.zeros(B, H, 1, 2), torch.ones(B, K, 1, 2), values, torch.ones(1, 1) == 1))
        keys = torch.stack([torch.eye(K).roll(n, 0) for n in range(K)]).repeat(B, 1, 1, 1)
        same = torch.eye(K).repeat(B, K, 1, 1)
        cases.append((900 * torch.eye(K).repeat(B, H, 1, 1), keys, same, torch.ones(K, K) == 1))
    return cases


def _hidden(_: torch.Generator) -> list[tuple]:
    """Equal scores, so that no scale matters, and symmetric masks, so that no axis does. The values are the identity,
    so the result is the weights."""
    alone, pairs = torch.eye(2).bool(), torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).bool()
    cases = []
    for mask, score in ((alone, 0.0), (alone, -700.0), (torch.stack([torch.eye(4).bool(), pairs])[:, None], 0.0)):
        B, S = (len(mask) if mask.dim() == 4 else 1), mask.shape[-1]
        cases.append((torch.ones(B, 1, S, S), torch.full((B, 1, S, S), score), torch.eye(S).repeat(B, 1, 1, 1), mask))
    return cases


def _whole(rng: torch.Generator) -> list[tuple]:
    return [
        (*(torch.randn(B, n, m, D, generator=rng) for n, m in ((H, T), (K, S), (K, S))), causal_mask(T, start=S - T))
        for B, H, K, T, S, D in ((1, 2, 1, 2, 3, 2), (1, 9, 3, 4, 6, 8), (2, 4, 2, 5, 5, 6))
    ]


SCALES = {
    "no scale": "you forgot to divide the scores by √D",
    "scale D": "you divided by D: the scores' spread is √D",
    "scale S": "you divided by √S or √T, the number of keys or queries: it is D, the length of a query, that makes "
               "scores large",
    "scale heads": "you divided by the root of the number of heads: it is D, the length of a query, that makes scores "
                   "large",
    "scale width": "you divided by √(H · D), all the numbers of a token: each head has scores of its own, from D "
                   "products",
    "times": "you multiplied the scores by √D: divide by it",
}
TURNS = {
    fault: f"the {which} heads are in turns (0 1 2 0 1 2 ...), but neighbouring query heads share one (0 0 0 1 1 1 "
           f"...): repeat_interleave does that, repeat does not"
    for fault, which in (("in turns", "key and value"), ("keys in turns", "key"), ("values in turns", "value"))
}
TURNS["first head"] = "all query heads use the first key head: each group of neighbours has one of its own"
TURNS["mean head"] = "you average the key heads: each group of neighbouring query heads has one of its own"
HIDDEN = {
    "no mask": "you took the mask and did not use it, so every query sees the future (masked_fill returns a new "
               "tensor; it leaves its input as it was)",
    "late mask": "you masked after the softmax, so the rows no longer sum to 1: put -inf into the scores before it",
    "late -inf": "there is -inf among your weights: put it into the scores, before the softmax (and not log_softmax)",
    "zero scores": "you set hidden scores to 0, but e to the power 0 is 1, a weight like others: use minus infinity",
    "added": "you added the mask itself: True counts as 1 there, which hides nothing. Use masked_fill with ~mask",
    "first mask": "every text gets the first text's mask: a mask of shape (B, 1, T, S) has one for each text",
    "inverted": "the mask is the wrong way round: True means may look, so fill where it is False (~mask)",
}  # fmt: skip
AXES = dict.fromkeys(
    ("heads", "texts"), "your softmax goes over the heads or the texts: it is the keys, the last axis, whose weights "
    "sum to 1")  # fmt: skip
EVERYWHERE = {
    "late scale": "you divided by √D after the softmax: divide the scores, or the weights no longer sum to 1",
    "no softmax": "the softmax is missing: turn scores into weights that sum to 1 before you average the values",
    "powers": "the powers are not divided by their sum: the weights of a row should sum to 1",
    "keys as values": "you average the keys: the weights apply to the values",
    "exchanged": "keys and values are exchanged: a query is compared with keys, and the weights apply to the values",
    "own mask": "you made a causal mask of your own: use the one that you are given",
    "own mask, no offset": "you made a causal mask of your own: use the one that you are given",
    "three times": "you repeat the key heads a fixed number of times: it is H // K times",
    "mask axis": "the mask needs no further axis: (T, S) and (B, 1, T, S) both fit all heads as they are",
    "weights alone": "these are the weights: multiply them by the values",
    "heads last": "your result is (B, T, H, D): leave the heads in second place, (B, H, T, D)",
    "flat": "you joined the heads to (B, T, H · D): leave them apart, (B, H, T, D)",
}  # fmt: skip
QUERIES = {"queries": "your softmax goes over the queries: it is the keys, the last axis, whose weights sum to 1"}
LEAK = ("keys that the mask hides still get weight: fill their scores with minus infinity before the softmax, since no "
        "other number is low enough for all scores")  # fmt: skip
NAN_HIDDEN = ("NaN comes of 0 · inf, of a filling with +inf, or of a softmax along the wrong axis: fill with -inf "
              "where ~mask is True, and let the softmax go over the last axis")  # fmt: skip
NAN = ("every key is visible here, and still there is NaN: fill with -inf where the mask is False, not where it is "
       "True, and never multiply by infinity (0 · inf is NaN)")  # fmt: skip


def _weights_of_hidden(_expected: Tensor, got: Tensor, *case: Tensor) -> str | None:
    if got.isnan().any():
        return NAN_HIDDEN
    return LEAK if bool((got.masked_select(~case[3].expand_as(got)) > 1e-6).any()) else None


def _not_a_number(_expected: Tensor, got: Tensor, *_case: Tensor) -> str | None:
    return NAN if bool(got.isnan().any()) else None


def _divisor(expected: Tensor, got: Tensor, *case: Tensor) -> str | None:
    """What the dot product, 2, was divided by: the ratio of two weights is e to the power of the score."""
    if got.isnan().any():
        return NAN
    fits, other, D = float(got[0, 0, 0, 0]), float(got[0, 0, 0, 1]), case[0].shape[-1]
    if other <= 0 or fits <= other * 1.001 or not torch.allclose(got.sum(-1), expected.sum(-1), atol=1e-3):
        return None
    by = 2 / math.log(fits / other)
    if math.isclose(by, D**0.5, rel_tol=1e-2):
        return None
    return f"your scores are divided by {by:.3g} here: with D = {D} it should be √D = {D**0.5:.3g}"


def _sizes_hint(error: BaseException, case: tuple) -> str | None:
    """What the sizes should be, where they do not fit."""
    q, k, _, mask = case
    (B, H, T, D), K, S = q.shape, k.shape[1], k.shape[2]
    if not isinstance(error, RuntimeError | ValueError | IndexError):
        return None
    if "1-D" in str(error) or "range of [-1, 0]" in str(error):
        return f"without dim=1, repeat_interleave flattens what it is given; k and v are {(B, K, S, D)} here"
    if H != K:
        return (f"q has {H} heads here, k and v have {K}: each of theirs has to be repeated {H // K} times "
                f"(repeat_interleave along dim=1); the mask, {tuple(mask.shape)}, fits all heads as it is")  # fmt: skip
    return (f"here q is {(B, H, T, D)}, k and v are {(B, K, S, D)}, and no head is repeated: q @ k.transpose(2, 3) "
            f"gives scores of shape (B, H, T, S) = {(B, H, T, S)}, and the mask is {tuple(mask.shape)}")  # fmt: skip


def _part(name: str, cases: Callable, told: dict[str, str], why: Callable = _not_a_number) -> Property:
    """A property that some faults break, and those that break all."""
    return Property(name, cases, with_others(_attention, told | EVERYWHERE), hint=_sizes_hint,
                    accept=compared(_attention, why))  # fmt: skip


ATTENTION = (
    _part("hidden keys", _hidden, HIDDEN, _weights_of_hidden),
    _part("the weights sum to 1 over the keys", _equal_scores, QUERIES | AXES),
    _part("the size of the scores", _fitting, SCALES | AXES, _divisor),
    _part("shared key heads", _groups, TURNS | AXES),
    inputs_stay(("q", "k", "v", "mask"), lambda rng: _whole(rng)[:1]),
    Property("all of it, on random numbers", _whole, hint=_sizes_hint, otherwise=compared(_attention),
             accept=lambda got, case: difference(_attention(*case), got, INF)),
)  # fmt: skip


# ---- 03.6: inputs that give a model without a mask away ----


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
    dropped = Llama3Model(cfg, attend=lambda q, k, v, mask: _attention(q, k, v, mask, ("no mask",))).eval()
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
            return f"{name} should be a tensor of int64, whole numbers of shape (1, T), got {what}"
        if not ids.numel() or int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
            return f"{name} should hold at least one id, all from 0 to {vocab_size - 1}, got {ids.tolist()}"
    if a.shape != b.shape:
        return (f"a has {a.shape[1]} tokens and b has {b.shape[1]}: make both texts equally long, so that the tokens "
                f"alone differ")  # fmt: skip
    t = t.item() if isinstance(t, Tensor) and t.numel() == 1 else t
    if isinstance(t, bool) or not isinstance(t, int) or not 0 <= t < a.shape[1]:
        return f"t should be a position in the texts, a whole number from 0 to {a.shape[1] - 1}, got {t!r}"
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
        id="03.1", name="softmax", minutes=8, level="core", importance=3, reference=softmax, properties=SOFTMAX,
        forbids=("softmax", "log_softmax", "logsumexp", "special_softmax", "special_log_softmax", "special_logsumexp"),
    ),
    Exercise(
        id="03.2", name="causal_mask", minutes=6, level="core", importance=3,
        reference=lambda n_queries, start: causal_mask(n_queries, start=start), properties=MASK_PROPERTIES,
    ),
    Exercise(
        id="03.3", name="grouped_attention", minutes=10, level="core", importance=3, reference=readable_attention,
        properties=ATTENTION, forbids=("scaled_dot_product_attention",),
    ),
    Exercise(
        id="03.4", name="build_mask", minutes=15, level="hard", importance=2,
        reference=lambda padding, start: build_mask(padding.shape[1] - start, start=start, padding=padding),
        properties=PADDING_PROPERTIES,
    ),
    Exercise(
        id="03.5", name="softmax_backward", minutes=6, level="hard", importance=2, reference=backward,
        properties=BACKWARD,
        forbids=("softmax", "special_softmax", "_softmax_backward_data", "backward", "grad"),
    ),
    Exercise(
        id="03.6", name="give_away", minutes=5, level="break it", importance=2,
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
