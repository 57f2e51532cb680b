"""train.stages: what a stage trains, what counts as right, controls, baselines, the whole plan."""

from dataclasses import replace

import llamamm.multimodal_training as training
import pytest
import torch
from rich.console import Console

from llamamm import AudioEncoder, Llama3Model, TextConfig, VisionTower, generate, save_pretrained
from llamamm.errors import CheckpointError, ConfigError
from llamamm.evals.senses import Score
from llamamm.experiments.small_multimodal import Towers
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import Features, MultimodalLlama
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.senses.image_processor import ImageProcessor
from llamamm.tasks.items import WORD, Item, Task, Tasks, both_items, texts_of
from llamamm.train.losses import IGNORE
from llamamm.train.media_rows import Encoder
from llamamm.train.stages import Stage
from llamamm.train.tokenizer import train_tokenizer

COLOURS, SPOKEN = ("red", "blue", "green", "gray"), ("seven", "go")


def make_tasks():
    """Four pictures and two sounds, of 5 and 9 places, whose features say what they are; a question about each."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 1, 32, generator=generator).expand(-1, 16, -1).half()
    sounds = torch.randn(2, 1, 32, generator=generator).expand(-1, 9, -1).half()
    mask = torch.arange(9) < torch.tensor([[5], [9]])
    seen = [Item("which colour?", colour, row, f"a {colour} circle") for row, colour in enumerate(COLOURS)]
    heard = [Item(WORD, word, row, word) for row, word in enumerate(SPOKEN)]
    return {"vqa": Task("vqa", seen, Features(images)),
            "word": Task("word", heard, Features(sounds=sounds, sound_mask=mask)),
            "both": Task("both", both_items(seen, heard), Features(images, sounds, mask))}  # fmt: skip


TASKS = make_tasks()
MODES = {"spliced": {}, "cross": {"cross_layers": (1,), "n_prompts": 2}}
modes = pytest.mark.parametrize("changes", MODES.values(), ids=MODES)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(texts_of(Tasks(TASKS, {})), tmp_path_factory.mktemp("tokenizer"), vocab_size=320)


def build(tokenizer, changes=None, seed=0):
    torch.manual_seed(seed)
    text = TextConfig.tiny(vocab_size=tokenizer.vocab_size)
    return MultimodalLlama(MultimodalConfig.tiny(text=text, **(changes or {})))


def encoder_of(model, tokenizer):
    return Encoder(model.multimodal_cfg, tokenizer)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


TUNE = Stage("tune", "shown", 120, text=True, bridges=True, learning_rate=5e-3)


@pytest.fixture(scope="module", params=MODES.values(), ids=MODES)
def taught(request, tokenizer):
    """(model, encoder, losses): trained on pictures and sounds."""
    model = build(tokenizer, request.param)
    encoder = encoder_of(model, tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "SHARES", dict.fromkeys(TASKS, 1.0))
        curve = training.train_stage(model, encoder, TASKS, TUNE, batch_size=6)
    return model.eval(), encoder, curve


# ---- training ----


def test_three_stages():
    assert [(s.name, s.version, s.steps, s.text, s.bridges) for s in training.stages(1, 2, 3)] == [
        ("read", "told", 1, True, False), ("align", "shown", 2, False, True), ("tune", "shown", 3, True, True),
    ]  # fmt: skip


@modes
@pytest.mark.parametrize("stage", training.stages(2, 2, 2), ids=lambda stage: stage.name)
def test_a_stage_trains_what_it_says_and_the_rest_stays_bit_for_bit(tokenizer, stage, changes):
    model = build(tokenizer, changes)
    before = weights(model)
    training.train_stage(model, encoder_of(model, tokenizer), {"both": TASKS["both"]}, stage, batch_size=4)
    trained = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    expected = {"embed_tokens", "layers", "norm", "lm_head"} if stage.text else set()
    if stage.bridges:
        expected |= {"image_bridge", "audio_bridge"} | ({"gated"} if changes else set())
    assert trained == expected
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == expected - {"lm_head"}
    assert model.training and model.lm_head.weight is model.embed_tokens.weight


def test_the_seed_decides_all_and_only_that(tokenizer):
    def trained(seed, noise):
        model = build(tokenizer)
        torch.manual_seed(noise)
        state = torch.random.get_rng_state()
        curve = training.train_stage(model, encoder_of(model, tokenizer), TASKS, replace(TUNE, steps=6), seed=seed,
                                     batch_size=3)  # fmt: skip
        assert torch.equal(state, torch.random.get_rng_state())
        return curve, weights(model)

    (curve, first), (same, second), (other, _) = trained(1, 5), trained(1, 6), trained(2, 5)
    assert curve == same != other
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_falls_to_nothing_where_features_say_the_answer(taught):
    _, _, curve = taught
    assert len(curve) == TUNE.steps
    assert sum(curve[:5]) / 5 > 3 and sum(curve[-20:]) / 20 < 0.1


def test_the_loss_is_that_of_the_learned_tokens(tokenizer):
    model = build(tokenizer)
    encoder, losses = encoder_of(model, tokenizer), []
    ids, targets, features = encoder.batch(TASKS["word"], [0, 1], "shown")
    with torch.no_grad():
        logits = model(ids, features=features)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    curve = training.train_stage(model, encoder, {"word": TASKS["word"]}, replace(TUNE, steps=1), batch_size=2,
                                 on_step=lambda *step: losses.append(step))  # fmt: skip
    assert losses == [(0, curve[0])] and curve[0] == pytest.approx(expected.item(), abs=1e-5)


class Listening(Encoder):
    """Notes what it is asked for."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = []

    def batch(self, task, chosen, version):
        self.asked.append((task.name, version, len(chosen)))
        return super().batch(task, chosen, version)


