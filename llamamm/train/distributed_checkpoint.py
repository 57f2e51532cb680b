"""Checkpoints of a sharded model: every process writes what it holds, and any number of processes reads it again.

    last/   shard-00001-model-00001-of-00001.safetensors, shard-00002-..., one for each process that holds something
                parameter.layers.0....weight    of what is trained
                exp_avg.…, exp_avg_sq.…, step.…  AdamW's state of it
            training.json

The work is PyTorch's own distributed checkpoint (DCP): it notes in each file's header where a part belongs in the
whole, and on reading gives each process the pieces it asks for, so two processes may go on from what four wrote. All
processes need the same file system. Source: torch.distributed.checkpoint.hf_storage. Built in notebook 19.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

from llamamm.errors import CheckpointError
from llamamm.files import replace_folder
from llamamm.lora.adapter_files import active_adapter
from llamamm.lora.lora import adapter_names, lora_modules, set_adapter, wrap_linear
from llamamm.multimodal.model import MultimodalLlama
from llamamm.text.model import Llama3Model
from llamamm.train.processes import Processes


@contextmanager
def replace_folder_together(folder: Path, processes: Processes) -> Iterator[Path]:
    """`replace_folder` for all processes: each may write into the new folder, which the main one makes and renames.

    A failure in one leaves the old folder and stops all, with TrainingError where nothing failed.
    """
    with ExitStack() as stack:
        new = ""
        with processes.together():
            if processes.is_main:
                new = str(stack.enter_context(replace_folder(folder)))
        new = processes.from_main(new)
        with processes.together():
            yield Path(new)
        with processes.together():
            stack.close()


# ---- parts ----

def has_shards(folder: Path) -> bool:
    """Whether a checkpoint was written in parts."""
    return any(folder.glob("shard-*.safetensors"))


def save_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write each process's part of the tensors. All processes must call it. Raises OSError in all if one cannot."""
    try:
        dcp.save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:  # a BaseException, which `except Exception` would let through
        raise OSError(_first_failure(error)) from error


def shard_names(folder: Path) -> set[str]:
    """Names of all tensors in the parts. Raises CheckpointError."""
    return set(_sizes(folder))


def load_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill tensors, plain or sharded, from the parts, in place. All processes must call it.

    Raises CheckpointError where the parts do not hold every element of every tensor: DCP would leave those as they are.
    """
    sizes = _sizes(folder)
    for name, tensor in tensors.items():
        size, elements = sizes.get(name, (None, 0))
        if size != tensor.shape or elements != tensor.numel():
            found = f"{elements} elements of shape {tuple(size)}" if size is not None else "nothing"
            raise CheckpointError(f"{folder} holds {found} for {name}, which has {tensor.numel()} of shape "
                                  f"{tuple(tensor.shape)}: a shard is missing, or it is of another model")
    try:
        with warnings.catch_warnings():  # that a process without others reads alone
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            alone = not dist.is_initialized()
            dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
    except CheckpointException as error:
        raise CheckpointError(f"{folder} cannot be read: {_first_failure(error)}") from error


def like_parameter(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor as this process holds its parameter: on its device, and of a sharded one its part."""
    tensor = tensor.to(parameter.device)
    if not isinstance(parameter, DTensor) or tensor.dim() == 0:
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _sizes(folder: Path) -> dict[str, tuple[torch.Size, int]]:
    """For each tensor the size of the whole, and how many of its elements the parts hold together."""
    try:
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} has a shard that cannot be read ({error}); copy the folder again") from None
    return {name: (m.size, sum(chunk.sizes.numel() for chunk in m.chunks)) for name, m in found.items()}


def _first_failure(error: CheckpointException) -> str:
    rank, (cause, _) = next(iter(error.failures.items()))
    return f"process {rank}: {cause}"


# ---- the whole ----

def whole_model(model: nn.Module) -> Llama3Model | None:
    """A plain copy of a sharded model in the main process, in CPU memory; None in the others. All must call it."""
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not weights:
        return None
    with torch.device("meta"):  # shapes alone: neither memory nor random numbers are used
        sees = isinstance(model, MultimodalLlama)
        plain = MultimodalLlama(model.multimodal_cfg) if sees else Llama3Model(model.cfg)
        for path, module in lora_modules(model).items():
            for name, settings in module.settings.items():
                wrap_linear(plain, path).add(name, settings)
    if adapter_names(plain):
        set_adapter(plain, active_adapter(model))
    plain.load_state_dict(weights, assign=True)
    if model.lm_head.weight is model.embed_tokens.weight:  # a tied head was assigned a matrix of its own
        head = lora_modules(plain).get("lm_head")
        (head.base if head else plain.lm_head).weight = plain.embed_tokens.weight
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in plain.named_parameters():  # what a folder holds depends on it
        parameter.requires_grad_(name in trains)
    return plain
