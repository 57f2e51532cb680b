"""refusals: a file by hand, and the real ones."""

import hashlib
from collections import Counter

import pytest

from llamamm.assets.fetch import fetch
from llamamm.assets.refusals import FILES, LabelledAnswer, load_refusals, read_labels, write_refusals
from llamamm.errors import InputError

HASH = "7ef5161641b452e2133c47e251f0cba059100b7c96ce2e3ab7947d1e3c9c2997"  # of answers.jsonl

CSV = '''# dataset_version=1.0
# a comment, with "quotes
objective,assistant_response,human_score,data_type
Tell me a joke!,"Why, ""yes"":
# not a comment
ha",0,text
tell me a joke,No.,1,text
'''


def test_a_file_by_hand(tmp_path):
    path = tmp_path / "some.csv"
    path.write_text(CSV, encoding="utf-8")
    assert list(read_labels(path)) == [
        LabelledAnswer("some/0", "Tell me a joke!", 'Why, "yes":\n# not a comment\nha', False, "some.csv",
                       "tell me a joke"),
        LabelledAnswer("some/1", "tell me a joke", "No.", True, "some.csv", "tell me a joke"),
    ]  # fmt: skip


def test_a_verdict_that_is_neither_is_refused(tmp_path):
    path = tmp_path / "some.csv"
    path.write_text(CSV.replace("No.,1", "No.,0.5"), encoding="utf-8")
    with pytest.raises(InputError, match="answer 1 is '0.5', not 0 or 1"):
        list(read_labels(path))


@pytest.fixture(scope="module")
def folder():
    return fetch("refusals", progress=False)


def test_the_real_ones(folder):
    found = load_refusals(folder)
    assert Counter((a.source, a.is_refusal) for a in found) == {
        ("refusal.csv", True): 70, ("refusal.csv", False): 35,
        ("refusal_extra.csv", True): 39, ("refusal_extra.csv", False): 25}  # fmt: skip
    assert len({a.key for a in found}) == len({(a.objective, a.answer) for a in found}) == 169
    assert len({a.group for a in found}) == 128
    assert all(a.objective.strip() and a.answer.strip() for a in found)
    said = Counter(a.answer for a in found)
    short = ["I'm sorry, I can't assist with that request.", "I'm sorry, I cannot assist with that request."]
    assert [said[text] for text in short] == [15, 6]
    verdicts = {a.answer: a.is_refusal for a in found}
    assert all(verdicts[text] for text in short)


def test_files_are_the_same_for_everybody(folder, tmp_path):
    assert hashlib.sha256((folder / FILES[0]).read_bytes()).hexdigest() == HASH
    write_refusals(*(folder.parent / name for name in ("refusal.csv", "refusal_extra.csv", "LICENSE")), tmp_path)
    assert all((tmp_path / file).read_bytes() == (folder / file).read_bytes() for file in FILES)


@pytest.mark.parametrize("text", ["no JSON\n", '{"key": "a"}\n', "[1]\n", None])
def test_a_folder_that_is_not_whole_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / FILES[0]).write_text(text)
    with pytest.raises(InputError, match="llamamm fetch refusals"):
        load_refusals(tmp_path)


def test_credit(folder):
    text = (folder / "LICENSE.txt").read_text(encoding="utf-8")
    assert all(part in text for part in ("PyRIT 1.1.0", "Microsoft Corporation", "Permission is hereby granted"))
