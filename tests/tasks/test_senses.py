"""tasks.items: items of three assets, their descriptions, rows that learn answers alone, features once."""

import sys

import llamamm.multimodal_data as data
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamm import AudioEncoder, TextConfig, VisionTower
from llamamm.assets.easy_vqa import COLOURS, SHAPES, Questions, load_questions
from llamamm.assets.fetch import fetch
from llamamm.assets.openmoji import Pictures
from llamamm.assets.spoken_words import Clip, Words
from llamamm.errors import InputError, MissingDependencyError
from llamamm.generation.prompts import Image, Sound
from llamamm.multimodal.config import BridgeConfig, MultimodalConfig
from llamamm.multimodal.model import Features
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.senses.image_processor import ImageProcessor
from llamamm.senses.mel import log_mel
from llamamm.tasks.items import ANY, CAPTION, WORD, Item, Task, Tasks
from llamamm.text.chat import Llama3Chat, chat_format
from llamamm.train.losses import IGNORE
from llamamm.train.media_rows import Encoder

EOT = "<|eot_id|>"
VOCAB = 350
TEXTS = ["user", "assistant", "\n\n", "what colour?", "red", "blue", WORD, CAPTION, ANY, "seven", "a blue circle"] * 9


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return data.train_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer"), vocab_size=VOCAB)


@pytest.fixture(scope="module")
def cfg(tokenizer):
    return MultimodalConfig.tiny(text=TextConfig.tiny(vocab_size=tokenizer.vocab_size))


@pytest.fixture(scope="module")
def towers():
    torch.manual_seed(0)
    tiny = MultimodalConfig.tiny()
    return VisionTower(tiny.vision).eval(), AudioEncoder(tiny.audio).eval()


def questions(*rows, n=8):
    """(question, answer, image) each, about n black pictures."""
    columns = (list(column) for column in zip(*rows, strict=True))
    return Questions(torch.zeros(n, 3, 64, 64, dtype=torch.uint8), *columns)


def sounds(*lengths, seed=0):
    """Features of sounds of so many places, 32 wide; beyond them large numbers that none may see."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(len(lengths), max(lengths), 32, generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return rows.masked_fill(~mask[..., None], 999).half(), mask


def pictures(n, seed=0):
    return torch.randn(n, 16, 32, generator=torch.Generator().manual_seed(seed)).half()


# ---- descriptions ----


def test_what_answers_say_of_a_picture_by_hand():
    found = data.describe(questions(
        ("is there a blue shape?", "yes", 0), ("what shape is present?", "circle", 0),
        ("what is the teal shape?", "triangle", 1),  # says both
        ("what color is the rectangle?", "red", 2),
        ("does the image not contain a gray shape?", "no", 3), ("is no circle present?", "no", 3),
        ("is there a red shape?", "no", 4), ("is there not a blue shape?", "yes", 4),  # two colours that it has not
        ("what shape is in the image?", "circle", 4),
        ("what color is the shape?", "green", 5), ("is there a circle?", "no", 5),
        ("is a black shape present?", "yes", 6), ("is a triangle present?", "yes", 6),
    ))  # fmt: skip
    assert found == {0: "a blue circle", 1: "a teal triangle", 2: "a red rectangle", 3: "a gray circle",
                     6: "a black triangle"}  # fmt: skip


def answer_of(question, shape, colour):
    """What easy-VQA's program answers."""
    if question.startswith("what"):
        return colour if "color" in question else shape
    (named,) = [word for word in question.strip("?").split() if word in SHAPES + COLOURS]
    negated = " not " in question or " no " in question
    return "yes" if (named in (shape, colour)) != negated else "no"


@pytest.mark.parametrize(("side", "at_least"), [(0, 3500), (1, 850)])
def test_every_description_of_the_real_pictures_agrees_with_all_their_answers(side, at_least):
    asked = load_questions(fetch("easy-vqa", progress=False))[side]
    words = data.describe(asked)
    known = {image: text.split()[1:][::-1] for image, text in words.items()}  # shape, colour
    wrong = [(question, answer, words[image])
             for question, answer, image in zip(asked.questions, asked.answers, asked.images, strict=True)
             if image in known and answer_of(question, *known[image]) != answer]  # fmt: skip
    assert not wrong and len(words) >= at_least
    assert set(words.values()) == {f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES}


# ---- items ----

ASKED = questions(("what is the blue shape?", "circle", 2), ("is there a circle?", "no", 5), ("is there a blue shape?",
                                                                                             "yes", 2))


def test_an_item_for_each_question():
    items = data.question_items(ASKED)
    assert items == [Item("what is the blue shape?", "circle", 2, "a blue circle"), Item("is there a circle?", "no", 5),
                     Item("is there a blue shape?", "yes", 2, "a blue circle")]  # fmt: skip
    assert data.question_items(ASKED, describing=True) == [*items, Item(ANY, "a blue circle", 2, "a blue circle")]


