"""What a GPU computes beside the CPU, and beside transformers. `pytest -m gpu`; skipped where there is none."""

import copy

import pytest
import torch

from llamamm import apply_lora, generate, merge_lora, pad_left
from llamamm.experiments.gpu_run import FEW, SECTIONS, Setting, make_random
from llamamm.fast.decoder import equip
from llamamm.fast.fixed_cache import FixedCacheStep
from llamamm.fast.quantized import QuantizedLinear, quantize
from llamamm.generation.generate import TokenStream
from llamamm.generation.sampling import SamplingConfig
from llamamm.pretrained.load import from_pretrained
from tests.multimodal.test_model import MODES, batched, build
from tests.text.test_model import random_ids

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


@pytest.fixture(autouse=True)
def _in_fp32():
    """A tower's convolution would round what it reads to 10 bits."""
    convolutions = torch.backends.cudnn.conv
    before, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    yield
    convolutions.fp32_precision = before


@pytest.fixture
def pair(tmp_path):
    """A model on the CPU whose blocks change much, and the same on the GPU."""
    model, _ = from_pretrained(make_random("tiny", tmp_path / "model"), progress=False)
    return model, copy.deepcopy(model).to(DEVICE)


@torch.no_grad()
def same(model, other, ids, **options):
    return torch.testing.assert_close(other(ids.to(DEVICE), **options).cpu(), model(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SECTIONS)
def test_the_real_model_beside_transformers_and_the_cpu(smollm2_dir, name):
    """Logits in three types, greedy text, few bits, two steps of training, as `llamamm experiment gpu` judges them."""
    found = list(SECTIONS[name](Setting(str(smollm2_dir), DEVICE, **{**FEW, "prompt": 100, "new": 24})))
    assert found and all(one.holds is not False for one in found), found


def test_logits_and_a_padded_batch_are_the_cpus(pair):
    model, moved = pair
    ids = random_ids(model.cfg, 2, 30)
    same(model, moved, ids)
    ids, padding = pad_left([[5, 6, 7], list(range(20)), [9]])
    expected = generate(model, ids, 6, padding=padding)
    assert generate(moved, ids.to(DEVICE), 6, padding=padding.to(DEVICE)).tolist() == expected.tolist()


@pytest.mark.parametrize("options", [{}, {"prefill_chunk": 4}, {"use_cache": False}, {"speculate": "lookup"}])
def test_greedy_text_is_the_cpus_by_every_way(pair, options):
    model, moved = pair
    ids = random_ids(model.cfg, 1, 9)
    assert generate(moved, ids.to(DEVICE), 12, **options).tolist() == generate(model, ids, 12).tolist()


def test_a_seed_repeats_what_is_drawn(pair):
    ids = random_ids(pair[1].cfg, 1, 9).to(DEVICE)
    drawn = [[int(token) for token in TokenStream(pair[1], ids, max_new_tokens=12, seed=seed,
                                                  sampling=SamplingConfig(temperature=1.0, top_p=0.9))]
             for seed in (1, 1, 2)]  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("bits", [8, 4])
def test_whole_numbers_made_here_or_moved_here_are_the_cpus(pair, bits):
    model, moved = pair
    quantize(model, bits)
    ids = random_ids(model.cfg, 2, 9)
    same(model, copy.deepcopy(model).to(DEVICE), ids)
    same(model, quantize(moved, bits), ids)
    equip(model)  # whose compiled steps a model leaves behind that moves
    assert generate(model.to(DEVICE), ids.to(DEVICE), 4).device.type == DEVICE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_gradient_beside_whole_numbers_is_the_cpus(dtype):
    linear = QuantizedLinear.of(torch.randn(128, 64, generator=torch.Generator().manual_seed(0)), bits=8)
    inputs = [torch.ones(3, 64, dtype=dtype, device=device, requires_grad=True) for device in ("cpu", DEVICE)]
    for x in inputs:
        linear.to(x.device)(x).square().mean().backward()
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(inputs[1].grad.cpu(), inputs[0].grad, rtol=tolerance, atol=tolerance)


def test_an_adapters_gradients_are_the_cpus_and_merged_it_answers_the_same(pair):
    for model in pair:
        apply_lora(model, r=4, alpha=8, generator=torch.Generator().manual_seed(0))
        model.train()
    ids, gradients = random_ids(pair[0].cfg, 2, 16), []
    for model in pair:
        for name, parameter in model.named_parameters():
            if "lora_b" in name:
                parameter.data.fill_(0.01)
        model(ids.to(model.embed_tokens.weight.device)).square().mean().backward()
        gradients.append({n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)
    moved = pair[1].eval()
    same(pair[0].eval(), moved, ids)
    merge_lora(moved)
    same(pair[0], moved, ids)


@pytest.mark.parametrize("changes", MODES.values(), ids=MODES)
def test_a_model_that_sees_and_hears_gives_the_cpus_logits_and_gradients(changes):
    model = build(changes).set_trainable(bridges=True)
    ids, padding, media = batched(model.multimodal_cfg)
    moved, found = copy.deepcopy(model).to(DEVICE), []
    for one in (model, moved):
        at = one.embed_tokens.weight.device
        logits = one(ids.to(at), media=media.to(at), padding=padding.to(at))[padding.to(at)]  # of real tokens
        logits.square().mean().backward()
        found.append([logits.detach().cpu(), *(p.grad.cpu() for p in one.parameters() if p.grad is not None)])
    assert len(found[0]) > 1
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)
    half = moved.bfloat16()(ids.to(DEVICE), media=media.to(DEVICE), padding=padding.to(DEVICE))
    assert half.isfinite().all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_the_compiled_step_writes_the_same_alone_and_from_a_graph(pair, mode):
    model, moved = pair
    torch._dynamo.reset()
    moved.fast = FixedCacheStep(64, mode=mode)
    for n in (9, 3, 30):
        ids = random_ids(model.cfg, 1, n)
        assert generate(moved, ids.to(DEVICE), 12).tolist() == generate(model, ids, 12).tolist()
    torch._dynamo.reset()
