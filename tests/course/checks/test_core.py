"""course.checks: a diagnosis for whatever a learner hands in, in bounded time."""

import functools
import re
import threading
import time

import numpy as np
import pytest
import torch

from llamamm.course.checks import Exercise, Mistake, Property, check, core, exercises_of, find_exercise
from llamamm.course.checks.core import Diagnosis, try_answer
from llamamm.course.checks.faults import fault_exercise
from llamamm.errors import InputError
from tests.course.checks.test_compare import Agreeable

DOUBLE = Exercise(
    id="99.1", name="double", minutes=1, level="warm-up", reference=lambda x: 2 * x,
    cases=lambda g: [(torch.randn(3, generator=g),), (torch.ones(2, 2),)],
    mistakes=(Mistake(lambda x: x * x, "you squared"), Mistake(lambda x: x + 1, "you added one")),
)  # fmt: skip
ANY_EVEN = Exercise(
    id="99.2", name="even", minutes=1, level="break it", reference=lambda: 2, cases=lambda _g: [()],
    accept=lambda result, _case: None if result == 4 or result == 2 else f"{result} is not an even number I like",
)  # fmt: skip




def _half_cases(_generator):
    return [(torch.tensor([300.0, -400.0]).half(),), (torch.full((16,), 5e4).half(),)]


NORM = Exercise(  # x divided by the root of its mean square plus a hundredth, in x's dtype
    id="99.3", name="norm", minutes=1, level="core", importance=3, forbids=("rms_norm", "softmax"),
    reference=lambda x: (x.float() / (x.float().pow(2).mean() + 0.01).sqrt()).to(x.dtype),
    properties=(
        Property("two numbers", lambda _: [(torch.tensor([3.0, 4.0]),), (torch.arange(1.0, 9),)],
                 (Mistake(lambda x: x / x.abs().mean(), "that is the mean size"),), tolerance=0.01),
        Property("large values in fp16", _half_cases,
                 (Mistake(lambda x: x / (x.pow(2).mean() + 0.01).sqrt(), "you square in fp16"),
                  Mistake(lambda x: x.float() / (x.float().pow(2).mean() + 0.01).sqrt(), "keep x's dtype"))),
        Property("tiny values", lambda _: [(torch.full((2,), 0.01),), (torch.full((3,), 0.03),)],
                 (Mistake(lambda x: x / (x.pow(2).mean().sqrt() + 0.01), "epsilon goes inside the root"),)),
    ),
)  # fmt: skip


@pytest.fixture(autouse=True)
def exercises(monkeypatch):
    monkeypatch.setattr(core, "exercises_of", lambda lesson: {"99": (DOUBLE, ANY_EVEN, NORM)}.get(lesson) or
                        exercises_of(lesson))  # fmt: skip


def message_of(answer, exercise_id="99.1", **options):
    result = check(exercise_id, answer, **options)
    assert not result
    assert repr(result).startswith(f"{exercise_id} not yet: ")
    return result.message


def test_the_right_answer_passes_and_says_in_how_many_cases():
    result = check("99.1", lambda x: x + x)
    assert result and "both cases" in result.message and repr(result).startswith("99.1 passed")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x * x, "you squared"),
        (lambda x: 1 + x, "you added one"),
        (lambda x: 3 * x, r"case 1 of 2, \[\d\] should be .*, got"),
        (lambda x: x.tolist(), "should be a tensor, got .*list"),
        (lambda x: None, "^double returns nothing: is the `return` missing\\?$"),  # noqa: ARG005
        (lambda x: 2 * x[:-1], r"shape should be \(3,\), got \(2,\)"),
        (lambda x: (2 * x).double(), "dtype should be torch.float32, got torch.float64"),
        (lambda x: 2 * x * float("nan"), "3 of 3 numbers are NaN, none should be"),
        (lambda: 1, "raised TypeError"),
        (lambda x: x / "2", "raised TypeError"),
        (3, r"give the function or class itself, double, not 3 \(int\)"),
    ],
)
def test_what_is_wrong_is_said(answer, message):
    assert re.search(message, message_of(answer))


def test_an_exception_names_the_line():
    def double(x):
        y = x
        return y.no_such_thing

    assert re.search(r"AttributeError in line 3 of your function \(return y.no_such_thing\)", message_of(double))


