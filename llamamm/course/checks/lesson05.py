"""Checks for the exercises of notebook 05: the KV cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import cache as remember
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from llamamm.course.checks.compare import difference, explained
from llamamm.course.checks.core import Exercise, Property
from llamamm.course.checks.faults import Cases, fault_exercise
from llamamm.errors import ContextOverflowError, InputError
from llamamm.text.cache import KVCache
from llamamm.text.config import TextConfig
from llamamm.text.model import Llama3Model

CFG = TextConfig.tiny(context_length=32)  # 2 layers, 4 query heads on 2 kv heads, D = 16


def _given(*cases: tuple) -> Cases:
    """Cases that need no random numbers."""
    return lambda _: list(cases)


def _tokens(n: int, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Keys and values of n tokens in every layer. -> (layers, 2, B, K, n, D)."""
    shape = (CFG.n_layers, 2, batch, CFG.n_kv_heads, n, CFG.head_dim)
    return torch.randn(shape, generator=generator).to(dtype)


@remember
def _model() -> Llama3Model:
    """A tiny Llama whose weights are large enough that a wrong key shows in the logits."""
    model, generator = Llama3Model(CFG).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.1, generator=generator)
    return model


def _named_parts_differ(expected: dict[str, Any], got: dict[str, Any]) -> str | None:
    """The first part that differs, by its name."""
    for name in [*expected, *got]:
        problem = (f"there should be {'no' * (name not in expected)}thing" if (name in expected) != (name in got)
                   else difference(expected[name], got[name], 1e-4))  # fmt: skip
        if problem:
            return f"{name}: {problem}"
    return None


def _comparable(_expected: Any, _got: Any) -> None:
    """Results are always dictionaries of named parts, made here."""


# ---- 1: bytes ----


def _bytes(cfg: TextConfig, n_tokens: int, batch_size: int, bytes_per_number: int, faults: Collection[str]) -> int:
    heads = cfg.n_heads if "query heads" in faults else cfg.n_kv_heads
    one_key = cfg.hidden_size if "hidden size" in faults else heads * cfg.head_dim
    factors = {"one of both": 2, "one layer": cfg.n_layers, "one key": one_key, "one token": n_tokens,
               "one text": batch_size, "numbers": bytes_per_number}  # fmt: skip
    return math.prod(factor for name, factor in factors.items() if name not in faults)


# the factors are so that no two faults give the same
SMALL = (TextConfig.tiny(n_layers=7, n_heads=10, n_kv_heads=2, hidden_size=66, head_dim=12), 17, 13, 4)

BYTES = fault_exercise(
    _bytes,
    {
        "one of both": "You counted keys or values, not both: there are 2 tensors in each layer",
        "one layer": "You counted one layer: each of the n_layers layers keeps its own keys and values",
        "query heads": "You counted query heads: only the n_kv_heads key/value heads are stored, which is what GQA "
                       "saves",
        "hidden size": "You took hidden_size numbers a token: a key has n_kv_heads x head_dim numbers",
        "one token": "You counted one token: each of the n_tokens has a key and a value",
        "one text": "You counted one text: each of the batch_size texts has its own keys and values",
        "numbers": "You counted numbers, not bytes: multiply by bytes_per_number",
    },
    {
        "keys and values of every layer": (_given(SMALL), ("one of both", "one layer")),
        "the numbers of one key": (_given(SMALL), ("query heads", "hidden size")),
        "all tokens of all texts": (_given(SMALL), ("one token", "one text")),
        "bytes": (_given(SMALL), ("numbers",)),
    },
    _given((TextConfig.llama32_1b(), 131_072, 1, 2), (TextConfig.llama32_3b(), 8192, 4, 2),
           (TextConfig.smollm2_135m(), 1, 1, 4), SMALL),
    run=lambda answer, case: answer(case[0], case[1], batch_size=case[2], bytes_per_number=case[3]),
    id="05.1", name="cache_bytes", minutes=3, level="warm-up",
    reference=lambda cfg, n_tokens, *, batch_size, bytes_per_number: _bytes(
        cfg, n_tokens, batch_size, bytes_per_number, ()),
)  # fmt: skip


# ---- 2 and 3: an answer is fed pieces, and everything that it hands out is kept ----


