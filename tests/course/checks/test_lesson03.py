"""Exercises of lesson 03: right answers pass, wrong ones are told what is wrong with them, however they are written."""

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llamamm.course.checks import check, exercises_of

INF = float("inf")


# ---- right answers, each in two spellings ----


def softmax_by_rows(scores):
    rows = []
    for row in scores.reshape(-1, scores.shape[-1]):
        top = max(row.tolist())
        powers = [math.exp(s - top) if top > -INF else 0.0 for s in row.tolist()]
        rows.append([p / (sum(powers) or 1.0) for p in powers])
    return torch.tensor(rows).view(scores.shape)


def softmax_at_once(scores):
    top = scores.max(dim=-1, keepdim=True).values
    powers = torch.exp(scores - torch.where(top.isinf(), 0.0, top))
    return powers / powers.sum(dim=-1, keepdim=True).clamp(min=1e-9)


def causal_by_loops(n_queries, start):
    return torch.tensor([[j <= start + i for j in range(start + n_queries)] for i in range(n_queries)])


def causal_by_tril(n_queries, start):
    return torch.ones(n_queries, start + n_queries).tril(diagonal=start).bool()


def attention_by_heads(q, k, v, mask):
    B, H, T, D = q.shape
    allowed = mask.expand(B, 1, T, k.shape[2])[:, 0]
    heads = []
    for h in range(H):
        kv = h // (H // k.shape[1])
        scores = torch.where(allowed, q[:, h] @ k[:, kv].transpose(1, 2) * D**-0.5, -INF)
        heads.append(scores.softmax(-1) @ v[:, kv])
    return torch.stack(heads, dim=1)


def attention_without_copies(q, k, v, mask):
    grouped = q.unflatten(1, (k.shape[1], -1))
    scores = torch.einsum("bkgtd,bksd->bkgts", grouped, k).div_(math.sqrt(q.shape[-1]))
    scores.masked_fill_(~(mask.unsqueeze(2) if mask.dim() == 4 else mask), -INF)
    return (scores.softmax(dim=-1) @ v.unsqueeze(2)).flatten(1, 2)


