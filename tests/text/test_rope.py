"""text.rope: angles by hand, the distance property, scaling, and the two layouts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llamamm import LLAMA32_3B_CONFIG, LLAMA32_CONFIG, SMOLLM2_CONFIG, RopeScaling, apply_rope, compute_rope_params
from llamamm.errors import ConfigError
from llamamm.text.rope import rope_frequencies
from llamamm.weights.names import half_split_to_interleaved, interleaved_to_half_split


def test_one_pair_by_hand():
    cos, sin = compute_rope_params(2, context_length=6)  # one pair: one radian a token
    x = torch.tensor([1.0, 0.0]).expand(1, 1, 6, 2)
    turned = apply_rope(x, cos, sin)[0, 0]
    expected = torch.tensor([[math.cos(p), math.sin(p)] for p in range(6)])
    torch.testing.assert_close(turned, expected)


def test_frequencies_by_hand():
    # head_dim 4, theta 10,000: pairs turn by 1 and by 10000^(-2/4) = 0.01 radians a token
    torch.testing.assert_close(rope_frequencies(4, theta=10_000.0), torch.tensor([1.0, 0.01]))


@pytest.mark.parametrize("cfg", [LLAMA32_CONFIG, LLAMA32_3B_CONFIG, SMOLLM2_CONFIG], ids=["1B", "3B", "SmolLM2"])
def test_tables_equal_transformers_over_the_whole_context(cfg):
    cos, sin = compute_rope_params(
        cfg.head_dim, theta=cfg.rope_theta, context_length=cfg.context_length, scaling=cfg.rope_scaling
    )
    reference = LlamaRotaryEmbedding(LlamaConfig(**cfg.to_hf()))
    their_cos, their_sin = reference(torch.zeros(1), torch.arange(cfg.context_length)[None])
    assert cos.shape == (cfg.context_length, cfg.head_dim)
    # fp32 angles reach 131,071 radians, where neighbouring numbers are 0.008 apart: any other rounding shows
    torch.testing.assert_close(cos, their_cos[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(sin, their_sin[0], rtol=0, atol=1e-6)


@given(q_at=st.integers(0, 4000), k_at=st.integers(0, 4000), shift=st.integers(0, 4000), seed=st.integers(0, 99))
def test_scores_depend_on_distance_alone(q_at, k_at, shift, seed):
    q, k = torch.randn(2, 1, 1, 1, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    cos, sin = (t.double() for t in compute_rope_params(64, context_length=8192))

    def score(i, j):
        return (apply_rope(q, cos[i], sin[i]) * apply_rope(k, cos[j], sin[j])).sum()

    torch.testing.assert_close(score(q_at, k_at), score(q_at + shift, k_at + shift), rtol=0, atol=5e-3)


def test_turning_keeps_lengths(generator):
    cos, sin = compute_rope_params(16, context_length=100)
    x = torch.randn(1, 1, 100, 16, generator=generator)
    torch.testing.assert_close(apply_rope(x, cos, sin).norm(dim=-1), x.norm(dim=-1))


def test_scaling_by_hand():
    scaling = RopeScaling(factor=32.0, original_context_length=8192)
    fast, slow = 2 * math.pi / 100, 2 * math.pi / 10_000  # wavelengths under 8192/4 and over 8192/1
    middle = 2 * math.pi / 4096  # two turns in the original context: a third of the way from 1 to 4
    from llamamm.text.rope import scale_frequencies

    scaled = scale_frequencies(torch.tensor([fast, middle, slow]), scaling)
    expected = torch.tensor([fast, (2 / 3) * middle / 32 + (1 / 3) * middle, slow / 32])
    torch.testing.assert_close(scaled, expected)


def test_interleaved_layout_is_a_permutation_of_half_split(generator):
    """Meta turns neighbours (0, 1), (2, 3); with the rows of q and k reordered, our rotation gives the same scores."""
    n_heads, head_dim, width, length = 3, 8, 24, 10
    wq, wk = torch.randn(2, n_heads * head_dim, width, generator=generator)
    x = torch.randn(length, width, generator=generator)
    cos, sin = compute_rope_params(head_dim, context_length=length)

    def interleaved(w):
        heads = (x @ w.T).view(length, n_heads, head_dim // 2, 2).transpose(0, 1)  # (H, T, D/2, 2)
        arrows = torch.view_as_complex(heads.contiguous())
        angles = torch.polar(torch.ones(length, head_dim // 2), torch.outer(torch.arange(length), rope_frequencies(8)))
        return torch.view_as_real(arrows * angles).flatten(2)

    def half_split(w):
        heads = (x @ interleaved_to_half_split(w, n_heads).T).view(length, n_heads, head_dim).transpose(0, 1)
        return apply_rope(heads[None], cos, sin)[0]

    scores = interleaved(wq) @ interleaved(wk).transpose(1, 2)
    torch.testing.assert_close(half_split(wq) @ half_split(wk).transpose(1, 2), scores, rtol=1e-4, atol=1e-4)
    assert torch.equal(half_split_to_interleaved(interleaved_to_half_split(wq, n_heads), n_heads), wq)


def test_odd_head_dim_is_refused():
    with pytest.raises(ConfigError, match="even.*7"):
        compute_rope_params(7)
