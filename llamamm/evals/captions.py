"""A caption beside those that people wrote: BLEU and CIDEr-D, which count the n-grams that both have.

    BLEU       the share of a caption's n-grams, of 1 to 4 words, that some reference has; their geometric mean, times a
               penalty where the captions are shorter than the references. One figure for a whole set, 0 to 100.
    CIDEr-D    n-grams weighed by how few pictures' references have them (TF-IDF), as vectors; the cosine with each
               reference, for 1 to 4 words, meaned. One figure for each caption, 0 to 10; a set's is their mean.

    bleu_counts, cider_d    of each caption: rows that a bootstrap can draw
    bleu                    of the sum of such rows
    corpus_bleu, sentence_bleu, cider    of texts, in one call

What a figure says depends on the set. CIDEr-D of a caption equal to its one reference is 10 where it has four words or
more, and each order has an n-gram that not every picture has: 7.5 with three words, for there is no 4-gram. With
several references it is less, as they differ from each other. "a picture of a" weighs nothing in a set where each
picture has it; in a set of one picture nothing weighs anything, and all captions get 0. So figures of two sets, or of a
set and half of it, are not comparable; and both measures are high for a caption that has the right words in an order
that makes no sense.

Sources: BLEU, Papineni et al. 2002, https://aclanthology.org/P02-1040, as sacrebleu counts it, arXiv:1804.08771;
CIDEr-D, Vedantam et al. 2015, arXiv:1411.5726, as pycocoevalcap does. Used in notebook 17.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from llamamm.assets.sentences import plain_words
from llamamm.errors import InputError

ORDERS = (1, 2, 3, 4)  # words of an n-gram
SIGMA = 6.0  # words by which a caption may be longer or shorter before CIDEr-D sinks to 0.6 of itself

Words = Sequence[str]
Grams = Counter[tuple[str, ...]]

# ---- BLEU ----


def bleu_words(text: str) -> list[str]:
    """Words and marks as the tokenizer "13a" of machine translation parts them: "It's 3.5, no?" to It's 3.5 , no ?"""
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, mark in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(entity, mark)
    text = re.sub(r"([!-&(-+:-@/\[-`{-~])", r" \1 ", f" {text} ")  # all marks of ASCII but ' , - .
    text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)  # a point or comma stays where digits stand on both sides
    text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)
    return re.sub(r"([0-9])(-)", r"\1 \2 ", text).split()


