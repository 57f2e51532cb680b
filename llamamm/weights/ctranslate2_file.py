"""CTranslate2 files: the weights of a Whisper as its fast runtime keeps them, made into Hugging Face's files.

    version, name of the kind of model, its revision        u32, string, u32
    count                                                   u32
    count times: name, rank, dims, dtype, bytes, data       string, u8, u32 each, u8, u32, ...
    count, and as many pairs: alias, name                   u32, strings
    string: length with the closing zero, characters        u16, ...

All little-endian, without gaps. The whole layout is checked against the file's length before a number is read. Linear
layers that read the same input are stacked by rows: self-attention's linear_0 is [q; k; v], in which k's bias, that
Whisper does not have, is zeros; cross-attention has q in linear_0 and [k; v] in linear_1.

Weights are written in fp32 though the file has fp16: that loses nothing, is what the Hub's file has, and is what a
CPU multiplies fast.

Source: model_spec.py in the CTranslate2 repository; Whisper, arXiv:2212.04356. Used where the course builds the audio
encoder.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from llamamm.errors import CheckpointError, counted
from llamamm.files import write_file
from llamamm.weights.saving import write_weights
from llamamm.weights.tensors import TensorRef
from llamamm.weights.whisper_files import whisper_files

VERSION = 6
DTYPES = {0: torch.float32, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.float16, 5: torch.bfloat16}
GELU = 3  # in CTranslate2's list of activations

# A file's module -> the Hub's modules that are stacked in it by rows, and the shape of one of them: C is the width,
# F that of the feed-forward, M mel bands, K the kernel, S positions of the encoder, T of the decoder, V the vocabulary.
Rows = dict[str, tuple[tuple[str, ...], str]]
ATTENTION: Rows = {
    "self_attention/layer_norm": (("self_attn_layer_norm",), "C"),
    "self_attention/linear_0": (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "CC"),
    "self_attention/linear_1": (("self_attn.out_proj",), "CC"),
}
CROSS_ATTENTION: Rows = {
    "attention/layer_norm": (("encoder_attn_layer_norm",), "C"),
    "attention/linear_0": (("encoder_attn.q_proj",), "CC"),
    "attention/linear_1": (("encoder_attn.k_proj", "encoder_attn.v_proj"), "CC"),
    "attention/linear_2": (("encoder_attn.out_proj",), "CC"),
}
FEED_FORWARD: Rows = {
    "ffn/layer_norm": (("final_layer_norm",), "C"),
    "ffn/linear_0": (("fc1",), "FC"),
    "ffn/linear_1": (("fc2",), "CF"),
}
AROUND: Rows = {
    "encoder/conv1": (("encoder.conv1",), "CMK"),
    "encoder/conv2": (("encoder.conv2",), "CCK"),
    "encoder/layer_norm": (("encoder.layer_norm",), "C"),
    "decoder/layer_norm": (("decoder.layer_norm",), "C"),
}
TABLES = {
    "encoder/position_encodings/encodings": ("encoder.embed_positions", "SC"),
    "decoder/position_encodings/encodings": ("decoder.embed_positions", "TC"),
    "decoder/embeddings/weight": ("decoder.embed_tokens", "VC"),  # the output projection too: it is tied
}


class CTranslate2File:
    """An opened model.bin: `spec`, the kind of model, and `refs`, its tensors under the file's names.

    Raises CheckpointError for a file that is cut short, or whose sizes do not add up to it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise CheckpointError(f"{self.path} does not exist")
        self.refs: dict[str, TensorRef] = {}
        self._size = self.path.stat().st_size
        with self.path.open("rb") as f:
            version = self._number(f, "I")
            if version != VERSION:
                raise CheckpointError(f"{self.path} has version {version}, this reads {VERSION}; is it CTranslate2's?")
            self.spec = self._string(f)
            self._number(f, "I")  # the kind's own revision
            for _ in range(self._number(f, "I")):
                self._add(f)
            for _ in range(self._number(f, "I")):
                alias, name = self._string(f), self._string(f)
                if name not in self.refs or alias in self.refs:
                    raise CheckpointError(f"{self.path} gives {name} the second name {alias}, which cannot be")
                self.refs[alias] = self.refs[name]
            if f.tell() != self._size:
                raise CheckpointError(f"{self.path} is {self._size} bytes long, its tensors end at {f.tell()}; "
                                      f"download it again")

    def number(self, name: str) -> int:
        """A setting that is kept as a tensor without dimensions."""
        ref = self.refs.get(name)
        if ref is None or ref.shape != ():
            raise CheckpointError(f"{self.path} has no number {name}; convert the model again")
        return int(ref.read())

    def _add(self, f: BinaryIO) -> None:
        name = self._string(f)
        shape = tuple(self._number(f, "I") for _ in range(self._number(f, "B")))
        dtype, size = self._number(f, "B"), self._number(f, "I")
        if dtype not in DTYPES:
            raise CheckpointError(f"{self.path}: {name} has dtype {dtype}; known are {', '.join(map(str, DTYPES))}")
        if name in self.refs:
            raise CheckpointError(f"{self.path} names {name} twice: damaged or tampered with")
        if (needed := math.prod(shape) * DTYPES[dtype].itemsize) != size:
            raise CheckpointError(f"{self.path}: {name} of shape {shape} needs {needed} bytes, claims {size}; "
                                  f"download it again")
        start = f.tell()
        if start + size > self._size:
            raise self._short(start + size)
        f.seek(size, 1)

        def read() -> Tensor:
            with self.path.open("rb") as f:
                f.seek(start)
                data = np.frombuffer(f.read(size), np.uint8).copy()  # of our own: PyTorch may write into it
            return torch.from_numpy(data).view(DTYPES[dtype]).reshape(shape)

        self.refs[name] = TensorRef(name, shape, DTYPES[dtype], read)

    def _number(self, f: BinaryIO, kind: str) -> int:
        return struct.unpack(f"<{kind}", self._bytes(f, struct.calcsize(f"<{kind}")))[0]

    def _string(self, f: BinaryIO) -> str:
        data = self._bytes(f, self._number(f, "H"))
        if data[-1:] != b"\0" or b"\0" in data[:-1] or not data.isascii():
            raise CheckpointError(f"{self.path} has {data[:40]!r} at byte {f.tell() - len(data)}, where a name should "
                                  f"stand; download it again")
        return data[:-1].decode()

    def _bytes(self, f: BinaryIO, n: int) -> bytes:
        data = f.read(n)
        if len(data) < n:
            raise self._short(f.tell() - len(data) + n)
        return data

    def _short(self, needed: int) -> CheckpointError:
        return CheckpointError(f"{self.path} is {self._size} bytes long, needs {needed} at least; download it again")


