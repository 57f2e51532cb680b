"""tasks.plain: questions that have one answer, and none that gives it away."""

import pytest

from llamamm.assets.sentences import plain_words
from llamamm.evals.measures import holds
from llamamm.tasks.plain import PLAIN


def test_about_sixty_questions_each_once():
    assert len(PLAIN) == len({question for question, _ in PLAIN}) == 60
    assert all(question.endswith("?") and question == question.strip() for question, _ in PLAIN)


@pytest.mark.parametrize(("question", "key"), PLAIN)
def test_a_key_is_of_plain_words_that_the_question_has_not(question, key):
    assert plain_words(key.replace("|", " ")) == key.split("|")
    assert not holds(question, key)  # who repeats the question has not answered it


@pytest.mark.parametrize(("asked", "answer", "right"), [
    ("What is two plus two?", "It's 4.", True), ("What is two plus two?", "FOUR!", True),
    ("What is two plus two?", "Two plus two is fourteen, or 44.", False),
    ("What is the chemical symbol for water?", "The symbol is H2O", True),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci painted it.", True),
    ("What is the opposite of open?", "Closed", True), ("What is the capital of Italy?", "", False),
    ("What is a baby cat called?", "A baby cat is called a cat.", False),
])  # fmt: skip
def test_answers_by_hand(asked, answer, right):
    assert holds(answer, dict(PLAIN)[asked]) == right
