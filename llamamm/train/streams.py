"""Data sets that are never loaded whole: row after row, shuffled within a buffer.

    set, from its first row to its last -> some rows that wait -> one of them, drawn; the next takes its place

A set of the Hub may be larger than the disk. Its rows come as they are asked for, their pictures and sounds as files,
which are opened when a row is drawn. To go on inside an epoch, a state says which rows waited and where the library
stood before the oldest of them, so that no more than a few buffers are read again.

Source: `datasets`, https://huggingface.co/docs/datasets/stream. Named in notebook 16.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llamamm.errors import InputError, TrainingError
from llamamm.train.documents import place_of
from llamamm.train.records import Record, read_record

_END = object()


class Streams:
    """Records of one or several sources, drawn one at a time, without an end.

    sources: name, documents, share of the draws. documents: an IterableDataset of `datasets`; or a sequence, of which
    each is read when it is drawn. buffer: rows of a source that wait to be drawn; 1 keeps their order. A source that
    has ended begins anew: each row is read once in its epoch.
    """

    n_round = 50_000

    def __init__(self, sources: Sequence[tuple[str, Any, float]], *, buffer: int = 1000, seed: int = 0) -> None:
        self.sources = [_Source(name, documents, buffer=buffer, seed=seed) for name, documents, _ in sources]
        shares = np.array([share for _, _, share in sources])
        self._shares = shares / shares.sum()
        self._generator = np.random.Generator(np.random.PCG64(seed))
        self._before: Any = None  # the generator's state before the record at hand was drawn
        self._drawn: tuple[_Source, int] | None = None  # its source, and which of the rows that wait there
        self.settings = {"streams": {s.name: float(share) for s, share in zip(self.sources, self._shares, strict=True)},
                         "buffer": buffer}  # fmt: skip

    def current(self) -> Record:
        """The record at hand. Raises InputError, with its place, for what is no record, and TrainingError where a
        stream breaks off."""
        source, n = self._draw()
        try:
            return source.record(n)
        except InputError as error:
            said = str(error)
            raise InputError(said if said.startswith(self.place) else f"{self.place}: {said}") from None

    def advance(self) -> None:
        """To the next record."""
        source, n = self._draw()
        source.drop(n)
        self._drawn = None

    @property
    def place(self) -> str:
        """The name of its source and the number of its row, from 0; of a file its line."""
        source, n = self._draw()
        place = source.place(n)
        return place if place.startswith(source.name) else f"{source.name}, {place}"

    @property
    def epoch(self) -> int:
        """How often all sources have been read at least."""
        return min(source.epoch for source in self.sources)

    @property
    def progress(self) -> float:
        """The same with the part of the epoch at hand, where lengths are known."""
        return min(source.progress for source in self.sources)

    def state_dict(self) -> dict[str, Any]:
        """For JSON."""
        generator = self._before if self._drawn else self._generator.bit_generator.state
        return {"generator": generator, "sources": [source.state_dict() for source in self.sources]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. Raises InputError where a set has changed."""
        self._generator.bit_generator.state = state["generator"]
        self._drawn = None
        for source, its in zip(self.sources, state["sources"], strict=True):
            source.load_state_dict(its)

    def _draw(self) -> tuple[_Source, int]:
        if self._drawn is None:
            self._before = self._generator.bit_generator.state
            source = self.sources[self._generator.choice(len(self.sources), p=self._shares)]
            self._drawn = source, int(self._generator.integers(source.fill()))
        return self._drawn


