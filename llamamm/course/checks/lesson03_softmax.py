"""What must hold of softmax and of its gradient. For the exercises 03.1 and 03.5 of lesson 03.

Scores far from 0 give NaN in many wrong ways, so a mistake is told only where it gives the same in all the cases of a
property; where none does, the sentence says what is seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.compare import difference
from llamamm.course.checks.core import Diagnosis, Mistake, Property
from llamamm.course.checks.inputs import inputs_stay

INF = math.inf


def with_others(faulty: Callable, faults: dict[str, str], others: Sequence[str] = ()) -> tuple[Mistake, ...]:
    """Each of `faults` alone and together with any of `others`, so that two at once are recognised, too."""
    groups = [group for n in range(len(others) + 1) for group in itertools.combinations(others, n)]
    return tuple(
        Mistake(lambda *case, f=(fault, *group): faulty(*case, f), message)
        for group in groups for fault, message in faults.items()
    )  # fmt: skip


def compared(reference: Callable, why: Callable | None = None) -> Callable[[Any, tuple], str | None]:
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


def softmax(scores: Tensor) -> Tensor:
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


def _of_empty_rows(_expected: Tensor, got: Tensor, scores: Tensor) -> str:
    empty = (scores == -INF).all(-1)
    if got.isnan().any():
        return EMPTY
    if got[empty].any():
        return ONES if bool((got[empty] == 1).all()) else SHARED
    return OTHERS


def _axis_hint(error: BaseException, _case: tuple) -> str | None:
    text = str(error)
    if "Boolean value of Tensor" in text or "only one element" in text:
        return ("Python's own max and math.exp take single numbers: torch.amax (dim=-1, keepdim=True) and torch.exp "
                "take whole tensors")  # fmt: skip
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
    Mistake(lambda s: softmax(-s), TURNED), Mistake(lambda s: (_largest(s) - s).exp(), TURNED),
    *_told(QUOTIENT, lambda s: _shares(s / _largest(s)), lambda s: _shares(s / s.abs().amax(-1, keepdim=True))),
    *FIXED,
)  # fmt: skip

SOFTMAX = (
    Property("one row", lambda g: [(torch.tensor([0.0, 0.0]),), (torch.tensor([1.0, 0.0]),),
                                   (torch.randn(5, generator=g),), (torch.tensor([3.0]),)],
             SINGLE, accept=compared(softmax, _row_sums), hint=_axis_hint),
    Property("each row by itself", lambda g: [(torch.zeros(2, 2),), (torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]]),),
                                              (torch.randn(2, 3, 4, 5, generator=g),)],
             (Mistake(lambda s: _shares(s, dim=None), WHOLE), *COLUMNS, *SINGLE,
              *(Mistake(lambda s, d=d, of=of: _shares(s, of(s), d), "you summed down the columns: every row, along the "
                        "last axis, should sum to 1 (dim=-1)")
                for d in (0, 1, -2) for of in (torch.zeros_like, _largest))),
             accept=compared(softmax, _row_sums), hint=_axis_hint),
    Property("scores far from 0", lambda _: [(torch.tensor([100.0, 0.0, -5.0]),), (torch.tensor([1000.0, 999.0]),),
                                             (torch.tensor([1000.0, 0.0, 0.0]),), (torch.tensor([0.0, 89.0, 90.0]),),
                                             (torch.tensor([-60.0, -61.0]),), (torch.tensor([-1000.0, -1001.0]),)],
             FAR, accept=compared(softmax, _lost), hint=_axis_hint),
    Property("rows of different height", lambda _: [(torch.tensor([[0.0, 0, 0], [1000, 999, 0]]),),
                                                    (torch.tensor([[-60.0, -61], [0, 1]]),),
                                                    (torch.tensor([[0.0, 1], [0, 100]]),),
                                                    (torch.tensor([[[-900.0, -901]], [[0, 1]]]),)],
             (*ONE_FOR_ALL, Mistake(lambda s: _shares(s, _largest(s), None), WHOLE), *COLUMNS),
             accept=compared(softmax, _lost), hint=_axis_hint),
    Property("a row that sees nothing", lambda _: [(torch.full((1, 2), -INF),),
                                                   (torch.tensor([[0.0, -INF], [-INF, -INF]]),)],
             accept=compared(softmax, _of_empty_rows), hint=_axis_hint),
    inputs_stay(("scores",), lambda _: [(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 3.0]]),)]),
)  # fmt: skip


# ---- 03.5: the gradient of softmax ----


def backward(weights: Tensor, grad: Tensor, faults: Sequence[str] = ()) -> Tensor:
    if "alone" in faults:
        return weights * (1 - weights) * grad
    if "table" in faults:
        return torch.diag_embed(weights) - weights[..., :, None] * weights[..., None, :]
    product = grad if "no weights inside" in faults else weights if "no grad inside" in faults else grad * weights
    if "whole table" in faults:
        inner = product.sum()
    elif "matrix product" in faults:
        inner = weights @ grad
    elif "product with grad first" in faults:
        inner = grad @ weights
    elif "product with columns" in faults:
        inner = grad @ weights.mT
    elif "no keepdim" in faults:
        inner = product.sum(-1)
    elif "columns" in faults:
        inner = product.sum(-2, keepdim=True)
    elif "first axis" in faults:
        inner = product.sum(0, keepdim=True)
    elif "only the weight" in faults:
        inner = weights
    elif "plain mean" in faults:
        inner = grad.mean(-1, keepdim=True)
    else:
        inner = (product.mean if "mean" in faults else product.sum)(-1, keepdim=True)
    if "exchanged" in faults:
        return grad * (weights - inner)
    if "sum outside" in faults:
        return weights * grad - inner
    result = grad + inner if "plus" in faults else grad - (0 if "no sum" in faults else inner)
    if "divided" in faults:
        return result / weights
    result = result if "no weights outside" in faults else weights * result
    return -result if "sign" in faults else result


def _rows_of_weights(rng: torch.Generator, *shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(shape, generator=rng).softmax(-1), torch.randn(shape, generator=rng)


ROW = {
    "no sum": "the sum is missing: raising one score lowers all the other weights in its row, so subtract Σ g·w "
              "from g",
    "alone": "w·(1 - w)·g counts only each weight's own rise: raising a score also lowers all the others, so "
             "subtract Σ g·w over the row from g",
    "no weights outside": "multiply the difference g - Σ g·w by the weight: a weight near 0 hardly moves",
    "no weights inside": "inside the sum, multiply each g by its weight: Σ g·w is the row's weighted average of g",
    "mean": "take the sum of g·w, not its mean: the weights sum to 1, so the sum already is an average of g",
    "sign": "the sign is reversed: it is g minus the sum, so that a score whose g is above the average gets a positive "
            "gradient",
    "plus": "you add the sum to g: subtract it",
    "sum outside": "the weight multiplies the whole difference, the sum too: w·(g - Σ g·w)",
    "no grad inside": "inside the sum, multiply each weight by its g: the weights alone sum to 1 and say nothing of g",
    "only the weight": "from g, subtract the sum Σ g·w over the row, not each weight",
    "plain mean": "you subtract the plain mean of g: the average has to be weighted, Σ g·w",
    "exchanged": "w and g are exchanged outside the sum: it is w·(g - Σ g·w)",
    "divided": "you divided by the weight: multiply by it, since a weight near 0 hardly moves",
    "table": "this is the table of every weight's derivative with respect to every score: multiply it by g",
}
TABLE = {
    "whole table": "you summed over the whole table: each row is a softmax of its own (dim=-1)",
    "no keepdim": "you summed along the rows, but then subtracted the sums from the columns: keep the axis "
                  "(keepdim=True)",
    **dict.fromkeys(("columns", "first axis"), "you summed down the columns: one softmax made one row, so sum along "
                    "the last axis (dim=-1)"),
    "matrix product": "weights @ grad is a matrix product, which mixes rows: multiply number by number, and sum "
                      "each row",
    **dict.fromkeys(("product with grad first", "product with columns"),
                    "@ is a matrix product, which mixes rows: multiply number by number, and sum each row"),
}


def _of_several_rows(got: Any, case: tuple) -> str | None:
    """As the reference; what a fault does in one row, too, is told there."""
    explained = any(difference(backward(*case, (fault,)), got, None) is None for fault in ROW)
    return None if explained else difference(backward(*case), got, None)


def _rows_hint(error: BaseException, _case: tuple) -> str | None:
    if isinstance(error, RuntimeError | IndexError):
        return ("weights and grad may have any number of axes, (..., S): multiply them number by number, and sum over "
                "the last axis (dim=-1, keepdim=True)")  # fmt: skip
    return None


BACKWARD = (
    Property("one row", lambda g: [(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])),
                                   (torch.tensor([0.8, 0.2]), torch.tensor([1.0, 0.0])), _rows_of_weights(g, 5)],
             with_others(backward, ROW), accept=compared(backward), hint=_rows_hint),
    Property("several rows", lambda g: [_rows_of_weights(g, 2, 2), _rows_of_weights(g, 4, 4),
                                        _rows_of_weights(g, 2, 3, 4, 4)],
             with_others(backward, TABLE, ["no weights outside", "no weights inside", "mean", "sign"]),
             accept=_of_several_rows, otherwise=compared(backward), hint=_rows_hint),
    inputs_stay(("weights", "grad"), lambda g: [_rows_of_weights(g, 2, 2)]),
)  # fmt: skip
