"""generation.beginning: what prompts begin with is read once, and nothing changes."""

import pytest
import torch

from llamamm import Llama3Model, TextConfig
from llamamm.generation.beginning import begun
from llamamm.generation.generate import generate, pad_left
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import MultimodalLlama

PROMPTS = {
    "alike in length": ([1, 2, 3, 4, 5, 9], [1, 2, 3, 7, 5, 6]),
    "padded by less than the beginning": ([1, 2, 3, 4, 5, 9, 11], [1, 2, 3, 8, 6], [1, 2, 3, 4, 5, 6]),
    "padded by more": ([1, 2, 3, *range(20, 31)], [1, 2, 3, 5], [1, 2, 9]),
    "one is what another begins with": ([1, 2, 3, 4, 5], [1, 2, 3]),
    "the same": ([1, 2, 3], [1, 2, 3]),
}
SHARED = dict(zip(PROMPTS, (3, 3, 2, 3, 2), strict=True))


@pytest.mark.parametrize("which", PROMPTS)
def test_what_is_written_is_the_same(tiny_model, which):
    prompts = PROMPTS[which]
    ids, padding = pad_left(prompts)
    cache = begun(tiny_model, prompts, room=4)
    assert cache.length == SHARED[which] and cache.max_length == ids.shape[1] + 4
    with torch.no_grad():
        scores = tiny_model(ids[:, cache.length :], cache=cache, padding=padding, last_only=True)
        torch.testing.assert_close(scores, tiny_model(ids, padding=padding, last_only=True))
    again = begun(tiny_model, prompts, room=4)
    assert torch.equal(generate(tiny_model, ids, 4, padding=padding, cache=again),
                       generate(tiny_model, ids, 4, padding=padding))  # fmt: skip


def test_what_stood_in_the_memory_of_padding_is_not_seen(tiny_model, monkeypatch):
    make, prompts = tiny_model.make_cache, PROMPTS["padded by less than the beginning"]

    def full_of_nan(*shape):
        cache = make(*shape)
        cache.keys.fill_(torch.nan), cache.values.fill_(torch.nan)
        return cache

    monkeypatch.setattr(tiny_model, "make_cache", full_of_nan)
    (ids, padding), cache = pad_left(prompts), begun(tiny_model, prompts)
    assert tiny_model(ids[:, cache.length :], cache=cache, padding=padding, last_only=True).isfinite().all()


def test_the_beginning_is_read_in_one_row(tiny_model):
    read = []
    tiny_model.register_forward_hook(lambda _module, args, _out: read.append(args[0].tolist()))
    begun(tiny_model, [[1, 2, 3, 4], [1, 2, 5, 6], [1, 2, 3]])
    assert read == [[[1, 2]]]


@pytest.mark.parametrize("prompts", [[[1, 2, 3]], [[1, 2], [2, 1]], [[1], [1]]])
def test_nothing_where_nothing_is_saved(tiny_model, prompts):
    assert begun(tiny_model, prompts) is None


def test_the_context_is_no_larger_than_it_is():
    model = Llama3Model(TextConfig.tiny(context_length=8))
    assert begun(model, [[1, 2, 3]] * 2, room=20).max_length == 8
    assert begun(model, [[1] * 9] * 2) is None


def test_pictures_are_each_looked_at_and_gated_blocks_look_from_the_first_token_on():
    cfg = MultimodalConfig.tiny()
    prompt = [1, 2, cfg.image_token, 3]
    assert begun(MultimodalLlama(cfg), [prompt, prompt]).length == 2
    assert begun(MultimodalLlama(MultimodalConfig.tiny(cross_layers=(0, 1))), [prompt, prompt]) is None
