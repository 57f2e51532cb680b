"""arcade: names by hand, a wheel of small pictures and sounds, and the real ones."""

import hashlib
import io
import re
import zipfile
from collections import Counter

import pytest
import torch
from PIL import Image

from llamamm.assets.arcade import (
    FILES,
    HELD_OUT,
    ONE_IN,
    load_sounds,
    load_sprites,
    sound_name,
    sprite_name,
    write_arcade,
)
from llamamm.assets.fetch import fetch
from llamamm.assets.splits import held_out
from llamamm.errors import InputError
from llamamm.senses.images import load_image
from llamamm.senses.waves import load_wave, wav_bytes
from llamamm.train.documents import open_documents
from llamamm.train.records import read_record

# ---- names ----


@pytest.mark.parametrize("stem, name", [
    ("gemBlue", "blue gem"), ("bee", "bee"), ("robot_walk3", "robot, walking"), ("frog_move", "frog, moving"),
    ("femaleAdventurer_idle", "female adventurer, standing"), ("alienBlue_climb2", "blue alien, climbing"),
    ("wormGreen_dead", "green worm, dead"), ("flagRed_down", "red flag, lowered"), ("flagRed1", "red flag"),
    ("cardClubs10", "ten of clubs"), ("cardHeartsQ", "queen of hearts"), ("cardBack_red3", "red back of a card"),
    ("cardJoker", "joker"), ("coinGold", "gold coin"), ("gold_2", "gold coin, turned"),
    ("meteorGrey_med1", "grey meteor, middle-sized"), ("playerShip2_orange", "orange spaceship"),
    ("playerLife1_green", "green spaceship"), ("tank_blue", "blue tank"), ("tank_sand", "beige tank"),
    ("treeBrown_large", "brown tree from above, large"), ("switchRed_pressed", "red switch, pressed"),
    ("snow", "snow ground"), ("snowCliffAlt_left", "snow cliff, left"), ("dirtHalf_mid", "dirt ledge"),
    ("grassHill_right", "grass slope, right"), ("grass_sprout", "sprout of grass"),
    ("tileGrass_roadCornerLL", "road through grass, bend"),
    ("tileSand_roadCrossingRound", "road through sand, crossing"), ("leverMid", "lever, upright"),
])  # fmt: skip
def test_names_are_plain(stem, name):
    assert sprite_name(stem) == name


@pytest.mark.parametrize("stem", ["tank_blue_outline", "tankBlue_barrel1", "tankBody_red", "coinGold_ll", "grassLeft",
                                  "sandCenter_rounded", "dirtCorner_left", "tileGrass_roadTransitionE_dirt",
                                  "tileGrass_transitionN", "tracksDouble"])  # fmt: skip
def test_what_has_no_name_of_its_own_is_left_out(stem):
    assert sprite_name(stem) is None


def test_names_of_sounds():
    assert sound_name("coin2") == ("coin", 2) and sound_name("gameover5") == ("game over", 5)
    assert sound_name("phaseJump1") is None and sound_name("rockHit2") is None  # of which there is one alone


# ---- the folder ----


def png(size=(6, 4), colour=(255, 0, 0, 255)):
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    image.paste(colour, (0, 0, 2, 2))
    packed = io.BytesIO()
    image.save(packed, "PNG")
    return packed.getvalue()


@pytest.fixture
def small(tmp_path):
    root = "arcade/resources/assets"
    sprites = ["items/gemBlue", "items/gemRed", "items/keyBlue", "items/keyRed", "enemies/frog", "enemies/frog_move",
               "tiles/ladderMid", "items/ladderMid", "topdown_tanks/tracksDouble", "cards/cardHeartsA",
               "cards/cardHearts2", "cards/cardClubsA"]  # fmt: skip
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as out:
        for n, name in enumerate(sprites):
            out.writestr(f"{root}/images/{name}.png", png(colour=(20 * n, 0, 0, 255)))
        out.writestr(f"{root}/images/miami_synth_parallax/car.png", png())
        out.writestr(f"{root}/images/License.txt", "CC0 of Kenney")
        for n, name in enumerate(["coin1", "coin2", "hit1", "hit3", "rockHit2", "gameover5", "hit2"], 1):
            out.writestr(f"{root}/sounds/{name}.wav", wav_bytes(torch.full((800,), n / 100)))
        out.writestr(f"{root}/sounds/laser1.mp3", b"")
    folder = tmp_path / "made"
    folder.mkdir()
    write_arcade(tmp_path / "a.whl", folder)
    return folder


