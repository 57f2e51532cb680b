"""evals.senses: what counts as right, controls, baselines, a saved model measured."""

from dataclasses import replace

import pytest
import torch
from rich.console import Console

from llamamm import Llama3Model, TextConfig, generate, save_pretrained
from llamamm.errors import CheckpointError
from llamamm.evals import senses as eval_senses
from llamamm.evals.senses import Score, baselines, controls, count_right, measure, measure_saved, misled, table
from llamamm.multimodal.model import Features
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.senses.image_processor import ImageProcessor
from llamamm.tasks.items import Item, Task, Tasks, texts_of
from llamamm.train.losses import IGNORE
from llamamm.train.stages import run_stage
from llamamm.train.tokenizer import train_tokenizer
from tests.small_tasks import MODES, TASKS, TUNE, build, encoder_of


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(texts_of(Tasks(TASKS, {})), tmp_path_factory.mktemp("tokenizer"), vocab_size=320)


@pytest.fixture(scope="module", params=MODES.values(), ids=MODES)
def taught(request, tokenizer):
    """(model, encoder, losses): trained on pictures and sounds."""
    model = build(tokenizer, request.param)
    encoder = encoder_of(model, tokenizer)
    curve = run_stage(model, encoder, TASKS, TUNE, batch_size=6, shares=dict.fromkeys(TASKS, 1.0))
    return model.eval(), encoder, curve


def answered_by_writing(model, encoder, task, version="shown"):
    """How many items are right where each answer is written token by token, alone."""
    right = 0
    for n in range(len(task)):
        seen = encoder.batch(task, [n], version).inputs("cpu")
        ids, targets, features = seen["ids"], seen["targets"], seen.get("features")
        wanted = targets[targets != IGNORE]
        begin = int((targets[0] != IGNORE).nonzero()[0]) + 1
        inputs = {} if features is None else {"features": features}
        written = generate(model, ids[:, :begin], len(wanted), inputs=inputs)[0, begin:]
        right += torch.equal(written, wanted)
    return right


def with_wrong_answers(task):
    """Every second answer replaced by that of the item before, and one cut short."""
    items = [item if n % 2 == 0 else replace(item, answer=task.items[n - 1].answer)
             for n, item in enumerate(task.items)]  # fmt: skip
    longer = replace(task.items[0], answer=task.items[0].answer + " circle")
    return replace(task, items=[*items, longer])


@torch.no_grad()
@pytest.mark.parametrize("kind", TASKS)
def test_what_is_counted_is_what_writing_one_by_one_gets_right(taught, kind):
    model, encoder, _ = taught
    task = TASKS[kind]
    assert count_right(model, encoder, task) == len(task) == answered_by_writing(model, encoder, task)
    mixed = with_wrong_answers(task)
    expected = answered_by_writing(model, encoder, mixed)
    assert 0 < expected < len(mixed)
    for batch_size in (1, 2, 64):
        assert count_right(model, encoder, mixed, batch_size=batch_size) == expected
    for version in ("told", "blind"):
        expected = answered_by_writing(model, encoder, mixed, version)
        assert count_right(model, encoder, mixed, version=version) == expected


def test_counting_leaves_the_model_ready_to_answer(taught):
    model, encoder, _ = taught
    model.train()
    count_right(model, encoder, TASKS["word"])
    assert not model.training


def test_misled_items_ask_the_same_of_other_pictures():
    items = [Item(f"q{n}", f"a{n}", n, f"w{n}", 100 + n) for n in range(30)]
    task = Task("x", items, Features(torch.zeros(30, 1, 1)))
    other = misled(task)
    assert [replace(i, row=0) for i in other.items] == [replace(i, row=0) for i in items]
    rows = [i.row for i in other.items]
    assert sorted(rows) == list(range(30)) and sum(r == n for n, r in enumerate(rows)) < 10
    assert rows == [i.row for i in misled(task).items] != [i.row for i in misled(task, 1).items]
    assert [i.row for i in items] == list(range(30)) and other.features is task.features


def test_a_model_that_looks_falls_for_another_picture(taught):
    model, encoder, _ = taught
    blind, other = controls(model, encoder, TASKS["vqa"])
    rows = [item.row for item in misled(TASKS["vqa"]).items]
    assert other == Score("questions", "another's picture", sum(r == n for n, r in enumerate(rows)), 4)
    assert blind.how == "no picture" and blind.n == 4 and blind.right <= 1  # one question, four answers


def test_answers_that_look_at_nothing_by_hand():
    learned = [("blue?", "no"), ("blue?", "no"), ("blue?", "yes"), ("red?", "yes"), ("shape?", "circle"),
               ("shape?", "circle"), ("shape?", "yes")]  # fmt: skip
    asked = [("blue?", "no"), ("red?", "yes"), ("red?", "no"), ("shape?", "circle"), ("shape?", "yes"), ("new?", "yes")]
    train, test = (Task("vqa", [Item(q, a, 0) for q, a in some], Features()) for some in (learned, asked))
    # yes is said 3 times, oftener than no and circle, and is right of 3; by text: no, yes, circle, and yes where the
    # text is new
    assert baselines(Tasks({"vqa": train}, {"questions": test})) == [
        Score("questions", "commonest answer", 3, 6), Score("questions", "commonest for the text", 4, 6),
    ]  # fmt: skip


def test_a_line_for_each_score(taught):
    model, encoder, _ = taught
    scores = measure(model, encoder, {"a": TASKS["vqa"], "b": TASKS["word"]}, how="now")
    assert scores == [Score("a", "now", 4, 4), Score("b", "now", 2, 2)]
    scores.append(Score("c", "later", 1, 3))
    shown, console = table(scores), Console(width=100)
    with console.capture() as captured:
        console.print(shown)
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in captured.get().splitlines() if "│" in line]
    assert lines == [["a", "now", "4", "4", "100.0% (51.0% to 100.0%)"],
                     ["b", "now", "2", "2", "100.0% (34.2% to 100.0%)"],
                     ["c", "later", "3", "1", "33.3% (6.1% to 79.2%)"]]  # fmt: skip


ALL = Tasks(TASKS, {"questions": TASKS["vqa"], "people": TASKS["word"]})


def test_a_saved_model_is_measured_and_others_are_refused(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(eval_senses, "load_tasks", lambda *_args, **_options: ALL)
    images = ImageProcessor.vit(32)

    def save(name, changes=None, *, words=True):
        model = build(tokenizer, changes)
        eye = None if changes and "vision" in changes else images
        processor = MultimodalProcessor(model.multimodal_cfg, tokenizer, eye) if words else None
        save_pretrained(model, tmp_path / name, processor=processor)
        return tmp_path / name

    scores = measure_saved(save("whole"))
    assert [(s.what, s.how) for s in scores] == [
        ("questions", "commonest answer"), ("questions", "commonest for the text"), ("questions", "as saved"),
        ("people", "as saved"), ("questions", "no picture"), ("questions", "another's picture"),
    ]  # fmt: skip
    text = Llama3Model(TextConfig.tiny(vocab_size=tokenizer.vocab_size))
    save_pretrained(text, tmp_path / "text", tokenizer=tokenizer)
    others = save("eye", {"audio": None}), save("ear", {"vision": None}), save("mute", words=False), tmp_path / "text"
    for folder in others:
        with pytest.raises(CheckpointError, match=rf"{folder.name} holds no model .*experiment senses"):
            measure_saved(folder)
