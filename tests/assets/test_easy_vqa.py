"""questions: the folder made of a small wheel, what is refused, shares by hand, and the real easy-VQA."""

import hashlib
import io
import json
import shutil
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llamamm.assets.easy_vqa import (
    ANSWERS,
    FILES,
    YES_NO,
    Questions,
    load_questions,
    majority,
    text_only_best,
    write_questions,
)
from llamamm.assets.fetch import fetch
from llamamm.errors import InputError

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0), "teal": (0, 128, 128),
           "gray": (128, 128, 128), "brown": (165, 42, 42), "yellow": (255, 255, 0)}  # fmt: skip


def asked(*rows, n_images=3):
    """Questions of (question, answer, image)."""
    columns = ([row[i] for row in rows] for i in range(3))
    return Questions(torch.zeros(n_images, 3, 64, 64, dtype=torch.uint8), *columns)


def rows_of(questions):
    return list(zip(questions.questions, questions.answers, questions.images, strict=True))


# ---- shares ----

TRAIN = asked(("is it blue?", "no", 0), ("is it blue?", "no", 1), ("is it blue?", "yes", 2),
              ("what is it?", "circle", 0), ("what is it?", "triangle", 1), ("what is it?", "triangle", 2),
              ("is it red?", "yes", 1), ("is it red?", "no", 2), ("is it red?", "yes", 0))  # fmt: skip
TEST = asked(("is it blue?", "yes", 0), ("is it blue?", "no", 1), ("what is it?", "triangle", 0),
             ("what is it?", "circle", 1), ("what is it?", "triangle", 2), ("what is it?", "triangle", 1),
             ("what is it?", "triangle", 2), ("is it red?", "no", 2), ("is it teal?", "no", 2),
             ("is it teal?", "yes", 0))  # fmt: skip


def test_the_majority_is_the_training_sets():
    assert majority(TRAIN, TEST) == 3 / 10  # "no", of equals the first of the alphabet; in the test "triangle" leads
    assert majority(TEST, TRAIN) == 2 / 9
    assert majority(TRAIN, asked(("is it blue?", "yes", 0))) == 0


def test_text_only_takes_the_training_sets_answer_to_each_text():
    assert text_only_best(TRAIN, TEST) == 6 / 10  # right: blue "no", 4 triangles, teal "no" (unknown: the majority)
    assert text_only_best(TEST, TRAIN) == 5 / 9  # blue "no" twice (a tie), 2 triangles, red "no"
    # of equals the first of the alphabet, whatever comes first in the file
    tie = asked(("is it red?", "yes", 0), ("is it red?", "no", 1))
    assert text_only_best(tie, asked(("is it red?", "no", 0))) == majority(tie, asked(("what?", "no", 0))) == 1


ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(ANSWERS[:4]), st.integers(0, 2)), min_size=1)


@given(ROWS)
def test_on_what_they_were_made_of_both_are_the_best_of_their_kind(rows):
    questions, n = asked(*rows), len(rows)
    assert majority(questions, questions) == max(Counter(a for _, a, _ in rows).values()) / n
    best = [max(Counter(a for other, a, _ in rows if other == q).values()) for q in set(questions.questions)]
    assert text_only_best(questions, questions) == sum(best) / n


# ---- parts ----


def test_only_and_is_yes_no():
    assert TRAIN.is_yes_no == [True, True, True, False, False, False, True, True, True] and len(TRAIN) == 9
    others = TRAIN.only(yes_no=False)
    assert rows_of(others) == [("what is it?", "circle", 0), ("what is it?", "triangle", 1),
                               ("what is it?", "triangle", 2)]
    assert rows_of(TRAIN.only(yes_no=True)) == [row for row in rows_of(TRAIN) if row[1] in ("yes", "no")]
    assert others.pixels is TRAIN.pixels
    with pytest.raises(InputError, match="got 0 questions"):
        others.only(yes_no=True)


@given(st.integers(1, 8), st.integers(0, 99))
def test_a_subset_is_drawn_without_repeats_and_is_the_beginning_of_a_larger_one(n, seed):
    numbered = asked(*((str(i), "yes", i) for i in range(8)), n_images=8)
    part = numbered.subset(n, seed)
    assert len(part) == len(set(part.questions)) == n and part.pixels is numbered.pixels
    assert rows_of(part) == rows_of(numbered.subset(8, seed))[:n]
    assert [str(i) for i in part.images] == part.questions


