"""safety.fitting: conversations read, and what is kept of those that are too long."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamm.assets.guard_rows import question
from llamamm.errors import InputError
from llamamm.generation.prompts import Image
from llamamm.safety.fitting import fit, turns_of
from llamamm.safety.template import OURS
from llamamm.text.chat import chat_format


def encoder(tokenizer):
    """Our question, about all of the turns."""
    return lambda turns: chat_format(tokenizer).encode([{"role": "user", "content": question(turns)}])


def fitted(tokenizer, turns, limit):
    return fit(encoder(tokenizer), tokenizer, turns, limit)


def test_what_is_read_of_a_conversation():
    assert turns_of("Hi") == [("user", "Hi")]
    parts = ["a", {"type": "text", "text": "b"}]
    talk = [{"role": role, "content": content}
            for role, content in (("system", "Be kind."), ("user", parts), ("assistant", "c"))]  # fmt: skip
    assert turns_of(talk) == [("user", "ab"), ("assistant", "c")]


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        ([], "nothing to judge"),
        ([{"role": "system", "content": "a"}], "nothing to judge"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], "nothing to judge"),
        ([{"role": "tool", "content": "a"}], "message 0 has the role 'tool'"),
        ([{"role": "user", "content": [Image("a.png"), "a"]}], "message 0 holds more than text"),
        ([{"role": "user", "content": None}], "more than text"),
        ([{"role": "user"}], "'role' and 'content'"),
        (["Hi"], "'role' and 'content'"),
        ({"role": "user", "content": "a"}, "got dict"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_conversation_is_refused(talk, said):
    with pytest.raises(InputError, match=said):
        turns_of(talk)


def test_one_that_fits_is_one_prompt(smol):
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "How are you?")]
    ids = encoder(smol)(turns)
    assert fitted(smol, turns, len(ids)) == [ids]


def test_the_oldest_gives_way_and_it_is_said(smol):
    turns = [("user", "one " * 50), ("assistant", "two " * 50), ("user", "three " * 20)]
    limit = len(encoder(smol)(turns[1:])) - 10
    with pytest.warns(UserWarning, match="oldest messages are left out"):
        (ids,) = fitted(smol, turns, limit)
    text = smol.decode(ids)
    assert text.count("three") == 20 and "one" not in text
    assert 30 <= text.count("two") < 50 and text.count("Agent:") == 1
    assert limit - 5 <= len(ids) <= limit


def test_a_last_message_that_is_too_long_is_read_in_windows_that_overlap(smol):
    words = [f"word{n}" for n in range(300)]
    turns = [("user", "Count."), ("assistant", " ".join(words))]
    with pytest.warns(UserWarning, match="left out"):
        prompts = fitted(smol, turns, 250)
    texts = [smol.decode(ids) for ids in prompts]
    assert len(prompts) > 3 and all("Agent:" in text and "Count." not in text for text in texts)
    assert all(any(f" {word} " in f" {' '.join(text.split())} " for text in texts) for word in words)
    assert sum("word100 " in text or "word100\n" in text for text in texts) >= 1
    assert sum(text.count("word") for text in texts) > 330  # read twice where two windows meet


def test_what_a_template_does_not_read_is_not_said_to_be_left_out(smol):
    turns = [("user", "one " * 50), ("assistant", "two " * 50), ("user", "three " * 300)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompts = fit(lambda some: OURS.encode(smol, some), smol, turns, 200)
        short = fit(lambda some: OURS.encode(smol, some), smol, [*turns[:2], ("user", "Hi")], 200)
    assert len(prompts) > 1 and max(map(len, prompts)) <= 200 and len(short) == 1
    assert all("three three" in smol.decode(ids) for ids in prompts)


def test_a_context_without_room_is_told(smol):
    with pytest.raises(InputError, match=r"question alone takes \d+ of 40 tokens"):
        fitted(smol, [("user", "Hi")], 40)


def test_whatever_is_said_each_prompt_fits_and_the_whole_last_message_is_read(smol):
    encode = encoder(smol)
    empty = encode([("user", "")])
    texts = st.text(max_size=60) | st.text("ab \U0001f600é", max_size=300)
    turn = st.tuples(st.sampled_from(["user", "assistant"]), texts)

    @settings(max_examples=50)
    @given(st.lists(turn, min_size=1, max_size=4), st.integers(40, 200))
    def check(turns, room):
        limit = len(empty) + room
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prompts = fit(encode, smol, turns, limit)
        assert all(len(ids) <= limit and ids[-20:] == empty[-20:] for ids in prompts)
        role, text = turns[-1]
        said = smol.decode(smol.encode(text.strip()))
        if len(prompts) == 1 and len(encode(turns[-1:])) <= limit:
            assert smol.decode(prompts[0]).split("\n\nIs the last message")[0].rstrip().endswith(said.rstrip())
        else:
            assert len(prompts) > 1
            read = "".join(smol.decode(ids) for ids in prompts)
            assert {*said} <= {*read}

    check()
