"""Speculation: guess the next tokens cheaply, let the model read all of them in one call, and keep those that it agrees
with.

    ids -> Draft.propose -> guessed tokens (n) -> the model, one call -> scores (n + 1, V) -> 1 to n + 1 tokens

One call for n + 1 tokens reads the weights once. What the model would not have said is dropped, and the cache is
rewound to what is left, so the text is the model's own: greedy text token for token, drawn text by its distribution.

Sources: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", arXiv:2211.17192, and Chen et
al., arXiv:2302.01318, for the rule and the formula; Saxena, "Prompt Lookup Decoding", 2023, for guesses without a draft
model. Built in notebook 19.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from llamamm.errors import InputError, SamplingError
from llamamm.generation.sampling import SamplingConfig, filter_logits, penalize_repetition, sample

if TYPE_CHECKING:
    from llamamm.text.model import Llama3Model

FEWEST, MOST = 16, 32  # tokens of a guess: twice as many after each that was right to its end
LOAN, INCOME = 6.0, 1 / 32  # one-token steps that "auto" may lose at first, and for each token on


class Guess(NamedTuple):
    """tokens: what may come next. probs: (n, V), what each was drawn from; None: they were not drawn."""

    tokens: list[int]
    probs: Tensor | None = None


class Draft(Protocol):
    """What guesses."""

    def propose(
        self, ids: list[int], n: int, sampling: SamplingConfig, generator: torch.Generator | None
    ) -> Guess:
        """At most n tokens to follow ids, the prompt and the answer so far; none where there is nothing to guess."""
        ...


Speculate = Literal["off", "auto", "lookup"] | Draft


# ---- the guess ----


def look_up(ids: Sequence[int], n: int, *, size: int = 3) -> list[int]:
    """What followed the last time that the text said its last `size` tokens: at most n tokens, none where it did not.

    Three, since two were said before too often by chance: then a guess costs more than it saves.
    """
    end = ids[-size:]
    for at in range(len(ids) - size - 1, -1, -1):  # the latest place first
        if ids[at] == end[0] and ids[at : at + size] == end:
            return list(ids[at + size : at + size + n])
    return []


class Lookup:
    """A draft without a model: `look_up` in the prompt and the answer."""

    def propose(
        self, ids: list[int], n: int, sampling: SamplingConfig, generator: torch.Generator | None  # noqa: ARG002
    ) -> Guess:
        """As `Draft`. Nothing is drawn."""
        return Guess(look_up(ids, n))


# ---- the rule ----


def accept(guess: Sequence[int], q: Tensor, p: Tensor, generator: torch.Generator | None = None) -> list[int]:
    """Draw from the model's distributions by way of a guess that was drawn from others. -> 1 to n + 1 tokens.

    guess: n tokens, drawn from q (n, V); p (n + 1, V): the model's own in their places, and after all of them.
    A token stays with probability min(1, p / q). Instead of the first that does not, one is drawn from what p has more
    of than q, and together that is p: arXiv:2211.17192, appendix A.1.
    """
    tokens: list[int] = []
    for n, token in enumerate(guess):
        chance = torch.rand((), generator=generator, device=p.device)
        if chance * q[n, token] >= p[n, token]:
            more = (p[n] - q[n]).clamp(min=0)
            rest = more if more.any() else p[n]  # all 0 by rounding alone: p and q are the same
            return [*tokens, int(torch.multinomial(rest, 1, generator=generator))]
        tokens.append(token)
    return [*tokens, int(torch.multinomial(p[len(guess)], 1, generator=generator))]


def choose(
    logits: Tensor, guess: Guess, sampling: SamplingConfig, *, seen: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> list[int]:  # fmt: skip
    """The model's next tokens, 1 to n + 1, from its scores (n + 1, V) after the last token and each guessed one.

    seen: (1, V) bool, for the repetition penalty, of the text before the guess; it is not changed.
    Where nothing was drawn for the guess, the model chooses as it does without one, for as long as its choices are the
    guess: with the same seed it says the same. Raises SamplingError as `sample`.
    """
    if guess.probs is not None and sampling.temperature > 0:
        return accept(guess.tokens, guess.probs, probabilities(logits, guess.tokens, sampling, seen), generator)
    seen, tokens = None if seen is None else seen.clone(), []
    for row, guessed in zip(logits.split(1), [*guess.tokens, None], strict=True):
        tokens.append(int(sample(row, sampling, seen=seen, generator=generator)))
        if tokens[-1] != guessed:
            break
        if seen is not None:
            seen[0, guessed] = True
    return tokens


def probabilities(logits: Tensor, tokens: Sequence[int], sampling: SamplingConfig, seen: Tensor | None) -> Tensor:
    """What `sample` would draw from in each place of a text that goes on with tokens: (n + 1, V) of scores (n + 1, V).

    In each place the repetition penalty counts the tokens before it. Raises SamplingError for NaN and infinite scores.
    """
    if seen is not None:
        seen = seen.repeat(len(logits), 1)
        for n, token in enumerate(tokens):
            seen[n + 1 :, token] = True
        logits = penalize_repetition(logits, seen, sampling.repetition_penalty)
    probs = filter_logits(logits, sampling).softmax(dim=-1)
    if probs.isnan().any():
        raise SamplingError("the model's scores are NaN or infinite; take float32, and let `llamamm doctor FILE` look "
                            "for damaged weights")
    return probs


# ---- when it pays ----


class Speculator:
    """A draft, and how many tokens it is asked for.

    With an account ("auto") it is asked only while guessing has not cost more than it has saved, in one-token steps as
    `call_cost` counts them, by more than LOAN and INCOME for each token. No clock is read: the same seed gives the same
    guesses. Counts for measurements: `calls` that held a guess, in how many of these a token was `wrong`; tokens
    `guessed`, and of these `accepted`.
    """

    def __init__(self, draft: Draft, model: Llama3Model, *, account: bool) -> None:
        self.draft, self.model = draft, model
        self.balance = LOAN if account else float("inf")
        self.n = FEWEST
        self.calls = self.wrong = self.guessed = self.accepted = 0

    def guess(
        self, ids: list[int], most: int, sampling: SamplingConfig, generator: torch.Generator | None = None
    ) -> Guess:
        """A guess of at most `most` tokens, none where there is nothing to guess or it would cost too much."""
        n = min(self.n, most)
        if n < 1 or self.balance < call_cost(self.model, n) - 1:
            return Guess([])
        guess = self.draft.propose(ids, n, sampling, generator)
        known = next((i for i, t in enumerate(guess.tokens) if not 0 <= t < self.model.cfg.vocab_size), n)
        tokens = guess.tokens[:known]  # ids behind the vocabulary stand for images and sounds
        if self.balance < float("inf") and len(tokens) + 1 <= call_cost(self.model, len(tokens)):
            return Guess([])  # does not pay even if it is right
        if guess.probs is not None:
            _require_tokens_of(self.model, guess.probs.shape[-1])
        return Guess(tokens, None if guess.probs is None else guess.probs[: len(tokens)])

    def note(self, n_guessed: int, n_accepted: int) -> None:
        """Count one call and what came of it: n_accepted + 1 tokens."""
        self.balance += INCOME * (n_accepted + 1)
        if n_guessed:
            self.balance += n_accepted + 1 - call_cost(self.model, n_guessed)
            self.n = min(2 * self.n, MOST) if n_accepted == n_guessed else FEWEST
            self.calls += 1
            self.wrong += n_accepted < n_guessed
            self.guessed += n_guessed
            self.accepted += n_accepted
        if self.balance < float("inf"):
            self.balance = min(self.balance, 2 * LOAN)


def call_cost(model: Llama3Model, n: int) -> float:
    """What a call for n + 1 tokens takes, in one-token steps: as measured with SmolLM2 in fp32 on two cores. Compiled
    steps are quicker, and PyTorch reads the n + 1. A GPU takes hardly longer than for one."""
    if model.embed_tokens.weight.device.type != "cpu":
        return 1.1 if n else 1.0
    first, each = (5.0, 0.1) if getattr(model, "fast", None) is not None else (2.4, 0.06)
    return first + each * n if n else 1.0


def expected_tokens(acceptance: float, n: int) -> float:
    """Tokens a call, where each of n guessed ones is right with probability `acceptance`: (1 - a^(n+1)) / (1 - a)."""
    return n + 1.0 if acceptance == 1 else (1 - acceptance ** (n + 1)) / (1 - acceptance)


def make_speculator(model: Llama3Model, speculate: Speculate, n_rows: int, *, alone: bool) -> Speculator | None:
    """The speculator that the settings ask for; None for plain decoding.

    alone: one row without padding, with a cache. Others are decoded plainly by "auto", and so are weights of 8 and 4
    bits, which PyTorch spreads out anew at each call. Raises InputError where "lookup" or a draft is asked of the
    others, and for a draft whose vocab_size, where it has one, is not the model's.
    """
    if speculate not in ("off", "auto", "lookup") and (isinstance(speculate, type) or not callable(
            getattr(speculate, "propose", None))):  # fmt: skip
        given = repr(speculate) if speculate is None or isinstance(speculate, (str, bool, type)) else (
            f"a {type(speculate).__name__}")
        raise InputError(f"speculate is 'off', 'auto', 'lookup' or a draft, which has a method propose(ids, n, ...), "
                         f"such as ModelDraft(small_model); got {given}")  # fmt: skip
    _require_tokens_of(model, getattr(speculate, "vocab_size", model.cfg.vocab_size))
    if speculate == "off" or (speculate == "auto" and not (alone and any(True for _ in model.lm_head.parameters()))):
        return None
    if not alone:
        raise InputError(f"speculation is for one prompt with a cache and without padding, got {n_rows} rows; leave "
                         f"speculate out")
    return Speculator(Lookup() if isinstance(speculate, str) else speculate, model, account=speculate == "auto")


def _require_tokens_of(model: Llama3Model, n_scored: int) -> None:
    if n_scored != model.cfg.vocab_size:
        raise InputError(f"the draft scores {n_scored} tokens, the model {model.cfg.vocab_size}; a draft needs the "
                         f"model's own tokenizer")
