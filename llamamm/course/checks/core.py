"""How an exercise is described, and how a learner's answer to it is tried.

An answer may be anything: the wrong type, the wrong shape, a function that raises, one that never ends, one that
changes its input. Each gets a diagnosis, in bounded time.
"""

from __future__ import annotations

import copy
import ctypes
import importlib
import math
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llamamm.errors import InputError

TIME_LIMIT = 10.0  # seconds for all cases of an answer


@dataclass(frozen=True)
class Mistake:
    """A wrong answer that learners really give, and what to say to it."""

    answer: Any
    message: str


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    id: lesson and number, "03.1"; name: what the learner defines; minutes and level: as in the lesson's text.
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

    def results(self, answer: Any) -> list[Any]:
        """What an answer gives for every case; inputs are copies, and the seed is always the same."""
        run = self.run or (lambda function, case: function(*case))
        out = []
        with torch.random.fork_rng(devices=[]):  # the learner's own random numbers go on undisturbed
            for case in self.cases(torch.Generator().manual_seed(0)):
                torch.manual_seed(0)
                out.append(run(answer, copy.deepcopy(case)))
        return out


@dataclass(frozen=True)
class CheckResult:
    """True if the answer is right; printed as one message."""

    id: str
    passed: bool
    message: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"{self.id} {'passed' if self.passed else 'not yet'}: {self.message}"


def find_exercise(exercise_id: str) -> Exercise:
    """The exercise "03.1". Raises InputError naming those that there are."""
    lesson = exercise_id.split(".")[0]
    found = {e.id: e for e in exercises_of(lesson)}
    if exercise_id not in found:
        raise InputError(f"there is no exercise {exercise_id!r}; lesson {lesson} has {', '.join(found)}")
    return found[exercise_id]


def exercises_of(lesson: str) -> tuple[Exercise, ...]:
    """All exercises of a lesson, "03", in their order. Raises InputError for a lesson without any."""
    try:
        return importlib.import_module(f"llamamm.course.checks.lesson{lesson}").EXERCISES
    except ModuleNotFoundError:
        raise InputError(f"lesson {lesson!r} has no exercises; give two digits, such as '03'") from None


def check(exercise_id: str, answer: Any, *, seconds: float = TIME_LIMIT) -> CheckResult:
    """Try an answer and say how it went. Never raises for what the answer does; takes at most `seconds`."""
    exercise = find_exercise(exercise_id)
    if not callable(answer):
        return _failed(exercise, f"give the function or class itself, {exercise.name}, not {_describe(answer)}")
    try:
        with time_limit(seconds):
            got = exercise.results(answer)
    except NotImplementedError:
        return _failed(exercise, f"{exercise.name} is still to be written")
    except OutOfTimeError:
        return _failed(exercise, f"still running after {seconds:g} seconds: is there a loop that never ends?")
    except Exception as error:  # whatever the learner's code raises is the diagnosis
        return _failed(exercise, _explain(error, answer))
    return judge(exercise, got)


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
        return CheckResult(exercise.id, True, f"{exercise.name} is right in {how_many}")
    for mistake in exercise.mistakes:
        if _gives_the_same(exercise, mistake, got):
            return _failed(exercise, mistake.message)
    return _failed(exercise, problem)


def difference(expected: Any, got: Any, tolerance: float) -> str | None:
    """How `got` differs from `expected`, in words, or None. Tensors, numbers, and tuples, lists and dicts of them."""
    if isinstance(expected, Tensor):
        if not isinstance(got, Tensor):
            return f"the result should be a tensor, got {_describe(got)}"
        if expected.shape != got.shape:
            return f"the shape should be {tuple(expected.shape)}, got {tuple(got.shape)}"
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
    if isinstance(expected, bool) or not isinstance(expected, int | float | tuple | list | dict):
        return None if expected == got else f"the result should be {_describe(expected)}, got {_describe(got)}"
    if isinstance(expected, int | float):
        number = got.item() if isinstance(got, Tensor) and got.numel() == 1 else got
        if isinstance(number, bool) or not isinstance(number, int | float):
            return f"the result should be a number, got {_describe(got)}"
        close = expected == number or math.isclose(expected, number, rel_tol=0, abs_tol=tolerance)
        return None if close else f"the result should be {expected:.6g}, got {number:.6g}"
    if type(expected) is not type(got):
        return f"the result should be {_describe(expected)}, got {_describe(got)}"
    if len(expected) != len(got):
        return f"the result should have {len(expected)} parts, got {len(got)}"
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


def _gives_the_same(exercise: Exercise, mistake: Mistake, got: list[Any]) -> bool:
    try:
        with time_limit(TIME_LIMIT):
            wrong = exercise.results(mistake.answer)
        return all(difference(w, g, exercise.tolerance) is None for w, g in zip(wrong, got, strict=True))
    except (Exception, OutOfTimeError):  # it breaks on a case where the learner's answer did not: it is another one
        return False


def _failed(exercise: Exercise, message: str) -> CheckResult:
    return CheckResult(exercise.id, False, message)


def _explain(error: Exception, answer: Any) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    code = getattr(answer, "__code__", None)
    own = [f for f in frames if code is not None and f.filename == code.co_filename and f.name == code.co_name]
    where = f" in line {own[-1].lineno - code.co_firstlineno + 1} of your function ({own[-1].line})" if own else ""
    return f"it raised {type(error).__name__}{where}: {error}"


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


class OutOfTimeError(BaseException):
    """Not an Exception, so that a learner's `except Exception` does not swallow it."""


class time_limit:  # noqa: N801 (a context manager)
    """Raise OutOfTimeError in this thread when the time is up. Works between Python instructions, on any system."""

    def __init__(self, seconds: float) -> None:
        self.thread = ctypes.c_ulong(threading.get_ident())
        self.timer = threading.Timer(seconds, self._strike)
        self.timer.daemon = True
        self.lock, self.over = threading.Lock(), False

    def _strike(self) -> None:
        with self.lock:  # never after the block has ended
            if not self.over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(self.thread, ctypes.py_object(OutOfTimeError))

    def __enter__(self) -> None:
        self.timer.start()

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.over = True
        self.timer.cancel()
