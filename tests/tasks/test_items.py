"""tasks.items: items of three assets, what answers say of a picture, features of the items asked for."""

import pytest
import torch

from llamamm.assets.easy_vqa import COLOURS, SHAPES, load_questions
from llamamm.assets.fetch import fetch
from llamamm.assets.openmoji import Pictures
from llamamm.assets.spoken_words import Clip
from llamamm.multimodal.model import Features
from llamamm.tasks.items import (
    ANY,
    CAPTION,
    WORD,
    Item,
    Task,
    Tasks,
    both_items,
    caption_items,
    describe,
    question_items,
    texts_of,
    word_items,
)
from tests.media_items import ASKED, pictures, questions, sounds


def test_what_answers_say_of_a_picture_by_hand():
    found = describe(questions(
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
    words = describe(asked)
    known = {image: text.split()[1:][::-1] for image, text in words.items()}  # shape, colour
    wrong = [(question, answer, words[image])
             for question, answer, image in zip(asked.questions, asked.answers, asked.images, strict=True)
             if image in known and answer_of(question, *known[image]) != answer]  # fmt: skip
    assert not wrong and len(words) >= at_least
    assert set(words.values()) == {f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES}


def test_an_item_for_each_question():
    items = question_items(ASKED)
    assert items == [Item("what is the blue shape?", "circle", 2, "a blue circle"), Item("is there a circle?", "no", 5),
                     Item("is there a blue shape?", "yes", 2, "a blue circle")]  # fmt: skip
    assert question_items(ASKED, describing=True) == [*items, Item(ANY, "a blue circle", 2, "a blue circle")]


def test_items_of_pictures_and_words():
    drawn = Pictures(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), ["apple", "dog"], ["", ""], ["", ""])
    assert caption_items(drawn) == [Item(CAPTION, "apple", 0, "apple"), Item(CAPTION, "dog", 1, "dog")]
    assert caption_items(drawn, (ANY, "x"))[1:3] == [Item(ANY, "dog", 1, "dog"), Item("x", "apple", 0, "apple")]
    clips = [Clip(torch.zeros(9), word, "v") for word in ("one", "two", "two")]
    assert word_items(clips) == [Item(WORD, w, n, w) for n, w in enumerate(("one", "two", "two"))]
    assert [i.row for i in word_items(clips, (WORD, ANY))] == [0, 1, 2] * 2


def test_a_picture_and_a_sound_by_hand():
    seen = [Item("q0", "yes", 4, "a red circle"), Item("q1", "no", 5), Item(ANY, "a red circle", 4, "a red circle"),
            Item("q3", "blue", 6, "a blue circle"), Item("q4", "no", 7, "a teal circle"),
            Item("q5", "no", 8, "a gray circle")]  # fmt: skip
    heard = [Item(WORD, word, row, word) for row, word in enumerate(("one", "two", "six", "ten", "go"), 10)]
    assert both_items(seen, heard) == [  # sounds 0, 7 % 5, 14 % 5, 21 % 5
        Item("q0", "yes", 4, "a red circle and one", 10),
        Item(WORD, "six", 6, "a blue circle and six", 12),
        Item(ANY, "a teal circle and go", 7, "a teal circle and go", 14),
        Item("q5", "no", 8, "a gray circle and two", 11),
    ]


def test_what_an_item_is_about_is_its_own_and_as_long_as_it_is():
    rows, mask = sounds(3, 50, 7, 20)
    task = Task("word", [Item(WORD, "x", row) for row in (2, 0, 1)], Features(sounds=rows, sound_mask=mask))
    for item, length in zip(task.items, (7, 3, 50), strict=True):
        images, [sound] = task.seen_of(item)
        assert images == [] and torch.equal(sound, rows[item.row, :length])


def test_pictures_with_and_without_sounds():
    rows, mask = sounds(3, 50, 7)
    task = Task("both", [Item("q", "a", 1, sound=2), Item("q", "a", 0)], Features(pictures(2), rows, mask))
    [image], [sound] = task.seen_of(task.items[0])
    assert torch.equal(image, task.features.images[1]) and torch.equal(sound, rows[2, :7])
    [image], heard = task.seen_of(task.items[1])
    assert torch.equal(image, task.features.images[0]) and heard == []


def test_the_first_items_of_a_task():
    task = Task("vqa", [Item("q", "a", row) for row in range(5)], Features(pictures(5)))
    assert task.first(2).items == task.items[:2] and task.first(2).features is task.features and len(task) == 5
    assert len(task.first(9)) == 5


def test_texts_for_a_tokenizer_are_all_that_is_said():
    task = Task("caption", [Item("q?", "a dog", 0, "a big dog")], Features())
    texts = texts_of(Tasks({"caption": task}, {"x": Task("x", [Item("secret?", "hidden", 0)], Features())}))
    assert {"q?", "a dog", " a dog", "a big dog", "user", "assistant", "\n\n"} == set(texts)
