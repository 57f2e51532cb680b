"""generation.sampling: filters by hand, equality with transformers' processors, ranges, and drawing by the numbers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llamamm.errors import SamplingError
from llamamm.generation.sampling import (
    SamplingConfig,
    filter_logits,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    sample,
)

INF = float("inf")
HALVES = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()  # logits whose probabilities are these


def kept(logits):
    return (logits > -INF).tolist()[0]


def test_filters_by_hand():
    assert kept(keep_top_k(HALVES, 2)) == [True, True, False, False]
    assert kept(keep_top_k(HALVES, 99)) == [True] * 4
    assert kept(keep_top_p(HALVES, 0.5)) == [True, False, False, False]
    assert kept(keep_top_p(HALVES, 0.51)) == [True, True, False, False]
    assert kept(keep_min_p(HALVES, 0.5)) == [True, True, False, False]
    assert kept(keep_min_p(HALVES, 0.51)) == [True, False, False, False]


def test_repetition_penalty_by_hand():
    seen = torch.tensor([[True, True, False]])
    out = penalize_repetition(torch.tensor([[2.0, -2.0, 2.0]]), seen, 2.0)
    assert out.tolist() == [[1.0, -4.0, 2.0]]


# a quarter apart, so that no two are nearly equal: which of two equals stays is nobody's promise
logit_rows = st.lists(st.integers(-80, 80), min_size=2, max_size=40, unique=True).map(lambda row: [n / 4 for n in row])


@given(row=logit_rows, temperature=st.floats(0.1, 5), top_k=st.integers(1, 50), top_p=st.floats(0.01, 1),
       min_p=st.floats(0, 1))  # fmt: skip
def test_filters_equal_transformers(row, temperature, top_k, top_p, min_p):
    logits = torch.tensor([row])
    ours = filter_logits(logits, SamplingConfig(temperature, top_k, top_p, min_p))
    theirs = logits
    for warper in (TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p),
                   MinPLogitsWarper(min_p)):  # fmt: skip
        theirs = warper(None, theirs)
    ours_p, theirs_p = ours.softmax(-1), theirs.softmax(-1)
    assert (ours > -INF).any()
    # a token exactly on the border of p may fall on either side, by the last bit of a sum
    if not torch.allclose(ours_p, theirs_p, atol=1e-5):
        assert abs(int((ours_p > 0).sum()) - int((theirs_p > 0).sum())) == 1


@given(row=logit_rows, penalty=st.floats(0.5, 3), data=st.data())
def test_repetition_penalty_equals_transformers(row, penalty, data):
    ids = torch.tensor([data.draw(st.lists(st.integers(0, len(row) - 1), min_size=1))])
    logits = torch.tensor([row])
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, True)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
    torch.testing.assert_close(penalize_repetition(logits, seen, penalty), theirs)


def test_temperature_zero_is_the_best_token(generator):
    logits = torch.randn(7, 50, generator=generator)
    assert torch.equal(sample(logits, SamplingConfig()), logits.argmax(-1))


def test_draws_follow_the_probabilities(generator):
    drawn = sample(HALVES.expand(20_000, 4), SamplingConfig(temperature=1.0), generator=generator)
    shares = drawn.bincount(minlength=4) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.25, 0.125, 0.125]), rtol=0, atol=0.02)


def test_excluded_tokens_are_never_drawn(generator):
    drawn = sample(HALVES.expand(2_000, 4), SamplingConfig(temperature=2.0, top_k=2), generator=generator)
    assert set(drawn.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("setting", "value"),
    [("temperature", -0.1), ("temperature", float("nan")), ("temperature", INF), ("top_k", 0), ("top_k", -3),
     ("top_p", 0.0), ("top_p", 1.1), ("top_p", float("nan")), ("min_p", -0.1), ("min_p", 1.5),
     ("repetition_penalty", 0.0), ("repetition_penalty", float("nan"))],
)  # fmt: skip
def test_settings_outside_their_range_are_refused_with_the_number(setting, value):
    with pytest.raises(SamplingError, match=rf"{setting}.*{value}"):
        SamplingConfig(**{setting: value})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_an_error(temperature):
    logits = torch.tensor([[1.0, float("nan"), 3.0], [1.0, 2.0, 3.0]])
    with pytest.raises(SamplingError, match="NaN.*doctor"):
        sample(logits, SamplingConfig(temperature=temperature))


# ---- settings at the ends of their ranges ----

TINY, HUGE = [5e-324, 1e-320, 1e-310, 1e-45, 1e-40, 1e-38, 1e-30], [1e30, 1e38, 1e39, 1e300, 1.7e308]
SCORES = torch.tensor([[3.0, -60000.0, 3.5, 0.0], [-1e-3, -2e-3, -5e4, -7.0], [0.0, 1e-3, -1.0, 50.0]])


@pytest.mark.parametrize("temperature", TINY)
@pytest.mark.parametrize("cuts", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}, {"top_p": 5e-324, "min_p": 1.0}])
def test_a_temperature_near_0_is_greedy(temperature, cuts):
    assert sample(SCORES, SamplingConfig(temperature, **cuts)).tolist() == [2, 0, 3]


@given(
    temperature=st.sampled_from(TINY + HUGE) | st.floats(0, 1e308, exclude_min=True),
    top_p=st.none() | st.sampled_from(TINY) | st.floats(0, 1, exclude_min=True),
    min_p=st.none() | st.sampled_from(TINY) | st.floats(0, 1),
    penalty=st.sampled_from(TINY + HUGE) | st.floats(0, 1e308, exclude_min=True),
    scores=st.lists(st.floats(-6e4, 6e4, width=32), min_size=3, max_size=3),
    seen=st.lists(st.booleans(), min_size=3, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)  # fmt: skip
def test_any_allowed_setting_draws_a_token(temperature, top_p, min_p, penalty, scores, seen, dtype):
    config = SamplingConfig(temperature, None, top_p, min_p, penalty)
    logits = torch.tensor([scores], dtype=dtype)
    assert 0 <= sample(logits, config, seen=torch.tensor([seen])).item() < 3
    assert sample(logits, SamplingConfig(repetition_penalty=penalty), seen=torch.tensor([seen])).item() < 3


def test_infinite_scores_are_said():
    for row in ([1.0, INF], [-INF, -INF]):
        with pytest.raises(SamplingError, match="infinite"):
            sample(torch.tensor([row]), SamplingConfig(0.7))
    assert sample(torch.tensor([[1.0, -INF]]), SamplingConfig(0.7)).item() == 0
