"""course.checks.lesson05: right answers pass, and each usual mistake is called by its name."""

import pytest
import torch

from llamamm import KVCache
from llamamm.course.checks import check
from llamamm.errors import ContextOverflowError

# ---- right answers ----


def count_bytes(cfg, n_tokens, *, batch_size, bytes_per_number):
    one_vector = cfg.head_dim * bytes_per_number
    return one_vector * cfg.n_kv_heads * 2 * cfg.n_layers * batch_size * n_tokens


class Growing:
    def __init__(self, cfg, *, batch_size=1, max_length=None, dtype=None, device=None):  # noqa: ARG002
        self.k = [[] for _ in range(cfg.n_layers)]
        self.v = [[] for _ in range(cfg.n_layers)]
        self.length = 0

    def update(self, layer, k, v):
        self.k[layer].append(k)
        self.v[layer].append(v)
        return torch.cat(self.k[layer], dim=2), torch.cat(self.v[layer], dim=2)

    def advance(self, n_tokens):
        self.length += n_tokens


class Reserved:
    def __init__(self, cfg, *, batch_size=1, max_length=None, dtype=None, device=None):
        self.limit = max_length or cfg.context_length
        shape = (batch_size, cfg.n_kv_heads, self.limit, cfg.head_dim)
        self.k = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(cfg.n_layers)]
        self.v = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(cfg.n_layers)]
        self.length = 0

    def check(self, n_new):
        if self.length + n_new > self.limit:
            raise ContextOverflowError(f"{self.length} + {n_new} > {self.limit}")

    def update(self, layer, k, v):
        n_new = k.shape[2]
        self.check(n_new)
        self.k[layer][:, :, self.length : self.length + n_new] = k
        self.v[layer][:, :, self.length : self.length + n_new] = v
        return self.k[layer][:, :, : self.length + n_new], self.v[layer][:, :, : self.length + n_new]

    def advance(self, n_tokens):
        self.length = self.length + n_tokens


def read_on(model, cache, old_ids, new_ids, *, chunk):
    keep = 0
    for a, b in zip(old_ids, new_ids[:-1], strict=False):
        if a != b:
            break
        keep += 1
    cache.rewind(keep)
    while keep < len(new_ids):
        with torch.no_grad():
            logits = model(torch.tensor([new_ids[keep : keep + chunk]]), cache=cache)
        keep += chunk
    return logits[0, -1]


class LastKeyEverywhere(KVCache):
    def update(self, layer, k, v):
        keys, values = super().update(layer, k, v)
        keys[:, :, self.length :] = k[:, :, -1:]
        return keys, values


class CountsSteps(KVCache):
    def advance(self, n_tokens):  # noqa: ARG002
        self.length += 1


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [
        ("05.1", count_bytes), ("05.2", Growing), ("05.2", KVCache), ("05.3", Reserved), ("05.3", KVCache),
        ("05.4", read_on), ("05.5", LastKeyEverywhere), ("05.5", CountsSteps),
    ],
)  # fmt: skip
def test_right_answers_pass(exercise, answer):
    result = check(exercise, answer)
    assert result, result.message


# ---- 1 ----


def keys_only(cfg, n_tokens, *, batch_size, bytes_per_number):
    return cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * n_tokens * batch_size * bytes_per_number


def all_query_heads(cfg, n_tokens, *, batch_size, bytes_per_number):
    return 2 * cfg.n_layers * cfg.n_heads * cfg.head_dim * n_tokens * batch_size * bytes_per_number


def whole_width(cfg, n_tokens, *, batch_size, bytes_per_number):
    return 2 * cfg.n_layers * cfg.hidden_size * n_tokens * batch_size * bytes_per_number


def one_layer(cfg, n_tokens, *, batch_size, bytes_per_number):
    return 2 * cfg.n_kv_heads * cfg.head_dim * n_tokens * batch_size * bytes_per_number


def one_text(cfg, n_tokens, *, batch_size, bytes_per_number):  # noqa: ARG001
    return 2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * n_tokens * bytes_per_number


