"""From a conversation to prompts that a guard's context has room for.

    messages -> (role, text) turns -> one prompt, or several where the last message alone is too long

What is judged is the last message; the others only say what it is about. So they are what gives way, the oldest first.
The last message itself is never cut: too long for one prompt, it is read in windows that overlap, and whoever judges
takes the worst. Else it would be enough to put a long, kind text in front. Used in notebook 18.
"""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llamamm.errors import InputError, counted
from llamamm.generation.prompts import as_part
from llamamm.safety.template import SPEAKERS, Turn
from llamamm.text.tokenizer import Tokenizer

OVERLAP = 0.25  # of a window, which the next one reads again
Encode = Callable[[Sequence[Turn]], list[int]]


def turns_of(conversation: str | Sequence[Mapping[str, Any]]) -> list[Turn]:
    """A conversation as turns; a str is one message of the user. System messages are left out.

    A content is a str, or a list of parts that are all text. Raises InputError for other roles and for images and
    sounds, and where there is nothing to judge.
    """
    if isinstance(conversation, str):
        return [("user", conversation)]
    if isinstance(conversation, Mapping) or not isinstance(conversation, Sequence):
        raise InputError(f'a guard judges a str or a list of {{"role": ..., "content": ...}}, got '
                         f"{type(conversation).__name__}")
    turns, role = [], None
    for n, message in enumerate(conversation):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise InputError(f"message {n} must be a dict with 'role' and 'content'")
        role = message["role"]
        if role not in (*SPEAKERS, "system"):
            raise InputError(f"message {n} has the role {role!r}; a guard reads those of user and assistant")
        if role != "system":
            turns.append((role, _text(message["content"], n)))
    if not turns or role == "system":
        raise InputError("there is nothing to judge: the last message must be the user's or the assistant's")
    return turns


def _text(content: Any, n: int) -> str:
    if isinstance(content, str):
        return content
    parts = [as_part(part) for part in content] if isinstance(content, Sequence) else [content]
    if not all(isinstance(part, str) for part in parts):
        raise InputError(f"message {n} holds more than text, and the guard reads text alone: judge what it says")
    return "".join(parts)


def fit(encode: Encode, tokenizer: Tokenizer, turns: Sequence[Turn], limit: int) -> list[list[int]]:
    """Prompts of at most `limit` tokens, one but for a last message that is too long for that.

    encode: a template's, with its tokenizer. Warns where older messages that it reads are cut or left out.
    Raises InputError where the question itself leaves no room for a message.
    """
    ids = encode(turns)
    if len(ids) <= limit:
        return [ids]
    if len(turns) == 1 or ids == encode(turns[-1:]):  # a template may read no more than the last message
        return _windows(encode, tokenizer, turns[-1], limit)
    warnings.warn(f"the conversation takes {counted(len(ids), 'token')}, the guard's prompt has {limit:,}: its oldest "
                  f"messages are left out", stacklevel=2)  # fmt: skip
    kept = bisect_left(range(len(turns) - 1), True, key=lambda n: len(encode(turns[n + 1 :])) <= limit) + 1
    if kept == len(turns):
        return _windows(encode, tokenizer, turns[-1], limit)
    return [_with_tail(encode, tokenizer, turns[kept - 1], turns[kept:], limit)]


def _with_tail(encode: Encode, tokenizer: Tokenizer, old: Turn, turns: Sequence[Turn], limit: int) -> list[int]:
    """The prompt of the turns, and before them as much of the end of an older one as there is room for."""
    ids, (role, text) = encode(turns), old
    words = tokenizer.encode(text)
    n = limit - len(ids)
    while n > 0:
        longer = encode([(role, tokenizer.decode(words[-n:])), *turns])
        if len(longer) <= limit:
            return longer
        n -= len(longer) - limit
    return ids


def _windows(encode: Encode, tokenizer: Tokenizer, turn: Turn, limit: int) -> list[list[int]]:
    role, text = turn
    words = tokenizer.encode(text.strip())
    size = limit - len(encode([(role, "")]))
    while size > 1:
        overlap = int(size * OVERLAP)
        starts = range(0, max(1, len(words) - overlap), size - overlap)
        prompts = [encode([(role, tokenizer.decode(words[start : start + size]))]) for start in starts]
        excess = max(map(len, prompts)) - limit  # a cut word may take more tokens than it had
        if excess <= 0:
            return prompts
        size -= excess
    raise InputError(f"the guard's question alone takes {len(encode([(role, '')])):,} of {limit:,} tokens: give it "
                     f"more context")
