"""evals.spoken_numbers: numbers in words as digits, every one of a grid, and what is no number left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamamm.evals.spoken_numbers import DECADES, ORDINALS, SCALES, SMALL, ZEROS, with_digits
from tests.evals.numbers_in_words import in_words, ordinal, year


@pytest.mark.parametrize("joined", [" and ", " "], ids=["British", "American"])
def test_every_number_to_2100(joined):
    assert [n for n in range(2101) if with_digits(in_words(n, joined).split()) != [str(n)]] == []


@given(st.integers(0, 10**12 - 1), st.sampled_from([" and ", " "]))
def test_large_numbers(n, joined):
    assert with_digits(in_words(n, joined).split()) == [str(n)]


def test_every_ordinal_to_1100():
    suffixes = {1: "st", 2: "nd", 3: "rd"}
    expected = [f"{n}{'th' if n // 10 % 10 == 1 else suffixes.get(n % 10, 'th')}" for n in range(1, 1100)]
    assert [with_digits(ordinal(n).split()) for n in range(1, 1100)] == [[text] for text in expected]


def test_every_year_of_seven_centuries():
    assert [n for n in range(1300, 2100) if with_digits(year(n).split()) != [str(n)]] == []


@pytest.mark.parametrize("said, written", [
    ("", ""), ("no number", "no number"), ("ten green bottles", "10 green bottles"),
    ("the first of may", "the 1st of may"), ("one hundred and fifth", "105th"), ("three fifths", "3 fifths"),
    ("nineteen sixties", "1960s"), ("in the twenties", "in the 20s"), ("hundreds of birds", "hundreds of birds"),
    ("one oh one", "101"), ("five five five", "555"), ("oh dear", "oh dear"), ("five o clock", "5 o clock"),
    ("ten thirty", "10 30"), ("three forty five", "3 45"), ("nineteen one", "19 1"), ("twenty twenty four", "2024"),
    ("twelve hundred", "1200"), ("twenty five hundred", "2500"), ("hundred", "100"), ("a thousand and one", "1001"),
    ("two hundred and three hundred", "200 and 300"), ("two hundred and three thousand", "203000"),
    ("two hundred three hundred", "200 300"), ("two thousand three thousand", "2000 3000"),
    ("one two hundred", "1 200"), ("five hundred and", "500 and"), ("five and six", "5 and 6"),
    ("one hundred and one hundred and two", "100 and 102"), ("one million and two thousand", "1002000"),
    ("three point one four", "3.14"), ("two point oh five", "2.05"), ("2 point 5", "2.5"), ("point five", "point 5"),
    ("what is the point", "what is the point"), ("six point", "6 point"), ("one point twenty five", "1.25"),
    ("2 million", "2000000"), ("2.5 million", "2500000"), ("two point five million", "2500000"),
    ("0.12345 thousand", "123.45"), ("20 hundred thousand", "2000000"), ("007 hundred", "700"),
    ("nineteen 84", "19 84"), ("one 2", "1 2"), ("1 2", "1 2"), ("5 oh five", "5 oh 5"), ("1.2.3", "1.2.3"),
])  # fmt: skip
def test_by_hand(said, written):
    assert with_digits(said.split()) == written.split()


PIECES = [*SMALL, *SCALES, *ZEROS, *ORDINALS, *DECADES, "and", "a", "point", "5", "0.5", "1984", "cat"]


@given(st.lists(st.sampled_from(PIECES), max_size=9))
def test_a_second_time_changes_nothing_and_no_number_is_left_in_words(words):
    written = with_digits(words)
    assert with_digits(written) == written
    assert {*written}.isdisjoint([*SMALL, *SCALES, "zero", *ORDINALS, *DECADES])


@given(st.lists(st.sampled_from(PIECES), max_size=5), st.lists(st.sampled_from(PIECES), max_size=5))
def test_what_stands_on_the_other_side_of_a_word_does_not_matter(before, behind):
    assert with_digits([*before, "cat", *behind]) == [*with_digits(before), "cat", *with_digits(behind)]


def test_digits_without_end_are_moved_exactly():
    assert with_digits(["9" * 6000, "million"]) == ["9" * 6000 + "000000"]
