"""llamamm eval and llamamm experiment: the tables of what was found and heard, on a few pictures and words."""

from dataclasses import replace

from typer.testing import CliRunner

from llamamm.assets.fetch import fetch
from llamamm.assets.openmoji import load_pictures
from llamamm.assets.spoken_words import load_words
from llamamm.cli.main import app


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
