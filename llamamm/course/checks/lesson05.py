"""Checks for the exercises of notebook 05: the KV cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llamamm.course.checks.core import Exercise, Mistake
from llamamm.errors import ContextOverflowError, InputError
from llamamm.text.cache import KVCache
from llamamm.text.config import TextConfig
from llamamm.text.model import Llama3Model

CFG = TextConfig.tiny(context_length=32)  # 2 layers, 4 query heads on 2 kv heads, D = 16


def _variant(base: type, **methods: Any) -> type:
    """A class that differs from the right one in a method or two."""
    return type("Variant", (base,), methods)


def _tokens(n: int, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Keys and values of n tokens in every layer. -> (layers, 2, B, K, n, D)."""
    shape = (CFG.n_layers, 2, batch, CFG.n_kv_heads, n, CFG.head_dim)
    return torch.randn(shape, generator=generator).to(dtype)


def _model(generator: torch.Generator) -> Llama3Model:
    """A tiny Llama whose weights are large enough that a wrong key shows in the logits."""
    model = Llama3Model(CFG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.1, generator=generator)
    return model


# ---- 1: bytes ----


def _bytes(drop: str = "", instead: Callable[[TextConfig], dict[str, int]] | None = None) -> Callable[..., int]:
    """The product of all factors; a wrong one leaves a factor out or puts others in their place."""

    def cache_bytes(cfg: TextConfig, n_tokens: int, *, batch_size: int, bytes_per_number: int) -> int:
        factors = {"both": 2, "layers": cfg.n_layers, "heads": cfg.n_kv_heads, "head_dim": cfg.head_dim,
                   "tokens": n_tokens, "batch": batch_size, "size": bytes_per_number}  # fmt: skip
        factors |= {} if instead is None else instead(cfg)
        return math.prod(factor for name, factor in factors.items() if name != drop)

    return cache_bytes


BYTES = Exercise(
    id="05.1", name="cache_bytes", minutes=3, level="warm-up",
    reference=_bytes(),
    cases=lambda _: [
        (TextConfig.llama32_1b(), 131_072, 1, 2), (TextConfig.llama32_3b(), 8192, 4, 2),
        (TextConfig.smollm2_135m(), 1, 1, 4),
        (TextConfig.tiny(n_layers=3, n_heads=6, n_kv_heads=2, hidden_size=60, head_dim=16), 5, 3, 4),
    ],
    run=lambda answer, case: answer(case[0], case[1], batch_size=case[2], bytes_per_number=case[3]),
    mistakes=(
        Mistake(_bytes("both"), "you counted keys or values, not both: there are 2 tensors in each layer"),
        Mistake(_bytes(instead=lambda cfg: {"heads": cfg.n_heads}),
                "you counted query heads: only the n_kv_heads key/value heads are stored, which is what GQA saves"),
        Mistake(_bytes(instead=lambda cfg: {"heads": 1, "head_dim": cfg.hidden_size}),
                "you took hidden_size numbers a token: a key has n_kv_heads x head_dim numbers"),
        Mistake(_bytes("layers"), "you counted one layer: each of the n_layers layers keeps its own keys and values"),
        Mistake(_bytes("batch"), "you counted one text: each of the batch_size texts has its own keys and values"),
        Mistake(_bytes("size"), "you counted numbers, not bytes: multiply by bytes_per_number"),
    ),
)  # fmt: skip


# ---- 2: a cache that grows; an answer is fed pieces, and everything that it hands out is kept ----


def _feed(cache_class: Any, case: tuple) -> dict[str, Any]:
    """pieces of keys and values, the slots there are, and perhaps a last piece that passes them."""
    pieces, max_length, *too_much = case
    cache = cache_class(CFG, batch_size=pieces[0].shape[2], max_length=max_length, dtype=pieces[0].dtype)
    out: dict[str, Any] = {"refused": [], "handed out": [], "lengths": [cache.length]}
    places: list[set[int]] = [set() for _ in range(CFG.n_layers)]
    for n, piece in enumerate(pieces):
        for layer, (k, v) in enumerate(piece):
            try:
                keys, values = cache.update(layer, k, v)
            except ContextOverflowError:
                out["refused"].append(n)
                continue
            out["handed out"].append((keys.clone(), values.clone()))
            places[layer].add(keys.data_ptr())
            out["lengths"].append(cache.length)
        cache.advance(piece.shape[4])
        out["lengths"].append(cache.length)
    if too_much:
        out["in one place"] = all(len(p) <= 1 for p in places)
        start, (k, v) = cache.length, too_much[0][0]
        try:
            cache.update(0, k, v)
        except Exception as error:
            out["overflow"] = type(error).__name__
            out["numbers in the message"] = all(str(n) in str(error) for n in (start, k.shape[2], max_length))
        out["length after an overflow"] = cache.length
    return out


