"""course.killed: a run is ended in the middle, and goes on from its last checkpoint."""

import pytest

from llamamm.course.killed import start_and_kill
from llamamm.errors import TrainingError
from llamamm.train.checkpoint import read_state
from llamamm.train.log import read_metrics
from llamamm.train.run import run_training
from llamamm.train.tokenizer import train_tokenizer
from tests.training_data import TEXTS, settings, write_texts


def run(folder, **changes):
    train_tokenizer(TEXTS, folder, vocab_size=300)
    return settings(folder / "run", **{
        "data": str(write_texts(folder)), "tokenizer": str(folder), "steps": 400, "save_every": 5, "eval_every": 400,
        "shape": {"hidden_size": 16, "intermediate_size": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1}, **changes,
    })  # fmt: skip


def test_a_run_is_killed_after_so_many_steps_and_can_be_resumed(tmp_path):
    cfg = run(tmp_path)
    reached = start_and_kill(cfg, after=20)
    assert 20 <= reached < 400
    saved = read_state(tmp_path / "run" / "last")["step"]
    assert 0 < saved <= reached and saved % 5 == 0
    run_training(cfg, resume=True, quiet=True)
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 400


def test_a_run_that_ends_by_itself_is_told_with_its_last_line(tmp_path):
    with pytest.raises(TrainingError, match=r"ended by itself before it was killed: .*no-such-file\.jsonl"):
        start_and_kill(run(tmp_path, data=str(tmp_path / "no-such-file.jsonl")), after=1)
    with pytest.raises(TrainingError, match="ended by itself"):
        start_and_kill(run(tmp_path, steps=3), after=1000)
