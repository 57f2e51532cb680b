"""Checks for lesson 14: a prompt's length, features spliced, labels masked, tokens exchanged, a model fooled."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from llamamm.course.checks.compare import difference
from llamamm.course.checks.core import Diagnosis, Exercise, Property
from llamamm.course.checks.faults import fault_exercise, input_stays
from llamamm.train.losses import IGNORE

# ---- 14.1: the length of a prompt ----


def _length(
    words: int, pictures: list[tuple[int, int]], sounds: list[int], merge: int, stack: int, faults: Collection[str]
) -> int:
    by = 1 if "unmerged" in faults else merge if "not squared" in faults else merge**2
    of_picture = 0 if "bare picture" in faults else 1 if "half a picture" in faults else 2
    of_sound = 0 if "bare sound" in faults else 1 if "half a sound" in faults else 2
    seen = sum(rows * columns // by + of_picture for rows, columns in pictures)
    lengths = [sum(sounds)] if "joint" in faults else sounds
    by = 1 if "unstacked" in faults else stack
    heard = sum(n // by if "rounded down" in faults else n // by + 1 if "one more" in faults else -(-n // by)
                for n in lengths)  # fmt: skip
    return words * ("no words" not in faults) + seen + heard + of_sound * len(sounds)


LENGTH = fault_exercise(
    _length,
    {
        "no words": "The words are missing: they stand in the row, too",
        "bare picture": "A picture's start and end are missing: each stands between two learned tokens, 2 more",
        "half a picture": "You count one token around a picture: there are a start and an end, so 2",
        "not squared": "You divided by merge: merge × merge patches become one token, so divide by its square",
        "unmerged": "You didn't merge the patches: merge × merge of them become one token",
        "half a sound": "You count one token around a sound: it has a start and an end, so 2",
        "rounded down": "You rounded down: what is left of a sound is filled with zeros and takes a token, too",
        "bare sound": "A sound, too, stands between a start and an end: 2 more for each",
        "one more": "You add a token to every sound: one that divides by `stack` has nothing left to fill up",
        "joint": "You added the sounds up before dividing: each begins a token of its own, so round up each by itself",
        "unstacked": "You didn't stack a sound's places: `stack` in a row become one token",
    },
    {
        "the words": (lambda _: [(5, [], [], 2, 8)], ("no words",)),
        "pictures": (lambda _: [(0, [(12, 12)], [], 3, 8)],
                     ("bare picture", "half a picture", "not squared", "unmerged")),
        "sounds": (lambda _: [(0, [], [10, 6, 1, 6, 6], 2, 10)],
                   ("bare sound", "half a sound", "rounded down", "one more", "joint", "unstacked")),
    },
    lambda _: [(10, [(6, 6)], [], 2, 8), (4, [], [50, 17], 2, 8), (0, [(6, 6), (4, 8)], [9], 1, 4),
               (25, [(12, 12), (6, 12)], [3, 1500, 16], 3, 8)],
    id="14.1", name="prompt_length", minutes=4, level="warm-up",
)  # fmt: skip


# ---- 14.2: splice ----


def _splice(x: Tensor, where: Tensor, features: Tensor, faults: Collection[str]) -> Tensor:
    places = where.nonzero()
    if "columns" in faults:
        places = where.T.nonzero().flip(1)
    numbers = torch.arange(len(places))
    numbers = numbers.flip(0) if "reversed" in faults else numbers
    numbers = numbers.roll(1) if "shifted" in faults else numbers
    if "restart" in faults:
        line = places[:, 1 if "columns" in faults else 0]
        numbers = numbers[[int((line[:n] == line[n]).sum()) for n in range(len(line))]]
    numbers = numbers[:1].expand(len(places)) if "first" in faults else numbers
    out, rows, columns = x.clone(), places[:, 0], places[:, 1]
    new = features[numbers].to(x.dtype)
    out[rows, columns] = out[rows, columns] + new if "added" in faults else new
    return out


def _checked_splice(x: Tensor, where: Tensor, features: Tensor) -> Tensor:
    if int(where.sum()) != len(features):
        raise ValueError(f"{int(where.sum())} places, {len(features)} features")
    return _splice(x, where, features, ())


def _to_fill(g: torch.Generator, rows: list[str], n: int | None = None, dtype: torch.dtype = torch.float32) -> tuple:
    """Random embeddings, the places marked with m, n features, by default as many as places."""
    where = torch.tensor([[letter == "m" for letter in row] for row in rows])
    n = int(where.sum()) if n is None else n
    return (torch.randn(*where.shape, 3, generator=g).to(dtype), where, torch.randn(n, 3, generator=g))


def _numbered(_: torch.Generator) -> list[tuple]:
    where = torch.tensor([[False, True, True], [True, True, False]])
    return [(torch.arange(1, 7).float().view(2, 3, 1), where, torch.tensor([[10.0], [20.0], [30.0], [40.0]]))]


def _refused(answer: Callable, case: tuple) -> Any:
    """The name of the error that an answer raises, or its result."""
    try:
        return [answer(*case)]
    except (ValueError, RuntimeError, IndexError, AssertionError) as error:
        return type(error).__name__


def _refuses(result: Any, case: tuple) -> str | None:
    if result == "ValueError":
        return None
    count = f"for {int(case[1].sum())} places and {len(case[2])} feature{'s'[len(case[2]) == 1:]}"
    if isinstance(result, str):
        return f"{count} it should raise a ValueError, it raised {result}: compare the counts before you fill"
    return Diagnosis.of(f"{count} it should raise a ValueError, and gave a result",
                        "You say nothing where the counts differ: compare them, and raise a ValueError")  # fmt: skip


def _spoiled(splice: Callable, case: tuple) -> bool:
    """Whether the embeddings are still what they were."""
    before = case[0].clone()
    splice(*case)
    return bool(torch.equal(case[0], before))


def _unspoiled(kept: bool, _case: tuple) -> str | None:
    return None if kept else "you changed the embeddings that were given: return new ones, training needs the old"


def _given_back(splice: Callable, case: tuple) -> bool:
    """Whether a gradient of the result reaches the features. What is no tensor is told by another property."""
    x, where, features = case
    out = splice(x, where, leaf := features.clone().requires_grad_())
    if not isinstance(out, Tensor):
        return True
    if out.requires_grad:
        out.sum().backward()
    return leaf.grad is not None


def _cast(result: Any, case: tuple) -> str | None:
    x, _, features = case
    if not isinstance(result, Tensor) or result.dtype == x.dtype:
        return None
    problem = f"the dtype should be {x.dtype}, got {result.dtype}"
    return problem if result.dtype != features.dtype else Diagnosis.of(
        problem, "The result has the features' dtype: cast the features to that of the embeddings")  # fmt: skip


SPLICE = fault_exercise(
    _splice,
    {
        "restart": "Each row begins with the first feature again: the features stand in one list, row after row",
        "columns": "You go through the places column by column: they are filled row after row",
        "reversed": "Your features come in from the last to the first",
        "shifted": "Your features are off by one: the first place gets the last feature, the second the first",
        "first": "Every place gets the first feature: each place gets its own",
        "added": "You add the features to what was there: what stands at a place is the embedding of no word, replace "
                 "it",
    },
    {
        "which feature comes where": (_numbered, ("restart", "columns", "reversed", "shifted", "first")),
        "what becomes of a place": (_numbered, ("added",)),
    },
    lambda g: [_to_fill(g, rows) for rows in ([".mm."], [".mmm..", "mm....", "...mmm"], ["..", ".."], ["m."])],
    extra=(
        Property("the embeddings that were given", lambda g: [_to_fill(g, [".mm."])], run=_spoiled, accept=_unspoiled),
        Property("gradients", lambda g: [_to_fill(g, [".mm."])], run=_given_back,
                 accept=lambda reached, _: None if reached else "no gradient reaches the features, so nothing would "
                 "train the bridge: fill in the features themselves, without detach, no_grad or new tensors of them"),
        Property("embeddings of another dtype", lambda g: [_to_fill(g, ["mm.m", "...m"], dtype=torch.bfloat16)],
                 run=lambda answer, case: answer(*case), accept=_cast,
                 otherwise=lambda got, case: difference(_splice(*case, ()), got, 0.02)),
        Property("counts that differ", lambda g: [_to_fill(g, [".mmm"], 2), _to_fill(g, [".mm."], 3),
                                                  _to_fill(g, ["mmm."], 1)], run=_refused, accept=_refuses),
    ),
    id="14.2", name="splice", minutes=10, level="core", importance=3, reference=_checked_splice,
)  # fmt: skip


# ---- 14.3: labels ----


def _learned(ids: Tensor, learn: Tensor, vocab_size: int, faults: Collection[str]) -> list[Tensor]:
    limit = vocab_size + ("over" in faults)
    if "cut out" in faults:
        words = ids < vocab_size
        ids, learn = ids[words], learn[words]
    wanted = torch.ones_like(learn) if "all" in faults else ~learn if "turned" in faults else learn
    wanted = wanted if "media" in faults else wanted & (ids < limit)
    if "no end" in faults:
        wanted = wanted & (torch.arange(len(ids)) != wanted.nonzero().max())
    if "mask first" in faults:  # the mask of what is read, on the ids of what comes
        wanted = wanted.roll(1)
    fill = 0 if "zero" in faults else IGNORE
    targets = ids.where(wanted, fill)
    if "long" in faults:
        return [ids, torch.cat([targets[1:], targets.new_tensor([fill])])]
    return [ids[1:] if "both shifted" in faults else ids[:-1], targets[:-1] if "not shifted" in faults else targets[1:]]


def _conversation(row: list[int], learn: str, vocab_size: int) -> tuple:
    return (torch.tensor(row), torch.tensor([letter == "1" for letter in learn]), vocab_size)


def _with_places(_: torch.Generator) -> list[tuple]:
    return [_conversation([5, 60, 61, 7, 60, 8, 61, 9, 2, 4, 3], "00001111100", 60)]


def _only_words_learned(_: torch.Generator) -> list[tuple]:
    return [_conversation([5, 60, 7, 8, 9, 2, 4, 3], "00011100", 60)]


LABELS = fault_exercise(
    _learned,
    {
        "not shifted": "The targets are not shifted: at a place stands what comes next, so targets begin one further "
                       "on",
        "both shifted": "You shifted what is read, too: that begins with the first token and ends with the last but "
                        "one",
        "long": "Nothing comes after the last token: what is read ends with the last but one, T - 1 in all",
        "cut out": "You took the places out of the row: they stay in what is read, only their targets are -100",
        "mask first": "Your mask is one place late: `learn` says which tokens are learned, so it moves along with them",
        "all": "The question is learned, too: only tokens whose `learn` is True are",
        "turned": "You learn just what should not be learned: turn the mask around",
        "media": "Places of media are learned: their ids come after the vocabulary, no score is theirs",
        "over": "A place is learned: the words end at vocab_size - 1, so vocab_size itself is a place",
        "zero": "What isn't learned has the target 0, which is a token like others: it is -100",
        "no end": "The last learned token is missing: the end of the answer is learned, or it never stops",
    },
    {
        "what is read": (_with_places, ("both shifted", "long", "cut out")),
        "where a target stands": (_only_words_learned, ("not shifted", "mask first"), lambda result: result[1]),
        "which tokens are learned": (_with_places, ("all", "turned", "media", "over", "no end"),
                                     lambda result: result[1]),
        "what isn't learned": (_with_places, ("zero",), lambda result: result[1]),
    },
    lambda _: [_conversation([1, 100, 100, 100, 7, 8, 40, 2], "00000011", 100), _conversation([5, 6], "01", 50),
               _conversation([1, 9, 10, 4, 9, 9, 11, 12, 4, 3], "0001001100", 9),
               _conversation([3, 4, 5, 3, 6, 5], "011011", 20),
               _conversation([1, 60, 7, 61, 61, 8, 30, 31, 2], "000111111", 60)],
    run=lambda answer, case: list(answer(*case)), tolerance=0.0, extra=(input_stays(_with_places),),
    id="14.3", name="learned", minutes=8, level="core", importance=3,
)  # fmt: skip


# ---- 14.4: tokens of one picture in a prompt about another ----


def _patched(x: Tensor, donor: Tensor, where: Tensor, chosen: list[int], faults: Collection[str]) -> Tensor:
    places = where.nonzero().flatten()
    n_tokens = len(places) - 2  # without start and end
    wanted = list(chosen)
    if "whole" in faults:
        wanted = list(range(n_tokens))
    elif "others" in faults:
        wanted = [n for n in range(n_tokens) if n not in chosen]
    first = 0 if "frame" in faults else 2 if "late" in faults else 1
    numbers = torch.tensor(wanted, dtype=torch.int64)
    at = numbers if "prompt" in faults else places[numbers + first]
    source = places[torch.arange(len(wanted)) + 1] if "order" in faults else at
    into, other = (donor, x) if "back" in faults else (x, donor)
    out = into.clone()
    if "nothing" in faults:
        return out
    out[at] = (into[at] + other[source]) if "added" in faults else other[source]
    return out


def _prompts(g: torch.Generator, row: str, chosen: list[int]) -> tuple:
    """Two random prompts of width 3 with a picture where the row has m."""
    where = torch.tensor([letter == "m" for letter in row])
    x, donor = torch.randn(2, len(row), 3, generator=g)
    return x, donor, where, chosen


def _counted(_: torch.Generator) -> list[tuple]:
    where = torch.tensor([False] * 2 + [True] * 6 + [False])
    x = torch.arange(1.0, 10.0)[:, None]
    return [(x, 10 * x, where, [0, 3])]


def _words_differ(g: torch.Generator) -> list[tuple]:
    """The donor's words differ, too: they must stay out."""
    return [_prompts(g, ".mmmmmm.", [3])]


