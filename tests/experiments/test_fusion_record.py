"""experiments.fusion_record: a search on one part, runs on a different one, kept in a file; the one in the package."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from llamamm.experiments import fusion_record as record
from llamamm.experiments import fusion_ways as fusion
from llamamm.experiments.fusion_record import Record, Run, mean_loss, read_record, run_comparison
from tests.experiments.test_fusion_ways import easy_vqa, towers  # noqa: F401 (a fixture)


def run(way, tune_text, rate, seed=0, *, right=5, loss=1.0):
    return Run(way, tune_text, rate, seed, right, 10, loss, 2)


@pytest.fixture
def small():
    """Each way's best rate is a different one."""
    best = {("projection", False): 1e-3, ("perceiver", False): 5e-4, ("cross-attention", False): 2e-3,
            ("projection", True): 5e-4, ("perceiver", True): 2e-3, ("cross-attention", True): 1e-3}  # fmt: skip
    search = [run(way, tuned, rate, loss=0.5 if rate == own else 0.7, right=9 if rate == 5e-4 else 5)
              for (way, tuned), own in best.items() for rate in (5e-4, 1e-3, 2e-3)]  # fmt: skip
    runs = [run(way, tuned, own, seed, right=4 + seed) for (way, tuned), own in best.items() for seed in range(3)]
    return Record({"steps": 2}, tuple(search), tuple(runs)), best


def test_the_rate_with_the_lowest_loss_not_with_most_right(small):
    made, best = small
    for tuned in (False, True):
        assert made.rates(tuned) == {way: rate for (way, t), rate in best.items() if t == tuned}


def test_a_file_and_back(small, tmp_path):
    (tmp_path / "r.json").write_text(small[0].to_json(), encoding="utf-8")
    assert read_record(tmp_path / "r.json") == small[0]


def test_shares_of_the_seeds_and_a_line_for_each_way(small):
    made, _ = small
    assert made.shares("perceiver", True) == [0.4, 0.5, 0.6]
    console = Console(width=140)
    with console.capture() as captured:
        console.print(made.table())
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in captured.get().splitlines() if "│" in line]
    assert len(lines) == 6
    assert lines[0] == ["new parts", "projection", "0.001", "40.0%", "50.0%", "60.0%", "50.0%", "20.0%"]
    assert lines[-1][:3] == ["new parts and text", "perceiver", "0.002"]


def test_the_whole_comparison(towers, monkeypatch):  # noqa: F811
    sides = easy_vqa(9, 4)
    monkeypatch.setattr(record, "load_towers", lambda _device: towers)
    monkeypatch.setattr(record, "fusion_tasks", partial(fusion.fusion_tasks, n_train=5, n_validation=3))
    monkeypatch.setattr(record, "RATES", (1e-3, 4e-3))
    monkeypatch.setattr(fusion, "fetch", str)
    monkeypatch.setattr(fusion, "load_questions", lambda _folder: sides)
    monkeypatch.setattr(fusion, "run_stage", partial(fusion.run_stage, batch_size=4))
    lines = []
    made = run_comparison(steps=2, read=2, seed=5, n_seeds=2, say=lines.append)
    assert made.settings == {"steps": 2, "read": 2, "pictures": [5, 3, 4]}
    assert [(r.tune_text, r.rate, r.way) for r in made.search] == [
        (tuned, rate, way) for tuned in (False, True) for rate in (1e-3, 4e-3) for way in fusion.WAYS]  # fmt: skip
    assert {r.seed for r in made.search} == {7} and {r.n for r in made.search} == {3}  # validation, a seed of its own
    assert [(r.seed, r.tune_text, r.way) for r in made.runs] == [
        (seed, tuned, way) for seed in (5, 6) for tuned in (False, True) for way in fusion.WAYS]  # fmt: skip
    assert all(r.rate == made.rates(r.tune_text)[r.way] and r.n == 4 for r in made.runs)  # the test part
    assert any("at their own rates" in line for line in lines)


def test_the_mean_loss_of_answers(towers, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setattr(fusion, "fetch", str)
    monkeypatch.setattr(fusion, "load_questions", lambda _folder: easy_vqa(6, 5))
    tasks = fusion.fusion_tasks(towers, n_train=6, n_validation=0)
    way = fusion.build_way("perceiver", *fusion.reading_model(tasks, towers, tmp_path, steps=0), towers)
    way.model.eval()
    test = tasks.test["test"]
    inputs = way.encoder.batch(test, range(5), "shown").inputs("cpu")
    targets = inputs.pop("targets")
    with torch.no_grad():
        expected = F.cross_entropy(way.model(**inputs).flatten(0, 1), targets.flatten())
    assert mean_loss(way, test, batch_size=2) == pytest.approx(expected.item(), rel=1e-4)
    assert mean_loss(way, replace(test, items=test.items[:1])) != pytest.approx(expected.item(), rel=1e-4)


def test_the_packages_own_record_is_whole():
    """Every way at every rate on the validation part, and three seeds each on all test pictures."""
    made = read_record()
    assert made.settings == {"steps": 150, "read": 250, "pictures": [1000, 300, 1000]}
    wanted = {(way, tuned) for way in fusion.WAYS for tuned in (False, True)}
    assert {(r.way, r.tune_text, r.rate) for r in made.search} == {(*w, rate) for w in wanted for rate in record.RATES}
    assert {(r.way, r.tune_text, r.seed) for r in made.runs} == {(*w, seed) for w in wanted for seed in range(3)}
    assert len(made.search) == 36 and len(made.runs) == 18
    for r in made.runs:
        assert min(record.RATES) < r.rate < max(record.RATES)  # each way's best lies between two that are worse
        assert r.rate == made.rates(r.tune_text)[r.way] and r.n == 2537
        assert r.misled / r.n < 0.35 < r.share  # with a different picture hardly more than the question gives away
    assert not {r.seed for r in made.search} & {r.seed for r in made.runs}
