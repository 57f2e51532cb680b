"""evals.train_speed: both sides train alike and are listed; what cannot be measured is refused. Nothing is timed."""

import re
import sys

import pytest
import torch

from llamamm.errors import LlamammError
from llamamm.evals import train_speed
from tests.cli.test_main import run, tiny_dir  # noqa: F401 (a fixture)

SMALL = ("--rows", 1, "--length", 24, "--repeats", 1, "--rank", 2, "--device", "cpu")
FIGURES = ("seconds a step", "peak memory, MB", "the same without imports, MB")
TEXT, PICTURES = ("--no-pictures",), ("--no-text",)


def printed(*arguments):
    result = run("bench", "train", *arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.exception
    return result.stdout


@pytest.mark.parametrize(("kind", "name"), [(TEXT, "1 x 24"), (PICTURES, "1 x 24, a picture in each row")])
def test_both_sides_have_the_same_losses_and_a_row_for_each_figure(tiny_dir, kind, name):  # noqa: F811
    out = printed("--model", tiny_dir, "--against", "transformers", *SMALL, *kind)
    for figure in FIGURES:
        row = re.escape(f"{name}: {figure}") + r"[^\d]+\d\S*[^\d]+\d\S*[^\d]+\d+\.\d\d x"  # ours, theirs, ratio
        assert re.search(row, out), figure
    ours, theirs = re.findall(r"(?:llamamm|transformers) (\d+\.\d+(?:, \d+\.\d+)*)", out)
    ours, theirs = ([float(x) for x in side.split(", ")] for side in (ours, theirs))
    assert ours == pytest.approx(theirs, abs=1e-4) and len(ours) == 3
    assert ours[0] > ours[1] > ours[2]  # they train
    assert "; equal, at most" in out
    assert re.search(re.escape(name) + r": \d+\.\d\d x as fast, with \d\.\d\d x the memory", out)
    assert ("a bridge of two linears" in out) == (kind == PICTURES)


class Worker:
    """In place of a process: notes what it is asked, and answers at once."""

    everyone = []

    def __init__(self, side, setting):
        assert sum(not worker.closed for worker in self.everyone) < 2, "a third model in memory"
        self.side, self.setting, self.asked, self.closed = side, setting, [], False
        self.everyone.append(self)

    def ask(self, question):
        assert not self.closed
        self.asked.append((question["length"], question["steps"]))
        n = question["length"]
        return {"seconds": [n / 100], "losses": [1.0, 0.5], "peak": n * 10**6, "peak_added": n * 10**5}

    def close(self):
        self.closed = True


@pytest.fixture
def workers(monkeypatch):
    monkeypatch.setattr(Worker, "everyone", [])
    monkeypatch.setattr(train_speed, "Worker", Worker)
    return Worker.everyone


def test_alone_it_needs_no_other_side(tiny_dir, workers):  # noqa: F811
    out = printed("--model", tiny_dir, *SMALL)
    assert [w.side for w in workers] == ["llamamm"] * 2
    for name in ("1 x 24", "1 x 24, a picture in each row"):
        for figure in FIGURES:
            assert re.search(re.escape(f"{name}: {figure}") + r"[^\d]+\d\S*[^\d]+$", out, re.MULTILINE), figure
    assert " x (less" not in out and "transformers" not in out and "x as fast" not in out


def test_memory_is_of_a_process_that_has_read_no_other_length(tiny_dir, workers):  # noqa: F811
    options = {"device": torch.device("cpu"), "rows": 2, "steps": 3, "repeats": 2, "pictures": False}
    report = train_speed.run_train_bench(str(tiny_dir), lengths=(8, 16), against="transformers", **options)
    assert [w.asked[0] for w in workers] == [(8, 3), (8, 3), (16, 3), (16, 3)]
    assert [len(w.asked) for w in workers[:2]] == [1, 1] and all(w.closed for w in workers)
    timed = [(n, 1) for n in (8, 16) for _ in range(1 + 2 * 3)]  # each length warm, then 2 rounds of 3 steps
    assert [w.asked[1:] for w in workers[2:]] == [timed, timed]
    assert [w.side for w in workers[2:]] == ["llamamm", "transformers"]
    figures = {row.key: row.values["transformers"] for row in report.rows}
    assert figures["8 peak"] == [8] and figures["16 peak_added"] == [1.6]
    assert figures["8 seconds"] == pytest.approx([0.08, 0.08]) and len(figures["16 seconds"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--against", "vllm"), "'transformers', got 'vllm'"), (("--rows", 0), "1 row"), (("--length", 1), "2 tokens"),
     (("--length", 19), "lengths of 20 or more"), (("--no-text", "--no-pictures"), "text, pictures or both")],
)
def test_what_cannot_be_measured_is_refused(tiny_dir, arguments, message):  # noqa: F811
    result = run("bench", "train", "--model", tiny_dir, *arguments)
    assert message in str(result.exception)


def test_a_comparison_without_peft_names_the_extra(tiny_dir, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    result = run("bench", "train", "--model", tiny_dir, "--against", "transformers", *SMALL)
    assert "peft: pip install 'llamamm[test]'" in str(result.exception)


def test_a_gguf_file_has_no_other_side(smollm2_gguf):
    result = run("bench", "train", "--model", smollm2_gguf, "--against", "transformers", *SMALL)
    assert "is a GGUF file" in str(result.exception) and "give a folder" in str(result.exception)


def test_what_fails_in_the_worker_is_one_line_here(tiny_dir):  # noqa: F811
    error = run("bench", "train", "--model", tiny_dir, "--rows", 1, "--length", 200, "--device", "cpu").exception
    assert isinstance(error, LlamammError) and "\n" not in str(error)
    assert "training with llamamm failed" in str(error) and "200 tokens = 200 pass the context of 128" in str(error)