PATCHED = fault_exercise(
    _patched,
    {
        "frame": "You are one place early: the picture's first place is its learned start, so token 0 stands at the "
                 "second",
        "late": "You are one place late: only one place, the start, stands before token 0",
        "prompt": "You count from the beginning of the prompt: token 0 stands inside the picture, after its start",
        "others": "You exchanged the tokens that were not chosen",
        "whole": "You exchanged all of the picture's tokens: only the chosen ones",
        "order": "The donor's first tokens come in: token n takes the place of token n",
        "added": "You add the donor's tokens to what was there: exchange them",
        "nothing": "Nothing has changed: out[where] is a copy, and what is assigned to a part of it is lost: "
                   "assign to out itself",
        "back": "It is the wrong way round: start from x, and take only the chosen tokens from the donor",
    },
    {
        "which places change": (_counted, ("frame", "late", "prompt", "others", "whole")),
        "what comes in": (_counted, ("order", "added", "nothing")),
        "whose prompt it stays": (_words_differ, ("back",)),
    },
    lambda g: [_prompts(g, ".mmmmmm.", [1]), _prompts(g, "..mmmmmmmmmmm...", [7, 1, 4]),
               _prompts(g, "mmmmm", [0, 1, 2]), _prompts(g, ".mmmm..", [])],
    extra=(input_stays(lambda g: [_prompts(g, ".mmmmmm.", [1])]),),
    id="14.4", name="patched", minutes=8, level="core", importance=3,
)  # fmt: skip


