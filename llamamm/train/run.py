"""A training run from its settings: model, data, trainer, checkpoints; the same alone and under torchrun.

Built in notebook 10.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from llamamm.devices import pick_device
from llamamm.errors import ConfigError, InputError, MissingDependencyError
from llamamm.files import recover_folder, write_file
from llamamm.generation.generate import TextStream
from llamamm.generation.sampling import SamplingConfig
from llamamm.lora.adapter_files import load_adapter
from llamamm.lora.lora import apply_lora
from llamamm.pretrained.load import from_pretrained
from llamamm.pretrained.locate import DEFAULT_MODEL
from llamamm.text.chat import chat_format
from llamamm.text.config import TextConfig
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.batches import Batch, Batches
from llamamm.train.check import (
    check_encoding,
    check_folders,
    check_length,
    check_prompts,
    check_records,
    own_tokenizer,
    require_length,
)
from llamamm.train.checkpoint import FolderSaver, load_training, load_weights, read_state
from llamamm.train.config import TrainConfig
from llamamm.train.documents import open_documents
from llamamm.train.log import RunLog, duration, plot_run
from llamamm.train.loop import Trainer, resolve_precision
from llamamm.train.processes import Processes, is_sharded, joined
from llamamm.train.records import is_text
from llamamm.train.rows import encode_record


def run_training(cfg: TrainConfig, *, resume: bool = False, quiet: bool = False) -> Trainer:
    """Train as `cfg` says, into cfg.output. resume=True goes on from the last checkpoint there, if there is one.

    Raises ConfigError, InputError or TrainingError with the remedy; what the folder held stays.
    """
    with joined(cfg.device) as processes:
        trainer = make_trainer(cfg, resume=resume, quiet=quiet, processes=processes)
        begin = time.monotonic()
        trainer.fit()
        if processes.is_main:
            picture = io.BytesIO()
            plot_run(trainer.log.records).savefig(picture, format="png")
            write_file(cfg.output / "run.png", picture.getvalue())
            _say_the_end(trainer, time.monotonic() - begin)
        return trainer


def make_trainer(
    cfg: TrainConfig, *, resume: bool = False, quiet: bool = False, processes: Processes | None = None
) -> Trainer:
    """Everything that `run_training` makes, before the first step. What can be wrong is found before weights load."""
    processes = processes or Processes(device=pick_device(cfg.device))
    cfg.require_output()
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
    data = {name: open_data(name) for name in (cfg.data, cfg.eval_data) if name}
    checked = {name: check_records(documents, name) for name, documents in data.items()}
    model, tokenizer = load_model(cfg, processes.device)
    for name, (_, firsts) in checked.items():
        check_encoding(data[name], name, firsts, tokenizer)
    require_length(cfg, model.cfg.context_length)
    check_prompts(_prompt_ids(cfg, tokenizer), cfg.sample_tokens, model.cfg.context_length)
    step = 0
    if resume:
        load_weights(model, last)
        step = read_state(last)["step"]
    encode = partial(encode_record, tokenizer=tokenizer)
    batches = make_batches(data[cfg.data], encode, cfg, tokenizer, processes=processes)
    eval_batches: list[Batch] = []
    if cfg.eval_data:
        stream = make_batches(data[cfg.eval_data], encode, cfg, tokenizer, processes=processes, shuffle=False)
        eval_batches = list(islice(stream, cfg.eval_batches))
    log = RunLog(quiet=True)  # one process tells of all
    if processes.is_main:
        log = RunLog(cfg.output, step=step, tensorboard=cfg.tensorboard, quiet=quiet)
    for said, _ in checked.values():
        log.say(said)
    note_precision(cfg, processes.device, log)
    base = cfg.model or DEFAULT_MODEL
    trainer = Trainer(
        model, batches, cfg, eval_batches=eval_batches, sampler=make_sampler(cfg, tokenizer), log=log,
        saver=FolderSaver(cfg.output, tokenizer=tokenizer, base=base), processes=processes,
    )  # fmt: skip
    if resume:
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
    what = "the adapter" if cfg.method == "lora" else "the model"
    log.say(f"step {trainer.step} of {cfg.steps}, {duration(seconds)}: {what} is in {_result_folder(trainer)}"
            + (f", the best of the evaluations in {cfg.output / 'best'}" if trainer.eval_batches else ""))
    if trainer.step < cfg.steps and not trainer.stopped:
        log.say(f"ended early: no better held-out loss in {cfg.patience} evaluations (patience)")


def load_model(cfg: TrainConfig, device: torch.device) -> tuple[Llama3Model, Tokenizer]:
    """The model to train, an adapter on it where the method is LoRA, and its tokenizer."""
    torch.manual_seed(cfg.seed)
    low_precision, _ = resolve_precision(cfg.precision, device)
    if cfg.shape is not None:
        tokenizer = own_tokenizer(cfg.tokenizer)
        shape = {"vocab_size": tokenizer.vocab_size, "context_length": max(256, cfg.length), **cfg.shape}
        try:
            model = Llama3Model(TextConfig.tiny(**shape)).to(device)
        except TypeError as error:
            raise ConfigError(f"shape: {str(error).partition(') ')[2]}; it takes {', '.join(_shape_keys())}") from None
        return model, tokenizer
    own = own_tokenizer(cfg.tokenizer) if cfg.tokenizer else None  # before the weights, which may take minutes
    # Frozen weights may be short; what AdamW moves must not be, since its steps are smaller than bf16's last digit.
    frozen = cfg.method == "lora" and device.type == "cuda"
    dtype = low_precision if frozen and low_precision else torch.float32
    model, tokenizer = from_pretrained(cfg.model or DEFAULT_MODEL, dtype=dtype, device=device)
    if not isinstance(tokenizer, Tokenizer | None):  # a processor: more than text goes in
        raise InputError(f"{cfg.model} is a model that sees, {type(model).__name__}; `llamamm train` trains text "
                         f"models, `llamamm train-multimodal` a small one that sees and hears")
    tokenizer = own or tokenizer
    if tokenizer is None:
        raise InputError(f"{cfg.model} has no tokenizer beside its weights; name one with `tokenizer`")
    if cfg.method == "lora" and cfg.adapter:
        load_adapter(model, cfg.adapter)
    elif cfg.method == "lora":
        s = cfg.lora_settings
        apply_lora(model, r=s.r, alpha=s.alpha, dropout=s.dropout, targets=cfg.lora_targets, layers=cfg.lora_layers,
                   rslora=s.rslora, dora=s.dora)  # fmt: skip
    return model, tokenizer


def open_data(data: str) -> Sequence[Any]:
    """A file's documents, or those of a dataset for "datasets:NAME" or "datasets:NAME:SPLIT".

    NAME: a folder here, which may have colons in its path (C:\\data\\x), else a dataset's name on the Hub.
    """
    kind, colon, rest = data.partition(":")
    if not (colon and kind == "datasets"):
        return open_documents(data)
    name, split = _name_and_split(rest)
    if not name:
        raise InputError(f"{data!r} names no dataset: datasets:NAME or datasets:NAME:SPLIT")
    try:
        import datasets
    except ImportError:
        raise MissingDependencyError("datasets:... needs a package: pip install 'llamamm[data]'") from None
    folder = Path(os.path.expanduser(name))
    try:
        if not any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
            table = datasets.load_dataset(str(folder) if folder.exists() else name, split=split or "train")
        else:
            table = datasets.load_from_disk(str(folder))
            if isinstance(table, datasets.DatasetDict):
                table = table[split or "train"]
            elif split and table.split is not None and str(table.split) != split:
                raise InputError(f"{data}: the folder holds the split {str(table.split)!r} alone, not {split!r}")
    except InputError:
        raise
    except KeyError:
        raise InputError(f"{data}: there is no split {split or 'train'!r}; there are {', '.join(table)}: "
                         f"datasets:{name}:{next(iter(table))}") from None
    except Exception as error:  # files of any format, scripts, the Hub: each with errors of its own
        raise InputError(f"{data}: {' '.join(str(error).split()) or type(error).__name__}") from None
    if len(table) == 0:
        raise InputError(f"{data} holds no record")
    return table


def _name_and_split(rest: str) -> tuple[str, str]:
    """`name:split` in two; the colon of a drive, or one inside a path or a slice, is none that parts them."""
    if Path(os.path.expanduser(rest)).exists():
        return rest, ""
    part = r"[\w.-]+(?:\[[^\]/\\]*\])?"  # train, train[:10%]
    found = re.fullmatch(rf"(.*?):({part}(?:\+{part})*|)", rest)
    if found is None or re.fullmatch(r"[A-Za-z]", found[1]):  # C:name is a path on a drive
        return rest, ""
    return found[1], found[2]


def make_batches(
    documents: Sequence[Any],
    encode: Callable[[Any], Any],
    cfg: TrainConfig,
    tokenizer: Tokenizer,
    *,
    processes: Processes,
    shuffle: bool = True,
) -> Batches:
    """The batches that `cfg` asks for. Texts may be split over rows, dialogues stay whole."""
    return Batches(
        documents, encode, batch_size=cfg.batch_size, length=cfg.length, seed=cfg.seed, pack=cfg.pack,
        split=is_text, pad_id=tokenizer.eos_id or 0,  # not pad_id: a [PAD] may have been added without a row for it
        shuffle=shuffle, rank=processes.rank, world_size=processes.world_size,
    )  # fmt: skip


def make_sampler(cfg: TrainConfig, tokenizer: Tokenizer) -> Callable[[Llama3Model], dict[str, str]] | None:
    """What answers cfg.sample_prompts: in the chat format if an instruct model is tuned, else as text to go on."""
    if not cfg.sample_prompts:
        return None
    prompts = _prompt_ids(cfg, tokenizer)

    @torch.no_grad()
    def sample(model: Llama3Model) -> dict[str, str]:
        model.eval()
        answers = {}
        for prompt, ids in prompts.items():
            stream = TextStream(model, tokenizer, ids, device=model.embed_tokens.weight.device, seed=cfg.seed,
                                max_new_tokens=cfg.sample_tokens, sampling=SamplingConfig(temperature=0.7, top_p=0.9))
            answers[prompt] = "".join(stream)
        return answers

    return sample


def _prompt_ids(cfg: TrainConfig, tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Each of cfg.sample_prompts, and the tokens that ask it."""
    chat = None
    if cfg.shape is None:
        try:
            chat = chat_format(tokenizer)
        except InputError:  # a base model's tokenizer
            chat = None
    return {
        prompt: chat.encode([{"role": "user", "content": prompt}]) if chat
        else tokenizer.encode(prompt, bos=tokenizer.adds_bos or not prompt)
        for prompt in cfg.sample_prompts
    }


def note_precision(cfg: TrainConfig, device: torch.device, log: RunLog) -> None:
    """Say once where gradients need a scaler."""
    dtype, uses_scaler = resolve_precision(cfg.precision, device)
    if uses_scaler and cfg.precision == "auto":
        log.say(f"(float16 with a gradient scaler: {device} does not multiply bfloat16)")
    elif dtype is not None:
        log.say(f"(matrix products in {str(dtype).removeprefix('torch.')})")


def _shape_keys() -> list[str]:
    return [k for k in TextConfig.tiny().keys() if k not in ("dtype", "rope_scaling")]
