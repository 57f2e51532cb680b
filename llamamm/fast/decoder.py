"""A model's decoding steps by compiled kernels: the same numbers, without PyTorch's cost of a call for each product.

    x (B, 1, C), cache -> blocks -> x (B, 1, C)        where a step is one token of up to 8 rows, on a CPU

It stands beside the model and takes a step only where the model is what the kernels compute: blocks of this package's
own parts, unchanged. Whatever else there is, a hook, a swapped module, a gradient, another device, it leaves to
PyTorch. The model's weights are read where they are, at each step. Built in notebook 19.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llamamm.errors import InputError, MissingDependencyError
from llamamm.fast.pages import use_large_pages_beside
from llamamm.fast.plan import KINDS, Plan, Room, load_kernels
from llamamm.fast.quantized import (
    NarrowLinear,
    QuantizedLinear,
    lay_side_by_side,
    narrow,
    quantize,
    quantized_linears,
)
from llamamm.fast.workers import Crew, run_all
from llamamm.lora.lora import LoraLinear
from llamamm.text import attention
from llamamm.text import model as text_model
from llamamm.text.attention import GroupedQueryAttention
from llamamm.text.cache import KVCache
from llamamm.text.layers import FeedForward, Linear, RMSNorm
from llamamm.text.model import TransformerBlock

if TYPE_CHECKING:
    from llamamm.text.model import Llama3Model

Fast = Literal["auto"] | bool

MOST_ROWS = 8
MANY_STEPS = 64  # after as many, a model is worth large pages
LEAST_WEIGHTS = 2**24  # below, loading the kernels takes longer than they save
# What the kernels compute is what these do; a lesson or a test may have put something else in their place.
_PARTS = (TransformerBlock, GroupedQueryAttention, FeedForward, RMSNorm, Linear, LoraLinear, NarrowLinear,
          QuantizedLinear)  # fmt: skip
_FORWARDS = {part: part.forward for part in _PARTS}
_STAGES = ("hidden_states", "scores", "run_blocks")  # of `Llama3Model.forward`
_FUNCTIONS = tuple((owner, name, getattr(owner, name)) for owner, name in (
    (attention, "apply_rope"), (attention, "fused_attention"), (text_model, "build_mask"),
    *((text_model.Llama3Model, name) for name in _STAGES)))  # fmt: skip
_CORES = os.cpu_count() or 1  # asked once: the system reads a file for it
_ONE_AT_A_TIME = threading.Lock()  # workers of two callers would wait for each other's cores


def is_available() -> bool:
    """Whether numba is installed: `pip install 'llamamm[fast]'`."""
    return find_spec("numba") is not None


def equip(model: Llama3Model, *, fast: Fast = "auto", bits: int | None = None) -> Llama3Model:
    """Have a model decode by compiled kernels, with weights of fewer bits if bits says so; returns the model.

    fast: "auto" takes the kernels where they win: on a CPU, with numba installed, for models of 16 million weights and
    more. True insists, and raises MissingDependencyError or InputError where that is not so; False leaves all to
    PyTorch. bits: 8 or 4 rounds the weights (`quantized.quantize`); 16 keeps them as they are, in half the memory
    (`quantized.narrow`). Where kernels decode, keys and values beside rounded weights are kept in fp16.
    """
    require_possible(fast, bits, model.embed_tokens.weight.device)
    whole = sum(linear.in_features * linear.out_features for linear in quantized_linears(model).values())
    large = model.n_parameters() + whole >= LEAST_WEIGHTS  # whole numbers are no parameters
    if bits == 16:
        narrow(model)
    elif bits is not None:
        quantize(model, bits)
    on_cpu = model.embed_tokens.weight.device.type == "cpu"
    wanted = on_cpu and large and is_available() if fast == "auto" else fast
    if wanted and quantized_linears(model):
        lay_side_by_side(model)
        model.cache_dtype = torch.float16
    model.fast = FastDecoder(insists=fast is True) if wanted else None
    return model


def require_possible(fast: Fast, bits: int | None, device: torch.device | str = "cpu") -> None:
    """Refuse before minutes of loading what `equip` cannot do. Raises InputError or MissingDependencyError."""
    if fast not in ("auto", True, False):
        raise InputError(f"fast is 'auto', True or False, got {fast!r}")
    if bits is not None and not (isinstance(bits, int) and bits in (16, 8, 4)):  # 4.0 would be written into a folder
        raise InputError(f"weights are kept in 16 bits, or rounded to 8 or 4, got {bits!r}")
    if fast is True and not is_available():
        raise MissingDependencyError("compiled decoding needs numba: pip install 'llamamm[fast]'")
    if fast is True and torch.device(device).type != "cpu":
        raise InputError(f"compiled decoding is for the CPU, and the model is on {device}; leave fast out")


class FastDecoder:
    """Takes the steps that it can, for one model after another. It holds no weights, and addresses only for as long as
    they are right.

    insists: raise MissingDependencyError where numba is damaged; else that is one line, and PyTorch takes the steps.
    """

    def __init__(self, insists: bool = False) -> None:
        self.insists = insists
        self._loads: bool | None = None
        self._plan: Plan | None = None
        self._crews: dict[tuple[int, int], Crew] = {}  # by workers and rows: more rows take longer
        self._room: Room | None = None
        self._text: tuple[Any, int] = (None, 0)  # the cache that the last step wrote to, weakly, and its length since

    def ready(self) -> bool:
        """Whether the kernels load, which they do now if they have not yet. Raises MissingDependencyError."""
        if self._loads is None:
            try:
                self._loads = bool(load_kernels())
            except MissingDependencyError as error:
                if self.insists:
                    raise
                self._loads = False
                print(f"({error})", file=sys.stderr, flush=True)
        return self._loads

    def run_blocks(
        self, model: Llama3Model, x: Tensor, cache: KVCache | None, padding: Tensor | None,
        before: Callable[[int, Tensor], Tensor] | None, skipped: Collection[int],
    ) -> Tensor | None:  # fmt: skip
        """As `Llama3Model.run_blocks` with one token for each row, x (B, 1, C); None where PyTorch has to do it."""
        if cache is None or not self._takes(model, x) or not _fits(model, cache, len(x)):
            return None
        ready = self._ready(model, cache, padding, len(x), skipped)
        if ready is None:
            return None
        room, kernels = ready.room, load_kernels()
        state = x[:, 0].float().clone().numpy()  # (B, C)

        def run(first: int, last: int) -> None:
            counters = np.zeros(kernels.n_counts(model.cfg.n_layers, room.n_workers), np.int64)
            arguments = ready.for_blocks(first, last, counters)
            run_all(lambda w: kernels.run_blocks(w, room.n_workers, state, *arguments), room.n_workers, counters,
                    kernels.GIVEN_UP)  # fmt: skip

        with _ONE_AT_A_TIME:
            if before is None and not skipped:
                start = time.perf_counter()
                run(0, model.cfg.n_layers)
                self._crew(len(x)).note(time.perf_counter() - start)
            else:
                self._one_by_one(model, x, state, before, skipped, run)
        self._advance(ready.plan, cache)
        return torch.from_numpy(state)[:, None].to(x.dtype)

    def step(self, model: Llama3Model, ids: Tensor, cache: KVCache | None, padding: Tensor | None) -> Tensor | None:
        """As `Llama3Model.forward` of one token for each row, ids (B, 1) -> scores in fp32 (B, 1, V), all of it in one
        call; None where PyTorch has to do it."""
        if cache is None or not self._takes_ids(model, ids) or not _fits(model, cache, len(ids)):
            return None
        ready = self._ready(model, cache, padding, len(ids), ())
        if ready is None or ready.plan.ends is None:
            return None
        plan, room, kernels, rows = ready.plan, ready.room, load_kernels(), ids[:, 0].numpy()
        if not all(0 <= one < model.embed_tokens.num_embeddings for one in rows.tolist()):
            return None  # PyTorch's path says so
        scores = torch.empty(len(rows), 1, model.lm_head.out_features)
        into = scores.view(len(rows), -1).numpy()
        counters = np.zeros(kernels.n_counts(model.cfg.n_layers, room.n_workers), np.int64)
        with _ONE_AT_A_TIME:
            arguments, start = ready.for_blocks(0, model.cfg.n_layers, counters), time.perf_counter()
            run_all(lambda w: kernels.run_step(w, room.n_workers, rows, plan.ends, *arguments, into),
                    room.n_workers, counters, kernels.GIVEN_UP)  # fmt: skip
            self._crew(len(rows)).note(time.perf_counter() - start)
        self._advance(plan, cache)
        return scores

    def _ready(
        self, model: Llama3Model, cache: KVCache, padding: Tensor | None, n_rows: int, skipped: Collection[int]
    ) -> Ready | None:
        begins, positions = _places(cache.length, padding, n_rows)
        plan = self._current(model, skipped, cache) if begins is not None and self.ready() else None
        if plan is None:
            return None
        at = cache.length if positions is None else positions
        return Ready(plan, self._room_for(plan, n_rows, cache.max_length), cache, begins, at)

    def _advance(self, plan: Plan, cache: KVCache) -> None:
        cache.advance(1)
        self._text = weakref.ref(cache), cache.length
        plan.steps += 1
        if plan.steps == MANY_STEPS:
            use_large_pages_beside(plan.storages)

    @staticmethod
    def _one_by_one(
        model: Llama3Model, x: Tensor, state: np.ndarray, before: Callable[[int, Tensor], Tensor] | None,
        skipped: Collection[int], run: Callable[[int, int], None],
    ) -> None:  # fmt: skip
        view = torch.from_numpy(state)[:, None]  # (B, 1, C), the same memory
        for n in range(len(model.layers)):
            if before is not None:
                entered = view.to(x.dtype)
                changed = before(n, entered)
                if changed is not entered:
                    view.copy_(changed)
            if n not in skipped:
                run(n, n + 1)

    def head(self, model: Llama3Model, x: Tensor) -> Tensor | None:
        """Scores in fp32, (B, 1, C) -> (B, 1, V); None where PyTorch has to do it."""
        plan, room = self._plan, self._room
        if plan is None or room is None or room.n_rows != len(x) or not self._takes(model, x):
            return None
        if plan.head_changed(model):
            return None
        kernels, rows = load_kernels(), np.ascontiguousarray(x[:, 0].float().numpy())
        scores = np.empty((len(rows), int(plan.head[kernels.N_OUT])), np.float32)
        counters = np.zeros(kernels.n_counts(0, room.n_workers), np.int64)
        with _ONE_AT_A_TIME:
            run_all(lambda w: kernels.project(w, room.n_workers, plan.head, rows, scores, room.whole, counters),
                    room.n_workers, counters, kernels.GIVEN_UP)  # fmt: skip
        return torch.from_numpy(scores)[:, None]

    @staticmethod
    def _takes(model: Llama3Model, x: Tensor) -> bool:
        return x.dtype in KINDS and x.shape[1] == 1 and len(x) <= MOST_ROWS and _all_as_it_was(model, x)

    @staticmethod
    def _takes_ids(model: Llama3Model, ids: Tensor) -> bool:
        return (ids.dtype == torch.int64 and ids.dim() == 2 and ids.shape[1] == 1 and 0 < len(ids) <= MOST_ROWS
                and type(model) is text_model.Llama3Model and model.__dict__.keys().isdisjoint(_STAGES)
                and _all_as_it_was(model, ids))  # fmt: skip

    def _current(self, model: Llama3Model, skipped: Collection[int], cache: KVCache) -> Plan | None:
        plan, (text, length) = self._plan, self._text
        goes_on = text is not None and text() is cache and length == cache.length
        if plan is None or (plan.altered(model, skipped) if goes_on else plan.changed(model, skipped)):
            self._plan = plan = Plan.of(model, skipped)
        return plan

    def _crew(self, n_rows: int) -> Crew:
        n_workers = _n_workers()
        return self._crews.setdefault((n_workers, n_rows), Crew(n_workers))

    def _room_for(self, plan: Plan, n_rows: int, length: int) -> Room:
        wanted = (self._crew(n_rows).size, n_rows, length, plan.sizes)
        if self._room is None or self._room.wanted != wanted:
            self._room = Room(wanted)
        return self._room

    def __deepcopy__(self, memo: dict[int, Any]) -> FastDecoder:
        return FastDecoder(self.insists)  # a copy of a model has weights of its own

    def __reduce__(self) -> tuple[type, tuple]:
        return FastDecoder, (self.insists,)


class Ready(NamedTuple):
    """What a step is taken with: the model's plan, room, for each row where its text begins, (B,), and the position of
    the new token, or one for each row."""

    plan: Plan
    room: Room
    cache: KVCache
    begins: np.ndarray
    at: int | np.ndarray

    def for_blocks(self, first: int, last: int, counters: np.ndarray) -> tuple:
        """The arguments of `kernels.through_blocks` after the workers'. Writes into the room, which is one caller's at
        a time."""
        self.room.turn(self.plan.angles(), self.at)
        plan, cache, cfg = self.plan, self.cache, self.plan.model.cfg
        shape = (cfg.n_heads, cfg.n_kv_heads, cfg.head_dim, first, last, KINDS[cache.keys.dtype], plan.norm_kind)
        where = (cache.keys.data_ptr(), cache.values.data_ptr(), cache.max_length, cache.length)
        return (plan.table, plan.lora_scales, plan.norms, shape, plan.eps, where, self.begins, *self.room.angles,
                self.room.shared, self.room.private, self.room.whole, counters)  # fmt: skip


def _all_as_it_was(model: Llama3Model, x: Tensor) -> bool:
    """Whether this package's parts are what the kernels compute, and nobody asks for more than numbers."""
    if torch.is_grad_enabled() or model.training or torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    if any(part.forward is not forward for part, forward in _FORWARDS.items()):
        return False
    return all(getattr(owner, name) is function for owner, name, function in _FUNCTIONS)


def _fits(model: Llama3Model, cache: KVCache, n_rows: int) -> bool:
    keys = cache.keys
    return (getattr(type(cache), "update", None) is KVCache.update and keys.shape[1] == n_rows and keys.is_contiguous()
            and keys.dtype in KINDS and cache.length < min(cache.max_length, model.cfg.context_length))  # fmt: skip


def _places(length: int, padding: Tensor | None, n_rows: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Where each row's text begins in the cache, (B,), and the position of its new token, None for that of all."""
    if padding is None:
        return np.zeros(n_rows, np.int64), None
    counts = padding.sum(dim=1)
    begins = length + 1 - counts
    if (padding[:, 1:] < padding[:, :-1]).any():  # a gap: not what pad_left makes
        return None, None
    return begins.numpy(), (counts - 1).numpy()


def _n_workers() -> int:
    """As many as PyTorch has threads, and at most one for each core. Workers wait for each other."""
    return max(1, min(torch.get_num_threads(), _CORES))
