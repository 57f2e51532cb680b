"""A model as commands and measurements take it: with its adapter inside, and with what turns words into ids.

Used in notebooks 14 and 17.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from llamamm.errors import InputError
from llamamm.fast.decoder import Fast, equip, require_possible
from llamamm.fast.quantized import quantized_linears
from llamamm.generation.prompts import Processor, as_processor
from llamamm.pretrained import load
from llamamm.pretrained.locate import DEFAULT_MODEL
from llamamm.pretrained.skill import base_of, load_skill
from llamamm.text.model import Llama3Model


class Ready(NamedTuple):
    """name: of the model without its adapter."""

    name: str
    model: Llama3Model
    processor: Processor


def load_ready(
    name: str | None = None, adapter: str | Path | None = None, *, dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu", fast: Fast = "auto", bits: int | None = None,
) -> Ready:  # fmt: skip
    """A model by its name or, where there is none, the one that an adapter or a skill was trained on.

    The adapter is merged, before weights are rounded: one that is never switched should cost nothing. Beside weights
    that are whole numbers already, on which it was trained, it stays. fast, bits: as in `from_pretrained`. Raises
    InputError for a model that has no tokenizer, and as `from_pretrained` and `load_skill`.
    """
    name = name or (base_of(adapter) if adapter else None) or DEFAULT_MODEL
    require_possible(fast, bits, device)
    model, reader = load.from_pretrained(name, dtype=dtype, device=device, fast=False)
    if reader is None:
        raise InputError(f"{name} has no tokenizer beside its weights; put its tokenizer.json or tokenizer.model there")
    if adapter:
        load_skill(model, adapter, merge=not quantized_linears(model))
    equip(model, fast=fast, bits=bits)
    return Ready(name, model.eval(), as_processor(reader))
