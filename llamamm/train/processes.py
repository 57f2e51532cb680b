"""One process or many: who we are under torchrun, what all of them agree on, and the model wrapped for it.

    torchrun --nproc-per-node 2 -m llamamm train CONFIG.yaml

DDP keeps a whole copy of the model in each process and averages gradients; FSDP2 keeps a part of each matrix in each
process and gathers it when its block runs. Both are PyTorch's own. A call that talks to the others must be made by
all of them, or those who make it wait for ever. Built in notebook 19.
"""

from __future__ import annotations

import hashlib
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from llamamm.devices import pick_device
from llamamm.errors import ConfigError, TrainingError
from llamamm.weights.parts import fill_parts


@dataclass(frozen=True)
class Processes:
    """This process among all that train together."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    # ---- talking to the others ----

    def sum(self, value: float) -> float:
        """The sum over all processes."""
        if self.world_size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total)

    def any(self, wish: bool) -> bool:
        """Whether one process at least says yes."""
        return self.sum(float(wish)) > 0

    def gather(self, value: Any) -> list[Any]:
        """Everyone's value, in the order of ranks."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """The main process's value, whatever the others pass."""
        return self.gather(value)[0]

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.world_size > 1:
            dist.barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that ends in all processes at once: an exception in one is raised there, and TrainingError elsewhere.

        Without it the others would wait for the one that failed. The block must not wait for the others itself.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        said = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        failed = [rank for rank, text in enumerate(said) if text is not None]
        if failed:
            raise TrainingError(f"process {failed[0]} of {self.world_size} could not go on ({said[failed[0]]}), "
                                f"so the others stop too")

    # ---- the model ----

    def wrap(self, objective: nn.Module, *, parallel: str) -> nn.Module:
        """The module, ready to train in all processes together. All start from the main process's parameters.

        A model with `unread` weights (see `prepare.load_model`) is split first; then each process reads its part.
        """
        if self.world_size == 1:
            return objective
        if parallel == "fsdp":
            for parameter in objective.parameters():  # DDP does this by itself
                if not parameter.is_meta:
                    dist.broadcast(parameter.detach(), src=0)
            mesh = init_device_mesh(self.device.type, (self.world_size,))
            blocks, whole = shards_of(objective.model)
            for layer in blocks:
                fully_shard(layer, mesh=mesh)
            fully_shard(objective, mesh=mesh, ignored_params=whole)
            if unread := getattr(objective.model, "unread", None):
                fill_parts(objective.model, unread, dtype=objective.model.cfg.dtype, device=self.device)
            return objective
        ids = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings():  # its successor, forward_sync_buffers, is too young for our oldest PyTorch
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
            return DistributedDataParallel(objective, device_ids=ids, broadcast_buffers=False)

    @contextmanager
    def accumulating(self, module: nn.Module, *, last: bool) -> Iterator[None]:
        """Send gradients to the others only after the last piece of a step."""
        if isinstance(module, DistributedDataParallel) and not last:
            with module.no_sync():
                yield
            return
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(last)
        yield


@contextmanager
def joined(device: str | None = None) -> Iterator[Processes]:
    """The processes that torchrun started, or this one alone. device: as in `pick_device`.

    A process group that is there already is used, and left: torchrun's store is good for making one, not a second.
    Raises ConfigError for several processes on a device that cannot talk to the others.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes(device=pick_device(device))
        return
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    chosen = pick_device(device)
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"{world_size} processes train together on cpu or cuda, not on {chosen}: set device: cpu")
    if chosen.type == "cuda":
        if local >= torch.cuda.device_count():
            raise ConfigError(f"process {local} of this machine has no GPU of its own, there are "
                              f"{torch.cuda.device_count()}: start that many (--nproc-per-node)")
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    ours = not dist.is_initialized()
    if ours and chosen.type == "cuda":
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=chosen)
    elif ours:
        dist.init_process_group("gloo")
    try:
        yield Processes(rank, world_size, chosen)
    finally:
        if ours:
            # Gloo's threads drop the last tensors a moment after we got them, for which they need the interpreter; one
            # that ends meanwhile aborts ("terminate called without an active exception").
            time.sleep(0.1)
            dist.destroy_process_group()


def first_to_say(text: str) -> bool:
    """Whether no other process that torchrun started with this one has said `text`; True where there are no others.

    torchrun's own store is asked, which is there before the processes have joined and after they have parted.
    """
    env = os.environ
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    try:
        store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False, wait_for_workers=False,
                              timeout=timedelta(seconds=10))  # fmt: skip
        start = env.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun may start all of them anew
        return store.add(f"llamamm/said/{start}/{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1
    except Exception:  # a store that is gone: better twice than not at all
        return True


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The model's blocks, the text's and those of towers: all that stands in a list called `layers`."""
    lists = (m for name, m in model.named_modules() if name.split(".")[-1] == "layers")
    return [block for blocks in lists if isinstance(blocks, nn.ModuleList) for block in blocks]


# ---- sharded modules (FSDP) ----

def shards_of(model: nn.Module) -> tuple[list[nn.Module], set[nn.Parameter]]:
    """The blocks that are sharded one by one, and the parameters that stay whole in each process.

    A block gathers itself when it runs, which all processes must do at once: those of the text do. Towers and bridges
    run where a row has pictures or sounds; they are sharded with the rest, which is gathered at the begin of a step.
    Towers that do not train stay whole: they look before the step, each process at what it needs.
    """
    towers, added = getattr(model, "TOWERS", ()), getattr(model, "ADDED", ())
    text = [part for name, part in model.named_children() if name not in (*towers, *added)]
    parts = [part for name, part in model.named_children() if name in towers]
    frozen = [part for part in parts if not any(p.requires_grad for p in part.parameters())]
    blocks = [block for part in text if isinstance(part, nn.ModuleList) for block in part]
    return blocks, {p for part in frozen for p in part.parameters()}



def is_sharded(module: nn.Module) -> bool:
    """Whether each process holds a part of the module, under FSDP."""
    return isinstance(module, FSDPModule)


@contextmanager
def root_gathered(module: nn.Module) -> Iterator[None]:
    """Inside, parts of a sharded module may be called without it: what no block owns (embedding, norm, head) is whole.

    Blocks gather themselves when they run, so all processes must run the same ones. Nothing happens to other modules.
    """
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def as_local(value: Tensor) -> Tensor:
    """A plain tensor of what FSDP may have sharded, whole."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value