# ---- 14.5: break it ----


class _Toy(nn.Module):
    """pixels (3, H, W) -> scores (V,): the mean of each square against each answer's own pattern."""

    def __init__(self, patterns: Tensor) -> None:
        super().__init__()
        self.register_buffer("patterns", patterns)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.tanh((self.patterns * (pixels - 0.5)).sum(dim=(1, 2, 3)) / 20)


def _uphill(pixels: Tensor, scores_of: Callable, answer: int) -> Tensor:
    """The gradient of the loss of `answer`, (3, H, W)."""
    x = pixels.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(scores_of(x)[None], torch.tensor([answer]))
    return torch.autograd.grad(loss, x)[0]


def _fool(pixels: Tensor, scores_of: Callable, answer: int, budget: float) -> Tensor:
    return (pixels + budget * _uphill(pixels, scores_of, answer).sign()).clamp(0, 1)


def _is_picture(result: Any, case: tuple) -> str | None:
    pixels = case[0]
    if not isinstance(result, Tensor):
        return f"return a picture, a tensor; got {type(result).__name__}"
    if result.shape != pixels.shape:
        return f"the picture's shape should stay {tuple(pixels.shape)}, got {tuple(result.shape)}"
    if result.dtype != pixels.dtype:
        return f"the picture's dtype should stay {pixels.dtype}, got {result.dtype}"
    return None if result.isfinite().all() else "some numbers of the picture are not finite"