class _Source:
    """The rows of one set that wait, and those that come after them."""

    def __init__(self, name: str, documents: Any, *, buffer: int, seed: int) -> None:
        self.name, self.documents, self.buffer, self.seed = name, documents, buffer, seed
        self._begin(0)

    @property
    def progress(self) -> float:
        n, drawn = _length(self.documents), self._n_read - len(self._waiting)
        return self.epoch + (min(drawn / n, 1.0) if n else 0.0)

    def fill(self) -> int:
        """Let rows come until the buffer is full or the epoch ends. -> how many wait."""
        while len(self._waiting) < self.buffer and (row := self._next()) is not _END:
            self._waiting.append((self._n_read - 1, row))
            if self._n_read % self.buffer == 0 and self._table is not None:
                self._marks.append((self._n_read, self._table.state_dict()))
                self._forget_marks()
        if not self._waiting:
            if self._n_read == 0:
                raise InputError(f"{self.name} holds no row")
            self._begin(self.epoch + 1)
            return self.fill()
        return len(self._waiting)

    def record(self, n: int) -> Record:
        _, row = self._waiting[n]
        row = row if self._table is not None else self.documents[row]
        return read_record(with_files(row), folder=getattr(self.documents, "folder", None))

    def place(self, n: int) -> str:
        number, row = self._waiting[n]
        return f"row {number}" if self._table is not None else place_of(self.documents, row)

    def drop(self, n: int) -> None:
        self._waiting[n] = self._waiting[-1]
        self._waiting.pop()

    def state_dict(self) -> dict[str, Any]:
        self._forget_marks()
        return {"epoch": self.epoch, "n_read": self._n_read, "waiting": [number for number, _ in self._waiting],
                "mark": self._marks[0]}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        number, inside = state["mark"]
        self._begin(state["epoch"], number, inside)
        wanted, found = set(state["waiting"]), {}
        while self._n_read < state["n_read"]:
            if (row := self._next()) is _END:
                raise InputError(f"{self.name} has changed: it had {state['n_read']:,} rows and more, and now "
                                 f"{self._n_read:,}; begin anew")
            if self._n_read - 1 in wanted:
                found[self._n_read - 1] = row
        self._waiting = [(number, found[number]) for number in state["waiting"]]

    def _begin(self, epoch: int, number: int = 0, inside: Any = None) -> None:
        """An epoch, from a row on; inside: where the library stands before that row."""
        self.epoch, self._n_read = epoch, number
        self._waiting: list[tuple[int, Any]] = []  # number in this epoch, and the row, or which document it is
        self._marks = deque([(number, inside)])
        self._table = None
        if isinstance(self.documents, Sequence):
            order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(len(self.documents))
            order = order if self.buffer > 1 else np.arange(len(order))
            self._rows: Iterator[Any] = iter(order[number:].tolist())
            return
        self._table = copy.deepcopy(self.documents)  # a state, once loaded, stays
        if inside is not None:
            self._table.load_state_dict(inside)
        self._rows = iter(self._table)

    def _next(self) -> Any:
        row = next_row(self._rows, f"{self.name}, after {self._n_read:,} rows")
        self._n_read += row is not _END
        return row

    def _forget_marks(self) -> None:
        """Those that no row which waits needs any more."""
        oldest = min((number for number, _ in self._waiting), default=self._n_read)
        while len(self._marks) > 1 and self._marks[1][0] <= oldest:
            self._marks.popleft()


class Head(list):
    """The first rows of a stream, for a look before the run."""

    def __init__(self, table: Iterable[Any], n: int, name: str) -> None:
        super().__init__()
        rows = iter(table)
        while len(self) < n and (row := next_row(rows, name)) is not _END:
            self.append(row)

    def __getitem__(self, index: int) -> Any:
        return with_files(super().__getitem__(index))

    def place(self, index: int) -> str:
        """Its number, from 0."""
        return f"row {index}"


def next_row(rows: Iterator[Any], where: str) -> Any:
    """The next one, or _END. Raises TrainingError for what a library or a network cannot give."""
    try:
        return next(rows, _END)
    except Exception as error:  # each format, and the network, has errors of its own
        said = " ".join(str(error).split()) or type(error).__name__
        raise TrainingError(f"{where}: the stream breaks off ({said}); what was saved can be resumed") from error


def with_files(row: Any) -> Any:
    """A row with the files that stand elsewhere ("hf://...") in it, read."""
    if isinstance(row, Mapping):
        path = row.get("path")
        if set(row) == {"path", "bytes"} and row["bytes"] is None and isinstance(path, str) and "://" in path:
            return {"path": path, "bytes": _read(path)}
        return {key: with_files(value) for key, value in row.items()}
    return [with_files(one) for one in row] if isinstance(row, list) else row


def _read(address: str) -> bytes:
    import fsspec  # `datasets` needs it, too

    try:
        with fsspec.open(address, "rb") as file:
            return file.read()
    except Exception as error:
        raise InputError(f"{address}: {' '.join(str(error).split()) or type(error).__name__}") from None


def _length(documents: Any) -> int | None:
    """How many rows, where that is known."""
    if isinstance(documents, Sequence):
        return len(documents)
    splits = documents.info.splits or {}
    return splits[str(documents.split)].num_examples if str(documents.split) in splits else None
