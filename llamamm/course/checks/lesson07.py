"""Checks for lesson 07: a file from its bytes, a 4-bit matrix with its rows in order, a file that fools."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from llamamm.course.checks.compare import describe, difference
from llamamm.course.checks.core import Exercise, Property
from llamamm.course.checks.faults import Cases, fault_exercise
from llamamm.errors import CheckpointError
from llamamm.weights.checkpoint import open_checkpoint, read_header
from llamamm.weights.names import half_split_to_interleaved, interleaved_to_half_split


def _given(*cases: tuple) -> Cases:
    """Cases that need no random numbers."""
    return lambda _: list(cases)


def _call(answer: Callable, case: tuple) -> Any:
    """An answer's result; an input of bytes is not shown."""
    return answer(*case)


# ---- 07.1: where the data begin ----


def _data_start(raw: bytes, faults: Collection[str] = ()) -> int:
    length = raw[: 1 if "one byte" in faults else 4 if "four bytes" in faults else 8]
    n = int.from_bytes(length, "big" if "big" in faults else "little")
    return n if "no 8" in faults else 8 + n


def _whole_numbers_differ(expected: int, got: Any) -> str | None:
    return None if expected == got else f"the result should be {expected}, got {got}"


# no two of its bytes are equal
LONG = struct.pack("<Q", 0x0000_0002_0301_0507)
START = fault_exercise(
    _data_start,
    {
        "no 8": "That is the length of the header: it begins after 8 bytes, so the data begin 8 bytes later",
        "big": "You read the length highest byte first: safetensors stores the lowest byte first",
        "four bytes": "You read 4 bytes of the length: it has 8, and a claim above 4 GB would look small",
        "one byte": "You read one byte of the length: it has 8",
    },
    {
        "after the length": (_given((struct.pack("<Q", 120),)), ("no 8",)),
        "the order of the bytes": (_given((LONG,)), ("big",)),
        "all 8 bytes of the length": (_given((LONG,)), ("four bytes", "one byte")),
    },
    _given((save({"a": torch.ones(3)}),), (save({f"w{i}": torch.ones(2) for i in range(9)}),),
           (struct.pack("<Q", 2**33 + 5),)),
    run=_call, differs=_whole_numbers_differ,
    id="07.1", name="data_start", minutes=5, level="warm-up",
)  # fmt: skip

# ---- 07.2: all tensors of a file ----

NO_SHAPE = "you took an entry that has no shape and no offsets for a tensor"


def _run_reader(answer: Callable, case: tuple) -> Any:
    """What typical failures look like becomes a result, so that each can be told by what json was given."""
    try:
        return answer(*case)
    except UnicodeDecodeError as error:
        return "no JSON", len(error.object)
    except json.JSONDecodeError as error:
        return "no JSON", len(error.doc)
    except (KeyError, TypeError) as error:
        if b"__metadata__" in case[0] and (str(error).strip("'") in ("dtype", "shape", "data_offsets")):
            return NO_SHAPE, 0
        raise


def _read(raw: bytes, faults: Collection[str]) -> dict[str, Tensor]:
    n = int.from_bytes(raw[:8], "big" if "big length" in faults else "little")
    tensors = {}
    for name, entry in json.loads(raw[8 : n if "ends early" in faults else 8 + n]).items():
        if name == "__metadata__" and "note" not in faults:
            continue
        starts = {"from the file": 0, "from the header": 8, "8 early": n}
        start = next((starts[fault] for fault in starts if fault in faults), 8 + n)
        first, last = (offset + start for offset in entry["data_offsets"])
        order = ">" if "big numbers" in faults else "<"
        values = torch.tensor(struct.unpack(f"{order}{(last - first) // 4}f", raw[first:last]))
        tensors[name] = values if "flat" in faults else values.reshape(entry["shape"])
    return tensors


def _tensors_differ(expected: dict[str, Tensor], got: Any) -> str | None:
    if isinstance(got, tuple):
        problem = f"what you gave to json is no JSON: it got {got[1]} bytes" if got[0] == "no JSON" else got[0]
        return None if got == expected else problem
    return difference(expected, got, 0.0)


