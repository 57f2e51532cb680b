"""The score card of a model: held-out sets, what it answered to every item, and figures with their intervals.

    OUT/answers/shapes.jsonl    while a set is measured: a line for each item, so that a run that is killed goes on
    OUT/card.json               versions, marks of the model and of the data, all answers, all figures

A set that the model has no eye or ear for is left out of a suite; one that its training has read is refused, see
`train.seen`. A card that was written is read again without any model or data: its figures come from its answers.

Used in notebook 17.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from llamamm.errors import CheckpointError, InputError, counted
from llamamm.evals.figures import Figure
from llamamm.evals.intervals import DRAWS
from llamamm.evals.measures import MEASURES as COMMON
from llamamm.evals.measures import STRIDE, WINDOW, Asker, Record
from llamamm.evals.safety import SAFETY
from llamamm.fast.quantized import quantized_linears
from llamamm.files import read_json, require_writable, write_file
from llamamm.generation.guarded import Judge
from llamamm.safety.guard import Guard
from llamamm.tasks.held_out import EAR, EYE, PIXELS, SHOTS, HeldOut, Sample
from llamamm.train.seen import Seen

CARD_FILE, ANSWERS = "card.json", "answers"
SUITES = {
    "quick": {"wiki": 12, "shakespeare": 4, "quartz": 60, "socialiqa": 60, "mmlu": 24, "plain": 20, "instructions": 4,
              "shapes": 40, "drawings-things": 20, "words-voices": 20, "sentences-both": 16, "harmful": 12,
              "harmless": 12},
    "full": {"wiki": 60, "shakespeare": 29, "quartz": 500, "socialiqa": 500, "mmlu": 250, "plain": None,
             "instructions": 40, "shapes": 600, "drawings-things": None,
             "drawings-tones": None, "sprites": None, "paintings": None, "words-voices": None, "words-people": None,
             "sounds": None, "speech-voice": None, "speech-text": None, "speech-both": None,
             "sentences-both": None, "harmful": 60, "harmless": 80, "jailbreaks": 60, "documents": 40},
    "safety": {"harmful": 60, "harmless": 130, "jailbreaks": 60, "codes": 60, "past": 60, "sycophancy": None,
               "documents": 40, "written": 32, "spoken": 16, "pixels": 24},
}  # fmt: skip
MEASURES = COMMON | SAFETY
_ITEM = "\u2063"  # where an item goes, in a text that holds no such character otherwise
TOLD = ("answer", "group", "frequent", "choices")  # of an item, beside its question
Say = Callable[[str, int, int], None]  # a set's title, items answered, items


@dataclass(frozen=True, eq=False)
class Measured:
    """A set and a record of what was said to each of its items; seconds that it took; how many items the training has
    read, which were left out."""

    held_out: HeldOut
    records: Sequence[Record]
    seconds: float = 0.0
    n_read: int = 0

    @property
    def figures(self) -> list[Figure]:
        return MEASURES[self.held_out.kind].score(self.held_out.samples, self.records)


@dataclass(frozen=True, eq=False)
class Card:
    """sets: by name, in their order; left_out: why others are not there; about: versions, marks, settings."""

    about: dict[str, Any]
    sets: dict[str, Measured]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return self.about["model"]

    def to_json(self) -> dict[str, Any]:
        """With every answer."""
        return {**self.about, "left_out": self.left_out,
                "sets": {name: _set_to_json(measured) for name, measured in self.sets.items()}}

    def save(self, folder: Path) -> None:
        """card.json. Raises WriteError."""
        content, lines = self.to_json(), []
        for one in content["sets"].values():  # an item a line: half the size, and easier to look through
            places = [f"{_ITEM}{n}" for n in range(len(lines), len(lines) + len(one["items"]))]
            lines += [json.dumps(item, ensure_ascii=False) for item in one["items"]]
            one["items"] = places
        text = json.dumps(content, ensure_ascii=False, indent=1)
        write_file(folder / CARD_FILE, re.sub(rf'"{_ITEM}(\d+)"', lambda found: lines[int(found[1])], text) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Card:
        """Raises CheckpointError, InputError."""
        file = Path(folder) / CARD_FILE
        try:
            content = read_json(file, owner="a score card")
        except CheckpointError:
            if not file.is_file():
                raise
            raise InputError(f"{file} is no score card of `llamamm eval` (no JSON object): choose another "
                             f"folder") from None
        try:
            sets = {name: _set_from_json(name, one) for name, one in content.pop("sets").items()}
            return cls(content, sets, content.pop("left_out"))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file} is no score card of `llamamm eval` ({type(error).__name__} {error}): "
                             f"choose another folder") from None


def run_card(
    asker: Asker, sets: Mapping[str, HeldOut], *, model: str, out: Path | None = None, seen: Seen | None = None,
    contaminated: Literal["stop", "skip"] = "stop", say: Say = lambda _title, _n, _all: None,
    left_out: Mapping[str, str] | None = None, about: Mapping[str, Any] | None = None,
) -> Card:  # fmt: skip
    """Ask the model everything. The card is written into `out`, beside what was asked of this model there before, and
    goes on there if it was stopped.

    model: its name, for the card. seen: what its training has read; contaminated: of items in it, stop, or leave them
    out and count them. left_out: sets that are not there, and why. about: more to note. Raises InputError, also where
    `out` holds the card of another model, or of this one behind another guard.
    """
    mark, guard = mark_of(asker.model), told_guard(asker.guard)
    dtype = str(next(asker.model.parameters()).dtype).removeprefix("torch.")
    card = Card({"model": model, "mark": mark, "dtype": dtype, **settings(), "guard": guard, **(about or {})}, {},
                dict(left_out or {}))
    done: dict[str, Measured] = {}
    if out is not None:
        require_writable(out)
        (out / ANSWERS).mkdir(parents=True, exist_ok=True)
        if (out / CARD_FILE).is_file():
            before = Card.load(out)
            if before.about.get("mark") != mark:
                raise InputError(f"{out} holds the card of another model, {before.model}: choose another folder")
            if before.about.get("guard") != guard:
                raise InputError(f"{out} holds a card of this model with {before.about.get('guard') or 'no guard'}, "
                                 f"not with {guard or 'none'}: choose another folder")
            done = before.sets
    for name, held_out in sets.items():
        if lacks := what_lacks(asker, held_out.needs):
            raise InputError(f"{name} needs {lacks}, which {model} has not; `llamamm compose` gives it one")
        held_out, n_read = without_read(held_out, seen, contaminated)
        card.sets[name] = _measure(asker, held_out, out, mark, done.get(name), say, n_read)
        if out is not None:  # with all that the folder's card holds of this model
            replace(card, sets={**done, **card.sets}).save(out)
    if not card.sets:
        raise InputError(f"{model} can be asked nothing of this: " + "; ".join(
            f"{name}: {why}" for name, why in card.left_out.items()))
    if out is not None:
        _remove_logs(out / ANSWERS, card.sets)
    return card


def _remove_logs(folder: Path, sets: Mapping[str, Measured]) -> None:
    """Those of a card's sets, and the folder where nothing else is in it."""
    for name in sets:
        (folder / f"{name}.jsonl").unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _measure(
    asker: Asker, held_out: HeldOut, out: Path | None, mark: str, before: Measured | None, say: Say, n_read: int
) -> Measured:
    """Of what a card or a log holds already, nothing is asked again. before: the set in the folder's card."""
    measure, begin = MEASURES[held_out.kind], time.monotonic()
    head = {"set": held_out.name, "model": mark}
    if asker.guard is not None:
        head["guard"] = str(told_guard(asker.guard))
    log = AnswerLog(out and out / ANSWERS / f"{held_out.name}.jsonl", head)
    if before is not None:
        log.records.update((s.mark, r) for s, r in zip(before.held_out.samples, before.records, strict=True))
    if held_out.kind == "speech" and asker.transcribe is not None:  # what was asked before without the other's words
        log.records = {of: record for of, record in log.records.items() if "beside" in record}
    left = [sample for sample in held_out.samples if sample.mark not in log.records]
    n_left = len(left)
    with log:
        say(held_out.title, len(held_out) - n_left, len(held_out))
        for first in range(0, len(left), measure.n_at_once):
            some = left[first : first + measure.n_at_once]
            for sample, record in zip(some, _ask(asker, held_out, some), strict=True):
                log.write(sample.mark, record)
            n_left -= len(some)
            say(held_out.title, len(held_out) - n_left, len(held_out))
    records = [log.records[sample.mark] for sample in held_out.samples]
    seconds = time.monotonic() - begin + (before.seconds if before is not None and not left else 0.0)
    return Measured(held_out, records, round(seconds, 1), n_read)