def test_items_of_pictures_and_words():
    drawn = Pictures(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), ["apple", "dog"], ["", ""], ["", ""])
    assert data.caption_items(drawn) == [Item(CAPTION, "apple", 0, "apple"), Item(CAPTION, "dog", 1, "dog")]
    assert data.caption_items(drawn, (ANY, "x"))[1:3] == [Item(ANY, "dog", 1, "dog"), Item("x", "apple", 0, "apple")]
    clips = [Clip(torch.zeros(9), word, "v") for word in ("one", "two", "two")]
    assert data.word_items(clips) == [Item(WORD, w, n, w) for n, w in enumerate(("one", "two", "two"))]
    assert [i.row for i in data.word_items(clips, (WORD, ANY))] == [0, 1, 2] * 2


def test_a_picture_and_a_sound_by_hand():
    seen = [Item("q0", "yes", 4, "a red circle"), Item("q1", "no", 5), Item(ANY, "a red circle", 4, "a red circle"),
            Item("q3", "blue", 6, "a blue circle"), Item("q4", "no", 7, "a teal circle"),
            Item("q5", "no", 8, "a gray circle")]  # fmt: skip
    heard = [Item(WORD, word, row, word) for row, word in enumerate(("one", "two", "six", "ten", "go"), 10)]
    assert data.both_items(seen, heard) == [  # sounds 0, 7 % 5, 14 % 5, 21 % 5
        Item("q0", "yes", 4, "a red circle and one", 10),
        Item(WORD, "six", 6, "a blue circle and six", 12),
        Item(ANY, "a teal circle and go", 7, "a teal circle and go", 14),
        Item("q5", "no", 8, "a gray circle and two", 11),
    ]


# ---- tasks ----


def test_features_of_items_are_theirs_and_no_longer_than_the_longest():
    rows, mask = sounds(3, 50, 7, 20)
    task = Task("word", [Item(WORD, "x", row) for row in (2, 0, 1)], Features(sounds=rows, sound_mask=mask))
    found = task.features_of(task.items[:2])
    assert found.images is None and found.sounds.dtype == torch.float32
    assert torch.equal(found.sounds, rows[[2, 0], :7].float())
    assert found.sound_mask.tolist() == [[True] * 7, [True] * 3 + [False] * 4]
    assert task.features_of(task.items).sounds.shape == (3, 50, 32)


def test_features_of_pictures_with_and_without_sounds():
    rows, mask = sounds(3, 50, 7)
    task = Task("both", [Item("q", "a", 1, sound=2), Item("q", "a", 0), Item("q", "a", 1, sound=0)],
                Features(pictures(2), rows, mask))  # fmt: skip
    found = task.features_of(task.items)
    assert torch.equal(found.images, task.features.images[[1, 0, 1]].float())
    assert torch.equal(found.sounds, rows[[2, 0], :7].float())  # of the items that have one
    alone = task.features_of(task.items[1:2])
    assert alone.images.shape == (1, 16, 32) and alone.sounds is None and alone.sound_mask is None


def test_the_first_items_of_a_task():
    task = Task("vqa", [Item("q", "a", row) for row in range(5)], Features(pictures(5)))
    assert task.first(2).items == task.items[:2] and task.first(2).features is task.features and len(task) == 5
    assert len(task.first(9)) == 5


def test_the_assets_as_tasks(towers, monkeypatch):
    vision, audio = towers
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (8, 3, 64, 64), generator=generator, dtype=torch.uint8)
    asked = Questions(pixels[:6], ASKED.questions, ASKED.answers, ASKED.images)
    drawn = Pictures(pixels[:2], ["apple", "dog"], ["", ""], ["", ""])
    unseen = Pictures(pixels[:4], ["kiwi", "cat, dark", "emu", "owl"], [""] * 4, ["thing", "tone", "thing", "thing"])
    waves = [torch.randn(n, generator=generator) * 0.1 for n in (3000, 900)]
    clips = [Clip(wave, word, "v") for wave, word in zip(waves, ("one", "two"), strict=True)]
    monkeypatch.setattr(data, "fetch", lambda name: name)
    monkeypatch.setattr(data, "load_questions", lambda _: (asked, asked))
    monkeypatch.setattr(data, "load_pictures", lambda _: (drawn, unseen))
    monkeypatch.setattr(data, "load_words", lambda _: Words(clips, clips[::-1], clips[:1]))
    images, said = ImageProcessor.vit(32), []
    tasks = data.load_tasks(MultimodalConfig.tiny(image_layer=-2), vision, audio, images, say=said.append)

    assert {name: len(task) for name, task in tasks.train.items()} == {"vqa": 4, "caption": 4, "word": 4, "both": 2}
    assert {name: len(task) for name, task in tasks.test.items()} == {
        "questions": 3, "new things": 3, "new tones": 1, "other voices": 2, "people": 1, "picture and voice": 2}
    assert [i.answer for i in tasks.test["new things"].items] == ["kiwi", "emu", "owl"]
    assert [i.answer for i in tasks.test["other voices"].items] == ["two", "one"]
    expected = data.picture_features(vision, images, pixels[[0, 2, 3]], layer=-2)
    assert torch.allclose(tasks.test["new things"].features.images, expected, atol=1e-2)
    assert tasks.train["vqa"].features.images.shape == (6, 16, 32) and len(said) == 8
    both = tasks.train["both"]
    assert both.features.images is tasks.train["vqa"].features.images
    assert both.features.sounds is tasks.train["word"].features.sounds and both.items[0].sound == 0
    for task in (*tasks.train.values(), *tasks.test.values()):
        task.features_of(task.items)  # all that the items name is there

    bare = data.load_tasks(MultimodalConfig.tiny(), vision, audio, images, only_tests=True)
    assert all(task.features.images is None and task.features.sounds is None for task in bare.train.values())
    assert {name: task.items for name, task in bare.train.items()} == {n: t.items for n, t in tasks.train.items()}
    assert bare.test["people"].features.sounds is not None


