"""A Llama 3.2 Vision from a checkpoint's tensors, one at a time. Built in notebook 15."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from llamamm.mllama import MllamaModel
from llamamm.mllama_config import MllamaConfig
from llamamm.weights.loading import fill, only_dtype
from llamamm.weights.mllama_names import mllama_names
from llamamm.weights.tensors import TensorRef


def build_mllama(
    cfg: MllamaConfig,
    refs: Mapping[str, TensorRef],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    like_transformers: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> MllamaModel:
    """The model, ready to answer: as `build_from_refs` makes a Llama, without random weights or a second copy.

    dtype: what to cast to; None keeps what the file holds, which must then be one dtype.
    like_transformers: as in `MllamaModel`. on_progress: called with the bytes of each tensor, once it is in place.
    Raises CheckpointError listing every tensor that does not fit, before one is read.
    """
    named = mllama_names(refs)
    dtype = dtype or only_dtype(named)
    cfg = replace(cfg, text=cfg.text.replace(dtype=dtype))
    model = fill(lambda: MllamaModel(cfg, like_transformers=like_transformers), named, dtype=dtype, device=device,
                 on_progress=on_progress)  # fmt: skip
    return model.to(device).eval()  # `to` moves the RoPE table; the weights are there already
