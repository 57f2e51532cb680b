"""Two gloo processes train as one process does, with copies (DDP) and with shards (FSDP2); their checkpoints resume.

This file is also the program that torchrun starts: one launch does everything that needs two processes, and leaves
what happened in report-0.json and report-1.json.
"""

import json
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from llamamm import Llama3Model, TextConfig, from_pretrained, load_adapter
from llamamm.errors import CheckpointError, ConfigError, TrainingError
from llamamm.pretrained.load import load_tokenizer
from llamamm.pretrained.save import save_pretrained
from llamamm.pretrained.skill import load_skill
from llamamm.train import processes as processes_module
from llamamm.train.checkpoint import FolderSaver, load_weights
from llamamm.train.config import TrainConfig
from llamamm.train.log import read_metrics
from llamamm.train.prepare import make_batches
from llamamm.train.processes import Processes, as_local, is_sharded, joined
from llamamm.train.rows import encode_record
from llamamm.train.run import make_trainer, run_training
from llamamm.train.seen import SEEN_FILE
from llamamm.train.sources import open_data
from llamamm.train.stages import Stage, stage_trainer

FULL = {"method": "full"}
LORA = {"method": "lora", "lora_r": 4}
MODES = {
    "ddp-full": {**FULL, "parallel": "ddp", "checkpoint_activations": True},
    "ddp-lora": {**LORA, "parallel": "ddp", "micro_batch_size": 2},
    "fsdp-full": {**FULL, "parallel": "fsdp", "sample_prompts": ["Why?"], "sample_tokens": 4},
    # one row of A over two processes: one holds it, the other nothing
    "fsdp-lora": {**LORA, "parallel": "fsdp", "lora_r": 1, "lora_dora": True, "micro_batch_size": 2,
                  "checkpoint_activations": True},
}  # fmt: skip
# Towers are frozen and look before the step, or train, too. A Perceiver has blocks of its own.
MEDIA = {
    "bridges": {"trains": ["bridges"], "steps": 2},
    "skill": {"trains": ["bridges", "lora"], "lora_r": 2, "checkpoint_activations": True},
    "whole": {"trains": ["bridges", "text", "towers"], "micro_batch_size": 1},
    "whole-ddp": {"trains": ["bridges", "text", "towers"], "micro_batch_size": 1, "parallel": "ddp", "steps": 2},
}
SKILL_FILES = {"bridges": {"bridges.safetensors", "skill.json", SEEN_FILE}}
SKILL_FILES["skill"] = SKILL_FILES["bridges"] | {"adapter_config.json", "adapter_model.safetensors"}
DROPOUT = {**LORA, "parallel": "ddp", "lora_dropout": 0.5}


def config(folder, mode, *, output, **changes):
    common = dict(
        model=str(folder / "base"), data=str(folder / "data.jsonl"), eval_data=str(folder / "data.jsonl"), steps=6,
        length=64, batch_size=8, pack=False, learning_rate=1e-2, schedule="constant", warmup_steps=2, clip_norm=2.0,
        precision="fp32", device="cpu", eval_every=3, eval_batches=2, save_every=3,
    )  # fmt: skip
    settings = DROPOUT if mode == "ddp-dropout" else MODES[mode]
    return TrainConfig.make({**common, **settings, **changes, "output": str(folder / output / mode)})


def media_config(folder, mode, *, output, **changes):
    return TrainConfig.make({
        "model": str(folder / "senses"), "data": str(folder / "media.jsonl"), "eval_data": str(folder / "media.jsonl"),
        "steps": 4, "length": 48, "batch_size": 4, "pack": False, "learning_rate": 3e-3, "schedule": "constant",
        "precision": "fp32", "device": "cpu", "parallel": "fsdp", "eval_every": 2, "eval_batches": 1, "save_every": 2,
        "features": str(folder / output / "features"), "output": str(folder / output / f"media-{mode}"),
        **MEDIA[mode], **changes})  # fmt: skip


# ---- what each of two processes does ----

