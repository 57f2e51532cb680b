"""evals.same_tokens: compiled decoding beside PyTorch's, and what is told of one that differs."""

import pytest
import torch
from typer.testing import CliRunner

from llamamm import Llama3Model, TextConfig, save_pretrained
from llamamm.cli.main import app
from llamamm.errors import InputError
from llamamm.evals.same_tokens import Difference, compare_tokens, prompts_for
from llamamm.fast.decoder import FastDecoder, equip

PROMPTS = [[1, 2, 3], [7] * 9, [4]]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return equip(Llama3Model(TextConfig.tiny()).eval(), fast=True)


def test_compiled_steps_write_what_pytorch_reads(model):
    told = []
    found = compare_tokens(model, PROMPTS, new_tokens=12, say=lambda *words: told.append(words))
    assert found.n_prompts == 3 and found.n_tokens == 36 and not found.differences and found.largest < 1e-4
    assert "36 tokens" in found.written() and told[-1] == ("answers", 3, 3)
    assert isinstance(model.fast, FastDecoder)  # as it was


def test_a_decoder_that_computes_something_else_is_found(model, monkeypatch):
    right = FastDecoder.step

    def wrong_at_the_third(self, model, ids, *others):
        scores, self.n = right(self, model, ids, *others), getattr(self, "n", 0) + (ids.shape[1] == 1)
        if self.n == 3 and scores is not None:
            scores[0, 0, int(scores.argmax())] -= 100
        return scores

    monkeypatch.setattr(FastDecoder, "step", wrong_at_the_third)
    found = compare_tokens(model, PROMPTS[:1], new_tokens=6)
    (difference,) = found.differences  # what follows is compared on the same text, so that nothing more differs
    assert difference.place == 3 and difference.gap > 1e-4 and found.largest > 99
    assert "1 are others" in found.written() and "token 3" in found.written()


def test_the_largest_gaps_are_told_first(model):
    found = compare_tokens(model, PROMPTS[:1], new_tokens=1)
    many = found._replace(differences=tuple(Difference(p, 0, gap) for p, gap in enumerate((0.1, 0.4, 0.2, 0.3))))
    lines = many.written().splitlines()[1:]
    assert [line.split(",")[0].strip() for line in lines] == ["answer 1", "answer 3", "answer 2"]


def test_what_cannot_be_compared_is_refused(model):
    with pytest.raises(InputError, match="fast=True"):
        compare_tokens(equip(model, fast=False), PROMPTS)
    equip(model, fast=True)
    for prompts, n in (([], 4), (PROMPTS, 0)):
        with pytest.raises(InputError, match="a prompt and a new token"):
            compare_tokens(model, prompts, new_tokens=n)


def test_prompts_are_asked_or_begun(smol):
    prompts = prompts_for(smol, 20)
    assert len(prompts) == 20 and len({tuple(ids) for ids in prompts}) == 20
    assert prompts_for(smol, 3) == prompts[:3]
    with pytest.raises(InputError, match="1 prompt or more, got -2"):  # of the list's slice there would be four
        prompts_for(smol, -2)
    refused = CliRunner().invoke(app, ["bench", "same", "--prompts", "-2"])
    assert refused.exit_code == 2 and "greater than or equal to 1" in refused.output


@pytest.mark.parametrize("bits", [[], ["--bits", "8"]])
def test_the_command_ends_well_where_all_is_the_same(smol, tmp_path, bits):
    torch.manual_seed(0)
    config = TextConfig.tiny(vocab_size=smol.vocab_size)
    save_pretrained(Llama3Model(config), tmp_path, tokenizer=smol)
    words = ["bench", "same", "--model", str(tmp_path), "--prompts", "2", "--new-tokens", "4", *bits]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and done.stdout.startswith("2 answers, 8 tokens")
