"""evals.score_card, card_report: every answer is kept, a run that was killed goes on, what was read is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from llamamm import Llama3Model, TextConfig
from llamamm.errors import InputError
from llamamm.evals import safety
from llamamm.evals.card_report import draw, markdown, rows, save, table
from llamamm.evals.measures import MEASURES, Asker
from llamamm.evals.score_card import ANSWERS, CARD_FILE, AnswerLog, Card, mark_of, run_card, told_guard
from llamamm.generation.guarded import Judgement
from llamamm.generation.prompts import as_processor
from llamamm.safety.guard import Guard
from llamamm.safety.template import OURS
from llamamm.tasks.choices import FORMS, prompt
from llamamm.tasks.held_out import HeldOut, Sample
from llamamm.train.records import read_record
from llamamm.train.seen import Seen
from llamamm.train.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return train_tokenizer(["user assistant Which one? Yes. No."] * 9, tmp_path_factory.mktemp("words"), vocab_size=300)


def make_asker(words, seed=0):
    torch.manual_seed(seed)
    model = Llama3Model(TextConfig.tiny(vocab_size=words.vocab_size, hidden_size=64, context_length=512)).eval()
    return Asker(model, as_processor(words), batch_size=3)


@pytest.fixture
def asker(words):
    return make_asker(words)


@pytest.fixture
def sets():
    from llamamm.assets.multiple_choice import ChoiceQuestion

    texts = [Sample(f"t{n}", f"Which one is it? Number {n}. " * 4, group=str(n)) for n in range(6)]
    asked = [ChoiceQuestion(f"c{n}", f"Which is number {n}?", ("yes", "no, it is not"), n % 2) for n in range(7)]
    choices = [Sample(q.key, q.question, str(q.answer), group=q.key, choices=q.choices,
                      content={form: prompt(q, form=form) for form in FORMS}) for q in asked]  # fmt: skip
    plain = [Sample(f"q{n}", f"Who is number {n}?", "one|1", group=str(n)) for n in range(5)]
    return {"read": HeldOut("read", "texts", "reading", texts), "two": HeldOut("two", "choices", "choice", choices),
            "plain": HeldOut("plain", "questions", "question", plain)}  # fmt: skip


def test_a_card_is_read_again_without_model_and_data(asker, sets, tmp_path):
    card = run_card(asker, sets, model="tiny", out=tmp_path)
    again = Card.load(tmp_path)
    assert [(r.title, r.figure.name, r.figure.interval) for r in rows(again)] == [
        (r.title, r.figure.name, r.figure.interval) for r in rows(card)]  # fmt: skip
    content = json.loads((tmp_path / CARD_FILE).read_text())
    assert content["model"] == "tiny" and content["torch"] == torch.__version__ and content["mark"]
    assert [item["key"] for item in content["sets"]["plain"]["items"]] == [f"q{n}" for n in range(5)]
    assert all("given" in item for item in content["sets"]["plain"]["items"])
    assert not (tmp_path / ANSWERS).exists()
    bits = content["sets"]["read"]["figures"][0]
    assert bits["low"] <= bits["value"] <= bits["high"] and bits["n"] == 6


class Stop(Exception):
    pass


def test_a_run_that_is_stopped_goes_on_where_it_was(asker, sets, tmp_path, monkeypatch):
    whole = run_card(asker, sets, model="tiny")
    asked = []
    for kind in ("reading", "choice", "question"):
        measure = type(MEASURES[kind])
        monkeypatch.setattr(measure, "n_at_once", 2)
        monkeypatch.setattr(measure, "ask", lambda self, asker, samples, old=measure.ask: (
            asked.extend(sample.key for sample in samples), old(self, asker, samples))[1])  # fmt: skip

    def stop_at(title, done, _n):
        if title == "choices" and done == 4:
            raise Stop

    with pytest.raises(Stop):
        run_card(asker, sets, model="tiny", out=tmp_path, say=stop_at)
    first = list(asked)
    card = run_card(asker, sets, model="tiny", out=tmp_path)
    assert first == [f"t{n}" for n in range(6)] + [f"c{n}" for n in range(4)]
    assert asked[len(first):] == [*(f"c{n}" for n in range(4, 7)), *(f"q{n}" for n in range(5))]
    assert [r.figure.value for r in rows(card)] == pytest.approx([r.figure.value for r in rows(whole)], rel=1e-4)
    asked.clear()
    run_card(asker, sets, model="tiny", out=tmp_path)
    assert asked == []
    more = [*sets["plain"].samples, Sample("q9", "Who else?", "x", group="9")]
    run_card(asker, {"plain": replace(sets["plain"], samples=more)}, model="tiny", out=tmp_path)
    assert asked == ["q9"]


def test_a_second_run_that_is_stopped_loses_nothing_of_the_first(asker, sets, tmp_path):
    run_card(asker, sets, model="tiny", out=tmp_path)

    def stop_at(title, _done, _n):
        if title == "choices":
            raise Stop

    with pytest.raises(Stop):
        run_card(asker, sets, model="tiny", out=tmp_path, say=stop_at)
    assert {*Card.load(tmp_path).sets} == {*sets}
    again = run_card(asker, {"two": sets["two"]}, model="tiny", out=tmp_path)
    assert {*again.sets} == {"two"} and {*Card.load(tmp_path).sets} == {*sets}


def test_what_else_is_in_a_folder_stays(asker, sets, tmp_path):
    (tmp_path / ANSWERS).mkdir()
    (tmp_path / ANSWERS / "mine.txt").write_text("of somebody else")
    run_card(asker, {"plain": sets["plain"]}, model="tiny", out=tmp_path)
    assert [path.name for path in (tmp_path / ANSWERS).iterdir()] == ["mine.txt"]
    (tmp_path / CARD_FILE).write_text("no JSON")
    with pytest.raises(InputError, match="card.json is no score card"):
        run_card(asker, {"plain": sets["plain"]}, model="tiny", out=tmp_path)


def test_a_line_that_was_cut_is_asked_again(tmp_path):
    head, path = {"set": "x", "model": "m"}, tmp_path / "x.jsonl"
    with AnswerLog(path, head) as log:
        log.write("a", {"given": "yes"})
        log.write("b", {"given": "no"})
    path.write_bytes(path.read_bytes()[:-7])
    with AnswerLog(path, head) as log:
        assert log.records == {"a": {"given": "yes"}}
        log.write("b", {"given": "new"})
    assert AnswerLog(path, head).records == {"a": {"given": "yes"}, "b": {"given": "new"}}
    assert AnswerLog(path, {**head, "model": "other"}).records == {}


def test_a_folder_of_another_model_is_refused(words, asker, sets, tmp_path):
    run_card(asker, {"plain": sets["plain"]}, model="tiny", out=tmp_path)
    other = make_asker(words, seed=1)
    assert mark_of(other.model) != mark_of(asker.model)
    with pytest.raises(InputError, match="card of another model, tiny"):
        run_card(other, {"plain": sets["plain"]}, model="other", out=tmp_path)


class Nobody:
    """A guard that stops nothing."""

    def judge(self, _conversation):
        return Judgement(False, 0.0)


def test_what_was_asked_with_another_guard_is_not_taken_over(asker, tmp_path, monkeypatch):
    monkeypatch.setattr(safety, "NEW_TOKENS", 4)
    held_out = HeldOut("harmless", "requests", "request", [Sample(f"s{n}", f"Number {n}?", group=str(n))
                                                           for n in range(40)])  # fmt: skip
    guarded, sets = replace(asker, guard=Nobody()), {"harmless": held_out}

    def stop_at(_title, done, _n):
        if done == 32:
            raise Stop

    with pytest.raises(Stop):
        run_card(asker, sets, model="tiny", out=tmp_path / "a", say=stop_at)
    card = run_card(guarded, sets, model="tiny", out=tmp_path / "a")  # begins anew
    assert "stopped by the guard" in {figure.name for figure in card.sets["harmless"].figures}
    assert card.about["guard"] == "Nobody" and Card.load(tmp_path / "a").about["guard"] == "Nobody"
    with pytest.raises(InputError, match="with Nobody, not with none: choose another folder"):
        run_card(asker, sets, model="tiny", out=tmp_path / "a")
    run_card(asker, sets, model="tiny", out=tmp_path / "b")
    with pytest.raises(InputError, match="with no guard, not with Nobody: choose another folder"):
        run_card(guarded, sets, model="tiny", out=tmp_path / "b")


def test_guards_are_told_apart(smol):
    def model():
        return Llama3Model(TextConfig.tiny(vocab_size=smol.vocab_size, context_length=4096))

    one = Guard(model(), smol, OURS)
    assert told_guard(None) is None and told_guard(one) == told_guard(Guard(one.model, smol, OURS))
    assert told_guard(one) != told_guard(Guard(one.model, smol, OURS, 0.75))
    assert told_guard(one) != told_guard(Guard(model(), smol, OURS))


def test_what_training_has_read_is_refused_or_left_out(asker, sets):
    seen = Seen.of([read_record({"prompt": "who is number 3", "response": "three"})])
    with pytest.raises(InputError, match=r"plain is contaminated: .* 1 of 5 items, such as q3"):
        run_card(asker, sets, model="tiny", seen=seen)
    card = run_card(asker, {"plain": sets["plain"]}, model="tiny", seen=seen, contaminated="skip")
    assert [s.key for s in card.sets["plain"].held_out.samples] == ["q0", "q1", "q2", "q4"]
    assert "1 item left out" in markdown(card)
    everything = Seen.of([read_record({"text": sample.text}) for sample in sets["plain"].samples])
    with pytest.raises(InputError, match="plain holds nothing"):
        run_card(asker, {"plain": sets["plain"]}, model="tiny", seen=everything, contaminated="skip")


def test_an_eye_is_needed_for_pictures(asker):
    picture = HeldOut("seen", "pictures", "caption", [Sample("p", "What?", "cat", group="p")], "an eye")
    with pytest.raises(InputError, match="seen needs an eye, which tiny has not"):
        run_card(asker, {"seen": picture}, model="tiny")


def test_two_cards_are_compared_on_the_same_items(words, asker, sets, tmp_path):
    one, other = run_card(asker, sets, model="one"), run_card(make_asker(words, seed=1), sets, model="other")
    found = list(rows(one, other))
    assert {row.verdict for row in found} <= {"better", "worse", "can't tell", ""}
    assert [row.verdict for row in rows(one, one) if row.figure.better] == ["can't tell"] * 5
    for row, back in zip(found, rows(other, one), strict=True):
        swap = {"better": "worse", "worse": "better"}
        assert back.verdict == swap.get(row.verdict, row.verdict) and (
            row.difference is None or back.difference.value == -row.difference.value)
    save(one, tmp_path, other)
    lines = (tmp_path / "card.md").read_text().splitlines()
    assert lines[0] == "| held out | what is counted | n | one | other | difference | verdict |"
    assert sum(line.startswith("|") for line in lines) == 2 + len(found)
    assert lines[-1].startswith("95 % intervals in brackets") and f"torch {torch.__version__}, float32." in lines[-1]
    assert (tmp_path / "card.png").stat().st_size > 5000
    assert table(one, other).row_count == len(found) and len(draw(one).axes[0].get_yticklabels()) > 4
    more = rows(one, run_card(asker, {"read": sets["read"]}, model="other"))
    assert [row.other is None for row in more] == [False] * 2 + [True] * (len(found) - 2)
    fewer = run_card(asker, {"plain": sets["plain"].some(3)}, model="one")
    with pytest.raises(InputError, match="plain: one was asked 3 items and other 5"):
        list(rows(fewer, other))


def test_a_card_without_shares_is_written_without_a_picture(asker, sets, tmp_path):
    save(run_card(asker, {"read": sets["read"]}, model="tiny"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["card.md"]


def test_points_of_a_picture_stand_inside_its_frame(asker, sets):
    axes = draw(run_card(asker, {"plain": sets["plain"]}, model="tiny")).axes[0]  # two rows, of 0 %
    assert axes.get_ylim() == (1.5, -0.5) and axes.get_xlim()[0] < 0 and axes.get_xlim()[1] > 100


def test_a_file_that_is_no_card_is_told(tmp_path):
    (tmp_path / CARD_FILE).write_text('{"sets": {"x": {}}}')
    with pytest.raises(InputError, match="no score card"):
        Card.load(tmp_path)


def test_some_items_are_spread_evenly_and_the_same_each_time():
    held = HeldOut("x", "x", "question", [Sample(str(n), "?", group=str(n)) for n in range(100)])
    assert [s.key for s in held.some(4).samples] == ["0", "25", "50", "75"] and len(held.some(None)) == 100
    assert len(held.some(500)) == 100 and np.unique([s.mark for s in held.samples]).size == 100
