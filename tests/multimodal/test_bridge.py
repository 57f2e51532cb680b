"""multimodal.bridge: parity with Idefics2, Idefics3, LLaVA and Ultravox; batches equal to one by one; masks hold."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler
from transformers.models.idefics3.configuration_idefics3 import Idefics3Config
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from llamamm.errors import ConfigError, InputError
from llamamm.multimodal.bridge import (
    Bridge,
    LinearProjector,
    MLPProjector,
    PerceiverResampler,
    PositionTags,
    SwiGLUProjector,
    pixel_shuffle,
    stack_frames,
)
from llamamm.multimodal.config import BridgeConfig
from llamamm.text.config import TextConfig

TEXT = TextConfig.tiny()


def rows(B, N, width, *, seed=0):
    return torch.randn(B, N, width, generator=torch.Generator().manual_seed(seed))


def shaken(module):
    """Every weight random, norms, biases and latents too."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return module.eval()


# ---- fewer ----


def test_pixel_shuffle_by_hand():
    """ 0  1  2  3
        4  5  6  7   -> the left square of four, then the right one"""
    features = torch.arange(8.0).view(1, 8, 1)
    assert pixel_shuffle(features, (2, 4), merge=2).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7]]]
    two_wide = torch.arange(16.0).view(1, 8, 2)
    assert pixel_shuffle(two_wide, (2, 4), merge=2).tolist() == [[[0, 1, 2, 3, 8, 9, 10, 11],
                                                                  [4, 5, 6, 7, 12, 13, 14, 15]]]  # fmt: skip
    assert pixel_shuffle(features, (4, 2), merge=2).tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7]]]


@pytest.mark.parametrize(("side", "merge"), [(4, 2), (6, 3), (6, 2), (8, 4), (5, 1)])
def test_pixel_shuffle_equals_idefics3(side, merge):
    with torch.device("meta"):
        connector = Idefics3Connector(Idefics3Config(scale_factor=merge))
    features = rows(2, side * side, 5)
    assert torch.equal(pixel_shuffle(features, (side, side), merge=merge), connector.pixel_shuffle(features, merge))


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_pixel_shuffle_loses_nothing_and_keeps_neighbours_together(rows_out, columns_out, merge):
    R, C = rows_out * merge, columns_out * merge
    places = torch.stack(torch.meshgrid(torch.arange(R), torch.arange(C), indexing="ij"), dim=-1).view(1, R * C, 2)
    merged = pixel_shuffle(places, (R, C), merge=merge).view(rows_out, columns_out, merge * merge, 2)
    for r in range(rows_out):
        for c in range(columns_out):
            square = [[r * merge + i, c * merge + j] for i in range(merge) for j in range(merge)]
            assert merged[r, c].tolist() == square


@pytest.mark.parametrize(("n", "grid", "merge"), [(8, (2, 4), 4), (9, (3, 3), 2), (8, (3, 3), 1), (12, (3, 4), 2)])
def test_what_does_not_merge_is_refused(n, grid, merge):
    with pytest.raises(InputError, match=f"{n} features in a grid of {grid[0]} x {grid[1]} .* {merge} x {merge}"):
        pixel_shuffle(rows(1, n, 3), grid, merge=merge)


def test_stack_frames_by_hand():
    features = torch.arange(1.0, 11.0).view(1, 5, 2)
    stacked, mask = stack_frames(features, None, merge=2)
    assert stacked.tolist() == [[[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 0, 0]]]
    assert mask.tolist() == [[True, True, True]]
    stacked, mask = stack_frames(features, torch.tensor([[True, True, True, False, False]]), merge=2)
    assert stacked.tolist() == [[[1, 2, 3, 4], [5, 6, 0, 0], [0, 0, 0, 0]]]
    assert mask.tolist() == [[True, True, False]]


@pytest.mark.parametrize("filling", [float("nan"), float("inf"), -float("inf")])
def test_stacks_are_clean_whatever_the_padding_holds(filling):
    mask = torch.tensor([[True, True, True, False, False]])
    features = torch.arange(1.0, 6.0).view(1, 5, 1).masked_fill(~mask[..., None], filling)
    stacked, _ = stack_frames(features, mask, merge=2)
    assert stacked.tolist() == [[[1, 2], [3, 0], [0, 0]]]
    assert (features * mask[..., None]).isnan().any()  # as a product would have it


