"""Which tokens merging makes: tiktoken merges any two neighbours that are a token, a file only the pairs that it lists.

Nothing crosses a token's edges before it is made, so it is made as if it stood alone, always of the same last two
parts. Where these are no pair of the file's, merging never makes the token, and tiktoken must not know it.

Source: the idea of `is_valid_token_pair` in github/rust-gems (`bpe`). Checked against the `tokenizers` library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise


def as_merged(tokens: Mapping[int, bytes], merges: Iterable[tuple[bytes, bytes]],
              ignore_merges: bool) -> tuple[dict[bytes, int], dict[bytes, int]]:
    """The ranks that tiktoken is to have; and the tokens that are none of them, yet may be a whole word."""
    ranks = {token: rank for rank, token in tokens.items()}
    listed: dict[bytes, set[bytes]] = {}  # token -> the left parts that the file gives
    for left, right in merges:
        listed.setdefault(left + right, set()).add(left)
    made = {token: rank for token, rank in ranks.items() if len(token) == 1}
    words: dict[bytes, int] = {}
    times = dict.fromkeys(made, -1)  # when a token is made; not here: those that wait for a part of higher rank
    parts: dict[bytes, tuple[bytes, bytes]] = {}
    for token in sorted(ranks, key=len):
        if len(token) == 1:
            continue
        rank, lefts = ranks[token], listed.get(token, ())
        if ignore_merges and len(lefts) == sum(
                token[:n] in ranks and token[n:] in ranks for n in range(1, len(token))):
            made[token] = rank  # every pair is the file's, as where Llama 3's ranks were turned into merges
            continue
        for left in lefts:
            right = token[len(left) :]
            before = times.get(left, rank) < rank and times.get(right, rank) < rank
            if before and _meet(left, right, made, times, parts):
                made[token] = times[token] = rank
                parts[token] = left, right
                break
        else:
            last = _last_parts(token, made)
            if len(last) == 2 and last[0] in lefts:
                made[token] = rank
            elif ignore_merges:
                (words if len(last) == 2 else made)[token] = rank  # of more parts tiktoken does not make it either
    return made, words


def _meet(left: bytes, right: bytes, made: Mapping[bytes, int], times: Mapping[bytes, int],
          parts: Mapping[bytes, tuple[bytes, bytes]]) -> bool:
    """Whether two tokens come to stand side by side: back in time, no merge crossed the place where they touch."""
    first, second = times[left], times[right]
    while first >= 0 or second >= 0:
        if first > second:
            limit, left = first, parts[left][1]
            first = times[left]
        else:
            limit, right = second + 1, parts[right][0]  # of two equal merges the one on the left comes first
            second = times[right]
        if made.get(left + right, limit) < limit:
            return False
    return True


def _last_parts(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """What merging makes of a token's bytes, the token itself left out."""
    parts = [token[i : i + 1] for i in range(len(token))]
    never = 2**31  # no id is so high
    pairs = [ranks.get(a + b, never) for a, b in pairwise(parts)]
    while pairs and (lowest := min(pairs)) < never:
        i = pairs.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        del pairs[i]
        for n in range(max(i - 1, 0), min(i + 1, len(pairs))):
            pairs[n] = ranks.get(parts[n] + parts[n + 1], never)
    return parts
