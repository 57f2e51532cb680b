"""From a name to a model that answers: a Hub repository, a folder, a GGUF file, or one of this course's assets.

Which family a model is of, its config.json says; `_OPENERS` has a function for each but Llama itself. Built in
notebook 07; the opener of Llama 3.2 Vision in notebook 15.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from llamamm.errors import CheckpointError, InputError
from llamamm.fast.decoder import Fast, equip, require_possible
from llamamm.files import read_json
from llamamm.generation.prompts import Processor
from llamamm.llama32_vision.config import EXTRA_EMBEDDINGS, MllamaConfig
from llamamm.llama32_vision.model import MllamaModel
from llamamm.llama32_vision.processor import MllamaProcessor
from llamamm.lora.adapter_config import CONFIG_FILE as ADAPTER_FILE
from llamamm.multimodal.config import MODEL_TYPE, MultimodalConfig
from llamamm.multimodal.model import MultimodalLlama
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.pretrained.locate import HubOptions, locate
from llamamm.pretrained.packed import KEY, Packed, split_packed
from llamamm.pretrained.skill import SKILL_FILE, base_of, parts_of
from llamamm.text.config import TextConfig
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer
from llamamm.weights.checkpoint import open_checkpoint
from llamamm.weights.gguf import GGUFFile
from llamamm.weights.loading import build_from_refs, choose_dtype, has_own_head, only_dtype
from llamamm.weights.mllama_names import mllama_names
from llamamm.weights.names import to_our_names, without_wrappers
from llamamm.weights.tensors import TensorRef


def from_pretrained(
    repo_or_dir: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: bool | None = None,
    like_transformers: bool = False,
    fast: Fast = "auto",
    bits: int | None = None,
    **hub: Unpack[HubOptions],
) -> tuple[Llama3Model, Tokenizer | Processor | None]:
    """The model, ready to answer, and its tokenizer, None where a folder holds none.

    A model that reads images comes with a processor, which holds the tokenizer as `processor.tokenizer`.

    repo_or_dir: "meta-llama/Llama-3.2-1B-Instruct", a folder, a .gguf file, or an asset's name such as "smollm2";
    "senses", or the folder of any skill whose base was composed, is SmolLM2 with an eye and an ear.
    dtype: what to cast to; None keeps the file's own, and where its tensors have several takes the one in config.json.
    progress: show bars on stderr; None means where it is a terminal, and elsewhere one line if an asset is fetched.
    like_transformers: for Llama 3.2 Vision alone, as in `MllamaModel`: transformers' reading of images, not Meta's,
    with whose code the weights were trained.
    fast: decode by compiled kernels, "auto" where they win (see `llamamm.fast.decoder.equip`); bits: keep the text
    model's linears in 16 bits that hold them exactly, or round them to 8 or 4 (see there, too). hub: see HubOptions.
    Raises FetchError, CheckpointError, ConfigError or InputError with the remedy.
    """
    require_possible(fast, bits, device)
    bars = sys.stderr.isatty() if progress is None else progress
    path = locate(repo_or_dir, progress=progress, **hub)
    family = _family(path)
    if like_transformers and family != "mllama":
        raise InputError(f"like_transformers is for Llama 3.2 Vision ('mllama'), {path} is {family!r}: leave it out")
    model, reader = _OPENERS.get(family, _open_llama)(path, _Wish(dtype, device, bars, like_transformers))
    return equip(model, fast=fast, bits=bits), reader


@dataclass(frozen=True)
class _Wish:
    """How a model is to be loaded."""

    dtype: torch.dtype | None
    device: torch.device | str
    bars: bool
    like_transformers: bool


def _family(path: Path) -> str:
    """The model_type in config.json; "quantized" of a Llama in whole numbers; "skill" of what a training has added to a
    model, with or without one."""
    if path.suffix == ".gguf":
        return "llama"
    folder = _folder(path)
    is_adapter = (folder / ADAPTER_FILE).is_file() and not (folder / "config.json").exists()
    if is_adapter or (folder / SKILL_FILE).is_file():
        return "skill"
    data = read_json(folder / "config.json")
    kind = str(data.get("model_type"))
    return "quantized" if kind == "llama" and data.get(KEY) else kind


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


@contextmanager
def _loading_bar(refs: Mapping[str, TensorRef], show: bool) -> Iterator[Callable[[int], None] | None]:
    if not show:
        yield None
        return
    total = sum(torch.Size(ref.shape).numel() * ref.dtype.itemsize for ref in refs.values())
    columns = TextColumn("loading"), BarColumn(), DownloadColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=total)
        yield lambda n: bar.advance(task, n)


# ---- Llama ----


def _open_llama(path: Path, wish: _Wish) -> tuple[Llama3Model, Tokenizer | None]:
    cfg, refs, dtype, tokenizer = _open(path, wish.dtype)
    _require_known(tokenizer, cfg.vocab_size, path)
    with _loading_bar(refs, wish.bars) as on_progress:
        model = build_from_refs(cfg, refs, dtype=dtype, device=wish.device, on_progress=on_progress)
    return model, tokenizer


def _open_quantized(path: Path, wish: _Wish) -> tuple[Llama3Model, Tokenizer | None]:
    """A Llama whose linears are whole numbers in the file."""
    data = read_json(_folder(path) / "config.json")
    cfg, refs, tokenizer = TextConfig.from_hf(data), open_checkpoint(path), load_tokenizer(path)
    _require_known(tokenizer, cfg.vocab_size, path)
    packed, rest = split_packed(data, to_our_names(refs, cfg))
    cfg = cfg.replace(dtype=choose_dtype(wish.dtype, rest, data) or only_dtype(rest))
    cfg = _with_own_head(cfg, packed, rest)
    with _loading_bar(refs, wish.bars) as on_progress:
        model = packed.build(lambda: Llama3Model(cfg), rest, dtype=cfg.dtype, device=wish.device,
                             on_progress=on_progress)  # fmt: skip
    return _tied(model, cfg).to(wish.device).eval(), tokenizer


def _with_own_head(cfg: TextConfig, packed: Packed, rest: Mapping[str, TensorRef]) -> TextConfig:
    """A head in the file that differs from the embedding, or is quantized, is no tied one, whatever cfg says."""
    own = "lm_head" in packed.linears or has_own_head(rest)
    return cfg.replace(tie_embeddings=cfg.tie_embeddings and not own)


def _tied(model: Llama3Model, cfg: TextConfig) -> Llama3Model:
    if cfg.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model


def is_text_model(path: Path) -> bool:
    """Whether a path is of a text model: Llama itself, in a folder or a GGUF file."""
    return _family(path) not in _OPENERS


def open_text(
    path: Path, dtype: torch.dtype | None = None
) -> tuple[TextConfig, Mapping[str, TensorRef], torch.dtype | None, Tokenizer | None]:
    """What `from_pretrained` builds a text model from, weights still unread. Raises InputError for another family."""
    if _family(path) == "quantized":
        raise InputError(f"{path} is quantized, and codes are not split over processes: take the model that it was "
                         f"made of, or one process, without torchrun")  # fmt: skip
    if not is_text_model(path):
        raise InputError(f"{path} is {_family(path)!r}, no text model by itself: only those are split over processes")
    cfg, refs, dtype, tokenizer = _open(path, dtype)
    _require_known(tokenizer, cfg.vocab_size, path)
    return cfg, refs, dtype, tokenizer


def load_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer in a GGUF file or a model's folder, or None where there is none."""
    if path.suffix == ".gguf":
        return Tokenizer(path) if GGUFFile(path).has_tokenizer else None
    folder = _folder(path)
    names = ("tokenizer.json", "tokenizer.model", "original/tokenizer.model")
    return Tokenizer(folder) if any((folder / name).is_file() for name in names) else None


