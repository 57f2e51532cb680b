"""What lessons 05 to 10 have the learner write beside the forward pass, put into SmolLM2: reading on, files, sampling,
LoRA, rows of training. Each function takes an answer and gives a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import save
from torch import Tensor, nn

from llamamm.course.swap import QUESTION, real_model
from llamamm.course.swaps_text import N_NEW, new_ids, prompt
from llamamm.course.swaps_verdict import ROUNDING, SAME, Verdict, apart, distance, of_answers
from llamamm.generation.generate import TextStream, TokenStream
from llamamm.generation.sampling import SamplingConfig, keep_top_p
from llamamm.lora.lora import LoraLinear
from llamamm.lora.settings import LoraSettings
from llamamm.text.model import Llama3Model
from llamamm.train.losses import IGNORE, cross_entropy_sum
from llamamm.train.rows import encode_dialogue

STORY = "Tell me a story about a dog."
ANSWERS = ("Paris.", "It is Paris, which lies on the Seine and has been the capital for many hundreds of years.")
GRADIENT = 1e-4  # of its length, which other orders of summation move it by
DIALOGUE = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "It is Paris."}]


@torch.no_grad()
def _asked(model: Llama3Model) -> tuple[Tensor, str]:
    """The logits of the question and the greedy answer."""
    logits = model(torch.tensor([prompt()]))
    return logits, "" if logits.isnan().any() else real_model()[1].decode(new_ids(list(prompt())))


# ---- 05.4, 06.3, 07: reading on, a model from a dictionary, a file ----


@torch.no_grad()
def read_on(answer: Any) -> Verdict:
    """05.4: a second question about what the cache holds already."""
    model = real_model()[0]
    old, new = list(prompt(STORY)), list(prompt("Tell me a story about a cat and a mouse."))
    cache, right = model.make_cache(), model(torch.tensor([new]), last_only=True)[0, -1]
    model(torch.tensor([old]), cache=cache)
    sizes: list[int] = []
    handle = model.embed_tokens.register_forward_hook(lambda _module, inputs, _out: sizes.append(inputs[0].shape[1]))
    try:
        difference = apart(answer(model, cache, old, new, chunk=8), right)
    finally:
        handle.remove()
    who = f"SmolLM2 read on with your read_on, {sum(sizes)} tokens instead of {len(new)}"
    end = f"{distance(difference)} from a fresh reading: "
    if not difference <= ROUNDING:
        return Verdict(False, f"{who}: {end}it has read a different text")
    same = next(i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
    if sum(sizes) > len(new) - same:
        return Verdict(False, f"{who}: {end}the same, but {len(new) - same} tokens would have been enough")
    return Verdict(True, f"{who}: {end}{SAME}")


def llama_logits(answer: Any) -> Verdict:
    """06.3"""
    model = real_model()[0]
    ids = torch.tensor([prompt()])
    with torch.no_grad():
        logits, right = answer(dict(model.state_dict()), model.cfg, ids), model(ids)
        first, package = (real_model()[1].decode([int(x[0, -1].argmax())]) for x in (logits, right))
    return of_answers("SmolLM2 as your llama_logits, its next word", apart(logits, right), first, package)


@contextmanager
def _with_weights(model: Llama3Model, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Other weights for a block, by name."""
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].data for name in tensors}
    try:
        for name, tensor in tensors.items():
            parameters[name].data = tensor
        yield
    finally:
        for name, tensor in before.items():
            parameters[name].data = tensor


def read_tensors(answer: Any) -> Verdict:
    """07.2: a file that holds all norms and all key matrices of SmolLM2."""
    model = real_model()[0]
    right = {name: p.detach().clone() for name, p in model.named_parameters() if "norm" in name or "k_proj" in name}
    read = answer(save(right, metadata={"format": "pt"}))
    who = f"SmolLM2 with {len(read)} tensors from your read_tensors"
    if wrong := sorted(read.keys() ^ right.keys()):
        return Verdict(False, f"{who}: not the {len(right)} names of the file: {wrong[0]!r} is in one of the two alone")
    for name, tensor in right.items():
        if read[name].shape != tensor.shape:
            return Verdict(False, f"{who}: {name} has the shape {tuple(read[name].shape)}, not {tuple(tensor.shape)}")
    logits, package = _asked(model)
    with _with_weights(model, read):
        got, said = _asked(model)
    return of_answers(who, apart(got, logits), said, package)