def test_each_sprite_has_its_own_name_and_a_family_is_on_one_side(small):
    train, test = load_sprites(small)
    red = {s.name: load_image(s.path).getpixel((0, 0))[0] for s in train + test}
    # of two files of one name the first in the order of their paths
    assert [s.path.name for s in train + test].count("ladderMid.png") == 1 and red.pop("ladder") == 140
    assert red == {"blue gem": 0, "red gem": 20, "blue key": 40, "red key": 60, "frog": 80, "frog, moving": 100,
                   "ace of hearts": 180, "two of hearts": 200, "ace of clubs": 220}  # fmt: skip
    assert load_image(train[0].path).getpixel((5, 3)) == (255, 255, 255)  # what is clear is white
    for side, some in ((False, train), (True, test)):
        assert all(held_out(s.family, ONE_IN) == side and s.family == s.name.split(",")[0] for s in some)
    # by their hashes: then nothing in training is red, but there are hearts and an ace
    assert {s.name: s.new for s in test} == {"frog": "thing", "frog, moving": "thing", "red gem": "thing",
                                             "red key": "thing", "ace of hearts": "mix"}  # fmt: skip
    assert {s.new for s in train} == {""}


def test_each_sound_has_its_own_name_and_takes_are_held_out(small):
    train, test = load_sounds(small)
    found = [[(s.name, round(load_wave(s.path)[400].item() * 100)) for s in side] for side in (train, test)]
    assert found == [[("coin", 1), ("hit", 4)], [("coin", 2), ("game over", 6), ("hit", 3), ("hit", 7)]]
    assert all(s.new == "" and s.family == s.name for s in train + test)
    assert all((small / name).is_file() for name in FILES)
    assert (small / "LICENSE.txt").read_text().endswith("CC0 of Kenney")


@pytest.mark.parametrize("load, file", [
    (load_sprites, "sprites/train/gemBlue.png"), (load_sounds, "sounds/test/hit1.wav"),
    (load_sprites, "sprites/test/metadata.jsonl"),
])  # fmt: skip
def test_a_folder_that_is_not_whole_is_refused(small, load, file):
    (small / file).unlink()
    with pytest.raises(InputError, match="llamamm fetch arcade"):
        load(small)


# ---- the real ones ----


@pytest.fixture(scope="module")
def folder():
    return fetch("arcade", progress=False)


def test_counts_and_split_of_the_real_sprites(folder):
    train, test = load_sprites(folder)
    assert (len(train), len(test), Counter(s.new for s in test)) == (287, 73, {"mix": 54, "thing": 19})
    assert not {s.family for s in train} & {s.family for s in test}
    known = set(re.findall(r"\w+", " ".join(s.name for s in train)))
    assert all(known.issuperset(re.findall(r"\w+", s.name)) == (s.new == "mix") for s in test)
    assert {"red gem", "queen of clubs"} <= {s.name for s in test if s.new == "mix"}
    assert all(re.fullmatch(r"[a-z -]+(, [a-z -]+)?", s.name) for s in train + test)


def test_no_held_out_sprite_is_a_copy_of_one_in_training(folder):
    train, test = ([load_image(s.path) for s in side] for side in load_sprites(folder))
    known = {(image.size, image.tobytes()) for image in train}
    assert not [image for image in test if (image.size, image.tobytes()) in known]


def test_counts_and_split_of_the_real_sounds(folder):
    train, test = load_sounds(folder)
    assert (len(train), len(test)) == (38, 15) and {s.name for s in train} == {s.name for s in test}
    assert Counter(s.name for s in test) == {k.replace("eo", "e o"): len(v) for k, v in HELD_OUT.items()}
    for sound in test:
        wave = load_wave(sound.path)
        assert 0.1 < len(wave) / 16_000 < 1.6 and wave.abs().max() > 0.02
    assert len({hashlib.sha256(s.path.read_bytes()).digest() for s in train + test}) == 53


def test_training_reads_the_folders_as_they_are(folder):
    for kind, asked in (("sprites", "Describe the picture."), ("sounds", "Which sound is it?")):
        documents = open_documents(folder / kind / "train")
        record = read_record(documents[0], folder=documents.folder)
        assert record.media[0].source.is_file() and record.messages[0]["content"][-1] == asked


def test_the_credit_names_whom_it_is_owed_to(folder):
    text = (folder / "LICENSE.txt").read_text(encoding="utf-8")
    for part in ("Kenney", "CC0", "arcade 3.3.3", "Changed here"):
        assert part in text
