"""course.checks.lesson05: right answers pass, and each usual mistake is called by its name, alone and in pairs.

Each exercise is written in three ways that have little in common, and each way can have any of the faults in it.
"""

import itertools

import pytest
import torch

from llamamm import KVCache
from llamamm.course.checks import check, exercises_of
from llamamm.errors import ContextOverflowError
from tests.course.checks.ways import assert_right, assert_told

# ---- 05.1 in three ways: a product, a loop over layers and heads, the size of real tensors ----


def bytes_by_product(has):
    def cache_bytes(cfg, n_tokens, *, batch_size, bytes_per_number):
        one_vector = cfg.head_dim * (cfg.n_heads if "query heads" in has else cfg.n_kv_heads)
        one_vector = cfg.hidden_size if "hidden size" in has else one_vector
        total = one_vector * (1 if "one of both" in has else 2) * (1 if "one layer" in has else cfg.n_layers)
        total *= 1 if "one text" in has else batch_size
        total *= 1 if "one token" in has else n_tokens
        return total if "numbers" in has else total * bytes_per_number

    return cache_bytes


def bytes_by_loops(has):
    def cache_bytes(cfg, n_tokens, *, batch_size, bytes_per_number):
        total = 0
        heads = range(cfg.n_heads if "query heads" in has else cfg.n_kv_heads)
        for _layer in range(1 if "one layer" in has else cfg.n_layers):
            for _kind in ("keys",) if "one of both" in has else ("keys", "values"):
                for _text in range(1 if "one text" in has else batch_size):
                    if "hidden size" in has:
                        total += cfg.hidden_size
                        continue
                    for _head in heads:
                        total += cfg.head_dim
        total = total * n_tokens if "one token" not in has else total
        return total * (bytes_per_number if "numbers" not in has else 1)

    return cache_bytes


def bytes_by_shapes(has):
    def cache_bytes(cfg, n_tokens, *, batch_size, bytes_per_number):
        width = (cfg.hidden_size,) if "hidden size" in has else (
            cfg.n_heads if "query heads" in has else cfg.n_kv_heads, cfg.head_dim)  # fmt: skip
        shape = (cfg.n_layers, 2, batch_size, n_tokens, *width)
        gone = [n for n, name in enumerate(("one layer", "one of both", "one text", "one token")) if name in has]
        keys_and_values = torch.empty([n for i, n in enumerate(shape) if i not in gone], device="meta")
        return keys_and_values.numel() * bytes_per_number ** ("numbers" not in has)

    return cache_bytes


# ---- 05.2 in three ways: tensors that grow, lists of pieces, lists of single tokens ----


def growing_tensors(has):
    class Growing:
        def __init__(self, cfg, *, batch_size=1, max_length=None, dtype=None, device=None):  # noqa: ARG002
            self.layers = [None] * cfg.n_layers
            self.length = 0

        def update(self, layer, k, v):
            if {"in update", "in both"} & {*has}:
                self.length += k.shape[2]
            new, layer = (k, v), 0 if "one store" in has else layer
            if self.layers[layer] is not None:
                (old_k, old_v), dim = self.layers[layer], 1 if "heads" in has else 2
                k = torch.cat((k, old_k) if "new first" in has else (old_k, k), dim=dim)
                v = torch.cat((v, old_v) if "new first" in has else (old_v, v), dim=dim)
            self.layers[layer] = k, v
            k, v = new if "only new" in has else (k, v)
            return (v, k) if "values first" in has else (k, v)

        def advance(self, n_tokens):
            if "never" in has or "in update" in has:
                return
            self.length += 1 if "steps" in has else n_tokens

    return Growing


def growing_lists(has):
    class Growing:
        length = 0

        def __init__(self, cfg, **_):
            self.k, self.v = ([[] for _ in range(cfg.n_layers)] for _ in range(2))
            if "one store" in has:
                self.k, self.v = [[]] * cfg.n_layers, [[]] * cfg.n_layers
            if "values first" in has:
                self.k, self.v = self.v, self.k

        def update(self, layer, k, v):
            out = []
            for store, x in ((self.k, k), (self.v, v)):
                where = 0 if "new first" in has else len(store[layer])
                store[layer].insert(where, x)
                out.append(x if "only new" in has else torch.concat(store[layer], 1 if "heads" in has else -2))
            if {"in update", "in both"} & {*has}:
                self.advance_by(k.size(2))
            return tuple(reversed(out)) if "values first" in has else tuple(out)

        def advance_by(self, n):
            self.length = self.length + n

        def advance(self, n_tokens):
            if not {"never", "in update"} & {*has}:
                self.advance_by(n_tokens if "steps" not in has else 1)

    return Growing


