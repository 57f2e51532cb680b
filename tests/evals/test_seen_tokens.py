"""evals.seen_tokens: the same scores as the model's own, gradients to the pixels, controls of the same size."""

import pytest
import torch

from llamamm import from_pretrained
from llamamm.evals.seen_tokens import (
    as_many_others,
    asked_about,
    first_scores,
    noise_like,
    pixel_scores,
    tokens_of,
)
from llamamm.experiments.drawn_shapes import random_scenes
from llamamm.generation.prompts import Image

QUESTION = "what color is the shape?"


@pytest.fixture(scope="module")
def senses():
    llama, processor = from_pretrained("senses", dtype=torch.float32)
    return llama.requires_grad_(False), processor


def test_scores_are_the_models_own_and_the_places_the_processors(senses):
    llama, processor = senses
    pictures = [scene.draw() for scene in random_scenes(2)]
    tokens = tokens_of(llama, processor, pictures)
    x, where = asked_about(llama, processor, tokens, QUESTION)
    assert tokens.shape == (2, 9, llama.cfg.hidden_size) and where.sum(dim=1).tolist() == [11, 11]
    for row, picture in zip(first_scores(llama, x), pictures, strict=True):
        prompt = processor.chat([{"role": "user", "content": [Image(picture), QUESTION]}])
        own = llama(torch.tensor([prompt.ids]), last_only=True, **prompt.inputs)[0, -1]
        torch.testing.assert_close(row, own, atol=1e-3, rtol=1e-4)
    one_by_one = torch.cat([first_scores(llama, row[None]) for row in x])
    with torch.no_grad():  # what all rows begin with is read once
        torch.testing.assert_close(first_scores(llama, x), one_by_one, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(first_scores(llama, x[[0, 0]]), one_by_one[[0, 0]], atol=1e-3, rtol=1e-4)


def test_the_splice_that_is_given_is_used(senses):
    llama, processor = senses
    tokens = tokens_of(llama, processor, [random_scenes(1)[0].draw()])
    x, where = asked_about(llama, processor, tokens, QUESTION, lambda x, where, features: x)  # noqa: ARG005
    assert torch.equal(x[where], llama.embed_tokens(torch.zeros(11, dtype=torch.int64)))


def test_pixels_are_scored_as_the_processor_would_and_have_gradients(senses):
    llama, processor = senses
    picture = random_scenes(1)[0].draw()
    pixels = (picture / 255).requires_grad_()
    scores = pixel_scores(llama, processor, pixels, QUESTION)
    own = first_scores(llama, asked_about(llama, processor, tokens_of(llama, processor, [picture]), QUESTION)[0])[0]
    assert (scores - own).abs().max() < 0.5 and scores.argmax() == own.argmax()  # not rounded to whole numbers
    with torch.no_grad():
        several = pixel_scores(llama, processor, torch.stack([pixels.flip(0), pixels]), QUESTION)
    torch.testing.assert_close(several[1], scores, atol=1e-3, rtol=1e-4)
    scores.max().backward()
    assert pixels.grad.shape == (3, 64, 64) and pixels.grad.abs().max() > 0


def test_noise_moves_each_number_as_far_and_stays_a_picture():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(3, 32, 32, generator=generator)
    pixels[:, :4] = 1.0
    step = (pixels + 0.1 * torch.randn(3, 32, 32, generator=generator).sign()).clamp(0, 1) - pixels
    noisy = noise_like(step, pixels, generator)
    torch.testing.assert_close((noisy - pixels).abs(), step.abs())
    assert noisy.min() >= 0 and noisy.max() <= 1
    turned = ((noisy - pixels).sign() != step.sign()).float().mean()
    assert 0.3 < turned < 0.6


def test_as_many_others_are_others_and_as_many():
    chosen = [[0, 1], [], [8], list(range(6)), list(range(9))]
    others = as_many_others(chosen, 9)
    assert [len(some) for some in others] == [2, 0, 1, 3, 0]
    assert all(not {*a} & {*b} and len({*b}) == len(b) for a, b in zip(chosen, others, strict=True))
    assert others == as_many_others(chosen, 9) and as_many_others([[0]] * 20, 9, seed=1) != [[1]] * 20
