"""Checks for lesson 00: softmax, the next id, the greedy loop, places under the lens, a flattening temperature."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.core import Exercise, Mistake, Property

# ---- 00.1 ----


def _softmax_cases(g: torch.Generator) -> list[tuple]:
    return [
        (torch.tensor([2.0, 1.0, -1.0]),),
        (torch.tensor([0.0, 0.0, 0.0, 0.0]),),
        (torch.tensor([-3.0]),),
        (3 * torch.randn(50, generator=g),),
    ]


# ---- 00.2 ----


def _next_id(logits: Tensor) -> int:
    return int(logits[0, -1].argmax())


def _next_id_cases(g: torch.Generator) -> list[tuple]:
    first = torch.tensor([[[9.0, 0.0, 0.0, 1.0], [0.0, 1.0, 3.0, 2.0]]])
    return [(first,), (torch.randn(1, 1, 5, generator=g),), *((torch.randn(1, 7, 30, generator=g),) for _ in range(4))]


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


# ---- 00.4 ----


def _places(scores: Tensor, token: int) -> Tensor:
    return (scores > scores[:, [token]]).sum(dim=1) + 1


def _places_cases(g: torch.Generator) -> list[tuple]:
    return [
        (torch.tensor([[0.1, 0.7, 0.2], [5.0, 1.0, 3.0]]), 1),
        (torch.tensor([[4.0, 4.0, 1.0]]), 1),  # a tie for the best
        (torch.randn(1, 9, generator=g), 0),
        (torch.randn(30, 200, generator=g), 17),
        (torch.randn(4, 12, generator=g), 11),
    ]


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
    if number <= 0:
        return (
            f"{where} you gave {number:g}: a temperature is above 0; a negative one turns the order of the scores round"
        )
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


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        id="00.1",
        name="softmax",
        minutes=4,
        level="warm-up",
        reference=lambda scores: scores.softmax(dim=-1),
        cases=_softmax_cases,
        tolerance=1e-5,
        mistakes=(
            Mistake(
                lambda s: s / s.sum(),
                "you divided the scores by their sum, which gives negative numbers (and 0 / 0): raise e to each first",
            ),
            Mistake(
                lambda s: s.abs() / s.abs().sum(),
                "you took the scores without their sign: then -3 counts as much as 3. Raise e to each score instead",
            ),
            Mistake(lambda s: s.exp(), "you raised e to each score and stopped: divide by the sum of all"),
            Mistake(
                lambda s: s.exp() / s.exp().max(),
                "you divided by the largest instead of the sum: the probabilities must add up to 1",
            ),
            Mistake(
                lambda s: s.exp() / s.sum(),
                "you divided by the sum of the scores: divide by the sum of what e to the power of each gives",
            ),
            Mistake(
                lambda s: 2**s / (2**s).sum(), "you raised 2 to each score: softmax raises e = 2.718..., torch.exp"
            ),
            Mistake(
                lambda s: s.log_softmax(-1), "these are the logarithms of the probabilities: leave the logarithm out"
            ),
        ),
    ),
    Exercise(
        id="00.2",
        name="next_id",
        minutes=4,
        level="warm-up",
        reference=_next_id,
        cases=_next_id_cases,
        mistakes=(
            Mistake(
                lambda x: int(x[0, 0].argmax()),
                "you read the scores at the first position: what comes next stands at the last one, -1",
            ),
            Mistake(
                lambda x: int(x.argmax()),
                "argmax without a position numbers all scores of the whole text: take the last position's row first",
            ),
            Mistake(
                lambda x: int(x[0].argmax(dim=-1)[0]),
                "you read the scores at the first position: what comes next stands at the last one, -1",
            ),
            Mistake(
                lambda x: float(x[0, -1].max()), "that is the best score itself: wanted is its place, the id (argmax)"
            ),
            Mistake(lambda x: int(x[0, -1].argmin()), "that is the id with the lowest score: the best has the highest"),
            Mistake(
                lambda x: x[0].argmax(dim=-1).tolist(),
                "you gave the best id at every position: only the last position says what follows the whole text",
            ),
            Mistake(
                lambda x: x[0].argmax(dim=-1),
                "you gave the best id at every position: only the last position says what follows the whole text",
            ),
            Mistake(
                lambda x: int(x[0, :, -1].argmax()),
                "you took the last id at each position, and so chose a position: [0, -1] is the last position, all ids",
            ),
        ),
    ),
    Exercise(
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
                run=_first_new(7),
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
    ),
    Exercise(
        id="00.4",
        name="places",
        minutes=15,
        level="hard",
        reference=_places,
        cases=_places_cases,
        mistakes=(
            Mistake(lambda s, t: _places(s, t) - 1, "your places begin at 0: the best has place 1"),
            Mistake(
                lambda s, t: (s >= s[:, [t]]).sum(dim=1) + 1,
                "you counted the token itself (>=) and then added 1: count those strictly better",
            ),
            Mistake(
                lambda s, t: (s >= s[:, [t]]).sum(dim=1),
                "you counted equal scores as better: with a tie for the best, both have place 1",
            ),
            Mistake(
                lambda s, t: (s < s[:, [t]]).sum(dim=1) + 1,
                "you counted those with a lower score: the best would have the last place",
            ),
            Mistake(
                lambda s, t: s.argsort(dim=1, descending=True)[:, t] + 1,
                "argsort says which token stands in a place: you need the place in which the token stands",
            ),
            Mistake(
                lambda s, t: (s[0] > s[0, t]).sum() + 1,
                "that is the place in the first row alone: give one place for each row",
            ),
            Mistake(
                lambda s, t: (s > s[0, t]).sum(dim=1) + 1,
                "you compared every row with the token's score in the first row: each has its own, scores[:, [token]]",
            ),
        ),
    ),
    Exercise(
        id="00.5",
        name="flat_temperature",
        minutes=10,
        level="break it",
        reference=_flat_temperature,
        cases=_flat_cases,
        accept=_flat_problem,
    ),
)
