"""What a model answers to many questions, and how sure a share of right answers is.

    answers          greedy answers to conversations, with pictures and sounds in them, several at a time
    plain_words      an answer as it is compared: small letters, no punctuation
    says             whether an answer has a word that is right, "4|four"
    word_errors      words put in, taken out or changed, the least that turns one text into the other
    interval         of a mean or of a rate, from items drawn again by groups (the bootstrap)
    wilson           the same for a share of independent items, by a formula
    bits_per_byte    of texts without anything seen or heard

Sources: the percentile bootstrap, Efron 1979, https://doi.org/10.1214/aos/1176344552; over groups, so that five
questions about one picture count as the one picture that they are. Used in notebooks 14 and 16.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llamamm.errors import InputError
from llamamm.generation.generate import generate
from llamamm.generation.prompts import Conversation, Processor, as_processor
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer

DRAWS = 1000  # of a bootstrap
AT_ONCE = 64  # prompts that are sorted by their lengths


def answers(
    model: Llama3Model, reader: Tokenizer | Processor, asked: Sequence[Conversation], *,
    max_new_tokens: int = 24, batch_size: int = 16, say: Callable[[int], None] = lambda _n: None,
) -> list[str]:  # fmt: skip
    """The greedy answer to each conversation, in their order; the longest prompts are read first, like with like.

    say: told after each batch how many are answered. Raises InputError.
    """
    processor, device = as_processor(reader), model.embed_tokens.weight.device
    stop_ids, found = processor.tokenizer.stop_ids, [""] * len(asked)
    for first in range(0, len(asked), AT_ONCE):  # so many prompts are in memory, with what is seen and heard
        prompts = [processor.chat(messages) for messages in asked[first : first + AT_ONCE]]
        order = sorted(range(len(prompts)), key=lambda n: -len(prompts[n].ids))
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            ids, padding, inputs = processor.batch([prompts[row] for row in rows])
            inputs = {key: value.to(device) for key, value in inputs.items()}
            out = generate(model, ids.to(device), max_new_tokens, padding=padding.to(device), inputs=inputs,
                           stop_ids=stop_ids)  # fmt: skip
            for row, tokens in zip(rows, out[:, ids.shape[1] :].tolist(), strict=True):
                end = next((i for i, token in enumerate(tokens) if token in stop_ids), None)
                found[first + row] = processor.tokenizer.decode(tokens[:end]).strip()
            say(first + begin + len(rows))
    return found


def plain_words(text: str) -> list[str]:
    """"A red apple." to ["a", "red", "apple"]."""
    return re.findall(r"[a-z0-9']+", text.lower().replace("’", "'"))


def says(answer: str, key: str) -> bool:
    """Whether one of the key's words, "4|four", is among the answer's words: "It is 4." is right."""
    return not {*key.split("|")}.isdisjoint(plain_words(answer))


def word_errors(said: Sequence[Hashable], heard: Sequence[Hashable]) -> int:
    """Levenshtein's distance of two lists of words: put in, taken out or changed, each 1."""
    row = list(range(len(heard) + 1))
    for n, word in enumerate(said, start=1):
        last, row[0] = row[0], n
        for k, other in enumerate(heard, start=1):
            last, row[k] = row[k], min(last + (word != other), row[k] + 1, row[k - 1] + 1)
    return row[-1]


@dataclass(frozen=True)
class Interval:
    """A figure of n items, and where it lies in 95 of 100 sets drawn like this one."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%}, n = {self.n:,})"


def interval(
    parts: Sequence[float], wholes: Sequence[float] | None = None, *, groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Interval:  # fmt: skip
    """sum(parts) / sum(wholes), with its interval. parts: right or wrong of each item, or its errors; wholes: 1 each,
    or its words. groups: items of one group are drawn together; by default each is its own. Raises InputError."""
    if not len(parts):
        raise InputError("an interval needs at least one item")
    wholes = [1.0] * len(parts) if wholes is None else wholes
    names = list(dict.fromkeys(range(len(parts)) if groups is None else groups))
    place = {name: n for n, name in enumerate(names)}
    sums = np.zeros((len(names), 2))
    for n, (part, whole) in enumerate(zip(parts, wholes, strict=True)):
        sums[place[n if groups is None else groups[n]]] += part, whole
    generator = np.random.Generator(np.random.PCG64(seed))
    drawn = sums[generator.integers(len(names), size=(DRAWS, len(names)))].sum(axis=1)  # (DRAWS, 2)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return Interval(float(sums[:, 0].sum() / sums[:, 1].sum()), float(low), float(high), len(parts))


def wilson(right: int, n: int) -> tuple[float, float]:
    """The ends of the 95 % interval of a share, right of n independent items; it holds near 0 and 1, too.

    Source: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953.
    """
    z, share = 1.96, right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


@torch.no_grad()
def bits_per_byte(model: Llama3Model, tokenizer: Tokenizer, texts: Sequence[str], *, length: int = 256) -> list[float]:
    """Of the first `length` tokens of each text, without its first token: bits by the bytes that they are."""
    found = []
    for text in texts:
        tokens = tokenizer.encode(text, bos=tokenizer.adds_bos)[:length]
        ids = torch.tensor([tokens], device=model.embed_tokens.weight.device)
        if ids.shape[1] < 2:
            raise InputError(f"{text!r} is a text of one token: nothing is predicted")
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1).float(), ids[0, 1:], reduction="sum").item()
        found.append(loss / math.log(2) / len(tokenizer.decode(ids[0, 1:].tolist()).encode()))
    return found
