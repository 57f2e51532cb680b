"""train.randomness: every global generator is seeded, kept and put back."""

import json
import random

import numpy as np
import torch

from llamamm.train.randomness import random_state, randomness_kept, seed_everything, set_random_state


def draw():
    return torch.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.randn(3).tolist()


def test_every_random_generator_is_put_back():
    torch.manual_seed(1), random.seed(2), np.random.seed(3)
    np.random.randn()  # leaves a second number waiting
    state = json.loads(json.dumps(random_state()))

    expected = draw()
    assert draw() != expected
    set_random_state(state)
    assert draw() == expected


def test_what_a_block_draws_is_not_missed_behind_it():
    seed_everything(5)
    expected = draw()
    seed_everything(5)
    with randomness_kept():
        seed_everything(9)
        inside = draw()
    assert draw() == expected != inside
