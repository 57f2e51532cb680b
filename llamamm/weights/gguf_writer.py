"""Writing GGUF files that llama.cpp loads: F16, and whole numbers in blocks of 32 columns, Q8_0 and Q4_0.

    Q8_0    fp16 scale, 32 bytes                      34 bytes for 32 weights
    Q4_0    fp16 scale, 16 bytes: byte i holds        18 bytes for 32 weights
            numbers i (lower half) and i + 16, plus 8

Matrices that are not quantized become F16, or F32 where that is asked for, vectors F32. Rows of q and k go into Meta's
order, which llama.cpp's RoPE asks for. Needs the `gguf` package, as reading does. Source: ggml's docs/gguf.md. Told in
notebook 19.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llamamm.errors import CheckpointError
from llamamm.files import write_error
from llamamm.text.config import TextConfig
from llamamm.text.rope import rope_frequencies
from llamamm.weights.gguf import gguf_package
from llamamm.weights.names import GGUF_NAMES, half_split_to_interleaved

BLOCK = 32
FILE_TYPES = {torch.float32: 0, torch.float16: 1, 8: 7, 4: 2}  # F32, and mostly F16, Q8_0, Q4_0


class WholeNumbers(NamedTuple):
    """A quantized matrix: codes (N, C) int8, scales (N, C/32) fp16, bits 8 or 4."""

    codes: Tensor
    scales: Tensor
    bits: int


Stored = Tensor | WholeNumbers


def write_gguf(path: Path, cfg: TextConfig, tensors: Mapping[str, Stored], facts: Mapping[str, Any], *,
               matrices: torch.dtype = torch.float16) -> None:  # fmt: skip
    """A Llama's tensors, under our names, with its configuration and more facts, such as a tokenizer's metadata.

    matrices: float16 or float32, for those that are not quantized.

    The file appears whole or not at all. Raises CheckpointError for a number that fp16 cannot hold, WriteError.
    """
    gguf = gguf_package()
    writer = gguf.GGUFWriter(None, "llama")
    bits = max((tensor.bits for tensor in tensors.values() if isinstance(tensor, WholeNumbers)), default=None)
    for key, value in {**_facts(cfg), "general.file_type": FILE_TYPES[bits or matrices], **facts}.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string,
               list: writer.add_array}[type(value)]  # fmt: skip
        add(key, value)
    ours = {_gguf_name(name): _in_metas_order(name, tensor, cfg) for name, tensor in tensors.items()}
    if cfg.rope_scaling is not None:
        plain = rope_frequencies(cfg.head_dim, theta=cfg.rope_theta)
        ours["rope_freqs.weight"] = plain / rope_frequencies(cfg.head_dim, theta=cfg.rope_theta,
                                                             scaling=cfg.rope_scaling)  # fmt: skip
    ours = {name: _in_dtype(tensor, matrices) for name, tensor in ours.items()}
    for name, tensor in ours.items():
        shape, dtype, n_bytes, kind = _form(tensor)
        kind = kind and gguf.GGMLQuantizationType[kind]
        writer.add_tensor_info(name, shape, np.dtype(dtype), n_bytes, raw_dtype=kind)
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in ours.items():
            writer.write_tensor_data(_bytes(name, tensor))
        writer.close()
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)


def _facts(cfg: TextConfig) -> dict[str, Any]:
    llama = {
        "vocab_size": cfg.vocab_size, "context_length": cfg.context_length, "embedding_length": cfg.hidden_size,
        "feed_forward_length": cfg.intermediate_size, "block_count": cfg.n_layers, "attention.head_count": cfg.n_heads,
        "attention.head_count_kv": cfg.n_kv_heads, "attention.key_length": cfg.head_dim,
        "attention.value_length": cfg.head_dim, "attention.layer_norm_rms_epsilon": float(cfg.norm_eps),
        "rope.dimension_count": cfg.head_dim, "rope.freq_base": float(cfg.rope_theta),
    }  # fmt: skip
    return {"general.quantization_version": 2, **{f"llama.{key}": value for key, value in llama.items()}}


def _gguf_name(name: str) -> str:
    generic = re.sub(r"\d+", "N", name, count=1)
    theirs = {ours: theirs for theirs, ours in GGUF_NAMES.items()}
    return re.sub(r"\bN\b", (re.findall(r"\d+", name) or [""])[0], theirs[generic])


def _in_metas_order(name: str, tensor: Stored, cfg: TextConfig) -> Stored:
    n_heads = {"q_proj": cfg.n_heads, "k_proj": cfg.n_kv_heads}.get(name.split(".")[-2])
    if n_heads is None:
        return tensor
    if isinstance(tensor, WholeNumbers):
        codes, scales = (half_split_to_interleaved(t, n_heads) for t in tensor[:2])
        return WholeNumbers(codes, scales, tensor.bits)
    return half_split_to_interleaved(tensor, n_heads)


def _in_dtype(tensor: Stored, matrices: torch.dtype) -> Stored:
    if isinstance(tensor, WholeNumbers):
        return tensor
    return tensor.to(matrices if tensor.dim() == 2 else torch.float32)


def _form(tensor: Stored) -> tuple[tuple[int, ...], str, int, str | None]:
    """Shape and dtype of what is written, its bytes, and the name of its quantization."""
    if isinstance(tensor, WholeNumbers):
        rows, columns = tensor.codes.shape
        width = columns // BLOCK * (2 + BLOCK * tensor.bits // 8)
        return (rows, width), "uint8", rows * width, f"Q{tensor.bits}_0"
    dtype = "float16" if tensor.dtype == torch.float16 else "float32"
    return tuple(tensor.shape), dtype, tensor.numel() * np.dtype(dtype).itemsize, None


def _bytes(name: str, tensor: Stored) -> np.ndarray:
    if isinstance(tensor, WholeNumbers):
        return in_blocks(*tensor).cpu().numpy()
    found = tensor.detach().cpu()
    if not found.isfinite().all():
        raise CheckpointError(f"{name} has numbers that are not finite, or too large for fp16: GGUF files are written "
                              f"in F16, Q8_0 and Q4_0; `llamamm doctor` says where they are")
    return found.contiguous().numpy()


def in_blocks(codes: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Q8_0's or Q4_0's bytes of each row. (N, C) int8, (N, C/32) fp16 -> (N, C/32 * 34 or 18) uint8."""
    groups = codes.view(len(codes), -1, BLOCK)
    if bits == 4:
        nibbles = (groups + 8).to(torch.uint8)
        groups = nibbles[..., : BLOCK // 2] | (nibbles[..., BLOCK // 2 :] << 4)
    whole = groups.contiguous().view(torch.uint8)
    return torch.cat([scales[..., None].contiguous().view(torch.uint8), whole], dim=2).flatten(1)
