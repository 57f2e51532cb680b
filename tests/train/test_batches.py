"""train.batches: packing by hand, each target once, the same loss packed and alone, resuming."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamm.errors import InputError
from llamamm.train.batches import Batches
from llamamm.train.documents import open_documents
from llamamm.train.losses import IGNORE, cross_entropy_sum
from llamamm.train.rows import Example, encode_record
from llamamm.train.sources import open_data

I = IGNORE  # noqa: E741


def say(*turns):
    """say("user", "Hi", "assistant", "Hello") as messages."""
    return [{"role": role, "content": content} for role, content in zip(turns[::2], turns[1::2], strict=True)]



# ---- rows by hand ----


def plain(ids):
    return Example(list(ids), [True] * len(ids))


def answers(ids):
    """Even ids are questions, odd ones answers."""
    return Example(list(ids), [i % 2 == 1 for i in ids])


def batches(documents, encode=plain, **options):
    options = {"batch_size": 1, "shuffle": False, **options}
    return Batches(documents, encode, **options)


def rows(stream, n):
    return [(b.ids.tolist()[0], b.targets.tolist()[0], b.segments.tolist()[0]) for b in itertools.islice(stream, n)]


def test_split_rows_by_hand():
    assert rows(batches([[1, 2, 3], [11, 12, 13, 14, 15]], length=4), 3) == [
        ([1, 2, 11, 12], [2, 3, 12, 13], [1, 1, 2, 2]),
        ([13, 14, 1, 2], [14, 15, 2, 3], [1, 1, 2, 2]),  # 13 was the last target and is now read; then the next epoch
        ([11, 12, 13, 14], [12, 13, 14, 15], [1, 1, 1, 1]),
    ]


def test_whole_rows_by_hand():
    stream = batches([[2, 3, 5], [4, 7], [6, 8, 10, 1, 3, 5, 7]], answers, length=4, split=False, pad_id=99)
    assert rows(stream, 3) == [
        ([2, 3, 4, 99], [3, 5, 7, I], [1, 1, 2, 0]),  # the third does not fit
        ([6, 8, 10, 1], [I, I, 1, 3], [1, 1, 1, 1]),  # and is cut
        ([2, 3, 4, 99], [3, 5, 7, I], [1, 1, 2, 0]),
    ]
    assert (stream.n_cut, stream.epoch) == (1, 1)


def test_unpacked_rows_by_hand():
    batch = next(batches([[2, 3, 5], [4, 7], [1] * 9], answers, length=6, pack=False, batch_size=2, pad_id=99))
    assert batch.ids.tolist() == [[2, 3], [4, 99]]
    assert batch.targets.tolist() == [[3, 5], [7, I]]
    assert batch.segments.tolist() == [[1, 1], [1, 0]]
    assert batch.n_targets == 3
    stream = batches([[1] * 9], length=6, pack=False)
    assert next(stream).ids.shape == (1, 6)
    assert stream.n_cut == 1


def test_examples_with_nothing_to_learn_are_left_out():
    documents = [[], [7], [2, 4], [2, 4, 6, 8, 9], [2, 3]]  # the fourth teaches only what is cut off
    assert rows(batches(documents, answers, length=3, split=False), 1) == [([2, 2, 2], [3, 3, 3], [1, 2, 3])]
    stream = batches(documents, answers, length=3)
    assert rows(stream, 2) == [
        ([2, 4, 6], [I, I, I], [1, 1, 1]),
        ([8, 2, 2], [9, 3, I], [1, 2, 3]),
    ]
    assert stream.n_cut == 0  # split, not cut


@pytest.mark.parametrize("options", [{}, {"split": False}, {"pack": False}])
@pytest.mark.parametrize("documents", [[[]], [[7], [7]], [[2, 4]], [[3, 2, 4]]])
def test_nothing_to_learn_at_all_ends_in_an_error(documents, options):
    with pytest.raises(InputError, match=f"no token to learn in {len(documents)} document"):
        next(batches(documents, answers, length=2, **options))


def test_a_batch_moves():
    batch = next(batches([[1, 2, 3]], length=2)).inputs("meta")
    assert {name: value.device.type for name, value in batch.items()} == {"ids": "meta", "targets": "meta"}
    several = next(batches([[1, 2, 3], [4, 5, 6]], length=4)).inputs("meta")
    assert several["segments"].device.type == "meta"


# ---- properties ----


def numbered(lengths):
    """Documents in which every token of every document has an id of its own."""
    begins = np.cumsum([0, *lengths])
    return [list(range(b, b + n)) for b, n in zip(begins, lengths, strict=False)]


LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(lambda x: max(x) > 1)


@settings(max_examples=150)
@given(lengths=LENGTHS, length=st.integers(1, 10), batch_size=st.integers(1, 3), seed=st.integers(0, 5))
def test_split_makes_every_token_a_target_once_an_epoch(lengths, length, batch_size, seed):
    documents = numbered(lengths)
    n_targets = sum(max(n - 1, 0) for n in lengths)
    stream = Batches(documents, plain, batch_size=batch_size, length=length, seed=seed)
    pairs = []
    while len(pairs) < 3 * n_targets:
        batch = next(stream)
        assert batch.ids.shape == (batch_size, length) and (batch.segments > 0).all()
        pairs += zip(batch.ids.flatten().tolist(), batch.targets.flatten().tolist(), strict=True)
    expected = sorted((d[i], d[i + 1]) for d in documents for i in range(len(d) - 1))
    for epoch in range(3):
        assert sorted(pairs[epoch * n_targets : (epoch + 1) * n_targets]) == expected


@settings(max_examples=100)
@given(lengths=LENGTHS, length=st.integers(1, 10), pack=st.booleans(), split=st.booleans(), seed=st.integers(0, 5))
def test_segments_are_whole_runs_of_one_text(lengths, length, pack, split, seed):
    """Within a segment each target is the next id; no text stands in two segments of a row; filling learns nothing."""
    documents = numbered(lengths)
    stream = Batches(documents, plain, batch_size=2, length=length, pack=pack, split=split, seed=seed, pad_id=999)
    for batch in itertools.islice(stream, 6):
        for ids, targets, segments in zip(batch.ids, batch.targets, batch.segments, strict=True):
            filling = segments == 0
            assert (targets[filling] == I).all() and (ids[filling] == 999).all() and not filling[0]
            assert (segments[~filling].diff() >= 0).all() and segments[0] == 1 and not filling[:-1][~filling[1:]].any()
            assert (targets[~filling] == ids[~filling] + 1).all()
            for n in range(1, int(segments.max()) + 1):
                run = ids[segments == n].tolist()
                assert run == list(range(run[0], run[0] + len(run)))
                document = next(d for d in documents if run[0] in d)
                if not (pack and split):
                    assert run == document[: min(len(document) - 1, length)]  # whole, or cut to a row


def test_packed_loss_and_gradients_equal_each_text_alone(tiny_model):
    g = torch.Generator().manual_seed(1)
    documents = [torch.randint(1, 512, (n,), generator=g).tolist() for n in (5, 17, 2, 30, 9, 12, 3, 33)]
    documents[2] = [4, 7]

    # Rows of 32 places hold 4 + 16 + 1, 29, 8 + 11 + 2 and 32: the epoch ends with a batch.
    def loss_of(ids, targets, segments):
        hidden = tiny_model.hidden_states(ids, segments=segments).flatten(0, 1)
        return cross_entropy_sum(hidden, tiny_model.lm_head.weight, targets.flatten())

    def gradients():
        grads = torch.cat([p.grad.flatten() for p in tiny_model.parameters()])
        tiny_model.zero_grad()
        return grads

    alone = sum(loss_of(torch.tensor([d[:-1]]), torch.tensor([answers(d).ids[1:]]).where(
        torch.tensor([answers(d).learn[1:]]), I), None) for d in documents)
    alone.backward()
    alone_gradients = gradients()
    for options in ({"split": False}, {"pack": False}):
        stream = batches(documents, answers, length=32, batch_size=2, **options)
        packed, n = 0.0, 0
        while stream.epoch == 0:
            batch = next(stream)
            loss = loss_of(batch.ids, batch.targets, batch.segments)
            loss.backward()
            packed, n = packed + loss.item(), n + batch.n_targets
        assert n == sum(sum(answers(d).learn[1:]) for d in documents) and stream.state_dict()["position"] == 0
        assert packed == pytest.approx(alone.item(), rel=1e-5)
        difference = (gradients() - alone_gradients).norm() / alone_gradients.norm()
        assert difference < 1e-4


def test_order_depends_on_seed_and_epoch_alone():
    documents = [[i, 100 + i] for i in range(20)]

    def order(seed, n_epochs=1):
        stream = Batches(documents, plain, batch_size=20, length=1, seed=seed)
        return [next(stream).ids.flatten().tolist() for _ in range(n_epochs)]

    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = order(0, 2)
    torch.manual_seed(7)
    assert order(0, 2) == [first, second]
    assert len({tuple(x) for x in (first, second, order(1)[0], list(range(20)))}) == 4
    assert sorted(first) == sorted(second) == list(range(20))
    torch.manual_seed(0)
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


SETTINGS = [{}, {"split": False}, {"pack": False}, {"shuffle": False}]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("length", [1, 5, 8])
def test_resumed_at_every_batch_equals_uninterrupted(options, length):
    documents = numbered([3, 1, 9, 40, 6, 2, 0, 11])

    def make(**other):
        return Batches(documents, answers, batch_size=2, length=length, seed=3, **{**options, **other})

    def content(batch):
        return [x.tolist() for x in (batch.ids, batch.targets, batch.segments)]

    whole, states, wanted, progress = make(), [], [], []
    for _ in range(40):
        states.append(json.dumps(whole.state_dict()))
        progress.append((whole.epoch, whole.epoch_progress, whole.n_cut))
        wanted.append(content(next(whole)))
    assert whole.epoch >= 1 and progress == sorted(progress)
    for k, state in enumerate(states):
        resumed = make()
        next(resumed)  # a state replaces what was read before
        resumed.load_state_dict(json.loads(state))
        assert (resumed.epoch, resumed.epoch_progress, resumed.n_cut) == progress[k]
        assert [content(next(resumed)) for _ in range(k, len(states))] == wanted[k:]
        assert resumed.n_cut == whole.n_cut
        assert json.dumps(resumed.state_dict()) == json.dumps(whole.state_dict())


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_ranks_together_are_the_single_process(options):
    documents = numbered([3, 9, 14, 6, 2, 11])
    one, *two = (Batches(documents, plain, batch_size=4, length=6, seed=1, rank=r, world_size=w, **options)
                 for r, w in ((0, 1), (0, 2), (1, 2)))  # fmt: skip
    for batch, *parts in itertools.islice(zip(one, *two, strict=False), 6):
        for name in ("ids", "targets", "segments"):
            merged = torch.stack([getattr(p, name) for p in parts], dim=1).flatten(0, 1)  # rows 0, 1, 0, 1
            assert torch.equal(merged, getattr(batch, name))
    states = [s.state_dict() for s in (one, *two)]
    assert states[0] == states[1] == states[2]  # any number of processes may go on


def test_epoch_progress_counts_documents():
    stream = batches([[1, 2]] * 4, length=1)
    assert stream.epoch_progress == 0
    seen = [(next(stream), stream.epoch_progress)[1] for _ in range(5)]
    assert seen == [0.25, 0.5, 0.75, 1.0, 1.25] and stream.epoch == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 3, "world_size": 2}, "batch_size 3 is not a multiple of world_size 2"),
        ({"batch_size": 2, "world_size": 2, "rank": 2}, "rank must be from 0 to 1 for world_size 2, got 2"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"documents": []}, "0 documents"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        batches(**{"documents": [[1, 2]], "length": 4, **options})


def test_a_state_of_other_data_or_settings_is_refused():
    def make(n=3, **options):
        return Batches([[1, 2, 3]] * n, plain, **{"batch_size": 2, "length": 4, **options})

    stream = make()
    next(stream)
    state = stream.state_dict()
    for other, message in (
        (make(4), "documents 3, here it is 4"),
        (make(seed=5), "seed 0, here it is 5"),
        (make(batch_size=4), "batch_size 2, here it is 4"),
        (make(length=5), "length 4, here it is 5"),
        (make(split=False), "split True, here it is False"),
        (make(pack=False), "pack True, here it is False"),
        (make(shuffle=False), "shuffle True, here it is False"),
    ):
        with pytest.raises(InputError, match=message):
            other.load_state_dict(state)
    for broken, message in (
        ({}, "no state of Batches"),
        (None, "no state of Batches"),
        ({**state, "epoch": "x"}, "no state of Batches"),
        ({**state, "position": 3}, "document 3.*3 documents"),
        ({**state, "epoch": -1}, "epoch -1"),
    ):
        with pytest.raises(InputError, match=message):
            make().load_state_dict(broken)
    make(world_size=2, rank=1).load_state_dict(state)
    changed = make()
    changed.load_state_dict({**state, "used": 2})
    with pytest.raises(InputError, match="2 places into record ., which has 2"):
        next(changed)


def test_a_file_trains_as_a_list_does(tmp_path, smol):
    records = [{"text": "Once upon a time"}, {"messages": say("user", "Hi", "assistant", "Hello")}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    streams = [Batches(d, lambda r: encode_record(r, smol), batch_size=2, length=16)
               for d in (records, open_documents(path))]
    for a, b in itertools.islice(zip(*streams, strict=True), 4):
        assert torch.equal(a.ids, b.ids) and torch.equal(a.targets, b.targets)


@pytest.mark.filterwarnings("ignore")
def test_datasets_by_their_name_in_the_settings(tmp_path):
    datasets = pytest.importorskip("datasets")
    parts = {part: datasets.Dataset.from_list([{"text": f"{part} text"}]) for part in ("train", "held_out")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    parts["train"].save_to_disk(tmp_path / "one")
    assert open_data(f"datasets:{tmp_path}/both")[0] == {"text": "train text"}
    assert open_data(f"datasets:{tmp_path}/both:held_out")[0] == {"text": "held_out text"}
    assert open_data(f"datasets:{tmp_path}/one")[0] == {"text": "train text"}
    with pytest.raises(InputError, match="both:nosuch: .*nosuch"):
        open_data(f"datasets:{tmp_path}/both:nosuch")


@pytest.mark.filterwarnings("ignore")
def test_a_dataset_of_hugging_face_works_as_it_is(smol):
    datasets = pytest.importorskip("datasets")
    records = [{"text": "Once upon a time", "messages": None},  # a table has every column in every row
               {"text": None, "messages": say("user", "Hi", "assistant", "Hello")}]
    table = datasets.Dataset.from_list(records)
    streams = [Batches(d, lambda r: encode_record(r, smol), batch_size=2, length=16) for d in (records, table)]
    for a, b in itertools.islice(zip(*streams, strict=True), 4):
        assert torch.equal(a.ids, b.ids) and torch.equal(a.targets, b.targets)
