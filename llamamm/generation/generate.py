"""Generation: feed the model its own choice, again and again.

    ids (B, T) -> TokenStream, one (B,) tensor of tokens a step
    ids (B, T) -> generate -> ids (B, T + n)
    ids of one prompt -> TextStream, pieces of text that never split a character

The loop knows token ids and a model, and no tokenizer; `TextStream` adds text and stop strings on top.
Built in notebook 08.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from llamamm.errors import ContextOverflowError, InputError
from llamamm.generation.sampling import SamplingConfig, sample
from llamamm.generation.speculation import Guess, Speculate, choose, make_speculator
from llamamm.text.cache import KVCache
from llamamm.text.config import TextConfig


class CausalLM(Protocol):
    """What generation asks of a model."""

    cfg: TextConfig

    def make_cache(self, batch_size: int = 1, max_length: int | None = None) -> KVCache: ...

    def __call__(
        self,
        ids: Tensor,
        *,
        cache: KVCache | None = None,
        padding: Tensor | None = None,
        last_only: bool = False,
        **inputs: Any,
    ) -> Tensor: ...


class Decoder(Protocol):
    """What a text stream asks of a tokenizer: bytes held back until they make whole characters."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class StreamingTokenizer(Protocol):
    stop_ids: frozenset[int]

    def stream_decoder(self) -> Decoder: ...


def pad_left(prompts: Sequence[Sequence[int]], *, pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """Prompts of different length as one batch. -> ids (B, T) int64, padding (B, T) bool, True for real tokens.

    Padding goes on the left, so that the last column is every prompt's last token, and new tokens follow it.
    """
    if not prompts or not all(len(p) for p in prompts):
        raise InputError("every prompt needs at least one token: the begin-of-text token for an empty one")
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts])
    padding = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts])
    return ids, padding


