"""What torch.compile gives to decoding, and what it costs: a step of fixed shapes (`llamamm.fast.fixed_cache`) beside
PyTorch's plain steps on the same weights.

The cost is what the first answer takes longer than a later one. numba's loops are off, for both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from llamamm.errors import InputError, LlamammError, MissingDependencyError
from llamamm.evals.report import OURS, Report, Row
from llamamm.evals.speed import Answer, Run, our_answer, prompt_ids, wait_for
from llamamm.fast.fixed_cache import FixedCacheStep
from llamamm.pretrained.load import from_pretrained
from llamamm.pretrained.locate import locate
from llamamm.text.model import Llama3Model

PLAIN = "PyTorch"
NAMES = {OURS: "compiled", PLAIN: PLAIN}


def run_compile_bench(
    model: str, *, dtype: torch.dtype, device: torch.device, prompt_tokens: int = 64, long_tokens: int = 1024,
    new_tokens: int = 64, repeats: int = 3, mode: str | None = None, say: Callable[[str], None] = lambda _line: None,
) -> Report:  # fmt: skip
    """Measure one model. Rows: compile, decode and decode_long; sides: OURS, which is compiled, and PLAIN.

    The cache has as many places as the longest answer needs. mode: as in `torch.compile`. Raises InputError,
    MissingDependencyError where PyTorch has no compiler to work with, LlamammError where it fails.
    """
    if min(prompt_tokens, long_tokens, repeats) < 1 or new_tokens < 2:
        raise InputError("bench compile needs prompts of 1 token or more, 2 new tokens or more, and 1 round or more")
    require_compiler(device)
    path = locate(model)
    llama, _ = from_pretrained(path, dtype=dtype, device=device, progress=False, fast=False)
    if not isinstance(llama, Llama3Model):
        raise InputError(f"{model} sees or hears; bench compile measures a text model")
    ids = prompt_ids(path, max(prompt_tokens, long_tokens))
    prompts = {"decode": ids[:prompt_tokens], "decode_long": ids[:long_tokens]}
    length = max(map(len, prompts.values())) + new_tokens
    return compare_compiled(llama, prompts, title=model, length=length, new_tokens=new_tokens, repeats=repeats,
                            mode=mode, say=say)  # fmt: skip


def require_compiler(device: torch.device) -> None:
    """Raises MissingDependencyError, before a minute of work, where a CPU's code cannot be compiled."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # takes seconds

    if device.type == "cpu":
        try:
            get_cpp_compiler()
        except RuntimeError:
            raise MissingDependencyError("on a CPU torch.compile needs a C++ compiler: install g++ or clang++, or have "
                                         "CXX name one") from None  # fmt: skip


def compare_compiled(
    model: Llama3Model, prompts: dict[str, list[int]], *, title: str, length: int, new_tokens: int, repeats: int,
    mode: str | None = None, say: Callable[[str], None] = lambda _line: None,
) -> Report:  # fmt: skip
    """The report on a model that is loaded. prompts: ids, by the row they are for; length: of the fixed cache."""
    device = model.embed_tokens.weight.device
    answers = {
        OURS: _with_step(model, FixedCacheStep(length, mode=mode), device),
        PLAIN: our_answer(model, device),
    }
    first = next(iter(prompts.values()))
    say("compiling")
    seconds = _compile_seconds(answers[OURS], first, device)
    say("decoding")
    runs: dict[str, dict[str, list[Run]]] = {key: {side: [] for side in answers} for key in prompts}
    for answer in answers.values():
        for ids in prompts.values():
            answer(ids, 4)  # warm up
    for _ in range(repeats):
        for key, ids in prompts.items():
            for side, answer in answers.items():
                runs[key][side].append(answer(ids, new_tokens))
    rows = [Row("compile", "compile, seconds", {OURS: [seconds]}, lower_is_better=True)]
    rows += [Row(key, f"decode {new_tokens} after {len(ids)}, tokens/s",
                 {side: [run.decode_rate for run in runs[key][side]] for side in answers})
             for key, ids in prompts.items()]  # fmt: skip
    notes = [f"the compiled step's cache has {length} places, all of which each step reads"]
    for key, ids in prompts.items():
        ours, plain = (runs[key][side][0].tokens for side in (OURS, PLAIN))
        same = sum(a == b for a, b in zip(ours, plain, strict=True))
        notes.append(f"greedy tokens after {len(ids)}: {same} of {new_tokens} identical")
    pays = _pays_after(rows)
    notes.append(f"compiling is paid for after {pays:,.0f} tokens" if pays else "compiling is never paid for here")
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    return Report(f"{title}, {dtype} on {device}{threads}; {repeats} rounds, medians", rows, notes, NAMES)


def _with_step(model: Llama3Model, step: FixedCacheStep, device: torch.device) -> Answer:
    plain = our_answer(model, device)

    def answer(ids: list[int], n: int) -> Run:
        model.fast = step
        try:
            return plain(ids, n)
        finally:
            model.fast = None

    return answer


def _compile_seconds(answer: Answer, ids: list[int], device: torch.device) -> float:
    """Seconds that the first answer takes longer than the next. Raises LlamammError."""
    from torch._inductor.utils import fresh_cache  # takes seconds

    seconds, failed = [], None
    with fresh_cache():  # or what an earlier run compiled would be read from the disk; an error would leave it there
        try:
            for _ in range(2):
                start = time.perf_counter()
                answer(ids, 4)
                wait_for(device)
                seconds.append(time.perf_counter() - start)
        except torch._dynamo.exc.TorchDynamoException as error:
            failed = str(error).strip().splitlines()[0]
    if failed is not None:
        raise LlamammError(f"torch.compile failed: {failed}")
    return seconds[0] - seconds[1]


def _pays_after(rows: list[Row]) -> float | None:
    """Tokens of the first prompt's kind of answer after which compiling has paid; None where it never does."""
    ours, plain = (statistics.median(rows[1].values[side]) for side in (OURS, PLAIN))
    return rows[0].median() / (1 / plain - 1 / ours) if ours > plain else None
