"""train.optim: the schedule by hand, decay on matrices alone."""

import pytest

from llamamm import apply_lora
from llamamm.errors import ConfigError
from llamamm.train.optim import learning_rate, make_optimizer
from tests.training_data import byte_model, settings


def rates(tmp_path, **changes):
    cfg = settings(tmp_path, steps=9, warmup_steps=4, learning_rate=1.0, min_learning_rate=0.1, **changes)
    return [round(learning_rate(step, cfg), 4) for step in range(10)]


def test_the_schedule_by_hand(tmp_path):
    up = [0.25, 0.5, 0.75, 1.0]
    assert rates(tmp_path, schedule="constant") == [*up, *[1.0] * 6]
    assert rates(tmp_path, schedule="linear") == [*up, 1.0, 0.775, 0.55, 0.325, 0.1, 0.1]
    # cosine: 0.1 + 0.9 (1 + cos(pi d)) / 2 at d = 0, 1/4, 1/2, 3/4, 1
    assert rates(tmp_path, schedule="cosine") == [*up, 1.0, 0.8682, 0.55, 0.2318, 0.1, 0.1]


def test_matrices_decay_and_norms_do_not(tmp_path):
    model = byte_model()
    matrices, vectors = make_optimizer(model, settings(tmp_path, weight_decay=0.3)).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert {id(p) for p in vectors["params"]} == {id(p) for n, p in model.named_parameters() if "norm" in n}
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(model.parameters()))


def test_only_what_trains_is_given_to_the_optimizer(tmp_path):
    model = apply_lora(byte_model(), r=2, alpha=2)
    groups = make_optimizer(model, settings(tmp_path)).param_groups
    assert sum(len(g["params"]) for g in groups) == 2 * 7 * 2
    with pytest.raises(ConfigError, match="no parameter trains"):
        make_optimizer(byte_model().requires_grad_(False), settings(tmp_path))
