"""How an exercise is described, and how a learner's answer to it is tried.

An answer may be anything: the wrong type, the wrong shape, a function that raises, one that never ends, one that
changes its input. Each gets a diagnosis, in bounded time.

An exercise has properties ("large values in fp16"), each with inputs of its own, the smallest first. All are tried,
and each that fails is named with its smallest failing input, what was expected and what came. A mistake that learners
really make is recognised where it gives the same wrong result on the same input, however it was written; so two
mistakes at once, in different properties, both get their sentence.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import linecache
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from llamamm.course.checks.compare import describe, difference, explained, shown, text_of
from llamamm.course.checks.limits import TIME_LIMIT, OutOfTimeError, run_limited
from llamamm.course.checks.report import CheckResult
from llamamm.errors import InputError

__all__ = ["CheckResult", "Exercise", "Mistake", "Property", "check", "exercises_of", "find_exercise"]

POINTS = {"warm-up": 1, "core": 2, "break it": 2, "hard": 3}  # for each level
SENTENCES = 3  # at most so many failing properties are told at once


@contextmanager
def _usual_torch() -> Iterator[None]:
    """PyTorch as it is at the start, whatever the caller has set; its random numbers go on as before."""
    dtype = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that learners really give, and what to say to it."""

    answer: Any
    message: str


@dataclass(frozen=True)
class Property:
    """One thing that must hold of an answer.

    name: how the learner is told what failed, "large values in fp16"; "" where an exercise has one property alone.
    cases: arguments for the answer, one tuple each, the smallest first, made from a seeded generator.
    mistakes: wrong answers that break this property.
    run: how to get a result from an answer and a case; by default it is called with the case's arguments.
    tolerance: largest difference between numbers that still counts as equal; None: what rounding leaves in their dtype.
    accept: says what is wrong with a result for a case, None if nothing, instead of a comparison with the reference's.
    show: a case in words, for the learner; by default its arguments as they can be typed in, and nothing if `run` is
    given.
    otherwise: as accept, for the same results; asked where all properties hold, so that nothing wrong passes.
    """

    name: str
    cases: Callable[[torch.Generator], Sequence[tuple]]
    mistakes: tuple[Mistake, ...] = ()
    run: Callable[[Any, tuple], Any] | None = None
    tolerance: float | None = None
    accept: Callable[[Any, tuple], str | None] | None = None
    show: Callable[[tuple], str] | None = None
    otherwise: Callable[[Any, tuple], str | None] | None = None

    def inputs(self) -> Sequence[tuple]:
        """The cases, each time the same."""
        return self.cases(torch.Generator().manual_seed(0))

    def result(self, answer: Any, case: tuple) -> Any:
        """What an answer gives for a copy of a case; the seed is always the same."""
        torch.manual_seed(0)
        case = copy.deepcopy(case)
        return answer(*case) if self.run is None else self.run(answer, case)

    def given(self, case: tuple) -> str:
        """The case, as a learner is told it: "for (3, 4)", or ""."""
        if self.show is not None:
            return f"for {self.show(case)}"
        return f"for {shown(case)}" if self.name and self.run is None else ""

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


def find_exercise(exercise_id: str) -> Exercise:
    """The exercise "04.1". Raises InputError naming those that there are."""
    if not isinstance(exercise_id, str):
        raise InputError(f"an exercise's number is text, such as '04.1', got {describe(exercise_id)}")
    lesson = exercise_id.split(".")[0]
    found = {e.id: e for e in exercises_of(lesson)}
    if exercise_id not in found:
        raise InputError(f"there is no exercise {exercise_id!r}; lesson {lesson} has {', '.join(found)}")
    return found[exercise_id]


def exercises_of(lesson: str) -> tuple[Exercise, ...]:
    """All exercises of a lesson, "03", in their order. Raises InputError for a lesson without any."""
    name = f"llamamm.course.checks.lesson{lesson}"
    try:
        return importlib.import_module(name).EXERCISES
    except ModuleNotFoundError as error:
        if error.name != name:  # a package that the lesson needs
            raise
        raise InputError(f"lesson {lesson!r} has no exercises; give two digits, such as '03'") from None


def check(exercise_id: str, answer: Any, *, seconds: float = TIME_LIMIT) -> CheckResult:
    """Try an answer and say how it went. Never raises for what the answer does; takes at most `seconds`, and as long
    again to find the mistake."""
    return try_answer(find_exercise(exercise_id), answer, seconds=seconds)


