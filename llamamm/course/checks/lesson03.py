"""Exercises of lesson 03: softmax and its gradient, masks, grouped-query attention, a model without a mask."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.compare import difference
from llamamm.course.checks.core import Diagnosis, Exercise, Mistake, Property
from llamamm.course.checks.lesson03_masks import MASK_PROPERTIES, PADDING_PROPERTIES
from llamamm.text.attention import readable_attention
from llamamm.text.config import TextConfig
from llamamm.text.masks import build_mask, causal_mask
from llamamm.text.model import Llama3Model

INF = math.inf


def _with_others(faulty: Callable, faults: dict[str, str], others: Sequence[str] = ()) -> tuple[Mistake, ...]:
    """Each of `faults` alone and together with any of `others`, so that two at once are recognised, too."""
    groups = [group for n in range(len(others) + 1) for group in itertools.combinations(others, n)]
    return tuple(
        Mistake(lambda *case, f=(fault, *group): faulty(*case, f), message)
        for group in groups for fault, message in faults.items()
    )  # fmt: skip


def _compared(reference: Callable, why: Callable | None = None) -> Callable[[Any, tuple], str | None]:
    """Equal to the reference. Beside this, a mistake is told only where it gives the same in all cases; where none
    does, why(expected, got, *case) says what is seen of a result of the right shape."""
    def accept(got: Any, case: tuple) -> str | None:
        expected = reference(*case)
        problem = difference(expected, got, None)
        told = None
        if problem and why and isinstance(got, Tensor) and (got.shape, got.dtype) == (expected.shape, expected.dtype):
            told = why(expected, got, *case)
        return Diagnosis.of(problem, told) if told else problem

    return accept


# ---- 03.1: softmax ----


def _softmax(scores: Tensor) -> Tensor:
    return torch.softmax(scores, dim=-1).nan_to_num(0.0)


def _shares(scores: Tensor, shift: Tensor | float = 0.0, dim: int | tuple | None = -1, more: float = 0.0) -> Tensor:
    """e to the power of scores minus shift, as shares of its sum over `dim`, plus `more`."""
    powers = (scores - shift).exp()
    return powers / ((powers.sum() if dim is None else powers.sum(dim, keepdim=True)) + more)


OVERFLOW = "e^100 is more than fp32 can hold: subtract the row's largest score before you exponentiate"
DOUBLE = ("fp64 only moves the limit, from e^88 to e^709: subtract the row's largest score before you exponentiate, "
          "then fp32 is enough")  # fmt: skip
CONSTANT = ("you subtract a fixed number: scores far above it still overflow, and of scores far below it nothing is "
            "left. Subtract the row's own largest score")  # fmt: skip
ONE_SHIFT = ("you subtract the same number from the whole table, so nothing is left of a row whose scores are all much "
             "lower: give each row its own largest score (dim=-1, keepdim=True)")  # fmt: skip
COLUMN = ("you subtract each column's largest score, which changes the weights within a row: subtract each row's own "
          "(dim=-1, keepdim=True)")  # fmt: skip
EMPTY = ("the largest score of a row that sees nothing is minus infinity, and -inf minus -inf is NaN, as is 0 / 0: "
         "there, subtract 0 instead, and divide by 1")  # fmt: skip
SHARED = "A row that sees nothing should give zeros; yours shares its weight among keys it must not see"
ONES = "A row that sees nothing should give zeros, not ones"
OTHERS = "only the rows that see nothing should be all zeros; each of the others is a softmax as before"
WHOLE = ("you divided by the sum of the whole table: every row, along the last axis, should sum to 1 by itself "
         "(dim=-1, keepdim=True)")  # fmt: skip
MEAN = "you subtract the row's mean, and scores far above it still overflow: subtract the row's largest score"
SMALLEST = "you subtract the row's smallest score, so the others grow and overflow: subtract the largest"
ADDED = "you add the largest score, which makes the powers larger still: subtract it"
SIZE = ("you subtract the largest absolute value, so nothing is left of a row of large negative scores: subtract the "
        "largest score itself")  # fmt: skip
PLACE = ("you subtract where the largest score stands, its index (argmax, or the second thing that max returns): "
         "subtract the score itself")  # fmt: skip
LIMIT = ("you keep the number that you subtract above a limit (clamp), so nothing is left of a row whose scores are "
         "all far below it: subtract the row's largest score itself, and 0 only where that is -inf")  # fmt: skip
CUT = ("you cut scores off at a limit (clamp), so that scores beyond it all get the same weight: subtract the row's "
       "largest score from all of them instead")  # fmt: skip
EQUAL = ("different scores get the same weight here: what you do against overflow has cut their difference off. "
         "Subtract the row's largest score, which keeps it")  # fmt: skip
LOST = ("A power that is too large for fp32 turns into infinity, one that is too small into 0: subtract each row's own "
        "largest score, then its largest power is e^0 = 1")  # fmt: skip
RATIOS = ("the weights of a row have the right ratios, but do not sum to 1: divide the row by the sum of its own "
          "powers, along the last axis, and by nothing else")  # fmt: skip
NEGATIVE = "A weight is never negative: it is a power of e, divided by the sum of its row's powers"
KEEPDIM = ("each row has one largest score and one sum: keep their axis (keepdim=True), so that they stay beside their "
           "row")  # fmt: skip


def _told(message: str, *answers: Callable) -> tuple[Mistake, ...]:
    """Each of the answers as it is, and with zeros instead of NaN, as a learner may hide them."""
    return tuple(Mistake(how, message) for answer in answers
                 for how in (answer, lambda s, answer=answer: answer(s).nan_to_num(0.0)))  # fmt: skip


def _shifted(message: str, *shifts: Callable) -> tuple[Mistake, ...]:
    """Softmax with these numbers subtracted; also with a little added to the sum, against a division by 0."""
    return _told(message, *(lambda s, shift=shift, more=more: _shares(s, shift(s), more=more)
                            for shift in shifts for more in (0.0, 1e-9, 1e-6)))  # fmt: skip


def _cut(*limits: tuple[float | None, float]) -> tuple[Mistake, ...]:
    """Softmax of scores, or shares of powers, that are kept between two limits."""
    return _told(CUT, *(lambda s, low=low, high=high, more=more: _shares(s.clamp(low, high), more=more)
                        for low, high in limits for more in (0.0, 1e-9, 1e-6)))  # fmt: skip


def _largest(scores: Tensor) -> Tensor:
    return scores.amax(-1, keepdim=True)


FIXED = _shifted(CONSTANT, *(lambda _, c=c: c for c in (10.0, 20.0, 50.0, 80.0, 88.0, 100.0, 1000.0)))
FAR = (  # ways to write e to the power, over the sum, that fail for scores far from 0
    *_shifted(OVERFLOW, lambda _: 0.0),
    *_told(OVERFLOW, lambda s: (s.exp() + 1e-9) / (s.exp() + 1e-9).sum(-1, keepdim=True)),
    *_told(DOUBLE, lambda s: _shares(s.double()).float(), lambda s: _shares(s.double(), more=1e-9).float()),
    *_shifted(MEAN, lambda s: s.mean(-1, keepdim=True)),
    *_shifted(SMALLEST, lambda s: s.amin(-1, keepdim=True)),
    *_shifted(ADDED, lambda s: -_largest(s)),
    *_shifted(SIZE, lambda s: s.abs().amax(-1, keepdim=True)),
    *_shifted(PLACE, lambda s: s.argmax(-1, keepdim=True)),
    *_shifted(LIMIT, lambda s: _largest(s).clamp(min=0.0), lambda s: _largest(s).clamp(min=-80.0)),
    *FIXED,
    *_cut((None, 80.0), (-80.0, 80.0), (-40.0, 40.0), (-20.0, 20.0)),
)  # fmt: skip
ONE_FOR_ALL = _shifted(ONE_SHIFT, lambda s: s.max())
COLUMNS = tuple(Mistake(lambda s, d=d: _shares(s, s.amax(d, keepdim=True)), COLUMN) for d in (0, 1, -2))


def _row_sums(expected: Tensor, got: Tensor, _scores: Tensor) -> str | None:
    """Whether a weight is negative, or the weights are right but for one factor for each row."""
    if bool((got < 0).any()):
        return NEGATIVE
    if not bool(got.isfinite().all()) or bool((got <= 0).any()):
        return None
    ratio = got / expected
    return RATIOS if torch.allclose(ratio, ratio[..., :1].expand_as(ratio), rtol=1e-3) else None


def _lost(expected: Tensor, got: Tensor, scores: Tensor) -> str | None:
    """What is seen where scores are far from 0."""
    wrong = ((expected - got).abs() > 1e-3) | got.isnan()
    row = tuple(wrong.any(-1).nonzero()[0].tolist()) if bool(wrong.any()) else None
    if row is None:
        return None
    if not bool(got[row].isfinite().all()) or not bool(got[row].any()):
        return LOST
    if float(got[row].sum()) > 1.001:
        return None
    unequal = (scores[row][:, None] != scores[row]) & ((expected[row][:, None] - expected[row]).abs() > 1e-3)
    return EQUAL if bool((unequal & (got[row][:, None] == got[row])).any()) else None


def _of_empty_rows(expected: Tensor, got: Tensor, scores: Tensor) -> str:
    empty = (scores == -INF).all(-1)
    if got.isnan().any():
        return EMPTY
    if got[empty].any():
        return ONES if bool((got[empty] == 1).all()) else SHARED
    return OTHERS


def _axis_hint(error: BaseException, _case: tuple) -> str | None:
    text = str(error)
    if "Boolean value of Tensor" in text or "only one element" in text:
        return ("Python's own max and math.exp take single numbers: use torch.amax (dim=-1, keepdim=True) and torch.exp, "
                "which take whole tensors")  # fmt: skip
    if isinstance(error, IndexError) and "Dimension out of range" in text:
        return "scores may have any number of axes: dim=-1 is always the last one"
    return KEEPDIM if isinstance(error, RuntimeError) and "must match" in text else None


POWERS = "you returned the powers: divide them by their sum, so that they sum to 1"
TURNED = "your largest weight goes to the smallest score: exponentiate the scores with their own sign, not reversed"
QUOTIENT = ("you divide the scores by their largest, which changes the weights, and fails where it is 0: subtract it "
            "instead")  # fmt: skip
SINGLE = (  # of small scores, in a row
    *_told(POWERS, torch.exp, lambda s: (s - _largest(s)).exp()),
    Mistake(lambda s: s / s.sum(-1, keepdim=True),
            "you divided the scores themselves by their sum: exponentiate them first, since a score may be negative"),
    Mistake(lambda s: torch.log_softmax(s, -1), "you returned the logarithm of the weights: exponentiate it"),
    Mistake(torch.sigmoid, "A sigmoid looks at each score alone: divide each power by the sum of them all"),
    Mistake(lambda s: _shares(s * math.log(2)), "you took powers of 2: softmax takes powers of e"),
    Mistake(lambda s: _softmax(-s), TURNED), Mistake(lambda s: (_largest(s) - s).exp(), TURNED),
    *_told(QUOTIENT, lambda s: _shares(s / _largest(s)), lambda s: _shares(s / s.abs().amax(-1, keepdim=True))),
    *FIXED,
)  # fmt: skip

SOFTMAX = (
    Property("one row", lambda g: [(torch.tensor([0.0, 0.0]),), (torch.tensor([1.0, 0.0]),),
                                   (torch.randn(5, generator=g),), (torch.tensor([3.0]),)],
             SINGLE, accept=_compared(_softmax, _row_sums), hint=_axis_hint),
    Property("each row by itself", lambda g: [(torch.zeros(2, 2),), (torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]]),),
                                              (torch.randn(2, 3, 4, 5, generator=g),)],
             (Mistake(lambda s: _shares(s, dim=None), WHOLE), *COLUMNS, *SINGLE,
              *(Mistake(lambda s, d=d: _shares(s, dim=d), "you summed down the columns: every row, along the last "
                        "axis, should sum to 1 (dim=-1)") for d in (0, 1, -2))),
             accept=_compared(_softmax, _row_sums), hint=_axis_hint),
    Property("scores far from 0", lambda _: [(torch.tensor([100.0, 0.0, -5.0]),), (torch.tensor([1000.0, 999.0]),),
                                             (torch.tensor([1000.0, 0.0, 0.0]),), (torch.tensor([0.0, 89.0, 90.0]),),
                                             (torch.tensor([-60.0, -61.0]),), (torch.tensor([-1000.0, -1001.0]),)],
             FAR, accept=_compared(_softmax, _lost), hint=_axis_hint),
    Property("rows of different height", lambda _: [(torch.tensor([[0.0, 0, 0], [1000, 999, 0]]),),
                                                    (torch.tensor([[-60.0, -61], [0, 1]]),),
                                                    (torch.tensor([[0.0, 1], [0, 100]]),),
                                                    (torch.tensor([[[-900.0, -901]], [[0, 1]]]),)],
             (*ONE_FOR_ALL, Mistake(lambda s: _shares(s, _largest(s), None), WHOLE), *COLUMNS),
             accept=_compared(_softmax, _lost), hint=_axis_hint),
    Property("a row that sees nothing", lambda _: [(torch.full((1, 2), -INF),),
                                                   (torch.tensor([[0.0, -INF], [-INF, -INF]]),)],
             accept=_compared(_softmax, _of_empty_rows), hint=_axis_hint),
)  # fmt: skip


# ---- 03.3: grouped-query attention ----


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, faults: Sequence[str] = ()) -> Tensor:
    shared = torch.arange(q.shape[1]) // (q.shape[1] // k.shape[1])
    turns = torch.arange(q.shape[1]) % k.shape[1]
    k = k[:, turns if {"in turns", "keys in turns"} & {*faults} else shared]
    v = v[:, turns if {"in turns", "values in turns"} & {*faults} else shared]
    D = q.shape[-1]
    divisor = 1.0 if {"no scale", "late scale"} & {*faults} else D if "scale D" in faults else D**0.5
    scores = q @ k.mT / (k.shape[2] ** 0.5 if "scale S" in faults else divisor)
    axis = -2 if "queries" in faults else -1
    if "late mask" in faults:
        return (scores.softmax(dim=axis) * mask) @ v
    if "no mask" not in faults:
        scores = scores.masked_fill(mask if "inverted" in faults else ~mask, 0.0 if "zero scores" in faults else -INF)
    weights = scores.softmax(dim=axis)
    return (weights / math.sqrt(D) if "late scale" in faults else weights) @ v


def _equal_scores(rng: torch.Generator) -> list[tuple]:
    """No scale matters where all scores are 0."""
    return [
        (torch.zeros(1, 1, T, D), torch.ones(1, 1, S, D), torch.randn(1, 1, S, D, generator=rng), torch.ones(T, S) == 1)
        for T, S, D in ((1, 2, 2), (2, 3, 2), (3, 4, 8))
    ]


def _one_head(rng: torch.Generator) -> list[tuple]:
    """Query n fits key n, so that the table of scores is symmetric, and either axis gives the same weights."""
    q_k_v = [(2 * torch.eye(n, D)[None, None], torch.eye(n, D)[None, None], torch.randn(1, 1, n, D, generator=rng))
             for n, D in ((2, 4), (3, 16))]  # fmt: skip
    by_hand = 2 * torch.eye(2)[None, None], torch.eye(2)[None, None], torch.eye(2)[None, None]
    return [(q, k, v, torch.ones(k.shape[2], k.shape[2]) == 1) for q, k, v in [by_hand, *q_k_v]]


def _groups(_: torch.Generator) -> list[tuple]:
    """Weights that neither scale nor axis changes: one key alone, or all on key t + n for query t and key head n."""
    cases = []
    for B, H, K in ((1, 4, 2), (2, 9, 3)):
        values = torch.arange(1.0, K + 1).view(1, K, 1, 1).repeat(B, 1, 1, 2)
        cases.append((torch.zeros(B, H, 1, 2), torch.ones(B, K, 1, 2), values, torch.ones(1, 1) == 1))
        keys = torch.stack([torch.eye(K).roll(n, 0) for n in range(K)]).repeat(B, 1, 1, 1)
        same = torch.eye(K).repeat(B, K, 1, 1)
        cases.append((900 * torch.eye(K).repeat(B, H, 1, 1), keys, same, torch.ones(K, K) == 1))
    return cases


def _hidden(_: torch.Generator) -> list[tuple]:
    """Equal scores, so that no scale matters, and symmetric masks, so that no axis does."""
    alone, pairs = torch.eye(2).bool(), torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).bool()
    cases = []
    for mask, score in ((alone, 0.0), (alone, -40.0), (torch.stack([torch.eye(4).bool(), pairs])[:, None], 0.0)):
        B, S = (len(mask) if mask.dim() == 4 else 1), mask.shape[-1]
        cases.append((torch.ones(B, 1, S, 2), torch.full((B, 1, S, 2), score), torch.eye(S).repeat(B, 1, 1, 1), mask))
    return cases


def _whole(rng: torch.Generator) -> list[tuple]:
    return [
        (*(torch.randn(B, n, m, D, generator=rng) for n, m in ((H, T), (K, S), (K, S))), causal_mask(T, start=S - T))
        for B, H, K, T, S, D in ((1, 2, 1, 2, 3, 2), (1, 9, 3, 4, 6, 8), (2, 4, 2, 5, 5, 6))
    ]


SCALES = {
    "no scale": "you forgot to divide the scores by √D",
    "scale D": "you divided by D: the scores' spread is √D",
    "scale S": "you divided by √S, the number of keys: it is D, the length of a query, that makes scores large",
}
TURNS = dict.fromkeys(
    ("in turns", "keys in turns", "values in turns"),
    "the key heads are in turns (0 1 2 0 1 2 ...), but neighbouring query heads share one (0 0 0 1 1 1 ...): "
    "repeat_interleave does that, repeat does not")  # fmt: skip
HIDDEN = {
    "no mask": "you took the mask and did not use it: every query sees the future",
    "late mask": "you masked after the softmax, so the rows no longer sum to 1: put -inf into the scores before it",
    "zero scores": "you set hidden scores to 0, but e to the power 0 is 1, a weight like others: use minus infinity",
}
EVERYWHERE = {
    "inverted": "the mask is the wrong way round: True means may look, so fill where it is False (~mask)",
    "late scale": "you divided by √D after the softmax: divide the scores, or the weights no longer sum to 1",
}
QUERIES = {"queries": "your softmax goes over the queries: it is the keys, the last axis, whose weights sum to 1"}


def _faults(told: dict[str, str]) -> tuple[Mistake, ...]:
    return _with_others(_attention, told | EVERYWHERE)


ATTENTION = (
    Property("hidden keys", _hidden, _faults(HIDDEN)),
    Property("the weights sum to 1 over the keys", _equal_scores, _faults(QUERIES)),
    Property("the size of the scores", _one_head, _faults(SCALES)),
    Property("shared key heads", _groups, _faults(TURNS)),
    Property("all of it, on random numbers", _whole, _faults({})),
)  # fmt: skip


# ---- 03.5: the gradient of softmax ----


def _backward(weights: Tensor, grad: Tensor, faults: Sequence[str] = ()) -> Tensor:
    if "alone" in faults:
        return weights * (1 - weights) * grad
    product = grad if "no weights inside" in faults else grad * weights
    if "whole table" in faults:
        inner = product.sum()
    elif "no keepdim" in faults:
        inner = product.sum(-1)
    elif "columns" in faults:
        inner = product.sum(-2, keepdim=True)
    else:
        inner = (product.mean if "mean" in faults else product.sum)(-1, keepdim=True)
    result = grad - (0 if "no sum" in faults else inner)
    result = result if "no weights outside" in faults else weights * result
    return -result if "sign" in faults else result


def _rows_of_weights(rng: torch.Generator, *shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(shape, generator=rng).softmax(-1), torch.randn(shape, generator=rng)


ROW = {
    "no sum": "the sum is missing: raising one score lowers all the other weights in its row, so subtract Σ g·w from g",
    "alone": "w·(1 - w)·g counts only each weight's own rise: raising a score also lowers all the others, so subtract "
             "Σ g·w over the row from g",
    "no weights outside": "multiply the difference g - Σ g·w by the weight: a weight near 0 hardly moves",
    "no weights inside": "inside the sum, multiply each g by its weight: Σ g·w is the row's weighted average of g",
    "mean": "take the sum of g·w, not its mean: the weights sum to 1, so the sum already is an average of g",
    "sign": "the sign is reversed: it is g minus the sum, so that a score whose g is above the average gets a positive "
            "gradient",
}
TABLE = {
    "whole table": "you summed over the whole table: each row is a softmax of its own (dim=-1)",
    "no keepdim": "you summed along the rows, but then subtracted the sums from the columns: keep the axis "
                  "(keepdim=True)",
    "columns": "you summed down the columns: one softmax made one row, so sum along the last axis (dim=-1)",
}
BACKWARD = (
    Property("one row", lambda g: [(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])),
                                   (torch.tensor([0.8, 0.2]), torch.tensor([1.0, 0.0])), _rows_of_weights(g, 5)],
             _with_others(_backward, ROW)),
    Property("several rows", lambda g: [_rows_of_weights(g, 2, 2), _rows_of_weights(g, 4, 4),
                                        _rows_of_weights(g, 2, 3, 4, 4)],
             _with_others(_backward, TABLE, [fault for fault in ROW if fault not in ("no sum", "alone")])),
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
            return f"{name} should be a tensor of whole numbers of shape (1, T), got {what}"
        if not ids.numel() or int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
            return f"{name} should hold at least one id, all from 0 to {vocab_size - 1}, got {ids.tolist()}"
    if a.shape != b.shape:
        return (f"a has {a.shape[1]} tokens and b has {b.shape[1]}: make both texts equally long, so that the tokens "
                f"alone differ")  # fmt: skip
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
        id="03.1", name="softmax", minutes=8, level="core", importance=3, reference=_softmax, properties=SOFTMAX,
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
        id="03.5", name="softmax_backward", minutes=6, level="hard", importance=2, reference=_backward,
        properties=BACKWARD, forbids=("softmax", "special_softmax", "backward", "grad"),
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
