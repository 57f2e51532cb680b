"""Checks for lesson 14: a prompt's length, features spliced, labels masked, whose media are whose, a model fooled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llamamm.course.checks.core import Exercise, Mistake
from llamamm.train.losses import IGNORE

# ---- 14.1: the length of a prompt ----


def _length(
    words: int, pictures: list[tuple[int, int]], sounds: list[int], merge: int, stack: int, *, frame: int = 2,
    sound_frame: int | None = None, square: bool = True, rest: str = "up", joint: bool = False, with_words: bool = True,
) -> int:  # fmt: skip
    """The right number; each keyword plants one mistake."""
    by = merge**2 if square else merge
    seen = sum(rows * columns // by + frame for rows, columns in pictures)
    lengths = [sum(sounds)] if joint and sounds else sounds
    heard = sum(-(-n // stack) if rest == "up" else n // stack for n in lengths)
    return words * with_words + seen + heard + (frame if sound_frame is None else sound_frame) * len(sounds)


LENGTH = Exercise(
    id="14.1", name="prompt_length", minutes=4, level="warm-up",
    reference=_length,
    cases=lambda _: [(10, [(6, 6)], [], 2, 8), (4, [], [50, 17], 2, 8), (0, [(6, 6), (4, 8)], [9], 1, 4),
                     (25, [(12, 12), (6, 12)], [3, 1500, 16], 3, 8)],
    mistakes=(
        Mistake(partial(_length, frame=0),
                "the start and the end are missing: each picture and each sound stands between two learned tokens"),
        Mistake(partial(_length, sound_frame=0), "a sound, too, stands between a start and an end: 2 more for each"),
        Mistake(partial(_length, frame=1), "you count one token for the frame: there are a start and an end, so 2"),
        Mistake(partial(_length, square=False),
                "you divided by merge: merge x merge patches become one token, so divide by its square"),
        Mistake(partial(_length, rest="down"),
                "you rounded down: what is left of a sound is filled with zeros and takes a token, too"),
        Mistake(partial(_length, joint=True),
                "you added the sounds up before dividing: each begins a token of its own, so round up each by itself"),
        Mistake(partial(_length, with_words=False), "the words are missing: they stand in the row, too"),
    ),
)  # fmt: skip


# ---- 14.2: splice ----


def _splice(x: Tensor, where: Tensor, features: Tensor, *, kind: str = "right") -> Tensor:
    counts = int(where.sum()), len(features)
    if kind not in ("unchecked", "short") and counts[0] != counts[1]:
        raise ValueError(f"{counts[0]} places, {counts[1]} features")
    features = features.to(x.dtype) if kind != "its dtype" else features
    if not counts[0]:
        return x.clone()
    match kind:
        case "in place":
            x[where] = features
            return x
        case "unchecked" | "short":
            n = min(counts)
            places = where.nonzero()[:n]
            out = x.clone()
            out[places[:, 0], places[:, 1]] = features[:n]
            return out
        case "restart":
            out = x.clone()
            for b in range(len(x)):
                out[b, where[b]] = features[: int(where[b].sum())]
            return out
        case "columns":
            out = x.transpose(0, 1).clone()
            out[where.T] = features
            return out.transpose(0, 1)
        case "reversed":
            features = features.flip(0)
        case "shifted":
            features = features.roll(1, dims=0)
        case "first":
            features = features[:1].expand(len(features), -1)
        case "added":
            return x.masked_scatter(where[..., None], x[where] + features)
        case "its dtype":
            return x.to(features.dtype).masked_scatter(where[..., None], features)
    return x.masked_scatter(where[..., None], features)


def _run_splice(splice: Callable, case: tuple) -> Any:
    """The result and what became of the input; or that it refused."""
    x, where, features = case
    before = x.clone()
    try:
        out = splice(x, where, features)
    except ValueError:
        return "ValueError"
    return [out, bool(torch.equal(x, before))]


def _splice_cases(g: torch.Generator) -> list[tuple]:
    def case(rows: list[str], n: int | None = None, dtype: torch.dtype = torch.float32) -> tuple:
        where = torch.tensor([[letter == "m" for letter in row] for row in rows])
        n = int(where.sum()) if n is None else n
        return (torch.randn(*where.shape, 3, generator=g).to(dtype), where, torch.randn(n, 3, generator=g))

    return [case([".mm."]), case([".mmm..", "mm....", "...mmm"]), case(["..", ".."]), case(["m."]),
            case(["mm.m", "...m"], dtype=torch.bfloat16), case([".mmm"], n=2), case([".mm."], n=3)]  # fmt: skip


SPLICE = Exercise(
    id="14.2", name="splice", minutes=10, level="core",
    reference=_splice,
    cases=_splice_cases,
    run=_run_splice,
    mistakes=(
        Mistake(partial(_splice, kind="in place"),
                "you changed the embeddings that were given: return new ones, training needs the old"),
        Mistake(partial(_splice, kind="unchecked"),
                "you fill as many places as there are features and say nothing where the counts differ: raise a "
                "ValueError then"),
        Mistake(partial(_splice, kind="restart"),
                "each row begins with the first feature again: the features stand in one list, row after row"),
        Mistake(partial(_splice, kind="columns"),
                "you go through the places column by column: they are filled row after row"),
        Mistake(partial(_splice, kind="reversed"), "your features come in from the last to the first"),
        Mistake(partial(_splice, kind="shifted"),
                "your features are off by one: the first place gets the last feature, the second the first"),
        Mistake(partial(_splice, kind="first"), "every place gets the first feature: each place gets its own"),
        Mistake(partial(_splice, kind="added"),
                "you add the features to what was there: what stands at a place is the embedding of no word, replace "
                "it"),
        Mistake(partial(_splice, kind="its dtype"),
                "the result has the features' dtype: cast the features to that of the embeddings"),
    ),
    tolerance=0.02,  # rounding of bfloat16
)  # fmt: skip


# ---- 14.3: labels ----


def _learned(ids: Tensor, learn: Tensor, vocab_size: int, *, kind: str = "right") -> list[Tensor]:
    wanted = ids.where(learn & (ids < vocab_size), IGNORE)
    match kind:
        case "not shifted":
            return [ids[:-1], wanted[:-1]]
        case "both shifted":
            return [ids[1:], wanted[1:]]
        case "mask first":  # the mask of what is read, on the ids of what comes
            return [ids[:-1], ids[1:].where((learn & (ids < vocab_size))[:-1], IGNORE)]
        case "all":
            return [ids[:-1], ids[1:].where(ids[1:] < vocab_size, IGNORE)]
        case "everything":
            return [ids[:-1], ids[1:]]
        case "media":
            return [ids[:-1], ids.where(learn, IGNORE)[1:]]
        case "zero":
            return [ids[:-1], wanted.where(wanted != IGNORE, 0)[1:]]
        case "turned":
            return [ids[:-1], ids.where(~learn & (ids < vocab_size), IGNORE)[1:]]
        case "long":
            return [ids, torch.cat([wanted[1:], wanted.new_tensor([IGNORE])])]
        case "no end":
            short = wanted.clone()
            last = (learn & (ids < vocab_size)).nonzero()
            short[last[-1:]] = IGNORE
            return [ids[:-1], short[1:]]
        case "cut out":
            keep = ids < vocab_size
            return [ids[keep][:-1], wanted[keep][1:]]
    return [ids[:-1], wanted[1:]]


def _label_cases(_: torch.Generator) -> list[tuple]:
    def case(row: list[int], learn: str, vocab_size: int) -> tuple:
        return (torch.tensor(row), torch.tensor([letter == "1" for letter in learn]), vocab_size)

    return [case([1, 100, 100, 100, 7, 8, 40, 2], "00000011", 100), case([5, 6], "01", 50),
            case([1, 9, 10, 4, 9, 9, 11, 12, 4, 3], "0001001100", 9), case([3, 4, 5, 3, 6, 5], "011011", 20),
            case([1, 60, 7, 61, 61, 8, 30, 31, 2], "000111111", 60)]  # fmt: skip


LABELS = Exercise(
    id="14.3", name="learned", minutes=8, level="core",
    reference=_learned,
    cases=_label_cases,
    run=lambda answer, case: list(answer(*case)),
    mistakes=(
        Mistake(partial(_learned, kind="not shifted"),
                "the targets are not shifted: at a place stands what comes next, so targets begin one further on"),
        Mistake(partial(_learned, kind="both shifted"),
                "you shifted what is read, too: that begins with the first token and ends with the last but one"),
        Mistake(partial(_learned, kind="mask first"),
                "your mask is one place late: `learn` says which tokens are learned, so it moves along with them"),
        Mistake(partial(_learned, kind="everything"),
                "everything is learned, the question and the media, too: only tokens with learn are, and no places"),
        Mistake(partial(_learned, kind="all"),
                "the question is learned, too: only tokens whose `learn` is True are"),
        Mistake(partial(_learned, kind="media"),
                "places of media are learned: their ids lie behind the vocabulary, no score is theirs"),
        Mistake(partial(_learned, kind="zero"),
                "what isn't learned has the target 0, which is a token like others: it is -100"),
        Mistake(partial(_learned, kind="turned"), "you learn just what should not be learned: turn the mask around"),
        Mistake(partial(_learned, kind="long"),
                "nothing comes behind the last token: what is read ends with the last but one, T - 1 in all"),
        Mistake(partial(_learned, kind="no end"),
                "the last learned token is missing: the end of the answer is learned, or it never stops"),
        Mistake(partial(_learned, kind="cut out"),
                "you took the places out of the row: they stay in what is read, only their targets are -100"),
    ),
    tolerance=0.0,
)  # fmt: skip


# ---- 14.4: whose picture is it? ----


def _owners(ids: Tensor, token: int, sizes: list[int], *, kind: str = "right") -> list[list[int]]:
    counts = (ids == token).sum(dim=1).tolist()
    if kind != "trusting" and sum(counts) != sum(sizes):
        raise ValueError(f"{sum(counts)} places, {sum(sizes)} features")
    out: list[list[int]] = []
    number = 0
    match kind:
        case "runs":
            for row in (ids == token).tolist():
                begins = sum(one and not before for one, before in zip(row, [False, *row[:-1]], strict=True))
                out.append(list(range(number, number + begins)))
                number += begins
            return out
        case "even":
            each = len(sizes) // len(counts)
            return [list(range(b * each, (b + 1) * each)) for b in range(len(counts))]
        case "first size":
            for count in counts:
                n = count // sizes[0] if sizes else 0
                out.append(list(range(number, number + n)))
                number += n
            return out
    for count in counts:
        mine, left = [], count
        while left > 0 and number < len(sizes):
            if left < sizes[number] and kind not in ("total", "trusting"):
                raise ValueError(f"medium {number} has {sizes[number]} places, {left} are left in its row")
            left -= sizes[number]
            mine.append(number)
            number += 1
        if kind != "holes" or mine:
            out.append([n - mine[0] for n in mine] if kind == "restart" and mine else mine)
    return out


def _run_owners(owners: Callable, case: tuple) -> Any:
    try:
        return owners(*case)
    except ValueError:
        return "ValueError"


def _owner_cases(_: torch.Generator) -> list[tuple]:
    def case(rows: list[str], sizes: list[int]) -> tuple:
        return (torch.tensor([[99 if letter == "m" else 5 for letter in row] for row in rows]), 99, sizes)

    return [case(["..mmm.", "mm..mm", "mm...."], [3, 2, 2, 2]), case(["mmmm..", "......", ".mmm.."], [2, 2, 3]),
            case(["...", "..."], []), case(["..m"], [1]), case(["mmm.", "mmmm"], [3, 3]),  # one left over
            case(["mmmm", "mmmm"], [5, 3]),  # all add up, and yet the first was cut
            case(["mm..", ".mm."], [3, 2])]  # fmt: skip


OWNERS = Exercise(
    id="14.4", name="owners", minutes=15, level="hard",
    reference=_owners,
    cases=_owner_cases,
    run=_run_owners,
    mistakes=(
        Mistake(partial(_owners, kind="total"),
                "you compare the totals alone: 4 + 4 places fit media of 5 and 3, and yet the first was cut; each "
                "has to end in the row where it began"),
        Mistake(partial(_owners, kind="trusting"),
                "nothing is checked: raise a ValueError where a medium was cut, or too few or too many places are "
                "there"),
        Mistake(partial(_owners, kind="runs"),
                "you count runs of places: two media that stand side by side make one run; their sizes tell them "
                "apart"),
        Mistake(partial(_owners, kind="even"),
                "you gave each row equally many: a row may hold none, or several; its places say how many"),
        Mistake(partial(_owners, kind="first size"),
                "you take every medium to be as long as the first: each has its own number in sizes"),
        Mistake(partial(_owners, kind="restart"),
                "the numbers begin at 0 in each row: they go on through the whole batch, like the list of features"),
        Mistake(partial(_owners, kind="holes"), "a row without media is left out: it has an empty list"),
    ),
)  # fmt: skip


# ---- 14.5: break it ----


class _Toy(nn.Module):
    """pixels (3, H, W) -> scores (V,): the mean of each square against each answer's own pattern."""

    def __init__(self, patterns: Tensor) -> None:
        super().__init__()
        self.register_buffer("patterns", patterns)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.tanh((self.patterns * (pixels - 0.5)).sum(dim=(1, 2, 3)) / 20)


