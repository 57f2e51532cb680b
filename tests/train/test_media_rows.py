"""train.media_rows: rows that learn answers alone, in three versions, each item once an epoch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamm import TextConfig
from llamamm.errors import InputError
from llamamm.generation.prompts import Image, Sound
from llamamm.multimodal.config import BridgeConfig, MultimodalConfig
from llamamm.multimodal.model import Features
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.senses.image_processor import ImageProcessor
from llamamm.tasks.items import (
    ANY,
    WORD,
    Item,
    Task,
)
from llamamm.text.chat import Llama3Chat
from llamamm.train.losses import IGNORE
from llamamm.train.media_rows import VERSIONS, Epochs, RowMaker, encode_conversation
from llamamm.train.tokenizer import train_tokenizer
from tests.media_items import TEXTS, VOCAB, pictures, sounds

EOT = "<|eot_id|>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer"), vocab_size=VOCAB)


@pytest.fixture(scope="module")
def cfg(tokenizer):
    return MultimodalConfig.tiny(text=TextConfig.tiny(vocab_size=tokenizer.vocab_size))


@pytest.fixture(scope="module")
def task():
    """A picture; a picture and a sound; a picture that is not described.

    A picture takes 6 places: 16 patches merged by 4, a start and an end; a sound of 50 ceil(50 / 4) + 2.
    """
    rows, mask = sounds(9, 50)
    items = [Item("what colour?", "red", 1, "a red circle"), Item(ANY, "blue", 0, "a blue circle and seven", 1),
             Item("what colour?", "blue", 2)]  # fmt: skip
    return Task("both", items, Features(pictures(3), rows, mask))


def expected_row(tokenizer, content, answer):
    messages = [{"role": "user", "content": content}]
    prompt = Llama3Chat(tokenizer).encode(messages)
    whole = Llama3Chat(tokenizer).encode([*messages, {"role": "assistant", "content": answer}],
                                         add_generation_prompt=False)  # fmt: skip
    assert whole[: len(prompt)] == prompt and whole[-1] == tokenizer.special_tokens[EOT]
    return whole[:-1], [IGNORE] * (len(prompt) - 1) + whole[len(prompt) :]


@pytest.mark.parametrize(("version", "contents"), [
    ("shown", [[["image"] * 6, "what colour?"], [["image"] * 6 + ["audio"] * 15, ANY],
               [["image"] * 6, "what colour?"]]),
    ("told", ["a red circle. what colour?", f"a blue circle and seven. {ANY}", "what colour?"]),
    ("blind", ["what colour?", ANY, "what colour?"]),
])  # fmt: skip
def test_rows_in_three_versions(cfg, tokenizer, task, version, contents):
    batch = RowMaker(cfg, tokenizer).batch(task, [0, 1, 2], version)
    ids, targets, features = batch.ids, batch.targets, batch.inputs("cpu").get("features")
    named = {"image": cfg.image_token, "audio": cfg.audio_token}
    for b, content in enumerate(contents):
        if isinstance(content, list):
            content = [[named[place] for place in content[0]], content[1]]
        row, wanted = expected_row(tokenizer, content, task.items[b].answer)
        rest = ids.shape[1] - len(row)
        assert ids[b].tolist() == row + [0] * rest
        assert targets[b].tolist() == wanted + [IGNORE] * rest
    if version == "shown":
        assert torch.equal(features.images, task.features.images[[1, 0, 2]].float())
        assert torch.equal(features.sounds, task.features.sounds[[1]].float())
    else:
        assert features is None


def test_rows_learn_the_answer_and_its_end_and_never_a_place(cfg, tokenizer, task):
    for version in VERSIONS:
        batch = RowMaker(cfg, tokenizer).batch(task, [1, 0], version)
        ids, targets = batch.ids, batch.targets
        for row, wanted, answer in zip(ids, targets, ("blue", "red"), strict=True):
            learned = [i for i in wanted.tolist() if i != IGNORE]
            assert learned == [*tokenizer.encode(answer), tokenizer.special_tokens[EOT]]
            at = (wanted != IGNORE).nonzero()[:-1, 0]
            assert torch.equal(wanted[at], row[at + 1])  # what comes next
        assert not {cfg.image_token, cfg.audio_token} & set(targets.flatten().tolist())


def test_rows_are_those_that_are_chosen_in_their_order(cfg, tokenizer, task):
    encoder = RowMaker(cfg, tokenizer)
    whole = encoder.batch(task, [0, 1, 2], "shown")
    some = encoder.batch(task, [2, 0], "shown")
    width = some.ids.shape[1]
    assert torch.equal(some.ids, whole.ids[[2, 0], :width]) and some.segments.sum(dim=1).tolist() == [width, width]
    seen = [batch.inputs("cpu")["features"] for batch in (some, whole)]
    assert torch.equal(seen[0].images, seen[1].images[[2, 0]]) and seen[0].sounds is None


def test_pieces_of_a_batch_keep_their_pictures_and_sounds(cfg, tokenizer, task):
    whole = RowMaker(cfg, tokenizer).batch(task, [1, 0, 2], "shown")
    pieces = whole.split(2)
    assert [len(piece) for piece in pieces] == [2, 1] and [p.n_targets for p in pieces] == [4, 2] == [2 * 2, 2]
    assert sum(piece.n_tokens for piece in pieces) == whole.n_tokens < whole.ids.numel()
    first, second = (piece.inputs("cpu")["features"] for piece in pieces)
    assert torch.equal(torch.cat([first.images, second.images]), whole.inputs("cpu")["features"].images)
    assert first.sounds.shape[0] == 1 and second.sounds is None


def test_rows_may_hold_what_no_tower_has_looked_at_yet(cfg, tokenizer, task):
    seen = RowMaker(cfg, tokenizer).batch(task, [1, 0], "blind")
    pixels, mel = torch.randn(3, 32, 32), torch.randn(80, 8)
    raw = replace(seen, images=[[pixels, pixels], []], sounds=[[], [mel]], looked_at=False)
    media = raw.inputs("cpu")["media"]
    assert media.pixels.shape == (2, 3, 32, 32) and media.mel.shape == (1, 80, 8) and media.lengths.tolist() == [4]
    assert "features" not in raw.inputs("cpu")


def test_rows_that_are_remembered_are_not_mixed_up(cfg, tokenizer):
    """Sounds of other lengths, or other answers to one question, are other rows."""
    rows, mask = sounds(9, 50)
    items = [Item(WORD, "seven", 0), Item(WORD, "seven", 1), Item(WORD, "red", 1)]
    task = Task("word", items, Features(sounds=rows, sound_mask=mask))
    encoder = RowMaker(cfg, tokenizer)
    for _ in range(2):
        batch = encoder.batch(task, [0, 1, 2], "shown")
        ids, targets = batch.ids, batch.targets
        assert (ids == cfg.audio_token).sum(dim=1).tolist() == [5, 15, 15]  # ceil(9 / 4) + 2, ceil(50 / 4) + 2
        ends = [[i for i in row.tolist() if i != IGNORE] for row in targets]
        assert ends[0] == ends[1] != ends[2]


def test_where_they_are_attended_to_each_takes_one_place(tokenizer, task):
    cfg = MultimodalConfig.tiny(text=TextConfig.tiny(vocab_size=tokenizer.vocab_size), cross_layers=(0,),
                                image_bridge=BridgeConfig(latents=3))  # fmt: skip
    ids = RowMaker(cfg, tokenizer).batch(task, [0, 1], "shown").ids
    assert [(ids == token).sum(dim=1).tolist() for token in (cfg.image_token, cfg.audio_token)] == [[1, 1], [0, 1]]


def test_another_version_is_refused(cfg, tokenizer, task):
    with pytest.raises(InputError, match="shown, told, blind, got 'seen'"):
        RowMaker(cfg, tokenizer).batch(task, [0], "seen")


def test_a_conversation_as_something_to_learn_from(cfg, tokenizer):
    processor = MultimodalProcessor(cfg, tokenizer, ImageProcessor.vit(32))
    red, tone = Image(torch.zeros(3, 8, 8, dtype=torch.uint8)), Sound(torch.ones(4000) * 0.1)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [red, "what colour?"]}, {"role": "assistant", "content": "red"},
        {"role": "user", "content": ["and ", tone, red, "?"]}, {"role": "assistant", "content": " seven, blue"},
    ]  # fmt: skip
    example, prompt = encode_conversation(messages, processor)
    assert prompt.ids == example.ids and list(prompt.media) == [red, tone, red]
    trimmed = [*messages[:-1], {"role": "assistant", "content": "seven, blue"}]
    assert example.ids == processor.chat(trimmed, add_generation_prompt=False).ids
    end = tokenizer.special_tokens[EOT]
    learned = [i for i, learn in zip(example.ids, example.learn, strict=True) if learn]
    assert learned == [*tokenizer.encode("red"), end, *tokenizer.encode("seven, blue"), end]
    assert example.ids.count(cfg.image_token) == 12 and example.ids.count(cfg.audio_token) == 6
    assert prompt.inputs["media"].pixels.shape[0] == 2 and prompt.inputs["media"].lengths.tolist() == [13]
    with pytest.raises(InputError, match="no answer to learn"):
        encode_conversation(messages[:2], processor)


@given(n=st.integers(1, 12), batch_size=st.integers(1, 30), seed=st.integers(0, 9))
@settings(max_examples=40)
def test_each_item_once_an_epoch_and_the_rest_carried_over(n, batch_size, seed):
    batches = Epochs(n, batch_size=batch_size, generator=np.random.Generator(np.random.PCG64(seed)))
    some = [next(batches) for _ in range(-(-3 * n // batch_size) + 1)]
    assert all(len(batch) == batch_size for batch in some)
    flat = [i for batch in some for i in batch]
    for epoch in range(3):
        assert sorted(flat[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_each_epoch_has_an_order_of_its_own_which_the_seed_decides():
    def order(seed):
        batches = Epochs(50, batch_size=50, generator=np.random.Generator(np.random.PCG64(seed)))
        return [next(batches) for _ in range(2)]

    first, second = order(1)
    assert first != second and first != sorted(first)
    assert order(1) == [first, second] != order(2)
