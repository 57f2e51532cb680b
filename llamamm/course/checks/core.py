"""How an exercise is described, and how a learner's answer to it is tried.

An answer may be anything: the wrong type, the wrong shape, a function that raises, one that never ends, one that
changes its input. Each gets a diagnosis, in bounded time.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import linecache
import math
import numbers
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llamamm.course.checks.limits import TIME_LIMIT, OutOfTimeError, run_limited
from llamamm.course.checks.report import CheckResult
from llamamm.errors import InputError

POINTS = {"warm-up": 1, "core": 2, "break it": 2, "hard": 3}  # for each level


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
class Exercise:
    """One exercise.

    id: lesson and number, "04.1"; name: what the learner defines; minutes and level: as in the lesson's text.
    reference: the right answer. cases: arguments for it, one tuple each, made from a seeded generator.
    run: how to get a result from an answer and a case; by default it is called with the case's arguments.
    mistakes: compared with, in this order, when the answer is wrong.
    tolerance: largest difference between numbers that still counts as equal.
    accept: for exercises with many right answers: says what is wrong with a result, None if nothing, instead of a
    comparison with the reference's result.
    """

    id: str
    name: str
    minutes: int
    level: str
    reference: Any
    cases: Callable[[torch.Generator], Sequence[tuple]]
    mistakes: tuple[Mistake, ...] = ()
    run: Callable[[Any, tuple], Any] | None = None
    tolerance: float = 1e-4
    accept: Callable[[Any, tuple], str | None] | None = None

    def __post_init__(self) -> None:
        if self.level not in POINTS:
            raise InputError(f"exercise {self.id} has level {self.level!r}; levels are {', '.join(POINTS)}")

    @property
    def points(self) -> int:
        """What a right answer earns."""
        return POINTS[self.level]

    def results(self, answer: Any) -> list[Any]:
        """What an answer gives for every case; inputs are copies, and the seed is always the same."""
        run = self.run or (lambda function, case: function(*case))
        out = []
        with _usual_torch():
            for case in self.cases(torch.Generator().manual_seed(0)):
                torch.manual_seed(0)
                out.append(run(answer, copy.deepcopy(case)))
        return out


def find_exercise(exercise_id: str) -> Exercise:
    """The exercise "04.1". Raises InputError naming those that there are."""
    if not isinstance(exercise_id, str):
        raise InputError(f"an exercise's number is text, such as '04.1', got {_describe(exercise_id)}")
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
        return failed(exercise, f"give the function or class itself, {exercise.name}, not {_describe(answer)}")
    with torch.random.fork_rng(devices=[]):  # also where an answer is left behind in mid-run
        outcome = run_limited(lambda: exercise.results(answer), seconds)
        if isinstance(outcome.error, NotImplementedError):
            return failed(exercise, f"{exercise.name} is still to be written")
        if isinstance(outcome.error, OutOfTimeError):
            return failed(exercise, f"still running after {seconds:g} seconds: is there a loop that never ends?")
        if outcome.error is not None:  # whatever the learner's code raises is the diagnosis
            return failed(exercise, _explain(outcome.error, answer))
        got = outcome.value
        outcome = run_limited(lambda: judge(exercise, got), max(seconds, TIME_LIMIT))
    if isinstance(outcome.error, OutOfTimeError):
        return failed(exercise, "what it returned takes too long to compare")
    if outcome.error is not None:
        return failed(exercise, f"what it returned has another form than expected: {explained(outcome.error)}")
    return outcome.value


@_usual_torch()
def judge(exercise: Exercise, got: list[Any]) -> CheckResult:
    """Compare results with what they should be, and name the mistake that gives the same wrong ones."""
    cases = exercise.cases(torch.Generator().manual_seed(0))
    problem = None
    if exercise.accept is not None:
        problem = next((p for r, c in zip(got, cases, strict=True) if (p := exercise.accept(r, c))), None)
    else:
        expected = exercise.results(exercise.reference)
        for n, (ours, theirs) in enumerate(zip(expected, got, strict=True), start=1):
            if problem := difference(ours, theirs, exercise.tolerance):
                problem = f"in case {n} of {len(cases)}, {problem}"
                break
    if problem is None:
        how_many = f"all {len(cases)} cases" if len(cases) > 1 else "the one case"
        return CheckResult(exercise.id, True, f"{exercise.name} is right in {how_many}", exercise.points)
    end = time.monotonic() + TIME_LIMIT / 2
    for mistake in exercise.mistakes:
        if (left := end - time.monotonic()) > 0 and _gives_the_same(exercise, mistake, got, left):
            return failed(exercise, mistake.message)
    return failed(exercise, problem)


def difference(expected: Any, got: Any, tolerance: float) -> str | None:
    """How `got` differs from `expected`, in words, or None. Tensors, numbers, and tuples, lists and dicts of them."""
    if isinstance(expected, Tensor):
        if not isinstance(got, Tensor):
            return f"the result should be a tensor, got {_describe(got)}"
        expected, got = expected.detach(), got.detach()
        if expected.shape != got.shape:
            return f"the shape should be {tuple(expected.shape)}, got {tuple(got.shape)}"
        if expected.device != got.device or expected.layout != got.layout:
            return (f"the result should be {_a(expected.layout)} tensor on {expected.device}, "
                    f"got {_a(got.layout)} one on {got.device}")  # fmt: skip
        if expected.dtype != got.dtype:
            return f"the dtype should be {expected.dtype}, got {got.dtype}"
        if not got.is_floating_point():
            wrong = (expected != got).nonzero()
            return None if not len(wrong) else _at(expected, got, tuple(wrong[0].tolist()))
        if not torch.equal(got.isnan(), expected.isnan()):
            return f"{int(got.isnan().sum())} of {got.numel()} numbers are NaN, {int(expected.isnan().sum())} should be"
        off = (expected.double() - got.double()).abs().nan_to_num(nan=0.0, posinf=math.inf)
        off[expected == got] = 0.0  # the same infinity
        if not off.numel() or float(off.max()) <= tolerance:
            return None
        return _at(expected, got, tuple(torch.unravel_index(off.argmax(), off.shape)))
    if isinstance(got, Tensor) and got.numel() == 1 or isinstance(got, np.generic):
        got = got.item()
    if isinstance(expected, bool) or not isinstance(expected, int | float | tuple | list | dict):
        kind = int if isinstance(expected, bool) else type(expected)  # 1 is as good as True
        same = isinstance(got, kind) and bool(expected == got)
        return None if same else f"the result should be {_describe(expected)}, got {_describe(got)}"
    if isinstance(expected, int | float):
        if isinstance(got, bool) or not isinstance(got, numbers.Real):
            return f"the result should be a number, got {_describe(got)}"
        try:
            number = float(got)
        except OverflowError:  # a whole number of hundreds of digits
            number = math.inf
        close = expected == got or math.isclose(expected, number, rel_tol=0, abs_tol=tolerance)
        both_nan = math.isnan(expected) and math.isnan(number)
        return None if close or both_nan else f"the result should be {expected:.6g}, got {number:.6g}"
    if not isinstance(got, type(expected)):
        return f"the result should be {_describe(expected)}, got {_describe(got)}"
    if len(expected) != len(got):
        return f"the result should have {len(expected)} part{'s' * (len(expected) != 1)}, got {len(got)}"
    if isinstance(expected, dict):
        if expected.keys() != got.keys():
            return f"the keys should be {sorted(map(str, expected))}, got {sorted(map(str, got))}"
        pairs = ((f"[{k!r}]", expected[k], got[k]) for k in expected)
    else:
        pairs = ((f"[{i}]", *pair) for i, pair in enumerate(zip(expected, got, strict=True)))
    for where, ours, theirs in pairs:
        if problem := difference(ours, theirs, tolerance):
            return f"at {where}: {problem}"
    return None


def _at(expected: Tensor, got: Tensor, place: tuple) -> str:
    where = "[" + ", ".join(str(int(i)) for i in place) + "]" if place else "the result"
    return f"{where} should be {expected[place].item():.6g}, got {got[place].item():.6g}"


def _gives_the_same(exercise: Exercise, mistake: Mistake, got: list[Any], seconds: float) -> bool:
    def compare() -> bool:
        wrong = exercise.results(mistake.answer)
        return all(difference(w, g, exercise.tolerance) is None for w, g in zip(wrong, got, strict=True))

    # an error: it breaks on a case where the learner's answer did not, so it is another mistake
    return run_limited(compare, seconds).value is True


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
    return f"it raised {type(error).__name__}{where}: {_text(error)}"


def _codes(answer: Any) -> list[Any]:
    """The code of a function; of every method of a class, or of an object that can be called."""
    if inspect.ismethod(answer) or isinstance(answer, functools.partial):
        return _codes(answer.__func__ if inspect.ismethod(answer) else answer.func)
    if inspect.isfunction(answer):
        return [answer.__code__, inspect.unwrap(answer).__code__]
    members = vars(answer if inspect.isclass(answer) else type(answer)).values()
    return [member.__code__ for member in members if inspect.isfunction(member)]


def explained(error: BaseException) -> str:
    """An exception's kind and message, in one line."""
    return f"{type(error).__name__}: {_text(error)}"


def _text(error: BaseException) -> str:
    """The message in one line, also where it is long or cannot be made."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(its message cannot be printed)"
    return text if len(text) <= 300 else text[:297] + "..."


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = "an object that cannot be printed"
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _a(layout: torch.layout) -> str:
    return "a dense" if layout is torch.strided else f"a {str(layout).removeprefix('torch.')}"
