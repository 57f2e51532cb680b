"""What a model answers to many questions, greedily, with pictures and sounds in them, several at a time.

    conversations -> batches, padded on the left -> generate -> one text for each

Used in notebooks 14 and 16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from llamamm.generation.generate import generate, pad_left
from llamamm.generation.prompts import Conversation
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.text.chat import chat_format
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer


def answers(
    model: Llama3Model, reader: Tokenizer | MultimodalProcessor, asked: Sequence[Conversation], *,
    max_new_tokens: int = 24, batch_size: int = 16, say: Callable[[int], None] = lambda _n: None,
) -> list[str]:  # fmt: skip
    """The greedy answer to each conversation. say: told after each batch how many are answered. Raises InputError."""
    tokenizer = reader.tokenizer if isinstance(reader, MultimodalProcessor) else reader
    device, found = model.embed_tokens.weight.device, []
    for begin in range(0, len(asked), batch_size):
        some = asked[begin : begin + batch_size]
        ids, padding, inputs = _batch(reader, some)
        inputs = {key: value.to(device) for key, value in inputs.items()}
        out = generate(model, ids.to(device), max_new_tokens, padding=padding.to(device), inputs=inputs,
                       stop_ids=tokenizer.stop_ids)  # fmt: skip
        for row in out[:, ids.shape[1] :].tolist():
            end = next((i for i, token in enumerate(row) if token in tokenizer.stop_ids), None)
            found.append(tokenizer.decode(row[:end]).strip())
        say(len(found))
    return found


def _batch(reader: Tokenizer | MultimodalProcessor, asked: Sequence[Conversation]) -> tuple[Tensor, Tensor, Any]:
    if isinstance(reader, MultimodalProcessor):
        return reader.batch([reader.chat(messages) for messages in asked])
    chat = chat_format(reader)
    return *pad_left([chat.encode(messages) for messages in asked]), {}
