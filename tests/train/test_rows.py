"""train.rows: what is learned of a text and of a dialogue."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamm.errors import InputError
from llamamm.text.chat import ChatML, Llama3Chat
from llamamm.train.losses import IGNORE
from llamamm.train.records import check_record
from llamamm.train.rows import Example, encode_dialogue, encode_record, encode_text

I = IGNORE  # noqa: E741


def say(*turns):
    """say("user", "Hi", "assistant", "Hello") as messages."""
    return [{"role": role, "content": content} for role, content in zip(turns[::2], turns[1::2], strict=True)]


def learned(example, tokenizer):
    """The text of each run of learned tokens."""
    runs = itertools.groupby(zip(example.ids, example.learn, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([i for i, _ in run]) for learn, run in runs if learn]


# ---- texts and dialogues ----


def test_texts_begin_and_end_as_the_model_was_trained(smol, llama):
    assert llama.decode(encode_text("Hi", llama).ids) == "<|begin_of_text|>Hi<|end_of_text|>"
    assert smol.decode(encode_text("Hi", smol).ids) == "Hi<|endoftext|>"
    assert encode_text("Hi", smol).learn == [True, True]
    assert encode_text("a <|endoftext|> b", smol).ids.count(smol.special_tokens["<|endoftext|>"]) == 1


class NoEnd:
    special_tokens, eos_id, adds_bos = {}, None, False


def test_a_tokenizer_that_cannot_end_a_text_is_refused():
    with pytest.raises(InputError, match=r"none of <\|end_of_text\|>"):
        encode_text("Hi", NoEnd())


DIALOGUE = say("system", "Be brief.", "user", "2+2?", "assistant", "4.",
               "user", "<|im_end|><|eot_id|>", "assistant", "Hm\n")


def test_dialogue_mask_of_smollm2(smol):
    example = encode_dialogue(DIALOGUE, smol)
    assert learned(example, smol) == ["4.<|im_end|>", "Hm\n<|im_end|>"]
    assert smol.decode(example.ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n4.<|im_end|>\n"
        "<|im_start|>user\n<|im_end|><|eot_id|><|im_end|>\n<|im_start|>assistant\nHm\n<|im_end|>\n")
    assert learned(encode_dialogue(say("user", "a", "assistant", ""), smol), smol) == ["<|im_end|>"]
    plain = encode_dialogue(say("user", "a", "assistant", "b"), smol, chat=ChatML(smol, default_system=None))
    assert smol.decode(plain.ids).startswith("<|im_start|>user")


@pytest.mark.parametrize("variant", ["meta", "hf"])
def test_dialogue_mask_of_llama3(llama, variant):
    example = encode_dialogue(DIALOGUE, llama, chat=Llama3Chat(llama, variant=variant))
    last = "Hm\n" if variant == "meta" else "Hm"  # the Hub's template strips
    assert learned(example, llama) == ["4.<|eot_id|>", f"{last}<|eot_id|>"]
    if variant == "meta":
        assert encode_dialogue(DIALOGUE, llama) == example


def test_an_answer_may_name_the_token_that_ends_it(smol):
    example = encode_dialogue(say("user", "What ends a turn?", "assistant", "<|im_end|> does"), smol)
    assert learned(example, smol) == ["<|im_end|> does<|im_end|>"]
    assert example.ids.count(smol.special_tokens["<|im_end|>"]) == 3  # system, user, assistant


def test_tools_and_answers_in_a_row(llama):
    example = encode_dialogue(say("user", "?", "assistant", "call", "tool", "42", "assistant", "It is 42",
                                  "assistant", "!"), llama)
    assert learned(example, llama) == ["call<|eot_id|>", "It is 42<|eot_id|>", "!<|eot_id|>"]


@settings(max_examples=50)
@given(contents=st.lists(st.text(st.sampled_from("a \n.é漢<|7"), max_size=8), min_size=1, max_size=4))
def test_what_is_learned_is_what_the_model_would_write_after_its_prompt(contents, smol, llama):
    for tokenizer, chat in ((smol, ChatML(smol)), (llama, Llama3Chat(llama)), (llama, Llama3Chat(llama, variant="hf"))):
        messages = [m for n, c in enumerate(contents) for m in say("user", f"q{n}", "assistant", c)]
        example = encode_dialogue(messages, tokenizer, chat=chat)
        messages = [{**m, "content": m["content"].lstrip()} for m in messages]
        for n, content in enumerate(contents):
            prompt = chat.encode(messages[: 2 * n + 1])
            end = example.learn.index(False, len(prompt)) if False in example.learn[len(prompt) :] else len(example.ids)
            assert example.ids[: len(prompt)] == prompt and not example.learn[len(prompt) - 1]
            expected = content.strip() if getattr(chat, "variant", "") == "hf" else content.lstrip()
            written = tokenizer.decode(example.ids[len(prompt) : end])
            assert written in (f"{expected}<|im_end|>", f"{expected}<|eot_id|>")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (say("system", "x", "user", "y"), "none of the 2 messages is the assistant's"),
        (say("assistant", "x", "user", "y"), "message 0 is the assistant's"),
        ([{"role": "user"}], "message 0 must have"),
        ([], "empty"),
    ],
)
def test_dialogues_that_teach_nothing_are_refused(smol, messages, message):
    with pytest.raises(InputError, match=message):
        encode_dialogue(messages, smol)


def test_records(smol):
    text, dialogue = encode_text("a", smol), encode_dialogue(say("user", "a", "assistant", "b"), smol)
    assert encode_record({"text": "a", "source": "web"}, smol) == text
    assert encode_record({"messages": say("user", "a", "assistant", "b"), "text": None}, smol) == dialogue
    assert encode_record({"prompt": "a", "response": "b"}, smol) == dialogue
    assert encode_record({"prompt": "a", "completion": "b", "response": None}, smol) == dialogue


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"txt": "a"}, r"got 'txt' \(str\)"),
        ({"prompt": "a"}, "got 'prompt'"),
        ({"text": 3}, r"'text' \(int\)"),
        ({"text": None}, r"'text' \(NoneType\)"),
        ({"prompt": "a", "response": ["b"]}, r"'response' \(list\)"),
        ({}, "no keys"),
    ],
)
def test_records_of_another_kind_are_refused(smol, record, message):
    with pytest.raises(InputError, match=message):
        encode_record(record, smol)


def test_a_mark_for_each_id():
    with pytest.raises(InputError, match="2 ids and 1 mark;"):
        Example([1, 2], [True])



@pytest.mark.filterwarnings("ignore")
def test_cells_that_a_table_fills_into_messages_are_no_part_of_them(smol):  # fault 48
    datasets = pytest.importorskip("datasets")
    plain = [say("user", "Hi", "assistant", "Hello"), say("user", "2+2?", "assistant", "4.")]
    rows = [{"messages": [dict(message) for message in messages]} for messages in plain]
    rows[0]["messages"][1]["tool_calls"] = rows[1]["messages"][0]["name"] = None  # so these columns are there for all
    table = datasets.Dataset.from_list(rows)
    assert set(table[0]["messages"][0]) == {"role", "content", "name", "tool_calls"}
    for record, messages in zip(table, plain, strict=True):
        check_record(record)
        assert encode_record(record, smol) == encode_dialogue(messages, smol)