def try_answer(exercise: Exercise, answer: Any, *, seconds: float = TIME_LIMIT) -> CheckResult:
    """As `check`, of an exercise that has been looked up."""
    if not callable(answer):
        return failed(exercise, f"give the function or class itself, {exercise.name}, not {describe(answer)}")
    with torch.random.fork_rng(devices=[]):  # also where an answer is left behind in mid-run
        watch = _Watch(exercise.forbids)
        outcome = run_limited(lambda: _tries(exercise, watch.over(answer)), seconds)
        if isinstance(outcome.error, OutOfTimeError):
            return failed(exercise, f"still running after {seconds:g} seconds: is there a loop that never ends?")
        if outcome.error is not None:
            return failed(exercise, explained(outcome.error))
        tries = outcome.value
        if any(isinstance(t.error, NotImplementedError) for t in tries):
            return failed(exercise, f"{exercise.name} is still to be written")
        if watch.seen:
            return failed(exercise, f"{exercise.name} calls PyTorch's own {watch.seen}: that is what you are to write, "
                                    f"so compute it from simpler functions")
        outcome = run_limited(lambda: judge(exercise, tries, answer), max(seconds, TIME_LIMIT))
    if isinstance(outcome.error, OutOfTimeError):
        return failed(exercise, "what it returned takes too long to compare")
    if outcome.error is not None:
        return failed(exercise, f"what it returned has another form than expected: {explained(outcome.error)}")
    return outcome.value


@dataclass
class Try:
    """What an answer gave for the cases of a property, up to the first that raised an error."""

    property: Property
    results: list[Any] = field(default_factory=list)
    error: BaseException | None = None


@_usual_torch()
def _tries(exercise: Exercise, answer: Any) -> list[Try]:
    tries = []
    for prop in exercise.properties:
        tries.append(this := Try(prop))
        try:
            for case in prop.inputs():
                this.results.append(prop.result(answer, case))
        except OutOfTimeError:
            raise
        except BaseException as error:  # whatever the learner's code raises is the diagnosis
            this.error = error
    return tries


@_usual_torch()
def judge(exercise: Exercise, tries: Sequence[Try], answer: Any) -> CheckResult:
    """Compare results with what they should be, property by property, and name the mistakes that explain them."""
    end = time.monotonic() + TIME_LIMIT / 2
    wrong = [(this, text) for this in tries if (text := _told(exercise, this, answer, end))]
    if not wrong:
        again = [replace(this, property=replace(this.property, accept=this.property.otherwise))
                 for this in tries if this.property.otherwise]  # fmt: skip
        wrong = [(this, text) for this in again if (text := _told(exercise, this, answer, end))][:1]
    n_cases = sum(len(this.results) for this in tries)
    if not wrong:
        how_many = f"all {n_cases} cases" if n_cases > 1 else "the one case"
        return CheckResult(exercise.id, True, f"{exercise.name} is right in {how_many}", exercise.points)
    if len(tries) == 1:
        return failed(exercise, wrong[0][1])
    n_right, told, errors = len(tries) - len(wrong), [], set()
    for this, text in wrong:  # the same error in many properties is told once
        error = explained(this.error) if this.error is not None and ": it raised " in text else ""
        if text not in told and (not error or error not in errors):
            told.append(text)
        errors.add(error)
    shown_here = "\n".join(f"  - {text}" for text in told[:SENTENCES])
    more = f"\n  - and {len(told) - SENTENCES} more" if len(told) > SENTENCES else ""
    return failed(exercise, f"{n_right} of {len(tries)} properties hold\n{shown_here}{more}")


def _told(exercise: Exercise, this: Try, answer: Any, end: float) -> str | None:
    """What is wrong with one property, or None."""
    prop, cases = this.property, this.property.inputs()
    name = f"{prop.name}: " if prop.name else ""
    expected = [None if prop.accept else prop.result(exercise.reference, case) for case in cases]
    problems = [prop.problem(e, g, c) for e, g, c in zip(expected, this.results, cases, strict=False)]
    wrong = [i for i, problem in enumerate(problems) if problem]
    if not wrong and this.error is None:
        return None
    if not wrong:
        return f"{name}it raised {_explain(this.error, answer)} {prop.given(cases[len(this.results)])}".rstrip()
    first = wrong[0]
    sentence = _mistake(this, cases, expected, wrong, end)
    if prop.given(cases[first]):
        problem = _in_a_case(prop, cases[first], problems[first])
        return f"{name}{problem}. {_capital(sentence)}" if sentence else f"{name}{problem}"
    if sentence:
        return name + sentence
    place = f"in case {first + 1} of {len(cases)}, " if prop.accept is None else ""
    return name + place + problems[first]


