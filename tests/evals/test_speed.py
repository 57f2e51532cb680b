"""evals.speed: what is returned and shown, and a core that is kept busy. Speeds themselves are not compared here."""

import psutil
import pytest
import torch

from llamamm.evals.report import Report, Row
from llamamm.evals.speed import one_core_busy, run_bench
from tests.cli.test_main import run, tiny_dir  # noqa: F401 (a fixture)

SMALL = dict(dtype=torch.float32, device=torch.device("cpu"), prompt_tokens=8, new_tokens=6, prefill_tokens=32)


def test_a_table_by_hand():
    rows = [Row("speed", "speed, m/s", {"llamamm": [2.0, 4.0, 9.0], "transformers": [1.0, 4.0, 3.0]}),
            Row("load", "load, seconds", {"llamamm": [3.0], "transformers": [4.0]}, lower_is_better=True)]  # fmt: skip
    report = Report("t", rows, [], {"llamamm": "llamamm", "transformers": "transformers + peft"})
    assert report["speed"].median() == 4 and report["speed"].median("transformers") == 3
    assert report["speed"].ratio() == 2  # of 2, 1 and 3
    cells = [list(column.cells) for column in report.table().columns]
    assert cells == [["speed, m/s", "load, seconds"], ["4", "3"], ["3", "4"], ["2.00 x", "0.75 x (less is better)"]]
    assert [c.header for c in report.table().columns] == ["", "llamamm", "transformers + peft", "ratio"]
    alone = Report("t", [Row("speed", "speed, m/s", {"llamamm": [2.0]})], [], {"llamamm": "llamamm"})
    assert [list(column.cells) for column in alone.table().columns] == [["speed, m/s"], ["2"]]


def test_a_busy_core_is_given_back_even_after_an_error():
    with one_core_busy() as pid:
        child = psutil.Process(pid)
        before = child.cpu_times().user
        while child.cpu_times().user < before + 0.1:  # it computes
            assert child.is_running()
    assert not psutil.pid_exists(pid)
    with pytest.raises(KeyboardInterrupt), one_core_busy() as pid:
        raise KeyboardInterrupt
    assert not psutil.pid_exists(pid)


def test_busy_adds_a_row_for_each_side_and_ends_its_process(tiny_dir):  # noqa: F811
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    report = run_bench(str(tiny_dir), repeats=2, against="transformers", busy=True, **SMALL)
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= before
    assert [row.key for row in report.rows] == ["load", "memory", "read", "decode", "decode_long", "decode_busy"]
    for key in ("read", "decode", "decode_long", "decode_busy"):
        assert {side: len(values) for side, values in report[key].values.items()} == {"llamamm": 2, "transformers": 2}
        assert report[key].median() > 0 and report[key].ratio() > 0
    assert report["decode_busy"].title == "decode 6 after 8, one core busy, tokens/s"
    assert "one core busy llamamm keeps" in report.notes[0] and ", transformers keeps" in report.notes[0]


def test_the_command_shows_what_is_kept(tiny_dir):  # noqa: F811
    result = run("bench", "--model", tiny_dir, "--dtype", "float32", "--prompt-tokens", 8, "--new-tokens", 6,
                 "--prefill-tokens", 32, "--repeats", 1, "--busy")  # fmt: skip
    assert result.exit_code == 0, result.exception
    assert "decode 6 after 8, one core busy" in result.stdout and "llamamm keeps " in result.stdout
    assert "ratio" not in result.stdout
