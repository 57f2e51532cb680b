"""Sprites and sounds of games, with their names: Kenney's drawings and noises, as packed in the library Arcade.

    a wheel -> sprites/ and sounds/, each with train and test: the files, and metadata.jsonl; the credit, LICENSE.txt

Names are made of the files': gemBlue.png is a "blue gem", robot_walk3.png a "robot, walking", cardClubs10.png the "ten
of clubs". Pictures that differ only in an outline, and tiles that only fit others together, are left out.

Held out are whole families: what a name says before its comma. All "robot, ..." are on one side, or a test could be
passed by memory. 1 in 6 families, by hash, are the test. new, of each picture there:

    "mix"     each word of its name is said in training, but not together: "red gem", where "blue gem" is known
    "thing"   a word of its name is not: nothing but the looks of what it resembles can help

Sounds are few, so what is held out of each kind is said here, in HELD_OUT: a take, or two that are nearly equal.

Fetched by `llamamm.assets.fetch` as "arcade". For training an eye or an ear on names.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from zipfile import ZipFile

from llamamm.assets.media_folders import FILES as FOLDER_FILES
from llamamm.assets.media_folders import Record, read_sides, write_side
from llamamm.assets.splits import SIDES, held_out
from llamamm.files import write_file

FILES = (*(f"{kind}/{file}" for kind in ("sprites", "sounds") for file in FOLDER_FILES), "LICENSE.txt")
ONE_IN = 6  # families of sprites that are held out
ASKED = "Which sound is it?"  # in training; of speech it would be what is said
ROOT = "arcade/resources/assets"
FOLDERS = "alien|animated_characters|cards|enemies|items|pinball|space_shooter|tiles|topdown_tanks"  # of sprites

# Takes of each kind of sound, by their number. Those of one bracket last equally long and are nearly the same noise.
HELD_OUT = {"coin": (2,), "error": (4,), "explosion": (2,), "fall": (4,), "gameover": (5,), "hit": (1, 2), "hurt": (5,),
            "jump": (1, 2), "laser": (4,), "lose": (1, 2), "upgrade": (3,), "secret": (4,)}  # fmt: skip

POSES = {"climb": "climbing", "fall": "falling", "front": "standing", "idle": "standing", "jump": "jumping",
         "walk": "walking", "move": "moving", "dead": "dead", "down": "lowered", "pressed": "pressed"}  # fmt: skip
CARDS = {"A": "ace", "K": "king", "Q": "queen", "J": "jack", "2": "two", "3": "three", "4": "four", "5": "five",
           "6": "six", "7": "seven", "8": "eight", "9": "nine", "10": "ten"}  # fmt: skip
SIZES = ("big", "med", "small", "tiny", "large")
SHAPES = {"": "ground", "Cliff": "cliff", "CliffAlt": "cliff", "Hill": "slope", "Half": "ledge"}  # of a game's ground
ROADS = {"Corner": "bend", "Crossing": "crossing", "Split": "fork", "East": "straight", "North": "straight"}
_COLOURS = "blue|green|red|yellow|pink|purple|brown|gr[ea]y|white|gold|silver|bronze|orange|dark|sand"

# What the rules of `sprite_name` would call something else.
PLAIN = {
    "boxCrate": "wooden crate", "bridgeA": "bridge, of logs", "bridgeB": "bridge, of a plank",
    "brickTextureWhite": "white brick wall", "brickBrown": "brown brick wall", "brickGrey": "grey brick wall",
    "doorClosed_mid": "closed door", "grass_sprout": "sprout of grass", "snow_pile": "pile of snow",
    "sawHalf": "saw, half hidden", "slimeBlock": "green slime, a block", "signExit": "sign that says exit",
    "signLeft": "arrow to the left", "signRight": "arrow to the right", "leverLeft": "lever, to the left",
    "leverMid": "lever, upright", "leverRight": "lever, to the right", "torch1": "burning torch",
    "torch2": "burning torch", "torchOff": "torch that is out", "gold_1": "gold coin, with a star",
    "gold_2": "gold coin, turned", "gold_3": "gold coin, turned", "gold_4": "gold coin, from the side",
    "waterTop_high": "water, with waves", "waterTop_low": "water, with waves", "lavaTop_high": "lava, with waves",
    "lavaTop_low": "lava, with waves", "laserBlue01": "blue laser beam", "laserRed01": "red laser beam",
    "bumper": "bumper of a pinball machine", "pool_cue_ball": "white billiard ball",
    "tileGrass1": "meadow from above", "tileGrass2": "meadow from above", "tileSand1": "desert from above",
    "tileSand2": "desert from above", "cardJoker": "joker", "ladderMid": "ladder", "tank_sand": "beige tank",
}  # fmt: skip
UNNAMED = r"""(?x) .*_outline | .*_barrel\d | tankBody.* | tracks.* | .*[Tt]ransition.* | coinGold_.. | coinSilver_test
    | doorClosed_top | ladderTop | bridge[AB]_.* | boxCrate_.* | (dirt|grass|planet|sand|snow|stone)(Center.*|Corner.*
    | Left | Mid | Right)"""


File = tuple[str, Record, bool]  # its path in the wheel, its record, whether it is held out


class Named(NamedTuple):
    """A picture's or a sound's file and its name. `load_image` and `load_wave` of `llamamm.senses` open files.

    family: which sprites are on one side together, or a sound's kind.
    new: in what a held-out sprite is new, "mix" or "thing"; of all others "".
    """

    path: Path
    name: str
    family: str
    new: str


def load_sprites(folder: str | Path) -> tuple[list[Named], list[Named]]:
    """(train, test) pictures of a folder that `fetch("arcade")` gives. Raises InputError for any other."""
    return _load(Path(folder) / "sprites")


def load_sounds(folder: str | Path) -> tuple[list[Named], list[Named]]:
    """(train, test) sounds, likewise."""
    return _load(Path(folder) / "sounds")


def _load(folder: Path) -> tuple[list[Named], list[Named]]:
    sides = read_sides(folder, ("text", "family", "new"), asset="arcade")
    train, test = ([Named(r["path"], r["text"], r["family"], r["new"]) for r in side] for side in sides)
    return train, test


# ---- names ----


def sprite_name(stem: str) -> str | None:
    """What a picture shows, by its file's name without .png; None for one that is left out."""
    if stem in PLAIN:
        return PLAIN[stem]
    if re.fullmatch(UNNAMED, stem):
        return None
    if card := re.fullmatch(r"card(Clubs|Diamonds|Hearts|Spades)(\w+)", stem):
        return f"{CARDS[card[2]]} of {card[1].lower()}"
    if card := re.fullmatch(r"cardBack_([a-z]+)\d", stem):
        return f"{card[1]} back of a card"
    if ground := re.fullmatch(r"(dirt|grass|planet|sand|snow|stone)([A-Z]\w*?)?(_left|_right|_mid)?", stem):
        return f"{ground[1]} {SHAPES[ground[2] or '']}" + (ground[3] or "").replace("_", ", ").replace(", mid", "")
    if road := re.fullmatch(r"tile(Grass|Sand)_road([A-Z][a-z]+)\w*", stem):
        return f"road through {road[1].lower()}, {ROADS[road[2]]}"
    words = re.sub(r"([a-z\d])([A-Z])|_", r"\1 \2", re.sub(r"\d", "", stem)).lower()
    words = re.sub(r"^player (ship|life)", "spaceship", words)
    words = re.sub(r"^(tree \w+)", r"\1 from above", words)
    *things, last = words.split()
    pose = POSES.get(last) or (last if last in SIZES else "")
    things = things if pose else [*things, last]
    colours = [word for word in things if re.fullmatch(_COLOURS, word)]
    name = " ".join([*colours, *(word for word in things if word not in colours)])
    return f"{name}, {pose.replace('med', 'middle-sized')}" if pose else name


