"""Checkpoints: all that a run needs to go on as if it had never stopped, bit for bit.

    last/   model.safetensors, config.json, tokenizer.json     or an adapter's files, or a skill's: loads anywhere
            optimizer.safetensors                               AdamW's two moments of each trained parameter
            training.json                                       step, place in the data, random generators, scaler
            seen.safetensors                                    hashes of what the run reads, and its base has read
    best/   the weights alone, of the lowest held-out loss

A run over shards (FSDP) writes last/ in parts, see `distributed_checkpoint`, and at its end beside it:

    final/  the weights, or adapter, of last/ as one plain folder

A folder is written under another name and renamed: a process killed at any moment, or a full disk, leaves the old one.
Nothing is pickled. Built in notebook 10.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llamamm.errors import CheckpointError, TrainingError, WriteError
from llamamm.files import recover_folder, write_error
from llamamm.lora.adapter_config import read_settings
from llamamm.lora.adapter_files import active_adapter, load_adapter
from llamamm.lora.lora import lora_modules
from llamamm.pretrained.save import write_model
from llamamm.pretrained.skill import SKILL_FILE, added_tensors, load_skill, write_skill
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.distributed_checkpoint import (
    has_shards,
    like_parameter,
    load_shards,
    replace_folder_together,
    save_shards,
    shard_names,
    whole_model,
)
from llamamm.train.features import FeatureStore
from llamamm.train.loop import Trainer
from llamamm.train.processes import is_sharded
from llamamm.train.randomness import random_state, set_random_state
from llamamm.train.seen import Seen
from llamamm.weights.checkpoint import open_checkpoint, read_header
from llamamm.weights.loading import match
from llamamm.weights.names import to_our_names

OPTIMIZER_FILE, STATE_FILE = "optimizer.safetensors", "training.json"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
ADAPTER, SKILL, MODEL = "adapter", "skill", "model"


class FolderSaver:
    """Writes a run's checkpoints under `folder`: last/, best/, of a run over shards final/ too.

    base: the name of the model an adapter belongs to. features: written down with each last/. seen: what the training
    reads, which goes where the weights go. All processes call each method; the main one writes, and of shards every
    process its own.
    """

    def __init__(
        self, folder: Path, *, tokenizer: Tokenizer | None = None, base: str = "",
        features: FeatureStore | None = None, seen: Seen | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.tokenizer, self.base, self.features, self.seen = folder, tokenizer, base, features, seen

    def save_last(self, trainer: Trainer) -> None:
        state = training_state(trainer)
        with _disk_errors(trainer.step), replace_folder_together(self.folder / "last", trainer.processes) as new:
            moments = optimizer_tensors(trainer.model, trainer.optimizer)
            if is_sharded(trainer.objective):
                save_shards({**parameter_tensors(trainer.model), **moments}, new)
            elif trainer.processes.is_main:
                self._write_weights(trainer.model, new)
                save_file(moments, new / OPTIMIZER_FILE)
            if trainer.processes.is_main:
                (new / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
        if trainer.processes.is_main:  # what an earlier end left there is older than last/ now
            shutil.rmtree(self.folder / "final", ignore_errors=True)
        if self.features is not None:
            self.features.flush()

    def save_best(self, trainer: Trainer) -> None:
        self._save_whole(trainer, self.folder / "best")

    def save_final(self, trainer: Trainer) -> None:
        self._save_whole(trainer, self.folder / "final")

    def _save_whole(self, trainer: Trainer, folder: Path) -> None:
        """The weights as one plain folder."""
        model = whole_model(trainer.model) if is_sharded(trainer.objective) else trainer.model
        with _disk_errors(trainer.step), replace_folder_together(folder, trainer.processes) as new:
            if trainer.processes.is_main:
                self._write_weights(model, new)

    def _write_weights(self, model: Llama3Model, folder: Path) -> None:
        if what_trains(model) == MODEL:
            write_model(model, folder, tokenizer=self.tokenizer)
        else:
            write_skill(model, folder, base=self.base)  # an adapter alone is one, too
        if self.seen is not None:
            self.seen.save(folder)


def what_trains(model: Llama3Model) -> str:
    """What a run leaves: ADAPTER, LoRA alone; SKILL, bridges, with LoRA or without; MODEL, where base weights move."""
    added = added_tensors(model)
    if lora_modules(model):
        return SKILL if added else ADAPTER
    moving = any(p.requires_grad and name not in added for name, p in model.named_parameters())
    return SKILL if added and not moving else MODEL


@contextmanager
def _disk_errors(step: int) -> Iterator[None]:
    """A full disk, a folder that may not be written: said in one line with the remedy. The older checkpoint stands."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # the library has its own name for the system's errors
        said = error if isinstance(error, WriteError) else write_error("the folder", error)
        raise CheckpointError(f"the checkpoint of step {step} could not be written, the one before stands: {said}, "
                              f"then resume (--resume)") from error


