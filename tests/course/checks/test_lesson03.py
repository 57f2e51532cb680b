"""Exercises of lesson 03: right answers pass, wrong ones are told what is wrong with them."""

import math
import re

import pytest
import torch

from llamamm.course.checks import check, exercises_of

INF = float("inf")


# ---- right answers, written in another way than the reference ----


def attention_weights(q, keys):
    powers = [math.exp(float(q @ key) / len(q) ** 0.5) for key in keys]
    return torch.tensor([p / sum(powers) for p in powers])


def my_causal_mask(n_queries, start):
    return torch.tensor([[j <= start + i for j in range(start + n_queries)] for i in range(n_queries)])


def grouped_attention(q, k, v, mask):
    B, H, T, D = q.shape
    allowed = mask.expand(B, 1, T, k.shape[2])[:, 0]
    heads = []
    for h in range(H):
        kv = h // (H // k.shape[1])
        scores = torch.where(allowed, q[:, h] @ k[:, kv].transpose(1, 2) * D**-0.5, -INF)
        heads.append(scores.softmax(-1) @ v[:, kv])
    return torch.stack(heads, dim=1)


def my_build_mask(padding, start):
    B, S = padding.shape
    mask = torch.zeros(B, 1, S - start, S, dtype=torch.bool)
    for b in range(B):
        for i in range(start, S):
            for j in range(i + 1):
                mask[b, 0, i - start, j] = padding[b, j] or i == j
    return mask


def give_away(vocab_size):
    a = torch.zeros(1, 6, dtype=torch.long)
    b = a.clone()
    b[0, 4:] = vocab_size - 1
    return a, b, 0


RIGHT = {"03.1": attention_weights, "03.2": my_causal_mask, "03.3": grouped_attention, "03.4": my_build_mask,
         "03.5": give_away}  # fmt: skip


@pytest.mark.parametrize("exercise_id", RIGHT)
def test_a_right_answer_passes(exercise_id):
    result = check(exercise_id, RIGHT[exercise_id])
    assert result, result.message


def test_every_exercise_is_tried_here():
    assert [e.id for e in exercises_of("03")] == list(RIGHT)
    assert all(len(e.mistakes) >= 3 for e in exercises_of("03"))


def test_texts_of_different_length_may_give_a_model_away():
    assert check("03.5", lambda _: (torch.tensor([[3, 4]]), torch.tensor([[3, 4, 5]]), 1))


# ---- 03.1 ----


def w_scores(q, keys):
    return torch.stack([(q * key).sum() / q.numel() ** 0.5 for key in keys])


def w_no_scale(q, keys):
    e = (keys @ q).exp()
    return e / e.sum()


def w_by_d(q, keys):
    return ((q[None] @ keys.T)[0] / q.shape[0]).softmax(0)


def w_by_keys(q, keys):
    return (keys @ q * keys.shape[0] ** -0.5).softmax(0)


def w_scale_late(q, keys):
    return (keys @ q).softmax(0) / q.shape[0] ** 0.5


def w_share(q, keys):
    dots = keys @ q
    return dots / dots.sum()


# ---- 03.2 ----


def m_no_offset(n_queries, start):
    return torch.arange(n_queries)[:, None] >= torch.arange(start + n_queries)[None]


def m_not_itself(n_queries, start):
    return torch.ones(n_queries, n_queries + start).tril(start - 1) == 1


def m_inverted(n_queries, start):
    return torch.ones(n_queries, n_queries + start).triu(start + 1) == 1


def m_square(n_queries, start):  # noqa: ARG001
    return torch.ones(n_queries, n_queries).tril() == 1


def m_future(n_queries, start):
    return torch.ones(n_queries, n_queries + start).triu(start) == 1


def m_additive(n_queries, start):
    return torch.full((n_queries, n_queries + start), -INF).triu(start + 1)


# ---- 03.3 ----