def line_of(source, name="double"):
    """What is said of an answer whose source Python does not know, as after `exec`."""
    namespace = {}
    exec(source, namespace)
    return message_of(namespace[name])


def test_a_line_that_python_cannot_quote_is_numbered_alone():
    assert line_of("def double(x):\n    y = x\n    return y.no") == (
        "it raised AttributeError in line 3 of your function: 'Tensor' object has no attribute 'no'")  # fmt: skip


def test_the_line_of_a_class_and_of_an_object_is_named_too():
    source = "class double:\n    def __init__(self, x):\n        self.y = x\n        1 / 0"
    assert "ZeroDivisionError in line 3 of __init__: division" in line_of(source)
    source = "class Double:\n    def __call__(self, x):\n        1 / 0\ndouble = Double()"
    assert "ZeroDivisionError in line 2 of __call__: division" in line_of(source)
    assert "TypeError" in message_of(functools.partial(int, base=7))


def test_a_message_of_many_lines_is_one_line():
    def double(_):
        raise ValueError("a\nb" + 10_000 * "c")

    assert "\n" not in message_of(double) and len(message_of(double)) < 500


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt(), GeneratorExit()])
def test_an_answer_that_leaves_the_program_is_told_so(error):
    def double(_):
        raise error

    assert f"it raised {type(error).__name__} in line 2" in message_of(double)


@pytest.mark.parametrize("wait", [time.sleep, threading.Event().wait], ids=["sleep", "wait"])
def test_an_answer_that_python_cannot_interrupt_is_left_behind(wait):
    assert "never ends" in message_of(lambda x: wait(7200), seconds=0.3)  # noqa: ARG005


def test_a_loop_that_catches_everything_ends():
    def double(x):
        while True:
            try:
                while True:
                    x = x + 1
            except BaseException:
                tries.append(1)
                if len(tries) > 2:
                    raise

    tries = []
    assert "never ends" in message_of(double, seconds=0.3)


def test_what_is_set_for_the_whole_process_changes_no_verdict():
    def double(x):
        y = x.requires_grad_()
        return torch.autograd.grad((y * y).sum(), y)[0]

    with torch.no_grad():
        assert check("99.1", double)
    with torch.inference_mode():
        assert check("99.1", double)
    torch.set_default_dtype(torch.float64)
    try:
        assert check("99.1", double)
        assert check("99.1", lambda x: torch.tensor([2.0]) * x)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(False)
    try:
        assert check("99.1", double) and not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)


WILD = [
    None, "x", [], {}, (None, None, None), float("nan"), 10**400, print, int, b"x", np.ones(3), np.float32(1),
    torch.ones(0), torch.tensor([1, 2]), torch.ones(2, device="meta"), torch.eye(2).to_sparse(),
    torch.ones(2, dtype=torch.complex64), torch.ones(2, requires_grad=True), "x" * 10**6, Agreeable(),
]  # fmt: skip


@pytest.mark.parametrize("lesson", range(16))
def test_every_exercise_has_a_sentence_for_a_result_of_any_kind(lesson):
    """Each exercise gets two of them, the next in the list."""
    for n, exercise in enumerate(exercises_of(f"{lesson:02d}")):
        for i in range(2):
            value = WILD[(lesson * 13 + n * 2 + i) % len(WILD)]
            result = check(exercise.id, lambda *_a, value=value, **_k: value)
            lines = result.message.split("\n")
            most = 1 if len(exercise.properties) == 1 else core.SENTENCES + 2
            assert not result and all(lines) and len(lines) <= most
            assert all(len(line) < 500 for line in lines)


def test_points_follow_the_level():
    assert DOUBLE.points == 1 and ANY_EVEN.points == 2
    assert check("99.2", lambda: 4).points == 2
    points = {e.level: e.points for lesson in range(16) for e in exercises_of(f"{lesson:02d}")}
    assert points == {"warm-up": 1, "core": 2, "break it": 2, "hard": 3}
    with pytest.raises(InputError, match="'easy'.*warm-up, core"):
        Exercise(id="99.3", name="x", minutes=1, level="easy", reference=None, cases=None)


def test_a_stub_is_not_an_error():
    def double(x):
        raise NotImplementedError("exercise 99.1")

    assert message_of(double) == "double is still to be written"


