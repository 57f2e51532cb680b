"""course.checks.lesson10: right answers pass, and each usual mistake is called by its name."""

import math

import pytest
import torch
import torch.nn.functional as F

from llamamm.course.checks import check

# ---- right answers, written another way than the reference ----


def rate(step, *, steps, warmup, peak, floor):
    if step < warmup:
        return (step + 1) * peak / warmup
    turned = math.pi * (step - warmup) / (steps - warmup - 1)
    low = floor * peak
    return low + (peak - low) * math.cos(turned / 2) ** 2  # cos^2 of half the angle is (1 + cos) / 2


def targets_of(ids, learn):
    out = []
    for t in range(len(ids)):
        predicted = t + 1 < len(ids) and bool(learn[t + 1])
        out.append(int(ids[t + 1]) if predicted else -100)
    return torch.tensor(out)


def rows_mask(segments):
    B, T = segments.shape
    mask = torch.zeros(B, T, T, dtype=torch.bool)
    for b in range(B):
        for i in range(T):
            for j in range(i + 1):
                mask[b, i, j] = segments[b, i] == segments[b, j]
    return mask


def count(targets):
    return int((targets >= 0).sum())


def accumulate(weight, pieces):
    n, mean = sum(count(t) for _, t in pieces), 0.0
    for hidden, targets in pieces:
        loss = F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum").div(n)
        loss.backward()
        mean += loss.item()
    return mean


def smuggle(text):
    words = text.split()
    return " well ".join(" ".join(words[i : i + 6]) for i in range(0, len(words), 2))


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [("10.1", rate), ("10.2", targets_of), ("10.3", rows_mask), ("10.4", accumulate), ("10.5", smuggle)],
)
def test_the_right_answer_passes(exercise, answer):
    result = check(exercise, answer)
    assert result, result.message


def test_the_mean_may_be_a_tensor():
    assert check("10.4", lambda weight, pieces: torch.tensor(accumulate(weight, pieces)))


# ---- wrong answers ----


def schedule(up=lambda step, warmup: (step + 1) / warmup, done=None, left=None, mix=None):
    done = done or (lambda step, steps, warmup: (step - warmup) / (steps - 1 - warmup))
    left = left or (lambda d: 0.5 + 0.5 * math.cos(math.pi * d))
    mix = mix or (lambda floor, rest, _: floor + rest - floor * rest)

    def answer(step, *, steps, warmup, peak, floor):
        if step < warmup:
            return peak * up(step, warmup)
        return peak * mix(floor, left(done(step, steps, warmup)), peak)

    return answer


def never_warm(step, *, steps, warmup, peak, floor):
    done = (step - warmup) / (steps - 1 - warmup)
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(schedule(up=lambda step, warmup: step / warmup), "first step has the rate 0"), (never_warm, "no warm-up"),
     (schedule(done=lambda step, steps, _: step / (steps - 1)), "begins at step 0"),
     (schedule(done=lambda step, steps, warmup: (step - warmup) / (steps - warmup)), "never reached"),
     (schedule(left=lambda d: math.cos(math.pi * d) ** 2), "comes up again"),
     (schedule(left=lambda d: math.sin(math.pi / 2 * (1 - d))), "quarter turn"),
     (schedule(left=lambda d: math.cos(math.pi * d)), "goes from 1 to -1"),
     (schedule(left=lambda d: 1 + math.cos(math.pi * d)), "halve it"), (schedule(left=lambda d: 1 - d), "a line"),
     (schedule(mix=lambda _floor, rest, _peak: rest), "falls to 0"),
     (schedule(mix=lambda floor, rest, _: max(floor, rest)), "squeeze it"),
     (schedule(mix=lambda floor, rest, peak: floor / peak + (1 - floor / peak) * rest), "share of the peak"),
     (schedule(mix=lambda floor, rest, _: floor + rest), "above the peak"),
     (lambda step, **_: None, "returns nothing"), (lambda step, **_: 0.5, "in case 1 of 4")],  # noqa: ARG005
)  # fmt: skip
def test_the_schedule(answer, message):
    result = check("10.1", answer)
    assert not result
    assert message in result.message


def filled(ids, learn, ignore=-100):
    return torch.where(learn, ids, torch.full_like(ids, ignore))


def by_place(ids, learn):
    shifted = torch.full_like(ids, -100)
    shifted[:-1] = ids[1:]
    shifted[~learn] = -100
    return shifted


def with_last(targets):
    return torch.cat([targets[1:], torch.tensor([-100])])


