"""Whether two results are equal, and if not, where, in words: tensors, numbers, and tuples, lists and dicts of them."""

from __future__ import annotations

import math
import numbers
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

# what rounding may leave, of the largest number
ROUNDING = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}

RETURN_TYPES = "torch.return_types"  # of functions that give more than one tensor, such as max along an axis
_SEVERAL = "along an axis, it gives two things, values and indices: take its .values"


def difference(expected: Any, got: Any, tolerance: float | None, where: str = "") -> str | None:
    """How `got` differs from `expected`, in words, or None.

    tolerance: the largest difference that still counts as equal; None is what the dtype's rounding leaves of the
    largest number expected; infinity compares the form alone, types, lengths, shapes and dtypes.
    where: the place inside the whole result, "[0]['a']".
    """
    at = f"at {where}: " if where else ""
    if isinstance(expected, Tensor):
        problem = _tensors_differ(expected, got, tolerance, where)
        return problem and at * (not problem.startswith("[")) + problem
    if isinstance(got, Tensor) and got.numel() == 1 or isinstance(got, np.generic):
        got = got.item()
    if isinstance(expected, bool) or not isinstance(expected, int | float | tuple | list | dict):
        kind = int if isinstance(expected, bool) else type(expected)  # 1 is as good as True
        same = isinstance(got, kind) and (tolerance == math.inf or bool(expected == got))
        return None if same else f"{at}the result should be {describe(expected)}, got {describe(got)}"
    if isinstance(expected, int | float):
        problem = _numbers_differ(expected, got, ROUNDING[torch.float32] * max(1, abs(expected))
                                  if tolerance is None else tolerance)  # fmt: skip
        return problem and at + problem
    if not isinstance(got, type(expected)):
        return f"{at}the result should be {describe(expected)}, got {describe(got)}"
    if len(expected) != len(got):
        return f"{at}the result should have {len(expected)} part{'s' * (len(expected) != 1)}, got {len(got)}"
    if isinstance(expected, dict):
        if expected.keys() != got.keys():
            return f"{at}the keys should be {sorted(map(str, expected))}, got {sorted(map(str, got))}"
        pairs = ((f"[{k!r}]", expected[k], got[k]) for k in expected)
    else:
        pairs = ((f"[{i}]", *pair) for i, pair in enumerate(zip(expected, got, strict=True)))
    for key, ours, theirs in pairs:
        if problem := difference(ours, theirs, tolerance, where + key):
            return problem
    return None


def _numbers_differ(expected: float, got: Any, tolerance: float) -> str | None:
    if isinstance(got, bool) or not isinstance(got, numbers.Real):
        return f"the result should be a number, got {describe(got)}"
    try:
        number = float(got)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    close = expected == got or math.isclose(expected, number, rel_tol=0, abs_tol=tolerance)
    both_nan = math.isnan(expected) and math.isnan(number)
    return None if close or both_nan else "the result should be {}, got {}".format(*_told_apart(expected, number))


def _tensors_differ(expected: Tensor, got: Any, tolerance: float | None, where: str) -> str | None:
    if not isinstance(got, Tensor):
        return f"the result should be a tensor, got {describe(got)}"
    expected, got = expected.detach(), got.detach()
    if expected.shape != got.shape:
        return f"the shape should be {tuple(expected.shape)}, got {tuple(got.shape)}"
    if expected.device != got.device or expected.layout != got.layout:
        return (f"the result should be {_a(expected.layout)} tensor on {expected.device}, "
                f"got {_a(got.layout)} one on {got.device}")  # fmt: skip
    if expected.dtype != got.dtype:
        return f"the dtype should be {expected.dtype}, got {got.dtype}"
    if tolerance == math.inf:
        return None
    if not got.is_floating_point():
        wrong = (expected != got).nonzero()
        return None if not len(wrong) else _at(expected, got, tuple(wrong[0].tolist()), where)
    if not torch.equal(got.isnan(), expected.isnan()):
        right = int(expected.isnan().sum())
        return f"{int(got.isnan().sum())} of {got.numel()} numbers are NaN, {right or 'none'} should be"
    off = (expected.double() - got.double()).abs().nan_to_num(nan=0.0, posinf=math.inf)
    off[expected == got] = 0.0  # the same infinity
    if tolerance is None:
        finite = expected.double().abs()[expected.isfinite()]
        tolerance = ROUNDING[expected.dtype] * float(finite.max() if finite.numel() else 1)
    if not off.numel() or float(off.max()) <= tolerance:
        return None
    return _at(expected, got, tuple(map(int, np.unravel_index(int(off.argmax()), tuple(off.shape)))), where)


def _at(expected: Tensor, got: Tensor, place: tuple, where: str) -> str:
    here = where + ("[" + ", ".join(str(int(i)) for i in place) + "]" if place else "") or "the result"
    return "{} should be {}, got {}".format(here, *_told_apart(expected[place].item(), got[place].item()))


def _told_apart(expected: float, got: float) -> tuple[str, str]:
    """Two numbers with 6 digits, or with as many as it takes to see that they differ."""
    for digits in (6, 9, 12, 17):
        ours, theirs = f"{expected:.{digits}g}", f"{got:.{digits}g}"
        if ours != theirs:
            break
    return ours, theirs


def describe(value: Any) -> str:
    """A value in a few words, whatever it is."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if type(value).__module__ == RETURN_TYPES:
        return f"what torch.{type(value).__name__} returns: {_SEVERAL}"
    if isinstance(value, tuple | list) and 1 < len(value) <= 4 and all(isinstance(part, Tensor) for part in value):
        shapes = ", ".join(str(tuple(part.shape)) for part in value)  # printing many numbers is slow, too
        return f"a {type(value).__name__} of tensors of shapes {shapes}"
    try:
        text = " ".join(repr(value[:1000] if isinstance(value, str | bytes) else value).split())
    except Exception:
        text = "an object that cannot be printed"
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def shown(value: Any, most: int = 9) -> str:
    """An input as a learner can type it in, where it is small: (3, 4), [[1, 0], [0, 1]]; of a tensor of more than
    `most` numbers, its shape."""
    if isinstance(value, Tensor):
        dtype = "" if value.dtype in (torch.float32, torch.int64, torch.bool) else f" ({str(value.dtype)[6:]})"
        if value.numel() > most:
            return f"{'x'.join(map(str, value.shape))} numbers{dtype}"
        return f"{_rounded(value.tolist())}{dtype}"
    if isinstance(value, int | float | bool | str) or value is None:
        return f"{value:.6g}" if isinstance(value, float) else repr(value)
    if isinstance(value, tuple | list) and len(value) <= 6:
        return f"({', '.join(shown(part, most) for part in value)})"
    return describe(value)


def _rounded(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_rounded, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def explained(error: BaseException) -> str:
    """An exception's kind and message, in one line."""
    return f"{type(error).__name__}: {text_of(error)}"


def text_of(error: BaseException) -> str:
    """The message in one line, also where it is long or cannot be made; with a hint where it puzzles beginners."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(its message cannot be printed)"
    several = re.search(rf"{re.escape(RETURN_TYPES)}\.(max|min|median|sort|topk|mode|cummax|cummin|kthvalue)\b", text)
    text = text if len(text) <= 300 else text[:297] + "..."
    return f"{text} (torch.{several[1]}: {_SEVERAL})" if several else text


def _a(layout: torch.layout) -> str:
    return "a dense" if layout is torch.strided else f"a {str(layout).removeprefix('torch.')}"
