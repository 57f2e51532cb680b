"""What lesson 16 has the learner write, beside the package's own, on SmolLM2's embeddings and on a model that sees and
hears. Each function takes an answer and gives a verdict.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from llamamm.course.swap import real_model
from llamamm.course.swaps_verdict import ROUNDING, SAME, Verdict, apart, distance
from llamamm.lora.lora import apply_lora, remove_lora, set_lora_enabled
from llamamm.multimodal.compact import SHARPNESS, word_scores
from llamamm.multimodal.model import MultimodalLlama
from llamamm.pretrained.compose import read_composed_config
from llamamm.text.chat import chat_format
from llamamm.train.alignment import nearest_words, picture_loss
from llamamm.train.losses import IGNORE
from llamamm.train.preference import answer_log_probs, preference_loss
from llamamm.train.rows import encode_dialogue

SEEN = (" red", " circle", " blue", " triangle")  # what tokens lie near to
ANSWERS = (("Is the sky blue?", "Yes.", "No."), ("Is grass blue?", "No.", "Yes."))


@cache
def _table() -> tuple[Tensor, Tensor, list[int]]:
    """SmolLM2's embeddings, their mean, and the ids of some words."""
    model, tokenizer = real_model()
    table = model.embed_tokens.weight.detach()
    return table, table.mean(dim=0), [tokenizer.encode(word)[0] for word in SEEN]


def _near(*which: int | None) -> Tensor:
    """Tokens near to some of the words, or to nothing at all. -> (M, C)"""
    table, nothing, words = _table()
    rng = torch.Generator().manual_seed(0)
    places = torch.stack([nothing if n is None else table[words[n]] for n in which])
    return places + 0.03 * torch.randn(places.shape, generator=rng)


@torch.no_grad()
def nearness(answer: Any) -> Verdict:
    """16.1: which of 49,152 words tokens lie nearest to."""
    (table, nothing, _), tokens = _table(), _near(0, None, 1, 2, None, 3)
    ours = answer(tokens.clone(), table.clone(), nothing.clone())
    theirs = word_scores(tokens, table, nothing) / SHARPNESS - tokens.square().sum(dim=1, keepdim=True) / 2
    tokenizer, difference = real_model()[1], apart(ours, theirs)
    said = " ".join("·" if n == 0 else tokenizer.decode([n - 1]).strip() for n in ours.argmax(dim=1).tolist())
    begin = (f"six tokens among SmolLM2's embeddings, read with your nearness: {said} · "
             f"{distance(difference, 'numbers')}: ")  # fmt: skip
    if difference <= ROUNDING:
        return Verdict(True, begin + (SAME if difference else "the same"))
    return Verdict(False, f"{begin}different distances")


def words_loss(answer: Any) -> Verdict:
    """16.2: how nine tokens of a bridge that is near to nothing would have to move. The gradient says it."""
    table, nothing, words = _table()
    start = 0.3 * _near(0, None, None, 1, None, None, 2, None, None)

    def gradient(loss: Any) -> tuple[float, Tensor]:
        tokens = start.clone().requires_grad_()
        value = loss(word_scores(tokens, table[words], nothing).log_softmax(dim=-1), [1, 2])
        value.backward()
        return float(value.detach()), tokens.grad

    (mine, ours), (value, theirs) = gradient(answer), gradient(picture_loss)
    difference = max(apart(ours, theirs), abs(mine - value))
    begin = (f"nine tokens that should say red circle: your words_loss is {mine:.3f}, the package's {value:.3f} · "
             f"{distance(difference, 'gradients')}: ")  # fmt: skip
    if difference <= ROUNDING:
        return Verdict(True, begin + (SAME if difference else "the same"))
    return Verdict(False, f"{begin}the bridge would learn something different")


