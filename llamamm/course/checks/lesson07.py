"""Checks for lesson 07: a file from its bytes, a 4-bit matrix with its rows in order, a file that fools."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from llamamm.course.checks.core import Exercise, Mistake
from llamamm.errors import CheckpointError
from llamamm.weights.checkpoint import open_checkpoint, read_header
from llamamm.weights.names import half_split_to_interleaved, interleaved_to_half_split

# ---- 07.1: where the data begin ----


def _data_start(raw: bytes) -> int:
    return 8 + struct.unpack("<Q", raw[:8])[0]


def _start_cases(_: torch.Generator) -> list[tuple]:
    whole = save({"a": torch.ones(3)})
    return [(whole,), (save({f"w{i}": torch.ones(2) for i in range(9)}),), (struct.pack("<Q", 2**33 + 5),)]


# ---- 07.2: all tensors of a file ----


def _file_cases(g: torch.Generator) -> list[tuple]:
    one = {"norm.weight": torch.tensor([1.0, 2.0, 0.5])}
    three = {
        "a": torch.randn(2, 3, generator=g),
        "b": torch.randn(4, generator=g),
        "c": torch.randn(2, 1, 2, generator=g),
    }
    return [(save(one),), (save(three),), (save({**one, "scale": torch.tensor(3.0)}),),
            (save(three, metadata={"format": "pt"}),)]  # fmt: skip


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
            return "an entry without shape and offsets"
        raise


def _read(
    raw: bytes,
    *,
    order: str = "little",
    header_end: int = 8,
    data_start: int = 8,
    with_header: bool = True,
    number: str = "<",
    skip_metadata: bool = True,
    flat: bool = False,
) -> dict[str, Tensor]:
    n = int.from_bytes(raw[:8], order)
    tensors = {}
    for name, entry in json.loads(raw[8 : header_end + n]).items():
        if name == "__metadata__" and skip_metadata:
            continue
        first, last = (offset + data_start + n * with_header for offset in entry["data_offsets"])
        values = torch.tensor(struct.unpack(f"{number}{(last - first) // 4}f", raw[first:last]))
        tensors[name] = values if flat else values.reshape(entry["shape"])
    return tensors


# ---- 07.3: a query matrix in Q4_1, in Meta's row order ----


def _blocks(data: bytes) -> tuple[Tensor, Tensor, Tensor]:
    """-> d and m (n, 1), the bytes of the nibbles (n, 16)."""
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, 20)
    scales = raw[:, :4].contiguous().view(torch.float16).float()  # (n, 2)
    return scales[:, :1], scales[:, 1:], raw[:, 4:]


def _unpack(
    data: bytes, *, order: str = "low then high", minimum: bool = True, swapped: bool = False, signed: bool = False
) -> Tensor:
    d, m, packed = _blocks(data)
    if swapped:
        d, m = m, d
    low, high = packed & 15, packed >> 4
    if order == "low then high":
        q = torch.cat((low, high), dim=1)
    elif order == "high then low":
        q = torch.cat((high, low), dim=1)
    else:
        q = torch.stack((low, high), dim=2).flatten(1)
    q = q.float() - 8 * signed
    return ((m if minimum else 0) + d * q).flatten()


def _load(
    data: bytes,
    rows: int,
    n_heads: int,
    *,
    unpack: Callable[[bytes], Tensor] = _unpack,
    reorder: Callable[[Tensor, int], Tensor] = interleaved_to_half_split,
) -> Tensor:
    return reorder(unpack(data).view(rows, -1), n_heads)


def _q_cases(g: torch.Generator) -> list[tuple]:
    cases = []
    for rows, n_heads, blocks in ((8, 1, 1), (16, 2, 1), (24, 3, 2), (2, 1, 3)):
        data = bytearray()
        for _ in range(rows * blocks):
            d, m = 0.01 + torch.rand(1, generator=g).item(), -4 * torch.rand(1, generator=g).item()
            packed = torch.randint(0, 256, (16,), generator=g).tolist()
            data += struct.pack("<ee", d, m) + bytes(packed)
        cases.append((bytes(data), rows, n_heads))
    return cases


_UNPACK_FAULTS: tuple[tuple[Callable, str], ...] = (
    (partial(_unpack, order="high then low"),
     "The nibbles are in the wrong order: the low halves (byte & 15) are weights 0 to 15, the high ones come after."),
    (partial(_unpack, order="in turn"),
     "You dealt the nibbles out in turn, low, high, low, high: first come all 16 low halves, then all 16 high ones."),
    (partial(_unpack, minimum=False), "You forgot the minimum: a weight is m + d * q."),
    (partial(_unpack, minimum=False, signed=True),
     "You took 8 off each nibble, as the type Q4_0 does: in Q4_1 the nibbles are 0 to 15 and a weight is m + d * q."),
    (partial(_unpack, swapped=True), "You swapped d and m: the scale d comes first, the minimum m second."),
)  # fmt: skip
_REORDER_FAULTS: tuple[tuple[Callable, str], ...] = (
    (lambda w, n_heads: w,  # noqa: ARG005 (it is the mistake)
     "The rows still stand in Meta's order, pairs as neighbours: ours are 0, 2, 4, ..., 1, 3, 5, ... in each head."),
    (half_split_to_interleaved, "That is the way back, from halves to neighbours: you need 0, 2, 4, ..., 1, 3, 5, ..."),
    (lambda w, n_heads: interleaved_to_half_split(w, 1),  # noqa: ARG005 (it is the mistake)
     "You reordered all rows together: each head has its own pairs, so reorder within each head."),
    (lambda w, n_heads: interleaved_to_half_split(w.T, 1).T.contiguous(),  # noqa: ARG005 (it is the mistake)
     "You reordered the columns: RoPE turns what comes out of the matrix, and that is one number for each row."),
)  # fmt: skip


def _q_mistakes() -> tuple[Mistake, ...]:
    """Each fault alone first, then each pair of one of each kind."""
    alone = [Mistake(partial(_load, unpack=f), m) for f, m in _UNPACK_FAULTS]
    alone += [Mistake(partial(_load, reorder=f), m) for f, m in _REORDER_FAULTS]
    both = [
        Mistake(partial(_load, unpack=f, reorder=r), f"Two things. {m} {also}")
        for f, m in _UNPACK_FAULTS
        for r, also in _REORDER_FAULTS
    ]
    return (*alone, *both)


# ---- 07.4: a file that one of two functions refuses ----


def _fooling_file() -> bytes:
    header = b'{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}'
    return struct.pack("<Q", len(header)) + header + bytes(4)


def _fooling_problem(result: Any, case: tuple) -> str | None:  # noqa: ARG001 (the same for all)
    if not isinstance(result, bytes | bytearray):
        return f"the result should be bytes, the whole file, got {type(result).__name__}"
    if len(result) > 200:
        return f"your file has {len(result)} bytes, 200 are allowed: one small tensor is enough"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "yours.safetensors"
        path.write_bytes(result)
        try:
            read_header(path)
        except CheckpointError as error:
            return f"read_header refuses it already: {str(error).replace(str(path), path.name)}"
        try:
            open_checkpoint(path)
        except CheckpointError:
            return None
        except Exception as error:
            return f"open_checkpoint broke with {type(error).__name__}: {error}. You found a bug: please report it"
    return (
        "open_checkpoint accepts it as well: which of the four facts about a tensor does read_header believe without a "
        "comparison?"
    )


EXERCISES: tuple[Exercise, ...] = (
    Exercise(
        id="07.1", name="data_start", minutes=5, level="warm-up", reference=_data_start, cases=_start_cases,
        mistakes=(
            Mistake(
                lambda raw: struct.unpack("<Q", raw[:8])[0],
                "that is the length of the header: it begins behind 8 bytes, so the data begin 8 bytes later",
            ),
            Mistake(
                lambda raw: 8 + struct.unpack(">Q", raw[:8])[0],
                "you read the length highest byte first: safetensors stores the lowest byte first",
            ),
            Mistake(
                lambda raw: 8 + struct.unpack("<I", raw[:4])[0],
                "you read 4 bytes of the length: it has 8, and a claim above 4 GB would look small",
            ),
            Mistake(lambda raw: 8 + raw[0], "you read one byte of the length: it has 8"),
        ),
    ),
    Exercise(
        id="07.2",
        name="read_tensors",
        minutes=10,
        level="core",
        reference=load,
        cases=_file_cases,
        run=_run_reader,
        tolerance=0.0,
        mistakes=(
            Mistake(
                partial(_read, order="big"),
                "you read the header's length highest byte first: it is little-endian, so that json got the whole file",
            ),
            Mistake(
                partial(_read, header_end=0),
                "your header ends 8 bytes too early: it begins at byte 8 and is n bytes long, raw[8 : 8 + n]",
            ),
            Mistake(
                partial(_read, data_start=0, with_header=False),
                "you counted the offsets from the start of the file: they count from the end of the header, 8 + n",
            ),
            Mistake(
                partial(_read, data_start=8, with_header=False),
                "you counted the offsets from the start of the header: they count from its end, 8 + n",
            ),
            Mistake(
                partial(_read, data_start=0),
                "the header begins at byte 8, behind its length, so its end is 8 + n: your numbers begin 8 bytes early",
            ),
            Mistake(
                partial(_read, number=">"),
                "you read the numbers highest byte first: they are little-endian, struct's '<'",
            ),
            Mistake(
                partial(_read, skip_metadata=False),
                "the header may hold a note named __metadata__, which is no tensor and has no shape: leave it out",
            ),
            Mistake(
                partial(_read, flat=True),
                "the numbers are right, but they lie in one row: give each tensor the shape that the header says",
            ),
        ),
    ),
    Exercise(
        id="07.3",
        name="load_q",
        minutes=25,
        level="hard",
        reference=_load,
        cases=_q_cases,
        mistakes=_q_mistakes(),
    ),
    Exercise(
        id="07.4",
        name="fooling_file",
        minutes=10,
        level="break it",
        reference=_fooling_file,
        cases=lambda g: [()],  # noqa: ARG005 (nothing to draw)
        accept=_fooling_problem,
    ),
)
