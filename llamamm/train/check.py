"""What can be known to be wrong before a run begins: its data, its folders, its lengths.

A run may load weights for minutes and train for hours; a bad line of its data should not end it then.
Used in notebook 10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from llamamm.errors import ConfigError, ContextOverflowError, InputError, counted
from llamamm.files import read_json, require_writable
from llamamm.lora.adapter_config import read_adapter_config
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.pretrained.load import load_tokenizer, read_config
from llamamm.pretrained.locate import locate
from llamamm.pretrained.skill import SKILL_FILE, parts_of
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.alignment import check_aligned
from llamamm.train.config import Source, TrainConfig
from llamamm.train.documents import JsonLines, JsonList, place_of
from llamamm.train.media_rows import encode_media_record
from llamamm.train.preference import encode_pair
from llamamm.train.records import Record, check_pair, check_record
from llamamm.train.rows import Example, encode_record
from llamamm.train.sources import Records, open_data
from llamamm.train.streams import Head, Streams
from llamamm.weights.gguf import GGUFFile

MOST_CHECKED = 100_000  # records: some seconds
STREAM_CHECKED = 256  # rows of a stream, which may have to be downloaded
Look = Callable[[Any], Tensor]  # a picture or a sound -> features of a tower


def check_folders(cfg: TrainConfig) -> None:
    """The output can be written, the adapter is there. Makes nothing. Raises ConfigError, CheckpointError."""
    try:
        require_writable(cfg.output)
    except OSError as error:
        raise ConfigError(f"output: {error}") from None
    if cfg.adapter and not (cfg.adapter / SKILL_FILE).is_file():
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


class Data:
    """The records of some sources, `records`, looked through before weights are loaded; `said`: what was found.

    skip: faulty records are left out and counted, instead of ending the run. method: what they are for, as in
    TrainConfig: preferences (dpo), sounds and what is said in them (align). stream: sets of `datasets` are read as they
    are needed, of which the first rows are looked through; buffer, seed: of `Streams`.
    Raises InputError naming the first fault with its file and line, or where nothing is left.
    """

    def __init__(
        self, sources: Sequence[Source], *, skip: bool = False, method: str = "lora", stream: bool = False,
        buffer: int = 1, seed: int = 0,
    ) -> None:  # fmt: skip
        found = [(source.source, open_data(source.source, stream=stream), source.share) for source in sources]
        self._streams = Streams(found, buffer=buffer, seed=seed) if stream else None
        opened = [(name, documents if isinstance(documents, Sequence) or not stream
                   else Head(documents, STREAM_CHECKED, name), share) for name, documents, share in found]  # fmt: skip
        self._faults: dict[int, str] | None = {} if skip else None
        self._method = method
        self.said, self._firsts, begin = [], [], 0
        for name, documents, _ in opened:
            faults: dict[int, str] | None = {} if skip else None
            said, firsts = check_records(documents, name, faults=faults, method=method)
            self.said += said
            self._firsts += [begin + first for first in firsts]
            if faults:
                self._faults.update({begin + index: fault for index, fault in faults.items()})
            begin += len(documents)
        self._all = Records(opened)

    @property
    def records(self) -> Records | Streams:
        """Those that are left; of streams all, faulty ones too. Raises InputError where there are none."""
        records = Records(self._all.sources, without=self._faults or ())
        if len(records) == 0:
            raise InputError(f"none of {counted(len(self._all), 'record')} can be read: "
                             f"{next(iter(self._faults.values()))}")
        return self._streams or records

    def check_encoding(
        self, reader: Tokenizer | MultimodalProcessor, length: int, *, look: Look | None = None
    ) -> None:
        """The model can read such records: its tokenizer has a chat format and an end of text; each picture and sound
        opens, and fits into a row of `length` tokens with its words, as both answers of a preference do. look: as in
        `encode_media_record`.

        Raises InputError.
        """
        tokenizer = reader if isinstance(reader, Tokenizer) else reader.tokenizer
        for index in self._firsts:
            self._try(index, lambda record: record.media or encode_record(record, tokenizer))
        for index in range(min(len(self._all), MOST_CHECKED)):
            if index not in (self._faults or ()) and (self._method == "dpo" or self._all[index].media):
                self._try(index, lambda record: _fits(record, reader, length, look, method=self._method))
        if self._faults:
            n = len(self._faults)
            self.said.append(f"{counted(n, 'faulty record')} left out, such as {next(iter(self._faults.values()))}")

    def _try(self, index: int, encode: Callable[[Record], Any]) -> None:
        try:
            encode(self._all[index])
        except InputError as error:
            fault = f"{self._all.place(index)}: {error}"
            if self._faults is None:
                raise InputError(fault) from None
            self._faults[index] = fault


def _fits(
    record: Record, reader: Tokenizer | MultimodalProcessor, length: int, look: Look | None, *, method: str
) -> None:
    if isinstance(reader, Tokenizer) and record.media:
        raise InputError("the record holds a picture or a sound, and this model reads text alone; `llamamm compose` "
                         "makes one that sees and hears")

    def encode(read: Record) -> Example:
        if isinstance(reader, Tokenizer):
            return encode_record(read, reader)
        return encode_media_record(read, reader, look=look)

    examples = encode_pair(record, encode) if method == "dpo" else [encode(record)]
    if method == "align" and len(examples[0].sounds) > 1:
        raise InputError("the sound is longer than the ear hears at once, 30 s: cut it for method: align")
    n = max(len(example.ids) for example in examples) - 1
    if n > length:
        with_media = ", with those of its pictures and sounds" if record.media else ""
        raise InputError(f"{counted(n, 'token')}{with_media}, which cannot be cut, and length is {length}: set a "
                         f"larger length, or faulty: skip")


def check_records(
    documents: Sequence[Any], name: str, *, most: int = MOST_CHECKED, faults: dict[int, str] | None = None,
    method: str = "lora",
) -> tuple[list[str], list[int]]:  # fmt: skip
    """Read the records, at most so many. -> how many those were, in words; where the first text and dialogue stand.

    A table may hold empty texts, a file of lines may not. faults: gets the numbers of bad records, and what is wrong.
    method: as in `Data`.
    Raises InputError with the place of the first record that is not JSON, of no kind that trains, or empty, unless
    faults collects them.
    """
    n = min(len(documents), most)
    firsts: dict[bool, int] = {}
    n_rejected = 0
    for index in range(n):
        try:
            document = documents[index]
            record = check_pair(document) if method == "dpo" else check_record(
                document, empty=not isinstance(documents, JsonLines | JsonList))
            if method == "align":
                check_aligned(record)
            n_rejected += method != "dpo" and document.get("rejected") is not None
            if not record.media:
                firsts.setdefault(record.text is not None, index)
        except InputError as error:
            place = _named(documents, index, name)  # a broken line names itself
            said = str(error) if str(error).startswith(place) else f"{place}: {error}"
            if faults is None:
                raise InputError(said) from None
            faults[index] = said
    said = [f"{name}: {n:,} record{'s' * (n > 1)}, all checked"]
    later = "ends the run" if faults is None else "is left out"
    if isinstance(documents, Head):
        said = [f"{name}: the first {counted(n, 'row')} of the stream are checked; a bad one after them {later}"]
    elif n < len(documents):
        said = [f"{name}: the first {n:,} of {len(documents):,} records are checked; a bad one after them {later}"]
    if n_rejected:
        said.append(f"{name}: {counted(n_rejected, 'record')} with a 'rejected' answer, which is not read: it belongs "
                    f"to method: dpo")
    return said, list(firsts.values())


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
    """The context in a text model's config.json or GGUF header; None for other models, whose length is known later."""
    if path.suffix == ".gguf":
        return GGUFFile(path).config.context_length
    folder = path if path.is_dir() else path.parent
    if parts_of(folder):
        return None
    kind = read_json(folder / "config.json").get("model_type")
    return read_config(folder).context_length if kind in (None, "llama") else None


def _named(documents: Sequence[Any], index: int, name: str) -> str:
    place = place_of(documents, index)
    return place if place.startswith(name) else f"{name}, {place}"
