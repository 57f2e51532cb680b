"""course.checks.lesson07: right answers pass, and each usual mistake is called by its name, alone and in pairs.

Each exercise is written in three ways that have little in common, and each way can have any of the faults in it.
"""

import json
import struct
from functools import partial

import numpy as np
import pytest
import torch

from llamamm.course.checks import check, exercises_of
from tests.course.checks.ways import assert_right, assert_told

# ---- 07.1 in three ways: struct, from_bytes, a sum of powers ----


def start_by_struct(raw, has=()):
    form, n = ("B", 1) if "one byte" in has else ("I", 4) if "four bytes" in has else ("Q", 8)
    (length,) = struct.unpack((">" if "big" in has else "<") + form, raw[:n])
    return length + (0 if "no 8" in has else 8)


def start_by_from_bytes(raw, has=()):
    n = 1 if "one byte" in has else 4 if "four bytes" in has else 8
    return 8 * ("no 8" not in has) + int.from_bytes(raw[:n], byteorder="big" if "big" in has else "little")


def start_by_powers(raw, has=()):
    digits = list(raw[:8])[: 1 if "one byte" in has else 4 if "four bytes" in has else None]
    total = 0
    for digit in digits if "big" in has else reversed(digits):
        total = total * 256 + digit
    return total if "no 8" in has else total + 8


# ---- 07.2 in three ways: struct, numpy, torch.frombuffer ----


def read_by_struct(raw, has=()):
    (n,) = struct.unpack(">Q" if "big length" in has else "<Q", raw[:8])
    header = json.loads(raw[8:n] if "ends early" in has else raw[8 : 8 + n])
    if "note" not in has:
        header.pop("__metadata__", None)
    begin = {"from the file": 0, "from the header": 8, "8 early": n}
    data = raw[next((begin[fault] for fault in has if fault in begin), 8 + n) :]
    out = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        numbers = struct.unpack(f"{'>' if 'big numbers' in has else '<'}{(last - first) // 4}f", data[first:last])
        out[name] = torch.tensor(numbers)
        if "flat" not in has:
            out[name] = out[name].reshape(entry["shape"])
    return out


def read_by_numpy(raw, has=()):
    n = int(np.frombuffer(raw, dtype=">u8" if "big length" in has else "<u8", count=1)[0])
    table = json.loads(raw[8 : 8 + n - 8 * ("ends early" in has)].decode("utf-8"))
    start = 8 + n
    for fault, place in (("from the file", 0), ("from the header", 8), ("8 early", n)):
        start = place if fault in has else start
    out = {}
    for name in table if "note" in has else table.keys() - {"__metadata__"}:
        shape, (first, last) = table[name]["shape"], table[name]["data_offsets"]
        numbers = np.frombuffer(raw[start + first : start + last], dtype=">f4" if "big numbers" in has else "<f4")
        out[name] = torch.from_numpy(numbers.astype("f4")).view([-1] if "flat" in has else shape)
    return out


def read_by_buffer(raw, has=()):
    length = raw[7::-1] if "big length" in has else raw[:8]
    n = sum(byte << 8 * i for i, byte in enumerate(length))
    end = n if "ends early" in has else n + 8
    header = str(raw[8:end], "utf8")
    skip = 0 if "from the file" in has else 8 if "from the header" in has else n if "8 early" in has else 8 + n

    def tensor(entry):
        begin, end = (skip + offset for offset in entry["data_offsets"])
        data = bytearray(raw[begin:end])
        if "big numbers" in has:
            data = bytearray(b"".join(data[i : i + 4][::-1] for i in range(0, len(data), 4)))
        values = torch.frombuffer(data, dtype=torch.float32)
        return values if "flat" in has else values.unflatten(0, entry["shape"]) if entry["shape"] else values[0]

    return {key: tensor(value) for key, value in json.loads(header).items() if "note" in has or key[:2] != "__"}


# ---- 07.3 in three ways: bytes one by one, numpy records, torch on all blocks ----


