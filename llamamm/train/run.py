"""A training run from its settings: model, data, trainer, checkpoints; the same alone and under torchrun.

Built in notebook 10.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path

from torch import nn

from llamamm.devices import pick_device
from llamamm.errors import ConfigError, counted
from llamamm.files import recover_folder, write_file
from llamamm.pretrained.compose import save_composed
from llamamm.pretrained.locate import DEFAULT_MODEL
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.alignment import AlignmentObjective, words_of
from llamamm.train.batches import Batch
from llamamm.train.check import Data, check_folders, check_length, check_prompts, require_length
from llamamm.train.checkpoint import (
    ADAPTER,
    MODEL,
    SKILL,
    FolderSaver,
    load_training,
    load_weights,
    read_state,
    what_trains,
)
from llamamm.train.config import Source, TrainConfig
from llamamm.train.distributed_checkpoint import has_shards
from llamamm.train.features import FeatureStore
from llamamm.train.log import RunLog, duration, plot_run
from llamamm.train.loop import Trainer
from llamamm.train.media_rows import MediaObjective, encode_media_record
from llamamm.train.preference import PreferenceObjective, encode_pair
from llamamm.train.prepare import (
    load_model,
    make_batches,
    make_sampler,
    note_precision,
    prompt_ids,
    reads_parts,
    trained_parts,
)
from llamamm.train.processes import Processes, is_sharded, joined
from llamamm.train.rows import encode_record
from llamamm.train.seen import not_noted, note_read, read_before

ScoreCard = Callable[[Trainer], object]  # measures what a run has made


def run_training(
    cfg: TrainConfig, *, resume: bool = False, quiet: bool = False, score_card: ScoreCard | None = None
) -> Trainer:
    """Train as `cfg` says, into cfg.output. resume=True goes on from the last checkpoint there, if there is one.

    With stages, one run after the other, each in a folder of its name; the trainer of the last one that ran.
    score_card: called at the end of each run or stage whose settings ask for a `score_card`.
    Raises ConfigError, InputError or TrainingError with the remedy; what the folder held stays.
    """
    with joined(cfg.device) as processes:
        cfg = _with_base(cfg, resume=resume, processes=processes)
        if cfg.stages:
            return _run_stages(cfg, resume=resume, quiet=quiet, processes=processes, score_card=score_card)
        return _run(cfg, resume=resume, quiet=quiet, processes=processes, score_card=score_card)


def _with_base(cfg: TrainConfig, *, resume: bool, processes: Processes) -> TrainConfig:
    """The settings with a `model` in place of the parts that `compose` names: put together, and written to base/.

    Raises as `compose`, and ConfigError where the output holds a run already.
    """
    if cfg.compose is None:
        return cfg
    cfg.require_output()
    base = cfg.output / "base"
    begun = any((stage.output / "last").exists() for stage in cfg.stage_settings() or [cfg])
    if begun and not resume:
        raise ConfigError(f"{cfg.output} holds a run already: resume it (--resume), or choose another output")
    with processes.together():
        if processes.is_main and not (begun and base.exists()):
            check_folders(cfg)
            save_composed(base, **cfg.compose, seed=cfg.seed)
            read_before(*map(cfg.compose.get, ("text", "vision", "audio"))).save(base)
    return cfg.model_copy(update={"compose": None, "model": str(base)})


def _run_stages(
    cfg: TrainConfig, *, resume: bool, quiet: bool, processes: Processes, score_card: ScoreCard | None
) -> Trainer:
    """Each stage begins with what the one before has left; one that is done is not run again."""
    cfg.require_output()
    stages = cfg.stage_settings()
    if not resume and any((stage.output / "last").exists() for stage in stages):
        raise ConfigError(f"{cfg.output} holds a run already: resume it (--resume), or choose another output")
    start: dict[str, object] = {}
    for n, stage in enumerate(stages):
        stage = stage.model_copy(update=start)
        done = resume and _is_done(stage) and n < len(stages) - 1
        if not done:
            trainer = _run(stage, resume=resume, quiet=quiet, processes=processes, score_card=score_card)
            if trainer.stopped:
                break
        start = _start_from(stage)
    return trainer


def _is_done(cfg: TrainConfig) -> bool:
    last = cfg.output / "last"
    if not last.exists():
        return False
    state = read_state(last)
    return state["step"] >= cfg.steps or 0 < cfg.patience <= state["evaluations_since_best"]


def _start_from(cfg: TrainConfig) -> dict[str, object]:
    """What the next stage's settings say of this one's result: a base with a skill on it, or a model of its own."""
    folder = next(f for f in (cfg.output / "final", cfg.output / "last") if f.exists())
    if (folder / "config.json").is_file():
        return {"model": str(folder), "adapter": None}
    return {"adapter": folder}


def _run(
    cfg: TrainConfig, *, resume: bool, quiet: bool, processes: Processes, score_card: ScoreCard | None
) -> Trainer:
    trainer = make_trainer(cfg, resume=resume, quiet=quiet, processes=processes)
    begin = time.monotonic()
    store = trainer.saver.features
    with store.kept() if store else nullcontext():
        trainer.fit()
    if processes.is_main:
        picture = io.BytesIO()
        plot_run(trainer.log.records).savefig(picture, format="png")
        write_file(cfg.output / "run.png", picture.getvalue())
        _say_the_end(trainer, time.monotonic() - begin)
    if cfg.score_card and score_card is not None and not trainer.stopped:
        _make_card(trainer, score_card)
    return trainer


def _make_card(trainer: Trainer, score_card: ScoreCard) -> None:
    """The main process measures, the others wait. Of a run over shards no process has the whole model."""
    if is_sharded(trainer.objective):
        trainer.log.say(f"score_card: the model lies in shards; `llamamm eval {_result_folder(trainer)}` measures it")
        return
    if trainer.processes.is_main:
        score_card(trainer)
    trainer.processes.wait()


def make_trainer(
    cfg: TrainConfig, *, resume: bool = False, quiet: bool = False, processes: Processes | None = None
) -> Trainer:
    """Everything that `run_training` makes, before the first step. What can be wrong is found before weights load."""
    processes = processes or Processes(device=pick_device(cfg.device))
    cfg.require_output()
    cfg = _with_base(cfg, resume=resume, processes=processes)
    last = cfg.output / "last"
    check_folders(cfg)
    if processes.is_main:
        recover_folder(last)
    processes.wait()
    if last.exists() and not resume:
        raise ConfigError(f"{cfg.output} holds a run already: resume it (--resume), or choose another output")
    nothing_there = resume and not last.exists()
    resume = resume and last.exists()
    if cfg.data is None:
        raise ConfigError(f"'data' is missing: {TrainConfig.model_fields['data'].description}")
    check_length(cfg, cfg.model or DEFAULT_MODEL)
    checks = {"skip": cfg.faulty == "skip", "method": cfg.method, "stream": cfg.stream}
    data = {"data": Data(cfg.sources, **checks, buffer=cfg.stream_buffer, seed=cfg.seed)}
    if cfg.eval_data:
        data["eval_data"] = Data([Source(source=cfg.eval_data)], **checks)
    in_parts = reads_parts(cfg, processes) and not (resume and not has_shards(last))
    model, reader = load_model(cfg, processes.device, in_parts=in_parts)
    tokenizer = reader if isinstance(reader, Tokenizer) else reader.tokenizer
    sees = reader is not tokenizer
    store = None
    if sees and "towers" not in trained_parts(cfg):  # features are then the same each time
        kept = cfg.features or (None if cfg.stream else cfg.output.parent / "features")
        store = FeatureStore(model, reader, kept)
    with store.kept() if store else nullcontext():
        for part in data.values():
            part.check_encoding(reader, cfg.length, look=store)
    require_length(cfg, model.cfg.context_length)
    check_prompts(prompt_ids(cfg, tokenizer), cfg.sample_tokens, model.cfg.context_length)
    step = 0
    if resume:
        if not in_parts:
            load_weights(model, last)
        step = read_state(last)["step"]
    encode = partial(encode_record, tokenizer=tokenizer)
    if sees:
        encode = partial(encode_media_record, processor=reader, look=store)
    share = {"processes": processes, "looked_at": store is not None}
    objective: nn.Module | None = MediaObjective(model) if sees else None
    if cfg.method == "dpo":
        encode = partial(encode_pair, encode=encode)
        objective = PreferenceObjective(model, beta=cfg.dpo_beta)
    if cfg.method == "align":
        words = None if cfg.stream else words_of([part.records for part in data.values()], tokenizer)
        objective = AlignmentObjective(model, words=words, stops=tokenizer.stop_ids)
    batches = make_batches(data["data"].records, encode, cfg, tokenizer, **share)
    eval_batches: list[Batch] = []
    if cfg.eval_data:
        stream = make_batches(data["eval_data"].records, encode, cfg, tokenizer, shuffle=False, **share)
        eval_batches = list(islice(stream, cfg.eval_batches))
    log = RunLog(quiet=True)  # one process tells of all
    if processes.is_main:
        log = RunLog(cfg.output, step=step, tensorboard=cfg.tensorboard, quiet=quiet)
    for line in (line for part in data.values() for line in part.said):
        log.say(line)
    note_precision(cfg, processes.device, log)
    if processes.is_main and (unknown := not_noted(cfg, data["data"].records)):
        log.say(unknown)
    base = cfg.model or DEFAULT_MODEL
    seen = note_read(cfg, data["data"].records) if processes.is_main and not cfg.stream else None
    trainer = Trainer(
        model, batches, cfg, objective=objective, eval_batches=eval_batches,
        sampler=make_sampler(cfg, tokenizer), log=log, processes=processes,
        saver=FolderSaver(cfg.output, tokenizer=reader, base=base, features=store, seen=seen),
    )  # fmt: skip
    if resume:
        if in_parts:
            load_weights(model, last)
        load_training(trainer, last)
        log.say(f"resumed at step {step} of {cfg.steps}" + (", which was the last" if step >= cfg.steps else ""))
    else:
        if nothing_there:
            log.say(f"nothing to resume in {cfg.output}: the run begins with step 1")
        if processes.is_main:
            write_file(cfg.output / "config.yaml", cfg.to_yaml())
    return trainer


def _result_folder(trainer: Trainer) -> Path:
    """Where a run's weights, or its adapter, stand for others to load: of a run over shards final/, else last/."""
    return trainer.cfg.output / ("final" if is_sharded(trainer.objective) else "last")


def _say_the_end(trainer: Trainer, seconds: float) -> None:
    """The last line: how far, how long, and where it is."""
    cfg, log = trainer.cfg, trainer.log
    what = {ADAPTER: "the adapter", SKILL: "the skill", MODEL: "the model"}[what_trains(trainer.model)]
    log.say(f"step {trainer.step} of {cfg.steps}, {duration(seconds)}: {what} is in {_result_folder(trainer)}"
            + (f", the best of the evaluations in {cfg.output / 'best'}" if trainer.eval_batches else ""))
    if trainer.batches.n_skipped:
        log.say(f"{counted(trainer.batches.n_skipped, 'faulty record')} left out on the way")
    if trainer.step < cfg.steps and not trainer.stopped:
        log.say(f"ended early: no better held-out loss in {cfg.patience} evaluations (patience)")
