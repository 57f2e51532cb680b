"""tasks.instructions: each kind by hand, and IFBench's own program, from its wheel, on many answers: real ones, edge
cases and generated ones."""

import importlib
import json
import random
import re
import sys
import types
import zipfile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamamm.assets.fetch import fetch
from llamamm.assets.ifbench import load_prompts
from llamamm.errors import InputError
from llamamm.tasks.instructions import CHECKS, follows, is_known, loose_forms

KEYWORDS = {"keyword1": "fox ", "keyword2": "Dog", "keyword3": "cat", "keyword4": "hen", "keyword5": "ox"}

# (kind, arguments, answers that follow, answers that do not)
BY_HAND = [
    ("count:word_count_range", {"min_words": 2, "max_words": 3}, ["One two.", "I don't!", "a-b-c"],
     ["One", "one two three four", "... !"]),
    ("count:unique_word_count", {"N": 3}, ["a b c", "A, a b - b"], ["a A a, (a) b", "a b"]),
    ("count:numbers", {"N": 2}, ["1 and 2", "3.14 is not 10-20", "a1b22"], ["12", "1 2 3", "none"]),
    ("count:conjunctions", {"small_n": 2}, ["this and that or more", "and And", "so. so,"],
     ["and and and", "android or"]),
    ("count:punctuation", {}, ["So?! A, b; c: d. Why? Go!", "‽ . , ! ? ; :", ".,!?;:!?"],
     [". , ! ? ; :", ".,!?;:", "?! . , ; :", "?!!?.,:"]),
    # seven times "ox", which is in "fox"
    ("count:keywords_multiple", KEYWORDS, ["fox dog Dog cat cat cat" + " hen" * 5 + " ox" * 6],
     ["fox dog dog cat cat cat" + " hen" * 5 + " ox" * 7, "fox"]),
    ("words:consonants", {}, ["Strong winds blow", "rhythm", " "], ["I think", "strong a"]),
    ("words:no_consecutive", {}, ["a b a b", "One", "(a) 'b"], ["a b b", "All apes", "a - 'A"]),
    ("words:alphabet", {}, ["A big cat", "y z! a", "Zoo"], ["A cat", "1 2", "...", "a c"]),
    ("words:palindrome", {}, ["Level, " * 10, "radar civic kayak rotor madam " * 2], ["level " * 9, "noon " * 10]),
    ("words:repeats", {"small_n": 2}, ["a a b b", "a, A"], ["a a, (A)", "b a a a"]),
    ("words:vowel", {}, ["a big top", "A small, tall hall", "rhythm\n"], ["a big red top", "a\nb"]),
    ("words:prime_lengths", {}, ["We are here's", "it's now", "no"], ["We ate four", "a", "x" * 101]),
    ("words:paragraph_last_first", {}, ["So it is so.\n\nGo!", "(Yes or yes)"], ["So it is", "*Go* go", "go go\n***"]),
    ("format:parentheses", {}, ["(a[b{c(d[e]f)g}h]i)", "{[{[()", "((((()"],
     ["((((a))))", "(([[]]))", "((((([)"]),
    ("format:quotes", {}, ["\"He said 'she said \"no\"'\"", "'\"'x'\"'"], ["\"a 'b' c\"", "\"'\"", "\"a\" 'b' \"c\""]),
    ("format:options", {"options": "yes/no/maybe"}, ["Yes.", "  maybe  ", "NO"], ["yes, sure", "yes/no", "ma"]),
    ("format:options", {"options": "I know or I don't know"}, ["i know", "I don't know!"], ["I don't", "know"]),
    ("format:options", {"options": "a), b), c), d)"}, ["a)", "d)"], ["a", "A)", "a) ", "a), b)"]),
    ("format:newline", {}, ["One\ntwo\n\nthree", "One."], ["One two", "a\n \nb"]),
    ("format:list", {"sep": "!?!?"}, ["!?!? a\n!?!? b", "!?!?!?!?"], ["!?!? a", "!?!?!?"]),
    ("format:sub-bullets", {}, ["* a\n - b\n* c\n - d", "no bullets", "* well-known"], ["* a\n - b\n* c", "- a * b"]),
    ("format:output_template", {}, ["My Answer: a My Conclusion: b Future Outlook: c"], ["My Answer: a", "my answer:"]),
    ("format:no_whitespace", {}, ["a-b", "abc."], ["a b", "a\n", "a\u00a0b"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "arguments", "right", "wrong"), BY_HAND)
def test_a_kind_by_hand(kind, arguments, right, wrong):
    assert [CHECKS[kind](answer, **arguments) for answer in right] == [True] * len(right)
    assert [CHECKS[kind](answer, **arguments) for answer in wrong] == [False] * len(wrong)


def test_every_kind_is_here():
    assert {kind for kind, *_ in BY_HAND} == set(CHECKS) and len(CHECKS) == 22


# ---- IFBench's own program ----


@pytest.fixture(scope="module")
def theirs():
    """IFBench's modules `instructions_registry` and `evaluation_lib`, read out of the wheel.

    The program asks for four packages, and for data from the network as it is imported. The kinds held to it here use
    one thing of these, a tokenizer that finds a pattern, which stands in for all.
    """
    stand_ins = {name: types.ModuleType(name) for name in ("nltk", "spacy", "spacy.cli", "emoji", "syllapy")}
    nltk = stand_ins["nltk"]
    nltk.data = types.SimpleNamespace(find=lambda _name: None)
    nltk.tokenize = types.SimpleNamespace(
        RegexpTokenizer=lambda pattern: types.SimpleNamespace(tokenize=re.compile(pattern).findall))
    stand_ins["spacy.cli"].download = lambda _name: None
    (wheel,) = fetch("ifbench", progress=False).parent.glob("*.whl")
    with pytest.MonkeyPatch.context() as patch:
        for name, module in stand_ins.items():
            patch.setitem(sys.modules, name, module)
        patch.syspath_prepend(str(wheel))
        evaluation = importlib.import_module("ifbench.evaluation_lib")  # not installed: it is in the wheel
        registry = importlib.import_module("ifbench.instructions_registry")

        yield registry, evaluation
        for name in [name for name in sys.modules if name.split(".")[0] == "ifbench"]:
            del sys.modules[name]


def their_verdict(theirs, kind, arguments, answer):
    check = theirs[0].INSTRUCTION_DICT[kind](kind)
    check.build_description(**arguments)
    return bool(check.check_following(answer))


ARGUMENTS = {
    "count:word_count_range": st.fixed_dictionaries({"min_words": st.integers(0, 4), "max_words": st.integers(3, 9)}),
    "count:unique_word_count": st.fixed_dictionaries({"N": st.integers(0, 8)}),
    "count:numbers": st.fixed_dictionaries({"N": st.integers(0, 5)}),
    "count:conjunctions": st.fixed_dictionaries({"small_n": st.integers(0, 4)}),
    "count:keywords_multiple": st.just(KEYWORDS),
    "words:repeats": st.fixed_dictionaries({"small_n": st.integers(0, 3)}),
    "format:options": st.fixed_dictionaries({"options": st.sampled_from(
        ["yes/no/maybe", "I know or I don't know", "a), b), c), d)", "red, green, blue", "A / B / C"])}),
    "format:list": st.fixed_dictionaries({"sep": st.sampled_from(["!?!?", "SEPARATOR", "-", "...", "*"])}),
}  # fmt: skip
PIECES = ["and", "And", "but", "or", "so", "yes", "No", "maybe", "a)", "b)", "I know", "I don't know", "level", "Radar",
          "strong", "winds", "apple", "big", "cat", "dog", "fox", "hen", "ox", "x", "y", "zoo", "it's", "3.14", "10-20",
          "7", "-", "*", "* ", " - ", "...", "!?!?", "?!", "‽", "SEPARATOR", "(", ")", "[", "]", "{", "}", '"', "'",
          ".", ",", ";", ":", "!", "?", " ", " ", " ", " ", "\n", "\n", "\n\n", "\t", "My Answer:", "My Conclusion:",
          "Future Outlook:", "é", "Ä", "日本", "\u00a0", "_", "red", "green"]  # fmt: skip
# not "İ": it is two letters when it is small, and its first one is i
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
                  st.lists(st.sampled_from(PIECES), max_size=20).map(" ".join),
                  st.lists(st.sampled_from("([{}])"), max_size=20).map("".join),
                  st.lists(st.sampled_from("\"'a "), max_size=14).map("".join),
                  st.lists(st.sampled_from(["level", "radar", "noon", "Civic,"]), min_size=8).map(" ".join),
                  st.text(st.characters(exclude_characters="İ"), max_size=40))  # fmt: skip


