"""tasks.senses: three assets as tasks, and features that towers compute once."""

import pytest
import torch

from llamamm import AudioEncoder, VisionTower
from llamamm.assets.easy_vqa import Questions
from llamamm.assets.openmoji import Pictures
from llamamm.assets.spoken_words import Clip, Words
from llamamm.multimodal.config import MultimodalConfig
from llamamm.senses.image_processor import ImageProcessor
from llamamm.senses.mel import log_mel
from llamamm.tasks import senses
from llamamm.tasks.senses import BATCH, load_tasks, picture_features, sound_features
from tests.media_items import ASKED


@pytest.fixture(scope="module")
def towers():
    torch.manual_seed(0)
    tiny = MultimodalConfig.tiny()
    return VisionTower(tiny.vision).eval(), AudioEncoder(tiny.audio).eval()


def test_the_assets_as_tasks(towers, monkeypatch):
    vision, audio = towers
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (8, 3, 64, 64), generator=generator, dtype=torch.uint8)
    asked = Questions(pixels[:6], ASKED.questions, ASKED.answers, ASKED.images)
    drawn = Pictures(pixels[:2], ["apple", "dog"], ["", ""], ["", ""])
    unseen = Pictures(pixels[:4], ["kiwi", "cat, dark", "emu", "owl"], [""] * 4, ["thing", "tone", "thing", "thing"])
    waves = [torch.randn(n, generator=generator) * 0.1 for n in (3000, 900)]
    clips = [Clip(wave, word, "v") for wave, word in zip(waves, ("one", "two"), strict=True)]
    monkeypatch.setattr(senses, "fetch", lambda name: name)
    monkeypatch.setattr(senses, "load_questions", lambda _: (asked, asked))
    monkeypatch.setattr(senses, "load_pictures", lambda _: (drawn, unseen))
    monkeypatch.setattr(senses, "load_words", lambda _: Words(clips, clips[::-1], clips[:1]))
    images, said = ImageProcessor.vit(32), []
    tasks = load_tasks(MultimodalConfig.tiny(image_layer=-2), vision, audio, images, say=said.append)

    assert {name: len(task) for name, task in tasks.train.items()} == {"vqa": 4, "caption": 4, "word": 4, "both": 2}
    assert {name: len(task) for name, task in tasks.test.items()} == {
        "questions": 3, "new things": 3, "new tones": 1, "other voices": 2, "people": 1, "picture and voice": 2}
    assert [i.answer for i in tasks.test["new things"].items] == ["kiwi", "emu", "owl"]
    assert [i.answer for i in tasks.test["other voices"].items] == ["two", "one"]
    expected = picture_features(vision, images, pixels[[0, 2, 3]], layer=-2)
    assert torch.allclose(tasks.test["new things"].features.images, expected, atol=1e-2)
    assert tasks.train["vqa"].features.images.shape == (6, 16, 32) and len(said) == 8
    both = tasks.train["both"]
    assert both.features.images is tasks.train["vqa"].features.images
    assert both.features.sounds is tasks.train["word"].features.sounds and both.items[0].sound == 0
    for task in (*tasks.train.values(), *tasks.test.values()):
        assert all(any(task.seen_of(item)) for item in task.items)  # all that the items name is there

    bare = load_tasks(MultimodalConfig.tiny(), vision, audio, images, only_tests=True)
    assert all(task.features.images is None and task.features.sounds is None for task in bare.train.values())
    assert {name: task.items for name, task in bare.train.items()} == {n: t.items for n, t in tasks.train.items()}
    assert bare.test["people"].features.sounds is not None


def test_features_of_many_pictures(towers):
    tower, processor = towers[0], ImageProcessor.vit(32)
    n = BATCH + 2
    pixels = torch.randint(256, (n, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for layer in (None, -2):
        found = picture_features(tower, processor, pixels, layer=layer)
        assert found.shape == (n, 16, 32) and found.dtype == torch.float16 and not found.requires_grad
        for i in (0, BATCH, n - 1):
            with torch.no_grad():
                alone = tower(processor([pixels[i]]), layer=layer, cls=False)[0]
            assert (found[i].float() - alone).abs().max() < 5e-3


def test_features_of_many_sounds(towers):
    encoder = towers[1]
    lengths = [320 * (1 + 7 * i % 50) - 11 * (i % 3) for i in range(BATCH + 2)]
    generator = torch.Generator().manual_seed(0)
    waves = [torch.randn(n, generator=generator) * 0.1 for n in lengths]
    for layer in (None, 1):
        found = sound_features(encoder, waves, layer=layer)
        assert found.images is None and found.sounds.dtype == torch.float16 and not found.sounds.requires_grad
        places = [-(-n // 320) for n in lengths]
        assert found.sound_mask.sum(dim=1).tolist() == places
        assert found.sounds.shape == (len(waves), max(places), 32)
        for i in (0, 3, BATCH, len(waves) - 1):
            mel = log_mel(waves[i], n_mels=16)[None, :, : 2 * places[i]]
            with torch.no_grad():
                alone = encoder(mel, layer=layer, lengths=torch.tensor([places[i]]))[0, : places[i]]
            assert (found.sounds[i, : places[i]].float() - alone).abs().max() < 5e-3
