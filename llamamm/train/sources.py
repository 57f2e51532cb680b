"""Where data come from: files, folders, sets of `datasets`, one or several with shares of an epoch.

Built in notebook 10.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llamamm.errors import InputError, MissingDependencyError
from llamamm.train.documents import open_documents, place_of
from llamamm.train.records import Record, read_record


class Records(Sequence):
    """The records of one source or of several, each read when it is asked for, its paths whole.

    sources: name, documents, share. Of several, each gives its share of an epoch, which is as long as all of them
    together: what is larger than its share takes several epochs, what is smaller comes again. without: left out, by
    their numbers in all of them.
    """

    def __init__(self, sources: Sequence[tuple[str, Sequence[Any], float]], *, without: Collection[int] = ()) -> None:
        self.sources = list(sources)
        lengths = [len(documents) for _, documents, _ in self.sources]
        self._begins = np.cumsum([0, *lengths])
        kept = np.setdiff1d(np.arange(self._begins[-1]), np.array(sorted(without), dtype=np.int64))
        self._kept, self._source = kept, np.searchsorted(self._begins, kept, side="right") - 1

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Record:
        """Raises InputError, with its place, for what is no record."""
        index = range(len(self))[index]
        _, documents, at = self._find(index)
        document = documents[at]  # a line that is not JSON names itself
        try:
            return read_record(document, folder=getattr(documents, "folder", None))
        except InputError as error:
            raise InputError(f"{self.place(index)}: {error}") from None

    def place(self, index: int) -> str:
        """How people find a record: file and line, or the source's name and a number."""
        name, documents, at = self._find(index)
        place = place_of(documents, at)
        return place if place.startswith(name) else f"{name}, {place}"

    @property
    def shares(self) -> list[float]:
        """Of each source in an epoch; they add up to 1."""
        shares = [share for _, _, share in self.sources]
        return [share / sum(shares) for share in shares]

    def order(self, generator: np.random.Generator) -> np.ndarray:
        """The numbers of the records of an epoch, in an order that the generator draws."""
        if len(self.sources) == 1:
            return generator.permutation(len(self))
        exact = np.array(self.shares) * len(self)
        counts = exact.astype(int)
        counts[np.argsort(counts - exact)[: len(self) - counts.sum()]] += 1  # the largest remainders
        chosen = []
        for n, count in enumerate(counts):
            mine = np.flatnonzero(self._source == n)
            rounds = [generator.permutation(mine) for _ in range(-(-count // max(len(mine), 1)))]
            chosen.append(np.concatenate([*rounds, mine[:0]])[:count])
        return generator.permutation(np.concatenate(chosen))

    def _find(self, index: int) -> tuple[str, Sequence[Any], int]:
        n = int(self._source[index])
        name, documents, _ = self.sources[n]
        return name, documents, int(self._kept[index] - self._begins[n])


def open_data(data: str) -> Sequence[Any]:
    """A file's documents, or those of a dataset for "datasets:NAME" or "datasets:NAME:SPLIT".

    NAME: a folder here, which may have colons in its path (C:\\data\\x), else a dataset's name on the Hub.
    """
    kind, colon, rest = data.partition(":")
    if not (colon and kind == "datasets"):
        return open_documents(data)
    name, split = _name_and_split(rest)
    if not name:
        raise InputError(f"{data!r} names no dataset: datasets:NAME or datasets:NAME:SPLIT")
    try:
        import datasets
    except ImportError:
        raise MissingDependencyError("datasets:... needs a package: pip install 'llamamm[data]'") from None
    folder = Path(os.path.expanduser(name))
    try:
        if not any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
            table = datasets.load_dataset(str(folder) if folder.exists() else name, split=split or "train")
        else:
            table = datasets.load_from_disk(str(folder))
            if isinstance(table, datasets.DatasetDict):
                table = table[split or "train"]
            elif split and table.split is not None and str(table.split) != split:
                raise InputError(f"{data}: the folder holds the split {str(table.split)!r} alone, not {split!r}")
    except InputError:
        raise
    except KeyError:
        raise InputError(f"{data}: there is no split {split or 'train'!r}; there are {', '.join(table)}: "
                         f"datasets:{name}:{next(iter(table))}") from None
    except Exception as error:  # files of any format, scripts, the Hub: each with errors of its own
        raise InputError(f"{data}: {' '.join(str(error).split()) or type(error).__name__}") from None
    if len(table) == 0:
        raise InputError(f"{data} holds no record")
    return table


def _name_and_split(rest: str) -> tuple[str, str]:
    """`name:split` in two; the colon of a drive, or one inside a path or a slice, is none that parts them."""
    if Path(os.path.expanduser(rest)).exists():
        return rest, ""
    part = r"[\w.-]+(?:\[[^\]/\\]*\])?"  # train, train[:10%]
    found = re.fullmatch(rf"(.*?):({part}(?:\+{part})*|)", rest)
    if found is None or re.fullmatch(r"[A-Za-z]", found[1]):  # C:name is a path on a drive
        return rest, ""
    return found[1], found[2]
