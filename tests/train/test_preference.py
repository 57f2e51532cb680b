"""train.preference: the published loss, by hand and as trl has it; resuming; better answers become likelier."""

import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F

from llamamm import apply_lora, set_lora_enabled
from llamamm.errors import ConfigError, InputError
from llamamm.train.log import RunLog
from llamamm.train.loop import Trainer
from llamamm.train.losses import IGNORE
from llamamm.train.preference import PairBatches, PreferenceObjective, answer_log_probs, preference_loss
from llamamm.train.rows import Example
from tests.training_data import byte_model, settings


def example(prompt, answer):
    ids = list(f"{prompt}{answer}".encode())
    return Example(ids, [i >= len(prompt) for i in range(len(ids))])


def encode(pair):
    prompt, chosen, rejected = pair
    return example(prompt, chosen), example(prompt, rejected)


PAIRS = [(f"{n}? ", "yes" + "!" * (n % 3), "no") for n in range(7)]


def adapted(**changes):
    model = byte_model(**changes)
    apply_lora(model, r=4, alpha=8, generator=torch.Generator().manual_seed(0))
    return model


def moved(model):
    """The adapter does something."""
    torch.manual_seed(4)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_b" in name:
                p.normal_(0, 0.3)
    return model.eval()


def test_the_loss_by_hand():
    """The chosen answer gained 2, the rejected one lost 1, beta 0.5: -log sigmoid(1.5)."""
    values = [torch.tensor([x]) for x in (-3.0, -6.0, -5.0, -5.0)]
    loss = preference_loss(*values, beta=0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.5)), rel=1e-6)
    assert preference_loss(*[torch.zeros(1)] * 4, beta=0.1).item() == pytest.approx(math.log(2))


def log_prob(model, prompt, answer):
    """Token by token, as one would by hand."""
    ids = torch.tensor([list(f"{prompt}{answer}".encode())])
    with torch.no_grad():
        scores = model(ids)[0].log_softmax(dim=-1)
    return sum(float(scores[i - 1, ids[0, i]]) for i in range(len(prompt), ids.shape[1]))


def test_the_objective_is_the_loss_over_pairs_against_the_model_without_its_adapter():
    model = moved(adapted())
    batch = next(PairBatches(PAIRS, encode, batch_size=3, length=40, shuffle=False))
    expected = 0.0
    for prompt, chosen, rejected in PAIRS[:3]:
        now = [log_prob(model, prompt, answer) for answer in (chosen, rejected)]
        set_lora_enabled(model, False)
        before = [log_prob(model, prompt, answer) for answer in (chosen, rejected)]
        set_lora_enabled(model, True)
        # trl's sigmoid loss: logits = (chosen - rejected) - (ref_chosen - ref_rejected); -logsigmoid(beta * logits)
        logits = (now[0] - now[1]) - (before[0] - before[1])
        expected += -F.logsigmoid(torch.tensor(0.2 * logits)).item()
    with torch.no_grad():
        loss = PreferenceObjective(model, beta=0.2)(**batch.inputs("cpu"))
    assert loss.item() == pytest.approx(expected, rel=1e-4) and expected != pytest.approx(3 * math.log(2), rel=1e-2)


def test_log_probs_of_answers_alone():
    model = moved(adapted())
    rows = next(PairBatches(PAIRS, encode, batch_size=2, length=40, shuffle=False)).rows
    found = answer_log_probs(model, rows.ids, rows.targets)
    expected = [log_prob(model, p, answer) for p, *answers in PAIRS[:2] for answer in answers]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert (rows.targets[0] != IGNORE).sum() == 3  # yes


def trainer(folder, model=None, **changes):
    cfg = settings(folder, method="lora", steps=8, batch_size=4, learning_rate=2e-2, **changes)
    model = model or adapted()
    return Trainer(model, PairBatches(PAIRS, encode, batch_size=4, length=40), cfg, log=RunLog(quiet=True),
                   objective=PreferenceObjective(model, beta=0.5))  # fmt: skip


def test_the_better_answers_become_likelier(tmp_path):
    run = trainer(tmp_path)
    run.fit()
    assert run.log.losses[0] == pytest.approx(math.log(2), rel=1e-4) and run.log.losses[-1] < 0.4
    gains = []
    for prompt, *answers in PAIRS:
        now = [log_prob(run.model, prompt, answer) for answer in answers]
        set_lora_enabled(run.model, False)
        before = [log_prob(run.model, prompt, answer) for answer in answers]
        set_lora_enabled(run.model, True)
        gains.append((now[0] - before[0]) - (now[1] - before[1]))
    assert min(gains) > 0


def test_pieces_train_as_the_whole(tmp_path):
    runs = [trainer(tmp_path, micro_batch_size=size) for size in (None, 1)]
    for _ in range(3):
        (loss, norm, _), (theirs, their_norm, _) = (run.update(next(run.batches), 2e-2) for run in runs)
        assert loss == pytest.approx(theirs, rel=1e-4) and norm == pytest.approx(their_norm, rel=1e-3)


def test_the_stream_goes_on_where_it_was_and_parts_rows_among_processes():
    def stream(**options):
        return PairBatches(PAIRS, encode, batch_size=4, length=40, seed=3, **options)

    whole = list(itertools.islice(stream(), 6))
    begun = stream()
    for _ in range(3):
        next(begun)
    rest = stream()
    rest.load_state_dict(json.loads(json.dumps(begun.state_dict())))
    assert all(torch.equal(next(rest).rows.ids, batch.rows.ids) for batch in whole[3:])
    parts = [list(itertools.islice(stream(rank=rank, world_size=2), 3)) for rank in (0, 1)]
    for batch, *shares in zip(whole, *parts, strict=False):
        assert torch.equal(batch.rows.ids[:2], shares[0].rows.ids[:2])
        assert torch.equal(batch.rows.ids[2:4], shares[1].rows.ids[:2])
    with pytest.raises(InputError, match="same data and settings"):
        PairBatches(PAIRS[:3], encode, batch_size=4, length=40).load_state_dict(begun.state_dict())


def test_answers_that_are_too_long_are_named_or_left_out():
    pairs = [*PAIRS[:2], ("q", "y" * 60, "no")]
    with pytest.raises(InputError, match="record 2: 60 tokens are over length 40"):
        list(itertools.islice(PairBatches(pairs, encode, batch_size=3, length=40), 2))
    stream = PairBatches(pairs, encode, batch_size=3, length=40, skip_faulty=True)
    assert len(next(stream)) == 3 and stream.n_skipped in (1, 2)
    with pytest.raises(InputError, match="no pair fits"):
        next(PairBatches(pairs[2:], encode, batch_size=1, length=40, skip_faulty=True))


def test_without_an_adapter_there_is_nothing_to_compare_with():
    with pytest.raises(ConfigError, match="apply_lora"):
        PreferenceObjective(byte_model())
