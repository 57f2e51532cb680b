"""Multiple choice for a language model: the same question asked in two forms, with examples before it.

    text      Question: ...                        letter    Question: ...
              Answer:| louder                                A. louder
                     | quieter                               B. quieter
                                                             Answer:| A
                                                                    | B

What stands before the bar is the context, what stands behind it is a continuation. The model's choice is the
continuation to which it gives the highest probability: by "sum", the sum of its tokens' log-probabilities, at which
long texts lose; or by "byte", that sum divided by the bytes of the choice, at which short and long texts can win.
Letters are of one length; but the model must know that a letter stands for a text, and may prefer A whatever it stands
for, so `shuffled` deals the choices anew.

The space before a choice belongs to the continuation, as in EleutherAI's lm-evaluation-harness: tokenizers of this
family make " louder" one token, and a context that ends in a space would be one that the model has rarely read.

Source: Brown and others, 2020, https://arxiv.org/abs/2005.14165, section 2.4, for examples in the prompt and for the
length. Used in notebook 17.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from llamamm.assets.multiple_choice import ChoiceQuestion
from llamamm.assets.splits import hash_of
from llamamm.errors import InputError

FORMS = ("text", "letter")
SCORES = ("sum", "byte")
LETTERS = "ABCDEFGHIJ"
BETWEEN = "\n\n"  # examples, and the question


class ChoicePrompt(NamedTuple):
    """What the model reads, and what may follow: one continuation for each choice, in their order."""

    context: str
    continuations: tuple[str, ...]


def prompt(question: ChoiceQuestion, *, form: str, examples: Sequence[ChoiceQuestion] = ()) -> ChoicePrompt:
    """A question in one of FORMS, behind examples with their answers. Raises InputError.

    The examples are equal for all questions of a set, so that a model can read them once: take them with `few_shot`.
    """
    asked = [_asked(example, form) + _continuations(example, form)[example.answer] for example in examples]
    return ChoicePrompt(BETWEEN.join([*asked, _asked(question, form)]), _continuations(question, form))


def _asked(question: ChoiceQuestion, form: str) -> str:
    if form not in FORMS:
        raise InputError(f"form must be {' or '.join(FORMS)}, got {form!r}")
    lines = [f"Question: {question.question}"]
    if form == "letter":
        if len(question.choices) > len(LETTERS):
            raise InputError(f"{question.key} has {len(question.choices)} choices; there are {len(LETTERS)} letters")
        lines += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)]
    return "\n".join([*lines, "Answer:"])


def _continuations(question: ChoiceQuestion, form: str) -> tuple[str, ...]:
    texts = question.choices if form == "text" else LETTERS[: len(question.choices)]
    return tuple(f" {text}" for text in texts)


def few_shot(train: Sequence[ChoiceQuestion], n: int, *, seed: int = 0) -> list[ChoiceQuestion]:
    """n examples, of different groups: the same for the same seed. Raises InputError where there are fewer groups."""
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(train))
    drawn: dict[str, ChoiceQuestion] = {}
    for i in order:
        drawn.setdefault(train[i].group or train[i].key, train[i])
    if n > len(drawn):
        raise InputError(f"{n} examples are asked for and there are {len(drawn)} that are not alike; take fewer")
    return list(drawn.values())[:n]


def shuffled(question: ChoiceQuestion, *, seed: int) -> ChoiceQuestion:
    """The question with its choices in another order, perhaps the same. It follows from seed and key alone, so it stays
    when other questions are left out."""
    generator = np.random.Generator(np.random.PCG64([seed, hash_of(question.key)]))
    order = generator.permutation(len(question.choices)).tolist()
    return replace(question, choices=tuple(question.choices[i] for i in order), answer=order.index(question.answer))


def chosen(log_likelihoods: Sequence[float], continuations: Sequence[str], *, by: str) -> int:
    """The choice a model makes: the first of the highest. log_likelihoods: of each continuation, the sum over its
    tokens, in nats; by: one of SCORES. The space before a choice is no byte of it. Raises InputError."""
    if by not in SCORES:
        raise InputError(f"by must be {' or '.join(SCORES)}, got {by!r}")
    if not len(log_likelihoods) == len(continuations) > 0:
        raise InputError(f"{len(log_likelihoods)} log-likelihoods for {len(continuations)} continuations")
    sizes = [len(text.removeprefix(" ").encode()) if by == "byte" else 1 for text in continuations]
    scores = [value / max(1, size) for value, size in zip(log_likelihoods, sizes, strict=True)]
    return scores.index(max(scores))
