"""Checks for lesson 19: bytes a token reads, weights in whole numbers, a product with them, the guesses that a model
agrees with, one gradient from several processes, and what each of them holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llamamm.course.checks.compare import describe, difference
from llamamm.course.checks.core import Exercise
from llamamm.course.checks.faults import fault_exercise, input_stays

Several = Callable[[torch.Generator], list[tuple]]


def _first_off(expected: dict[str, Any], got: dict[str, Any]) -> str | None:
    """The first of several inputs for which the result is wrong, in words."""
    return next((f"for {given}: {problem}" for given, ours in expected.items()
                 if (problem := difference(ours, got[given], None))), None)  # fmt: skip


def _not_numbers(_expected: dict[str, Any], got: dict[str, Any]) -> str | None:
    """Where a result is no finite number, in words, or None."""
    for given, number in got.items():
        problem = difference(0.0, number, math.inf)
        if problem or not math.isfinite(number):
            return f"for {given}: {problem or f'the result is {describe(number)}'}"
    return None


# ---- 19.1: the bytes of a token ----

Shapes = list[tuple[int, int]]
COUNTED: list[tuple[Shapes, int, int]] = [
    ([(4, 64)], 8, 32), ([(4, 64)], 32, 32), ([(8, 64)], 4, 64), ([(4, 64), (6, 32)], 16, 32),
    ([(6, 128), (4, 64)], 4, 32), ([(64, 128), (6, 64), (2, 192)], 8, 64),
]  # fmt: skip


def _token_bytes(shapes: Shapes, bits: int, group: int, faults: Collection[str] = ()) -> float:
    total = 0.0
    for rows, columns in shapes[:1] if "first" in faults else shapes:
        total += rows * columns * (bits // 8 if "whole bytes" in faults else bits if "bits" in faults else bits / 8)
        scaled = {8, 16 if "16 too" in faults else 8, 8 if "8 alone" in faults else 4}
        if (bits not in scaled and "scales everywhere" not in faults) or "no scales" in faults:
            continue
        count = rows if "one a row" in faults else columns / group if "one row" in faults else rows * columns / group
        total += count * (4 if "scales of 4" in faults else 1 if "scales of 1" in faults else 2)
    return 8 * total if "all in bits" in faults else total


def _counts(cases: list[tuple], faults: Collection[str]) -> dict[str, float]:
    return {_asked(*case): _token_bytes(*case, faults) for case in cases}


def _asked(shapes: Shapes, bits: int, group: int) -> str:
    return f"shapes {shapes}, {bits} bits, group {group}"


BYTES = fault_exercise(
    _counts,
    {
        "bits": "You count bits: eight of them make a byte",
        "all in bits": "You count bits: eight of them make a byte",
        "no scales": "You leave out the scales: in 8 and 4 bits each group of a row has one, of 2 bytes",
        "scales of 4": "A scale is stored in fp16: 2 bytes, and not 4",
        "scales of 1": "You count the scales, and not their bytes: each takes 2",
        "scales everywhere": "In 32 and 16 bits there are no whole numbers, so no scales",
        "16 too": "In 16 bits a weight is a float as it stands: it needs no scale",
        "8 alone": "In 4 bits, too, each group of a row has a scale",
        "whole bytes": "In 4 bits, bits // 8 is 0: two weights share a byte, so divide with /",
        "one a row": "You count one scale a row: each row has columns / group of them",
        "one row": "You count the scales of one row: each of the rows has its own",
        "first": "You count the first matrix alone: add up all of them",
    },
    {"how many bytes": (lambda _: [(COUNTED,)], ("bits", "all in bits", "no scales", "scales of 4", "scales of 1",
                                                 "scales everywhere", "16 too", "8 alone", "whole bytes", "one a row",
                                                 "one row", "first"))},
    lambda _: [(COUNTED,)], run=lambda answer, case: {_asked(*c): answer([*c[0]], *c[1:]) for c in case[0]},
    differs=_first_off, misshapen=_not_numbers, show=lambda _: "several matrices", reference=_token_bytes,
    id="19.1", name="token_bytes", minutes=6, level="warm-up", importance=3,
)  # fmt: skip


# ---- 19.2: whole numbers, and a scale for each group ----

STEPS = {"truncated": torch.trunc, "floor": torch.floor, "ceil": torch.ceil, "half up": lambda q: (q + 0.5).trunc()}

def _quantized(weight: Tensor, group: int, faults: Collection[str] = ()) -> tuple[Tensor, Tensor]:
    """Codes that fit into int8 are int8; with a fault in them they may not, and are int16."""
    groups = weight.view(len(weight), -1, weight.shape[1] if "row" in faults else group)
    if "strided" in faults:
        groups = weight.view(len(weight), groups.shape[2], -1).transpose(1, 2)
    largest = (groups if "no abs" in faults else groups.abs()).amax(dim=-1, keepdim=True)
    if "signed" in faults:
        largest = groups.gather(-1, groups.abs().argmax(dim=-1, keepdim=True))
    if "matrix" in faults or "row, repeated" in faults:
        largest = largest.amax(dim=(0, 1) if "matrix" in faults else 1, keepdim=True).expand_as(largest)
    scales = largest / (128 if "128" in faults else 7 if "4 bits" in faults else 127)
    codes = groups * scales if "times" in faults else groups / scales
    codes = next((step(codes) for name, step in STEPS.items() if name in faults), codes.round())
    codes = codes.transpose(1, 2) if "strided" in faults else codes
    codes = codes.nan_to_num().to(torch.int16).reshape(weight.shape)
    scales = 1 / scales if "inverse" in faults else scales
    return codes if faults else codes.to(torch.int8), scales[..., 0]


def _pair(answer: Callable[..., Any], case: tuple) -> Any:
    """Codes and scales as tensors, whether they came as such or in arrays."""
    result = answer(*case)
    if not isinstance(result, tuple | list):
        return result
    return tuple(torch.as_tensor(part) if isinstance(part, np.ndarray) else part for part in result)


def _no_pair(expected: tuple[Tensor, Tensor], got: Any) -> str | None:
    if not isinstance(got, tuple) or len(got) != 2 or not all(isinstance(part, Tensor) for part in got):
        return f"give two tensors, codes and scales; got {describe(got)}"
    if got[0].dtype != torch.int8:
        return f"the codes should be int8, as .to(torch.int8) makes them; got {got[0].dtype}"
    for name, ours, theirs in zip(("codes", "scales"), expected, got, strict=True):
        if ours.shape != theirs.shape:
            return f"the {name} should have shape {tuple(ours.shape)}, got {tuple(theirs.shape)}"
    return None


def _pairs_differ(expected: tuple[Tensor, Tensor], got: tuple[Tensor, Tensor]) -> str | None:
    """The scales first: they explain the codes. fp16 is as good as fp32."""
    scales, theirs = expected[1], got[1].float()
    if scales.shape != theirs.shape:
        return f"the scales should have shape {tuple(scales.shape)}, got {tuple(theirs.shape)}"
    off = (theirs / scales - 1).abs().nan_to_num(nan=math.inf).flatten()
    if off.max() > 2e-3:
        i = int(off.argmax())
        return f"the scale of group {i} should be {scales.flatten()[i]:.4g}, got {theirs.flatten()[i]:.4g}"
    codes, ours = expected[0].int(), got[0].int()
    fits = ((codes - ours) % 256 == 0) | (codes.clamp(-128, 127) == ours) | (codes.clamp(-127, 127) == ours)
    wrong = (~fits).nonzero()  # what int8 does not hold wraps around, or was clamped before
    if len(wrong):
        row, column = wrong[0].tolist()
        return f"codes[{row}, {column}] should be {int(expected[0][row, column])}, got {int(got[0][row, column])}"
    return None


def _weights(*sizes: tuple[int, int, int]) -> Several:
    """Weights whose scales are powers of two, and which lie apart from the middle between two whole numbers."""

    def made(g: torch.Generator) -> list[tuple]:
        cases = []
        for rows, columns, group in sizes:
            codes = torch.randint(-100, 101, (rows, columns // group, group), generator=g)
            ends = torch.tensor([[-127.0, 88.0], [127.0, -90.0]])  # the largest is once below 0, once above
            codes[..., :2] = ends[torch.arange(rows * columns // group) % 2].view(rows, -1, 2)
            off = torch.rand(codes.shape, generator=g) * 0.8 - 0.4
            off[..., :2] = 0
            scales = 2.0 ** torch.randint(-6, 1, codes.shape[:2], generator=g)[..., None]
            cases.append((((codes + off) * scales).view(rows, columns), group))
        return cases

    return made


QUANTIZED = fault_exercise(
    _quantized,
    {
        "truncated": "You cut off what stands after the point: .to(torch.int8) alone does that; .round() first",
        "floor": "You round down: .round() goes to the nearest whole number",
        "ceil": "You round up: .round() goes to the nearest whole number",
        "half up": "You add 0.5 and cut off: below 0 that is not the nearest whole number; .round() is",
        "128": "The largest number becomes 128, and int8 ends at 127: divide by 127",
        "4 bits": "The largest number becomes 7, as in 4 bits: in 8 bits it becomes 127",
        "no abs": "The largest number may be negative: take .abs() first",
        "row": "You use one scale for a row: each group of the row has its own",
        "row, repeated": "You use one scale for a row: each group of the row has its own",
        "matrix": "You use one scale for the whole matrix: each group has its own",
        "strided": "A group of yours takes columns that lie apart: a group is `group` neighbouring columns of a row",
        "signed": "Your scale takes the sign of the largest number: in 8 bits it is the largest of the .abs() / 127",
        "times": "You multiply by the scale: codes are weight / scale, and codes * scale gives the weight back",
        "inverse": "Your scale is upside down: it is what one step is worth, the largest number / 127",
    },
    {
        "scales": (_weights((2, 8, 4), (2, 12, 4)), ("128", "4 bits", "no abs", "row", "row, repeated", "matrix",
                                                     "strided", "signed", "inverse")),
        "codes": (_weights((1, 8, 4), (3, 64, 32)), ("truncated", "floor", "ceil", "half up", "times")),
    },
    _weights((2, 16, 8), (4, 64, 32)), run=_pair, differs=_pairs_differ, misshapen=_no_pair,
    show=lambda case: f"weight {tuple(case[0].shape)}, group {case[1]}", extra=(input_stays(_weights((1, 8, 4))),),
    reference=_quantized, id="19.2", name="quantized", minutes=10, level="core", importance=3,
)  # fmt: skip


# ---- 19.3: a row's product ----


def _row_product(codes: np.ndarray, scales: np.ndarray, x: np.ndarray, faults: Collection[str] = ()) -> float:
    n = len(scales)
    group = n if "group length" in faults else len(codes) // n
    result = total = 0.0
    for g in range(n - ("last lost" in faults)):
        total = total if "carried" in faults else 0.0
        for j in range(g * group, (g + 1) * group - ("last column" in faults)):
            code = float(codes[j - g * group if "codes restart" in faults else j])
            total += code * float(x[j - g * group if "x restarts" in faults else j])
        scale = 1.0 if "no scale" in faults else float(scales[0 if "first scale" in faults else g])
        scale = scale**2 if "twice" in faults else scale
        part = total / scale if "divided" in faults else total * scale
        result = part if "overwritten" in faults else result + part
        if "early" in faults:
            break
    return result


def _row(codes: Sequence[int], scales: Sequence[float], x: Sequence[float]) -> tuple:
    return np.array(codes, np.int8), np.array(scales, np.float32), np.array(x, np.float32)


def _rows(_: torch.Generator) -> list[tuple]:
    """Three groups: in two, some faults give what others do."""
    g = np.random.default_rng(0)
    return [_row([3, -1, 2, 4, 1, -2, 5, 2, -3, 1, 2, 4], [0.5, 0.3, 1.7],
                 [1, 2.5, 3, 1.3, 5, 4, 4.3, 6, 6, 3, 1, 5]),
            _row(g.integers(-127, 128, 24), [0.4, 1.3, 2.1], g.normal(size=24))]  # fmt: skip


def _rows_and_two_groups(g: torch.Generator) -> list[tuple]:
    return [*_rows(g), _row([3, -1, 2, 4], [0.5, 0.25], [1, 2, 3, 1])]


def _row_in_words(case: tuple) -> str:
    codes, scales, x = (", ".join(f"{number:.4g}" for number in part) for part in case)
    return f"codes [{codes}], scales [{scales}], x [{x}]"


def _plain_number(answer: Callable[..., Any], case: tuple) -> Any:
    result = answer(*case)
    one = isinstance(result, np.ndarray | np.generic) and result.size == 1
    return result.item() if one or (isinstance(result, Tensor) and result.numel() == 1) else result


def _no_number(_expected: float, got: Any) -> str | None:
    return difference(0.0, got, math.inf) or (None if math.isfinite(got) else f"the result is {describe(got)}")


def _by_size(expected: float, got: float) -> str | None:
    return difference(expected, got, 1e-4 * max(1.0, abs(expected)))


ROW = fault_exercise(
    _row_product,
    {
        "no scale": "The scales are missing: each group's sum is multiplied by its scale",
        "first scale": "You use the first scale for all groups: group g has scales[g]",
        "divided": "You divide by the scale: codes * scale is the weight",
        "carried": "You carry a group's sum into the next: total begins at 0 in each group",
        "last lost": "The last group is missing: there are len(scales) of them",
        "group length": "Your groups have the wrong length: len(codes) // len(scales) columns each",
        "x restarts": "You begin again at x[0] in each group: column j meets x[j]",
        "codes restart": "You begin again at codes[0] in each group: group g begins at column g * size",
        "last column": "The last column of each group is missing: range(size) ends before size",
        "twice": "You multiply by the scale twice: once, inside the sum or after it",
        "early": "You return the first group's part: does the `return` stand inside the loop?",
        "overwritten": "You return the last group's part: add up the parts of all groups",
    },
    {"the sum": (_rows, ("no scale", "first scale", "divided", "carried", "last lost", "group length", "x restarts",
                         "codes restart", "last column", "twice", "early", "overwritten"))},
    _rows_and_two_groups, run=_plain_number, differs=_by_size, misshapen=_no_number, show=_row_in_words,
    reference=_row_product, id="19.3", name="row_product", minutes=10, level="core", importance=3,
)  # fmt: skip


# ---- 19.4: the guesses that the model agrees with ----


def _agreed(guess: Sequence[int], choices: Sequence[int], faults: Collection[str] = ()) -> list[int]:
    guess, choices = [*guess], [*choices]
    if "everything" in faults:
        return choices
    if "never" in faults:
        return choices[:1]
    if "later ones" in faults:
        return [g for g, c in zip(guess, choices, strict=False) if g == c] + choices[-1:]
    meant = choices[1:] if "shifted" in faults else choices
    same = [g == c for g, c in zip(guess, meant, strict=False)]
    n = sum(takewhile(bool, same))
    if {"counted", "counted, guess"} & {*faults}:
        n = sum(same)
        return (guess if "counted, guess" in faults else choices)[:n] + choices[n : n + 1]
    if "unread" in faults:
        return guess + choices[-1:]
    if "nothing of nothing" in faults and not guess:
        return []
    if "own alone" in faults:
        return choices[n : n + 1]
    if {"last choice", "next choice"} & {*faults}:
        return guess[:n] + (choices[-1:] if "last choice" in faults else choices[n + 1 : n + 2])
    if "one too many" in faults:
        return choices[: n + 2]
    if "all or nothing" in faults:
        n = n if n == len(guess) else 0
    if "no own" in faults or ("no bonus" in faults and n == len(guess)):
        return guess[:n]
    return guess[:n] + (guess if "keeps wrong" in faults and n < len(guess) else choices)[n : n + 1]


GUESSES = [([5, 7, 9], [5, 7, 2, 8]), ([5, 7], [5, 7, 3]), ([4], [6, 1]), ([], [3]), ([1, 2, 3, 4], [1, 9, 3, 4, 6]),
           ([8, 8, 8], [8, 8, 8, 8]), ([7, 1, 2], [3, 7, 1, 2])]  # fmt: skip


def _agreements(cases: list[tuple], faults: Collection[str]) -> dict[str, list[int]]:
    return {f"guess {g}, choices {c}": _agreed(g, c, faults) for g, c in cases}


def _each_agreement(answer: Callable[..., Any], case: tuple) -> dict[str, Any]:
    results = {f"guess {g}, choices {c}": answer([*g], [*c]) for g, c in case[0]}
    return {given: [int(n) for n in r] if isinstance(r, list | tuple | Tensor | np.ndarray) else r
            for given, r in results.items()}  # fmt: skip


def _no_tokens(_expected: dict[str, list[int]], got: dict[str, Any]) -> str | None:
    return next((f"for {given}: give a list of tokens; got {describe(r)}" for given, r in got.items()
                 if not isinstance(r, list)), None)  # fmt: skip


def _tokens_differ(expected: dict[str, list[int]], got: dict[str, list[int]]) -> str | None:
    return next((f"for {given}: the tokens should be {ours}, got {got[given]}" for given, ours in expected.items()
                 if ours != got[given]), None)  # fmt: skip


AGREED = fault_exercise(
    _agreements,
    {
        "no own": "The model's own next token is missing: the call has computed it, so it costs nothing",
        "no bonus": "If the whole guess is right, there is one more: the last of the choices",
        "keeps wrong": "You keep the guessed token that is wrong: the model's own stands in its place",
        "later ones": "You keep tokens after the first wrong one: they were computed after a token that is not there",
        "shifted": "You compare with the choice one place further: choices[0] is what the model says where guess[0] "
                   "stands",
        "all or nothing": "You drop the whole guess if a part is wrong: what comes before the first wrong one stays",
        "everything": "You return all choices: those after the first wrong guess follow a text that is not there",
        "never": "You take the first choice alone: guesses that agree are never kept",
        "unread": "You keep the whole guess, whatever the choices are: it stands only as far as it agrees",
        "counted": "You count all places that agree: count up to the first that does not",
        "counted, guess": "You count all places that agree: count up to the first that does not",
        "own alone": "You return the model's own token alone: the guesses that agree come before it",
        "last choice": "You end with the last choice: the model's own token is the one in the place of the first wrong "
                       "guess, choices[n]",
        "next choice": "You take the model's token from one place too far: after n tokens that agree it is choices[n]",
        "one too many": "You return one token too many: n that agree, and one of the model's own",
        "nothing of nothing": "An empty guess gives the one choice: plain decoding",
    },
    {"which tokens stay": (lambda _: [(GUESSES,)], ("no own", "no bonus", "keeps wrong", "later ones", "shifted",
                                                    "all or nothing", "everything", "never", "unread", "counted",
                                                    "counted, guess", "own alone", "last choice", "next choice",
                                                    "one too many", "nothing of nothing"))},
    lambda _: [(GUESSES,)], run=_each_agreement, differs=_tokens_differ, misshapen=_no_tokens,
    show=lambda _: "several guesses", extra=(input_stays(lambda _: [([5, 7, 9], [5, 7, 2, 8])]),),
    reference=_agreed, id="19.4", name="agreed", minutes=8, level="core", importance=3,
)  # fmt: skip


# ---- 19.5: one gradient from several processes ----


def _joined(gradients: Sequence[Tensor], counts: Sequence[int], faults: Collection[str] = ()) -> Tensor:
    if {"two", "two of all"} & {*faults}:
        total = sum(counts[:2] if "two" in faults else counts)
        return sum(g * c for g, c in zip(gradients[:2], counts[:2], strict=True)) / total
    n, total = len(counts), sum(counts)
    if "first" in faults:
        return gradients[0].clone()
    if "divided by counts" in faults:
        return sum(g / c for g, c in zip(gradients, counts, strict=True)) / n
    if "unweighed" in faults:
        return sum(gradients) / total
    weights = [1.0] * n if {"mean of means", "sum"} & {*faults} else [float(c) for c in counts]
    if "inverse" in faults:
        weights = [1 / c for c in counts]
        total = sum(weights)
    result = sum(g * w for g, w in zip(gradients, weights, strict=True))
    if "sum" in faults or "not divided" in faults:
        return result
    return result / (n if "mean of means" in faults or "by processes" in faults
                     else n * total if "twice" in faults else total)


def _gradients(_: torch.Generator) -> list[tuple]:
    g = torch.Generator().manual_seed(5)
    return [([torch.tensor([6.0, 0.0]), torch.tensor([2.0, 4.0])], [1, 3]),
            ([torch.randn(3, 2, generator=g) for _ in range(3)], [2, 7, 5])]


def _gradients_in_words(case: tuple) -> str:
    gradients, counts = case
    if gradients[0].dim() == 1:
        return f"gradients {[g.tolist() for g in gradients]}, counts {counts}"
    return f"{len(gradients)} gradients of shape {tuple(gradients[0].shape)}, counts {counts}"


JOINED = fault_exercise(
    _joined,
    {
        "mean of means": "That is the mean of the means: a token in a short batch counts for more than one in a long "
                         "batch; weigh each gradient by its tokens",
        "sum": "You add the gradients as they are: weigh each by its tokens, and divide by all tokens",
        "not divided": "You do not divide by the number of all tokens",
        "by processes": "You divide by the number of processes: divide by the number of all tokens",
        "twice": "You divide by all tokens and by the processes: once is enough",
        "inverse": "You give the process with few tokens the large weight: multiply by its count",
        "divided by counts": "You divide each gradient by its count: it is a mean already; multiply, for a sum",
        "unweighed": "You divide by all tokens, but add the means as they are: a mean times its count is a sum",
        "first": "You return the first process's gradient: all of them have a share",
        "two": "You take the first two processes alone: there may be more",
        "two of all": "You take the first two processes alone: there may be more",
    },
    {"the weights": (_gradients, ("mean of means", "sum", "not divided", "by processes", "twice", "inverse",
                                  "divided by counts", "unweighed", "first", "two", "two of all"))},
    _gradients, show=_gradients_in_words, extra=(input_stays(_gradients),), reference=_joined,
    id="19.5", name="joined_gradient", minutes=8, level="break it", importance=3,
)  # fmt: skip


# ---- 19.6: what each process holds ----

HELD = [(1000, 4, (), 100), (1000, 4, ("moments",), 100), (1000, 4, ("gradients", "moments"), 100),
        (1000, 4, ("weights", "gradients", "moments"), 100), (1200, 8, ("weights",), 60), (640, 1, (), 64)]  # fmt: skip
BYTES_OF = {"weights": 4, "gradients": 4, "moments": 8}


def _held(n: int, processes: int, sharded: Collection[str], block: int, faults: Collection[str] = ()) -> float:
    total = 0.0
    for part, size in BYTES_OF.items():
        size = 4 if part == "moments" and "one moment" in faults else size
        if part == "gradients" and "no gradients" in faults:
            continue
        if part not in sharded and "sharded alone" in faults:
            continue
        divided = (part in sharded or "all divided" in faults) and "not divided" not in faults
        divided = part not in sharded if "others divided" in faults else divided
        total += size * n / (processes if divided else 1)
    gathered = "weights" in sharded or "block always" in faults or (sharded and "block of any" in faults)
    if gathered and "no block" not in faults:
        total += (1 if "block in numbers" in faults else 4) * block / (processes if "block divided" in faults else 1)
    total *= processes if "all together" in faults else 1
    return total / 4 if "numbers" in faults else total


def _holdings(cases: list[tuple], faults: Collection[str]) -> dict[str, float]:
    return {_told(*case): _held(*case, faults) for case in cases}


def _told(n: int, processes: int, sharded: Collection[str], block: int) -> str:
    return f"{n} parameters, {processes} processes, sharded: {', '.join(sharded) or 'nothing'}; block {block}"


HOLDS = fault_exercise(
    _holdings,
    {
        "numbers": "You count numbers: each of them takes 4 bytes",
        "one moment": "Adam keeps two moments of each parameter: 8 bytes",
        "no gradients": "The gradients are missing: 4 bytes a parameter",
        "not divided": "What is sharded is divided by the number of processes",
        "all divided": "You divide everything: what is not in `sharded` is whole in each process",
        "no block": "Where weights are sharded, a block's are gathered while it runs: add 4 bytes for each",
        "sharded alone": "What is not in `sharded` is missing: it is whole in each process",
        "others divided": "You divide what is not in `sharded`: it is the other way round",
        "all together": "You count what all processes hold together: each of them holds one share",
        "block of any": "A block is gathered where the weights are sharded, not where other parts are",
        "block in numbers": "You count the numbers of the gathered block: each of them takes 4 bytes, too",
        "block always": "Only where weights are sharded is a block gathered: whole weights are there already",
        "block divided": "The gathered block is whole: do not divide it",
    },
    {"how many bytes": (lambda _: [(HELD,)], ("numbers", "one moment", "no gradients", "not divided", "all divided",
                                              "no block", "sharded alone", "others divided", "all together",
                                              "block of any", "block in numbers", "block always",
                                              "block divided"))},
    lambda _: [(HELD,)], run=lambda answer, case: {_told(*c): answer(*c[:2], {*c[2]}, c[3]) for c in case[0]},
    differs=_first_off, misshapen=_not_numbers, show=lambda _: "several set-ups", reference=_held,
    id="19.6", name="held_bytes", minutes=8, level="warm-up", importance=2,
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (BYTES, QUANTIZED, ROW, AGREED, JOINED, HOLDS)