@cache
def _shapes() -> dict[str, nn.Parameter]:
    """The parameters of SmolLM2 with an eye, an ear and LoRA, without their numbers."""
    with torch.device("meta"):
        model = MultimodalLlama(read_composed_config(image_size=168, image_bridge={"width": 256}))
        apply_lora(model, r=8, alpha=16.0, targets=[f"layers.*.{name}" for name in ("q_proj", "v_proj", "up_proj")])
    return dict(model.named_parameters())


def part_of(answer: Any) -> Verdict:
    """16.3: all parameters of a real model, by where the package keeps them."""
    counts: dict[str, int] = {}
    wrong = []
    for name, parameter in _shapes().items():
        part, right = answer(name), _own_part(name)
        counts[right] = counts.get(right, 0) + parameter.numel() * (part == right)
        if part != right:
            wrong.append(f"{name} is {right}, not {part}")
    told = ", ".join(f"{part} {n:,}" for part, n in sorted(counts.items()))
    begin = f"SmolLM2 with eye, ear and LoRA, {len(_shapes()):,} names: {told} numbers: "
    return Verdict(not wrong, begin + ("the same" if not wrong else f"{len(wrong)} names differ; {wrong[0]}"))


def _own_part(name: str) -> str:
    first = name.split(".")[0]
    if ".lora_" in name:
        return "lora"
    return "towers" if first in MultimodalLlama.TOWERS else "bridges" if first in MultimodalLlama.ADDED else "text"


@torch.no_grad()
def heard(answer: Any) -> Verdict:
    """16.4: tokens among real embeddings, some of them twice in a row."""
    (table, nothing, words), tokenizer = _table(), real_model()[1]
    tokens = _near(None, 0, None, 1, 2, 2, None, 2, None)
    best = word_scores(tokens, table[words], nothing).argmax(dim=-1).tolist()
    path = ["_" if n == 0 else tokenizer.decode([words[n - 1]]).strip() for n in best]
    model = real_model()[0]
    (ids,) = nearest_words(model, tokens[None], torch.ones(1, len(tokens), dtype=torch.bool), words)
    ours, theirs = answer([*path]), [tokenizer.decode([i]).strip() for i in ids]
    begin = f"\"{' '.join(path)}\" near SmolLM2's embeddings, read with your heard: {' '.join(map(str, ours))}: "
    return Verdict(ours == theirs, begin + ("the same" if ours == theirs else f"the package reads {' '.join(theirs)}"))


@torch.no_grad()
def preferred(answer: Any) -> Verdict:
    """16.5: two pairs of SmolLM2's answers, and an adapter that has moved it a little."""
    model, tokenizer = real_model()
    chat, rows = chat_format(tokenizer), []
    for question, *both in ANSWERS:
        for text in both:
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
            example = encode_dialogue(messages, tokenizer, chat=chat)
            ids, learn = torch.tensor([example.ids]), torch.tensor([example.learn])
            rows.append((ids[:, :-1], ids.where(learn, IGNORE)[:, 1:]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        apply_lora(model, r=2, alpha=4.0, layers=[0])
    try:
        for name, parameter in model.named_parameters():
            if ".lora_b." in name:
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
        now = torch.cat([answer_log_probs(model, *row) for row in rows])
        set_lora_enabled(model, False)
        before = torch.cat([answer_log_probs(model, *row) for row in rows])
    finally:
        remove_lora(model)
        model.requires_grad_(True)
    given = now[::2], now[1::2], before[::2], before[1::2]
    ours, theirs = answer(*(t.clone() for t in given), 0.5), preference_loss(*given, beta=0.5)
    difference = apart(ours, theirs)
    begin = (f"two of SmolLM2's pairs with your preferred: losses {', '.join(f'{x:.3f}' for x in ours.flatten())} · "
             f"{distance(difference, 'losses')}: ")  # fmt: skip
    if difference <= ROUNDING:
        return Verdict(True, begin + (SAME if difference else "the same"))
    return Verdict(False, f"{begin}the package's are {', '.join(f'{x:.3f}' for x in theirs)}")


SWAPS = {"16.1": nearness, "16.2": words_loss, "16.3": part_of, "16.4": heard, "16.5": preferred}