def growing_tokens(has):
    """Every token alone; stacked when they are handed out."""

    class Growing:
        def __init__(self, *_, **__):
            self.store, self.count = {}, 0

        length = property(lambda self: self.count)

        def update(self, layer, k, v):
            kinds = ("v", "k") if "values first" in has else ("k", "v")
            results = {}
            for kind, x in (("k", k), ("v", v)):
                pieces = self.store.setdefault((kind, "all" if "one store" in has else layer), [])
                pieces[:] = [x] + pieces if "new first" in has else pieces + [x]
                shown = [x] if "only new" in has else pieces
                if "heads" in has:
                    results[kind] = torch.stack(shown, 1).flatten(1, 2)
                else:
                    results[kind] = torch.stack([t for piece in shown for t in piece.unbind(2)], dim=2)
            self.count += k.shape[2] * bool({"in update", "in both"} & {*has})
            return [results[kind] for kind in kinds]

        def advance(self, n_tokens):
            self.count += 0 if {"never", "in update"} & {*has} else min(n_tokens, 1) if "steps" in has else n_tokens

    return Growing


# ---- 05.3 in three ways: one tensor for all layers, a tensor for each layer, slots by their numbers ----


def _counts(has, new):
    """What update and advance add to the length."""
    in_update = new if {"in update", "in both"} & {*has} else 0
    return in_update, 0 if {"in update", "never"} & {*has} else 1 if "steps" in has else new


def _too_long(has, old, new, limit):
    if "compares new" in has:
        return new > limit
    return old + new >= limit if "never full" in has else old + new > limit


def _refusal(has, old, new, limit):
    kind = ValueError if "plain error" in has else ContextOverflowError
    return kind("too long" if "no numbers" in has else f"{old} + {new} pass {limit}")


def reserved_in_one(has):
    class Reserved:
        def __init__(self, cfg, *, batch_size=1, max_length=None, dtype=None, device=None):
            self.limit = max_length or cfg.context_length
            shape = (cfg.n_layers, batch_size, cfg.n_kv_heads, self.limit, cfg.head_dim)
            self.keys = torch.empty(shape, dtype=dtype, device=device)
            self.values = torch.empty_like(self.keys)
            self.length = 0

        def update(self, layer, k, v):
            layer = 0 if "one store" in has else layer
            new = k.shape[2]
            end = self.length + new
            if "counts first" in has:
                self.length = end
            if _too_long(has, end - new, new, self.limit):
                raise _refusal(has, end - new, new, self.limit)
            if "still grows" in has:
                old = self.keys[layer, :, :, : end - new], self.values[layer, :, :, : end - new]
                self.keys, self.values = self.keys.clone(), self.values.clone()
                self.keys[layer, :, :, :end] = torch.cat((old[0], k), dim=2)
                self.values[layer, :, :, :end] = torch.cat((old[1], v), dim=2)
            else:
                start = 0 if "at slot 0" in has else end - new
                self.keys[layer, :, :, start : start + new] = k
                self.values[layer, :, :, start : start + new] = v
            if "counts first" in has:
                self.length -= new
            self.length += _counts(has, new)[0]
            shown = slice(None) if "all slots" in has else slice(end)
            out = self.keys[layer, :, :, shown], self.values[layer, :, :, shown]
            return out[::-1] if "values first" in has else out

        def advance(self, n_tokens):
            self.length += _counts(has, n_tokens)[1]

    return Reserved


def reserved_by_layer(has):
    class Reserved:
        def __init__(self, cfg, *, batch_size=1, max_length=None, dtype=None, device=None):
            self.limit, self.length = max_length or cfg.context_length, 0
            shape = (batch_size, cfg.n_kv_heads, self.limit, cfg.head_dim)
            self.k = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(cfg.n_layers)]
            self.v = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(cfg.n_layers)]

        def update(self, layer, k, v):
            n, layer = k.size(2), 0 if "one store" in has else layer
            if "counts first" in has:
                self.length += n
                self.check(n, self.length - n)
                self.length -= n
            self.check(n, self.length)
            filled = self.limit if "all slots" in has else self.length + n
            out = []
            for store, x in ((self.k, k), (self.v, v)):
                if "still grows" in has:
                    store[layer] = torch.cat((store[layer][:, :, : self.length], x,
                                              torch.zeros_like(store[layer])[:, :, self.length + n :]), 2)  # fmt: skip
                else:
                    store[layer].narrow(2, 0 if "at slot 0" in has else self.length, n).copy_(x)
                out.append(store[layer].narrow(2, 0, filled))
            self.length += _counts(has, n)[0]
            return (out[1], out[0]) if "values first" in has else (out[0], out[1])

        def check(self, new, old):
            if _too_long(has, old, new, self.limit):
                raise _refusal(has, old, new, self.limit)

        def advance(self, n_tokens):
            self.length += _counts(has, n_tokens)[1]

    return Reserved


