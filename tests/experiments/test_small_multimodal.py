"""experiments.small_multimodal: the plan of three stages, the small shape, all of it on tiny towers."""

from dataclasses import replace

import pytest
import torch

from llamamm import AudioEncoder, Llama3Model, TextConfig, VisionTower
from llamamm.experiments.small_multimodal import Towers, small_config, stages, train_small
from llamamm.multimodal.config import MultimodalConfig
from llamamm.senses.image_processor import ImageProcessor
from llamamm.tasks.items import Tasks
from tests.small_tasks import TASKS, weights


def test_three_stages():
    assert [(s.name, s.version, s.steps, s.text, s.bridges) for s in stages(1, 2, 3)] == [
        ("read", "told", 1, True, False), ("align", "shown", 2, False, True), ("tune", "shown", 3, True, True),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def towers():
    torch.manual_seed(0)
    cfg = MultimodalConfig.tiny()
    return Towers(VisionTower(cfg.vision).eval(), AudioEncoder(cfg.audio).eval(), ImageProcessor.vit(32))


def tiny_config(towers, *, vocab_size=512):
    text = TextConfig.tiny(vocab_size=vocab_size)
    return MultimodalConfig.tiny(text=text, vision=towers.vision.cfg, audio=towers.audio.cfg)


PLAN = stages(3, 2, 4)
ALL = Tasks(TASKS, {"questions": TASKS["vqa"], "people": TASKS["word"]})


def test_the_whole_plan(towers):
    torch.manual_seed(3)
    state, frozen = torch.random.get_rng_state(), [weights(t) for t in (towers.vision, towers.audio)]
    steps, lines = [], []
    done = train_small(plan=PLAN, towers=towers, tasks=ALL, config=tiny_config, say=lines.append,
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

    again = train_small(plan=PLAN, towers=towers, tasks=ALL, config=tiny_config)
    other = train_small(plan=PLAN, towers=towers, tasks=ALL, config=tiny_config, seed=1)
    assert again.curves == done.curves and again.scores == done.scores
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in done.model.state_dict().items())
    assert other.curves["read"] != done.curves["read"]


def test_the_small_shape(towers):
    audio, vision = towers.audio.cfg, VisionTower(MultimodalConfig.tiny().vision).cfg
    deep = replace(vision, patch_size=14, image_size=84, encoder=replace(vision.encoder, n_layers=4))
    with torch.device("meta"):
        cfg = small_config(Towers(VisionTower(deep), towers.audio, towers.image_processor), vocab_size=300)
        text = Llama3Model(cfg.text)
    assert cfg.vision == deep and cfg.audio == audio and cfg.text.vocab_size == 300
    assert cfg.grid == (6, 6) and cfg.n_image_tokens() == 9 and cfg.image_layer == -4
    # 300 x 256 embeddings; a block: 2 x 256^2 and 2 x 256 x 64, 3 x 256 x 672, two norms; the last norm
    assert sum(p.numel() for p in text.parameters()) == 300 * 256 + 2 * (163_840 + 516_096 + 512) + 256
