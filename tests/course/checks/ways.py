"""What the tests of the checks share: each exercise written in several ways, each way with any of the faults in it."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from llamamm.course.checks import check

Ways = Mapping[str, Sequence[Callable[..., Any]]]  # exercise -> its ways, each called as way(*case, has=faults)
Told = Mapping[str, Mapping[str, str]]  # exercise -> fault -> what a message must hold


def alone(told: Told, ways: Ways) -> list[tuple[str, tuple[str, ...], int]]:
    """Each fault in each way: (exercise, faults, number of the way)."""
    return [(e, (fault,), way) for e, faults in told.items() for fault in faults for way in range(len(ways[e]))]


def pairs(told: Told, ways: Ways, apart: Mapping[str, Sequence[set[str]]]) -> list[tuple[str, tuple[str, ...], int]]:
    """Each pair of faults, in one way after the other, but for those in `apart`, which cannot stand together."""
    return [
        (e, pair, i % len(ways[e])) for e, faults in told.items() for i, pair in enumerate(combinations(faults, 2))
        if not any(set(pair) <= some for some in apart.get(e, ()))
    ]  # fmt: skip


def assert_told(told: Told, exercise: str, faults: Sequence[str], answer: Any) -> None:
    """The answer is wrong, and of all sentences exactly those of its faults are in the message."""
    result = check(exercise, answer)
    assert not result, f"{faults} pass as right"
    sentences = {fault for fault, phrase in told[exercise].items() if phrase.lower() in result.message.lower()}
    assert sentences == {*faults}, f"{faults}: {result.message}"
