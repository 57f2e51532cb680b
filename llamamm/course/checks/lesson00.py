"""Checks for lesson 00: softmax, the next id, the greedy loop, places under the lens, a flattening temperature."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.compare import difference
from llamamm.course.checks.core import Exercise, Mistake, Property
from llamamm.course.checks.faults import Cases, fault_exercise

# ---- 00.1 ----


def _given(*cases: tuple) -> Cases:
    """Cases that need no random numbers."""
    return lambda _: list(cases)


def _softmax(s: Tensor, faults: Collection[str] = ()) -> Tensor:
    if not faults:
        return s.softmax(dim=-1)
    if "not divided" in faults and {"no power", "logarithm"} & {*faults}:
        return s * math.nan  # the scores themselves: what led to them cannot be told
    powers = {"no power": s, "sign lost": s.abs(), "base 2": 2**s}
    powers = next((powers[fault] for fault in powers if fault in faults), s.exp())
    by = powers.max() if "by the largest" in faults else s.sum() if "by the scores" in faults else powers.sum()
    probs = powers if "not divided" in faults else powers / by
    return probs.log() if "logarithm" in faults else probs


def _softmax_cases(g: torch.Generator) -> list[tuple]:
    return [
        (torch.tensor([2.0, 1.0, -1.0]),),
        (torch.tensor([0.0, 0.0, 0.0, 0.0]),),
        (torch.tensor([-3.0]),),
        (3 * torch.randn(50, generator=g),),
    ]


SCORES = (torch.tensor([2.0, 1.0, -0.5]),)
SOFTMAX = fault_exercise(
    _softmax,
    {
        "no power": "You divided the scores by their sum, which gives negative numbers (and 0 / 0): raise e to each "
                    "first",
        "sign lost": "You took the scores without their sign: then -3 counts as much as 3. Raise e to each score "
                     "instead",
        "base 2": "You raised 2 to each score: softmax raises e = 2.718..., torch.exp",
        "not divided": "You raised a power for each score and stopped: divide by the sum of all",
        "by the largest": "You divided by the largest instead of the sum: the probabilities must add up to 1",
        "by the scores": "You divided by the sum of the scores: divide by the sum of what e to the power of each gives",
        "logarithm": "These are the logarithms of the probabilities: leave the logarithm out",
    },
    {
        "e to the power of each": (_given(SCORES), ("no power", "sign lost", "base 2")),
        "divided by the sum": (_given(SCORES), ("not divided", "by the largest", "by the scores")),
        "no logarithm": (_given(SCORES), ("logarithm",)),
    },
    _softmax_cases,
    tolerance=1e-5,
    id="00.1", name="softmax", minutes=4, level="warm-up",
)  # fmt: skip

# ---- 00.2 ----


def _next_id(logits: Tensor, faults: Collection[str] = ()) -> Any:
    """logits: (1, T, V)."""
    x = -logits if "lowest" in faults else logits
    rows = x[0] if "every" in faults else (x[0, :, -1] if "column" in faults else x.flatten() if "all" in faults
                                           else x[0, 0 if "first" in faults else -1])[None]  # fmt: skip
    best = rows.max(dim=-1)
    sign = -1 if "lowest" in faults else 1
    found = (sign * best.values if "score" in faults else best.indices).tolist()
    return found if "every" in faults else found[0]


def _next_id_cases(g: torch.Generator) -> list[tuple]:
    first = torch.tensor([[[9.0, 0.0, 0.0, 1.0], [0.0, 1.0, 3.0, 2.0]]])
    return [(first,), (torch.randn(1, 1, 5, generator=g),), *((torch.randn(1, 7, 30, generator=g),) for _ in range(4))]


def _plain(answer: Callable, case: tuple) -> Any:
    """The result, a tensor of several numbers as a list."""
    result = answer(*case)
    return result.tolist() if isinstance(result, Tensor) and result.numel() > 1 else result


def _no_number(expected: Any, got: Any) -> str | None:
    several = isinstance(got, list) and all(isinstance(i, int | float) for i in got)
    return None if several else difference(expected, got, math.inf)


# 4 positions, 6 ids; no two faults give the same id or score
TEXT = (torch.tensor([[[-3.5, 0.25, 1.75, 0.5, 3.25, -1.5], [0.75, 9.5, 2.25, -0.25, 1.25, 1.5],
                       [4.5, 0.1, -2.5, -8.5, 3.75, -0.5], [1.1, 4.25, 5.75, 0.6, 2.4, -2.75]]]),)  # fmt: skip
NEXT = fault_exercise(
    _next_id,
    {
        "first": "You read the scores at the first position: what comes next stands at the last one, -1",
        "all": "Your argmax without a position numbers all scores of the whole text: take the last position's row "
               "first",
        "every": "You gave the best id at every position: only the last position says what follows the whole text",
        "column": "You took the last id at each position, and so chose a position: [0, -1] is the last position, all "
                  "ids",
        "score": "You gave the score itself: wanted is its place, the id (argmax)",
        "lowest": "You looked for the lowest score: the best has the highest",
    },
    {
        "the last position": (_given(TEXT), ("first", "all", "every", "column")),
        "the id": (_given(TEXT), ("score",)),
        "the highest score": (_given(TEXT), ("lowest",)),
    },
    _next_id_cases,
    run=_plain, misshapen=_no_number,
    id="00.2", name="next_id", minutes=4, level="warm-up",
)  # fmt: skip

# ---- 00.3 ----


class ToyModel:
    """`next_logits`: scores that depend on every id read and on their order; it counts how often it was asked."""

    def __init__(self, seed: int) -> None:
        self.table = torch.randn(97, 10, generator=torch.Generator().manual_seed(seed))

    def __call__(self, ids: list[int]) -> Tensor:
        key = 0
        for i in ids:
            key = (31 * key + i + 1) % 97
        return self.table[key].clone()


def _greedy(
    next_logits: Callable[[list[int]], Tensor], ids: list[int], stop_ids: Collection[int], max_new: int
) -> list[int]:
    new: list[int] = []
    while len(new) < max_new:
        best = int(next_logits(ids + new).argmax())
        if best in stop_ids:
            break
        new.append(best)
    return new


class Script:
    """`next_logits` that names one id after the other, whatever it is given to read: so only the loop shows."""

    def __init__(self, *ids: int) -> None:
        self.ids, self.n = ids, 0

    def __call__(self, ids: list[int]) -> Tensor:  # noqa: ARG002 (it does not read)
        scores = torch.zeros(10)
        scores[self.ids[min(self.n, len(self.ids) - 1)]] = 1.0
        self.n += 1
        return scores


_SCRIPT = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3)


def _new_alone(new: Any, prompt: list[int]) -> Any:
    """Without the prompt, where the answer begins with it."""
    return new[len(prompt) :] if isinstance(new, list) and new[: len(prompt)] == prompt else new


def _first_new(n: int) -> Callable[[Any, tuple], Any]:
    """Runs an answer and gives its first n new ids."""

    def run(answer: Any, case: tuple) -> Any:
        new = _new_alone(answer(case[0], list(case[1]), *case[2:]), case[1])
        return new[:n] if isinstance(new, list) else new

    return run


def _how_many(answer: Any, case: tuple) -> Any:
    new = _new_alone(answer(case[0], list(case[1]), *case[2:]), case[1])
    return len(new) if isinstance(new, list) else new


def _returned(answer: Any, case: tuple) -> Any:
    new = answer(case[0], list(case[1]), *case[2:])
    return new if not isinstance(new, list) else ["the prompt", "the new ids"][new[: len(case[1])] != case[1] :]


def _left_alone(answer: Any, case: tuple) -> Any:
    given = list(case[1])
    answer(case[0], given, *case[2:])
    return given


def _nothing_stops(lengths: Collection[int], max_new: Collection[int]) -> Callable[[torch.Generator], list[tuple]]:
    return lambda _: [(Script(*_SCRIPT), [8, 7, 8, 7, 8][:n], frozenset(), m)
                      for n, m in zip(lengths, max_new, strict=True)]  # fmt: skip


def _greedy_with_stop(next_logits, ids, stop_ids, max_new):
    new = []
    while len(new) < max_new and not (new and new[-1] in stop_ids):
        new.append(int(next_logits(ids + new).argmax()))
    return new


def _same_list(given: list[int], case: tuple) -> str | None:
    return None if given == case[1] else "you changed the caller's list `ids`: work on a copy, list(ids)"


GREEDY = Exercise(
    id="00.3",
    name="greedy",
    minutes=10,
    level="core",
    reference=_greedy,
    properties=(
        Property(
            "each new id is read the next time",
            lambda g: [(ToyModel(seed), torch.randint(0, 10, (1,), generator=g).tolist(), frozenset(), 6)
                       for seed in range(4)],
            (
                Mistake(
                    lambda f, ids, stop, n: _greedy(lambda _: f(ids), ids, stop, n),
                    "you ask about the same prompt in every round: the new id has to be read with the rest the "
                    "next time",
                ),
                Mistake(
                    lambda f, ids, stop, n: _greedy(lambda text: f(text[-1:]), ids, stop, n),
                    "you let the model read only the newest id: it keeps no memory here, so give it the whole text",
                ),
            ),
            run=_first_new(4),
        ),
        Property(
            "a stop id ends the answer",
            lambda _: [(Script(*_SCRIPT), [8], frozenset(stop), 8) for stop in ([3], [4, 7], [9])],
            (
                Mistake(
                    _greedy_with_stop,
                    "the stop id is among your new ids: it means 'end of turn' and is no part of the answer",
                ),
                Mistake(
                    lambda f, ids, _, n: _greedy(f, ids, (), n),
                    "you went on after a stop id: end the loop where the best id is in stop_ids",
                ),
                Mistake(
                    lambda f, ids, stop, n: [i for i in _greedy(f, ids, (), n) if i not in stop],
                    "you left the stop id out and went on: it has to end the loop",
                ),
            ),
            run=_first_new(6),
        ),
        Property(
            "at most max_new ids",
            _nothing_stops((1, 3, 2, 5), (3, 4, 0, 7)),
            (
                Mistake(
                    lambda f, ids, stop, n: _greedy(f, ids, stop, max(n - len(ids), 0)),
                    "you stop too early: max_new counts the new ids alone, without those of the prompt",
                ),
                Mistake(
                    lambda f, ids, stop, n: _greedy(f, ids, stop, n + 1),
                    "you gave one id more than max_new allows: compare before you ask for the next one",
                ),
            ),
            run=_how_many,
        ),
        Property(
            "only the new ids come back",
            _nothing_stops((1, 3), (5, 6)),
            (
                Mistake(
                    lambda f, ids, stop, n: ids + _greedy(f, ids, stop, n),
                    "you gave the prompt back together with the answer: give only the new ids",
                ),
            ),
            run=_returned,
        ),
        Property(
            "the list ids stays as it is",
            _nothing_stops((1, 3), (5, 6)),
            run=_left_alone,
            accept=_same_list,
        ),
    ),
)

# ---- 00.4 ----


def _places(scores: Tensor, token: int, faults: Collection[str] = ()) -> Tensor:
    own = scores[:1, [token]] if "first row's score" in faults else scores[:, [token]]
    if "argsort" in faults:
        place = scores.argsort(dim=1, descending=True, stable=True)[:, token] + 1
    else:
        scores, own = (-scores, -own) if "lower" in faults else (scores, own)
        better = scores >= own if {"itself", "ties"} & {*faults} else scores > own
        place = better.sum(dim=1) + ("ties" not in faults)
    place = place - int("from 0" in faults)
    return place[:1].expand_as(place).clone() if "first row" in faults else place


def _places_cases(g: torch.Generator) -> list[tuple]:
    return [
        (torch.tensor([[0.1, 0.7, 0.2], [5.0, 1.0, 3.0]]), 1),
        (torch.tensor([[4.0, 4.0, 1.0]]), 1),  # a tie for the best
        (torch.randn(1, 9, generator=g), 0),
        (torch.randn(30, 200, generator=g), 17),
        (torch.randn(4, 12, generator=g), 11),
    ]


def _for_each_row(got: Tensor, expected: Tensor) -> Tensor | None:
    """One place for all rows -> one for each."""
    return got.flatten().expand(len(expected)) if got.numel() == 1 else None


# the token has the places 1 with a tie, 3, and 5; no two faults give the same
TABLE = (torch.tensor([[0.2, 4.0, 1.0, 4.0, 0.9, 3.0, 3.5], [0.1, 0.7, 0.2, 0.8, 0.3, 0.9, 0.6],
                       [9.0, 1.0, 3.0, 2.0, 0.5, 7.0, 0.6]]), 1)  # fmt: skip
PLACES = fault_exercise(
    _places,
    {
        "from 0": "Your places begin at 0: the best has place 1",
        "itself": "You counted the token itself (>=) and then added 1: count those strictly better",
        "ties": "You counted equal scores as better: with a tie for the best, both have place 1",
        "lower": "You counted those with a lower score: the best would have the last place",
        "argsort": "Your argsort says which token stands in a place: you need the place in which the token stands",
        "first row": "This is the place in the first row alone: give one place for each row",
        "first row's score": "You compared every row with the token's score in the first row: each has its own, "
                             "scores[:, [token]]",
    },
    {
        "the best has place 1": (_given(TABLE), ("from 0", "itself", "ties")),
        "how many are better": (_given(TABLE), ("lower", "argsort")),
        "each row for itself": (_given(TABLE), ("first row", "first row's score")),
    },
    _places_cases,
    repair=_for_each_row, form="There should be one place for each row",
    id="00.4", name="places", minutes=15, level="hard",
)  # fmt: skip

# ---- 00.5 ----


def _flat_temperature(scores: Tensor, limit: float) -> float:
    temperature = 1.0
    while float((scores / temperature).softmax(-1).max()) >= limit:
        temperature *= 2
    return temperature


def _flat_cases(g: torch.Generator) -> list[tuple]:
    return [
        (torch.tensor([2.0, 1.0, -1.0, 0.0]), 0.5),
        (torch.tensor([2.0, 1.0, -1.0, 0.0]), 0.3),
        (torch.tensor([30.0, 0.0, 0.0, 0.0]), 0.26),
        (torch.tensor([900.0, 100.0, -500.0, 0.0]), 0.251),
        (20 * torch.randn(4, generator=g), 0.4),
    ]


def _flat_problem(result: Any, case: tuple) -> str | None:
    scores, limit = case
    where = f"for the scores {[round(x, 1) for x in scores.tolist()]} and the limit {limit:g}"
    number = result.item() if isinstance(result, Tensor) and result.numel() == 1 else result
    if isinstance(number, bool) or not isinstance(number, int | float):
        return f"{where} the result should be a temperature, one number, got {type(result).__name__}"
    if math.isnan(number) or math.isinf(number):
        return f"{where} you gave {number}: a temperature is finite, and a large enough one will do"
    if number == 0:
        return f"{where} you gave 0: scores are divided by the temperature, so it is above 0"
    if number < 0:
        return f"{where} you gave {number:g}: a negative temperature turns the order of the scores round"
    best = float((scores.double() / number).softmax(-1).max())
    if best < limit:
        return None
    if number < 1:
        return (
            f"{where} you gave {number:g}, and the best has {best:.3f}: below 1 a temperature makes the best score "
            f"more probable; you want the other direction"
        )
    return (
        f"{where} you gave {number:g}, and the best still has {best:.3f}: it is too low for scores that lie so far "
        f"apart. Let your code try higher ones until it is enough"
    )


FLAT = Exercise(
    id="00.5",
    name="flat_temperature",
    minutes=10,
    level="break it",
    reference=_flat_temperature,
    cases=_flat_cases,
    accept=_flat_problem,
)

EXERCISES: tuple[Exercise, ...] = (SOFTMAX, NEXT, GREEDY, PLACES, FLAT)
