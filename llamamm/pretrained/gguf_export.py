"""A text model as one GGUF file, which llama.cpp loads, and `from_pretrained` too. Used in notebook 19."""

from __future__ import annotations

from pathlib import Path

import torch

from llamamm.errors import InputError
from llamamm.fast.quantized import quantized_linears
from llamamm.pretrained.save import hf_state_dict
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer
from llamamm.text.tokenizer_gguf import gguf_metadata
from llamamm.weights.gguf_writer import BLOCK, Stored, WholeNumbers, write_gguf


def export_gguf(
    model: Llama3Model, path: str | Path, *, tokenizer: Tokenizer | None, name: str = "",
    matrices: torch.dtype = torch.float16,
) -> None:  # fmt: skip
    """Write a model and its tokenizer: quantized linears as Q8_0 or Q4_0, number for number, other matrices as F16.

    Groups of 64 and 128 become blocks of 32 that share a scale. name: for llama.cpp to show. matrices: float16 or
    float32.
    Raises InputError for a model that sees or hears, and without a tokenizer; CheckpointError, TokenizerError.
    """
    require_exportable(model, tokenizer)
    plain = {name.removeprefix("model."): tensor for name, tensor in hf_state_dict(model).items()}
    tensors: dict[str, Stored] = {name: tensor for name, tensor in plain.items() if name.endswith(".weight")}
    for path_, linear in quantized_linears(model).items():
        scales = linear.rows()[1].repeat_interleave(linear.group // BLOCK, dim=1)
        tensors[f"{path_}.weight"] = WholeNumbers(linear.whole_numbers(), scales, linear.bits)
    facts = {"general.name": name or "llamamm", **gguf_metadata(tokenizer, model.cfg.vocab_size)}
    write_gguf(Path(path), model.cfg, tensors, facts, matrices=matrices)


def require_exportable(model: Llama3Model, tokenizer: Tokenizer | None) -> None:
    """Refuse what no GGUF file can hold, before minutes of rounding. Raises InputError."""
    if type(model) is not Llama3Model:
        raise InputError("a GGUF file holds a text model alone, and this one sees or hears: write a folder instead")
    if tokenizer is None:
        raise InputError("llama.cpp reads the tokenizer from the GGUF file, and the model has none: put its "
                         "tokenizer.json beside the weights")  # fmt: skip