def reserved_by_numbers(has):
    class Reserved:
        def __init__(self, cfg, *, batch_size=1, max_length=None, dtype=None, device=None):  # noqa: ARG002
            self.n_slots, self.length = max_length, 0
            self.both = {n: torch.full((2, batch_size, cfg.n_kv_heads, max_length, cfg.head_dim), 0.0, dtype=dtype)
                         for n in range(cfg.n_layers)}  # fmt: skip

        def update(self, layer, k, v):
            layer = min(self.both) if "one store" in has else layer
            slots = torch.arange(k.shape[-2]) + self.length
            if "counts first" in has:
                self.length += k.shape[-2]
            if _too_long(has, int(slots[0]), len(slots), self.n_slots):
                raise _refusal(has, int(slots[0]), len(slots), self.n_slots)
            if "counts first" in has:
                self.length -= k.shape[-2]
            self.both[layer] = self.both[layer].clone() if "still grows" in has else self.both[layer]
            where = slots - slots[0] if "at slot 0" in has else slots
            self.both[layer].index_copy_(3, where, torch.stack((v, k) if "values first" in has else (k, v)))
            self.length += _counts(has, len(slots))[0]
            return self.both[layer][..., : self.n_slots if "all slots" in has else slots[-1] + 1, :].unbind()

        def advance(self, n_tokens):
            self.length += _counts(has, n_tokens)[1]

    return Reserved


# ---- 05.4 in three ways: a while loop, zip and split, takewhile ----


def read_by_while(has):
    def read_on(model, cache, old_ids, new_ids, *, chunk):
        keep, limit = 0, min(len(old_ids), len(new_ids))
        if "same places" in has:
            keep = sum(old_ids[i] == new_ids[i] for i in range(limit))
        else:
            while keep < limit and old_ids[keep] == new_ids[keep]:
                keep += 1
        if keep == len(new_ids) and "nothing left" not in has:
            keep -= 1
        keep = 0 if "all again" in has else keep
        if "no rewind" not in has:
            cache.rewind(keep)
        step = len(new_ids) if "one gulp" in has else chunk
        while keep + (step if "no rest" in has else 1) <= len(new_ids):
            piece = torch.tensor([new_ids[keep : keep + step]])
            logits = model(piece) if "no cache" in has else model(piece, cache=cache)
            keep += step
        return logits[0, -1]

    return read_on


def read_by_split(has):
    def read_on(model, cache, old_ids, new_ids, *, chunk):
        pairs_ = list(zip(old_ids, new_ids if "nothing left" in has else new_ids[:-1], strict=False))
        equal = [a == b for a, b in pairs_]
        keep = sum(equal) if "same places" in has else (equal + [False]).index(False)
        if "all again" in has:
            keep = keep - keep
        if "no rewind" in has:
            pass
        else:
            cache.rewind(keep)
        with torch.no_grad():
            ids = torch.tensor(new_ids)[keep:][None]
            pieces = (ids,) if "one gulp" in has else ids.split(chunk, 1)
            for piece in pieces:
                if "no rest" in has and piece.shape[1] < chunk:
                    break
                out = model(piece, cache=None if "no cache" in has else cache, last_only=True)
            return out[0, 0]

    return read_on


