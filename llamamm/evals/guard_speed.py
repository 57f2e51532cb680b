"""What a guard costs: the same answer with and without it, tokens a second and the wait for the first words.

A guarded answer is read by the guard, too, again at each window, and a window is shown only after that. Each figure is
a median over rounds, with both sides in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from llamamm.errors import InputError, counted
from llamamm.evals.report import OURS, Report, Row
from llamamm.evals.speed import prompt_ids
from llamamm.generation.generate import TextStream
from llamamm.generation.guarded import WINDOW, GuardedStream, Judge, Judgement
from llamamm.generation.prompts import as_processor
from llamamm.pretrained.load import from_pretrained
from llamamm.pretrained.locate import locate


class Run(NamedTuple):
    """One answer: seconds until the first words, and tokens a second, the prompt's reading in them."""

    first_s: float
    rate: float


class Passing:
    """A judge that takes its time and finds nothing: what is measured does not hang on its verdict."""

    def __init__(self, guard: Judge) -> None:
        self.guard = guard

    def judge(self, conversation: str | Sequence[Mapping[str, Any]]) -> Judgement:
        self.guard.judge(conversation)
        return Judgement(False, 0.0)


def run_guard_bench(
    model: str, guard: Judge, *, dtype: torch.dtype, device: torch.device, prompt_tokens: int = 64,
    new_tokens: int = 128, window: int = WINDOW, repeats: int = 5,
) -> Report:  # fmt: skip
    """Rows: answer and answer_guarded, tokens/s; first and first_guarded, seconds.

    Raises InputError for what cannot be measured, and where the guard fails.
    """
    if min(prompt_tokens, new_tokens, repeats) < 1:
        raise InputError("bench needs a prompt of 1 token or more, 1 new token or more, and 1 round or more")
    path = locate(model)
    llama, reader = from_pretrained(path, dtype=dtype, device=device, progress=False)
    tokenizer, ids = as_processor(reader).tokenizer, prompt_ids(path, prompt_tokens)
    alone: list[Run] = []
    guarded: list[Run] = []
    for n in range(repeats + 1):
        for runs in (alone, guarded):
            pieces = stream = TextStream(llama, tokenizer, ids, device=device, max_new_tokens=new_tokens, stop_ids=())
            if runs is guarded:
                pieces = GuardedStream(stream, Passing(guard), tokenizer.decode(ids), window=window)
            start = time.perf_counter()
            times = [time.perf_counter() - start for _ in pieces]
            if runs is guarded and pieces.refusal:
                raise InputError(f"the guard cannot judge the bench's text: {pieces.refusal.error}")
            total = time.perf_counter() - start
            if n:  # the first round warms up
                runs.append(Run(times[0] if times else total, len(stream.new_ids) / total))
    kinds = {"": ("", alone), "_guarded": (", guarded", guarded)}
    what = f"answer {new_tokens} after {prompt_tokens}, tokens/s"
    rows = [Row(f"answer{key}", what + name, {OURS: [r.rate for r in runs]}) for key, (name, runs) in kinds.items()]
    rows += [Row(f"first{key}", f"until the first words are shown, seconds{name}", {OURS: [r.first_s for r in runs]})
             for key, (name, runs) in kinds.items()]  # fmt: skip
    kept = statistics.median(b.rate / a.rate for a, b in zip(alone, guarded, strict=True))
    waits = statistics.median(b.first_s - a.first_s for a, b in zip(alone, guarded, strict=True))
    notes = [f"guarded, {kept:.2f} of the speed is kept, and the first words come {waits:.2g} s later; judged each "
             f"{window} pieces"]  # fmt: skip
    title = (f"{model}, {str(dtype).removeprefix('torch.')} on {device}, {torch.get_num_threads()} threads; "
             f"{counted(repeats, 'round')}, medians")  # fmt: skip
    return Report(title, rows, notes, {OURS: OURS})
