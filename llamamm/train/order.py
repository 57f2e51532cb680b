"""Documents one after the other, epoch after epoch, in an order that can be resumed. Used in notebook 10."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from llamamm.errors import InputError
from llamamm.train.documents import place_of


class Turns(Protocol):
    """What batches ask of whoever says which document is next: `Shuffled`, and `Streams`."""

    n_round: int  # after so many documents, whoever has found nothing in them may give up
    epoch: int
    progress: float  # epochs read so far
    place: str  # how people find the document at hand
    settings: dict[str, Any]  # what a state belongs to

    def current(self) -> Any:
        """The document at hand. Raises InputError where it cannot be read."""
        ...

    def advance(self) -> None:
        """To the next one."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The place of the document at hand, for JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Shuffled:
    """Documents with len() and [i], each epoch in an order of its own that (seed, epoch) decides.

    documents may have an `order` of their own, as `Records` of several sources do.
    """

    def __init__(self, documents: Sequence[Any], *, seed: int, shuffle: bool = True) -> None:
        self.documents, self.seed, self.shuffle = documents, seed, shuffle
        self.n_round = len(documents)
        self._begin(0, 0)

    @property
    def _index(self) -> int:
        return int(self._order[self.position])

    @property
    def place(self) -> str:
        """File and line, or a number."""
        return place_of(self.documents, self._index)

    @property
    def progress(self) -> float:
        """1.25 when a quarter of the documents has been read a second time."""
        return self.epoch + self.position / len(self.documents)

    @property
    def settings(self) -> dict[str, Any]:
        """What a state belongs to."""
        shares = getattr(self.documents, "shares", [1.0])
        return {"documents": len(self.documents), **({"shares": shares} if len(shares) > 1 else {})}

    def current(self) -> Any:
        """The document at hand."""
        return self.documents[self._index]

    def advance(self) -> None:
        """To the next one, after the last to the next epoch."""
        if self.position + 1 < len(self.documents):
            self.position += 1
        else:
            self._begin(self.epoch + 1, 0)

    def state_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. Raises InputError for a place that is not in these documents, KeyError,
        TypeError or ValueError for what is no state."""
        epoch, position = int(state["epoch"]), int(state["position"])
        if not (epoch >= 0 and 0 <= position < len(self.documents)):
            raise InputError(f"the state's place, epoch {epoch}, document {position}, is not in these "
                             f"{len(self.documents)} documents")
        self._begin(epoch, position)

    def _begin(self, epoch: int, position: int) -> None:
        """Its own generator: neither torch's nor numpy's random numbers are touched."""
        self.epoch, self.position, n = epoch, position, len(self.documents)
        generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        if not self.shuffle:
            self._order = np.arange(n)
            return
        own = hasattr(self.documents, "order")
        self._order = self.documents.order(generator) if own else generator.permutation(n)