def read_by_takewhile(has):
    def read_on(model, cache, old_ids, new_ids, *, chunk):
        both = zip(old_ids, new_ids, strict=False)
        agree = [a for a, b in both if a == b] if "same places" in has else [
            *itertools.takewhile(lambda two: two[0] == two[1], both)]  # fmt: skip
        keep = len(agree) if "nothing left" in has else min(len(agree), len(new_ids) - 1)
        rest = list(new_ids) if "all again" in has else new_ids[keep:]
        if "no rewind" not in has:
            cache.rewind(len(new_ids) - len(rest))
        if "no rest" in has:
            rest = rest[: len(rest) // chunk * chunk]
        results = []
        cache = None if "no cache" in has else cache
        while rest:
            n = len(rest) if "one gulp" in has else chunk
            results.append(model(torch.LongTensor([rest[:n]]), cache=cache))
            rest = rest[n:]
        return results[-1].detach()[0, -1, :]

    return read_on


WAYS = {
    "05.1": (bytes_by_product, bytes_by_loops, bytes_by_shapes),
    "05.2": (growing_tensors, growing_lists, growing_tokens),
    "05.3": (reserved_in_one, reserved_by_layer, reserved_by_numbers),
    "05.4": (read_by_while, read_by_split, read_by_takewhile),
}
STORES = {"values first": "values where keys belong", "one store": "All layers share one store"}
COUNTS = {"in update": "Your length moves in update", "in both": "Your length moves in update",
          "steps": "counts steps, not tokens", "never": "Your length never changes"}  # fmt: skip
TOLD = {
    "05.1": {"one of both": "not both", "one layer": "counted one layer", "query heads": "counted query heads",
             "hidden size": "took hidden_size", "one token": "counted one token", "one text": "counted one text",
             "numbers": "numbers, not bytes"},
    "05.2": {"new first": "in front of the old", "heads": "new tokens became more heads",
             "only new": "only the new tok", **STORES, **COUNTS},
    "05.3": {"still grows": "still copies", "never full": "exactly full", "all slots": "all reserved slots",
             "at slot 0": "slot 0 each time", **STORES, **COUNTS, "compares new": "compared only the new tokens",
             "plain error": "you raised a ValueError", "no numbers": "lacks a number",
             "counts first": "after a refusal, got"},
    "05.4": {"all again": "read everything again", "nothing left": "nothing is left to read",
             "no rewind": "still holds the old end", "same places": "stop at the first difference",
             "one gulp": "longer than chunk", "no rest": "dropped the last, shorter piece",
             "no cache": "without cache=cache"},
}  # fmt: skip
# faults that cannot stand in one answer, or of which one hides the other
APART = {
    "05.1": [{"query heads", "hidden size"}],  # each says how wide K and V are
    "05.2": [
        *({"only new", other} for other in ("new first", "heads", "one store")),  # nothing old is joined
        {"in update", "in both", "never"}, {"in update", "steps", "never"},  # each says when the length grows
    ],
    "05.3": [
        {"at slot 0", "never"}, {"one store", "never"},  # all is written at slot 0 anyway
        *({count, kind} for count in ("in update", "in both") for kind in ("compares new", "plain error")),
        # where the length grows too early a cache that is just full is refused as well, which is told, too
        {"in update", "in both", "never"}, {"in update", "steps", "never"},  # each says when the length grows
        {"compares new", "never full"},  # each says what is compared with the limit
        *({"compares new", other} for other in ("no numbers", "plain error", "counts first")),
        # where new tokens alone are compared, the refusal of which these speak does not come
    ],
    "05.4": [
        {"all again", "nothing left"}, {"all again", "same places"},  # where all is read again nothing is compared
        {"one gulp", "no rest"},  # one piece has no rest
    ],
}


def made(way, faults):
    return way(faults)


@pytest.mark.parametrize("exercise", WAYS)
def test_the_right_answer_passes_however_it_is_written(exercise):
    assert_right(exercise, WAYS[exercise], made)


@pytest.mark.parametrize("exercise", WAYS)
def test_each_fault_gets_its_sentence_alone_and_beside_another(exercise):
    assert_told(exercise, WAYS[exercise], TOLD[exercise], APART[exercise], made)


def test_every_fault_of_an_exercise_is_planted_here():
    told = {e: len(faults) for e, faults in TOLD.items()}
    told["05.3"] -= 3  # told by properties of their own
    assert {e.id: len(e.mistakes) for e in exercises_of("05")} == {**told, "05.5": 0}


def test_a_message_speaks_of_the_fault_that_it_names():
    message = check("05.2", growing_tensors(("new first", "steps"))).message
    assert "old tokens, then new ones: update 2 of layer 0, keys: [0, " in message
    assert "length: length after advance(2), piece 1: the result should be 2, got 1. Your advance counts" in message
    message = check("05.3", reserved_in_one(("compares new",))).message
    assert message == (
        "8 of 9 properties hold\n  - an overflow: 4 tokens after 11, where 13 fit, should raise a "
        "ContextOverflowError, you raised a RuntimeError. You compared only the new tokens with max_length: the old "
        "ones take room too, so compare length + T"
    )


# ---- 05.5 ----


class LastKeyEverywhere(KVCache):
    def update(self, layer, k, v):
        keys, values = super().update(layer, k, v)
        keys[:, :, self.length :] = k[:, :, -1:]
        return keys, values


class CountsSteps(KVCache):
    def advance(self, n_tokens):  # noqa: ARG002
        self.length += 1


class Backwards(KVCache):
    def update(self, layer, k, v):
        return super().update(layer, k.flip(2), v)


class Same(KVCache):
    pass


class SameInOtherWords(KVCache):
    def advance(self, n_tokens):
        for _ in range(n_tokens):
            super().advance(1)


class NoValues(KVCache):
    def update(self, layer, k, v):
        return super().update(layer, k, torch.zeros_like(v))


class Forgets(KVCache):
    def advance(self, n_tokens):
        self.length = n_tokens


class NoKeysOfOne(KVCache):
    """Wrong for one token, right for two."""

    def update(self, layer, k, v):
        return super().update(layer, k * (k.shape[2] > 1), v)


class Loud(KVCache):
    def update(self, layer, k, v):
        assert k.shape[2] == 1, "one token only"
        return super().update(layer, k, v)


class Louder(KVCache):
    def advance(self, n_tokens):
        if n_tokens > 1:
            raise ValueError("too many")
        super().advance(n_tokens)


class TooShort(KVCache):
    def __init__(self, cfg, **options):
        super().__init__(cfg, **{**options, "max_length": 1})


class WrongAndLoud(NoValues, Loud):
    pass


@pytest.mark.parametrize("answer", [LastKeyEverywhere, CountsSteps, Backwards])
def test_every_cache_that_is_broken_as_asked_passes(answer):
    assert check("05.5", answer), check("05.5", answer).message


NOT_BROKEN, FAILS_FOR_ONE, RAISES = "not broken anything yet", "fails already", "wrong without an exception"


@pytest.mark.parametrize(("answer", "phrases"), [
    (KVCache, [NOT_BROKEN]), (Same, [NOT_BROKEN]), (SameInOtherWords, [NOT_BROKEN]),
    (NoValues, [FAILS_FOR_ONE]), (Forgets, [FAILS_FOR_ONE]), (growing_tensors(("values first",)), [FAILS_FOR_ONE]),
    (Loud, [RAISES]), (Louder, [RAISES]), (TooShort, [RAISES]),
    (WrongAndLoud, [FAILS_FOR_ONE, RAISES]), (NoKeysOfOne, [FAILS_FOR_ONE, "right with two at a time"]),
])  # fmt: skip
def test_a_cache_that_is_not_broken_as_asked_is_told_why(answer, phrases):
    message = check("05.5", answer).message
    told = [p for p in (NOT_BROKEN, FAILS_FOR_ONE, RAISES, "right with two at a time") if p in message]
    assert told == phrases, message


# ---- what no fault explains ----


class NoAdvance:
    def __init__(self, cfg, **options):  # noqa: ARG002
        self.length = 0

    def update(self, _layer, k, v):
        return k, v


class NeverRefuses(reserved_in_one(())):
    def __init__(self, cfg, *, max_length, **options):
        super().__init__(cfg, max_length=2 * max_length, **options)


class Doubles(KVCache):
    def update(self, layer, k, v):
        return super().update(layer, 2 * k, v)


@pytest.mark.parametrize(("exercise", "answer", "message"), [
    ("05.1", lambda *_, **__: "4 GB", "should be a number, got '4 GB' (str)"),
    ("05.1", lambda cfg, n, **_: cfg.n_layers * n, "all results: the result should be 4.29497e+09, got 2.09715e+06"),
    ("05.2", NoAdvance, "no attribute 'advance'"), ("05.2", Doubles, "all results: update 1 of layer 0, keys: ["),
    ("05.3", NeverRefuses, "should raise a ContextOverflowError, nothing was raised"),
    ("05.4", lambda _model, cache, old_ids, new_ids, chunk: cache.rewind(len(old_ids) + 1), "cannot rewind"),  # noqa: ARG005
    ("05.4", lambda *case, **more: 2 * read_by_while(())(*case, **more), "all results: logits: ["),
    ("05.4", lambda *case, **more: read_by_while(())(*case, **more)[None], "logits: the shape should be (512,), got"),
    ("05.4", lambda *_, **__: [], "all results: tokens read: the result should be 5, got 0"),
])  # fmt: skip
def test_what_no_fault_explains_is_told_with_its_result(exercise, answer, message):
    result = check(exercise, answer)
    assert not result and message in result.message, result.message
    assert not any(phrase in result.message for phrase in TOLD[exercise].values()), result.message
