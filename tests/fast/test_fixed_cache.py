"""fast.fixed_cache: one graph for all lengths, the same tokens, and a cache whose memory is lent and given back.

`aot_eager` traces as the real compiler does, and needs none."""

import copy

import pytest
import torch

from llamamm import Llama3Model, TextConfig, apply_lora, generate
from llamamm.errors import InputError
from llamamm.fast.fixed_cache import FixedCacheStep
from llamamm.fast.quantized import quantize
from llamamm.generation.generate import TokenStream, pad_left

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
LENGTH = 64


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def ids_of(n, rows=1, seed=0):
    return torch.randint(0, 512, (rows, n), generator=torch.Generator().manual_seed(seed))


def with_and_without(model, ids, n=8, **options):
    step, model.fast = model.fast, None
    expected = generate(model, ids, n, **options)
    model.fast = step
    return generate(model, ids, n, **options), expected


@pytest.fixture
def fixed():
    """Its blocks change much: else each token is its own best successor, whatever the cache holds."""
    torch.manual_seed(0)
    model = Llama3Model(TextConfig.tiny(vocab_size=512, hidden_size=64, n_heads=4, n_kv_heads=2)).eval()
    for weight in model.layers.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    model.fast = FixedCacheStep(LENGTH, backend="aot_eager")
    return model


def test_one_graph_for_prompts_and_answers_of_all_lengths(fixed):
    assert torch.equal(*with_and_without(fixed, ids_of(7)))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n_prompt, n_new in ((1, 5), (2, LENGTH - 2), (40, 7), (LENGTH - 3, 3)):
            assert torch.equal(*with_and_without(fixed, ids_of(n_prompt, seed=n_prompt), n_new))


def test_the_compiled_step_is_what_runs(fixed, monkeypatch):
    steps = []
    step = fixed.fast._step
    monkeypatch.setattr(fixed.fast, "_step", lambda *args: steps.append(args[-1].tolist()) or step(*args))
    generate(fixed, ids_of(7), 4)
    assert steps == [[7], [8], [9]]


@pytest.mark.parametrize("change", [
    lambda model: quantize(model, 8), lambda model: apply_lora(model, r=2, alpha=4), lambda model: model.bfloat16()])
def test_models_of_other_parts(fixed, change):
    change(fixed)
    assert torch.equal(*with_and_without(fixed, ids_of(7)))


def test_two_streams_in_turn_keep_what_they_have_read(fixed):
    """The memory goes from one to the other at each step."""
    streams = [TokenStream(fixed, ids_of(n, seed=n), max_new_tokens=8) for n in (5, 9)]
    taken = [[int(token) for token in pair] for pair in zip(*streams, strict=True)]
    for n, tokens in zip((5, 9), zip(*taken, strict=True), strict=True):
        fixed.fast = None
        assert generate(fixed, ids_of(n, seed=n), 8)[0, n:].tolist() == list(tokens)


def test_what_another_answer_left_behind_is_hidden_even_where_it_is_no_number(fixed):
    generate(fixed, ids_of(30), 8)
    cache = fixed.make_cache(1, 40)
    cache.keys.fill_(torch.nan)  # as memory may be that nobody has written yet
    cache.values.fill_(torch.nan)
    found = [int(token) for token in TokenStream(fixed, ids_of(7), max_new_tokens=8, cache=cache)]
    fixed.fast = None
    assert found == generate(fixed, ids_of(7), 8)[0, 7:].tolist()


def test_rows_are_decoded_together_and_padding_is_left_to_pytorch(fixed):
    assert torch.equal(*with_and_without(fixed, ids_of(7, rows=3)))
    ids, padding = pad_left([ids_of(3)[0].tolist(), ids_of(9)[0].tolist()])
    assert torch.equal(*with_and_without(fixed, ids, padding=padding))


def test_longer_answers_are_left_to_pytorch_and_gradients_too(fixed):
    assert torch.equal(*with_and_without(fixed, ids_of(LENGTH - 2), 8))
    cache = fixed.make_cache(1, 8)
    assert fixed(ids_of(1), cache=cache).requires_grad
    with pytest.raises(InputError, match="1 token or more, got 0"):
        FixedCacheStep(0)


def test_a_copied_model_has_a_cache_of_its_own(fixed):
    generate(fixed, ids_of(7), 4)
    other = copy.deepcopy(fixed)
    assert other.fast is not fixed.fast and other.fast.length == LENGTH
    assert torch.equal(*with_and_without(other, ids_of(7)))
