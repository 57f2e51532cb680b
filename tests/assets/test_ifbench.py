"""ifbench: a wheel of two prompts by hand, and the real ones."""

import hashlib
import json
import zipfile
from collections import Counter

import pytest

from llamamm.assets.fetch import fetch
from llamamm.assets.ifbench import DATA, FILES, InstructedPrompt, load_prompts, write_prompts
from llamamm.errors import InputError

HASH = "a6bd51a42b0eeaa8a687d60b8ae6cb37441dee3a1044d6d53896551024655452"  # of prompts.jsonl


def test_a_wheel_by_hand(tmp_path):
    rows = [{"key": "0", "prompt": "Say it.\u2028Twice. ", "instruction_id_list": ["count:numbers", "repeat:span"],
             "kwargs": [{"N": 5.0, "word": None}, {"n_start": 3, "share": 0.5, "text": "a", "word": None}]},
            {"key": "1", "prompt": "Hm", "instruction_id_list": [], "kwargs": []}]  # fmt: skip
    wheel = tmp_path / "small.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(DATA, "".join(json.dumps(row) + "\n" for row in rows))
    write_prompts(wheel, tmp_path)
    first, second = load_prompts(tmp_path)
    assert first == InstructedPrompt("0", "Say it.\u2028Twice.", ("count:numbers", "repeat:span"),
                                     ({"N": 5}, {"n_start": 3, "share": 0.5, "text": "a"}))  # fmt: skip
    assert type(first.arguments[0]["N"]) is int and second.instructions == ()


@pytest.fixture(scope="module")
def folder():
    return fetch("ifbench", progress=False)


def test_the_real_ones(folder):
    prompts = load_prompts(folder)
    assert len(prompts) == len({p.key for p in prompts}) == len({p.prompt for p in prompts}) == 294
    assert Counter(len(p.instructions) for p in prompts) == {1: 253, 2: 41}
    assert len({name for p in prompts for name in p.instructions}) == 57
    assert all(len(p.instructions) == len(p.arguments) for p in prompts)
    assert all(None not in some.values() for p in prompts for some in p.arguments)
    first = prompts[0]
    assert first.instructions == ("count:keywords_multiple",) and first.arguments[0]["keyword4"] == "labyrinth"


def test_files_are_the_same_for_everybody(folder, tmp_path):
    assert hashlib.sha256((folder / FILES[0]).read_bytes()).hexdigest() == HASH
    (wheel,) = folder.parent.glob("*.whl")
    write_prompts(wheel, tmp_path)
    assert all((tmp_path / file).read_bytes() == (folder / file).read_bytes() for file in FILES)


@pytest.mark.parametrize("text", ["no JSON\n", '{"key": "a"}\n', None])
def test_a_folder_that_is_not_whole_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / FILES[0]).write_text(text)
    with pytest.raises(InputError, match="llamamm fetch ifbench"):
        load_prompts(tmp_path)


def test_credit(folder):
    text = (folder / "LICENSE.txt").read_text(encoding="utf-8")
    assert all(part in text for part in ("Allen Institute for AI", "licenses/by/1-0", "26.3", "Changed here"))
