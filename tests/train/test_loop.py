"""train.loop: accumulation, precision, checkpointing, NaN, evaluation, early stop, Ctrl-C."""

import os
import signal
import warnings

import pytest
import torch

from llamamm import apply_lora
from llamamm.errors import TrainingError
from llamamm.train.batches import Batch
from llamamm.train.loop import Objective, resolve_precision
from llamamm.train.losses import IGNORE, plain_cross_entropy_sum
from tests.training_data import byte_batches, byte_model, byte_trainer, settings


class Recorder:
    """A saver that notes when it was called."""

    def __init__(self):
        self.last, self.best = [], []

    def save_last(self, trainer):
        self.last.append(trainer.step)

    def save_best(self, trainer):
        self.best.append(trainer.step)


def weights(trainer):
    return {k: v.clone() for k, v in trainer.model.state_dict().items()}


def test_the_loss_falls(tmp_path):
    trainer = byte_trainer(tmp_path, steps=30)
    before = trainer.evaluate()
    trainer.fit()
    assert before > 5.3 and trainer.evaluate() < before - 1.5  # ln 256 = 5.5
    assert trainer.step == 30 and trainer.batches.epoch_progress > 0.5


def test_the_objective_is_the_summed_loss_of_the_model():
    model = byte_model()
    ids, targets = torch.randint(256, (2, 2, 9), generator=torch.Generator().manual_seed(0))
    targets[0, :4] = IGNORE
    expected = plain_cross_entropy_sum(model(ids).flatten(0, 1), torch.eye(256), targets.flatten())
    assert torch.allclose(Objective(model)(ids, targets), expected, rtol=1e-5)


def test_an_adapted_head_is_part_of_the_objective_and_trains():
    model = byte_model(tie_embeddings=False)
    apply_lora(model, r=2, alpha=2, targets="lm_head")
    with torch.no_grad():
        model.lm_head.lora_b["default"].normal_(0, 0.1)
    ids = torch.randint(256, (1, 9), generator=torch.Generator().manual_seed(0))
    loss = Objective(model)(ids, ids)
    assert torch.allclose(loss, plain_cross_entropy_sum(model(ids)[0], torch.eye(256), ids[0]), rtol=1e-5)
    loss.backward()
    assert model.lm_head.lora_a["default"].grad.abs().max() > 0


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("pack", [True, False])
def test_accumulated_steps_equal_the_big_batch(tmp_path, micro, pack):
    """Also where pieces hold different numbers of targets, where a mean of means would be wrong."""
    big, small = byte_trainer(tmp_path, pack=pack), byte_trainer(tmp_path, pack=pack, micro_batch_size=micro)
    for _ in range(4):
        assert small.train_step() == pytest.approx(big.train_step(), rel=1e-5)
    for name, value in weights(big).items():
        assert torch.allclose(value, weights(small)[name], atol=2e-5), name


def test_recomputed_activations_give_the_same_training(tmp_path):
    plain, lean = byte_trainer(tmp_path), byte_trainer(tmp_path, checkpoint_activations=True)
    for _ in range(3):
        assert lean.train_step() == plain.train_step()
    assert all(torch.equal(v, weights(lean)[k]) for k, v in weights(plain).items())


def test_recomputed_activations_are_not_kept(tmp_path):
    def saved_bytes(trainer):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.nbytes
            return tensor

        batch = next(byte_batches(trainer.cfg))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            trainer._loss(batch)
        return total

    assert saved_bytes(byte_trainer(tmp_path, checkpoint_activations=True)) < 0.5 * saved_bytes(byte_trainer(tmp_path))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("lora", [False, True])
