"""The skill that comes with the package: its size, its parts, and that it sees, hears and still reads."""

import pytest
import torch

from llamamm import Image, Sound, from_pretrained
from llamamm.evals.answers import answers
from llamamm.experiments.release import PARTS
from llamamm.files import read_json
from llamamm.lora.lora import lora_modules
from llamamm.multimodal.compact import compacted
from llamamm.multimodal.model import MultimodalLlama
from llamamm.pretrained.locate import BUILT_IN, EXAMPLE_PICTURE, EXAMPLE_SOUND

FOLDER = BUILT_IN["senses"]


@pytest.fixture(scope="module")
def senses():
    return from_pretrained("senses", dtype=torch.float32)


def asked(pair, medium, question):
    model, processor = pair
    content = [medium, question] if medium else question
    return answers(model, processor, [[{"role": "user", "content": content}]])[0]


def test_it_fits_into_15_megabytes_and_says_what_it_is_made_of():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 15 * 10**6
    assert read_json(FOLDER / "skill.json")["compose"] == PARTS
    assert read_json(FOLDER / "adapter_config.json")["base_model_name_or_path"] == "senses"


def test_it_sees_and_hears_what_it_has_not_met(senses):
    assert asked(senses, Image(EXAMPLE_PICTURE), "What is this?") == "blue rectangle"
    assert asked(senses, Image(EXAMPLE_PICTURE), "what is the color of the shape?") == "blue"
    assert asked(senses, Sound(EXAMPLE_SOUND), "What is said?") == "that must be a great feeling"


def test_it_still_answers_without_either(senses):
    assert "Paris" in asked(senses, None, "What is the capital of France?")


def test_its_adapter_is_merged_so_that_another_can_be_trained_beside_it(senses):
    model, processor = senses
    assert isinstance(model, MultimodalLlama) and not lora_modules(model) and processor.cfg.audio_bridge.compact


def test_tokens_of_the_sentence_say_its_words(senses):
    """Before any block of the text model runs."""
    model, processor = senses
    features = model.perceive(processor.prompt([Sound(EXAMPLE_SOUND)]).inputs["media"])
    tokens, mask = model.bridged(features)["audio"]
    table, known = model.embed_tokens.weight, model.audio_bridge.known > 0.5
    read = compacted(tokens, mask, table, known)[0]
    spoken = read[(read - table.mean(dim=0)).abs().amax(dim=1) > 1e-4]
    nearest = torch.cdist(spoken, table).argmin(dim=1)  # of the whole vocabulary
    assert known.sum() < len(known) and known[nearest].all()
    read = processor.tokenizer.decode(nearest.tolist()).lower()
    assert {"that", "must", "great", "feeling"} <= {*read.split()}, read
