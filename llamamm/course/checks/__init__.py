"""Checks for the exercises: they try your own function or class, and say what is wrong with it in words.

`check("04.1", rotate_pair)` runs what you wrote beside the reference on seeded inputs and edge cases. If the results
differ, it compares yours with those of the mistakes that people usually make there, and names the one that fits.
"""

from typing import Any

__all__ = ["CheckResult", "Exercise", "Mistake", "Property", "check", "exercises_of", "find_exercise"]


def __getattr__(name: str) -> Any:
    """A name is imported when it is used: `llamamm check` waits for PyTorch once, in the process that needs it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from llamamm.course.checks import core

    return getattr(core, name)
