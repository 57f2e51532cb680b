"""course.checks.lesson11: right answers pass, and each usual mistake is called by its name."""

import math

import pytest
import torch
import torch.nn.functional as F

from llamamm.course.checks import check

# ---- right answers, written another way than the reference ----


def count(height, width, patch, hidden, cls):
    tokens = len(range(0, height - patch + 1, patch)) * len(range(0, width - patch + 1, patch))
    return tokens + int(cls), hidden * (3 * patch**2 + 1)


def cut(pixels, patch):
    rows, columns = (range(0, side - patch + 1, patch) for side in pixels.shape[2:])
    squares = [pixels[:, :, y : y + patch, x : x + patch].flatten(1) for y in rows for x in columns]
    return torch.stack(squares, dim=1)


def square_of(table):
    side = math.isqrt(len(table) - 1)
    return table[1:].unflatten(0, (side, side)).movedim(2, 0)[None]  # (1, C, side, side)


def positions_for(table, rows, columns):
    new = F.interpolate(square_of(table), (rows, columns), mode="bicubic")
    return torch.cat([table[:1], new[0].movedim(0, 2).flatten(0, 1)])


def cosines(images, texts):
    return torch.stack([torch.cosine_similarity(image[None], texts) for image in images])


def yes_or_no_loss(images, texts, scale, bias):
    logits = cosines(images, texts) * scale + bias
    return F.binary_cross_entropy_with_logits(logits, torch.eye(len(logits)), reduction="sum") / len(logits)


def twin(picture, patch):
    patches = cut(picture[None], patch)[0].roll(1, dims=0)
    return F.fold(patches.T[None], picture.shape[1:], patch, stride=patch)[0]


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [("11.1", count), ("11.2", cut), ("11.3", positions_for), ("11.4", yes_or_no_loss), ("11.5", twin)],
)
def test_the_right_answer_passes(exercise, answer):
    result = check(exercise, answer)
    assert result, result.message


# ---- wrong answers ----


