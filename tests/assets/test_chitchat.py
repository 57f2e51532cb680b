"""chitchat: conversations by hand, and the real ones as chats."""

import io
import json
import re
import zipfile

import pytest

from llamamm.assets.chitchat import FEWEST, LONGEST, MOST, ONE_IN, UNFIT, read_chitchat
from llamamm.assets.fetch import fetch
from llamamm.assets.splits import held_out
from llamamm.text.chat import check_messages
from llamamm.train.documents import open_documents

LEARNED, TESTED = ([f"p{n}" for n in range(200) if held_out(f"p{n}", ONE_IN) == side] for side in (False, True))


def chats(*conversations):
    """A wheel of conversations: (people, what they send in turn), a list for each turn."""
    found = {
        f"id{n}": {"prompt": "?", "start": "2018", "messages": [
            [{"text": text, "sender": people[k % 2], "timestamp": "t"} for text in turn]
            for k, turn in enumerate(turns)]}
        for n, (people, turns) in enumerate(conversations)
    }  # fmt: skip
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as out:
        out.writestr("chitchat_dataset/dataset.json", json.dumps(found))
    return zipfile.ZipFile(packed)


def said(records):
    return [[m["content"] for m in r["messages"]] for r in records]


def turns(*texts):
    return [[text] for text in texts]


def test_what_is_sent_in_a_row_is_one_message_and_the_assistant_has_the_last_word():
    (record,), test = read_chitchat(chats((LEARNED[:2], [["Hi!", " How  are\nyou? "], ["Fine"], ["", "Good"],
                                                         ["And you?"], ["Well"]])))  # fmt: skip
    assert record["messages"] == [
        {"role": "user", "content": "Hi!\nHow are you?"}, {"role": "assistant", "content": "Fine"},
        {"role": "user", "content": "Good"}, {"role": "assistant", "content": "And you?"}]  # fmt: skip
    assert test == []


def test_a_person_is_held_out_with_all_they_take_part_in():
    known, other = LEARNED[:2], TESTED[0]
    train, test = read_chitchat(chats((known, turns(*"abcd")), ((known[0], other), turns(*"efgh")),
                                      ((other, known[1]), turns(*"ijkl"))))  # fmt: skip
    assert said(train) == [["a", "b", "c", "d"]] and said(test) == [["e", "f", "g", "h"], ["i", "j", "k", "l"]]


@pytest.mark.parametrize("end", ["see www.x.org", "me@x.org", "it is 12345", "find me on Insta", "My name is Ann",
                                 "what is your name?", "I was drunk", "vote for Trump", "He KILLED it", "x" * 401, " "])
def test_a_conversation_ends_before_what_is_unfit(end):
    train, _ = read_chitchat(chats((LEARNED[:2], turns("a", "b", "c", "d", "e", end, "g", "h"))))
    assert said(train) == [["a", "b", "c", "d"]]


@pytest.mark.parametrize("fine", ["Essex", "a cocky trumpet", "it is 1234", "skilled", "godmother", "x" * 400])
def test_words_within_words_are_fit(fine):
    train, _ = read_chitchat(chats((LEARNED[:2], turns("a", "b", "c", fine))))
    assert said(train) == [["a", "b", "c", fine]]


@pytest.mark.parametrize("n, lengths", [(1, []), (3, []), (4, [4]), (5, [4]), (13, [12]), (15, [12]), (16, [12, 4]),
                                        (24, [12, 12])])  # fmt: skip
def test_long_ones_become_several_and_greetings_none(n, lengths):
    train, _ = read_chitchat(chats((LEARNED[:2], turns(*map(str, range(n))))))
    assert [len(one) for one in said(train)] == lengths
    assert sum(said(train), []) == [str(i) for i in range(sum(lengths))]


# ---- the real ones ----


@pytest.fixture(scope="module")
def real():
    folder = fetch("chitchat", progress=False)
    return [list(open_documents(folder / f"{side}.jsonl")) for side in ("train", "test")]


def test_the_real_ones_are_chats_that_training_takes(real):
    for record in sum(real, [])[::9]:
        messages = record["messages"]
        check_messages(messages)
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert FEWEST <= len(messages) <= MOST
        assert all(0 < len(m["content"]) <= LONGEST and not UNFIT.search(m["content"]) for m in messages)


def test_no_talk_of_the_test_is_in_training(real):
    """Long messages are nobody's by chance; people who copy their own may be in both."""
    train, test = ({m["content"] for r in side for m in r["messages"] if len(m["content"]) > 60} for side in real)
    assert len(test) > 1000 and len(train & test) < 0.002 * len(test)


def test_no_names_of_senders_are_left():
    folder = fetch("chitchat", progress=False)
    text = (folder / "train.jsonl").read_text(encoding="utf-8")
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-|\"(sender|timestamp|start|prompt)\":", text)
