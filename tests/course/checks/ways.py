"""What the tests of the checks share: each exercise written in several ways, each way with any of the faults in it.

All ways and faults of an exercise are tried in one test, for thousands of tests cost pytest more than the checks
themselves; a failure names all that went wrong in it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

from llamamm.course.checks import check

Write = Callable[[Any, Collection[str]], Any]  # write(way, faults): an answer


def with_faults(way: Callable[..., Any], faults: Collection[str]) -> Callable[..., Any]:
    """An answer that is written in this way: `way(*case, has=faults)`."""
    return partial(way, has=frozenset(faults))


def assert_right(exercise: str, ways: Sequence[Any], write: Write = with_faults) -> None:
    """Each way passes where no fault is in it."""
    results = [check(exercise, write(way, ())) for way in ways]
    wrong = [f"way {n}: {result.message}" for n, result in enumerate(results) if not result]
    assert not wrong, "\n".join(wrong)


def assert_told(
    exercise: str, ways: Sequence[Any], told: Mapping[str, str], apart: Collection[set[str]], write: Write = with_faults
) -> None:
    """Each fault in each way, and each two faults in one way after the other, get their sentences and no others.

    told: fault -> what a message must hold. apart: sets of faults of which no two can stand in one answer.
    """
    alone = [((fault,), way) for fault in told for way in range(len(ways))]
    pairs = [(pair, i % len(ways)) for i, pair in enumerate(combinations(told, 2))
             if not any(set(pair) <= some for some in apart)]  # fmt: skip
    wrong = [f"{' and '.join(faults)}, way {way}: {problem}" for faults, way in alone + pairs
             if (problem := _problem(exercise, write(ways[way], faults), faults, told))]  # fmt: skip
    assert not wrong, f"{len(wrong)} of {len(alone + pairs)} are told wrongly\n" + "\n".join(wrong)


def _problem(exercise: str, answer: Any, faults: Collection[str], told: Mapping[str, str]) -> str | None:
    """What is wrong with the result of an answer with faults, or None."""
    result = check(exercise, answer)
    if result:
        return "passes as right"
    phrases, message = {fault: phrase.lower() for fault, phrase in told.items()}, result.message.lower()
    own = [phrases[fault] for fault in faults]  # a fault may share another's phrase, or its phrase hold another's
    lacks = [fault for fault in faults if phrases[fault] not in message]
    others = [fault for fault, phrase in phrases.items()
              if phrase in message and not any(phrase in mine for mine in own)]  # fmt: skip
    return f"not told {lacks}, told {others}: {result.message}" if lacks or others else None