# ---- 08: sampling, stop strings ----


@torch.no_grad()
def top_p(answer: Any) -> Verdict:
    """08.2: drawn from with p = 0.9 at each step of an answer; what is kept is compared with what the package keeps."""
    model, tokenizer = real_model()
    kept: list[tuple[int, int, int]] = []  # yours, the package's, words that one of them keeps alone

    def watched(logits: Tensor, p: float) -> Tensor:
        out, right = answer(logits.clone(), p), keep_top_p(logits, p)
        yours, ours = out > -math.inf, right > -math.inf
        kept.append((int(yours.sum()), int(ours.sum()), int((yours != ours).sum())))
        return out

    def said() -> str:
        stream = TokenStream(model, torch.tensor([prompt(STORY)]), max_new_tokens=N_NEW, seed=1,
                             sampling=SamplingConfig(temperature=1.0, top_p=0.9))  # fmt: skip
        return tokenizer.decode([int(token) for token in stream])

    package = said()
    with patch("llamamm.generation.sampling.keep_top_p", watched):
        text = said()
    where = max(range(len(kept)), key=lambda i: kept[i][2])
    yours, ours, off = kept[where]
    begin = f"SmolLM2 drawing by your top_p: {text!r} · "
    if off <= 1 and text == package:  # a word on the border may fall on either side
        return Verdict(True, f"{begin}{sum(k for k, _, _ in kept)} words kept in {len(kept)} steps, as the package's: "
                             f"the same")  # fmt: skip
    return Verdict(False, f"{begin}at word {where + 1} you keep {yours:,} words, the package {ours:,}: a different "
                          f"draw, the package's says {package!r}")  # fmt: skip


def until_stop(answer: Any) -> Verdict:
    """08.3: SmolLM2's own pieces, and the text up to a stop string that goes over the border of two of them."""
    model, tokenizer = real_model()
    pieces = list(TextStream(model, tokenizer, list(prompt()), max_new_tokens=N_NEW))
    whole = "".join(pieces)
    end = "of Fr"
    asked: list[str] = []
    text = "".join(answer((asked.append(piece) or piece for piece in pieces), [end]))
    right = whole[: whole.index(end)]
    begin = f"SmolLM2's stream through your until_stop({end!r}): {text!r} after {len(asked)} of {len(pieces)} pieces: "
    needed = next(n for n in range(len(pieces) + 1) if end in "".join(pieces[:n]))
    if text != right:
        return Verdict(False, f"{begin}not the same, the package stops after {right!r}")
    if len(asked) > needed:
        return Verdict(False, f"{begin}the text is the same, but the model works on after piece {needed}")
    return Verdict(True, f"{begin}the same")


# ---- 09: LoRA ----


def _linears(model: Llama3Model) -> list[tuple[nn.Module, str]]:
    return [(layer.self_attn, name) for layer in model.layers for name in ("q_proj", "v_proj")]


@contextmanager
def _around(model: Llama3Model, make: Callable[[nn.Module], nn.Module]) -> Iterator[list[Any]]:
    """Queries and values of every block with a layer around them, and nothing else that trains; afterwards everything
    is as it was.
    """
    places = _linears(model)
    bases = [getattr(owner, name) for owner, name in places]
    trained = {p: p.requires_grad for p in model.parameters()}
    try:
        model.requires_grad_(False)
        layers = []
        for (owner, name), base in zip(places, bases, strict=True):
            layers.append(make(base.requires_grad_()))
            setattr(owner, name, layers[-1])
        yield layers
    finally:
        for (owner, name), base in zip(places, bases, strict=True):
            setattr(owner, name, base)
        for p, flag in trained.items():
            p.requires_grad_(flag)
            p.grad = None


def _strips(base: nn.Linear, number: int) -> tuple[Tensor, Tensor]:
    """a (8, C) and b (N, 8) of an adapter that says something."""
    g = torch.Generator().manual_seed(number)
    N, C = base.weight.shape
    return torch.randn(8, C, generator=g) / C**0.5, 0.05 * torch.randn(N, 8, generator=g)


