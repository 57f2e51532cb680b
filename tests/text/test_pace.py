"""text.pace: by a clock that the tests turn, the number of threads that pays; the same numbers with any of them."""

import copy

import pytest
import torch

from llamamm import Llama3Model, TextConfig, TokenStream
from llamamm.text import pace as pace_module
from llamamm.text.pace import LONGEST_WAIT, TRIAL, Pace


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Machine:
    """A block whose time depends on the number of threads, on a clock of its own."""

    def __init__(self, monkeypatch, **seconds):
        self.seconds, self.now, self.ran = {int(n[1:]): s for n, s in seconds.items()}, 0.0, []
        monkeypatch.setattr(pace_module.time, "perf_counter", lambda: self.now)
        self.pace = Pace()

    def block(self, x, *, cache):  # noqa: ARG002
        self.ran.append(torch.get_num_threads())
        self.now += self.seconds[self.ran[-1]]
        return x

    def run(self, n_blocks, x=None):
        x = torch.zeros(1, 1, 8) if x is None else x
        del self.ran[:]
        for _ in range(n_blocks):
            self.pace.run(self.block, x, cache="one")
        return self.ran


def test_where_two_threads_pay_they_go_on_and_trials_become_rare(monkeypatch):
    machine = Machine(monkeypatch, n1=1.6, n2=1.0)
    ran = machine.run(20 * LONGEST_WAIT)
    assert ran[0] == 2 and 1 in ran[:40]
    assert ran.count(1) < 0.01 * len(ran)
    assert machine.now < 1.01 * len(ran)


def test_where_a_core_is_taken_one_thread_takes_over_within_two_tokens(monkeypatch):
    machine = Machine(monkeypatch, n1=1.6, n2=30.0)
    assert machine.run(60)[30:].count(2) <= 1
    # trying two threads again costs, and is given up after one block
    assert machine.run(20 * LONGEST_WAIT).count(2) <= 30


def test_it_notices_a_core_that_is_taken_later_and_given_back(monkeypatch):
    machine = Machine(monkeypatch, n1=1.6, n2=1.0)
    machine.run(5 * LONGEST_WAIT)
    machine.seconds[2] = 30.0
    assert machine.run(4 * TRIAL)[-TRIAL:].count(1) >= TRIAL - 1
    machine.run(5 * LONGEST_WAIT)
    machine.seconds[2] = 1.0
    assert machine.run(LONGEST_WAIT + 2 * TRIAL).count(2) >= TRIAL


def test_of_many_threads_it_finds_the_best_number(monkeypatch):
    torch.set_num_threads(6)
    machine = Machine(monkeypatch, n6=9.0, n3=1.0, n1=2.0)
    machine.run(200)
    assert machine.run(400).count(3) > 380


def test_a_gain_within_the_noise_changes_nothing(monkeypatch):
    machine = Machine(monkeypatch, n1=0.95, n2=1.0)
    assert machine.run(10 * LONGEST_WAIT).count(2) > 0.98 * 10 * LONGEST_WAIT


@pytest.mark.parametrize("x", [torch.zeros(1, 2, 8), torch.zeros(5, 1, 8), torch.zeros(1, 1, 8).bfloat16()])
def test_other_work_than_decoding_keeps_all_threads(monkeypatch, x):
    machine = Machine(monkeypatch, n1=1.0, n2=30.0)
    assert set(machine.run(200, x)) == {2}


def test_threads_are_what_they_were_afterwards_even_after_an_error(monkeypatch):
    machine = Machine(monkeypatch, n1=1.6, n2=30.0)
    machine.run(100)
    assert torch.get_num_threads() == 2

    def fails(x, *, cache):  # noqa: ARG001
        raise ValueError(f"with {torch.get_num_threads()}")

    with pytest.raises(ValueError, match="with 1"):
        machine.pace.run(fails, torch.zeros(1, 1, 8), cache="one")
    assert torch.get_num_threads() == 2
    assert machine.pace.follow(lambda x: x + torch.get_num_threads(), torch.zeros(1, 1, 8)).max() == 1
    torch.set_num_threads(3)  # whoever sets another number begins anew
    machine.seconds[3] = 1.0
    assert machine.run(3) == [3, 3, 3]


@torch.inference_mode()
def decode(model, first, n):
    cache, logits = model.make_cache(batch_size=first.shape[0]), []
    model(first, cache=cache)
    for i in range(n):
        logits.append(model(first[:, i : i + 1], cache=cache))
    return torch.cat(logits, dim=1)


def test_logits_are_the_same_bit_for_bit_with_any_number_of_threads(monkeypatch, generator):
    """The large products and the long attention are where threads share."""
    torch.manual_seed(0)
    cfg = TextConfig.tiny(hidden_size=576, n_heads=9, n_kv_heads=3, intermediate_size=1536, vocab_size=5000,
                          context_length=512)  # fmt: skip
    model = Llama3Model(cfg).eval()
    ids = torch.randint(5000, (2, 200), generator=generator)
    torch.set_num_threads(4)
    expected = decode(model, ids, 12)
    monkeypatch.setattr(Pace, "_note", lambda *_: None)  # no clock: the number stays as set here
    for n in (1, 2):
        model.pace._best = n
        assert torch.equal(decode(model, ids, 12), expected), n


def test_a_model_that_is_copied_has_a_pace_of_its_own(tiny_model):
    other = copy.deepcopy(tiny_model)
    assert other.pace is not tiny_model.pace
    assert other.layers[0].self_attn.attend.func.__self__ is other.pace
    ids = torch.tensor([[1, 2, 3]])
    assert list(TokenStream(other, ids, max_new_tokens=5)) == list(TokenStream(tiny_model, ids, max_new_tokens=5))
