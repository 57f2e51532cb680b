"""A model of this package as one that NVIDIA's garak probes, through its own door for functions.

    garak --target_type function --target_name "llamamm.evals.garak_function#respond" --probes dan.Dan_11_0 \\
          --generator_options '{"function": {"Single": {"kwargs": {"model": "senses", "guard": "own"}}}}'

garak 0.17 gives the function a prompt and its keywords, and takes a list of answers. It belongs beside this package in
an environment of its own, as it asks for other versions of `transformers`. Used in notebook 18.
"""

from __future__ import annotations

from functools import cache

from llamamm.generation.generate import TextStream
from llamamm.generation.guarded import GuardedStream, Judge
from llamamm.pretrained.ready import Ready, load_ready
from llamamm.safety.guard import load_guard

REFUSED = "I can't help with that."  # where the guard has stopped a prompt or an answer; detectors know such words


def respond(
    prompt: str, *, model: str = "smollm2", adapter: str | None = None, guard: str | None = None,
    max_new_tokens: int = 150,
) -> list[str | None]:  # fmt: skip
    """One greedy answer to a prompt, as garak's generator `function.Single` asks for it.

    guard: "own", or a Llama Guard by its name or folder. Raises as `load_ready` and `load_guard`.
    """
    _, llama, processor = _opened(model, adapter)
    ids = processor.chat([{"role": "user", "content": prompt}]).ids
    stream = TextStream(llama, processor.tokenizer, ids, max_new_tokens=max_new_tokens,
                        device=llama.embed_tokens.weight.device)  # fmt: skip
    if guard is None:
        return ["".join(stream)]
    guarded = GuardedStream(stream, _guard(guard), prompt)
    text = "".join(guarded)
    return [text if guarded.refusal is None else REFUSED]


@cache
def _opened(model: str, adapter: str | None) -> Ready:
    return load_ready(model, adapter)


@cache
def _guard(name: str) -> Judge:
    return load_guard(name)
