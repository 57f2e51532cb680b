"""What lessons 00 to 06 have the learner write, put into SmolLM2. Each function takes an answer and gives a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, lru_cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from llamamm.course.swap import QUESTION, real_model, state_of, swap
from llamamm.course.swaps_verdict import ROUNDING, SAME, Verdict, apart, distance, of_answers
from llamamm.errors import ContextOverflowError, SamplingError
from llamamm.generation.generate import TokenStream, pad_left
from llamamm.text.attention import readable_attention
from llamamm.text.chat import ChatML, chat_format
from llamamm.text.config import RopeScaling
from llamamm.text.masks import build_mask, causal_mask
from llamamm.text.model import Llama3Model, TransformerBlock
from llamamm.text.rope import rope_frequencies

Swap = Callable[[Any], Verdict]
QUESTIONS = (QUESTION, "What is 2 + 2?")
N_NEW = 12  # the right answer is whole with 8
LATER = 4  # so many tokens of a padded question come when the others are cached
STRETCH = RopeScaling(32.0, 1.0, 4.0, 8192)
MASK_PLACE = "llamamm.text.model.build_mask"


def put_in(what: str, **parts: Any) -> Verdict:
    """The verdict on parts in the places that `swap` knows."""
    with swap(quiet=True, max_new_tokens=N_NEW, **parts) as report:
        return of_answers(f"SmolLM2 with your {what}", report.logit_difference, report.text, report.text_before)


def in_place(what: str, place: str) -> Swap:
    """A swap of one part as it is."""
    return lambda answer: put_in(what, **{place: answer})


# ---- 00, 01: the loop, the prompt ----


@cache
def prompt(question: str = QUESTION) -> tuple[int, ...]:
    """A question as ids, with the mark of the answer to come."""
    return tuple(chat_format(real_model()[1]).encode([{"role": "user", "content": question}]))


@torch.no_grad()
def new_ids(ids: list[int], n: int | None = None) -> list[int]:
    """The package's own greedy answer, N_NEW ids at most or n."""
    model, tokenizer = real_model()
    stream = TokenStream(model, torch.tensor([ids]), max_new_tokens=n or N_NEW, stop_ids=tokenizer.stop_ids)
    return [i for i in (int(token) for token in stream) if i not in tokenizer.stop_ids]


def package_ids(question: str = QUESTION, n: int | None = None) -> list[int]:
    """`new_ids` of a question to the model as it is, the same each time."""
    return list(_package_ids(question, n or N_NEW, state_of(real_model()[0])))


@lru_cache(maxsize=32)
def _package_ids(question: str, n: int, _state: tuple) -> list[int]:
    return new_ids(list(prompt(question)), n)


@torch.no_grad()
def greedy(answer: Any) -> Verdict:
    """00.3: the whole answer, and one that is cut after two ids."""
    model, tokenizer = real_model()
    ids, right = list(prompt()), package_ids()

    def answered(n: int) -> list[int]:
        return [int(i) for i in answer(lambda read: model(torch.tensor([list(read)]), last_only=True)[0, -1], ids,
                                       frozenset(tokenizer.stop_ids), n)]  # fmt: skip

    new = answered(9)
    begin = f"SmolLM2 with your greedy: {tokenizer.decode(new)!r} · {len(new)} new ids, "
    if new != right:
        return Verdict(False, f"{begin}the package gives {len(right)}, {tokenizer.decode(right)!r}: not the same")
    if (short := answered(2)) != right[:2]:
        return Verdict(False, f"{begin}the package's own; but asked for 2 it gives {len(short)}: not the same")
    if ids != list(prompt()):
        return Verdict(False, f"{begin}the package's own; but the caller's list of ids has changed")
    return Verdict(True, f"{begin}each of them the package's own: the same")


def chatml_ids(answer: Any) -> Verdict:
    """01.2"""
    tokenizer = real_model()[1]
    messages = [{"role": "system", "content": "Answer in one sentence."},
                {"role": "user", "content": "What does <|im_end|> mean?"},
                {"role": "assistant", "content": "It ends a turn."}, {"role": "user", "content": QUESTION}]  # fmt: skip
    right = ChatML(tokenizer, default_system=None).encode(messages)
    ids = [int(i) for i in answer(tokenizer, messages)]
    if ids == right:
        said = tokenizer.decode(new_ids(ids))
        return Verdict(True, f"SmolLM2 reads your {len(ids)} ids: {said!r} · they are the package's own: the same")
    pairs = enumerate(zip(ids, right, strict=False))
    first = next((n for n, (a, b) in pairs if a != b), min(len(ids), len(right)))
    yours, ours = (tokenizer.decode(part[first : first + 4]) for part in (ids, right))
    said = repr(tokenizer.decode(new_ids(ids))) if ids else "nothing to read"
    return Verdict(False, f"SmolLM2 reads your {len(ids)} ids: {said} · a different prompt from id {first} on: yours "
                          f"goes on with {yours!r}, the package's with {ours!r}")  # fmt: skip