class TokenStream:
    """Iterate to get the next token of every row, (B,) int64, until every row has ended.

    ids: (B, T) prompt; padding: (B, T) bool from `pad_left`, for prompts of different length.
    stop_ids: tokens that end a row; the row then repeats that token until the others have ended.
    context_size: tokens of prompt and answer together, at most and by default the model's context.
    prefill_chunk: read the prompt in pieces of so many tokens, which bounds the memory that attention needs.
    cache: one that already holds the first tokens of the prompt, as in a conversation; only the rest is read.
    use_cache=False reads everything again at each step: the same tokens, slowly, for comparison.
    inputs: what else the model is given with the prompt, such as its images; such a prompt is read in one piece.
    speculate: guess tokens ahead and read them in one call (see `speculation`): "lookup" guesses what followed before,
    "auto" does so while it pays, and a `Draft` as it will. For one row; "auto" leaves several to plain decoding. The
    text is the model's own; since a call for several tokens rounds otherwise than calls for one, two scores that are
    equal but for rounding (1e-5 apart in fp32, a tenth in bf16) may change places.

    After the loop, `stop_reasons` says for each row "stop" (a stop token), "length" (max_new_tokens), or
    "context" (the context is full).
    """

    def __init__(
        self,
        model: CausalLM,
        ids: Tensor,
        *,
        max_new_tokens: int,
        context_size: int | None = None,
        sampling: SamplingConfig | None = None,
        stop_ids: Collection[int] = (),
        seed: int | None = None,
        padding: Tensor | None = None,
        use_cache: bool = True,
        prefill_chunk: int | None = None,
        cache: KVCache | None = None,
        inputs: Mapping[str, Any] | None = None,
        speculate: Speculate = "off",
    ) -> None:
        n_prompt = _check_prompt(ids, padding)
        limit = min(context_size or model.cfg.context_length, model.cfg.context_length)
        if n_prompt > limit:
            raise ContextOverflowError(
                f"the prompt has {n_prompt} tokens, the context {limit}; shorten the prompt"
            )
        if max_new_tokens < 0:
            raise InputError(f"max_new_tokens must be 0 or more, got {max_new_tokens}")
        if seed is not None and not 0 <= seed < 2**63:
            raise InputError(f"seed must be a whole number from 0 to 2**63 - 1, got {seed}")
        if prefill_chunk is not None and prefill_chunk < 1:
            raise InputError(f"prefill_chunk must be at least 1 token, got {prefill_chunk}")
        self.model, self.ids, self.padding = model, ids, padding
        self.sampling = sampling or SamplingConfig()
        self.n_steps = min(max_new_tokens, limit - n_prompt)
        self.cut_short = self.n_steps < max_new_tokens
        self.stop_ids = frozenset(map(int, stop_ids))
        self.inputs = inputs or {}
        self.prefill_chunk = n_prompt if self.inputs else prefill_chunk or n_prompt
        self.use_cache = use_cache
        if cache is None and use_cache:
            cache = model.make_cache(ids.shape[0], min(n_prompt + self.n_steps, limit))
        self.cache = cache
        self.generator = None
        if seed is not None:
            self.generator = torch.Generator(device=ids.device).manual_seed(seed)
        self.stop_reasons: list[str | None] = [None] * ids.shape[0]
        alone = ids.shape[0] == 1 and padding is None and use_cache
        self.speculator = make_speculator(model, speculate, ids.shape[0], alone=alone)
        self._started = False

    def __iter__(self) -> Iterator[Tensor]:
        if self._started:
            raise InputError("this stream has been read already: make a new one")
        self._started = True
        if self.speculator is not None:
            yield from self._speculative()
            return
        tokens = None
        finished = [False] * self.ids.shape[0]
        seen = self._seen_in_prompt()
        for _ in range(self.n_steps):
            logits = self._read_prompt() if tokens is None else self._step(tokens)  # (B, V)
            chosen = sample(logits, self.sampling, seen=seen, generator=self.generator)
            if any(finished):
                chosen = torch.where(torch.tensor(finished, device=chosen.device), tokens, chosen)
            tokens = chosen
            if seen is not None:
                seen.scatter_(1, tokens[:, None], True)
            yield tokens
            for row, token in enumerate(tokens.tolist()):
                if token in self.stop_ids:
                    finished[row], self.stop_reasons[row] = True, "stop"
            if all(finished):
                return
        reason = "context" if self.cut_short else "length"
        self.stop_reasons = [r or reason for r in self.stop_reasons]

    def _speculative(self) -> Iterator[Tensor]:
        """The same loop for one row, where a step may give several tokens. They are handed out one by one, and the
        cache counts each as it goes, so that whoever stops listening finds it as plain decoding leaves it."""
        ids, seen, n_left, guess = self.ids[0].tolist(), self._seen_in_prompt(), self.n_steps, Guess([])
        while n_left:
            logits = self._read_prompt() if n_left == self.n_steps else self._verify(ids[-1], guess)  # (n + 1, V)
            self.cache.rewind(self.cache.length - len(guess.tokens))
            run = choose(logits, guess, self.sampling, seen=seen, generator=self.generator)
            self.speculator.note(len(guess.tokens), len(run) - 1)
            for n, token in enumerate(run):
                self.cache.advance(1 if n else 0)
                ids.append(token)
                n_left -= 1
                if seen is not None:
                    seen[0, token] = True
                yield torch.tensor([token], device=self.ids.device)
                if token in self.stop_ids:
                    self.stop_reasons = ["stop"]
                    return
            room = min(n_left, self.cache.max_length - self.cache.length) - 1
            guess = self.speculator.guess(ids, room, self.sampling, self.generator)
        self.stop_reasons = ["context" if self.cut_short else "length"]

    @torch.inference_mode()
    def _verify(self, token: int, guess: Guess) -> Tensor:
        """Scores after the last token, and after each guessed one: (n + 1, V)."""
        ids = torch.tensor([[token, *guess.tokens]], device=self.ids.device)
        return self.model(ids, cache=self.cache)[0]

    @torch.inference_mode()
    def _read_prompt(self) -> Tensor:
        start = self.cache.length if self.use_cache else 0
        if start >= self.ids.shape[1]:
            raise InputError(f"the cache holds {start} tokens, the prompt {self.ids.shape[1]}; rewind the cache first")
        pieces = self.ids[:, start:].split(self.prefill_chunk, dim=1) if self.use_cache else (self.ids,)
        for piece in pieces:
            start += piece.shape[1]
            padding = None if self.padding is None else self.padding[:, :start]
            logits = self.model(piece, cache=self.cache, padding=padding, last_only=True, **self.inputs)
        return logits[:, -1]

    @torch.inference_mode()
    def _step(self, tokens: Tensor) -> Tensor:
        if self.padding is not None:
            self.padding = torch.cat((self.padding, torch.ones_like(self.padding[:, :1])), dim=1)
        if self.use_cache:
            return self.model(tokens[:, None], cache=self.cache, padding=self.padding, last_only=True)[:, -1]
        self.ids = torch.cat((self.ids, tokens[:, None]), dim=1)
        return self.model(self.ids, padding=self.padding, last_only=True, **self.inputs)[:, -1]

    def _seen_in_prompt(self) -> Tensor | None:
        if self.sampling.repetition_penalty == 1:
            return None
        seen = torch.zeros(self.ids.shape[0], self.model.cfg.vocab_size, dtype=torch.bool, device=self.ids.device)
        for row in range(self.ids.shape[0]):
            real = self.ids[row] if self.padding is None else self.ids[row][self.padding[row]]
            seen[row, real[real < seen.shape[1]]] = True  # ids behind the vocabulary stand for images and sounds
        return seen


