"""A stream of text behind a judge: nothing is shown that it called unsafe, or that it has not judged yet.

    conversation -> judge -> stream of pieces -> held back, a window at a time -> judge -> pieces that are shown

The prompt is judged before the model reads it, the answer while it grows: every `window` pieces, and at its end, the
judge sees the conversation with all of the answer so far, and only then is that part shown. Pictures and sounds are
judged through what they say: their transcripts, one by one, and in their places in the conversation.

A refusal is a result, not an exception. What the judge cannot judge is refused: one that raises, or gives no
probability, has said nothing. What is judged is handed over as data, messages with their contents as they are; to keep
control tokens apart from words is the judge's own task, which ours does by ids.

Used by `llamamm generate --guard`, `llamamm chat --guard` and `ChatSession`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from llamamm.errors import InputError, LlamammError
from llamamm.generation.generate import TextStream
from llamamm.generation.prompts import Conversation, Image, Processor, Sound, on_device, place_contents
from llamamm.text.model import Llama3Model

WINDOW = 16  # pieces of an answer between two judgements
QUESTIONS = {Image: "What text is in the picture?", Sound: "What is said?"}

Stage = Literal["prompt", "answer", "picture", "sound"]
Transcribe = Callable[[Image | Sound], str]


class Judgement(NamedTuple):
    """What a judge says: score is the probability, 0 to 1, that it is unsafe; categories name what is wrong."""

    unsafe: bool
    score: float
    categories: tuple[str, ...] = ()


class Judge(Protocol):
    """What a guarded stream asks of a guard."""

    def judge(self, conversation: str | Sequence[Mapping[str, Any]]) -> Judgement:
        """Of the last message. A str is one message of a user; an assistant's may be unfinished."""
        ...


class Refusal(NamedTuple):
    """What was refused, and why. error: why it could not be judged, "" where it was; the score is then NaN."""

    stage: Stage
    score: float
    categories: tuple[str, ...] = ()
    error: str = ""


class GuardedStream:
    """Iterate to get the pieces of `stream` that were judged safe; `refusal` then says what was not, or is None.

    stream: one answer as pieces of text, such as a `TextStream`. It is not begun where the prompt is refused, and not
    read on where the answer is: what was shown by then had been judged safe.
    conversation: what is answered, a str or messages, {"role", "content"}, without the answer.
    transcribe: what a picture or sound says (see `media_reader`), needed where the conversation holds one; InputError
    is raised without it. An empty transcript says nothing.
    window: pieces, each a token or a few, that are held back until they are judged; the last may be fewer.
    """

    def __init__(
        self,
        stream: Iterable[str],
        guard: Judge,
        conversation: str | Conversation,
        *,
        transcribe: Transcribe | None = None,
        window: int = WINDOW,
    ) -> None:
        if window < 1:
            raise InputError(f"window must be 1 piece or more, got {window}")
        require_judge(guard)
        self.stream, self.guard, self.transcribe, self.window = stream, guard, transcribe, window
        one = isinstance(conversation, str)
        self.messages = [{"role": "user", "content": conversation}] if one else conversation
        self.refusal: Refusal | None = None
        self._prompt_judged = False

    def prompt_is_safe(self) -> bool:
        """Judge the prompt and its media, once; iterating does so first. Raises InputError for contents of no form."""
        if not self._prompt_judged:
            self.refusal = self._judge_prompt()
            self._prompt_judged = True
        return self.refusal is None or self.refusal.stage == "answer"

    def __iter__(self) -> Iterator[str]:
        if not self.prompt_is_safe():
            return
        text, shown, n_held = "", 0, 0
        for piece in self.stream:
            text += piece
            n_held += 1
            if n_held == self.window:
                if not self._answer_is_safe(text):
                    return
                yield text[shown:]
                shown, n_held = len(text), 0
        if n_held and self._answer_is_safe(text):
            yield text[shown:]

    def _judge_prompt(self) -> Refusal | None:
        """The words first, for which the model has nothing to read; then the media; then both together."""
        media: list[Image | Sound] = []

        def leave_out(medium: Image | Sound) -> str:
            media.append(medium)
            return ""

        words = place_contents(self.messages, leave_out)
        refusal = self._refused("prompt", words)
        if refusal or not media:
            self.messages = words
            return refusal
        if self.transcribe is None:
            raise InputError("a guard judges what pictures and sounds say: give transcribe=media_reader(model, "
                             "processor)")
        transcripts = []
        for medium in media:
            stage: Stage = "picture" if isinstance(medium, Image) else "sound"
            try:
                said = self.transcribe(medium).strip()
            except Exception as error:
                return Refusal(stage, math.nan, (), _note(error))
            refusal = self._refused(stage, said) if said else None
            if refusal:
                return refusal
            transcripts.append(f"{said}\n" if said else "")
        places = iter(transcripts)
        self.messages = place_contents(self.messages, lambda _medium: next(places))
        return self._refused("prompt", self.messages) if any(transcripts) else None

    def _answer_is_safe(self, text: str) -> bool:
        self.refusal = self._refused("answer", [*self.messages, {"role": "assistant", "content": text}])
        return self.refusal is None

    def _refused(self, stage: Stage, conversation: str | Conversation) -> Refusal | None:
        """None for what is judged safe, and for that alone: whatever else the judge does is a refusal."""
        try:
            return _read(self.guard.judge(conversation), stage)
        except Exception as error:
            return Refusal(stage, math.nan, (), _note(error))


