"""experiments.fusion_looks: shares that sum to 1, of the features alone, and where a shape lies."""

import pytest
import torch

from llamamm.errors import InputError
from llamamm.experiments.fusion_looks import attention_shares, patch_shares, shape_patches
from llamamm.experiments.fusion_ways import build_way, reading_model
from llamamm.multimodal.cross_attention import CrossAttention
from llamamm.text.config import TextConfig
from tests.experiments.test_fusion_ways import tasks, towers  # noqa: F401 (fixtures)


@torch.no_grad()
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_shares_times_values_are_what_the_kernel_gives(qk_norm, masked):
    torch.manual_seed(0)
    cfg = TextConfig.tiny()
    attention = CrossAttention(cfg, qk_norm=qk_norm)
    x, memory = torch.randn(2, 3, cfg.hidden_size), torch.randn(2, 5, cfg.hidden_size)
    mask = (torch.arange(5) < torch.tensor([[5], [2]]))[:, None, None] if masked else None
    k, v = attention.keys_values(memory)
    out = []
    shares = attention_shares(attention, lambda: out.append(attention(x, (k, v), mask)))
    assert shares.shape == (2, cfg.n_heads, 3, 5) and torch.allclose(shares.sum(-1), torch.ones(1))
    values = v.repeat_interleave(cfg.n_heads // cfg.n_kv_heads, dim=1)
    assert torch.allclose(attention.o_proj((shares @ values).transpose(1, 2).flatten(2)), out[0], atol=1e-5)
    assert not attention._forward_pre_hooks  # the hook is gone
    if masked:
        assert (shares[1, :, :, 2:] == 0).all()


def test_the_hook_is_gone_after_an_error_too():
    attention = CrossAttention(TextConfig.tiny())
    with pytest.raises(ZeroDivisionError):
        attention_shares(attention, lambda: 1 / 0)
    assert not attention._forward_pre_hooks


def test_where_each_way_looks(tasks, towers, tmp_path):  # noqa: F811
    text, tokenizer = reading_model(tasks, towers, tmp_path, steps=0)
    for name in ("cross-attention", "perceiver"):
        way = build_way(name, text, tokenizer, towers)
        way.model.eval()
        shares = patch_shares(way, tasks.train["vqa"], [0, 2, 3])
        assert shares.shape == (3, 36) and torch.allclose(shares.sum(1), torch.ones(3))
        one = patch_shares(way, tasks.train["vqa"], [2])
        assert torch.allclose(shares[1:2], one, atol=1e-5)
        # all features of a picture here are the same, so none gets more than another
        assert torch.allclose(shares, torch.full((3, 36), 1 / 36), atol=1e-4)
    with pytest.raises(InputError, match="projection has no attention"):
        patch_shares(build_way("projection", text, tokenizer, towers), tasks.train["vqa"], [0])


def test_a_feature_that_fits_gets_more(tasks, towers, tmp_path):  # noqa: F811
    """One feature differs from the others: the shares differ there and nowhere else, for each way."""
    text, tokenizer = reading_model(tasks, towers, tmp_path, steps=0)
    images = tasks.train["vqa"].features.images.clone()
    images[1, 7] = -4 * images[1, 7]
    task = type(tasks.train["vqa"])("vqa", tasks.train["vqa"].items, type(tasks.train["vqa"].features)(images))
    for name in ("cross-attention", "perceiver"):
        shares = patch_shares(build_way(name, text, tokenizer, towers), task, [1])[0]
        others = shares[torch.arange(36) != 7]
        assert (others - others[0]).abs().max() < 1e-5 < (shares[7] - others[0]).abs()


def test_the_patches_of_a_shape():
    pixels = torch.full((2, 3, 60, 60), 240, dtype=torch.uint8)
    pixels[0, 0, 10:20, 30:40] = 20  # one patch of 10 x 10: row 1, column 3
    pixels[1, :, :, :11] = 0  # the left column; of the next one, a tenth
    found = shape_patches(pixels)
    assert found[0].nonzero().flatten().tolist() == [9]
    assert found[1].view(6, 6).nonzero()[:, 1].unique().tolist() == [0]
    assert found.shape == (2, 36)
