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
from llamamm.text.config_keys import unknown_keys
from llamamm.text.rope import rope_frequencies
from llamamm.text.tokenizer import Tokenizer
from llamamm.weights.names import to_our_names
from llamamm.weights.saving import write_config, write_weights
from llamamm.weights.tensors import TensorRef

# Metadata under "llama.". What is neither read nor harmless is refused where it is set, since it may change results.
_READ = {
    "vocab_size", "context_length", "embedding_length", "feed_forward_length", "block_count", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "attention.causal", "rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor",
    "rope.scale_linear", "rope.scaling.attn_factor",
}  # fmt: skip
_HARMLESS = {
    "tensor_data_layout": "a note: rows of q and k always come in Meta's order",
    "rope.scaling.original_context_length": "for rules that are refused themselves",
    "rope.scaling.finetuned": "a note: whether the model was trained with the rule",
}


class GGUFFile:
    """An opened GGUF file: `metadata(key)`, `config` (a TextConfig) and `refs`, its tensors under GGUF names."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        gguf = gguf_package()
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
    def has_tokenizer(self) -> bool:
        """Whether the file holds a vocabulary besides the weights."""
        return self.metadata("tokenizer.ggml.model") not in (None, "none", "no_vocab")

    @property
    def config(self) -> TextConfig:
        """The model's shape, from the metadata. Raises CheckpointError for another model, naming what differs."""
        architecture, kind = self.metadata("general.architecture"), self.metadata("general.type", "model")
        if architecture != "llama" or kind != "model":
            raise CheckpointError(f"{self.path} has the architecture {architecture!r} and is of type {kind!r}; "
                                  f"this package builds 'llama' models")
        if self.metadata("split.count", 1) > 1:
            raise CheckpointError(f"{self.path} is one of {self.metadata('split.count')} parts; join them with "
                                  f"llama-gguf-split --merge")
        n_heads, hidden_size = self._number("attention.head_count"), self._number("embedding_length")
        head_dim = self._number("attention.key_length", hidden_size // n_heads)
        theta = self.metadata("llama.rope.freq_base", 10_000.0)
        vocab_size = self.refs["token_embd.weight"].shape[0]
        self._require_plain(head_dim, vocab_size)
        return TextConfig(
            vocab_size=vocab_size,
            context_length=self._number("context_length"),
            hidden_size=hidden_size,
            intermediate_size=self._number("feed_forward_length"),
            n_layers=self._number("block_count"),
            n_heads=n_heads,
            n_kv_heads=self._number("attention.head_count_kv", n_heads),
            head_dim=head_dim,
            # stored in fp32: 1e-5 reads 9.99999975e-06
            norm_eps=round(self._number("attention.layer_norm_rms_epsilon"), 12),
            rope_theta=theta,
            rope_scaling=self._rope_scaling(head_dim, theta),
            tie_embeddings="output.weight" not in self.refs,
            dtype=torch.float32,
        )

    def _number(self, key: str, default: int | None = None) -> Any:
        """A value under "llama."; a list of one for each block, as some converters write it, must be of equal ones."""
        value = self.metadata(f"llama.{key}", default)
        if value is None:
            raise CheckpointError(f"{self.path} lacks the metadata llama.{key}; convert the model again")
        values = value if isinstance(value, list) else [value]
        if len(set(values)) != 1:
            raise CheckpointError(f"{self.path} has llama.{key}={value}; in a Llama all blocks are alike")
        return values[0]

    def _require_plain(self, head_dim: int, vocab_size: int) -> None:
        """Raises CheckpointError for metadata that would give other results than ours, by name and value."""
        said = {name.removeprefix("llama."): self.metadata(name) for name in self._reader.fields
                if name.startswith("llama.")}  # fmt: skip
        sizes = {"rope.dimension_count": head_dim, "attention.value_length": head_dim, "vocab_size": vocab_size,
                 "attention.causal": True, "rope.scaling.attn_factor": 1}  # fmt: skip
        wrong = [f"llama.{key}={said[key]}, not {size}" for key, size in sizes.items() if said.get(key, size) != size]
        rule = said.get("rope.scaling.type", "linear")  # llama.cpp's own default
        factor = said.get("rope.scaling.factor", said.get("rope.scale_linear")) or 1  # 0: not set
        if rule not in ("none", "linear") or (rule == "linear" and factor != 1):
            wrong.append(f"llama.rope.scaling: type={rule}, factor={factor}; known are none and Llama 3's")
        given = {f"llama.{key}": value for key, value in said.items()}
        wrong += unknown_keys(given, {f"llama.{key}" for key in _READ.union(_HARMLESS)})
        if wrong:
            raise CheckpointError(f"{self.path} asks for another model than this package builds: {'; '.join(wrong)}")

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
    cfg, tokenizer = file.config, Tokenizer(path) if file.has_tokenizer else None
    tensors = {
        name if name == "lm_head.weight" else f"model.{name}": ref.read()
        for name, ref in to_our_names(file.refs, cfg).items()
    }
    write_weights(tensors, folder)
    write_config(cfg.to_hf(), folder, stop_ids=tokenizer.stop_ids if tokenizer else ())
    if tokenizer is not None:
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


def gguf_package() -> Any:
    """The module. Raises MissingDependencyError, which names the extra."""
    try:
        import gguf
    except ImportError:
        raise MissingDependencyError("GGUF files need the gguf package: pip install 'llamamm[gguf]'") from None
    return gguf
