"""multiple_choice: lines of each file by hand, groups of texts that are alike, and the real ones."""

import hashlib
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamamm.assets.fetch import fetch
from llamamm.assets.multiple_choice import (
    FILES,
    ONE_IN,
    TASKS,
    ChoiceQuestion,
    alike,
    load_choices,
    read_mmlu,
    read_quartz,
    read_socialiqa,
    split,
    write_choices,
)
from llamamm.assets.splits import held_out
from llamamm.errors import InputError

# Of train.jsonl and test.jsonl: what everybody's copy must be, to the byte.
HASHES = ["04bec65e0eab838c5cd8c69390d68d74faa49cf1228e50b1071d746dd2831e00",
          "3659bdfdc64ea2c305009b24e6d36ac833fc994e8d960d1e50b139f10a570038"]  # fmt: skip
COUNTS = {"quartz": (806, 3054), "socialiqa": (442, 1782), "mmlu": (249, 951)}


def quartz(text, ideal="A"):
    return {"input": [{"role": "system", "content": "choose"}, {"role": "user", "content": text}], "ideal": ideal}


def socialiqa(text, ideal="C"):
    return {"input": [{"role": "user", "content": text}], "ideal": ideal}


def test_a_line_of_each_file_by_hand():
    (a,) = read_quartz([quartz("More wind makes a kite\n\n A: rise\n B: fall", "B")])
    assert a == {"task": "quartz", "key": "quartz/0", "question": "More wind makes a kite", "choices": ["rise", "fall"],
                 "answer": 1, "subject": ""}  # fmt: skip
    (b,) = read_socialiqa([socialiqa("Kai sang. What will Kai do next? A: rest; B: run; C: thank Robin's crew.")])
    assert (b["question"], b["choices"], b["answer"]) == (
        "Kai sang. What will Kai do next?", ["rest", "run", "thank Robin's crew"], 2)  # fmt: skip
    c, d = read_mmlu([
        {"question": "Which code\n\nis right?\n\nA. x\n y\nB. 2.5\nC. c\nD. d.\nAnswer:", "answer": "D"},
        {"question": "2 + 2?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:", "answer": "A", "topic": "algebra"},
    ])  # fmt: skip
    assert (c["question"], c["choices"], c["answer"], c["subject"]) == (
        "Which code\n\nis right?", ["x\n y", "2.5", "c", "d."], 3, "")  # fmt: skip
    assert (d["key"], d["subject"], d["answer"]) == ("mmlu/1", "algebra", 0)


def test_a_line_that_is_written_otherwise_is_refused():
    with pytest.raises(InputError, match="question 1 of quartz .* 'no choices'"):
        read_quartz([quartz("a\n\n A: b\n B: c"), quartz("no choices")])


# ---- groups ----


def test_texts_alike_by_hand():
    texts = ["a b c d e f g h i j", "x y", "a b c d e f g h X J", "A B C D E F G H, i k!", "x z", "", "", "x y"]
    # 1 and 3 share 8 of 12; 0 and 3 share 9 of 11; 0 and 2 share 9 ("J" is "j") of 11; "x y" and "x z" 1 of 3
    assert alike(texts) == [0, 1, 0, 0, 4, 5, 6, 1]
    assert alike(texts, 0.9) == [0, 1, 2, 3, 4, 5, 6, 1]
    assert alike(texts, 0.3) == [0, 1, 0, 0, 1, 5, 6, 1]


def by_all_pairs(texts, least):
    words = [{*text.split()} for text in texts]
    group = list(range(len(texts)))
    for n in range(len(texts)):
        for m in range(n):
            if words[n] & words[m] and len(words[n] & words[m]) >= least * len(words[n] | words[m]):
                group = [min(group[n], group[m]) if g in (group[n], group[m]) else g for g in group]
    return group


@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=6).map(" ".join), max_size=12),
       st.sampled_from([0.25, 0.5, 0.6, 0.75, 1.0]))  # fmt: skip
def test_texts_alike_are_those_that_all_pairs_give(texts, least):
    assert alike(texts, least) == by_all_pairs(texts, least)


def test_a_group_stays_on_one_side_whatever_the_order():
    pairs = [(f"ice{n} and fire{n} melt{n} stones{n} more", f"ice{n} and fire{n} melt{n} stones{n} less")
             for n in range(100)]  # fmt: skip
    records = read_quartz([quartz(f"{text}\n\n A: x\n B: y") for pair in pairs for text in pair])
    sides = [{r["question"] for r in side} for side in split(records)]
    assert all(({*pair} <= sides[0]) != ({*pair} <= sides[1]) for pair in pairs)
    random.Random(0).shuffle(records)
    assert [{r["question"] for r in side} for side in split(records)] == sides
    assert 5 < len(sides[0]) / 2 < 40  # 1 in 5 of a hundred groups