def test_subsets_differ_by_seed_and_leave_the_global_generator_alone():
    numbered = asked(*((str(i), "yes", i) for i in range(8)), n_images=8)
    state = torch.random.get_rng_state()
    assert len({tuple(numbered.subset(8, seed).images) for seed in range(5)}) > 1
    assert torch.equal(state, torch.random.get_rng_state())
    for n in (0, 9):
        with pytest.raises(InputError, match=f"1 to 8 questions, got n={n}"):
            numbered.subset(n)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pixels": torch.zeros(3, 3, 64, 64)}, r"uint8 \(n, 3, 64, 64\), got torch.float32 \(3, 3, 64, 64\)"),
        ({"pixels": torch.zeros(3, 64, 64, 3, dtype=torch.uint8)}, r"got torch.uint8 \(3, 64, 64, 3\)"),
        ({"answers": ["no"]}, "got 2 questions, 1 answers, 2 images"),
        ({"images": [0, 3]}, "about images 0 to 3, of 3"),
        ({"images": [-1, 2]}, "about images -1 to 2, of 3"),
        ({"answers": ["no", "purple"]}, r"answers \['purple'\]; they are yes, no, circle"),
    ],
)
def test_a_set_that_does_not_fit_together_is_refused(change, said):
    fields = {"pixels": torch.zeros(3, 3, 64, 64, dtype=torch.uint8), "questions": ["a", "b"], "answers": ["no", "yes"],
              "images": [0, 2]}  # fmt: skip
    assert len(Questions(**fields)) == 2
    with pytest.raises(InputError, match=said):
        Questions(**(fields | change))


# ---- the folder ----


def png(colour):
    """White, and the top right quarter of that colour."""
    image = Image.new("RGB", (64, 64), "white")
    image.paste(COLOURS[colour], (32, 0, 64, 32))
    packed = io.BytesIO()
    image.save(packed, "PNG")
    return packed.getvalue()


@pytest.fixture
def wheel(tmp_path):
    """Three pictures to learn from, of numbers with gaps whose order as text is another, and one to be tried on."""
    files = {
        "easy_vqa/data/train/images/10.png": png("red"), "easy_vqa/data/train/images/2.png": png("green"),
        "easy_vqa/data/train/images/0.png": png("blue"), "easy_vqa/data/test/images/0.png": png("teal"),
        "easy_vqa/data/train/.DS_Store": b"\0",
        "easy_vqa/data/train/questions.json": json.dumps(
            [["what color is the shape?", "red", 10], ["is there a blue shape?", "yes", 0],
             ["is there a red shape?", "no", 2], ["what color is the shape?", "green", 2]]),
        "easy_vqa/data/test/questions.json": json.dumps([["is there not a circle?", "no", 0]]),
        "easy_vqa-1.0.dist-info/LICENSE": "MIT License\n\nCopyright (c) Somebody\n",
    }  # fmt: skip
    path = tmp_path / "easy.whl"
    with zipfile.ZipFile(path, "w") as out:
        for name, content in files.items():
            out.writestr(name, content)
    return path