def test_half_precision_trains_nearly_alike(tmp_path, precision, lora):
    def trainer(precision):
        model = byte_model()
        if lora:
            apply_lora(model, r=4, alpha=8)
        return byte_trainer(tmp_path, model=model, precision=precision, steps=12)

    exact, half = trainer("fp32"), trainer(precision)
    assert half.scaler.is_enabled() == (precision == "fp16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact.fit()
        half.fit()
    assert half.evaluate() == pytest.approx(exact.evaluate(), rel=0.02)
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    assert exact.evaluate() != half.evaluate()  # it was another arithmetic


def test_precision_by_what_the_device_can(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert resolve_precision("fp32", cuda) == (None, False)
    assert resolve_precision("bf16", cpu) == (torch.bfloat16, False)
    assert resolve_precision("fp16", cpu) == (torch.float16, True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: False)  # a T4
    assert resolve_precision("auto", cuda) == (torch.float16, True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: True)
    assert resolve_precision("auto", cuda) == (torch.bfloat16, False)


def test_gradients_are_clipped(tmp_path):
    trainer = byte_trainer(tmp_path, clip_norm=1e-4, weight_decay=0.0)
    seen = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda *a: (seen.append([p.grad.norm() for p in trainer.model.parameters()]), step(*a))[1]
    _, norm, finite = trainer.update(next(trainer.batches), 1e-3)
    assert finite and norm > 0.1
    assert torch.stack(seen[0]).norm() == pytest.approx(1e-4, rel=1e-3)


class Poisoned(torch.nn.Module):
    """The objective, with NaN or infinity in its loss at some calls."""

    def __init__(self, inner, bad_calls, value):
        super().__init__()
        self.inner, self.bad_calls, self.value, self.calls = inner, bad_calls, value, 0

    def forward(self, **inputs):
        self.calls += 1
        loss = self.inner(**inputs)
        return loss * self.value if self.calls in self.bad_calls else loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_step_is_skipped_and_counted(tmp_path, value):
    trainer = byte_trainer(tmp_path)
    trainer.objective = Poisoned(trainer.objective, {2}, value)
    trainer.train_step()
    before = weights(trainer)
    moments = [s["exp_avg"].clone() for s in trainer.optimizer.state.values()]
    trainer.train_step()
    assert all(torch.equal(v, before[k]) for k, v in weights(trainer).items())
    assert all(torch.equal(a, s["exp_avg"]) for a, s in zip(moments, trainer.optimizer.state.values(), strict=True))
    assert (trainer.skipped, trainer.bad_in_a_row, trainer.step) == (1, 1, 2)
    assert trainer.log.records[-1]["skipped"] == 1
    trainer.train_step()
    assert (trainer.skipped, trainer.bad_in_a_row) == (1, 0)
    assert not all(torch.equal(v, before[k]) for k, v in weights(trainer).items())


def test_too_many_bad_steps_end_the_run_with_a_diagnosis(tmp_path):
    trainer = byte_trainer(tmp_path, max_bad_steps=3, eval_every=50)
    trainer.objective = Poisoned(trainer.objective, {2, 3, 4}, float("nan"))
    with pytest.raises(TrainingError, match="3 steps in a row up to step 4 had loss nan.*forward pass"):
        trainer.fit()
    broken = byte_trainer(tmp_path, max_bad_steps=1)
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="NaN or infinity in 1 weight, .*layers.1.mlp.up_proj.weight"):
        broken.fit()


def test_overflows_are_how_fp16_finds_its_scale(tmp_path):
    trainer = byte_trainer(tmp_path, precision="fp16", max_bad_steps=1)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=1000)
    before = weights(trainer)
    for _ in range(3):
        trainer.train_step()
    assert trainer.skipped == 3 and trainer.scaler.get_scale() == 2.0**37
    assert all(torch.equal(v, before[k]) for k, v in weights(trainer).items())


def test_evaluation_saving_and_the_best(tmp_path):
    saver = Recorder()
    trainer = byte_trainer(tmp_path, steps=7, eval_every=3, save_every=2, saver=saver)
    trainer.fit()
    assert saver.last == [2, 4, 6, 7]
    assert saver.best == [3, 6, 7]
    losses = [r["eval_loss"] for r in trainer.log.records if "eval_loss" in r]
    assert trainer.best_loss == min(losses) == losses[-1]
    assert trainer.evaluate() == trainer.evaluate() == losses[-1]


def test_it_stops_when_the_held_out_loss_no_longer_falls(tmp_path):
    saver = Recorder()
    trainer = byte_trainer(tmp_path, steps=50, eval_every=1, saver=saver, eval_data="x", patience=2)
    losses = iter([3.0, 2.0, 2.5, 2.0, 1.0])  # two without a new best: equal is not better
    trainer.evaluate = lambda: next(losses)
    trainer.fit()
    assert trainer.step == 4 and saver.best == [1, 2] and saver.last[-1] == 4


def test_samples_are_taken_without_touching_the_training(tmp_path):
    plain = byte_trainer(tmp_path)
    seen = []
    sampling = byte_trainer(tmp_path, sampler=lambda model: seen.append(model.training) or {"a": "b"})
    plain.fit()
    sampling.fit()
    assert seen == [False, False]
    assert [r["samples"] for r in sampling.log.records if "samples" in r] == [{"a": "b"}] * 2
    assert all(torch.equal(v, weights(sampling)[k]) for k, v in weights(plain).items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_after_the_step_with_a_checkpoint(tmp_path, number):
    saver = Recorder()
    trainer = byte_trainer(tmp_path, steps=1000, save_every=1000, saver=saver)
    inner = trainer.objective.forward

    def forward(**inputs):
        if trainer.step == 2:
            os.kill(os.getpid(), number)
        return inner(**inputs)

    trainer.objective.forward = forward
    before = signal.getsignal(number)
    trainer.fit()
    assert trainer.step == 3 and saver.last == [3] and signal.getsignal(number) is before


def test_rows_are_split_and_the_rest_is_a_piece(tmp_path):
    batch = next(byte_batches(settings(tmp_path, batch_size=5)))
    pieces = batch.split(2)
    assert [len(p.ids) for p in pieces] == [2, 2, 1] and all(isinstance(p, Batch) for p in pieces)
    assert torch.equal(torch.cat([p.targets for p in pieces]), batch.targets)