def test_a_bare_not_implemented_error_is_a_stub_and_pytorchs_own_is_an_error():
    def bare(x):
        raise NotImplementedError

    def torchs(x):
        raise NotImplementedError("'exp' not implemented for 'Bool'")

    assert message_of(bare) == "double is still to be written"
    assert "it raised NotImplementedError in line 2" in message_of(torchs)
    assert "it raised NameError" in message_of(lambda x: no_such_name(x))  # noqa: F821


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_blank_of_an_earlier_exercise_comes_first(wrapped):
    def even():
        raise NotImplementedError("exercise 99.2")

    def double(x):
        try:
            return even() * x
        except NotImplementedError as error:
            if wrapped:
                raise ValueError("no") from error
            raise

    assert message_of(double).startswith("exercise 99.2 comes first: write ")


def test_the_function_of_an_earlier_exercise_that_is_not_there_comes_first():
    answer = eval("lambda x: even() * x", {})
    assert message_of(answer) == "exercise 99.2 comes first: run the cell with your even, then this one again"


def test_a_function_may_return_nothing_where_that_is_right(monkeypatch):
    empty = Exercise(id="99.5", name="empty", minutes=1, level="core", reference=lambda x: x.clear(),
                     cases=lambda _: [([1, 2],)], run=lambda answer, case: (answer(*case), case[0])[1])
    monkeypatch.setattr(core, "exercises_of", lambda _: (empty,))
    assert check("99.5", lambda x: x.clear())
    assert "returns nothing" not in message_of(lambda x: x.append(1), "99.5")


@pytest.mark.parametrize("swallow", [False, True])
def test_an_endless_loop_ends(swallow):
    def double(x):
        while True:
            try:
                x = x + 1
            except Exception:
                if not swallow:
                    raise

    assert "never ends" in message_of(double, seconds=0.3)


def test_time_that_runs_out_later_hits_nobody():
    assert check("99.1", lambda x: 2 * x, seconds=0.2)
    deadline = time.monotonic() + 0.5
    while time.monotonic() < deadline:
        pass


def test_changing_the_input_does_not_spoil_the_cases():
    def double(x):
        return x.mul_(2)

    assert check("99.1", double)


def test_a_check_leaves_the_learners_random_numbers_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    check("99.1", lambda x: 2 * x)
    assert torch.equal(torch.rand(1), expected)


def test_exercises_with_many_answers():
    assert check("99.2", lambda: 4)
    assert message_of(lambda: 6, "99.2") == "6 is not an even number I like"


def test_unknown_exercises_are_refused_with_what_there_is():
    with pytest.raises(InputError, match="99.7.*99.1, 99.2, 99.3"):
        find_exercise("99.7")
    with pytest.raises(InputError, match="'77'"):
        exercises_of("77")
    with pytest.raises(InputError, match=r"such as '04.1', got 3.1 \(float\)"):
        check(3.1, print)


def test_a_package_that_a_lesson_lacks_is_not_called_a_missing_lesson(monkeypatch):
    def fail(_name):
        raise ModuleNotFoundError("No module named 'x'", name="x")

    monkeypatch.setattr(core.importlib, "import_module", fail)
    with pytest.raises(ModuleNotFoundError, match="'x'"):
        exercises_of("03")


# ---- properties ----


def squared_in_fp16(x):
    return x * torch.rsqrt(torch.mean(x * x) + 0.01)


def eps_outside(x):
    y = x.double()
    return (y / ((y @ y / len(y)) ** 0.5 + 0.01)).to(x.dtype)


def both(x):
    return x * (1 / (torch.mean(x**2) ** 0.5 + 0.01))


@pytest.mark.parametrize(("answer", "sentences", "n_right"), [
    (squared_in_fp16, ["large values in fp16: for ([300, -400] (float16)) .*You square in fp16"], 2),
    (eps_outside, ["tiny values: for ([0.01, 0.01]) [0] should be 0.0995037, got 0.5. Epsilon goes inside"], 2),
    (both, ["large values in fp16: ", "You square in fp16", "tiny values: ", "Epsilon goes inside"], 1),
    (lambda x: x.float() / (x.float().pow(2).mean() + 0.01).sqrt(), ["dtype should be torch.float16", "Keep x's"], 2),
    (lambda x: x.float() * 0, ["two numbers: for ([3, 4]) [1] should be", "large values", "tiny values"], 0),
])  # fmt: skip
def test_each_property_that_fails_is_named_with_its_smallest_input_and_its_mistake(answer, sentences, n_right):
    message = message_of(answer, "99.3")
    assert message.startswith(f"{n_right} of 3 properties hold{'s' * (n_right == 1)}\n")
    for sentence in sentences:
        assert re.search(re.escape(sentence).replace(r"\.\*", ".*"), message), message


