"""Saving a model as a folder that this package and `transformers` both load. Built in notebook 07."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from safetensors.torch import save_file
from torch import Tensor

from llamamm.config import TextConfig
from llamamm.errors import CheckpointError, InputError
from llamamm.files import replace_folder
from llamamm.lora import lora_modules, plain_state_dict
from llamamm.mllama import MllamaModel
from llamamm.mllama_config import MllamaConfig
from llamamm.model import Llama3Model
from llamamm.weights.checkpoint import INDEX_FILE, SINGLE_FILE
from llamamm.weights.mllama_names import hf_name

_OURS = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")


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
    cfg = model.cfg.replace(dtype=model.embed_tokens.weight.dtype)
    for name in ("mllama_cfg", "multimodal_cfg"):  # of models that are more than their text
        if hasattr(model, name):
            cfg = replace(getattr(model, name), text=cfg)
    write_weights(hf_state_dict(model), folder, max_shard_bytes=max_shard_bytes)
    write_config(cfg, folder, stop_ids=tokenizer.stop_ids if tokenizer else ())
    if tokenizer is not None:
        tokenizer.save(folder)


def hf_state_dict(model: Llama3Model) -> dict[str, Tensor]:
    """The model's weights under Hugging Face's names, with a merged adapter in them.

    Raises CheckpointError where an adapter is not merged, since the file would lack it.
    """
    if any(m.active and not m.merged for m in lora_modules(model).values()):
        raise CheckpointError("the model has an adapter that is not merged: merge_lora(model) puts it into the "
                              "weights, save_adapter(model, folder) saves it alone")
    name_on_disk = hf_name if isinstance(model, MllamaModel) else _llama_name
    return {
        name_on_disk(name): tensor.detach()
        for name, tensor in plain_state_dict(model).items()
        if not (model.cfg.tie_embeddings and name == "lm_head.weight")
    }


def _llama_name(ours: str) -> str:
    return ours if ours == "lm_head.weight" else f"model.{ours}"


def write_config(cfg: TextConfig | MllamaConfig, folder: Path, *, stop_ids=()) -> None:
    """config.json and generation_config.json; `stop_ids` end an answer."""
    stop = {"eos_token_id": sorted(stop_ids)} if stop_ids else {}
    _write_json(folder / "config.json", {**cfg.to_hf(), **stop})
    _write_json(folder / "generation_config.json", stop)


def write_weights(tensors: Mapping[str, Tensor], folder: Path, *, max_shard_bytes: int = 5_000_000_000) -> None:
    """One safetensors file, or shards and an index where the tensors take more than max_shard_bytes together."""
    shards: list[dict[str, Tensor]] = [{}]
    room = max_shard_bytes
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = max_shard_bytes
        shards[-1][name] = tensor.contiguous()
        room -= tensor.nbytes
    metadata = {"format": "pt"}  # transformers refuses files that do not say so
    if len(shards) == 1:
        save_file(shards[0], folder / SINGLE_FILE, metadata=metadata)
        return
    weight_map = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata=metadata)
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def refuse_foreign_files(folder: Path) -> None:
    """Raises CheckpointError where a folder that is about to be replaced holds files that are not a model's."""
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give the name of a folder")
    if not folder.is_dir():
        return
    known = {f for pattern in _OURS for f in folder.glob(pattern)}
    foreign = sorted(f.name for f in folder.iterdir() if f not in known)
    if foreign:
        raise CheckpointError(
            f"{folder} holds files that are not a model's, such as {foreign[0]}, which saving would remove; "
            f"choose a new folder"
        )


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
