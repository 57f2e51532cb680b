"""llamamm.session: history, the cache kept between turns, interruption."""

import pytest
import torch

from llamamm import Llama3Model, TextConfig, TextStream, Tokenizer, chat_format
from llamamm.errors import ContextOverflowError
from llamamm.session import ChatSession


@pytest.fixture(scope="module")
def parts(smollm2_dir):
    torch.manual_seed(0)
    return Llama3Model(TextConfig.tiny(vocab_size=49_152)).eval(), Tokenizer(smollm2_dir)


def fresh_answer(parts, messages, n):
    model, tokenizer = parts
    return "".join(TextStream(model, tokenizer, chat_format(tokenizer).encode(messages), max_new_tokens=n))


def test_each_turn_equals_reading_everything_anew(parts):
    session = ChatSession(*parts, max_new_tokens=8)
    for text in ("Hello there", "And then?", "Why?"):
        expected = fresh_answer(parts, [*session.messages, {"role": "user", "content": text}], 8)
        assert "".join(session.reply(text)) == expected
    assert [m["role"] for m in session.messages] == ["user", "assistant"] * 3


def test_only_what_is_new_is_read(parts, monkeypatch):
    session = ChatSession(*parts, max_new_tokens=4)
    read = []
    run_blocks = Llama3Model.run_blocks
    monkeypatch.setattr(
        Llama3Model, "run_blocks", lambda self, x, **k: read.append(x.shape[1]) or run_blocks(self, x, **k)
    )
    list(session.reply("A first message, which is long enough to be seen in the count of tokens"))
    first = read[0]
    read.clear()
    list(session.reply("Hm"))
    assert read[0] < first


def test_an_answer_broken_off_is_kept_as_far_as_it_came(parts):
    session = ChatSession(*parts, max_new_tokens=50)
    reply = session.reply("Tell me everything")
    said = next(reply) + next(reply)
    reply.close()
    assert session.messages[-1] == {"role": "assistant", "content": said}
    expected = fresh_answer(parts, [*session.messages, {"role": "user", "content": "Go on"}], 50)
    assert "".join(session.reply("Go on")) == expected


def test_system_message_and_reset(parts):
    session = ChatSession(*parts, system="Be brief.", max_new_tokens=4)
    assert session.messages == [{"role": "system", "content": "Be brief."}]
    list(session.reply("Hi"))
    session.reset()
    assert session.messages == []
    assert "".join(session.reply("Hi")) == fresh_answer(parts, [{"role": "user", "content": "Hi"}], 4)


def test_a_conversation_that_outgrows_the_context_is_refused_and_unchanged(parts):
    session = ChatSession(*parts, context_size=64, max_new_tokens=4)
    list(session.reply("Hi"))
    before = list(session.messages)
    with pytest.raises(ContextOverflowError, match=r"tokens, the context 64.*reset"):
        list(session.reply("word " * 100))
    assert session.messages == before
    assert "".join(session.reply("Go on")) == fresh_answer(parts, [*before, {"role": "user", "content": "Go on"}], 4)
