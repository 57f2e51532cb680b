"""text.cache: what is written is read back; overflow, rewind, memory."""

import pytest
import torch

from llamamm import KVCache, Llama3Model, TextConfig
from llamamm.errors import ContextOverflowError, InputError
from llamamm.text import model as text_model

CFG = TextConfig.tiny()  # 2 layers, 2 kv heads, head_dim 16


def new_tokens(n, *, batch=1):
    return torch.randn(2, batch, CFG.n_kv_heads, n, CFG.head_dim)


def test_updates_follow_each_other():
    cache = KVCache(CFG, max_length=5)
    first_k, first_v = new_tokens(3)
    cache.update(1, first_k, first_v)
    cache.advance(3)
    k, v = new_tokens(2)
    keys, values = cache.update(1, k, v)
    assert torch.equal(keys, torch.cat((first_k, k), dim=2))
    assert torch.equal(values, torch.cat((first_v, v), dim=2))


def test_overflow_names_start_length_and_limit():
    cache = KVCache(CFG, max_length=4)
    cache.update(0, *new_tokens(3))
    cache.advance(3)
    with pytest.raises(ContextOverflowError, match=r"4 tokens.*3 \+ 2 new = 5"):
        cache.update(0, *new_tokens(2))
    assert cache.length == 3


def test_longer_than_the_context_is_refused():
    with pytest.raises(ContextOverflowError, match="257.*256"):
        KVCache(CFG, max_length=257)


def test_rewind_reuses_the_beginning():
    cache = KVCache(CFG, max_length=4)
    k, v = new_tokens(4)
    cache.update(0, k, v)
    cache.advance(4)
    cache.rewind(2)
    new_k, new_v = new_tokens(1)
    keys, _ = cache.update(0, new_k, new_v)
    assert torch.equal(keys, torch.cat((k[:, :, :2], new_k), dim=2))
    with pytest.raises(InputError, match="3.*2"):
        cache.rewind(3)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (new_tokens(1, batch=2), "batch of 1, got 2"),
        (new_tokens(1).double(), "float32.*float64"),
        (new_tokens(1).to("meta"), "cpu.*meta"),
    ],
)
def test_wrong_batch_dtype_or_device_is_refused_with_both(tokens, message):
    with pytest.raises(InputError, match=message):
        KVCache(CFG).update(0, *tokens)


def test_what_is_kept_in_less_comes_back_in_the_models_dtype():
    cfg = TextConfig.tiny()
    cache = KVCache(cfg, max_length=4, keep=torch.float16)
    k = torch.full((1, cfg.n_kv_heads, 2, cfg.head_dim), 1 + 2.0**-12)
    keys, values = cache.update(0, k, 3 * k)
    assert keys.dtype == values.dtype == torch.float32 and cache.keys.dtype == torch.float16
    assert torch.equal(keys, torch.ones_like(k)) and torch.equal(values, (3 * k).half().float())
    assert cache.nbytes == KVCache(cfg, max_length=4).nbytes / 2
    with pytest.raises(InputError, match=r"the KV cache is torch.float32"):
        cache.update(0, k.half(), k.half())


def test_bytes_by_hand():
    # keys and values x 2 layers x batch 3 x 2 kv heads x 10 tokens x 16 numbers x 4 bytes
    assert KVCache(CFG, batch_size=3, max_length=10).nbytes == 2 * 2 * 3 * 2 * 10 * 16 * 4


def test_a_cache_of_ones_own_needs_to_know_no_more_than_before(monkeypatch):
    class Own:
        def __init__(self, _cfg, *, batch_size, max_length, dtype, device):
            self.told = batch_size, max_length, dtype, device.type

    monkeypatch.setattr(text_model, "KVCache", Own)
    model = Llama3Model(CFG)
    assert model.make_cache(2, 5).told == (2, 5, torch.float32, "cpu")
    model.cache_dtype = torch.float16  # which Own has never heard of
    with pytest.raises(TypeError, match="keep"):
        model.make_cache(2, 5)