def _package_layer(base: nn.Linear, number: int) -> LoraLinear:
    layer = LoraLinear(base)
    layer.add("x", LoraSettings(8, 16.0))
    layer.active = "x"
    layer.lora_a["x"].data, layer.lora_b["x"].data = _strips(base, number)
    return layer


def _with_adapter() -> tuple[Tensor, str]:
    """What SmolLM2 says with the package's adapter beside its weights."""
    model = real_model()[0]
    numbers = count()
    with _around(model, lambda base: _package_layer(base, next(numbers))):
        return _asked(model)


def lora_layer(answer: Any) -> Verdict:
    """09.3: fresh around 60 matrices, then with strips that say something, then one backward pass."""
    model = real_model()[0]
    ids, (right, package) = torch.tensor([prompt()]), _with_adapter()
    bases = [getattr(owner, name) for owner, name in _linears(model)]
    with torch.no_grad():
        plain = model(ids)
    with _around(model, lambda base: answer(base, 8, 16.0)) as layers:
        logits = model(ids)
        fresh = apart(logits, plain)
        logits[0, -1].logsumexp(dim=0).backward()
        learning = sum(p.numel() for p in model.parameters() if p.grad is not None)
        moving = any(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)
        with torch.no_grad():
            for n, (base, layer) in enumerate(zip(bases, layers, strict=True)):
                for own, strip in zip((layer.a, layer.b), _strips(base, n), strict=True):
                    own.copy_(strip)
        logits, said = _asked(model)
    expected = sum(8 * sum(getattr(owner, name).weight.shape) for owner, name in _linears(model))
    but = ""
    if not fresh <= ROUNDING:
        but = f"fresh, before it has learned anything, it is {fresh:.2g} from SmolLM2"
    elif learning != expected:
        but = f"{learning:,} of its numbers get a gradient, {expected:,} should"
    elif not moving:
        but = "all its gradients are 0: it would never learn anything"
    return of_answers(f"SmolLM2 with {len(layers)} of your LoraLayer", apart(logits, right), said, package, but=but)


def merged_weight(answer: Any) -> Verdict:
    """09.4: an adapter in 60 matrices, beside the same adapter next to them."""
    model = real_model()[0]
    right, package = _with_adapter()
    merged = {}
    for n, (owner, name) in enumerate(_linears(model)):
        base = getattr(owner, name)
        path = next(path for path, module in model.named_modules() if module is base)
        merged[f"{path}.weight"] = answer(base.weight.detach().clone(), *_strips(base, n), 16.0)
    with _with_weights(model, merged):
        logits, said = _asked(model)
    return of_answers(f"SmolLM2 with {len(merged)} of your merged_weight", apart(logits, right), said, package,
                      but=_in_bf16(answer))  # fmt: skip


@torch.no_grad()
def _in_bf16(answer: Any) -> str:
    """What is wrong with a merge into one real matrix in bf16."""
    owner, name = _linears(real_model()[0])[0]
    base = nn.Linear(*reversed(getattr(owner, name).weight.shape), bias=False, dtype=torch.bfloat16)
    base.weight.copy_(getattr(owner, name).weight)
    (a, b), before = _strips(base, 0), base.weight.detach().clone()
    got, right = answer(base.weight.detach(), a, b, 16.0), _package_layer(base, 0).merged_weight()
    if got.dtype != right.dtype:
        return f"of a bf16 matrix it makes {str(got.dtype).removeprefix('torch.')}"
    if not torch.equal(base.weight, before):
        return "it changes the matrix that was given"
    off = int((got != right).sum())  # an order of summation moves one in thousands over the border
    return f"in bf16, {off:,} of {got.numel():,} numbers are rounded twice" if off > got.numel() / 1000 else ""


# ---- 10: what is learned, rows ----


@torch.no_grad()
def loss_of(hidden: Tensor, targets: Tensor) -> tuple[float, int]:
    """The mean loss over what is learned, and how many places that are."""
    n = int((targets != IGNORE).sum())
    return float(cross_entropy_sum(hidden, real_model()[0].lm_head.weight, targets)) / max(n, 1), n


