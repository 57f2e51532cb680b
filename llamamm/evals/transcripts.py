"""What was said beside what was heard: the alignment of two transcripts, and the errors that it counts.

    said  the cat sat on the mat          the cat sat on the mat
    heard a cat sat the mat today    ->   a   cat sat  - the mat today
                                          S   H   H   D  H   H   I        3 errors in 6 words: 50 %

The errors are the fewest words put in (I), taken out (D) or changed (S) that turn one text into the other,
Levenshtein's distance. A word error rate is their sum over all texts by the number of words said, so that a long text
counts for more than a short one, and a text with many words put in can be over 100 %. A character error rate is the
same of letters and spaces.

    align              -> Alignment: pairs of words, and how many are hits, changed, taken out, put in
    word_errors        its errors alone, of lists of words
    character_errors   of two texts
    word_error_rate, character_error_rate    of many texts: sum of errors / sum of lengths

Texts are compared as they are normalised (see `normaliser`). Source: Levenshtein 1966; by dynamic programming, Wagner
and Fischer 1974, https://doi.org/10.1145/321796.321811. Used in notebooks 16 and 17.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from llamamm.errors import InputError
from llamamm.evals.normaliser import normal_words

Pair = tuple[Hashable | None, Hashable | None]  # (said, heard); None: nothing stands there


@dataclass(frozen=True)
class Alignment:
    """The pairs in order. A word that was put in has None before it, one that was taken out has None behind it."""

    pairs: tuple[Pair, ...]

    @property
    def hits(self) -> int:
        return sum(said == heard for said, heard in self.pairs)

    @property
    def substitutions(self) -> int:
        return sum(said is not None and heard is not None and said != heard for said, heard in self.pairs)

    @property
    def deletions(self) -> int:
        return sum(heard is None for _, heard in self.pairs)

    @property
    def insertions(self) -> int:
        return sum(said is None for said, _ in self.pairs)

    @property
    def errors(self) -> int:
        return len(self.pairs) - self.hits

    def __str__(self) -> str:
        """Three lines: said, heard, and a letter below each pair, S, D, I or a space for a hit."""
        columns = []
        for pair in self.pairs:
            said, heard = ("-" if word is None else str(word) for word in pair)
            letter = "I" if pair[0] is None else "D" if pair[1] is None else " " if pair[0] == pair[1] else "S"
            columns.append([text.ljust(max(len(said), len(heard))) for text in (said, heard, letter)])
        return "\n".join(" ".join(row).rstrip() for row in zip(*columns, strict=True))


def align(said: Sequence[Hashable], heard: Sequence[Hashable]) -> Alignment:
    """The pairs of an alignment with the fewest errors. said, heard: lists of words, or texts for their characters.

    Often several have as few, "a b" and "b a" among them: two words changed, or one put in and one taken out. Here
    words that both begin or end with are hits, and the rest is read from its end, where a word is taken out sooner than
    changed, and changed sooner than put in: jiwer's choice, so that the counts are its counts.
    """
    begin = _alike(said, heard)
    a, b = said[begin:], heard[begin:]
    end = _alike(a[::-1], b[::-1])
    a, b = a[: len(a) - end], b[: len(b) - end]
    table = [list(range(len(b) + 1))]  # table[n][k]: errors between the first n of `a` and the first k of `b`
    for n, word in enumerate(a, start=1):
        table.append(_next_row(table[-1], n, word, b))
    pairs: list[Pair] = []
    n, k = len(a), len(b)
    while n or k:
        errors = table[n][k]
        if n and errors == table[n - 1][k] + 1:
            n -= 1
            pairs.append((a[n], None))
        elif k and errors == table[n][k - 1] + 1 and (n == 0 or errors != table[n - 1][k - 1] + 1):
            k -= 1
            pairs.append((None, b[k]))
        else:
            n, k = n - 1, k - 1
            pairs.append((a[n], b[k]))
    first, last = ([(word, word) for word in words] for words in (said[:begin], said[len(said) - end :]))
    return Alignment((*first, *reversed(pairs), *last))


def _alike(said: Sequence[Hashable], heard: Sequence[Hashable]) -> int:
    """How many words both begin with."""
    differing = (n for n, (a, b) in enumerate(zip(said, heard, strict=False)) if a != b)
    return next(differing, min(len(said), len(heard)))


def word_errors(said: Sequence[Hashable], heard: Sequence[Hashable]) -> int:
    """Levenshtein's distance of two lists of words: put in, taken out or changed, each 1."""
    row = list(range(len(heard) + 1))
    for n, word in enumerate(said, start=1):
        row = _next_row(row, n, word, heard)
    return row[-1]


def character_errors(said: str, heard: str) -> int:
    """The same of the characters of two texts, spaces among them."""
    return word_errors(said, heard)


def _next_row(row: Sequence[int], n: int, word: Hashable, heard: Sequence[Hashable]) -> list[int]:
    """Errors between the first n words said, of which `word` is the last, and each beginning of what was heard."""
    found = [n]
    for k, other in enumerate(heard, start=1):
        found.append(min(row[k - 1] + (word != other), row[k] + 1, found[k - 1] + 1))
    return found


# ---- of many texts ----


def word_error_rate(
    said: Sequence[str], heard: Sequence[str], *, words: Callable[[str], Sequence[Hashable]] = normal_words
) -> float:
    """Errors in all texts by the words said in all of them. words: how a text is cut, `str.split` to leave it as it is.

    A text in which nothing was said adds no words, and an error for each word heard in it. Raises InputError where
    nothing was said in any, and for lists of two lengths.
    """
    if len(said) != len(heard):
        raise InputError(f"{len(said)} texts were said and {len(heard)} heard: give one heard for each")
    pairs = [(words(a), words(b)) for a, b in zip(said, heard, strict=True)]
    n = sum(len(a) for a, _ in pairs)
    if n == 0:
        raise InputError(f"nothing was said in {len(said)} texts: an error rate needs at least one word")
    return sum(word_errors(a, b) for a, b in pairs) / n


def character_error_rate(
    said: Sequence[str], heard: Sequence[str], *, text: Callable[[str], str] = lambda text: " ".join(normal_words(text))
) -> float:
    """The same of characters. text: what becomes of a text before, `str` for texts as they are."""
    return word_error_rate(said, heard, words=text)