@pytest.mark.parametrize(
    ("answer", "message"),
    [(filled, "didn't shift"), (lambda i, m: torch.cat([torch.tensor([-100]), filled(i, m)[:-1]]), "wrong way"),
     (by_place, "the mark of the place"), (lambda i, _: with_last(i), "learn everything"),
     (lambda i, m: with_last(filled(i, ~m)), "wrong way round"),
     (lambda i, m: filled(i, m).roll(-1), "predicts the first token"), (lambda i, m: filled(i, m)[1:], "one too short"),
     (lambda i, m: torch.cat([filled(i, m, 0)[1:], torch.tensor([-100])]), "0, which is a token"),
     (lambda i, m: torch.cat([filled(i, m, -1)[1:], torch.tensor([-100])]), "with -1"),
     (lambda i, m: targets_of(i, m).tolist(), "should be a tensor"),
     (lambda i, m: targets_of(i, m).float(), "dtype should be torch.int64")],  # fmt: skip
)  # fmt: skip
def test_targets(answer, message):
    result = check("10.2", answer)
    assert not result
    assert message in result.message


def same(segments):
    return segments.unsqueeze(2) == segments.unsqueeze(1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(same, "see the future"), (lambda s: torch.ones(*s.shape, s.shape[1]).tril().bool(), "see each other"),
     (lambda s: same(s).triu(), "rows and columns are swapped"), (lambda s: same(s).tril(-1), "no token sees itself"),
     (lambda s: (s.unsqueeze(2) >= s.unsqueeze(1)).tril(), "texts before it"),
     (lambda s: same(s[:1]).tril().repeat(len(s), 1, 1), "row 0's mask"),
     (lambda s: same(s).tril() & (s > 0).unsqueeze(1), "filling sees nothing"),
     (lambda s: ~rows_mask(s), "may NOT look"), (lambda s: rows_mask(s).unsqueeze(1), "dimension of heads"),
     (lambda s: rows_mask(s)[0], "shape should be (1, 6, 6)"),
     (lambda s: rows_mask(s).float(), "dtype should be torch.bool")],  # fmt: skip
)  # fmt: skip
def test_the_packed_mask(answer, message):
    result = check("10.3", answer)
    assert not result
    assert message in result.message


def mean_of_means(weight, pieces):
    total = 0.0
    for hidden, targets in pieces:
        loss = F.cross_entropy(hidden @ weight.T, targets, reduction="sum") / max(count(targets), 1) / len(pieces)
        loss.backward()
        total += loss.item()
    return total


def built_in_mean(weight, pieces):
    total = 0.0
    for hidden, targets in pieces:
        loss = F.cross_entropy(hidden @ weight.T, targets) / len(pieces)
        loss.backward()
        total += loss.item()
    return total


def added_means(weight, pieces):
    return len(pieces) * mean_of_means_scaled(weight, pieces)


def mean_of_means_scaled(weight, pieces):
    mean = mean_of_means(weight, pieces)
    weight.grad *= len(pieces)
    return mean


def divided_by(number):
    def answer(weight, pieces):
        n = number(pieces)
        loss = sum(F.cross_entropy(h @ weight.T, t, reduction="sum") for h, t in pieces) / n
        loss.backward()
        return loss

    return answer


def clears(weight, pieces):
    n, mean = sum(count(t) for _, t in pieces), 0.0
    for hidden, targets in pieces:
        weight.grad = None
        loss = F.cross_entropy(hidden @ weight.T, targets, reduction="sum") / n
        loss.backward()
        mean += loss.item()
    return mean


def returns_nothing(weight, pieces):
    accumulate(weight, pieces)


def divides_late(weight, pieces):
    total = 0.0
    for hidden, targets in pieces:
        loss = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
        loss.backward()
        total += loss.item()
    return total / sum(count(t) for _, t in pieces)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(mean_of_means, "averaged the pieces' means"), (built_in_mean, "0 / 0"),
     (added_means, "added up the pieces' means"),
     (divided_by(lambda _: 1), "you didn't divide"), (divided_by(lambda p: sum(len(t) for _, t in p)), "all places"),
     (divided_by(len), "by the number of pieces"), (clears, "last piece's gradient"),
     (divides_late, "gradient is that of the sum"),
     (lambda w, p: accumulate(w, p) * sum(count(t) for _, t in p), "return the sum"),
     (lambda *_: 0.0, "weight.grad is None"), (returns_nothing, "returns nothing")],
)  # fmt: skip
def test_accumulation(answer, message):
    result = check("10.4", answer)
    assert not result
    assert message in result.message


def apart(text):
    words = text.split()
    return " um ".join(" ".join(words[i : i + 7]) for i in range(0, len(words), 7))


@pytest.mark.parametrize(
    ("answer", "message"),
    [(lambda text: text, "the detector finds"), (lambda text: text.upper(), "spelling, lines"),
     (lambda text: text.replace(" ", ", "), "spelling, lines"),
     (lambda text: " ".join(reversed(text.split())), "only 0% of the sequences"),
     (apart, "at least half"),
     (lambda text: smuggle(text) * 9, "ten times as long"), (lambda text: text.split(), "return a text")],
)  # fmt: skip
def test_a_leak_that_is_found_or_none(answer, message):
    result = check("10.5", answer)
    assert not result
    assert message in result.message
