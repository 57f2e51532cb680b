"""Added tokens: whole strings that are one id each, found in a text before anything else cuts it.

Some are special: names of roles and turns, which are control and not text. The others are vocabulary that merging
cannot make, such as `</think>`, and stand for their own letters wherever they occur. Each may swallow the whitespace
beside it, or count only as a word of its own.

Source: the `tokenizers` library (`added_vocabulary.rs`: leftmost longest match, then the flags). Told in notebook 01.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache

import tiktoken


@dataclass(frozen=True)
class AddedToken:
    """A string with an id of its own. lstrip, rstrip: it takes the whitespace on that side with it."""

    content: str
    id: int
    special: bool = True  # control, not text
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False  # found only where no letter, digit or underscore touches it
    normalized: bool = False  # looked for in what the others have left


class AddedTokens:
    """All added tokens of a tokenizer, and how a text is cut at them."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self.tokens = {token.content: token for token in tokens if token.content}
        self._passes = [p for p in (self._pattern(False), self._pattern(True)) if p is not None]

    def split(self, text: str, *, special: Collection[str] = ()) -> list[str | int]:
        """`text` with the ids of added tokens in their places; of the special ones only those named in `special`."""
        pieces: list[str | int] = [text]
        for pattern in self._passes:
            pieces = [part for piece in pieces
                      for part in ([piece] if isinstance(piece, int) else self._cut(piece, pattern, special))]
        return pieces

    def _pattern(self, normalized: bool) -> re.Pattern[str] | None:
        names = [name for name, token in self.tokens.items() if token.normalized == normalized]
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True)))) if names else None

    def _cut(self, text: str, pattern: re.Pattern[str], special: Collection[str]) -> list[str | int]:
        pieces: list[str | int] = []
        done = 0
        for match in pattern.finditer(text):
            token, start, stop = self.tokens[match[0]], match.start(), match.end()
            if token.special and token.content not in special:
                continue
            if token.single_word and ((start and _is(r"\w", text[start - 1]))
                                      or (stop < len(text) and _is(r"\w", text[stop]))):
                continue
            while token.lstrip and start > done and _is(r"\s", text[start - 1]):
                start -= 1
            while token.rstrip and stop < len(text) and _is(r"\s", text[stop]):
                stop += 1
            if done < start:
                pieces.append(text[done:start])
            pieces.append(token.id)
            done = stop
        return [*pieces, text[done:]] if done < len(text) or not pieces else pieces


@cache
def _is(kind: str, char: str) -> bool:
    r"""Whether Rust's regex, which `tokenizers` uses, counts a character to \s or \w; Python's differs."""
    return bool(_engine(kind).encode_ordinary(char))  # what a pattern does not match is dropped


@cache
def _engine(kind: str) -> tiktoken.Encoding:
    return tiktoken.Encoding(kind, pat_str=kind, mergeable_ranks={bytes([b]): b for b in range(256)}, special_tokens={})
