"""Preference tuning: of two answers to one prompt the better one becomes likelier, measured against where it began.

    loss = -log sigmoid(beta ((log p(chosen) - log p0(chosen)) - (log p(rejected) - log p0(rejected))))

p is the model with its adapter, p0 without it, so no second model is needed; log p of an answer is the sum over its
tokens. beta says how far p may go from p0 for the same gain.

Source: Direct Preference Optimization, arXiv:2305.18290, equation 7. Built in notebook 16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llamamm.errors import ConfigError, InputError
from llamamm.lora.lora import lora_modules, set_lora_enabled
from llamamm.text.model import Llama3Model
from llamamm.train.batches import Batch, fault_at, fill, places_of, turns
from llamamm.train.losses import IGNORE
from llamamm.train.records import Record, read_record
from llamamm.train.rows import Example
from llamamm.train.streams import Streams


def preference_loss(
    chosen: Tensor, rejected: Tensor, chosen_before: Tensor, rejected_before: Tensor, *, beta: float
) -> Tensor:
    """DPO's loss of each pair, (P,), from the log-probabilities (P,) of both answers, now and before."""
    margin = (chosen - chosen_before) - (rejected - rejected_before)
    return -F.logsigmoid(beta * margin)


def answer_log_probs(model: Llama3Model, ids: Tensor, targets: Tensor, **media: Any) -> Tensor:
    """The log-probability of each row's learned tokens, added up. ids, targets (B, T) -> (B,) fp32."""
    hidden = model.hidden_states(ids, **media)
    rows, places = (targets != IGNORE).nonzero(as_tuple=True)
    logits = model.lm_head(hidden[rows, places]).float()  # (N, V), of the learned places alone
    told = -F.cross_entropy(logits, targets[rows, places], reduction="none")
    return torch.zeros(len(ids), device=ids.device).index_add(0, rows, told)


def encode_pair(record: Any, encode: Callable[[Record], Example]) -> tuple[Example, Example]:
    """The examples of a record's chosen and rejected answers. Raises InputError for a record without both."""
    read = read_record(record)
    if read.rejected is None:
        raise InputError("a record of preferences has a prompt, 'chosen' and 'rejected'")
    *begin, last = read.messages
    return encode(read), encode(replace(read, messages=[*begin, {**last, "content": read.rejected}], rejected=None))


class PreferenceObjective(nn.Module):
    """The summed loss over pairs. Rows come in pairs, the chosen answer's before the rejected one's.

    Raises ConfigError for a model without an adapter: without it there would be no model from before to compare with.
    """

    def __init__(self, model: Llama3Model, *, beta: float = 0.1) -> None:
        super().__init__()
        if not lora_modules(model):
            raise ConfigError("preference tuning compares the model with and without its adapter: "
                              "apply_lora(model, ...)")
        self.model, self.beta = model, beta

    def forward(self, ids: Tensor, targets: Tensor, **media: Any) -> Tensor:
        """ids, targets (2P, T) -> scalar, fp32. media: as in `Objective`."""
        with torch.no_grad():
            set_lora_enabled(self.model, False)
            try:
                before = answer_log_probs(self.model, ids, targets, **media)
            finally:
                set_lora_enabled(self.model, True)
        now = answer_log_probs(self.model, ids, targets, **media)
        return preference_loss(now[::2], now[1::2], before[::2], before[1::2], beta=self.beta).sum()


@dataclass(frozen=True)
class PairBatch:
    """Pairs of answers: `rows` holds two rows for each."""

    rows: Batch

    def __len__(self) -> int:
        return len(self.rows) // 2

    @property
    def n_targets(self) -> int:
        """How many pairs: what a summed loss is divided by."""
        return len(self)

    @property
    def n_tokens(self) -> int:
        return self.rows.n_tokens

    def split(self, n_rows: int) -> list[PairBatch]:
        """In pieces of n_rows pairs."""
        return [PairBatch(piece) for piece in self.rows.split(2 * n_rows)]

    def inputs(self, device: torch.device | str) -> dict[str, Any]:
        return self.rows.inputs(device)


class PairBatches:
    """An endless iterator of pairs, epoch after epoch in an order that (seed, epoch) decides; one answer a row.

    documents: with len() and [i], or `Streams`; encode: one of them -> the examples of its chosen and its rejected
    answer. Pairs with an answer over `length` are refused by name. skip_faulty: those, and what is no pair, are left
    out, counted in n_skipped; `fault` is the first.
    rank, world_size: of several processes each keeps every world_size-th pair.
    """

    n_cut = 0

    def __init__(
        self, documents: Sequence[Any] | Streams, encode: Callable[[Any], tuple[Example, Example]], *, batch_size: int,
        length: int, seed: int = 0, pad_id: int = 0, shuffle: bool = True, looked_at: bool = False,
        skip_faulty: bool = False, rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        if batch_size < 1 or batch_size % world_size:
            raise InputError(f"batch_size {batch_size} is not a multiple of world_size {world_size}")
        self._turns = turns(documents, seed=seed, shuffle=shuffle)
        self.documents, self.encode, self.batch_size = documents, encode, batch_size
        self.length, self.seed = length, seed
        self.pad_id, self.looked_at, self.skip_faulty = pad_id, looked_at, skip_faulty
        self.rank, self.world_size, self.n_skipped, self.fault = rank, world_size, 0, ""

    def __iter__(self) -> Iterator[PairBatch]:
        return self

    def __next__(self) -> PairBatch:
        pairs: list[tuple[Example, Example]] = []
        tries = 2 * self._turns.n_round + self.batch_size
        while len(pairs) < self.batch_size:
            tries -= 1
            if tries < 0:
                raise InputError(f"no pair fits into length {self.length}: {self.fault}")
            try:
                pair = self.encode(self._turns.current())
                n = max(len(example.ids) for example in pair) - 1
                if n > self.length:
                    raise InputError(f"{n} tokens are over length {self.length}: set a larger length")
                pairs.append(pair)
            except InputError as error:
                said = fault_at(self._turns.place, error)
                if not self.skip_faulty:
                    raise InputError(said) from error
                self.n_skipped, self.fault = self.n_skipped + 1, self.fault or said
            self._turns.advance()
        rows = [[(places_of(example), (example.images, example.sounds))]
                for pair in pairs[self.rank :: self.world_size] for example in pair]  # fmt: skip
        width = max(len(example.ids) - 1 for pair in pairs for example in pair)
        return PairBatch(fill(rows, width, pad_id=self.pad_id, looked_at=self.looked_at))

    @property
    def epoch_progress(self) -> float:
        return self._turns.progress

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch, for JSON."""
        return {**self._turns.state_dict(), "n_skipped": self.n_skipped, "settings": self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batch that `state` was taken behind. Raises InputError for other data or settings."""
        if state.get("settings") != self._settings():
            raise InputError(f"the state was saved with {state.get('settings')}, here it is {self._settings()}; resume "
                             f"with the same data and settings, or begin anew")
        self._turns.load_state_dict(state)
        self.n_skipped = state["n_skipped"]

    def _settings(self) -> dict[str, Any]:
        return {**self._turns.settings, "seed": self.seed, "batch_size": self.batch_size, "length": self.length}
