"""course.checks.lesson14: right answers pass, and each usual mistake is called by its name."""

import math

import pytest
import torch
import torch.nn.functional as F

from llamamm.course.checks import check

# ---- right answers, written another way than the reference ----


def prompt_length(words, pictures, sounds, merge, stack):
    total = words
    for rows, columns in pictures:
        total += len(range(0, rows, merge)) * len(range(0, columns, merge)) + 2
    for n in sounds:
        total += len(range(0, n, stack)) + 2
    return total


def splice(x, where, features):
    places = where.flatten().nonzero().flatten().tolist()
    if len(places) != len(features):
        raise ValueError("counts differ")
    rows = list(x.flatten(0, 1))
    for place, feature in zip(places, features, strict=True):
        rows[place] = feature.to(x.dtype)
    return torch.stack(rows).view(x.shape)


def learned(ids, learn, vocab_size):
    read, targets = [], []
    for now, after, wanted in zip(ids.tolist(), ids[1:].tolist(), learn[1:].tolist(), strict=False):
        read.append(now)
        targets.append(after if wanted and after < vocab_size else -100)
    return torch.tensor(read), torch.tensor(targets)


def owners(ids, token, sizes):
    row_of = [b for b, row in enumerate(ids.tolist()) for number in row if number == token]
    if len(row_of) != sum(sizes):
        raise ValueError("counts differ")
    out = [[] for _ in ids]
    for number, size in enumerate(sizes):
        rows, row_of = set(row_of[:size]), row_of[size:]
        if len(rows) != 1:
            raise ValueError(f"medium {number} lies in rows {rows}")
        out[rows.pop()].append(number)
    return out


def gradient(pixels, scores_of, answer):
    with torch.enable_grad():
        x = pixels.detach().clone().requires_grad_()
        (grad,) = torch.autograd.grad(-scores_of(x).log_softmax(dim=0)[answer], x)
    return grad


def fool(pixels, scores_of, answer, budget):
    up = gradient(pixels, scores_of, answer) > 0
    return torch.where(up, pixels + budget, pixels - budget).clamp(0, 1)


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [("14.1", prompt_length), ("14.2", splice), ("14.3", learned), ("14.4", owners), ("14.5", fool)],
)
def test_the_right_answer_passes(exercise, answer):
    result = check(exercise, answer)
    assert result, result.message


# ---- wrong answers ----


def length_with(frame=2, of_sound=2, merged=lambda merge: merge**2, stacked=lambda n, k: math.ceil(n / k), words=1):
    def answer(n_words, pictures, sounds, merge, stack):
        return (words * n_words + sum(r * c // merged(merge) + frame for r, c in pictures)
                + sum(stacked(n, stack) + of_sound for n in sounds))  # fmt: skip

    return answer


def joint(words, pictures, sounds, merge, stack):
    rest = prompt_length(words, pictures, [], merge, stack)
    return rest + math.ceil(sum(sounds) / stack) + 2 * len(sounds)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(length_with(frame=0, of_sound=0), "start and the end are missing"),
     (length_with(of_sound=0), "a sound, too"), (length_with(frame=1, of_sound=1), "one token for the frame"),
     (length_with(merged=lambda merge: merge), "divide by its square"),
     (length_with(stacked=lambda n, k: n // k), "rounded down"), (joint, "round up each by itself"),
     (length_with(words=0), "the words are missing"), (lambda *_: "15", "should be a number"),
     (length_with(frame=3), "should be 21, got 22")],
)  # fmt: skip
def test_the_length(answer, message):
    result = check("14.1", answer)
    assert not result
    assert message in result.message


def checked(change):
    def answer(x, where, features):
        if int(where.sum()) != len(features):
            raise ValueError
        return change(x, where, features)

    return answer


def assign(x, where, features):
    out = x.clone()
    out[where] = features.to(x.dtype)
    return out


@checked
def in_place(x, where, features):
    x[where] = features.to(x.dtype)
    return x


def unchecked(x, where, features):
    out = x.clone()
    places = where.nonzero().tolist()
    for (b, t), feature in zip(places, features, strict=False):
        out[b, t] = feature.to(x.dtype)
    return out


@checked
def each_row_anew(x, where, features):
    return torch.stack([assign(x[b], where[b], features[: int(where[b].sum())]) for b in range(len(x))])


@checked
def by_columns(x, where, features):
    return assign(x.transpose(0, 1), where.T, features).transpose(0, 1)


@checked
def typed(x, where, features):
    out = x.to(features.dtype).clone()
    out[where] = features
    return out


@pytest.mark.parametrize(
    ("answer", "message"),
    [(in_place, "you changed the embeddings"), (unchecked, "say nothing where the counts differ"),
     (each_row_anew, "begins with the first feature again"), (by_columns, "column by column"),
     (checked(lambda x, where, f: assign(x, where, f.flip(0))), "from the last to the first"),
     (checked(lambda x, where, f: assign(x, where, torch.cat([f[-1:], f[:-1]]))), "off by one"),
     (checked(lambda x, where, f: assign(x, where, f[:1].expand(len(f), -1))), "each place gets its own"),
     (checked(lambda x, where, f: assign(x, where, x[where] + f)), "you add the features"),
     (typed, "the features' dtype"), (lambda x, where, f: x[where], "should"),  # noqa: ARG005
     (lambda x, where, f: None, "returns nothing")],  # noqa: ARG005
)  # fmt: skip
def test_splicing(answer, message):
    result = check("14.2", answer)
    assert not result
    assert message in result.message


def masked(ids, learn, vocab_size):
    return torch.where(learn & (ids < vocab_size), ids, torch.tensor(-100))


def without_end(ids, learn, vocab_size):
    read, targets = learned(ids, learn, vocab_size)
    last = max(n for n, target in enumerate(targets.tolist()) if target != -100)
    return read, torch.cat([targets[:last], torch.tensor([-100]), targets[last + 1 :]])


def long(ids, learn, vocab_size):
    return ids, F.pad(masked(ids, learn, vocab_size)[1:], (0, 1), value=-100)


def mask_late(ids, learn, vocab_size):
    return ids[:-1], torch.where((learn & (ids < vocab_size))[:-1], ids[1:], torch.tensor(-100))


def cut_out(ids, learn, vocab_size):
    words = ids < vocab_size
    return learned(ids[words], learn[words], vocab_size)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(lambda i, w, v: (i[:-1], masked(i, w, v)[:-1]), "not shifted"),
     (lambda i, w, v: (i[1:], masked(i, w, v)[1:]), "shifted what is read"),
     (mask_late, "one place late"), (lambda i, w, v: (i[:-1], i[1:]), "everything is learned"),  # noqa: ARG005
     (lambda i, w, v: learned(i, torch.ones_like(w), v), "the question is learned"),
     (lambda i, w, v: learned(i, w, 10_000), "places of media are learned"),  # noqa: ARG005
     (lambda i, w, v: (i[:-1], (masked(i, w, v)[1:]).clamp(min=0)), "has the target 0"),
     (lambda i, w, v: learned(i, ~w, v), "turn the mask around"), (long, "T - 1 in all"),
     (without_end, "the last learned token is missing"), (cut_out, "they stay in what is read"),
     (lambda i, w, v: (i[:-1].float(), masked(i, w, v)[1:]), "dtype should be torch.int64"),
     (lambda i, w, v: None, "returns nothing")],  # noqa: ARG005
)  # fmt: skip
def test_labels(answer, message):
    result = check("14.3", answer)
    assert not result
    assert message in result.message


