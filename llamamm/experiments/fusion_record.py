"""The three ways of `fusion_ways`, compared fairly: each at its own learning rate, with several seeds.

    search   each way, text frozen and text tuned, at each of RATES; one seed, which is not reported; validation part
    runs     each at the rate with the lowest loss there, with each seed; test part, and the same with another's picture

`llamamm experiment fusion` makes a record; the package holds one, fusion_record.json, which notebook 13 shows.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table

from llamamm.evals.senses import count_right, misled
from llamamm.experiments.fusion_ways import WAYS, Way, compare, fusion_tasks, reading_model
from llamamm.experiments.small_multimodal import load_towers
from llamamm.tasks.items import Task, Tasks
from llamamm.train.losses import IGNORE

RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)  # that are tried
PACKAGED = Path(__file__).with_name("fusion_record.json")


@dataclass(frozen=True)
class Run:
    """A way after training. tune_text: the text model trained, too. right of n items, their loss, and how many are
    right with another's picture, of the part that counts: validation in a search, else test."""

    way: str
    tune_text: bool
    rate: float
    seed: int
    right: int
    n: int
    loss: float
    misled: int

    @property
    def share(self) -> float:
        return self.right / self.n


@dataclass(frozen=True)
class Record:
    """settings: steps, reading steps, pictures; search: a run for each way and rate; runs: the ones to report."""

    settings: Mapping[str, Any]
    search: tuple[Run, ...]
    runs: tuple[Run, ...]

    def rates(self, tune_text: bool) -> dict[str, float]:
        """Each way's own: that with the lowest loss in the search."""
        return _best([run for run in self.search if run.tune_text == tune_text])

    def shares(self, way: str, tune_text: bool) -> list[float]:
        """Of the reported items, right with each seed."""
        return [run.share for run in self.runs if (run.way, run.tune_text) == (way, tune_text)]

    def table(self) -> Table:
        """A line for each way and for what trains."""
        shown = Table("what trains", "way", title_justify="left")
        for title in ("rate", *(f"seed {s}" for s in sorted({run.seed for run in self.runs})), "mean", "other picture"):
            shown.add_column(title, justify="right")
        for tune_text in (False, True):
            for way in WAYS:
                some = [run for run in self.runs if (run.way, run.tune_text) == (way, tune_text)]
                numbers = [*(run.share for run in some), mean(run.share for run in some),
                           mean(run.misled / run.n for run in some)]  # fmt: skip
                shown.add_row("new parts and text" if tune_text else "new parts", way, f"{some[0].rate:g}",
                              *(f"{number:.1%}" for number in numbers))
        return shown

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


def read_record(path: str | Path = PACKAGED) -> Record:
    """What `llamamm experiment fusion --output` has written; by default the one that the package holds."""
    read = json.loads(Path(path).read_text(encoding="utf-8"))
    return Record(read["settings"], *(tuple(Run(**run) for run in read[part]) for part in ("search", "runs")))


def run_comparison(
    *,
    steps: int = 150,
    read: int = 250,
    seed: int = 0,
    n_seeds: int = 3,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = lambda _line: None,
) -> Record:
    """Features, the search, and the runs with seeds from `seed` on. say: gets lines of progress. Raises FetchError."""
    towers = load_towers(device)
    tasks = fusion_tasks(towers, say=say)
    settings = {"steps": steps, "read": read, "pictures": [len(t.features.images) for t in
                                                            (tasks.train["vqa"], *tasks.test.values())]}  # fmt: skip

    def runs(part: str, seed: int, rates: Mapping[bool, tuple[Mapping[str, float], ...]]) -> list[Run]:
        with tempfile.TemporaryDirectory() as folder:
            text, tokenizer = reading_model(tasks, towers, Path(folder), steps=read, seed=seed)
        only, found = Tasks(tasks.train, {part: tasks.test[part]}), []
        for tune_text, tried in rates.items():
            for some in tried:
                for way in compare(text, tokenizer, towers, only, steps=steps, rates=some, tune_text=tune_text,
                                   seed=seed):  # fmt: skip
                    found.append(_run(way, tune_text, some[way.name], seed, tasks.test[part], part))
                    say(f"  {found[-1]}")
        return found

    say(f"search, {steps:,} steps each")
    every = tuple(dict.fromkeys(WAYS, rate) for rate in RATES)
    search = runs("validation", seed + n_seeds, dict.fromkeys((False, True), every))
    best = {tune_text: (_best([run for run in search if run.tune_text == tune_text]),) for tune_text in (False, True)}
    say(f"at their own rates: {best}")
    reported = [run for s in range(seed, seed + n_seeds) for run in runs("test", s, best)]
    return Record(settings, tuple(search), tuple(reported))


@torch.no_grad()
def mean_loss(way: Way, task: Task, *, batch_size: int = 64) -> float:
    """The cross-entropy of the answers' tokens, in nats."""
    device, total, n = way.model.embed_tokens.weight.device, 0.0, 0
    for i in range(0, len(task), batch_size):
        inputs = way.encoder.batch(task, range(i, min(i + batch_size, len(task))), "shown").inputs(device)
        targets = inputs.pop("targets")
        logits = way.model(**inputs)  # (B, T, V)
        total += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum").item()
        n += int((targets != IGNORE).sum())
    return total / n


def _run(way: Way, tune_text: bool, rate: float, seed: int, task: Task, part: str) -> Run:
    other = count_right(way.model, way.encoder, misled(task))
    return Run(way.name, tune_text, rate, seed, way.right[part], len(task), round(mean_loss(way, task), 4), other)


def _best(search: list[Run]) -> dict[str, float]:
    return {way: min((run for run in search if run.way == way), key=lambda run: run.loss).rate for way in WAYS}
