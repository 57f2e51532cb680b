"""Checks for the exercises: they try your own function or class, and say what is wrong with it in words.

`check("03.1", rotate_pair)` runs what you wrote beside the reference on seeded inputs and edge cases. If the results
differ, it compares yours with those of the mistakes that people usually make there, and names the one that fits.
"""

from llamamm.course.checks.core import CheckResult, Exercise, Mistake, check, exercises_of, find_exercise

__all__ = ["CheckResult", "Exercise", "Mistake", "check", "exercises_of", "find_exercise"]
