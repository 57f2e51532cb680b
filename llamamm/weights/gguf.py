"""GGUF files, llama.cpp's format: weights, configuration and tokenizer in one file, often quantised.

Quantised tensors are unpacked to fp32 by the `gguf` package (an extra: `pip install 'llamamm[gguf]'`); plain F16 and
BF16 tensors become fp32 too, without loss, so that a file gives one dtype. Rows of q and k come in Meta's order.

Source: the format's description in the ggml repository, docs/gguf.md. Built in notebook 07.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llamamm.errors import CheckpointError, MissingDependencyError
from llamamm.text.config import RopeScaling, TextConfig
from llamamm.text.rope import rope_frequencies
from llamamm.text.tokenizer import Tokenizer
from llamamm.weights.names import to_our_names
from llamamm.weights.saving import write_config, write_weights
from llamamm.weights.tensors import TensorRef


class GGUFFile:
    """An opened GGUF file: `metadata(key)`, `config` (a TextConfig) and `refs`, its tensors under GGUF names."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        gguf = _gguf_package()
        if not self.path.is_file():
            raise CheckpointError(f"{self.path} does not exist")
        try:
            self._reader = gguf.GGUFReader(self.path)
        except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{self.path} is not a whole GGUF file ({error}); download it again") from None
        _check_whole(self.path, self._reader)
        self.refs = {t.name: _ref(gguf, t) for t in self._reader.tensors}

    def metadata(self, key: str, default: Any = None) -> Any:
        """A metadata value by its full name, `"llama.block_count"`; `default` where the file lacks it."""
        field = self._reader.fields.get(key)
        return default if field is None else field.contents()

    @property
    def config(self) -> TextConfig:
        """The model's shape, from the metadata. Raises CheckpointError for another architecture."""
        architecture = self.metadata("general.architecture")
        if architecture != "llama":
            raise CheckpointError(f"{self.path} holds a {architecture!r} model; this package builds 'llama'")

        def need(key: str) -> Any:
            value = self.metadata(f"llama.{key}")
            if value is None:
                raise CheckpointError(f"{self.path} lacks the metadata llama.{key}; convert the model again")
            return value

        n_heads, hidden_size = need("attention.head_count"), need("embedding_length")
        head_dim = self.metadata("llama.attention.key_length", hidden_size // n_heads)
        theta = self.metadata("llama.rope.freq_base", 10_000.0)
        return TextConfig(
            vocab_size=self.refs["token_embd.weight"].shape[0],
            context_length=need("context_length"),
            hidden_size=hidden_size,
            intermediate_size=need("feed_forward_length"),
            n_layers=need("block_count"),
            n_heads=n_heads,
            n_kv_heads=self.metadata("llama.attention.head_count_kv", n_heads),
            head_dim=head_dim,
            norm_eps=round(need("attention.layer_norm_rms_epsilon"), 12),  # stored in fp32: 1e-5 reads 9.99999975e-06
            rope_theta=theta,
            rope_scaling=self._rope_scaling(head_dim, theta),
            tie_embeddings="output.weight" not in self.refs,
            dtype=torch.float32,
        )

    def _rope_scaling(self, head_dim: int, theta: float) -> RopeScaling | None:
        """GGUF stores no rule but its result, one divisor for each frequency; the rule is found back and compared."""
        ref = self.refs.get("rope_freqs.weight")
        if ref is None:
            return None
        divisors = ref.read()
        scaling = RopeScaling(factor=round(float(divisors.max()), 4))
        plain = rope_frequencies(head_dim, theta=theta)
        ours = plain / rope_frequencies(head_dim, theta=theta, scaling=scaling)
        if ours.shape != divisors.shape or not torch.allclose(ours, divisors, rtol=1e-3):
            raise CheckpointError(f"{self.path} scales RoPE by another rule than Llama 3's, factor {scaling.factor}")
        return scaling


def convert_gguf(path: str | Path, folder: str | Path) -> None:
    """Write a GGUF file's model and tokenizer into an existing `folder`, as Hugging Face's files, in fp32."""
    file, folder = GGUFFile(path), Path(folder)
    cfg, tokenizer = file.config, Tokenizer(path)
    tensors = {
        name if name == "lm_head.weight" else f"model.{name}": ref.read()
        for name, ref in to_our_names(file.refs, cfg).items()
    }
    write_weights(tensors, folder)
    write_config(cfg, folder, stop_ids=tokenizer.stop_ids)
    tokenizer.save(folder)


def _ref(gguf: Any, tensor: Any) -> TensorRef:
    shape = tuple(int(n) for n in reversed(tensor.shape))  # GGUF counts dimensions from the innermost

    def read() -> Tensor:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        return torch.from_numpy(np.array(values, dtype=np.float32)).reshape(shape)  # a copy: the file may be closed

    return TensorRef(tensor.name, shape, torch.float32, read)


def _check_whole(path: Path, reader: Any) -> None:
    size = path.stat().st_size
    ends = [int(t.data_offset) + int(t.n_bytes) for t in reader.tensors]
    if not ends or max(ends) > size:
        needed = max(ends, default=0)
        raise CheckpointError(f"{path} is {size} bytes long, its tensors need {needed}; download it again")
    if "token_embd.weight" not in {t.name for t in reader.tensors}:
        raise CheckpointError(f"{path} has no token_embd.weight: it is not a language model, or one shard of several")


def _gguf_package() -> Any:
    try:
        import gguf
    except ImportError:
        raise MissingDependencyError("reading GGUF files needs the gguf package: pip install 'llamamm[gguf]'") from None
    return gguf
