"""train.rate_finder: it sees the loss fall and explode, and leaves no trace."""

import pytest
import torch

from llamamm import apply_lora
from llamamm.train.rate_finder import find_learning_rate
from tests.training_data import byte_model, byte_trainer


@pytest.mark.parametrize("lora", [False, True])
def test_the_finder_sees_the_loss_fall_and_explode_and_leaves_no_trace(tmp_path, lora):
    model = apply_lora(byte_model(), r=4, alpha=8, dropout=0.1) if lora else byte_model()
    trainer = byte_trainer(tmp_path, model=model)
    trainer.train_step()
    random_state = torch.get_rng_state()
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    place, steps = trainer.batches.state_dict(), trainer.step
    curve = find_learning_rate(trainer, low=1e-5, high=100.0, steps=30)
    losses = [loss for _, loss in curve]
    assert len(curve) < 30 or losses[-1] > losses[0]  # it ended early, or got worse
    assert min(losses) < losses[0] - (0.1 if lora else 0.3)  # a frozen random model learns little
    ratios = [b[0] / a[0] for a, b in zip(curve, curve[1:], strict=False)]
    assert max(ratios) / min(ratios) < 1.001  # equal factors
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
    assert trainer.batches.state_dict() == place and trainer.step == steps
    assert torch.equal(torch.get_rng_state(), random_state)  # dropout has drawn nothing from the trainer's numbers
    trainer.train_step()  # goes on