def convert_ctranslate2(path: str | Path, folder: str | Path) -> None:
    """Write the Whisper in a model.bin into an existing `folder`, as Hugging Face's files, in fp32.

    Beside model.bin lie, as CTranslate2 leaves them, its config.json and tokenizer.json.
    Raises CheckpointError where something lacks, or the model is no Whisper.
    """
    file, folder = CTranslate2File(path), Path(folder)
    if file.spec != "WhisperSpec":
        raise CheckpointError(f"{file.path} holds {file.spec!r}; this reads 'WhisperSpec'")
    settings, tokenizer = (_read_json(file.path.with_name(name)) for name in ("config.json", "tokenizer.json"))
    layers, sizes = _layers(file), _sizes(file)
    plan = _plan(layers)
    _check(file, plan, sizes)
    files = whisper_files(_shape(file, layers, sizes), settings, tokenizer)
    write_weights(_whisper_tensors(file, plan), folder)
    for name, content in files.items():
        write_file(folder / name, json.dumps(content, indent=2) + "\n")
    shutil.copyfile(file.path.with_name("tokenizer.json"), folder / "tokenizer.json")


# ---- weights ----

Plan = dict[str, tuple[list[str], str]]  # a file's tensor -> the Hub's names of what is stacked in it, shape of one


