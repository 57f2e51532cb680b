"""course.checks.lesson12_mouth: right answers pass, and each usual mistake is called by its name, alone and in pairs.

Each exercise is written in three ways that have little in common, and each way can have any of the faults in it.
"""

import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llamamm.course.checks import check
from llamamm.course.checks.core import exercises_of
from llamamm.course.checks.lesson12_mouth import END, NEVER, NEVER_FIRST, _attend, _decoder_block
from tests.course.checks.ways import assert_right, assert_told, with_faults

# ---- 12.3 in three ways: einsum, head by head, torch's functional form on its own matrices ----


def roles(x, source, has):
    source = x if "asks itself" in has else source
    return (source, x) if "source asks" in has else (x, source)


def width_of(C, D, has):
    return 1.0 if "not scaled" in has else float(C) if "by the width" in has else float(D * D if "by D" in has else D)


def attend_by_einsum(x, source, att, mask=None, has=()):
    asks, source = roles(x, source, has)
    B, T, C = asks.shape
    S, H = source.shape[1], att.n_heads
    q, k, v = att.q_proj(asks), att.k_proj(source), att.v_proj(source)
    if "values as keys" in has:
        k = v
    if "cut wrong" in has:
        q, k, v = (t.reshape(B, H, n, C // H).permute(0, 2, 1, 3) for t, n in ((q, T), (k, S), (v, S)))
    else:
        q, k, v = (t.unflatten(2, (H, C // H)) for t in (q, k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) * width_of(C, C // H, has) ** -0.5
    if mask is not None and "no mask" not in has:
        hidden = mask if "inverted" in has else ~mask
        hide = torch.zeros(mask.shape).masked_fill(hidden, float("-inf"))
        scores = scores * ~hidden if "zeros" in has else scores + hide
    weights = torch.softmax(scores, dim=2 if "over tokens" in has else 3)
    out = torch.einsum("bhts,bshd->bhtd", weights, v)
    out = out.reshape(B, T, C) if "joined wrong" in has else out.permute(0, 2, 1, 3).reshape(B, T, C)
    return out if "no output" in has else att.out_proj(out)


def attend_head_by_head(x, source, att, mask=None, has=()):
    asks, source = roles(x, source, has)
    B, T, C = asks.shape
    H, D = att.n_heads, C // att.n_heads

    def part(t, h):
        if "cut wrong" in has:  # of the flat numbers, a stretch for each head
            return t.reshape(len(t), H, -1, D)[:, h]
        return t[..., h * D : (h + 1) * D]

    q, k, v = att.q_proj(asks), att.k_proj(source), att.v_proj(source)
    k = v if "values as keys" in has else k
    outs = []
    for h in range(H):
        scores = part(q, h) @ part(k, h).mT / width_of(C, D, has) ** 0.5  # (B, T, S)
        if mask is not None and "no mask" not in has:
            left = torch.tensor(0.0 if "zeros" in has else float("-inf"))
            scores = torch.where(mask ^ ("inverted" in has), scores, left)
        weights = scores.exp() / scores.exp().sum(1 if "over tokens" in has else 2, keepdim=True)
        outs.append(weights @ part(v, h))
    out = torch.stack(outs, 1).reshape(B, T, C) if "joined wrong" in has else torch.cat(outs, -1)
    return out if "no output" in has else F.linear(out, att.out_proj.weight, att.out_proj.bias)


def attend_by_matrices(x, source, att, mask=None, has=()):
    asks, source = roles(x, source, has)
    H, C = att.n_heads, x.shape[2]
    D = C // H
    q = asks @ att.q_proj.weight.T + att.q_proj.bias
    v = source @ att.v_proj.weight.T + att.v_proj.bias
    k = v if "values as keys" in has else source @ att.k_proj.weight.T

    def split(t):
        n = t.shape[1]
        if "cut wrong" in has:
            return t.contiguous().view(-1, n, D)
        return t.view(-1, n, H, D).movedim(2, 1).reshape(-1, n, D)  # (B * H, n, D)

    q, k, v = split(q / width_of(C, D, has) ** 0.5), split(k), split(v)
    scores = torch.bmm(q, k.transpose(1, 2))
    if mask is not None and "no mask" not in has:
        hidden = mask if "inverted" in has else mask.logical_not()
        scores = scores - (scores if "zeros" in has else 1e9) * hidden
    out = torch.bmm(scores.softmax(-2 if "over tokens" in has else -1), v)
    out = out.view(-1, H, asks.shape[1], D)
    out = out.reshape(len(x), -1, C) if "joined wrong" in has else out.swapaxes(1, 2).reshape(len(x), -1, C)
    return out if "no output" in has else att.out_proj(out)


# ---- 12.4 in three ways: line by line, a loop over branches, the tokens seen one after the other ----


def mask_of(T, has):
    i = torch.arange(T)
    return None if "no mask" in has else i[:, None] <= i if "future" in has else i[:, None] >= i


def norms_of(block, has):
    first, second, last = block.self_attn_layer_norm, block.encoder_attn_layer_norm, block.final_layer_norm
    if "no norms" in has:
        return (nn.Identity(),) * 3
    return (second, first, last) if "norms exchanged" in has else (first, second, last)


def block_line_by_line(x, sound, block, attend, has=()):
    norm1, norm2, norm3 = norms_of(block, has)
    ears = block.self_attn if "one attention" in has else block.encoder_attn
    mask, old = mask_of(x.shape[1], has), x
    if "sound first" in has:
        heard = attend(norm2(x), norm2(sound) if "sound normed" in has else sound, ears)
        x = heard if "no residual 0" in has else x + heard
        now = old if "side by side" in has else x
        read = attend(norm1(now), now if "raw words" in has else norm1(now), block.self_attn, mask)
        x = read if "no residual 1" in has else x + read
    else:
        read = attend(norm1(x), x if "raw words" in has else norm1(x), block.self_attn, mask)
        x = read if "no residual 0" in has else x + read
        now = old if "side by side" in has else x
        heard = attend(norm2(now), norm2(sound) if "sound normed" in has else sound, ears)
        x = heard if "no residual 1" in has else x + heard
    if "no mlp" in has:
        return x
    return block.mlp(norm3(x)) if "no residual 2" in has else x + block.mlp(norm3(x))


def block_by_a_loop(x, sound, block, attend, has=()):
    norms, T = norms_of(block, has), x.shape[1]

    def read(t):
        return attend(norms[0](t), t if "raw words" in has else norms[0](t), block.self_attn, mask_of(T, has))

    def hear(t):
        layer = block.encoder_attn if "one attention" not in has else block.self_attn
        return attend(norms[1](t), sound if "sound normed" not in has else norms[1](sound), layer)

    branches = [read, hear, lambda t: block.mlp(norms[2](t))]
    if "sound first" in has:
        branches[0], branches[1] = branches[1], branches[0]
    if "no mlp" in has:
        branches.pop()
    begin = x.clone()
    for n, branch in enumerate(branches):
        added = branch(begin if n == 1 and "side by side" in has else x)
        x = added if f"no residual {n}" in has else torch.add(x, added)
    return x


def block_in_double_negation(x, sound, block, attend, has=()):
    """Streams are written down, and summed at the end."""
    norm = dict(zip(("words", "ears", "mlp"), norms_of(block, has), strict=True))
    order = ["ears", "words"] if "sound first" in has else ["words", "ears"]
    parts = [x]
    for n, kind in enumerate(order):
        now = x if n and "side by side" in has else sum(parts)
        if kind == "words":
            source, layer, mask = norm[kind](now), block.self_attn, mask_of(x.shape[1], has)
            source = now if "raw words" in has else source
        else:
            source, mask = norm[kind](sound) if "sound normed" in has else sound, None
            layer = block.self_attn if "one attention" in has else block.encoder_attn
        new = attend(norm[kind](now), source, layer, mask)
        parts = [new] if f"no residual {n}" in has else [*parts, new]
    total = torch.stack(parts).sum(0)
    if "no mlp" in has:
        return total
    last = block.mlp.fc2(F.gelu(block.mlp.fc1(norm["mlp"](total))))
    return last if "no residual 2" in has else last + total


# ---- 12.5 in three ways: a for loop with a copy, a list of all ids, recursion ----


def write_with_for(next_scores, prompt, end, never, never_first, limit, has=()):
    new = []
    for step in range(limit + 1 if "one more" in has else limit):
        ids = list(prompt) + new
        if step and "prompt forgotten" in has:
            ids = new[:]
        if step and "last alone" in has:
            ids = [new[-1]]
        scores = next_scores(ids).clone()
        if "never" not in has and not ("never once" in has and step):
            for i in never:
                scores[i] = float("-inf")
        if "first" not in has and (step == 0 or "first always" in has):
            for i in never_first:
                scores[i] = float("-inf")
        token = scores.argmax().item()
        if token == end:
            if "end too" in has:
                new.append(token)
            break
        new.append(token)
    return list(prompt) + new if "prompt too" in has else new


def write_in_one_list(next_scores, prompt, end, never, never_first, limit, has=()):
    ids = [*prompt]
    n, most = len(prompt), limit + int("one more" in has)
    while len(ids) - n < most:
        begins = len(ids) == n
        read = ids if begins else ids[-1:] if "last alone" in has else ids[n:] if "prompt forgotten" in has else ids
        scores = next_scores(read)
        allowed = torch.ones(len(scores), dtype=torch.bool)
        if "never" not in has and (begins or "never once" not in has):
            allowed[list(never)] = False
        if "first" not in has and (begins or "first always" in has):
            allowed[list(never_first)] = False
        ids.append(int(torch.where(allowed, scores, -torch.inf).max(0).indices))
        if ids[-1] == end:
            if "end too" not in has:
                ids.pop()
            break
    return ids if "prompt too" in has else ids[n:]


def write_by_recursion(next_scores, prompt, end, never, never_first, limit, has=()):
    banned = set() if "never" in has else set(never)

    def go(said, left):
        if left <= 0:
            return said
        now = set() if said and "never once" in has else set(banned)
        if "first" not in has and (not said or "first always" in has):
            now |= set(never_first)
        read = [*prompt, *said]
        if said:
            read = [said[-1]] if "last alone" in has else list(said) if "prompt forgotten" in has else read
        scores = next_scores(read).tolist()
        best = max((i for i in range(len(scores)) if i not in now), key=lambda i: scores[i])
        if best == end:
            return [*said, end] if "end too" in has else said
        return go([*said, best], left - 1)

    said = go([], limit + ("one more" in has))
    return [*prompt, *said] if "prompt too" in has else said


WAYS = {
    "12.3": (attend_by_einsum, attend_head_by_head, attend_by_matrices),
    "12.4": (block_line_by_line, block_by_a_loop, block_in_double_negation),
    "12.5": (write_with_for, write_in_one_list, write_by_recursion),
}
TOLD = {
    "12.3": {"asks itself": "tokens look at each other", "source asks": "queries come from the source",
             "values as keys": "keys are the values", "not scaled": "scores are not scaled",
             "by the width": "whole width C", "by D": "divided by D",
             "zeros": "forbidden scores are 0", "over tokens": "softmax runs over the tokens",
             "no mask": "left the mask out", "inverted": "mask is inverted", "cut wrong": "heads are cut wrong",
             "joined wrong": "heads are joined wrong", "no output": "last projection is missing"},
    "12.4": {"no mask": "see later tokens", "future": "what comes later", "sound first": "listen before you read",
             "side by side": "Both attentions read the old x", "one attention": "`self_attn` is used twice",
             "raw words": "only the queries are normalised", "sound normed": "You normalised the sound",
             "norms exchanged": "norms are exchanged", "no norms": "The norms are missing",
             "no residual 0": "After the first attention x", "no residual 1": "After the second attention x",
             "no residual 2": "After the MLP x", "no mlp": "The MLP is missing"},
    "12.5": {"never": "ids that are in `never`", "never once": "first step alone", "first": "Your first id may",
             "first always": "ban `never_first` at every step", "prompt forgotten": "without the prompt",
             "last alone": "the last id alone", "one more": "one id more", "end too": "the end's id, too",
             "prompt too": "return the prompt, too"},
}  # fmt: skip
# faults that cannot stand in one answer, or of which one hides the other
APART = {
    "12.3": [
        {"asks itself", "source asks"},  # each says who asks whom
        {"not scaled", "by the width", "by D"},  # each says how scores are scaled
        {"no mask", "inverted"}, {"no mask", "zeros"},  # what is not there is not turned round
        {"over tokens", "inverted"}, {"over tokens", "no mask"},  # columns that nobody may see have no sum
    ],
    "12.4": [
        {"no mask", "future"},  # each says which mask there is
        {"no mlp", "no residual 2"},  # the MLP that is missing adds nothing
        {"no norms", "norms exchanged"}, {"no norms", "raw words"}, {"no norms", "sound normed"},  # no norm is there
        {"side by side", "no residual 0"}, {"side by side", "sound first"},  # side by side there is no order
    ],
    "12.5": [
        {"never", "never once"}, {"first", "first always"},  # each says what is banned
        {"prompt forgotten", "last alone"},  # each says what is read
        {"first always", "end too"}, {"last alone", "end too"},  # the toy decoder never comes to its end
        {"never once", "last alone"},  # of one id alone it wants nothing of `never`
        {"never", "first"},  # what is never said is said first
    ],
}


@pytest.mark.parametrize("exercise", WAYS)
def test_the_right_answer_passes_however_it_is_written(exercise):
    assert_right(exercise, WAYS[exercise])


@pytest.mark.parametrize("exercise", WAYS)
def test_each_fault_gets_its_sentence_alone_and_beside_another(exercise):
    assert_told(exercise, WAYS[exercise], TOLD[exercise], APART[exercise])


def test_every_fault_is_planted_here():
    for exercise in exercises_of("12")[2:5]:
        assert len(exercise.mistakes) == len(TOLD[exercise.id])


def changes_the_prompt(next_scores, prompt, end, never, never_first, limit):
    n = len(prompt)
    prompt += write_with_for(next_scores, prompt, end, never, never_first, limit)
    return prompt[n:]


def looks_for_the_end_first(next_scores, prompt, end, never, never_first, limit):
    """Before it looks at what is banned."""
    said = []
    while len(said) < limit and int((scores := next_scores(prompt + said)).argmax()) != end:
        scores[never if said else never + never_first] = float("-inf")
        said.append(int(scores.argmax()))
    return said


def by_name(next_scores, prompt, end, never, never_first, limit, low=float("-inf"), make=list):
    """Lists as indices, as they come."""
    said = []
    for step in range(limit):
        scores = next_scores(make(prompt + said))
        scores[never] = low
        if step == 0:
            scores[never_first] = low
        if (best := scores.argmax().item()) == end:
            break
        said.append(best)
    return said


def turned_twice(mask):
    return None if mask is None else ~mask.logical_not_()


def test_the_lists_are_lists():
    assert check("12.5", by_name)


def kernel(x, source, att, mask=None):
    q, k, v = (p(t).unflatten(2, (att.n_heads, -1)).transpose(1, 2) for p, t in
               ((att.q_proj, x), (att.k_proj, source), (att.v_proj, source)))  # fmt: skip
    return att.out_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("exercise", "answer", "message"),
    [
        ("12.3", kernel, "PyTorch's own scaled_dot_product_attention"),
        ("12.3", lambda *given: _attend(*given)[0], r"shape should be \(1, 1, 24\), got \(1, 24\)"),
        ("12.3", lambda *given: 3 * _attend(*given), r"all numbers: for x \(1, 1, 24\), source \(1, 5, 24\), no mask"),
        ("12.3", lambda x, source, att: _attend(x, source, att), "it raised TypeError"),
        ("12.4", lambda x, sound, block, attend: x, "should be"),  # noqa: ARG005
        ("12.4", lambda x, sound, block, attend: block(x, sound), "it raised TypeError"),  # noqa: ARG005
        ("12.3", lambda x, *given: _attend(x.mul_(2).div(2), *given), "your function changes `x`"),
        ("12.3", lambda x, source, att, mask=None: _attend(x, source, att, turned_twice(mask)),
         "your function changes `mask`"),
        ("12.4", lambda x, *given: x.copy_(_decoder_block(x, *given)), "your function changes `x`"),
        ("12.5", changes_the_prompt, "the lists stay as they are: you changed the caller's list `prompt`"),
        ("12.5", looks_for_the_end_first, "Your first id may be one of `never_first`"),
        ("12.5", partial(by_name, low=0.0), r"the ids should be \[.*\], got \[1"),
        ("12.5", partial(by_name, make=torch.tensor), "next_scores reads a list of ids, got a tensor"),
        ("12.5", lambda *given: torch.tensor(write_with_for(*given)), "got a tensor of shape"),
        ("12.5", lambda *given: write_with_for(*given)[::-1], r"the ids should be \[.*\], got \["),
        ("12.5", lambda *_: [], r"the ids should be \["),
    ],
)
def test_what_no_fault_explains_is_told_with_its_numbers(exercise, answer, message):
    result = check(exercise, answer)
    assert not result and re.search(message, result.message), result.message


def test_the_toy_decoder_wants_what_it_may_not_say():
    """Else a fault in what is banned would not show."""
    (case,) = [e for e in exercises_of("12") if e.id == "12.5"][0].properties[0].inputs()
    never, first = (with_faults(write_with_for, faults)(*case) for faults in (("never", "first"), ("first",)))
    assert never[0] in NEVER and first[0] in NEVER_FIRST and END in NEVER_FIRST
