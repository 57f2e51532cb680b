"""experiments.receipts: receipts say what is printed on them, four tiles change nothing until their gates open."""

import pytest
import torch

from llamamm.errors import InputError
from llamamm.experiments import receipts as module
from llamamm.experiments.receipts import (
    GOODS,
    LINE,
    SIDE,
    Lines,
    ReceiptBatches,
    make_receipts,
    measure,
    new_reader,
    one_question_each,
    print_receipt,
    question,
    read_lines,
    receipt_processor,
    train_reader,
    with_tiles,
)
from llamamm.train.losses import IGNORE


@pytest.fixture(scope="module")
def processor():
    return receipt_processor()


@pytest.fixture(scope="module")
def receipts():
    return make_receipts(6, seed=0, lines=(3, 20))


def test_a_receipt_adds_up_and_has_a_picture_of_its_lines(receipts):
    for receipt in receipts:
        *goods, total = receipt.lines
        assert 3 <= len(receipt.lines) <= 20 and receipt.picture.shape == (3, LINE * len(receipt.lines), SIDE)
        assert {line.split()[0] for line in goods} <= {*GOODS}
        assert total == f"total {sum(round(100 * float(line.split()[1])) for line in goods) / 100:.2f}"
        assert receipt.picture.dtype == torch.uint8 and {*receipt.picture.unique().tolist()} == {0, 255}


def test_the_same_line_looks_the_same_wherever_it_stands():
    a, b = (print_receipt(lines).picture for lines in (["tea 4.75", "milk 1.20"], ["milk 1.20", "tea 4.75"]))
    assert torch.equal(a[:, :LINE], b[:, LINE:]) and torch.equal(a[:, LINE:], b[:, :LINE]) and not torch.equal(a, b)


def test_receipts_are_decided_by_their_seed(receipts):
    assert [r.lines for r in make_receipts(6, seed=0, lines=(3, 20))] == [r.lines for r in receipts]
    assert [r.lines for r in make_receipts(6, seed=1, lines=(3, 20))] != [r.lines for r in receipts]


@pytest.mark.parametrize("lines", [(1, 4), (5, 4), (2, 27)])
def test_lines_that_cannot_be_are_refused(lines):
    with pytest.raises(InputError, match=f"got {lines[0]} to {lines[1]}"):
        make_receipts(1, seed=0, lines=lines)


def test_each_word_and_each_digit_is_a_token(processor):
    encode = processor.tokenizer.encode
    assert all(len(encode(f" {word}")) == 1 for word in GOODS)
    assert len(encode(" tea 4.75\n")) == len(["tea", " ", "4", ".", "7", "5", "\n"])
    assert len({tuple(encode(question(n))) for n in range(1, 27)}) == 26


def test_a_rule_chooses_the_canvas(processor):
    long = print_receipt(["tea 4.75"] * 12).picture
    assert processor.image_processor.canvas(*long.shape[1:]) == (4, 1)
    ruled = receipt_processor(lambda height, width, side, tiles: (2, 2)).image_processor  # noqa: ARG005
    assert len(ruled.tiles(long)[0]) == 4 and ruled([[long]]).aspect_ratio_ids.tolist() == [[6]]
    assert receipt_processor(lambda *_: (1, 1), max_tiles=1).image_processor([[long]]).pixels.shape[2] == 1


def test_batches_ask_for_lines_and_learn_the_answers_alone(processor, receipts):
    batch = next(ReceiptBatches(receipts, processor, batch_size=2, n_questions=3))
    decode = processor.tokenizer.decode
    for ids, targets in zip(batch.ids, batch.targets, strict=True):
        assert ids[0] == processor.image_token
        text, learned = decode(ids[1:].tolist()), decode(targets[targets != IGNORE].tolist())
        (receipt,) = [r for r in receipts if all(line in r.lines for line in learned.strip().split("\n "))]
        for asked in learned.strip().split("\n "):
            letter = text[text.index(f"? {asked}") - 1]
            assert receipt.lines[ord(letter) - ord("A")] == asked
    assert batch.n_targets == int((batch.targets != IGNORE).sum()) and len(batch) == 2
    assert [len(piece) for piece in batch.split(1)] == [1, 1]
    assert torch.equal(batch.split(1)[1].images.pixels, batch.images.pixels[1:])


