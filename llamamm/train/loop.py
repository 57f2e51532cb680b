"""The training loop, in plain PyTorch.

    batch -> loss of its answers -> gradients -> clipped -> AdamW -> next batch

Around that line stands what keeps a long run alive: steps with NaN are skipped and counted, evaluations pick the best
weights, checkpoints resume bit for bit, Ctrl-C ends after the step that runs.

Built in notebook 10.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llamamm.devices import default_dtype
from llamamm.errors import TrainingError, counted
from llamamm.lora.lean import lean_blocks, lean_forward
from llamamm.lora.lora import LoraLinear
from llamamm.text.model import Llama3Model
from llamamm.train.config import TrainConfig
from llamamm.train.log import RunLog
from llamamm.train.losses import cross_entropy_sum
from llamamm.train.optim import learning_rate, make_optimizer
from llamamm.train.processes import Processes, as_local, blocks_of, is_sharded, root_gathered
from llamamm.train.randomness import seed_everything


class AnyBatch(Protocol):
    """What the loop asks of a batch: `rows.Batch` of texts, and others."""

    n_targets: int  # what the summed loss is divided by: places learned, pairs compared
    n_tokens: int  # of all its texts, for the speed

    def __len__(self) -> int: ...

    def split(self, n_rows: int) -> Sequence[AnyBatch]:
        """In pieces whose losses add up to the batch's. Raises ConfigError where there are no such pieces."""
        ...

    def inputs(self, device: torch.device | str) -> dict[str, Any]:
        """What the objective is called with."""
        ...


class BatchStream(Protocol):
    """What the loop asks of whoever makes batches: `rows.Batches`, and others."""

    n_cut: int  # examples that were longer than a row
    epoch_progress: float

    def __next__(self) -> AnyBatch: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Objective(nn.Module):
    """The model and its loss as one module, since what runs over many processes wraps a module's forward.

    Another objective has a `model`, too, and a forward that takes a batch's inputs and gives the summed loss.
    """

    def __init__(self, model: Llama3Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor, segments: Tensor | None = None, **media: Any) -> Tensor:
        """The summed cross-entropy of the targets. ids, targets, segments (B, T) -> scalar, fp32.

        media: what a model that sees or hears is given beside ids.
        """
        hidden = self.model.hidden_states(ids, segments=segments, **media)  # (B, T, C)
        head = self.model.lm_head
        adapted = isinstance(head, LoraLinear) and head.enabled and not head.merged
        weight = head.merged_weight() if adapted else head.weight
        return cross_entropy_sum(hidden.flatten(0, 1), weight, targets.flatten())


class Saver(Protocol):
    """What the loop asks of whoever writes checkpoints."""

    def save_last(self, trainer: Trainer) -> None: ...

    def save_best(self, trainer: Trainer) -> None: ...

    def save_final(self, trainer: Trainer) -> None:
        """Asked for at the end of a run over shards alone (FSDP): the weights as one plain folder."""
        ...


class Sampler(Protocol):
    """What the loop asks of whoever shows what the model writes."""

    def __call__(self, model: Llama3Model) -> dict[str, str]: ...


