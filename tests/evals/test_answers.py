"""evals.answers: answers in batches as one by one."""

import pytest
import torch

from llamamm import Llama3Model, TextConfig
from llamamm.evals import answers as module
from llamamm.evals.answers import answers
from llamamm.generation.generate import generate
from llamamm.generation.prompts import Image, Sound
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import MultimodalLlama
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.senses.image_processor import ImageProcessor
from llamamm.train.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(["user assistant what is this a red picture"] * 9, tmp_path_factory.mktemp("words"),
                           vocab_size=300)  # fmt: skip


@pytest.fixture(scope="module")
def text_model(tokenizer):
    torch.manual_seed(0)
    return Llama3Model(TextConfig.tiny(vocab_size=tokenizer.vocab_size, tie_embeddings=False)).eval()


@pytest.fixture(scope="module")
def seeing(tokenizer):
    torch.manual_seed(0)
    cfg = MultimodalConfig.tiny(text=TextConfig.tiny(vocab_size=tokenizer.vocab_size, tie_embeddings=False))
    return MultimodalLlama(cfg).eval(), MultimodalProcessor(cfg, tokenizer, ImageProcessor.vit(32))


def asked(content):
    return [{"role": "user", "content": content}]


MEDIA = Image(torch.full((3, 40, 60), 200, dtype=torch.uint8)), Sound(torch.sin(torch.arange(8000) / 9))


def test_a_batch_answers_as_each_alone(seeing):
    """Words, pictures and sounds, of different lengths, in one batch."""
    questions = [asked(content) for content in (
        "what is this", [MEDIA[0], "what is this"], [MEDIA[1], "a"], [*MEDIA, "what is this a red picture"], "a red")]
    told = []
    options = {"max_new_tokens": 6}
    together = answers(*seeing, questions, batch_size=3, say=told.append, **options)
    assert told == [3, 5]
    assert together == [answers(*seeing, [question], **options)[0] for question in questions]
    assert together == answers(*seeing, questions, batch_size=16, **options)
    assert len(set(together)) > 2  # what is seen and heard matters


def test_a_text_models_tokenizer_will_do(text_model, tokenizer):
    questions = [asked("what is this"), asked("a")]
    together = answers(text_model, tokenizer, questions, max_new_tokens=5)
    assert together == [answers(text_model, tokenizer, [question], max_new_tokens=5)[0] for question in questions]
    assert all(together) and together[0] != together[1]


def test_an_answer_ends_before_what_stops_it(text_model, tokenizer, monkeypatch):
    stop = next(iter(tokenizer.stop_ids))
    red, this = tokenizer.encode(" red"), tokenizer.encode(" this")
    written = [[*red, stop, *this], [stop, *red, *this], [*this, *red, *red]]
    width = max(map(len, written))
    seen = {}

    def fake(_model, ids, n, *, stop_ids, **_options):
        seen.update(n=n, stop_ids=stop_ids)
        return torch.cat([ids, torch.tensor([row + [stop] * (width - len(row)) for row in written])], dim=1)

    monkeypatch.setattr(module, "generate", fake)
    questions = [asked(letter) for letter in "abc"]  # alike in length: in their order
    found = answers(text_model, tokenizer, questions, max_new_tokens=7)
    assert found == ["red", "", "this red red"]
    assert seen == {"n": 7, "stop_ids": tokenizer.stop_ids}


def test_nothing_asked_is_nothing_answered(text_model, tokenizer):
    assert answers(text_model, tokenizer, []) == []


def test_words_asked_twice_are_answered_once(text_model, tokenizer, monkeypatch):
    read, told = [], []

    def counted(model, ids, n, **options):
        read.append(len(ids))
        return generate(model, ids, n, **options)

    monkeypatch.setattr(module, "generate", counted)
    questions = [asked("what is this"), asked("a"), asked("what is this"), *[asked("a")] * 70]  # two rounds
    found = answers(text_model, tokenizer, questions, max_new_tokens=5, say=told.append)
    assert read == [2] and told == [2, 64, 73]
    assert found == [found[0], found[1], found[0], *[found[1]] * 70] and found[0] != found[1]


def test_pictures_with_the_same_words_are_each_looked_at(seeing):
    pictures = [Image(torch.full((3, 40, 60), shade, dtype=torch.uint8)) for shade in (0, 255)]
    given = answers(*seeing, [asked([picture, "what is this"]) for picture in pictures], max_new_tokens=8)
    assert given[0] != given[1]


def test_gated_blocks_look_from_the_first_token_on(tokenizer):
    cfg = MultimodalConfig.tiny(text=TextConfig.tiny(vocab_size=tokenizer.vocab_size), cross_layers=(0, 1))
    torch.manual_seed(0)
    model, processor = MultimodalLlama(cfg).eval(), MultimodalProcessor(cfg, tokenizer, ImageProcessor.vit(32))
    questions = [asked([MEDIA[0], "what is this"]), asked([MEDIA[0], "a"])]
    together = answers(model, processor, questions, max_new_tokens=4)
    assert together == [answers(model, processor, [question], max_new_tokens=4)[0] for question in questions]
