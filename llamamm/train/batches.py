"""Examples packed into rows of one length, in an order that can be resumed.

A row of fixed length wastes nothing if several texts share it. They must not see each other: each place carries the
number of its text, its segment, from which the model builds a block-diagonal mask. The targets of all that is not
learned are IGNORE.

    Example -> places: pairs of a token and the one to predict -> Batch (B, T)

Sources: packing with block-diagonal masks, arXiv:2107.02027 and Llama 3, arXiv:2407.21783 (3.2). Built in notebook 10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llamamm.errors import InputError, counted
from llamamm.multimodal.model import Features
from llamamm.multimodal.places import pad_right
from llamamm.multimodal.processor import make_media
from llamamm.train.losses import IGNORE
from llamamm.train.order import Shuffled, Turns
from llamamm.train.rows import Example
from llamamm.train.streams import Streams


@dataclass(frozen=True)
class Batch:
    """Rows for one step, all (B, T) int64. targets: the token after each place, IGNORE where nothing is learned.

    segments: 1, 2, ... for the texts of a row, 0 for the filling at its end.
    images, sounds: those of each row, in the order of their places; none for text alone. looked_at: they are features
    of a tower, (N, F) each, else pixels (3, H, W) and log-mels (n_mels, T).
    """

    ids: Tensor
    targets: Tensor
    segments: Tensor
    images: Sequence[Sequence[Tensor]] = ()
    sounds: Sequence[Sequence[Tensor]] = ()
    looked_at: bool = False

    def __len__(self) -> int:
        """How many rows."""
        return len(self.ids)

    @property
    def n_targets(self) -> int:
        """How many places are learned: what a summed loss is divided by."""
        return int((self.targets != IGNORE).sum())

    @property
    def n_tokens(self) -> int:
        """How many places are not filling."""
        return int((self.segments > 0).sum())

    def split(self, n_rows: int) -> list[Batch]:
        """In pieces of n_rows rows, each with its pictures and sounds; the last may have fewer."""
        parts = self.ids, self.targets, self.segments, self.images, self.sounds
        return [Batch(*(part[i : i + n_rows] for part in parts), self.looked_at) for i in range(0, len(self), n_rows)]

    def inputs(self, device: torch.device | str) -> dict[str, Any]:
        """What the objective is called with, on a device: ids, targets, segments where a row has several texts, and
        `features` or `media` where there are any."""
        given: dict[str, Any] = {"ids": self.ids.to(device), "targets": self.targets.to(device)}
        if (self.segments > 1).any():  # one text a row needs no more than the kernel's own causal mask
            given["segments"] = self.segments.to(device)
        images = [image for row in self.images for image in row]
        sounds = [sound for row in self.sounds for sound in row]
        if not images and not sounds:
            return given
        if not self.looked_at:
            return {**given, "media": make_media(images, sounds).to(device)}
        heard, mask = pad_right(sounds) if sounds else (None, None)
        seen = torch.stack(images).float() if images else None
        return {**given, "features": Features(seen, None if heard is None else heard.float(), mask).to(device)}


Media = tuple[Sequence[Tensor], Sequence[Tensor]]  # pictures and sounds
Row = list[tuple[Tensor, Media]]  # places (2, n), tokens above their targets, and what stands in them


def fill(rows: Sequence[Row], width: int, *, pad_id: int = 0, looked_at: bool = False) -> Batch:
    """Rows of texts as a batch, filled on the right to a width."""
    ids = torch.full((len(rows), width), pad_id)
    targets = torch.full_like(ids, IGNORE)
    segments = torch.zeros_like(ids)
    for r, pieces in enumerate(rows):
        begin = 0
        for n, (piece, _) in enumerate(pieces, start=1):
            place = slice(begin, begin := begin + piece.shape[1])
            ids[r, place], targets[r, place] = piece
            segments[r, place] = n
    images, sounds = ([[one for _, media in row for one in media[kind]] for row in rows] for kind in (0, 1))
    return Batch(ids, targets, segments, images, sounds, looked_at)


def places_of(example: Example) -> Tensor:
    """An example as (2, n - 1): each token above the one it predicts, IGNORE where that is not learned."""
    ids = torch.tensor(example.ids, dtype=torch.int64)
    targets = ids.where(torch.tensor(example.learn, dtype=torch.bool), IGNORE)
    return torch.stack([ids[:-1], targets[1:]])


class Batches:
    """An endless iterator of batches: epoch after epoch, each in an order of its own that (seed, epoch) decides.

    documents: anything with len() and [i], or `Streams`; encode: what turns one of them into an Example. Its
    InputErrors come with the document's place: file and line, or number.
    length: places in a row. A place is a token and the one it predicts, so a text of n tokens takes n - 1.
    pack, split: rows are full to the last place; a text goes on in the next row, where it sees nothing of its begin.
    split may be a function that says of each document whether it is split so.
    pack alone: as many whole examples as fit, in turn, then filling. Without pack: one a row, as wide as the longest.
    Without split an example longer than a row is cut; `n_cut` counts them. Examples with nothing to learn are left out.
    Examples with pictures or sounds are never split, and too long ones are refused. skip_faulty: those, and what cannot
    be read, are left out, counted in `n_skipped`; `fault` is the first. looked_at: as in `Batch`.
    rank, world_size: of several processes, each reads the same stream and keeps every world_size-th row.

    Raises InputError for settings that do not fit, and when a whole epoch has nothing to learn.
    """

    def __init__(
        self,
        documents: Sequence[Any] | Streams,
        encode: Callable[[Any], Example],
        *,
        batch_size: int,
        length: int,
        seed: int = 0,
        pack: bool = True,
        split: bool | Callable[[Any], bool] = True,
        pad_id: int = 0,
        shuffle: bool = True,
        looked_at: bool = False,
        skip_faulty: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("length", length), ("world_size", world_size)):
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if batch_size % world_size:
            raise InputError(f"batch_size {batch_size} is not a multiple of world_size {world_size}: "
                             f"each process must get the same number of rows")
        if not 0 <= rank < world_size:
            raise InputError(f"rank must be from 0 to {world_size - 1} for world_size {world_size}, got {rank}")
        if seed < 0:
            raise InputError(f"seed must be 0 or more, got {seed}")
        self.documents, self.encode = documents, encode
        self._turns = turns(documents, seed=seed, shuffle=shuffle)
        self.batch_size, self.length, self.seed, self.pad_id = batch_size, length, seed, pad_id
        self.pack, self.split, self.shuffle = pack, pack and split, shuffle
        self.rank, self.world_size = rank, world_size
        self.looked_at, self.skip_faulty = looked_at, skip_faulty
        self.n_cut = self.n_skipped = 0
        self.fault = ""
        self._used = 0  # places of the example at hand
        self._example: Tensor | None = None
        self._media: Media = (), ()
        self._splits = False  # whether that example is split

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows = [self._next_row() for _ in range(self.batch_size)]
        width = self.length if self.pack else max(piece.shape[1] for row in rows for piece, _ in row)
        return fill(rows[self.rank :: self.world_size], width, pad_id=self.pad_id, looked_at=self.looked_at)

    @property
    def epoch(self) -> int:
        return self._turns.epoch

    @property
    def epoch_progress(self) -> float:
        """Epochs read so far: 1.25 when a quarter of the documents has been read a second time."""
        return self._turns.progress

    # ---- the place in the data ----

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch, and the settings it belongs to; for JSON. The same for every rank."""
        return {**self._turns.state_dict(), "used": self._used, "n_cut": self.n_cut, "n_skipped": self.n_skipped,
                "settings": self._settings()}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batch that `state` was taken behind. Raises InputError for other data or settings."""
        try:
            theirs, used, n_cut = dict(state["settings"]), int(state["used"]), int(state["n_cut"])
            for name, value in self._settings().items():
                if theirs.get(name) != value:
                    raise InputError(f"the state was saved with {name} {theirs.get(name)}, here it is {value}; "
                                     f"resume with the same data and settings, or begin anew")
            self._turns.load_state_dict(state)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"this is no state of Batches: {error!r}; it comes from state_dict()") from None
        self._used, self.n_cut, self.n_skipped = used, n_cut, int(state.get("n_skipped", 0))
        self._example, self._media = None, ((), ())

    def _settings(self) -> dict[str, Any]:
        names = ("seed", "batch_size", "length", "pack", "split", "shuffle")
        values = {name: getattr(self, name) for name in names}
        values["split"] = "by document" if callable(self.split) else self.split
        return {**self._turns.settings, **values}

    # ---- one row, one example ----

    def _next_row(self) -> Row:
        """The pieces (2, n) of a row, together at most `length` places, each with its pictures and sounds."""
        pieces, room = [], self.length
        while room:
            example = self._current()
            piece = example[:, self._used :][:, : room if self._splits else self.length]
            n = piece.shape[1]
            if n > room:
                break
            pieces.append((piece, self._media))
            room -= n
            self._used += n
            if not self._splits or self._used == example.shape[1]:
                self._advance()
            if not self.pack:
                break
        return pieces

    def _current(self) -> Tensor:
        """The example at hand, read if it is not yet, whole: places (2, n), tokens above their targets."""
        tries = 2 * self._turns.n_round  # from the middle of an epoch, that surely spans a whole one
        while self._example is None:
            if tries == 0:
                raise InputError(f"no token to learn in {counted(self._turns.n_round, 'document')}"
                                 f"{'' if self.split else f' in its first {self.length} places'}: "
                                 f"are they empty, or is nothing in them an answer?")
            tries -= 1
            try:
                self._read()
            except InputError as error:
                said = fault_at(self._turns.place, error)
                if not self.skip_faulty:
                    raise InputError(said) from error
                self.n_skipped, self.fault = self.n_skipped + 1, self.fault or said
                self._used, self._media = 0, ((), ())
                self._turns.advance()
                continue
            if 0 < self._example.shape[1] <= self._used:
                raise InputError(f"the state's place is {self._used} places into {self._turns.place}, which has "
                                 f"{self._example.shape[1]}; the documents or their encoding have changed")
            if (self._example[1, : None if self._splits else self.length] == IGNORE).all():
                self._advance()
        return self._example

    def _read(self) -> None:
        """The example at hand, from its document. Raises InputError for what cannot be read or is too long."""
        document = self._turns.current()
        example = self.encode(document)
        self._media = example.images, example.sounds
        splits = self.split(document) if callable(self.split) else self.split
        self._splits = bool(splits) and not any(self._media)
        if any(self._media) and len(example.ids) - 1 > self.length:
            raise InputError(f"{len(example.ids) - 1} tokens with those of its pictures and sounds, which cannot be "
                             f"cut, are over length {self.length}: set a larger length")
        self._example = places_of(example)

    def _advance(self) -> None:
        """Done with the example at hand: to the next document."""
        self.n_cut += not self._splits and self._example.shape[1] > self.length
        self._example, self._media, self._used = None, ((), ()), 0
        self._turns.advance()


def turns(documents: Sequence[Any] | Streams, *, seed: int, shuffle: bool) -> Turns:
    """Who says which document is next. Raises InputError where there are none."""
    if isinstance(documents, Streams):
        return documents
    if len(documents) == 0:
        raise InputError("there are 0 documents; training needs at least one")
    return Shuffled(documents, seed=seed, shuffle=shuffle)


def fault_at(place: str, error: InputError) -> str:
    """What is wrong, with the place of the document, which the error may name itself."""
    return str(error) if str(error).startswith(place) else f"{place}: {error}"
