"""evals.measures: what each kind counts, on answers by hand."""

import pytest

from llamamm.evals.measures import MEASURES, holds, same
from llamamm.tasks.held_out import Sample


def figures(kind, samples, records):
    return {figure.name: figure for figure in MEASURES[kind].score(samples, records)}


def samples(*answers, **options):
    return [Sample(str(n), "?", answer, group=str(n), **options) for n, answer in enumerate(answers)]


@pytest.mark.parametrize(("given", "answer", "exactly", "within"), [
    ("4", "4|four", True, True), ("It is Four.", "4|four", False, True), ("14", "4|four", False, False),
    ("The red circle!", "red circle", False, True), ("red, circle", "red circle", True, True),
    ("reddish circle", "red circle", False, False), ("", "red", False, False),
])  # fmt: skip
def test_an_answer_is_right_by_whole_words(given, answer, exactly, within):
    assert holds(given, answer) == within and any(same(given, key) for key in answer.split("|")) == exactly
    found = figures("question", samples(answer), [{"given": given}])
    assert [f.value for f in found.values()] == [within, exactly]


def test_questions_about_pictures_and_what_needs_no_picture():
    some = samples("red", "yes", "no", "yes", frequent="yes")
    columns = [("Red.", "yes", "blue"), ("yes", "yes", "yes"), ("yes", "yes", "no"), ("no", "no", "yes")]
    said = [{"given": given, "blind": blind, "other": other} for given, blind, other in columns]
    found = figures("vqa", some, said)
    assert {name: f.value for name, f in found.items()} == {
        "answered": 0.5, "blind": 0.25, "with another's picture": 0.75, "most frequent answer to the text": 0.5}
    assert [f.better for f in found.values()] == ["more", "", "", ""]


def test_captions_exactly_and_by_ngrams():
    some = samples("a red apple on a tree", "a blue car in a street", frequent="a red apple on a tree")
    found = figures("caption", some, [{"given": "A red apple on a tree."}, {"given": "a car"}])
    assert found["named exactly"].value == found["most frequent name"].value == 0.5
    assert found["CIDEr-D"].interval.low < found["CIDEr-D"].value < found["CIDEr-D"].interval.high <= 10
    assert 0 < found["BLEU"].value < 100


def test_keywords_are_a_set():
    some = samples("Cats, Dogs", "Birds", frequent="Cats, Birds")
    found = figures("keywords", some, [{"given": "dogs, trees"}, {"given": "birds, birds,"}])
    assert found["F1 of keywords"].value == pytest.approx(2 * (1 + 1) / (2 + 2 + 1 + 1))
    assert found["the five most frequent"].value == pytest.approx(2 * (1 + 1) / (2 + 2 + 1 + 2))


def test_speech_is_compared_as_it_is_normalised():
    some = samples("i have ten cats", "no")
    said = [{"given": "I've 10 cats.", "beside": "I have ten cats"}, {"given": "know", "beside": "no"}]
    found = figures("speech", some, said)
    assert found["words wrong"].value == pytest.approx(1 / 5) and found["Whisper tiny.en, words wrong"].value == 0
    assert found["characters wrong"].value == pytest.approx(2 / len("i have 10 cats" + "no"))
    assert "Whisper tiny.en, words wrong" not in figures("speech", some, [{"given": "no"}] * 2)


def test_three_ways_to_score_a_choice():
    some = [Sample("0", "?", "1", group="0", choices=("no", "yes, of course")),
            Sample("1", "?", "0", group="1", choices=("up", "down"))]  # fmt: skip
    said = [{"text": [-4.0, -9.0], "letter": [-1.0, -2.0]}, {"text": [-1.0, -4.0], "letter": [-3.0, -2.0]}]
    found = {name: f.value for name, f in figures("choice", some, said).items()}
    assert found == {"right, by the answer's bytes": 1.0, "right, by the answer's sum": 0.5,
                     "right, by its letter": 0.0, "by chance": 0.5}  # fmt: skip


def test_a_text_counts_by_its_bytes():
    said = [{"bits": 8.0, "bytes": 4, "tokens": 2}, {"bits": 4.0, "bytes": 8, "tokens": 4}]
    found = figures("reading", samples("", ""), said)
    assert found["bits a byte"].value == 1 and found["perplexity"].value == 4
    assert (found["perplexity"].interval.low, found["perplexity"].interval.high) == (2, 16)


def test_instructions_all_and_each():
    said = [{"strict": [True, False], "loose": [True, True]}, {"strict": [False], "loose": [False]}]
    found = {name: f.value for name, f in figures("instruction", samples("", ""), said).items()}
    assert found == {"all followed, loosely": 0.5, "all followed, strictly": 0.0,
                     "instructions followed, loosely": pytest.approx(2 / 3)}  # fmt: skip
