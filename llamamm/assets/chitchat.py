"""Conversations between people, as chats to be tuned on: the Chit-Chat Challenge of Brigham Young University.

    a wheel -> 7,168 conversations of two people, or of one to whom nobody answers
            -> {"messages": [user, assistant, ...]}, 4 to 12 messages each

Who speaks first is the user, and what one person sends in a row is one message, a line each. A conversation ends before
the first words that are not for a class, or that tell who or where somebody is. Long ones become several records.

Held out by person: 1 in 20 of them, by the hash of their id. A conversation in which one of these takes part is in the
test, whole, so no word of theirs is in training; whom they talk with may be.

Fetched by `llamamm.assets.fetch` as "chitchat". Source: W. Myers, T. Etchart, N. Fulda, Conversational Scaffolding,
2020. Used where the course tunes on chats.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from zipfile import ZipFile

from llamamm.assets.splits import held_out

FEWEST, MOST = 4, 12  # messages of a record; fewer are mostly greetings
ONE_IN = 20  # people who are held out
LONGEST = 400  # characters of a message, in all its lines: beyond it somebody pastes or rants

# As a conversation comes to one of these it ends.
UNFIT = re.compile(
    # where or who somebody is
    r"https?:|www\.|\.com\b|@|\d{5}|\b(?:insta(?:gram)?|snap(?:chat)?|facebook|tinder|phone number|my number)\b"
    r"|\b(?:my|your) name\b"
    # insults, sex, drink and drugs, violence and despair
    r"|\b(?:fuck|shit|bitch|bastard|asshole|dick|slut|whore|retard|idiot|stupid|sex(?:y|ual|\b)|porn|naked|nude|drunk"
    r"|beer|weed|marijuana|cocaine|drugs?\b|suicid|kill|murder|rape|abus)"
    # parties, wars and beliefs
    r"|\b(?:trump|obama|hillary|clinton|republican|democrat|abortion|guns?|hitler|nazi|holocaust|god|jesus|christ|church"
    r"|bible|pray(?:er|ing|s)?|mormons?|lds)\b",
    re.IGNORECASE,
)  # fmt: skip

Record = dict[str, Any]


def read_chitchat(archive: ZipFile) -> tuple[list[Record], list[Record]]:
    """(train, test) of {"messages": [user, assistant, ...]}, in the order of the wheel."""
    split: tuple[list[Record], list[Record]] = ([], [])
    for conversation in json.loads(archive.read("chitchat_dataset/dataset.json")).values():
        turns = conversation["messages"]
        people = {turn[0]["sender"] for turn in turns}
        side = any(held_out(person, ONE_IN) for person in people)
        split[side].extend({"messages": messages} for messages in _pieces(turns))
    return split


def _pieces(turns: list[list[dict[str, str]]]) -> Iterator[list[dict[str, str]]]:
    """The conversation up to what is unfit, in pieces that the user begins and the assistant ends."""
    texts = []
    for turn in turns:
        text = "\n".join(filter(None, (" ".join(sent["text"].split()) for sent in turn)))
        if not text or len(text) > LONGEST or UNFIT.search(text):
            break
        texts.append(text)
    for begin in range(0, len(texts), MOST):
        some = texts[begin : begin + MOST]
        some = some[: len(some) // 2 * 2]
        if len(some) >= FEWEST:
            yield [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(some)]


CREDIT = """\
The Chit-Chat dataset 0.9.0, https://github.com/BYU-PCCL/chitchat-dataset, by the Perception, Control and Cognition Lab
of Brigham Young University, under the licence below. Who uses it is asked to cite W. Myers, T. Etchart, N. Fulda,
Conversational Scaffolding: An Analogy-Based Approach to Response Prioritization in Open-Domain Dialogs, 2020.
Changed here: a selection. Conversations end before words that are unfit for a class or tell who somebody is; what one
person sent in a row is one message; names of senders, times, topics and ratings are left out.
"""
