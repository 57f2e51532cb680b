"""experiments.release_card: lines made by hand as a table, as Markdown and as JSON; shares of items; one measurement
with a model that gives what it is told to."""

import hashlib
import io
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llamamm.assets.sentences import Sentence
from llamamm.evals.answers import Interval
from llamamm.experiments import release_card
from llamamm.experiments.release_card import FIRST_PLAIN, Line, Measured, as_json, card_markdown, card_table
from llamamm.generation.prompts import Image, Sound
from llamamm.tasks.plain import PLAIN
from tests.media_items import questions

SHARE = Line("sprites named", Interval(0.5, 0.4, 0.625, 1234), {"most frequent": Interval(0.1, 0.05, 0.15, 1234)},
             items=[{"answer": "coin", "given": "gem"}])  # fmt: skip
BITS = Line("Wikipedia, bits a byte", Interval(1.25, 1.125, 1.375, 60), {"SmolLM2": Interval(1.0, 0.9, 1.1, 60),
            "times SmolLM2's": Interval(1.25, 1.2, 1.3, 60)}, better="less")  # fmt: skip


def test_a_card_in_markdown():
    assert card_markdown([SHARE, BITS]).splitlines()[2:] == [
        "| sprites named | 1,234 | 50.0% (40.0% to 62.5%) | most frequent 10.0% (5.0% to 15.0%) |",
        "| Wikipedia, bits a byte | 60 | 1.250 (1.125 to 1.375) | SmolLM2 1.000 (0.900 to 1.100); "
        "times SmolLM2's 1.250 (1.200 to 1.300) |",
    ]
    header, rule = card_markdown([]).splitlines()
    assert header.count("|") == rule.count("|") == card_markdown([BITS]).splitlines()[-1].count("|")


def test_a_card_for_a_terminal_has_the_same_figures():
    console = Console(width=160, file=io.StringIO())
    console.print(card_table([SHARE, BITS]))
    shown = console.file.getvalue()
    for figure in ("50.0% (40.0% to 62.5%)", "most frequent: 10.0% (5.0% to 15.0%)", "1,234", "1.250 (1.125 to 1.375)",
                   "times SmolLM2's: 1.250 (1.200 to 1.300)"):  # fmt: skip
        assert figure in shown


def test_a_card_for_a_file_holds_every_answer():
    share, _ = json.loads(json.dumps(as_json([SHARE, BITS])))
    assert share["what"] == "sprites named" and share["items"] == [{"answer": "coin", "given": "gem"}]
    assert share["value"] == {"value": 0.5, "low": 0.4, "high": 0.625, "n": 1234}


@pytest.mark.parametrize(("size", "n", "found"), [(1.0, 10, list(range(10))), (0.3, 10, [0, 3, 6]), (0.01, 10, [0]),
                                                  (0.5, 3, [0, 1])])  # fmt: skip
def test_a_share_of_the_items_is_spread_over_them(size, n, found):
    assert Measured(None, None, size=size).some(range(n)) == found


@pytest.fixture
def measured(monkeypatch):
    """A model that answers as the test's `answer` says, of (question, medium or None)."""
    at = Measured(None, None)

    def answers(_model, _processor, conversations, *, say, **_options):
        parts = [c[0]["content"] for c in conversations]
        say(len(parts))
        return [at.answer(part[-1], part[0]) if isinstance(part, list) else at.answer(part, None) for part in parts]

    monkeypatch.setattr(release_card, "answers", answers)
    monkeypatch.setattr(release_card, "fetch", lambda name: name)
    return at


def test_questions_about_shapes_and_what_does_not_look(measured, monkeypatch):
    """It looks: it says the colour that its picture has."""
    train = questions(("what colour?", "red", 0), ("what colour?", "red", 1), ("what colour?", "blue", 2))
    test = questions(*(("what colour?", "blue" if n else "red", n) for n in range(8)))
    pixels = torch.zeros(8, 3, 64, 64, dtype=torch.uint8)
    pixels[0] = 255  # the one red
    monkeypatch.setattr(release_card, "SHAPES", len(test))
    monkeypatch.setattr(release_card, "load_questions", lambda _folder: (train, replace(test, pixels=pixels)))
    measured.answer = lambda _q, medium: "red." if medium is None or medium.source.any() else " Blue"
    line = measured.shapes()
    assert (line.value.value, line.value.n) == (1.0, 8)
    assert {how: round(figure.value * 8) for how, figure in line.beside.items() if how != "another's picture"} == {
        "blind": 1, "most frequent for the text": 1}
    assert line.beside["another's picture"].value < 1
    assert len(line.items) == 8 and {"question": "what colour?", "answer": "blue", "given": " Blue",
                                     "blind": "red."} in line.items  # fmt: skip


