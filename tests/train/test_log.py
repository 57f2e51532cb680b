"""train.log: the lines of a run, what a killed run left, TensorBoard's events, the picture's curves."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamamm.errors import MissingDependencyError
from llamamm.train.log import RunLog, plot_run, read_metrics, smooth

VALUES = {"loss": 2.5, "learning_rate": 1e-3, "grad_norm": 0.7, "tokens_per_s": 10.0, "epoch": 0.1}


def run(folder, *, steps=4, **options):
    log = RunLog(folder, quiet=True, **options)
    for step in range(1, steps + 1):
        log.step(step, **VALUES)
    log.evaluation(steps, loss=2.0, best=2.0, samples={"Once": " upon a time"})
    log.skipped(steps + 1, loss=float("nan"), grad_norm=float("inf"), n_skipped=1)
    log.close()
    return log


def test_each_line_is_json_and_says_its_step(tmp_path):
    run(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": 1, **VALUES}
    assert lines[4] == {"step": 4, "eval_loss": 2.0, "samples": {"Once": " upon a time"}}
    assert lines[5] == {"step": 5, "skipped": 1, "loss": "nan", "grad_norm": "inf"}  # JSON has no NaN


def test_a_run_that_goes_on_drops_what_came_after_its_checkpoint(tmp_path):
    run(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed in the middle of a line
    log = RunLog(tmp_path, step=2, quiet=True)
    log.step(3, **{**VALUES, "loss": 1.0})
    log.close()
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["loss"]) for r in records] == [(1, 2.5), (2, 2.5), (3, 1.0)] and records == log.records


def test_a_new_run_begins_with_an_empty_file(tmp_path):
    run(tmp_path)
    RunLog(tmp_path, quiet=True).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_what_is_shown(capsys):
    log = RunLog()
    log.step(1, **VALUES)
    log.evaluation(1, loss=2.25, best=2.0, samples={"[b]": "x"})
    log.skipped(2, loss=float("nan"), grad_norm=1.0, n_skipped=3)
    assert capsys.readouterr().err.splitlines() == [
        "step 1: training loss 2.500, held-out 2.250, best 2.000", "  '[b]' -> 'x'",
        "step 2 skipped: loss nan, gradient norm 1 (3 so far)",
    ]  # fmt: skip
    run(None)
    assert capsys.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_the_same_figures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {*VALUES, "eval_loss", "skipped"}
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(step, 2.5) for step in (1, 2, 3, 4)]
    assert [(e.step, e.value) for e in events.Scalars("eval_loss")] == [(4, 2.0)]


def test_without_tensorboard_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingDependencyError, match=r"llamamm\[train\]"):
        RunLog(tmp_path, tensorboard=True, quiet=True)


def test_the_picture_shows_the_run():
    figure = plot_run(run(None).records)
    loss, rate = figure.axes
    raw, smoothed, held_out = (line.get_xydata().tolist() for line in loss.lines[:3])
    assert raw == [[step, 2.5] for step in (1, 2, 3, 4)] and held_out == [[4, 2.0]]
    assert [y for _, y in smoothed] == pytest.approx([2.5] * 4)
    assert loss.get_title() == "Loss, steps skipped: 1" and len(loss.lines) == 4
    assert rate.lines[0].get_ydata().tolist() == [1e-3] * 4


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20))
def test_smoothing_stays_within_what_was_seen(values):
    out = smooth(values)
    assert out[0] == pytest.approx(values[0]) and len(out) == len(values)
    assert all(min(values) - 1e-6 <= v <= max(values) + 1e-6 for v in out)


def test_smoothing_by_hand():
    # keep 0.5: (0.5 * 4) / 0.5 = 4, then (0.5 * 2 + 0.5 * 0) / 0.75 = 1.3333
    assert smooth([4.0, 0.0], keep=0.5) == pytest.approx([4.0, 4 / 3])
