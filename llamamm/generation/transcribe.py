"""A sound in, its words out: Whisper's own tokens around a greedy search.

    wave (n_samples,) -> windows of up to 30 s -> log-mel -> encoder -> decoder, token by token -> text

What the decoder is to do is said in tokens: it begins with <|startoftranscript|>, in a multilingual model the language
and <|transcribe|>, and <|notimestamps|>. From there the best token is taken, but for those that the published
settings never let it say: signs that are not speech, and a first token that would end it at once.

Of a window in which nobody speaks a recogniser must say nothing. Whisper gives a probability that there is no speech
at its first token; where that is high and the words are poor, or where it is very high, they are left out.

Source: Whisper, arXiv:2212.04356, section 2.3; openai-whisper, decoding.py and transcribe.py, whose temperature
fallback, beams and timestamps are left out. Built in notebook 12.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llamamm.errors import CheckpointError, InputError
from llamamm.senses.mel import log_mel, split_at_pauses
from llamamm.senses.whisper_decoder import Whisper
from llamamm.text.tokenizer import Tokenizer

NO_SPEECH = 0.6  # over this probability that nobody speaks,
POOR = -1.0  # and under this mean log-probability of the words, a window gives none, as in openai-whisper;
SURE = 0.9  # over this one it gives none whatever the words: of silence Whisper tiny says "you", and with confidence
NO_SPEECH_NAMES = "<|nospeech|>", "<|nocaptions|>"  # new files and old ones


@dataclass(frozen=True)
class SpeechTokens:
    """What a Whisper's ids mean, and which of them it may say.

    prompt: the ids that it begins from, `end`: the one that it stops with; never, never_first: ids that are not said,
    or not as the first word; no_speech: the id whose probability says that nobody speaks, None where there is none.
    """

    tokenizer: Tokenizer
    prompt: tuple[int, ...]
    end: int
    never: tuple[int, ...] = ()
    never_first: tuple[int, ...] = ()
    no_speech: int | None = None

    @classmethod
    def read(cls, tokenizer: Tokenizer, settings: Mapping[str, Any], *, language: str = "en") -> SpeechTokens:
        """From a tokenizer and the content of generation_config.json. language: of a multilingual model, as "de".

        Raises CheckpointError where the tokenizer is no Whisper's, InputError for a language that it lacks.
        """
        names = ["<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>"]
        if settings.get("is_multilingual"):
            names[1:1] = [f"<|{language}|>", "<|transcribe|>"]
        elif language != "en":
            raise InputError(f"this Whisper knows English alone, not {language!r}; the multilingual models know it")
        ids = tokenizer.special_tokens
        lacking = [name for name in names if name not in ids]
        if lacking == [f"<|{language}|>"]:
            raise InputError(f"this Whisper has no language {language!r}; give a code such as 'en' or 'de'")
        if lacking:
            raise CheckpointError(f"the tokenizer lacks {', '.join(lacking)}; take the one of the same Whisper")
        *prompt, end = (ids[name] for name in names)
        return cls(tokenizer, tuple(prompt), end, tuple(settings.get("suppress_tokens") or ()),
                   tuple(settings.get("begin_suppress_tokens") or ()),
                   next((ids[name] for name in NO_SPEECH_NAMES if name in ids), None))  # fmt: skip

    def text(self, ids: Iterable[int]) -> str:
        """What is said: without marks, and without the blank that a word begins with."""
        return self.tokenizer.decode(ids, skip_special=True).strip()


@dataclass(frozen=True)
class Heard:
    """Of one window: the ids said, without prompt and end; how probable it is that nobody speaks, 0 where the model
    does not say; and the mean log-probability of its tokens, the end's too."""

    ids: list[int]
    no_speech: float
    mean_log_prob: float

    @property
    def is_silence(self) -> bool:
        """Whether the words, if there are any, are not worth showing: nobody speaks."""
        return self.no_speech > SURE or (self.no_speech > NO_SPEECH and self.mean_log_prob < POOR)


@torch.no_grad()
def hear(model: Whisper, tokens: SpeechTokens, mel: Tensor, *, max_new_tokens: int | None = None) -> list[Heard]:
    """Greedy search: mel (B, n_mels, 3000) -> what is heard in each clip, all written at once.

    max_new_tokens: None is half of what the decoder can write, as published. Raises InputError.
    """
    room = model.cfg.n_tokens - len(tokens.prompt)
    limit = model.cfg.n_tokens // 2 if max_new_tokens is None else max_new_tokens
    if not 1 <= limit <= room:
        raise InputError(f"max_new_tokens must be from 1 to {room}, got {limit}")
    cache = model.decoder.listen(model.encoder(mel), max_length=len(tokens.prompt) + limit)
    B, device = len(mel), mel.device
    never = torch.zeros(model.cfg.vocab_size, dtype=torch.bool, device=device)
    never[list(tokens.never)] = True
    first = never.clone()
    first[list(tokens.never_first)] = True
    ids = torch.tensor([tokens.prompt] * B, device=device)
    scores = model.decoder(ids, cache).float()  # (B, T, V)
    silent = scores[:, 0].softmax(dim=-1)[:, tokens.no_speech] if tokens.no_speech is not None else torch.zeros(B)
    said: list[Tensor] = []
    total, going = torch.zeros(B, device=device), torch.ones(B, dtype=torch.bool, device=device)
    while going.any() and len(said) < limit:
        last = scores[:, -1].masked_fill(never if said else first, float("-inf"))  # (B, V)
        best = last.log_softmax(dim=-1).max(dim=-1)
        total += best.values * going
        new = best.indices.where(going, torch.tensor(tokens.end, device=device))  # a clip that has ended stays so
        said.append(new)
        going = going & (new != tokens.end)
        if going.any() and len(said) < limit:
            scores = model.decoder(new[:, None], cache).float()
    rows = [[i for i in row if i != tokens.end] for row in torch.stack(said, dim=1).tolist()]
    return [Heard(row, float(p), float(t) / (len(row) + 1)) for row, p, t in zip(rows, silent, total, strict=True)]


def transcribe(
    model: Whisper,
    tokens: SpeechTokens,
    wave: Tensor | np.ndarray,
    *,
    on_window: Callable[[str], None] | None = None,
) -> str:
    """The words of a recording (n_samples,), 16 kHz mono in [-1, 1], of any length.

    Longer than 30 s, it is read in windows that end where it is quiet; no window knows what was said before.
    on_window: called with the text of each as it comes. Raises InputError as `log_mel`.
    """
    texts = []
    for window in split_at_pauses(wave):
        (text,) = transcribe_all(model, tokens, [window])
        if on_window is not None:
            on_window(text)
        texts.append(text)
    return " ".join(text for text in texts if text)


def transcribe_all(
    model: Whisper, tokens: SpeechTokens, waves: Sequence[Tensor | np.ndarray], *, batch_size: int = 8
) -> list[str]:
    """The words of many clips of at most 30 s, `batch_size` at a time. Raises InputError as `log_mel`."""
    weight, texts = model.encoder.conv1.weight, []
    for begin in range(0, len(waves), batch_size):
        mels = [log_mel(wave, n_mels=model.cfg.audio.n_mels) for wave in waves[begin : begin + batch_size]]
        found = hear(model, tokens, torch.stack(mels).to(weight.device))
        texts += ["" if heard.is_silence else tokens.text(heard.ids) for heard in found]
    return texts