def _ask(asker: Asker, held_out: HeldOut, some: Sequence[Sample]) -> list[Record]:
    try:
        return MEASURES[held_out.kind].ask(asker, some)
    except InputError as error:  # a text over the context, a file that cannot be read
        raise type(error)(f"{held_out.name}, {some[0].key} to {some[-1].key}: {error}") from None


class AnswerLog:
    """Records by their items' marks, written down as they come, a line each; a line that a kill has cut is not read.

    path: None keeps them in memory. head: what the first line must be; a file with another one is begun anew.
    """

    def __init__(self, path: Path | None, head: Mapping[str, Any]) -> None:
        self.path, self.head = path, dict(head)
        self.records: dict[str, Record] = {}
        self._whole = 0  # bytes of whole lines
        if path is not None and path.is_file():
            self._read(path.read_bytes())

    def _read(self, data: bytes) -> None:
        for n, line in enumerate(data.splitlines(keepends=True)):
            try:
                content = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n") or (n == 0 and content != self.head):
                return
            if n:
                self.records[content.pop("of")] = content
            self._whole += len(line)

    def __enter__(self) -> AnswerLog:
        self._file = None
        if self.path is not None:
            self._file = open(self.path, "r+b" if self.path.is_file() else "w+b")  # noqa: SIM115
            self._file.truncate(self._whole)
            self._file.seek(self._whole)
            if not self._whole:
                self._line(self.head)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, mark: str, record: Record) -> None:
        self.records[mark] = record
        self._line({"of": mark, **record})

    def _line(self, content: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(content, ensure_ascii=False).encode() + b"\n")
            self._file.flush()


