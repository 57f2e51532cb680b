"""experiments.release_data: small stand-ins of the assets as files of records, and nothing of their test parts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from llamamm import Llama3Model, TextConfig
from llamamm.assets.arcade import Named
from llamamm.assets.openmoji import Pictures
from llamamm.assets.paintings import Painting
from llamamm.assets.sentences import Sentence
from llamamm.assets.spoken_words import Clip, Words
from llamamm.experiments import release_data
from llamamm.experiments.release_data import A_PICTURE, NAME, SAID, SOUND, write_data
from llamamm.generation.prompts import Image, Sound
from llamamm.senses.images import load_image
from llamamm.senses.waves import save_wave
from llamamm.train.alignment import check_aligned
from llamamm.train.documents import open_documents
from llamamm.train.records import check_record, read_record
from llamamm.train.tokenizer import train_tokenizer
from tests.media_items import questions

FILES = ("shapes", "questions", "drawings", "paintings", "speech", "words", "sounds", "plain", "text")
ASKED = [("what is the blue shape?", "circle"), ("is there a red shape?", "no"), ("is there a circle?", "yes"),
         ("what color is the circle?", "blue"), ("is there a square?", "no"), ("is there a blue shape?", "yes")]


@pytest.fixture
def assets(tmp_path, monkeypatch):
    """Each asset's loader gives a few items on both sides; those of the test say "held out"."""
    folder = tmp_path / "assets"
    folder.mkdir()
    words = train_tokenizer(["user assistant Who is it? This is it."] * 9, folder, vocab_size=300)
    torch.manual_seed(0)
    model = Llama3Model(TextConfig.tiny(vocab_size=words.vocab_size)).eval()
    PIL.Image.new("RGB", (8, 8), "red").save(folder / "a.png")
    save_wave(folder / "a.wav", torch.zeros(1600))
    shapes = questions(*((q, a, 3) for q, a in ASKED), ("is there a shape?", "yes", 5))
    shapes = replace(shapes, pixels=torch.arange(8)[:, None, None, None].expand(8, 3, 64, 64).to(torch.uint8))
    held_out = replace(shapes, questions=["held out?"] * len(shapes))

    def drawings(*names):
        return Pictures(torch.zeros(len(names), 3, 8, 8, dtype=torch.uint8), list(names), list(names),
                        [""] * len(names))  # fmt: skip

    def named(*names, file="a.png"):
        return [Named(folder / file, name, "", "") for name in names]

    def said(*texts):
        return [Sentence(folder / "a.wav", text, "f1", "") for text in texts]

    def painted(*tags):
        return Painting(folder / "a.png", tags, "", "", "", "")

    clips = [Clip(torch.zeros(1600), word, "f1") for word in ("seven", "held out")]
    loaded = {
        "load_questions": (shapes, held_out), "load_pictures": (drawings("cat", "dog"), drawings("held out")),
        "load_sprites": (named("coin"), named("held out")),
        "load_paintings": ([painted("Men", "Food")], [painted("held out")]),
        "load_speech": (said("you should come"), said("held out")),
        "load_sentences": (said("A silo is here."), said("Held out.")),
        "load_words": Words(clips[:1], clips[1:], clips[1:]),
        "load_sounds": (named("laser", file="a.wav"), named("held out", file="a.wav")),
    }  # fmt: skip
    for name, value in loaded.items():
        monkeypatch.setattr(release_data, name, lambda _folder, value=value: value)
    for side, question in (("train", "Who is it?"), ("test", "held out?")):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "Not this."}]
        (folder / f"{side}.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
        article = {"title": "Silo", "text": "A silo is here." if side == "train" else "held out"}
        (folder / "wiki").mkdir(exist_ok=True)
        (folder / "wiki" / f"{side}.jsonl").write_text(json.dumps(article) + "\n")
    monkeypatch.setattr(release_data, "fetch", lambda name: folder / "wiki" if name == "wiki" else folder)
    monkeypatch.setattr(release_data, "from_pretrained", lambda _name: (model, words))
    monkeypatch.setattr(release_data, "generate", lambda _model, ids, *_args, **_options: torch.cat(
        [ids, torch.tensor([[*words.encode(" This is it. This is"), min(words.stop_ids)]] * len(ids))], dim=1))
    return folder


@pytest.fixture
def data(assets, tmp_path):  # noqa: ARG001
    write_data(tmp_path / "data")
    return tmp_path / "data"


def records(data, name):
    documents = open_documents(data / f"{name}.jsonl")
    return [read_record(document, folder=documents.folder) for document in documents]


def test_every_file_is_read_by_training_and_nothing_is_of_a_test(data):
    assert {path.name for path in data.iterdir()} == {"media", *(f"{name}.jsonl" for name in FILES)}
    for name in FILES:
        assert "held out" not in (data / f"{name}.jsonl").read_text(encoding="utf-8").lower()
        found = records(data, name)
        assert found, name
        for record in found:
            check_record(record)
            for medium in record.media:
                assert Path(medium.source).is_file()
            if name in ("shapes", "drawings", "paintings", "speech", "words", "sounds"):
                check_aligned(record)  # what the first stage learns from, some of it
    assert {type(m) for name in FILES[:4] for r in records(data, name) for m in r.media} == {Image}
    assert {type(m) for name in FILES[4:7] for r in records(data, name) for m in r.media} == {Sound}


def test_articles_are_texts_to_go_on_with(data):
    (article,) = records(data, "text")
    assert article.text == "Silo\n\nA silo is here."


def test_a_picture_of_shapes_has_its_name_and_a_few_questions(data):
    (named,) = records(data, "shapes")
    assert named.messages[-1]["content"] == "blue circle"
    assert np.unique(np.asarray(load_image(named.media[0].source))).tolist() == [3]  # that picture's own pixels
    one, other = records(data, "questions")
    assert len(one.messages) == 2 * A_PICTURE and len(one.media) == len(other.media) == 1
    pairs = {(turns[0]["content"] if isinstance(turns[0]["content"], str) else turns[0]["content"][-1],
              turns[1]["content"]) for turns in zip(one.messages[::2], one.messages[1::2], strict=True)}  # fmt: skip
    assert len(pairs) == A_PICTURE and pairs <= {*ASKED, *((question, "blue circle") for question in NAME)}
    assert [m["content"] for m in other.messages[1:]] == ["yes"]  # one question, and what it shows is not known


def test_answers_are_the_names_and_words(data):
    def answers(name):
        return [record.messages[-1]["content"] for record in records(data, name)]

    def asked(name):
        return {record.messages[0]["content"][-1] for record in records(data, name)}

    assert answers("drawings") == ["cat", "dog", "coin"] and asked("drawings") <= set(NAME)
    assert answers("paintings") == ["Men, Food"]
    assert answers("speech") == ["you should come", "a silo is here"] and asked("speech") <= set(SAID)
    assert answers("words") == ["seven"] and asked("words") <= set(SAID)
    assert answers("sounds") == ["laser"] and asked("sounds") <= set(SOUND)


def test_plain_questions_have_the_text_models_own_answer_up_to_its_last_whole_sentence(data):
    (record,) = records(data, "plain")
    assert [m["content"] for m in record.messages] == ["Who is it?", " This is it."] and record.media == []


def test_the_seed_decides_it(assets, tmp_path):  # noqa: ARG001
    said = []
    write_data(tmp_path / "one", say=said.append)
    write_data(tmp_path / "same", seed=0)
    write_data(tmp_path / "other", seed=5)
    one, same, other = ([(tmp_path / name / f"{file}.jsonl").read_text() for file in FILES]
                        for name in ("one", "same", "other"))  # fmt: skip
    assert one == same and one != other
    assert [line.split(":")[0] for line in said] == [name for name in FILES if name != "questions"]