def generate(
    model: CausalLM,
    idx: Tensor,
    max_new_tokens: int,
    context_size: int | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    *,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    **options: Any,
) -> Tensor:
    """Continue the prompts: idx (B, T) -> (B, T + n), n <= max_new_tokens.

    Sampling settings as in `SamplingConfig`; options (stop_ids, seed, padding, use_cache, prefill_chunk, inputs,
    speculate) as in `TokenStream`. Warns when the context ends before max_new_tokens.
    """
    sampling = SamplingConfig(temperature, top_k, top_p, min_p, repetition_penalty)
    stream = TokenStream(
        model, idx, max_new_tokens=max_new_tokens, context_size=context_size, sampling=sampling, **options
    )
    new = [tokens[:, None] for tokens in stream]
    if "context" in stream.stop_reasons:
        warnings.warn(
            f"stopped after {len(new)} of {max_new_tokens} tokens: the context of {idx.shape[1] + len(new)} is full",
            stacklevel=2,
        )
    return torch.cat([idx, *new], dim=1)


class TextStream:
    """Iterate to get one prompt's answer as pieces of text, as they come.

    ids: the prompt, a list of token ids. A piece never splits a character, and never holds the start of something that
    may become a stop string. Stop tokens and stop strings are not part of the text.
    stop: strings that end the answer; options (max_new_tokens, sampling, seed, speculate, ...) as in `TokenStream`.
    Afterwards `stop_reason` is "stop", "length" or "context", and `new_ids` holds the tokens.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: StreamingTokenizer,
        ids: Sequence[int],
        *,
        stop: Sequence[str] = (),
        device: torch.device | str | None = None,
        **options: Any,
    ) -> None:
        if isinstance(stop, str) or not all(stop):
            raise InputError(f"stop must be a list of strings that are not empty, got {stop!r}")
        options.setdefault("stop_ids", tokenizer.stop_ids)
        self.tokens = TokenStream(model, torch.tensor([list(ids)], dtype=torch.int64, device=device), **options)
        self.stop_ids = frozenset(options["stop_ids"])
        self.decoder = tokenizer.stream_decoder()
        self.stop = tuple(stop)
        self.new_ids: list[int] = []
        self.stop_reason: str | None = None

    def __iter__(self) -> Iterator[str]:
        held = ""
        for tokens in self.tokens:
            token = int(tokens[0])
            self.new_ids.append(token)
            if token not in self.stop_ids:
                held += self.decoder.push(token)
            found = [at for at in map(held.find, self.stop) if at >= 0]
            if found:
                self.stop_reason = "stop"
                if min(found):
                    yield held[: min(found)]
                return
            ready = len(held) - _possible_stop(held, self.stop)
            if ready:
                yield held[:ready]
                held = held[ready:]
        self.stop_reason = self.tokens.stop_reasons[0]
        held += self.decoder.flush()
        if held:
            yield held


def _possible_stop(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that is the beginning of a stop string."""
    longest = max(map(len, stop), default=1) - 1
    return next((n for n in range(min(longest, len(text)), 0, -1) if any(s.startswith(text[-n:]) for s in stop)), 0)


def _check_prompt(ids: Tensor, padding: Tensor | None) -> int:
    if not isinstance(ids, Tensor):
        raise InputError(f"the prompt must be a tensor of token ids, (B, T), got {ids!r:.60}: torch.tensor([[...]])")
    if ids.dim() != 2 or ids.is_floating_point():
        raise InputError(f"the prompt must be token ids of shape (B, T), got {ids.dtype} {tuple(ids.shape)}")
    if ids.shape[1] == 0:
        raise InputError("the prompt is empty: give at least one token, the begin-of-text token")
    if padding is not None:
        if padding.shape != ids.shape or padding.dtype != torch.bool:
            raise InputError(
                f"padding must be bool of the prompt's shape {tuple(ids.shape)}, got {padding.dtype} "
                f"{tuple(padding.shape)}"
            )
        if not padding[:, -1].all():
            raise InputError("prompts are padded on the left: the last column must be real tokens (see pad_left)")
    return ids.shape[1]
