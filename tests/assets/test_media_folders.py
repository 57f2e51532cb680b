"""media_folders: what is written is read again, by training too, and what is not whole is refused."""

import pytest

from llamamm.assets.media_folders import FILES, read_sides, write_side
from llamamm.errors import InputError
from llamamm.train.documents import open_documents
from llamamm.train.records import read_record


@pytest.fixture
def folder(tmp_path):
    write_side(tmp_path / "train", [({"file_name": "a.png", "text": "Zoë", "new": ""}, b"A"),
                                    ({"file_name": "b.png", "text": "a dog", "new": ""}, b"B")])
    write_side(tmp_path / "test", [({"file_name": "a.png", "text": "a cat", "new": "thing"}, b"C")])
    return tmp_path


def test_each_record_has_its_own_file(folder):
    train, test = read_sides(folder, ("text", "new"), asset="tiny")
    assert [(r["text"], r["path"].read_bytes()) for r in train + test] == [
        ("Zoë", b"A"), ("a dog", b"B"), ("a cat", b"C")]
    assert test[0]["path"] == folder / "test" / "a.png" and test[0]["new"] == "thing"
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.jsonl")) == sorted(FILES)


def test_training_reads_a_side(folder):
    documents = open_documents(folder / "train")
    record = read_record(documents[1], folder=documents.folder)
    question, answer = record.messages
    assert record.media[0].source == folder / "train" / "b.png"
    assert question["content"][-1] == "Describe the picture." and answer["content"] == "a dog"


@pytest.mark.parametrize("spoil, said", [
    (lambda d: (d / "train" / "b.png").unlink(), "b.png is missing from train"),
    (lambda d: (d / "test" / "metadata.jsonl").unlink(), "metadata.jsonl"),
    (lambda d: (d / "test" / "metadata.jsonl").write_text(""), "test/metadata.jsonl has no lines"),
    (lambda d: (d / "test" / "metadata.jsonl").write_text('{"file_name": "a.png"'), "delimiter"),
    (lambda d: (d / "test" / "metadata.jsonl").write_text("3"), "not subscriptable"),
    (lambda d: (d / "test" / "metadata.jsonl").write_bytes(b"\xff\n"), "utf-8"),
    (lambda d: (d / "test" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}'), "no 'new'"),
    (lambda d: (d / "test" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": 3, "new": ""}'), "got 3"),
    (lambda d: (d / "test" / "metadata.jsonl").write_text('{"file_name": "../train/a.png", "text": "", "new": ""}'),
     "missing from test"),
])  # fmt: skip
def test_a_folder_that_is_not_whole_is_refused(folder, spoil, said):
    spoil(folder)
    with pytest.raises(InputError, match=f"no whole set .*{said}.*llamamm fetch tiny"):
        read_sides(folder, ("text", "new"), asset="tiny")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="llamamm fetch tiny"):
        read_sides(tmp_path / "typo", (), asset="tiny")
