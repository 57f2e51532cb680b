"""Where a model's weights are, for the kernels; and what has to stay as it is for that to be true.

Used in notebook 19.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Collection
from contextlib import suppress
from itertools import repeat
from operator import contains, is_not
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as registry
from torch.utils.hooks import RemovableHandle

from llamamm.errors import MissingDependencyError
from llamamm.fast.quantized import NarrowLinear, QuantizedLinear
from llamamm.files import cache_root, in_notebook
from llamamm.lora.lora import LoraLinear
from llamamm.text.attention import GroupedQueryAttention, fused_attention
from llamamm.text.layers import FeedForward, Linear, RMSNorm
from llamamm.text.model import TransformerBlock

if TYPE_CHECKING:
    from llamamm.text.model import Llama3Model

NAMES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
         "mlp.up_proj", "mlp.down_proj")  # fmt: skip
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # kernels' F32, F16, BF16; numba is not loaded yet
_COMPILED: list[Any] = []
_COUNTED: list[int] = []


def load_kernels() -> Any:
    """The kernels, loaded when the first step is taken; the very first time they are compiled, with a word.

    numba keeps what it compiled as long as the one file stays as it is, and would not see a change in those that it
    imports: a folder for each state of them all does. Raises MissingDependencyError where numba is damaged.
    """
    if not _COMPILED:
        try:
            import numba
        except Exception as error:  # such as for a NumPy newer than it knows
            raise MissingDependencyError(f"numba is installed and does not load, {' '.join(str(error).split())}; mend "
                                         f"it with pip install -U numba, or decode by PyTorch: --no-fast, fast=False"
                                         ) from None  # fmt: skip
        folder, before = _compiled_folder(), numba.config.CACHE_DIR
        if not in_notebook() and not any(folder.rglob("kernels.run_*.nbc")):
            kept = folder.is_relative_to(cache_root())
            often = "once" if kept else f"each time, since {cache_root()} cannot be written (LLAMAMM_CACHE)"
            print(f"(compiling the decoder for this machine: half a minute, {often})", file=sys.stderr, flush=True)
        numba.config.CACHE_DIR = str(folder)
        try:
            from llamamm.fast import kernels
        finally:
            numba.config.CACHE_DIR = before
        _COMPILED.append(kernels)
    return _COMPILED[0]


def _compiled_folder() -> Path:
    """One that can be written to, for the sources as they are: where there is none to keep, one of this process."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    state = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    folder = cache_root() / "compiled" / state
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="llamamm-"))


def registrations() -> tuple[int, int]:
    """How many modules, parameters and buffers have been put into a module, since the first call, and how many hooks,
    anywhere in this process: PyTorch tells of each."""
    if not _COUNTED:
        _COUNTED.append(0)

        def count(_module: nn.Module, _name: str, _value: object) -> None:
            _COUNTED[0] += 1

        for register in (registry.register_module_module_registration_hook,
                         registry.register_module_parameter_registration_hook,
                         registry.register_module_buffer_registration_hook):  # fmt: skip
            register(count)
    return _COUNTED[0], RemovableHandle.next_id


