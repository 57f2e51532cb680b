"""evals.train_speed: both sides train alike and are listed; what cannot be measured is refused. Nothing is timed."""

import re
import sys

import pytest

from llamamm.errors import LlamammError
from tests.cli.test_main import run, tiny_dir  # noqa: F401 (a fixture)

SMALL = ("--rows", 1, "--length", 16, "--repeats", 1, "--rank", 2, "--device", "cpu")
ROWS = ("1 x 16: seconds a step", "1 x 16: peak memory, MB", "1 x 16: the same without imports, MB")


def printed(*arguments):
    result = run("bench", "train", *arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.exception
    return result.stdout


def test_both_sides_have_the_same_losses_and_a_row_for_each_figure(tiny_dir):  # noqa: F811
    out = printed("--model", tiny_dir, "--against", "transformers", *SMALL)
    for row in ROWS:
        assert re.search(re.escape(row) + r"[^\d]+\d\S*[^\d]+\d\S*[^\d]+\d+\.\d\d x", out), row  # ours, theirs, ratio
    ours, theirs = re.findall(r"(?:llamamm|transformers) (\d+\.\d+(?:, \d+\.\d+)*)", out)
    ours, theirs = ([float(x) for x in side.split(", ")] for side in (ours, theirs))
    assert ours == pytest.approx(theirs, abs=1e-4) and len(ours) == 3
    assert ours[0] > ours[1] > ours[2]  # they train
    assert "; equal, at most" in out


def test_alone_it_needs_no_other_side(tiny_dir):  # noqa: F811
    out = printed("--model", tiny_dir, *SMALL)
    for row in ROWS:
        assert re.search(re.escape(row) + r"[^\d]+\d\S*[^\d]+$", out, re.MULTILINE), row
    assert " x (less" not in out and "transformers" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--against", "vllm"), "'transformers', got 'vllm'"), (("--rows", 0), "1 row"), (("--length", 1), "2 tokens")],
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
