"""train.log: the lines of a run, what a killed run left, TensorBoard's events, the picture's curves."""

import json

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamamm.errors import MissingDependencyError, WriteError
from llamamm.train import log as log_module
from llamamm.train.log import RunLog, duration, plot_run, read_metrics, smooth

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


class Clock:
    """A clock that a step moves on by so many seconds."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.seconds = 100.0, seconds
        monkeypatch.setattr(log_module.time, "monotonic", lambda: self.now)

    def tick(self):
        self.now += self.seconds


def lines_of(capsys, clock, *, first, last, steps, **options):
    log = RunLog(**options)
    with log.progress(steps, first - 1):
        for step in range(first, last + 1):
            clock.tick()
            log.step(step, **VALUES)
    return capsys.readouterr().err.splitlines()


def test_without_a_terminal_a_line_every_few_seconds(capsys, monkeypatch):
    clock = Clock(monkeypatch, 2)  # lines at step 1, then where 5 seconds have gone by: 4, 7, 10, and the last
    assert lines_of(capsys, clock, first=1, last=11, steps=11) == [
        "step 1 of 11: loss 2.500, 10 tokens/s, 20 s left", "step 4 of 11: loss 2.500, 10 tokens/s, 14 s left",
        "step 7 of 11: loss 2.500, 10 tokens/s, 8 s left", "step 10 of 11: loss 2.500, 10 tokens/s, 2 s left",
        "step 11 of 11: loss 2.500, 10 tokens/s",
    ]  # fmt: skip
    assert len(lines_of(capsys, Clock(monkeypatch, 60), first=1, last=3, steps=3)) == 3
    assert len(lines_of(capsys, Clock(monkeypatch, 0.001), first=1, last=1000, steps=1000)) == 2


def test_a_run_that_goes_on_or_ends_early_tells_its_first_and_last_step(capsys, monkeypatch):
    clock = Clock(monkeypatch, 1)
    told = lines_of(capsys, clock, first=1001, last=1003, steps=5000)
    assert [line.split(":")[0] for line in told] == ["step 1,001 of 5,000", "step 1,003 of 5,000"]
    assert told[0].endswith("67 min left") or told[0].endswith("1 h 07 min left")
    assert lines_of(capsys, clock, first=1, last=3, steps=3, quiet=True) == []


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.2, "0 s"), (89, "89 s"), (600, "10 min"), (3599, "1 h 00 min"), (11100, "3 h 05 min")]
)
def test_durations(seconds, expected):
    assert duration(seconds) == expected


def test_a_full_disk_is_one_line(tmp_path):
    log = RunLog(tmp_path, quiet=True)

    class Full:
        name = "metrics.jsonl"

        def write(self, _text):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    log._file.close()
    log._file = Full()
    with pytest.raises(WriteError, match="metrics.jsonl cannot be written: No space left on device; free some space"):
        log.step(1, **VALUES)


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
    place = matplotlib.rcParams["axes.titlelocation"]  # the lessons' style has it on the left
    assert loss.get_title(loc=place) == "Loss, steps skipped: 1" and len(loss.lines) == 4
    assert rate.lines[0].get_ydata().tolist() == [1e-3] * 4


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20))
def test_smoothing_stays_within_what_was_seen(values):
    out = smooth(values)
    assert out[0] == pytest.approx(values[0]) and len(out) == len(values)
    assert all(min(values) - 1e-6 <= v <= max(values) + 1e-6 for v in out)


def test_smoothing_by_hand():
    # keep 0.5: (0.5 * 4) / 0.5 = 4, then (0.5 * 2 + 0.5 * 0) / 0.75 = 1.3333
    assert smooth([4.0, 0.0], keep=0.5) == pytest.approx([4.0, 4 / 3])
