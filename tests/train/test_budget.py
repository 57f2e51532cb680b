"""train.budget: operations as PyTorch counts them in a real step; tokens, hours, and the command that prints them."""

import re

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from llamamm import Llama3Model, TextConfig
from llamamm.cli.main import app
from llamamm.lora.lora import apply_lora
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import MultimodalLlama
from llamamm.text.attention import readable_attention
from llamamm.train.budget import Budget, media_flops, plan_work, text_flops
from llamamm.train.config import TrainConfig
from llamamm.train.loop import checkpoint_activations
from llamamm.train.losses import plain_cross_entropy_sum

SHAPE = {"vocab_size": 301, "hidden_size": 64, "n_layers": 4, "intermediate_size": 192}


def counted(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


# LoRA needs no gradient of what enters the first block; a checkpoint leaves out each block's last product.
@pytest.mark.parametrize(("lora", "twice", "rel"), [(False, False, 0), (True, False, 0.02), (False, True, 0.06)])
def test_the_formula_counts_what_a_step_computes(lora, twice, rel):
    model = Llama3Model(TextConfig.tiny(**SHAPE), attend=readable_attention)
    if lora:
        apply_lora(model, r=4, alpha=8)
    if twice:
        checkpoint_activations(model)
    ids = torch.randint(301, (3, 96))

    def step():
        hidden = model.hidden_states(ids).flatten(0, 1)
        plain_cross_entropy_sum(hidden, model.lm_head.weight, ids.flatten()).backward()

    found = 3 * text_flops(model, 96, twice=twice)
    assert found == pytest.approx(counted(step), rel=rel, abs=0)
    assert found >= counted(step)


def test_six_operations_for_each_weight_and_four_where_it_is_frozen():
    model = Llama3Model(TextConfig.tiny(**SHAPE, tie_embeddings=True))
    n = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    attention = 12 * 4 * 4 * 16 * 1  # L, H, D of a row of one token
    assert text_flops(model, 1) == 6 * n + attention
    assert text_flops(model.requires_grad_(False), 1) == 4 * n + attention


@pytest.mark.parametrize("trains", ["bridges", "towers"])
def test_pictures_are_counted_by_their_bridge_and_an_eye_that_learns(trains):
    cfg = MultimodalConfig.tiny(text=TextConfig.tiny(**SHAPE))
    with torch.device("meta"):
        found = media_flops(MultimodalLlama(cfg).set_trainable(towers=trains == "towers"))
    model, features = MultimodalLlama(cfg), (1, cfg.grid[0] * cfg.grid[1], cfg.vision.encoder.hidden_size)
    with sdpa_kernel(SDPBackend.MATH):  # whose products the counter sees
        eye = counted(lambda: model.vision_tower(torch.rand(1, 3, *cfg.pixels), layer=cfg.image_layer))
        bridge = counted(lambda: model.image_bridge(torch.rand(features), grid=cfg.grid))
    assert bridge > 0 and found == 3 * (bridge + (eye if trains == "towers" else 0))


def make(**changes):
    return TrainConfig.make({"shape": SHAPE, "output": "runs/x", "steps": 10, "batch_size": 8, "length": 64,
                             "device": "cpu", "precision": "fp32", "method": "full", **changes})  # fmt: skip


def test_work_is_that_of_all_rows_of_all_steps_and_of_each_stage():
    [alone] = plan_work(make())
    with torch.device("meta"):
        model = Llama3Model(TextConfig.tiny(**{"context_length": 256, **SHAPE}))
    assert alone == Budget("x", 10, 10 * 8 * 64, 10 * 8 * text_flops(model, 64))
    [again] = plan_work(make(checkpoint_activations=True))
    assert again.flops > 1.2 * alone.flops
    two = plan_work(make(stages=[{"name": "a", "steps": 10}, {"name": "b", "steps": 20}]))
    assert [(b.name, b.steps) for b in two] == [("a", 10), ("b", 20)] and two[1].flops == 2 * two[0].flops


def test_hours_are_operations_over_what_devices_reach_together():
    assert Budget("", 1, 1, 8 * 100 * 10**12 * 3600).hours(8, 200.0, 0.5) == pytest.approx(1.0)


def plan(tmp_path, *words, **changes):
    (tmp_path / "own.yaml").write_text(make(**changes).to_yaml())
    return CliRunner().invoke(app, ["plan", str(tmp_path / "own.yaml"), *words])


def test_the_command_says_for_copies_and_shards_whether_memory_is_enough(tmp_path):
    done = plan(tmp_path, "--gpus", "4", "--memory", "0.022", "--tflops", "1e-3", "--utilisation", "0.5",
                "--set", "shape={vocab_size: 301, hidden_size: 1024, n_layers: 1, head_dim: 16}")  # fmt: skip
    assert done.exit_code == 0, done.output
    copies, shards, work = re.split("parallel: fsdp|operations", done.stdout)
    assert " no" in copies and " yes" in shards and "5,120" in work
    assert "4 x 0.001 TFLOP/s at 50 %" in done.stdout and "picture" not in done.stdout
    assert "activations" in copies and "optimizer" in copies  # whole, in 80 columns


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--gpus", "3"], "batch_size 8 is not a multiple of 3 devices"), (["--tflops", "0"], "above 0"),
     (["--utilisation", "1.5"], "from 0 to 1"), (["--tflops", "nan"], "above 0"), (["--memory", "0"], "got 0"),
     (["--memory", "-5"], "got -5"), (["--memory", "nan", "--gpus", "2"], "got nan")],
)  # fmt: skip
def test_what_cannot_be_planned_is_told(tmp_path, words, message):
    done = plan(tmp_path, *words)
    assert done.exit_code != 0 and message in str(done.exception) and not done.stdout