def attend(q, k, v, mask, *, order="near", scale=None, axis=-1, fill=-INF):
    H, K = q.shape[1], k.shape[1]
    index = [h // (H // K) if order == "near" else h % K for h in range(H)]
    scores = torch.einsum("bhtd,bhsd->bhts", q, k[:, index]) * (scale or q.shape[-1] ** -0.5)
    if mask is not None:
        scores = torch.where(mask, scores, fill)
    return torch.einsum("bhts,bhsd->bhtd", scores.softmax(axis), v[:, index])


def a_late_mask(q, k, v, mask):
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    return weights.masked_fill(~mask, 0.0) @ v


# ---- 03.4 ----


def causal(padding, start):
    S = padding.shape[1]
    return torch.ones(S, S).tril().bool()[start:]


def b_empty(padding, start):
    return causal(padding, start)[None, None] & padding[:, None, None]


def b_sees_all(padding, start):
    mask = b_empty(padding, start)
    mask[mask.sum(-1) == 0] = True
    return mask


def b_rows(padding, start):
    return causal(padding, start)[None, None] & padding[:, start:][:, None, :, None]


def b_no_head(padding, start):
    return my_build_mask(padding, start).squeeze(1)


def b_ignores_padding(padding, start):
    return torch.stack([causal(padding, start)[None]] * len(padding))


def b_future(padding, start):
    mask = padding[:, None, None].repeat(1, 1, padding.shape[1] - start, 1)
    for i in range(start, padding.shape[1]):
        mask[:, 0, i - start, i] = True
    return mask


def b_inverted(padding, start):
    return my_build_mask(padding == 0, start)


def b_no_offset(padding, start):
    S = padding.shape[1]
    mask = torch.arange(S)[None] <= torch.arange(S - start)[:, None]
    mask = mask[None] & padding[:, None]
    for i in range(S - start):
        mask[:, i, start + i] = True
    return mask[:, None]


# ---- 03.5 ----


def ids(*numbers):
    return torch.tensor([numbers])


WRONG = [
    ("03.1", w_scores, "softmax is missing"),
    ("03.1", lambda q, keys: (keys * q).sum(-1), "dot products"),
    ("03.1", w_no_scale, "forgot to divide the scores by √D"),
    ("03.1", w_by_d, "you divided by D:"),
    ("03.1", w_by_keys, "number of keys"),
    ("03.1", w_scale_late, "after the softmax"),
    ("03.1", w_share, "can be negative"),
    ("03.1", lambda q, keys: attention_weights(q, keys)[:, None], r"shape should be \(2,\), got \(2, 1\)"),
    ("03.1", lambda q, keys: attention_weights(q, keys).tolist(), "should be a tensor"),
    ("03.2", m_no_offset, "forgot the offset"),
    ("03.2", m_not_itself, "should see itself"),
    ("03.2", m_inverted, "wrong way round"),
    ("03.2", m_square, "cached keys come first"),
    ("03.2", m_future, "show the future"),
    ("03.2", lambda n, start: my_causal_mask(n, start).T, "rows and columns are exchanged"),
    ("03.2", lambda n, start: my_causal_mask(n, start) * 1.0, "add .bool"),
    ("03.2", m_additive, "mask to be added"),
    ("03.2", lambda n_queries: n_queries, "raised TypeError"),
    ("03.3", lambda q, k, v, mask: attend(q, k, v, mask, order="turns"), "groups are in turns"),
    ("03.3", lambda q, k, v, mask: attend(q, k, v, None), "took the mask and did not use it"),  # noqa: ARG005
    ("03.3", lambda q, k, v, mask: attend(q, k, v, ~mask), "mask is the wrong way round"),
    ("03.3", lambda q, k, v, mask: attend(q, k, v, mask, scale=1.0), "forgot to divide"),
    ("03.3", lambda q, k, v, mask: attend(q, k, v, mask, scale=1 / q.shape[-1]), "you divided by D:"),
    ("03.3", lambda q, k, v, mask: attend(q, k, v, mask, axis=-2), "goes over the queries"),
    ("03.3", a_late_mask, "masked after the softmax"),
    ("03.3", lambda q, k, v, mask: attend(q, k, v, mask, fill=0.0), "e to the power 0 is 1"),
    ("03.3", lambda q, k, v, mask: grouped_attention(q, k, v, mask).transpose(1, 2), "shape should be"),
    ("03.3", lambda q, k, v, mask: (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, -INF).softmax(-1) @ v,
     "raised RuntimeError"),
    ("03.4", b_empty, "softmax over nothing is NaN"),
    ("03.4", b_sees_all, "see everything, the future too"),
    ("03.4", b_rows, "rows of padding and not the columns"),
    ("03.4", b_future, "every token sees the future"),
    ("03.4", b_no_offset, "forgets the offset"),
    ("03.4", b_no_head, "no axis for the heads"),
    ("03.4", b_inverted, "True means a real token"),
    ("03.4", b_ignores_padding, "padding is visible to real tokens"),
    ("03.4", lambda padding, start: None, "should be a tensor"),  # noqa: ARG005
    ("03.5", lambda _: (ids(1, 2, 3), ids(1, 2, 4), 2), "differ at t itself"),
    ("03.5", lambda _: (ids(7, 2, 3), ids(1, 2, 3), 2), "a token before t"),
    ("03.5", lambda _: (ids(1, 2, 3), ids(1, 2, 3), 0), "the same text"),
    ("03.5", lambda _: (ids(1, 2, 3), ids(9, 8, 7), 1), "change only tokens after t"),
    ("03.5", lambda _: (ids(1, 2, 3), ids(1, 2, 4), 3), "position in both texts, 0 to 2, got 3"),
    ("03.5", lambda n: (ids(1, n), ids(1, 2), 0), "from 0 to 15"),
    ("03.5", lambda _: (ids(1, 2).float(), ids(1, 2), 0), "whole numbers of shape"),
    ("03.5", lambda _: (torch.tensor([1, 2]), ids(1, 2), 0), r"whole numbers of shape \(1, T\)"),
    ("03.5", lambda _: "the prompt", "return three things"),
]  # fmt: skip


@pytest.mark.parametrize(("exercise_id", "answer", "message"), WRONG, ids=lambda x: getattr(x, "__name__", x))
def test_a_wrong_answer_is_told_why(exercise_id, answer, message):
    result = check(exercise_id, answer)
    assert not result
    assert re.search(message, result.message), result.message


@pytest.mark.parametrize("exercise_id", RIGHT)
def test_an_empty_answer_is_still_to_be_written(exercise_id):
    def stub(*_):
        raise NotImplementedError

    assert "still to be written" in check(exercise_id, stub).message
    assert "give the function" in check(exercise_id, 3).message
