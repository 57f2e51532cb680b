"""evals.captions: BLEU and CIDEr-D by hand, and as sacrebleu and pycocoevalcap have them."""

import math
import string

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.cider.cider import Cider
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from llamamm.errors import InputError
from llamamm.evals.captions import (
    bleu,
    bleu_counts,
    bleu_words,
    cider,
    cider_d,
    corpus_bleu,
    sentence_bleu,
)

# ---- BLEU ----


def test_bleu_by_hand():
    """Papineni's own example of clipping: seven times "the", of which a reference has two."""
    the, references = ["the"] * 7, ["the cat is on the mat".split(), "there is a cat on the mat".split()]
    assert bleu_counts([the], [references]).tolist() == [[7, 7, 2, 0, 0, 0, 7, 6, 5, 4]]
    smoothed = [2 / 7, 0.5 / 6, 0.25 / 5, 0.125 / 4]
    assert corpus_bleu([" ".join(the)], [[" ".join(words) for words in references]]) == pytest.approx(
        100 * math.prod(smoothed) ** 0.25)  # fmt: skip


def test_a_short_caption_pays():
    """Four words of five, all right: the penalty alone, exp(1 - 5 / 4)."""
    assert corpus_bleu(["a red cat sits"], [["a red cat sits down"]]) == pytest.approx(100 * math.exp(-0.25))
    assert corpus_bleu(["a red cat sits down"], [["a red cat sits down"]]) == pytest.approx(100)
    assert corpus_bleu(["a red cat sits down"], [["a red cat sits"]]) == pytest.approx(  # a long one in its precisions
        100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)  # fmt: skip


@pytest.mark.parametrize("lengths, closest", [((3, 6), 3), ((3, 5), 3), ((2, 5), 5), ((4,), 4)])
def test_the_reference_closest_in_length_counts_of_two_the_shorter(lengths, closest):
    assert bleu_counts([["x"] * 4], [[["y"] * n for n in lengths]])[0, 1] == closest


def test_a_set_is_no_mean_and_a_short_caption_alone_is_no_zero():
    captions, references = ["a cat", "a red dog runs far"], [["a cat"], ["a red dog sits far"]]
    assert sentence_bleu(captions[0], references[0]) == pytest.approx(100)
    assert corpus_bleu(captions[:1], references[:1]) == 0  # there is no 3-gram in two words
    mean = np.mean([sentence_bleu(c, r) for c, r in zip(captions, references, strict=True)])
    assert corpus_bleu(captions, references) != pytest.approx(mean, rel=0.1)


def test_rows_add_up_so_that_a_bootstrap_can_draw_them():
    captions, references = ["a cat sat on a mat", "a dog ran off home"], [["a cat sat on mats"], ["a dog ran home"]]
    rows = bleu_counts([c.split() for c in captions], [[r.split() for r in some] for some in references])
    drawn = [captions[1], captions[1], captions[0]], [references[1], references[1], references[0]]
    assert bleu(rows[[1, 1, 0]].sum(axis=0)) == pytest.approx(corpus_bleu(*drawn))


def test_where_nothing_is_right_bleu_is_nothing():
    assert corpus_bleu(["x y z w"], [["a b c d"]]) == sentence_bleu("", ["a"]) == corpus_bleu([""], [["a"]]) == 0


WORDS = ["a", "the", "cat", "dog", "on", "it's", "3.5,", "no?", "1,000", "U.S.", "end.", "5-6", "&amp;", "x/y", "(hi)"]
TEXT = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)
SETS = st.integers(1, 3).flatmap(lambda k: st.lists(
    st.tuples(TEXT, st.lists(TEXT.filter(bool), min_size=k, max_size=k)), min_size=1, max_size=4))  # fmt: skip