def _no_tensors(expected: dict[str, Tensor], got: Any) -> str | None:  # noqa: ARG001
    if isinstance(got, tuple) and len(got) == 2 and got[0] in ("no JSON", NO_SHAPE):
        return None
    if not isinstance(got, dict):
        return f"the result should be a dict {{name: tensor}}, got {describe(got)}"
    wrong = next((name for name, tensor in got.items() if not isinstance(tensor, Tensor)), None)
    return None if wrong is None else f"at [{wrong!r}]: the result should be a tensor, got {describe(got[wrong])}"


def _file_cases(g: torch.Generator) -> list[tuple]:
    one = {"norm.weight": torch.tensor([1.0, 2.0, 0.5])}
    three = {"a": torch.randn(2, 3, generator=g), "b": torch.randn(4, generator=g),
             "c": torch.randn(2, 1, 2, generator=g)}  # fmt: skip
    return [(save(three),), (save({**one, "scale": torch.tensor(3.0)}),), (save(three, metadata={"format": "pt"}),)]


ONE = (save({"norm.weight": torch.tensor([1.0, 2.0, 0.5])}),)
READ = fault_exercise(
    lambda raw, faults: _run_reader(lambda raw: _read(raw, faults), (raw,)),
    {
        "big length": "You read the header's length highest byte first: it is little-endian, so that json got the "
                      "whole file",
        "ends early": "Your header ends 8 bytes too early: it begins at byte 8 and is n bytes long, raw[8 : 8 + n]",
        "from the file": "You counted the offsets from the start of the file: they count from the end of the header, "
                         "8 + n",
        "from the header": "You counted the offsets from the start of the header: they count from its end, 8 + n",
        "8 early": "The header begins at byte 8, after its length, so its end is 8 + n: your numbers begin 8 bytes "
                   "early",
        "big numbers": "You read the numbers highest byte first: they are little-endian, struct's '<'",
        "flat": "The numbers lie in one row: give each tensor the shape that the header says",
        "note": "The header may hold a note named __metadata__, which is no tensor and has no shape: leave it out",
    },
    {
        "the header": (_given(ONE), ("big length", "ends early")),
        "where the numbers begin": (_given(ONE), ("from the file", "from the header", "8 early")),
        "the numbers' bytes": (_given(ONE), ("big numbers",)),
        "shapes": (_given((save({"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}),)), ("flat",)),
        "a note in the header": (_given((save({"a": torch.ones(1)}, metadata={"format": "pt"}),)), ("note",)),
    },
    _file_cases,
    run=_run_reader, differs=_tensors_differ, misshapen=_no_tensors,
    id="07.2", name="read_tensors", minutes=10, level="core", reference=load,
)  # fmt: skip

# ---- 07.3: a query matrix in Q4_1, in Meta's row order ----


def _unpack(data: bytes, faults: Collection[str]) -> Tensor:
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, 20)
    scales = raw[:, :4].contiguous().view(torch.float16).float()  # (n, 2)
    d, m = scales[:, :1], scales[:, 1:]
    d, m = (m, d) if "swapped" in faults else (d, m)
    halves = raw[:, 4:] & 15, raw[:, 4:] >> 4  # (n, 16) each
    halves = halves[::-1] if "high first" in faults else halves
    q = torch.stack(halves, dim=2).flatten(1) if "in turn" in faults else torch.cat(halves, dim=1)
    q = q.float() - 8 * ("like Q4_0" in faults)
    return (d * q if {"no minimum", "like Q4_0"} & {*faults} else m + d * q).flatten()


def _load(data: bytes, rows: int, n_heads: int, faults: Collection[str] = ()) -> Tensor:
    weight = _unpack(data, faults).view(rows, -1)
    if "Meta's order" in faults:
        return weight
    if "columns" in faults:
        return interleaved_to_half_split(weight.T, 1).T.contiguous()
    n_heads = 1 if "across heads" in faults else n_heads
    return (half_split_to_interleaved if "way back" in faults else interleaved_to_half_split)(weight, n_heads)


def _matrices(*shapes: tuple[int, int, int]) -> Cases:
    """Cases of random bytes. shapes: rows, heads, blocks in a row."""

    def cases(g: torch.Generator) -> list[tuple]:
        made = []
        for rows, n_heads, blocks in shapes:
            data = bytearray()
            for _ in range(rows * blocks):
                d, m = 0.01 + torch.rand(1, generator=g).item(), -4 * torch.rand(1, generator=g).item()
                packed = torch.randint(0, 256, (16,), generator=g).tolist()
                data += struct.pack("<ee", d, m) + bytes(packed)
            made.append((bytes(data), rows, n_heads))
        return made

    return cases


TWO_HEADS = _matrices((12, 2, 2))  # with fewer rows there and back are the same
QUERY = fault_exercise(
    _load,
    {
        "high first": "The nibbles are in the wrong order: the low halves (byte & 15) come first, the high ones after",
        "in turn": "You dealt the nibbles out in turn, low, high, low, high: first come all 16 low halves, then all 16 "
                   "high ones",
        "no minimum": "You forgot the minimum: a weight is m + d * q",
        "like Q4_0": "You took 8 off each nibble, as the type Q4_0 does: in Q4_1 the nibbles are 0 to 15 and a weight "
                     "is m + d * q",
        "swapped": "You swapped d and m: the scale d comes first, the minimum m second",
        "Meta's order": "The rows still stand in Meta's order, pairs as neighbours: ours are 0, 2, 4, ..., 1, 3, 5, "
                        "... in each head",
        "way back": "That is the way back, from halves to neighbours: you need 0, 2, 4, ..., 1, 3, 5, ...",
        "across heads": "You reordered all rows together: each head has its own pairs, so reorder within each head",
        "columns": "You reordered the columns: RoPE turns what comes out of the matrix, and that is one number for "
                   "each row",
    },
    {
        "the order of the nibbles": (TWO_HEADS, ("high first", "in turn")),
        "a weight's formula": (TWO_HEADS, ("no minimum", "like Q4_0", "swapped")),
        "the order of the rows": (TWO_HEADS, ("Meta's order", "way back", "across heads", "columns")),
    },
    _matrices((8, 1, 1), (16, 2, 1), (24, 3, 2), (2, 1, 3)),
    run=_call,
    id="07.3", name="load_q", minutes=25, level="hard",
)  # fmt: skip

# ---- 07.4: a file that one of two functions refuses ----


def _fooling_file() -> bytes:
    header = b'{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}'
    return struct.pack("<Q", len(header)) + header + bytes(4)


def _small(result: Any, case: tuple) -> str | None:  # noqa: ARG001 (the same for all)
    if not isinstance(result, bytes | bytearray):
        return f"the result should be bytes, the whole file, got {describe(result)}"
    too_long = f"your file has {len(result)} bytes, 200 are allowed: one small tensor is enough"
    return too_long if len(result) > 200 else None


def _tried(result: Any, read: Callable[[Path], Any]) -> tuple[str, BaseException | None] | None:
    """What a reader says to a file, without its folder, and what it raised. None for what is no file."""
    if not isinstance(result, bytes | bytearray):
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "yours.safetensors"
        path.write_bytes(result)
        try:
            read(path)
        except Exception as error:
            return str(error).replace(str(path), path.name), error
        return "", None


def _passes_the_first(result: Any, case: tuple) -> str | None:  # noqa: ARG001
    said, error = _tried(result, read_header) or ("", None)
    if error is None:
        return None
    bug = "" if isinstance(error, CheckpointError) else ". You found a bug: please report it"
    return f"read_header refuses it already: {said}{bug}"


def _fails_the_second(result: Any, case: tuple) -> str | None:  # noqa: ARG001
    said, error = _tried(result, open_checkpoint) or ("", CheckpointError())
    if isinstance(error, CheckpointError):
        return None
    if error is not None:
        return f"open_checkpoint broke with {type(error).__name__}: {said}. You found a bug: please report it"
    return ("open_checkpoint accepts it as well: which of the four facts about a tensor does read_header believe "
            "without a comparison?")  # fmt: skip


FOOL = Exercise(
    id="07.4", name="fooling_file", minutes=10, level="break it", reference=_fooling_file,
    properties=tuple(
        Property(name, _given(()), run=_call, accept=accept)
        for name, accept in (("at most 200 bytes", _small), ("read_header", _passes_the_first),
                             ("open_checkpoint", _fails_the_second))
    ),
)  # fmt: skip

EXERCISES: tuple[Exercise, ...] = (START, READ, QUERY, FOOL)
