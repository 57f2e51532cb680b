"""A look at data before training: how many of each kind, how long, what is wrong, and how some of them will be read.

Named in notebook 16.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from llamamm.errors import InputError
from llamamm.files import read_json
from llamamm.generation.prompts import Image
from llamamm.multimodal.config import MODEL_TYPE
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.pretrained.load import load_tokenizer
from llamamm.pretrained.locate import locate
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.media_rows import encode_media_record
from llamamm.train.records import Record, check_record
from llamamm.train.rows import Example, encode_record
from llamamm.train.sources import Records, open_data

SHOWN = 3  # records


@dataclass
class Found:
    """counts: of records by kind, of pictures and sounds; lengths, learned: tokens of each record that can be read, and
    those of them that are learned; faults: a line each; shown: place and reading of some records."""

    counts: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    learned: list[int] = field(default_factory=list)
    n_long: int = 0
    faults: list[str] = field(default_factory=list)
    shown: list[tuple[str, str]] = field(default_factory=list)

    def rows(self) -> Iterator[tuple[str, str]]:
        """What was counted, a line each."""
        for kind, n in self.counts.items():
            yield kind, f"{n:,}"
        if self.lengths:
            ordered = sorted(self.lengths)
            yield "tokens", (f"{sum(ordered):,} in all, {sum(self.learned):,} learned; a record has {ordered[0]:,} to "
                             f"{ordered[-1]:,}, in the middle {median(ordered):,.0f}")
            yield "over length", f"{self.n_long:,}"
        yield "faulty", f"{len(self.faults):,}"


def look_at(source: str, *, model: str, length: int = 512) -> Found:
    """All records of a source, read as training of `model` would read them. Faults are collected, not raised.

    length: tokens in a row; dialogues over it are cut in training, records with media refused, texts go on in the next.
    Raises InputError where there is no source or no tokenizer.
    """
    documents, reader, found = open_data(source), load_reader(model), Found()
    records = Records([(source, documents, 1.0)])
    for index in range(len(records)):
        try:
            record = records[index]
            check_record(record)
            example = _encode(record, reader)
        except InputError as error:
            place = records.place(index)
            found.faults.append(str(error) if str(error).startswith(place) else f"{place}: {error}")
            continue
        kind = "texts" if record.text is not None else "preferences" if record.rejected is not None else "conversations"
        found.counts[kind] += 1
        for medium in record.media:
            found.counts["pictures" if isinstance(medium, Image) else "sounds"] += 1
        n = len(example.ids) - 1
        found.lengths.append(n)
        found.learned.append(sum(example.learn[1:]))
        if n > length and record.text is None:
            found.n_long += 1
            if record.media:
                found.faults.append(f"{records.place(index)}: {n:,} tokens, with those of its pictures and sounds, "
                                    f"which cannot be cut, and length is {length}")
        if len(found.shown) < SHOWN:
            found.shown.append((records.place(index), shown(example, reader)))
    return found


def load_reader(model: str) -> Tokenizer | MultimodalProcessor:
    """A model's tokenizer, or its processor where it sees or hears; no weights are read. Raises InputError."""
    path = locate(model)
    tokenizer = load_tokenizer(path)
    if tokenizer is None:
        raise InputError(f"{model} has no tokenizer")
    folder = path if path.is_dir() else path.parent
    if path.suffix != ".gguf" and read_json(folder / "config.json").get("model_type") == MODEL_TYPE:
        return MultimodalProcessor.load(folder, tokenizer)
    return tokenizer


def shown(example: Example, reader: Tokenizer | MultimodalProcessor, *, most: int = 400) -> str:
    """An example as it will be read: its text, what is learned between » and «, places of media counted."""
    tokenizer, names = reader, {}
    if not isinstance(reader, Tokenizer):
        tokenizer, names = reader.tokenizer, {reader.cfg.image_token: "picture", reader.cfg.audio_token: "sound"}
    pieces: list[str] = []
    run: list[int] = []
    state: tuple[str | None, bool] | None = None

    def flush() -> None:
        if state is not None and run:
            name, learned = state
            text = f"[{name}: {len(run)} places]" if name else tokenizer.decode(run)
            pieces.append(f"»{text}«" if learned else text)

    for token, learned in zip(example.ids, example.learn, strict=True):
        now = names.get(token), learned
        if now != state:
            flush()
            run, state = [], now
        run.append(token)
    flush()
    text = "".join(pieces)
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def _encode(record: Record, reader: Tokenizer | MultimodalProcessor) -> Example:
    return encode_record(record, reader) if isinstance(reader, Tokenizer) else encode_media_record(record, reader)
