"""course.checks.faults: no wrong answer passes, a case is told in words, an error in all properties is told once."""

from llamamm.course.checks.core import try_answer
from llamamm.course.checks.faults import fault_exercise


def double(x, faults):
    return 2 * x + ("one more" in faults) - ("one less" in faults) + 2 * ("two more" in faults)


def of_doubling(**more):
    """For x = 1 "two more" gives 4, and so does squaring what was doubled."""
    return fault_exercise(
        double, {"one more": "You added one", "one less": "You took one away", "two more": "You added two"},
        {"more": (lambda _: [(1,)], ("one more",)), "less": (lambda _: [(3,)], ("one less", "two more"))},
        lambda _: [(5,), (1,)], id="04.1", name="double", minutes=1, level="core", **more)  # fmt: skip


def test_a_wrong_answer_that_looks_like_the_faults_of_other_properties_does_not_pass():
    assert try_answer(of_doubling(), lambda x: 2 * x)
    result = try_answer(of_doubling(), lambda x: 2 * x + 2 * (x == 1))  # in the group that tells of "one more"
    assert not result
    assert result.message == "3 of 4 properties hold\n  - more: for (1) the result should be 2, got 4"
    result = try_answer(of_doubling(), lambda x: 2 * x + (x == 5))  # where form and results are compared
    assert "all results: for (5) the result should be 10, got 11" in result.message


def test_a_case_may_be_told_in_words():
    exercise = of_doubling(show=lambda case: f"x = {case[0]}", run=lambda answer, case: answer(case[0]))
    message = try_answer(exercise, lambda x: 2 * x + 1).message
    assert message == "3 of 4 properties hold\n  - more: for x = 1: the result should be 2, got 3. You added one"
    assert "for x = 1" in try_answer(exercise, lambda x: x.nothing).message


def test_an_error_that_all_properties_meet_is_told_once():
    message = try_answer(of_doubling(), lambda x: x.nothing).message
    assert message.startswith("it raised AttributeError in line 1 of your function (")
    assert message.endswith("'int' object has no attribute 'nothing', called with (1)")


class Agreeable:
    def __eq__(self, other):
        return True

    __hash__ = None


def test_what_compares_equal_to_everything_is_no_number():
    by_equality = of_doubling(differs=lambda expected, got: None if expected == got else f"should be {expected}")
    assert try_answer(by_equality, lambda x: 2 * x)
    message = try_answer(by_equality, lambda _: Agreeable()).message
    assert message.startswith("3 of 4 properties hold\n  - form: for (5) the result should be a number, got <")


def test_cases_may_hold_what_cannot_be_pickled():
    """A class whose module was loaded anew, as by autoreload, is not the one that pickle would find."""

    class Shape:
        side = 3

    exercise = fault_exercise(
        lambda shape, faults: shape.side + ("more" in faults), {"more": "That is one more"},
        {"the side": (lambda _: [(Shape(),)], ("more",))}, lambda _: [(Shape(),)],
        id="99.9", name="side", minutes=1, level="core",
    )  # fmt: skip
    assert try_answer(exercise, lambda shape: shape.side)
    assert "That is one more" in try_answer(exercise, lambda shape: shape.side + 1).message