def test_kinds_come_by_their_shares_and_some_questions_blind(tokenizer, monkeypatch):
    monkeypatch.setattr(training, "SHARES", {"vqa": 0.6, "word": 0.2, "both": 0.0, "caption": 9.0})
    model = build(tokenizer)
    encoder = Listening(model.multimodal_cfg, tokenizer)
    read = Stage("read", "told", 120, text=True, bridges=False)
    training.train_stage(model, encoder, TASKS, read, batch_size=1)
    kinds = [kind for kind, _, _ in encoder.asked]
    assert 75 <= kinds.count("vqa") <= 105 and kinds.count("vqa") + kinds.count("word") == 120  # 3 in 4
    blind = [version for kind, version, _ in encoder.asked if kind == "vqa"].count("blind")
    assert 0.12 < blind / kinds.count("vqa") < 0.4  # BLIND
    assert {version for kind, version, _ in encoder.asked if kind == "word"} == {"told"}
    encoder.asked.clear()
    training.train_stage(model, encoder, TASKS, replace(TUNE, steps=20), batch_size=2)
    assert {version for _, version, _ in encoder.asked} == {"shown"} and {n for _, _, n in encoder.asked} == {2}


def test_no_steps_change_nothing_and_nothing_to_train_is_refused(tokenizer):
    model = build(tokenizer).eval()
    encoder = encoder_of(model, tokenizer)
    assert training.train_stage(model, encoder, TASKS, replace(TUNE, steps=0)) == [] and not model.training
    with pytest.raises(ConfigError, match="no parameter trains"):
        training.train_stage(model, encoder, TASKS, replace(TUNE, text=False, bridges=False))


# ---- measurement ----


def answered_by_writing(model, encoder, task, version="shown"):
    """How many items are right where each answer is written token by token, alone."""
    right = 0
    for n in range(len(task)):
        ids, targets, features = encoder.batch(task, [n], version)
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
    assert training.count_right(model, encoder, task) == len(task) == answered_by_writing(model, encoder, task)
    mixed = with_wrong_answers(task)
    expected = answered_by_writing(model, encoder, mixed)
    assert 0 < expected < len(mixed)
    for batch_size in (1, 2, 64):
        assert training.count_right(model, encoder, mixed, batch_size=batch_size) == expected
    for version in ("told", "blind"):
        expected = answered_by_writing(model, encoder, mixed, version)
        assert training.count_right(model, encoder, mixed, version=version) == expected


