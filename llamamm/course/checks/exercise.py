"""How an exercise is described: what is to be written, what must hold of it, which mistakes are usual.

An exercise has properties ("large values in fp16"), each with inputs of its own, the smallest first. All are tried,
and each that fails is named with its smallest failing input, what was expected and what came. A mistake that learners
really make is recognised where it gives the same wrong result on the same input, however it was written; so two
mistakes at once, in different properties, both get their sentence.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.compare import difference
from llamamm.errors import InputError

POINTS = {"warm-up": 1, "core": 2, "break it": 2, "hard": 3}  # for each level


class Diagnosis(str):
    """What is wrong with a result, and the sentence on the mistake that explains it: "[0] should be 1, got 2. You ...".

    `accept` returns one so that the sentence can stand before an input that is long.
    """

    problem: str
    sentence: str

    @classmethod
    def of(cls, problem: str, sentence: str) -> Diagnosis:
        text = cls(f"{problem}. {sentence}")
        text.problem, text.sentence = problem, sentence
        return text


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that learners really give, and what to say to it.

    Use it in a `Property` written by hand: the faults are few, or the answers are no functions of a case alone, or many
    answers are right. It recognises an answer that is wrong in this way and in no other within the property's cases.
    Where faults of one function come together, write `faults.fault_exercise` instead: it tries their combinations.
    """

    answer: Any
    message: str


def _is_plain(part: Any) -> bool:
    """Whether `clone` copies a part of a case as deepcopy does, which takes ten times as long."""
    return type(part) is Tensor and not part.requires_grad and part.is_contiguous()


@dataclass(frozen=True)
class Property:
    """One thing that must hold of an answer.

    name: how the learner is told what failed, "large values in fp16"; "" where an exercise has one property alone.
    cases: arguments for the answer, one tuple each, the smallest first, made from a seeded generator.
    mistakes: wrong answers that break this property.
    run: how to get a result from an answer and a case; by default it is called with the case's arguments.
    tolerance: largest difference between numbers that still counts as equal; None: what rounding leaves in their dtype.
    accept: says what is wrong with a result for a case, None if nothing, instead of a comparison with the reference's;
    a `Diagnosis` where it knows why.
    show: a case in words, for the learner; by default its arguments as they can be typed in, and nothing if `run` is
    given.
    otherwise: as accept, for the same results; asked where all properties hold, so that nothing wrong passes.
    strict: a mistake must give the same in all wrong cases; if not, one is enough where the property has a name, which
    can call a mistake what is another one: only where one fault changes what another gives in some cases.
    hint: what an error that the answer raises for a case most likely means, None if that is open.
    known: filled while answers are checked, with what is the same for all of them.
    """

    name: str
    cases: Callable[[torch.Generator], Sequence[tuple]]
    mistakes: tuple[Mistake, ...] = ()
    run: Callable[[Any, tuple], Any] | None = None
    tolerance: float | None = None
    accept: Callable[[Any, tuple], str | None] | None = None
    show: Callable[[tuple], str] | None = None
    otherwise: Callable[[Any, tuple], str | None] | None = None
    strict: bool = True
    hint: Callable[[BaseException, tuple], str | None] | None = None
    known: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def inputs(self) -> Sequence[tuple]:
        """The cases, each time the same."""
        return self.cases(torch.Generator().manual_seed(0))

    def result(self, answer: Any, case: tuple) -> Any:
        """What an answer gives for a copy of a case; the seed is always the same."""
        torch.default_generator.manual_seed(0)  # torch.manual_seed writes down the call stack, for GPUs, which is slow
        case = copy.deepcopy(case, {id(part): part.clone() for part in case if _is_plain(part)})
        return answer(*case) if self.run is None else self.run(answer, case)

    def expected(self, reference: Any) -> list[Any]:
        """The reference's result for each case, or None for each where `accept` needs none."""
        if self.accept:
            return [None] * len(self.inputs())
        if reference not in self.known:
            self.known[reference] = [self.result(reference, case) for case in self.inputs()]
        return self.known[reference]

    def problem(self, expected: Any, got: Any, case: tuple) -> str | None:
        """What is wrong with a result, or None. expected: the reference's."""
        return self.accept(got, case) if self.accept else difference(expected, got, self.tolerance)


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    id: lesson and number, "04.1"; name: what the learner defines; minutes and level: as in the lesson's text.
    importance: from 1 to 3, for a learner who has little time.
    reference: the right answer. properties: what must hold of an answer, tried in this order.
    forbids: names of PyTorch's functions that the learner is to write and not to call, "softmax".
    cases, mistakes, run, tolerance, accept: of an exercise with one property, as in `Property`.
    """

    id: str
    name: str
    minutes: int
    level: str
    reference: Any
    cases: Callable[[torch.Generator], Sequence[tuple]] | None = None
    mistakes: tuple[Mistake, ...] = ()
    run: Callable[[Any, tuple], Any] | None = None
    tolerance: float | None = 1e-4
    accept: Callable[[Any, tuple], str | None] | None = None
    properties: tuple[Property, ...] = ()
    forbids: Collection[str] = ()
    importance: int = 2

    def __post_init__(self) -> None:
        if self.level not in POINTS:
            raise InputError(f"exercise {self.id} has level {self.level!r}; levels are {', '.join(POINTS)}")
        if (self.cases is None) == (not self.properties):
            raise InputError(f"exercise {self.id} has cases or properties, and not both")
        if self.cases is not None:
            only = Property("", self.cases, self.mistakes, self.run, self.tolerance, self.accept)
            object.__setattr__(self, "properties", (only,))
        elif not self.mistakes:
            object.__setattr__(self, "mistakes", tuple(m for p in self.properties for m in p.mistakes))

    @property
    def points(self) -> int:
        """What a right answer earns."""
        return POINTS[self.level]

    @property
    def difficulty(self) -> int:
        """From 1 to 3."""
        return {"warm-up": 1, "hard": 3}.get(self.level, 2)
