"""senses.vision and senses.encoder: towers equal to transformers', patches by hand, positions resized, bad input."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from llamamm.errors import ConfigError, InputError
from llamamm.lora.lora import apply_lora, merge_lora
from llamamm.senses.config import EncoderConfig, VisionConfig
from llamamm.senses.encoder import SelfAttention, activate
from llamamm.senses.vision import VisionTower, embed_patches, resize_positions
from llamamm.weights.loading import fill
from llamamm.weights.tensors import refs_of
from llamamm.weights.tower_names import vision_names

FAMILIES = {
    "vit": (ViTModel, ViTConfig, {"intermediate_size": 64, "layer_norm_eps": 1e-6}),
    "clip": (CLIPVisionModel, CLIPVisionConfig, {"intermediate_size": 64}),
    "siglip": (SiglipVisionModel, SiglipVisionConfig, {"intermediate_size": 64}),
    "siglip, no head": (SiglipVisionModel, SiglipVisionConfig, {"intermediate_size": 64, "vision_use_head": False}),
    "dinov2": (Dinov2Model, Dinov2Config, {"mlp_ratio": 2}),
}
SIZES = [(28, 28), (42, 42), (14, 14), (28, 56), (70, 21), (33, 47)]  # the last with rests at the sides


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    """A random tower of transformers and ours with its weights."""
    kind, config, options = FAMILIES[request.param]
    torch.manual_seed(0)
    cfg = config(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=7, **options)
    theirs = kind(cfg).eval()
    for parameter in theirs.parameters():  # the biases too, and nothing at one or zero
        torch.nn.init.normal_(parameter, std=0.2)
    ours_cfg = VisionConfig.from_hf(cfg.to_dict())
    named = vision_names(refs_of(theirs.state_dict()), with_head=ours_cfg.attention_pool)
    ours = fill(lambda: VisionTower(ours_cfg), named, dtype=torch.float32, device="cpu").eval()
    return theirs, ours


def reference(theirs, pixels, **options):
    if pixels.shape[2:] != (28, 28) and not isinstance(theirs, Dinov2Model):
        options["interpolate_pos_encoding"] = True  # DINOv2 always does
    with torch.no_grad():
        return theirs(pixel_values=pixels, output_hidden_states=True, **options)


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_features_equal_the_reference(pair, size, generator):
    theirs, ours = pair
    pixels = torch.randn(3, 3, *size, generator=generator)
    expected = reference(theirs, pixels)
    assert (ours(pixels) - expected.last_hidden_state).abs().max() < 1e-4
    for layer in (0, 1, -2, -1):
        assert (ours(pixels, layer=layer) - expected.hidden_states[layer]).abs().max() < 1e-4


@torch.no_grad()
def test_pooled_equals_the_reference(pair, generator):
    theirs, ours = pair
    pixels = torch.randn(2, 3, 28, 28, generator=generator)
    expected = reference(theirs, pixels)
    if isinstance(theirs, SiglipVisionModel) and ours.head is None:
        with pytest.raises(ConfigError, match="average its features"):
            ours.pooled(pixels)
    elif isinstance(theirs, ViTModel):  # whose own pooling is one more layer, which most repositories lack
        assert torch.equal(ours.pooled(pixels), ours(pixels)[:, 0])
    else:
        assert (ours.pooled(pixels) - expected.pooler_output).abs().max() < 1e-4


@torch.no_grad()
def test_attention_weights_equal_the_reference(pair, generator):
    theirs, ours = pair
    pixels = torch.randn(2, 3, 28, 28, generator=generator)
    theirs.set_attn_implementation("eager")
    expected = reference(theirs, pixels, output_attentions=True).attentions
    for layer in (1, 2, -1):
        found = ours.attention_weights(pixels, layer=layer)
        assert (found - expected[layer if layer < 0 else layer - 1]).abs().max() < 1e-5
    with pytest.raises(InputError, match="layer 0"):
        ours.attention_weights(pixels, layer=0)


@torch.no_grad()
def test_a_batch_equals_one_by_one_and_the_cls_token_can_go(pair, generator):
    _, ours = pair
    pixels = torch.randn(4, 3, 28, 28, generator=generator)
    together = ours(pixels)
    assert together.shape == (4, 16 + ours.cfg.cls_token, 32)
    alone = torch.cat([ours(picture[None]) for picture in pixels])
    assert (together - alone).abs().max() < 1e-5
    assert torch.equal(ours(pixels, cls=False), together[:, -16:])


# ---- pieces ----


def test_patches_by_hand():
    pixels = torch.arange(48.0).view(1, 3, 4, 4)
    weight = torch.zeros(2, 3, 2, 2)
    weight[0, 0, 0, 0] = 1.0  # picks a patch's first red pixel
    weight[1, 2, 1, 1] = 1.0  # and its last blue one
    # red of rows 0 and 2: 0, 2 | 8, 10; blue begins at 32: 37, 39 | 45, 47; with a bias of 100 on the second
    out = embed_patches(pixels, weight, torch.tensor([0.0, 100.0]))
    assert out.tolist() == [[[0.0, 137.0], [2.0, 139.0], [8.0, 145.0], [10.0, 147.0]]]


@given(rows=st.integers(1, 4), columns=st.integers(1, 4), size=st.integers(1, 5))
def test_patches_are_cut_and_multiplied(rows, columns, size):
    pixels = torch.randn(2, 3, rows * size, columns * size)
    weight, bias = torch.randn(4, 3, size, size), torch.randn(4)
    out = embed_patches(pixels, weight, bias)
    for n in range(rows * columns):
        r, c = divmod(n, columns)
        patch = pixels[:, :, r * size : (r + 1) * size, c * size : (c + 1) * size]
        assert torch.allclose(out[:, n], patch.flatten(1) @ weight.flatten(1).T + bias, atol=1e-4)


def test_positions_keep_their_places():
    ramp = torch.arange(4.0).repeat_interleave(4)[:, None]  # the row's number
    assert torch.equal(resize_positions(ramp, old=4, new=(4, 4)), ramp)
    wide = resize_positions(ramp, old=4, new=(4, 8)).view(4, 8)
    assert torch.allclose(wide, torch.arange(4.0)[:, None].expand(4, 8), atol=1e-6)  # columns change nothing
    tall = resize_positions(ramp, old=4, new=(8, 4)).view(8, 4)
    assert (tall.diff(dim=0) > 0).all() and torch.allclose(tall.mean(), ramp.mean())
    half = resize_positions(torch.randn(16, 3).half(), old=4, new=(2, 6))
    assert half.dtype == torch.float16 and half.shape == (12, 3)


def test_activations_by_hand():
    x = torch.tensor([-1.0, 0.0, 1.0])
    # the normal distribution below 1: 0.8413; 1 / (1 + exp(-1.702)) = 0.8458
    assert activate(x, "gelu").tolist() == pytest.approx([-0.1587, 0.0, 0.8413], abs=1e-4)
    assert activate(x, "quick_gelu").tolist() == pytest.approx([-0.1542, 0.0, 0.8458], abs=1e-4)
    assert activate(x, "gelu_tanh").tolist() == pytest.approx([-0.1588, 0.0, 0.8412], abs=1e-4)


@torch.no_grad()
def test_the_map_and_the_kernel_agree_with_a_mask_too(generator):
    attention = SelfAttention(EncoderConfig(16, 32, 1, 2))
    x = torch.randn(2, 5, 16, generator=generator)
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    mask[1, ..., 3:] = False
    for m in (None, mask):
        weights = attention.weights(x, m)
        assert torch.allclose(weights.sum(dim=-1), torch.ones(2, 2, 5), atol=1e-6)
        v = attention.v_proj(x).view(2, 5, 2, 8).transpose(1, 2)
        expected = attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
        assert (attention(x, m) - expected).abs().max() < 1e-6
    assert (weights[1, ..., 3:] == 0).all()


def test_a_tower_trains_and_takes_lora(generator):
    tower = VisionTower(VisionConfig.tiny("siglip"))
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    before = tower.pooled(pixels).detach()
    F.mse_loss(tower.pooled(pixels), torch.zeros_like(before)).backward()
    assert [n for n, p in tower.named_parameters() if p.grad is None] == []
    apply_lora(tower, r=2, alpha=4, targets=("q_proj", "fc1"))
    assert (tower.pooled(pixels) - before).abs().max() < 1e-6
    for name, parameter in tower.named_parameters():
        if ".lora_b" in name:
            torch.nn.init.normal_(parameter)
    tuned = tower.pooled(pixels)
    merge_lora(tower)
    assert (tower.pooled(pixels) - tuned).abs().max() < 1e-5 and (tuned - before).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(3, 32, 32), r"\(B, 3, H, W\), got torch.float32 \(3, 32, 32\)"),
        (torch.zeros(1, 1, 32, 32), r"\(1, 1, 32, 32\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "floats.*uint8.*load_image_processor"),
        (torch.zeros(1, 3, 7, 32), "7 x 32 pixels is smaller than one patch of 8 x 8"),
        (torch.zeros(1, 3, 32, 32, device="meta"), "on meta, the tower on cpu"),
    ],
)
def test_what_is_no_picture_is_refused(pixels, message):
    with pytest.raises(InputError, match=message):
        VisionTower(VisionConfig.tiny())(pixels)


def test_a_layer_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="from -3 to 2 for 2 blocks, got 3"):
        VisionTower(VisionConfig.tiny())(torch.zeros(1, 3, 32, 32), layer=3)