def _of_pictures(accept: Callable[[Tensor, tuple], str | None]) -> Callable[[Any, tuple], str | None]:
    """A check of what is a picture; what is none is told by another property."""
    return lambda result, case: None if _is_picture(result, case) else accept(result.detach(), case)


def _in_range(result: Tensor, _case: tuple) -> str | None:
    low, high = float(result.min()), float(result.max())
    return None if low >= 0 and high <= 1 else (
        f"its numbers reach from {low:.6g} to {high:.6g}: some left 0..1, so it is no picture any more; clamp them")


def _within_budget(result: Tensor, case: tuple) -> str | None:
    pixels, _, _, budget = case
    moves = (result - pixels).abs()
    most = float(moves.max())
    if most <= budget * 1.001 + 1e-6:
        return None
    told = f"one number moved by {most:.3f}, the budget is {budget}"
    inside = moves[(result > 0) & (result < 1)]  # what no clamp has stopped
    if not len(inside) or bool((inside - 1).abs().max() < 1e-4):
        return f"{told}. The budget is missing: you moved every number by 1, or to an end"
    if bool((inside - 2 * budget).abs().max() < 1e-4):
        return f"{told}. You moved numbers by twice the budget"
    return f"{told}: step by the budget times the gradient's sign"


def _changed(result: Tensor, case: tuple) -> str | None:
    """Says why a picture is still answered as before, from the way its numbers went."""
    pixels, scores_of, answer, budget = case
    with torch.no_grad():
        old, new = scores_of(pixels).softmax(dim=0), scores_of(result).softmax(dim=0)
    if int(new.argmax()) != answer:
        return None
    moves, up = result - pixels, _uphill(pixels, scores_of, answer)
    if not moves.any():
        return "that is the same picture: move its numbers, by the budget at most"
    told = f"it still gives the same answer; its probability went from {old[answer]:.3f} to {new[answer]:.3f}"
    free = ((result > 0) & (result < 1))[moves != 0]  # no clamp has stopped it
    moves, up = moves[moves != 0], up[moves != 0]
    agree, steps, why = float((moves.sign() == up.sign()).float().mean()), (moves / up)[free], []
    if agree < 0.02:
        why.append("You went down the loss: the model is now surer of its answer; add the step, don't subtract it")
    if len(steps) > 1 and float(moves.abs().max()) < budget and float(steps.std()) < 0.05 * float(steps.mean().abs()):
        why.append("You step by the gradient itself, which is tiny: its sign moves every number by the whole budget")
    if bool((moves > 0).all()):
        why.append("You made it brighter everywhere: ask the gradient which way each number has to go")
    elif bool((moves < 0).all()):
        why.append("You made it darker everywhere: ask the gradient which way each number has to go")
    elif 0.2 < agree < 0.8:
        why.append("About as many numbers went the wrong way as the right one, and most of it cancels: ask the "
                   "gradient which way each has to go")  # fmt: skip
    elif not why and agree > 0.98:
        why.append("The way is right, but the steps are small: use the whole budget everywhere")
    return ". ".join([told, *why])