class _Zeroed(TorchFunctionMode):
    """Memory that nobody has written holds zeros, so that a wrong answer gives the same each time."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # noqa: ARG002
        result = func(*args, **(kwargs or {}))
        return result.zero_() if getattr(func, "__name__", "") in ("empty", "empty_like", "new_empty") else result


def _feed(cache_class: Any, case: tuple) -> dict[str, Any]:
    """What a cache says and gives after each call. case: pieces of keys and values, and the slots there are."""
    pieces, max_length = case
    with _Zeroed():
        cache = cache_class(CFG, batch_size=pieces[0].shape[2], max_length=max_length, dtype=pieces[0].dtype)
        out: dict[str, Any] = {"length at the start": cache.length}
        given: list[list[Tensor]] = [[] for _ in range(CFG.n_layers)]  # kept, so that no place is given twice
        for n, piece in enumerate(pieces, start=1):
            for layer, (k, v) in enumerate(piece):
                call = f"update {n} of layer {layer}"
                try:
                    keys, values = cache.update(layer, k, v)
                except ContextOverflowError:
                    out[f"{call}, whether it is refused"] = True
                    continue
                out[f"{call}, whether it is refused"] = False
                out[f"{call}, keys"], out[f"{call}, values"] = keys.clone(), values.clone()
                given[layer].append(keys)
                out[f"length after {call}"] = cache.length
            cache.advance(piece.shape[4])
            out[f"length after advance({piece.shape[4]}), piece {n}"] = cache.length
    out["whether the keys stay in one place in memory"] = all(len({t.data_ptr() for t in ts}) <= 1 for ts in given)
    return out


def _parts(*words: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Of a result, the parts whose names hold one of these words."""
    return lambda result: {name: part for name, part in result.items() if any(word in name for word in words)}


GIVEN, LENGTHS = _parts("keys", "values"), _parts("length")


def _pieces(*cases: tuple) -> Cases:
    """Cases for _feed. cases: sizes of the pieces, batch, dtype, max_length."""
    return lambda g: [([_tokens(n, batch, g, dtype) for n in sizes], limit) for sizes, batch, dtype, limit in cases]


