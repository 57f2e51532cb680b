"""How a learner's answer to an exercise is tried.

An answer may be anything: the wrong type, the wrong shape, a function that raises, one that never ends, one that
changes its input. Each gets a diagnosis, in bounded time.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import linecache
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from llamamm.course.blanks import blank_in, first, is_blank
from llamamm.course.checks.compare import describe, difference, explained, shown, text_of
from llamamm.course.checks.exercise import Diagnosis, Exercise, Mistake, Property
from llamamm.course.checks.limits import TIME_LIMIT, OutOfTimeError, run_limited
from llamamm.course.checks.report import CheckResult
from llamamm.course.checks.watch import Watch
from llamamm.errors import InputError

__all__ = ["CheckResult", "Diagnosis", "Exercise", "Mistake", "Property", "check", "exercises_of", "find_exercise"]

SENTENCES = 3  # at most so many failing properties are told at once
LONG = 60  # an input of more characters stands after the sentence


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
        watch = Watch(exercise.forbids)
        outcome = run_limited(lambda: _tries(exercise, watch, answer), seconds)
        if isinstance(outcome.error, OutOfTimeError):
            return failed(exercise, f"still running after {seconds:g} seconds: is there a loop that never ends?")
        if outcome.error is not None:
            return failed(exercise, explained(outcome.error))
        tries = outcome.value
        if (still := next(filter(None, (_still_to_write(exercise, t.error) for t in tries)), None)) is not None:
            return failed(exercise, still)
        if watch.seen:
            return failed(exercise, f"{exercise.name} calls PyTorch's own {watch.seen}: that is what you are to write, "
                                    f"so compute it from simpler functions")
        if watch.returns_nothing and not _is_right_without_result(exercise):
            return failed(exercise, f"{exercise.name} returns nothing: is the `return` missing?")
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
    given: tuple | None = None  # what the answer was called with when it raised the error


@_usual_torch()
def _tries(exercise: Exercise, watch: Watch, answer: Any) -> list[Try]:
    tries, answer = [], watch.over(answer)
    for prop in exercise.properties:
        tries.append(this := Try(prop))
        try:
            for case in prop.inputs():
                this.results.append(prop.result(answer, case))
        except OutOfTimeError:
            raise
        except BaseException as error:  # whatever the learner's code raises is the diagnosis
            this.error, this.given = error, watch.given
    return tries


@_usual_torch()
def judge(exercise: Exercise, tries: Sequence[Try], answer: Any) -> CheckResult:
    """Compare results with what they should be, property by property, and name the mistakes that explain them. An
    error that several properties raise in the same line is told once."""
    end = time.monotonic() + TIME_LIMIT / 2
    wrong = [text for this in tries if (text := _told(exercise, this, answer, end)) is not None]
    if not wrong:
        again = [replace(this, property=replace(this.property, accept=this.property.otherwise))
                 for this in tries if this.property.otherwise]  # fmt: skip
        wrong = [text for this in again if (text := _told(exercise, this, answer, end)) is not None][:1]
    n_cases = sum(len(this.results) for this in tries)
    if not wrong:
        how_many = {1: "the one case", 2: "both cases"}.get(n_cases, f"all {n_cases} cases")
        return CheckResult(exercise.id, True, f"{exercise.name} is right in {how_many}", exercise.points)
    told: dict[str, str] = {}  # one entry for each thing that is wrong
    for text in wrong:
        told.setdefault(getattr(text, "key", text), text)
    texts, all_raised = list(told.values()), sum(isinstance(text, _Raised) for text in wrong) == len(tries)
    if len(tries) == 1:
        return failed(exercise, texts[0])
    if len(texts) == 1 and all_raised:
        return failed(exercise, texts[0].anywhere)
    shown_here = "\n".join(f"  - {text}" for text in texts[:SENTENCES])
    more = f"\n  - and {len(texts) - SENTENCES} more" if len(texts) > SENTENCES else ""
    n_right = len(tries) - len(wrong)
    return failed(exercise, f"{n_right} of {len(tries)} properties hold{'s' * (n_right == 1)}\n{shown_here}{more}")


class _Raised(str):
    """A sentence on an error. key: the kind and the line; anywhere: the sentence without the property's name."""

    key: str
    anywhere: str

    @classmethod
    def told(cls, name: str, kind: str, where: str, message: str, given: str) -> _Raised:
        anywhere = f"it raised {kind}{where}: {message}{given}"
        text = cls(name + anywhere)
        text.key, text.anywhere = f"{kind}{where or message}", anywhere
        return text


def _told(exercise: Exercise, this: Try, answer: Any, end: float) -> str | None:
    """What is wrong with one property, or None."""
    prop, cases = this.property, this.property.inputs()
    name = f"{prop.name}: " if prop.name else ""
    expected = prop.expected(exercise.reference)
    problems = [prop.problem(e, g, c) for e, g, c in zip(expected, this.results, cases, strict=False)]
    wrong = [i for i, problem in enumerate(problems) if problem]
    if not wrong and this.error is None:
        return None
    if not wrong:
        given = this.given if prop.run else cases[len(this.results)]
        given = f", called with {shown(given)}" if given and prop.name and len(shown(given)) <= 2 * LONG else ""
        if prop.show is not None:
            given = f", for {prop.show(cases[len(this.results)])}"
        hint = prop.hint and prop.hint(this.error, cases[len(this.results)])
        return _Raised.told(name, *_explain(this.error, answer), given + (f". {_capital(hint)}" if hint else ""))
    here = wrong[0]
    problem, sentence = problems[here], _mistake(this, cases, expected, wrong, end)
    if prop.show is not None or prop.name and prop.run is None:
        if isinstance(problem, Diagnosis):
            problem, sentence = problem.problem, sentence or problem.sentence
        sentence = sentence and _capital(sentence)
        if prop.show is not None:
            return f"{name}for {prop.show(cases[here])}: {problem}" + (f". {sentence}" if sentence else "")
        given = shown(cases[here])
        given = given if len(given) <= 3 * LONG else shown(cases[here], 0)
        if len(given) > LONG:
            return f"{name}{f'{sentence}. ' if sentence else ''}{problem}, for {given}"
        where = f"for {given} " if cases[here] else ""  # an answer may take nothing
        return f"{name}{where}{problem}" + (f". {sentence}" if sentence else "")
    if sentence:
        return name + sentence
    place = f"in case {here + 1} of {len(cases)}, " if prop.accept is None else ""
    return name + place + problem


