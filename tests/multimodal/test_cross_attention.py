"""multimodal.cross_attention: by hand, closed gates, who sees what, prompts that take attention, caches,
image spans."""

import math

import pytest
import torch

from llamamm.lora.lora import apply_lora
from llamamm.multimodal.cross_attention import CrossAttention, CrossAttentionBlock, CrossAttentionCache
from llamamm.text.config import TextConfig

CFG = TextConfig.tiny()


def rows(B, N, *, seed=0):
    return torch.randn(B, N, CFG.hidden_size, generator=torch.Generator().manual_seed(seed))


def opened(**options):
    """A block as after training: gates open, norms uneven."""
    torch.manual_seed(0)
    block = CrossAttentionBlock(CFG, **options).eval()
    with torch.no_grad():
        block.cross_attn_attn_gate.fill_(0.6)
        block.cross_attn_mlp_gate.fill_(0.4)
        for norm in (block.cross_attn.q_norm, block.cross_attn.k_norm, block.input_layernorm):
            norm.weight.uniform_(0.5, 1.5)
    return block


# ---- attention ----


@torch.no_grad()
@pytest.mark.parametrize("qk_norm", [True, False])
def test_attention_by_hand(qk_norm):
    torch.manual_seed(0)
    attention = CrossAttention(CFG, qk_norm=qk_norm)
    if qk_norm:
        attention.q_norm.weight.uniform_(0.5, 1.5)
        attention.k_norm.weight.uniform_(0.5, 1.5)
    x, memory = rows(1, 3), rows(1, 5, seed=1)
    mask = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 1], [1, 1, 1, 1, 1]]).bool()
    heads = []
    for h in range(4):
        group = h // 2  # heads 0 and 1 read key head 0, 2 and 3 read 1
        q = x[0] @ attention.q_proj.weight[16 * h : 16 * h + 16].T
        k = memory[0] @ attention.k_proj.weight[16 * group : 16 * group + 16].T
        v = memory[0] @ attention.v_proj.weight[16 * group : 16 * group + 16].T
        if qk_norm:
            q = q / (q.pow(2).mean(-1, keepdim=True) + CFG.norm_eps).sqrt() * attention.q_norm.weight
            k = k / (k.pow(2).mean(-1, keepdim=True) + CFG.norm_eps).sqrt() * attention.k_norm.weight
        scores = (q @ k.T / math.sqrt(16)).masked_fill(~mask, float("-inf"))
        heads.append(scores.softmax(-1) @ v)
    expected = torch.cat(heads, dim=-1) @ attention.o_proj.weight.T
    out = attention(x, attention.keys_values(memory), mask[None, None])
    assert (out[0] - expected).abs().max() < 1e-5


# ---- gates ----


@torch.no_grad()
@pytest.mark.parametrize("n_prompts", [0, 3])
@pytest.mark.parametrize("masked", [True, False])
def test_fresh_gates_add_nothing_bit_for_bit(n_prompts, masked):
    block = CrossAttentionBlock(CFG, n_prompts=n_prompts)
    x, memory = rows(2, 4), rows(2, 6, seed=1)
    mask = torch.rand(2, 1, 4, 6) < 0.5 if masked else None
    assert torch.equal(block(x, block.keys_values(memory), mask), x)


@torch.no_grad()
def test_each_gate_opens_its_own_half():
    block = CrossAttentionBlock(CFG)
    x, memory = rows(1, 4), rows(1, 6, seed=1)
    view = block.keys_values(memory)
    block.cross_attn_attn_gate.fill_(0.5)
    attended = block.cross_attn(block.input_layernorm(x), view)
    after = x + math.tanh(0.5) * attended
    assert (block(x, view) - after).abs().max() < 1e-6
    block.cross_attn_mlp_gate.fill_(-0.3)
    expected = after + math.tanh(-0.3) * block.mlp(block.post_attention_layernorm(after))
    assert (block(x, view) - expected).abs().max() < 1e-6