def read_config(folder: Path) -> TextConfig:
    """The TextConfig in a folder's config.json. Raises CheckpointError where it is missing or damaged."""
    return TextConfig.from_hf(read_json(folder / "config.json"))


def _open(
    path: Path, dtype: torch.dtype | None
) -> tuple[TextConfig, Mapping[str, TensorRef], torch.dtype | None, Tokenizer | None]:
    """What is in a GGUF file or a folder, weights still unread, and the dtype to read them in; None: their own."""
    if path.suffix == ".gguf":
        file = GGUFFile(path)
        return file.config, file.refs, dtype, Tokenizer(path) if file.has_tokenizer else None
    data = read_json(_folder(path) / "config.json")
    cfg, refs = TextConfig.from_hf(data), open_checkpoint(path)
    return cfg, refs, choose_dtype(dtype, refs, data), load_tokenizer(path)


def _require_known(tokenizer: Tokenizer | None, n_rows: int, path: Path) -> None:
    """A tokenizer may have more tokens than the model only by some that were added to it, such as a [PAD]."""
    if tokenizer is None or tokenizer.vocab_size <= n_rows:
        return
    added = {token_id for token_id in tokenizer.added_tokens.values() if token_id >= n_rows}
    if len(added) < tokenizer.vocab_size - n_rows:
        raise CheckpointError(
            f"{path}: the tokenizer knows {tokenizer.vocab_size} tokens, the model {n_rows}: "
            f"they do not belong together"
        )