def test_a_stream_goes_on_where_it_was(processor, receipts):
    one, two = (ReceiptBatches(receipts, processor, batch_size=2, seed=3) for _ in range(2))
    next(one)
    two.load_state_dict(one.state_dict())
    assert torch.equal(next(one).ids, next(two).ids) and one.epoch_progress == two.epoch_progress > 0


@torch.no_grad()
def test_tiles_change_nothing_until_a_gate_opens(processor, receipts):
    reader = new_reader(processor.image_token)
    images = processor.image_processor([[receipts[0].picture]])
    ids = torch.tensor([[processor.image_token, 5, 6]])
    closed = with_tiles(reader)(ids, images=images)
    assert torch.equal(closed, with_tiles(reader, seed=1)(ids, images=images)), "the new tables show"
    assert not torch.allclose(with_tiles(reader, gate=1.0)(ids, images=images), closed, atol=1e-2)
    old, new = reader.state_dict(), with_tiles(reader).state_dict()
    differ = {name for name in old if old[name].shape != new[name].shape or not torch.equal(old[name], new[name])}
    assert len(differ) == 3 and all("tile" in name for name in differ)


def test_training_moves_all_but_the_tables_where_they_are_left_out(processor, receipts):
    state = torch.get_rng_state()
    for tables in (True, False):
        model = with_tiles(new_reader(processor.image_token))
        before = {name: p.clone() for name, p in model.named_parameters()}
        losses = train_reader(model, processor, receipts, steps=1, tables=tables, batch_size=2)
        assert len(losses) == 1 and all(p.requires_grad for p in model.parameters()) and not model.training
        stayed = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
        assert ("vision_model.pre_tile_positional_embedding.gate" in stayed) != tables
        assert "vision_model.patch_embedding.weight" not in stayed
    assert torch.equal(torch.get_rng_state(), state)


def test_a_few_steps_lower_the_loss():
    short = make_receipts(4, seed=0, lines=(2, 3))
    one = receipt_processor(lambda *_: (1, 1), max_tiles=1)
    losses = train_reader(new_reader(one.image_token), one, short, steps=12, batch_size=4)
    assert losses[-1] < losses[0] / 2


def test_what_is_read_does_not_depend_on_the_others_in_its_batch(processor, receipts):
    model = with_tiles(new_reader(processor.image_token))
    pictures, numbers = [r.picture for r in receipts[:3]], one_question_each(receipts[:3])
    together = read_lines(model, processor, pictures, numbers)
    assert together == [read_lines(model, processor, [p], [n])[0] for p, n in zip(pictures, numbers, strict=True)]
    assert all(1 <= n <= len(r.lines) for n, r in zip(one_question_each(receipts), receipts, strict=True))


def test_lines_are_counted_right_only_where_they_are_read_to_the_letter(processor, receipts, monkeypatch):
    numbers = one_question_each(receipts, most=2)
    assert max(numbers) <= 2
    said = [r.lines[n - 1] for r, n in zip(receipts, numbers, strict=True)]
    shown = []
    said = [said[0], *(text[:-1] for text in said[1:])]
    monkeypatch.setattr(module, "read_lines", lambda *given: shown.append(given) or said)
    score = measure("name", None, processor, receipts, most=2)
    assert (score.right, score.n) == (1, 6) and shown[0][2] == [r.picture for r in receipts]
    assert str(score).split() == "name 1 of 6 lines right, 3% to 56%".split()
    other = [receipts[0].picture] * 6
    measure("name", None, processor, receipts, pictures=other, most=2)
    assert shown[1][2] is other and shown[1][3] == numbers


def test_wilsons_interval():
    assert Lines("", 0, 200).interval == pytest.approx((0.0, 0.0188), abs=1e-3)
    assert Lines("", 5, 10).interval == pytest.approx((0.2366, 0.7634), abs=1e-3)  # by hand, as in textbooks
    assert Lines("", 200, 200).interval == pytest.approx((0.9812, 1.0), abs=1e-3)
