"""Whether an answer does what an instruction demands, where a program can tell: 22 of IFBench's 57 kinds.

    follows("One, two: 3!", ["count:numbers", "format:no_whitespace"], [{"N": 1}, {}])    ->    [True, False]

Each kind is a function of the answer and the instruction's arguments, and agrees with IFBench's own program on every
answer, also where that is more generous than what a prompt says: comments name such places. Left out are, among others,
kinds that need sentences, stop words, parts of speech, emoji or syllables, those with one prompt each, and three whose
program does something else than the prompt says: format:line_indent, format:thesis and ratio:overlap.

Strict counts the answer as it is. Loose also tries it without its first line, its last or both ("Sure, here it is:"),
and without asterisks, and takes the best: an upper bound. A prompt counts when all its instructions are followed.

Sources: IFEval, Zhou and others, 2023, https://arxiv.org/abs/2311.07911; IFBench, Pyatkin and others, 2025,
https://arxiv.org/abs/2507.02833. Used in notebook 17.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from string import ascii_lowercase, punctuation
from typing import Any

from llamamm.errors import InputError

CONJUNCTIONS = {"and", "but", "for", "nor", "or", "so", "yet"}
CONSONANTS = "bcdfghjklmnpqrstvwxyz"
PRIMES = {n for n in range(2, 100) if all(n % k for k in range(2, n))}  # no word is longer
BARE = str.maketrans("", "", punctuation)  # takes out ASCII's 32 marks

CHECKS: dict[str, Callable[..., bool]] = {}


def _kind(name: str) -> Callable[[Callable[..., bool]], Callable[..., bool]]:
    def put(check: Callable[..., bool]) -> Callable[..., bool]:
        CHECKS[name] = check
        return check

    return put


# ---- counts ----


@_kind("count:word_count_range")
def word_count_range(answer: str, *, min_words: int, max_words: int) -> bool:
    """Between min_words and max_words words."""
    return min_words <= len(re.findall(r"\w+", answer)) <= max_words  # "don't" is two


@_kind("count:unique_word_count")
def unique_word_count(answer: str, *, N: int) -> bool:
    """At least N different words."""
    return len({word.strip(punctuation) for word in answer.lower().split()}) >= N  # a dash is a word, too


@_kind("count:numbers")
def numbers(answer: str, *, N: int) -> bool:
    """Exactly N numbers."""
    return len(re.findall(r"\d+", answer.translate(BARE))) == N  # 3.14 and 10-20 are one each


@_kind("count:conjunctions")
def conjunctions(answer: str, *, small_n: int) -> bool:
    """At least small_n different coordinating conjunctions."""
    found = {word for word in answer.split() if word.strip(punctuation).lower() in CONJUNCTIONS}
    return len(found) >= small_n  # "and", "And" and "and," are three


@_kind("count:punctuation")
def all_punctuation(answer: str) -> bool:
    """Each of . , ! ? ; : at least once, and the two marks ?! together."""
    rest = answer.replace("?!", "", 1) if "?!" in answer else answer.replace("!?", "", 1)
    return (rest != answer or "‽" in answer) and all(mark in rest for mark in ".,!?;:")


@_kind("count:keywords_multiple")
def keywords_multiple(answer: str, **keywords: str) -> bool:
    """keyword1 once, keyword2 twice, keyword3 three times, keyword4 five times and keyword5 seven times."""
    found = [answer.lower().count(keywords[f"keyword{n}"].strip().lower()) for n in range(1, 6)]
    return found == [1, 2, 3, 5, 7]  # within words, too: "door" is in "doors"


# ---- words ----


@_kind("words:consonants")
def consonant_clusters(answer: str) -> bool:
    """Two consonants beside each other in every word."""
    return all(re.search(f"[{CONSONANTS}]{{2}}", word) for word in answer.lower().split())


@_kind("words:no_consecutive")
def no_same_first_letters(answer: str) -> bool:
    """No two neighbouring words begin with the same letter."""
    return all(a[0] != b[0] for a, b in pairwise(answer.lower().translate(BARE).split()))


@_kind("words:alphabet")
def alphabet_loop(answer: str) -> bool:
    """Each word begins with the letter of the alphabet that comes next; A comes after Z."""
    letters = [word.lower()[0] for word in answer.translate(BARE).split()]
    after = dict(zip(ascii_lowercase, ascii_lowercase[1:] + "a", strict=True))
    return bool(letters) and letters[0] in after and all(after[a] == b for a, b in pairwise(letters))


@_kind("words:palindrome")
def palindromes(answer: str) -> bool:
    """Ten words or more of five letters or more that read the same backwards."""
    words = answer.translate(BARE).lower().split()
    return sum(word == word[::-1] and len(word) >= 5 for word in words) >= 10  # ten times the same will do


@_kind("words:repeats")
def limited_repeats(answer: str, *, small_n: int) -> bool:
    """No word more than small_n times."""
    return max(Counter(answer.lower().translate(BARE).split()).values(), default=0) <= small_n


@_kind("words:vowel")
def three_vowels(answer: str) -> bool:
    """One paragraph with no more than three of the five vowels in it."""
    return "\n" not in answer.strip() and len({*answer.lower()} & {*"aeiou"}) <= 3


@_kind("words:prime_lengths")
def prime_lengths(answer: str) -> bool:
    """The number of letters of every word is a prime."""
    return all(len(word) in PRIMES for word in answer.translate(BARE).split())


@_kind("words:paragraph_last_first")
def paragraphs_end_as_they_begin(answer: str) -> bool:
    """Every paragraph, a line each, ends with the word that it begins with."""
    paragraphs = [line.strip().lower() for line in answer.split("\n") if line.strip()]
    words = [paragraph.strip(punctuation + " ").split() for paragraph in paragraphs]
    return all(some and some[0] == some[-1] for some in words)


# ---- format ----


@_kind("format:parentheses")
def nested_parentheses(answer: str) -> bool:
    """Brackets of any kind, five levels deep, each closed by its own kind."""
    opened = ""
    for mark in answer:
        if mark in "([{":
            opened += mark
        elif mark in ")]}":
            if opened[-1:] + mark not in ("()", "[]", "{}"):  # a wrong one: all begins anew
                opened = ""
            elif len(opened) >= 5:
                return True
            else:
                opened = opened[:-1]
    return False


@_kind("format:quotes")
def nested_quotes(answer: str) -> bool:
    """Quotes within quotes within quotes, double and single ones in turn."""
    opened, deepest = "", 0
    for mark in answer:
        if opened and mark == opened[-1]:
            opened = opened[:-1]
            if deepest - len(opened) >= 3:
                return True
        elif mark in "\"'":  # an apostrophe opens a quote, too
            opened += mark
            deepest = max(deepest, len(opened))
    return False


@_kind("format:options")
def one_of_the_options(answer: str, *, options: str) -> bool:
    """Nothing but one of the options, "yes/no/maybe"."""
    separator = next(mark for mark in ("/", "or", ",") if mark in options or mark == ",")
    allowed = [option.strip() for option in options.split(separator)]
    if re.match(r"\W*[aA]\W*[bB]\W*[cC]\W*", options):  # "a), b), c), d)": to the letter
        return answer in allowed
    plain = [text.strip(punctuation + " ").lower() for text in (answer, *allowed)]
    return plain[0] in plain[1:]


@_kind("format:newline")
def word_per_line(answer: str) -> bool:
    """Every word on a line of its own."""
    bare = answer.translate(BARE).strip()
    return len([line for line in bare.split("\n") if line]) == len(bare.split())


@_kind("format:list")
def list_with_separator(answer: str, *, sep: str) -> bool:
    """A list with sep where bullets would be."""
    return answer.count(sep) >= 2  # wherever they stand


@_kind("format:sub-bullets")
def sub_bullets(answer: str) -> bool:
    """Bullets with * and at least one sub-bullet with - for each."""
    return all("-" in bullet for bullet in answer.split("*")[1:])  # right without any bullet; a hyphen will do


@_kind("format:output_template")
def output_template(answer: str) -> bool:
    """A given template with three parts."""
    return all(part in answer for part in ("My Answer:", "My Conclusion:", "Future Outlook:"))  # in any order


@_kind("format:no_whitespace")
def no_whitespace(answer: str) -> bool:
    """Not a single space, and no new line."""
    return not any(char.isspace() for char in answer)


# ---- all of a prompt ----


def is_known(ids: Sequence[str]) -> bool:
    """Whether all instructions of a prompt are of a kind that is checked here."""
    return all(name in CHECKS for name in ids)


def follows(
    answer: str, ids: Sequence[str], arguments: Sequence[Mapping[str, Any]], *, loose: bool = False
) -> list[bool]:
    """Which of a prompt's instructions an answer follows; an empty one follows none. loose: in any of `loose_forms`.

    ids: keys of CHECKS; arguments: of each. Raises InputError for a kind that is not known here, or wrong arguments.
    """
    if unknown := [name for name in ids if name not in CHECKS]:
        raise InputError(f"there is no check for {', '.join(unknown)}; there are {', '.join(CHECKS)}: ask `is_known`")
    if len(ids) != len(arguments):
        raise InputError(f"{len(ids)} instructions and arguments for {len(arguments)}")
    forms = loose_forms(answer) if loose else [answer]
    try:
        return [any(form.strip() != "" and CHECKS[name](form, **some) for form in forms)
                for name, some in zip(ids, arguments, strict=True)]  # fmt: skip
    except (TypeError, KeyError) as error:
        raise InputError(f"wrong arguments for {', '.join(ids)}: {error}") from None


def loose_forms(answer: str) -> list[str]:
    """The answer; without its first line, its last, both; and each of the four without asterisks."""
    lines = answer.split("\n")
    parts = [answer, *("\n".join(some).strip() for some in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*parts, *(part.replace("*", "") for part in parts)]

