"""What this machine has, and whether a checkpoint is sound: the first thing to look at when something is wrong."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch
from huggingface_hub import constants, get_token

from llamamm.devices import cpu_flags, cpu_has_bf16_units, default_dtype, pick_device
from llamamm.errors import CheckpointError, counted
from llamamm.fast.decoder import LEAST_WEIGHTS, is_available
from llamamm.files import cache_root
from llamamm.weights.checkpoint import open_checkpoint
from llamamm.weights.gguf import GGUFFile

_PACKAGES = ("llamamm", "torch", "torchvision", "safetensors", "tiktoken", "huggingface_hub", "gguf", "transformers")


def examine_machine() -> Iterator[tuple[str, str]]:
    """Rows (what, value): versions, devices, memory, cache, token present or not, offline state."""
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in _PACKAGES:
        yield package, _version(package)
    yield "cpu", f"{psutil.cpu_count(logical=False) or '?'} cores, torch uses {torch.get_num_threads()} threads"
    yield "16-bit matrix units", _describe_bf16()
    yield "cuda", _describe_cuda()
    yield "compiled decoding", _describe_compiled(pick_device())
    yield "mps (Apple)", "yes" if torch.backends.mps.is_available() else "no"
    device = pick_device()
    yield "default", f"{device}, {str(default_dtype(device)).removeprefix('torch.')}"
    memory = psutil.virtual_memory()
    yield "memory", f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f} GB"
    root = cache_root()
    yield "asset cache", f"{root} ({_folder_size(root) / 1e6:.0f} MB)"
    hub_cache = Path(constants.HF_HUB_CACHE)
    yield "hub cache", f"{hub_cache} ({'exists' if hub_cache.exists() else 'empty'})"
    yield "hub token", "present" if get_token() else "none (needed for gated models: set HF_TOKEN)"
    yield "hub", "offline (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else "online"


@dataclass
class CheckpointReport:
    """What `examine_checkpoint` found. `damaged` names each tensor with NaN or inf, and how many."""

    path: Path
    n_tensors: int = 0
    n_parameters: int = 0
    n_bytes: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        return not self.damaged

    def text(self) -> str:
        dtypes = ", ".join(f"{n} {dtype}" for dtype, n in sorted(self.dtypes.items()))
        lines = [
            f"{self.path}: {counted(self.n_tensors, 'tensor')} ({dtypes}), {self.n_parameters:,} parameters, "
            f"{self.n_bytes / 1e6:.1f} MB",
            *self.damaged,
            "whole, and every number is finite" if self.healthy else f"damaged: {counted(len(self.damaged), 'tensor')}",
        ]
        return "\n".join(lines)


def examine_checkpoint(path: str | Path) -> CheckpointReport:
    """Check a file or folder's structure, then every number in it. Raises CheckpointError for a broken structure."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    refs = GGUFFile(path).refs if path.suffix == ".gguf" else open_checkpoint(path)
    report = CheckpointReport(path)
    for name, ref in sorted(refs.items()):
        tensor = ref.read()
        dtype = str(ref.dtype).removeprefix("torch.")
        report.n_tensors += 1
        report.n_parameters += _n_weights(name, tensor, refs)
        report.n_bytes += tensor.nbytes
        report.dtypes[dtype] = report.dtypes.get(dtype, 0) + 1
        if tensor.is_floating_point():
            n_nan, n_inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
            if n_nan or n_inf:
                report.damaged.append(f"  {name} {tuple(tensor.shape)}: {n_nan} NaN, {n_inf} inf")
    return report


def _n_weights(name: str, tensor: torch.Tensor, names: Collection[str]) -> int:
    """How many weights a tensor holds: codes of 4 bits two in a byte, and their scales none of their own."""
    path, _, kind = name.rpartition(".")
    if f"{path}.codes" not in names or kind not in ("codes", "scales"):
        return tensor.numel()
    return 0 if kind == "scales" else tensor.numel() * (2 if tensor.dtype == torch.uint8 else 1)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _describe_bf16() -> str:
    if cpu_has_bf16_units():
        return "yes: bf16 is the default on this CPU"
    if "avx512_bf16" in cpu_flags():
        return "no, a dot product only: fp32 is the default; bf16 reads prompts faster and writes answers slower"
    return "no: fp32 is the default; prompts in bf16 read several times slower"


def _describe_compiled(device: torch.device) -> str:
    if not is_available():
        return "no: it needs numba (pip install 'llamamm[fast]')"
    try:
        import numba  # noqa: F401 (found is not loaded: it may be older than NumPy is)
    except Exception as error:
        return f"no: numba {version('numba')} does not load, {' '.join(str(error).split())}"
    if device.type != "cpu":
        return f"not on {device}; with --device cpu it is the default"
    return f"yes, with numba {version('numba')}: the default from {LEAST_WEIGHTS / 1e6:.0f} million weights on"


def _describe_cuda() -> str:
    if not torch.cuda.is_available():
        return "no"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    free, total = torch.cuda.mem_get_info()
    return f"{', '.join(names)}; {free / 1e9:.1f} GB free of {total / 1e9:.1f} GB"


def _folder_size(folder: Path) -> int:
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            path = Path(parent, name)
            total += path.stat().st_size if path.exists() else 0
    return total