@pytest.mark.parametrize("kind", CHECKS)
def test_verdicts_equal_those_of_ifbench(theirs, kind):
    @settings(max_examples=80)
    @given(ARGUMENTS.get(kind, st.just({})), TEXTS)
    @example(next(arguments for name, arguments, *_ in BY_HAND if name == kind), "a")
    def check(arguments, answer):
        assert CHECKS[kind](answer, **arguments) == their_verdict(theirs, kind, arguments, answer)

    check()


@pytest.mark.parametrize(("kind", "arguments", "right", "wrong"), BY_HAND)
def test_cases_by_hand_are_what_ifbench_says_of_them(theirs, kind, arguments, right, wrong):
    assert [their_verdict(theirs, kind, arguments, answer) for answer in right] == [True] * len(right)
    assert [their_verdict(theirs, kind, arguments, answer) for answer in wrong] == [False] * len(wrong)


def chains(seed):
    """Answers that nearly follow: alphabets, nests, stairs of keywords, with something put in, left out or repeated."""
    draw = random.Random(seed)
    answer = draw.choice([
        " ".join("abcdefghijklmnopqrstuvwxyz"[(n + seed) % 26] + "o" for n in range(30)),
        "(a [b {c (d [e] f) g} h] i)", "\"a 'b \"c\" d' e\"", "level " * 10, "abc", "a\nb\nc", "So be it so\nYes: yes",
        "fox dog dog cat cat cat" + " hen" * 5 + " ox" * 6, "One: two, three; four! Five? Six. Seven?!",
        "* a\n - b\n* c - d",
    ])  # fmt: skip
    for _ in range(draw.randrange(3)):
        i = draw.randrange(len(answer))
        answer = draw.choice([answer[:i] + answer[i + 1 :], answer[:i] + draw.choice(PIECES) + answer[i:],
                              answer[:i] + answer[i : i + 9] * 2 + answer[i + 9 :]])  # fmt: skip
    return answer


