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
    assert message.startswith("0 of 4 properties hold\n  - more: it raised AttributeError")
    assert message.count("AttributeError") == 1 and len(message.splitlines()) == 2
