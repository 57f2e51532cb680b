"""pretrained.skill: adapter and bridges as a folder; only on its own base; nothing changes where it does not fit."""

import json

import pytest
import torch

from llamamm import Llama3Model, TextConfig, apply_lora, load_adapter
from llamamm.errors import CheckpointError
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import Features, MultimodalLlama
from llamamm.pretrained.skill import added_tensors, base_of, load_skill, save_skill, write_skill

IDS = torch.tensor([[1, 2, *[MultimodalConfig.tiny().image_token] * MultimodalConfig.tiny().n_image_places(), 3]])
SEEN = Features(images=torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(3)))


def base(seed=0, **changes):
    torch.manual_seed(seed)
    return MultimodalLlama(MultimodalConfig.tiny(**changes)).eval()


def trained(*, lora=True, **changes):
    """The base, its bridges and its adapter moved."""
    model = base(**changes)
    torch.manual_seed(9)
    if lora:
        apply_lora(model, r=2, alpha=4)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_b" in name or name in added_tensors(model):
                p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def scores(model):
    with torch.no_grad():
        return model(IDS, features=SEEN)


@pytest.mark.parametrize("lora", [True, False])
def test_a_skill_makes_the_base_the_model_that_was_trained(tmp_path, lora):
    model, other = trained(lora=lora), base()
    save_skill(model, tmp_path / "skill", base="my-base")
    assert not torch.allclose(scores(model), scores(other), atol=1e-3)
    load_skill(other, tmp_path / "skill")
    assert torch.equal(scores(other), scores(model))
    assert base_of(tmp_path / "skill") == "my-base"
    adapter = {"adapter_config.json", "adapter_model.safetensors"} if lora else set()
    assert {path.name for path in (tmp_path / "skill").iterdir()} == {"bridges.safetensors", "skill.json"} | adapter


def test_gated_blocks_belong_to_the_skill(tmp_path):
    changes = {"cross_layers": (1,)}
    model, other = trained(lora=False, **changes), base(**changes)
    write_skill(model, tmp_path)
    load_skill(other, tmp_path)
    ids, seen = IDS[:, [0, 1, 2, -1]], SEEN
    with torch.no_grad():
        assert torch.equal(model(ids, features=seen), other(ids, features=seen))
    assert json.loads((tmp_path / "skill.json").read_text())["bridges"] == ["audio_bridge", "gated", "image_bridge"]


def test_an_adapter_alone_is_a_skill(tmp_path):
    torch.manual_seed(0)
    model = Llama3Model(TextConfig.tiny())
    apply_lora(model, r=2, alpha=4)
    write_skill(model, tmp_path, base="text")
    torch.manual_seed(0)
    other = Llama3Model(TextConfig.tiny())
    load_skill(other, tmp_path)
    load_adapter(other, tmp_path)  # a plain adapter's folder
    assert base_of(tmp_path) == "text" and not (tmp_path / "skill.json").exists()


@pytest.mark.parametrize("lora", [True, False])
def test_on_another_base_nothing_is_loaded(tmp_path, lora):
    write_skill(trained(lora=lora), tmp_path)
    other = base(seed=1)
    before = scores(other)
    with pytest.raises(CheckpointError, match="trained on another base"):
        load_skill(other, tmp_path)
    assert torch.equal(scores(other), before)
    load_skill(other, tmp_path, check_base=False)
    assert not torch.equal(scores(other), before)


def test_bridges_of_another_shape_are_named_and_nothing_is_loaded(tmp_path):
    write_skill(trained(), tmp_path)
    deaf = base(audio=None)
    before = scores(deaf)
    with pytest.raises(CheckpointError, match=r"audio_bridge.*: the skill has \(.*\), the model none.* more"):
        load_skill(deaf, tmp_path)
    assert torch.equal(scores(deaf), before)


def test_a_model_without_bridges_or_adapter_has_no_skill(tmp_path):
    with pytest.raises(CheckpointError, match="neither an adapter nor bridges"):
        save_skill(Llama3Model(TextConfig.tiny()), tmp_path / "skill")
    assert not (tmp_path / "skill").exists()
