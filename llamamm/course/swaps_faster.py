"""What lesson 19 has the learner write, beside the package's own: a block of SmolLM2 in whole numbers, its guesses
checked, its gradient from two halves of a batch. Each function takes an answer and gives a verdict.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.course.swap import QUESTION, _answer, real_model
from llamamm.course.swaps_verdict import SAME, Verdict
from llamamm.fast.quantized import QuantizedLinear, rounded
from llamamm.generation.generate import TokenStream
from llamamm.generation.speculation import look_up

GROUP = 32
COPY = "one two three four five six. one two three four"
N_NEW = 12  # tokens
TEXTS = ("The sky is blue.", "A river begins as a spring on a hillside, and nobody who steps over it would guess.")


@torch.no_grad()
def quantized(answer: Any) -> Verdict:
    """19.2: the linears of the first block, rounded; afterwards its weights are as they were."""
    model, _ = real_model()
    weights = [m.weight for m in model.layers[0].modules() if isinstance(m, torch.nn.Linear)]
    before, equal, n = [w.clone() for w in weights], 0, 0
    try:
        for weight in weights:
            codes, scales = answer(weight.clone(), GROUP)
            theirs, _ = rounded(weight, 8, GROUP)
            equal, n = equal + int((codes == theirs).sum()), n + theirs.numel()
            weight.copy_((codes.float().view(len(codes), -1, GROUP) * scales.float()[..., None]).view(weight.shape))
        text = _answer(*real_model(), QUESTION, N_NEW)
    finally:
        for weight, old in zip(weights, before, strict=True):
            weight.copy_(old)
    begin = f"SmolLM2, its first block in your codes: {text!r} · {equal / n:.1%} of them are the package's: "
    close = equal >= 0.98 * n
    return Verdict(close, begin + (SAME if close else "different weights"))


@torch.no_grad()
def row_product(answer: Any) -> Verdict:
    """19.3: the keys of the first block, a row at a time."""
    model, tokenizer = real_model()
    layer = model.layers[0]
    x = layer.input_layernorm(model.embed_tokens(torch.tensor(tokenizer.encode(QUESTION)[-1:])))  # (1, C)
    weight = layer.self_attn.k_proj.weight
    codes, scales = (t.numpy() for t in rounded(weight, 8, GROUP))
    row = x[0].numpy()
    ours = torch.tensor([float(answer(c, s, row)) for c, s in zip(codes, scales.astype("float32"), strict=True)])
    theirs = QuantizedLinear.of(weight, bits=8, group=GROUP)(x)[0]
    off = float((ours - theirs).abs().max())
    begin = f"SmolLM2, {len(ours)} rows of the first block's keys: your row_product is at most {off:.1e} off: "
    close = off < 1e-3
    return Verdict(close, begin + (SAME if close else "a different product"))


@torch.inference_mode()
def agreed(answer: Any) -> Verdict:
    """19.4: greedy tokens with guesses, and without."""
    model, tokenizer = real_model()
    prompt = tokenizer.encode(COPY)
    theirs = [int(t) for t in TokenStream(model, torch.tensor([prompt]), max_new_tokens=N_NEW)]
    ids, cache, calls = [*prompt], model.make_cache(1, len(prompt) + 2 * N_NEW), 0
    while len(ids) < len(prompt) + N_NEW:
        guess = look_up(ids, 6)
        read = torch.tensor([ids[cache.length :] + guess])
        choices = model(read, cache=cache)[0, -len(guess) - 1 :].argmax(dim=-1).tolist()
        new = [int(t) for t in answer([*guess], [*choices])]
        if not new:
            return Verdict(False, "SmolLM2 with your agreed: a call ends without a token, so it would call for ever")
        ids, calls = ids + new, calls + 1
        cache.rewind(min(cache.length, len(ids) - 1))
    ours = ids[len(prompt) :][:N_NEW]
    begin = f"SmolLM2 goes on with {tokenizer.decode(ours)!r}: {N_NEW} tokens in {calls} calls with your agreed: "
    if ours != theirs:
        return Verdict(False, begin + f"a different text; without guesses it is {tokenizer.decode(theirs)!r}")
    return Verdict(calls < N_NEW, begin + ("the same" if calls < N_NEW else "the same text, and no call saved"))


def joined_gradient(answer: Any) -> Verdict:
    """19.5: the last norm's gradient, of two texts of unequal length."""
    model, tokenizer = real_model()
    texts = [torch.tensor(tokenizer.encode(text)) for text in TEXTS]

    def gradient(some: list[Tensor]) -> Tensor:
        losses = [F.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="sum") for ids in some]
        return torch.autograd.grad(sum(losses) / sum(len(ids) - 1 for ids in some), model.norm.weight)[0]

    theirs = gradient(texts)
    counts = [len(ids) - 1 for ids in texts]
    ours = answer([gradient([ids]) for ids in texts], [*counts])
    off = float((ours - theirs).abs().max() / theirs.abs().max())
    begin = f"SmolLM2, texts of {counts[0]} and {counts[1]} tokens: your gradient is off by {off:.1e} of the largest: "
    close = off < 1e-3
    return Verdict(close, begin + (SAME if close else "not that of both texts at once"))


SWAPS = {"19.2": quantized, "19.3": row_product, "19.4": agreed, "19.5": joined_gradient}
