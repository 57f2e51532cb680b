"""Files of a model on disk: weights in safetensors, config.json. Built in notebook 07."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from llamamm.errors import CheckpointError
from llamamm.weights.checkpoint import INDEX_FILE, SINGLE_FILE

_OURS = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model")


def write_config(content: Mapping[str, Any], folder: Path, *, stop_ids: Iterable[int] = ()) -> None:
    """config.json, such as cfg.to_hf() gives it, and generation_config.json; `stop_ids` end an answer."""
    stop = {"eos_token_id": sorted(stop_ids)} if stop_ids else {}
    _write_json(folder / "config.json", {**content, **stop})
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
    for place in (folder, *folder.parents):
        if place.is_file():
            raise CheckpointError(f"{place} is a file; give the name of a folder")
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
