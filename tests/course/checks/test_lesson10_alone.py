"""course.checks.lesson10: usual mistakes that are told alone."""

import pytest
import torch
import torch.nn.functional as F

from llamamm.course.checks import check, exercises_of
from tests.course.checks.test_lesson10 import TOLD, count, mean_loss, rate_by_formula, targets


def weighted_means(weight, pieces):
    """Right, were it not for a piece without targets."""
    total, n_targets = 0.0, sum(count(t) for _, t in pieces)
    for hidden, wanted in pieces:
        loss = F.cross_entropy(hidden @ weight.T, wanted) * count(wanted) / n_targets
        loss.backward()
        total += loss.item()
    return total


def divides_by_those_so_far(weight, pieces):
    total, n_targets = 0.0, 0
    for hidden, wanted in pieces:
        n_targets += count(wanted)
        loss = F.cross_entropy(hidden @ weight.T, wanted, reduction="sum") / n_targets
        loss.backward()
        total += loss.item()
    return total


def steps_too(weight, pieces):
    loss = mean_loss(weight, pieces)
    weight.data -= 0.1 * weight.grad
    return loss


def steps_with_old_means(weight, grad, m, v, t, rate, decay):
    move = m / (1 - 0.9**t) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
    return (1 - rate * decay) * weight - rate * move, 0.9 * m + 0.1 * grad, 0.95 * v + 0.05 * grad**2


def adamw_from(m, v, weight, t, rate, decay):
    return (1 - rate * decay) * weight - rate * m / (1 - 0.9**t) / ((v / (1 - 0.95**t)).sqrt() + 1e-8), m, v


def adamw_early(weight, grad, m, v, t, rate, decay):
    m, v = 0.9 * m + 0.1 * grad, 0.95 * v + 0.05 * grad**2
    return adamw_from(m, v, weight, t - 1, rate, decay)


def adamw_with_swapped_shares(weight, grad, m, v, t, rate, decay):
    return adamw_from(0.1 * m + 0.9 * grad, 0.05 * v + 0.95 * grad**2, weight, t, rate, decay)


def rate_after(end, up, step, *, steps, warmup, peak, floor):
    """The package's rate, with a warm-up of one's own up to a step."""
    return up(step) if step < end else rate_by_formula(step, steps, warmup, peak, floor, ())


ALONE = [  # usual mistakes beside the ones above
    ("10.1", lambda i, m: targets(i, m & torch.cat((m[:1], m[:-1]))), "lose the first token of each answer"),
    ("10.1", lambda i, m: (out := targets(i * m, m == m)).masked_fill(out == 0, -100), "lose token 0"),
    ("10.3", divides_by_those_so_far, "targets counted so far"),
    ("10.3", lambda weight, pieces: mean_loss(weight, pieces) / len(pieces), "divided by the pieces again"),
    ("10.5", adamw_early, "exponent is t − 1"),
    ("10.5", steps_with_old_means, "stepped with the old m and v"),
    ("10.5", adamw_with_swapped_shares, "swapped the shares"),
    ("10.6", lambda step, **s: rate_after(s["warmup"], lambda n: s["peak"] * (n + 1) / (s["warmup"] + 1), step, **s),
     "ends below the peak"),
    ("10.6", lambda step, **s: rate_after(
        s["warmup"], lambda n: s["peak"] * (s["floor"] + (1 - s["floor"]) * (n + 1) / s["warmup"]), step, **s),
     "begins at the floor"),
    ("10.6", lambda step, **s: rate_after(s["warmup"] + 1, lambda n: s["peak"] * (n + 1) / max(1, s["warmup"]), step,
                                          **s), "a step too long"),
]  # fmt: skip


@pytest.mark.parametrize(("exercise", "answer", "message"), ALONE)
def test_a_usual_mistake_is_told_alone(exercise, answer, message):
    result = check(exercise, answer)
    assert not result and message in result.message, result.message
    assert not any(told in result.message for told in TOLD[exercise].values()), result.message


def test_an_accumulation_that_leaves_more_than_a_gradient_is_refused():
    assert "changes the weight itself" in check("10.3", steps_too).message
    assert "0 / 0 = NaN" in check("10.3", weighted_means).message


def test_an_answer_without_arguments_is_told_without_them():
    assert "for ()" not in check("10.4", lambda: (torch.zeros(2, 1), [])).message


def test_every_fault_of_an_exercise_is_planted_here():
    for exercise in exercises_of("10"):
        alone = sum(number == exercise.id for number, *_ in ALONE) + (exercise.id == "10.3")  # 0 / 0 needs a mean
        assert len(exercise.mistakes) == len(TOLD.get(exercise.id, {})) + alone
