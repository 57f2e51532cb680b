"""train.checkpoint: resumed equals uninterrupted bit for bit, whatever killed the run; the old one stands."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from llamamm import apply_lora, from_pretrained, load_adapter
from llamamm.errors import CheckpointError, ConfigError, InputError, TrainingError
from llamamm.train.checkpoint import FolderSaver, load_training, load_weights, read_state
from llamamm.train.config import TrainConfig
from llamamm.train.log import read_metrics
from llamamm.train.randomness import random_state
from llamamm.train.run import run_training
from llamamm.train.tokenizer import train_tokenizer
from tests.processes import end, finish, wait_while_it_gets_on
from tests.training_data import TEXTS, byte_model, byte_trainer, write_texts


def make(folder, *, lora=False, resume=False, **changes):
    """A trainer that saves into `folder`; with resume it begins where last/ ends."""
    model = byte_model()
    if lora:
        apply_lora(model, r=4, alpha=8, dropout=0.2)
    if resume:
        load_weights(model, folder / "last")
    trainer = byte_trainer(folder, model=model, saver=FolderSaver(folder), **changes)
    if resume:
        load_training(trainer, folder / "last")
    return trainer


def everything(trainer):
    """All that must be equal: weights, moments, place in the data, generators, scaler, best loss."""
    tensors = dict(trainer.model.state_dict())
    for name, p in trainer.model.named_parameters():
        tensors.update({f"{k}.{name}": v for k, v in trainer.optimizer.state.get(p, {}).items()})
    rest = (trainer.step, trainer.batches.state_dict(), trainer.scaler.state_dict(), trainer.best_loss,
            trainer.evaluations_since_best, trainer.skipped, random_state())  # fmt: skip
    return {k: v.clone() for k, v in tensors.items()}, rest


def assert_same(a, b):
    assert a[1] == b[1]
    assert set(a[0]) == set(b[0])
    assert [k for k in a[0] if not torch.equal(a[0][k], b[0][k])] == []


KINDS = {
    "full": {}, "lora with dropout": {"lora": True}, "pieces": {"micro_batch_size": 2, "pack": False},
    "fp16": {"precision": "fp16"},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, kind, k):
    whole = make(tmp_path / "whole", **kind)
    whole.fit()
    part = make(tmp_path / "part", save_every=k, **kind)
    while part.step < k:
        part.train_step()
        if part.step % part.cfg.eval_every == 0:
            part.evaluate_and_keep_best()
    part.saver.save_last(part)
    for _ in range(3):  # whatever happens to the generators in between
        torch.rand(7), random.random(), np.random.rand()
    resumed = make(tmp_path / "part", resume=True, **kind)
    assert resumed.step == k
    resumed.fit()
    assert_same(everything(resumed), everything(whole))


def test_checkpoints_load_anywhere(tmp_path):
    full, lora = make(tmp_path / "full"), make(tmp_path / "lora", lora=True)
    ids = torch.randint(256, (1, 9))
    for trainer in (full, lora):
        trainer.fit()
        trainer.model.eval()
    assert torch.equal(from_pretrained(tmp_path / "full" / "last")[0](ids), full.model(ids))
    again = byte_model().eval()
    load_adapter(again, tmp_path / "lora" / "last")
    assert torch.equal(again(ids), lora.model(ids))
    assert sorted(f.name for f in (tmp_path / "full" / "best").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"seed": 5}, InputError, "seed 0, here it is 5"),
        ({"batch_size": 2}, InputError, "batch_size 4, here it is 2"),
        ({"lora": True}, CheckpointError, "adapter_config.json"),
    ],
)
def test_another_runs_checkpoint_is_refused(tmp_path, changes, error, message):
    make(tmp_path, steps=1).fit()
    with pytest.raises(error, match=message):
        make(tmp_path, resume=True, **changes)


def test_an_optimizer_of_other_parameters_is_refused(tmp_path):
    make(tmp_path, steps=1).fit()
    model = byte_model()
    model.embed_tokens.requires_grad_(False)
    trainer = byte_trainer(tmp_path, model=model)
    with pytest.raises(TrainingError, match="1 differ, such as embed_tokens.weight"):
        load_training(trainer, tmp_path / "last")
    (tmp_path / "last" / "training.json").write_text("{")
    with pytest.raises(TrainingError, match="training.json that can be read"):
        read_state(tmp_path / "last")


@pytest.mark.parametrize("what", ["llamamm.weights.saving.save_file", "llamamm.train.checkpoint.save_file"])
def test_on_a_full_disk_the_old_checkpoint_stands(tmp_path, monkeypatch, what):
    trainer = make(tmp_path, steps=4)
    trainer.train_step()
    trainer.saver.save_last(trainer)
    before = {f.name: f.read_bytes() for f in (tmp_path / "last").iterdir()}
    trainer.train_step()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(what, full)
        with pytest.raises(CheckpointError, match="step 2 could not be written.*No space left.*resume"):
            trainer.saver.save_last(trainer)
    assert {f.name: f.read_bytes() for f in (tmp_path / "last").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last"]
    trainer.saver.save_last(trainer)
    assert read_state(tmp_path / "last")["step"] == 2


# ---- whole runs, killed ----

KILLED = """
import os, signal, sys, threading
import llamamm.train.checkpoint as checkpoint
import llamamm.train.loop as loop
import llamamm.files as files
from llamamm.train.config import TrainConfig
from llamamm.train.run import run_training
from llamamm.train.tokenizer import train_tokenizer

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

