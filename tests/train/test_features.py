"""train.features: each picture goes through a frozen tower once; found again by content, tower and preparation."""

import io
from dataclasses import replace
from functools import cache

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors import safe_open

from llamamm.errors import InputError
from llamamm.generation.prompts import Image, Sound
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import MultimodalLlama
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.senses.image_processor import ImageProcessor
from llamamm.senses.waves import save_wave
from llamamm.text.config import TextConfig
from llamamm.train import features
from llamamm.train.features import FeatureStore, content_hash


@pytest.fixture
def model(smol):
    torch.manual_seed(0)
    cfg = MultimodalConfig.tiny(text=TextConfig.tiny(vocab_size=smol.vocab_size, n_layers=1, hidden_size=16))
    return MultimodalLlama(cfg).eval()


@pytest.fixture
def processor(model, smol):
    return MultimodalProcessor(model.multimodal_cfg, smol, ImageProcessor.vit(32))


def picture(n):
    return PIL.Image.fromarray(np.random.default_rng(n).integers(0, 256, (20, 30, 3), dtype=np.uint8))


@cache  # the last digits of torch.sin depend on where in memory a number lies
def tone(n, length=3200):
    return torch.sin(torch.arange(length) / (n + 3)) * 0.3


def test_the_same_features_as_without_it(model, processor, tmp_path):
    store = FeatureStore(model, processor, tmp_path)
    short, long = tone(0), tone(0, 500_000)  # 31 s are two pieces
    for medium, kind in ((Image(picture(0)), "images"), (Sound(short), "sounds"), (Sound(long), "sounds")):
        found = model.perceive(processor.prompt([medium]).inputs["media"])
        whole = getattr(found, kind)
        expected = whole.flatten(0, 1) if kind == "images" else whole[found.sound_mask]
        assert torch.equal(store(medium), expected.half())


def test_each_is_computed_once_also_in_the_next_run(model, processor, tmp_path):
    media = [Image(picture(n)) for n in range(3)] + [Sound(tone(n)) for n in range(2)]
    first = FeatureStore(model, processor, tmp_path)
    found = [first(medium) for medium in media + media]
    assert first.n_computed == 5
    first.flush()
    assert len(list(tmp_path.iterdir())) == 1
    second = FeatureStore(model, processor, tmp_path)
    assert all(torch.equal(second(m), f) for m, f in zip(media, found, strict=False)) and second.n_computed == 0


def test_shards_are_written_as_they_fill(model, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SHARD", 2)
    store = FeatureStore(model, processor, tmp_path)
    for n in range(5):
        store(Image(picture(n)))
    assert len(list(tmp_path.iterdir())) == 2  # the fifth waits
    for path in tmp_path.iterdir():
        with safe_open(path, framework="pt") as file:
            assert len(file.keys()) == 2


def test_another_tower_layer_or_preparation_has_features_of_its_own(model, processor, smol, tmp_path):
    store = FeatureStore(model, processor, tmp_path)
    store(Image(picture(0))), store(Sound(tone(0)))
    store.flush()
    cfg = model.multimodal_cfg
    torch.manual_seed(1)
    others = [
        (MultimodalLlama(cfg).eval(), processor),
        (MultimodalLlama(replace(cfg, image_layer=-1, audio_layer=-1), text=None, vision=model.vision_tower,
                         audio=model.audio_encoder).eval(), processor),
    ]  # fmt: skip
    for other, its in others:
        again = FeatureStore(other, its, tmp_path)
        again(Image(picture(0))), again(Sound(tone(0)))
        assert again.n_computed == 2
    brighter = MultimodalProcessor(cfg, smol, replace(ImageProcessor.vit(32), mean=(0.1, 0.1, 0.1)))
    again = FeatureStore(model, brighter, tmp_path)
    again(Image(picture(0))), again(Sound(tone(0)))
    assert again.n_computed == 1  # the sound is as it was


def test_what_a_file_holds_counts_not_its_name(tmp_path):
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    picture(1).save(tmp_path / "c.png")
    save_wave(tmp_path / "w.wav", tone(0))
    data = (tmp_path / "a.png").read_bytes()
    same = [Image(tmp_path / "a.png"), Image(str(tmp_path / "b.png")), Image(data), Image(io.BytesIO(data))]
    assert len({content_hash(image) for image in same}) == 1
    different = [same[0], Image(tmp_path / "c.png"), Image(picture(0)), Image(picture(1)), Sound(tone(0)),
                 Sound(tone(1)), Sound(tone(0), 8000), Sound(tmp_path / "w.wav")]  # fmt: skip
    assert len({content_hash(medium) for medium in different}) == len(different)
    with pytest.raises(InputError, match="none.png: No such file"):
        content_hash(Image(tmp_path / "none.png"))


def test_old_files_make_room_and_those_of_this_run_stay(model, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SHARD", 2)
    old = FeatureStore(model, processor, tmp_path)
    for n in range(4):
        old(Image(picture(n)))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    said = []
    store = FeatureStore(model, processor, tmp_path, limit=size, say=said.append)
    before = set(tmp_path.iterdir())
    for n in range(10, 14):
        store(Image(picture(n)))
    assert not before & set(tmp_path.iterdir()) and not store.full  # both old ones went
    for n in range(14, 18):
        store(Image(picture(n)))
    assert store.full and len(said) == 1 and "is full" in said[0]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= size
    count = store.n_computed
    store(Image(picture(17)))
    assert store.n_computed == count + 1  # computed each time
    store(Image(picture(10)))
    assert store.n_computed == count + 1  # kept


def test_a_damaged_file_is_computed_again(model, processor, tmp_path):
    store = FeatureStore(model, processor, tmp_path)
    expected = store(Image(picture(0)))
    store.flush()
    [path] = tmp_path.iterdir()
    again = FeatureStore(model, processor, tmp_path)
    path.write_bytes(path.read_bytes()[:20])
    assert torch.equal(again(Image(picture(0))), expected) and again.n_computed == 1
    assert torch.equal(FeatureStore(model, processor, tmp_path)(Image(picture(0))), expected)


def test_without_a_folder_nothing_is_kept(model, processor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = FeatureStore(model, processor, None)
    store(Image(picture(0))), store(Image(picture(0)))
    store.flush()
    assert store.n_computed == 2 and not list(tmp_path.iterdir())
