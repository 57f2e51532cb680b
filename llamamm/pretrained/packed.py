"""Quantized models in folders: whole numbers and scales in place of weights, and a config.json that says so.

    layers.0.mlp.up_proj.codes    (N, C) int8, or (N, C/2) uint8: two columns in a byte, the first in the lower
                                  half, each plus 8
    layers.0.mlp.up_proj.scales   (N, C/group) fp16
    config.json                   "quantization_config": {"quant_method": "llamamm", "bits": 4, "group_size": 32}

Codes lie row by row, as any reader expects them; the 64 rows side by side of `fast.quantized` are for the kernels, and
made while loading, a linear at a time: the weights in fp32 are never there. A linear is quantized where the file has
codes of it; what else the file holds is read as ever. Used in notebook 19.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from llamamm.errors import CheckpointError, ConfigError
from llamamm.fast.quantized import GROUPS, QuantizedLinear, quantized_linears
from llamamm.text.layers import Linear
from llamamm.weights.loading import fill
from llamamm.weights.tensors import TensorRef
from llamamm.wiring import put_module

M = TypeVar("M", bound=nn.Module)

KEY, METHOD = "quantization_config", "llamamm"
NAMES = ("codes", "scales")


@dataclass(frozen=True)
class Packed:
    """The quantized linears of a file: their tensors by path and name, still unread; bits and group, None without
    any."""

    bits: int | None = None
    group: int | None = None
    linears: Mapping[str, Mapping[str, TensorRef]] = field(default_factory=dict)

    def build(
        self, make: Callable[[], M], rest: Mapping[str, TensorRef], *, dtype: torch.dtype | None,
        device: torch.device | str, on_progress: Callable[[int], None] | None = None,
    ) -> M:  # fmt: skip
        """As `weights.loading.fill`, with these linears; rest: all other tensors. Raises CheckpointError."""
        model = fill(lambda: self._without_weights(make()), rest, dtype=dtype, device=device, on_progress=on_progress)
        for path, refs in self.linears.items():
            shape = model.get_submodule(path)
            linear = QuantizedLinear(shape.in_features, shape.out_features, bits=self.bits, group=self.group)
            linear.put(*(refs[name].read() for name in NAMES))
            put_module(model, path, linear.to(device))
            if on_progress is not None:
                on_progress(sum(buffer.nbytes for buffer in linear.buffers()))
        return model

    def _without_weights(self, model: M) -> M:
        """On the meta device: linears of the right shapes, checked against the file's before anything is read."""
        wrong = []
        for path, refs in self.linears.items():
            linear = dict(model.named_modules()).get(path)
            if type(linear) is not Linear:
                raise CheckpointError(f"the checkpoint has {path}.codes, and the model no linear {path} that could be "
                                      f"quantized: the two do not belong together")
            new = QuantizedLinear(linear.in_features, linear.out_features, bits=self.bits, group=self.group)
            put_module(model, path, new)
            for name, expected in zip(NAMES, new.rows(), strict=True):
                found = refs[name].dtype, refs[name].shape
                if found != (expected.dtype, tuple(expected.shape)):
                    wrong.append(f"{path}.{name} is {_told(*found)}, {self.bits} bits in groups of {self.group} need "
                                 f"{_told(expected.dtype, tuple(expected.shape))}")
        if wrong:
            more = f"; and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise CheckpointError(f"the checkpoint is not as its config.json says: {wrong[0]}{more}")
        return model


def split_packed(data: Mapping[str, Any], refs: Mapping[str, TensorRef]) -> tuple[Packed, dict[str, TensorRef]]:
    """What a config.json's content and a file's tensors, under our names, say is quantized; and the other tensors.

    Raises ConfigError for a quantization that is another's or odd, CheckpointError where file and configuration differ.
    """
    said = _read(data)
    linears: dict[str, dict[str, TensorRef]] = {}
    rest = {}
    for name, ref in refs.items():
        path, _, kind = name.rpartition(".")
        if kind in NAMES:
            linears.setdefault(path, {})[kind] = ref
        else:
            rest[name] = ref
    if said is None and not linears:
        return Packed(), rest
    if said is None:
        raise CheckpointError(f"the checkpoint has {next(iter(linears))}.codes, and config.json no {KEY} that says how "
                              f"to read them; get the folder again")
    if not linears:
        raise CheckpointError(f"config.json has {KEY}, and the checkpoint no codes; get the folder again")
    for path, found in linears.items():
        if lacking := [name for name in NAMES if name not in found]:
            raise CheckpointError(f"the checkpoint lacks {path}.{lacking[0]}; get it again")
        if f"{path}.weight" in rest:
            raise CheckpointError(f"the checkpoint holds {path} twice, as codes and as a weight; get it again")
    return Packed(*said, linears), rest


def is_packed(data: Mapping[str, Any]) -> bool:
    """Whether a config.json's content says that weights are quantized in this package's form."""
    said = data.get(KEY)
    return isinstance(said, Mapping) and said.get("quant_method") == METHOD


def _read(data: Mapping[str, Any]) -> tuple[int, int] | None:
    """bits and group, or None where a config.json's content speaks of no quantization."""
    said = data.get(KEY)
    if not said:
        return None
    if not isinstance(said, Mapping):
        raise ConfigError(f"config.json has {KEY}={said!r}; it is a table with quant_method, bits and group_size")
    if said.get("quant_method") != METHOD:
        raise ConfigError(f"config.json has {KEY} ({said.get('quant_method', 'unnamed')}): its weights are packed in a "
                          f"form which this package does not read; use the model in bf16, or a GGUF file of it")
    if unknown := sorted(set(said) - {"quant_method", "bits", "group_size"}):
        raise ConfigError(f"{KEY} in config.json has {unknown[0]}={said[unknown[0]]!r}, which this version of the "
                          f"package does not know; a newer one has written it")
    bits, group = said.get("bits"), said.get("group_size")
    if type(bits) is not int or bits not in (8, 4) or type(group) is not int or group not in GROUPS:
        raise ConfigError(f"{KEY} in config.json has bits={bits!r} and group_size={group!r}; there are 8 and 4 bits in "
                          f"groups of {', '.join(map(str, GROUPS))}")
    return bits, group


def packed_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Codes and scales of a model's quantized linears, as files hold them, under our names."""
    return {f"{path}.{name}": tensor for path, linear in quantized_linears(model).items()
            for name, tensor in zip(NAMES, linear.rows(), strict=True)}


def quantization_config(model: nn.Module) -> dict[str, Any]:
    """What a config.json says of a model's quantized linears; nothing where it has none. Raises CheckpointError where
    they are not alike."""
    forms = {(linear.bits, linear.group) for linear in quantized_linears(model).values()}
    if len(forms) > 1:
        raise CheckpointError(f"the model's linears have different bits or groups, {sorted(forms)}; a folder holds one "
                              f"form: quantize all of them alike")
    if not forms:
        return {}
    bits, group = forms.pop()
    return {KEY: {"quant_method": METHOD, "bits": bits, "group_size": group}}


def _told(dtype: torch.dtype, shape: tuple[int, ...]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {shape}"
