"""What lesson 14 has the learner write, put into `senses`, SmolLM2 that sees. Each function takes an answer and gives a
verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from llamamm.course.swaps_verdict import ROUNDING, SAME, Verdict, apart, distance
from llamamm.course.swaps_weights import loss_of, of_losses
from llamamm.experiments.drawn_shapes import Scene
from llamamm.multimodal.model import Features, Media, MultimodalLlama
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.pretrained.load import from_pretrained
from llamamm.text.chat import chat_format
from llamamm.train.losses import IGNORE
from llamamm.train.rows import encode_dialogue


@dataclass(frozen=True)
class _Seen:
    """`senses` and two drawn circles, red and blue. ids (T,), learn (T,) with "red" as the answer."""

    model: MultimodalLlama
    processor: MultimodalProcessor
    features: Features  # of the red one
    ids: Tensor  # with the answer
    learn: Tensor
    framed: Tensor  # (2, 11, C): start, nine tokens, end

    @property
    def asked(self) -> Tensor:
        """The ids up to the answer, (T,)."""
        return self.ids[: int(self.learn.nonzero()[0])]

    def embedded(self, number: int) -> tuple[Tensor, Tensor]:
        """The question about one of the pictures: vectors (T, C), places (T,) bool."""
        where = self.asked == self.model.multimodal_cfg.image_token
        x = self.model.embed_tokens(self.asked.masked_fill(where, 0))
        return x.masked_scatter(where[:, None], self.framed[number]), where

    def logits(self, x: Tensor) -> Tensor:
        """Of the next token, from vectors (T, C). -> (V,)."""
        return self.model.lm_head(self.model.norm(self.model.run_blocks(x[None]))[0, -1])

    def word(self, logits: Tensor) -> str:
        return self.processor.tokenizer.decode([int(logits.argmax())]).strip()


@cache
def _seeing() -> _Seen:
    model, processor = from_pretrained("senses", dtype=torch.float32)
    pictures = [Scene("circle", colour, left=20, top=24, size=24).draw() for colour in ("red", "blue")]
    with torch.no_grad():
        features = model.perceive(Media(pixels=processor.image_processor(pictures)))
        tokens = model.bridged(features)["image"]
        framed = model.image_bridge.framed(*tokens)[0]
    cfg = model.multimodal_cfg
    content = [[cfg.image_token] * cfg.n_image_places(), "what color is the shape?"]
    example = encode_dialogue([{"role": "user", "content": content}, {"role": "assistant", "content": "red"}],
                              processor.tokenizer, chat=chat_format(processor.tokenizer))  # fmt: skip
    return _Seen(model, processor, Features(images=features.images[:1]), torch.tensor(example.ids),
                 torch.tensor(example.learn), framed)  # fmt: skip


def _of_words(who: str, ours: Tensor, theirs: Tensor, different: str) -> Verdict:
    """On the logits (V,) of the next token."""
    seen, difference = _seeing(), apart(ours, theirs)
    begin = f"{who}: it says {seen.word(ours)!r} · {distance(difference)}: "
    if difference <= ROUNDING:
        return Verdict(True, begin + (SAME if difference else "the same"))
    return Verdict(False, f"{begin}{different}; with the package's own it says {seen.word(theirs)!r}")


@torch.no_grad()
def splice(answer: Any) -> Verdict:
    """14.2: a red circle's tokens among the words, and then a prompt that has lost a place."""
    seen = _seeing()
    right, where = seen.embedded(0)
    where = where[None]
    given = seen.model.embed_tokens(seen.asked[None].masked_fill(where, 0))
    x, features = given.clone(), seen.framed[0]
    verdict = _of_words(f"senses asked for a red circle's color, with your splice, {int(where.sum())} places",
                        seen.logits(answer(given, where.clone(), features)[0]), seen.logits(right),
                        "a different prompt")  # fmt: skip
    if not verdict.same:
        return verdict
    if not torch.equal(given, x):
        return Verdict(False, f"{verdict.line}, but the words' own embeddings were changed")
    short = where.clone()
    short[0, int(where[0].nonzero()[0])] = False
    try:
        answer(x.clone(), short, features)
    except ValueError:
        return Verdict(True, f"{verdict.line}; a prompt that lost a place is refused")
    return Verdict(False, f"{verdict.line}, but a prompt that lost a place is not refused")


@torch.no_grad()
def learned(answer: Any) -> Verdict:
    """14.3: the loss of an answer about a picture; all of its places are marked by mistake."""
    seen = _seeing()
    model, ids = seen.model, seen.ids
    learn = seen.learn | (ids == model.multimodal_cfg.image_token)
    right = ids.where(learn & (ids < model.cfg.vocab_size), IGNORE)[1:]
    read, targets = answer(ids.clone(), learn.clone(), model.cfg.vocab_size)
    hidden = model.hidden_states(read[None], features=seen.features)[0]
    ours = loss_of(model.hidden_states(ids[None, :-1], features=seen.features)[0], right)
    same = torch.equal(read, ids[:-1]) and torch.equal(targets, right)
    return of_losses("senses with your learned, the answer 'red'", loss_of(hidden, targets), ours, same)


@torch.no_grad()
def patched(answer: Any) -> Verdict:
    """14.4: all tokens of a blue circle in a prompt about a red one; and some of them."""
    seen = _seeing()
    (x, where), (donor, _) = seen.embedded(0), seen.embedded(1)
    inner = where.nonzero().flatten()[1:-1]
    verdicts = []
    for chosen in ([7, 1], list(range(len(inner)))):
        right = x.clone()
        right[inner[chosen]] = donor[inner[chosen]]
        ours = answer(x.clone(), donor.clone(), where.clone(), list(chosen))
        who = f"senses sees a red circle; with {len(chosen)} tokens of a blue one by your patched"
        verdicts.append(_of_words(who, seen.logits(ours), seen.logits(right), "different tokens"))
    return next((verdict for verdict in verdicts if not verdict.same), verdicts[-1])


SWAPS = {"14.2": splice, "14.3": learned, "14.4": patched}
