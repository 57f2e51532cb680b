"""From a name to a text model that is spread over processes: each reads its own part and never holds the whole.

    torchrun --nproc-per-node 2 -m llamamm generate "Why?" --model meta-llama/Llama-3.2-1B-Instruct

Used in notebook 19.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

import torch
from torch.distributed.device_mesh import DeviceMesh

from llamamm.pretrained.load import open_text
from llamamm.pretrained.locate import HubOptions, locate
from llamamm.text.model import Llama3Model
from llamamm.text.tensor_parallel import split_over_processes
from llamamm.text.tokenizer import Tokenizer
from llamamm.weights.parts import build_unread, fill_parts
from llamamm.weights.tensors import TensorRef


def open_split(
    repo_or_dir: str | Path,
    mesh: DeviceMesh,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    **hub: Unpack[HubOptions],
) -> tuple[Llama3Model, Tokenizer | None]:
    """As `from_pretrained`, for a text model split over the processes of `mesh` (see `split_over_processes`).

    All processes must call it. Raises as `from_pretrained`, ConfigError where the model does not divide, and InputError
    for one that sees or hears.
    """
    model, named, tokenizer = open_unread(repo_or_dir, dtype=dtype, **hub)
    split_over_processes(model, mesh)
    fill_parts(model, named, dtype=model.cfg.dtype, device=device)
    return model.to(device).eval(), tokenizer  # `to` moves the RoPE table; the weights are there already


def open_unread(
    repo_or_dir: str | Path, *, dtype: torch.dtype | None = None, **hub: Unpack[HubOptions]
) -> tuple[Llama3Model, Mapping[str, TensorRef], Tokenizer | None]:
    """A text model on "meta", what `fill_parts` reads into it once it is split, and its tokenizer. Raises as above."""
    cfg, refs, dtype, tokenizer = open_text(locate(repo_or_dir, progress=False, **hub), dtype)
    return *build_unread(cfg, refs, dtype=dtype), tokenizer