def what_lacks(asker: Asker, needs: str | None) -> str:
    """EYE, EAR or, where the model has what a set needs, ""."""
    has = {None: True, EYE: asker.sees, EAR: asker.hears, PIXELS: asker.sees and asker.splices}
    return "" if has[needs] else str(needs)


def without_read(held_out: HeldOut, seen: Seen | None, contaminated: str) -> tuple[HeldOut, int]:
    """The items that training has not read, and how many it has. Raises InputError where there are such and they are
    not to be left out, and where nothing is left."""
    if seen is None or not len(seen):
        return held_out, 0
    read = [s for s in held_out.samples if seen.knows(text=s.text, media=[s.medium] if s.medium is not None else [])]
    if read and contaminated == "stop":
        raise InputError(f"{held_out.name} is contaminated: the model was trained on {len(read)} of "
                         f"{counted(len(held_out), 'item')}, such as {read[0].key}; leave them out "
                         f"(--contaminated skip), or measure on other data")
    keys = {sample.key for sample in read}
    return replace(held_out, samples=[s for s in held_out.samples if s.key not in keys]), len(read)


def mark_of(model: nn.Module) -> str:
    """A hash of some numbers of every parameter, whole ones among them, and of their type: equal for equal models."""
    digest = hashlib.sha256()
    whole = [(f"{path}.{name}", tensor) for path, linear in quantized_linears(model).items()
             for name, tensor in linear.named_buffers()]  # fmt: skip
    for name, p in sorted([*model.named_parameters(), *whole], key=lambda item: item[0]):
        some: Any = p.detach().flatten()[:: max(1, p.numel() // 64)].float().cpu()
        digest.update(f"{name} {p.dtype} {tuple(p.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]


def told_guard(guard: Judge | None) -> str | None:
    """Which guard it is, and from where on it stops a message: equal for equal ones. None without one."""
    if not isinstance(guard, Guard):
        return None if guard is None else type(guard).__qualname__
    return f"{guard.template.name}, threshold {guard.threshold:g}, weights {mark_of(guard.model)}"


def settings() -> dict[str, Any]:
    """What a figure may depend on: versions, the seed of the bootstrap and of the examples and its draws, the windows
    that texts are read in, and how many examples stand before a question with choices."""
    versions = {"llamamm": version("llamamm"), "torch": torch.__version__, "python": platform.python_version()}
    return {**versions, "seed": 0, "draws": DRAWS, "window": WINDOW, "stride": STRIDE, "examples": SHOTS}


def _set_to_json(measured: Measured) -> dict[str, Any]:
    held_out = measured.held_out
    items = []
    for sample, record in zip(held_out.samples, measured.records, strict=True):
        told = {} if held_out.kind == "reading" or held_out.hidden else {"question": sample.text}
        told |= {name: getattr(sample, name) for name in TOLD if getattr(sample, name)}
        items.append({"key": sample.key, "of": sample.mark, **told, **record})
    figures = [{"name": f.name, "value": f.value, "low": f.interval.low, "high": f.interval.high, "n": len(f.sums),
                "better": f.better, "unit": f.unit} for f in measured.figures]
    return {"title": held_out.title, "kind": held_out.kind, "needs": held_out.needs, "mark": held_out.mark,
            "seconds": measured.seconds, "n_read": measured.n_read, "figures": figures, "items": items}


def _set_from_json(name: str, content: Mapping[str, Any]) -> Measured:
    samples, records = [], []
    for item in content["items"]:
        item = dict(item)
        key, mark, text = item.pop("key"), item.pop("of"), item.pop("question", "")
        told = {part: item.pop(part) for part in TOLD if part in item}
        samples.append(Sample(key, text, noted=mark, **told))
        records.append(item)
    held_out = HeldOut(name, content["title"], content["kind"], samples, content["needs"])
    return Measured(held_out, records, content["seconds"], content["n_read"])
