"""experiments.release: settings of both stages, what is stored of a skill, and a card; no training."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from llamamm import apply_lora
from llamamm.evals.score_card import Card, Measured
from llamamm.experiments import release
from llamamm.experiments.release import NAME, settings, store, write_card
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import MultimodalLlama
from llamamm.pretrained.locate import BUILT_IN
from llamamm.pretrained.skill import added_tensors, base_of, load_skill, save_skill
from llamamm.tasks.held_out import HeldOut, Sample
from llamamm.train.plan import model_shape
from llamamm.train.seen import Seen


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("seed", [0, 7])
def test_settings_of_two_stages(tmp_path, seed, quick):
    cfg = settings(tmp_path, seed=seed, quick=quick)
    align, tune = cfg.stage_settings()
    assert (align.method, tune.method) == ("align", "lora") and "lora" in tune.trains
    assert all(stage.seed == seed and stage.precision == "bf16" for stage in (align, tune))
    assert all(stage.steps == 2 for stage in (align, tune)) == quick
    for stage in (align, tune):
        assert {str(tmp_path / "data")} == {str(source.source).rpartition("/")[0] for source in stage.sources}
    assert align.output == tmp_path / "align" and tune.output == tmp_path / "tune"


def test_its_bridges_are_narrow_and_its_pictures_nine_tokens(tmp_path, smollm2_dir, vit_s_dir, whisper_tiny_dir):  # noqa: ARG001
    shape = model_shape(settings(tmp_path))
    assert shape.n_image_tokens() == 9 and shape.n_audio_tokens(50) == 13
    assert shape.image_bridge.width == 256 and shape.vision is not None and shape.audio is not None


def base():
    torch.manual_seed(0)
    return MultimodalLlama(MultimodalConfig.tiny()).eval()


@pytest.fixture
def skill(tmp_path):
    """A trained skill as a checkpoint holds it: fp32, beside what only a training needs."""
    model = base()
    apply_lora(model, r=2, alpha=4)
    torch.manual_seed(9)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_b" in name or name in added_tensors(model):
                p.add_(torch.randn_like(p) * 0.1)
    save_skill(model, tmp_path / "last", base=str(tmp_path / "base"))
    about = json.loads((tmp_path / "last" / "skill.json").read_text())
    (tmp_path / "last" / "skill.json").write_text(json.dumps({**about, "compose": release.PARTS}))
    (tmp_path / "last" / "training.safetensors").write_bytes((tmp_path / "last" / "bridges.safetensors").read_bytes())
    (tmp_path / "last" / "state.json").write_text("{}")
    return tmp_path / "last", model


def test_what_is_stored_is_in_bf16_with_the_mark_of_its_base_and_nothing_else(skill, tmp_path):
    folder, model = skill
    store(folder, tmp_path / "senses")
    assert {path.name for path in (tmp_path / "senses").iterdir()} >= {
        "adapter_config.json", "adapter_model.safetensors", "bridges.safetensors", "skill.json"}
    assert not {"training.safetensors", "state.json"} & {path.name for path in (tmp_path / "senses").iterdir()}
    for name in ("adapter_model.safetensors", "bridges.safetensors"):
        before, after = load_file(folder / name), load_file(tmp_path / "senses" / name)
        assert {key: t.bfloat16().tolist() for key, t in before.items()} == {k: t.tolist() for k, t in after.items()}
        assert {t.dtype for t in after.values()} == {torch.bfloat16}
        with safe_open(folder / name, "pt") as old, safe_open(tmp_path / "senses" / name, "pt") as new:
            assert old.metadata() == new.metadata() and "llamamm_base" in new.metadata()
    other = base()
    load_skill(other, tmp_path / "senses")  # compares the base
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-2, atol=1e-3, msg=name)


def test_what_is_stored_says_its_name_and_no_folder_of_the_machine_that_made_it(skill, tmp_path):
    folder, _ = skill
    store(folder, tmp_path / "senses")
    about = json.loads((tmp_path / "senses" / "skill.json").read_text())
    assert base_of(tmp_path / "senses") == about["base"] == NAME == next(iter(BUILT_IN))
    assert about["compose"] == release.PARTS
    assert json.loads((tmp_path / "senses" / "adapter_config.json").read_text())["base_model_name_or_path"] == NAME
    for path in (tmp_path / "senses").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_a_release_goes_on_where_it_stopped(skill, tmp_path, monkeypatch):
    """Data are written once; a base that is there means that the run resumes; the card comes last."""
    folder, _ = skill
    done = []
    output = tmp_path / "out"

    def train(cfg, *, resume):
        done.append(("train", resume, cfg.seed))
        (output / "base").mkdir(exist_ok=True)
        shutil.copytree(folder, output / "tune" / "last", dirs_exist_ok=True)

    monkeypatch.setattr(release, "write_data", lambda path, **_: done.append("data") or path.mkdir())
    monkeypatch.setattr(release, "run_training", train)
    monkeypatch.setattr(release, "measure", lambda *_args, **_options: (card(), card()))
    first = release.make_release(output, seed=4, quick=True)
    again = release.make_release(output, seed=4, quick=True)
    assert first == again == output / NAME and (first / "bridges.safetensors").is_file()
    assert done == ["data", ("train", False, 4), ("train", True, 4)]
    assert (first / "README.md").is_file()


def card(name="senses"):
    """Of one question, answered right."""
    plain = HeldOut("plain", "plain questions", "question", [Sample("plain-0", "Two and two?", "4|four", group="0")])
    return Card({"model": name}, {"plain": Measured(plain, [{"given": "It is four."}])})


def test_a_card_is_a_readme_with_the_figures_and_those_of_its_base(tmp_path):
    write_card(card(), card("smollm2"), tmp_path, made="seed 3")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| plain questions | answers that hold the right word | 1 | 100.0% (" in text
    assert "| can't tell |" in text and "OUT`: seed 3.\n\n**Learned" in text and "{" not in text
    assert Card.load(tmp_path).sets["plain"].records == [{"given": "It is four."}]


def test_what_training_has_read_is_stored_too(skill, tmp_path):
    folder, _ = skill
    Seen([1, 2]).save(folder)
    store(folder, tmp_path / "senses")
    assert Seen.load(tmp_path / "senses").hashes == {1, 2}
