"""evals.transcripts: alignments and error rates by hand, as they are defined, and as jiwer counts them."""

from functools import cache

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamamm.errors import InputError
from llamamm.evals.transcripts import (
    Alignment,
    align,
    character_error_rate,
    character_errors,
    word_error_rate,
    word_errors,
)


@pytest.mark.parametrize("said, heard, errors", [
    ("", "", 0), ("a b c", "a b c", 0), ("a b c", "", 3), ("", "a b", 2),
    ("a b c", "a x c", 1), ("a b c", "a c", 1), ("a b c", "a b b c", 1),
    ("a b c d", "b c d e", 2),  # one out in front, one put in behind: not four changed
    ("the cat sat on the mat", "a cat sat the mat today", 3), ("a b", "b a", 2),
])  # fmt: skip
def test_word_errors_by_hand(said, heard, errors):
    assert word_errors(said.split(), heard.split()) == errors == align(said.split(), heard.split()).errors


def least_edits(said, heard):
    """The same, as it is defined."""

    @cache
    def least(n, k):
        if n == 0 or k == 0:
            return n + k
        return min(least(n - 1, k) + 1, least(n, k - 1) + 1, least(n - 1, k - 1) + (said[n - 1] != heard[k - 1]))

    return least(len(said), len(heard))


WORDS = st.lists(st.sampled_from("abc"), max_size=7)


@given(WORDS, WORDS, WORDS)
def test_word_errors_are_the_least_edits_and_a_distance(one, two, three):
    errors = word_errors(one, two)
    assert errors == least_edits(one, two) == word_errors(two, one)
    assert errors <= word_errors(one, three) + word_errors(three, two)
    assert (errors == 0) == (one == two)


def test_an_alignment_by_hand():
    found = align("the cat sat on the mat".split(), "a cat sat the mat today".split())
    assert found.pairs == (("the", "a"), ("cat", "cat"), ("sat", "sat"), ("on", None), ("the", "the"), ("mat", "mat"),
                           (None, "today"))  # fmt: skip
    assert (found.hits, found.substitutions, found.deletions, found.insertions, found.errors) == (4, 1, 1, 1, 3)
    assert str(found) == "the cat sat on the mat -\na   cat sat -  the mat today\nS           D          I"


def test_of_nothing_an_alignment_is_empty():
    assert align([], []) == Alignment(()) and align([], []).errors == 0
    assert align(["a"], []).pairs == (("a", None),) and align([], ["a"]).pairs == ((None, "a"),)


@given(WORDS, WORDS)
def test_an_alignment_holds_both_texts_with_the_fewest_errors(said, heard):
    found = align(said, heard)
    assert [a for a, _ in found.pairs if a is not None] == said
    assert [b for _, b in found.pairs if b is not None] == heard
    assert (None, None) not in found.pairs
    assert found.errors == word_errors(said, heard) == found.substitutions + found.deletions + found.insertions


# ---- jiwer ----


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.lists(st.sampled_from("abcd"), max_size=9))
def test_counts_are_jiwers(said, heard):
    found, theirs = align(said, heard), jiwer.process_words(" ".join(said), " ".join(heard))
    assert [found.hits, found.substitutions, found.deletions, found.insertions] == [
        theirs.hits, theirs.substitutions, theirs.deletions, theirs.insertions]  # fmt: skip


TEXTS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat"]), max_size=6).map(" ".join)
PAIRS = st.lists(st.tuples(TEXTS.filter(bool), TEXTS), min_size=1, max_size=4)


@given(PAIRS)
def test_rates_of_many_texts_are_jiwers_also_where_nothing_was_heard(pairs):
    said, heard = (list(texts) for texts in zip(*pairs, strict=True))
    assert word_error_rate(said, heard) == pytest.approx(jiwer.wer(said, heard))
    assert character_error_rate(said, heard) == pytest.approx(jiwer.cer(said, heard))


# ---- rates ----


def test_a_rate_is_errors_over_words_not_a_mean_of_rates():
    assert word_error_rate(["a b c d", "e"], ["a b c d", "f"]) == 1 / 5
    assert character_error_rate(["abcd ef", "g"], ["abcd xf", "g"]) == 1 / 8  # the space counts
    assert character_errors("kitten", "sitting") == 3


def test_a_rate_can_be_over_one():
    assert word_error_rate(["yes"], ["oh yes it is"]) == 3


def test_texts_are_normalised_unless_told_otherwise():
    said, heard = ["It's ten o'clock."], ["it is 10 o clock"]
    assert word_error_rate(said, heard) == character_error_rate(said, heard) == 0
    assert word_error_rate(said, heard, words=str.split) == 5 / 3
    assert character_error_rate(["Ab"], ["ab"], text=str) == 0.5


def test_where_nothing_was_said_words_heard_are_errors_and_no_words():
    assert word_error_rate(["a b", ""], ["a b", "um no"], words=str.split) == 2 / 2
    for said in ([], [""], ["", "(door)"]):
        with pytest.raises(InputError, match=f"nothing was said in {len(said)} texts"):
            word_error_rate(said, ["x"] * len(said))
    with pytest.raises(InputError, match="2 texts were said and 1 heard"):
        word_error_rate(["a", "b"], ["a"])