# ---- 03: attention, masks ----


def grouped_attention(answer: Any) -> Verdict:
    """03.3"""
    return put_in("grouped_attention", attention=lambda q, k, v, mask: answer(q, k, v, _whole(mask, q, k)))


def _whole(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor:
    """The mask as it is, or what None stands for."""
    return causal_mask(q.shape[2], start=k.shape[2] - q.shape[2]) if mask is None else mask


def softmax(answer: Any) -> Verdict:
    """03.1. Beside the question, a padded row whose first places see nothing at all."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        return answer(scores.masked_fill(~_whole(mask, q, k), -math.inf)) @ v

    model, but = real_model()[0], ""
    ids, padding = pad_left([list(prompt()), list(prompt("Why?")) + list(prompt())])
    with torch.no_grad():
        alone = model(torch.tensor([prompt()]), last_only=True)
        with swap(quiet=True, max_new_tokens=N_NEW, attention=attend) as report:
            with patch(MASK_PLACE, _nothing_for_padding):
                padded = model(ids, padding=padding, last_only=True)[:1]
    if not report.logit_difference > ROUNDING and not apart(padded, alone) <= ROUNDING:
        but = "a padding position, whose scores are all minus infinity, spoils the whole text"
    return of_answers("SmolLM2 with your softmax", report.logit_difference, report.text, report.text_before, but=but)


def _nothing_for_padding(n_queries: int, *, start: int = 0, padding: Tensor, **_: Any) -> Tensor:
    return (causal_mask(n_queries, start=start) & padding[:, None, :])[:, None]


def mask(answer: Any) -> Verdict:
    """03.2"""
    return put_in("causal_mask", mask=lambda n, *, start=0, **_: answer(n, start)[None, None])


@torch.no_grad()
def padded(answer: Any) -> Verdict:
    """03.4: two questions of different length in one batch, beside one at a time; read at once, and in two pieces."""
    model, tokenizer = real_model()
    prompts = [list(prompt(question)) for question in QUESTIONS]
    alone = torch.cat([model(torch.tensor([ids]))[:, -LATER:] for ids in prompts])
    right = [tokenizer.decode(package_ids(question)) for question in QUESTIONS]

    def made(n_queries: int, *, start: int = 0, padding: Tensor | None = None, **_: Any) -> Tensor | None:
        return build_mask(n_queries, start=start) if padding is None else answer(padding, start)

    ids, padding = pad_left(prompts)
    with ExitStack() as stack:
        stack.enter_context(patch(MASK_PLACE, made))
        for layer in model.layers:  # the fused kernel hides what a softmax over nothing does
            stack.enter_context(patch.object(layer.self_attn, "attend", readable_attention))
        at_once = apart(model(ids, padding=padding)[:, -LATER:], alone)
        memory = model.make_cache(len(ids), max_length=ids.shape[1])
        model(ids[:, :-LATER], padding=padding[:, :-LATER], cache=memory)
        later = apart(model(ids[:, -LATER:], padding=padding, cache=memory), alone)
        difference = math.nan if math.isnan(at_once + later) else max(at_once, later)
        stream = TokenStream(model, ids, padding=padding, max_new_tokens=N_NEW, stop_ids=tokenizer.stop_ids)
        texts = [] if math.isnan(difference) else _texts(stream)
    who = "SmolLM2 with your build_mask, two questions in one batch"
    if math.isnan(difference):
        return Verdict(False, f"{who}: its logits are NaN; does a padding position see nothing at all?")
    begin = f"{who}: {' / '.join(map(repr, texts))} · {distance(difference)} from one question at a time: "
    if difference <= ROUNDING and texts == right:
        return Verdict(True, begin + SAME)
    if at_once <= ROUNDING < later:
        return Verdict(False, f"{begin}right while start is 0, a different model as soon as tokens are cached; does "
                              f"each part of the mask count from start?")  # fmt: skip
    return Verdict(False, f"{begin}a different model; one at a time they give {' / '.join(map(repr, right))}")


def _texts(stream: TokenStream) -> list[str]:
    tokenizer = real_model()[1]
    try:
        rows = torch.stack(list(stream), dim=1).tolist()
    except SamplingError:
        return ["(NaN)"]
    return [tokenizer.decode([i for i in row if i not in tokenizer.stop_ids]) for row in rows]


# ---- 04: RoPE ----


def _tables(model: Llama3Model, freqs: Tensor) -> dict[str, Tensor]:
    """The model's buffers, made from frequencies."""
    angles = torch.outer(torch.arange(model.cfg.context_length).float(), freqs.float())
    angles = torch.cat((angles, angles), dim=-1)
    return {"cos": angles.cos(), "sin": angles.sin()}


@torch.no_grad()
def _turned(freqs: Tensor) -> tuple[Tensor, str]:
    """The logits of the question and the answer of a SmolLM2 that turns by these frequencies."""
    model, tokenizer = real_model()
    with patch.dict(model._buffers, _tables(model, freqs)):
        logits = model(torch.tensor([prompt()]))
        said = "" if logits.isnan().any() else tokenizer.decode(new_ids(list(prompt())))
    return logits, said


def _package_turned(scaling: RopeScaling | None = None) -> tuple[Tensor, str]:
    return _package_tables(scaling, N_NEW)


@cache
def _package_tables(scaling: RopeScaling | None, _n_new: int) -> tuple[Tensor, str]:
    cfg = real_model()[0].cfg
    return _turned(rope_frequencies(cfg.head_dim, theta=cfg.rope_theta, scaling=scaling))


def frequencies(answer: Any) -> Verdict:
    """04.2"""
    cfg = real_model()[0].cfg
    logits, said = _turned(answer(cfg.head_dim, cfg.rope_theta))
    right, package = _package_turned()
    return of_answers("SmolLM2 with your rope_frequencies", apart(logits, right), said, package)


def stretched(answer: Any) -> Verdict:
    """04.5: SmolLM2 with its reach stretched from 8,192 tokens 32-fold, beside the package's stretch."""
    cfg = real_model()[0].cfg
    plain = rope_frequencies(cfg.head_dim, theta=cfg.rope_theta)
    theirs = rope_frequencies(cfg.head_dim, theta=cfg.rope_theta, scaling=STRETCH)
    yours = answer(cfg.head_dim, cfg.rope_theta, 32.0, 8192)
    logits, said = _turned(yours)
    right, package = _package_turned(STRETCH)
    verdict = of_answers("SmolLM2 with your llama3_frequencies", apart(logits, right), said, package)
    off = float((yours / theirs - 1).abs().max())
    if verdict.same and off > 1e-4:
        return Verdict(False, f"{verdict.line}, but on longer texts it is not: a frequency is {100 * off:.2g}% off")
    if not verdict.same:
        return verdict
    unstretched, alike = _package_turned()[0], _turned(plain / 32)[0]
    return Verdict(True, f"{verdict.line}. The rule itself moves SmolLM2's logits by up to "
                         f"{apart(logits, unstretched):.2g}; slowing every pair down would move them by up to "
                         f"{apart(alike, unstretched):.2g}")  # fmt: skip


# ---- 05, 06: cache, block ----


@torch.no_grad()
def reserved(answer: Any) -> Verdict:
    """05.3: the question as it is, and then one token more than there is room for."""
    verdict = put_in("ReservedCache", cache=answer)
    if not verdict.same:
        return verdict
    model = real_model()[0]
    with patch("llamamm.text.model.KVCache", answer):
        memory = model.make_cache(max_length=8)
        model(torch.tensor([prompt()[:8]]), cache=memory)
        try:
            model(torch.tensor([prompt()[8:9]]), cache=memory)
        except ContextOverflowError:
            return Verdict(True, f"{verdict.line}; a ninth token in 8 places is refused")
    return Verdict(False, f"{verdict.line}, but a ninth token in 8 places is not refused")


@torch.no_grad()
def block(answer: Any) -> Verdict:
    """06.2. It knows no cache, so the model reads everything again at each step."""
    model, tokenizer = real_model()

    def forward(self: nn.Module, x: Tensor, cos: Tensor, sin: Tensor, **_: Any) -> Tensor:
        return answer(self, x, cos, sin)

    ids = torch.tensor([prompt()])
    right, package = model(ids), tokenizer.decode(package_ids(n=7))
    with patch.object(TransformerBlock, "forward", forward):
        logits, text = model(ids), ""
        if not logits.isnan().any():
            stream = TokenStream(model, ids, max_new_tokens=7, stop_ids=tokenizer.stop_ids, use_cache=False)
            text = tokenizer.decode([i for i in map(int, stream) if i not in tokenizer.stop_ids])
    difference = apart(logits, right)
    return of_answers("SmolLM2 with your block_forward", difference, text, package)


SWAPS: dict[str, Swap] = {
    "00.3": greedy,
    "01.2": chatml_ids,
    "02.1": in_place("rms_norm", "norm"),
    "02.3": in_place("swiglu", "feed_forward"),
    "03.1": softmax,
    "03.2": mask,
    "03.3": grouped_attention,
    "03.4": padded,
    "04.2": frequencies,
    "04.3": in_place("apply_rope", "rope"),
    "04.5": stretched,
    "05.2": in_place("GrowingCache", "cache"),
    "05.3": reserved,
    "06.2": block,
}
