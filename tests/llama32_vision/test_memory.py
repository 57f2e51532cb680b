"""llama32_vision.memory: bytes of every part equal to real models' and caches', big numbers by hand."""

from dataclasses import replace

import pytest
import torch

from llamamm.errors import ConfigError
from llamamm.llama32_vision.config import MllamaConfig
from llamamm.llama32_vision.memory import memory_plan
from llamamm.llama32_vision.model import MllamaModel, TiledImages
from llamamm.multimodal.cross_attention import CrossAttentionBlock

BIG = MllamaConfig.llama32_11b_vision()


@pytest.mark.parametrize(
    "cfg",
    [BIG, MllamaConfig.llama32_11b_vision(tile_size=448), MllamaConfig.tiny(), MllamaConfig.tiny(cross_layers=(0,))],
    ids=["11b", "11b-448", "tiny", "one-cross-block"],
)
def test_weights_equal_those_of_the_model(cfg):
    with torch.device("meta"):
        model = MllamaModel(cfg)
    plan = memory_plan(cfg, dtype=torch.bfloat16, context=256)
    parts = {"embedding": 0, "self_blocks": 0, "cross_blocks": 0, "vision": 0}
    for name, parameter in model.named_parameters():
        if name.startswith("layers."):
            cross = isinstance(model.layers[int(name.split(".")[1])], CrossAttentionBlock)
            part = "cross_blocks" if cross else "self_blocks"
        else:
            part = "vision" if name.startswith(("vision_model", "multi_modal")) else "embedding"
        parts[part] += 2 * parameter.numel()
    assert parts == {part: getattr(plan, part) for part in parts}
    assert plan.weights == 2 * model.n_parameters()
    assert plan.largest_tensor == 2 * max(p.numel() for p in model.parameters())
    assert plan.rope == model.cos.nbytes + model.sin.nbytes


def test_the_cache_takes_what_the_plan_says():
    cfg = MllamaConfig.tiny()
    model = MllamaModel(cfg).eval()
    plan = memory_plan(cfg, dtype=torch.float32, context=40, n_images=2)
    cache = model.make_cache(max_length=40)
    assert cache.nbytes == plan.kv_cache == 40 * plan.kv_per_token
    images = TiledImages(torch.zeros(1, 2, 4, 3, 28, 28), torch.tensor([[1, 6]]), torch.tensor([[1, 4]]))
    with torch.no_grad():
        model(torch.tensor([[512, 3, 512, 4]]), images=images, cache=cache)
    taken = sum(t.nbytes for view in cache.views.values() for t in view)
    assert taken == plan.image_views == 2 * plan.view_per_image


def test_eleven_billion_by_hand():
    plan = memory_plan(BIG, context=131_072, n_images=3, prompt_tokens=1024)
    assert plan.weights == 2 * 10_670_220_835
    assert plan.kv_per_token == 2 * 2 * 32 * 8 * 128 == 131_072  # bf16, keys and values, blocks, heads, numbers
    assert plan.kv_cache == 131_072**2  # 17 GB for the whole context
    assert plan.view_per_image == 4 * 1601 * 8 * 2 * 8 * 128 * 2 == 209_846_272
    S = 4 * 1608
    assert plan.tower_per_image == 2 * S * ((7 + 5) * 1280 + 2 * 5120) + 3 * S * S
    assert plan.prompt_work == 2 * 1024 * 3 * (4096 + 14_336) + 3 * 1024 * (131_072 + 3 * 4 * 1601)
    fixed = plan.weights + plan.rope + 131_072**2 + 3 * 209_846_272
    assert plan.total == fixed + 3 * plan.tower_per_image  # which is more than reading 1,024 tokens takes
    long = replace(plan, prompt_work=10**10)
    assert long.total == fixed + 10**10
    assert plan.loading_peak == plan.weights + plan.rope + 128_264 * 4096 * 2


def test_the_table_says_all_that_matters():
    text = str(memory_plan(BIG, context=8192, n_images=2))
    assert "8,192 tokens (131 MB per 1,000)" in text and "images, 2 (210 MB each)" in text
    assert any(line.split()[0] == "weights" and line.endswith("21.340 GB") for line in text.splitlines())
    assert len({len(line) for line in text.splitlines()}) == 1  # the numbers stand below each other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 131_073}, "1 to 131072, n_images at least 0; got 131073 and 1"),
        ({"context": 0}, "got 0 and 1"),
        ({"n_images": -1}, "got 8192 and -1"),
        ({"context": 10, "prompt_tokens": 11}, "1 to the context of 10, got 11"),
        ({"prompt_tokens": 0}, "got 0"),
    ],
)
def test_impossible_wishes_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        memory_plan(BIG, **options)