class Plan:
    """Where a model's weights are, and what must stay as it is for that to be true."""

    def __init__(self, model: Llama3Model, skipped: Collection[int]) -> None:
        kernels = load_kernels()
        cfg, L = model.cfg, len(model.layers)
        self.model, self.skipped = model, frozenset(skipped)
        self.table = np.zeros((L, kernels.N_LINEARS, kernels.N_FIELDS), np.int64)
        self.lora_scales = np.zeros((L, kernels.N_LINEARS), np.float32)
        self.norms = np.zeros((L, 3), np.int64)
        self.head = np.zeros(kernels.N_FIELDS, np.int64)
        self.eps = np.float32(cfg.norm_eps)
        self._parts, self._attributes = Values(), Values()  # modules and tensors in them; what else they are told by
        self._tensors: list[Tensor] = []  # each is at an address
        self._addresses: list[int] = []
        self.storages: list[torch.UntypedStorage] = []  # held, so that no address becomes somebody else's
        self._turns: tuple = None, None  # the model's cos and sin, and the same for NumPy
        self.steps = 0
        self._empty: list[dict] = []  # hooks
        self._plain: list[dict] = []  # a module's own attributes, among which is no forward
        dtypes = set()
        for n, layer in enumerate(model.layers):
            self._watch(model.layers, str(n), layer)
            if n in self.skipped:
                continue
            self._require(type(layer) is TransformerBlock and type(layer.self_attn) is GroupedQueryAttention
                          and type(layer.mlp) is FeedForward)  # fmt: skip
            self.norms[n, 2] = layer.self_attn.layer
            self._attributes.add(layer.self_attn.__dict__, "layer")
            attend = layer.self_attn.attend
            self._attributes.add(layer.self_attn.__dict__, "attend")
            self._require(getattr(attend, "args", (attend,))[0] is fused_attention)
            for name, part in (("self_attn", layer.self_attn), ("mlp", layer.mlp)):
                self._watch(layer, name, part)
            for k, name in enumerate(("input_layernorm", "post_attention_layernorm")):
                norm = getattr(layer, name)
                self._watch(layer, name, norm)
                self._require(type(norm) is RMSNorm and norm.eps == cfg.norm_eps)
                self.norms[n, k] = self._address(norm, "weight")
                self._require(norm.weight.dtype in KINDS)
                dtypes.add(norm.weight.dtype)
            for m, path in enumerate(NAMES):
                owner, name = path.split(".")
                self.lora_scales[n, m] = self._linear(getattr(layer, owner), name, self.table[n, m])
        self._require(len(dtypes) == 1)
        self.norm_kind = KINDS[dtypes.pop()]
        self._linear(model, "lm_head", self.head)
        self._require(self.head[kernels.RANK] == 0)
        self.ends = self._ends(model)
        self._registered = registrations()
        rank = int(self.table[..., kernels.RANK].max())
        self.sizes = (cfg.hidden_size, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim, cfg.intermediate_size, rank)

    @classmethod
    def of(cls, model: Llama3Model, skipped: Collection[int]) -> Plan | None:
        """None where the model is not what the kernels compute."""
        try:
            return cls(model, skipped)
        except _Unfit:
            return None

    def changed(self, model: Llama3Model, skipped: Collection[int]) -> bool:
        """Whether anything is otherwise: some thousand looks, in C, at objects that the processor has to fetch from
        memory, since a step's weights have driven them out of its caches."""
        return (
            self.altered(model, skipped)
            or self._parts.changed()
            or list(map(Tensor.data_ptr, self._tensors)) != self._addresses
            or any(self._empty)
        )

    def altered(self, model: Llama3Model, skipped: Collection[int]) -> bool:
        """The same of what may be otherwise within a text, at a tenth of the time: a part or a hook that PyTorch was
        given anywhere, an adapter switched, the whole model moved. A single weight that was replaced by hand
        (`weight.data = ...`) is seen at the next text."""
        return (
            model is not self.model
            or self.skipped != frozenset(skipped)
            or self._registered != registrations()
            or self._attributes.changed()
            or any(map(contains, self._plain, repeat("forward")))
            or self._tensors[-1].data_ptr() != self._addresses[-1]
            or self._tensors[0].data_ptr() != self._addresses[0]
        )

    def angles(self) -> tuple[np.ndarray, np.ndarray]:
        """The model's cos and sin as they are now, in fp32, (S, D)."""
        cos, sin = self.model.cos, self.model.sin
        if self._turns[0] is not cos or self._turns[1] is not sin:
            self._turns = cos, sin, cos.float().numpy(), sin.float().numpy()
        return self._turns[2:]

    def head_changed(self, model: Llama3Model) -> bool:
        return model is not self.model or model.lm_head is not self.lm_head

    def _ends(self, model: Llama3Model) -> tuple | None:
        """Embeddings, last norm and head, for a step in one call; None where they are not what the kernels compute."""
        table, norm = model.embed_tokens, model.norm
        try:
            self._require(type(table) is nn.Embedding and table.max_norm is None and type(norm) is RMSNorm)
            self._require(norm.eps == model.cfg.norm_eps and table.weight.dtype in KINDS and norm.weight.dtype in KINDS)
            self._watch(model, "embed_tokens", table)
            self._watch(model, "norm", norm)
            places = [(self._address(part, "weight"), KINDS[part.weight.dtype]) for part in (table, norm)]
        except _Unfit:
            return None
        return *places[0], *places[1], self.head

    def _linear(self, owner: nn.Module, name: str, fields: np.ndarray) -> float:
        """Fill one row of the table. -> the scale of the adapter beside it, 0 without one."""
        kernels, linear, scale = load_kernels(), getattr(owner, name), 0.0
        self._watch(owner, name, linear)
        if name == "lm_head":
            self.lm_head = linear
        if type(linear) is LoraLinear:
            for key in ("active", "enabled"):
                self._attributes.add(linear.__dict__, key)
            if linear.enabled and not linear.merged:
                a, b = linear.lora_a[linear.active], linear.lora_b[linear.active]
                settings = linear.settings[linear.active]
                self._require(not settings.dora and a.dtype == b.dtype == torch.float32)
                self._require(a.is_contiguous() and b.is_contiguous())
                fields[[kernels.LORA_A, kernels.LORA_B, kernels.RANK]] = a.data_ptr(), b.data_ptr(), len(a)
                self._is_at(a)
                self._is_at(b)
                scale = settings.scale
            self._watch(linear, "base", linear.base)
            linear = linear.base
        fields[[kernels.N_OUT, kernels.N_IN]] = linear.out_features, linear.in_features
        if type(linear) is QuantizedLinear:
            kind = kernels.INT8 if linear.bits == 8 else kernels.INT4
            fields[[kernels.WEIGHT, kernels.SCALES]] = self._address(linear, "codes"), self._address(linear, "scales")
            fields[[kernels.KIND, kernels.GROUP]] = kind, linear.group
            return scale
        self._require(type(linear) in (Linear, NarrowLinear) and linear.weight.dtype in KINDS)
        fields[[kernels.WEIGHT, kernels.KIND]] = self._address(linear, "weight"), KINDS[linear.weight.dtype]
        return scale

    def _watch(self, owner: nn.Module, name: str, module: nn.Module) -> None:
        self._require(module is owner._modules.get(name) and "forward" not in module.__dict__)
        self._require(not module._forward_hooks and not module._forward_pre_hooks)
        self._parts.add(owner._modules, name)
        self._empty += [module._forward_hooks, module._forward_pre_hooks]
        self._plain.append(module.__dict__)

    def _address(self, module: nn.Module, name: str) -> int:
        holder = module._parameters if name in module._parameters else module._buffers
        tensor = holder.get(name)
        self._require(tensor is not None and tensor.device.type == "cpu" and tensor.is_contiguous())
        self._parts.add(holder, name)
        return self._is_at(tensor)

    def _is_at(self, tensor: Tensor) -> int:
        self._tensors.append(tensor)
        self.storages.append(tensor.untyped_storage())
        self._addresses.append(tensor.data_ptr())
        return self._addresses[-1]

    @staticmethod
    def _require(condition: bool) -> None:
        if not condition:
            raise _Unfit


