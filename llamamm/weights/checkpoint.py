"""Safetensors files and folders: a JSON header that says where each tensor's bytes are, then the bytes.

    8 bytes        length of the header, little-endian
    header         {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
    data           the tensors, one after another, without a gap

The header is checked against the file before anything is allocated: a download that broke off, a header that lies about
its size and a name that stands twice are all found here. The numbers themselves are read by the safetensors library,
through a memory map, one tensor at a time. Pickle files (`.bin`, `.pth`) are refused, since opening one runs code.

Source: the format's description at huggingface.co/docs/safetensors. Built in notebook 07.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from llamamm.errors import CheckpointError
from llamamm.weights.tensors import TensorRef

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000  # the library's own limit

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def open_checkpoint(path: str | Path) -> dict[str, TensorRef]:
    """All tensors of a `.safetensors` file, or of a folder with one or with shards and an index.

    Where a folder has both, model.safetensors counts, as in transformers: the index is of an older save.
    Raises CheckpointError for anything damaged, missing or unsafe, naming the file.
    """
    path = Path(path)
    if path.is_file():
        return _open_file(path)
    if path.suffix == ".safetensors" and not path.exists():
        raise CheckpointError(f"{path} is not there: the folder is not whole; get it again")
    if (path / SINGLE_FILE).is_file():
        return _open_file(path / SINGLE_FILE)
    if (path / INDEX_FILE).is_file():
        return _open_shards(path, path / INDEX_FILE)
    single = sorted(path.glob("*.safetensors"))
    if len(single) == 1:
        return _open_file(single[0])
    if single:
        raise CheckpointError(f"{path} holds {len(single)} safetensors files and no {INDEX_FILE} that orders them")
    pickles = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth", "*.index.json") for f in path.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{path} holds only pickle weights ({pickles[0]}), which can run code when opened, and are refused; "
            f"get the safetensors version"
        )
    raise CheckpointError(f"{path} holds no {SINGLE_FILE} and no {INDEX_FILE}; is it a model folder?")


def read_header(path: str | Path) -> dict[str, dict[str, Any]]:
    """The header of a safetensors file, checked against the file's size: {name: {dtype, shape, data_offsets}}.

    Raises CheckpointError before anything of the claimed size is allocated.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as f:
        start = f.read(8)
        if len(start) < 8:
            raise CheckpointError(f"{path} is {size} bytes long, no safetensors file; download it again")
        header_size = int.from_bytes(start, "little")
        if header_size > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"{path} claims a header of {header_size} bytes, but is {size} bytes long: it is cut short or no "
                f"safetensors file; download it again"
            )
        raw = f.read(header_size)
    try:
        header = json.loads(raw, object_pairs_hook=_no_duplicates)
    except _DuplicateKey as error:
        raise CheckpointError(f"{path} names {error} twice in its header: damaged or tampered with") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise CheckpointError(f"{path} has a header that is not JSON; download it again") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} has a header that is no table of tensors; download it again")
    header.pop("__metadata__", None)
    _check_layout(path, header, size - 8 - header_size)
    return header


def _open_file(path: Path) -> dict[str, TensorRef]:
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        raise CheckpointError(f"{path} is a pickle file, which can run code when opened: refused; use safetensors")
    header = read_header(path)
    refs = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(f"{path}: {name} has dtype {entry['dtype']}; known are {', '.join(DTYPES)}")
        refs[name] = TensorRef(name, tuple(entry["shape"]), DTYPES[entry["dtype"]], InFile(path, name))
    return refs


@dataclass(frozen=True)
class InFile:
    """Reads one tensor of a file, or a part of it: what a `TensorRef` calls."""

    path: Path
    name: str

    def __call__(self) -> Tensor:
        # The file is opened anew for each tensor: closing it gives the mapped pages back, so that memory holds one
        # tensor twice at most, never the whole file. The clone outlives the map.
        with safe_open(self.path, framework="pt") as f:
            return f.get_tensor(self.name).clone()

    def part(self, where: tuple[slice, ...]) -> Tensor:
        """The numbers of `tensor[where]`; the others are not copied."""
        with safe_open(self.path, framework="pt") as f:
            return f.get_slice(self.name)[where].clone()


def _open_shards(folder: Path, index: Path) -> dict[str, TensorRef]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
        files = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index} is not an index of shards; download it again") from None
    for name in files:
        check_shard_name(name, index)
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} of {len(files)} shards ({missing[0]}); download it again")
    refs: dict[str, TensorRef] = {}
    for file in files:
        for name, ref in _open_file(folder / file).items():
            if weight_map.get(name) != file:
                place = f"in {weight_map[name]}" if name in weight_map else "nowhere"
                raise CheckpointError(f"{folder}: {name} stands in {file}, the index has it {place}: the shards are of "
                                      f"two saves; download it again")
            refs[name] = ref
    absent = sorted(set(weight_map) - set(refs))
    if absent:
        raise CheckpointError(f"{folder}: the index promises {absent[0]} in {weight_map[absent[0]]}, which lacks it")
    return refs


def check_shard_name(name: object, index: Path | str) -> None:
    """A shard is a plain `.safetensors` file beside its index: no pickle, no path that leads elsewhere."""
    if not isinstance(name, str) or not name.endswith(".safetensors"):
        raise CheckpointError(f"{index} names {name!r}: only .safetensors shards are read, pickle can run code")
    if Path(name).name != name or "\\" in name or name.startswith("."):
        raise CheckpointError(f"{index} names {name!r}, which leads out of its folder; refused")


def _check_layout(path: Path, header: dict[str, Any], data_size: int) -> None:
    end = 0
    try:
        entries = sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"]))
        for name, entry in entries:
            first, last = entry["data_offsets"]
            if first != end or last < first:
                raise CheckpointError(
                    f"{path}: {name} lies at bytes {first} to {last} where {end} should follow; download it again"
                )
            if entry["dtype"] in DTYPES:
                needed = math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize
                if any(n < 0 for n in entry["shape"]) or last - first != needed:
                    raise CheckpointError(
                        f"{path}: {name} of shape {entry['shape']} and {entry['dtype']} needs {needed} bytes, "
                        f"has {last - first}; download it again"
                    )
            end = last
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} has a header that is no table of tensors; download it again") from None
    if end != data_size:
        raise CheckpointError(f"{path} holds {data_size} bytes of data where {end} were promised; download it again")


class _DuplicateKey(ValueError):
    pass


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKey(next(name for name in names if names.count(name) > 1))
    return table
