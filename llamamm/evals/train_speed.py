"""Measuring training: seconds and memory of a LoRA step, on text and with pictures, side by side with transformers and
peft.

Both sides start from the same weights, read the same ids and move the same parts with the same AdamW; `train_steps`
says what a step is on each side. Each lives in a process of its own that answers through a pipe: for seconds both stay
alive, warm, and answer in turn, so that a slow minute hits both; for memory each length has a fresh process, whose peak
nothing else has raised; the last length's then stay for the seconds.

    here --{"length": 128, "steps": 2}--> worker --{"seconds": [..], "losses": [..], "peak": bytes}--> here
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any

import torch

from llamamm.errors import InputError, LlamammError, MissingDependencyError, counted
from llamamm.evals.report import OURS, THEIRS, Report, Row
from llamamm.evals.speed import last_words, prompt_ids, require_theirs
from llamamm.evals.train_steps import EYE, IMAGE_SIZE, PICTURE_PLACES
from llamamm.pretrained.locate import locate

FIRST_STEPS = 3  # AdamW's state exists from the second on: the peak is reached, and losses have begun to move
SAME_LOSS = 1e-4
MEGABYTE = 1e6
TEXT, PICTURES = "", "picture "  # how the keys of a report's rows begin


def run_train_bench(
    model: str,
    *,
    device: torch.device,
    rows: int = 4,
    lengths: Sequence[int] = (128, 512),
    r: int = 8,
    steps: int = 2,
    repeats: int = 5,
    against: str | None = None,
    text: bool = True,
    pictures: bool = True,
) -> Report:
    """Measure LoRA of rank r on all linears, fp32; `against="transformers"` measures it with peft too.

    repeats: rounds at each length; steps: in a round, for each side. text, pictures: rows of words alone; rows that
    begin with a picture, of the same lengths, whose bridge trains as well.
    Rows: for each length, such as 128, "128 seconds", "128 peak" and "128 peak_added", and "picture 128 seconds", ...
    Raises InputError, MissingDependencyError; LlamammError where training fails.
    """
    if against not in (None, THEIRS):
        raise InputError(f"--against takes 'transformers', got {against!r}")
    if min(rows, r, steps, repeats) < 1 or not lengths or min(lengths) < 2:
        raise InputError("bench train needs 1 row, rank, step and round or more, and lengths of 2 tokens or more")
    if pictures and min(lengths) < PICTURE_PLACES + 2:
        raise InputError(f"a picture takes {PICTURE_PLACES} places, and some words follow it: give lengths of "
                         f"{PICTURE_PLACES + 2} or more, or --no-pictures")
    if not text and not pictures:
        raise InputError("bench train measures text, pictures or both; both were left out")
    path = locate(model)
    if against:
        require_theirs(path)
    if against and importlib.util.find_spec("peft") is None:
        raise MissingDependencyError("a comparison needs transformers and peft: pip install 'llamamm[test]'")
    sides = [OURS, THEIRS] if against else [OURS]
    ids = prompt_ids(path, rows * max(lengths))
    setting = {"path": str(path), "device": str(device), "r": r, "rows": rows, "ids": ids}
    found, notes = [], []
    for kind in [TEXT] * text + [PICTURES] * pictures:
        eye = str(locate(EYE, kind="vision")) if kind == PICTURES else None
        firsts, seconds = _measure({**setting, "eye": eye}, sides, lengths, steps=steps, repeats=repeats)
        for length in lengths:
            name = f"{rows} x {length}" + (", a picture in each row" if kind == PICTURES else "")
            some = _rows(f"{kind}{length}", name, seconds[length], firsts[length])
            found += some
            notes += _notes(name, some, firsts[length])
    notes.append("both sides: all seven linears of each block adapted, no dropout, no checkpointing; loss of every "
                 "token but the first; gradients clipped; AdamW, fused; PyTorch's fused attention")  # fmt: skip
    if pictures:
        notes.append(f"pictures, on both sides: {IMAGE_SIZE} x {IMAGE_SIZE} of noise through {EYE}, frozen, in each "
                     f"step; a bridge of two linears, a start and an end train, and take {PICTURE_PLACES} places of a "
                     f"row; loss of the words behind")  # fmt: skip
    title = (f"{model}, LoRA r={r} on all linears, float32 on {device}, {torch.get_num_threads()} threads; "
             f"{counted(repeats, 'round')} of {steps} steps, medians" + (" (lowest to highest)" if repeats > 2 else ""))
    return Report(title, found, notes, {side: {OURS: OURS, THEIRS: "transformers + peft"}[side] for side in sides})


def _measure(
    setting: dict[str, Any], sides: Sequence[str], lengths: Sequence[int], *, steps: int, repeats: int
) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, list[float]]]]:
    """By length: what each side answers to its first question, and its seconds a step, round by round."""
    firsts = {}
    with ExitStack() as stack:
        for length in lengths:
            stack.close()  # the processes of the length before
            workers = [stack.enter_context(closing(Worker(side, setting))) for side in sides]
            firsts[length] = {w.side: w.ask({"length": length, "steps": FIRST_STEPS}) for w in workers}
        return firsts, _in_turn(workers, lengths, steps=steps, repeats=repeats)


def _rows(key: str, name: str, seconds: dict[str, list[float]], firsts: dict[str, Any]) -> list[Row]:
    found = [Row(f"{key} seconds", f"{name}: seconds a step", seconds, lower_is_better=True)]
    for title, what in (("peak memory, MB", "peak"), ("the same without imports, MB", "peak_added")):
        figures = {side: [answer[what] / MEGABYTE] for side, answer in firsts.items()}
        found.append(Row(f"{key} {what}", f"{name}: {title}", figures, lower_is_better=True))
    return found


def _notes(name: str, found: Sequence[Row], firsts: dict[str, Any]) -> list[str]:
    """The first losses, which must be equal; how much faster, with how much memory."""
    losses = {side: answer["losses"] for side, answer in firsts.items()}
    shown = "; ".join(f"{side} {', '.join(f'{x:.5f}' for x in values)}" for side, values in losses.items())
    line = f"first losses, {name}: {shown}"
    if len(losses) == 1:
        return [line]
    apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    line += f"; {'equal' if apart <= SAME_LOSS else 'NOT EQUAL'}, at most {apart:.1e} apart"
    seconds, memory, _ = found
    return [line, f"{name}: {1 / seconds.ratio():.2f} x as fast, with {memory.ratio():.2f} x the memory"]


class Worker:
    """One side in a process of its own, asked and answering in lines of JSON."""

    def __init__(self, side: str, setting: dict[str, Any]) -> None:
        self.side = side
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llamamm.evals.train_steps", side], text=True, stderr=self._errors,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        )  # fmt: skip
        self.ask(setting)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Raises LlamammError, with the last line that the process wrote, where it has ended."""
        try:
            print(json.dumps(question), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._errors.seek(0)
            said = last_words(self._errors.read() or f"exit code {self._process.returncode}")
            self.close()
            raise LlamammError(f"training with {self.side} failed: {said}")
        return json.loads(answer)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(BrokenPipeError):
                stream.close()


def _in_turn(
    workers: list[Worker], lengths: Sequence[int], *, steps: int, repeats: int
) -> dict[int, dict[str, list[float]]]:
    """Seconds a step by length, side and round. The sides take turns step by step, and take turns in beginning too."""
    seconds: dict[int, dict[str, list[float]]] = {n: {w.side: [] for w in workers} for n in lengths}
    for length in lengths:
        for worker in workers:
            worker.ask({"length": length, "steps": 1})  # warm up
        for _ in range(repeats):
            taken: dict[str, list[float]] = {worker.side: [] for worker in workers}
            for _ in range(steps):
                for worker in workers:
                    taken[worker.side] += worker.ask({"length": length, "steps": 1})["seconds"]
                workers = workers[::-1]
            for side, values in taken.items():
                seconds[length][side].append(statistics.fmean(values))
    return seconds