def test_counting_leaves_the_model_ready_to_answer(taught):
    model, encoder, _ = taught
    model.train()
    training.count_right(model, encoder, TASKS["word"])
    assert not model.training


def test_misled_items_ask_the_same_of_other_pictures():
    items = [Item(f"q{n}", f"a{n}", n, f"w{n}", 100 + n) for n in range(30)]
    task = Task("x", items, Features(torch.zeros(30, 1, 1)))
    other = training.misled(task)
    assert [replace(i, row=0) for i in other.items] == [replace(i, row=0) for i in items]
    rows = [i.row for i in other.items]
    assert sorted(rows) == list(range(30)) and sum(r == n for n, r in enumerate(rows)) < 10
    assert rows == [i.row for i in training.misled(task).items] != [i.row for i in training.misled(task, 1).items]
    assert [i.row for i in items] == list(range(30)) and other.features is task.features


def test_a_model_that_looks_falls_for_another_picture(taught):
    model, encoder, _ = taught
    blind, other = training.controls(model, encoder, TASKS["vqa"])
    rows = [item.row for item in training.misled(TASKS["vqa"]).items]
    assert other == Score("questions", "another's picture", sum(r == n for n, r in enumerate(rows)), 4)
    assert blind.how == "no picture" and blind.n == 4 and blind.right <= 1  # one question, four answers


def test_answers_that_look_at_nothing_by_hand():
    learned = [("blue?", "no"), ("blue?", "no"), ("blue?", "yes"), ("red?", "yes"), ("shape?", "circle"),
               ("shape?", "circle"), ("shape?", "yes")]  # fmt: skip
    asked = [("blue?", "no"), ("red?", "yes"), ("red?", "no"), ("shape?", "circle"), ("shape?", "yes"), ("new?", "yes")]
    train, test = (Task("vqa", [Item(q, a, 0) for q, a in some], Features()) for some in (learned, asked))
    # yes is said 3 times, oftener than no and circle, and is right of 3; by text: no, yes, circle, and yes where the
    # text is new
    assert training.baselines(Tasks({"vqa": train}, {"questions": test})) == [
        Score("questions", "commonest answer", 3, 6), Score("questions", "commonest for the text", 4, 6),
    ]  # fmt: skip


def test_a_line_for_each_score(taught):
    model, encoder, _ = taught
    scores = training.measure(model, encoder, {"a": TASKS["vqa"], "b": TASKS["word"]}, how="now")
    assert scores == [Score("a", "now", 4, 4), Score("b", "now", 2, 2)]
    scores.append(Score("c", "later", 1, 3))
    shown, console = training.table(scores), Console(width=100)
    with console.capture() as captured:
        console.print(shown)
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in captured.get().splitlines() if "│" in line]
    assert lines == [["a", "now", "4", "4", "100.0%"], ["b", "now", "2", "2", "100.0%"],
                     ["c", "later", "3", "1", "33.3%"]]  # fmt: skip


# ---- all of it ----


@pytest.fixture(scope="module")
def towers():
    torch.manual_seed(0)
    cfg = MultimodalConfig.tiny()
    return Towers(VisionTower(cfg.vision).eval(), AudioEncoder(cfg.audio).eval(), ImageProcessor.vit(32))


def tiny_config(towers, *, vocab_size=512):
    text = TextConfig.tiny(vocab_size=vocab_size)
    return MultimodalConfig.tiny(text=text, vision=towers.vision.cfg, audio=towers.audio.cfg)


PLAN = training.stages(3, 2, 4)
ALL = Tasks(TASKS, {"questions": TASKS["vqa"], "people": TASKS["word"]})


