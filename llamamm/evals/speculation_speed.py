"""What speculation gains: the same greedy answers with and without it, on text that is copied, on code, and on chat.

Beside the measured speed-up stands the one that Leviathan's formula predicts from two measurements: which share of the
guessed tokens was right, and what a call for several tokens takes beside a call for one. Each figure is a median over
rounds, with both sides in turn. Used in notebook 19.
"""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import torch

from llamamm.errors import InputError, counted
from llamamm.evals.report import OURS, THEIRS, Report, Row
from llamamm.evals.score_card import Say
from llamamm.evals.speed import wait_for
from llamamm.fast.decoder import equip, is_available
from llamamm.generation.generate import TokenStream
from llamamm.generation.prompts import as_processor
from llamamm.generation.speculation import Speculator, expected_tokens
from llamamm.pretrained.load import from_pretrained
from llamamm.pretrained.locate import locate
from llamamm.text.model import Llama3Model

COPY = (
    "Repeat this text word for word:\n\nThe harbour office opens at seven. Boats that leave before then drop their "
    "papers into the green box beside the door. A clerk reads them at half past six, writes the names on the board, "
    "and rings the bell twice for each boat that may go. Boats that come back after dark tie up at the east pier, "
    "where a lamp burns all night, and pay in the morning.",
    "Copy this list exactly:\n\n- 3 kg of flour from the mill on Bridge Street\n- 12 eggs, brown if there are any\n"
    "- 1 jar of honey from the beekeeper at the market\n- 2 litres of milk in glass bottles\n- 500 g of butter, not "
    "salted\n- a bag of walnuts for the cake on Saturday",
)
CODE = (
    "Write this function again with a docstring:\n\n```python\ndef count_words(path, minimum=1):\n    counts = {}\n"
    "    with open(path, encoding=\"utf-8\") as file:\n        for line in file:\n            for word in line.lower()"
    ".split():\n                counts[word] = counts.get(word, 0) + 1\n    return {word: n for word, n in "
    "counts.items() if n >= minimum}\n```",
    "Write a Python class Stack with the methods push, pop, peek, is_empty and size, each with a docstring.",
)
CHAT = (
    "Why is the sky blue in the day and red in the evening?",
    "Give me three ideas for a birthday party in a small flat.",
)
TEXTS = {"copy": COPY, "code": CODE, "chat": CHAT}


class Run(NamedTuple):
    """One greedy answer: its tokens, the seconds after the first of them, and what was guessed."""

    tokens: list[int]
    seconds: float
    speculator: Speculator | None


def run_speculation_bench(
    model: str, *, dtype: torch.dtype, device: torch.device, speculate: str = "auto", new_tokens: int = 64,
    repeats: int = 2, say: Say = lambda _title, _n, _all: None,
) -> Report:  # fmt: skip
    """Tokens a second after the first, by kind of text, with speculation and without. Rows: copy, code, chat; with
    numba and on a CPU also copy_fast, code_fast, chat_fast, by compiled steps.

    Raises InputError for what cannot be measured.
    """
    if new_tokens < 2 or repeats < 1:
        raise InputError("bench needs 2 new tokens or more, and 1 round or more")
    llama, reader = from_pretrained(locate(model), dtype=dtype, device=device, fast=False, progress=False)
    processor = as_processor(reader)
    llama.eval()
    steps = {"": "PyTorch", "_fast": "compiled"} if is_available() and device.type == "cpu" else {"": "PyTorch"}
    prompts = {kind: [processor.chat([{"role": "user", "content": text}]).ids for text in texts]
               for kind, texts in TEXTS.items()}  # fmt: skip
    stops = processor.tokenizer.stop_ids
    rows, notes, n_same, n_all = [], [], 0, 0
    for suffix, how in steps.items():
        equip(llama, fast=suffix == "_fast")
        _answer(llama, prompts["copy"][0], 4, "lookup", stops)  # warm up
        for kind, some in prompts.items():
            values: dict[str, list[float]] = {OURS: [], THEIRS: []}
            ratios = []
            for done in range(repeats):
                say(f"{kind}, {how}", done, repeats)
                pairs = [[_answer(llama, ids, new_tokens, mode, stops) for mode in ("off", speculate)] for ids in some]
                for side, runs in zip((THEIRS, OURS), zip(*pairs, strict=True), strict=True):
                    seconds = sum(run.seconds for run in runs)
                    values[side].append(sum(len(run.tokens) - 1 for run in runs) / seconds)
                n_same += sum(plain.tokens == guessing.tokens for plain, guessing in pairs)
                n_all += len(pairs)
                ratios.append(values[OURS][-1] / values[THEIRS][-1])
            say(f"{kind}, {how}", repeats, repeats)
            rows.append(Row(f"{kind}{suffix}", f"{kind}, {how}, tokens/s", values))
            notes.append(f"{kind}, {how}: {_explained([run for _, run in pairs], llama, some[0], ratios)}")
    notes.append(f"greedy answers: {n_same} of {n_all} identical")
    title = (f"{model}, {str(dtype).removeprefix('torch.')} on {device}, {torch.get_num_threads()} threads; "
             f"{speculate}, {new_tokens} tokens at most, {counted(repeats, 'round')}, medians")  # fmt: skip
    return Report(title, rows, notes, {OURS: "speculating", THEIRS: "plain"})


