"""Questions with choices, for measuring what a model knows: QuaRTz, SocialIQA and a sample of MMLU.

    files of a wheel -> {"task", "key", "question", "choices", "answer", "subject", "group"}: train.jsonl, test.jsonl

    quartz     3,860 with two choices: does it become more or less, once something has changed?
    socialiqa  2,224 with three: what people feel, want and do
    mmlu       1,200 with four, of exams in many subjects; 200 of them have their subject

Most questions of QuaRTz come in twos, alike but for "more" and "less", and some scenes of SocialIQA are asked about
twice. Who has seen one half knows a good deal of the other. So texts that share 6 words in 10, by Jaccard's index of
their sets of words, form a group: a group is on one side, and counts as one when an interval is drawn. The short texts
that QuaRTz asks about are not in the wheel; questions about one of them in other words are in different groups.

The train part is for examples in a prompt, and for nothing else: 1 group in 5, by the hash of its text. All else is
the test, and what a model has read elsewhere nobody here knows: the three sets are old and public.

Fetched by `llamamm.assets.fetch` as "multiple-choice". Used in notebook 17.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamamm.assets.corpora import load_records, question_key
from llamamm.assets.splits import SIDES, held_out
from llamamm.errors import InputError
from llamamm.files import write_file

FILES = (*(f"{side}.jsonl" for side in SIDES), "LICENSE.txt")
TASKS = ("quartz", "socialiqa", "mmlu")
ONE_IN = 5  # groups that examples are taken from
ALIKE = 0.6  # of the words that either of two texts has, both have so many: one group

QUARTZ = re.compile(r"(.*?)\n+ A: (.*?)\n B: (.*)", re.DOTALL)
SOCIALIQA = re.compile(r"(.*?) A: (.*?); B: (.*?); C: (.*?)\.?", re.DOTALL)
MMLU = re.compile(r"(.*?)\n+A\. (.*?)\nB\. (.*?)\nC\. (.*?)\nD\. (.*?)\nAnswer:", re.DOTALL)

Record = dict[str, Any]


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question and its choices, `choices[answer]` the right one.

    key: its own, "quartz/12"; group: the key of the first question that it is like, perhaps its own; subject: ""
    where it is not known, and outside MMLU.
    """

    key: str
    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""
    group: str = ""


Sides = tuple[list[ChoiceQuestion], list[ChoiceQuestion]]  # train, test


def load_choices(folder: str | Path) -> dict[str, Sides]:
    """{task: (train, test)} of a folder that `fetch("multiple-choice")` gives. Raises InputError for any other."""
    folder = Path(folder)
    try:
        sides = [load_records(folder, side) for side in SIDES]
        found: dict[str, Sides] = {task: ([], []) for task in TASKS}
        for n, side in enumerate(sides):
            for r in side:
                if not 0 <= r["answer"] < len(r["choices"]):
                    raise InputError(f"{r['key']} has {len(r['choices'])} choices and the answer {r['answer']}")
                found[r["task"]][n].append(ChoiceQuestion(r["key"], r["question"], tuple(r["choices"]), r["answer"],
                                                          r["subject"], r["group"]))  # fmt: skip
        return found
    except (OSError, KeyError, TypeError, ValueError) as error:  # InputError is a ValueError
        said = f"no {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{folder} holds no whole set ({said}); delete it and run `llamamm fetch multiple-choice` "
                         f"again") from None


# ---- from the wheel's files ----


def write_choices(quartz: Path, socialiqa: Path, mmlu: Path, topics: Path, licence: Path, folder: Path) -> None:
    """Write FILES into `folder`, from files of the wheel evals. topics: 200 more of MMLU, with their subjects."""
    records = [*read_quartz(_lines(quartz)), *read_socialiqa(_lines(socialiqa)),
               *read_mmlu([*_lines(mmlu), *_lines(topics)])]  # fmt: skip
    train, test = split(records)
    for file, side in zip(FILES, (train, test), strict=False):
        write_file(folder / file, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in side))
    write_file(folder / FILES[-1], f"{CREDIT}\n{licence.read_text(encoding='utf-8')}")


def _lines(path: Path) -> list[Any]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def read_quartz(rows: Sequence[Any]) -> list[Record]:
    """The last message of each row's "input" holds the question, " A: ..." and " B: ..."."""
    return [_record("quartz", n, QUARTZ, row["input"][-1]["content"], row["ideal"]) for n, row in enumerate(rows)]


