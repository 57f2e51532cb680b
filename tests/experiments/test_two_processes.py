"""experiments.two_processes: what both find is compared in lesson 19; here, its parts, and a process that fails."""

import pytest
import torch

from llamamm.errors import LlamammError
from llamamm.experiments.two_processes import gradient_of, run_two, summed_loss
from llamamm.text.config import TextConfig
from llamamm.text.model import Llama3Model


def test_the_gradient_of_both_rows_is_the_sum_of_theirs():
    torch.manual_seed(0)
    model, rows = Llama3Model(TextConfig.tiny()), [torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6, 7, 8])]
    both = gradient_of(model, sum(summed_loss(model, ids) for ids in rows) / 6)
    each = [gradient_of(model, summed_loss(model, ids)) for ids in rows]
    assert torch.allclose(both, sum(each) / 6, atol=1e-6) and not torch.allclose(both, each[0] / 4 + each[1] / 8)


def test_a_process_that_fails_is_told_in_one_line(monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(LlamammError, match=r"^a process of two failed: [^\n]+$"):
        run_two()