def _fool(pixels: Tensor, scores_of: Callable, answer: int, budget: float, *, kind: str = "right") -> Tensor:
    x = pixels.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(scores_of(x)[None], torch.tensor([answer]))
    loss.backward()
    step = budget * x.grad.sign()
    match kind:
        case "down":
            step = -step
        case "gradient":
            step = budget * x.grad
        case "noise":
            noise = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(1))  # cases depend on it
            step = budget * (noise - 0.5).sign()
        case "bright":
            step = budget * torch.ones_like(pixels)
        case "same":
            step = torch.zeros_like(pixels)
        case "double":
            step = 2 * step
        case "whole":
            step = x.grad.sign()
    new = pixels + step
    return new if kind == "unclamped" else new.clamp(0, 1)


def _accept_fooled(result: Any, case: tuple) -> str | None:
    pixels, scores_of, answer, budget = case
    if not isinstance(result, Tensor):
        return f"return a picture, a tensor; got {type(result).__name__}"
    if result.shape != pixels.shape:
        return f"the picture's shape should stay {tuple(pixels.shape)}, got {tuple(result.shape)}"
    result = result.detach()
    if not result.isfinite().all():
        return "some numbers of the picture are not finite"
    low, high = float(result.min()), float(result.max())
    if low < 0 or high > 1:
        return f"its numbers reach from {low:.3f} to {high:.3f}: a picture's lie between 0 and 1, clamp them"
    moved = float((result - pixels).abs().max())
    if moved > budget * 1.001 + 1e-6:
        return f"one number moved by {moved:.3f}, the budget is {budget}: step by the budget times the gradient's sign"
    if moved == 0:
        return "that is the same picture"
    with torch.no_grad():
        old, new = scores_of(pixels).softmax(dim=0), scores_of(result).softmax(dim=0)
    if int(new.argmax()) == answer:
        way = "fell" if new[answer] < old[answer] else "did not fall"
        return (f"it still gives the same answer; the answer's probability {way}, from {old[answer]:.3f} to "
                f"{new[answer]:.3f}: which way does the loss grow, and do you use the whole budget everywhere?")
    return None