@pytest.mark.parametrize("tokenize, words", [("13a", bleu_words), ("none", str.split)])
@given(items=SETS)
def test_bleu_is_sacrebleus(tokenize, words, items):
    captions, references = (list(column) for column in zip(*items, strict=True))
    theirs = sacrebleu.corpus_bleu(captions, list(zip(*references, strict=True)), tokenize=tokenize, force=True)
    assert corpus_bleu(captions, references, words=words) == pytest.approx(theirs.score)
    theirs = sacrebleu.sentence_bleu(captions[0], references[0], tokenize=tokenize)
    assert sentence_bleu(captions[0], references[0], words=words) == pytest.approx(theirs.score)


@given(st.text("ab01 .,-'\n" + string.punctuation + "é—", max_size=15))
def test_words_are_those_of_13a(text):
    assert bleu_words(text) == Tokenizer13a()(text.rstrip()).split()


def test_words_of_bleu_by_hand():
    assert bleu_words("It's 3.5, no? (5-6)") == ["It's", "3.5", ",", "no", "?", "(", "5", "-", "6", ")"]


# ---- CIDEr-D ----


def test_an_identical_caption_has_ten_or_less_with_few_words():
    references = [["a red cat sleeps"], ["the dog runs"], ["snow"]]
    assert cider_d(*cut([some[0] for some in references], references)) == pytest.approx([10, 7.5, 2.5])


def test_a_caption_by_hand():
    """Two pictures, "a" in both and so without weight: of "a cat" there remain "cat" and "a cat", each once."""
    found = cider_d(*cut(["a cat", "a"], [["a cat", "a cow"], ["a dog"]]))
    assert found == pytest.approx([10 * (2 / 4) / 2, 0])  # 1 and 2 of 4 orders, of one of two references
    longer = cider_d(*cut(["a cat x", "a"], [["a cat"], ["a dog"]]))[0]
    # "cat" beside "cat x", "a cat" beside "a cat, cat x": cosines 1 / sqrt 2, one word too long
    assert longer == pytest.approx(10 * (2 / math.sqrt(2)) / 4 * math.exp(-1 / 72))


def test_saying_a_rare_word_often_does_not_pay():
    references = [["cat on a mat"], ["dog on a mat"]]
    once, often = (cider_d(*cut([text, "x"], references))[0] for text in ("cat on a mat", "cat cat cat cat"))
    assert once == pytest.approx(10) and often < 2


def test_a_set_of_one_picture_knows_no_rare_word_and_gives_nothing():
    assert cider(["a red cat sleeps"], [["a red cat sleeps"]]) == 0


def test_a_figure_depends_on_the_set():
    one = cider(["a red cat", "a dog"], [["a red cat on a mat"], ["a dog"]])
    two = cider(["a red cat", "a dog"], [["a red cat on a mat"], ["a red dog"]])
    assert one != pytest.approx(two, rel=0.01)


def test_marks_and_capitals_do_not_count_in_texts():
    references = [["a red cat sleeps"], ["the dog runs off"]]
    assert cider(["A red cat sleeps.", "The dog, runs off!"], references) == pytest.approx(10)


def cut(captions, references):
    return [text.split() for text in captions], [[text.split() for text in some] for some in references]


PLAIN = st.lists(st.sampled_from(["a", "the", "red", "cat", "dog", "on", "mat"]), max_size=9).map(" ".join)


@given(st.lists(st.tuples(PLAIN, st.lists(PLAIN, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_cider_d_is_pycocoevalcaps(items):
    items = [*items, ("", ["a cat"])]  # it stumbles where no reference has a word
    captions, references = (list(column) for column in zip(*items, strict=True))
    mean, each = Cider().compute_score(dict(enumerate(references)), {n: [text] for n, text in enumerate(captions)})
    assert cider_d(*cut(captions, references)) == pytest.approx(each)
    assert cider(captions, references, words=str.split) == pytest.approx(mean)


# ---- what does not fit ----


@pytest.mark.parametrize("captions, references, message", [
    ([], [], "0 captions and references of 0"), (["a"], [["a"], ["b"]], "1 captions and references of 2"),
    (["a", "b"], [["a"], []], r"caption 1 has \[\] for references"),
])  # fmt: skip
def test_what_does_not_fit_is_said(captions, references, message):
    for measure in (corpus_bleu, cider):
        with pytest.raises(InputError, match=message):
            measure(captions, references)
