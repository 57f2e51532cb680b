"""Measuring training: seconds and memory of a LoRA step, side by side with transformers and peft.

Both sides start from the same weights, read the same ids and move the same adapters with the same AdamW. Each lives in
a process of its own that answers through a pipe: for seconds both stay alive, warm, and answer in turn, so that a slow
minute hits both; for memory each length has a fresh process, whose peak nothing else has raised; the last
length's then stay for the seconds.

    here --{"length": 128, "steps": 2}--> worker --{"seconds": [..], "losses": [..], "peak": bytes}--> here
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from llamamm.errors import InputError, LlamammError, MissingDependencyError, counted
from llamamm.evals.report import OURS, THEIRS, Report, Row
from llamamm.evals.speed import import_transformers, last_words, peak_rss, prompt_ids, require_theirs, wait_for
from llamamm.pretrained.load import from_pretrained
from llamamm.pretrained.locate import locate

# llamamm.lora and llamamm.train are imported where our side begins: here they would count as the other's memory.

CLIP_NORM = 1.0
FIRST_STEPS = 3  # AdamW's state exists from the second on: the peak is reached, and losses have begun to move
SAME_LOSS = 1e-4
MEGABYTE = 1e6

Step = Callable[[Tensor], float]  # ids (B, T) -> the loss before the update


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
) -> Report:
    """Measure LoRA of rank r on all linears, fp32; `against="transformers"` measures it with peft too.

    repeats: rounds at each length; steps: in a round, for each side.
    Rows: for each length, such as 128, "128 seconds", "128 peak" and "128 peak_added".
    Raises InputError, MissingDependencyError; LlamammError where training fails.
    """
    if against not in (None, THEIRS):
        raise InputError(f"--against takes 'transformers', got {against!r}")
    if min(rows, r, steps, repeats) < 1 or not lengths or min(lengths) < 2:
        raise InputError("bench train needs 1 row, rank, step and round or more, and lengths of 2 tokens or more")
    path = locate(model)
    if against:
        require_theirs(path)
    if against and importlib.util.find_spec("peft") is None:
        raise MissingDependencyError("a comparison needs transformers and peft: pip install 'llamamm[test]'")
    sides = [OURS, THEIRS] if against else [OURS]
    ids = prompt_ids(path, rows * max(lengths))

    def start(side: str) -> Worker:
        return Worker(side, {"path": str(path), "device": str(device), "r": r, "rows": rows, "ids": ids})

    firsts = {}
    with ExitStack() as stack:
        for length in lengths:
            stack.close()  # the processes of the length before
            workers = [stack.enter_context(closing(start(side))) for side in sides]
            firsts[length] = {w.side: w.ask({"length": length, "steps": FIRST_STEPS}) for w in workers}
        seconds = _in_turn(workers, lengths, steps=steps, repeats=repeats)
    found, notes = [], []
    for length in lengths:
        first, name = firsts[length], f"{rows} x {length}"
        found.append(Row(f"{length} seconds", f"{name}: seconds a step", seconds[length], lower_is_better=True))
        for title, key in (("peak memory, MB", "peak"), ("the same without imports, MB", "peak_added")):
            figures = {side: [answer[key] / MEGABYTE] for side, answer in first.items()}
            found.append(Row(f"{length} {key}", f"{name}: {title}", figures, lower_is_better=True))
        losses = {side: answer["losses"] for side, answer in first.items()}
        shown = "; ".join(f"{side} {', '.join(f'{x:.5f}' for x in values)}" for side, values in losses.items())
        line = f"first losses, {name}: {shown}"
        if against:
            apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
            line += f"; {'equal' if apart <= SAME_LOSS else 'NOT EQUAL'}, at most {apart:.1e} apart"
        notes.append(line)
    title = (f"{model}, LoRA r={r} on all linears, float32 on {device}, {torch.get_num_threads()} threads; "
             f"{counted(repeats, 'round')} of {steps} steps, medians")  # fmt: skip
    return Report(title, found, notes, {side: {OURS: OURS, THEIRS: "transformers + peft"}[side] for side in sides})


class Worker:
    """One side in a process of its own, asked and answering in lines of JSON."""

    def __init__(self, side: str, setting: dict[str, Any]) -> None:
        self.side = side
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llamamm.evals.train_speed", side], text=True, stderr=self._errors,
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


# ---- in the worker ----


def _our_step(path: Path, device: torch.device, r: int) -> Step:
    from llamamm.lora.lora import apply_lora
    from llamamm.train.config import TrainConfig
    from llamamm.train.loop import Objective
    from llamamm.train.losses import IGNORE
    from llamamm.train.optim import make_optimizer

    _note_imports(device)
    model, _ = from_pretrained(path, dtype=torch.float32, device=device, progress=False)
    apply_lora(model, r=r, alpha=2 * r, generator=torch.Generator().manual_seed(0))
    objective = Objective(model).train()
    optimizer = make_optimizer(model, TrainConfig(output=Path(), steps=1))

    def loss_of(ids: Tensor) -> Tensor:
        targets = nn.functional.pad(ids[:, 1:], (0, 1), value=IGNORE)  # (B, T): each token's next; the last has none
        return objective(ids, targets) / (targets != IGNORE).sum()

    return _step(loss_of, optimizer)


def _their_step(path: Path, device: torch.device, r: int) -> Step:
    auto = import_transformers().AutoModelForCausalLM
    import peft

    _note_imports(device)
    model = auto.from_pretrained(path, dtype=torch.float32).to(device)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = peft.get_peft_model(model, peft.LoraConfig(r=r, lora_alpha=2 * r, target_modules=names)).train()
    generator = torch.Generator().manual_seed(0)  # the same A as ours: peft draws it from the same range
    for name, weight in model.named_parameters():
        if "lora_A" in name:
            bound = 1 / math.sqrt(weight.shape[1])
            weight.data.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-4, betas=(0.9, 0.95), weight_decay=0.01)
    return _step(lambda ids: model(input_ids=ids, labels=ids, use_cache=False).loss, optimizer)


def _step(loss_of: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer) -> Step:
    trainable = [p for group in optimizer.param_groups for p in group["params"]]

    def step(ids: Tensor) -> float:
        loss = loss_of(ids)
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


_imported = 0  # bytes of this process before it loads a model


def _note_imports(device: torch.device) -> None:
    global _imported
    _imported = 0 if device.type == "cuda" else psutil.Process().memory_info().rss


def _peak(device: torch.device) -> int:
    """Bytes: what PyTorch took of a GPU, or all of this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss()


def _answer_questions(side: str) -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # a library may print; only answers go through the pipe
    setting = json.loads(sys.stdin.readline())
    device = torch.device(setting["device"])
    step = {OURS: _our_step, THEIRS: _their_step}[side](Path(setting["path"]), device, setting["r"])
    print(json.dumps({}), file=out, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        n = setting["rows"] * question["length"]
        ids = torch.tensor(setting["ids"][:n], device=device).view(setting["rows"], -1)  # (B, T)
        seconds, losses = [], []
        for _ in range(question["steps"]):
            begin = time.perf_counter()
            losses.append(step(ids))
            wait_for(device)
            seconds.append(time.perf_counter() - begin)
        peak = _peak(device)
        answer = {"seconds": seconds, "losses": losses, "peak": peak, "peak_added": peak - _imported}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    _answer_questions(sys.argv[1])
