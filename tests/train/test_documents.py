"""train.documents: files of documents larger than memory, and what is wrong with them by file and line."""

import json
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamamm.errors import InputError
from llamamm.train.documents import open_documents


@pytest.fixture
def write(tmp_path):
    def write(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xc3\xa9", "n": 1}\n', [{"text": "a"}, {"text": "é", "n": 1}]),
        ("a.JSONL", b'\xef\xbb\xbf\r\n{"text": "a"}\r\n  \r\n{"text": "b"}', [{"text": "a"}, {"text": "b"}]),
        ("a.txt", b"one\ntwo\n\n\n three \n \t\nfour", ["one\ntwo", " three", "four"]),
        ("a.txt", b"\xef\xbb\xbf\r\none\r\ntwo\r\n\r\nthree\r\n\r\n", ["one\ntwo", "three"]),
    ],
)
def test_documents_of_a_file(write, name, data, expected):
    documents = open_documents(write(name, data))
    expected = [{"text": x} if isinstance(x, str) else x for x in expected]
    assert len(documents) == len(expected)
    assert list(documents) == expected
    assert documents[-1] == expected[-1] and documents[np.int64(0)] == expected[0]
    with pytest.raises(IndexError):
        documents[len(expected)]


@settings(max_examples=50)
@given(texts=st.lists(st.text(st.sampled_from("ab\n\r é漢\x0b\u2028\ufeff"), max_size=6), min_size=1, max_size=6))
def test_what_was_written_as_json_lines_is_read(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8")
    assert [d["text"] for d in open_documents(path)] == texts


def test_files_that_cannot_be_read_are_refused(write, tmp_path):
    for path, message in (
        (tmp_path / "none.jsonl", "none.jsonl: No such file"),
        (tmp_path, r"\.jsonl, \.json, \.txt files, got '', a folder without metadata.jsonl"),
        (write("a.csv", b"x"), r"got '\.csv'"),
        (write("empty.jsonl", b""), "no document: 0 bytes"),
        (write("blank.txt", b"\n \r\n"), "no document: 4 bytes"),
        (write("bom.txt", b"\xef\xbb\xbf"), "no document: 3 bytes"),
    ):
        with pytest.raises(InputError, match=message):
            open_documents(path)


def test_broken_documents_are_named_with_their_line(write):
    documents = open_documents(write("a.jsonl", b'{"a": 1}\n\n{"a": \n[1]\n{"a": "\xff"}\n' + b"[" * 10**5 + b"\n{}"))
    assert documents[0] == {"a": 1} and documents[-1] == {}
    for n, message in enumerate(["line 3: Expecting value", "line 4: .*object.*list", "line 5: byte 0xff is not UTF-8",
                                 "line 6: .*recursion"], start=1):  # fmt: skip
        with pytest.raises(InputError, match=r"a\.jsonl, " + message):
            documents[n]
    documents = open_documents(write("a.txt", b"one\n\ntwo\nthree \xe9\n"))
    with pytest.raises(InputError, match="line 4: byte 0xe9"):
        documents[1]


VALUES = st.one_of(st.text(max_size=6), st.lists(st.integers()), st.none())
RECORDS = st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), min_size=1, max_size=6)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=RECORDS, indent=st.sampled_from([None, 0, 3]), ascii_=st.booleans(), bom=st.booleans())
def test_a_json_list_reads_as_json_does(write, records, indent, ascii_, bom):
    data = json.dumps(records, indent=indent, ensure_ascii=ascii_).encode()
    documents = open_documents(write("a.json", b"\xef\xbb\xbf" * bom + data + b"\n"))
    assert [documents[i] for i in range(len(documents))] == records


@pytest.mark.parametrize(("data", "message"), [
    (b'{"a": 1}', "must hold a list"), (b"[]", "holds no document"),
    (b'[{"a": 1},\n{"a" 2}]', "a.json, line 2: Expecting"), (b'[{"a": 1}\n{"a": 2}]', "a.json, line 2: Expecting ','"),
    (b'[{"a": 1}', "a.json, line 1: "), (b"[\xff]", "not UTF-8"),
    (b"[" * 10**5, "recursion"), (b"", "must hold a list"),
])  # fmt: skip
def test_a_broken_json_list_is_refused_when_it_is_opened(write, data, message):
    with pytest.raises(InputError, match=message):
        open_documents(write("a.json", data))


def test_what_is_no_object_in_a_json_list_is_named_with_its_line(write):
    documents = open_documents(write("a.json", b'[{"a": 1},\n\n 7]'))
    assert documents.place(1).endswith("a.json, line 3")
    with pytest.raises(InputError, match="a.json, line 3: each record must be a JSON object.*got int"):
        documents[1]


def test_a_folder_of_pictures_is_read_by_its_metadata(write, tmp_path):
    write("metadata.jsonl", b'{"file_name": "a.png", "text": "a cat"}\n')
    documents = open_documents(tmp_path)
    assert documents[0] == {"file_name": "a.png", "text": "a cat"} and documents.folder == tmp_path


def test_a_file_that_shrank_is_noticed(write):
    path = write("a.txt", b"one\n\ntwo")
    documents = open_documents(path)
    path.write_bytes(b"one\n\n")
    with pytest.raises(InputError, match="document 1 reached to byte 8, the file ends at 5"):
        documents[1]


def test_a_large_file_stays_on_the_disk(tmp_path):
    path, n = tmp_path / "large.jsonl", 30_000
    with path.open("w") as file:
        file.writelines(json.dumps({"text": f"{i} " + "x" * 2000}) + "\n" for i in range(n))
    assert path.stat().st_size > 60_000_000
    tracemalloc.start()
    documents = open_documents(path)
    for i in random.Random(0).sample(range(n), 200):
        assert documents[i]["text"].startswith(f"{i} ")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(documents) == n and peak < 3_000_000
