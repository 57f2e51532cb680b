"""train.plan: bytes as a real run has them, for each stage; what autograd keeps, counted without numbers."""

import json

import PIL.Image
import pytest
import torch
from typer.testing import CliRunner

from llamamm import Llama3Model, TextConfig, from_pretrained, save_pretrained
from llamamm.cli.main import app
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import MultimodalLlama
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.senses.config import AudioConfig
from llamamm.senses.image_processor import ImageProcessor
from llamamm.senses.waves import save_wave
from llamamm.train.alignment import AlignmentObjective
from llamamm.train.config import TrainConfig
from llamamm.train.plan import GIB, kept_bytes, n_bytes, plan_memory
from llamamm.train.run import make_trainer
from llamamm.train.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    words = train_tokenizer(["user assistant What?"] * 9, folder, vocab_size=300)
    torch.manual_seed(0)
    text = TextConfig.tiny(vocab_size=words.vocab_size, hidden_size=64, n_layers=4, intermediate_size=192)
    save_pretrained(Llama3Model(text), folder / "text", tokenizer=words)
    cfg = MultimodalConfig.tiny(text=text)
    save_pretrained(MultimodalLlama(cfg), folder / "senses",
                    processor=MultimodalProcessor(cfg, words, ImageProcessor.vit(32)))  # fmt: skip
    (folder / "data.jsonl").write_text('{"text": "' + "What? " * 400 + '"}\n')
    return folder


@pytest.fixture
def make(models, tmp_path):
    def make(model="text", **changes):
        return TrainConfig.make({
            "model": str(models / model), "data": str(models / "data.jsonl"), "output": tmp_path / "run", "steps": 1,
            "batch_size": 4, "length": 96, "device": "cpu", "precision": "fp32", **changes})  # fmt: skip

    return make