def test_closed_gates_get_gradients_and_what_is_behind_them_none():
    block = CrossAttentionBlock(CFG, n_prompts=2)
    block(rows(1, 4), block.keys_values(rows(1, 6, seed=1))).pow(2).sum().backward()
    assert block.cross_attn_attn_gate.grad.abs() > 0 and block.cross_attn_mlp_gate.grad.abs() > 0
    assert block.cross_attn.q_proj.weight.grad.abs().max() == 0 == block.prompts.grad.abs().max()


# ---- who sees what ----


@torch.no_grad()
@pytest.mark.parametrize("n_prompts", [0, 3])
def test_a_word_sees_what_the_mask_opens_and_no_more(n_prompts):
    block = opened(n_prompts=n_prompts)
    x, memory = rows(1, 3), rows(1, 4, seed=1)
    mask = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]).bool()[None, None]
    out = block(x, block.keys_values(memory), mask)
    assert torch.equal(out[:, 0], x[:, 0])  # what sees nothing stays as it is, prompts or not
    half = block(x[:, 1:2], block.keys_values(memory[:, :2]))
    assert (out[:, 1:2] - half).abs().max() < 1e-5
    whole = block(x[:, 2:], block.keys_values(memory))
    assert (out[:, 2:] - whole).abs().max() < 1e-5
    memory[:, 2:] = 9.0
    again = block(x, block.keys_values(memory), mask)
    assert torch.equal(again[:, :2], out[:, :2]) and (again[:, 2] - out[:, 2]).abs().max() > 1e-3


@torch.no_grad()
def test_blind_rows_may_attend_as_in_transformers():
    block = opened(blind_rows_attend=True)
    x, memory = rows(1, 2), rows(1, 4, seed=1)
    mask = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]).bool()[None, None]
    view = block.keys_values(memory)
    attended = block.cross_attn(block.input_layernorm(x), view)  # at everything
    out = block(x, view, mask)
    assert (out[:, 0] - (x + block.cross_attn_attn_gate.tanh() * attended)[:, 0]).abs().max() < 1e-6
    assert (out[:, 1:] - block(x[:, 1:], view)).abs().max() < 1e-6


@pytest.mark.parametrize("n_prompts", [0, 3])
def test_nan_in_the_memory_stays_where_nothing_is_real(n_prompts):
    block = opened(n_prompts=n_prompts)
    x, memory, real = rows(2, 3), rows(2, 6, seed=1), torch.arange(6) < torch.tensor([[6], [4]])
    mask = real[:, None, None].repeat(1, 1, 3, 1)
    mask[:, :, 0] = False  # a word that sees nothing
    spoiled = memory.masked_fill(~real[..., None], float("nan"))
    out, expected = block(x, block.keys_values(spoiled, real), mask), block(x, block.keys_values(memory), mask)
    assert out.isfinite().all() and (out - expected).abs().max() < 1e-5
    assert torch.equal(out[:, 0], x[:, 0])
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in block.parameters())
    assert block(x, block.keys_values(spoiled), mask).isnan().any()  # without `real`


@torch.no_grad()
def test_what_sees_nothing_stays_as_it_is_even_beside_nan():
    block = opened()
    x, memory = rows(1, 2), torch.full((1, 4, CFG.hidden_size), float("nan"))
    mask = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]).bool()[None, None]
    assert torch.equal(block(x, block.keys_values(memory), mask)[:, 0], x[:, 0])


# ---- prompts ----


@torch.no_grad()
def test_prompts_take_their_share_of_attention():
    """Queries of zero attend evenly: of P prompts that say nothing and S features, S / (P + S) of it is left."""
    block, without = opened(n_prompts=6), opened()
    without.load_state_dict({k: v for k, v in block.state_dict().items() if k != "prompts"}, strict=True)
    block.prompts.zero_()
    for one in (block, without):
        one.cross_attn.q_proj.weight.zero_()
        one.cross_attn_mlp_gate.zero_()
    x, memory = rows(1, 3), rows(1, 2, seed=1)
    gained, plain = (one(x, one.keys_values(memory)) - x for one in (block, without))
    assert plain.abs().max() > 0.01
    assert (gained - plain * 2 / 8).abs().max() < 1e-6


