"""How well a model foretells held-out text: bits per byte and perplexity, over texts longer than its context.

    perplexity        2 ** (bits / tokens): among how many equally likely tokens the model is in doubt, on average
    bits per byte     bits / bytes: the same for models with other tokenizers, where a perplexity is not comparable

A text is read in windows of `length` tokens, each `stride` tokens further than the one before, and of each window only
those tokens are scored that no earlier one has scored:

    length 6, stride 2      a b c d e f g h i
                            . B C D E F              capital: scored here; point: nothing comes before it
                                . . . . G H
                                    . . . . I

So each token is scored once, with `length - stride` tokens or more before it, where the text has so many. A small
stride costs time (length / stride times as much) and gives a lower figure, for there is more to read before each token.
State both with a figure. The first token of a text is scored where the tokenizer begins texts with BOS, else there is
nothing to foretell it from, and it is left out, its bytes as well. Only the first window holds the BOS.

    token_bits    (B, T) ids -> bits of each token but the first, for windows of one length
    windows       where the windows of a text lie
    read_texts    model, tokenizer, texts -> a Reading of each: bits, bytes, tokens
    bits_per_byte a quick look: of the first tokens of each text, in one window

Source: Hugging Face, "Perplexity of fixed-length models", https://huggingface.co/docs/transformers/perplexity. Used in
notebooks 16 and 17.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.errors import ContextOverflowError, InputError
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.losses import CHUNK_BYTES, MIN_CHUNK

LENGTH = 1024  # tokens of a window, where the context is not shorter


@dataclass(frozen=True)
class Reading:
    """What a model needed for some text: bits in all, of the n_tokens that were scored, which are n_bytes of UTF-8.

    Readings add up: `sum(readings, Reading())` is that of all texts.
    """

    bits: float = 0.0
    n_bytes: int = 0
    n_tokens: int = 0

    def __add__(self, other: Reading) -> Reading:
        return Reading(self.bits + other.bits, self.n_bytes + other.n_bytes, self.n_tokens + other.n_tokens)

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.n_bytes

    @property
    def perplexity(self) -> float:
        return 2.0 ** (self.bits / self.n_tokens)


@dataclass(frozen=True)
class Window:
    """Tokens begin to end of a text; those from `first` on are scored."""

    begin: int
    end: int
    first: int


def windows(n_tokens: int, *, length: int, stride: int) -> list[Window]:
    """The windows of a text of n_tokens; together they score all but token 0, each once. Raises InputError."""
    if not 1 <= stride < length:
        raise InputError(f"the stride is 1 to length - 1 tokens, so that something comes before each; got stride "
                         f"{stride} for windows of {length}")
    found = [Window(0, min(length, n_tokens), 1)]
    while found[-1].end < n_tokens:
        begin, done = found[-1].begin + stride, found[-1].end
        found.append(Window(begin, min(begin + length, n_tokens), done))
    return found


def read_texts(
    model: Llama3Model, tokenizer: Tokenizer, texts: Sequence[str], *, length: int | None = None,
    stride: int | None = None, batch_size: int = 8, say: Callable[[int], None] = lambda _n: None,
) -> list[Reading]:  # fmt: skip
    """A Reading of each text. length: tokens of a window, by default 1,024 or the context where that is shorter;
    stride: by default half of it; batch_size: windows at a time; say: told after each batch how many are read.

    Raises InputError for a stride that leaves no context and for a text of which no token can be scored,
    ContextOverflowError for a length over the model's context.
    """
    context = model.cfg.context_length
    length = min(LENGTH, context) if length is None else length
    if length > context:
        raise ContextOverflowError(f"windows of {length:,} tokens pass the context of {context:,}; take shorter ones")
    stride = max(1, length // 2) if stride is None else stride
    ids = [tokenizer.encode(text, bos=tokenizer.adds_bos) for text in texts]
    for text, tokens in zip(texts, ids, strict=True):
        if len(tokens) < 2:
            raise InputError(f"{text!r} has {len(tokens)} tokens: none has one before it that foretells it")
    todo = [(n, w) for n, tokens in enumerate(ids) for w in windows(len(tokens), length=length, stride=stride)]
    todo.sort(key=lambda item: item[1].begin - item[1].end)  # alike in length; the longest first: memory runs out soon
    bits = [0.0] * len(texts)
    for begin in range(0, len(todo), batch_size):
        some = todo[begin : begin + batch_size]
        rows = [ids[n][window.begin : window.end] for n, window in some]
        found = token_bits(model, rows, [window.first - window.begin for _, window in some])
        for (n, _), row in zip(some, found, strict=True):
            bits[n] += float(row.sum())
        say(begin + len(some))
    return [
        Reading(total, len(text.encode("utf-8", "replace")) - _unscored_bytes(tokenizer, tokens), len(tokens) - 1)
        for total, text, tokens in zip(bits, texts, ids, strict=True)
    ]


def _unscored_bytes(tokenizer: Tokenizer, tokens: Sequence[int]) -> int:
    return 0 if tokenizer.adds_bos else len(tokenizer.token_bytes(tokens[0]))


def bits_per_byte(model: Llama3Model, tokenizer: Tokenizer, texts: Sequence[str], *, length: int = 256) -> list[float]:
    """Of the first `length` tokens of each text, without its first token: bits by the bytes that they are."""
    found = []
    for text in texts:
        tokens = tokenizer.encode(text, bos=tokenizer.adds_bos)[:length]
        if len(tokens) < 2:
            raise InputError(f"{text!r} is a text of one token: nothing is predicted")
        (bits,) = token_bits(model, [tokens], [1])
        found.append(float(bits.sum()) / sum(len(tokenizer.token_bytes(token)) for token in tokens[1:]))
    return found


@torch.no_grad()
def token_bits(model: Llama3Model, rows: Sequence[Sequence[int]], first: Sequence[int]) -> list[Tensor]:
    """-log2 p of the tokens of each row from its `first` on, 1 or more. -> for each row float64 (len(row) - first,).

    Shorter rows are filled up on the right, where no token looks. Only what predicts a scored token goes through the
    head, a few rows of logits at a time: those of 8 windows of 1,024 tokens over SmolLM2's words would take 1.6 GB.
    """
    device = model.embed_tokens.weight.device
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)  # (B, T)
    scored = torch.zeros_like(ids, dtype=torch.bool)
    for n, (row, begin) in enumerate(zip(rows, first, strict=True)):
        ids[n, : len(row)] = torch.tensor(row)
        scored[n, begin : len(row)] = True
    hidden = model.hidden_states(ids[:, :-1].to(device))  # (B, T - 1, C)
    hidden = hidden[scored[:, 1:].to(device)]  # (N, C): row by row
    targets = ids[scored].to(device)  # (N,)
    chunk = max(MIN_CHUNK, CHUNK_BYTES // (4 * model.cfg.vocab_size))
    found = [
        F.cross_entropy(model.lm_head(some).float(), right, reduction="none")
        for some, right in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    bits = torch.cat(found).double().cpu() / math.log(2)  # (N,)
    return list(bits.split([len(row) - begin for row, begin in zip(rows, first, strict=True)]))