def bleu_counts(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """What BLEU adds up, for each caption: (n, 10) int64.

    Columns: its words; words of the reference closest in length, of two the shorter; its n-grams of 1 to 4 words that
    a reference has, each as often as it stands in the one that has most of it; all its n-grams of 1 to 4 words.
    Raises InputError where captions and references do not fit.
    """
    _check(captions, references)
    rows = []
    for caption, some in zip(captions, references, strict=True):
        grams, known = _grams(caption), Counter[tuple[str, ...]]()
        for reference in some:
            known |= _grams(reference)
        closest = min((abs(len(reference) - len(caption)), len(reference)) for reference in some)[1]
        found, total = _by_order(grams & known), _by_order(grams)
        rows.append([len(caption), closest, *found, *total])
    return np.array(rows)


def bleu(counts: np.ndarray, *, short: bool = False) -> float:
    """BLEU of a sum of rows of `bleu_counts`, (10,), from 0 to 100.

    Smoothing: the first order of which no n-gram is found counts as half of one, the next as a quarter, and so on
    (NIST's, sacrebleu's "exp"); where no word is found the figure is 0. short: leave out orders that a caption is too
    short for, for a single one; else they make it 0.
    """
    length, reference_length, *grams = (int(count) for count in counts)
    found, total = grams[:4], grams[4:]
    if not any(found):
        return 0.0
    if short:
        found, total = zip(*((f, t) for f, t in zip(found, total, strict=True) if t), strict=True)
    if 0 in total:
        return 0.0
    logs, half = [], 1.0
    for f, t in zip(found, total, strict=True):
        half = half if f else half / 2
        logs.append(math.log((f or half) / t))
    penalty = min(1.0, math.exp(1 - reference_length / length))
    return 100 * penalty * math.exp(sum(logs) / len(logs))


def corpus_bleu(
    captions: Sequence[str], references: Sequence[Sequence[str]], *, words: Callable[[str], Words] = bleu_words
) -> float:
    """BLEU of a set, 0 to 100. references: those of each caption, any number. words: how a text is cut."""
    return bleu(bleu_counts(*_cut(captions, references, words)).sum(axis=0))


def sentence_bleu(caption: str, references: Sequence[str], *, words: Callable[[str], Words] = bleu_words) -> float:
    """BLEU of one caption. It is no part of a set's: that is not a mean of these."""
    return bleu(bleu_counts(*_cut([caption], [references], words))[0], short=True)


# ---- CIDEr-D ----


def cider_d(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """CIDEr-D of each caption, (n,) from 0 to 10; weights are those of this set's references.

    Of an n-gram a caption gets no more than the reference has (clipped, so that saying a rare word often does not pay),
    and all of it sinks with the square of the difference in length (sigma 6). Raises InputError as `bleu_counts`.
    """
    _check(captions, references)
    having = Counter(gram for some in references for gram in {g for reference in some for g in _grams(reference)})
    pictures = math.log(len(references))

    def vector(words: Words) -> Grams:  # TF-IDF; not by the caption's length, which the cosine takes out again
        grams = _grams(words)
        return Counter({g: count * (pictures - math.log(max(1, having[g]))) for g, count in grams.items()})

    found = []
    for caption, some in zip(captions, references, strict=True):
        mine = vector(caption)
        scores = []
        for reference in some:
            apart = len(caption) - len(reference)
            scores.append(_cosine(mine, vector(reference)) * math.exp(-(apart**2) / (2 * SIGMA**2)))
        found.append(10 * sum(scores) / len(scores))
    return np.array(found)


def _cosine(mine: Grams, theirs: Grams) -> float:
    """Of two weighed bags, the first clipped to the second: order by order, then the mean."""
    dots = _by_order({g: min(weight, theirs[g]) * theirs[g] for g, weight in mine.items()})
    lengths = [_by_order({g: weight**2 for g, weight in bag.items()}) for bag in (mine, theirs)]
    parts = [dot / math.sqrt(a * b) if a and b else 0.0 for dot, a, b in zip(dots, *lengths, strict=True)]
    return sum(parts) / len(parts)


def cider(
    captions: Sequence[str], references: Sequence[Sequence[str]], *, words: Callable[[str], Words] = plain_words
) -> float:
    """CIDEr-D of a set: the mean over its captions. words: small letters without marks, as COCO's captions are cut."""
    return float(cider_d(*_cut(captions, references, words)).mean())


# ---- both ----


def _grams(words: Words) -> Grams:
    """How often each n-gram of 1 to 4 words stands in a text."""
    return Counter(tuple(words[i : i + n]) for n in ORDERS for i in range(len(words) - n + 1))


def _by_order(values: dict[tuple[str, ...], float]) -> list[float]:
    """Sums of the values of n-grams, for 1 to 4 words."""
    sums = [0] * len(ORDERS)
    for gram, value in values.items():
        sums[len(gram) - 1] += value
    return sums


def _cut(
    captions: Sequence[str], references: Sequence[Sequence[str]], words: Callable[[str], Words]
) -> tuple[list[Words], list[list[Words]]]:
    return [words(text) for text in captions], [[words(text) for text in some] for some in references]


def _check(captions: Sequence[Words], references: Sequence[Sequence[Words]]) -> None:
    if not len(captions) or len(captions) != len(references):
        raise InputError(f"{len(captions)} captions and references of {len(references)}: give at least one caption, "
                         "and a list of references for each")
    for n, some in enumerate(references):
        if isinstance(some, str) or not len(some):
            raise InputError(f"caption {n} has {some!r} for references: give a list of one or more")