def _capital(sentence: str) -> str:
    """With a capital, unless it begins with a formula."""
    word = sentence.split()[0]
    return sentence if not word.isalpha() or len(word) == 1 else sentence[0].upper() + sentence[1:]


def _mistake(
    this: Try, cases: Sequence[tuple], expected: Sequence[Any], wrong: Sequence[int], end: float
) -> str | None:
    """The message of the mistake that gives the same as the learner's answer in all wrong cases; in a property that is
    not strict, in most of them, and where two do so in as many, in most of the others, too. In a property with a name
    one that would be wrong where the answer is right explains nothing."""
    prop, best = this.property, None
    most = (0, len(this.results))  # so many of the wrong cases alike, so many of the others
    if prop.accept or prop.strict:
        most = (len(wrong) - 1, len(this.results))
    elif not prop.name:  # its cases show many kinds of faults, and two kinds may agree in a few of them
        most = (len(wrong) // 2, len(this.results))
    for mistake in prop.mistakes:
        same = [0, 0]
        for i, (case, got) in enumerate(zip(cases, this.results, strict=False)):
            if (left := end - time.monotonic()) <= 0:
                return best
            made = _made(prop, mistake, i, case, expected[i], left)
            if made is not None and made[1] == (i in wrong) and _same(made[0], got, prop.tolerance):
                same[i not in wrong] += 1
            elif i not in wrong and (prop.name or prop.accept):
                break
        else:
            if tuple(same) > most:
                best, most = mistake.message, tuple(same)
    return best


def _made(prop: Property, mistake: Mistake, i: int, case: tuple, expected: Any, seconds: float) -> tuple | None:
    """What a mistake gives for case number i, and whether that is wrong; None if it raises. The same in each check."""
    key = mistake.answer, i, prop.accept
    if key not in prop.known:
        made = run_limited(_usual_torch()(lambda: prop.result(mistake.answer, case)), seconds)
        if isinstance(made.error, OutOfTimeError):
            return None
        try:
            wrong = made.error is None and prop.problem(expected, made.value, case) is not None
            prop.known[key] = None if made.error else (made.value, wrong)
        except Exception:
            prop.known[key] = None
    return prop.known[key]


def _same(made: Any, got: Any, tolerance: float | None) -> bool:
    """Whether a mistake gives what the learner's answer gave."""
    try:
        return difference(made, got, tolerance) is None
    except Exception:
        return False


def _still_to_write(exercise: Exercise, error: BaseException | None) -> str | None:
    """What to write first, where an error comes from a blank, of this exercise or of one whose function it calls."""
    blank = blank_in(error)
    if blank == exercise.id or is_blank(error) and blank is None:
        return f"{exercise.name} is still to be written"
    if blank is not None:
        return f"{first(blank)}, then run this cell again"
    if type(error) is not NameError or error.name == exercise.name:
        return None
    for other in exercises_of(exercise.id.split(".")[0]):
        if other.name == error.name:
            return f"exercise {other.id} comes first: run the cell with your {other.name}, then this one again"
    return None


def _is_right_without_result(exercise: Exercise) -> bool:
    """Whether the right answer, too, returns nothing."""
    watch, prop = Watch(), exercise.properties[0]
    made = run_limited(lambda: prop.result(watch.over(exercise.reference), prop.inputs()[0]), TIME_LIMIT)
    return made.error is None and watch.returns_nothing


def failed(exercise: Exercise, message: str, *, missing: bool = False) -> CheckResult:
    """The result of an answer that is wrong, and why."""
    return CheckResult(exercise.id, False, message, exercise.points, missing)


def _explain(error: BaseException, answer: Any) -> tuple[str, str, str]:
    """What was raised; in which line of the learner's own code, the innermost, where it was called from there; the
    message."""
    files = {code.co_filename for code in _codes(answer)}
    where, step = "", error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if code.co_filename in files:
            line = linecache.getline(code.co_filename, step.tb_lineno).strip()
            owner = "your function" if code in _codes(answer) and inspect.isfunction(answer) else code.co_name
            where = f" in line {step.tb_lineno - code.co_firstlineno + 1} of {owner}{f' ({line})' if line else ''}"
        step = step.tb_next
    message = text_of(error)
    if not where and "NoneType" in message:  # the check's own line could do nothing with it
        message += ": is a `return` missing?"
    return type(error).__name__, where, message


def _codes(answer: Any) -> list[Any]:
    """The code of a function; of every method of a class, or of an object that can be called."""
    if inspect.ismethod(answer) or isinstance(answer, functools.partial):
        return _codes(answer.__func__ if inspect.ismethod(answer) else answer.func)
    if inspect.isfunction(answer):
        return [answer.__code__, inspect.unwrap(answer).__code__]
    members = vars(answer if inspect.isclass(answer) else type(answer)).values()
    return [member.__code__ for member in members if inspect.isfunction(member)]
