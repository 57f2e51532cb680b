"""Each process reads its own part of a checkpoint, and no process ever holds the whole.

    shapes on "meta" -> matrices split over processes, still without memory -> this process's part of each is read

A part of a safetensors file is read alone; of other formats a tensor is read whole and cut, one at a time. Which part
is whose is PyTorch's rule: n rows over w processes are ceil(n / w) each, and the last may have fewer, or none.
Source: torch.distributed.tensor, `Shard`. Used in notebook 19.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from llamamm.text.config import TextConfig
from llamamm.text.model import Llama3Model
from llamamm.weights.checkpoint import InFile
from llamamm.weights.loading import has_own_head, match, only_dtype
from llamamm.weights.names import to_our_names
from llamamm.weights.tensors import TensorRef


def own_range(size: int, rank: int, n_processes: int) -> slice:
    """What of `size` rows, or columns, belongs to one process."""
    share = -(-size // n_processes)
    return slice(min(rank * share, size), min((rank + 1) * share, size))


def read_part(ref: TensorRef, where: tuple[slice, ...]) -> Tensor:
    """`ref.read()[where]`, a fresh tensor, without reading the rest where the format allows it."""
    if isinstance(ref.read, InFile):
        return ref.read.part(where)
    return ref.read()[where].clone()


def build_unread(
    cfg: TextConfig, refs: Mapping[str, TensorRef], *, dtype: torch.dtype | None = None
) -> tuple[Llama3Model, Mapping[str, TensorRef]]:
    """As `build_from_refs`, without the numbers: a model on "meta", and what `fill_parts` is to read into it."""
    named = to_our_names(refs, cfg)
    cfg = cfg.replace(dtype=dtype or only_dtype(named), tie_embeddings=cfg.tie_embeddings and not has_own_head(named))
    with torch.device("meta"):  # shapes without memory
        model = Llama3Model(cfg)
    return model, match(named, model)


def fill_parts(
    model: nn.Module, named: Mapping[str, TensorRef], *, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Read the numbers of every parameter that has none yet (it is on "meta"): of a split one, this process's part.

    named: tensors under the names that the module has without wrappers of LoRA. dtype: what to cast to.
    Parameters of one matrix, such as a tied head, stay one.
    """
    read: dict[Tensor, nn.Parameter] = {}
    for module_name, module in model.named_modules():
        for attribute, parameter in list(module._parameters.items()):
            if parameter is None or not parameter.is_meta:
                continue
            if parameter not in read:
                name = f"{module_name}.{attribute}".lstrip(".").replace(".base.", ".")
                read[parameter] = _read(parameter, named[name], dtype, device)
            module._parameters[attribute] = read[parameter]


def _read(
    parameter: nn.Parameter, ref: TensorRef, dtype: torch.dtype, device: torch.device | str
) -> nn.Parameter:
    if not isinstance(parameter, DTensor):
        return nn.Parameter(ref.read().to(device, dtype), parameter.requires_grad)
    mesh, [placement] = parameter.device_mesh, parameter.placements
    where = [slice(0, size) for size in ref.shape]
    if isinstance(placement, Shard):
        where[placement.dim] = own_range(ref.shape[placement.dim], mesh.get_local_rank(), mesh.size())
    local = read_part(ref, tuple(where)).to(device, dtype)
    whole = DTensor.from_local(local, mesh, [placement], run_check=False, shape=parameter.shape,
                               stride=parameter.stride())  # fmt: skip
    return nn.Parameter(whole, parameter.requires_grad)
