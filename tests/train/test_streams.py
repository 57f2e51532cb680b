"""train.streams: rows as they come, each once an epoch, shuffled within a buffer, resumed bit for bit."""

import io
import itertools
import json
from collections import Counter

import PIL.Image
import pytest
import torch

from llamamm.errors import InputError, TrainingError
from llamamm.senses.waves import save_wave
from llamamm.train import streams
from llamamm.train.sources import open_data
from llamamm.train.streams import Head, Streams, with_files
from tests.training_data import media_table

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.filterwarnings("ignore")
N = 23


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows a0 to a22 with pictures in two parquet files of small row groups, b0 to b4 in lines of JSON."""
    folder = tmp_path_factory.mktemp("data")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = [{"image": PIL.Image.new("RGB", (4, 4), (i, 0, 0)), "text": f"a{i}"} for i in range(N)]
    table = datasets.Dataset.from_list(rows, features=features)
    for n, part in enumerate((range(11), range(11, N))):
        table.select(part).to_parquet(folder / f"part-{n}.parquet", batch_size=4)
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": f"b{i}"}) + "\n" for i in range(5)))
    return folder


@pytest.fixture
def make(folder):
    def make(*, names=("pictures",), shares=None, **options):
        known = {"pictures": f"datasets:{folder}/part-*.parquet", "lines": f"{folder}/b.jsonl",
                 "table": f"datasets:{folder}/b.jsonl"}  # fmt: skip
        shares = shares or [1.0] * len(names)
        sources = [(name, open_data(known[name], stream=True), share)
                   for name, share in zip(names, shares, strict=True)]  # fmt: skip
        return Streams(sources, **{"buffer": 6, "seed": 3, **options})

    return make


def words(stream, n):
    """The texts of the next n records."""
    found = []
    for _ in range(n):
        record = stream.current()
        found.append(record.text or record.messages[-1]["content"])
        stream.advance()
    return found


def test_each_row_once_an_epoch_in_another_order_each_time(make):
    stream = make()
    first, second = words(stream, N), words(stream, N)
    everything = [f"a{i}" for i in range(N)]
    assert sorted(first) == sorted(second) == sorted(everything) and first != second and first != everything
    assert words(make(), N) == first and words(make(seed=4), N) != first
    assert words(make(buffer=1), 2 * N) == everything * 2
    assert words(make(buffer=100), N) != everything


def test_no_more_rows_are_read_than_wait(make):
    stream = make()
    for k in range(N):
        number = int(stream.place.removeprefix("pictures, row "))
        assert number < k + 6 and stream.sources[0]._n_read <= k + 6  # a row that has not come cannot be drawn
        assert words(stream, 1) == [f"a{number}"]


def test_pictures_come_as_files(make):
    stream = make(buffer=1)
    record = stream.current()
    [picture] = record.media
    assert isinstance(picture.source, bytes) and PIL.Image.open(io.BytesIO(picture.source)).size == (4, 4)


@pytest.mark.parametrize("names", [("pictures",), ("lines",), ("table",), ("pictures", "lines"),
                                   ("pictures", "table", "lines")], ids="-".join)  # fmt: skip
def test_resumed_anywhere_equals_uninterrupted(make, names):
    whole, states, wanted = make(names=names), [], []
    for k in range(60):
        if k % 3 == 0:
            whole.current()  # at hand, and not done with
        states.append(json.dumps(whole.state_dict()))
        wanted += words(whole, 1)
    for k, state in list(enumerate(states))[::7] + [(59, states[59])]:
        resumed = make(names=names)
        words(resumed, 2)  # a state replaces what was read before
        resumed.load_state_dict(json.loads(state))
        assert words(resumed, 60 - k) == wanted[k:], k
        assert resumed.progress == whole.progress
        assert json.loads(json.dumps(resumed.state_dict()))["generator"] == whole.state_dict()["generator"]


def test_resuming_reads_a_few_buffers_and_not_the_whole(make, monkeypatch):
    stream = make()
    words(stream, 5 * N + 17)
    state = json.loads(json.dumps(stream.state_dict()))
    assert state["sources"][0]["epoch"] == 5
    count, before = [], streams.next_row
    monkeypatch.setattr(streams, "next_row", lambda *args: (count.append(1), before(*args))[1])
    again = make()
    again.load_state_dict(state)
    n_from_mark = state["sources"][0]["n_read"] - state["sources"][0]["mark"][0]
    assert len(count) == n_from_mark < state["sources"][0]["n_read"]
    assert words(again, 10) == words(stream, 10)


def test_sources_are_drawn_by_their_shares(make):
    some = words(make(names=("pictures", "table"), shares=(1, 3)), 400)
    assert sum(word[0] == "b" for word in some) == pytest.approx(300, abs=30)
    assert set(Counter(word for word in some if word[0] == "b").values()) <= set(range(56, 66))  # all of them as often


def test_epochs_are_counted_by_the_source_that_was_read_least(make):
    stream = make(names=("pictures", "lines"))
    assert stream.progress == 0
    seen = [stream.progress for _ in range(200) if words(stream, 1)]
    assert seen == sorted(seen) and stream.epoch == min(s.epoch for s in stream.sources) >= 1
    assert make(names=("lines",)).sources[0].progress == 0
    lines = make(names=("lines",))
    words(lines, 7)
    assert lines.progress == pytest.approx(1.4)


def test_a_row_that_is_no_record_is_named(tmp_path):
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in ("x", "", "y")))
    (tmp_path / "d.jsonl").write_text('{"text": "x"}\n{"txt": 1}\n')
    table = datasets.load_dataset("json", data_files=str(tmp_path / "d.jsonl"), split="train", streaming=True)
    stream = Streams([("mine", table, 1.0)], buffer=1)
    stream.advance()
    with pytest.raises(InputError, match="^mine, row 1: a record needs"):
        stream.current()
    lines = Streams([(str(tmp_path / "d.jsonl"), open_data(str(tmp_path / "d.jsonl")), 1.0)], buffer=1)
    lines.advance()
    with pytest.raises(InputError, match=r"d.jsonl, line 2: a record needs") as caught:
        lines.current()
    assert str(caught.value).count("line 2") == 1


class Breaks:
    """Ends as a network does."""

    info = type("Info", (), {"splits": None})
    split = "train"

    def __iter__(self):
        yield {"text": "a"}
        raise OSError("connection reset")

    def state_dict(self):
        return {}


def test_a_stream_that_breaks_off_is_no_faulty_record():
    stream = Streams([("far", Breaks(), 1.0)], buffer=1)
    assert words(stream, 1) == ["a"]
    with pytest.raises(TrainingError, match="far, after 1 rows: the stream breaks off .connection reset."):
        stream.current()


def test_a_set_without_rows_and_one_that_has_changed_are_named(make):
    empty = datasets.IterableDataset.from_generator(lambda: iter(()))
    with pytest.raises(InputError, match="mine holds no row"):
        Streams([("mine", empty, 1.0)]).current()
    stream = make(names=("table",))
    words(stream, 2)
    shorter = datasets.Dataset.from_dict({"text": ["b0"]}).to_iterable_dataset()
    state = stream.state_dict()
    state["sources"][0]["mark"] = (0, None)
    with pytest.raises(InputError, match="table has changed: it had 5 rows"):
        Streams([("table", shorter, 1.0)], buffer=6, seed=3).load_state_dict(state)


def test_files_that_stand_elsewhere_are_read(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"123")
    cell = {"path": f"file://{tmp_path}/a.bin", "bytes": None}
    assert with_files({"image": cell, "list": [cell], "text": "x"}) == {
        "image": {**cell, "bytes": b"123"}, "list": [{**cell, "bytes": b"123"}], "text": "x"}  # fmt: skip
    here = {"image": {"path": "a.png", "bytes": None}}
    assert with_files(here) == here
    with pytest.raises(InputError, match="file://.*none.bin"):
        with_files({"image": {"path": f"file://{tmp_path}/none.bin", "bytes": None}})


def test_the_head_is_the_first_rows_and_leaves_the_stream_as_it_was(folder):
    table = open_data(f"datasets:{folder}/part-*.parquet", stream=True)
    head = Head(table, 4, "mine")
    assert [row["text"] for row in head] == ["a0", "a1", "a2", "a3"] and head.place(2) == "row 2"
    assert isinstance(head[0]["image"]["bytes"], bytes)
    assert [row["text"] for row in itertools.islice(table, 2)] == ["a0", "a1"]
    assert len(Head(table, 100, "mine")) == N


def test_sound_columns_come_as_files(tmp_path):
    save_wave(tmp_path / "w.wav", torch.sin(torch.arange(1600) / 5) * 0.3)
    table = media_table([{"audio": (tmp_path / "w.wav").read_bytes(), "text": "a tone"}])
    table.to_parquet(tmp_path / "s.parquet")
    assert isinstance(open_data(f"datasets:{tmp_path}/s.parquet").features["audio"], datasets.Audio)
    stream = Streams([("s", open_data(f"datasets:{tmp_path}/s.parquet", stream=True), 1.0)])
    [sound] = stream.current().media
    assert sound.wave().shape == (1600,)