def counts_of(ids, token):
    return [row.count(token) for row in ids.tolist()]


def with_totals(ids, token, sizes):
    if sum(counts_of(ids, token)) != sum(sizes):
        raise ValueError
    return trusting(ids, token, sizes)


def trusting(ids, token, sizes):
    out, queue = [], list(enumerate(sizes))
    for count in counts_of(ids, token):
        out.append([])
        while count > 0 and queue:
            number, size = queue.pop(0)
            out[-1].append(number)
            count -= size
    return out


def by_runs(ids, token, sizes):
    if sum(counts_of(ids, token)) != sum(sizes):
        raise ValueError
    out, number = [], 0
    for row in ids.tolist():
        out.append([])
        for n, one in enumerate(row):
            if one == token and (n == 0 or row[n - 1] != token):
                out[-1].append(number)
                number += 1
    return out


def evenly(ids, token, sizes):
    if sum(counts_of(ids, token)) != sum(sizes):
        raise ValueError
    each = len(sizes) // len(ids)
    return [[b * each + n for n in range(each)] for b in range(len(ids))]


def by_the_first(ids, token, sizes):
    if sum(counts_of(ids, token)) != sum(sizes):
        raise ValueError
    out, number = [], 0
    for count in counts_of(ids, token):
        n = count // sizes[0] if count else 0
        out.append([number + k for k in range(n)])
        number += n
    return out


@pytest.mark.parametrize(
    ("answer", "message"),
    [(with_totals, "totals alone"), (trusting, "nothing is checked"), (by_runs, "you count runs"),
     (evenly, "equally many"), (by_the_first, "as long as the first"),
     (lambda *a: [[n - row[0] for n in row] for row in owners(*a)], "begin at 0 in each row"),
     (lambda *a: [row for row in owners(*a) if row], "row without media"),
     (lambda *a: torch.tensor([len(row) for row in owners(*a)]), "should be")],
)  # fmt: skip
def test_whose_media(answer, message):
    result = check("14.4", answer)
    assert not result
    assert message in result.message


def random_signs(pixels, scores_of, answer, budget):  # noqa: ARG001
    noise = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(1))
    return (pixels + budget * torch.where(noise > 0.5, 1.0, -1.0)).clamp(0, 1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(lambda p, s, a, b: (p - b * gradient(p, s, a).sign()).clamp(0, 1), "went down the loss"),
     (lambda p, s, a, b: (p + b * gradient(p, s, a)).clamp(0, 1), "the gradient itself"),
     (random_signs, "at random"),
     (lambda p, s, a, b: (p + b).clamp(0, 1), "brighter everywhere"),  # noqa: ARG005
     (lambda p, s, a, b: p + b * gradient(p, s, a).sign(), "left 0..1"),
     (lambda p, s, a, b: (p + 2 * b * gradient(p, s, a).sign()).clamp(0, 1), "twice the budget"),
     (lambda p, s, a, b: (p + gradient(p, s, a).sign()).clamp(0, 1), "the budget is missing"),  # noqa: ARG005
     (lambda p, s, a, b: p, "the same picture"),  # noqa: ARG005
     (lambda p, s, a, b: fool(p, s, a, b)[:2], "shape should stay"),
     (lambda p, s, a, b: fool(p, s, a, b) * float("nan"), "not finite"),
     (lambda p, s, a, b: fool(p, s, a, b).numpy(), "return a picture"),
     (lambda p, s, a, b: (p - 3 * b).clamp(0, 1), "moved by"),  # noqa: ARG005
     (lambda p, s, a, b: (p - b / 2).clamp(0, 1), "still gives the same answer")],  # noqa: ARG005
)  # fmt: skip
def test_fooling(answer, message):
    result = check("14.5", answer)
    assert not result
    assert message in result.message