def _plan(layers: Mapping[str, int]) -> Plan:
    """The tensors of a Whisper with this many layers in its encoder and its decoder."""
    modules = dict(AROUND)
    for stack, n in layers.items():
        block = ATTENTION | FEED_FORWARD | (CROSS_ATTENTION if stack == "decoder" else {})
        for i in range(n):
            for source, (targets, shape) in block.items():
                modules[f"{stack}/layer_{i}/{source}"] = tuple(f"{stack}.layers.{i}.{t}" for t in targets), shape
    plan: Plan = {source: ([f"model.{target}.weight"], shape) for source, (target, shape) in TABLES.items()}
    for source, (targets, shape) in modules.items():
        weight, bias = ("gamma", "beta") if shape == "C" else ("weight", "bias")
        plan[f"{source}/{weight}"] = [f"model.{t}.weight" for t in targets], shape
        plan[f"{source}/{bias}"] = [f"model.{t}.bias" for t in targets], shape[0]
    return plan


def _layers(file: CTranslate2File) -> dict[str, int]:
    last = "/self_attention/layer_norm/gamma"
    return {stack: sum(name.startswith(f"{stack}/layer_") and name.endswith(last) for name in file.refs)
            for stack in ("encoder", "decoder")}  # fmt: skip


def _sizes(file: CTranslate2File) -> dict[str, int]:
    """What number each letter of a shape stands for."""
    sizes = {}
    known = {name: shape for name, (_, shape) in TABLES.items()}
    for name, letters in {**known, "encoder/layer_0/ffn/linear_0/bias": "F", "encoder/conv1/weight": "CMK"}.items():
        shape = file.refs[name].shape if name in file.refs else ()
        if len(shape) != len(letters) or 0 in shape:
            raise CheckpointError(f"{file.path}: {name} has shape {shape}, a Whisper's has {len(letters)} dimensions")
        sizes.update(zip(letters, shape, strict=True))
    return sizes


def _check(file: CTranslate2File, plan: Plan, sizes: Mapping[str, int]) -> None:
    integers = [name for name in plan if name in file.refs and not file.refs[name].dtype.is_floating_point]
    if integers:
        raise CheckpointError(f"{file.path}: {integers[0]} is quantised to {file.refs[integers[0]].dtype}; take a file "
                              f"in float16 or float32")
    expected = {name: (len(targets) * sizes[shape[0]], *(sizes[letter] for letter in shape[1:]))
                for name, (targets, shape) in plan.items()}  # fmt: skip
    found = {name: ref.shape for name, ref in file.refs.items() if ref.shape and ref.name == name}  # no second names
    if wrong := [name for name in sorted(expected.keys() | found) if expected.get(name) != found.get(name)]:
        lines = [f"{name}: {found.get(name, 'absent')}, expected {expected.get(name, 'none')}" for name in wrong[:5]]
        raise CheckpointError(f"{file.path}: not a Whisper's: {counted(len(wrong), 'tensor')}: {'; '.join(lines)}")


def _whisper_tensors(file: CTranslate2File, plan: Plan) -> dict[str, Tensor]:
    tensors = {}
    for source, (targets, _) in plan.items():
        for target, part in zip(targets, file.refs[source].read().float().chunk(len(targets)), strict=True):
            if not target.endswith("k_proj.bias"):
                tensors[target] = part.clone()  # a part alone is saved, not what it is a view of
            elif part.count_nonzero():
                raise CheckpointError(f"{file.path}: the keys of {source} have a bias, which a Whisper has not")
    return dict(sorted(tensors.items()))


def _shape(file: CTranslate2File, layers: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, Any]:
    """The model's shape, under the names that config.json has."""
    if (activation := file.number("decoder/activation")) != GELU:
        raise CheckpointError(f"{file.path} has activation {activation}; a Whisper has {GELU}, GELU")
    shape: dict[str, Any] = {
        "d_model": sizes["C"],
        "num_mel_bins": sizes["M"],
        "vocab_size": sizes["V"],
        "max_source_positions": sizes["S"],
        "max_target_positions": sizes["T"],
        "scale_embedding": bool(file.number("decoder/scale_embeddings")),
    }
    for stack, n in layers.items():
        shape |= {f"{stack}_layers": n, f"{stack}_attention_heads": file.number(f"{stack}/num_heads"),
                  f"{stack}_ffn_dim": sizes["F"]}  # fmt: skip
    return shape


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; it lies beside model.bin where CTranslate2 wrote both") from None
    except ValueError:
        raise CheckpointError(f"{path} is not JSON; download it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a table of settings; download it again")
    return content