class _Growing:
    """The right answer to exercise 2, with the faults that its class names in it."""

    faults: Collection[str] = ()

    def __init__(self, *_: Any, max_length: int, **__: Any) -> None:
        self.store: dict[int, tuple[Tensor, Tensor]] = {}
        self.length, self.max_length = 0, max_length

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.written(0 if "one store" in self.faults else layer, k, v)
        if {"in update", "in both"} & {*self.faults}:
            self.length += k.shape[2]
        if "only new" in self.faults:
            keys, values = k, v
        return (values, keys) if "values first" in self.faults else (keys, values)

    def written(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self.store:
            pairs = zip(self.store[layer], (k, v), strict=True)
            dim = 1 if "heads" in self.faults else 2
            k, v = (torch.cat(pair[::-1] if "new first" in self.faults else pair, dim=dim) for pair in pairs)
        self.store[layer] = k, v
        return k, v

    def advance(self, n_tokens: int) -> None:
        if not {"in update", "never"} & {*self.faults}:
            self.length += 1 if "steps" in self.faults else n_tokens


class _Reserved(_Growing):
    """The right answer to exercise 3, with the faults that its class names in it."""

    def written(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        old, end = self.length, self.length + k.shape[2]
        if end > self.max_length or ("never full" in self.faults and end == self.max_length):
            self.length = end if "counts first" in self.faults else old
            raise ContextOverflowError(f"{old} + {k.shape[2]} > {self.max_length}")
        if layer not in self.store:
            zeros = k.new_zeros(*k.shape[:2], self.max_length, k.shape[3])
            self.store[layer] = zeros, zeros.clone()
        if "still grows" in self.faults:
            self.store[layer] = tuple(t.clone() for t in self.store[layer])
        start = 0 if "at slot 0" in self.faults else old
        for store, x in zip(self.store[layer], (k, v), strict=True):
            store[:, :, start : start + k.shape[2]] = x
        keys, values = self.store[layer]
        end = self.max_length if "all slots" in self.faults else end
        return keys[:, :, :end], values[:, :, :end]


def _fed(base: type, feed: Callable[[Any, tuple], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """What `feed` gives of a class with faults; where the faults make it break, that."""

    known: dict[tuple, dict[str, Any]] = {}  # each property asks again

    def variant(pieces: list[Tensor], limit: int, faults: Collection[str]) -> dict[str, Any]:
        key = tuple((piece.shape, float(piece.sum())) for piece in pieces), limit, tuple(faults)
        if key not in known:
            try:
                known[key] = feed(type("Variant", (base,), {"faults": faults}), (pieces, limit))
            except Exception as error:
                known[key] = {"an error": explained(error)}
        return known[key]

    return variant


def _feed_growing(cache_class: Any, case: tuple) -> dict[str, Any]:
    """As `_feed`; its keys may move in memory."""
    return {name: part for name, part in _feed(cache_class, case).items() if "in memory" not in name}


COUNTS_IN_UPDATE = "Your length moves in update, which the model calls once for each layer: only advance may count"
STORES = {
    "values first": "You return values where keys belong: the order is keys, values",
    "one store": "All layers share one store: layer 1 finds the keys of layer 0 in it. Each needs its own",
}
COUNTS = {
    "in update": COUNTS_IN_UPDATE,
    "in both": COUNTS_IN_UPDATE,
    "steps": "Your advance counts steps, not tokens: a step may bring several, n_tokens of them",
    "never": "Your length never changes: advance should add n_tokens",
}
TWICE_TWO = _pieces(((2, 2), 1, torch.float32, 32))

GROWING = fault_exercise(
    _fed(_Growing, _feed_growing),
    {
        "new first": "You put the new tokens in front of the old: the oldest comes first, in torch.cat too",
        "heads": "You concatenated along dimension 1, so new tokens became more heads: tokens are dimension 2",
        "only new": "You return only the new tokens from update: attention needs all of them, old and new",
        **STORES, **COUNTS,
    },
    {
        "old tokens, then new ones": (TWICE_TWO, ("new first", "heads", "only new"), GIVEN),
        "keys, then values, of each layer": (TWICE_TWO, tuple(STORES), GIVEN),
        "length": (TWICE_TWO, tuple(COUNTS), LENGTHS),
    },
    # pieces of one size within a case, so that gluing along another dimension is a wrong shape and no crash
    _pieces(((1,), 1, torch.float32, 32), ((1, 1, 1), 1, torch.float32, 32), ((3, 3), 2, torch.float32, 32),
            ((2, 2), 2, torch.bfloat16, 32)),
    run=_feed_growing,
    differs=_named_parts_differ, misshapen=_comparable,
    id="05.2", name="GrowingCache", minutes=10, level="core", reference=KVCache,
)  # fmt: skip


# ---- 3: what does not fit is refused ----


def _overflow(cache_class: Any, case: tuple) -> dict[str, Any]:
    """case: tokens that fit, tokens that then no longer do, tokens that alone are too many, the slots there are."""
    first, second, alone, limit = case
    out = {}
    for name, pieces in (("alone", (alone,)), ("together", (first, second))):
        cache = cache_class(CFG, batch_size=1, max_length=limit, dtype=first.dtype)
        for piece in pieces[:-1]:
            cache.update(0, *piece[0])
            cache.advance(piece.shape[4])
            if cache.length != piece.shape[4] and "length" in vars(cache):  # told elsewhere
                cache.length = piece.shape[4]
        before, (k, v) = cache.length, pieces[-1][0]
        error: BaseException | None = None
        try:
            cache.update(0, k, v)
        except NotImplementedError:
            raise
        except Exception as raised:
            error = raised
        out[name] = {"error": error, "before": before, "after": cache.length, "numbers": (before, k.shape[2], limit)}
    return out


def _compares_new(result: dict[str, Any]) -> bool:
    """What is too long alone is refused, what is so together with the old tokens is not."""
    alone, together = (isinstance(result[name]["error"], ContextOverflowError) for name in ("alone", "together"))
    return alone and not together


def _refused(result: dict[str, Any], _case: tuple) -> str | None:
    wrong = next((n for n in ("together", "alone") if not isinstance(result[n]["error"], ContextOverflowError)), None)
    if wrong is None:
        return None
    error, (old, new, limit) = result[wrong]["error"], result[wrong]["numbers"]
    kind = type(error).__name__
    got = f"you raised {'an' if kind[0] in 'AEIOU' else 'a'} {kind}" if error else "nothing was raised"
    problem = f"{new} tokens after {old}, where {limit} fit, should raise a ContextOverflowError, {got}"
    if _compares_new(result):
        return (f"{problem}. You compared only the new tokens with max_length: the old ones take room too, so compare "
                f"length + T")  # fmt: skip
    return f"{problem}. Import it from llamamm.errors" if error else problem


def _with_numbers(result: dict[str, Any], _case: tuple) -> str | None:
    error, numbers = result["together"]["error"], result["together"]["numbers"]
    missing = [name for name, n in zip(("length", "the new tokens", "max_length"), numbers, strict=True)
               if str(n) not in str(error)]  # fmt: skip
    if error is None or not missing or _compares_new(result):
        return None
    lacks = " and ".join(f"{name} ({n})" for name, n in zip(("length", "the new tokens", "max_length"), numbers,
                                                            strict=True) if name in missing)  # fmt: skip
    return f"the message lacks a number: say length, the new tokens, and max_length. In {str(error)!r} I miss {lacks}"


def _unmoved(result: dict[str, Any], _case: tuple) -> str | None:
    this = result["together"]
    if this["error"] is None or this["before"] == this["after"]:
        return None
    return (f"length should still be {this['before']} after a refusal, got {this['after']}: compare before you change "
            f"anything")  # fmt: skip


def _overflow_cases(g: torch.Generator) -> list[tuple]:
    return [tuple(_tokens(n, 1, g) for n in (11, 4, 14)) + (13,)]


TWO_PIECES = _pieces(((3, 1), 1, torch.float32, 20))
RESERVED = fault_exercise(
    _fed(_Reserved, _feed),
    {
        "still grows": "Your keys move in memory, so the cache still copies: write into what __init__ reserved",
        "never full": "You refuse a cache that would be exactly full: length + T may equal max_length",
        "all slots": "You return all reserved slots: those not filled yet hold garbage. Return the first length + T",
        "at slot 0": "You write at slot 0 each time, over the old tokens: start at length",
        "counts first": "You counted before you compared: a refusal must leave everything as it was",
        **STORES, **COUNTS,
    },
    {
        "where the tokens lie": (TWO_PIECES, ("still grows",), _parts("one place")),
        "what update returns": (TWO_PIECES, ("all slots", "at slot 0", *STORES), GIVEN),
        "exactly full": (_pieces(((5,), 1, torch.float32, 5)), ("never full",), _parts("refused")),
        "length": (TWO_PIECES, tuple(COUNTS), LENGTHS),
    },
    _pieces(((1, 3), 2, torch.float32, 7), ((4, 1, 4), 1, torch.float32, 9), ((17,), 1, torch.bfloat16, 17)),
    extra=tuple(Property(name, _overflow_cases, run=_overflow, accept=accept) for name, accept in (
        ("an overflow", _refused), ("its message", _with_numbers), ("length after a refusal", _unmoved))),
    run=_feed, differs=_named_parts_differ, misshapen=_comparable,
    id="05.3", name="ReservedCache", minutes=15, level="core", reference=KVCache,
)  # fmt: skip


# ---- 4: read only what is new ----


def _beginning(old: list[int], new: list[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(old, new, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(old), len(new)))


def _reader(faults: Collection[str] = ()) -> Callable[..., Tensor]:
    """The right answer to exercise 4, with faults in it."""

    @torch.no_grad()
    def read_on(model: Any, cache: KVCache, old_ids: list[int], new_ids: list[int], *, chunk: int) -> Tensor:
        begin = _beginning(old_ids, new_ids)
        if "same places" in faults:
            begin = sum(map(int.__eq__, old_ids, new_ids))
        begin = begin if "nothing left" in faults else min(begin, len(new_ids) - 1)
        begin = 0 if "all again" in faults else begin
        if "no rewind" not in faults:
            cache.rewind(begin)
        end = len(new_ids) - (len(new_ids) - begin) % chunk if "no rest" in faults else len(new_ids)
        pieces = torch.tensor([new_ids[begin:end]]).split(len(new_ids) if "one gulp" in faults else chunk, dim=1)
        logits = [model(piece, cache=None if "no cache" in faults else cache, last_only=True) for piece in pieces]
        return logits[-1][0, -1]

    return read_on


@torch.no_grad()
def _converse(answer: Any, case: tuple) -> dict[str, Any]:
    """What was read, what came, and what is in the cache afterwards. case: old and new ids, chunk."""
    old_ids, new_ids, chunk = case
    model, sizes = _model(), []
    cache = model.make_cache()
    model(torch.tensor([old_ids]), cache=cache)
    hook = model.embed_tokens.register_forward_hook(lambda _module, inputs, _out: sizes.append(inputs[0].shape[1]))
    try:
        with torch.enable_grad():
            logits = answer(model, cache, list(old_ids), list(new_ids), chunk=chunk)
    except Exception as error:
        nothing_left = isinstance(error, InputError | UnboundLocalError | IndexError) and "rewind" not in str(error)
        if sizes or not nothing_left:
            raise
        return {"tokens read": 0}
    finally:
        hook.remove()
    out = {"tokens read": sum(sizes), "longest piece": max(sizes, default=0), "length of the cache": cache.length,
           "logits": logits.detach() if isinstance(logits, Tensor) else logits}  # fmt: skip
    # what is in the cache shows in the next token's logits
    return {**out, "logits after one more token": model(torch.tensor([[3]]), cache=cache)[0, -1]}


@remember
def _conversed(old_ids: tuple[int, ...], new_ids: tuple[int, ...], chunk: int, faults: tuple[str, ...]) -> dict:
    try:
        return _converse(_reader(faults), (old_ids, new_ids, chunk))
    except Exception as error:
        return {"an error": explained(error)}


END_CHANGES = ((5, 6, 7, 8), (5, 6, 9, 9, 9), 2)  # 3 tokens in pieces of 2
READ_ON = fault_exercise(
    lambda old_ids, new_ids, chunk, faults: _conversed(old_ids, new_ids, chunk, tuple(faults)),
    {
        "all again": "You read everything again: rewind to the common beginning, not to 0",
        "nothing left": "Where new_ids is cached already nothing is left to read: rewind to len(new_ids) - 1 at most",
        "no rewind": "The cache still holds the old end: rewind it before reading",
        "same places": "You counted all places where the lists agree: stop at the first difference",
        "one gulp": "A piece is longer than chunk: split what is left to read",
        "no rest": "You dropped the last, shorter piece: it has to be read too",
        "no cache": "You called the model without cache=cache: it saw nothing before",
    },
    {
        "what is read": (_given(END_CHANGES), ("all again", "no rest"), _parts("tokens read")),
        "the first difference": (_given(((1, 2, 3, 4, 5), (1, 9, 3, 4, 7, 6), 4)), ("same places",)),
        "the cache": (_given(END_CHANGES), ("no rewind", "no cache"), _parts("cache")),
        "pieces": (_given(END_CHANGES), ("one gulp",), _parts("piece")),
        "all cached already": (_given(((5, 6, 7, 8, 9), (5, 6, 7), 1)), ("nothing left",)),
    },
    _given(
        ((5, 6, 7), (5, 6, 7, 8, 9, 10, 11, 12), 2),  # goes on; 5 tokens in pieces of 2
        ((1, 2), (4, 5, 6), 3),  # nothing in common
        ((5, 6, 7), (5, 6, 7), 1),  # the same text
    ),
    run=_converse, differs=_named_parts_differ, misshapen=_comparable,
    id="05.4", name="read_on", minutes=20, level="hard", reference=_reader(),
)  # fmt: skip


# ---- 5: right for one token, wrong for two ----


def _try_broken(cache_class: Any, case: tuple) -> dict[str, Any]:
    """Right, wrong, or the exception, with tokens that come one at a time, and two at a time. case: ids (B, T)."""
    (ids,) = case
    out: dict[str, Any] = {}
    with torch.no_grad():
        right = _model()(ids)
        for name, size in (("one", 1), ("two", 2)):
            cache = cache_class(CFG, batch_size=ids.shape[0], max_length=CFG.context_length, dtype=torch.float32)
            try:
                logits = torch.cat([_model()(piece, cache=cache) for piece in ids.split(size, dim=1)], dim=1)
            except NotImplementedError:
                raise
            except Exception as error:
                out[name] = explained(error)
            else:
                out[name] = bool((logits - right).abs().max() < 1e-4)
    return out


def _right_for_one(result: dict[str, Any], _case: tuple) -> str | None:
    wrong = "this one fails already when tokens come one at a time: there it should be as good as KVCache"
    return wrong if result["one"] is False else None


def _wrong_for_two(result: dict[str, Any], _case: tuple) -> str | None:
    if result["two"] is not True:
        return None
    if result["one"] is True:
        return ("this cache is right, also with two tokens at a time: you have not broken anything yet. Break what "
                "only shows when T is more than 1")  # fmt: skip
    return "it is right with two at a time: break what only shows when T is more than 1"


def _silent(result: dict[str, Any], _case: tuple) -> str | None:
    for name in ("one", "two"):
        if isinstance(result[name], str):
            return f"with {name} at a time it raises {result[name]}; it should be wrong without an exception"
    return None


BROKEN = Exercise(
    id="05.5", name="OneTokenCache", minutes=10, level="break it",
    reference=type("OneTokenCache", (KVCache,), {"advance": lambda self, _: KVCache.advance(self, 1)}),
    properties=tuple(
        Property(name, lambda g: [(torch.randint(0, CFG.vocab_size, (2, 6), generator=g),)], run=_try_broken,
                 accept=accept)
        for name, accept in (("one token at a time", _right_for_one), ("two at a time", _wrong_for_two),
                             ("silently", _silent))
    ),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (BYTES, GROWING, RESERVED, READ_ON, BROKEN)
