"""course.plants: what lesson 17 plants."""

import pytest

from llamamm.assets.multiple_choice import ChoiceQuestion
from llamamm.course.plants import rewritten, right_at
from llamamm.errors import InputError

QUESTION = ChoiceQuestion("q/1", "Which?", ("a", "b", "c"), 1)


@pytest.mark.parametrize(("place", "choices"), [(0, "bac"), (1, "abc"), (2, "acb")])
def test_the_right_choice_stands_where_it_is_wanted_and_the_others_keep_their_order(place, choices):
    moved = right_at(QUESTION, place)
    assert "".join(moved.choices) == choices
    assert moved.choices[moved.answer] == "b" and moved.answer == place
    assert (moved.question, moved.key) == ("Which?", "q/1")


@pytest.mark.parametrize("place", [-1, 3])
def test_a_place_that_is_not_there_is_refused(place):
    with pytest.raises(InputError, match=f"3 choices.*got place {place}"):
        right_at(QUESTION, place)


@pytest.mark.parametrize(("every", "text"), [(1, "something something something"), (2, "a something c"), (9, "a b c")])
def test_each_nth_word_is_replaced(every, text):
    assert rewritten("a  b\nc", every) == text


def test_every_0th_word_is_none():
    with pytest.raises(InputError, match="got every 0"):
        rewritten("a b", 0)
