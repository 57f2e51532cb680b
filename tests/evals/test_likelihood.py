"""evals.likelihood: equal to reading each pair alone, in any order and batch, and with each token read once."""

import math
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamm import Llama3Model, TextConfig
from llamamm.errors import ContextOverflowError, InputError
from llamamm.evals import likelihood as module
from llamamm.evals.likelihood import Likelihood, families, log_likelihoods
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import MultimodalLlama

torch.manual_seed(0)
CFG = TextConfig.tiny(context_length=64)
MODEL = Llama3Model(CFG).eval()
for parameter in MODEL.parameters():  # far from uniform, so that a wrong position or mask shows
    torch.nn.init.normal_(parameter, std=0.3)


@torch.no_grad()
def naive(model, context, continuation):
    """The sum as it is defined, from one forward pass of the whole."""
    logits = model(torch.tensor([[*context, *continuation]])[:, :-1]).float()[0, len(context) - 1 :]
    wanted = torch.tensor(continuation)
    total = F.log_softmax(logits, dim=-1).gather(1, wanted[:, None]).sum().item()
    return Likelihood(total, logits.argmax(dim=-1).tolist() == list(continuation), len(continuation))


def assert_equal(found, expected):
    assert [(f.is_greedy, f.n_tokens) for f in found] == [(e.is_greedy, e.n_tokens) for e in expected]
    assert [f.total for f in found] == pytest.approx([e.total for e in expected], abs=1e-4)


@contextmanager
def tokens_read(model):
    """How many ids go through the embedding that are not padding, which is 0."""
    seen = []
    hook = model.embed_tokens.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        yield lambda: sum(int((ids != 0).sum()) for ids in seen)
    finally:
        hook.remove()


IDS = st.integers(1, 3)  # few, so that contexts have beginnings in common
TEXT = st.lists(IDS, min_size=1, max_size=9)


@st.composite
def requests(draw):
    """Ragged pairs, many with the same context or the same beginning, some twice, in any order."""
    headers = [draw(st.lists(IDS, max_size=30)) for _ in range(2)]
    contexts = [draw(st.sampled_from(headers)) + draw(TEXT) for _ in range(draw(st.integers(1, 6)))]
    pairs = [(draw(st.sampled_from(contexts)), draw(TEXT)) for _ in range(draw(st.integers(1, 16)))]
    return pairs + draw(st.lists(st.sampled_from(pairs), max_size=3))


@settings(max_examples=60)
@given(requests(), st.sampled_from([1, 60, 300, 8192]), st.sampled_from([1, 4, 16]))
def test_equal_to_reading_each_pair_alone(pairs, batch_tokens, least):
    told = []
    with pytest.MonkeyPatch.context() as patch, tokens_read(MODEL) as count:
        patch.setattr(module, "LEAST_SHARED", least)
        patch.setattr(module, "LEAST_SAVED", 2 * least)
        patch.setattr(module, "HEAD_ROWS", 3)
        found = log_likelihoods(MODEL, pairs, batch_tokens=batch_tokens, say=told.append)
        n_read = count()
    assert_equal(found, [naive(MODEL, *pair) for pair in pairs])
    assert told == sorted(told) and told[-1] == len(pairs)
    assert n_read <= sum(len(context) + len(new) - 1 for context, new in pairs)


def test_each_token_is_read_once(monkeypatch):
    monkeypatch.setattr(module, "LEAST_SAVED", 20)
    header, first, second = [1] * 20, [2, 3], [3]
    pairs = [(header + question, new) for question in (first, second) for new in ([1], [2], [4, 4, 4], [5, 5])]
    with tokens_read(MODEL) as count:
        found = log_likelihoods(MODEL, [*pairs, *pairs])
        # the header, both questions, and of [4, 4, 4] and [5, 5] all but the last, behind either question
        assert count() == 20 + (2 + 1) + 2 * (2 + 1)
    assert_equal(found, [naive(MODEL, *pair) for pair in [*pairs, *pairs]])


