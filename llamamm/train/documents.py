"""Documents in a file larger than memory, as a list that reads one at a time.

Training reads documents in a shuffled order, again and again. The file is looked through once to learn where each
document begins, 8 bytes apiece; after that any document is one seek and one read.

Built in notebook 10.
"""

from __future__ import annotations

import json
import operator
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llamamm.errors import InputError

_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\r\n]*")
METADATA = "metadata.jsonl"  # in a folder of pictures or sounds, as `datasets` writes them
_HINTS = {
    ".gz": "; unpack it first (gunzip)",
    ".csv": "; datasets:FOLDER reads tables",
    ".parquet": "; datasets:FOLDER reads tables",
}


def open_documents(path: str | os.PathLike[str]) -> Sequence[dict[str, Any]]:
    """The documents of a file. UTF-8, each read, and checked, when it is asked for.

    `.jsonl`: one JSON object a line; `.json`: a list of objects; `.txt`: texts with empty lines between them, each
    becoming {"text": ...}; a folder of pictures or sounds: its metadata.jsonl.
    Raises InputError for a file that is missing, empty or of another kind; broken documents, when read, name the line.
    """
    path = Path(os.path.expanduser(path))
    kinds = {".jsonl": JsonLines, ".json": JsonList, ".txt": Paragraphs}
    suffix = path.suffix.lower()
    try:
        if (path / METADATA).is_file():
            return JsonLines(path / METADATA)
        if path.is_dir() or path.stat() and suffix not in kinds:
            a_folder = f", a folder without {METADATA}; name a file in it"
            raise InputError(f"{path}: documents are read from {', '.join(kinds)} files, got {path.suffix!r}"
                             f"{a_folder if path.is_dir() else _HINTS.get(suffix, '')}")
        return kinds[suffix](path)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}; check the path, which begins at "
                         f"{Path.cwd()} unless it is a whole one") from error


def place_of(documents: Sequence[Any], index: int) -> str:
    """How people find one of some documents: its file and line, or its number, from 0, in a list or table."""
    return documents.place(index) if hasattr(documents, "place") else f"record {index}"


class _Documents(Sequence):
    """What both kinds share: where documents begin, and the bytes of one. Holds no open file, so that it may fork."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            begins = array("q", self._find_begins(file))
            if not begins:
                raise InputError(f"{path} holds no document: {file.tell()} bytes, nothing but empty lines")
            self._begins = np.array([*begins, file.tell()], dtype=np.int64)  # (n + 1,): the last is the file's end

    def __len__(self) -> int:
        return len(self._begins) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[operator.index(index)]  # negative ones, and the IndexError, as for a list
        begin, end = map(int, self._begins[index : index + 2])
        with self.path.open("rb") as file:
            file.seek(begin)
            data = file.read(end - begin)
        if len(data) < end - begin:
            raise InputError(f"{self.path} has changed: document {index} reached to byte {end}, the file ends at "
                             f"{begin + len(data)}; open it again")
        try:
            return self._parse(data.decode())
        except UnicodeDecodeError as error:
            place, what = begin + error.start, f"byte 0x{data[error.start]:02x} is not UTF-8; convert the file to UTF-8"
        except (ValueError, RecursionError) as error:
            place, what = begin, str(error)
        raise InputError(f"{self.path}, line {self._line(place)}: {what}")

    @property
    def folder(self) -> Path:
        """Where relative paths in the documents begin."""
        return self.path.parent

    def place(self, index: int) -> str:
        """The file, and the line that a document begins in."""
        return f"{self.path}, line {self._line(int(self._begins[index]))}"

    def _find_begins(self, file: BinaryIO) -> Iterator[int]:
        raise NotImplementedError

    def _parse(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _line(self, position: int) -> int:
        """The number of the line, from 1, that holds this byte: counted only for an error message."""
        lines = 1
        with self.path.open("rb") as file:
            while position > 0 and (data := file.read(min(position, 2**20))):
                lines, position = lines + data.count(b"\n"), position - len(data)
        return lines


class JsonLines(_Documents):
    """One JSON object a line; empty lines between them are passed over."""

    def _find_begins(self, file: BinaryIO) -> Iterator[int]:
        for position, line in _lines(file):
            if line.strip():
                yield position

    def _parse(self, text: str) -> dict[str, Any]:
        record = json.loads(text)
        if isinstance(record, list) and len(self) == 1:
            raise ValueError("the file is one JSON list; write each record of it into a line of its own")
        if not isinstance(record, dict):
            raise ValueError(f'a line must be a JSON object, like {{"text": ...}}, got {type(record).__name__}')
        return record


class JsonList(_Documents):
    """One JSON list of objects, as LLaVA's data are. The whole file is parsed once, to learn where each begins."""

    def _find_begins(self, file: BinaryIO) -> Iterator[int]:
        data = file.read()
        mark = len(_BOM) if data.startswith(_BOM) else 0
        try:
            text = data[mark:].decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: byte 0x{data[mark + error.start]:02x} at {mark + error.start:,} is not "
                             f"UTF-8; convert the file to UTF-8") from None
        decoder, at, byte, counted = json.JSONDecoder(), _skip(text, 0, ""), mark, 0
        if text[at : at + 1] != "[":
            raise InputError(f"{self.path}: a .json file must hold a list, [{{...}}, {{...}}]; objects of a line "
                             f"each belong into a .jsonl file")
        at = _skip(text, at + 1, "")
        while text[at : at + 1] != "]":
            try:
                _, end = decoder.raw_decode(text, at)
                after = _skip(text, end, "")
                if text[after : after + 1] not in (",", "]"):
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, after)
            except (ValueError, RecursionError) as error:
                line = text.count("\n", 0, getattr(error, "pos", at)) + 1
                raise InputError(f"{self.path}, line {line}: {error}") from None
            byte, counted = byte + len(text[counted:at].encode()), at
            yield byte
            at = _skip(text, after, ",")

    def _parse(self, text: str) -> dict[str, Any]:
        record, _ = json.JSONDecoder().raw_decode(text)
        if not isinstance(record, dict):
            raise ValueError(f'each record must be a JSON object, like {{"text": ...}}, got {type(record).__name__}')
        return record


def _skip(text: str, at: int, comma: str) -> int:
    """The next place that is no white space, after one comma if there is one."""
    at = _SPACE.match(text, at).end()
    return _SPACE.match(text, at + 1).end() if comma and text[at : at + 1] == comma else at


class Paragraphs(_Documents):
    """Plain text, in which a document ends at an empty line."""

    def _find_begins(self, file: BinaryIO) -> Iterator[int]:
        empty_before = True
        for position, line in _lines(file):
            empty = not line.strip()
            if empty_before and not empty:
                yield position
            empty_before = empty

    def _parse(self, text: str) -> dict[str, Any]:
        return {"text": text.replace("\r\n", "\n").rstrip()}


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Each line and the byte it begins at. A byte order mark, which Windows puts first, is no text."""
    position = 0
    for line in file:
        mark = len(_BOM) if position == 0 and line.startswith(_BOM) else 0
        yield position + mark, line[mark:]
        position += len(line)