# Each kill in a fork of its own: what they import takes longer than the runs.
for where, config in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    if (child := os.fork()) == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
if where == "in a step":  # between two optimizer groups' worth of work
    update = loop.Trainer.update
    def half(self, batch, rate):
        if self.step == 3:
            loss = self._loss(batch)
            loss.backward()
            die()
        return update(self, batch, rate)
    loop.Trainer.update = half
else:
    counts = {"weights": 0, "optimizer": 0, "rename": 0}
    if where == "writing the weights":
        import llamamm.weights.saving as saving
        save = saving.save_file
        def save_half(tensors, file, **options):
            save(tensors, file, **options)
            counts["weights"] += 1
            if counts["weights"] == 3:  # best/ and last/ of step 2 stand; this is a later one
                os.truncate(file, 1000)
                die()
        saving.save_file = save_half
    if where == "writing the optimizer":
        save2 = checkpoint.save_file
        def save_optimizer(tensors, file, **options):
            counts["optimizer"] += 1
            if counts["optimizer"] == 2:
                die()
            save2(tensors, file, **options)
        checkpoint.save_file = save_optimizer
    if where == "between the renames":
        rename = os.rename
        def rename_and_die(a, b):
            rename(a, b)
            if str(b).endswith(".last.previous"):
                die()
        files.os.rename = rename_and_die
run_training(TrainConfig.from_yaml(config), quiet=True)
"""


def run_config(folder: Path, data: Path, **changes) -> TrainConfig:
    return TrainConfig.make({
        "output": folder, "data": str(data), "eval_data": str(data), "shape": {"hidden_size": 16, "n_layers": 1,
        "intermediate_size": 32, "n_heads": 2, "n_kv_heads": 1}, "tokenizer": str(data.parent / "words"),
        "method": "full", "steps": 24,  # of 10 ms: enough that a kill comes before the last
        "batch_size": 2, "length": 32, "eval_every": 3, "eval_batches": 1, "save_every": 2, "learning_rate": 1e-2,
        "device": "cpu", "precision": "fp32", **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run that nothing interrupted: its data, its weights and its metrics."""
    folder = tmp_path_factory.mktemp("whole")
    data = write_texts(folder)
    (folder / "words").mkdir()
    train_tokenizer(TEXTS, folder / "words", vocab_size=300)
    cfg = run_config(folder / "run", data)
    trainer = run_training(cfg, quiet=True)
    return data, everything(trainer), [r for r in trainer.log.records if "learning_rate" in r]


PLACES = ("in a step", "writing the weights", "writing the optimizer", "between the renames")


@pytest.fixture(scope="module")
def killed(tmp_path_factory, whole_run):
    """{place: configuration} of runs that were killed there."""
    folders = {where: tmp_path_factory.mktemp("killed") for where in PLACES}
    configs, arguments = {where: run_config(folders[where] / "run", whole_run[0]) for where in PLACES}, []
    for where, cfg in configs.items():
        (folders[where] / "config.yaml").write_text(cfg.to_yaml())
        arguments += [where, str(folders[where] / "config.yaml")]
    done = finish([sys.executable, "-c", KILLED, *arguments], watch=tmp_path_factory.getbasetemp())
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(PLACES), done.stderr
    return configs


@pytest.mark.parametrize("where", PLACES)
def test_killed_and_resumed_equals_uninterrupted(killed, whole_run, where):
    (_, expected, metrics), cfg = whole_run, killed[where]
    trainer = run_training(cfg, resume=True, quiet=True)
    assert_same(everything(trainer), expected)
    written = [r for r in read_metrics(cfg.output / "metrics.jsonl") if "learning_rate" in r]
    assert [(r["step"], r["loss"]) for r in written] == [(r["step"], r["loss"]) for r in metrics]  # each once
    assert not [p.name for p in cfg.output.iterdir() if p.name.startswith(".")]


def test_killed_at_any_moment(tmp_path, whole_run):
    """No matter when: killed twice, each time a little after a step was noted, and resumed."""
    data, expected, _ = whole_run
    cfg = run_config(tmp_path / "run", data, save_every=1)
    (tmp_path / "config.yaml").write_text(cfg.to_yaml())
    command = [sys.executable, "-m", "llamamm", "train", str(tmp_path / "config.yaml"), "--resume"]
    for delay in (0.0, 0.05):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        seen = len(read_metrics(cfg.output / "metrics.jsonl")) if (cfg.output / "metrics.jsonl").exists() else 0
        metrics = cfg.output / "metrics.jsonl"

        def noted(metrics=metrics, seen=seen) -> bool:
            return (cfg.output / "last").exists() and metrics.exists() and len(read_metrics(metrics)) > seen

        try:
            wait_while_it_gets_on(process, until=noted)
            time.sleep(delay)
        finally:
            end(process)
    trainer = run_training(cfg, resume=True, quiet=True)
    got = everything(trainer)
    assert [k for k in got[0] if not torch.equal(got[0][k], expected[0][k])] == []


def test_a_run_is_not_begun_twice_in_one_folder(tmp_path, whole_run):
    cfg = run_config(tmp_path / "run", whole_run[0], steps=1)
    run_training(cfg, quiet=True)
    with pytest.raises(ConfigError, match="holds a run already.*--resume"):
        run_training(cfg, quiet=True)
    trainer = run_training(cfg, resume=True, quiet=True)  # done already: nothing to do
    assert trainer.step == 1
    assert os.path.getsize(cfg.output / "run.png") > 1000