def work(folder, report):
    def train(mode, output, *, resume=False, quiet=True, **changes):
        run_training(config(folder, mode, output=output, **changes), resume=resume, quiet=quiet)

    for mode in (*MODES, "ddp-dropout"):
        train(mode, "two", quiet=mode != "fsdp-full")

    # half a run, kept for one process to go on from, then the other half
    for mode in ("ddp-full", "ddp-dropout", "fsdp-lora"):
        train(mode, "half", steps=3)
    report["stopped at"] = stop_with_ctrl_c(config(folder, "fsdp-full", output="half", sample_prompts=[]))
    if dist.get_rank() == 0:
        shutil.copytree(folder / "half", folder / "resumed")
    dist.barrier()
    for mode in ("ddp-full", "ddp-dropout", "fsdp-full", "fsdp-lora"):
        train(mode, "resumed", resume=True)
    train("fsdp-full", "from-one", resume=True)

    for mode in ("ddp-full", "fsdp-full"):
        report[f"disk {mode}"] = save_on_a_full_disk(config(folder, mode, output="half"))
    for mode, precision in (("ddp-full", "fp32"), ("fsdp-full", "fp32"), ("fsdp-full", "fp16")):
        cfg = config(folder, mode, output=f"bad-{precision}", precision=precision)
        report[f"bad {mode} {precision}"] = meet_a_bad_step(cfg)
    report["different starts"] = start_apart(config(folder, "fsdp-full", output="apart"))
    for parallel in ("ddp", "fsdp"):
        report[f"media {parallel}"] = train_to_see_and_hear(folder, parallel)
    for mode in MEDIA:
        run_training(media_config(folder, mode, output="two"), quiet=True)
    run_training(media_config(folder, "skill", output="half", steps=2), quiet=True)
    run_training(media_config(folder, "skill", output="half"), resume=True, quiet=True)


def train_to_see_and_hear(folder, parallel):
    """Frozen towers; rows with pictures and rows with sounds, so that a process may have none of one kind. -> losses.

    The weights, whole, go into a file.
    """
    from tests.small_tasks import TASKS, build, encoder_of

    with joined("cpu") as processes:
        tokenizer = load_tokenizer(folder / "base")
        model = build(tokenizer)
        stage = Stage("tune", "shown", 6, text=True, bridges=True, learning_rate=5e-3)
        trainer = stage_trainer(model, encoder_of(model, tokenizer), {"both": TASKS["both"], "word": TASKS["word"]},
                                stage, batch_size=2, processes=processes, parallel=parallel, micro_batch_size=1,
                                checkpoint_activations=True)  # fmt: skip
        trainer.fit()
        whole = {name: as_local(p.detach()).clone() for name, p in model.named_parameters()}
        if processes.is_main:
            save_file(whole, folder / f"media-{parallel}-{processes.world_size}.safetensors")
        processes.wait()
        return trainer.log.losses


def stop_with_ctrl_c(cfg):
    """The last process alone sees Ctrl-C, in step 3. -> the step after which this process stopped."""
    with joined("cpu") as processes:
        trainer = make_trainer(cfg, quiet=True, processes=processes)
        train_step = trainer.train_step

        def step():
            loss = train_step()
            if trainer.step == 3 and processes.rank == processes.world_size - 1:
                signal.raise_signal(signal.SIGINT)
            return loss

        trainer.train_step = step
        trainer.best_loss = 0.0  # no new best: last/ is then written right after an evaluation
        trainer.fit()
        return trainer.step


def save_on_a_full_disk(cfg):
    """One process cannot write: of shards the last, else the main one. -> name and text of what was raised here."""

    def fail(*_):
        raise OSError(28, "No space left on device")

    with joined("cpu") as processes:
        trainer = make_trainer(cfg, resume=True, quiet=True, processes=processes)
        owner, name = FolderSaver, "_write_weights"
        if is_sharded(trainer.objective):
            owner, name = (HuggingFaceStorageWriter, "write_data") if processes.rank == 1 else (Nobody, "write")
        before = getattr(owner, name)
        setattr(owner, name, fail)
        try:
            trainer.saver.save_last(trainer)
        except (CheckpointError, TrainingError) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            setattr(owner, name, before)


class Nobody:
    write = None