def predicted_speed_up(n_plain: int, n_calls: int, n_guessed: float, acceptance: float, cost: float) -> float:
    """Arithmetic of arXiv:2211.17192, 3.3, for guesses that cost nothing: tokens by one-token steps.

    n_plain calls for one token, n_calls with n_guessed guessed ones each that take `cost` steps.
    """
    tokens = n_plain + n_calls * expected_tokens(acceptance, n_guessed)
    return tokens / (n_plain + n_calls * cost)


def _answer(model: Llama3Model, ids: list[int], n: int, speculate: str, stops: frozenset[int]) -> Run:
    device = model.embed_tokens.weight.device
    stream = TokenStream(model, torch.tensor([ids], device=device), max_new_tokens=n, stop_ids=stops,
                         speculate=speculate)  # fmt: skip
    tokens, start = [], 0.0
    for token in stream:
        tokens.append(int(token))
        start = start or time.perf_counter()
    return Run(tokens, time.perf_counter() - start, stream.speculator)


def _explained(runs: list[Run], model: Llama3Model, ids: list[int], ratios: list[float]) -> str:
    """What was guessed in one round, and the speed-up that it predicts."""
    speculators = [run.speculator for run in runs if run.speculator is not None]
    n_calls, n_wrong, n_guessed, n_right = (
        sum(getattr(s, name) for s in speculators) for name in ("calls", "wrong", "guessed", "accepted"))
    measured = f"measured {statistics.median(ratios):.2f} x"
    if not n_calls:
        return f"nothing was guessed; {measured}"
    n_plain = sum(len(run.tokens) - 1 for run in runs) - n_right - n_calls
    size, acceptance = n_guessed / n_calls, n_right / max(n_right + n_wrong, 1)
    cost = call_cost_here(model, ids, round(size))
    predicted = predicted_speed_up(n_plain, n_calls, size, acceptance, cost)
    return (f"{n_calls} calls with {size:.1f} guessed tokens each, beside {n_plain} with none; {acceptance:.0%} right "
            f"each, {n_right / n_calls + 1:.1f} tokens a call, which takes {cost:.1f} steps; predicted "
            f"{predicted:.2f} x, {measured}")  # fmt: skip


@torch.inference_mode()
def call_cost_here(model: Llama3Model, ids: list[int], n: int, *, repeats: int = 7) -> float:
    """What a call for n + 1 tokens behind a prompt takes, in one-token steps: medians, three steps before each call."""
    device = model.embed_tokens.weight.device
    cache, prompt = model.make_cache(1, len(ids) + n + 1), torch.tensor([ids], device=device)
    model(prompt, cache=cache, last_only=True)
    seconds: dict[int, list[float]] = {1: [], n + 1: []}
    for _ in range(repeats):
        for size in (1, 1, 1, n + 1):
            wait_for(device)
            start = time.perf_counter()
            model(prompt[:, :1].expand(1, size), cache=cache)
            wait_for(device)
            seconds[size].append(time.perf_counter() - start)
            cache.rewind(len(ids))
    return statistics.median(seconds[n + 1]) / statistics.median(seconds[1])
