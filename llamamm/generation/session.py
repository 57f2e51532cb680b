"""A conversation: its messages, and a KV cache that is kept between turns, so that only what is new is read.

An image or a sound that is new has the whole conversation read again: its features are not in the cache.

Used by `llamamm chat`. Built in notebook 08.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from llamamm.errors import ContextOverflowError
from llamamm.generation.generate import TextStream
from llamamm.generation.guarded import GuardedStream, Judge, Refusal, Transcribe, media_reader, require_judge
from llamamm.generation.prompts import Image, Processor, Sound, as_processor, on_device
from llamamm.generation.sampling import SamplingConfig
from llamamm.generation.speculation import Speculate
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer


class ChatSession:
    """Messages so far and the model that answers them.

    tokenizer: the second of what `from_pretrained` gives: of a model that sees and hears, its processor.
    system: the first message, saying how to answer; None for the model's own default.
    context_size: tokens that the conversation may take, at most the model's context; memory for their keys and values
    is taken at the start.
    guard: judges each message, and its answer before it is shown. A turn that it refuses is not kept, neither the
    message nor what was shown of the answer: the model would read it in every turn to come, and the guard refuse those
    for it. `refusal` says what it was, until the next message. transcribe: what pictures and sounds say, for the guard,
    once for each; by default what the model itself reads and hears in them. Raises InputError for what is no guard.
    speculate: as in `TokenStream`.
    """

    def __init__(
        self,
        model: Llama3Model,
        tokenizer: Tokenizer | Processor,
        *,
        system: str | None = None,
        sampling: SamplingConfig | None = None,
        max_new_tokens: int = 512,
        context_size: int = 8192,
        seed: int | None = None,
        guard: Judge | None = None,
        transcribe: Transcribe | None = None,
        speculate: Speculate = "off",
    ) -> None:
        self.model, self.processor = model, as_processor(tokenizer)
        self.sampling, self.max_new_tokens, self.seed = sampling, max_new_tokens, seed
        self.speculate = speculate
        self.cache = model.make_cache(1, min(context_size, model.cfg.context_length))
        self._cached_ids: list[int] = []
        self._cached_media: tuple[Image | Sound, ...] = ()
        self._n_prompt = 0  # tokens of the last prompt
        self.stop_reason: str | None = None
        if guard is not None:
            require_judge(guard)
        self.guard, self.transcribe = guard, transcribe or media_reader(model, self.processor)
        self.refusal: Refusal | None = None
        self.reset(system=system)

    def reset(self, *, system: str | None = None) -> None:
        """Forget the conversation; `system` starts the new one."""
        self._transcript = cache(self.transcribe)  # of each picture and sound, which every turn holds again
        self.messages = [{"role": "system", "content": system}] if system else []

    def reply(self, text: str, *, media: Sequence[Image | Sound] = ()) -> Iterator[str]:
        """Answer one message, in pieces. An answer that the caller stops listening to is kept as far as it came.

        media: images and sounds that stand before the text. A refused message has no pieces, a refused answer those
        that were judged safe. Raises ContextOverflowError where the conversation has outgrown the context, InputError
        for media that cannot be read; the message is then not kept.
        """
        self.refusal = None
        messages = [*self.messages, {"role": "user", "content": [*media, text] if media else text}]
        prompt = self.processor.chat(messages)
        ids = prompt.ids
        if len(ids) >= self.cache.max_length:
            raise ContextOverflowError(
                f"the conversation has {len(ids)} tokens, the context {self.cache.max_length}: reset starts a new one"
            )
        known = self._common_prefix(ids)
        if prompt.media != self._cached_media or (prompt.media and known < self._n_prompt):
            known = 0  # media are read with the first tokens, all of them
        device = self.model.embed_tokens.weight.device
        stream = TextStream(
            self.model, self.processor.tokenizer, ids, inputs={} if known else on_device(prompt.inputs, device),
            device=device, cache=self.cache, max_new_tokens=self.max_new_tokens, context_size=self.cache.max_length,
            sampling=self.sampling, seed=self.seed, speculate=self.speculate,
        )  # fmt: skip
        pieces: Iterable[str] = stream
        if self.guard is not None:
            pieces = guarded = GuardedStream(stream, self.guard, messages, transcribe=self._transcript)
            if not guarded.prompt_is_safe():
                self.refusal, self.stop_reason = guarded.refusal, None
                return
        self.cache.rewind(known)
        self._n_prompt = len(ids)
        answer = ""
        try:
            for piece in pieces:
                answer += piece
                yield piece
        finally:  # also when the caller stops early
            self._cached_ids = (ids + stream.new_ids)[: self.cache.length]
            self._cached_media = prompt.media
            self.stop_reason = stream.stop_reason
            if self.guard is not None:
                self.refusal = guarded.refusal
            if self.refusal is None:
                self.messages = [*messages, {"role": "assistant", "content": answer}]

    def _common_prefix(self, ids: list[int]) -> int:
        """How many cached tokens the new prompt begins with; one is left to read, since its scores are needed."""
        same = 0
        for old, new in zip(self._cached_ids[: self.cache.length], ids[:-1], strict=False):
            if old != new:
                break
            same += 1
        return same