def meet_a_bad_step(cfg):
    """In step 2 one element of process 1's gradients is infinite. -> skipped steps, and whether weights are finite."""
    with joined("cpu") as processes:
        trainer = make_trainer(cfg, quiet=True, processes=processes)
        trainer.saver = None
        weight = trainer.model.layers[1].mlp.down_proj.weight

        def poison(gradient):
            if trainer.step == 1 and processes.rank == 1:
                gradient.view(-1)[0] = torch.inf

        if is_sharded(trainer.objective):  # in the part that this process keeps, after all parts were summed
            unscale = trainer.scaler.unscale_
            trainer.scaler.unscale_ = lambda o: (poison(weight.grad.to_local()), unscale(o))
        else:  # in its own gradient, before DDP sums them
            weight.register_hook(lambda g: poison(g := g.clone()) or g)
        trainer.train_step()
        before = [as_local(p.detach()).clone() for p in trainer.model.parameters()]
        trainer.train_step()
        after = [as_local(p.detach()) for p in trainer.model.parameters()]
        same = all(map(torch.equal, before, after))
        return {"skipped": trainer.skipped, "kept": same, "scale": trainer.scaler.get_scale()}


def start_apart(cfg):
    """Models that differ between processes become one when wrapped. -> a sum over the weights."""
    with joined("cpu") as processes:
        torch.manual_seed(processes.rank)
        objective = torch.nn.Module()
        objective.model = Llama3Model(TextConfig.tiny())
        processes.wrap(objective, parallel=cfg.parallel)
        return sum(float(as_local(p.detach()).double().sum()) for p in objective.parameters())


if __name__ == "__main__":
    notes = {}
    with joined("cpu"):  # one group for all runs: each uses the one it finds
        work(Path(sys.argv[1]), notes)
        Path(sys.argv[1], f"report-{dist.get_rank()}.json").write_text(json.dumps(notes))


# ---- what came of it ----

def torchrun(script, folder):
    """Its heartbeat is what it leaves in the folder: metrics, checkpoints."""
    from tests.processes import finish  # here: where this file is the program, it is in no package

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return finish([*command, script, str(folder)], watch=folder, env={**os.environ, "OMP_NUM_THREADS": "1",
                                                                      "PYTHONPATH": os.pathsep.join(sys.path)})


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A tokenizer of few tokens: with SmolLM2's 49,152, scores alone take most of the time."""
    from llamamm.train.tokenizer import train_tokenizer

    return train_tokenizer(["user assistant Why? 1 2 3"] * 9, tmp_path_factory.mktemp("words"), vocab_size=300)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, words):
    """The folder with all runs: one/ is what one process made, two/ what two made."""
    folder = tmp_path_factory.mktemp("runs")
    # answers of 1 to 49 numbers, so that the two processes have different numbers of targets
    rows = [{"prompt": "Q" * (1 + i % 3), "response": " ".join(map(str, range(1 + i * 7 % 5 * (i % 4) ** 2)))}
            for i in range(24)]  # fmt: skip
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.manual_seed(3)
    shape = {"hidden_size": 32, "intermediate_size": 48, "tie_embeddings": True, "vocab_size": words.vocab_size}
    save_pretrained(Llama3Model(TextConfig.tiny(**shape)), folder / "base", tokenizer=words)
    make_senses(folder, words)
    for mode in MODES:
        run_training(config(folder, mode, output="one"), quiet=True)
    for mode in MEDIA:
        run_training(media_config(folder, mode, output="one"), quiet=True)
    run_training(config(folder, "fsdp-full", output="from-one", steps=3), quiet=True)
    done = torchrun(__file__, folder)
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "stderr").write_text(done.stderr)
    (folder / "stdout").write_text(done.stdout)
    for mode in ("ddp-full", "fsdp-full", "fsdp-lora"):  # one process goes on from what two left
        shutil.copytree(folder / "half" / mode, folder / "alone" / mode)
        run_training(config(folder, mode, output="alone"), resume=True, quiet=True)
    return folder