@pytest.mark.parametrize("batch_tokens, expected", [
    (8192, [(5, 2), (5, 1)]),
    (6, [(3, 2), (2, 1), (1, 1), (2, 2), (2, 1)]),  # contexts take 2 tokens each, with their words 3
])  # fmt: skip
def test_questions_that_share_nothing_are_read_together(batch_tokens, expected):
    sizes = []
    hook = MODEL.embed_tokens.register_forward_pre_hook(lambda _module, args: sizes.append(tuple(args[0].shape)))
    log_likelihoods(MODEL, [([n, 1], [2, 3]) for n in range(5, 10)], batch_tokens=batch_tokens)
    hook.remove()
    assert sizes == expected


def test_letters_cost_one_reading_of_the_question():
    with tokens_read(MODEL) as count:
        log_likelihoods(MODEL, [([1, 2, 3], [letter]) for letter in (4, 5, 6, 7)])
        assert count() == 3


def test_a_long_context_and_a_long_continuation_side_by_side_fit_the_context():
    """Padded to the width of both, they would be 60 + 49 tokens of 64."""
    pairs = [([1] * 60, [2, 3, 4, 5, 1]), ([3], [4, 2] * 32), ([2] * 5, [4] * 50)]
    assert_equal(log_likelihoods(MODEL, pairs), [naive(MODEL, *pair) for pair in pairs])


def test_a_likelihood_by_hand():
    """A model whose weights are zero finds all 512 words equally probable, and of equal scores the first is best."""
    blank = Llama3Model(CFG).eval()
    for parameter in blank.parameters():
        torch.nn.init.zeros_(parameter)
    found = log_likelihoods(blank, [([7], [0, 0]), ([7], [0, 1]), ([7], [5])])
    assert [f.total for f in found] == pytest.approx([-2 * math.log(512), -2 * math.log(512), -math.log(512)], abs=1e-4)
    assert [f.is_greedy for f in found] == [True, False, False]


@pytest.mark.parametrize("cross", [(), (0, 1)])
def test_a_model_that_sees_reads_texts_alike(cross):
    model = MultimodalLlama(MultimodalConfig.tiny(cross_layers=cross)).eval()
    pairs = [([1] * 20 + [q], new) for q in (2, 3) for new in ([4], [5, 6, 7], [6])]
    assert_equal(log_likelihoods(model, pairs), [naive(model, *pair) for pair in pairs])


@pytest.mark.parametrize("contexts, groups", [
    (["a"], [(0, 1)]),
    (["aaaaab", "aaaaac", "aaaaad"], [(5, 3)]),
    (["aaaa", "aaaaaa"], [(3, 2)]),  # the last token of the shorter is left for its scores
    (["aaab", "aaac", "bbbbb1", "bbbbb2", "c"], [(3, 2), (5, 2), (0, 1)]),
    (["aa1", "aa2", "aa3", "aa4444444440", "aa4444444441"], [(11, 2), (0, 3)]),  # 11 saved, not 4 x 2
    (["aa1", "aa2", "aa3", "aa440", "aa441"], [(2, 5)]),  # 4 x 2 saved, not 4
    (["aa1", "aa2", "b", "ccc1", "ccc2"], [(3, 2), (0, 3)]),  # 2 saved are too few
])  # fmt: skip
def test_what_is_read_once_is_what_saves_most(contexts, groups, monkeypatch):
    monkeypatch.setattr(module, "LEAST_SHARED", 2)
    monkeypatch.setattr(module, "LEAST_SAVED", 3)
    found = list(families([tuple(map(ord, c)) for c in sorted(contexts)]))
    assert [(n, len(some)) for n, some in found] == groups


def test_nothing_asked_is_nothing_found():
    assert log_likelihoods(MODEL, []) == []


@pytest.mark.parametrize("pairs, batch_tokens, error, message", [
    ([([1], [2]), ([], [2])], 9, InputError, "request 1 has an empty context: give the begin-of-text token"),
    ([([1], [])], 9, InputError, "request 0 has an empty continuation"),
    ([([1], [2])], 0, InputError, "at least 1, got 0"),
    ([([1] * 60, [2] * 6)], 9, ContextOverflowError, "60 tokens and 6 to score.* 65, and the model's context is 64"),
])  # fmt: skip
def test_what_cannot_be_scored_says_why(pairs, batch_tokens, error, message):
    with pytest.raises(error, match=message):
        log_likelihoods(MODEL, pairs, batch_tokens=batch_tokens)


def test_the_longest_request_that_fits():
    pair = [1] * 60, [2] * 5
    assert_equal(log_likelihoods(MODEL, [pair]), [naive(MODEL, *pair)])