def query_by_bytes(data, n_rows, n_heads, has=()):
    weights = []
    for start in range(0, len(data), 20):
        d, m = struct.unpack("<ee", data[start : start + 4])
        d, m = (m, d) if "swapped" in has else (d, m)
        packed = data[start + 4 : start + 20]
        low, high = [b & 15 for b in packed], [b // 16 for b in packed]
        low, high = (high, low) if "high first" in has else (low, high)
        nibbles = [q for two in zip(low, high, strict=True) for q in two] if "in turn" in has else low + high
        for q in nibbles:
            weights.append(d * (q - 8) if "like Q4_0" in has else d * q if "no minimum" in has else m + d * q)
    matrix = torch.tensor(weights).view(n_rows, -1)
    D = n_rows if "across heads" in has else n_rows // n_heads
    if "Meta's order" in has:
        return matrix
    if "columns" in has:
        return torch.cat((matrix[:, 0::2], matrix[:, 1::2]), dim=1)
    in_head = [r for i in range(D // 2) for r in (i, i + D // 2)] if "way back" in has else [
        *range(0, D, 2), *range(1, D, 2)]  # fmt: skip
    return matrix[[h * D + r for h in range(n_rows // D) for r in in_head]]


def query_by_records(data, n_rows, n_heads, has=()):
    names = ("m", "d") if "swapped" in has else ("d", "m")
    blocks = np.frombuffer(data, dtype=np.dtype([(names[0], "<f2"), (names[1], "<f2"), ("q", "u1", 16)]))
    halves = [blocks["q"] % 16, blocks["q"] >> 4][:: -1 if "high first" in has else 1]
    q = np.stack(halves, axis=2).reshape(len(blocks), 32) if "in turn" in has else np.concatenate(halves, axis=1)
    d, m = (blocks[name].astype(np.float32)[:, None] for name in "dm")
    q = q.astype(np.float32)
    w = d * (q - 8) if "like Q4_0" in has else d * q + (0 if "no minimum" in has else m)
    w = torch.from_numpy(w).reshape(1 if {"across heads", "columns"} & {*has} else n_heads, -1, w.size // n_rows)
    if "Meta's order" in has:
        return w.flatten(0, 1)
    if "columns" in has:
        return w[0, :, [*range(0, w.shape[2], 2), *range(1, w.shape[2], 2)]]
    if "way back" in has:
        return torch.stack(w.chunk(2, dim=1), dim=2).reshape(n_rows, -1)
    return torch.cat((w[:, 0::2], w[:, 1::2]), dim=1).flatten(0, 1)


def query_by_torch(data, n_rows, n_heads, has=()):
    raw = torch.tensor(list(data), dtype=torch.uint8).reshape(-1, 20)
    d, m = raw[:, :4].contiguous().view(torch.half).float().unbind(1)
    if "swapped" in has:
        m, d = d, m
    nibbles = torch.empty(len(raw), 32)
    first, second = (slice(0, None, 2), slice(1, None, 2)) if "in turn" in has else (slice(16), slice(16, None))
    first, second = (second, first) if "high first" in has else (first, second)
    nibbles[:, first], nibbles[:, second] = (raw[:, 4:] & 0xF).float(), (raw[:, 4:] >> 4).float()
    offset = -8 * d if "like Q4_0" in has else torch.zeros_like(m) if "no minimum" in has else m
    w = torch.addcmul(offset[:, None], d[:, None], nibbles).view(n_rows, -1)
    if "Meta's order" in has:
        return w
    if "columns" in has:
        return w.view(n_rows, -1, 2).mT.flatten(1)
    w = w.unflatten(0, (1 if "across heads" in has else n_heads, *((2, -1) if "way back" in has else (-1, 2))))
    return w.transpose(1, 2).flatten(0, 2)


WAYS = {
    "07.1": (start_by_struct, start_by_from_bytes, start_by_powers),
    "07.2": (read_by_struct, read_by_numpy, read_by_buffer),
    "07.3": (query_by_bytes, query_by_records, query_by_torch),
}
TOLD = {
    "07.1": {"no 8": "8 bytes later", "big": "highest byte first", "four bytes": "4 bytes of the length",
             "one byte": "one byte of the length"},
    "07.2": {"big length": "length highest byte first", "ends early": "ends 8 bytes too early",
             "from the file": "from the start of the file", "from the header": "from the start of the header",
             "8 early": "begin 8 bytes early", "big numbers": "numbers highest byte", "flat": "lie in one row",
             "note": "a note named __metadata__"},
    "07.3": {"high first": "in the wrong order", "in turn": "out in turn", "no minimum": "forgot the minimum",
             "like Q4_0": "took 8 off", "swapped": "swapped d and m", "Meta's order": "still stand in Meta's order",
             "way back": "the way back", "across heads": "within each head", "columns": "reordered the columns"},
}  # fmt: skip
# faults that cannot stand in one answer, or of which one hides the other
APART = {
    "07.1": [{"four bytes", "one byte"}, {"big", "one byte"}],  # one byte has no order, and is less than four
    "07.2": [
        {"from the file", "from the header", "8 early"},  # each says from where the places count
        *({stops, other} for stops in ("big length", "ends early") for other in TOLD["07.2"]),
        # the header cannot be read, so nothing behind it is
    ],
    "07.3": [
        {"no minimum", "like Q4_0"},  # each says what is added to the products
        *({"Meta's order", other} for other in ("way back", "across heads", "columns")),  # nothing is reordered
        {"columns", "way back"}, {"columns", "across heads"},  # the rows, of which these speak, stay as they are
    ],
}


@pytest.mark.parametrize("exercise", WAYS)
def test_the_right_answer_passes_however_it_is_written(exercise):
    assert_right(exercise, WAYS[exercise])


@pytest.mark.parametrize("exercise", WAYS)
def test_each_fault_gets_its_sentence_alone_and_beside_another(exercise):
    assert_told(exercise, WAYS[exercise], TOLD[exercise], APART[exercise])


def test_every_fault_of_an_exercise_is_planted_here():
    told = {e: len(faults) for e, faults in TOLD.items()}
    assert {e.id: len(e.mistakes) for e in exercises_of("07")} == {**told, "07.4": 0}


# ---- what no fault explains ----


def counts_bytes(raw):
    (n,) = struct.unpack("<Q", raw[:8])
    (entry,) = [e for name, e in json.loads(raw[8 : 8 + n]).items() if name[0] != "_"][:1]
    return struct.unpack(f"<{entry['data_offsets'][1]}f", raw[8 + n :])


@pytest.mark.parametrize(("exercise", "answer", "message"), [
    ("07.1", lambda raw: raw[:8], "the result should be a number, got b'"),
    ("07.1", lambda raw: 9 + int.from_bytes(raw[:8], "little"), "all results: the result should be 64, got 65"),
    ("07.1", partial(start_by_struct, has=("four bytes",)), "the result should be 8640333071, got 50398479."),
    ("07.2", counts_bytes, "it raised error"),  # struct.error
    ("07.2", lambda raw: list(read_by_struct(raw)), "form: the result should be a dict {name: tensor}, got ['a"),
    ("07.2", lambda raw: {k: t.tolist() for k, t in read_by_struct(raw).items()}, "form: at ['a']: the result s"),
    ("07.2", lambda raw: {f"model.{k}": t for k, t in read_by_struct(raw).items()}, "keys should be ['a', 'b', 'c']"),
    ("07.2", lambda raw: {k: 2 * t for k, t in read_by_struct(raw).items()}, "all results: ['"),
    ("07.2", lambda raw: json.loads(raw[: 8 + raw[0]]), "what you gave to json is no JSON: it got"),
    ("07.3", lambda *case: query_by_bytes(*case).flatten(), "shape and dtype: the shape should be (8, 32), got (256,)"),
    ("07.3", lambda *case: query_by_bytes(*case).flip(0), "all numbers: ["),
    ("07.3", lambda *case: query_by_bytes(*case).half(), "dtype should be torch.float32"),
    ("07.3", lambda *_: 0.5, "should be a tensor, got 0.5"),
])  # fmt: skip
def test_what_no_fault_explains_is_told_with_its_result(exercise, answer, message):
    result = check(exercise, answer)
    assert not result and message in result.message, result.message


# ---- 07.4 ----


def as_file(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def fooling_file():
    return as_file({"w": {"dtype": "I128", "shape": [1], "data_offsets": [0, 16]}}, bytes(16))


F8 = {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}
F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def invented():
    entry = {"dtype": "MINE", "shape": [], "data_offsets": [0, 1]}
    return bytearray(as_file({"x": entry}, b"!"))


@pytest.mark.parametrize("answer", [fooling_file, invented, lambda: as_file({"a": F8}, bytes(2))])
def test_a_file_that_fools_passes(answer):
    assert check("07.4", answer), check("07.4", answer).message


LONG_F8 = {"dtype": "F8", "shape": [300], "data_offsets": [0, 300]}
ACCEPTS, REFUSES, LONG = "open_checkpoint accepts it as well", "read_header refuses it already", "200 are allowed"


@pytest.mark.parametrize(("answer", "phrases"), [
    (lambda: as_file({"a": F32}, bytes(4)), [ACCEPTS]), (lambda: as_file({}, b""), [ACCEPTS]),
    (lambda: as_file({"__metadata__": {"a": "b"}}, b""), [ACCEPTS]),
    (lambda: as_file({"a": F8}, bytes(4)), [REFUSES, "yours.safetensors holds 4 bytes"]),
    (lambda: as_file(b'{"a":1,"a":2}', b""), [REFUSES, "twice"]),
    (lambda: struct.pack(">Q", 2) + b"{}", [REFUSES, "claims a header"]),
    (lambda: as_file({"a": LONG_F8}, bytes(300)), [LONG]),
    (lambda: as_file({"a": F8, "b" * 200: F8}, bytes(4)), [LONG, REFUSES]),
    (lambda: as_file({"a" * 200: F32}, bytes(4)), [LONG, ACCEPTS]),
    (lambda: {"a": F8}, ["should be bytes, the whole file, got {'a'"]), (lambda: "{}", ["should be bytes"]),
    (lambda: ["{}"], ["should be bytes"]),
])  # fmt: skip
def test_a_file_that_does_not_fool_is_told_why(answer, phrases):
    message = check("07.4", answer).message
    assert all(phrase in message for phrase in phrases), message
    assert all((p in message) == (p in phrases) for p in (LONG, REFUSES, ACCEPTS)), message
    assert "/" not in message, message