def attention_in_groups(q, k, v, mask):
    B, H, T, D = q.shape
    K = k.shape[1]
    scores = torch.einsum("bkgtd,bksd->bkgts", q.view(B, K, H // K, T, D), k) / math.sqrt(D)
    scores = scores.masked_fill(~(mask if mask.dim() == 2 else mask[:, :, None]), -INF)
    return torch.einsum("bkgts,bksd->bkgtd", scores.softmax(-1), v).reshape(B, H, T, D)


def attention_into_a_result_like_q(q, k, v, mask):
    out, group = torch.empty_like(q), q.shape[1] // k.shape[1]
    for h in range(q.shape[1]):
        scores = q[:, h] @ k[:, h // group].mT / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~(mask if mask.dim() == 2 else mask[:, 0]), -INF)
        out[:, h] = scores.softmax(-1) @ v[:, h // group]
    return out


def build_by_loops(padding, start):
    B, S = padding.shape
    mask = torch.zeros(B, 1, S - start, S, dtype=torch.bool)
    for b in range(B):
        for i in range(start, S):
            for j in range(i + 1):
                mask[b, 0, i - start, j] = padding[b, j] or i == j
    return mask


def build_by_tables(padding, start):
    keys = torch.arange(padding.shape[1])
    queries = keys[start:, None]
    return (((keys <= queries) & padding[:, None]) | (keys == queries))[:, None]


def backward_by_matrix(weights, grad):
    slopes = torch.diag_embed(weights) - weights[..., :, None] * weights[..., None, :]
    return (slopes @ grad[..., None])[..., 0]


def backward_in_place(weights, grad):
    product = weights * grad
    return product.sub_(weights * product.sum(-1, keepdim=True))


def give_away(vocab_size):
    a = torch.zeros(1, 6, dtype=torch.long)
    b = a.clone()
    b[0, 4:] = vocab_size - 1
    return a, b, 0


RIGHT = [
    ("03.1", softmax_by_rows), ("03.1", softmax_at_once), ("03.2", causal_by_loops), ("03.2", causal_by_tril),
    ("03.3", attention_by_heads), ("03.3", attention_without_copies), ("03.3", attention_in_groups),
    ("03.3", attention_into_a_result_like_q), ("03.4", build_by_loops),
    ("03.4", build_by_tables), ("03.5", backward_by_matrix), ("03.5", backward_in_place), ("03.6", give_away),
    ("03.6", lambda n: (torch.tensor([[3, 4]]), torch.tensor([[3, n - 1]]), 0)),
    ("03.6", lambda n: (torch.tensor([[3, 4]]), torch.tensor([[3, n - 1]]), torch.tensor(0))),
]  # fmt: skip


@pytest.mark.parametrize(("exercise_id", "answer"), RIGHT, ids=lambda x: getattr(x, "__name__", x))
def test_a_right_answer_passes(exercise_id, answer):
    result = check(exercise_id, answer)
    assert result, result.message


def test_every_exercise_is_tried_here():
    assert [e.id for e in exercises_of("03")] == sorted({exercise_id for exercise_id, _ in RIGHT})


def test_the_gradients_reference_is_what_autograd_finds():
    scores = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    grad = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = scores.softmax(-1)
    (found,) = torch.autograd.grad(weights, scores, grad)
    reference = next(e for e in exercises_of("03") if e.id == "03.5").reference
    torch.testing.assert_close(reference(weights.detach(), grad), found)


# ---- 03.1 ----


def s_naive(scores):
    powers = torch.exp(scores)
    return powers / powers.sum(-1, keepdim=True)


def s_naive_numpy_style(scores):
    return math.e**scores / (math.e**scores).sum(axis=-1, keepdims=True)


def s_naive_loop(scores):
    rows = [row.exp().mul_(1 / row.exp().sum()) for row in scores.reshape(-1, scores.shape[-1])]
    return torch.stack(rows).view_as(scores)


def s_global_max(scores):
    return softmax_like(scores, scores.max())


def s_global_max_in_place(scores):
    scores -= scores.flatten().max()
    scores.exp_()
    return scores.div_(scores.sum(-1, keepdim=True))


def s_global_max_zeros(scores):
    powers = (scores - torch.amax(scores)).exp()
    return torch.where(powers.sum(-1, keepdim=True) == 0, 0.0, powers / powers.sum(-1, keepdim=True))


def softmax_like(scores, shift, dim=-1):
    powers = torch.exp(scores - shift)
    return powers / (powers.sum(dim, keepdim=True) if dim is not None else powers.sum())


def s_row_max(scores):
    return softmax_like(scores, scores.max(-1, keepdim=True)[0])


def s_row_max_einsum(scores):
    powers = (scores - scores.amax(-1)[..., None]).exp()
    return powers / torch.einsum("...s->...", powers)[..., None]


def s_row_max_in_place(scores):
    scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    return scores.div_(scores.sum(-1, keepdim=True))


def s_whole(scores):
    top = scores.amax(-1, keepdim=True)
    powers = (scores - top.masked_fill(top.isinf(), 0)).exp()
    return powers / powers.sum()


def s_whole_loops(scores):
    top = scores.amax(-1, keepdim=True).nan_to_num(neginf=0.0)
    powers = (scores - top).exp()
    return powers / sum(powers.flatten().tolist())


def s_whole_view(scores):
    top = torch.maximum(scores.max(-1, keepdim=True).values, torch.tensor(-1e30))
    powers = (scores - top).exp()
    return (powers.view(-1) / powers.view(-1).sum()).view_as(scores)


# ---- 03.2 ----


def m_no_offset(n, start):
    return torch.arange(n)[:, None] >= torch.arange(start + n)[None]


def m_no_offset_loops(n, start):
    return torch.tensor([[j <= i for j in range(start + n)] for i in range(n)])


def m_no_offset_tril(n, start):
    return torch.ones(n, n + start).tril() == 1


def m_strict(n, start):
    return torch.ones(n, n + start).tril(start - 1) == 1


def m_strict_loops(n, start):
    return torch.tensor([[j < start + i for j in range(start + n)] for i in range(n)])


def m_strict_arange(n, start):
    return torch.arange(n + start).expand(n, -1) < torch.arange(start, start + n).unsqueeze(1)


def m_strict_no_offset(n, start):
    return torch.ones(n, n + start).tril(-1).bool()


def m_strict_no_offset_loops(n, start):
    return torch.tensor([[j < i for j in range(start + n)] for i in range(n)])


def m_future_no_offset(n, start):
    return torch.ones(n, n + start).tril(1).bool()


def m_float_no_offset(n, start):
    return torch.ones(n, n + start).tril()


def m_additive_strict(n, start):
    return torch.full((n, n + start), -INF).triu(start)


def m_inverted(n, start):
    return torch.ones(n, n + start).triu(start + 1) == 1


def m_inverted_loops(n, start):
    return torch.tensor([[not j <= start + i for j in range(start + n)] for i in range(n)])


def m_inverted_logic(n, start):
    return torch.logical_not(causal_by_tril(n, start))


# ---- 03.3 ----


def attend(q, k, v, mask, *, order="near", scale=None, axis=-1, fill=-INF):
    """Wrong in one way or several, by einsum and indices."""
    H, K = q.shape[1], k.shape[1]
    index = [h // (H // K) if order == "near" else h % K for h in range(H)]
    scores = torch.einsum("bhtd,bhsd->bhts", q, k[:, index]) * (scale(q, k) if scale else q.shape[-1] ** -0.5)
    if mask is not None:
        scores = torch.where(mask, scores, fill)
    return torch.einsum("bhts,bhsd->bhtd", scores.softmax(axis), v[:, index])


def attend_in_place(q, k, v, mask, *, repeat=torch.repeat_interleave, scale=True, invert=True, late=False, zero=False):
    """Wrong in one way or several, by matmul, in place."""
    group = q.shape[1] // k.shape[1]
    k, v = repeat(k, group, 1), repeat(v, group, 1)
    scores = q.matmul(k.mT)
    if scale:
        scores /= math.sqrt(q.shape[-1])
    if mask is not None and not late:
        scores.masked_fill_(~mask if invert else mask, 0 if zero else -INF)
    weights = F.softmax(scores, -1)
    if late:
        weights *= mask
    return weights.matmul(v)


def attend_loops(q, k, v, mask, *, order="near", root=True, masked=True):
    """Wrong in one way or several, query by query."""
    B, H, T, D = q.shape
    out = torch.zeros_like(q)
    mask = mask.expand(B, 1, T, k.shape[2])
    for b in range(B):
        for h in range(H):
            kv = h // (H // k.shape[1]) if order == "near" else h % k.shape[1]
            for t in range(T):
                seen = mask[b, 0, t] if masked else torch.ones(k.shape[2]).bool()
                powers = (k[b, kv, seen] @ q[b, h, t] / (D**0.5 if root else 1)).softmax(0)
                out[b, h, t] = powers @ v[b, kv, seen]
    return out


def in_turns(t, group, dim):
    return torch.cat([t] * group, dim=dim)


def repeat_turns(t, group, dim):  # noqa: ARG001
    return t.repeat(1, group, 1, 1)


def a_one(**faults):
    return lambda q, k, v, mask: attend(q, k, v, mask, **faults)


def a_two(**faults):
    return lambda q, k, v, mask: attend_in_place(q, k, v, mask, **faults)


def a_three(**faults):
    return lambda q, k, v, mask: attend_loops(q, k, v, mask, **faults)


def a_late(q, k, v, mask):
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1).masked_fill(~mask, 0.0) @ v


def a_late_where(q, k, v, mask):
    group = q.shape[1] // k.shape[1]
    weights = torch.einsum("bhtd,bhsd->bhts", q, k.repeat_interleave(group, 1)) * q.shape[-1] ** -0.5
    weights = torch.where(mask, weights.softmax(-1), 0.0)
    return torch.einsum("bhts,bhsd->bhtd", weights, v.repeat_interleave(group, 1))


def no_scale(q, k):  # noqa: ARG001
    return 1.0


def by_d(q, k):  # noqa: ARG001
    return 1 / q.shape[-1]


def by_s(q, k):  # noqa: ARG001
    return k.shape[2] ** -0.5


# ---- 03.4 ----


def causal(padding, start):
    S = padding.shape[1]
    return torch.ones(S, S).tril().bool()[start:]


def b_empty(padding, start):
    return causal(padding, start)[None, None] & padding[:, None, None]


def b_empty_loops(padding, start):
    S = padding.shape[1]
    rows = [[[bool(p[j]) and j <= i for j in range(S)] for i in range(start, S)] for p in padding]
    return torch.tensor(rows)[:, None]


def b_empty_fill(padding, start):
    mask = causal(padding, start).repeat(len(padding), 1, 1)
    return mask.masked_fill_(~padding[:, None], False)[:, None]


def b_sees_all(padding, start):
    mask = b_empty(padding, start)
    mask[mask.sum(-1) == 0] = True
    return mask


def b_rows(padding, start):
    return causal(padding, start)[None, None] & padding[:, start:][:, None, :, None]


def b_future(padding, start):
    mask = padding[:, None, None].repeat(1, 1, padding.shape[1] - start, 1)
    for i in range(start, padding.shape[1]):
        mask[:, 0, i - start, i] = True
    return mask


def b_no_offset(padding, start):
    S = padding.shape[1]
    mask = (torch.arange(S)[None] <= torch.arange(S - start)[:, None])[None] & padding[:, None]
    for i in range(S - start):
        mask[:, i, start + i] = True
    return mask[:, None]


def b_no_offset_empty(padding, start):
    S = padding.shape[1]
    return (torch.ones(S - start, S).tril().bool() & padding[:, None])[:, None]


def b_no_offset_no_heads(padding, start):
    return b_no_offset(padding, start)[:, 0]


def b_ignores_padding(padding, start):
    return torch.stack([causal(padding, start)[None]] * len(padding))


def b_diagonal_by_eye(padding, start):
    return b_empty(padding, start) | torch.eye(padding.shape[1] - start, padding.shape[1]).bool()


def b_diagonal_by_arange(padding, start):
    keys = torch.arange(padding.shape[1])
    return b_empty_fill(padding, start) | (keys == keys[: len(keys) - start, None])


def b_diagonal_in_a_loop(padding, start):
    mask = b_empty_loops(padding, start)
    for i in range(mask.shape[2]):
        mask[:, :, i, i] = True
    return mask


# ---- 03.5 ----


def g_einsum(w, g):
    return w * (g - torch.einsum("...s,...s->...", g, w))


def g_loops_columns(w, g):
    out = g - (g * w).sum(-1) if w.dim() > 1 else g - (g * w).sum()
    return out.mul_(w)


def g_dot(w, g):
    return w * g - w * torch.linalg.vecdot(w, g)


# ---- 03.6 ----


def ids(*numbers):
    return torch.tensor([numbers])


OVERFLOW, EMPTY, ONE_SHIFT = "more than fp32 can hold", "-inf minus -inf is NaN", "same number from the whole table"
WHOLE = "sum of the whole table"
LIMIT, CUT, SIZE = "above a limit", "cut scores off at a limit", "largest absolute value"
DIAGONAL = "its own key is start \\+ i, not i"
OFFSET, ITSELF = "forgot the offset", "itself. a token may look at itself"
TURNS, NO_MASK, NO_SCALE = "are in turns", "took the mask and did not use it", "forgot to divide the scores"
LATE, ROUND, QUERIES = "masked after the softmax", "mask is the wrong way round", "goes over the queries"
NO_SUM, KEEPDIM, WHOLE_SUM = "the sum is missing", "keep the axis", "over the whole table"

WRONG = [
    ("03.1", s_naive, [OVERFLOW, EMPTY]),
    ("03.1", s_naive_numpy_style, [OVERFLOW, EMPTY]),
    ("03.1", s_naive_loop, [OVERFLOW, EMPTY]),
    ("03.1", lambda s: s_naive(s).nan_to_num(0.0), [OVERFLOW]),
    ("03.1", s_global_max, [ONE_SHIFT, EMPTY]),
    ("03.1", s_global_max_in_place, [ONE_SHIFT, EMPTY]),
    ("03.1", s_global_max_zeros, [ONE_SHIFT]),
    ("03.1", s_row_max, [EMPTY]),
    ("03.1", s_row_max_einsum, [EMPTY]),
    ("03.1", s_row_max_in_place, [EMPTY]),
    ("03.1", s_whole, [WHOLE]),
    ("03.1", s_whole_loops, [WHOLE]),
    ("03.1", s_whole_view, [WHOLE]),
    ("03.1", lambda s: softmax_like(s, 0.0, None), [WHOLE, OVERFLOW]),
    ("03.1", lambda s: softmax_like(s, s.amax(-1, keepdim=True), None), [WHOLE, EMPTY]),
    ("03.1", lambda s: softmax_like(s, s.mean(-1, keepdim=True)), ["subtract the row's mean"]),
    ("03.1", lambda s: softmax_like(s, s.abs().max(-1, keepdim=True)[0]), ["subtract the largest absolute value"]),
    ("03.1", lambda s: s_naive(s.clamp(-80, 80)), ["cut scores off at a limit"]),
    ("03.1", lambda s: softmax_at_once(s.nan_to_num(neginf=-1e30)), ["shares its weight among keys"]),
    ("03.1", torch.exp, ["you returned the powers"]),
    ("03.1", lambda s: s / s.sum(-1, keepdim=True), ["may be negative"]),
    ("03.1", lambda s: softmax_at_once(s.mT).mT if s.dim() > 1 else softmax_at_once(s), ["summed down the columns"]),
    ("03.1", lambda s: softmax_at_once(s).tolist(), ["should be a tensor"]),
    ("03.1", lambda s: torch.softmax(s, -1), ["calls PyTorch's own softmax"]),
    ("03.1", lambda s: s.softmax(-1).nan_to_num(0), ["calls PyTorch's own softmax"]),
    ("03.1", lambda s: torch.special.softmax(s, -1), ["calls PyTorch's own special_softmax"]),
    ("03.1", lambda s: (s - s.logsumexp(-1, keepdim=True)).exp(), ["calls PyTorch's own logsumexp"]),
    ("03.1", lambda s: F.log_softmax(s, -1).exp(), ["calls PyTorch's own log_softmax"]),
    ("03.2", m_no_offset, [OFFSET]),
    ("03.2", m_no_offset_loops, [OFFSET]),
    ("03.2", m_no_offset_tril, [OFFSET]),
    ("03.2", m_strict, [ITSELF]),
    ("03.2", m_strict_loops, [ITSELF]),
    ("03.2", m_strict_arange, [ITSELF]),
    ("03.2", m_strict_no_offset, [OFFSET, ITSELF]),
    ("03.2", m_strict_no_offset_loops, [OFFSET, ITSELF]),
    ("03.2", m_future_no_offset, [OFFSET, "sees key 1, which comes later"]),
    ("03.2", m_float_no_offset, [OFFSET, "add .bool"]),
    ("03.2", m_additive_strict, [ITSELF, "mask to add"]),
    ("03.2", m_inverted, ["True and False are swapped"]),
    ("03.2", m_inverted_loops, ["True and False are swapped"]),
    ("03.2", m_inverted_logic, ["True and False are swapped"]),
    ("03.2", lambda n, start: torch.ones(n, n).tril() == 1, ["cached keys come first"]),  # noqa: ARG005
    ("03.2", lambda n, start: torch.ones(n, n + start).triu(start) == 1, ["show the future"]),
    ("03.2", lambda n, start: causal_by_tril(n, start).T, ["rows and columns are exchanged"]),
    ("03.2", lambda n, start: causal_by_tril(n, start) * 1.0, ["add .bool"]),
    ("03.2", lambda n, start: causal_by_tril(n, start).long(), ["add .bool"]),
    ("03.2", lambda n: n, ["raised TypeError"]),
    ("03.2", lambda n, start: None, ["returns nothing: is the `return` missing"]),  # noqa: ARG005
    ("03.3", a_one(order="turns"), [TURNS]),
    ("03.3", a_two(repeat=in_turns), [TURNS]),
    ("03.3", a_two(repeat=repeat_turns), [TURNS]),
    ("03.3", a_three(order="turns"), [TURNS]),
    ("03.3", lambda q, k, v, mask: attend(q, k, v, None), [NO_MASK]),  # noqa: ARG005
    ("03.3", lambda q, k, v, mask: attend_in_place(q, k, v, None), [NO_MASK]),  # noqa: ARG005
    ("03.3", a_three(masked=False), [NO_MASK]),
    ("03.3", lambda q, k, v, mask: attend(q, k, v, ~mask), [ROUND]),
    ("03.3", a_two(invert=False), [ROUND]),
    ("03.3", lambda q, k, v, mask: attend_in_place(q, k, v, mask == 0), [ROUND]),
    ("03.3", a_one(scale=no_scale), [NO_SCALE]),
    ("03.3", a_two(scale=False), [NO_SCALE]),
    ("03.3", a_three(root=False), [NO_SCALE]),
    ("03.3", a_one(scale=by_d), ["you divided by D:"]),
    ("03.3", lambda q, k, v, mask: attend_in_place(q / q.shape[-1], k, v, mask, scale=False), ["you divided by D:"]),
    ("03.3", a_one(scale=by_s), ["number of keys"]),
    ("03.3", lambda q, k, v, mask: attend_loops(q, k, v, mask, root=False) / q.shape[-1] ** 0.5, ["after the softmax"]),
    ("03.3", a_one(axis=-2), [QUERIES]),
    ("03.3", a_one(axis=2), [QUERIES]),
    ("03.3", a_late, [LATE]),
    ("03.3", a_late_where, [LATE]),
    ("03.3", a_two(late=True), [LATE]),
    ("03.3", a_one(fill=0.0), ["e to the power 0 is 1"]),
    ("03.3", a_two(zero=True), ["e to the power 0 is 1"]),
    ("03.3", lambda q, k, v, mask: attend(q * mask.any(), k, v, mask, fill=torch.tensor(0.0)), ["e to the power 0 is"]),
    ("03.3", a_one(order="turns", scale=no_scale), [TURNS, NO_SCALE]),
    ("03.3", a_two(repeat=in_turns, scale=False), [TURNS, NO_SCALE]),
    ("03.3", a_three(order="turns", root=False), [TURNS, NO_SCALE]),
    ("03.3", a_three(order="turns", masked=False), [TURNS, NO_MASK]),
    ("03.3", a_three(root=False, masked=False), [NO_SCALE, NO_MASK]),
    ("03.3", a_two(late=True, scale=False), [LATE, NO_SCALE]),
    ("03.3", a_two(late=True, repeat=in_turns), [LATE, TURNS]),
    ("03.3", a_one(axis=-2, order="turns"), [QUERIES, TURNS]),
    ("03.3", a_one(axis=-2, scale=by_d), [QUERIES, "you divided by D:"]),
    ("03.3", lambda q, k, v, mask: attend(q, k, v, None, axis=-2), [QUERIES, NO_MASK]),  # noqa: ARG005
    ("03.3", lambda q, k, v, mask: attention_by_heads(q, k, v, mask).transpose(1, 2), ["shape should be"]),
    ("03.3", lambda q, k, v, mask: (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, -INF).softmax(-1) @ v,
     ["shared key heads: it raised RuntimeError"]),
    ("03.3", lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True),
     ["calls PyTorch's own scaled_dot_product_attention"]),
    ("03.4", b_empty, ["is padding and sees nothing"]),
    ("03.4", b_empty_loops, ["is padding and sees nothing"]),
    ("03.4", b_empty_fill, ["is padding and sees nothing"]),
    ("03.4", b_sees_all, ["is padding and sees key 1"]),
    ("03.4", b_rows, ["you hid the rows of padding"]),
    ("03.4", b_future, ["the causal part is missing"]),
    ("03.4", b_no_offset, [OFFSET]),
    ("03.4", b_no_offset_empty, [OFFSET, "is padding and sees nothing"]),
    ("03.4", b_no_offset_no_heads, [OFFSET, "axis for the heads is missing"]),
    ("03.4", lambda padding, start: build_by_loops(padding, start).squeeze(1), ["axis for the heads"]),
    ("03.4", lambda padding, start: b_empty(padding, start).float(), ["add .bool", "is padding and sees nothing"]),
    ("03.4", lambda padding, start: build_by_loops(padding == 0, start), ["True marks a real token"]),
    ("03.4", lambda padding, start: build_by_tables(~padding, start), ["True marks a real token"]),
    ("03.4", b_diagonal_by_eye, [DIAGONAL]),
    ("03.4", b_diagonal_by_arange, [DIAGONAL]),
    ("03.4", b_diagonal_in_a_loop, [DIAGONAL]),
    ("03.4", b_ignores_padding, ["a padding position. hide the columns"]),
    ("03.4", lambda padding, start: None, ["returns nothing: is the `return` missing"]),  # noqa: ARG005
    ("03.5", lambda w, g: w * g, [NO_SUM]),
    ("03.5", lambda w, g: torch.diag_embed(w).matmul(g[..., None])[..., 0], [NO_SUM]),
    ("03.5", lambda w, g: g.clone().mul_(w), [NO_SUM]),
    ("03.5", g_einsum, [KEEPDIM]),
    ("03.5", g_loops_columns, [KEEPDIM]),
    ("03.5", g_dot, [KEEPDIM]),
    ("03.5", lambda w, g: w * (g - (g * w).sum()), [WHOLE_SUM]),
    ("03.5", lambda w, g: w * (g - w.flatten() @ g.flatten()), [WHOLE_SUM]),
    ("03.5", lambda w, g: g.mul(w).sub(w * torch.tensordot(g, w, dims=g.dim())), [WHOLE_SUM]),
    ("03.5", lambda w, g: w * (1 - w) * g, [r"only each weight's own rise"]),
    ("03.5", lambda w, g: g - (g * w).sum(-1, keepdim=True), ["multiply the difference g"]),
    ("03.5", lambda w, g: w * (g - g.sum(-1, keepdim=True)), ["inside the sum, multiply each g"]),
    ("03.5", lambda w, g: w * ((g * w).sum(-1, keepdim=True) - g), ["sign is reversed"]),
    ("03.5", lambda w, g: w * ((g * w).sum() - g), ["sign is reversed", WHOLE_SUM]),
    ("03.5", lambda w, g: w * (g - g.sum(-1)), ["inside the sum, multiply each g", KEEPDIM]),
    ("03.5", lambda w, g: g - (g * w).sum(-1), ["multiply the difference g", KEEPDIM]),
    ("03.5", lambda w, g: w * (g - (g * w).mean()), ["take the sum of g·w"]),
    ("03.6", lambda _: (ids(1, 2, 3), ids(1, 2, 4), 2), ["differ at t itself"]),
    ("03.6", lambda _: (ids(7, 2, 3), ids(1, 2, 3), 2), ["a token before t"]),
    ("03.6", lambda _: (ids(1, 2, 3), ids(1, 2, 3), 0), ["the same text"]),
    ("03.6", lambda _: (ids(1, 2, 3), ids(9, 8, 7), 1), ["change only tokens after t"]),
    ("03.6", lambda _: (ids(1, 2, 3), ids(1, 2, 4), 3), ["whole number from 0 to 2, got 3"]),
    ("03.6", lambda n: (ids(1, n), ids(1, 2), 0), ["from 0 to 15"]),
    ("03.6", lambda _: (ids(3, 4), ids(3, 4, 5), 1), ["a has 2 tokens and b has 3"]),
    ("03.6", lambda _: (ids(3, 4, 5, 6), ids(3, 4), 1), ["a has 4 tokens and b has 2"]),
    ("03.6", lambda _: (ids(1, 2).float(), ids(1, 2), 0), ["whole numbers of shape"]),
    ("03.6", lambda _: (torch.tensor([1, 2]), ids(1, 2), 0), [r"whole numbers of shape \(1, T\)"]),
    ("03.6", lambda _: (ids(1, 2).int(), ids(1, 3).int(), 0), ["int64"]),
    ("03.6", lambda _: "the prompt", ["return three things"]),
]  # fmt: skip


@pytest.mark.parametrize(("exercise_id", "answer", "sentences"), WRONG, ids=lambda x: getattr(x, "__name__", None))
def test_a_wrong_answer_is_told_why(exercise_id, answer, sentences):
    result = check(exercise_id, answer)
    assert not result
    for sentence in sentences:
        assert re.search(sentence, result.message, re.IGNORECASE), result.message


def kept_above(limit):
    def softmax(scores):
        return softmax_like(scores, scores.amax(-1, keepdim=True).clamp(min=limit))

    return softmax


def kept_above_by_maximum(scores):
    powers = (scores - torch.maximum(scores.max(-1, keepdim=True)[0], torch.tensor(0.0))).exp_()
    total = powers.sum(-1, keepdim=True)
    return powers / total.masked_fill(total == 0, 1.0)


def kept_above_in_a_loop(scores):
    rows = [[math.exp(s - max(0.0, *row)) for s in row] for row in scores.reshape(-1, scores.shape[-1]).tolist()]
    return torch.tensor([[p / (sum(row) or 1.0) for p in row] for row in rows]).view_as(scores)


FAR = [
    (kept_above(0.0), [LIMIT]), (kept_above(-50.0), [LIMIT]), (kept_above_by_maximum, [LIMIT]),
    (lambda s: softmax_like(s, s.amax(-1, keepdim=True).relu()), [LIMIT]), (kept_above_in_a_loop, [LIMIT]),
    (lambda s: softmax_like(s.clamp(max=60), 0.0), [CUT]), (lambda s: s_naive(s.clip(-20, 20)), [CUT]),
    (lambda s: s_naive(torch.minimum(s, torch.tensor(85.0))).nan_to_num(0), [CUT]),
    (lambda s: softmax_like(s, s.abs().amax(-1, keepdim=True)).nan_to_num(0), [SIZE]),
    (lambda s: softmax_like(s, torch.maximum(s, -s).max(-1, keepdim=True)[0]), [SIZE]),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "sentences"), FAR)
def test_a_softmax_that_fails_far_from_zero_hears_why_and_nothing_else(answer, sentences):
    message = check("03.1", answer).message
    told = [sentence for sentence in (OVERFLOW, ONE_SHIFT, WHOLE, LIMIT, CUT, SIZE) if sentence in message]
    assert told == sentences, message


@pytest.mark.parametrize("answer", [b_diagonal_by_eye, b_diagonal_by_arange, b_diagonal_in_a_loop])
def test_a_diagonal_without_its_offset_is_not_taken_for_another_fault(answer):
    message = check("03.4", answer).message
    assert message.count("you forgot the offset") == 2 and "columns" not in message and "nothing else" not in message


def test_a_long_input_stands_after_the_sentence():
    lines = check("03.3", a_two(late=True)).message.splitlines()
    assert re.match(r"  - hidden keys: You masked after .*\. \[0, .*should be .*, for \(\[\[\[", lines[1]), lines[1]


def test_a_gradient_by_autograd_is_noticed():
    def by_autograd(weights, grad):
        scores = weights.log().requires_grad_()
        powers = scores.exp()
        return torch.autograd.grad(powers / powers.sum(-1, keepdim=True), scores, grad)[0]

    def by_backward(weights, grad):
        scores = weights.log().requires_grad_()
        (scores.exp() / scores.exp().sum(-1, keepdim=True)).backward(grad)
        return scores.grad

    assert "calls PyTorch's own" in check("03.5", by_autograd).message
    assert "calls PyTorch's own" in check("03.5", by_backward).message


@pytest.mark.parametrize("exercise_id", sorted({exercise_id for exercise_id, _ in RIGHT}))
def test_an_empty_answer_is_still_to_be_written(exercise_id):
    def stub(*_):
        raise NotImplementedError

    assert "still to be written" in check(exercise_id, stub).message
    assert "give the function" in check(exercise_id, 3).message


def test_a_mask_to_add_is_called_so_also_where_it_is_all_zeros():
    def added(n_queries, start):
        seen = torch.ones(n_queries, start + n_queries).tril(start).bool()
        return torch.zeros(n_queries, start + n_queries).masked_fill(~seen, float("-inf"))

    message = check("03.2", added).message
    assert "this is a mask to add to the scores" in message and ".bool()" not in message and "itself" not in message


def test_a_missing_offset_is_told_as_that_and_not_as_a_comparison():
    message = check("03.2", lambda n_queries, start: torch.ones(n_queries, start + n_queries).tril().bool()).message
    assert "forgot the offset" in message and "<=" not in message


# ---- what a learner gets wrong in a way that looks like another: the right sentence, and no false one ----


def s_some(scores, shift, more=0.0):
    powers = (scores - shift).exp()
    return powers / (powers.sum(-1, keepdim=True) + more)


def s_cut_and_more(scores):
    powers = scores.clamp(-50, 50).exp()
    return powers / (powers.sum(-1, keepdim=True) + 1e-9)


def s_cut_and_more_numpy(scores):
    powers = torch.tensor(np.exp(np.clip(scores.numpy(), None, 80)))
    return powers / (powers.sum(dim=-1)[..., None] + 1e-9)


def s_cut_powers(scores):
    powers = scores.exp().clamp(max=1e30)
    return powers / (powers.sum(-1, keepdim=True) + 1e-9)


def a_plain(q, k, v, mask, *, fill=-INF, by=None, heads=True, values=None):
    """Attention with something else in one place."""
    group = q.shape[1] // k.shape[1] if heads else 1
    k, v = k.repeat_interleave(group, dim=1), (v if values is None else values(k, v)).repeat_interleave(group, dim=1)
    scores = q @ k.mT / (math.sqrt(q.shape[-1]) if by is None else by(q, k))
    return scores.masked_fill(~mask, fill).softmax(-1) @ v


def a_with(**faults):
    return lambda q, k, v, mask: a_plain(q, k, v, mask, **faults)


def by_keys(_q, k):
    return k.shape[2] ** 0.5


def a_einsum_alone(q, k, v, mask):
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / q.shape[-1] ** 0.5
    return scores.masked_fill(~mask, -INF).softmax(-1) @ v


def b_swapped(padding, start, *, diagonal=True, offset=True, heads=True):
    """True taken for padding, with other faults."""
    keys = torch.arange(padding.shape[1])
    own = keys[start:, None]
    mask = (keys <= (own if offset else own - start)) & ~padding[:, None]
    mask = mask | (keys == own) if diagonal else mask
    return mask[:, None] if heads else mask


def b_swapped_loops(padding, start):
    rows = [[[not p[j] and j <= i for j in range(len(p))] for i in range(start, len(p))] for p in padding.tolist()]
    return torch.tensor(rows)[:, None]


MEAN, LEAK, REPEAT = "subtract the row's mean", "still get weight", "each of theirs has to be repeated"
FIXED, PLACE, ZERO = "subtract a fixed number", "its index", "hidden scores to 0"
PADDED, VALUES = "you took true to mean padding", r"take its \.values"
TOLD = [
    # exercise, answer, the sentences that must come, and those that would be false
    ("03.1", s_cut_and_more, ["get the same weight", "shares its weight"], [SIZE, OVERFLOW, MEAN]),
    ("03.1", s_cut_and_more_numpy, [CUT], [SIZE, OVERFLOW, MEAN]),
    ("03.1", s_cut_powers, ["get the same weight"], [SIZE, OVERFLOW, MEAN]),
    ("03.1", lambda s: s_some(s, 100.0), [FIXED], [SIZE, OVERFLOW, MEAN]),
    ("03.1", lambda s: s_some(s, 80.0, 1e-9), [FIXED], [SIZE, OVERFLOW, MEAN]),
    ("03.1", lambda s: s_some(s, torch.tensor(1000.0)).nan_to_num(0), [FIXED], [SIZE, "logarithm"]),
    ("03.1", lambda s: s_some(s, 70.0), ["one that is too small into 0"], [SIZE, OVERFLOW, MEAN]),
    ("03.1", lambda s: s_some(s, s.argmax(-1, keepdim=True)), [PLACE], [OVERFLOW]),
    ("03.1", lambda s: s_some(s, s.max(-1, keepdim=True)[1]), [PLACE], [OVERFLOW]),
    ("03.1", lambda s: s_some(s, s.amin(-1, keepdim=True)), ["the row's smallest score"], [MEAN]),
    ("03.1", lambda s: s_some(s, s.median(-1, keepdim=True).values), ["too large for fp32"], [MEAN, "smallest score"]),
    ("03.1", lambda s: (s.double().exp() / s.double().exp().sum(-1, keepdim=True)).float(), ["fp64 only"], [MEAN]),
    ("03.1", lambda s: s_some(s, s.max(-1)), [VALUES], []),
    ("03.1", lambda s: torch.exp(s.max(dim=-1, keepdim=True)), [VALUES], []),
    ("03.1", lambda s: s.max(-1).exp(), [VALUES], []),
    ("03.1", lambda s: s.max(-1), [VALUES], []),
    ("03.1", lambda s: s_some(s, s.amax(-1)), ["keepdim=True"], []),
    ("03.1", lambda s: s_some(s, max(s)), ["torch.amax"], []),
    ("03.1", lambda s: s_some(s, s.amax(0, keepdim=True)), ["each column's largest score"], []),
    ("03.1", lambda s: softmax_like(s, s.amax(-1, keepdim=True), 0), ["summed down the columns"], []),
    ("03.1", lambda s: softmax_at_once(-s), ["goes to the smallest score"], []),
    ("03.1", lambda s: s_some(s, s.amax(-1, keepdim=True), 1e-2), ["right ratios"], []),
    ("03.1", lambda s: torch.zeros_like(s) if s.isinf().any() else softmax_at_once(s), ["only the rows"], []),
    ("03.1", lambda s: softmax_at_once(s).half(), ["torch.float16"], ["ratios"]),
    ("03.2", lambda n, start: torch.ones(n, start + n).tril(-start) == 1, ["on the wrong side"], [OFFSET, "<="]),
    ("03.2", lambda n, start: torch.arange(n)[:, None] >= torch.arange(start, 2 * start + n), ["on the wrong side"],
     [OFFSET, "<="]),
    ("03.2", lambda n, start: torch.ones(n, start + n).triu(1) == 1, ["swapped", OFFSET], ["<="]),
    ("03.2", lambda n, start: torch.zeros(n, start + n).bool(), ["itself"], ["<="]),
    ("03.2", lambda n, start: torch.eye(n, start + n).bool(), ["itself"], ["<="]),
    ("03.2", lambda n, start: causal_by_tril(n, start) & (torch.arange(n + start) >= start),
     ["cached keys come before"], [OFFSET]),
    ("03.2", lambda n, start: torch.full((n, n + start), -1e9).triu(start + 1), ["mask to add"], ["itself", "<="]),
    ("03.2", lambda n, start: torch.ones(n, n + start).tril(start - 1), [r"add \.bool", "<="], ["mask to add"]),
    ("03.2", lambda n, start: torch.ones(n + start, n + start).tril().bool(), ["only the new tokens ask"], []),  # noqa: ARG005
    ("03.2", lambda n, start: torch.arange(start, n)[:, None] >= torch.arange(n), ["new queries stand at"], []),
    ("03.3", a_with(fill=-10.0), [LEAK], [ZERO]),
    ("03.3", a_with(fill=-1.0), [LEAK], [ZERO]),
    ("03.3", a_with(fill=-100.0), [LEAK], [ZERO]),
    ("03.3", a_with(by=lambda *_: 8.0), ["divided by 8 here"], ["forgot to divide"]),
    ("03.3", a_with(by=lambda *_: 64**0.5), ["divided by 8 here"], ["forgot to divide"]),
    ("03.3", a_with(by=lambda *_: 24.0), ["divided by 24 here"], ["forgot to divide"]),
    ("03.3", a_with(by=lambda q, k: q.shape[2] ** 0.5), ["√S or √T"], []),  # noqa: ARG005
    ("03.3", a_with(by=by_keys), ["√S or √T"], []),
    ("03.3", a_with(by=lambda q, k: q.shape[1] ** 0.5), ["root of the number of heads"], ["forgot to divide"]),  # noqa: ARG005
    ("03.3", a_with(by=lambda q, k: (q.shape[1] * q.shape[-1]) ** 0.5), ["all the numbers of a token"], []),  # noqa: ARG005
    ("03.3", a_with(by=lambda q, k: q.shape[-1] ** -0.5), ["multiplied the scores"], []),  # noqa: ARG005
    ("03.3", a_with(heads=False), [REPEAT], []),
    ("03.3", lambda q, k, v, mask: attend(q, k, v, mask & torch.ones_like(mask).triu()), [], ["are divided by"]),
    ("03.3", lambda q, k, v, mask: attend(q, k, v, mask.expand(len(q), k.shape[1], -1, -1)), ["as it is"], []),
    ("03.3", a_einsum_alone, [REPEAT], []),
    ("03.3", lambda q, k, v, mask: a_plain(q, k, v, mask, values=lambda k, v: v[:, :1]), [REPEAT], []),  # noqa: ARG005
    ("03.3", a_with(values=lambda k, v: k), ["the weights apply to the values"], ["first key head"]),  # noqa: ARG005
    ("03.3", lambda q, k, v, mask: a_plain(q, k, v, mask, fill=INF), ["NaN comes of"], [ROUND]),
    ("03.3", lambda q, k, v, mask: a_plain(q, k, v, torch.ones(q.shape[2], k.shape[2]).tril() == 1),  # noqa: ARG005
     ["mask of your own"], [QUERIES, NO_SCALE]),
    ("03.3", lambda q, k, v, mask: attention_by_heads(q, k, v, mask).transpose(1, 2).flatten(2),
     ["joined the heads"], []),
    ("03.3", lambda q, k, v, mask: attention_by_heads(q, k, v, mask).transpose(1, 2), ["heads in second place"], []),
    ("03.3", lambda q, k, v, mask: attend(q, k, v, mask, axis=1), ["over the heads or the texts"], [QUERIES, ROUND]),
    ("03.4", b_swapped, [PADDED], ["hide the columns"]),
    ("03.4", lambda padding, start: b_swapped(padding, start, diagonal=False), [PADDED], ["hide the columns"]),
    ("03.4", b_swapped_loops, [PADDED], ["hide the columns"]),
    ("03.4", lambda padding, start: b_swapped(padding, start, offset=False), [PADDED], ["hide the columns", OFFSET]),
    ("03.4", lambda padding, start: b_swapped(padding, start, heads=False), [PADDED, "axis for the heads"], []),
    ("03.4", lambda padding, start: ~build_by_tables(padding, start), ["True and False are swapped"],
     ["causal part is missing", "hide the columns", PADDED]),
    ("03.4", lambda padding, start: (causal(padding, start) | padding[:, None])[:, None], ["by `or`"],
     ["causal part is missing", "hide the columns"]),
    ("03.4", lambda padding, start: causal(padding, start) & padding, [r"padding\[:, None, :\] is"], []),
    ("03.4", lambda padding, start: build_by_tables(padding, 0), ["only the new tokens ask"], []),  # noqa: ARG005
    ("03.5", lambda w, g: w * g - (g * w).sum(-1, keepdim=True), ["the whole difference"], ["multiply each g"]),
    ("03.5", lambda w, g: w * (g - w.sum(-1, keepdim=True)), ["multiply each weight by its g"], ["multiply each g by"]),
    ("03.5", lambda w, g: w * (g + (g * w).sum(-1, keepdim=True)), ["add the sum to g"], []),
    ("03.5", lambda w, g: w * (g - w), ["not each weight"], []),
    ("03.5", lambda w, g: w * (g - g.mean(-1, keepdim=True)), ["plain mean"], []),
    ("03.5", lambda w, g: g * (w - (g * w).sum(-1, keepdim=True)), ["are exchanged"], []),
    ("03.5", lambda w, g: (g - (g * w).sum(-1, keepdim=True)) / w, ["divided by the weight"], []),
    ("03.5", lambda w, g: w * (g - (g * w * w).sum(-1, keepdim=True)), [], ["take the sum of g·w"]),
    ("03.5", lambda w, g: w * (g - g.amax(-1, keepdim=True)), [], ["multiply each g by"]),
    ("03.5", lambda w, g: w * (g - (g * w).sum(0)), ["summed down the columns"], []),
    ("03.5", lambda w, g: w * (g - w @ g), ["matrix product"], []),
    ("03.5", lambda w, g: w * (g - torch.dot(w, g)), ["number by number"], []),
]  # fmt: skip


@pytest.mark.parametrize(("exercise_id", "answer", "sentences", "untrue"), TOLD)
def test_a_mistake_that_looks_like_another_hears_its_own_sentence(exercise_id, answer, sentences, untrue):
    result = check(exercise_id, answer)
    assert not result
    for sentence in sentences:
        assert re.search(sentence, result.message, re.IGNORECASE), result.message
    for sentence in untrue:
        assert not re.search(sentence, result.message, re.IGNORECASE), result.message


# ---- what a second fresh reader's answers were told ----


def test_queries_keys_and_values_are_equally_long_in_all_cases():
    for prop in next(e for e in exercises_of("03") if e.id == "03.3").properties:
        for q, k, v, _mask in prop.inputs():
            assert q.shape[-1] == k.shape[-1] == v.shape[-1], prop.name


@pytest.mark.parametrize(("exercise_id", "right", "name", "n"), [
    ("03.1", softmax_at_once, "scores", 0), ("03.3", attention_by_heads, "q", 0), ("03.3", attention_by_heads, "v", 2),
    ("03.4", build_by_tables, "padding", 0), ("03.5", backward_by_matrix, "grad", 1),
])  # fmt: skip
def test_an_answer_that_changes_an_input_is_told_which(exercise_id, right, name, n):
    def answer(*case):
        result = right(*case).clone()
        case[n].copy_(case[n] == 0)
        return result

    message = check(exercise_id, answer).message
    assert f"your function changes `{name}`" in message and len(message.splitlines()) == 2


def test_the_earlier_keys_that_are_seen_are_called_keys():
    assert "of the earlier keys it sees key 0 alone" in check("03.2", m_no_offset).message
    assert "of the earlier keys it sees none" in check("03.2", m_inverted).message


@pytest.mark.parametrize("turned", [lambda t: t.mT, lambda t: t.transpose(2, 3), lambda t: t.transpose(-1, -2)])
def test_repeat_interleave_without_an_axis_is_told(turned):
    def answer(q, k, v, mask):
        group = q.shape[1] // k.shape[1]
        scores = q @ turned(k.repeat_interleave(group)) / math.sqrt(q.shape[-1])
        return scores.masked_fill(~mask, -INF).softmax(-1) @ v.repeat_interleave(group)

    assert "Without dim=1, repeat_interleave flattens what it is given" in check("03.3", answer).message


@pytest.mark.parametrize("inner", [lambda g, w: g @ w, lambda g, w: torch.matmul(g, w), lambda g, w: g @ w.mT])
def test_a_matrix_product_in_the_gradient_is_named(inner):
    message = check("03.5", lambda w, g: w * (g - (inner(g, w) if w.dim() > 1 else (g * w).sum()))).message
    assert "@ is a matrix product, which mixes rows" in message


def test_pytorchs_own_gradient_of_softmax_is_noticed():
    answer = lambda w, g: torch._softmax_backward_data(g, w, -1, w.dtype)  # noqa: E731
    assert "calls PyTorch's own" in check("03.5", answer).message


def test_the_sizes_of_one_text_are_told_without_a_plural():
    message = check("03.4", lambda padding, _start: padding[:, None, None] | torch.eye(7).bool()).message
    assert "Here B = 1, T = 1 and S = 1:" in message or "Here B = 1, T = 2 and S = 2:" in message, message
