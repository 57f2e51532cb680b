"""evals.answers: word errors and intervals by hand, bits a byte, and answers in batches as one by one."""

import math
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamamm import Llama3Model, TextConfig
from llamamm.errors import InputError
from llamamm.evals import answers as module
from llamamm.evals.answers import Interval, answers, bits_per_byte, interval, plain_words, says, wilson, word_errors
from llamamm.generation.prompts import Image, Sound
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import MultimodalLlama
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.senses.image_processor import ImageProcessor
from llamamm.train.tokenizer import train_tokenizer

# ---- words ----


@pytest.mark.parametrize("text, words", [
    ("A red apple.", ["a", "red", "apple"]), ("Don’t! It's 5, not 6", ["don't", "it's", "5", "not", "6"]),
    (" \n", []), ("left-handed", ["left", "handed"]),
])  # fmt: skip
def test_an_answer_as_it_is_compared(text, words):
    assert plain_words(text) == words


@pytest.mark.parametrize(("answer", "key", "right"), [
    ("It is 4.", "4|four", True), ("Four!", "4|four", True), ("14 or fourteen", "4|four", False), ("", "4|four", False),
    ("not Rome but Paris", "rome", True), ("4|four", "4|four", True), ("Don’t", "don't", True),
])  # fmt: skip
def test_an_answer_says_one_of_the_keys_words(answer, key, right):
    assert says(answer, key) == right


@pytest.mark.parametrize("said, heard, errors", [
    ("", "", 0), ("a b c", "a b c", 0), ("a b c", "", 3), ("", "a b", 2),
    ("a b c", "a x c", 1), ("a b c", "a c", 1), ("a b c", "a b b c", 1),
    ("a b c d", "b c d e", 2),  # one out in front, one put in behind: not four changed
    ("the cat sat on the mat", "a cat sat the mat today", 3), ("a b", "b a", 2),
])  # fmt: skip
def test_word_errors_by_hand(said, heard, errors):
    assert word_errors(said.split(), heard.split()) == errors


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


# ---- intervals ----


def test_a_share_and_a_rate_by_hand():
    right = interval([True, False, True, True])
    assert (right.value, right.n) == (0.75, 4) and right.low < 0.75 < right.high <= 1
    assert interval([1, 0, 2], [4, 1, 5]).value == 0.3  # errors over all words, not the mean of three rates
    assert str(Interval(0.5, 0.4, 0.625, 1234)) == "50.0% (40.0% to 62.5%, n = 1,234)"


@pytest.mark.parametrize("parts, groups", [([1] * 9, None), ([0] * 9, None), ([1, 0, 1, 0], "aaaa")])
def test_where_every_draw_is_alike_the_interval_is_a_point(parts, groups):
    found = interval(parts, groups=groups)
    assert found.low == found.high == found.value == sum(parts) / len(parts)