# ---- Llama 3.2 Vision ----


def _open_mllama(path: Path, wish: _Wish) -> tuple[MllamaModel, MllamaProcessor | None]:
    folder = _folder(path)
    data, refs = read_json(folder / "config.json"), open_checkpoint(path)
    cfg = MllamaConfig.from_hf(data)
    packed, rest = split_packed(data, mllama_names(refs))
    dtype = choose_dtype(wish.dtype, rest, data)
    processor, tokenizer = None, load_tokenizer(path)  # what is wrong with small files shows before minutes of reading
    if tokenizer is not None:
        _require_known(tokenizer, cfg.text.vocab_size + EXTRA_EMBEDDINGS, path)
        processor = MllamaProcessor.load(folder, tokenizer)
    with _loading_bar(refs, wish.bars) as on_progress:
        model = build_mllama(cfg, rest, dtype=dtype, device=wish.device, on_progress=on_progress,
                             like_transformers=wish.like_transformers, packed=packed)  # fmt: skip
    return model, processor


# ---- a Llama with eyes and ears ----


def _open_multimodal(path: Path, wish: _Wish) -> tuple[MultimodalLlama, MultimodalProcessor | None]:
    folder = _folder(path)
    tokenizer = load_tokenizer(folder)
    processor = None if tokenizer is None else MultimodalProcessor.load(folder, tokenizer)
    data = read_json(folder / "config.json")
    cfg = MultimodalConfig.from_hf(data)
    refs = {name.removeprefix("model."): ref for name, ref in without_wrappers(open_checkpoint(path)).items()}
    packed, rest = split_packed(data, refs)
    cfg = replace(cfg, text=_with_own_head(cfg.text, packed, rest))
    _require_known(tokenizer, cfg.text.vocab_size, path)
    with _loading_bar(refs, wish.bars) as on_progress:
        model = packed.build(lambda: MultimodalLlama(cfg), rest, dtype=wish.dtype, device=wish.device,
                             on_progress=on_progress)  # fmt: skip
    return _tied(model, cfg.text).to(wish.device).eval(), processor


# ---- a skill: what a training has added ----


def _open_skill(path: Path, wish: _Wish) -> tuple[MultimodalLlama, MultimodalProcessor]:
    """With its base, where it says what that was composed of."""
    from llamamm.pretrained.compose import open_composed  # which opens its parts by `from_pretrained`

    folder = _folder(path)
    if parts_of(folder):
        return open_composed(folder, dtype=wish.dtype, device=wish.device)
    what, base = "a skill" if (folder / SKILL_FILE).is_file() else "an adapter", base_of(folder)
    raise CheckpointError(
        f"{folder} is {what} and no whole model: load its base, {base or 'which it does not name'}, and then "
        f"load_skill(model, folder); for a command, --adapter {folder}{'' if base else ' beside --model BASE'}, or "
        f"first `llamamm merge {folder} MERGED`"
    )


# The families besides Llama, by their model_type.
_OPENERS: dict[str, Callable[[Path, _Wish], tuple[Llama3Model, Tokenizer | Processor | None]]] = {
    "mllama": _open_mllama, MODEL_TYPE: _open_multimodal, "skill": _open_skill,
    "quantized": _open_quantized,
}


def build_mllama(
    cfg: MllamaConfig,
    refs: Mapping[str, TensorRef],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    like_transformers: bool = False,
    packed: Packed = Packed(),  # noqa: B008 (it is frozen)
    on_progress: Callable[[int], None] | None = None,
) -> MllamaModel:
    """The model, ready to answer: as `build_from_refs` makes a Llama, without random weights or a second copy.

    dtype: what to cast to; None keeps what the file holds, which must then be one dtype.
    like_transformers: as in `MllamaModel`. packed: linears that are quantized, which refs then lack.
    on_progress: called with the bytes of each tensor, once it is in place.
    Raises CheckpointError listing every tensor that does not fit, before one is read.
    """
    named = mllama_names(refs)
    dtype = dtype or only_dtype(named)
    cfg = replace(cfg, text=cfg.text.replace(dtype=dtype))
    model = packed.build(lambda: MllamaModel(cfg, like_transformers=like_transformers), named, dtype=dtype,
                         device=device, on_progress=on_progress)  # fmt: skip
    return model.to(device).eval()  # `to` moves the RoPE table; the weights are there already