LONGEST = 320 * AudioConfig.tiny().n_positions  # samples that its ear hears at once
KINDS = {
    "lora": {"lora_r": 4}, "full": {"method": "full"}, "pieces": {"method": "full", "micro_batch_size": 1},
    "bridges": {"model": "senses", "trains": ["bridges"]},
    "skill": {"model": "senses", "trains": ["bridges", "lora"]},
    "towers": {"model": "senses", "trains": ["bridges", "text", "towers"]},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_is_what_a_run_has(make, kind):
    [plan] = plan_memory(make(**KINDS[kind]))
    trainer = make_trainer(make(**KINDS[kind]), quiet=True)
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    assert plan.weights == n_bytes(trainer.model.parameters()) and plan.gradients == n_bytes(trained)
    batch = next(trainer.batches)
    piece = batch.split(trainer.cfg.micro_batch_size or len(batch))[0]
    kept = kept_bytes(trainer.model, lambda: trainer._loss(piece))
    if kind in ("lora", "full", "pieces"):  # the others have pictures, see below
        assert plan.activations == pytest.approx(kept, rel=0.25)
    trainer.train_step()
    trainer.log.close()
    states = trainer.optimizer.state.values()
    moments = n_bytes(state[key] for state in states for key in ("exp_avg", "exp_avg_sq"))
    idle = n_bytes(p for p in trained if p not in trainer.optimizer.state)  # bridges, in a batch of words
    assert plan.optimizer == moments + 2 * idle
    assert plan.total == plan.weights + plan.gradients + plan.optimizer + plan.activations


@pytest.mark.parametrize("kind", ["bridges", "skill", "towers"])
def test_pictures_are_counted_with_the_words_around_them(make, models, kind):
    PIL.Image.new("RGB", (32, 32)).save(models / "a.png")
    (models / "seen.jsonl").write_text(json.dumps({"image": "a.png", "text": "What? " * 14}) + "\n")
    cfg = make(**KINDS[kind], data=str(models / "seen.jsonl"), pack=False, length=72)
    [plan] = plan_memory(cfg)
    trainer = make_trainer(cfg, quiet=True)
    batch = next(trainer.batches)
    trainer.log.close()
    assert 60 < batch.ids.shape[1] <= 72 and sum(map(len, batch.images)) == 4
    kept = kept_bytes(trainer.model, lambda: trainer._loss(batch))
    assert plan.activations == pytest.approx(kept * 72 / batch.ids.shape[1], rel=0.25)


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_alignment_runs_no_block_and_is_counted_by_its_longest_medium(make, models, kind):
    if kind == "image":
        PIL.Image.new("RGB", (32, 32)).save(models / "b.png")
    else:
        save_wave(models / "b.wav", 0.1 * torch.randn(LONGEST).clamp(-1, 1))
    record = {"image": "b.png", "text": "What"} if kind == "image" else {"audio": "b.wav", "text": "What"}
    (models / f"{kind}.jsonl").write_text(json.dumps(record) + "\n")
    cfg = make("senses", method="align", data=str(models / f"{kind}.jsonl"), length=256)
    [plan] = plan_memory(cfg)
    trainer = make_trainer(cfg, quiet=True)
    batch = next(trainer.batches)
    trainer.log.close()
    trainer.objective = AlignmentObjective(trainer.model)  # with all words, as the plan takes it
    kept = kept_bytes(trainer.model, lambda: trainer._loss(batch))
    assert plan.activations < plan_memory(make("senses", trains=["bridges"], length=256))[0].activations
    if kind == "audio":  # the larger of the two
        assert kept == pytest.approx(plan.activations, rel=0.25)
    else:
        assert kept < plan.activations


def test_activations_computed_twice_take_less(make):
    [plain], [twice] = (plan_memory(make(checkpoint_activations=again)) for again in (False, True))
    assert twice.activations < 0.5 * plain.activations and twice.weights == plain.weights


def test_what_trains_is_kept_in_the_type_of_the_products_too(make):
    """Autocast makes short copies of fp32 matrices, which the backward pass reads."""
    plans = [plan_memory(make(method="full", precision=precision, length=length))[0]
             for precision in ("fp32", "bf16") for length in (96, 192)]  # fmt: skip
    fixed = [2 * short.activations - long.activations for short, long in (plans[:2], plans[2:])]
    model, _ = from_pretrained(make().model)
    matrices = n_bytes(p for p in model.parameters() if p.dim() > 1) // 2
    assert fixed[1] - fixed[0] == pytest.approx(matrices, rel=0.1)


def test_activations_grow_with_rows_and_tokens(make):
    one, rows, long = (plan_memory(make(**c))[0].activations for c in ({}, {"batch_size": 8}, {"length": 192}))
    assert rows == pytest.approx(2 * one, rel=0.01) and long == pytest.approx(2 * one, rel=0.01)


def test_frozen_weights_are_short_on_a_gpu_and_what_trains_is_not(make):
    [cpu], [gpu], [asked] = (plan_memory(make("senses", trains=["bridges"], device=device, precision=precision))
                             for device, precision in (("cpu", "fp32"), ("cuda", "bf16"), ("cpu", "bf16")))  # fmt: skip
    assert gpu.weights == asked.weights
    assert gpu.weights - gpu.gradients == (cpu.weights - cpu.gradients) // 2 and gpu.gradients == cpu.gradients


def test_each_stage_has_a_row_in_gib(make, tmp_path):
    stages = [{"name": "align", "trains": ["bridges"], "steps": 1}, {"name": "tune", "trains": ["text"], "steps": 1}]
    cfg = make("senses", stages=stages)
    align, tune = plan_memory(cfg)
    assert (align.name, tune.name) == ("align", "tune") and tune.gradients > align.gradients
    (tmp_path / "own.yaml").write_text(cfg.to_yaml())
    done = CliRunner().invoke(app, ["train", str(tmp_path / "own.yaml"), "--plan", "--set", "batch_size=4096"])
    assert done.exit_code == 0 and "align" in done.stdout and "tune" in done.stdout, done.output
    total = plan_memory(cfg.model_copy(update={"batch_size": 4096}))[1].total
    assert f"{total / GIB:.2f}" in done.stdout and not cfg.output.exists()