def _in_a_case(prop: Property, case: tuple, problem: str) -> str:
    given = prop.given(case)
    return f"{given}{':' * (prop.show is not None)} {problem}" if given else problem


def _capital(sentence: str) -> str:
    """With a capital, unless it begins with a formula."""
    word = sentence.split()[0]
    return sentence if not word.isalpha() or len(word) == 1 else sentence[0].upper() + sentence[1:]


def _mistake(
    this: Try, cases: Sequence[tuple], expected: Sequence[Any], wrong: Sequence[int], end: float
) -> str | None:
    """The message of the mistake that gives the same as the learner's answer in most of the wrong cases, and where
    two do so in as many, in most of the others too. One that does so in no wrong case explains nothing; where many
    results are right (`accept`), only one that gives the same everywhere does."""
    prop, best, most = this.property, None, (0, 0)
    if prop.accept:
        most = (len(wrong), len(this.results) - len(wrong) - 1)
    elif not prop.name:  # its cases show many kinds of faults, and two kinds may agree in a few of them
        most = (len(wrong) // 2, len(this.results))
    for mistake in prop.mistakes:
        same = [0, 0]  # in wrong cases, in right ones
        for i, (case, got) in enumerate(zip(cases, this.results, strict=False)):
            if (left := end - time.monotonic()) <= 0:
                return best
            made = run_limited(_usual_torch()(lambda m=mistake, c=case: prop.result(m.answer, c)), left)
            if made.error is None and _explains(prop, made.value, got, expected[i], case, i in wrong):
                same[i not in wrong] += 1
        if same[0] and tuple(same) > most:
            best, most = mistake.message, tuple(same)
    return best


def _explains(prop: Property, made: Any, got: Any, expected: Any, case: tuple, wrong: bool) -> bool:
    """Whether a mistake gives what the learner's answer gave, and is as wrong or as right there."""
    try:
        problem = prop.problem(expected, made, case)
        return difference(made, got, prop.tolerance) is None and (problem is not None) == wrong
    except Exception:
        return False


class _Watch(TorchFunctionMode):
    """Notices which of the named functions of PyTorch an answer calls."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names, self.seen = frozenset(names), ""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ARG002
        name = getattr(func, "__name__", "")
        if name in self.names:
            self.seen = self.seen or name
        return func(*args, **(kwargs or {}))

    def over(self, answer: Any) -> Any:
        """The answer, watched. A class is watched nowhere: its methods are called from elsewhere."""
        if not self.names or inspect.isclass(answer):
            return answer

        @functools.wraps(answer)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self:
                return answer(*args, **kwargs)

        return watched


def failed(exercise: Exercise, message: str, *, missing: bool = False) -> CheckResult:
    """The result of an answer that is wrong, and why."""
    return CheckResult(exercise.id, False, message, exercise.points, missing)


def _explain(error: BaseException, answer: Any) -> str:
    """What was raised, and in which line of the learner's own code: the innermost, where it was called from there."""
    files = {code.co_filename for code in _codes(answer)}
    where, step = "", error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if code.co_filename in files:
            line = linecache.getline(code.co_filename, step.tb_lineno).strip()
            owner = "your function" if code in _codes(answer) and inspect.isfunction(answer) else code.co_name
            where = f" in line {step.tb_lineno - code.co_firstlineno + 1} of {owner}{f' ({line})' if line else ''}"
        step = step.tb_next
    return f"{type(error).__name__}{where}: {text_of(error)}"


def _codes(answer: Any) -> list[Any]:
    """The code of a function; of every method of a class, or of an object that can be called."""
    if inspect.ismethod(answer) or isinstance(answer, functools.partial):
        return _codes(answer.__func__ if inspect.ismethod(answer) else answer.func)
    if inspect.isfunction(answer):
        return [answer.__code__, inspect.unwrap(answer).__code__]
    members = vars(answer if inspect.isclass(answer) else type(answer)).values()
    return [member.__code__ for member in members if inspect.isfunction(member)]
