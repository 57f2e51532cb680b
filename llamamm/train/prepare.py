"""What a run begins with: the model with what trains in it, batches, the prompts that evaluations answer.

Built in notebook 10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from llamamm.errors import ConfigError, InputError
from llamamm.fast.quantized import quantized_linears
from llamamm.generation.generate import TextStream
from llamamm.generation.sampling import SamplingConfig
from llamamm.lora.lora import apply_lora, lora_modules
from llamamm.lora.settings import ALL_TARGETS
from llamamm.multimodal.model import MultimodalLlama
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.pretrained.load import from_pretrained, is_text_model
from llamamm.pretrained.locate import DEFAULT_MODEL, locate
from llamamm.pretrained.skill import load_skill
from llamamm.pretrained.split import open_unread
from llamamm.text.chat import chat_format
from llamamm.text.config import TextConfig
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.batches import Batches
from llamamm.train.check import own_tokenizer
from llamamm.train.config import TrainConfig
from llamamm.train.log import RunLog
from llamamm.train.loop import resolve_precision
from llamamm.train.preference import PairBatches
from llamamm.train.processes import Processes
from llamamm.train.records import is_text
from llamamm.train.streams import Streams

Reader = Tokenizer | MultimodalProcessor


def reads_parts(cfg: TrainConfig, processes: Processes) -> bool:
    """Whether each process reads its own part of the weights alone: of a text model that is sharded. What looks at
    whole weights before (DoRA, an adapter's check of its base) has them read whole."""
    sharded = processes.world_size > 1 and cfg.parallel == "fsdp"
    looks = cfg.shape is not None or cfg.adapter is not None or cfg.lora_dora
    return sharded and not looks and is_text_model(locate(cfg.model or DEFAULT_MODEL))


def load_model(cfg: TrainConfig, device: torch.device, *, in_parts: bool = False) -> tuple[Llama3Model, Reader]:
    """The model to train, with an adapter where there is LoRA to learn, and its tokenizer, or its processor where it
    sees or hears. What does not train is frozen. Raises ConfigError, InputError, and what loading raises.

    in_parts: on "meta", with what is to be read into it once it is sharded as `model.unread`; see `reads_parts`."""
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
    dtype = weights_dtype(cfg, device, low_precision)
    if in_parts:
        model, unread, tokenizer = open_unread(cfg.model or DEFAULT_MODEL, dtype=dtype)
        model.unread = unread
    else:
        model, tokenizer = from_pretrained(cfg.model or DEFAULT_MODEL, dtype=dtype, device=device)
    if isinstance(tokenizer, MultimodalProcessor):
        make_trainable(model, cfg)
        return model, tokenizer
    if not isinstance(tokenizer, Tokenizer | None):  # Llama 3.2 Vision
        raise InputError(f"{cfg.model} is a {type(model).__name__}; `llamamm train` trains text models and those that "
                         f"`llamamm compose` makes")
    if cfg.method == "align":
        raise ConfigError(f"method: align is for models that hear, {cfg.model or DEFAULT_MODEL} reads text alone: "
                          f"`llamamm compose` makes one")
    if cfg.trains is not None:
        raise ConfigError(f"trains is for models that see or hear, {cfg.model or DEFAULT_MODEL} reads text alone: use "
                          f"method")
    tokenizer = own or tokenizer
    if tokenizer is None:
        raise InputError(f"{cfg.model} has no tokenizer beside its weights; name one with `tokenizer`")
    make_trainable(model, cfg)
    return model, tokenizer


def weights_dtype(cfg: TrainConfig, device: torch.device, low_precision: torch.dtype | None) -> torch.dtype:
    """Frozen weights may be short; what AdamW moves must not be, since its steps are smaller than bf16's last digit.

    Elsewhere than on a GPU where short ones are asked for: a CPU without units for them takes longer."""
    frozen = cfg.method != "full" and (device.type == "cuda" or cfg.precision == "bf16")
    return low_precision if frozen and low_precision else torch.float32


def make_trainable(model: Llama3Model, cfg: TrainConfig) -> None:
    """What learns, and in fp32; all else is frozen. An adapter, where there is LoRA to learn. Raises ConfigError."""
    trains_text = "text" in trained_parts(cfg) if isinstance(model, MultimodalLlama) else cfg.method == "full"
    if trains_text and quantized_linears(model):
        raise ConfigError(f"{cfg.model} is quantized, and whole numbers do not train: take method: lora, which learns "
                          f"beside them, or the model that it was made of")
    if isinstance(model, MultimodalLlama):
        _set_trainable(model, cfg)
    elif cfg.method != "full":
        _give_lora(model, cfg)


def _give_lora(model: Llama3Model, cfg: TrainConfig) -> None:
    """The adapter that the settings name, or a fresh one."""
    if cfg.adapter:
        load_skill(model, cfg.adapter)
    if not lora_modules(model):
        s, targets = cfg.lora_settings, cfg.lora_targets
        if isinstance(model, MultimodalLlama) and set(targets) <= set(ALL_TARGETS):  # names that towers use, too
            targets = [f"layers.*.{name}" for name in targets]
        apply_lora(model, r=s.r, alpha=s.alpha, dropout=s.dropout, targets=targets, layers=cfg.lora_layers,
                   rslora=s.rslora, dora=s.dora)  # fmt: skip


def trained_parts(cfg: TrainConfig) -> frozenset[str]:
    """What learns in a model that sees or hears."""
    usual = {"lora": ("bridges", "lora"), "full": ("bridges", "text"), "dpo": ("lora",), "align": ("bridges",)}
    return frozenset(cfg.trains or usual[cfg.method])


def _set_trainable(model: MultimodalLlama, cfg: TrainConfig) -> None:
    """Which parts learn. An adapter that was given and does not train further stays beside the weights, frozen, and is
    put into them where they train themselves."""
    parts = trained_parts(cfg)
    for parameter in model.added_parameters():  # they are small; a stage hands on bit for bit what it leaves alone
        parameter.data = parameter.data.float()
    if "lora" in parts:
        _give_lora(model, cfg)
    elif cfg.adapter:
        load_skill(model, cfg.adapter, merge=bool(parts & {"text", "towers"}))
    model.set_trainable(text="text" in parts, towers="towers" in parts, bridges="bridges" in parts)
    for parameter in model.parameters():  # frozen ones may be short
        parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    for module in lora_modules(model).values():
        for parameter in (*module.lora_a.values(), *module.lora_b.values(), *module.lora_magnitude.values()):
            parameter.requires_grad_("lora" in parts)


def make_batches(
    documents: Sequence[Any] | Streams,
    encode: Callable[[Any], Any],
    cfg: TrainConfig,
    tokenizer: Tokenizer,
    *,
    processes: Processes,
    shuffle: bool = True,
    looked_at: bool = False,
) -> Batches | PairBatches:
    """The batches that `cfg` asks for. Texts may be split over rows, dialogues stay whole.

    looked_at: pictures and sounds come as features of towers."""
    if cfg.method == "dpo":
        return PairBatches(
            documents, encode, batch_size=cfg.batch_size, length=cfg.length, seed=cfg.seed,
            pad_id=tokenizer.eos_id or 0, shuffle=shuffle, looked_at=looked_at, skip_faulty=cfg.faulty == "skip",
            rank=processes.rank, world_size=processes.world_size,
        )  # fmt: skip
    return Batches(
        documents, encode, batch_size=cfg.batch_size, length=cfg.length, seed=cfg.seed,
        pack=cfg.pack and cfg.method != "align",
        split=is_text, pad_id=tokenizer.eos_id or 0,  # not pad_id: a [PAD] may have been added without a row for it
        shuffle=shuffle, looked_at=looked_at, skip_faulty=cfg.faulty == "skip", rank=processes.rank,
        world_size=processes.world_size,
    )  # fmt: skip


def make_sampler(cfg: TrainConfig, tokenizer: Tokenizer) -> Callable[[Llama3Model], dict[str, str]] | None:
    """What answers cfg.sample_prompts: in the chat format if an instruct model is tuned, else as text to go on."""
    if not cfg.sample_prompts:
        return None
    prompts = prompt_ids(cfg, tokenizer)

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


def prompt_ids(cfg: TrainConfig, tokenizer: Tokenizer) -> dict[str, list[int]]:
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
