"""`llamamm generate` under torchrun: one text model over all processes, of which the first alone speaks."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import typer

from llamamm.errors import InputError

if TYPE_CHECKING:
    from llamamm.generation.prompts import Processor
    from llamamm.text.model import Llama3Model
    from llamamm.train.processes import Processes


def n_processes() -> int:
    """How many torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def load_together(
    context: typer.Context | None, name: str, *, dtype: str | None, device: str | None, refused: dict[str, object]
) -> tuple[Llama3Model, Processor]:
    """This process's part of a text model, until the command ends; and what all processes draw from then on is equal.

    context: the command's; None: it cannot run in several processes. refused: options that a split model does not take,
    with what was given. Raises InputError for these, and as `open_split`.
    """
    if context is None:
        raise InputError(f"this command runs in one process, not in {n_processes()}: start it without torchrun")
    if given := [option for option, value in refused.items() if value]:
        raise InputError(f"{given[0]} is for a model in one process: leave it out, or start without torchrun")
    from torch.distributed.device_mesh import init_device_mesh

    from llamamm.devices import default_dtype
    from llamamm.generation.prompts import as_processor
    from llamamm.pretrained.split import open_split
    from llamamm.text.config import parse_dtype
    from llamamm.train.processes import joined

    processes = context.with_resource(joined(device))
    context.with_resource(_one_speaks(processes))
    mesh = init_device_mesh(processes.device.type, (processes.world_size,))
    model, tokenizer = open_split(name, mesh, dtype=parse_dtype(dtype) if dtype else default_dtype(processes.device),
                                  device=processes.device)  # fmt: skip
    if tokenizer is None:
        raise InputError(f"{name} has no tokenizer beside its weights; put its tokenizer.json or tokenizer.model there")
    _draw_alike(processes)
    return model, as_processor(tokenizer)


@contextmanager
def _one_speaks(processes: Processes) -> Iterator[None]:
    with ExitStack() as stack:
        if not processes.is_main:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield


def _draw_alike(processes: Processes) -> None:
    """The same random numbers in all: each samples the next token by itself, and all must take the same."""
    import torch

    torch.manual_seed(processes.from_main(random.SystemRandom().getrandbits(63)))
