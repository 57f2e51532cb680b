"""Does a model guess for itself? The head of an early exit, trained to say what the model says, and what it gains.

    articles -> all blocks, once -> what block n gives (N, C), what the last one gives (N, C)
    -> the exit's map, trained on the distance of the two distributions of the next token

Only the map and the norm behind it are trained, a third of a million numbers for SmolLM2; blocks and head are the
model's own. Acceptance is measured on articles that were held out: where the best tokens are the same (greedy), and the
probability that both distributions share (drawn, arXiv:2211.17192, 3.1).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.table import Table
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from llamamm.assets.corpora import load_records
from llamamm.assets.fetch import fetch
from llamamm.errors import CheckpointError
from llamamm.evals.speculation_speed import call_cost_here
from llamamm.files import write_file
from llamamm.generation.drafts import early_exit
from llamamm.generation.speculation import expected_tokens
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer

ROWS, HELD_OUT, LENGTH = 64, 8, 128  # articles, and tokens of each
BATCH, PEAK_RATE = 192, 2e-3
SIZES = (1, 2, 3, 4, 6, 8)  # tokens of a guess


@dataclass(frozen=True)
class ExitFigures:
    """What an exit after n_blocks of all is worth. cost: of one guessed token, in steps of the whole model; calls: of a
    call for n + 1 tokens, by n; speed_up: predicted for greedy text by n."""

    n_blocks: int
    greedy: float
    drawn: float
    cost: float
    calls: dict[int, float]
    speed_up: dict[int, float]

    def table(self) -> Table:
        table = Table("tokens of a guess", "tokens a call", "the guess, in steps", "the call, in steps", "speed-up")
        for n, speed_up in self.speed_up.items():
            table.add_row(str(n), f"{expected_tokens(self.greedy, n):.2f}", f"{n * self.cost:.2f}",
                          f"{self.calls[n]:.2f}", f"{speed_up:.2f} x")  # fmt: skip
        return table


def train_exit(
    model: Llama3Model, tokenizer: Tokenizer, n_blocks: int, *, steps: int = 300, seed: int = 0,
    say: Callable[[str], None] = lambda _line: None,
) -> tuple[Llama3Model, ExitFigures]:  # fmt: skip
    """Train an exit after n_blocks on the articles of `wiki`, and measure it. -> the early exit and its figures.

    The model is not changed. Raises InputError for blocks that it has not.
    """
    short = early_exit(model, n_blocks)
    train, test = ([tokenizer.encode(record["text"])[:LENGTH] for record in load_records(fetch("wiki"), part)]
                   for part in ("train", "test"))  # fmt: skip
    long = [[ids for ids in part if len(ids) == LENGTH][:n] for part, n in ((train, ROWS), (test, HELD_OUT))]
    say(f"(reading {len(long[0])} articles)")
    early, late = states(model, n_blocks, long[0])
    fit_exit(short, model, early, late, steps=steps, seed=seed, say=say)
    return short, measure_exit(short, model, *states(model, n_blocks, long[1]), ids=long[1][0])


@torch.no_grad()
def states(model: Llama3Model, n_blocks: int, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """What enters block n_blocks, and what the head reads: two (N, C). Rows of equal length."""
    early: list[Tensor] = []

    def keep(n: int, x: Tensor) -> Tensor:
        if n == n_blocks:
            early.append(x.flatten(0, 1))
        return x

    late = [model.norm(model.run_blocks(model.embed_tokens(torch.tensor([row])), before=keep))[0] for row in rows]
    return torch.cat(early), torch.cat(late)


def fit_exit(
    short: Llama3Model, model: Llama3Model, early: Tensor, late: Tensor, *, steps: int, seed: int,
    say: Callable[[str], None] = lambda _line: None,
) -> None:  # fmt: skip
    """Train short's exit, in place: the mean KL divergence from the model's distribution to the exit's."""
    generator, learned = torch.Generator().manual_seed(seed), list(short.norm.parameters())
    optimizer = torch.optim.AdamW(learned, lr=PEAK_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    head = model.lm_head.weight.detach()
    with torch.enable_grad():
        for step in range(steps):
            some = torch.randint(len(early), (BATCH,), generator=generator)
            wanted = F.linear(late[some], head).log_softmax(dim=-1)
            found = F.linear(short.norm(early[some]), head).log_softmax(dim=-1)
            loss = F.kl_div(found, wanted, log_target=True, reduction="batchmean")
            for parameter, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
            if (step + 1) % 50 == 0 or step + 1 == steps:
                say(f"  {step + 1} of {steps}: {float(loss.detach()):.3f} nats apart")
    optimizer.zero_grad()


@torch.no_grad()
def measure_exit(
    short: Llama3Model, model: Llama3Model, early: Tensor, late: Tensor, *, ids: list[int]
) -> ExitFigures:
    """Acceptance on the states of held-out text, costs by the clock, and arXiv:2211.17192's speed-up of both."""
    same, shared = [], []
    for some, wanted in zip(early.split(BATCH), late.split(BATCH), strict=True):
        q, p = (model.lm_head(x).softmax(dim=-1) for x in (short.norm(some), wanted))
        same.append(q.argmax(dim=-1) == p.argmax(dim=-1))
        shared.append(torch.minimum(q, p).sum(dim=-1))
    greedy, drawn = float(torch.cat(same).float().mean()), float(torch.cat(shared).mean())
    calls = {n: call_cost_here(model, ids, n) for n in SIZES}
    cost = relative_cost(short, model, ids)
    speed_up = {n: expected_tokens(greedy, n) / (n * cost + calls[n]) for n in SIZES}
    return ExitFigures(len(short.layers), greedy, drawn, cost, calls, speed_up)


def save_exit(short: Llama3Model, file: str | Path) -> None:
    """Write an early exit's own numbers; the blocks stay with their model. Raises WriteError."""
    tensors = {name: tensor.contiguous() for name, tensor in short.norm.state_dict().items()}
    write_file(file, save(tensors, metadata={"n_blocks": str(len(short.layers))}))


def load_exit(model: Llama3Model, file: str | Path) -> Llama3Model:
    """The early exit of a model that `save_exit` wrote. Raises CheckpointError for another file, or another model's."""
    try:
        with safe_open(file, "pt") as opened:
            n_blocks = int((opened.metadata() or {})["n_blocks"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no dict)
        short = early_exit(model, n_blocks)
        short.norm.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        what = str(error).splitlines()[0]
        raise CheckpointError(f"{file} holds no early exit of this model; train one anew ({what})") from None
    return short


def relative_cost(short: Llama3Model, model: Llama3Model, ids: list[int], *, repeats: int = 7) -> float:
    """What a step of the short model takes, in steps of the whole: the median of both, in turn."""
    seconds: dict[int, list[float]] = {0: [], 1: []}
    caches = [m.make_cache(1, len(ids) + 1) for m in (short, model)]
    prompt = torch.tensor([ids])
    with torch.inference_mode():
        for one, cache in zip((short, model), caches, strict=True):
            one(prompt, cache=cache, last_only=True)
        for _ in range(repeats):
            for n, (one, cache) in enumerate(zip((short, model), caches, strict=True)):
                start = time.perf_counter()
                one(prompt[:, :1], cache=cache)
                seconds[n].append(time.perf_counter() - start)
                cache.rewind(len(ids))
    return statistics.median(seconds[0]) / statistics.median(seconds[1])
