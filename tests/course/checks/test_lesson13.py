"""course.checks.lesson13: right answers pass, and each usual mistake is called by its name."""

import math

import pytest
import torch
import torch.nn.functional as F

from llamamm.course.checks import check
from llamamm.course.checks.core import find_exercise

# ---- right answers, written another way than the reference ----


def places(rows, columns, merge, latents, gated):
    if gated:
        return 1
    return 2 + (latents if latents > 0 else (rows // merge) * (columns // merge))


def squares(features, rows, columns, merge):
    """Each square of features (B, merge, merge, F), row by row."""
    grid = features.unflatten(1, (rows, columns))
    return [grid[:, y : y + merge, x : x + merge]
            for y in range(0, rows, merge) for x in range(0, columns, merge)]  # fmt: skip


def shuffle(features, rows, columns, merge):
    return torch.stack([square.flatten(1) for square in squares(features, rows, columns, merge)], dim=1)


def stack(features, mask, merge):
    clean = torch.where(mask[..., None], features, torch.zeros(()))
    parts, real = [], []
    for begin in range(0, features.shape[1], merge):
        part = clean[:, begin : begin + merge].flatten(1)
        parts.append(F.pad(part, (0, merge * features.shape[2] - part.shape[1])))
        real.append(mask[:, begin])
    return torch.stack(parts, dim=1), torch.stack(real, dim=1)


def fetch(latents, features, mask, q, k, v):
    out = []
    for some, seen, real in zip(latents, features, mask, strict=True):
        context = torch.cat([seen[real], some])
        shares = ((some @ q) @ (context @ k).T / math.sqrt(some.shape[1])).softmax(dim=1)
        out.append(some + shares @ (context @ v))
    return torch.stack(out)


def gate(a):
    return (a * a / (1 + a * a)) * torch.sign(a)


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [("13.1", places), ("13.2", shuffle), ("13.3", stack), ("13.4", fetch), ("13.5", gate),
     ("13.5", lambda a: a.abs() * a / (1 + a**2)), ("13.5", lambda a: 1 - torch.exp(-(a**2))),
     ("13.5", lambda a: F.relu(a).tanh())],
)  # fmt: skip
def test_right_answers_pass(exercise, answer):
    result = check(exercise, answer)
    assert result, result.message


@pytest.mark.parametrize("number", range(1, 6))
def test_the_reference_passes_and_its_mistakes_do_not(number):
    exercise = find_exercise(f"13.{number}")
    assert check(exercise.id, exercise.reference)
    assert len(exercise.mistakes) >= 3
    for mistake in exercise.mistakes:
        assert check(exercise.id, mistake.answer).message == mistake.message


def wrong(exercise, answer, message):
    result = check(exercise, answer)
    assert not result
    assert message in result.message


# ---- wrong answers, as a learner writes them ----


@pytest.mark.parametrize(
    ("answer", "message"),
    [(lambda *a: places(*a) - (0 if a[4] else 2), "a start and an end stand around"),
     (lambda *a: places(*a) - (0 if a[4] else 1), "two more, not one"),
     (lambda r, c, m, n, g: 1 if g else (n or r * c // m) + 2, "merge squared"),
     (lambda r, c, _, n, g: 1 if g else (n or r * c) + 2, "you didn't merge"),
     (lambda r, c, m, n, g: 1 if g else r * c // m**2 + n + 2, "beside the latents"),
     (lambda r, c, m, n, g: 1 if g else (n // m**2 if n else r * c // m**2) + 2, "you divided the latents"),
     (lambda r, c, m, _, g: 1 if g else r * c // m**2 + 2, "the Perceiver is missing"),
     (lambda r, c, m, n, g: 0 if g else places(r, c, m, n, g), "the learned start still stands"),
     (lambda r, c, m, n, _: places(r, c, m, n, False), "nothing is spliced"),
     (lambda *a: str(places(*a)), "should be a number"), (lambda r, c: r * c, "it raised TypeError")],
)  # fmt: skip
def test_places(answer, message):
    wrong("13.1", answer, message)


def inside(change):
    """Squares (B, merge, merge, F) changed before they are laid out."""
    def answer(features, rows, columns, merge):
        return torch.stack([change(s).flatten(1) for s in squares(features, rows, columns, merge)], dim=1)

    return answer


def down_the_columns(features, rows, columns, merge):
    found = shuffle(features, rows, columns, merge)
    return found.unflatten(1, (rows // merge, columns // merge)).transpose(1, 2).flatten(1, 2)


def far_apart(features, rows, columns, merge):
    grid = features.unflatten(1, (rows, columns))
    R, C = rows // merge, columns // merge
    return torch.stack([grid[:, y::R, x::C].flatten(1) for y in range(R) for x in range(C)], dim=1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(lambda x, _r, _c, m: x.reshape(len(x), -1, m * m * x.shape[2]), "runs of a row are merged"),
     (down_the_columns, "squares go down the columns"),
     (inside(lambda s: s.transpose(1, 2)), "inside each square you go down"),
     (lambda x, r, c, m: down_the_columns(inside(lambda s: s.transpose(1, 2))(x, r, c, m), r // m, c // m, 1),
      "the grid is tipped over"),
     (inside(lambda s: s.permute(0, 3, 1, 2)), "features came apart: each"),
     (inside(lambda s: s.permute(0, 3, 2, 1)), "came apart, and go down"),
     (lambda x, r, c, m: shuffle(x, c, r, m), "swapped rows and columns"),
     (far_apart, "far apart"), (inside(lambda s: s.mean(dim=(1, 2))), "the mean of a square"),
     (inside(lambda s: s.sum(dim=(1, 2))), "added a square's features"), (inside(lambda s: s[:, 0, 0]), "kept one"),
     (lambda x, r, c, m: shuffle(x, r, c, m).transpose(1, 2), "shape should be (1, 6, 12)"),
     (lambda x, r, c, m: shuffle(x, r, c, m).double(), "dtype should be torch.float32"),
     (lambda x, r, c, m: x.view(r, c, m), "it raised RuntimeError")],
)  # fmt: skip
def test_neighbours(answer, message):
    wrong("13.2", answer, message)


def masked_by(of_stack):
    """of_stack: from (B, M, merge) bool, filled with False, to a mask of the stacks."""
    def answer(features, mask, merge):
        filled = F.pad(mask, (0, -mask.shape[1] % merge))
        return stack(features, mask, merge)[0], of_stack(filled.unflatten(1, (-1, merge)))

    return answer


def whole_stacks_only(features, mask, merge):
    n = features.shape[1] // merge * merge
    return stack(features[:, :n], mask[:, :n], merge)


def filled_before(features, mask, merge):
    n = -features.shape[1] % merge
    return stack(F.pad(features, (0, 0, n, 0)), F.pad(mask, (n, 0)), merge)


def filled_by_the_last(features, mask, merge):
    clean = features * mask[..., None]
    missing = -features.shape[1] % merge
    filled = torch.cat([clean] + [clean[:, -1:]] * missing, dim=1)
    return filled.reshape(len(filled), -1, merge * filled.shape[2]), mask[:, ::merge]


def stacked(change):
    """Stacks (B, M, merge, F) changed before they are laid out."""
    def answer(features, mask, merge):
        found, real = stack(features, mask, merge)
        return change(found.unflatten(2, (merge, -1))).flatten(2), real

    return answer


def every_nth(features, mask, merge):
    found, real = stack(features, mask, merge)
    frames = found.reshape(len(found), -1, features.shape[2])
    M = found.shape[1]
    return torch.cat([frames[:, i * M : (i + 1) * M] for i in range(merge)], dim=2), real


@pytest.mark.parametrize(
    ("answer", "message"),
    [(lambda x, mask, m: (stack(x, torch.ones_like(mask), m)[0], mask[:, ::m]), "what isn't real is still"),
     (whole_stacks_only, "you drop the last frames"), (filled_before, "fill up at the beginning"),
     (filled_by_the_last, "with its last frame"), (masked_by(lambda g: g.all(dim=2)), "only if all"),
     (masked_by(lambda g: g[..., -1]), "only if all its frames are, or its last"),
     (masked_by(lambda g: g[..., 0] | True), "every stack real"),
     (lambda x, mask, m: (stack(x, mask, m)[0], mask[:, : -(-mask.shape[1] // m)]), "first M frames' own"),
     (every_nth, "far apart"), (stacked(lambda s: s.transpose(2, 3)), "came apart"),
     (stacked(lambda s: s.mean(dim=2, keepdim=True)), "the mean of the frames"),
     (lambda x, mask, m: stack(x, mask, m)[0], "(tuple)"),
     (lambda x, mask, m: (stack(x, mask, m)[0], mask[:, ::m].float()), "dtype should be torch.bool"),
     (lambda x, _, m: x.unflatten(1, (-1, m)), "it raised RuntimeError")],
)  # fmt: skip
def test_frames(answer, message):
    wrong("13.3", answer, message)


def attention(context=lambda z, x: torch.cat([x, z], 1), allowed=lambda m, n: F.pad(m, (0, n), value=True),
              divide=lambda s, n: s / n**0.5, shares=None, add=lambda z, _: z, value=None):  # fmt: skip
    def answer(latents, features, mask, q, k, v):
        seen = context(latents, features)
        scores = divide(latents @ q @ (seen @ k).mT, latents.shape[2])
        real = allowed(mask, latents.shape[1])[:, None]
        weights = scores.masked_fill(~real, -1e30).softmax(-1) if shares is None else shares(scores, real)
        return add(latents, q) + weights @ (seen @ v if value is None else value(seen, k))

    return answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [(attention(context=lambda _, x: x, allowed=lambda m, _: m), "see the features alone"),
     (attention(context=lambda z, x: torch.cat([z, x], 1)), "on the wrong columns"),
     (attention(allowed=lambda m, n: F.pad(m, (0, n))), "not each other"),
     (attention(allowed=lambda m, n: F.pad(~m, (0, n), value=True)), "wrong way round"),
     (attention(shares=lambda s, _: s.softmax(-1)), "mask isn't used"),
     (attention(shares=lambda s, real: (s * real).softmax(-1)), "a score of 0 still"),
     (attention(shares=lambda s, real: s.softmax(-1) * real), "after the softmax"),
     (attention(divide=lambda s, _: s), "aren't divided"), (attention(divide=lambda s, n: s / n), "by its root"),
     (attention(shares=lambda s, real: s.masked_fill(~real, -torch.inf).softmax(1)), "over the latents"),
     (attention(add=lambda z, _: 0 * z), "only what was fetched"),
     (attention(add=lambda z, q: z @ q), "to the queries"),
     (attention(value=lambda seen, k: seen @ k), "keys for values"),
     (attention(value=lambda seen, _: seen), "matrix v isn't used"),
     (lambda *a: fetch(*a).transpose(1, 2), "shape should be (1, 2, 4)"),
     (lambda z, x, m, q, k, v: z @ x, "it raised RuntimeError")],  # noqa: ARG005
)  # fmt: skip
def test_latents(answer, message):
    wrong("13.4", answer, message)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(lambda a: a.tanh(), "tanh itself"), (lambda a: (a / 2).tanh() / 2 + 0.5, "half open"),
     (lambda a: (a / 2).tanh(), "tanh(a / 2)"), (lambda a: torch.zeros_like(a) * a, "closed everywhere"),
     (lambda a: a * a, "a squared"), (lambda a: a * a * a, "a cubed"), (lambda a: a.sin(), "sin has slope 1"),
     (lambda a: a.atan() / 2, "slope of your gate is 0.5"), (lambda a: 0.4 * a.tanh() ** 3, "never gets above 0.4"),
     (lambda a: (a > 0).float(), "no gradient reaches"), (lambda a: a.abs().sqrt().tanh(), "NaN somewhere"),
     (lambda a: F.hardtanh(F.relu(a - 2)), "at a = 1 the slope is 0"), (lambda a: a.cos(), "it should begin closed"),
     (lambda a: (a**2 - 1) / a.abs().sqrt() * 0, "NaN"), (lambda a: a.sum(), "shape should stay (12,)"),
     (lambda _: 0.0, "return a tensor"), (lambda a: (2 * a).tanh() * 1.5, "stay between -1 and 1")],
)  # fmt: skip
def test_gates_that_open_or_are_none(answer, message):
    wrong("13.5", answer, message)
