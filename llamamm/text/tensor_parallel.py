"""Tensor parallelism: one text model over several processes, each with some of the heads and of the channels.

    q, k, v, gate, up   W (N, C) by rows: a process computes its own heads, or its own channels
    o, down             W (N, C) by columns: a process computes its share of a sum, and an all-reduce adds the shares
    embedding, head     by the vocabulary: rows that are elsewhere count 0 in a sum; scores are gathered

So a block costs two sums of (B, T, C) over the processes, whatever its size, and the KV cache is split with the heads.
Norms are small and stay whole. The products and what goes between processes are PyTorch's own.

Sources: Megatron-LM, arXiv:1909.08053; torch.distributed.tensor.parallel. Used in notebook 19.
"""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from llamamm.errors import ConfigError
from llamamm.text.config import TextConfig
from llamamm.text.layers import Linear
from llamamm.text.model import Llama3Model

BY_ROWS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
BY_COLUMNS = ("self_attn.o_proj", "mlp.down_proj")


def split_over_processes(model: Llama3Model, mesh: DeviceMesh) -> Llama3Model:
    """Keep this process's part of every matrix, in place, and return the model: it answers as the whole one does.

    mesh: of one dimension. All processes must call it, and call the model with the same ids. Weights that are there are
    the first process's; on the "meta" device, parts are to be read afterwards (`llamamm.weights.parts.fill_parts`).
    Raises ConfigError for a model that does not divide, or whose linears are wrapped.
    """
    check_split(model.cfg, mesh.size())
    linears = [layer.get_submodule(name) for layer in model.layers for name in (*BY_ROWS, *BY_COLUMNS)]
    if type(model) is not Llama3Model or any(type(linear) is not Linear for linear in linears):
        raise ConfigError("only a text model with plain weights is split over processes: merge its adapter and drop it "
                          "(merge_lora(model, keep_base=False)), and leave out bits")
    tied = model.lm_head.weight is model.embed_tokens.weight
    parallelize_module(model, mesh, _styles())
    if tied:
        model.lm_head.weight = model.embed_tokens.weight  # both by the vocabulary, so the parts are tied, too
    for layer in model.layers:
        layer.self_attn.n_heads //= mesh.size()
        layer.self_attn.n_kv_heads //= mesh.size()
    model.n_kv_heads //= mesh.size()
    model.fast = None  # compiled decoding reads whole matrices
    return model


def check_split(cfg: TextConfig, n: int) -> None:
    """Raises ConfigError where heads or channels do not divide by the number of processes."""
    counts = {"kv heads": cfg.n_kv_heads, "channels of the feed-forward": cfg.intermediate_size}
    bad = [f"{count} {what}" for what, count in counts.items() if count % n]
    if bad:
        fits = [k for k in range(1, cfg.n_kv_heads + 1) if all(count % k == 0 for count in counts.values())]
        raise ConfigError(f"{' and '.join(bad)} do not divide by {n} processes; this model is split over "
                          f"{' or '.join(map(str, fits))} (--nproc-per-node)")


def _styles() -> dict[str, ParallelStyle]:
    return {
        "embed_tokens": RowwiseParallel(input_layouts=Replicate()),
        **{f"layers.*.{name}": ColwiseParallel() for name in BY_ROWS},
        **{f"layers.*.{name}": RowwiseParallel() for name in BY_COLUMNS},
        "lm_head": ColwiseParallel(output_layouts=Replicate()),
    }