def test_a_right_answer_holds_in_all_properties_however_it_is_written():
    def norm(x):
        y = x.double()
        return (y * (y.square().sum() / len(y) + 0.01) ** -0.5).to(x.dtype)

    assert "all 6 cases" in check("99.3", norm).message


def test_an_error_in_one_property_does_not_hide_another():
    def norm(x):
        return NORM.reference(x) if len(x) < 3 else eps_outside(x)

    def fails_in_fp16(x):
        if x.dtype == torch.float16:
            raise ValueError("no fp16")
        return eps_outside(x)

    message = message_of(fails_in_fp16, "99.3")
    assert "large values in fp16: it raised ValueError in line 3" in message and "Epsilon goes inside" in message
    assert "tiny values: for ([0.03, 0.03, 0.03])" in message_of(norm, "99.3")


def test_an_error_of_every_property_is_told_once_with_its_smallest_input():
    def norm(x):
        return x / x.no_such_thing

    assert message_of(norm, "99.3") == (
        "it raised AttributeError in line 2 of your function (return x / x.no_such_thing): 'Tensor' object has no "
        "attribute 'no_such_thing', called with ([3, 4])")


@pytest.mark.parametrize(("strict", "told"), [({"strict": False}, True), ({}, False)])
def test_a_mistake_must_explain_all_wrong_cases_unless_its_property_is_not_strict(strict, told):
    double = Property("double", lambda _: [(2,), (3,)], mistakes=(Mistake(lambda x: x * x + 1, "you squared"),),
                      **strict)  # fmt: skip
    of = Exercise(id="99.8", name="double", minutes=1, level="core", reference=lambda x: 2 * x,
                  properties=(double, Property("again", lambda _: [(0,)])))  # fmt: skip
    assert ("You squared" in try_answer(of, lambda x: 5 * (x > 0)).message) == told
    assert "You squared" in try_answer(of, lambda x: x * x + (x > 0)).message


def test_a_hint_says_what_an_error_means_where_it_knows():
    def hint(error, case):
        return f"Cut {len(case[0])} numbers in two" if "unpack" in str(error) else None

    def halves(x):
        a, b = x.split(len(x))
        return a + b

    plus = Property("a sum", lambda _: [(torch.ones(4),)], hint=hint)
    of = Exercise(id="99.8", name="halves", minutes=1, level="core", reference=lambda x: x.sum(0),
                  properties=(plus, Property("again", lambda _: [(torch.ones(2),)])))  # fmt: skip
    assert try_answer(of, halves).message.endswith("called with ([1, 1, 1, 1]). Cut 4 numbers in two")
    assert try_answer(of, lambda x: x.no_such_thing).message.endswith("called with ([1, 1, 1, 1])")


def test_an_error_of_some_properties_is_told_once_also_where_its_text_differs():
    def norm(x):
        if x.dtype == torch.float16 or float(x.abs().max()) < 1:
            raise ValueError(f"{len(x)} numbers")
        return 2 * NORM.reference(x)

    message = message_of(norm, "99.3")
    assert message.startswith("0 of 3 properties hold\n  - two numbers: for ([3, 4]) ")
    assert message.count("it raised ValueError") == 1 and message.count("\n") == 2


def test_properties_that_hold_are_counted_right_where_two_say_the_same():
    same = Property("", lambda _: [(1,)], accept=lambda *_: "no")
    twice = Exercise(id="99.6", name="twice", minutes=1, level="core", reference=abs, properties=(same, same))
    assert core.try_answer(twice, abs).message == "0 of 2 properties hold\n  - no"


def test_a_mistake_that_would_be_wrong_where_the_answer_is_right_is_no_diagnosis():
    halved = Mistake(lambda x: x / 2, "you halved")
    prop = Property("size", lambda _: [(torch.tensor(3.0),), (torch.tensor(8.0),)], (halved,))
    exercise = Exercise(id="99.7", name="size", minutes=1, level="core", reference=lambda x: x, properties=(prop,))
    assert "You halved" in core.try_answer(exercise, lambda x: x * 0.5).message
    assert "You halved" not in core.try_answer(exercise, lambda x: x.clamp(max=4.0)).message


