"""llamamm eval and llamamm experiment: the tables of what was found and heard, on a few pictures and words."""

from dataclasses import replace

import pytest
from typer.testing import CliRunner

from llamamm.assets.fetch import fetch
from llamamm.assets.openmoji import load_pictures
from llamamm.assets.spoken_words import load_words
from llamamm.cli.main import app
from llamamm.experiments import fusion_record
from tests.cli.test_main import run


def test_retrieval_prints_the_shares_of_held_out_pictures(monkeypatch):
    train, test = load_pictures(fetch("openmoji", progress=False))
    few = [replace(side, pixels=side.pixels[:n], names=side.names[:n], emoji=side.emoji[:n], new=side.new[:n])
           for side, n in ((train, 40), (test, 20))]  # fmt: skip
    monkeypatch.setattr("llamamm.assets.openmoji.load_pictures", lambda _folder: few)
    done = CliRunner().invoke(app, ["experiment", "retrieval", "--steps", "2", "--loss", "siglip"])
    assert done.exit_code == 0, done.output
    assert "2 steps" in done.stdout and "held out" in done.stdout and "25.0%" in done.stdout  # chance of 5 in 20


def test_words_prints_both_accuracies(monkeypatch):
    words = load_words(fetch("words", progress=False))
    few = replace(words, train=words.train[:60], test=words.test[:20])
    monkeypatch.setattr("llamamm.assets.spoken_words.load_words", lambda _folder: few)
    done = CliRunner().invoke(app, ["experiment", "words"])
    assert done.exit_code == 0, done.output
    assert "20 words" in done.stdout and " 20 " in done.stdout and "33" in done.stdout and "5.0%" in done.stdout


def test_the_command_of_version_0_1_that_trained_the_small_multimodal_model_still_does():
    now, then = ["experiment", "senses"], ["train-multimodal"]
    new, old = (CliRunner().invoke(app, [*command, "--help"]) for command in (now, then))
    assert new.exit_code == old.exit_code == 0
    assert new.stdout.split() == old.stdout.replace("train-multimodal", "experiment senses").split()
    assert "train-multimodal" not in CliRunner().invoke(app, ["--help"]).stdout


def test_losses_are_the_models():
    from llamamm.cli.measure import LossName
    from llamamm.senses.contrastive import LOSSES

    assert [loss.value for loss in LossName] == list(LOSSES)


@pytest.mark.parametrize(("name", "message"), [
    ("exit.txt", "does not end in .safetensors"), ("there.safetensors", "is there already"),
])  # fmt: skip
def test_the_file_of_an_exit_is_refused_before_the_training(tmp_path, name, message):
    (tmp_path / "there.safetensors").write_text("mine")
    assert message in str(run("experiment", "early-exit", tmp_path / name).exception)
    assert (tmp_path / "there.safetensors").read_text() == "mine"


def test_a_folder_where_an_experiment_writes_a_file_is_refused_before_it(tmp_path):
    assert "is a folder" in str(run("experiment", "fusion", "--output", tmp_path).exception)


def test_the_folder_of_an_experiments_file_is_made_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(fusion_record, "run_comparison", lambda **_: 1 / 0)
    begun = run("experiment", "fusion", "--output", tmp_path / "new" / "runs.json")
    assert isinstance(begun.exception, ZeroDivisionError)
    assert (tmp_path / "new").is_dir()