def test_the_whole_plan(towers):
    torch.manual_seed(3)
    state, frozen = torch.random.get_rng_state(), [weights(t) for t in (towers.vision, towers.audio)]
    steps, lines = [], []
    done = training.train_small(plan=PLAN, towers=towers, tasks=ALL, config=tiny_config, say=lines.append,
                                on_step=lambda *step: steps.append(step))  # fmt: skip
    assert torch.equal(state, torch.random.get_rng_state())
    assert {name: len(curve) for name, curve in done.curves.items()} == {"read": 3, "align": 2, "tune": 4}
    assert steps == [(name, n, loss) for name, curve in done.curves.items() for n, loss in enumerate(curve)]
    assert [(s.what, s.how, s.n) for s in done.scores] == [
        ("questions", "commonest answer", 4), ("questions", "commonest for the text", 4),
        ("questions", "after read: no picture", 4),
        ("questions", "after align", 4), ("people", "after align", 2),
        ("questions", "after tune", 4), ("people", "after tune", 2),
        ("questions", "no picture", 4), ("questions", "another's picture", 4),
    ]  # fmt: skip
    assert set(done.seconds) == {"features", "read", "align", "tune", "measuring"} and len(lines) == 3
    assert not done.model.training and done.model.vision_tower is towers.vision
    for tower, before in zip((towers.vision, towers.audio), frozen, strict=True):
        assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())
    assert done.model.cfg.vocab_size == done.processor.tokenizer.vocab_size
    prompt = done.processor.chat([{"role": "user", "content": "which colour?"}])
    assert max(prompt.ids) < done.model.cfg.vocab_size

    again = training.train_small(plan=PLAN, towers=towers, tasks=ALL, config=tiny_config)
    other = training.train_small(plan=PLAN, towers=towers, tasks=ALL, config=tiny_config, seed=1)
    assert again.curves == done.curves and again.scores == done.scores
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in done.model.state_dict().items())
    assert other.curves["read"] != done.curves["read"]


def test_the_small_shape(towers):
    audio, vision = towers.audio.cfg, VisionTower(MultimodalConfig.tiny().vision).cfg
    deep = replace(vision, patch_size=14, image_size=84, encoder=replace(vision.encoder, n_layers=4))
    with torch.device("meta"):
        cfg = training.small_config(Towers(VisionTower(deep), towers.audio, towers.images), vocab_size=300)
        text = Llama3Model(cfg.text)
    assert cfg.vision == deep and cfg.audio == audio and cfg.text.vocab_size == 300
    assert cfg.grid == (6, 6) and cfg.n_image_tokens() == 9 and cfg.image_layer == -4
    # 300 x 256 embeddings; a block: 2 x 256^2 and 2 x 256 x 64, 3 x 256 x 672, two norms; the last norm
    assert sum(p.numel() for p in text.parameters()) == 300 * 256 + 2 * (163_840 + 516_096 + 512) + 256


def test_a_saved_model_is_measured_and_others_are_refused(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "load_tasks", lambda *_args, **_options: ALL)
    images = ImageProcessor.vit(32)

    def save(name, changes=None, *, words=True):
        model = build(tokenizer, changes)
        eye = None if changes and "vision" in changes else images
        processor = MultimodalProcessor(model.multimodal_cfg, tokenizer, eye) if words else None
        save_pretrained(model, tmp_path / name, processor=processor)
        return tmp_path / name

    scores = training.measure_saved(save("whole"))
    assert [(s.what, s.how) for s in scores] == [
        ("questions", "commonest answer"), ("questions", "commonest for the text"), ("questions", "as saved"),
        ("people", "as saved"), ("questions", "no picture"), ("questions", "another's picture"),
    ]  # fmt: skip
    for folder in (save("eye", {"audio": None}), save("ear", {"vision": None}), save("mute", words=False)):
        with pytest.raises(CheckpointError, match=rf"{folder.name} holds no model .*train-multimodal"):
            training.measure_saved(folder)
    text = Llama3Model(TextConfig.tiny(vocab_size=tokenizer.vocab_size))
    save_pretrained(text, tmp_path / "text", tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="'llama'; a model with eyes and ears"):
        training.measure_saved(tmp_path / "text")
