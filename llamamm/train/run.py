"""A training run from its settings: model, data, trainer, checkpoints; the same alone and under torchrun.

Built in notebook 10.
"""

from __future__ import annotations

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
from llamamm.pretrained.load import from_pretrained, load_tokenizer
from llamamm.pretrained.locate import locate
from llamamm.text.chat import chat_format
from llamamm.text.config import TextConfig
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.checkpoint import FolderSaver, load_training, load_weights, read_state
from llamamm.train.config import TrainConfig
from llamamm.train.documents import open_documents
from llamamm.train.log import RunLog, plot_run
from llamamm.train.loop import Trainer, resolve_precision
from llamamm.train.processes import Processes, joined
from llamamm.train.rows import Batch, Batches, encode_record

DEFAULT_MODEL = "smollm2"


def run_training(cfg: TrainConfig, *, resume: bool = False, quiet: bool = False) -> Trainer:
    """Train as `cfg` says, into cfg.output. resume=True goes on from the last checkpoint there, if there is one.

    Raises ConfigError, InputError or TrainingError with the remedy; what the folder held stays.
    """
    with joined(cfg.device) as processes:
        trainer = make_trainer(cfg, resume=resume, quiet=quiet, processes=processes)
        trainer.fit()
        if processes.is_main:
            plot_run(trainer.log.records).savefig(cfg.output / "run.png")
        return trainer


def make_trainer(
    cfg: TrainConfig, *, resume: bool = False, quiet: bool = False, processes: Processes | None = None
) -> Trainer:
    """Everything that `run_training` makes, before the first step."""
    processes = processes or Processes(device=pick_device(cfg.device))
    last = cfg.output / "last"
    if processes.is_main:
        recover_folder(last)
    processes.wait()
    if last.exists() and not resume:
        raise ConfigError(f"{cfg.output} holds a run already: resume it (--resume), or choose another output")
    resume = resume and last.exists()
    if cfg.data is None:
        raise ConfigError(f"'data' is missing: {TrainConfig.model_fields['data'].description}")
    model, tokenizer = load_model(cfg, processes.device)
    step = 0
    if resume:
        load_weights(model, last)
        step = read_state(last)["step"]
    encode = partial(encode_record, tokenizer=tokenizer)
    documents = open_data(cfg.data)
    batches = make_batches(documents, encode, cfg, tokenizer, processes=processes)
    eval_batches: list[Batch] = []
    if cfg.eval_data:
        held_out = make_batches(open_data(cfg.eval_data), encode, cfg, tokenizer, processes=processes, shuffle=False)
        eval_batches = list(islice(held_out, cfg.eval_batches))
    log = RunLog(quiet=True)  # one process tells of all
    if processes.is_main:
        log = RunLog(cfg.output, step=step, tensorboard=cfg.tensorboard, quiet=quiet)
    note_precision(cfg, processes.device, log)
    base = cfg.model or DEFAULT_MODEL
    trainer = Trainer(
        model, batches, cfg, eval_batches=eval_batches, sampler=make_sampler(cfg, tokenizer), log=log,
        saver=FolderSaver(cfg.output, tokenizer=tokenizer, base=base), processes=processes,
    )  # fmt: skip
    if resume:
        load_training(trainer, last)
        log.say(f"resumed at step {step} of {cfg.steps}")
    elif processes.is_main:
        write_file(cfg.output / "config.yaml", cfg.to_yaml())
    return trainer


