"""pretrained.compose: a text model with towers and fresh bridges, in three ways, that answers as before."""

from pathlib import Path

import pytest
import torch

from llamamm import Llama3Model, TextConfig, from_pretrained, save_pretrained
from llamamm.errors import ConfigError, InputError
from llamamm.generation.prompts import Image, Sound
from llamamm.pretrained import locate
from llamamm.pretrained.compose import compose, read_composed_config
from llamamm.train.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    words = train_tokenizer(["user assistant What?"] * 9, folder, vocab_size=300)
    torch.manual_seed(0)
    shape = TextConfig.tiny(vocab_size=words.vocab_size, n_layers=8, context_length=512)
    save_pretrained(Llama3Model(shape), folder / "text", tokenizer=words)
    return str(folder / "text")


MEDIA = [Image(torch.zeros(3, 40, 60, dtype=torch.uint8)), Sound(torch.sin(torch.arange(8000) / 9))]


@pytest.mark.parametrize(("fusion", "n_tokens"), [("projector", (4 + 2, 4 + 2)), ("gated", (1, 1)),
                                                  ("perceiver", (18, 18))])  # fmt: skip
def test_each_way_reads_pictures_and_sounds_and_answers_text_as_before(text, tmp_path, fusion, n_tokens):
    model, processor = compose(text, fusion=fusion, image_size=112, seed=3)
    plain, tokenizer = from_pretrained(text)
    ids = torch.tensor([tokenizer.encode("What? user")])
    with torch.no_grad():
        assert torch.equal(model(ids), plain(ids))
    prompt = processor.prompt(["What?", *MEDIA])
    cfg = model.multimodal_cfg
    assert [prompt.ids.count(token) for token in (cfg.image_token, cfg.audio_token)] == list(n_tokens)
    with torch.no_grad():
        logits = model(torch.tensor([prompt.ids]), **prompt.inputs)
    assert logits.isfinite().all() and cfg.cross_layers == ((3, 7) if fusion == "gated" else ())
    save_pretrained(model, tmp_path / "senses", processor=processor)
    again, reader = from_pretrained(tmp_path / "senses")
    prompt = reader.prompt(["What?", *MEDIA])
    with torch.no_grad():
        assert torch.equal(again(torch.tensor([prompt.ids]), **prompt.inputs), logits)


def test_the_seed_decides_the_bridges_and_only_that(text):
    state = torch.random.get_rng_state()
    one, same, other = (compose(text, audio=None, image_size=56, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    for name, p in one.image_bridge.named_parameters():
        assert torch.equal(p, dict(same.image_bridge.named_parameters())[name])
    assert any(not torch.equal(p, dict(other.image_bridge.named_parameters())[name])
               for name, p in one.image_bridge.named_parameters())  # fmt: skip


def test_without_an_eye_or_without_an_ear(text):
    deaf, blind = compose(text, audio=None, image_size=56)[0], compose(text, vision=None)[0]
    assert not hasattr(deaf, "audio_encoder") and not hasattr(blind, "vision_tower")
    assert deaf.image_bridge is not None and blind.audio_bridge is not None


@pytest.mark.parametrize(("changes", "message"), [
    ({"fusion": "glue"}, "fusion must be one of projector, gated, perceiver, got 'glue'"),
    ({"vision": None, "audio": None}, "without an eye and without an ear"),
    ({"image_size": 100, "audio": None}, "image_size 100 must be a multiple of 56, 4 patches of 14 pixels: 56"),
    ({"image_size": 28, "audio": None}, "multiple of 56.*: 56"),
])  # fmt: skip
def test_what_does_not_fit_is_named(text, changes, message):
    with pytest.raises(ConfigError, match=message):
        compose(text, **changes)


def test_a_model_that_sees_already_is_refused(text, tmp_path):
    model, processor = compose(text, audio=None, image_size=56)
    save_pretrained(model, tmp_path / "senses", processor=processor)
    with pytest.raises(InputError, match="sees or hears already"):
        compose(tmp_path / "senses")


def test_its_configuration_is_known_without_weights(text, tmp_path, monkeypatch):
    model, _ = compose(text, fusion="gated", image_size=112)
    small = tmp_path / "config alone"
    small.mkdir()
    (small / "config.json").write_bytes((Path(text) / "config.json").read_bytes())
    assert read_composed_config(small, fusion="gated", image_size=112) == model.multimodal_cfg
    asked = []
    monkeypatch.setattr(locate, "download_file", lambda *names, **_: asked.append(names) or small / "config.json")
    assert read_composed_config("owner/name", fusion="gated", image_size=112) == model.multimodal_cfg
    assert asked == [("owner/name", "config.json")]  # and no weights
    deaf = read_composed_config(text, audio=None, image_size=112)
    assert deaf == compose(text, audio=None, image_size=112)[0].multimodal_cfg
