"""Checks for lesson 00: softmax, the next id, the greedy loop, places under the lens, a flattening temperature."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.core import Exercise, Mistake

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


def _greedy_cases(g: torch.Generator) -> list[tuple]:
    prompts = [torch.randint(0, 10, (n,), generator=g).tolist() for n in (5, 3, 1, 2, 4, 5)]
    cases = []
    for seed, prompt in enumerate(prompts):
        model = ToyModel(seed)
        answer = _greedy(model, prompt, (), 8)
        late = [i for i in answer if i not in answer[:3]]  # an id that comes fourth at the earliest
        cases.append((model, prompt, frozenset(late[:1]), 8))
    model, prompt = ToyModel(7), [1, 2, 3]
    first = _greedy(model, prompt, (), 1)
    return [*cases, (model, prompt, frozenset(), 3), (model, prompt, frozenset(first), 5), (model, prompt, set(), 0)]


def _run_greedy(answer: Callable, case: tuple) -> Any:
    model, prompt, stop_ids, max_new = case
    given = list(prompt)
    new = answer(model, given, stop_ids, max_new)
    return new if given == prompt else (new, "your function changed the list `ids`")


def _greedy_with_stop(next_logits, ids, stop_ids, max_new):
    new = []
    while len(new) < max_new and not (new and new[-1] in stop_ids):
        new.append(int(next_logits(ids + new).argmax()))
    return new


def _greedy_in_place(next_logits, ids, stop_ids, max_new):
    new = _greedy(next_logits, list(ids), stop_ids, max_new)
    ids += new
    return new


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
        cases=_greedy_cases,
        run=_run_greedy,
        mistakes=(
            Mistake(
                _greedy_with_stop,
                "the stop id is among your new ids: it means 'end of turn' and is no part of the answer",
            ),
            Mistake(
                lambda f, ids, stop, n: ids + _greedy(f, ids, stop, n),
                "you gave the prompt back together with the answer: give only the new ids",
            ),
            Mistake(
                lambda f, ids, stop, n: _greedy(lambda _: f(ids), ids, stop, n),
                "you ask about the same prompt in every round: the new id has to be read with the rest the next time",
            ),
            Mistake(
                lambda f, ids, stop, n: _greedy(lambda text: f(text[-1:]), ids, stop, n),
                "you let the model read only the newest id: it keeps no memory here, so give it the whole text",
            ),
            Mistake(
                _greedy_in_place,
                "the answer is right, but you changed the caller's list `ids`: work on a copy, list(ids)",
            ),
            Mistake(
                lambda f, ids, stop, n: _greedy(f, ids, stop, max(n - len(ids), 0)),
                "you stop too early: max_new counts the new ids alone, without those of the prompt",
            ),
            Mistake(
                lambda f, ids, stop, n: _greedy(f, ids, stop, n + 1),
                "you gave one id more than max_new allows: compare before you ask for the next one",
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