def of_losses(who: str, yours: tuple[float, int], ours: tuple[float, int], same: bool) -> Verdict:
    """Two losses with the numbers of their places, and whether all targets agree."""
    begin = f"{who}: loss {yours[0]:.3f} over {yours[1]} tokens, the package's {ours[0]:.3f} over {ours[1]}: "
    return Verdict(same, begin + ("the same" if same else "it would learn something different"))


@torch.no_grad()
def targets_of(answer: Any) -> Verdict:
    """10.1: the loss of an answer."""
    model, tokenizer = real_model()
    example = encode_dialogue(DIALOGUE, tokenizer)
    ids, learn = torch.tensor(example.ids), torch.tensor(example.learn)
    right = torch.cat([ids.where(learn, IGNORE)[1:], torch.tensor([IGNORE])])
    hidden = model.hidden_states(ids[None])[0]
    targets = answer(ids.clone(), learn.clone())
    return of_losses("SmolLM2 with your targets_of", loss_of(hidden, targets), loss_of(hidden, right),
                     torch.equal(targets, right))  # fmt: skip


def accumulate(answer: Any) -> Verdict:
    """10.3: two answers of different length as pieces, beside both at once. All of it happens to SmolLM2's head."""
    model, tokenizer = real_model()
    with torch.no_grad():
        dialogues = [[DIALOGUE[0], {"role": "assistant", "content": text}] for text in ANSWERS]
        examples = [encode_dialogue(dialogue, tokenizer) for dialogue in dialogues]
        hidden = [model.hidden_states(torch.tensor([example.ids]))[0, :-1] for example in examples]
    targets = [torch.tensor(e.ids).where(torch.tensor(e.learn), IGNORE)[1:] for e in examples]
    head, yours = (model.lm_head.weight.detach().clone().requires_grad_() for _ in range(2))
    counts = [int((t != IGNORE).sum()) for t in targets]
    right = cross_entropy_sum(torch.cat(hidden), head, torch.cat(targets)) / sum(counts)
    right.backward()
    mean, wanted = float(answer(yours, list(zip(hidden, targets, strict=True)))), float(right.detach())
    off = math.inf if yours.grad is None else float((yours.grad - head.grad).norm() / head.grad.norm())
    begin = (f"SmolLM2's head with your accumulate, answers of {counts[0]} and {counts[1]} tokens: loss {mean:.3f}, "
             f"both at once {wanted:.3f}; gradients")  # fmt: skip
    if off < GRADIENT and abs(mean - wanted) < ROUNDING:
        return Verdict(True, f"{begin} equal to {GRADIENT:g} of their length: {SAME}")
    step = "missing: it has no gradient" if yours.grad is None else f"{off:.0%} of their length apart: a different step"
    return Verdict(False, f"{begin} {step if off >= GRADIENT else 'equal: same step, but the loss is not the mean'}")


@torch.no_grad()
def rows_mask(answer: Any) -> Verdict:
    """10.2: two texts and filling in one row, beside each text alone."""
    model = real_model()[0]
    texts = [list(prompt()), list(prompt(STORY))]
    ids = torch.tensor([[*texts[0], *texts[1], 0, 0, 0]])
    segments = torch.tensor([[1] * len(texts[0]) + [2] * len(texts[1]) + [0] * 3])
    alone = torch.cat([model(torch.tensor([text]))[0] for text in texts])
    with patch("llamamm.text.model.packed_mask", lambda segments: answer(segments)[:, None]):
        packed = model(ids, segments=segments)[0, : len(alone)]
    words = (real_model()[1].decode([int(x[len(texts[0]) - 1].argmax())]) for x in (packed, alone))
    difference = apart(packed, alone)
    return of_answers("SmolLM2 with your rows_mask, two texts in a row beside each alone", difference, *words)


SWAPS = {
    "05.4": read_on,
    "06.3": llama_logits,
    "07.2": read_tensors,
    "08.2": top_p,
    "08.3": until_stop,
    "09.3": lora_layer,
    "09.4": merged_weight,
    "10.1": targets_of,
    "10.2": rows_mask,
    "10.3": accumulate,
}
