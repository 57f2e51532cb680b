"""A model back into a folder that this package and `transformers` both load. Built in notebook 07."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from llamamm.errors import CheckpointError, InputError
from llamamm.files import replace_folder
from llamamm.lora.lora import lora_modules, plain_state_dict
from llamamm.pretrained.packed import packed_tensors, quantization_config
from llamamm.text.model import Llama3Model
from llamamm.weights.saving import refuse_foreign_files, write_config, write_weights


class Saveable(Protocol):
    """What saving asks of a tokenizer, or of a processor, which writes its tokenizer too."""

    stop_ids: frozenset[int]

    def save(self, folder: str | Path) -> None: ...


def save_pretrained(
    model: Llama3Model,
    folder: str | Path,
    *,
    tokenizer: Saveable | None = None,
    processor: Saveable | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write config.json, the weights under Hugging Face's names (sharded over max_shard_bytes), and the tokenizer.

    processor: that of a model which sees or hears; it writes its tokenizer too, so give one of the two.

    The folder appears whole or not at all; an older one of the same name stands until then. Raises CheckpointError
    where the folder holds files that are not a model's, since it would replace them.
    """
    folder = Path(folder)
    if tokenizer is not None and processor is not None:
        raise InputError("give a tokenizer or a processor: the processor writes its tokenizer too")
    refuse_foreign_files(folder)
    with replace_folder(folder) as new:
        write_model(model, new, tokenizer=processor or tokenizer, max_shard_bytes=max_shard_bytes)


def write_model(
    model: Llama3Model, folder: Path, *, tokenizer: Saveable | None = None, max_shard_bytes: int = 5_000_000_000
) -> None:
    """The files of `save_pretrained`, into a folder that exists."""
    config = {**model.full_config.to_hf(), **quantization_config(model)}
    write_weights(hf_state_dict(model), folder, max_shard_bytes=max_shard_bytes)
    write_config(config, folder, stop_ids=tokenizer.stop_ids if tokenizer else ())
    if tokenizer is not None:
        tokenizer.save(folder)


def hf_state_dict(model: Llama3Model) -> dict[str, Tensor]:
    """The model's weights under Hugging Face's names, with a merged adapter in them; quantized ones as `packed` says.

    Raises CheckpointError where an adapter is not merged, since the file would lack it.
    """
    if any(m.active and not m.merged for m in lora_modules(model).values()):
        raise CheckpointError("the model has an adapter that is not merged: merge_lora(model) puts it into the "
                              "weights, save_adapter(model, folder) saves it alone")
    tied = model.lm_head.weight is model.embed_tokens.weight  # the configuration knows of no merged adapter
    return {
        model.hf_name(name): tensor.detach()
        for name, tensor in {**plain_state_dict(model), **packed_tensors(model)}.items()
        if not (tied and name == "lm_head.weight")
    }