@pytest.mark.parametrize(
    ("answer", "message"),
    [(lambda h, w, p, c, cls: (h // p * (w // p), c * (3 * p * p + 1)), "one token is missing"),  # noqa: ARG005
     (lambda h, w, p, c, cls: (h // p * (w // p) + 1, c * (3 * p * p + 1)), "some towers have none"),  # noqa: ARG005
     (lambda h, w, p, c, cls: (math.ceil(h / p) * math.ceil(w / p) + cls, c * (3 * p * p + 1)), "rounded up"),
     (lambda h, w, p, c, cls: (h * w // (p * p) + cls, c * (3 * p * p + 1)), "divided the area"),
     (lambda h, w, p, c, cls: (h * w + cls, c * (3 * p * p + 1)), "you count pixels"),
     (lambda h, w, p, c, cls: ((h - p + 1) * (w - p + 1) + cls, c * (3 * p * p + 1)), "overlap"),
     (lambda h, _, p, c, cls: (h // p + cls, c * (3 * p * p + 1)), "one column"),
     (lambda h, w, p, c, cls: (h // p * (w // p) + cls, c * (p * p + 1)), "three numbers, red"),
     (lambda h, w, p, c, cls: (h // p * (w // p) + cls, c * 3 * p * p), "comes with a bias"),
     (lambda h, w, p, c, cls: (h // p * (w // p) + cls, c * p * p), "and there is a bias"),
     (lambda h, w, p, c, cls: (h // p * (w // p) + cls, c * (3 * p + 1)), "P high and P wide"),
     (lambda h, w, p, c, cls: (h // p * (w // p) + cls, h // p * (w // p) * c * (3 * p * p + 1)), "share one matrix"),
     (lambda *a: count(*a)[::-1], "wrong order"), (lambda *a: count(*a)[0], "should be (257, 226176)"),
     (lambda h, w, p, c, cls: (h / p * w / p + cls, c * (3 * p * p + 1)), "should be 19, got 24.4")],
)  # fmt: skip
def test_counting(answer, message):
    result = check("11.1", answer)
    assert not result
    assert message in result.message


def cropped(pixels, patch):
    H, W = (side - side % patch for side in pixels.shape[2:])
    return pixels[:, :, :H, :W]


def viewed(pixels, patch):
    small = cropped(pixels, patch)
    return small.reshape(len(small), small.shape[2] * small.shape[3] // patch**2, -1)


def grey_by_grey(pixels, patch):
    grey = torch.cat([F.unfold(pixels[:, [c]], patch, stride=patch).transpose(1, 2) for c in range(3)], dim=1)
    return grey.reshape(len(pixels), grey.shape[1] // 3, -1)


def rearranged(*order):
    def answer(pixels, patch):
        parts = cut(pixels, patch).unflatten(2, (3, patch, patch))
        return parts.permute(0, 1, *(2 + i for i in order)).flatten(2)

    return answer


def from_corner(pixels, patch):
    H, W = pixels.shape[2:]
    return cut(pixels[:, :, H % patch :, W % patch :], patch)


def from_the_middle(pixels, patch):
    H, W = pixels.shape[2:]
    return cut(pixels[:, :, H % patch // 2 :, W % patch // 2 :], patch)


def squeezed(pixels, patch):
    return cut(F.interpolate(pixels, cropped(pixels, patch).shape[2:], mode="bilinear", align_corners=False), patch)


@pytest.mark.parametrize(
    ("answer", "message"),
    [(viewed, "runs of rows"), (grey_by_grey, "channels came apart"),
     (lambda x, p: cut(x.mT, p).unflatten(2, (3, p, p)).mT.flatten(2), "go down the columns"),
     (rearranged(1, 2, 0), "channel comes last"), (rearranged(0, 2, 1), "tipped over"),
     (rearranged(2, 1, 0), "column, row, channel"), (from_corner, "at the top and left"),
     (from_the_middle, "half of what is left over"), (squeezed, "squeezed"),
     (lambda x, p: cut(x, p).unflatten(2, (3, p, p)), "in one row"),
     (lambda x, p: cut(x, p).transpose(1, 2), "shape should be (1, 4, 12)"),
     (lambda x, p: cut(x, p).double(), "dtype should be torch.float32"),
     (lambda x, p: x.unflatten(2, (-1, p)), "in case 1 of 4, the shape should be")],
)  # fmt: skip
def test_cutting(answer, message):
    result = check("11.2", answer)
    assert not result
    assert message in result.message


def resized(mode="bicubic", going_in=square_of, out=None, **options):
    out = out or (lambda new: new[0].flatten(1).mT)

    def answer(table, rows, columns):
        return torch.cat([table[:1], out(F.interpolate(going_in(table), (rows, columns), mode=mode, **options))])

    return answer


def only_viewed(table):
    side = math.isqrt(len(table) - 1)
    return table[1:].reshape(1, -1, side, side)


def in_line(table, rows, columns):
    line = F.interpolate(table[1:].T[None], rows * columns, mode="linear")
    return torch.cat([table[:1], line[0].T])


def all_in_line(table, rows, columns):
    return F.interpolate(table.T[None], rows * columns + 1, mode="linear")[0].T


def first_rows(table, rows, columns):
    often = table[1:].repeat(rows * columns, 1)[: rows * columns]
    return torch.cat([table[:1], often])


@pytest.mark.parametrize(
    ("answer", "message"),
    [(lambda t, r, c: positions_for(t, r, c)[1:], "row is missing"),
     (lambda t, r, c: positions_for(t, r, c).roll(-1, dims=0), "came to the end"),
     (lambda t, r, c: torch.cat([0 * t[:1], positions_for(t, r, c)[1:]]), "row is zero"),
     (resized(going_in=only_viewed), "going in"),
     (resized(out=lambda new: new.reshape(-1, new.shape[1])), "coming out"),
     (lambda t, r, c: positions_for(t, c, r), "swapped rows and columns"),
     (resized(going_in=lambda t: square_of(t).mT), "tipped over"), (in_line, "in both directions"),
     (all_in_line, "keep the CLS token's row out"), (resized("bilinear"), "that is bilinear"),
     (resized("nearest"), "nearest old place"), (resized(align_corners=True), "with align_corners=True"),
     (first_rows, "first rows as they are"), (lambda t, r, c: positions_for(t, r, c).T, "shape should be (7, 6)"),
     (lambda t, r, c: F.interpolate(t, (r, c)), "it raised")],
)  # fmt: skip
def test_positions(answer, message):
    result = check("11.3", answer)
    assert not result
    assert message in result.message


def sum_over_n(logits, right):
    return F.binary_cross_entropy_with_logits(logits, right, reduction="sum") / len(right)


def per_pair(logits_of=lambda cos, scale, bias: cos * scale + bias, similarity=cosines, judge=sum_over_n):
    def answer(images, texts, scale, bias):
        return judge(logits_of(similarity(images, texts), scale, bias), torch.eye(len(images)))

    return answer


def losses_of(logits, right):
    return F.binary_cross_entropy_with_logits(logits, right, reduction="none")


def by_hand(logits, right):
    p = torch.sigmoid(logits)
    return -torch.where(right > 0, p.log(), torch.sigmoid(-logits).log()).sum() / len(right)


def choice(logits, right):
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [(per_pair(similarity=lambda a, b: a @ b.T), "as long as they are"),
     (per_pair(lambda cos, scale, bias: cos * scale), "bias is missing"),  # noqa: ARG005
     (per_pair(lambda cos, scale, bias: cos * scale - bias), "subtract the bias"),
     (per_pair(lambda cos, scale, bias: (cos + bias) * scale), "scale the bias"),
     (per_pair(lambda cos, scale, bias: cos + bias), "scale is missing"),  # noqa: ARG005
     (per_pair(lambda cos, scale, bias: cos / scale + bias), "divide by the scale"),
     (per_pair(judge=lambda logits, right: losses_of(logits, right).mean()), "mean of all N x N"),
     (per_pair(judge=lambda logits, right: losses_of(logits, right).sum()), "you didn't divide"),
     (per_pair(judge=lambda logits, right: losses_of(logits, right).diag().mean()), "the right pairs alone"),
     (per_pair(judge=lambda logits, right: (losses_of(logits, right) * (right == 0)).sum() / len(right)),
      "wrong pairs alone"),
     (per_pair(judge=lambda logits, right: losses_of(logits, right * 0 + 1).sum() / len(right)),
      "every pair to be one"),
     (per_pair(judge=lambda logits, right: -F.logsigmoid(logits * right).sum() / len(right)), "by 1 and 0"),
     (per_pair(judge=lambda logits, right: losses_of(logits, 1 - right).sum() / len(right)), "wrong way round"),
     (per_pair(judge=lambda logits, right: -losses_of(logits, right).sum() / len(right)), "below zero"),
     (per_pair(judge=by_hand), "sigmoid rounds to 0"), (per_pair(judge=choice), "that is CLIP's loss"),
     (per_pair(judge=lambda logits, right: F.cross_entropy(logits, right)), "half of CLIP's loss"),
     (lambda *a: yes_or_no_loss(*a)[None], "shape should be ()"), (lambda *_: 0.0, "should be a tensor")],
)  # fmt: skip
def test_the_loss_of_yes_and_no(answer, message):
    result = check("11.4", answer)
    assert not result
    assert message in result.message


def shuffled_inside(picture, patch):
    patches = cut(picture[None], patch)[0].roll(1, dims=1)
    return F.fold(patches.T[None], picture.shape[1:], patch, stride=patch)[0]


def one_patch_everywhere(picture, patch):
    return picture[:, :patch, :patch].repeat(1, picture.shape[1] // patch, picture.shape[2] // patch)


def swap_two(picture, patch):
    patches = cut(picture[None], patch)[0]
    patches[[0, 1]] = patches[[1, 0]]
    return F.fold(patches.T[None], picture.shape[1:], patch, stride=patch)[0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [(lambda x, _: x.flip(-1), "a mirror mirrors"), (lambda x, _: x.flip(-2), "upside down"),
     (lambda x, _: x.flip(-1, -2), "half a turn"),
     (lambda x, _: torch.cat([x[..., -1:], x[..., :-1]], -1), "one pixel"),
     (lambda x, _: x.clone(), "the same picture"), (shuffled_inside, "4 of 4 patches are none of the picture's"),
     (one_patch_everywhere, "stand twice"), (swap_two, "2 of 4 patches are where they were"),
     (lambda x, p: x.roll(p, dims=2), "in a picture of (3, 15, 5)"),
     (lambda x, p: cut(x[None], p), "shape should stay (3, 8, 8)"), (lambda x, _: x.tolist(), "return a picture")],
)  # fmt: skip
def test_two_pictures_that_are_told_apart(answer, message):
    result = check("11.5", answer)
    assert not result
    assert message in result.message
