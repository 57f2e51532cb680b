"""llamamm.bench_train: both sides train alike and are listed; what cannot be measured is refused. Nothing is timed."""

import re

import pytest

from tests.test_cli import run, shell, tiny_dir  # noqa: F401 (a fixture)

SMALL = ("--rows", 1, "--length", 16, "--repeats", 1, "--rank", 2, "--device", "cpu")


def test_both_sides_have_the_same_losses_and_a_row_for_each_figure(tiny_dir):  # noqa: F811
    code, out, err = shell("bench", "train", "--model", tiny_dir, "--against", "transformers", *SMALL)
    assert code == 0, err
    for row in ("1 x 16: seconds a step", "1 x 16: peak memory, MB", "the same without imports"):
        assert re.search(re.escape(row) + r".*\d.*\d+\.\d\d x", out), row
    assert "; equal, at most" in out and "NOT EQUAL" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--against", "vllm"), "'transformers', got 'vllm'"), (("--rows", 0), "1 row"), (("--length", 1), "2 tokens")],
)
def test_what_cannot_be_measured_is_refused(tiny_dir, arguments, message):  # noqa: F811
    result = run("bench", "train", "--model", tiny_dir, *arguments)
    assert message in str(result.exception)