def numbers(cfg, n_tokens, *, batch_size, bytes_per_number):  # noqa: ARG001
    return 2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim * n_tokens * batch_size


# ---- 2 ----


class NewFirst(Growing):
    def update(self, layer, k, v):
        self.k[layer].insert(0, k)
        self.v[layer].insert(0, v)
        return torch.cat(self.k[layer], dim=2), torch.cat(self.v[layer], dim=2)


class GluesHeads(Growing):
    def update(self, layer, k, v):
        super().update(layer, k, v)
        return torch.cat(self.k[layer], dim=1), torch.cat(self.v[layer], dim=1)


class OneList(Growing):
    def update(self, _layer, k, v):
        self.k[0].append(k)
        self.v[0].append(v)
        return torch.cat(self.k[0], dim=2), torch.cat(self.v[0], dim=2)


class ReturnsNew(Growing):
    def update(self, layer, k, v):
        super().update(layer, k, v)
        return k, v


class ValuesFirst(Growing):
    def update(self, layer, k, v):
        keys, values = super().update(layer, k, v)
        return values, keys


class CountsInUpdate(Growing):
    def update(self, layer, k, v):
        self.length += k.shape[2]
        return super().update(layer, k, v)

    def advance(self, n_tokens):
        pass


class OneStepOneToken(Growing):
    def advance(self, n_tokens):  # noqa: ARG002
        self.length += 1


class NeverCounts(Growing):
    def advance(self, n_tokens):
        pass


class NoAdvance:
    def __init__(self, cfg, **options):  # noqa: ARG002
        self.length = 0

    def update(self, _layer, k, v):
        return k, v


# ---- 3 ----


class StillGrows(Growing):
    def __init__(self, cfg, *, max_length=None, **options):
        super().__init__(cfg, **options)
        self.limit = max_length

    def update(self, layer, k, v):
        Reserved.check(self, k.shape[2])
        return super().update(layer, k, v)


class ChecksNewOnly(Reserved):
    def check(self, n_new):
        if n_new > self.limit:
            raise ContextOverflowError(f"{self.length} {n_new} {self.limit}")


class NeverFull(Reserved):
    def check(self, n_new):
        if self.length + n_new >= self.limit:
            raise ContextOverflowError(f"{self.length} {n_new} {self.limit}")


class PlainError(Reserved):
    def check(self, n_new):
        if self.length + n_new > self.limit:
            raise ValueError(f"{self.length} {n_new} {self.limit}")


class SaysNothing(Reserved):
    def check(self, n_new):
        if self.length + n_new > self.limit:
            raise ContextOverflowError("too long")


class ReturnsAll(Reserved):
    def update(self, layer, k, v):
        super().update(layer, k, v)
        return self.k[layer], self.v[layer]


class WritesAtZero(Reserved):
    def update(self, layer, k, v):
        n_new = k.shape[2]
        self.check(n_new)
        self.k[layer][:, :, :n_new] = k
        self.v[layer][:, :, :n_new] = v
        return self.k[layer][:, :, : self.length + n_new], self.v[layer][:, :, : self.length + n_new]


# ---- 4 ----


def read_all(model, cache, old_ids, new_ids, *, chunk):  # noqa: ARG001
    cache.rewind()
    for piece in torch.tensor([new_ids]).split(chunk, dim=1):
        logits = model(piece, cache=cache)
    return logits[0, -1].detach()


def common(old_ids, new_ids):
    keep = 0
    while keep < min(len(old_ids), len(new_ids)) and old_ids[keep] == new_ids[keep]:
        keep += 1
    return keep


def leaves_nothing(model, cache, old_ids, new_ids, *, chunk):
    keep = common(old_ids, new_ids)
    cache.rewind(keep)
    for i in range(keep, len(new_ids), chunk):
        logits = model(torch.tensor([new_ids[i : i + chunk]]), cache=cache)
    return logits[0, -1].detach()


