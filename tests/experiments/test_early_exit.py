"""experiments.early_exit: training brings the exit nearer, and its file gives the same numbers back."""

import pytest
import torch

from llamamm import Llama3Model, TextConfig
from llamamm.errors import CheckpointError
from llamamm.experiments.early_exit import fit_exit, load_exit, measure_exit, save_exit, states
from llamamm.generation.drafts import early_exit


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Llama3Model(TextConfig.tiny(vocab_size=40, n_layers=3)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4 if parameter.dim() > 1 else 1)
    return model


def rows(n, seed):
    return torch.randint(40, (n, 32), generator=torch.Generator().manual_seed(seed)).tolist()


def test_training_brings_an_exit_nearer_to_the_model(model, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    early, late = states(model, 2, rows(40, 0))
    with torch.no_grad():
        torch.testing.assert_close(model.lm_head(late[:32]), model(torch.tensor(rows(1, 0)))[0])
    held_out, ids = states(model, 2, rows(8, 1)), rows(1, 1)[0]
    short = early_exit(model, 2)
    untrained = measure_exit(short, model, *held_out, ids=ids)
    fit_exit(short, model, early, late, steps=120, seed=0)
    trained = measure_exit(short, model, *held_out, ids=ids)
    assert trained.drawn > untrained.drawn + 0.05 and trained.greedy > untrained.greedy
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(p.grad is not None for p in model.parameters())

    save_exit(short, tmp_path / "exit.safetensors")
    again, x = load_exit(model, tmp_path / "exit.safetensors"), torch.tensor(rows(1, 2))
    with torch.no_grad():
        assert torch.equal(again(x), short(x)) and len(again.layers) == 2


def test_speed_up_by_hand(model):
    short = early_exit(model, 1)
    figures = measure_exit(short, model, *states(model, 1, rows(2, 1)), ids=[1, 2, 3])
    for n, speed_up in figures.speed_up.items():
        right = sum(figures.greedy**k for k in range(n + 1))
        assert speed_up == pytest.approx(right / (n * figures.cost + figures.calls[n]))


def test_other_files_and_models_are_refused(model, tmp_path):
    file = tmp_path / "exit.safetensors"
    with pytest.raises(CheckpointError, match="no early exit"):
        load_exit(model, file)
    file.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="no early exit"):
        load_exit(model, file)
    save_exit(early_exit(model, 2), file)
    wider = Llama3Model(TextConfig.tiny(vocab_size=40, n_layers=3, hidden_size=128))
    with pytest.raises(CheckpointError, match="no early exit"):
        load_exit(wider, file)