class Trainer:
    """A model, its data and its settings; `fit` trains to the last step.

    objective: the model with its loss, by default that of its answers. eval_batches: held-out batches, the same at each
    evaluation. sampler: prompts and what the model answers.
    Raises TrainingError, with a diagnosis, after cfg.max_bad_steps steps in a row with NaN or infinity.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: BatchStream,
        cfg: TrainConfig,
        *,
        objective: nn.Module | None = None,
        eval_batches: Sequence[AnyBatch] = (),
        sampler: Sampler | None = None,
        saver: Saver | None = None,
        log: RunLog | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.cfg, self.model, self.batches = cfg, model, batches
        self.eval_batches, self.sampler, self.saver = eval_batches, sampler, saver
        self.processes = processes or Processes(device=next(model.parameters()).device)
        self.device = self.processes.device
        self.log = log or RunLog()
        self.autocast_dtype, uses_scaler = resolve_precision(cfg.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=uses_scaler)
        seed_everything(cfg.seed + self.processes.rank)
        if cfg.checkpoint_activations:
            checkpoint_activations(model)
        self._plain_objective = objective or Objective(model)
        self.objective = self.processes.wrap(self._plain_objective, parallel=cfg.parallel)
        self.optimizer = make_optimizer(model, cfg)
        self.step = 0  # steps done
        self.best_loss = math.inf
        self.evaluations_since_best = 0
        self.skipped = self.bad_in_a_row = 0
        self.stopped = False  # by Ctrl-C or SIGTERM
        self._asked_to_stop = self._said_cut = self._said_skipped = False

    def fit(self) -> None:
        """Train to cfg.steps, or until the held-out loss has stopped falling, or until Ctrl-C."""
        try:
            with self._ctrl_c(), self.log.progress(self.cfg.steps, self.step):
                self._fit()
        finally:
            self.log.close()

    def _fit(self) -> None:
        cfg = self.cfg
        while self.step < cfg.steps:
            self.train_step()
            # one process may have seen Ctrl-C a step before the others; all must end after the same one
            self.stopped = self.processes.any(self._asked_to_stop)
            last = self.step == cfg.steps or self.stopped
            if self.eval_batches and (self.step % cfg.eval_every == 0 or last):
                self.evaluate_and_keep_best()
                last = last or (0 < cfg.patience <= self.evaluations_since_best)
            if self.saver and (self.step % cfg.save_every == 0 or last):
                self.saver.save_last(self)
            if last:
                break
        if self.saver and is_sharded(self.objective):
            self.saver.save_final(self)

    def train_step(self) -> float:
        """One optimizer step. Returns the mean loss of its targets, over all processes."""
        start = time.perf_counter()
        batch = next(self.batches)
        rate = learning_rate(self.step, self.cfg)
        loss, norm, finite = self.update(batch, rate)
        self.step += 1
        if not finite:
            self._note_bad_step(loss, norm)
        else:
            self.bad_in_a_row = 0
            tokens = self.processes.sum(batch.n_tokens)
            seconds = time.perf_counter() - start
            self.log.step(self.step, loss=loss, learning_rate=rate, grad_norm=norm, tokens_per_s=tokens / seconds,
                          epoch=self.batches.epoch_progress)  # fmt: skip
        if self.batches.n_cut and not self._said_cut:
            self._said_cut = True
            self.log.say(f"a dialogue longer than length {self.cfg.length} was cut, as all such are: a larger length "
                         f"keeps them whole")
        if getattr(self.batches, "n_skipped", 0) and not self._said_skipped:
            self._said_skipped = True
            self.log.say(f"a faulty record was left out, as all such are: {self.batches.fault}")
        return loss

    def update(self, batch: AnyBatch, rate: float) -> tuple[float, float, bool]:
        """Gradients of a batch, piece by piece, and the optimizer's step with them: skipped where they are not finite.

        -> mean loss, gradient norm before clipping, whether both were finite.
        """
        self.objective.train()
        n_targets = self.processes.sum(batch.n_targets)
        pieces = batch.split(self.cfg.micro_batch_size or len(batch))
        total = 0.0
        for i, piece in enumerate(pieces):
            with self.processes.accumulating(self.objective, last=i == len(pieces) - 1):
                loss = self._loss(piece) / max(n_targets, 1)  # a sum over pieces is then the mean over the batch
                # DDP and FSDP average gradients over processes, but each has its share of one big mean: a sum is due.
                self.scaler.scale(loss * self.processes.world_size).backward()
            total += float(loss.detach())
        if hasattr(self._plain_objective, "drop_idle"):
            self._plain_objective.drop_idle(self.processes)
        total = self.processes.sum(total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.unscale_(self.optimizer)
        trainable = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = float(as_local(nn.utils.clip_grad_norm_(trainable, self.cfg.clip_norm)))
        finite = math.isfinite(total) and math.isfinite(norm)
        if finite or self.scaler.is_enabled():  # the scaler skips the step itself, and then lowers its scale
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm, finite

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean loss of the held-out targets, over all processes."""
        self.objective.eval()
        loss = n_targets = 0.0
        for batch in self.eval_batches:
            loss += float(self._loss(batch))
            n_targets += batch.n_targets
        if is_sharded(self.objective):  # without a backward pass, FSDP leaves embedding and head gathered
            self.objective.reshard()
        return self.processes.sum(loss) / max(self.processes.sum(n_targets), 1)

    def evaluate_and_keep_best(self) -> None:
        """Evaluate, show samples, and save the weights where the loss is the lowest so far."""
        loss = self.evaluate()
        better = loss < self.best_loss
        self.evaluations_since_best = 0 if better else self.evaluations_since_best + 1
        if better:
            self.best_loss = loss
            if self.saver:
                self.saver.save_best(self)
        with self.processes.together():
            samples = self._samples()
        self.log.evaluation(self.step, loss=loss, best=self.best_loss, samples=samples)

    def _samples(self) -> dict[str, str]:
        """What the model answers. A sharded one needs all processes to run; they draw the same tokens."""
        if self.sampler is None or not (self.processes.is_main or is_sharded(self.objective)):
            return {}
        with root_gathered(self.objective):
            return self.sampler(self.model)

    def _loss(self, batch: AnyBatch) -> Tensor:
        dtype, inputs = self.autocast_dtype, batch.inputs(self.device)
        with torch.autocast(self.device.type, dtype) if dtype else nullcontext(), lean_blocks(self.model):
            return self.objective(**inputs)

    def _note_bad_step(self, loss: float, norm: float) -> None:
        self.skipped += 1
        searching = self.scaler.is_enabled() and self.scaler.get_scale() >= 1  # overflows are how it finds its scale
        self.bad_in_a_row = 0 if searching else self.bad_in_a_row + 1
        self.log.skipped(self.step, loss=loss, grad_norm=norm, n_skipped=self.skipped)
        if self.bad_in_a_row >= self.cfg.max_bad_steps:
            raise TrainingError(self._diagnosis(loss, norm))

    def _diagnosis(self, loss: float, norm: float) -> str:
        broken = [name for name, p in self.model.named_parameters() if not as_local(p.detach()).isfinite().all()]
        rate = learning_rate(self.step - 1, self.cfg)
        if broken:
            cause = (f"NaN or infinity in {counted(len(broken), 'weight')}, such as {broken[0]}: `llamamm doctor FILE` "
                     f"lists them")
        elif not math.isfinite(loss):
            cause = "the forward pass overflows: take precision bf16 or fp32, or look at the data of these steps"
        else:
            cause = f"gradients overflow: lower learning_rate (now {rate:.2g}) or lengthen warmup_steps"
        return (f"{self.bad_in_a_row} steps in a row up to step {self.step} had loss {loss:.4g} and gradient norm "
                f"{norm:.4g}, and were skipped; {cause}. The last checkpoint stands")  # fmt: skip

    @contextmanager
    def _ctrl_c(self) -> Iterator[None]:
        """The first Ctrl-C (or SIGTERM) ends training after this step, with a checkpoint; the second at once.

        Where nobody writes checkpoints, the first ends it at once.
        """
        if self.saver is None or threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, _frame: object) -> None:
            if self._asked_to_stop:
                raise KeyboardInterrupt
            self._asked_to_stop = True
            self.log.say(f"stopping after this step ({signal.Signals(number).name}), with a checkpoint to resume from; "
                         f"once more stops at once, and the checkpoint before stands")

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def resolve_precision(precision: str, device: torch.device) -> tuple[torch.dtype | None, bool]:
    """The dtype to run matrix products in, None for the weights' own, and whether gradients need a scaler (fp16)."""
    if precision == "auto":
        best = torch.float32 if device.type == "mps" else default_dtype(device)
    else:
        best = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return (None if best == torch.float32 else best), best == torch.float16


def checkpoint_activations(model: nn.Module) -> None:
    """Keep only what enters each block, and run the block again when its gradients are due: memory against time."""
    for layer in blocks_of(model):
        layer.forward = partial(checkpoint, lean_forward(layer), use_reentrant=False)
