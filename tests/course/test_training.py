"""course.training: what lesson 10 trains on and how it starts its runs."""

import gc
import json
import math

import pytest
import torch

from llamamm.course.swap import real_model
from llamamm.course.training import SMALL, VOCAB, Encyclopedia, first_sentence, read_dialogues
from llamamm.train.documents import open_documents


@pytest.fixture(scope="module")
def book():
    return Encyclopedia()


@pytest.mark.parametrize(("text", "sentence"), [
    ("A squid is a mollusc with ten arms. It swims.", "A squid is a mollusc with ten arms."),
    ("John F. Kennedy was a president of the U.S. He died.", "John F. Kennedy was a president of the U.S. He died."),
    ("It lies at 3.5 degrees from the pole. Cold.", "It lies at 3.5 degrees from the pole."),
    ("A short one. Then a longer one follows it. More.", "A short one. Then a longer one follows it."),
    ("no full stop at all, not one", "no full stop at all, not one"), ("Short.", "Short."),
])  # fmt: skip
def test_a_first_sentence_does_not_end_at_an_initial(text, sentence):
    assert first_sentence(text) == sentence


def test_entries_and_held_out_ones_are_also_files(book):
    assert (len(book.entries), len(book.held_out)) == (9840, 193)
    lines = (book.folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines[:3]] == [book.entries[i] for i in range(3)]
    assert not {e["text"] for e in book.entries} & {e["text"] for e in book.held_out}
    assert book.encode(book.entries[0]).ids[-1] == book.tokenizer.special_tokens["<|end_of_text|>"]


def test_the_folder_goes_away_with_the_object():
    book = Encyclopedia()
    folder = book.folder
    assert folder.is_dir()
    del book
    gc.collect()
    assert not folder.exists()


def test_a_fresh_trainer_is_decided_by_its_seed_and_knows_nothing(book):
    one, same, other = (book.trainer(SMALL, seed=seed) for seed in (0, 0, 1))
    assert all(map(torch.equal, one.model.parameters(), same.model.parameters()))
    assert torch.equal(next(one.batches).ids, next(same.batches).ids)
    assert not torch.equal(one.model.embed_tokens.weight, other.model.embed_tokens.weight)
    assert not torch.equal(next(one.batches).ids, next(other.batches).ids)
    assert abs(one.evaluate() - math.log(VOCAB)) < 0.2


def test_it_writes_on_one_line_by_the_seed(book):
    model = book.trainer(SMALL).model
    said = book.write(model, "The Great Llama", seed=3)
    assert said.startswith("The Great Llama") and "\n" not in said
    assert said == book.write(model, "The Great Llama", seed=3) != book.write(model, "The Great Llama", seed=4)


def test_the_unigram_model_lies_between_knowing_nothing_and_one(book):
    assert 100 < book.unigram_perplexity() < VOCAB / 2


def test_a_tiny_run_names_files_that_are_there_and_folders_are_new(book):
    first, second = book.new_folder(), book.new_folder()
    assert first != second and not list(first.iterdir())
    cfg = book.tiny_run(first / "run")
    assert len(open_documents(cfg.data)) == 9840 and cfg.output == first / "run"


def test_dialogues_as_the_head_reads_them():
    model, tokenizer = real_model()
    (hidden, following, learn), = read_dialogues(model, tokenizer, range(33, 34))
    assert hidden.shape == (len(following), 576) and len(learn) == len(following)
    assert following[learn][-1] == tokenizer.special_tokens["<|im_end|>"]
    assert 0 < int(learn.sum()) < len(learn)
    loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), following).detach()
    assert 0.5 < float(loss) < 6
