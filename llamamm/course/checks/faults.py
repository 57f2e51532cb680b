"""Properties that tell faults apart, also where several stand in one answer.

A lesson writes one function, `variant(*case, faults)`: with no fault it gives the right answer, with the names of
faults the answer with all of them in it. A wrong result is told by the fewest faults that give the same numbers. Each
property tells its own faults, so two at once both get their sentence, however they are written.

Use this where the answer is a function whose result can be compared and whose faults can be switched on and off. For
classes, for exercises with many right answers, and for a property of one or two faults, write `core.Property` with
`core.Mistake`. Here, too, a `Mistake` is made of each fault: tests read them, the diagnosis does not.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Collection
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.compare import difference
from llamamm.course.checks.core import Diagnosis, Exercise, Mistake, Property

Cases = Callable[[torch.Generator], list[tuple]]
OTHER_FORM = partial(difference, tolerance=math.inf)
AT_ONCE = 2  # so many faults are looked for in one answer; three would take ten times as long
FEW = 4096  # numbers of a result that is kept with all its faults in one table


def _key(case: tuple) -> bytes:
    """Equal for equal cases; of one that cannot be written down, as where a module was loaded anew, its own."""
    try:
        return pickle.dumps(case)
    except Exception:
        return f"{id(case)}".encode()


def _whole(result: Any) -> Any:
    return result


def ratio_difference(expected: Tensor, got: Tensor) -> str | None:
    """Where two rows of numbers differ most by their ratio, in words, or None. Below 1e-30 all are as good as 0."""
    off = (got / expected - 1).abs().nan_to_num(nan=math.inf)
    off[(got.abs() < 1e-30) & (expected.abs() < 1e-30)] = 0.0
    i = int(off.argmax())
    return f"[{i}] should be {expected[i]:.4g}, got {got[i]:.4g}" if off[i] > 1e-3 else None


def _rounding(numbers: Tensor) -> float:
    """How far two results may lie apart that differ by their rounding alone."""
    return 1e-4 if numbers.dtype.itemsize > 2 else 3e-2


def input_stays(cases: Cases) -> Property:
    """The answer leaves the tensors and lists that it is given as they are."""

    def afterwards(answer: Any, case: tuple) -> tuple:
        answer(*case)
        return case

    def unchanged(got: tuple, case: tuple) -> str | None:
        for n, (now, before) in enumerate(zip(got, case, strict=True)):
            if not isinstance(before, Tensor | list) or difference(before, now, 0.0) is None:
                continue
            tensors = isinstance(before, Tensor) or any(isinstance(part, Tensor) for part in before)
            make = "make a new tensor, without steps in place (*=, x[0] = ...)" if tensors else "make a new list"
            return f"your function changes argument {n + 1}, which the caller still needs: {make}"
        return None

    return Property("the input stays as it is", cases, run=afterwards, accept=unchanged)


def fault_exercise(
    variant: Callable[..., Any], sentences: dict[str, str], groups: dict[str, tuple],
    everything: Cases, *, tolerance: float | None = None, relative: bool = False,
    repair: Callable[[Tensor, Tensor], Tensor | None] | None = None, form: str = "",
    run: Callable[[Any, tuple], Any] | None = None, at_once: int = AT_ONCE,
    differs: Callable[..., str | None] = difference, misshapen: Callable[..., str | None] = OTHER_FORM,
    show: Callable[[tuple], str] | None = None, hint: Callable[[BaseException, tuple], str | None] | None = None,
    extra: tuple[Property, ...] = (), **about: Any,
) -> Exercise:  # fmt: skip
    """An exercise with a property for each group of faults, one for the result's form, one for all that is left.

    variant(*case, faults): the result, a tensor or whatever `difference` compares, with the named faults in it.
    sentences: what to say to each fault. groups: property -> its cases, the smallest first, and its faults; with
    these inputs no two faults may look alike; as a third, the part of a result to speak of.
    everything: the cases in which form and numbers are compared.
    tolerance: as in `Property`, by default what rounding leaves. relative: numbers are compared by their ratio.
    repair: makes the expected form of a tensor that is nearly right. form: what to say of one that needed a repair.
    run: how to get a result from an answer and a case; show: a case in words; hint: what an error means.
    at_once: so many faults are looked for in one answer.
    differs, misshapen: for results other than tensors, how they differ, in words, and what is wrong with a result's
    form, so that it cannot be compared; a list of any length may be compared. extra: further properties.
    about: the exercise's other fields.
    """

    def differ(expected: Any, got: Any) -> str | None:
        if relative:
            return ratio_difference(expected, got)
        if isinstance(expected, Tensor) and tolerance is None:
            return difference(expected, got, _rounding(expected))
        return difference(expected, got, tolerance) if differs is difference else differs(expected, got)

    def numbers(got: Any, expected: Any) -> Any:
        """The result in the form that it should have, or None where it cannot be brought to it."""
        if not isinstance(expected, Tensor):
            return got if misshapen(expected, got) is None else None
        if not isinstance(got, Tensor):
            return None
        if got.shape != expected.shape:
            got = repair(got, expected) if repair else None
        return None if got is None or got.is_complex() else got.detach().to(expected.dtype)

    held: dict[bytes, tuple] = {}  # all cases: groups share those that are equal
    known: dict[int, dict[tuple[str, ...], Any]] = {}  # id of a case that is held -> faults -> result

    def once(cases: Cases) -> Cases:
        """The same cases, and so known ones, each time."""
        made: list[tuple] = []

        def given(g: torch.Generator) -> list[tuple]:
            if not made:
                made.extend(held.setdefault(_key(case), case) for case in cases(g))
                known.update({id(case): {} for case in made if id(case) not in known})
            return made

        return given

    def make(case: tuple, faults: tuple[str, ...] = ()) -> Any:
        """The result with these faults."""
        made = known.get(id(case), {})
        if faults not in made:
            made[faults] = variant(*case, faults)
        return made[faults]

    def alike(made: Any, got: Any) -> bool:
        return (isinstance(made, Tensor) or misshapen(made, got) is None) and differ(made, got) is None

    sets = [list(combinations(sentences, n)) for n in range(1, at_once + 1)]
    tables: dict[tuple[int, int], Tensor | None] = {}  # id of a case that is held, size -> a row for each such set

    def table_of(case: tuple, some: list[tuple[str, ...]], got: Tensor) -> Tensor | None:
        """The results with each of these sets of faults, (n, numbers); None where they are not all of got's form."""
        key = id(case), len(some[0])
        if key not in tables:
            made = [make(case, faults) for faults in some]
            alike_in_form = all(isinstance(m, Tensor) and (m.shape, m.dtype) == (got.shape, got.dtype) for m in made)
            tables[key] = torch.stack([m.detach().double().flatten() for m in made]) if alike_in_form else None
        return tables[key]

    def likely(case: tuple, some: list[tuple[str, ...]], got: Any) -> list[tuple[str, ...]]:
        """Of sets of faults those that may give these numbers: all are compared at once, which spares most of the
        comparisons in words."""
        plain = isinstance(got, Tensor) and got.is_floating_point() and 0 < got.numel() <= FEW
        table = table_of(case, some, got) if plain and some and id(case) in known and differs is difference else None
        if table is None:
            return some
        row = got.double().flatten()
        room = 2 * (tolerance or _rounding(got))
        if relative:
            room = 0.1 * (table.abs() + row.abs()) + 1e-29
        return [some[i] for i in (~((table - row).abs() > room).any(dim=1)).nonzero().flatten().tolist()]

    def explained(got: Any, case: tuple) -> tuple[str, ...] | None:
        return next((faults for some in sets for faults in likely(case, some, got)
                     if alike(make(case, faults), got)), None)  # fmt: skip

    def told(faults: Collection[str], problem: str) -> str:
        return Diagnosis.of(problem, ". ".join(sentences[fault] for fault in faults)) if faults else problem

    def tell(own: Collection[str] | None, part: Callable[[Any], Any] = _whole) -> Callable[[Any, tuple], str | None]:
        """own: the faults to tell of; None: what no fault explains. part: of a result, to speak of."""

        def accept(result: Any, case: tuple) -> str | None:
            expected = make(case)
            got = numbers(result, expected)
            if got is None and not isinstance(expected, Tensor):
                got = result if explained(result, case) else None  # a fault may give lists of other lengths
            problem = None if got is None else differ(expected, got)
            if problem is None:
                return None
            faults = explained(got, case)
            if own is None:
                return problem if faults is None else None
            mine = [fault for fault in faults or () if fault in own]
            return told(mine, differ(part(expected), part(got)) or problem) if mine else None

        return accept

    def otherwise(result: Any, case: tuple) -> str | None:
        """Where each group takes a wrong answer for the faults of other groups, it must not pass; why is open, for
        those faults do not show in their own group."""
        expected = make(case)
        got = numbers(result, expected)
        return None if got is None else differ(expected, got)

    def right_form(result: Any, case: tuple) -> str | None:
        expected = make(case)
        problem = misshapen(expected, result)
        if problem and not isinstance(expected, Tensor) and explained(result, case):
            return None  # told by another property
        wrong_shape = isinstance(result, Tensor) and isinstance(expected, Tensor) and result.shape != expected.shape
        nearly = form and wrong_shape and numbers(result, expected) is not None
        return Diagnosis.of(problem, form) if nearly else problem

    everything = once(everything)
    is_tensor = isinstance(variant(*everything(torch.Generator().manual_seed(0))[0], ()), Tensor)
    properties = (
        *(Property(name, once(cases), accept=tell(*own), run=run, show=show, hint=hint,
                   otherwise=otherwise)
          for name, (cases, *own) in groups.items()),
        Property("shape and dtype" if is_tensor else "form", everything, accept=right_form, run=run, show=show,
                 hint=hint),
        Property("all numbers" if is_tensor else "all results", everything, accept=tell(None), run=run, show=show,
                 hint=hint, otherwise=tell(sentences)),
        *extra,
    )
    mistakes = tuple(Mistake(lambda *case, f=fault: variant(*case, (f,)), text) for fault, text in sentences.items())
    return Exercise(**{"reference": lambda *case: variant(*case, ()), "mistakes": mistakes, **about},
                    properties=properties)