def _growing_cases(g: torch.Generator) -> list[tuple]:
    # pieces of one size within a case, so that gluing along another dimension is a wrong shape and no crash
    fp32 = torch.float32
    sizes = ((1,), 1, fp32), ((1, 1, 1), 1, fp32), ((3, 3), 2, fp32), ((2, 2), 2, torch.bfloat16)
    return [([_tokens(n, batch, g, dtype) for n in pieces], 32) for pieces, batch, dtype in sizes]


class _Growing:
    """The right answer to exercise 2 in small parts, so that a wrong one changes one of them."""

    def __init__(self, *_: Any, max_length: int, **__: Any) -> None:
        self.store: dict[int, tuple[Tensor, Tensor]] = {}
        self.length, self.max_length = 0, max_length

    def glue(self, old: Tensor, new: Tensor) -> Tensor:
        return torch.cat((old, new), dim=2)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self.store:
            k, v = self.glue(self.store[layer][0], k), self.glue(self.store[layer][1], v)
        self.store[layer] = k, v
        return k, v

    def advance(self, n_tokens: int) -> None:
        self.length += n_tokens


def _counting(base: type) -> Callable[..., tuple[Tensor, Tensor]]:
    """An `update` that also counts."""
    return lambda self, layer, k, v: (base.update(self, layer, k, v), _Growing.advance(self, k.shape[2]))[0]


COUNTS_IN_UPDATE = "your length moves in update, which the model calls once for each layer: only advance may count"

GROWING = Exercise(
    id="05.2", name="GrowingCache", minutes=10, level="core",
    reference=KVCache, cases=_growing_cases, run=_feed,
    mistakes=(
        Mistake(_variant(_Growing, glue=lambda _, old, new: torch.cat((new, old), dim=2)),
                "you put the new tokens in front of the old: the oldest comes first, in torch.cat too"),
        Mistake(_variant(_Growing, glue=lambda _, old, new: torch.cat((old, new), dim=1)),
                "you concatenated along dimension 1, so new tokens became more heads: tokens are dimension 2"),
        Mistake(_variant(_Growing, update=lambda _self, _layer, k, v: (k, v)),
                "update returns only the new tokens: attention needs all of them, old and new"),
        Mistake(_variant(_Growing, update=lambda self, _, k, v: _Growing.update(self, 0, k, v)),
                "all layers share one store: layer 1 finds the keys of layer 0 in it. Each needs its own"),
        Mistake(_variant(_Growing, update=lambda self, layer, k, v: _Growing.update(self, layer, k, v)[::-1]),
                "you return values where keys belong: the order is keys, values"),
        Mistake(_variant(_Growing, update=_counting(_Growing), advance=lambda *_: None), COUNTS_IN_UPDATE),
        Mistake(_variant(_Growing, update=_counting(_Growing)), COUNTS_IN_UPDATE),
        Mistake(_variant(_Growing, advance=lambda self, _: _Growing.advance(self, 1)),
                "advance counts steps, not tokens: a step may bring several, n_tokens of them"),
        Mistake(_variant(_Growing, advance=lambda *_: None), "length never changes: advance should add n_tokens"),
    ),
)  # fmt: skip


# ---- 3: a cache that reserves; after what fits comes a piece that does not ----


def _reserved_cases(g: torch.Generator) -> list[tuple]:
    cases = (((1, 3), 7, 5, 2, torch.float32), ((4, 1, 4), 9, 2, 1, torch.float32), ((17,), 17, 1, 1, torch.bfloat16),
             ((11, 1), 13, 14, 1, torch.float32))  # fmt: skip
    return [([_tokens(n, batch, g, dtype) for n in sizes], max_length, _tokens(too_much, batch, g, dtype))
            for sizes, max_length, too_much, batch, dtype in cases]  # fmt: skip