def no_rewind(model, cache, old_ids, new_ids, *, chunk):
    keep = min(common(old_ids, new_ids), len(new_ids) - 1)
    for piece in torch.tensor([new_ids[keep:]]).split(chunk, dim=1):
        logits = model(piece, cache=cache)
    return logits[0, -1].detach()


def drops_rest(model, cache, old_ids, new_ids, *, chunk):
    keep = min(common(old_ids, new_ids), len(new_ids) - 1)
    cache.rewind(keep)
    for i in range(keep, len(new_ids) - chunk + 1, chunk):
        logits = model(torch.tensor([new_ids[i : i + chunk]]), cache=cache)
    return logits[0, -1].detach()


def one_gulp(model, cache, old_ids, new_ids, *, chunk):  # noqa: ARG001
    keep = min(common(old_ids, new_ids), len(new_ids) - 1)
    cache.rewind(keep)
    return model(torch.tensor([new_ids[keep:]]), cache=cache)[0, -1].detach()


def same_places(model, cache, old_ids, new_ids, *, chunk):
    keep = 0
    for a, b in zip(old_ids, new_ids, strict=False):
        if a == b:
            keep += 1
    keep = min(keep, len(new_ids) - 1)
    cache.rewind(keep)
    for piece in torch.tensor([new_ids[keep:]]).split(chunk, dim=1):
        logits = model(piece, cache=cache)
    return logits[0, -1].detach()


def rewinds_too_far(model, cache, old_ids, new_ids, *, chunk):  # noqa: ARG001
    cache.rewind(len(old_ids) + 1)


# ---- 5 ----


class StillRight(KVCache):
    pass


class WrongForOne(KVCache):
    def update(self, layer, k, v):
        return super().update(layer, k, torch.zeros_like(v))


class Loud(KVCache):
    def update(self, layer, k, v):
        assert k.shape[2] == 1, "one token only"
        return super().update(layer, k, v)


@pytest.mark.parametrize(
    ("exercise", "answer", "message"),
    [
        ("05.1", keys_only, "not both"), ("05.1", all_query_heads, "counted query heads"),
        ("05.1", whole_width, "you took hidden_size"), ("05.1", one_layer, "counted one layer"),
        ("05.1", one_text, "counted one text"), ("05.1", numbers, "numbers, not bytes"),
        ("05.1", lambda *_, **__: "4 GB", "should be a number"),
        ("05.2", NewFirst, "in front of the old"), ("05.2", GluesHeads, "new tokens became more heads"),
        ("05.2", OneList, "all layers share one store"), ("05.2", ReturnsNew, "only the new tokens"),
        ("05.2", ValuesFirst, "values where keys belong"), ("05.2", CountsInUpdate, "only advance may count"),
        ("05.2", OneStepOneToken, "counts steps, not tokens"), ("05.2", NeverCounts, "length never changes"),
        ("05.2", NoAdvance, "no attribute 'advance'"),
        ("05.3", StillGrows, "still copies"), ("05.3", ChecksNewOnly, "compared only the new tokens"),
        ("05.3", NeverFull, "exactly full"), ("05.3", PlainError, "you raised a ValueError"),
        ("05.3", SaysNothing, "lacks a number"), ("05.3", ReturnsAll, "all reserved slots"),
        ("05.3", WritesAtZero, "slot 0 each time"),
        ("05.4", read_all, "read everything again"), ("05.4", leaves_nothing, "nothing is left to read"),
        ("05.4", no_rewind, "still holds the old end"), ("05.4", drops_rest, "dropped the last, shorter piece"),
        ("05.4", one_gulp, "longer than chunk"), ("05.4", same_places, "stop at the first difference"),
        ("05.4", rewinds_too_far, "cannot rewind"),
        ("05.5", StillRight, "not broken anything yet"), ("05.5", WrongForOne, "when tokens come one at a time"),
        ("05.5", Loud, "it should be wrong without an exception"),
    ],
)  # fmt: skip
def test_wrong_answers_are_called_by_their_name(exercise, answer, message):
    result = check(exercise, answer)
    assert not result
    assert message in result.message
