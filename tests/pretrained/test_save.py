"""pretrained.save: saved folders load here and in transformers; a full disk or a kill leaves the old one."""

import os
import signal
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from llamamm import from_pretrained, save_pretrained
from llamamm.errors import CheckpointError
from tests.processes import finish
from tests.weights.test_loading import make_model, same_weights


@pytest.mark.parametrize(
    ("changes", "shard_bytes"),
    [({}, 10**9), ({"tie_embeddings": False}, 10**9), ({"n_layers": 3}, 100_000), ({"dtype": torch.bfloat16}, 50_000)],
    ids=["tied", "untied", "sharded", "bf16, sharded"],
)
@torch.no_grad()
def test_saved_folders_load_here_and_in_transformers_with_equal_logits(tmp_path, changes, shard_bytes):
    model = make_model(**changes)
    save_pretrained(model, tmp_path / "m", max_shard_bytes=shard_bytes)
    shards = sorted((tmp_path / "m").glob("*.safetensors"))
    assert (len(shards) > 1) == (shard_bytes < 10**9)
    again, tokenizer = from_pretrained(tmp_path / "m")
    assert tokenizer is None
    assert again.cfg == model.cfg
    assert same_weights(model, again)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    ids = torch.arange(30)[None]
    tolerance = 1e-5 if model.cfg.dtype == torch.float32 else 2e-2
    assert (model(ids) - theirs(ids).logits).abs().max() < tolerance


@torch.no_grad()
def test_a_folder_that_transformers_saved_loads_here(tmp_path):
    model = make_model()
    save_pretrained(model, tmp_path / "ours")
    AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again, _ = from_pretrained(tmp_path / "theirs")
    assert same_weights(model, again)


def test_training_goes_on_bit_for_bit_from_a_saved_model(tmp_path):
    """Six steps in one go equal three, a save, a load, and three more."""

    def train(model, steps):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in steps:
            ids = torch.randint(512, (2, 9), generator=torch.Generator().manual_seed(step))
            logits = model(ids[:, :-1])
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    whole = train(make_model(), range(6))
    save_pretrained(train(make_model(), range(3)), tmp_path / "m")
    resumed = train(from_pretrained(tmp_path / "m")[0], range(3, 6))
    assert same_weights(whole, resumed)
    assert not same_weights(whole, make_model())


def test_saving_over_an_older_checkpoint_replaces_all_of_it(tmp_path):
    save_pretrained(make_model(n_layers=3), tmp_path / "m", max_shard_bytes=50_000)
    save_pretrained(make_model(), tmp_path / "m")
    assert sorted(f.name for f in (tmp_path / "m").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors"
    ]  # fmt: skip
    assert os.listdir(tmp_path) == ["m"]


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="not a model.s, such as thesis.tex"):
        save_pretrained(make_model(), tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_disk_full_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    old = make_model()
    save_pretrained(old, tmp_path / "m")

    def full(_tensors, path, **_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llamamm.weights.saving.save_file", full)
    with pytest.raises(OSError, match="No space"):
        save_pretrained(make_model(n_layers=1), tmp_path / "m")
    assert same_weights(from_pretrained(tmp_path / "m")[0], old)
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("moment", ["writing", "between the renames", "after the renames"])
def test_killed_while_saving_the_old_or_the_new_checkpoint_loads(tmp_path, moment):
    save_pretrained(make_model(n_layers=1), tmp_path / "m")
    script = f"""
        import os, signal, sys
        import torch
        import llamamm.files, llamamm.weights.saving as saving
        from llamamm import Llama3Model, TextConfig, save_pretrained
        def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)
        moment = {moment!r}
        rename, calls = os.rename, []
        def counted(a, b):
            rename(a, b)
            calls.append(1)
            if len(calls) == {{"between the renames": 1, "after the renames": 2}}.get(moment): die()
        os.rename = counted
        if moment == "writing":
            save = saving.save_file
            def half(tensors, path, **k):
                save(dict(list(tensors.items())[:2]), path, **k)
                die()
            saving.save_file = half
        save_pretrained(Llama3Model(TextConfig.tiny(n_layers=2)), {str(tmp_path / "m")!r})
    """
    done = finish([sys.executable, "-c", textwrap.dedent(script)])
    assert done.returncode == -signal.SIGKILL
    layers = from_pretrained(tmp_path / "m")[0].cfg.n_layers
    assert layers == (2 if moment == "after the renames" else 1)
    save_pretrained(make_model(n_layers=4), tmp_path / "m")  # the leftovers do not disturb, and are cleared away
    assert os.listdir(tmp_path) == ["m"]
    assert load_file(tmp_path / "m" / "model.safetensors")["model.layers.3.mlp.up_proj.weight"].shape == (128, 64)
