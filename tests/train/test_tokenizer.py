"""train.tokenizer: a tokenizer of these texts reads any text."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamm.errors import MissingDependencyError
from llamamm.text.chat import Llama3Chat, chat_format
from llamamm.train.tokenizer import SPECIAL, train_tokenizer
from tests.media_items import TEXTS, VOCAB


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer"), vocab_size=VOCAB)


def test_a_tokenizer_of_these_texts(tokenizer, tmp_path):
    assert isinstance(chat_format(tokenizer), Llama3Chat) and 256 + len(SPECIAL) < tokenizer.vocab_size <= VOCAB
    assert all(name in tokenizer.special_tokens for name in SPECIAL)
    assert len(tokenizer.encode("assistant")) == 1  # often enough to be a token
    again = train_tokenizer(TEXTS, tmp_path, vocab_size=VOCAB)
    assert again.encode("what colour is a zebra?") == tokenizer.encode("what colour is a zebra?")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
@settings(max_examples=30)
def test_the_tokenizer_reads_any_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and not set(ids) & set(tokenizer.special_tokens.values())


def test_without_the_tokenizers_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependencyError, match=r"llamamm\[train\]"):
        train_tokenizer(TEXTS, tmp_path, vocab_size=VOCAB)
