"""What can be known to be wrong before a run begins: its data, its folders, its lengths.

A run may load weights for minutes and train for hours; a bad line of its data should not end it then.
Used in notebook 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llamamm.errors import ConfigError, ContextOverflowError, InputError
from llamamm.files import read_json, require_writable
from llamamm.lora.adapter_config import read_adapter_config
from llamamm.pretrained.load import load_tokenizer, read_config
from llamamm.pretrained.locate import locate
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.config import TrainConfig
from llamamm.train.documents import JsonLines, place_of
from llamamm.train.records import check_record, is_text
from llamamm.train.rows import encode_record
from llamamm.weights.gguf import GGUFFile

MOST_CHECKED = 100_000  # records: some seconds


def check_folders(cfg: TrainConfig) -> None:
    """The output can be written, the adapter is there. Makes nothing. Raises ConfigError, CheckpointError."""
    try:
        require_writable(cfg.output)
    except OSError as error:
        raise ConfigError(f"output: {error}") from None
    if cfg.adapter:
        read_adapter_config(cfg.adapter)


def check_length(cfg: TrainConfig, model: str) -> None:
    """The rows fit into the context that a model's config.json gives: known before its weights are read.

    Raises ContextOverflowError, FetchError, CheckpointError.
    """
    if cfg.shape is not None:
        limit = cfg.shape.get("context_length", cfg.length)
    else:
        limit = _context_of(locate(model))
    if isinstance(limit, int):
        require_length(cfg, limit)


def require_length(cfg: TrainConfig, limit: int) -> None:
    """Raises ContextOverflowError, with both numbers, for rows longer than the model's context."""
    if cfg.length > limit:
        raise ContextOverflowError(f"length {cfg.length} is over the model's context of {limit} tokens: "
                                   f"set length to {limit} or less")


def check_records(documents: Sequence[Any], name: str, *, most: int = MOST_CHECKED) -> tuple[str, list[int]]:
    """Read the records, at most so many. -> how many those were, in words; where the first text and dialogue stand.

    A table may hold empty texts, a file of lines may not.
    Raises InputError with the place of the first record that is not JSON, of no kind that trains, or empty.
    """
    n = min(len(documents), most)
    firsts: dict[bool, int] = {}
    for index in range(n):
        record = documents[index]  # names file and line itself
        try:
            check_record(record, empty=not isinstance(documents, JsonLines))
            firsts.setdefault(is_text(record), index)
        except InputError as error:
            raise InputError(f"{_named(documents, index, name)}: {error}") from None
    said = f"{name}: {n:,} record{'s' * (n > 1)}, all checked"
    if n < len(documents):
        said = f"{name}: the first {n:,} of {len(documents):,} records are checked; a bad one after them ends the run"
    return said, list(firsts.values())


def check_encoding(documents: Sequence[Any], name: str, places: Sequence[int], tokenizer: Tokenizer) -> None:
    """The tokenizer can do what records such as these need: a chat format, an end of text. Raises InputError."""
    for index in places:
        try:
            encode_record(documents[index], tokenizer)
        except InputError as error:
            raise InputError(f"{_named(documents, index, name)}: {error}") from None


def check_prompts(prompts: dict[str, list[int]], n_new: int, limit: int) -> None:
    """The prompts that evaluations answer, and their answers, fit into the context. Raises ContextOverflowError."""
    for prompt, ids in prompts.items():
        if len(ids) + n_new > limit:
            raise ContextOverflowError(f"sample_prompts: {prompt[:40]!r} takes {len(ids)} tokens, with sample_tokens "
                                       f"{n_new} that is over the model's context of {limit}: shorten one of the two")


def own_tokenizer(path: str | None) -> Tokenizer:
    """The tokenizer that the settings name. Raises ConfigError, InputError."""
    if path is None:
        raise ConfigError("a new model (`shape`) needs a `tokenizer`: a file, a folder, or an asset's name")
    tokenizer = load_tokenizer(locate(path))
    if tokenizer is None:
        raise InputError(f"{path} holds no tokenizer")
    return tokenizer


def _context_of(path: Path) -> int | None:
    """The context in a text model's config.json or GGUF header; None for other models, which are refused later."""
    if path.suffix == ".gguf":
        return GGUFFile(path).config.context_length
    folder = path if path.is_dir() else path.parent
    kind = read_json(folder / "config.json").get("model_type")
    return read_config(folder).context_length if kind in (None, "llama") else None


def _named(documents: Sequence[Any], index: int, name: str) -> str:
    place = place_of(documents, index)
    return place if place.startswith(name) else f"{name}, {place}"
