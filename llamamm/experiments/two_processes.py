"""Two processes that share a batch of unequal rows: is their gradient that of one, and what does FSDP leave to each?

    rows of 4 and 29 tokens -> a tiny Llama in each process, one row each -> gradients, beside that of both rows

PyTorch's DDP averages gradients over processes and knows nothing of tokens: whoever divides a loss by its own tokens
gets the mean of means. Built in notebook 19.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from llamamm.errors import LlamammError
from llamamm.text.config import TextConfig
from llamamm.text.model import Llama3Model

LENGTHS = (4, 29)  # of the two rows: 3 and 28 tokens are predicted
SECONDS = 300  # then a process that waits for the other is ended


def summed_loss(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """The sum of a row's losses, ids (T,)."""
    return cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="sum")


def gradient_of(model: torch.nn.Module, loss: Tensor) -> Tensor:
    """All of a model's gradients in one vector, (n,); DDP has averaged them."""
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def compare(rank: int) -> dict[str, float]:
    """In each of two processes: how far the gradient is off by either divisor, and what FSDP leaves to each."""
    torch.manual_seed(0)
    model = Llama3Model(TextConfig.tiny())
    rows = [torch.randint(0, model.cfg.vocab_size, (n,)) for n in LENGTHS]
    counts = [len(ids) - 1 for ids in rows]
    one = gradient_of(model, sum(summed_loss(model, ids) for ids in rows) / sum(counts))
    both, found = DistributedDataParallel(model), {}
    for name, divisor in {"all tokens / 2": sum(counts) / 2, "own tokens": counts[rank]}.items():
        ours = gradient_of(both, summed_loss(both, rows[rank]) / divisor)
        found[name] = float((ours - one).norm() / one.norm())
    found["parameters"] = sum(p.numel() for p in model.parameters())
    for part in (*model.layers, model):
        fully_shard(part)
    found["held"] = sum(p.to_local().numel() for p in model.parameters())
    return found


def run_two() -> list[dict[str, float]]:
    """`compare` in two processes that are started for it, by gloo. Raises LlamammError where one fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "llamamm.experiments.two_processes", str(Path(folder, "store"))]
        started = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                   for rank in range(2)]  # fmt: skip
        try:
            outputs = [process.communicate(timeout=SECONDS) for process in started]
        except subprocess.TimeoutExpired:
            raise LlamammError(f"two processes did not find each other within {SECONDS} seconds") from None
        finally:
            for process in started:
                process.kill()
    for process, (_, said) in zip(started, outputs, strict=True):
        if process.returncode:
            raise LlamammError(f"a process of two failed: {(said.strip().splitlines() or ['without a word'])[-1]}")
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def _main(store: str, rank: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=Path(store).as_uri(), rank=int(rank), world_size=2)
    print(json.dumps(compare(int(rank))))
    sys.stdout.flush()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(*sys.argv[1:])
