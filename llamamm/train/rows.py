"""Text as training rows: what to learn of it, packed into rows of one length, in an order that can be resumed.

A row of fixed length wastes nothing if several texts share it. They must not see each other: each place carries the
number of its text, its segment, from which the model builds a block-diagonal mask. Of a dialogue, the answers alone
are learned: the targets of everything else are IGNORE.

    record (a dict) -> Example -> places: pairs of a token and the one to predict -> Batch (B, T)

Sources: packing with block-diagonal masks, arXiv:2107.02027 and Llama 3, arXiv:2407.21783 (3.2). Built in notebook 10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llamamm.errors import InputError, counted
from llamamm.text.chat import AnyChat, Messages, TemplateChat, chat_format, check_messages
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.documents import place_of
from llamamm.train.losses import IGNORE

END_OF_TEXT = ("<|end_of_text|>", "<|endoftext|>")  # Llama 3's, SmolLM2's and GPT-2's
END_OF_TURN = ("<|eot_id|>", "<|im_end|>")


# ---- one record -> one example ----


@dataclass(frozen=True)
class Example:
    """Token ids, and for each whether the model should learn to predict it. Nothing predicts the first."""

    ids: list[int]
    learn: list[bool]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.learn):
            raise InputError(f"an example has {len(self.ids)} ids and {len(self.learn)} marks; each id needs one mark")


def encode_text(text: str, tokenizer: Tokenizer) -> Example:
    """A text with the tokens that begin and end one, all to be learned. Raises InputError without an end token."""
    named = [tokenizer.special_tokens[name] for name in END_OF_TEXT if name in tokenizer.special_tokens]
    end = named[0] if named else tokenizer.eos_id
    if end is None:
        raise InputError(f"the tokenizer has none of {', '.join(END_OF_TEXT)} and names no eos token: "
                         f"a model could not learn where a text ends")
    ids = [*tokenizer.encode(text, bos=tokenizer.adds_bos), end]
    return Example(ids, [True] * len(ids))


def encode_dialogue(messages: Messages, tokenizer: Tokenizer, *, chat: AnyChat | None = None) -> Example:
    """A conversation of which the assistant's words and the token that ends its turn are learned, nothing else.

    Space that begins an answer is left out: its newlines would merge with that of the header into one token, which no
    prompt ends with. chat: the format, by default that of the tokenizer.
    Raises InputError for a conversation that teaches nothing.
    """
    chat = chat_format(tokenizer) if chat is None else chat
    turns = check_messages(messages)
    answers = [n for n, (role, _) in enumerate(turns) if role == "assistant"]
    messages = [{"role": role, "content": text.lstrip() if role == "assistant" else text} for role, text in turns]
    if not answers:
        raise InputError(f"none of the {len(messages)} messages is the assistant's: there is no answer to learn")
    if answers[0] == 0:
        raise InputError("message 0 is the assistant's; a dialogue begins with what is answered, user or system")
    if isinstance(chat, TemplateChat):  # it trims answers itself, or leaves out their thoughts
        ids, places = chat.encode_answers([{"role": role, "content": content} for role, content in turns])
        learned = {i for place in places for i in place}
        return Example(ids, [i in learned for i in range(len(ids))])
    ends = {tokenizer.special_tokens[name] for name in END_OF_TURN if name in tokenizer.special_tokens}
    ids = chat.encode(messages, add_generation_prompt=False)
    learn = [False] * len(ids)
    for n in answers:
        prompt = chat.encode(messages[:n])  # ends with the header of the answer, as when the model is used
        assert ids[: len(prompt)] == prompt, f"the header and answer {n} merge into one token"
        answer_end = next(i for i in range(len(prompt), len(ids)) if ids[i] in ends) + 1
        learn[len(prompt) : answer_end] = [True] * (answer_end - len(prompt))
    return Example(ids, learn)


def encode_record(record: Mapping[str, Any], tokenizer: Tokenizer) -> Example:
    """A dict with "messages", or "text", or "prompt" and "response" (or "completion"), looked for in this order.

    Raises InputError for any other.
    """
    text, messages = _read_record(record)
    return encode_text(text, tokenizer) if text is not None else encode_dialogue(messages, tokenizer)


def is_text(record: Mapping[str, Any]) -> bool:
    """Whether a record is a text, which may be split over rows, and no dialogue. Raises InputError."""
    return _read_record(record)[0] is not None


def check_record(record: Mapping[str, Any], *, empty: bool = False) -> None:
    """Without a tokenizer, whether there is something to learn in a record. empty: a text may be empty.

    Raises InputError.
    """
    text, messages = _read_record(record)
    if text is not None:
        if not (empty or text.strip()):
            raise InputError("the text is empty; take the record out")
        return
    roles = [role for role, _ in check_messages(messages)]
    if "assistant" not in roles[1:]:
        raise InputError("the assistant does not answer: there is nothing to learn")
    if roles[0] == "assistant":
        raise InputError("message 0 is the assistant's; a dialogue begins with what is answered, user or system")


def _read_record(record: Mapping[str, Any]) -> tuple[str | None, Messages | None]:
    """A record's text, or its messages, unchecked. A table has a cell for each column: what a record lacks is None,
    and where one part is filled an empty one is no part."""
    cells = record if isinstance(record, Mapping) else {}
    found = {key: value for key, value in cells.items() if value is not None}
    found = {key: value for key, value in found.items() if not _is_empty(value)} or found
    if "messages" in found:
        return None, found["messages"]
    match found.get("text"), found.get("prompt"), found.get("response", found.get("completion")):
        case str(text), _, _:
            return text, None
        case _, str(prompt), str(answer):
            return None, [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    got = ", ".join(f"{key!r} ({type(value).__name__})" for key, value in cells.items())
    got = got or ("no keys" if isinstance(record, Mapping) else type(record).__name__)
    raise InputError(f"a record needs 'messages', or 'text', or 'prompt' with 'response' or 'completion', "
                     f"these as str; got {got}")


def _is_empty(value: Any) -> bool:
    return isinstance(value, str | list | tuple) and len(value) == 0


# ---- many examples -> rows ----


@dataclass
class Batch:
    """Rows for one step, all (B, T) int64. targets: the token after each place, IGNORE where nothing is learned.

    segments: 1, 2, ... for the texts of a row, 0 for the filling at its end.
    """

    ids: Tensor
    targets: Tensor
    segments: Tensor

    def __len__(self) -> int:
        """How many rows."""
        return len(self.ids)

    @property
    def n_targets(self) -> int:
        """How many places are learned: what a summed loss is divided by."""
        return int((self.targets != IGNORE).sum())

    @property
    def n_tokens(self) -> int:
        """How many places are text, not filling."""
        return int((self.segments > 0).sum())

    def split(self, n_rows: int) -> list[Batch]:
        """In pieces of n_rows rows; the last may have fewer."""
        parts = (tensor.split(n_rows) for tensor in (self.ids, self.targets, self.segments))
        return [Batch(*piece) for piece in zip(*parts, strict=True)]

    def inputs(self, device: torch.device | str) -> dict[str, Any]:
        """What the objective is called with, on a device."""
        several = bool((self.segments > 1).any())  # one text a row needs no more than the kernel's own causal mask
        return {"ids": self.ids.to(device), "targets": self.targets.to(device),
                "segments": self.segments.to(device) if several else None}  # fmt: skip


class Batches:
    """An endless iterator of batches: epoch after epoch, each in an order of its own that (seed, epoch) decides.

    documents: anything with len() and [i]; encode: what turns one of them into an Example. Its InputErrors come with
    the document's place: file and line, or number.
    length: places in a row. A place is a token and the one it predicts, so a text of n tokens takes n - 1.
    pack, split: rows are full to the last place; a text goes on in the next row, where it sees nothing of its begin.
    split may be a function that says of each document whether it is split so.
    pack alone: as many whole examples as fit, in turn, then filling. Without pack: one a row, as wide as the longest.
    Without split an example longer than a row is cut; `n_cut` counts them. Examples with nothing to learn are left out.
    rank, world_size: of several processes, each reads the same stream and keeps every world_size-th row.

    Raises InputError for settings that do not fit, and when a whole epoch has nothing to learn.
    """

    def __init__(
        self,
        documents: Sequence[Any],
        encode: Callable[[Any], Example],
        *,
        batch_size: int,
        length: int,
        seed: int = 0,
        pack: bool = True,
        split: bool | Callable[[Any], bool] = True,
        pad_id: int = 0,
        shuffle: bool = True,
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
        if len(documents) == 0:
            raise InputError("there are 0 documents; training needs at least one")
        self.documents, self.encode = documents, encode
        self.batch_size, self.length, self.seed, self.pad_id = batch_size, length, seed, pad_id
        self.pack, self.split, self.shuffle = pack, pack and split, shuffle
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.n_cut = 0
        # The example at hand: where it stands in the epoch's order, how many of its places are used, its places.
        self._position, self._used = 0, 0
        self._example: Tensor | None = None
        self._splits = False  # whether that example is split
        self._order = self._shuffled()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows = [self._next_row() for _ in range(self.batch_size)]
        width = self.length if self.pack else max(piece.shape[1] for (piece,) in rows)
        rows = rows[self.rank :: self.world_size]
        ids = torch.full((len(rows), width), self.pad_id)
        targets = torch.full_like(ids, IGNORE)
        segments = torch.zeros_like(ids)
        for r, pieces in enumerate(rows):
            begin = 0
            for n, piece in enumerate(pieces, start=1):
                place = slice(begin, begin := begin + piece.shape[1])
                ids[r, place], targets[r, place] = piece
                segments[r, place] = n
        return Batch(ids, targets, segments)

    @property
    def epoch_progress(self) -> float:
        """Epochs read so far: 1.25 when a quarter of the documents has been read a second time."""
        return self.epoch + self._position / len(self.documents)

    # ---- the place in the data ----

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch, and the settings it belongs to; for JSON. The same for every rank."""
        place = {"epoch": self.epoch, "position": self._position, "used": self._used, "n_cut": self.n_cut}
        return {**place, "settings": self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batch that `state` was taken behind. Raises InputError for other data or settings."""
        try:
            theirs = dict(state["settings"])
            epoch, position, used, n_cut = (int(state[name]) for name in ("epoch", "position", "used", "n_cut"))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"this is no state of Batches: {error!r}; it comes from state_dict()") from None
        for name, value in self._settings().items():
            if theirs.get(name) != value:
                raise InputError(f"the state was saved with {name} {theirs.get(name)}, here it is {value}; "
                                 f"resume with the same data and settings, or begin anew")
        if not (epoch >= 0 and 0 <= position < len(self.documents) and used >= 0):
            raise InputError(f"the state's place, epoch {epoch}, document {position}, place {used}, is not in these "
                             f"{len(self.documents)} documents")
        self.epoch, self._position, self._used, self.n_cut = epoch, position, used, n_cut
        self._example, self._order = None, self._shuffled()

    def _settings(self) -> dict[str, Any]:
        names = ("seed", "batch_size", "length", "pack", "split", "shuffle")
        values = {name: getattr(self, name) for name in names}
        values["split"] = "by document" if callable(self.split) else self.split
        return {"documents": len(self.documents), **values}

    # ---- one row, one example ----

    def _next_row(self) -> list[Tensor]:
        """The pieces (2, n) of a row, together at most `length` places."""
        pieces, room = [], self.length
        while room:
            example = self._current()
            piece = example[:, self._used :][:, : room if self._splits else self.length]
            n = piece.shape[1]
            if n > room:
                break
            pieces.append(piece)
            room -= n
            self._used += n
            if not self._splits or self._used == example.shape[1]:
                self._advance()
            if not self.pack:
                break
        return pieces

    def _current(self) -> Tensor:
        """The example at hand, read if it is not yet, whole: places (2, n), tokens above their targets."""
        tries = 2 * len(self.documents)  # from the middle of an epoch, that surely spans a whole one
        while self._example is None:
            index = int(self._order[self._position])
            document = self.documents[index]
            try:
                example = self.encode(document)
                self._splits = bool(self.split(document) if callable(self.split) else self.split)
            except InputError as error:
                raise InputError(f"{place_of(self.documents, index)}: {error}") from error
            ids = torch.tensor(example.ids, dtype=torch.int64)
            targets = ids.where(torch.tensor(example.learn, dtype=torch.bool), IGNORE)
            self._example = torch.stack([ids[:-1], targets[1:]])  # (2, n)
            if 0 < self._example.shape[1] <= self._used:
                raise InputError(f"the state's place is {self._used} places into document {index}, which has "
                                 f"{self._example.shape[1]}; the documents or their encoding have changed")
            if (self._example[1, : None if self._splits else self.length] == IGNORE).all():
                self._advance()
                tries -= 1
                if tries == 0:
                    raise InputError(f"no token to learn in {counted(len(self.documents), 'document')}"
                                     f"{'' if self.split else f' in its first {self.length} places'}: "
                                     f"are they empty, or is nothing in them an answer?")
        return self._example

    def _advance(self) -> None:
        """Done with the example at hand: to the next document, after the last to the next epoch."""
        self.n_cut += not self._splits and self._example.shape[1] > self.length
        self._example, self._used = None, 0
        self._position += 1
        if self._position == len(self.documents):
            self.epoch, self._position = self.epoch + 1, 0
            self._order = self._shuffled()

    def _shuffled(self) -> np.ndarray:
        """The epoch's order. Its own generator: neither torch's nor numpy's random numbers are touched."""
        n = len(self.documents)
        if not self.shuffle:
            return np.arange(n)
        return np.random.Generator(np.random.PCG64([self.seed, self.epoch])).permutation(n)