def _reserved(
    *, fits: Callable = lambda old, new, limit: old + new <= limit, start: Callable = lambda old: old,
    end: Callable = lambda old, new, _: old + new, refusal: Callable = lambda *n: ContextOverflowError(str(n)),
) -> type:  # fmt: skip
    """The right answer to exercise 3, with a switch for each mistake."""

    def update(self: Any, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        old, new = self.length, k.shape[2]
        if not fits(old, new, self.max_length):
            raise refusal(old, new, self.max_length)
        if layer not in self.store:  # zeros, so that a wrong answer's unwritten slots can be compared
            zeros = k.new_zeros(*k.shape[:2], self.max_length, k.shape[3])
            self.store[layer] = zeros, zeros.clone()
        for store, x in zip(self.store[layer], (k, v), strict=True):
            store[:, :, start(old) : start(old) + new] = x
        keys, values = self.store[layer]
        return keys[:, :, : end(old, new, self.max_length)], values[:, :, : end(old, new, self.max_length)]

    return _variant(_Growing, update=update)


def _checked_growing(self: Any, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    if self.length + k.shape[2] > self.max_length:
        raise ContextOverflowError(f"{self.length} + {k.shape[2]} > {self.max_length}")
    return _Growing.update(self, layer, k, v)


RIGHT = _reserved()

RESERVED = Exercise(
    id="05.3", name="ReservedCache", minutes=15, level="core",
    reference=KVCache, cases=_reserved_cases, run=_feed,
    mistakes=(
        Mistake(_variant(_Growing, update=_checked_growing),
                "your keys move in memory, so the cache still copies: write into what __init__ reserved"),
        Mistake(_reserved(fits=lambda _, new, limit: new <= limit),
                "you compared only the new tokens with max_length: the old ones take room too, so compare length + T"),
        Mistake(_reserved(fits=lambda old, new, limit: old + new < limit),
                "you refuse a cache that would be exactly full: length + T may equal max_length"),
        Mistake(_reserved(refusal=lambda *n: ValueError(str(n))),
                "an overflow should be a ContextOverflowError (from llamamm.errors), you raised a ValueError"),
        Mistake(_reserved(refusal=lambda *_: ContextOverflowError("full")),
                "the message lacks a number: say length, the new tokens, and max_length"),
        Mistake(_reserved(end=lambda _old, _new, limit: limit),
                "you return all reserved slots: those not filled yet hold garbage. Return the first length + T"),
        Mistake(_reserved(start=lambda _: 0), "you write at slot 0 each time, over the old tokens: start at length"),
        Mistake(_variant(RIGHT, update=_counting(RIGHT), advance=lambda *_: None), COUNTS_IN_UPDATE),
    ),
)  # fmt: skip


# ---- 4: read only what is new ----


def _beginning(old: list[int], new: list[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(old, new, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(old), len(new)))


def _reader(
    *, start: Callable = lambda old, new: min(_beginning(old, new), len(new) - 1), rewind: bool = True,
    all_at_once: bool = False, rest: bool = True, use_cache: bool = True,
) -> Callable[..., Tensor]:  # fmt: skip
    """The right answer to exercise 4, with a switch for each mistake."""

    def read_on(model: Any, cache: KVCache, old_ids: list[int], new_ids: list[int], *, chunk: int) -> Tensor:
        begin = start(old_ids, new_ids)
        if rewind:
            cache.rewind(begin)
        end = len(new_ids) if rest else len(new_ids) - (len(new_ids) - begin) % chunk
        pieces = torch.tensor([new_ids[begin:end]]).split(len(new_ids) if all_at_once else chunk, dim=1)
        with torch.no_grad():
            logits = [model(piece, cache=cache if use_cache else None, last_only=True) for piece in pieces]
        return logits[-1][0, -1]

    return read_on


def _converse(answer: Any, case: tuple) -> dict[str, Any]:
    model, old_ids, new_ids, chunk = case
    cache, sizes = model.make_cache(), []
    with torch.no_grad():
        model(torch.tensor([old_ids]), cache=cache)
    model.embed_tokens.register_forward_hook(lambda _module, inputs, _out: sizes.append(inputs[0].shape[1]))
    try:
        logits = answer(model, cache, old_ids, new_ids, chunk=chunk)
    except Exception as error:
        nothing_left = isinstance(error, InputError | UnboundLocalError | IndexError) and "rewind" not in str(error)
        if sizes or not nothing_left:
            raise
        return {"the model was given": "no tokens"}
    read, largest, length = sum(sizes), max(sizes, default=0), cache.length
    with torch.no_grad():  # what is in the cache shows in the next token's logits
        after = model(torch.tensor([[3]]), cache=cache)[0, -1]
    return {"logits": logits.detach() if isinstance(logits, Tensor) else logits, "length of the cache": length,
            "tokens read": read, "pieces fit": largest <= chunk,
            "logits behind one more token": after}  # fmt: skip


def _converse_cases(g: torch.Generator) -> list[tuple]:
    model = _model(g)
    return [
        (model, [5, 6, 7, 8], [5, 6, 9, 9, 9], 2),  # the end changes; 3 tokens in pieces of 2
        (model, [5, 6, 7], [5, 6, 7, 8, 9, 10, 11, 12], 2),  # goes on; 5 tokens in pieces of 2
        (model, [1, 2, 3, 4, 5], [1, 9, 3, 4, 5, 6], 3),  # equal again behind the difference
        (model, [1, 2], [4, 5, 6], 3),  # nothing in common
        (model, [5, 6, 7, 8, 9], [5, 6, 7], 1),  # all cached already
        (model, [5, 6, 7], [5, 6, 7], 1),  # the same text
    ]


READ_ON = Exercise(
    id="05.4", name="read_on", minutes=20, level="hard",
    reference=_reader(), cases=_converse_cases, run=_converse,
    mistakes=(
        Mistake(_reader(start=lambda *_: 0),
                "the logits are right, but you read everything again: rewind to the common beginning, not to 0"),
        Mistake(_reader(start=_beginning),
                "where new_ids is cached already nothing is left to read: rewind to len(new_ids) - 1 at most"),
        Mistake(_reader(rewind=False), "the cache still holds the old end: rewind it before reading"),
        Mistake(_reader(start=lambda old, new: min(sum(map(int.__eq__, old, new)), len(new) - 1)),
                "you counted all places where the lists agree: stop at the first difference"),
        Mistake(_reader(all_at_once=True), "a piece is longer than chunk: split what is left to read"),
        Mistake(_reader(rest=False), "you dropped the last, shorter piece: it has to be read too"),
        Mistake(_reader(use_cache=False), "you called the model without cache=cache: it saw nothing before"),
    ),
)  # fmt: skip


# ---- 5: right for one token, wrong for two ----


def _try_broken(cache_class: Any, case: tuple) -> dict[str, Any]:
    model, ids = case
    out: dict[str, Any] = {}
    with torch.no_grad():
        right = model(ids)
        for name, size in (("one", 1), ("two", 2)):
            cache = cache_class(CFG, batch_size=ids.shape[0], max_length=CFG.context_length, dtype=torch.float32)
            try:
                logits = torch.cat([model(piece, cache=cache) for piece in ids.split(size, dim=1)], dim=1)
            except NotImplementedError:
                raise
            except Exception as error:
                out[name] = f"{type(error).__name__}: {error}"
            else:
                out[name] = bool((logits - right).abs().max() < 1e-4)
    return out


def _is_broken_as_asked(result: dict[str, Any], _case: tuple) -> str | None:
    for name in ("one", "two"):
        if isinstance(result[name], str):
            return f"with {name} at a time it raises {result[name]}; it should be wrong without an exception"
    if not result["one"]:
        return "this one fails already when tokens come one at a time: there it should be as good as KVCache"
    return "it is right with two at a time, too: break what only shows when T is more than 1" if result["two"] else None


BROKEN = Exercise(
    id="05.5", name="OneTokenCache", minutes=10, level="break it",
    reference=_variant(KVCache, advance=lambda self, _: KVCache.advance(self, 1)),
    cases=lambda g: [(_model(g), torch.randint(0, CFG.vocab_size, (2, 6), generator=g))],
    run=_try_broken, accept=_is_broken_as_asked,
    mistakes=(
        Mistake(KVCache, "this cache is right, also with two tokens at a time: you have not broken anything yet"),
    ),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (BYTES, GROWING, RESERVED, READ_ON, BROKEN)
