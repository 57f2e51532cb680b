"""evals.guard_speed: what is returned and shown, by clocks that tests set; speeds themselves are not compared here."""

from types import SimpleNamespace

import pytest
import torch

from llamamm.errors import InputError
from llamamm.evals.guard_speed import run_guard_bench
from tests.cli.test_main import guards, run, tiny_dir  # noqa: F401 (fixtures)
from tests.generation.test_guarded import UNSAFE, Scripted, unsafe_from

SMALL = dict(dtype=torch.float32, device=torch.device("cpu"), prompt_tokens=8, new_tokens=40)


def test_a_slow_guard_delays_the_first_words_by_two_judgements_and_stops_nothing(tiny_dir, monkeypatch):  # noqa: F811
    """By a clock that goes on by a millisecond when it is looked at, and by a second when something is judged."""
    now = [0.0]

    def look():
        now[0] += 0.001
        return now[0]

    def judged(_conversation, _k):
        now[0] += 1
        return UNSAFE  # a verdict that is left out

    monkeypatch.setattr("llamamm.evals.guard_speed.time", SimpleNamespace(perf_counter=look))
    judge = Scripted(judged)
    report = run_guard_bench(str(tiny_dir), judge, repeats=1, **SMALL)
    assert [row.key for row in report.rows] == ["answer", "answer_guarded", "first", "first_guarded"]
    assert report["first"].median() == pytest.approx(0.001) and report["first_guarded"].median() == pytest.approx(2.001)
    n_judgements = len(judge.seen) / 2  # two rounds, one to warm up
    assert n_judgements == 1 + len(judge.answers) / 2 >= 3
    assert report["answer_guarded"].median() == pytest.approx(40 / n_judgements, rel=0.1)
    assert report["answer"].median() > 400
    assert "the first words come 2 s later" in report.notes[0] and "each 16 pieces" in report.notes[0]


def test_a_guard_that_fails_is_told():
    with pytest.raises(InputError, match="cannot judge the bench's text: RuntimeError"):
        run_guard_bench("smollm2", unsafe_from(0, RuntimeError()), repeats=1, **SMALL)


@pytest.mark.parametrize("changes", [{"prompt_tokens": 0}, {"new_tokens": 0}, {"repeats": 0}])
def test_a_bench_of_nothing_is_refused(changes):
    with pytest.raises(InputError, match="1 token or more"):
        run_guard_bench("smollm2", Scripted(), **{**SMALL, **changes})


def test_the_command_shows_what_a_guard_costs(tiny_dir, guards):  # noqa: F811
    guards["next"] = Scripted()
    result = run("bench", "guard", "--model", tiny_dir, "--dtype", "float32", "--prompt-tokens", 8, "--new-tokens", 6,
                 "--window", 3, "--repeats", 1)  # fmt: skip
    assert result.exit_code == 0, result.exception
    assert guards["names"][0][0] == "own"
    for words in ("answer 6 after 8, tokens/s, guarded", "until the first words are shown", "each 3 pieces"):
        assert words in " ".join(result.stdout.split())
