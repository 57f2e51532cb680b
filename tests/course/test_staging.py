"""course.staging: what lesson 16 trains on and what it holds out."""

import gc
import json

import pytest
import torch

from llamamm.assets.easy_vqa import load_questions
from llamamm.assets.fetch import fetch
from llamamm.assets.spoken_words import Clip
from llamamm.course.staging import GAP, Workshop, join_words
from llamamm.train.documents import open_documents
from llamamm.train.records import check_pair, check_record, read_record


@pytest.fixture(scope="module")
def shop():
    return Workshop(pictures=12, questions=10, texts=3, phrases=4, heard=3, pairs=5, tried=2)


def lines_of(shop, name):
    return [json.loads(line) for line in (shop.folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("name", "n"), [("names", 12), ("text", 12), ("said", 4), ("pairs", 5)])
def test_files_hold_as_many_records_as_were_asked_for(shop, name, n):
    records = open_documents(shop.folder / f"{name}.jsonl")
    assert len(records) == n
    for record in lines_of(shop, name):
        check_pair(record) if name == "pairs" else check_record(record)


def test_questions_are_about_the_pictures_that_were_named(shop):
    names = {record["image"]: record["text"] for record in lines_of(shop, "names")}
    asked = lines_of(shop, "questions")
    assert asked and {record["image"] for record in asked} <= {*names}
    assert all(record["answer"] in names[record["image"]].split() for record in asked)
    assert all((shop.folder / image).is_file() for image in names)


def test_nothing_is_learned_that_is_held_out(shop):
    train = load_questions(fetch("easy-vqa", progress=False))[0]
    assert not any(torch.equal(image.source, pixels) for image in shop.pixels for pixels in train.pixels[:200])
    assert not {record["text"] for record in lines_of(shop, "text")} & {*shop.texts}
    assert not {pair["prompt"] for pair in lines_of(shop, "pairs")} & {pair["prompt"] for pair in shop.pairs}
    assert len(shop.names) == len(shop.pixels) == 12 and len(shop.test) == 10 and len(shop.texts) == 6


def test_the_rejected_answer_is_the_chosen_one_and_a_sentence_more(shop):
    for pair in shop.pairs:
        assert pair["rejected"].startswith(pair["chosen"] + " ") and pair["chosen"].endswith(".")
        assert pair["prompt"].startswith("What is ") and pair["prompt"].endswith("?")


def test_words_of_one_voice_stand_in_a_row_with_silence_between():
    clips = [Clip(torch.full((n,), float(n)), f"word{n}", voice) for voice in "ab" for n in (10, 20, 30, 40)]
    one, two, three = join_words(clips, 3, seed=0, length=2)
    assert [one.voice, two.voice, three.voice] == ["a", "b", "a"]
    first, second = (int(word.removeprefix("word")) for word in one.words)
    assert one.wave.tolist() == [float(first)] * first + [0.0] * GAP + [float(second)] * second
    assert [p.words for p in join_words(clips, 3, seed=0, length=2)] == [one.words, two.words, three.words]
    assert len({*one.words}) == 2


def test_a_share_counts_whole_answers(shop):
    assert shop.answered(shop.test.answers).value == 1.0
    assert shop.answered([f"{answer}." for answer in shop.test.answers]).value == 1.0
    assert shop.answered([f"a {answer}" for answer in shop.test.answers]).value == 0.0


def test_records_of_sounds_can_be_read(shop):
    read = [read_record(record, folder=shop.folder) for record in lines_of(shop, "said")]
    assert all(len(record.media) == 1 for record in read)
    assert all(len(record["text"].split()) == 3 for record in lines_of(shop, "said"))


def test_the_folder_goes_away_with_the_object():
    shop = Workshop(pictures=1, questions=1, texts=1, phrases=1, heard=1, pairs=1)
    folder = shop.folder
    assert folder.is_dir()
    del shop
    gc.collect()
    assert not folder.exists()