def test_the_width_is_that_of_independent_items_and_groups_widen_it():
    """1.96 standard errors: of 400 items, and of 100 groups of four that are alike."""
    parts = [n // 4 % 2 for n in range(400)]
    alone, grouped = interval(parts), interval(parts, groups=[n // 4 for n in range(400)])
    for found, n in ((alone, 400), (grouped, 100)):
        half = 1.96 * math.sqrt(0.25 / n)
        assert found.value == 0.5 and found.n == 400
        assert (found.value - found.low, found.high - found.value) == pytest.approx((half, half), rel=0.15)


def test_items_of_a_group_need_not_stand_together():
    parts, wholes, groups = [1, 2, 0, 3, 1, 0], [2, 5, 1, 4, 3, 2], list("abcabc")
    order = [0, 3, 1, 4, 2, 5]
    sorted_ = interval([parts[n] for n in order], [wholes[n] for n in order], groups=[groups[n] for n in order])
    assert interval(parts, wholes, groups=groups) == sorted_


def test_the_seed_decides_the_draws():
    parts = [n % 3 == 0 for n in range(50)]
    assert interval(parts) == interval(parts, seed=0) != interval(parts, seed=1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=12))
def test_an_interval_lies_within_what_groups_have(items):
    parts, wholes, groups = zip(*items, strict=True)
    found = interval(parts, wholes, groups=groups)
    rates = [sum(p for p, _, g in items if g == group) / sum(w for _, w, g in items if g == group)
             for group in set(groups)]  # fmt: skip
    assert found.value == pytest.approx(sum(parts) / sum(wholes))
    assert min(rates) - 1e-9 <= found.low <= found.high <= max(rates) + 1e-9


def test_nothing_has_no_interval():
    with pytest.raises(InputError, match="at least one item"):
        interval([])


# ---- models ----


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(["user assistant what is this a red picture"] * 9, tmp_path_factory.mktemp("words"),
                           vocab_size=300)  # fmt: skip


@pytest.fixture(scope="module")
def text_model(tokenizer):
    torch.manual_seed(0)
    return Llama3Model(TextConfig.tiny(vocab_size=tokenizer.vocab_size, tie_embeddings=False)).eval()


@pytest.fixture(scope="module")
def seeing(tokenizer):
    torch.manual_seed(0)
    cfg = MultimodalConfig.tiny(text=TextConfig.tiny(vocab_size=tokenizer.vocab_size, tie_embeddings=False))
    return MultimodalLlama(cfg).eval(), MultimodalProcessor(cfg, tokenizer, ImageProcessor.vit(32))


def test_bits_a_byte_of_a_model_that_knows_nothing_is_a_count(tokenizer):
    """Each token takes log2 of the vocabulary; the first is not predicted, nor are its bytes counted."""
    torch.manual_seed(0)
    model = Llama3Model(TextConfig.tiny(vocab_size=tokenizer.vocab_size, tie_embeddings=False)).eval()
    model.lm_head.weight.data.zero_()
    text = "what is this é"
    ids = tokenizer.encode(text, bos=tokenizer.adds_bos)
    n_bytes = len(text.encode()) - len(tokenizer.decode(ids[:1]).encode()) * (not tokenizer.adds_bos)
    expected = (len(ids) - 1) * math.log2(tokenizer.vocab_size) / n_bytes
    assert bits_per_byte(model, tokenizer, [text, text]) == pytest.approx([expected] * 2, rel=1e-5)


def test_bits_a_byte_are_the_sum_over_tokens_up_to_a_length(text_model, tokenizer):
    text = "this is a red picture and what is this a red picture"
    ids = tokenizer.encode(text, bos=tokenizer.adds_bos)[:6]
    with torch.no_grad():
        log_probs = text_model(torch.tensor([ids]))[0].double().log_softmax(dim=-1)
    bits = -sum(float(log_probs[n, ids[n + 1]]) for n in range(5)) / math.log(2)
    (found,) = bits_per_byte(text_model, tokenizer, [text], length=6)
    assert found == pytest.approx(bits / len(tokenizer.decode(ids[1:]).encode()), rel=1e-5)
    assert found != pytest.approx(bits_per_byte(text_model, tokenizer, [text])[0], rel=1e-5)


def test_a_text_of_one_token_says_nothing(text_model, tokenizer):
    with pytest.raises(InputError, match="'what is this' is a text of one token"):
        bits_per_byte(text_model, tokenizer, ["what is this"], length=1)


def asked(content):
    return [{"role": "user", "content": content}]


MEDIA = Image(torch.full((3, 40, 60), 200, dtype=torch.uint8)), Sound(torch.sin(torch.arange(8000) / 9))


def test_a_batch_answers_as_each_alone(seeing):
    """Words, pictures and sounds, of different lengths, in one batch."""
    questions = [asked(content) for content in (
        "what is this", [MEDIA[0], "what is this"], [MEDIA[1], "a"], [*MEDIA, "what is this a red picture"], "a red")]
    told = []
    options = {"max_new_tokens": 6}
    together = answers(*seeing, questions, batch_size=3, say=told.append, **options)
    assert told == [3, 5]
    assert together == [answers(*seeing, [question], **options)[0] for question in questions]
    assert together == answers(*seeing, questions, batch_size=16, **options)
    assert len(set(together)) > 2  # what is seen and heard matters


def test_a_text_models_tokenizer_will_do(text_model, tokenizer):
    questions = [asked("what is this"), asked("a")]
    together = answers(text_model, tokenizer, questions, max_new_tokens=5)
    assert together == [answers(text_model, tokenizer, [question], max_new_tokens=5)[0] for question in questions]
    assert all(together) and together[0] != together[1]


def test_an_answer_ends_before_what_stops_it(text_model, tokenizer, monkeypatch):
    stop = next(iter(tokenizer.stop_ids))
    red, this = tokenizer.encode(" red"), tokenizer.encode(" this")
    written = [[*red, stop, *this], [stop, *red, *this], [*this, *red, *red]]
    width = max(map(len, written))
    seen = {}

    def fake(_model, ids, n, *, stop_ids, **_options):
        seen.update(n=n, stop_ids=stop_ids)
        return torch.cat([ids, torch.tensor([row + [stop] * (width - len(row)) for row in written])], dim=1)

    monkeypatch.setattr(module, "generate", fake)
    found = answers(text_model, tokenizer, [asked("a"), asked("what"), asked("is this")], max_new_tokens=7)
    assert found == ["red", "", "this red red"]
    assert seen == {"n": 7, "stop_ids": tokenizer.stop_ids}


def test_nothing_asked_is_nothing_answered(text_model, tokenizer):
    assert answers(text_model, tokenizer, []) == []


@pytest.mark.parametrize("right, n, ends", [(5, 10, (0.2366, 0.7634)), (0, 10, (0, 0.2775)), (10, 10, (0.7225, 1))])
def test_wilsons_interval(right, n, ends):
    """Five of ten by the table of Newcombe 1998; none of ten: z² / (n + z²)."""
    assert wilson(right, n) == pytest.approx(ends, abs=1e-4)
