"""pretrained.compose: a text model with towers and fresh bridges, in three ways, that answers as before; and a skill
that says what its base was composed of."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from llamamm import Llama3Model, TextConfig, apply_lora, from_pretrained, merge_lora, save_adapter, save_pretrained
from llamamm.errors import CheckpointError, ConfigError, InputError
from llamamm.generation.prompts import Image, Sound
from llamamm.pretrained import locate
from llamamm.pretrained.compose import compose, composed_config, read_composed_config, save_composed
from llamamm.pretrained.skill import added_tensors, load_skill, parts_of, save_skill
from llamamm.senses.config import AudioConfig, VisionConfig
from llamamm.train import check
from llamamm.train.config import TrainConfig
from llamamm.train.plan import model_shape
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


@pytest.mark.parametrize("changes", [{"image_size": 42, "image_bridge": {"merge": 3}},
                                     {"image_size": 70, "fusion": "gated"}])  # fmt: skip
def test_the_size_of_pictures_fits_the_bridge_that_is_asked_for(text, changes):
    model, processor = compose(text, audio=None, **changes)
    prompt = processor.prompt([Image(torch.zeros(3, 20, 20, dtype=torch.uint8)), "?"])
    assert model(torch.tensor([prompt.ids]), **prompt.inputs).shape[1] == len(prompt.ids)


@pytest.mark.parametrize(("changes", "message"), [
    ({"fusion": "glue"}, "fusion must be one of projector, gated, perceiver, got 'glue'"),
    ({"vision": None, "audio": None}, "without an eye and without an ear"),
    ({"image_size": 100, "audio": None}, "image_size 100 must be a multiple of 56, 4 x the patch of 14 pixels: 56"),
    ({"image_size": 28, "audio": None}, "multiple of 56.*: 56"),
    ({"image_size": 56, "audio": None, "image_bridge": {"merge": 3}}, "multiple of 42, 3 x .*: 42"),
    ({"image_size": 20, "audio": None, "fusion": "gated"}, "multiple of 14, 1 x .*: 14"),
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


# ---- bridges of one's own ----


@pytest.mark.parametrize("fusion", ["projector", "gated", "perceiver"])
def test_a_bridge_is_the_fusions_but_for_what_is_asked(fusion):
    tiny = TextConfig.tiny(n_layers=4), VisionConfig.tiny(), AudioConfig.tiny()
    usual = composed_config(*tiny, fusion=fusion, image_size=32)
    cfg = composed_config(*tiny, fusion=fusion, image_size=32, image_bridge={"width": 12, "merge": 2},
                          audio_bridge={"heads": 2})  # fmt: skip
    for name, changed in (("image_bridge", {"width": 12, "merge": 2}), ("audio_bridge", {"heads": 2})):
        before, after = vars(getattr(usual, name)), vars(getattr(cfg, name))
        assert after == {**before, **changed} != before


@pytest.mark.parametrize(("changes", "message"), [
    ({"image_bridge": {"widht": 8}}, "image_bridge takes projector, merge, .*width, compact; got 'widht'"),
    ({"audio_bridge": {"a": 1, "width": 8, "b": 2}}, "audio_bridge takes .*; got 'a', 'b'"),
    ({"image_bridge": {"projector": "glue"}}, "image_bridge: projector must be one of linear, mlp, swiglu"),
    ({"audio_bridge": {"width": 7}}, "audio_bridge: width 7 of swiglu must be even"),
    ({"image_bridge": {"merge": "two"}}, "image_bridge: merge .*'two'"),
    ({"image_bridge": {"merge": 3}}, "image_size 32 must be a multiple of 24, 3 x the patch of 8"),
    ({"image_bridge": 256}, "image_bridge must be keys and their values, such as width: 256, got 256"),
    ({"audio_bridge": "wide"}, "audio_bridge must be keys and their values.*got 'wide'"),
])  # fmt: skip
def test_a_bridge_that_there_is_not_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        composed_config(TextConfig.tiny(n_layers=4), VisionConfig.tiny(), AudioConfig.tiny(), image_size=32, **changes)


def test_bridges_in_a_file_of_settings_are_planned_and_made_alike(text, tmp_path):
    (tmp_path / "run.yaml").write_text(
        f"output: {tmp_path / 'run'}\nsteps: 1\ncompose:\n  text: {text}\n  audio: null\n  image_size: 56\n"
        f"  image_bridge: {{width: 24}}\n"
    )
    cfg = TrainConfig.from_yaml(tmp_path / "run.yaml")
    model, _ = compose(**cfg.compose)
    assert model_shape(cfg) == read_composed_config(**cfg.compose) == model.multimodal_cfg
    shapes = {tuple(p.shape) for p in model.image_bridge.parameters()}
    assert model.multimodal_cfg.image_bridge.width == 24 and any(24 in shape for shape in shapes)


# ---- a skill opens with its base ----

PARTS = {"vision": "vit-s", "audio": None, "image_size": 56, "image_bridge": {"width": 24}}


@pytest.fixture(scope="module")
def composed(text, tmp_path_factory):
    """The folder of a composed model that sees."""
    folder = tmp_path_factory.mktemp("composed") / "base"
    save_composed(folder, text=Path(text), **PARTS, seed=3, dtype=torch.float32)
    return folder


@pytest.fixture(scope="module")
def skill(composed, tmp_path_factory):
    """A skill on it: adapter and bridge moved."""
    model, _ = from_pretrained(composed)
    torch.manual_seed(9)
    apply_lora(model, r=2, alpha=4, targets=["layers.*.q_proj", "layers.*.down_proj"])
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_b" in name or name in added_tensors(model):
                p.add_(torch.randn_like(p) * 0.1)
    folder = tmp_path_factory.mktemp("skills") / "skill"
    save_skill(model, folder, base=str(composed))
    return folder


def scores(model, processor):
    prompt = processor.prompt(["What?", MEDIA[0]])
    with torch.no_grad():
        return model(torch.tensor([prompt.ids]), **prompt.inputs)


def test_a_composed_folder_notes_its_parts_and_may_be_made_again(text, composed, tmp_path):
    note = json.loads((composed / "compose.json").read_text())
    assert note == {"text": text, **PARTS}  # what `compose` takes again; the seed is in the weights
    assert scores(*from_pretrained(composed)).equal(scores(*compose(text, **PARTS, seed=3)))
    folder = shutil.copytree(composed, tmp_path / "again")
    save_composed(folder, text=text, audio=None, image_size=112)
    assert json.loads((folder / "compose.json").read_text()) == {"text": text, "audio": None, "image_size": 112}
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="mine.txt"):
        save_composed(folder, text=text, audio=None, image_size=112)


def test_a_skill_opens_as_its_base_with_it(composed, skill):
    assert parts_of(skill) == json.loads((composed / "compose.json").read_text())
    base, processor = from_pretrained(composed)
    before = scores(base, processor)
    load_skill(base, skill)
    merge_lora(base, keep_base=False)
    expected = scores(base, processor)
    model, reader = from_pretrained(skill)
    assert torch.equal(scores(model, reader), expected) and not torch.allclose(expected, before, atol=1e-3)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in base.named_parameters()}
    assert not model.training and parts_of(composed) is None
    from_a_file, _ = from_pretrained(skill / "bridges.safetensors")
    assert torch.equal(scores(from_a_file, reader), expected)


def test_a_skill_with_a_configuration_beside_it_is_one_still(composed, skill, tmp_path):
    """As the package's own has, for what reads a model's shape."""
    folder = shutil.copytree(skill, tmp_path / "skill")
    shutil.copy(composed / "config.json", folder)
    assert torch.equal(scores(*from_pretrained(folder)), scores(*from_pretrained(skill)))


def test_a_skill_opens_in_the_dtype_that_is_asked_for(skill):
    model, reader = from_pretrained(skill, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    whole = scores(*from_pretrained(skill))
    close = (scores(model, reader).float() - whole).abs().max() / whole.abs().max()
    assert 0 < close < 0.05


def test_a_skill_whose_base_has_changed_is_refused(text, skill, tmp_path):
    folder = shutil.copytree(text, tmp_path / "text")
    model, tokenizer = from_pretrained(folder)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    save_pretrained(model, folder, tokenizer=tokenizer)
    moved = shutil.copytree(skill, tmp_path / "skill")
    about = json.loads((moved / "skill.json").read_text())
    about["compose"]["text"] = str(folder)
    (moved / "skill.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="another base"):
        from_pretrained(moved)


@pytest.mark.parametrize("base", ["runs/base", ""])
def test_a_skill_that_does_not_say_what_its_base_is_made_of_names_it_and_the_way(composed, tmp_path, base):
    model, _ = from_pretrained(composed)
    named = base or "which it does not name"
    beside = "" if base else " beside --model BASE"
    save_skill(model, tmp_path / "skill", base=base)
    with pytest.raises(CheckpointError) as error:
        from_pretrained(tmp_path / "skill")
    assert str(error.value) == (f"{tmp_path}/skill is a skill and no whole model: load its base, {named}, and then "
                                f"load_skill(model, folder); for a command, --adapter {tmp_path}/skill{beside}, or "
                                f"first `llamamm merge {tmp_path}/skill MERGED`")


def test_an_adapter_alone_names_its_base_too(text, tmp_path):
    model, _ = from_pretrained(text)
    apply_lora(model, r=2, alpha=4)
    save_adapter(model, tmp_path / "adapter", base=text)
    with pytest.raises(CheckpointError, match=f"adapter is an adapter and no whole model: load its base, {text}, and"):
        from_pretrained(tmp_path / "adapter")


def test_the_packages_own_skill_opens_by_its_name(skill, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # no folder of that name is here
    monkeypatch.setitem(locate.BUILT_IN, "senses", skill)
    model, reader = from_pretrained("senses")
    assert torch.equal(scores(model, reader), scores(*from_pretrained(skill)))


def test_a_training_may_begin_with_it(skill):
    """Its shape, and so a plan, is known without weights."""
    cfg = TrainConfig.make({"model": str(skill), "steps": 1, "output": "run"})
    assert model_shape(cfg) == from_pretrained(skill)[0].multimodal_cfg
    assert check._context_of(skill) is None