def read_socialiqa(rows: Sequence[Any]) -> list[Record]:
    """All in one line: the scene, the question, "A: ...; B: ...; C: ..."."""
    return [_record("socialiqa", n, SOCIALIQA, row["input"][0]["content"], row["ideal"]) for n, row in enumerate(rows)]


def read_mmlu(rows: Sequence[Any]) -> list[Record]:
    """The text "question" holds four choices, too, and "Answer:" behind them; some have a "topic"."""
    return [_record("mmlu", n, MMLU, row["question"], row["answer"]) | {"subject": row.get("topic", "")}
            for n, row in enumerate(rows)]  # fmt: skip


def _record(task: str, n: int, pattern: re.Pattern[str], text: str, letter: str) -> Record:
    match = pattern.fullmatch(text)
    if match is None:
        raise InputError(f"question {n} of {task} is not written as the others are: {text[:80]!r}")
    question, *choices = (part.strip() for part in match.groups())
    return {"task": task, "key": f"{task}/{n}", "question": question, "choices": choices,
            "answer": "ABCD".index(letter), "subject": ""}  # fmt: skip


# ---- groups and sides ----


def split(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """(train, test), each record with its "group". A group's side follows from the first of its texts by alphabet."""
    sides: tuple[list[Record], list[Record]] = ([], [])
    for task in dict.fromkeys(r["task"] for r in records):
        some = [r for r in records if r["task"] == task]
        firsts = alike([_scene(r) for r in some])
        names: dict[int, str] = {}
        for first, record in zip(firsts, some, strict=True):
            key = question_key(record["question"])
            names[first] = min(names.get(first, key), key)
        for first, record in zip(firsts, some, strict=True):
            sides[not held_out(names[first], ONE_IN)].append({**record, "group": some[first]["key"]})
    return sides


def _scene(record: Record) -> str:
    """What is alike in a group: a question, or in SocialIQA what stands before it, if anything does."""
    text = record["question"]
    before = re.match(r".*[.!?]\S*(?= [^.?!]*\?$)", text, re.DOTALL) if record["task"] == "socialiqa" else None
    return before[0] if before else text


def alike(texts: Sequence[str], least: float = ALIKE) -> list[int]:
    """For each text the first one of its group: a group is what chains of texts connect, each like the next.

    Two are alike if |a & b| / |a | b| >= least, a and b their sets of words, not empty. Only texts that share a rare
    word are compared: what is like a text of n words has one of its n - ceil(least n) + 1 rarest ones.
    """
    words = [frozenset(re.findall(r"\w+", text.lower())) for text in texts]
    counts = Counter(word for some in words for word in some)
    seen_in: dict[str, list[int]] = defaultdict(list)
    first = list(range(len(texts)))

    def find(n: int) -> int:
        while first[n] != n:
            n = first[n]
        return n

    for n, some in enumerate(words):
        by_rarity = sorted(some, key=lambda word: (counts[word], word))
        rare = by_rarity[: len(some) - int(-(-least * len(some) // 1)) + 1]
        for m in sorted({m for word in rare for m in seen_in[word]}):
            if len(some & words[m]) >= least * len(some | words[m]):
                low, high = sorted((find(n), find(m)))
                first[high] = low
        for word in rare:
            seen_in[word].append(n)
    return [find(n) for n in range(len(texts))]


CREDIT = """\
Three sets of questions, as packed in evals 3.0.1.post1 by OpenAI, https://github.com/openai/evals:
QuaRTz, by Tafjord, Gardner, Lin and Clark, 2019, https://arxiv.org/abs/1909.03553, which the Allen Institute for AI
shares under CC BY 4.0; the wheel's licence does not name it and so puts it under MIT.
SocialIQA, by Sap, Rashkin, Chen, Le Bras and Choi, 2019, https://arxiv.org/abs/1904.09728, under CC BY 4.0,
https://creativecommons.org/licenses/by/4.0/.
MMLU, by Hendrycks and others, 2021, https://arxiv.org/abs/2009.03300, under MIT: 1,200 questions, as the wheel has them
for an evaluation of its own.
Changed here: questions and choices taken apart; groups of texts that are alike, and two parts of them, by hash.
The licence of the wheel follows; it names those of the data in it.
"""
