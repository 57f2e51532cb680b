"""What lesson 12's second half has the learner write, put into the real Whisper, which then writes down real speech.

Each function takes an answer and gives a verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from llamamm.assets.fetch import fetch
from llamamm.assets.spoken_words import load_recordings
from llamamm.course.swaps_verdict import Verdict, apart, of_answers
from llamamm.generation.transcribe import SpeechTokens, hear
from llamamm.pretrained.towers import load_whisper
from llamamm.senses.mel import log_mel
from llamamm.senses.whisper_decoder import Attention, DecoderBlock, Whisper

LONGEST = 12  # ids that a wrong answer may go on for; the right one has five
Attend = Callable[..., Tensor]


@cache
def real_mouth() -> tuple[Whisper, SpeechTokens]:
    """The pretrained Whisper tiny.en and its tokens, loaded once."""
    return load_whisper("whisper-tiny", dtype=torch.float32)


@cache
@torch.no_grad()
def _spoken() -> tuple[Tensor, list[int], Tensor, str]:
    """A recording's features; what is said of it: ids, the prompt first; their scores; the text."""
    model, tokens = real_mouth()
    mel = log_mel(load_recordings(fetch("words", progress=False))["goforward.wav"].wave)[None]
    (heard,) = hear(model, tokens, mel)
    ids = [*tokens.prompt, *heard.ids]
    features = model.encoder(mel)
    return features, ids, model.decoder(torch.tensor([ids]), features)[0], tokens.text(heard.ids)


def own_attend(x: Tensor, source: Tensor, att: Attention, mask: Tensor | None = None) -> Tensor:
    """The package's attention, called as the exercise is."""
    return att(x, *att.keys_values(source), mask)


def own_block(x: Tensor, sound: Tensor, block: DecoderBlock, attend: Attend) -> Tensor:
    """The package's block without its cache, called as the exercise is."""
    T = x.shape[1]
    n = block.self_attn_layer_norm(x)
    x = x + attend(n, n, block.self_attn, torch.ones(T, T, dtype=torch.bool).tril())
    x = x + attend(block.encoder_attn_layer_norm(x), sound, block.encoder_attn)
    return x + block.mlp(block.final_layer_norm(x))


@torch.no_grad()
def decode(model: Whisper, ids: list[int], sound: Tensor, block: Callable[..., Tensor], attend: Attend) -> Tensor:
    """Whisper's decoder out of these parts, without a cache: ids, sound (1, S, C) -> scores (T, V)."""
    decoder = model.decoder
    x = decoder.embed_tokens(torch.tensor([ids])) + decoder.embed_positions[: len(ids)]
    for layer in decoder.layers:
        x = block(x, sound, layer, attend)
    return (decoder.layer_norm(x) @ decoder.embed_tokens.weight.T)[0]


def write_greedily(next_scores: Callable[[list[int]], Tensor], tokens: SpeechTokens, *, limit: int) -> list[int]:
    """The package's greedy search without its batch: the ids said, without prompt and end."""
    said: list[int] = []
    while len(said) < limit:
        scores = next_scores([*tokens.prompt, *said]).clone()
        scores[[*tokens.never, *(() if said else tokens.never_first)]] = float("-inf")
        if (best := int(scores.argmax())) == tokens.end:
            break
        said.append(best)
    return said


def _with_parts(who: str, block: Callable[..., Tensor], attend: Attend) -> Verdict:
    model, tokens = real_mouth()
    sound, ids, scores, text = _spoken()
    difference = apart(decode(model, ids, sound, block, attend), scores)
    said = write_greedily(lambda ids: decode(model, ids, sound, block, attend)[-1], tokens, limit=LONGEST)
    return of_answers(f"Whisper with your {who}", difference, tokens.text(said), text)


def attend(answer: Any) -> Verdict:
    """12.3: in all blocks, for the tokens and for the sound."""
    return _with_parts("attend", own_block, answer)


def decoder_block(answer: Any) -> Verdict:
    """12.4: each block is the learner's, its attention the package's."""
    return _with_parts("decoder_block", answer, own_attend)


@torch.no_grad()
def write_down(answer: Any) -> Verdict:
    """12.5"""
    model, tokens = real_mouth()
    sound, ids, _, text = _spoken()
    wanted = ids[len(tokens.prompt) :]
    said = answer(lambda ids: model.decoder(torch.tensor([ids]), sound)[0, -1], [*tokens.prompt], tokens.end,
                  [*tokens.never], [*tokens.never_first], LONGEST)  # fmt: skip
    if said == wanted:
        return Verdict(True, f"Whisper with your write_down: {text!r} · {len(said)} ids: the same")
    shown = tokens.text(i for i in said if isinstance(i, int)) if isinstance(said, list) else said
    return Verdict(False, f"Whisper with your write_down: {shown!r} · a different text; with the package's own it says "
                          f"{text!r}")  # fmt: skip


SWAPS = {"12.3": attend, "12.4": decoder_block, "12.5": write_down}
