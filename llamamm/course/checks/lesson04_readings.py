"""What can be read off a wrong result of lesson 04 that no planted fault explains: the formula of a turned pair, which
numbers were mixed, how much of each speed was kept.

A reading says what the numbers are, so it is true however the answer was written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.compare import difference
from llamamm.course.checks.core import Diagnosis, Exercise, Property

Reading = Callable[[Tensor, Tensor, tuple], str | None]  # result, right result, case -> a sentence

CLOSE = 1e-3  # of numbers of size 1


def with_readings(exercise: Exercise, readings: dict[str, Reading]) -> Exercise:
    """The exercise; where a property's faults explain nothing, its reading may. readings: property -> reading.

    "all numbers" fails only where no fault of any property explains the result; the others are silent there.
    """

    def told(prop: Property) -> Callable[[Any, tuple], str | None]:
        def accept(got: Any, case: tuple) -> str | None:
            problem = prop.accept(got, case)
            if isinstance(problem, Diagnosis) or not isinstance(got, Tensor) or not got.is_floating_point():
                return problem
            expected = exercise.reference(*case)
            wrong = problem
            if wrong is None and prop.name != "all numbers" and got.shape == expected.shape:
                wrong = difference(expected, got.detach().to(expected.dtype), 1e-4)
            sentence = readings[prop.name](got, expected, case) if wrong else None
            return Diagnosis.of(wrong, sentence) if sentence else problem

        return accept

    read = [replace(prop, accept=told(prop)) if prop.name in readings else prop for prop in exercise.properties]
    return replace(exercise, properties=tuple(read))


# ---- 04.1, 04.3, 04.4: the formula of a pair, and which numbers are one ----


def _terms(name: str) -> list[tuple[Callable[[float, float], float], list[str]]]:
    """What a number may have been multiplied by, as a function of cosine and sine, and how that is written."""
    found = [(lambda c, s: 0.0, []), (lambda c, s: 1.0, [f"+ {name}"]), (lambda c, s: -1.0, [f"− {name}"])]  # noqa: ARG005
    for p, q in product((0, 1, -1), repeat=2):
        if p or q:
            written = [f"{'+' if n > 0 else '−'} {name}·{of}" for n, of in ((p, "cos"), (q, "sin")) if n]
            found.append((lambda c, s, p=p, q=q: p * c + q * s, written))
    return found


def _written(value: float, pair: tuple[float, float], names: tuple[str, str], c: float, s: float) -> str | None:
    """A number as a formula of the pair that it was made of, "a·cos − b·sin"; None unless exactly one fits."""
    fits = []
    for (of_x, left), (of_y, right) in product(*map(_terms, names)):
        if abs(of_x(c, s) * pair[0] + of_y(c, s) * pair[1] - value) < CLOSE / 2:
            fits.append(" ".join(left + right).removeprefix("+ ") or "0")
    return re.sub("^− ", "−", fits[0]) if len(fits) == 1 else None


def formulas(
    names: tuple[str, str], results: tuple[str, str], parts: Callable[[tuple], tuple[float, float, float, float]]
) -> Reading:
    """How each number of one pair was computed. names: of the pair's numbers; results: of the two new ones.

    parts: of a case with one pair, its two numbers, cosine and sine.
    """

    def read(got: Tensor, expected: Tensor, case: tuple) -> str | None:
        if got.shape != expected.shape or got.numel() != 2:
            return None
        x, y, c, s = parts(case)
        told = []
        for name, mine, right in zip(results, got.flatten().tolist(), expected.flatten().tolist(), strict=True):
            yours, wanted = (_written(value, (x, y), names, c, s) for value in (mine, right))
            if yours and yours != wanted:
                told.append(f"Your {name} is {yours}: it should be {wanted}")
        return ". ".join(told) or None

    return read


def mixture(got: Tensor, expected: Tensor, case: tuple) -> str | None:
    """Which numbers of x went into a new number that isn't made of its pair. For x with a single 1 in each row."""
    D = case[0].shape[-1]
    if got.shape != expected.shape or not torch.equal(case[0].reshape(-1, D), torch.eye(D)):
        return None
    for i, made_of in enumerate((got.reshape(D, D).abs() > CLOSE).T):
        yours, pair = made_of.nonzero().flatten().tolist(), sorted((i, (i + D // 2) % D))
        if not set(yours) <= set(pair):
            return (f"Number {i} of your result is made of {_listed(yours)} of x: with D = {D}, the pair is "
                    f"{pair[0]} and {pair[1]}, i and i + D/2")  # fmt: skip
    return None


def _listed(places: list[int]) -> str:
    *most, last = map(str, places)
    return f"numbers {', '.join(most)} and {last}" if most else f"number {last}"


def widths(error: BaseException, case: tuple) -> str | None:
    """What an error means in which whole and half widths meet, or x was cut along an axis of one."""
    D = case[0].shape[-1]
    sizes = re.search(r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)", str(error))
    sizes = {int(size) for size in sizes.groups()} if sizes else set()
    if 0 in sizes:
        return f"half of x's last axis is x.shape[-1] // 2, here {D // 2}, and not always 32"
    if "slice indices must be integers" in str(error):
        return "D / 2 is a float: D // 2 is the whole number that a slice needs"
    if "BFloat16" in str(error):
        return ("Complex numbers and numpy do not know bfloat16: take .float() of x, cos and sin, and give the result "
                "back with .to(x.dtype)")  # fmt: skip
    if sizes == {D, 2 * D}:
        return f"cos and sin have {D} columns already, as many as x has numbers: each angle stands in two of them"
    if sizes == {D // 2, D}:
        return (f"cos and sin have {D} columns, as many as x has numbers, and half of x has {D // 2}: half of x "
                f"goes with half of a table, cos[..., :{D // 2}], and all of x with the whole table")  # fmt: skip
    if "expected 2, got 1" in str(error) or "tuple index out of range" in str(error):
        return "A pair's numbers lie along the last axis of x: x.chunk(2, dim=-1) cuts it in half there"
    return None


def joints(got: Tensor, expected: Tensor, _case: tuple) -> str | None:
    """How the two halves were put together, where the result has another shape than x."""
    if got.shape == (*expected.shape[:-1], expected.shape[-1] // 2):
        return "Only one half comes back: torch.cat((new_a, new_b), dim=-1) joins the two"
    if got.numel() != expected.numel():
        return None
    if got.ndim == expected.ndim + 1:
        return "Your halves stand along a new axis: torch.cat((new_a, new_b), dim=-1) joins them along the last"
    longer = [i for i, (n, right) in enumerate(zip(got.shape, expected.shape, strict=False)) if n == 2 * right]
    return f"Your halves are joined along axis {longer[0]}: torch.cat needs dim=-1 to join the last" if longer else None


def dtypes(error: BaseException, case: tuple) -> str | None:
    """What an error means in which tensors of two dtypes meet."""
    if re.search("same dtype|scalar type", str(error)):
        own = str(case[0].dtype).removeprefix("torch.")
        return f"Here pair is {own} and your own tensor is not: make it with dtype=pair.dtype"
    return None


# ---- 04.2 and 04.5: how many frequencies, and what became of each ----


def powers(got: Tensor, expected: Tensor, case: tuple) -> str | None:
    """What Python made of an exponent that was written without brackets, or with a whole division."""
    if got.shape != expected.shape:
        return None
    head_dim, theta = case
    two_i = torch.arange(0, head_dim, 2).double()
    unbracketed = theta**-two_i / head_dim, theta**-2 * two_i / (2 * head_dim), theta**-2 * two_i / head_dim
    if any(torch.allclose(got.double(), mine, rtol=CLOSE, atol=1e-30) for mine in unbracketed):
        return "Python takes ** before /: put brackets round the whole exponent"
    whole = torch.zeros_like(two_i), (two_i > 0).double()
    if any(torch.allclose(got.double(), theta**-exponent, rtol=CLOSE) for exponent in whole):
        return "Your exponents are whole numbers: divide with /, as // drops what comes after the point"
    return None


def ifs(error: BaseException, _case: tuple) -> str | None:
    """What to write for an `if` about many numbers."""
    if "Boolean value of Tensor" in str(error):
        return "An `if` decides once, and each pair needs its own decision: use torch.where, or clamp, or a loop"
    return None


def how_many(got: Tensor, _expected: Tensor, case: tuple) -> str | None:
    """Why there are too many frequencies."""
    if got.shape == (32,) and case[0] != 64:
        return "You wrote 64, or half of it, where `head_dim` belongs"
    if got.shape == (case[0],):
        return "There is one frequency for each pair, so head_dim / 2 of them, and yours has one for each number"
    return None


def kept(got: Tensor, expected: Tensor, case: tuple) -> str | None:
    """How much of their plain speed the pairs have kept under the rule "llama3"."""
    if got.shape != expected.shape or not bool(got.isfinite().all()):
        return None
    head_dim, theta, factor, original = case
    got, expected = got.double(), expected.double()
    plain = theta ** (-torch.arange(0, head_dim, 2).double() / head_dim)
    turns, speed, right = original * plain / (2 * math.pi), got / plain, expected / plain
    share = (right - 1 / factor) / (1 - 1 / factor)

    def are(these: Tensor, those: Tensor | float) -> bool:
        return bool(((these - those).abs() < CLOSE).all())

    if are(got * expected / (2 * math.pi), 1.0):
        return "These are wavelengths, in tokens per turn: return radians per token"
    if are(got, right):
        return "These are the factors alone: multiply them by the plain frequencies"
    if are(speed, share + 1 / factor):
        return "A (1 − share) is missing: what is kept and what is slowed down must add up to one speed"
    between = (share > CLOSE) & (share < 1 - CLOSE)
    if bool(between.any()) and are(speed, torch.where(between, share, right)):
        return "Between 1 and 4 turns half of the blend is missing: add (1 − share) times the slowed speed"
    if are(speed * (share + (1 - share) * factor), 1.0):
        return "You blended the wavelengths: the rule blends the speeds"
    if not are(speed[0], 1.0):
        return f"Your fastest pair turns at {speed[0]:.3g} times its plain speed: it should keep it"
    if not are(speed[-1], 1 / factor):
        return (f"Your slowest pair turns at {speed[-1]:.3g} times its plain speed: it should be 1 / factor, "
                f"here {1 / factor:.3g}")  # fmt: skip
    return _blend((speed - 1 / factor) / (1 - 1 / factor), turns)


def _blend(share: Tensor, turns: Tensor) -> str | None:
    """What is wrong between the fast pairs and the slow ones. share: of its speed that each pair has kept."""
    inside = (share > CLOSE) & (share < 1 - CLOSE)
    if bool(((share < -CLOSE) | (share > 1 + CLOSE)).any()):
        return f"The share that you keep goes from {share.min():.3g} to {share.max():.3g}: it must stay between 0 and 1"
    if not bool(inside.any()):
        return (f"You keep the pairs with {turns[share > 0.5].min():.3g} turns or more and slow the others down: "
                f"between 1 and 4 turns the two are blended")  # fmt: skip
    if int(inside.sum()) > 2:
        slope, start = torch.linalg.lstsq(torch.stack((turns, torch.ones_like(turns)), -1)[inside],
                                          share[inside, None]).solution.flatten().tolist()  # fmt: skip
        if bool(((slope * turns + start).clamp(0, 1) - share).abs().max() < CLOSE):
            none, all_ = (f"{round((end - start) / slope, 4) + 0.0:.3g}" for end in (0, 1))
            return f"The share that you keep is 0 at turn {none} and 1 at turn {all_}: it should be 0 at 1 and 1 at 4"
    i = int((turns - 2.5).abs().argmin())
    wanted = min(max(float(turns[i] - 1) / 3, 0), 1)
    if abs(float(share[i]) - wanted) < CLOSE:
        return None
    return (f"At {turns[i]:.3g} turns the share that you keep is {share[i]:.2f}: it should be "
            f"({turns[i]:.3g} − 1) / 3 = {wanted:.2f}")  # fmt: skip