def sound_name(stem: str) -> tuple[str, int] | None:
    """(name, take) of a sound, by its file's name without .wav; None for one that is left out."""
    kind, take = re.fullmatch(r"(\w+?)(\d+)", stem).groups()
    return (kind.replace("gameover", "game over"), int(take)) if kind in HELD_OUT else None


# ---- the folder ----


def write_arcade(wheel: Path, folder: Path) -> None:
    """Write FILES, the pictures and the sounds into `folder`, from the wheel arcade. Both stay as they are."""
    with ZipFile(wheel) as archive:
        for kind, records in (("sprites", _sprites(archive)), ("sounds", _sounds(archive))):
            for n, side in enumerate(SIDES):
                files = ((record, archive.read(path)) for path, record, is_test in records if is_test == bool(n))
                write_side(folder / kind / side, files)
        own = archive.read(f"{ROOT}/images/License.txt").decode()
    write_file(folder / "LICENSE.txt", f"{CREDIT}\n{own}")


def _sprites(archive: ZipFile) -> list[File]:
    """All that have a name, by their files' names; of two files of one name the first."""
    named: dict[str, tuple[str, str]] = {}
    for path in sorted(archive.namelist()):
        file = PurePosixPath(path)
        is_sprite = re.match(rf"{ROOT}/images/({FOLDERS})/", path) and file.suffix == ".png"
        if is_sprite and (name := sprite_name(file.stem)):
            named.setdefault(file.name, (path, name))
    families = {name: name.partition(",")[0] for _, name in named.values()}
    tests = {name for name, family in families.items() if held_out(family, ONE_IN)}
    known = set(re.findall(r"\w+", " ".join(families.keys() - tests)))
    files = []
    for file, (path, name) in sorted(named.items()):
        new = "" if name not in tests else "mix" if known.issuperset(re.findall(r"\w+", name)) else "thing"
        files.append((path, {"file_name": file, "text": name, "family": families[name], "new": new}, name in tests))
    return files


def _sounds(archive: ZipFile) -> list[File]:
    files = []
    for path in sorted(archive.namelist()):
        file = PurePosixPath(path)
        if str(file.parent) == f"{ROOT}/sounds" and file.suffix == ".wav" and (found := sound_name(file.stem)):
            (name, take), kind = found, file.stem.rstrip("0123456789")
            record = {"file_name": file.name, "question": ASKED, "text": name, "family": name, "new": ""}
            files.append((path, record, take in HELD_OUT[kind]))
    return files


CREDIT = """\
Sprites and sounds: Kenney, https://kenney.nl, under Creative Commons Zero, as the files beside them say, below; as
packed in arcade 3.3.3, https://github.com/pythonarcade/arcade, of whose code (MIT) nothing is used.
Changed here: a selection, named after their files' names; held out, by hash, 1 in 6 families of names of sprites, and
of each kind of sound a take or two.
"""
