"""experiments.fusion_ways: three ways from one text model, under the same conditions, and counted."""

from functools import partial

import pytest
import torch

from llamamm import AudioEncoder, VisionTower
from llamamm.assets.easy_vqa import Questions
from llamamm.experiments import fusion_ways as fusion
from llamamm.experiments.small_multimodal import Towers
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import Features
from llamamm.senses.config import EncoderConfig, VisionConfig
from llamamm.senses.image_processor import ImageProcessor
from llamamm.tasks.items import Item, Task, Tasks
from llamamm.train.media_rows import RowMaker

COLOURS = ("red", "blue", "green", "gray")
ADDED = ("image_bridge", "gated")


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def text_part(model):
    return {name: value for name, value in weights(model).items() if not name.startswith((*ADDED, "vision_tower"))}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    """Of 4 items, not 32: as good for four pictures, and faster."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion, "run_stage", partial(fusion.run_stage, batch_size=4))
        yield


@pytest.fixture(scope="module")
def towers():
    """An eye of 6 x 6 patches, as deep as the configuration asks for."""
    torch.manual_seed(0)
    vision = VisionTower(VisionConfig.tiny(encoder=EncoderConfig(32, 64, 4, 4), patch_size=14, image_size=84)).eval()
    return Towers(vision, AudioEncoder(MultimodalConfig.tiny().audio), ImageProcessor.vit(84))


@pytest.fixture(scope="module")
def tasks():
    """Four pictures whose features say what they are."""
    images = torch.randn(4, 1, 32, generator=torch.Generator().manual_seed(0)).expand(-1, 36, -1).half()
    items = [Item("which colour?", colour, row, f"a {colour} circle") for row, colour in enumerate(COLOURS)]
    return Tasks({"vqa": Task("vqa", items, Features(images))},
                 {"questions": Task("vqa", items[:3], Features(images))})  # fmt: skip


@pytest.fixture(scope="module")
def reader(tasks, towers, tmp_path_factory):
    """(text model, tokenizer)."""
    return fusion.reading_model(tasks, towers, tmp_path_factory.mktemp("words"), steps=20)


@pytest.fixture(scope="module")
def compared(reader, towers, tasks):
    """(ways, their steps, the text model's weights before)."""
    before, steps = weights(reader[0]), []
    ways = fusion.compare(*reader, towers, tasks, steps=8, on_step=lambda *step: steps.append(step))
    return ways, steps, before


def test_the_text_model_has_learned_to_read(reader, towers, tasks, tmp_path):
    text, tokenizer = reader
    before = fusion.reading_model(tasks, towers, tmp_path, steps=0)[0]
    assert text.cfg == fusion.text_shape(tokenizer.vocab_size)
    rows = RowMaker(fusion.small_config(towers, text=text.cfg, audio=None), tokenizer)
    batch = rows.batch(tasks.train["vqa"], range(4), "told")
    ids, targets = batch.ids, batch.targets
    losses = [torch.nn.functional.cross_entropy(m(ids).flatten(0, 1), targets.flatten()) for m in (before, text)]
    assert losses[1] < losses[0] / 2
    assert text.cfg.vocab_size == tokenizer.vocab_size <= 512


def test_reading_shows_no_pictures(tasks, towers, tmp_path, monkeypatch):
    versions, batch = [], RowMaker.batch
    monkeypatch.setattr(RowMaker, "batch", lambda self, task, chosen, version: versions.append(version)
                        or batch(self, task, chosen, version))  # fmt: skip
    fusion.reading_model(tasks, towers, tmp_path, steps=12)
    assert len(versions) == 12 and set(versions) == {"told", "blind"}


def test_reading_is_decided_by_the_seed(tasks, towers, tmp_path):
    def read(seed, noise):
        torch.manual_seed(noise)  # what the caller draws from has no say, and is left as it was
        state = torch.random.get_rng_state()
        found = weights(fusion.reading_model(tasks, towers, tmp_path, steps=2, seed=seed)[0])
        assert torch.equal(state, torch.random.get_rng_state())
        return found

    first = read(1, 5)
    assert equal(first, read(1, 6)) and not equal(first, read(2, 5))


@pytest.mark.parametrize("name", fusion.WAYS)
def test_a_way_starts_from_a_copy_of_the_text_model(reader, towers, name):
    text, tokenizer = reader
    before, state = weights(text), torch.random.get_rng_state()
    way, same, other = (fusion.build_way(name, text, tokenizer, towers, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert equal(text_part(way.model), before) and equal(text_part(other.model), before)
    assert equal(weights(way.model), weights(same.model)) and not equal(weights(way.model), weights(other.model))
    assert way.model.vision_tower is towers.vision
    with torch.no_grad():
        for parameter in way.model.parameters():
            if parameter.requires_grad or parameter is way.model.embed_tokens.weight:
                parameter.add_(1)
    assert equal(weights(text), before)
    added = sum(p.numel() for n, p in way.model.named_parameters() if n.startswith(ADDED))
    assert way.n_parameters == added > 0


def test_each_way_adds_about_as_many_parameters():
    """With the eye that is used, of 384 numbers a patch: 313 thousand, within 1 %."""
    with torch.device("meta"):
        vision = VisionTower(VisionConfig.dinov2_small())
        towers = Towers(vision, AudioEncoder(MultimodalConfig.tiny().audio), ImageProcessor.dinov2())
        text = fusion.Llama3Model(fusion.text_shape(512))
        added = {name: fusion.build_way(name, text, None, towers).n_parameters for name in fusion.WAYS}
    assert all(abs(n / 313e3 - 1) < 0.01 for n in added.values()), added
    by_hand = {
        # two linears of width 188 after 4 x 384 numbers; start and end
        "projection": (1536 * 188 + 188) + (188 * 128 + 128) + 2 * 128,
        # two linears of width 260; start and end; four prompts; two norms; q and o, k and v of two heads of 32, their
        # norms; two gates; a feed-forward of 336
        "cross-attention": (384 * 260 + 260) + (260 * 128 + 128) + 2 * 128 + 4 * 128 + 2 * 128 + 2 * 128 * 128
        + 2 * 64 * 128 + 2 * 32 + 2 + 3 * 128 * 336,
        # one linear; start and end; eight latents; three norms; q, k, v, o; a feed-forward of 512; a last norm
        "perceiver": (384 * 128 + 128) + 2 * 128 + 8 * 128 + 3 * 128 + 4 * 128 * 128 + 3 * 128 * 512 + 128,
    }  # fmt: skip
    assert added == by_hand


def test_what_a_picture_takes_in_each_way(compared, tasks):
    """36 features: 9 tokens, a start and an end; one place from which all are seen; 8 latents, a start and an end."""
    ways, _, _ = compared
    assert {way.name: (way.n_tokens, way.n_seen) for way in ways} == {
        "projection": (11, 9), "cross-attention": (1, 36), "perceiver": (10, 8),
    }  # fmt: skip
    for way in ways:
        ids = way.encoder.batch(tasks.train["vqa"], [0], "shown").ids
        assert (ids == way.model.multimodal_cfg.image_token).sum() == way.n_tokens


def test_every_way_is_trained_and_measured_and_the_original_left_alone(compared, reader, towers, tasks):
    ways, steps, before = compared
    assert equal(weights(reader[0]), before)
    assert [way.name for way in ways] == list(fusion.WAYS)
    assert steps == [(way.name, n, loss) for way in ways for n, loss in enumerate(way.curve)] and len(steps) == 24
    for way in ways:
        assert way.curve[-1] < way.curve[0] and way.seconds > 0 and not way.model.training
        assert not equal(text_part(way.model), before)  # text and bridges learn together
        assert way.right == {"questions": fusion.count_right(way.model, way.encoder, tasks.test["questions"])}
        assert way.model.vision_tower is towers.vision
    again = fusion.compare(*reader, towers, tasks, steps=8, names=["perceiver"])
    assert len(again) == 1 and again[0].curve == ways[2].curve  # whatever was trained before it


def test_all_ways_see_the_same_items_in_the_same_order(reader, towers, tasks, monkeypatch):
    seen, batch = [], RowMaker.batch
    monkeypatch.setattr(RowMaker, "batch", lambda self, task, chosen, version: seen.append((list(chosen), version))
                        or batch(self, task, chosen, version))  # fmt: skip
    fusion.compare(*reader, towers, tasks, steps=3)
    each = len(seen) // 3
    assert seen[:each] == seen[each : 2 * each] == seen[2 * each :] and {version for _, version in seen} == {"shown"}


def test_gates_are_noted_at_each_step(compared):
    ways, _, _ = compared
    projection, crossing, perceiver = ways
    assert projection.gates == perceiver.gates == []
    assert len(crossing.gates) == 8
    (block,) = crossing.model.gated.values()
    last = block.cross_attn_attn_gate.tanh().item(), block.cross_attn_mlp_gate.tanh().item()
    assert crossing.gates[-1] == last and 0 not in last
    assert all(0 < abs(gate) < 0.1 for gate in crossing.gates[0])  # a step after being closed
    assert crossing.gates[0] != crossing.gates[-1]


def test_text_frozen_stays_as_it_is_and_what_was_added_learns(reader, towers, tasks):
    before = weights(reader[0])
    for way in fusion.compare(*reader, towers, tasks, steps=4, tune_text=False):
        fresh = fusion.build_way(way.name, *reader, towers)
        assert equal(text_part(way.model), before)
        added = {n: v for n, v in weights(way.model).items() if n.startswith(ADDED)}
        assert not equal(added, {n: v for n, v in weights(fresh.model).items() if n.startswith(ADDED)})


def test_each_way_has_its_own_rate(reader, towers, tasks, monkeypatch):
    stages, run = [], fusion.run_stage
    monkeypatch.setattr(fusion, "run_stage", lambda *args, **options: stages.append(args[3]) or run(*args, **options))
    fusion.compare(*reader, towers, tasks, steps=1, rates={"projection": 4e-3, "perceiver": 5e-4}, tune_text=False)
    assert [(s.name, s.learning_rate, s.text) for s in stages] == [
        ("projection", 4e-3, False), ("cross-attention", 1e-3, False), ("perceiver", 5e-4, False)]  # fmt: skip


def easy_vqa(n_train, n_test):
    """(train, test) as `load_questions` gives them: two questions a picture, of which one is not yes or no."""
    sides = []
    for n in (n_train, n_test):
        pixels = torch.randint(256, (n, 3, 64, 64), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
        pairs = [pair for i in range(n) for pair in (("what colour?", COLOURS[i % 4]), ("is it?", "yes"))]
        sides.append(Questions(pixels, *map(list, zip(*pairs, strict=True)), [i for i in range(n) for _ in range(2)]))
    return sides


def test_three_parts_that_share_no_picture(towers, monkeypatch):
    train, test = easy_vqa(9, 4)
    monkeypatch.setattr(fusion, "fetch", str)
    monkeypatch.setattr(fusion, "load_questions", lambda _folder: (train, test))
    lines = []
    tasks = fusion.fusion_tasks(towers, n_train=5, n_validation=3, n_test=2, say=lines.append)
    assert lines == ["looking at 5 pictures", "looking at 3 pictures", "looking at 2 pictures"]
    parts = {"vqa": tasks.train["vqa"], **tasks.test}
    assert {name: len(task) for name, task in parts.items()} == {"vqa": 5, "validation": 3, "test": 2}
    with torch.no_grad():
        for name, pixels in (("vqa", train.pixels[:5]), ("validation", train.pixels[5:8]), ("test", test.pixels[:2])):
            expected = towers.vision(towers.image_processor(list(pixels)), layer=-4, cls=False)
            assert torch.allclose(parts[name].features.images.float(), expected, atol=4e-3)
            assert [item.row for item in parts[name].items] == list(range(len(pixels)))
    assert [item.answer for item in parts["validation"].items] == ["blue", "green", "gray"]  # pictures 5, 6 and 7
    assert all(item.question == "what colour?" for task in parts.values() for item in task.items)
    rest = fusion.fusion_tasks(towers, n_train=5, n_validation=0)
    assert list(rest.test) == ["test"] and len(rest.test["test"]) == 4