def test_a_scene_is_what_two_questions_about_it_share():
    scene = "Kai gave a ball to Robin."
    records = read_socialiqa([socialiqa(f"{text} A: a; B: b; C: c.") for text in (
        f"{scene} Why did Kai do this?", f"{scene} How would you describe what somebody as kind as Kai does here?",
        "Kai gave up. Why did Kai do this?")])  # fmt: skip
    groups = {r["key"]: r["group"] for side in split(records) for r in side}
    assert groups == {"socialiqa/0": "socialiqa/0", "socialiqa/1": "socialiqa/0", "socialiqa/2": "socialiqa/2"}


# ---- the folder ----


@pytest.fixture(scope="module")
def folder():
    return fetch("multiple-choice", progress=False)


@pytest.fixture(scope="module")
def real(folder):
    return load_choices(folder)


def test_files_are_the_same_for_everybody(folder, tmp_path):
    assert [hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in FILES[:2]] == HASHES
    names = ("samples.jsonl", "test.jsonl", "samples-all-large.jsonl", "samples-all.jsonl", "LICENSE.md")
    write_choices(*(folder.parent / name for name in names), tmp_path)  # now, and when it was fetched
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(FILES)
    assert all((tmp_path / file).read_bytes() == (folder / file).read_bytes() for file in FILES)


def test_the_real_ones(real):
    assert tuple(real) == TASKS and {task: tuple(map(len, sides)) for task, sides in real.items()} == COUNTS
    for (task, (train, test)), n in zip(real.items(), (2, 3, 4), strict=True):
        both = [*train, *test]
        assert {len(q.choices) for q in both} == {n}
        assert len({q.key for q in both}) == len(both)
        assert not {q.group for q in train} & {q.group for q in test}
        assert all(text == text.strip() != "" for q in both for text in (q.question, *q.choices))
        right = [sum(q.answer == i for q in test) / len(test) for i in range(n)]
        assert all(share == pytest.approx(1 / n, abs=0.05) for share in right), task
    assert sum(q.subject != "" for side in real["mmlu"] for q in side) == 200


def test_some_of_the_real_ones(real):
    test = {q.key: q for _, side in real.values() for q in side}
    assert test["quartz/1"] == ChoiceQuestion(
        "quartz/1", "As you monitor sound waves closer to a speaker they become", ("louder", "quieter"), 0, "",
        "quartz/1")  # fmt: skip
    assert test["mmlu/3"].choices[test["mmlu/3"].answer] == "$1,000"
    assert test["socialiqa/0"].choices[2] == "thank bailey"


def test_most_questions_of_quartz_come_in_twos(real):
    sizes = {}
    for side in real["quartz"]:
        for q in side:
            sizes[q.group] = sizes.get(q.group, 0) + 1
    assert sum(size == 2 for size in sizes.values()) / len(sizes) > 0.8 and max(sizes.values()) == 8


def test_questions_that_differ_by_one_word_are_never_on_both_sides(real):
    """Another look than the one that made the groups: take each word out, and see what is left of the other side."""
    def holes(q):
        words = q.question.lower().split()
        return {" ".join([*words[:i], "_", *words[i + 1 :]]) for i in range(len(words))} if len(words) > 4 else set()

    train, test = ({hole for q in side for hole in holes(q)} for side in real["quartz"])
    assert not train & test


@pytest.mark.parametrize("spoil", [
    lambda d: (d / "test.jsonl").unlink(),
    lambda d: (d / "train.jsonl").write_text('{"task": "quartz"}\n'),
    lambda d: (d / "train.jsonl").write_text("no JSON\n"),
    lambda d: (d / "train.jsonl").write_text(json.dumps(dict(
        task="quartz", key="quartz/9", question="?", choices=["a", "b"], answer=2, subject="", group="g")) + "\n"),
])  # fmt: skip
def test_a_folder_that_is_not_whole_is_refused(folder, tmp_path, spoil):
    for file in FILES:
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    assert load_choices(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match="llamamm fetch multiple-choice"):
        load_choices(tmp_path)


def test_sides_follow_from_a_hash():
    learned, tested = ([f"a{n}" for n in range(40) if held_out(f"a{n}", ONE_IN) == side] for side in (True, False))
    train, test = split(read_quartz([quartz(f"{key}\n\n A: x\n B: y") for key in (*learned, *tested)]))
    assert [r["question"] for r in train] == learned and [r["question"] for r in test] == tested


def test_credit(folder):
    text = (folder / "LICENSE.txt").read_text(encoding="utf-8")
    for part in ("1909.03553", "1904.09728", "2009.03300", "licenses/by/4.0", "Copyright (c) 2023 OpenAI", "Social IQA",
                 "Permission is hereby granted", "Changed here"):  # fmt: skip
        assert part in text
