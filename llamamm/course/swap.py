"""Your code in the real model: `with swap(rope=my_apply_rope): ...` puts what you wrote into the pretrained SmolLM2.

For the block, every place that used the package's part uses yours; afterwards the package's part is back, also after
an exception. On entering, it says what changed: the largest difference of a logit, and the text with and without.
A cache or a mask is compared on a prompt read in two pieces, since one pass needs neither.

    apply_rope        rope=            function (x, cos, sin) -> x
    RMSNorm           norm=            function (x, weight, eps) -> x, or a module class with the same attributes
    FeedForward       feed_forward=    function (x, gate, up, down weights) -> x, or a module class
    fused_attention   attention=       function (q, k, v, mask) -> out
    build_mask        mask=            function with build_mask's arguments
    KVCache           cache=           class
    TransformerBlock  block=           a module class
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from llamamm.errors import InputError, SamplingError
from llamamm.generation.generate import TextStream
from llamamm.pretrained.load import from_pretrained
from llamamm.text.chat import chat_format
from llamamm.text.layers import FeedForward, RMSNorm
from llamamm.text.model import Llama3Model, TransformerBlock
from llamamm.text.tokenizer import Tokenizer

QUESTION = "What is the capital of France?"
NO_TEXT = "(no text: with your part in it, the model's logits are NaN)"


@dataclass
class SwapReport:
    """What a swap changed. `model` and `tokenizer` are the real ones, with your part in them during the block."""

    model: Llama3Model
    tokenizer: Tokenizer
    text_before: str
    text: str = ""
    logit_difference: float = float("nan")

    def answer(self, question: str, *, max_new_tokens: int = 40) -> str:
        """The model's greedy answer to another question."""
        return _answer(self.model, self.tokenizer, question, max_new_tokens)

    def __str__(self) -> str:
        same = "the same text" if self.text == self.text_before else f"with yours: {self.text!r}"
        return (
            f"largest logit difference: {self.logit_difference:.2g}\n"
            f"without: {self.text_before!r}\n{same}"
        )


class swap:  # noqa: N801 (a context manager, read as a verb)
    """Put learner's parts into the real model for a block. Use as `with swap(rope=mine) as report:`; may be nested.

    question: what the model is asked to show the change; quiet=True prints nothing.
    Raises InputError for a part that does not exist. What your part raises inside the model comes out of the `with`
    line, with the model restored.
    """

    n_open = 0  # blocks that have not ended

    def __init__(
        self, *, question: str = QUESTION, max_new_tokens: int = 24, quiet: bool = False, **parts: Any
    ) -> None:
        unknown = sorted(set(parts) - set(_PATCHES))
        if unknown or not parts:
            raise InputError(f"swap takes {', '.join(_PATCHES)}; got {', '.join(unknown) or 'nothing'}")
        not_callable = [name for name, part in parts.items() if not callable(part)]
        if not_callable:
            raise InputError(f"swap({not_callable[0]}=...) takes a function or class, got {parts[not_callable[0]]!r}")
        self.parts, self.question, self.max_new_tokens, self.quiet = parts, question, max_new_tokens, quiet
        self.stack = ExitStack()

    def __enter__(self) -> SwapReport:
        model, tokenizer = real_model()
        in_two = not {"cache", "mask"}.isdisjoint(self.parts)
        without = _without.__wrapped__ if swap.n_open else _without  # nested: the one around has changed the model
        logits, text = without(self.question, self.max_new_tokens, in_two, state_of(model))
        report = SwapReport(model, tokenizer, text)
        with ExitStack() as stack:
            stack.callback(setattr, swap, "n_open", swap.n_open)
            swap.n_open += 1
            for name, part in self.parts.items():
                _PATCHES[name](stack, model, part)
            report.logit_difference = float((_read(self.question, in_two) - logits).abs().max())
            report.text = _answer(model, tokenizer, self.question, self.max_new_tokens)
            self.stack = stack.pop_all()  # nothing went wrong: the patches stay until the block ends
        if not self.quiet:
            print(report)
        return report

    def __exit__(self, *error: object) -> None:
        self.stack.close()