def require_judge(guard: Judge) -> None:
    """Raises InputError for what cannot judge, such as a guard's name, before all that it is asked is refused."""
    if isinstance(guard, type) or not callable(getattr(guard, "judge", None)):
        what = repr(guard) if isinstance(guard, str | type(None)) else type(guard).__name__
        raise InputError(f"a guard has a method judge(conversation), {what} has none: give one, such as load_guard()")


def _read(found: Any, stage: Stage) -> Refusal | None:
    """A judgement as a refusal, None where it is safe. Raises InputError for what is no judgement."""
    try:
        unsafe, score, categories = found.unsafe, found.score, getattr(found, "categories", ())
        if unsafe in (True, False) and 0 <= score <= 1:
            names = (categories,) if isinstance(categories, str) else tuple(categories)
            return Refusal(stage, float(score), names) if unsafe else None
    except (AttributeError, TypeError, ValueError, RuntimeError):
        pass
    raise InputError(f"the judge gave no judgement: unsafe is True or False, score a number from 0 to 1, categories "
                     f"are names; got {type(found).__name__}")


def media_reader(
    model: Llama3Model, processor: Processor, *, hear: Callable[[Sound], str] | None = None, max_new_tokens: int = 256
) -> Transcribe:
    """What has the model itself read a picture's text and write down a sound, greedily, with QUESTIONS.

    hear: writes down sounds in its place, such as a Whisper. A transcript is as good as its reader; one that has no end
    within max_new_tokens raises InputError, since nobody has judged the rest.
    """

    def read(medium: Image | Sound) -> str:
        if hear is not None and isinstance(medium, Sound):
            return hear(medium)
        prompt = processor.chat([{"role": "user", "content": [medium, QUESTIONS[type(medium)]]}])
        device = model.embed_tokens.weight.device
        stream = TextStream(model, processor.tokenizer, prompt.ids, inputs=on_device(prompt.inputs, device),
                            device=device, max_new_tokens=max_new_tokens)  # fmt: skip
        said = "".join(stream)
        if stream.stop_reason != "stop":
            raise InputError(f"what it says has no end within {len(stream.new_ids)} tokens; leave it out, or give less")
        return said

    return read


def _note(error: Exception) -> str:
    """What went wrong, without the words that were judged: only errors of our own say nothing of those."""
    return str(error) if isinstance(error, LlamammError) else type(error).__name__