class Values:
    """Of dicts, each with a name, what they have there now; and whether it is still that."""

    def __init__(self) -> None:
        self._holders: list[dict] = []
        self._names: list[str] = []
        self._values: list[object] = []

    def add(self, holder: dict, name: str) -> None:
        self._holders.append(holder)
        self._names.append(name)
        self._values.append(holder[name])

    def changed(self) -> bool:
        return any(map(is_not, map(dict.get, self._holders, self._names), self._values))


class _Unfit(Exception):
    """Not what the kernels compute."""


class Room:
    """What is written between two products, for a number of rows and tokens."""

    def __init__(self, wanted: tuple[int, int, int, tuple[int, ...]]) -> None:
        self.wanted = wanted
        self.n_workers, self.n_rows = wanted[:2]
        kernels = load_kernels()
        W, B, length, (C, H, K, D, F, rank) = wanted
        chunk, widest = kernels.chunk_of(length, W), max(C, F, H * D)
        chunks = min(length // kernels.chunk_of(0, W) + 1, 4 * W)
        shared = (B, (H + 2 * K) * D), (B, chunks, H, 2), (B, chunks, H, D), (B, F), (B, F), (B, C)
        private = ((W, B, C), (W, B, C), (W, 7, B, max(rank, 1)), (W, H // K, D), (W, D), (W, H // K, chunk),
                   (W, B, H * D))  # fmt: skip
        self.shared = tuple(np.empty(shape, np.float32) for shape in shared)
        self.private = tuple(np.empty(shape, np.float32) for shape in private)
        self.angles = np.empty((B, D), np.float32), np.empty((B, D), np.float32)
        units = (W, B, widest // kernels.UNIT)
        self.whole = (np.empty((*units, 2, kernels.UNIT), np.int8), np.empty(units, np.float32),
                      np.empty(units, np.int32), np.empty((W, 2 * kernels.TILE), np.float32))  # fmt: skip

    def turn(self, angles: tuple[np.ndarray, np.ndarray], at: int | np.ndarray) -> None:
        """Note the angles of a position, or of one for each row (B,)."""
        for own, of_all in zip(self.angles, angles, strict=True):
            own[:] = of_all[at]