def _toys(g: torch.Generator) -> list[tuple]:
    cases = []
    for (H, W), n_answers, budget in (((4, 4), 2, 0.1), ((6, 9), 4, 0.08), ((8, 8), 3, 0.05)):
        for _ in range(1000):
            toy = _Toy(torch.randn(n_answers, 3, H, W, generator=g))
            pixels = torch.rand(3, H, W, generator=g).round(decimals=1)
            pixels[:, :1] = 1.0  # a white edge: a step up would leave what a picture can hold
            answer = int(toy(pixels).argmax())
            others = [toy(_fool(pixels, toy, answer, budget, kind=kind)) for kind in ("noise", "bright", "gradient")]
            fooled = int(toy(_fool(pixels, toy, answer, budget)).argmax()) != answer
            if fooled and all(int(scores.argmax()) == answer for scores in others):
                break
        cases.append((pixels, toy, answer, budget))
    return cases


FOOL = Exercise(
    id="14.5", name="fool", minutes=12, level="break it",
    reference=_fool,
    cases=_toys,
    accept=_accept_fooled,
    mistakes=(
        Mistake(partial(_fool, kind="down"),
                "you went down the loss: the model is now surer of its answer; add the step, don't subtract it"),
        Mistake(partial(_fool, kind="gradient"),
                "you step by the gradient itself, which is tiny: its sign moves every number by the whole budget"),
        Mistake(partial(_fool, kind="noise"),
                "you moved every number at random, and most of it cancels: ask the gradient which way each has to go"),
        Mistake(partial(_fool, kind="bright"),
                "you made it brighter everywhere: ask the gradient which way each number has to go"),
        Mistake(partial(_fool, kind="unclamped"),
                "some numbers left 0..1, so it is no picture any more: clamp them"),
        Mistake(partial(_fool, kind="double"), "you moved numbers by twice the budget"),
        Mistake(partial(_fool, kind="whole"), "the budget is missing: you moved every number by 1"),
        Mistake(partial(_fool, kind="same"), "that is the same picture: move its numbers, by the budget at most"),
    ),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (LENGTH, SPLICE, LABELS, OWNERS, FOOL)
