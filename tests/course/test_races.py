"""course.races: calls in turns, operations counted, a learner's row compiled over all rows."""

import numpy as np
import pytest
import torch

from llamamm.course import races
from llamamm.course.races import count_operations, over_rows, take_turns


def row(codes, scales, x):
    total = np.float32(0)
    for j in range(len(x)):
        total += np.float32(codes[j]) * x[j]
    return scales[0] * total


def test_calls_take_turns_after_one_call_each_and_threads_are_as_before():
    said, threads = [], torch.get_num_threads()
    found = take_turns({"a": lambda: said.append("a"), "b": lambda: said.append("b")}, 3, threads=1)
    assert "".join(said) == "ab" * 4 and [*found] == ["a", "b"] and min(found.values()) >= 0
    with pytest.raises(ZeroDivisionError):
        take_turns({"a": lambda: 1 / 0}, 1, threads=threads + 1)
    assert torch.get_num_threads() == threads


def test_operations_are_counted_as_pytorch_runs_them():
    x = torch.ones(2)
    assert [count_operations(call) for call in (lambda: x + 1, lambda: (x + 1) * 2, lambda: None)] == [1, 2, 0]


def test_a_row_is_run_over_all_rows():
    pytest.importorskip("numba")
    codes, scales, x = np.arange(6, dtype=np.int8).reshape(2, 3), np.float32([[2], [0.5]]), np.float32([1, 0, -1])
    assert over_rows(row, codes, scales, x)().tolist() == [-4.0, -1.0]


def test_what_numba_cannot_compile_is_told_in_one_line(capsys):
    pytest.importorskip("numba")

    def strange(codes, scales, x):
        return torch.from_numpy(codes).sum() + len(scales) + len(x)

    assert over_rows(strange, np.ones((1, 2), np.int8), np.ones((1, 1), np.float32), np.ones(2, np.float32)) is None
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "cannot compile your strange" in out


def test_without_numba_nothing_is_compiled(monkeypatch, capsys):
    monkeypatch.setattr(races, "is_available", lambda: False)
    assert over_rows(row, *np.ones((3, 1, 1), np.float32)) is None
    assert "numba is not installed" in capsys.readouterr().out
