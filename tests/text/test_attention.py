"""text.attention: by hand, readable equals fused, equality with transformers."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention

from llamamm import GroupedQueryAttention, KVCache, TextConfig, compute_rope_params
from llamamm.text.attention import fused_attention, readable_attention
from llamamm.text.masks import build_mask, causal_mask


def test_two_keys_by_hand():
    q = torch.tensor([2.0, 0.0]).view(1, 1, 1, 2)
    k = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 1, 2, 2)
    v = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 1, 2, 2)
    # scores 2 / sqrt(2) and 0: weights e^1.41421 / (e^1.41421 + 1) = 0.80442 and 0.19558
    w = math.exp(math.sqrt(2)) / (math.exp(math.sqrt(2)) + 1)
    for attend in (readable_attention, fused_attention):
        out = attend(q, k, v, None).flatten()
        torch.testing.assert_close(out, torch.tensor([w, 1 - w]))


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1), (9, 3)], ids=["MHA", "GQA", "MQA", "SmolLM2"])
@pytest.mark.parametrize("case", ["causal", "one query", "chunk", "padding"])
def test_readable_equals_fused(heads, case, generator):
    H, K = heads
    T, S = {"causal": (6, 6), "one query": (1, 6), "chunk": (3, 6), "padding": (6, 6)}[case]
    q = torch.randn(2, H, T, 8, generator=generator)
    k, v = torch.randn(2, 2, K, S, 8, generator=generator)
    padding = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6]).bool() if case == "padding" else None
    mask = build_mask(T, start=S - T, padding=padding)
    assert (mask is None) == (case in ("causal", "one query"))
    torch.testing.assert_close(readable_attention(q, k, v, mask), fused_attention(q, k, v, mask), rtol=0, atol=1e-5)


def test_a_query_cannot_see_the_future(generator):
    q, k, v = torch.randn(3, 1, 2, 5, 8, generator=generator)
    before = fused_attention(q, k, v, None)
    k[:, :, 3:], v[:, :, 3:] = 100.0, -100.0
    after = fused_attention(q, k, v, None)
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert not torch.allclose(before[:, :, 3:], after[:, :, 3:])


def test_heads_share_keys_in_neighbouring_groups(generator):
    """Changing key head 1 of 2 changes query heads 2 and 3 of 4, and no other."""
    q = torch.randn(1, 4, 5, 8, generator=generator)
    k, v = torch.randn(2, 1, 2, 5, 8, generator=generator)
    before = readable_attention(q, k, v, causal_mask(5))
    k[:, 1] += 1.0 + torch.arange(5)[None, :, None]
    changed = (readable_attention(q, k, v, causal_mask(5)) != before).flatten(2).any(dim=-1)
    assert changed.tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("attend", [readable_attention, fused_attention])
def test_equals_transformers(attend, generator):
    cfg = TextConfig.tiny(n_heads=4, n_kv_heads=2, head_dim=24)
    ours = GroupedQueryAttention(cfg, attend=attend)
    hf_cfg = LlamaConfig(**cfg.to_hf(), attn_implementation="eager")
    theirs = LlamaAttention(hf_cfg, layer_idx=0)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 7, cfg.hidden_size, generator=generator)
    cos, sin = compute_rope_params(cfg.head_dim, theta=cfg.rope_theta, context_length=7)
    mask = torch.zeros(7, 7).masked_fill(~causal_mask(7), float("-inf"))[None, None]
    expected, _ = theirs(x, position_embeddings=(cos[None], sin[None]), attention_mask=mask)
    torch.testing.assert_close(ours(x, cos, sin), expected, rtol=0, atol=1e-6)


def test_layer_number_is_the_place_in_the_cache(generator):
    cfg = TextConfig.tiny()
    cache = KVCache(cfg, max_length=4)
    cache.keys.zero_()
    cos, sin = compute_rope_params(cfg.head_dim, context_length=3)
    GroupedQueryAttention(cfg, 1)(torch.randn(1, 3, cfg.hidden_size, generator=generator), cos, sin, cache=cache)
    assert cache.keys[0].count_nonzero() == 0 and cache.keys[1].count_nonzero() > 0