@cache
def _made_toys() -> list[tuple]:
    g, cases = torch.Generator().manual_seed(0), []
    for (H, W), n_answers, budget in (((4, 4), 2, 0.1), ((6, 9), 4, 0.08), ((8, 8), 3, 0.05)):
        for _ in range(1000):
            toy = _Toy(torch.randn(n_answers, 3, H, W, generator=g))
            pixels = torch.rand(3, H, W, generator=g).round(decimals=1)
            pixels[:, :1] = 1.0  # a white edge: a step up would leave what a picture can hold
            answer = int(toy(pixels).argmax())
            up = _uphill(pixels, toy, answer)
            noise = (torch.rand(pixels.shape, generator=torch.Generator().manual_seed(1)) - 0.5).sign()
            others = [toy((pixels + budget * way).clamp(0, 1)) for way in (noise, 1, -1, up, -noise)]
            fooled = int(toy(_fool(pixels, toy, answer, budget)).argmax()) != answer
            if fooled and all(int(scores.argmax()) == answer for scores in others):
                break
        cases.append((pixels, toy, answer, budget))
    return cases


def _toys(_: torch.Generator) -> list[tuple]:
    return _made_toys()


FOOL = Exercise(
    id="14.5", name="fool", minutes=12, level="break it", reference=_fool,
    properties=tuple(
        Property(name, _toys, run=lambda answer, case: answer(*case), accept=accept) for name, accept in (
            ("a picture", _is_picture), ("numbers from 0 to 1", _of_pictures(_in_range)),
            ("the budget", _of_pictures(_within_budget)), ("another answer", _of_pictures(_changed)))
    ) + (input_stays(_toys),),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (LENGTH, SPLICE, LABELS, PATCHED, FOOL)
