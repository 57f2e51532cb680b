"""Folders of pictures or sounds as `datasets` writes them, which training reads as they are.

    folder/train/metadata.jsonl    {"file_name": "435809.jpg", "text": "Food, Men, ..."}: a line for each file beside it
    folder/test/metadata.jsonl     likewise, of what is held out

What else is in a line is the asset's own. `data: folder/train` in a file for `llamamm train` is all that it takes.
Source: https://huggingface.co/docs/datasets, ImageFolder and AudioFolder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llamamm.assets.splits import SIDES
from llamamm.errors import InputError
from llamamm.files import write_file

METADATA = "metadata.jsonl"
FILES = tuple(f"{side}/{METADATA}" for side in SIDES)

Record = dict[str, Any]


def write_side(folder: Path, files: Iterable[tuple[Record, bytes]]) -> None:
    """Write files and their metadata.jsonl into `folder`, which is made. files: (record with "file_name", content)."""
    folder.mkdir(parents=True)
    lines = []
    for record, data in files:
        write_file(folder / record["file_name"], data)
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_file(folder / METADATA, "".join(lines))


def read_sides(folder: str | Path, texts: Sequence[str], *, asset: str) -> list[list[Record]]:
    """[train, test] of records, each with "path", the whole path of its file. texts: what else each has, as a str.

    Raises InputError, which names the asset to fetch again, where anything is missing, also a file.
    """
    folder = Path(folder)
    try:
        return [_read_side(folder / side, texts) for side in SIDES]
    except (OSError, KeyError, TypeError, ValueError) as error:  # InputError is a ValueError
        said = f"no {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{folder} holds no whole set ({said}); delete it and run `llamamm fetch {asset}` "
                         f"again") from None


def _read_side(folder: Path, texts: Sequence[str]) -> list[Record]:
    records = [json.loads(line) for line in (folder / METADATA).read_text(encoding="utf-8").splitlines()]
    there = {path.name for path in folder.iterdir()}
    for record in records:
        for key in ("file_name", *texts):
            if not isinstance(record[key], str):
                raise InputError(f"{key} must be a text, got {record[key]!r}")
        if record["file_name"] not in there:
            raise InputError(f"{record['file_name']} is missing from {folder.name}")
        record["path"] = folder / record["file_name"]
    if not records:
        raise InputError(f"{folder.name}/{METADATA} has no lines")
    return records