def load_model(cfg: TrainConfig, device: torch.device) -> tuple[Llama3Model, Tokenizer]:
    """The model to train, an adapter on it where the method is LoRA, and its tokenizer."""
    torch.manual_seed(cfg.seed)
    low_precision, _ = resolve_precision(cfg.precision, device)
    if cfg.shape is not None:
        tokenizer = _tokenizer(cfg.tokenizer)
        shape = {"vocab_size": tokenizer.vocab_size, "context_length": max(256, cfg.length), **cfg.shape}
        try:
            model = Llama3Model(TextConfig.tiny(**shape)).to(device)
        except TypeError as error:
            raise ConfigError(f"shape: {str(error).partition(') ')[2]}; it takes {', '.join(_shape_keys())}") from None
        return model, tokenizer
    # Frozen weights may be short; what AdamW moves must not be, since its steps are smaller than bf16's last digit.
    frozen = cfg.method == "lora" and device.type == "cuda"
    dtype = low_precision if frozen and low_precision else torch.float32
    model, tokenizer = from_pretrained(cfg.model or DEFAULT_MODEL, dtype=dtype, device=device)
    if not isinstance(tokenizer, Tokenizer | None):  # a processor: more than text goes in
        raise InputError(f"{cfg.model} is a model that sees, {type(model).__name__}; `llamamm train` trains text "
                         f"models, `llamamm train-multimodal` a small one that sees and hears")
    tokenizer = _tokenizer(cfg.tokenizer) if cfg.tokenizer else tokenizer
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
    """A file's documents, or those of a dataset for "datasets:NAME" or "datasets:NAME:SPLIT"."""
    kind, _, rest = data.partition(":")
    if kind != "datasets":
        return open_documents(data)
    try:
        import datasets
    except ImportError:
        raise MissingDependencyError("datasets:... needs a package: pip install 'llamamm[data]'") from None
    name, _, split = rest.partition(":")
    try:
        if Path(name).exists():
            found = datasets.load_from_disk(name)
            return found[split or "train"] if isinstance(found, datasets.DatasetDict) else found
        return datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{data}: {' '.join(str(error).split())}") from None


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
        split="text" in documents[0], pad_id=tokenizer.pad_id or 0, shuffle=shuffle, rank=processes.rank,
        world_size=processes.world_size,
    )  # fmt: skip


def make_sampler(cfg: TrainConfig, tokenizer: Tokenizer) -> Callable[[Llama3Model], dict[str, str]] | None:
    """What answers cfg.sample_prompts: in the chat format if an instruct model is tuned, else as text to go on."""
    if not cfg.sample_prompts:
        return None
    chat = None
    if cfg.shape is None:
        try:
            chat = chat_format(tokenizer)
        except InputError:  # a base model's tokenizer
            chat = None

    @torch.no_grad()
    def sample(model: Llama3Model) -> dict[str, str]:
        model.eval()
        answers = {}
        for prompt in cfg.sample_prompts:
            ids = chat.encode([{"role": "user", "content": prompt}]) if chat else tokenizer.encode(
                prompt, bos=tokenizer.adds_bos or not prompt
            )
            stream = TextStream(model, tokenizer, ids, device=model.embed_tokens.weight.device, seed=cfg.seed,
                                max_new_tokens=cfg.sample_tokens, sampling=SamplingConfig(temperature=0.7, top_p=0.9))
            answers[prompt] = "".join(stream)
        return answers

    return sample


def note_precision(cfg: TrainConfig, device: torch.device, log: RunLog) -> None:
    """Say once where gradients need a scaler."""
    dtype, uses_scaler = resolve_precision(cfg.precision, device)
    if uses_scaler and cfg.precision == "auto":
        log.say(f"(float16 with a gradient scaler: {device} does not multiply bfloat16)")
    elif dtype is not None:
        log.say(f"(matrix products in {str(dtype).removeprefix('torch.')})")


def _tokenizer(path: str | None) -> Tokenizer:
    if path is None:
        raise ConfigError("a new model (`shape`) needs a `tokenizer`: a file, a folder, or an asset's name")
    tokenizer = load_tokenizer(locate(path))
    if tokenizer is None:
        raise InputError(f"{path} holds no tokenizer")
    return tokenizer


def _shape_keys() -> list[str]:
    return [k for k in TextConfig.tiny().keys() if k not in ("dtype", "rope_scaling")]