@pytest.mark.parametrize("kind", [kind for kind in CHECKS if kind not in ARGUMENTS] + ["count:keywords_multiple"])
def test_answers_that_nearly_follow(theirs, kind):
    arguments = KEYWORDS if kind.startswith("count:k") else {}
    answers = [chains(seed) for seed in range(400)]
    ours = [CHECKS[kind](answer, **arguments) for answer in answers]
    assert ours == [their_verdict(theirs, kind, arguments, answer) for answer in answers]
    assert {*ours} == {False, True} or kind == "format:output_template"


@pytest.fixture(scope="module")
def answered(theirs):
    """(prompt, a large model's answer, strict verdicts, loose ones) of the prompts whose kinds are all known here."""
    _, evaluation = theirs
    (wheel,) = fetch("ifbench", progress=False).parent.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read("ifbench/data/sample_output.jsonl").decode().splitlines()
    given = {row["prompt"].strip(): row["response"] for row in map(json.loads, lines)}
    found = []
    for prompt in load_prompts(fetch("ifbench", progress=False)):
        if is_known(prompt.instructions) and prompt.prompt in given:
            def asked(prompt=prompt):
                return evaluation.InputExample(prompt.key, list(prompt.instructions), prompt.prompt,
                                               [dict(some) for some in prompt.arguments])  # fmt: skip
            answers = {prompt.prompt: given[prompt.prompt]}
            found.append((prompt, given[prompt.prompt],
                          evaluation.test_instruction_following_strict(asked(), answers).follow_instruction_list,
                          evaluation.test_instruction_following_loose(asked(), answers).follow_instruction_list))
    return found