def test_words_wrong_by_what_is_new(measured, monkeypatch, tmp_path):
    """One of five words is wrong in new voices; what was not asked for does not count."""
    clips = [Sentence(tmp_path / f"{n}.wav", text, "f1", new) for n, (text, new) in enumerate((
        ("You should come.", "voice"), ("so nice", "voice"), ("not this one", "both")))]
    monkeypatch.setattr(release_card, "load_speech", lambda _folder: ([], clips))
    measured.answer = lambda _q, medium: {"0.wav": "you could come", "1.wav": "So nice!"}[medium.source.name]
    line = measured.speech("speech", "voice", lambda some: ["" for _ in some])
    assert line.value.value == pytest.approx(1 / 5) and line.value.n == 2 and line.better == "less"
    assert line.beside["Whisper tiny.en"].value == 1.0
    assert [item["given"] for item in line.items] == ["you could come", "So nice!"]
    assert "voice" in line.what and measured.speech("speech", "voice", None).beside == {}


def test_clips_of_one_voice_are_drawn_together_where_voices_are_new(measured, monkeypatch, tmp_path):
    """Two voices, one heard well and one badly: an interval over voices holds 0 and 1, one over 40 clips does not."""
    clips = [Sentence(tmp_path / f"{n}.wav", "one word", "good" if n < 20 else "bad", new)
             for new in ("voice", "text") for n in range(40)]  # fmt: skip
    monkeypatch.setattr(release_card, "load_speech", lambda _folder: ([], clips))
    measured.answer = lambda _q, medium: "one word" if int(medium.source.stem) < 20 else ""
    voices, texts = (measured.speech("speech", new, None).value for new in ("voice", "text"))
    assert voices.value == texts.value == 0.5
    assert (voices.low, voices.high) == (0, 1) and 0.2 < texts.low < texts.high < 0.8


def test_names_are_right_as_a_whole_or_by_their_words(measured):
    measured.answer = lambda _question, medium: {"a": "red cat", "b": "a dog"}[medium.source]
    line = measured._named("things", [Image("a"), Image("b")], ["Red cat", "small dog"], "small dog")
    assert line.value.value == 0.5 and line.beside["most frequent"].value == 0.5
    assert line.beside["of the names' words"].value == pytest.approx(3 / 4)
    asked = []
    measured.answer = lambda question, _medium: asked.append(question) or ""
    measured._named("sounds", [Sound("a")], ["a"], "a")
    measured._named("pictures", [Image("a")], ["a"], "a")
    assert asked == [release_card.SAID[0], release_card.NAME[0]]


def test_texts_are_read_by_both_models_articles_under_their_titles(measured, monkeypatch, tmp_path):
    (tmp_path / "test.jsonl").write_text('{"title": "Silo", "text": "A silo."}\n{"text": "%s"}\n' % ("x" * 5000))
    read = []

    def bits(model, _tokenizer, texts):
        read.append(texts)
        return [3.0 if model is measured.model else 2.0 for _ in texts]

    monkeypatch.setattr(release_card, "fetch", lambda _name: tmp_path)
    monkeypatch.setattr(release_card, "bits_per_byte", bits)
    line = measured._read("Plays", "plays", "base", "tokenizer")
    assert read == [["Silo\n\nA silo.", "x" * 5000]] * 2
    assert (line.what, line.value.value, line.beside["SmolLM2"].value) == ("Plays, bits a byte", 3.0, 2.0)
    assert line.beside["times SmolLM2's"].value == 1.5


def test_the_plain_questions_are_the_twenty_that_every_card_has_asked():
    assert len(FIRST_PLAIN) == 20 and FIRST_PLAIN == PLAIN[:20]
    found = hashlib.sha256(repr(FIRST_PLAIN).encode()).hexdigest()
    # figures of old cards are compared with those of new ones
    assert found == "3af6fd6c36ca41595eef69e1e82d299431979d7e94b6e7f845b3b18dcd44fbdb"


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20))
def test_another_picture_is_a_different_one_where_there_is_one(images):
    others = release_card.other_pictures(images)
    assert len(others) == len(images)
    for row, other in enumerate(others):
        assert images[other] != images[row] or len({*images}) == 1