@torch.no_grad()
def test_a_word_whose_attention_the_prompt_takes_sees_hardly_anything():
    cfg = CFG.replace(n_heads=2, n_kv_heads=2)
    torch.manual_seed(0)
    attention_of = CrossAttentionBlock(cfg, n_prompts=1).eval()
    attention_of.cross_attn_attn_gate.fill_(1.0)
    inner = attention_of.cross_attn
    inner.q_norm.weight.fill_(8.0)  # sharp attention
    x, memory, other = rows(1, 2), rows(1, 4, seed=1), rows(1, 4, seed=2)
    # a prompt whose key is the query of word 0
    wanted = inner.q_proj(attention_of.input_layernorm(x[:, 0]))[0]
    attention_of.prompts.copy_(torch.linalg.lstsq(inner.k_proj.weight, wanted[:, None]).solution.T)
    change = attention_of(x, attention_of.keys_values(memory)) - attention_of(x, attention_of.keys_values(other))
    assert change[0, 0].abs().max() < 1e-3 * change[0, 1].abs().max()
    assert change[0, 1].abs().max() > 0.1


def test_prompts_are_learned():
    block = opened(n_prompts=2)
    mask = torch.tensor([[0, 0], [1, 0], [1, 1]]).bool()[None, None]
    block(rows(1, 3), block.keys_values(rows(1, 2, seed=1)), mask).pow(2).sum().backward()
    assert block.prompts.grad.abs().min() > 0
    assert CrossAttentionBlock(CFG).prompts is None


# ---- keys and values once ----


@torch.no_grad()
def test_keys_and_values_of_all_steps_are_the_same():
    block = opened(n_prompts=2)
    x, memory = rows(2, 5), rows(2, 3, seed=1)
    view = block.keys_values(memory)
    assert view[0].shape == view[1].shape == (2, CFG.n_kv_heads, 2 + 3, CFG.head_dim)
    steps = torch.cat([block(x[:, i : i + 1], view) for i in range(5)], dim=1)
    assert (steps - block(x, view)).abs().max() < 1e-5


def test_a_cache_knows_what_the_last_word_saw_also_after_a_rewind():
    cache = CrossAttentionCache(CFG, max_length=12)
    assert cache.last_mask is None
    look = torch.tensor([[1, 0], [1, 1], [0, 1]], dtype=torch.bool)[None, None]  # (1, 1, 3, 2): three words
    cache.views[0] = (torch.ones(1), torch.ones(1))
    cache.advance(2)  # two words before the memory comes
    cache.remember(look)
    assert cache.last_mask is None
    cache.advance(3)
    assert cache.last_mask.tolist() == [[[[False, True]]]]
    cache.advance(4)  # words to come see what the last one saw
    assert cache.last_mask.tolist() == [[[[False, True]]]]
    for length, seen in ((4, [True, True]), (3, [True, False])):
        cache.rewind(length)
        assert cache.last_mask.tolist() == [[[seen]]] and cache.views
    cache.rewind(2)
    assert (cache.length, cache.views, cache.last_mask) == (2, {}, None)


def test_lora_by_the_same_wiring():
    plain, block = opened(n_prompts=2), opened(n_prompts=2)
    apply_lora(block, r=2, alpha=4, targets=["cross_attn.q_proj", "v_proj", "mlp.up_proj"])
    x, memory = rows(1, 4), rows(1, 3, seed=1)
    out = block(x, block.keys_values(memory))
    assert torch.equal(out, plain(x, plain.keys_values(memory)))
    out.pow(2).sum().backward()
    assert {n.split(".lora")[0] for n, p in block.named_parameters() if p.grad is not None} == {
        "cross_attn.q_proj", "cross_attn.v_proj", "mlp.up_proj"}
