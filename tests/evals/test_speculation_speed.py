"""evals.speculation_speed: what is returned and shown; speeds themselves are not compared here."""

import pytest
import torch

from llamamm import Llama3Model, TextConfig, Tokenizer, save_pretrained
from llamamm.errors import InputError
from llamamm.evals import speculation_speed
from llamamm.evals.speculation_speed import call_cost_here, predicted_speed_up, run_speculation_bench
from tests.cli.test_main import run

SMALL = dict(dtype=torch.float32, device=torch.device("cpu"), new_tokens=12, repeats=1)


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory, smollm2_dir):
    """A random model with SmolLM2's tokenizer, and room for the bench's texts."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny") / "model"
    cfg = TextConfig.tiny(vocab_size=49_152, context_length=256)
    save_pretrained(Llama3Model(cfg), folder, tokenizer=Tokenizer(smollm2_dir))
    return folder


@pytest.fixture(autouse=True)
def _pytorch_alone(monkeypatch):
    monkeypatch.setattr(speculation_speed, "is_available", lambda: False)


def test_the_prediction_by_hand():
    """3 plain calls, and 2 with 2 guesses each, half of them right: 1 + 0.5 + 0.25 tokens for 2 steps."""
    assert predicted_speed_up(3, 2, 2, 0.5, 2.0) == pytest.approx((3 + 2 * 1.75) / (3 + 4))
    assert predicted_speed_up(0, 1, 7, 1.0, 2.0) == pytest.approx(8 / 2)


def test_it_measures_kinds_of_text_and_tells_what_was_guessed(tiny_dir):
    report = run_speculation_bench(str(tiny_dir), speculate="lookup", **SMALL)
    assert [row.key for row in report.rows] == ["copy", "code", "chat"]
    assert all(row.median() > 0 and row.ratio() > 0 for row in report.rows)
    assert report.notes[-1] == "greedy answers: 6 of 6 identical"

def test_a_call_for_one_token_takes_one_step(monkeypatch):
    sizes = []
    monkeypatch.setattr(Llama3Model, "forward", lambda _m, ids, **_o: sizes.append(ids.shape[1]))
    model = Llama3Model(TextConfig.tiny())
    monkeypatch.setattr(type(model.make_cache()), "rewind", lambda _c, _n: None)
    assert call_cost_here(model, [1, 2, 3], 4, repeats=2) > 0
    assert sizes == [3, 1, 1, 1, 5, 1, 1, 1, 5]


@pytest.mark.parametrize("changes", [{"new_tokens": 1}, {"repeats": 0}])
def test_a_bench_of_nothing_is_refused(changes):
    with pytest.raises(InputError, match="2 new tokens or more"):
        run_speculation_bench("smollm2", **{**SMALL, **changes})


def test_the_command(tiny_dir):
    result = run("bench", "speculate", "--model", tiny_dir, "--dtype", "float32", "--new-tokens", 6, "--repeats", 1)
    assert result.exit_code == 0, result.exception
    for words in ("copy, PyTorch, tokens/s", "speculating", "greedy answers: 6 of 6 identical"):
        assert words in " ".join(result.stdout.split())


def test_generate_says_the_same_whatever_is_guessed(tiny_dir):
    asked = ("generate", "one two three one two three one two", "--model", tiny_dir, "--dtype", "float32", "--seed", 1,
             "--max-new-tokens", 24)  # fmt: skip
    said = [run(*asked, "--speculate", mode).stdout for mode in ("off", "lookup")]
    assert said[0] and said[0] == said[1]