# ---- features, once ----


def test_features_of_many_pictures(towers):
    tower, processor = towers[0], ImageProcessor.vit(32)
    n = data.BATCH + 2
    pixels = torch.randint(256, (n, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for layer in (None, -2):
        found = data.picture_features(tower, processor, pixels, layer=layer)
        assert found.shape == (n, 16, 32) and found.dtype == torch.float16 and not found.requires_grad
        for i in (0, data.BATCH, n - 1):
            with torch.no_grad():
                alone = tower(processor([pixels[i]]), layer=layer, cls=False)[0]
            assert (found[i].float() - alone).abs().max() < 5e-3


def test_features_of_many_sounds(towers):
    encoder = towers[1]
    lengths = [320 * (1 + 7 * i % 50) - 11 * (i % 3) for i in range(data.BATCH + 2)]
    generator = torch.Generator().manual_seed(0)
    waves = [torch.randn(n, generator=generator) * 0.1 for n in lengths]
    for layer in (None, 1):
        found = data.sound_features(encoder, waves, layer=layer)
        assert found.images is None and found.sounds.dtype == torch.float16 and not found.sounds.requires_grad
        places = [-(-n // 320) for n in lengths]
        assert found.sound_mask.sum(dim=1).tolist() == places
        assert found.sounds.shape == (len(waves), max(places), 32)
        for i in (0, 3, data.BATCH, len(waves) - 1):
            mel = log_mel(waves[i], n_mels=16)[None, :, : 2 * places[i]]
            with torch.no_grad():
                alone = encoder(mel, layer=layer, lengths=torch.tensor([places[i]]))[0, : places[i]]
            assert (found.sounds[i, : places[i]].float() - alone).abs().max() < 5e-3


# ---- words ----


def test_a_tokenizer_of_these_texts(tokenizer, tmp_path):
    assert isinstance(chat_format(tokenizer), Llama3Chat) and 256 + len(data.SPECIAL) < tokenizer.vocab_size <= VOCAB
    assert all(name in tokenizer.special_tokens for name in data.SPECIAL)
    assert len(tokenizer.encode("assistant")) == 1  # often enough to be a token
    again = data.train_tokenizer(TEXTS, tmp_path, vocab_size=VOCAB)
    assert again.encode("what colour is a zebra?") == tokenizer.encode("what colour is a zebra?")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
@settings(max_examples=30)
def test_the_tokenizer_reads_any_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and not set(ids) & set(tokenizer.special_tokens.values())


def test_without_the_tokenizers_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependencyError, match=r"llamamm\[train\]"):
        data.train_tokenizer(TEXTS, tmp_path, vocab_size=VOCAB)


def test_texts_for_a_tokenizer_are_all_that_is_said():
    task = Task("caption", [Item("q?", "a dog", 0, "a big dog")], Features())
    texts = data.texts_of(Tasks({"caption": task}, {"x": Task("x", [Item("secret?", "hidden", 0)], Features())}))
    assert {"q?", "a dog", " a dog", "a big dog", "user", "assistant", "\n\n"} == set(texts)


# ---- rows ----

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
    ids, targets, features = Encoder(cfg, tokenizer).batch(task, [0, 1, 2], version)
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
    for version in data.VERSIONS:
        ids, targets, _ = Encoder(cfg, tokenizer).batch(task, [1, 0], version)
        for row, wanted, answer in zip(ids, targets, ("blue", "red"), strict=True):
            learned = [i for i in wanted.tolist() if i != IGNORE]
            assert learned == [*tokenizer.encode(answer), tokenizer.special_tokens[EOT]]
            at = (wanted != IGNORE).nonzero()[:-1, 0]
            assert torch.equal(wanted[at], row[at + 1])  # what comes next
        assert not {cfg.image_token, cfg.audio_token} & set(targets.flatten().tolist())


def test_rows_are_those_that_are_chosen_in_their_order(cfg, tokenizer, task):
    encoder = Encoder(cfg, tokenizer)
    whole = encoder.batch(task, [0, 1, 2], "shown")
    some = encoder.batch(task, [2, 0], "shown")
    width = some[0].shape[1]
    assert torch.equal(some[0], whole[0][[2, 0], :width]) and torch.equal(some[2].images, whole[2].images[[2, 0]])
    assert some[2].sounds is None


def test_rows_that_are_remembered_are_not_mixed_up(cfg, tokenizer):
    """Sounds of other lengths, or other answers to one question, are other rows."""
    rows, mask = sounds(9, 50)
    items = [Item(WORD, "seven", 0), Item(WORD, "seven", 1), Item(WORD, "red", 1)]
    task = Task("word", items, Features(sounds=rows, sound_mask=mask))
    encoder = Encoder(cfg, tokenizer)
    for _ in range(2):
        ids, targets, _ = encoder.batch(task, [0, 1, 2], "shown")
        assert (ids == cfg.audio_token).sum(dim=1).tolist() == [5, 15, 15]  # ceil(9 / 4) + 2, ceil(50 / 4) + 2
        ends = [[i for i in row.tolist() if i != IGNORE] for row in targets]
        assert ends[0] == ends[1] != ends[2]


def test_where_they_are_attended_to_each_takes_one_place(tokenizer, task):
    cfg = MultimodalConfig.tiny(text=TextConfig.tiny(vocab_size=tokenizer.vocab_size), cross_layers=(0,),
                                image_bridge=BridgeConfig(latents=3))  # fmt: skip
    ids, _, _ = Encoder(cfg, tokenizer).batch(task, [0, 1], "shown")
    assert [(ids == token).sum(dim=1).tolist() for token in (cfg.image_token, cfg.audio_token)] == [[1, 1], [0, 1]]


def test_another_version_is_refused(cfg, tokenizer, task):
    with pytest.raises(InputError, match="shown, told, blind, got 'seen'"):
        Encoder(cfg, tokenizer).batch(task, [0], "seen")


def test_a_conversation_as_something_to_learn_from(cfg, tokenizer):
    processor = MultimodalProcessor(cfg, tokenizer, ImageProcessor.vit(32))
    red, tone = Image(torch.zeros(3, 8, 8, dtype=torch.uint8)), Sound(torch.ones(4000) * 0.1)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [red, "what colour?"]}, {"role": "assistant", "content": "red"},
        {"role": "user", "content": ["and ", tone, red, "?"]}, {"role": "assistant", "content": " seven, blue"},
    ]  # fmt: skip
    example, prompt = data.encode_conversation(messages, processor)
    assert prompt.ids == example.ids and list(prompt.media) == [red, tone, red]
    trimmed = [*messages[:-1], {"role": "assistant", "content": "seven, blue"}]
    assert example.ids == processor.chat(trimmed, add_generation_prompt=False).ids
    end = tokenizer.special_tokens[EOT]
    learned = [i for i, learn in zip(example.ids, example.learn, strict=True) if learn]
    assert learned == [*tokenizer.encode("red"), end, *tokenizer.encode("seven, blue"), end]
    assert example.ids.count(cfg.image_token) == 12 and example.ids.count(cfg.audio_token) == 6
    assert prompt.inputs["media"].pixels.shape[0] == 2 and prompt.inputs["media"].lengths.tolist() == [13]
    with pytest.raises(InputError, match="no answer to learn"):
        data.encode_conversation(messages[:2], processor)


# ---- orders ----


@given(n=st.integers(1, 12), batch_size=st.integers(1, 30), seed=st.integers(0, 9))
@settings(max_examples=40)
def test_each_item_once_an_epoch_and_the_rest_carried_over(n, batch_size, seed):
    batches = data.epochs(n, batch_size=batch_size, generator=np.random.Generator(np.random.PCG64(seed)))
    some = [next(batches) for _ in range(-(-3 * n // batch_size) + 1)]
    assert all(len(batch) == batch_size for batch in some)
    flat = [i for batch in some for i in batch]
    for epoch in range(3):
        assert sorted(flat[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_each_epoch_has_an_order_of_its_own_which_the_seed_decides():
    def order(seed):
        batches = data.epochs(50, batch_size=50, generator=np.random.Generator(np.random.PCG64(seed)))
        return [next(batches) for _ in range(2)]

    first, second = order(1)
    assert first != second and first != sorted(first)
    assert order(1) == [first, second] != order(2)
