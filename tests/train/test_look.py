"""train.look: what data hold, what is wrong with them, and how they will be read."""

import json

import PIL.Image
import pytest
import torch

from llamamm import Llama3Model, TextConfig, save_pretrained
from llamamm.errors import InputError
from llamamm.multimodal.config import MultimodalConfig
from llamamm.multimodal.model import MultimodalLlama
from llamamm.multimodal.processor import MultimodalProcessor
from llamamm.senses.image_processor import ImageProcessor
from llamamm.senses.waves import save_wave
from llamamm.train.look import look_at
from llamamm.train.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    words = train_tokenizer(["user assistant Describe the picture. red What?"] * 9, folder, vocab_size=300)
    text = TextConfig.tiny(vocab_size=words.vocab_size, n_layers=1, hidden_size=16)
    cfg = MultimodalConfig.tiny(text=text)
    save_pretrained(MultimodalLlama(cfg), folder / "senses",
                    processor=MultimodalProcessor(cfg, words, ImageProcessor.vit(32)))  # fmt: skip
    save_pretrained(Llama3Model(text), folder / "text", tokenizer=words)
    return folder


@pytest.fixture
def data(tmp_path):
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    save_wave(tmp_path / "w.wav", torch.zeros(1600))
    lines = [
        {"text": "Just words."},
        {"file_name": "a.png", "text": "red"},
        {"messages": [{"role": "user", "content": [{"type": "audio", "path": "w.wav"},
                                                   {"type": "text", "text": "What?"}]},
                      {"role": "assistant", "content": "red"}]},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"file_name": "missing.png", "text": "red"},
        {"messages": [{"role": "user", "content": "q"}]},
    ]  # fmt: skip
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{broken\n")
    return str(path)


def test_everything_is_counted_and_each_fault_has_its_line(models, data):
    found = look_at(data, model=str(models / "senses"))
    assert dict(found.counts) == {"texts": 1, "conversations": 2, "pictures": 1, "sounds": 1, "preferences": 1}
    assert len(found.lengths) == 4 and all(0 < b <= a for a, b in zip(found.lengths, found.learned, strict=True))
    assert [fault.split("data.jsonl, ")[1].split(":")[0] for fault in found.faults] == ["line 5", "line 6", "line 7"]
    assert "No such file" in found.faults[0] and "does not answer" in found.faults[1] and "Expecting" in found.faults[2]
    assert dict(found.rows())["faulty"] == "3" and dict(found.rows())["texts"] == "1"


def test_three_records_are_shown_as_they_will_be_read(models, data):
    (first, text), (_, picture), (_, sound) = look_at(data, model=str(models / "senses")).shown
    assert first.endswith("line 1") and text.startswith("»") and "Just words." in text
    places = MultimodalConfig.tiny().n_image_places()
    assert f"[picture: {places} places]" in picture and "»red" in picture and "»[picture" not in picture
    assert "[sound: " in sound and sound.index("[sound: ") < sound.index("What?") < sound.index("»red")


def test_a_record_over_the_length_is_counted_and_one_with_media_is_a_fault(models, data):
    found = look_at(data, model=str(models / "senses"), length=12)
    assert found.n_long >= 2 and sum("cannot be cut, and length is 12" in fault for fault in found.faults) == 2


def test_a_text_model_reads_text_alone(models, data):
    found = look_at(data, model=str(models / "text"))
    assert dict(found.counts) == {"texts": 1, "preferences": 1}
    assert sum("reads text alone" in fault for fault in found.faults) == 3


def test_no_source_is_refused(models):
    with pytest.raises(InputError, match="No such file"):
        look_at("nowhere.jsonl", model=str(models / "text"))
