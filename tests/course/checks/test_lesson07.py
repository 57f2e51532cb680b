"""course.checks.lesson07: right answers pass, and each usual mistake is called by its name."""

import json
import struct

import numpy as np
import pytest
import torch

from llamamm.course.checks import check

# ---- right answers ----


def read_tensors(raw):
    n = int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8 : 8 + n].decode("utf-8"))
    numbers = np.frombuffer(raw, dtype="<f4", offset=8 + n)
    out = {}
    for name in table.keys() - {"__metadata__"}:
        first, last = table[name]["data_offsets"]
        out[name] = torch.from_numpy(numbers[first // 4 : last // 4].copy()).view(table[name]["shape"])
    return out


def load_q(data, n_rows, n_heads):
    blocks = np.frombuffer(data, dtype=np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)]))
    q = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=1).astype(np.float32)
    w = torch.from_numpy(blocks["m"].astype(np.float32)[:, None] + blocks["d"].astype(np.float32)[:, None] * q)
    w = w.reshape(n_heads, n_rows // n_heads, -1)
    return torch.cat((w[:, 0::2], w[:, 1::2]), dim=1).flatten(0, 1)


def as_file(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def fooling_file():
    return as_file({"w": {"dtype": "I128", "shape": [1], "data_offsets": [0, 16]}}, bytes(16))


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [("07.1", lambda raw: int.from_bytes(raw[:8], "little") + 8),
     ("07.2", read_tensors), ("07.3", load_q), ("07.4", fooling_file)]
)
def test_the_right_answer_passes(exercise, answer):
    assert check(exercise, answer), check(exercise, answer).message


# ---- wrong answers ----


def reader(code):
    """A reader from the lesson with one line changed, as a learner would have typed it."""
    lines = {
        "n": '(n,) = struct.unpack("<Q", raw[:8])',
        "header": "header = json.loads(raw[8 : 8 + n])",
        "note": 'header.pop("__metadata__", None)',
        "data": "data = raw[8 + n :]",
        "count": "count = (last - first) // 4",
        "numbers": 'numbers = struct.unpack(f"<{count}f", data[first:last])',
        "tensor": 'out[name] = torch.tensor(numbers).reshape(entry["shape"])',
        **code,
    }

    def read(raw):
        scope = {"raw": raw, "struct": struct, "json": json, "torch": torch, "out": {}}
        for name in ("n", "header", "note", "data"):
            exec(lines[name], scope)
        for name, entry in scope["header"].items():
            first, last = entry["data_offsets"]
            scope.update(name=name, entry=entry, first=first, last=last)
            for part in ("count", "numbers", "tensor"):
                exec(lines[part], scope)
        return scope["out"]

    return read


def loader(*, nibbles=None, weight=None, order=None, scales="<ee"):
    def load(data, n_rows, n_heads):
        weights = []
        for start in range(0, len(data), 20):
            d, m = struct.unpack(scales, data[start : start + 4])
            packed = data[start + 4 : start + 20]
            low, high = [b & 15 for b in packed], [b >> 4 for b in packed]
            qs = low + high if nibbles is None else nibbles(low, high)
            weights += [m + d * q if weight is None else weight(d, m, q) for q in qs]
        matrix = torch.tensor(weights).view(n_rows, -1)
        D = n_rows // n_heads
        if order is None:
            return matrix[[h * D + r for h in range(n_heads) for r in (*range(0, D, 2), *range(1, D, 2))]]
        return order(matrix, n_heads, D)

    return load


def way_back(matrix, n_heads, D):
    return matrix[[h * D + r for h in range(n_heads) for i in range(D // 2) for r in (i, i + D // 2)]]


def across_heads(matrix, *_):
    return torch.cat((matrix[0::2], matrix[1::2]))


def on_columns(matrix, *_):
    return torch.cat((matrix[:, 0::2], matrix[:, 1::2]), dim=1)


def in_turn(low, high):
    return [q for pair in zip(low, high, strict=True) for q in pair]


F8 = {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}
F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}

WRONG = [
    ("07.1", lambda raw: int.from_bytes(raw[:8], "little"), "8 bytes later"),
    ("07.1", lambda raw: int.from_bytes(raw[:8], "big") + 8, "highest byte first"),
    ("07.1", lambda raw: int.from_bytes(raw[:4], "little") + 8, "4 bytes of the length"),
    ("07.1", lambda raw: 8 + raw[0], "one byte of the length"),
    ("07.1", lambda raw: raw[:8], "should be a number"),
    ("07.2", reader({"n": '(n,) = struct.unpack(">Q", raw[:8])'}), "length highest byte first"),
    ("07.2", reader({"header": "header = json.loads(raw[8:n])"}), "ends 8 bytes too early"),
    ("07.2", reader({"data": "data = raw"}), "from the start of the file"),
    ("07.2", reader({"data": "data = raw[8:]"}), "from the start of the header"),
    ("07.2", reader({"data": "data = raw[n:]"}), "begin 8 bytes early"),
    ("07.2", reader({"numbers": 'numbers = struct.unpack(f">{count}f", data[first:last])'}), "numbers highest byte"),
    ("07.2", reader({"note": "pass"}), "a note named __metadata__"),
    ("07.2", reader({"tensor": "out[name] = torch.tensor(numbers)"}), "lie in one row"),
    ("07.2", reader({"count": "count = last - first"}), "it raised error"),  # struct.error
    ("07.2", reader({"tensor": "out[name] = numbers"}), "should be a tensor"),
    ("07.3", loader(nibbles=lambda low, high: high + low), "in the wrong order"),
    ("07.3", loader(nibbles=in_turn), "in turn"),
    ("07.3", loader(weight=lambda d, _, q: d * q), "forgot the minimum"),
    ("07.3", loader(weight=lambda d, _, q: d * (q - 8)), "took 8 off"),
    ("07.3", loader(weight=lambda d, m, q: d + m * q), "swapped d and m"),
    ("07.3", loader(order=lambda matrix, *_: matrix), "still stand in Meta's order"),
    ("07.3", loader(order=way_back), "the way back"),
    ("07.3", loader(order=across_heads), "within each head"),
    ("07.3", loader(order=on_columns), "reordered the columns"),
    ("07.3", loader(nibbles=in_turn, order=way_back), "Two things. You dealt the nibbles out in turn"),
    ("07.3", loader(scales="<hh"), "in case 1 of 4"),
    ("07.3", lambda data, n_rows, n_heads: load_q(data, n_rows, n_heads).flatten(), "shape should be"),
    ("07.4", lambda: as_file({"a": F32}, bytes(4)), "open_checkpoint accepts it as well"),
    ("07.4", lambda: as_file({}, b""), "open_checkpoint accepts it as well"),
    ("07.4", lambda: as_file({"a": F8}, bytes(4)), "read_header refuses it already: yours.safetensors holds 4 bytes"),
    ("07.4", lambda: as_file(b'{"a":1,"a":2}', b""), "twice"),
    ("07.4", lambda: struct.pack(">Q", 2) + b"{}", "claims a header"),
    ("07.4", lambda: as_file({"a": {"dtype": "F8", "shape": [300], "data_offsets": [0, 300]}}, bytes(300)), "200 are"),
    ("07.4", lambda: {"a": F8}, "should be bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("exercise", "answer", "message"), WRONG)
def test_a_mistake_is_named(exercise, answer, message):
    result = check(exercise, answer)
    assert not result
    assert message in result.message, result.message
