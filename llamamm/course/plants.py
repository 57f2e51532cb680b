"""What lesson 17 plants to see whether a measurement finds it: the right answer at a chosen letter, a text with words
replaced.
"""

from __future__ import annotations

from dataclasses import replace

from llamamm.assets.multiple_choice import ChoiceQuestion
from llamamm.errors import InputError

INSTEAD = "something"  # in a rewritten text


def right_at(question: ChoiceQuestion, place: int) -> ChoiceQuestion:
    """The same question, its right choice moved to `place`, 0 for A; the others stay in their order. Raises InputError.
    """
    if not 0 <= place < len(question.choices):
        raise InputError(f"{question.key} has {len(question.choices)} choices, the first of them 0; got place {place}")
    choices = [choice for n, choice in enumerate(question.choices) if n != question.answer]
    choices.insert(place, question.choices[question.answer])
    return replace(question, choices=tuple(choices), answer=place)


def rewritten(text: str, every: int) -> str:
    """The text with each `every`-th word replaced, the words parted by one space. Raises InputError."""
    if every < 1:
        raise InputError(f"each word or each n-th word can be replaced, got every {every}")
    return " ".join(INSTEAD if n % every == 0 else word for n, word in enumerate(text.split(), start=1))
