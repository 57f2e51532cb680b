"""What a model answers to many questions, greedily, with pictures and sounds in them, several at a time.

    conversations -> batches of like length, padded on the left -> generate -> one text for each

Words alone that are asked twice are answered once, and what all prompts of a batch begin with, as the template's
system message, is read once.

Used in notebooks 14, 16 and 17.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llamamm.generation.beginning import begun
from llamamm.generation.generate import generate
from llamamm.generation.prompts import Conversation, Processor, as_processor
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer

AT_ONCE = 64  # prompts that are sorted by their lengths


def answers(
    model: Llama3Model, reader: Tokenizer | Processor, asked: Sequence[Conversation], *,
    max_new_tokens: int = 24, batch_size: int = 16, say: Callable[[int], None] = lambda _n: None,
) -> list[str]:  # fmt: skip
    """The greedy answer to each conversation, in their order; the longest prompts are read first, like with like.

    say: told after each batch how many are answered. Raises InputError.
    """
    processor, device = as_processor(reader), model.embed_tokens.weight.device
    stop_ids, found = processor.tokenizer.stop_ids, [""] * len(asked)
    asked_first: dict[tuple[int, ...], int] = {}  # of words alone: where they were asked for the first time
    for first in range(0, len(asked), AT_ONCE):  # so many prompts are in memory, with what is seen and heard
        prompts = [processor.chat(messages) for messages in asked[first : first + AT_ONCE]]
        alike = [n if prompt.inputs else asked_first.setdefault(tuple(prompt.ids), n)
                 for n, prompt in enumerate(prompts, first)]  # fmt: skip
        order = sorted((n for n in range(len(prompts)) if alike[n] == first + n), key=lambda n: -len(prompts[n].ids))
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            ids, padding, inputs = processor.batch([prompts[row] for row in rows])
            inputs = {key: value.to(device) for key, value in inputs.items()}
            cache = begun(model, [prompts[row].ids for row in rows], room=max_new_tokens)
            out = generate(model, ids.to(device), max_new_tokens, padding=padding.to(device), inputs=inputs,
                           stop_ids=stop_ids, cache=cache)  # fmt: skip
            for row, tokens in zip(rows, out[:, ids.shape[1] :].tolist(), strict=True):
                end = next((i for i, token in enumerate(tokens) if token in stop_ids), None)
                found[first + row] = processor.tokenizer.decode(tokens[:end]).strip()
            say(first + begin + len(rows))
        found[first : first + len(alike)] = [found[n] for n in alike]
        if len(order) < len(alike):
            say(first + len(alike))
    return found
