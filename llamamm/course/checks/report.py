"""What the checks say: of one exercise, and of a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CheckResult:
    """True if the answer is right; printed as one message."""

    id: str
    passed: bool
    message: str
    points: int = 1  # what a right answer earns
    missing: bool = False  # a notebook that does not hold this exercise

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"{self.id} {'passed' if self.passed else 'not yet'}: {self.message}"


@dataclass
class Report:
    """The result of each exercise of a notebook's lesson, in the lesson's order, and what else is amiss with it."""

    results: list[CheckResult]
    remarks: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[CheckResult]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    @property
    def passed(self) -> bool:
        return all(self.results)

    @property
    def points(self) -> tuple[int, int]:
        """What was earned, and what can be."""
        return sum(r.points for r in self.results if r), sum(r.points for r in self.results)

    @property
    def summary(self) -> str:
        """Such as "3 of 5 passed, 5 of 10 points; 03.2 and 03.4 are missing"."""
        earned, most = self.points
        text = f"{sum(map(bool, self.results))} of {len(self.results)} passed, {earned} of {most} points"
        missing = [r.id for r in self.results if r.missing]
        if not missing:
            return text
        names = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        return f"{text}; {names} {'are' if len(missing) > 1 else 'is'} missing"
