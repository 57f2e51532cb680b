"""experiments.fusion_ways: three ways from one text model, under the same conditions, counted and in a table."""

from functools import partial

import pytest
import torch
from rich.console import Console

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
    """With the eye that is used, of 384 numbers a patch: 1.15 million, within 2 %."""
    with torch.device("meta"):
        vision = VisionTower(VisionConfig.dinov2_small())
        towers = Towers(vision, AudioEncoder(MultimodalConfig.tiny().audio), ImageProcessor.dinov2())
        cfg = fusion.small_config(towers, audio=None)
        text = fusion.Llama3Model(cfg.text)
        added = {name: fusion.build_way(name, text, None, towers).n_parameters for name in fusion.WAYS}
    assert all(abs(n / 1.15e6 - 1) < 0.02 for n in added.values()), added
    by_hand = {
        # two linears of width 640 behind 4 x 384 numbers; start and end
        "projection": (1536 * 640 + 640) + (640 * 256 + 256) + 2 * 256,
        # two linears of width 720; start and end; four prompts; two norms; q and o, k and v of two heads of 32, their
        # norms; two gates; a feed-forward of 672
        "cross-attention": (384 * 720 + 720) + (720 * 256 + 256) + 2 * 256 + 4 * 256 + 2 * 256 + 2 * 256 * 256
        + 2 * 64 * 256 + 2 * 32 + 2 + 3 * 256 * 672,
        # one linear; start and end; eight latents; three norms; q, k, v, o; a feed-forward of 1024; a norm behind
        "perceiver": (384 * 256 + 256) + 2 * 256 + 8 * 256 + 3 * 256 + 4 * 256 * 256 + 3 * 256 * 1024 + 256,
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


def test_a_line_for_each_way(compared, tasks):
    ways, _, _ = compared
    ways[0].right = {"questions": 2}  # of 3
    console = Console(width=140)
    with console.capture() as captured:
        console.print(fusion.comparison(ways, tasks))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in captured.get().splitlines() if "│" in line]
    assert [line[0] for line in lines] == list(fusion.WAYS)
    for way, line in zip(ways, lines, strict=True):
        share = f"{way.right['questions'] / 3:.1%}"
        assert line[1:] == [f"{way.n_parameters:,}", str(way.n_tokens), str(way.n_seen), f"{way.seconds:.0f}", share]
    assert lines[0][-1] == "66.7%"


def test_the_whole_comparison(towers, monkeypatch):
    pixels = torch.randint(256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    train = Questions(pixels, ["what colour?", "is it?", "what shape?"], ["red", "yes", "circle"], [0, 1, 2])
    test = Questions(pixels[:2], ["what colour?", "is it?"], ["red", "no"], [1, 0])
    monkeypatch.setattr(fusion, "load_towers", lambda _device: towers)
    monkeypatch.setattr(fusion, "fetch", str)
    monkeypatch.setattr(fusion, "load_questions", lambda _folder: (train, test))
    lines = []
    ways, tasks = fusion.run_comparison(steps=2, read=2, say=lines.append)
    assert [way.name for way in ways] == list(fusion.WAYS) and all(len(way.curve) == 2 for way in ways)
    assert lines == ["looking at 3 pictures", "looking at 2 pictures", "learning to read: 2 steps"]
    with torch.no_grad():
        expected = towers.vision(towers.image_processor(list(pixels[:2])), layer=-4, cls=False)
    assert torch.allclose(tasks.test["questions"].features.images.float(), expected, atol=4e-3)
    assert all(0 <= way.right["questions"] <= 2 for way in ways)
