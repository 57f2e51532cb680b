"""tasks.choices: prompts written out by hand, examples and orders that a seed draws, and the choice by two scores."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamamm.assets.fetch import fetch
from llamamm.assets.multiple_choice import ChoiceQuestion, load_choices
from llamamm.errors import InputError
from llamamm.tasks.choices import FORMS, ChoicePrompt, chosen, few_shot, prompt, shuffled

SOUND = ChoiceQuestion("q/0", "Near a speaker, sound is", ("louder", "quieter"), 0, group="q/0")
ICE = ChoiceQuestion("q/1", "What melts?", ("iron", "stone", "ice"), 2, group="q/1")


def test_the_text_form():
    assert prompt(SOUND, form="text") == ChoicePrompt(
        "Question: Near a speaker, sound is\nAnswer:", (" louder", " quieter"))  # fmt: skip


def test_the_letter_form():
    assert prompt(ICE, form="letter") == ChoicePrompt(
        "Question: What melts?\nA. iron\nB. stone\nC. ice\nAnswer:", (" A", " B", " C"))  # fmt: skip


def test_examples_stand_before_it_with_their_answers():
    assert prompt(SOUND, form="text", examples=[ICE]) == ChoicePrompt(
        "Question: What melts?\nAnswer: ice\n\nQuestion: Near a speaker, sound is\nAnswer:", (" louder", " quieter"))
    assert prompt(SOUND, form="letter", examples=[ICE, ICE]).context == (
        "Question: What melts?\nA. iron\nB. stone\nC. ice\nAnswer: C\n\n" * 2
        + "Question: Near a speaker, sound is\nA. louder\nB. quieter\nAnswer:")  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_space_belongs_to_the_continuation_in_real_questions_too(form):
    for train, test in load_choices(fetch("multiple-choice", progress=False)).values():
        examples = few_shot(train, 2)
        for question in test[::101]:
            context, continuations = prompt(question, form=form, examples=examples)
            assert context == context.rstrip() and context.startswith("Question: ")
            assert len(continuations) == len(question.choices)
            assert all(text[0] == " " != text[1] for text in continuations)
            assert context.startswith(prompt(examples[0], form=form).context)  # shared by all


def test_more_choices_than_letters_are_refused_and_so_is_an_unknown_form():
    many = ChoiceQuestion("q/2", "?", tuple(map(str, range(11))), 0)
    assert len(prompt(many, form="text").continuations) == 11
    with pytest.raises(InputError, match="11 choices; there are 10 letters"):
        prompt(many, form="letter")
    with pytest.raises(InputError, match="text or letter, got 'letters'"):
        prompt(SOUND, form="letters")


# ---- examples ----


def many(n, groups):
    return [ChoiceQuestion(f"q/{i}", f"{i}?", ("a", "b"), i % 2, group=f"g{i % groups}") for i in range(n)]


def test_examples_are_drawn_by_the_seed_and_no_two_are_alike():
    train = many(60, 20)
    assert few_shot(train, 5, seed=1) == few_shot(train, 5, seed=1) != few_shot(train, 5, seed=2)
    assert few_shot(train, 3, seed=1) == few_shot(train, 5, seed=1)[:3]
    for seed in range(20):
        assert len({q.group for q in few_shot(train, 20, seed=seed)}) == 20
    assert len({few_shot(train, 1, seed=seed)[0].key for seed in range(60)}) > 20
    assert few_shot(train, 0) == []


def test_too_many_examples_are_refused():
    with pytest.raises(InputError, match="21 examples are asked for and there are 20 that"):
        few_shot(many(60, 20), 21)


# ---- the order of choices ----


@given(st.integers(2, 6), st.integers(0, 5), st.integers(0, 2**31), st.text(max_size=9))
def test_shuffled_choices_are_the_same_ones_and_the_right_one_stays_right(n, answer, seed, key):
    question = ChoiceQuestion(key, "?", tuple(f"choice {i}" for i in range(n)), answer % n, group="g")
    other = shuffled(question, seed=seed)
    assert other.choices[other.answer] == question.choices[question.answer]
    assert Counter(other.choices) == Counter(question.choices)
    assert (other.key, other.question, other.group) == (question.key, question.question, question.group)
    assert shuffled(question, seed=seed) == other


def test_the_right_one_comes_to_every_place_about_as_often():
    places = Counter(shuffled(ChoiceQuestion(f"q/{i}", "?", tuple("abcd"), 0), seed=3).answer for i in range(2000))
    assert all(places[n] == pytest.approx(500, rel=0.15) for n in range(4))
    by_seed = Counter(shuffled(ICE, seed=seed).choices for seed in range(600))
    assert len(by_seed) == 6 and min(by_seed.values()) > 60


# ---- the choice ----


def test_the_sum_prefers_the_short_and_bytes_do_not():
    texts = (" ice", " the rock over there")  # 3 and 19 bytes
    assert chosen([-6.0, -19.0], texts, by="sum") == 0  # -6 > -19
    assert chosen([-6.0, -19.0], texts, by="byte") == 1  # -6/3 = -2 < -19/19 = -1
    # with the space counted it would be -6/4 = -1.5 and -29/20 = -1.45; without, -2 and -1.526
    assert chosen([-6.0, -39.0], texts, by="byte") == 0  # -2 > -2.05; with the space -1.5 > -1.95


def test_bytes_are_counted_and_not_letters():
    assert chosen([-4.0, -6.9], (" ab", " éé"), by="byte") == 1  # -4/2 < -6.9/4; by letters -2 > -3.45


def test_the_first_of_equal_ones_is_chosen():
    assert chosen([-2.0, -1.0, -1.0], (" A", " B", " C"), by="sum") == 1


def test_what_can_not_be_chosen_from_is_refused():
    with pytest.raises(InputError, match="2 log-likelihoods for 3"):
        chosen([-1.0, -2.0], (" a", " b", " c"), by="sum")
    with pytest.raises(InputError, match="0 log-likelihoods for 0"):
        chosen([], (), by="sum")
    with pytest.raises(InputError, match="sum or byte, got 'token'"):
        chosen([-1.0], (" a",), by="token")