@pytest.fixture
def small(wheel, tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    write_questions(wheel, folder)
    return folder


def test_each_question_keeps_its_answer_and_its_picture(small):
    train, test = load_questions(small)
    assert rows_of(train) == [("what color is the shape?", "red", 2), ("is there a blue shape?", "yes", 0),
                              ("is there a red shape?", "no", 1), ("what color is the shape?", "green", 1)]  # fmt: skip
    assert rows_of(test) == [("is there not a circle?", "no", 0)]
    assert train.pixels.shape == (3, 3, 64, 64) and test.pixels.shape == (1, 3, 64, 64)
    assert [tuple(p[:, 16, 48].tolist()) for p in train.pixels] == [COLOURS[c] for c in ("blue", "green", "red")]
    assert test.pixels[0, :, 16, 48].tolist() == [0, 128, 128]
    assert test.pixels[0, :, 48, 16].tolist() == test.pixels[0, :, 16, 16].tolist() == [255, 255, 255]


def test_the_folder_holds_what_it_says_and_is_the_same_each_time(wheel, small, tmp_path):
    assert sorted(p.name for p in small.iterdir()) == sorted(FILES)
    text = (small / "LICENSE.txt").read_text()
    assert "Victor Zhou" in text and "Changed here" in text and text.endswith("Copyright (c) Somebody\n")
    again = tmp_path / "again"
    again.mkdir()
    write_questions(wheel, again)
    assert [(again / name).read_bytes() for name in FILES] == [(small / name).read_bytes() for name in FILES]


@pytest.mark.parametrize("damage", ["images.npz", "test.jsonl", "truncated", "flipped", "one side", "image", "answer",
                                    "empty", "json", "key", "no record", "text for a number"])  # fmt: skip
def test_a_folder_that_is_not_whole_is_refused(small, damage):
    lines = {"image": '{"question": "a", "answer": "no", "image": 1}', "empty": "", "json": '{"question": "a"',
             "answer": '{"question": "a", "answer": "No", "image": 0}', "key": '{"question": "a", "answer": "no"}',
             "no record": "3", "text for a number": '{"question": "a", "answer": "no", "image": "0"}'}  # fmt: skip
    packed = (small / "images.npz").read_bytes()
    load_questions(small)
    if damage in lines:
        (small / "test.jsonl").write_text(lines[damage] + "\n" * bool(lines[damage]))
    elif damage == "truncated":
        (small / "images.npz").write_bytes(packed[:-30])
    elif damage == "flipped":
        (small / "images.npz").write_bytes(packed[:90] + bytes(255 - byte for byte in packed[90:110]) + packed[110:])
    elif damage == "one side":
        np.savez_compressed(small / "images.npz", train=np.zeros((3, 3, 64, 64), np.uint8))
    else:
        (small / damage).unlink()
    with pytest.raises(InputError, match="llamamm fetch easy-vqa"):
        load_questions(small)


# ---- the real ones ----


@pytest.fixture(scope="module")
def folder():
    return fetch("easy-vqa", progress=False)


@pytest.fixture(scope="module")
def real(folder):
    return load_questions(folder)


def test_counts_texts_and_pixels_of_the_real_ones(folder, real):
    train, test = real
    assert [(len(side), sum(side.is_yes_no), len(side.pixels)) for side in real] == [
        (38_575, 28_407, 4_000), (9_673, 7_136, 1_000)]  # fmt: skip
    for side in real:
        assert set(side.answers) == set(ANSWERS) and len(ANSWERS) == 13 and len(set(side.questions)) == 107
        assert set(side.images) == set(range(len(side.pixels)))
        assert all((answer in YES_NO) != text.startswith("what ") for text, answer, _ in rows_of(side))
    assert set(train.questions) == set(test.questions)
    found = [hashlib.sha256((folder / f"{side}.jsonl").read_bytes()).hexdigest() for side in ("train", "test")]
    assert found == ["66cfee407402a049630c141cfafc22bf3b455aee2d3e60de92cc48f8d135bcf4",
                     "ec7e6da81210fd1d15ae90332244ea55c11ed8c355825c4e02744e7ab58885d1"]  # fmt: skip
    found = [hashlib.sha256(side.pixels.numpy().tobytes()).hexdigest() for side in real]
    assert found == ["eab3402e21bb0b3302a48c7c612b7b7820c4d012c39008a158362de0a83db4e2",
                     "441921d7bb137a2ba613fc72d48ca08c0bdcdf3bd313729fc953fcf8a235163c"]  # fmt: skip


def test_fetch_makes_it_of_the_wheel_it_keeps(folder, tmp_path):
    (tmp_path / "easy-vqa").mkdir()
    shutil.copy(folder.parent / "easy_vqa-1.0-py3-none-any.whl", tmp_path / "easy-vqa")
    made = fetch("easy-vqa", progress=False, cache_dir=tmp_path)
    assert made != folder
    for name in FILES:
        if name != "images.npz":  # whose bytes are those of one version of zlib; the pixels below are not
            assert (made / name).read_bytes() == (folder / name).read_bytes()
    for side, other in zip(load_questions(made), load_questions(folder), strict=True):
        assert torch.equal(side.pixels, other.pixels)
    (made / "test.jsonl").unlink()  # by hand
    assert (fetch("easy-vqa", progress=False, cache_dir=tmp_path) / "test.jsonl").is_file()


def test_no_picture_comes_twice(real):
    train, test = ({hashlib.sha256(p.numpy().tobytes()).digest() for p in side.pixels} for side in real)
    assert (len(train), len(test), len(train & test)) == (4_000, 1_000, 0)


def test_answers_are_true_of_the_pictures(real):
    """Colour and shape measured in the pixels: questions, rows, channels and directions all belong together."""
    palette = torch.tensor(list(COLOURS.values())).float()
    for side in real:
        colours = {i: a for q, a, i in rows_of(side) if q.startswith("what color is the shape")}
        shapes = {i: a for q, a, i in rows_of(side) if q.startswith("what shape")}
        pixels = side.pixels.float()
        background = pixels.flatten(2).median(dim=2).values[:, :, None, None]  # a shape covers less than half
        inside = (pixels - background).abs().sum(dim=1) > 60  # (n, 64, 64)
        n_colours = n_shapes = 0
        for i in sorted(colours)[:200]:
            colour = pixels[i][:, inside[i]].median(dim=1).values
            n_colours += list(COLOURS)[int((palette - colour).square().sum(dim=1).argmin())] == colours[i]
        for i in sorted(shapes)[:200]:
            rows = inside[i].sum(dim=1)
            rows = rows[rows > 0].float()
            n_shapes += (rows[:2].mean() < 0.4 * rows[-2:].mean()) == (shapes[i] == "triangle")  # its tip is on top
        assert (n_colours, n_shapes) == (200, 200)


def test_what_can_be_had_without_looking(real):
    train, test = real
    assert majority(train, test) == 3_611 / 9_673
    assert text_only_best(train, test) == pytest.approx(0.6694, abs=5e-5)
    assert text_only_best(test, test) == pytest.approx(0.678, abs=5e-4)
    by_kind = [text_only_best(train.only(yes_no=kind), test.only(yes_no=kind)) for kind in (True, False)]
    assert by_kind == pytest.approx([0.8254, 0.2306], abs=5e-5)


def test_the_credit_names_whom_it_is_owed_to(folder):
    text = (folder / "LICENSE.txt").read_text(encoding="utf-8")
    for part in ("easy-VQA", "Changed here", "Copyright (c) 2019 Victor Zhou", "MIT License", '"AS IS"'):
        assert part in text
