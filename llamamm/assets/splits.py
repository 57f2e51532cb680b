"""What is held out, decided by a name's hash and never by a place in a list: a name stays when others are dropped."""

from __future__ import annotations

import hashlib

SIDES = ("train", "test")


def hash_of(key: str) -> int:
    """A number of 64 bits that follows from a name, the same on every machine: the first bytes of its SHA-256."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def held_out(key: str, one_in: int) -> bool:
    """Whether a name is among the held-out ones, about one in so many: always the same answer for the same name."""
    return hash_of(key) % one_in == 0