@pytest.mark.parametrize("answer", [lambda x: torch.softmax(x, 0), lambda x: x.softmax(-1),
                                    lambda x: torch.nn.functional.softmax(x, dim=0),
                                    lambda x: torch.nn.Softmax(0)(x)])  # fmt: skip
def test_what_is_forbidden_is_noticed(answer):
    assert "calls PyTorch's own softmax" in message_of(answer, "99.3")
    assert "softmax" not in message_of(lambda x: torch.log_softmax(x, 0), "99.3")


def test_an_exercise_has_cases_or_properties():
    with pytest.raises(InputError, match="cases or properties"):
        Exercise(id="99.4", name="x", minutes=1, level="core", reference=None)
    assert NORM.difficulty == 2 and NORM.importance == 3 and len(NORM.mistakes) == 4


def test_a_fault_that_its_own_property_does_not_show_is_told_all_the_same():
    exercise = fault_exercise(
        lambda x, faults: x + 1 if "one more" in faults and x > 2 else x, {"one more": "That is one more"},
        {"small numbers": (lambda _: [(1,)], ("one more",))}, lambda _: [(1,), (3,)],
        id="00.9", name="same", minutes=1, level="core",
    )  # fmt: skip
    assert try_answer(exercise, lambda x: x)
    message = try_answer(exercise, lambda x: x + (x > 2)).message
    assert message == "2 of 3 properties hold\n  - all results: for (3) the result should be 3, got 4. That is one more"


def _frozen(value):
    """What can be spoilt of a case, as text."""
    if isinstance(value, torch.Tensor):
        numbers = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return repr((value.dtype, value.shape, hash(numbers)))
    if isinstance(value, dict):
        return repr({key: _frozen(part) for key, part in value.items()})
    return repr([_frozen(part) for part in value]) if isinstance(value, list | tuple) else type(value).__name__


@pytest.mark.parametrize("lesson", [f"{n:02d}" for n in range(16)])
def test_an_answer_that_spoils_its_input_spoils_no_case(lesson):
    """Cases are made once and kept; what is given to an answer is a copy."""

    def spoil(*case):
        for part in case:
            if isinstance(part, torch.Tensor):
                part.zero_()
            elif isinstance(part, list):
                part.clear()
        raise ValueError("spoilt")

    for exercise in exercises_of(lesson):
        before = [[_frozen(case) for case in prop.inputs()] for prop in exercise.properties]
        assert not check(exercise.id, spoil)
        after = [[_frozen(case) for case in prop.inputs()] for prop in exercise.properties]
        assert after == before, exercise.id


def test_an_error_gets_the_hint_of_its_property_and_case():
    def rows(x):
        return x / x.sum(-1)

    def hint(error, case):
        return f"keep the axis of {tuple(case[0].shape)}" if "must match" in str(error) else None

    cases = [(torch.ones(2, 2),), (torch.ones(2, 3),)]
    shares = Property("shares", lambda _: cases, hint=hint)
    exercise = Exercise(id="99.8", name="rows", minutes=1, level="core", properties=(shares,),
                        reference=lambda x: x / x.sum(-1, keepdim=True))  # fmt: skip
    assert "Keep the axis of (2, 3)" in try_answer(exercise, rows).message
    other = try_answer(exercise, lambda x: x.nothing).message
    assert "no attribute 'nothing'" in other and "eep the axis" not in other.split("called with")[1]


def test_a_mistakes_sentence_stands_for_that_of_the_result():
    def accept(got, _case):
        return None if got == 1 else Diagnosis.of(f"got {got}", "not one")

    exercise = Exercise(
        id="99.8", name="one", minutes=1, level="core", reference=lambda _: 1,
        properties=(Property("one", lambda _: [(0,), (5,)], (Mistake(lambda x: x, "you returned x"),), accept=accept),),
    )  # fmt: skip
    assert "got 0. You returned x" in (told := try_answer(exercise, lambda x: x).message) and "ot one" not in told
    assert "got 2. Not one" in try_answer(exercise, lambda _: 2).message


def test_a_wrong_number_of_arguments_is_told_once():
    message = try_answer(NORM, lambda x, eps: x / eps).message
    assert message.startswith("it raised TypeError: ") and "\n" not in message