@cache
def real_model() -> tuple[Llama3Model, Tokenizer]:
    """SmolLM2 in fp32 on the CPU and its tokenizer, loaded once."""
    return from_pretrained("smollm2", dtype=torch.float32, fast=False)


def state_of(model: nn.Module) -> tuple:
    """Something else as soon as a weight or a buffer is another one, or was written to."""
    return tuple((t.data_ptr(), t._version) for t in (*model.parameters(), *model.buffers()))


@lru_cache(maxsize=32)
def _without(question: str, max_new_tokens: int, in_two: bool, _state: tuple) -> tuple[Tensor, str]:
    """Logits and answer of the model as it is, the same each time."""
    return _read(question, in_two), _answer(*real_model(), question, max_new_tokens)


@torch.no_grad()
def _read(question: str, in_two: bool) -> Tensor:
    """Logits (1, T, V) of a question; read in two pieces through a cache, which one pass would not need."""
    model, tokenizer = real_model()
    ids = torch.tensor([chat_format(tokenizer).encode([{"role": "user", "content": question}])])
    if not in_two:
        return model(ids)
    memory, half = model.make_cache(max_length=ids.shape[1]), ids.shape[1] // 2
    return torch.cat([model(ids[:, :half], cache=memory), model(ids[:, half:], cache=memory)], dim=1)


def _answer(model: Llama3Model, tokenizer: Tokenizer, question: str, max_new_tokens: int) -> str:
    ids = chat_format(tokenizer).encode([{"role": "user", "content": question}])
    try:
        return "".join(TextStream(model, tokenizer, ids, max_new_tokens=max_new_tokens))
    except SamplingError:  # the real weights are whole, so the NaN are the swapped part's
        return NO_TEXT


def _patch_name(*places: str) -> Callable[[ExitStack, Llama3Model, Any], None]:
    """Replace a name in the modules that use it."""

    def apply(stack: ExitStack, _model: Llama3Model, part: Any) -> None:
        for place in places:
            stack.enter_context(patch(place, part))

    return apply


def _patch_attention(stack: ExitStack, model: Llama3Model, part: Any) -> None:
    for layer in model.layers:
        stack.enter_context(patch.object(layer.self_attn, "attend", part))


def _patch_forward(kind: type[nn.Module], arguments: Callable[[Any], tuple]):
    """Replace the forward pass of every module of one kind: by a class's own, or by a function of the weights."""

    def apply(stack: ExitStack, _model: Llama3Model, part: Any) -> None:
        if isinstance(part, type) and issubclass(part, nn.Module):
            stack.enter_context(patch.object(kind, "forward", part.forward))
        else:
            stack.enter_context(patch.object(kind, "forward", lambda module, x: part(x, *arguments(module))))

    return apply


def _patch_block(stack: ExitStack, _model: Llama3Model, part: Any) -> None:
    if not (isinstance(part, type) and issubclass(part, nn.Module)):
        raise InputError(f"swap(block=...) takes a module class with TransformerBlock's attributes, got {part!r}")
    stack.enter_context(patch.object(TransformerBlock, "forward", part.forward))


_PATCHES: dict[str, Callable[[ExitStack, Llama3Model, Any], None]] = {
    "rope": _patch_name("llamamm.text.attention.apply_rope"),
    "norm": _patch_forward(RMSNorm, lambda m: (m.weight, m.eps)),
    "feed_forward": _patch_forward(
        FeedForward, lambda m: (m.gate_proj.weight, m.up_proj.weight, m.down_proj.weight)
    ),
    "attention": _patch_attention,
    "mask": _patch_name("llamamm.text.model.build_mask"),
    "cache": _patch_name("llamamm.text.model.KVCache"),
    "block": _patch_block,
}
