"""course.checks: a diagnosis for whatever a learner hands in, in bounded time."""

import json
import re
import time

import pytest
import torch

from llamamm.course import checks
from llamamm.course.checks import Exercise, Mistake, check, core, exercises_of, find_exercise
from llamamm.course.checks.runner import check_notebook, find_notebook
from llamamm.errors import InputError

DOUBLE = Exercise(
    id="99.1", name="double", minutes=1, level="warm-up", reference=lambda x: 2 * x,
    cases=lambda g: [(torch.randn(3, generator=g),), (torch.ones(2, 2),)],
    mistakes=(Mistake(lambda x: x * x, "you squared"), Mistake(lambda x: x + 1, "you added one")),
)  # fmt: skip
ANY_EVEN = Exercise(
    id="99.2", name="even", minutes=1, level="break it", reference=lambda: 2, cases=lambda _g: [()],
    accept=lambda result, _case: None if result == 4 or result == 2 else f"{result} is not an even number I like",
)  # fmt: skip


@pytest.fixture(autouse=True)
def exercises(monkeypatch):
    monkeypatch.setattr(core, "exercises_of", lambda lesson: {"99": (DOUBLE, ANY_EVEN)}.get(lesson) or
                        exercises_of(lesson))  # fmt: skip


def message_of(answer, exercise_id="99.1", **options):
    result = check(exercise_id, answer, **options)
    assert not result
    assert repr(result).startswith(f"{exercise_id} not yet: ")
    return result.message


def test_the_right_answer_passes_and_says_in_how_many_cases():
    result = check("99.1", lambda x: x + x)
    assert result and "all 2 cases" in result.message and repr(result).startswith("99.1 passed")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: x * x, "you squared"),
        (lambda x: 1 + x, "you added one"),
        (lambda x: 3 * x, r"case 1 of 2, \[\d\] should be .*, got"),
        (lambda x: x.tolist(), "should be a tensor, got .*list"),
        (lambda x: None, "should be a tensor, got None"),  # noqa: ARG005
        (lambda x: 2 * x[:-1], r"shape should be \(3,\), got \(2,\)"),
        (lambda x: (2 * x).double(), "dtype should be torch.float32, got torch.float64"),
        (lambda x: 2 * x * float("nan"), "3 of 3 numbers are NaN, 0 should be"),
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


def test_a_stub_is_not_an_error():
    def double(x):
        raise NotImplementedError("exercise 99.1")

    assert message_of(double) == "double is still to be written"


@pytest.mark.parametrize("swallow", [False, True])
def test_an_endless_loop_ends(swallow):
    def double(x):
        while True:
            try:
                x = x + 1
            except Exception:
                if not swallow:
                    raise

    start = time.monotonic()
    assert "never ends" in message_of(double, seconds=0.3)
    assert time.monotonic() - start < 5


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


@pytest.mark.parametrize(
    ("expected", "got", "message"),
    [
        (1.0, 1.00001, None),
        (1.0, torch.tensor(1.0), None),
        (1.0, 1.1, "should be 1, got 1.1"),
        (1, "1", "should be a number"),
        (True, 1, None),
        ([1, 2], [1, 2], None),
        ([1, 2], (1, 2), "list.*tuple"),
        ([1, 2], [1], "2 parts, got 1"),
        ({"a": torch.ones(1)}, {"a": torch.zeros(1)}, r"at \['a'\]: \[0\] should be 1, got 0"),
        ({"a": 1}, {"b": 1}, "keys"),
        ("ab", "ba", "'ab'.*'ba'"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), r"\[1\] should be 2, got 3"),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([float("nan"), 1.0]), None),
        (torch.tensor([float("nan"), 1.0]), torch.tensor([7.0, 1.0]), "0 of 2 numbers are NaN, 1 should be"),
        (torch.tensor(float("-inf")), torch.tensor(float("-inf")), None),
        (torch.tensor([float("-inf"), 0.0]), torch.tensor([0.0, 0.0]), r"\[0\] should be -inf, got 0"),
    ],
)
def test_differences_in_words(expected, got, message):
    problem = core.difference(expected, got, 1e-4)
    assert problem is None if message is None else re.search(message, problem)


def test_unknown_exercises_are_refused_with_what_there_is():
    with pytest.raises(InputError, match="99.7.*99.1, 99.2"):
        find_exercise("99.7")
    with pytest.raises(InputError, match="'77'"):
        exercises_of("77")


# ---- from the command line ----


def notebook(path, *cells):
    content = {"cells": [{"cell_type": "code", "source": source.splitlines(keepends=True)} for source in cells]}
    path.write_text(json.dumps(content))
    return path


CHECK = 'from llamamm.course.checks import check\ncheck("99.1", double)'


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["# exercise: 99.1\ndef double(x):\n    return 2 * x", CHECK], None),
        (["# exercise: 99.1\ndef double(x):\n    return x * x", CHECK], "you squared"),
        (["# exercise: 99.1\ndef double(x):\n    raise NotImplementedError()", CHECK], "still to be written"),
        (["# exercise: 99.1\ndouble = 1 / 0", CHECK], "ZeroDivisionError"),
        (["# exercise: 99.1\ndef triple(x): pass", CHECK], "NameError"),
        (["# exercise: 99.1\ndef double(x): pass", "print('hello')"], "no longer ends with check"),
        (["# exercise: 99.1\ndef double(x): pass"], "no longer ends with check"),
    ],
)
def test_a_notebooks_cells_are_run_and_checked(tmp_path, cells, message, capsys):
    (result,) = check_notebook(notebook(tmp_path / "n.ipynb", "print('not an exercise')", *cells))
    assert bool(result) == (message is None)
    assert message is None or message in result.message
    assert capsys.readouterr().out == ""


def test_one_failure_does_not_hide_the_next(tmp_path):
    cells = ["# exercise: 99.1\n1 / 0", CHECK, "# exercise: 99.2\ndef even(): return 4",
             'from llamamm.course.checks import check\ncheck("99.2", even)']  # fmt: skip
    assert [bool(r) for r in check_notebook(notebook(tmp_path / "n.ipynb", *cells))] == [False, True]


def test_a_cell_that_never_ends_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(checks.runner, "TIME_LIMIT", 0.3)
    (result,) = check_notebook(notebook(tmp_path / "n.ipynb", "# exercise: 99.1\nwhile True: pass", CHECK))
    assert "still running" in result.message


def test_what_is_no_notebook_of_exercises_is_refused(tmp_path):
    (tmp_path / "n.ipynb").write_text("nonsense")
    with pytest.raises(InputError, match="not a notebook"):
        list(check_notebook(tmp_path / "n.ipynb"))
    with pytest.raises(InputError, match="no exercise"):
        list(check_notebook(notebook(tmp_path / "n.ipynb", "1 + 1")))


def test_the_notebook_is_found_by_its_number(tmp_path):
    folder = tmp_path / "notebooks" / "exercises"
    folder.mkdir(parents=True)
    path = notebook(folder / "03_rope.ipynb")
    assert find_notebook("03", tmp_path) == path
    assert find_notebook(str(path), tmp_path) == path
    with pytest.raises(InputError, match="04_"):
        find_notebook("04", tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        find_notebook("x.ipynb", tmp_path)