def make_senses(folder, words):
    """A tiny model with an eye and an ear; rows with pictures, with sounds, with words alone."""
    import PIL.Image

    from llamamm.multimodal.config import BridgeConfig, MultimodalConfig
    from llamamm.multimodal.model import MultimodalLlama
    from llamamm.multimodal.processor import MultimodalProcessor
    from llamamm.senses.image_processor import ImageProcessor
    from llamamm.senses.waves import save_wave

    torch.manual_seed(0)
    text = TextConfig.tiny(vocab_size=words.vocab_size, hidden_size=32)
    cfg = MultimodalConfig.tiny(text=text, image_bridge=BridgeConfig(merge=2, latents=2, depth=1))
    save_pretrained(MultimodalLlama(cfg), folder / "senses",
                    processor=MultimodalProcessor(cfg, words, ImageProcessor.vit(32)))  # fmt: skip
    rows = []
    for n in range(8):
        PIL.Image.new("RGB", (32, 32), (30 * n, 0, 0)).save(folder / f"{n}.png")
        save_wave(folder / f"{n}.wav", torch.sin(torch.arange(1600) / (n + 2)) * 0.3)
        medium = ({"image": f"{n}.png"}, {"audio": f"{n}.wav"}, {})[n % 3]
        rows.append({"prompt": "Why?", "response": f"{n} 1", **medium})
    (folder / "media.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def curve(folder, key):
    return [r[key] for r in read_metrics(folder / "metrics.jsonl") if key in r]


def weights(folder):
    last = folder / ("final" if (folder / "final").exists() else "last")
    return load_file(next(last.glob("*model.safetensors")))


def assert_same_run(a, b):
    """The same losses, gradients and weights."""
    for key, n in (("loss", 6), ("eval_loss", 2)):
        assert len(curve(a, key)) == n
        torch.testing.assert_close(curve(a, key), curve(b, key), rtol=1e-5, atol=0)
    # AdamW does not feel the size of gradients, so a wrong mean shows here. A norm in fp32 is itself right to 3e-5.
    torch.testing.assert_close(curve(a, "grad_norm"), curve(b, "grad_norm"), rtol=1e-4, atol=0)
    torch.testing.assert_close(weights(a), weights(b), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_two_processes_train_as_one_with_the_same_global_batch(runs, mode):
    assert_same_run(runs / "one" / mode, runs / "two" / mode)
    best = [load_file(next((runs / n / mode / "best").glob("*model.safetensors"))) for n in ("one", "two")]
    torch.testing.assert_close(*best, rtol=0, atol=1e-5)


def test_the_processes_of_these_runs_had_different_numbers_of_targets(runs, words):
    cfg, encode = config(runs, "ddp-full", output="two"), partial(encode_record, tokenizer=words)
    halves = []
    for rank in (0, 1):
        both = Processes(rank=rank, world_size=2)
        batches = make_batches(open_data(cfg.data), encode, cfg, words, processes=both)
        halves.append([next(batches).n_targets for _ in range(6)])
    assert all(abs(a - b) > 0.05 * (a + b) for a, b in zip(*halves, strict=True)), halves


@pytest.mark.parametrize("mode", ["ddp-full", "ddp-dropout", "fsdp-full", "fsdp-lora"])
def test_two_processes_go_on_as_if_never_stopped(runs, mode):
    assert curve(runs / "resumed" / mode, "loss") == curve(runs / "two" / mode, "loss")
    torch.testing.assert_close(weights(runs / "resumed" / mode), weights(runs / "two" / mode), rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["ddp-full", "fsdp-full", "fsdp-lora"])
def test_one_process_goes_on_from_what_two_left(runs, mode):
    assert len(curve(runs / "alone" / mode, "loss")) == 6
    assert_same_run(runs / "alone" / mode, runs / "two" / mode)


def test_shards_go_on_from_what_one_process_left(runs):
    assert_same_run(runs / "from-one" / "fsdp-full", runs / "one" / "fsdp-full")


def test_every_process_writes_its_own_part_and_all_of_it_is_safetensors(runs):
    for mode in ("fsdp-full", "fsdp-lora"):
        files = sorted(f.name for f in (runs / "two" / mode / "last").iterdir())
        assert files == [*(f"shard-0000{i}-model-00001-of-00001.safetensors" for i in (1, 2)), "training.json"]
    name = "exp_avg.layers.0.mlp.up_proj.weight"
    for i in (1, 2):
        with safe_open(runs / f"two/fsdp-full/last/shard-0000{i}-model-00001-of-00001.safetensors", "pt") as file:
            assert file.get_tensor(name).shape == (24, 32)  # half of (48, 32)


@pytest.mark.parametrize("lost", [1, 2])
def test_a_lost_shard_is_noticed(runs, tmp_path, lost):
    shutil.copytree(runs / "two" / "fsdp-full" / "last", tmp_path / "last")
    (tmp_path / f"last/shard-0000{lost}-model-00001-of-00001.safetensors").unlink()
    model, _ = from_pretrained(runs / "base")
    with pytest.raises(CheckpointError, match="a shard is missing"):
        load_weights(model, tmp_path / "last")


def test_a_damaged_shard_is_named(runs, tmp_path):
    shutil.copytree(runs / "two" / "fsdp-full" / "last", tmp_path / "last")
    shard = tmp_path / "last/shard-00002-model-00001-of-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:1000])
    model, _ = from_pretrained(runs / "base")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_weights(model, tmp_path / "last")


def test_shards_of_another_run_are_refused(runs, tmp_path):
    shutil.copytree(runs / "two" / "fsdp-lora", tmp_path / "x" / "fsdp-lora")
    cfg = config(runs, "fsdp-lora", output="x", lora_r=2).model_copy(update={"output": tmp_path / "x" / "fsdp-lora"})
    with pytest.raises(CheckpointError, match="another model"):
        run_training(cfg, resume=True, quiet=True)


def test_the_end_is_one_plain_folder(runs):
    ids = torch.arange(1, 20)[None]
    ours, tokenizer = from_pretrained(runs / "two" / "fsdp-full" / "final")
    theirs, _ = from_pretrained(runs / "one" / "fsdp-full" / "last")
    assert tokenizer is not None and ours.lm_head.weight is ours.embed_tokens.weight
    torch.testing.assert_close(ours(ids), theirs(ids), rtol=0, atol=1e-4)
    assert not (runs / "one" / "fsdp-full" / "final").exists()  # last/ is plain there
    assert not (runs / "two" / "ddp-full" / "final").exists()


# peft 0.21 asks transformers 5 for a property by its old name
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_adapter_at_the_end_loads_here_and_in_peft(runs):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.arange(1, 20)[None]
    final = runs / "two" / "fsdp-lora" / "final"
    model, _ = from_pretrained(runs / "base")
    base = model(ids)
    load_adapter(model, final)  # compares the base, too
    expected = model(ids)
    assert not torch.allclose(base, expected, atol=1e-2)
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(runs / "base"), final).eval()
    torch.testing.assert_close(peft(ids).logits, expected, rtol=0, atol=1e-4)


def test_a_sharded_model_shows_the_same_samples(runs):
    one, two = (curve(runs / n / "fsdp-full", "samples") for n in ("one", "two"))
    assert len(one) == 2 and one == two and one[0]["Why?"]


def test_only_the_main_process_tells(runs):
    assert (runs / "stdout").read_text() == ""
    told = (runs / "stderr").read_text()
    assert told.count("step 3: training loss") == told.count("step 6: training loss") == 1
    assert "Warning" not in told and "Traceback" not in told


def reports(runs):
    return [json.loads((runs / f"report-{rank}.json").read_text()) for rank in (0, 1)]


def test_ctrl_c_in_one_process_stops_all_after_the_same_step(runs):
    assert [r["stopped at"] for r in reports(runs)] == [3, 3]


def test_a_full_disk_in_one_process_stops_all_and_the_old_checkpoint_stands(runs):
    main, other = reports(runs)
    assert main["disk ddp-full"].startswith("CheckpointError: the checkpoint of step 3 could not be written")
    assert other["disk ddp-full"].startswith("TrainingError: process 0 of 2 could not go on")
    for report in main, other:  # here the last process failed, and PyTorch tells all
        assert report["disk fsdp-full"].startswith("CheckpointError: the checkpoint of step 3 could not be written")
        assert "process 1" in report["disk fsdp-full"] and "No space left" in report["disk fsdp-full"]
    for mode in ("ddp-full", "fsdp-full"):
        folder = runs / "half" / mode
        assert not list(folder.glob(".*"))
    # that the old one is whole is what `alone` goes on from


def test_a_bad_gradient_in_one_process_is_skipped_by_all(runs):
    main, other = reports(runs)
    for key in ("bad ddp-full fp32", "bad fsdp-full fp32", "bad fsdp-full fp16"):
        assert main[key] == other[key]
        assert main[key]["skipped"] == 1 and main[key]["kept"], key
    assert main["bad fsdp-full fp16"]["scale"] == 2.0**15  # halved once, in both


def test_shards_start_from_the_main_process(runs):
    main, other = reports(runs)
    assert main["different starts"] == other["different starts"]
    torch.manual_seed(0)
    model = Llama3Model(TextConfig.tiny())
    expected = sum(float(p.detach().double().sum()) for p in model.parameters())
    assert main["different starts"] == pytest.approx(expected)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_learn_to_see_and_hear_as_one(runs, parallel):
    main, other = reports(runs)
    alone = train_to_see_and_hear(runs, parallel)
    assert main[f"media {parallel}"] == other[f"media {parallel}"]
    torch.testing.assert_close(main[f"media {parallel}"], alone, rtol=1e-4, atol=0)
    together, single = (load_file(runs / f"media-{parallel}-{n}.safetensors") for n in (2, 1))
    torch.testing.assert_close(together, single, rtol=0, atol=2e-5)


@pytest.mark.parametrize("mode", MEDIA)
def test_a_model_that_sees_and_hears_ends_as_one_plain_folder(runs, mode):
    one, two = (runs / n / f"media-{mode}" for n in ("one", "two"))
    assert len(curve(one, "loss")) == MEDIA[mode].get("steps", 4)
    for key in ("loss", "eval_loss"):
        torch.testing.assert_close(curve(one, key), curve(two, key), rtol=1e-4, atol=0)
    end = two / ("last" if mode == "whole-ddp" else "final")
    names = {path.name for path in end.iterdir()}
    assert names == SKILL_FILES[mode] if mode in SKILL_FILES else "model.safetensors" in names
    base, _ = from_pretrained(runs / "senses", dtype=torch.float32)
    models = []
    for folder in (one / "last", end, two / "best"):
        if mode in SKILL_FILES:
            model, _ = from_pretrained(runs / "senses", dtype=torch.float32)
            load_skill(model, folder)  # compares the base, too
        else:
            model, processor = from_pretrained(folder, dtype=torch.float32)
            assert processor is not None
        models.append(dict(model.named_parameters()))
    expected, found, best = models
    moved = {name.split(".")[0] for name, p in base.named_parameters() if not torch.equal(p, found.get(name, p))}
    everything = {"embed_tokens", "layers", "norm", "vision_tower", "audio_encoder"}
    assert moved == {"image_bridge", "audio_bridge"} | (set() if mode in SKILL_FILES else everything)
    assert any(".lora_" in name for name in found) == (mode == "skill")
    for name, p in expected.items():
        torch.testing.assert_close(found[name], p, rtol=0, atol=3e-5, msg=name)
        assert found[name].shape == best[name].shape


def test_a_sharded_skill_goes_on_as_if_it_had_never_stopped(runs):
    half, two = (runs / n / "media-skill" for n in ("half", "two"))
    assert curve(half, "loss") == curve(two, "loss")
    for name in ("bridges.safetensors", "adapter_model.safetensors"):
        torch.testing.assert_close(load_file(half / "final" / name), load_file(two / "final" / name), rtol=0, atol=0)


# ---- alone ----

def test_one_process_needs_no_others():
    alone = Processes()
    assert alone.is_main and alone.sum(2.5) == 2.5 and alone.gather("a") == ["a"] and alone.from_main("b") == "b"
    assert alone.any(True) and not alone.any(False)
    alone.wait()
    with pytest.raises(KeyError, match="mine"), alone.together():
        raise KeyError("mine")


@pytest.mark.parametrize(("device", "message"), [("mps", "not on mps"), ("cuda", "no GPU of its own")])
def test_a_device_that_cannot_train_together_is_named(monkeypatch, device, message):
    for name, value in (("WORLD_SIZE", "64"), ("RANK", "63"), ("LOCAL_RANK", "63")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes_module, "pick_device", lambda _: torch.device(device))
    with pytest.raises(ConfigError, match=message), joined():
        pass


def test_a_failure_elsewhere_is_raised_here(monkeypatch):
    two = Processes(rank=0, world_size=2)
    monkeypatch.setattr(Processes, "gather", lambda _, mine: [mine, "OSError: disk full"])
    with pytest.raises(TrainingError, match=r"process 1 of 2 could not go on \(OSError: disk full\)"), two.together():
        pass