def load_weights(model: Llama3Model, folder: Path) -> None:
    """Put a checkpoint's weights, or its adapter, into the model that it was saved from. Raises CheckpointError."""
    recover_folder(folder)
    if has_shards(folder):
        load_shards(parameter_tensors(model), folder)
        return
    if (folder / SKILL_FILE).is_file():
        trains = {name for name, p in model.named_parameters() if p.requires_grad}
        load_skill(model, folder)
        for name, parameter in model.named_parameters():  # a fresh adapter freezes all that is not its own
            parameter.requires_grad_(name in trains)
        return
    if adapted := list(lora_modules(model).values()):
        here, there = adapted[0].settings[active_adapter(model)], read_settings(folder)
        if here != there:
            raise CheckpointError(f"{folder} holds an adapter with {there}, the settings now ask for {here}")
        load_adapter(model, folder)
        return
    targets = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, ref in match(to_our_names(open_checkpoint(folder), model.cfg), model).items():
            targets[name].copy_(ref.read())


def load_training(trainer: Trainer, folder: Path) -> None:
    """Put the trainer where a checkpoint left off. Call `load_weights` on its model before the trainer is made.

    Raises TrainingError where the checkpoint is of another run: other data, settings or parameters.
    """
    state = read_state(folder)
    _load_optimizer(trainer.model, trainer.optimizer, folder)
    trainer.batches.load_state_dict(state["batches"])
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.step, trainer.skipped, trainer.bad_in_a_row = state["step"], state["skipped"], state["bad_in_a_row"]
    trainer.best_loss = float(state["best_loss"])
    trainer.evaluations_since_best = state["evaluations_since_best"]
    randoms = [state["random"], *state.get("random_of_others", [])]
    if trainer.processes.rank < len(randoms):  # a process that was not there goes on from its own seed
        set_random_state(randoms[trainer.processes.rank])


def read_state(folder: Path) -> dict[str, Any]:
    """The content of training.json. Raises TrainingError."""
    recover_folder(folder)
    try:
        return json.loads((folder / STATE_FILE).read_bytes())
    except (OSError, ValueError):
        raise TrainingError(f"{folder} has no {STATE_FILE} that can be read, so a run cannot go on from it") from None


# ---- what a checkpoint holds besides weights ----

def training_state(trainer: Trainer) -> dict[str, Any]:
    """Everything but tensors, for JSON. All processes must call it."""
    random, *random_of_others = trainer.processes.gather(random_state())
    return {
        "step": trainer.step,
        "skipped": trainer.skipped,
        "bad_in_a_row": trainer.bad_in_a_row,
        "best_loss": str(trainer.best_loss),  # JSON has no infinity
        "evaluations_since_best": trainer.evaluations_since_best,
        "batches": trainer.batches.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "random": random,
        "random_of_others": random_of_others,
        "config": json.loads(trainer.cfg.model_dump_json()),
    }


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's tensors by the name of the parameter they belong to: "exp_avg.layers.0....weight"."""
    return {
        f"{moment}.{name}": optimizer.state[parameter][moment].contiguous()
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for moment in MOMENTS
    }


def parameter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that train, by name: "parameter.layers.0....weight"."""
    return {f"parameter.{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    named = {name: p for name, p in model.named_parameters() if id(p) in trained}
    in_shards = has_shards(folder)
    if in_shards:
        keys = {key for key in shard_names(folder) if key.partition(".")[0] in MOMENTS}
    else:
        tensors = _read_tensors(folder / OPTIMIZER_FILE)
        keys = set(tensors)
    known = {key.partition(".")[2] for key in keys}
    if not keys:  # no step was taken yet
        return
    never_moved = set(named) - known  # a bridge that no batch has used has no moments yet
    if known - set(named) or not never_moved <= set(added_tensors(model)):
        odd = sorted(known ^ set(named))
        raise TrainingError(f"{folder} is of a run that trains other parameters: {len(odd)} differ, such as {odd[0]}")
    for name, p in named.items():
        if name in never_moved:
            continue
        if in_shards:
            step = torch.zeros((), dtype=torch.float32, device=p.device)
            state = {moment: step if moment == "step" else torch.zeros_like(p.detach()) for moment in MOMENTS}
        else:
            state = {moment: like_parameter(tensors[f"{moment}.{name}"], p) for moment in MOMENTS}
        optimizer.state[p] = state
    if in_shards:
        load_shards(optimizer_tensors(model, optimizer), folder)


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        read_header(file)
        return load_file(file)
    except OSError as error:
        raise TrainingError(f"{file} cannot be read: {error}") from None