def test_real_answers_to_the_prompts(answered):
    assert len(answered) == 131  # of 294
    ours = {loose: [follows(answer, p.instructions, p.arguments, loose=loose) for p, answer, *_ in answered]
            for loose in (False, True)}  # fmt: skip
    assert ours[False] == [strict for *_, strict, _ in answered]
    assert ours[True] == [loose for *_, loose in answered]
    strict, loose = (sum(map(all, ours[how])) / 131 for how in (False, True))
    assert 0.1 < strict < loose < 0.9


def test_each_real_answer_by_all_kinds_that_need_no_arguments(theirs, answered):
    kinds = [kind for kind in CHECKS if kind not in ARGUMENTS]
    for _, answer, *_ in answered:
        for form in loose_forms(answer)[:4]:
            assert [CHECKS[kind](form) for kind in kinds] == [their_verdict(theirs, kind, {}, form) for kind in kinds]


# ---- all of a prompt ----


def test_several_instructions_each_with_its_arguments():
    ids, arguments = ["count:numbers", "format:no_whitespace", "count:numbers"], [{"N": 1}, {}, {"N": 2}]
    assert follows("One, two: 3!", ids, arguments) == [True, False, False]
    assert follows("1,b,2", ids, arguments) == [False, True, True]
    assert follows("", [], []) == []


def test_an_empty_answer_follows_nothing():
    assert follows(" \n", ["format:sub-bullets", "count:numbers"], [{}, {"N": 0}]) == [False, False]
    assert follows(" \n", ["count:numbers"], [{"N": 0}], loose=True) == [False]


def test_forms_that_loose_tries():
    assert loose_forms("Sure:\n*a*\n b \nBye") == [
        "Sure:\n*a*\n b \nBye", "*a*\n b \nBye", "Sure:\n*a*\n b", "*a*\n b",
        "Sure:\na\n b \nBye", "a\n b \nBye", "Sure:\na\n b", "a\n b"]  # fmt: skip
    assert loose_forms("one") == ["one", "", "", ""] * 2


@pytest.mark.parametrize("answer", ["Sure, 1 of 2:\nabc", "abc\nI hope that 1 of 2 helps", "1\nabc\n2", "*abc*"])
def test_loose_passes_over_what_a_model_says_around_it(answer):
    ids, arguments = ["format:options"], [{"options": "abc/xyz"}]
    assert follows(answer, ids, arguments, loose=True) == [True]
    if answer != "*abc*":  # marks around an option are no matter
        assert follows(answer, ids, arguments) == [False]


def test_loose_may_take_another_form_for_each_instruction():
    ids, arguments = ["count:numbers", "count:numbers"], [{"N": 1}, {"N": 2}]
    assert follows("1\n2", ids, arguments) == [False, True]
    assert follows("1\n2", ids, arguments, loose=True) == [True, True]


def test_what_can_not_be_checked_is_refused():
    assert is_known(["count:numbers", "words:vowel"]) and not is_known(["count:numbers", "words:start_verb"])
    with pytest.raises(InputError, match="no check for words:start_verb, format:emoji; there are count:word_count"):
        follows("a", ["words:start_verb", "count:numbers", "format:emoji"], [{}, {"N": 1}, {}])
    with pytest.raises(InputError, match="2 instructions and arguments for 1"):
        follows("a", ["count:numbers"] * 2, [{"N": 1}])
    for wrong in ({}, {"N": 1, "M": 2}):
        with pytest.raises(InputError, match="wrong arguments for count:numbers"):
            follows("a", ["count:numbers"], [wrong])
    with pytest.raises(InputError, match="wrong arguments for count:keywords_multiple: 'keyword2'"):
        follows("a", ["count:keywords_multiple"], [{"keyword1": "a"}])