@pytest.mark.parametrize("B", [1, 2])
def test_features_may_lie_in_memory_in_any_order(B):
    """An encoder's hidden states come out of a convolution, channels last."""
    features = rows(B, 4, 8)
    turned = features.transpose(1, 2).contiguous().transpose(1, 2)
    assert not turned.is_contiguous()
    for x in (features, turned):
        assert torch.equal(stack_frames(x, None, merge=2)[0], features.view(B, 2, 16))
        assert torch.equal(pixel_shuffle(x, (2, 2), merge=2), features.view(B, 1, 32))


@given(st.integers(1, 20), st.integers(1, 9), st.integers(0, 12))
def test_a_stack_is_real_if_its_first_frame_is(n, merge, padding):
    features = rows(1, n + padding, 3)
    mask = torch.arange(n + padding)[None] < n
    stacked, real = stack_frames(features, mask, merge=merge)
    alone, all_real = stack_frames(features[:, :n], None, merge=merge)
    assert int(real.sum()) == alone.shape[1] == -(-n // merge) and all_real.all()
    assert torch.equal(stacked[real], alone[0])


# ---- as wide as the text ----


def test_linear_projector_is_one_matrix():
    projector = shaken(LinearProjector(5, 7))
    x = rows(2, 3, 5)
    expected = x @ projector.linear_1.weight.T + projector.linear_1.bias
    assert (projector(x) - expected).abs().max() < 1e-6


def test_mlp_projector_equals_llavas():
    config = LlavaConfig(vision_config=CLIPVisionConfig(hidden_size=24), text_config=LlamaConfig(hidden_size=64))
    theirs = shaken(LlavaMultiModalProjector(config))
    ours = MLPProjector(24, 64)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(ours(rows(2, 9, 24)), theirs(rows(2, 9, 24)))


@pytest.mark.parametrize("norm_middle", [True, False])
def test_swiglu_projector_is_ultravoxs_formula(norm_middle):
    """stack; ln_pre; linear_1; x, gate = halves; silu(gate) * x; ln_mid; linear_2; ln_post (one of the last two)."""
    ours = shaken(SwiGLUProjector(8 * 3, 64, width=40, norm_middle=norm_middle))
    features = rows(2, 19, 3)  # 19 frames: three stacks of 8, the last filled with zeros
    padded = F.pad(features, (0, 0, 0, 5)).view(2, 3, 24)

    def norm(x, weight):
        theirs = LlamaRMSNorm(x.shape[-1], eps=1e-6)
        theirs.weight = weight
        return theirs(x)

    h = norm(padded, ours.ln_pre.weight) @ ours.linear_1.weight.T
    x, gate = h[..., :20], h[..., 20:]
    x = gate * torch.sigmoid(gate) * x
    x = norm(x, ours.ln_mid.weight) if norm_middle else x
    x = x @ ours.linear_2.weight.T
    x = x if norm_middle else norm(x, ours.ln_post.weight)
    assert (ours(stack_frames(features, None, merge=8)[0]) - x).abs().max() < 1e-5
    assert {name for name, _ in ours.named_parameters()} == {
        "ln_pre.weight", "linear_1.weight", "linear_2.weight", "ln_mid.weight" if norm_middle else "ln_post.weight"}


@pytest.mark.parametrize(("projector", "width", "shapes"), [
    ("mlp", 0, [(64, 20), (64, 64)]), ("mlp", 24, [(24, 20), (64, 24)]),
    ("swiglu", 0, [(128, 20), (64, 64)]), ("swiglu", 24, [(24, 20), (64, 12)]),
])  # fmt: skip
def test_the_width_between_two_linears(projector, width, shapes):
    inside = Bridge(BridgeConfig(projector, merge=2, width=width), TEXT, n_numbers=10, flat=True).projector
    assert [tuple(linear.weight.shape) for linear in (inside.linear_1, inside.linear_2)] == shapes


# ---- where a token stood ----


def test_tags_by_hand():
    tags = PositionTags(3, 1)
    tags.load_state_dict({"rows": torch.tensor([[100.0], [200.0], [300.0]]),
                          "columns": torch.tensor([[1.0], [2.0], [3.0]])})  # fmt: skip
    assert tags(torch.zeros(1, 6, 1), (2, 3)).flatten().tolist() == [101, 102, 103, 201, 202, 203]
    assert tags(torch.zeros(1, 6, 1), (3, 2)).flatten().tolist() == [101, 102, 201, 202, 301, 302]
    assert tags(torch.full((2, 3, 1), 10.0)).tolist() == [[[11], [12], [13]]] * 2


@pytest.mark.parametrize(("n", "grid", "message"), [(8, (4, 2), "4 rows of 2"), (8, (2, 4), "2 rows of 4"),
                                                    (4, None, "1 rows of 4")])  # fmt: skip
def test_more_places_than_tags_are_refused(n, grid, message):
    with pytest.raises(InputError, match=f"{message} have more places than there are tags, 3"):
        PositionTags(3, 5)(rows(1, n, 5), grid)


# ---- a fixed number ----


@pytest.fixture(scope="module")
def perceivers():
    """Idefics2's and ours, with the same random weights."""
    config = Idefics2PerceiverConfig(
        hidden_size=64, resampler_n_latents=6, resampler_depth=2, resampler_n_heads=4, resampler_head_dim=16,
        num_key_value_heads=2, rms_norm_eps=1e-5, attn_implementation="sdpa",
    )  # fmt: skip
    theirs = shaken(Idefics2PerceiverResampler(config))
    cfg = TEXT.replace(n_heads=4, n_kv_heads=2, intermediate_size=256)
    ours = PerceiverResampler(cfg, n_latents=6, depth=2).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


@torch.no_grad()
@pytest.mark.parametrize("n", [1, 5, 6, 33])
def test_perceiver_equals_idefics2(perceivers, n):
    theirs, ours = perceivers
    context = rows(3, n, 64)
    expected = theirs(context, torch.ones(3, n, dtype=torch.bool))
    assert ours(context).shape == (3, 6, 64)
    assert (ours(context) - expected).abs().max() < 1e-5
    mask = torch.arange(n) < torch.tensor([[n], [(n + 1) // 2], [1]])
    expected = theirs(context, mask)
    assert (ours(context, mask) - expected).abs().max() < 1e-5


@torch.no_grad()
def test_a_perceiver_does_not_see_what_is_masked(perceivers):
    _, ours = perceivers
    context, mask = rows(2, 9, 64), torch.arange(9) < torch.tensor([[9], [4]])
    other = context.masked_scatter(~mask[..., None], rows(2, 9, 64, seed=1))
    assert torch.equal(ours(context, mask), ours(other, mask))
    assert (ours(context, mask)[1:] - ours(context[1:, :4])).abs().max() < 1e-5
    assert (ours(context)[1] - ours(context, mask)[1]).abs().max() > 1e-3  # without the mask they are seen


def test_a_perceiver_takes_nan_where_nothing_is_real(perceivers):
    _, ours = perceivers
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    context = rows(2, 9, 64).requires_grad_()
    tokens = ours(context.masked_fill(~mask[..., None], float("nan")), mask)
    assert torch.equal(tokens, ours(context, mask))
    tokens.sum().backward()
    assert context.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in ours.parameters())
    ours.zero_grad(set_to_none=True)


# ---- all of it ----

BRIDGES = {
    "linear": BridgeConfig("linear"), "mlp": BridgeConfig("mlp", merge=2), "swiglu": BridgeConfig("swiglu", merge=4),
    "tags": BridgeConfig("linear", merge=2, tags=12), "perceiver": BridgeConfig("mlp", latents=5, depth=1, heads=2),
    "all": BridgeConfig("swiglu", merge=2, tags=12, latents=3),
}  # fmt: skip


def bridge(cfg, *, flat, n_numbers=10):
    torch.manual_seed(0)
    return shaken(Bridge(cfg, TEXT, n_numbers=n_numbers, flat=flat))


@torch.no_grad()
@pytest.mark.parametrize("cfg", BRIDGES.values(), ids=BRIDGES)
def test_a_padded_batch_of_sounds_equals_one_by_one(cfg):
    ear = bridge(cfg, flat=True)
    lengths = (11, 1, 8, 24)
    features = rows(4, 24, 10)
    mask = torch.arange(24) < torch.tensor(lengths)[:, None]
    tokens, real = ear(features, mask)
    framed, framed_real = ear.framed(tokens, real)
    for b, n in enumerate(lengths):
        alone, all_real = ear(features[b : b + 1, :n])
        assert all_real.all() and alone.shape[1] == (cfg.latents or -(-n // cfg.merge))
        assert (tokens[b][real[b]] - alone[0]).abs().max() < 1e-5
        one = framed[b][framed_real[b]]
        assert len(one) == alone.shape[1] + 2 and torch.equal(one[0], ear.start)
        if framed_real[b].all():
            assert torch.equal(one[-1], ear.end)


@torch.no_grad()
@pytest.mark.parametrize("cfg", BRIDGES.values(), ids=BRIDGES)
def test_masked_features_have_no_influence(cfg):
    ear = bridge(cfg, flat=True)
    features, mask = rows(2, 12, 10), torch.arange(12) < torch.tensor([[12], [5]])
    other = features.masked_scatter(~mask[..., None], 9 * rows(2, 12, 10, seed=1))
    (tokens, real), (tokens_2, real_2) = ear(features, mask), ear(other, mask)
    assert torch.equal(real, real_2) and torch.equal(tokens[real], tokens_2[real])
    seen, _ = ear(features + mask[..., None], mask)
    assert (seen[1][real[1]] - tokens[1][real[1]]).abs().max() > 1e-4  # real ones have some


@pytest.mark.parametrize("cfg", BRIDGES.values(), ids=BRIDGES)
def test_nan_behind_a_sound_reaches_neither_tokens_nor_gradients(cfg):
    ear = bridge(cfg, flat=True)
    features, mask = rows(2, 12, 10), torch.arange(12) < torch.tensor([[12], [5]])
    spoiled = features.masked_fill(~mask[..., None], float("nan"))
    (tokens, real), (expected, _) = ear(spoiled, mask), ear(features, mask)
    assert tokens.isfinite().all() and torch.equal(tokens[real], expected[real])
    tokens.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in ear.parameters())


@torch.no_grad()
@pytest.mark.parametrize("cfg", BRIDGES.values(), ids=BRIDGES)
@pytest.mark.parametrize("grid", [(4, 4), (4, 8)], ids=str)
def test_pictures(cfg, grid):
    eye = bridge(cfg, flat=False)
    features = rows(2, grid[0] * grid[1], 10)
    tokens, real = eye(features, grid=grid)
    assert tokens.shape == (2, cfg.latents or grid[0] * grid[1] // cfg.merge**2, 64) and real.all()
    assert (tokens[1:] - eye(features[1:], grid=grid)[0]).abs().max() < 1e-5
    if cfg.tags and not cfg.latents:  # each tag where its token is
        bare = eye.projector(pixel_shuffle(features, grid, merge=cfg.merge))
        r, c = grid[0] // cfg.merge, grid[1] // cfg.merge
        expected = eye.tags.rows[:r, None] + eye.tags.columns[:c]
        assert ((tokens - bare)[1].view(r, c, 64) - expected).abs().max() < 1e-5


@torch.no_grad()
def test_a_fixed_number_of_tokens_whatever_comes_in():
    ear = bridge(BRIDGES["perceiver"], flat=True)
    shapes = {ear(rows(1, n, 10))[0].shape for n in (1, 2, 7, 50)}
    assert shapes == {(1, 5, 64)}


def test_a_start_and_an_end_that_differ_and_learn():
    eye = Bridge(BridgeConfig("linear"), TEXT, n_numbers=10, flat=False)
    tokens, real = eye.framed(*eye(rows(2, 4, 10), grid=(2, 2)))
    assert tokens.shape == (2, 6, 64) and real.shape == (2, 6)
    assert torch.equal(tokens[1, 0], eye.start) and torch.equal(tokens[0, -1], eye.end)
    assert not torch.equal(eye.start, eye.end)
    tokens.sum().backward()
    assert all(p.grad is not None for p in eye.parameters())


@settings(max_examples=30)
@given(
    projector=st.sampled_from(["linear", "mlp", "swiglu"]), merge=st.integers(1, 5), latents=st.integers(0, 3),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
)  # fmt: skip
def test_any_bridge_counts_its_tokens_right(projector, merge, latents, lengths):
    cfg = BridgeConfig(projector, merge=merge, latents=latents, depth=1)
    ear = Bridge(cfg, TEXT, n_numbers=3, flat=True)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    _, real = ear(rows(len(lengths), max(lengths), 3), mask)
    assert real.sum(dim=1).tolist() == [latents or -(-n // merge) for n in lengths]


@pytest.mark.parametrize("cfg", BRIDGES.values(), ids=BRIDGES)
def test_bf16_features_meet_fp32_weights(cfg):
    """A bridge begins in fp32, whatever the tower and the text model are in."""
    ear = Bridge(cfg, TEXT.replace(dtype=torch.bfloat16), n_numbers=10, flat=True)
    assert {p.dtype for p in ear.parameters()} == {torch.float32}
    features = rows(1, 8, 10).bfloat16()
    assert torch.equal(ear(features)[0], ear(features.float())[0])


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigError, match="64.* 5"):
        Bridge(BridgeConfig(latents=2, heads=5), TEXT, n_numbers=10, flat=True)
