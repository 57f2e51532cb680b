"""What a run tells: metrics.jsonl, TensorBoard, a bar on a terminal or lines elsewhere, and a picture at the end.

A line of metrics.jsonl is {"step": 12, "loss": 2.31, ...} after a step, {"step": 50, "eval_loss": ...} after an
evaluation, {"step": 51, "skipped": 1, ...} after a step that had to be left out. Built in notebook 10.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llamamm.errors import MissingDependencyError
from llamamm.files import write_error, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVERY = 5.0  # seconds between lines of progress where there is no terminal


class RunLog:
    """Writes down what happens. Without a folder nothing is written; `quiet` shows nothing either.

    folder: gets metrics.jsonl, and with tensorboard=True the folder tensorboard/. on_step: called with the number of
    each step, from 0, and its loss.
    step: the step a run goes on from; lines of later steps, which an interrupted run left, are dropped.
    """

    def __init__(
        self, folder: Path | None = None, *, step: int = 0, tensorboard: bool = False, quiet: bool = False,
        on_step: Callable[[int, float], None] | None = None,
    ) -> None:  # fmt: skip
        self.on_step = on_step
        self.records: list[dict[str, Any]] = []
        self._console = Console(stderr=True, highlight=False, emoji=False, quiet=quiet)
        self._file = self._board = self._progress = self._task = self._lines = None
        if tensorboard and folder is not None:
            self._board = _summary_writer(folder / "tensorboard", step)
        if folder is not None:
            path = folder / "metrics.jsonl"
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise write_error(folder, error) from None
            self.records = [r for r in read_metrics(path) if r["step"] <= step] if step and path.exists() else []
            write_file(path, "".join(json.dumps(r) + "\n" for r in self.records))
            self._file = path.open("a", encoding="utf-8")

    def step(self, step: int, **values: float) -> None:
        """A step's figures: loss, learning_rate, grad_norm, tokens_per_s, epoch."""
        self._write(step, values)
        if self.on_step is not None:
            self.on_step(step - 1, values["loss"])
        text = f"loss {values['loss']:.3f}, {values['tokens_per_s']:,.0f} tokens/s"
        if self._progress is not None:
            self._progress.update(self._task, completed=step, text=text)
        if self._lines is not None:
            self._lines.note(step, text)

    def evaluation(self, step: int, *, loss: float, best: float, samples: dict[str, str]) -> None:
        """The held-out loss, and what the model answers to each prompt."""
        self._write(step, {"eval_loss": loss, **({"samples": samples} if samples else {})})
        train = self.losses[-10:]
        mean = f"training loss {sum(train) / len(train):.3f}, " if train else ""
        self.say(f"step {step}: {mean}held-out {loss:.3f}" + (" (best)" if loss == best else f", best {best:.3f}"))
        for prompt, answer in samples.items():
            self.say(f"  {prompt!r} -> {answer!r}")

    def skipped(self, step: int, *, loss: float, grad_norm: float, n_skipped: int) -> None:
        """A step left out because its loss or its gradients were not finite."""
        self._write(step, {"skipped": n_skipped, "loss": str(loss), "grad_norm": str(grad_norm)})
        self.say(f"step {step} skipped: loss {loss:.4g}, gradient norm {grad_norm:.4g} ({n_skipped} so far)")

    @property
    def losses(self) -> list[float]:
        """The training loss of each step that was not skipped."""
        return [record["loss"] for record in self.records if "learning_rate" in record]

    def say(self, text: str) -> None:
        """A line on stderr."""
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def progress(self, steps: int, done: int) -> Iterator[None]:
        """Loss, tokens/s and time left: a bar on a terminal; elsewhere a line for the first step, the last, and every
        few seconds between."""
        if self._console.quiet:
            yield
            return
        if not self._console.is_terminal:
            self._lines = _Lines(self.say, steps, done)
            try:
                yield
            finally:
                self._lines.end()
                self._lines = None
            return
        columns = MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn()
        with Progress(*columns, console=self._console, transient=True) as self._progress:
            self._task = self._progress.add_task("", total=steps, completed=done, text="")
            yield
        self._progress = None

    def close(self) -> None:
        """Everything is on disk."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._board is not None:
            self._board.close()
            self._board = None

    def _write(self, step: int, values: dict[str, Any]) -> None:
        record = {"step": step, **values}
        self.records.append(record)
        if self._file is not None:
            try:
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()
            except OSError as error:
                raise write_error(self._file.name, error) from None
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, float | int) and math.isfinite(value):
                    self._board.add_scalar(name, value, step)


class _Lines:
    """Progress as lines, for a log: by the clock, not by the step, since steps take from milliseconds to minutes."""

    def __init__(self, say: Callable[[str], None], steps: int, done: int) -> None:
        self.say, self.steps, self.done = say, steps, done
        self.begin = time.monotonic()
        self.said_at: float | None = None
        self.waiting = ""  # the line of the latest step, not said

    def note(self, step: int, text: str) -> None:
        now = time.monotonic()
        left = (now - self.begin) / max(step - self.done, 1) * (self.steps - step)
        self.waiting = f"step {step:,} of {self.steps:,}: {text}" + (f", {duration(left)} left" if left else "")
        if self.said_at is None or now - self.said_at >= EVERY or step == self.steps:
            self.end()
            self.said_at = now

    def end(self) -> None:
        """Say of the latest step what was not said."""
        if self.waiting:
            self.say(self.waiting)
        self.waiting = ""


def duration(seconds: float) -> str:
    """Seconds for people: 8 s, 12 min, 3 h 05 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that a killed process left half written is dropped."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def plot_run(records: list[dict[str, Any]]) -> Figure:
    """The run in two pictures: training and held-out loss, and the learning rate."""
    from matplotlib.figure import Figure  # here: whoever draws nothing does not wait for it

    steps = [r for r in records if "learning_rate" in r]
    held_out = [r for r in records if "eval_loss" in r]
    figure = Figure(figsize=(8, 3.2), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    x, loss = [r["step"] for r in steps], [r["loss"] for r in steps]
    left.plot(x, loss, color="C0", alpha=0.3, linewidth=0.8)
    left.plot(x, smooth(loss), color="C0", label="training, smoothed")
    if held_out:
        left.plot([r["step"] for r in held_out], [r["eval_loss"] for r in held_out], "o-", color="C1", markersize=4,
                  label="held-out")  # fmt: skip
    skipped = [r["step"] for r in records if "skipped" in r]
    for step in skipped:
        left.axvline(step, color="black", linewidth=0.5, linestyle=":")
    title = f"Loss, steps skipped: {len(skipped)}" if skipped else "Loss"
    left.set(xlabel="step", ylabel="loss per token", title=title)
    left.legend(frameon=False)
    right.plot(x, [r["learning_rate"] for r in steps], color="C0")
    right.set(xlabel="step", title="Learning rate", ylim=(0, None))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def smooth(values: list[float], *, keep: float = 0.9) -> list[float]:
    """A running mean that forgets: keep times itself plus the rest of the new value, without a bias at the start."""
    out, mean = [], 0.0
    for i, value in enumerate(values, start=1):
        mean = keep * mean + (1 - keep) * value
        out.append(mean / (1 - keep**i))
    return out


def _summary_writer(folder: Path, step: int):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingDependencyError("tensorboard: true needs a package: pip install 'llamamm[train]'") from None
    return SummaryWriter(folder, purge_step=step + 1 if step else None)


if __name__ == "__main__":
    plot_run(read_metrics(Path(sys.argv[1]))).savefig(sys.argv[2])
