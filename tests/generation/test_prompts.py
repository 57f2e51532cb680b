"""generation.prompts: parts and their checks, markers only where media are given."""

import base64
import io
import wave as wave_files

import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llamamm.errors import InputError
from llamamm.generation.prompts import (
    Image,
    Prompt,
    Sound,
    TextProcessor,
    as_processor,
    check_parts,
    on_device,
    place_media,
)
from llamamm.multimodal.model import Media
from llamamm.text.chat import chat_format

RED = PIL.Image.new("RGB", (8, 8), (255, 0, 0))
A, B, C = (Image(RED) for _ in range(3))
X, Y = (Sound(torch.zeros(100)) for _ in range(2))


# ---- sounds ----


def test_a_wave_is_brought_to_16_khz():
    tone = 0.5 * torch.sin(torch.arange(800) / 10)
    assert torch.equal(Sound(tone).wave(), tone)
    assert Sound(tone, rate=8000).wave().shape == (1600,)
    assert Sound(torch.full((100,), 16384, dtype=torch.int16)).wave()[50] == 0.5


def test_a_file_and_its_bytes_are_the_same_sound(tmp_path):
    file = io.BytesIO()
    with wave_files.open(file, "wb") as out:
        out.setnchannels(1), out.setsampwidth(2), out.setframerate(16_000)
        out.writeframes(torch.arange(1000, dtype=torch.int16).numpy().tobytes())
    (tmp_path / "a.wav").write_bytes(file.getvalue())
    waves = [Sound(s).wave() for s in (file.getvalue(), tmp_path / "a.wav", str(tmp_path / "a.wav"))]
    assert torch.equal(waves[0], torch.arange(1000) / 32768)
    assert torch.equal(waves[0], waves[1]) and torch.equal(waves[0], waves[2])


@pytest.mark.parametrize(("sound", "message"), [
    (Sound(torch.empty(0)), "no sound"), (Sound(torch.tensor([0.0, float("nan")])), "1 sample NaN or infinite of 2"),
    (Sound(b"not a sound"), "sound"), (Sound("nowhere.wav"), "nowhere.wav"), (Sound(torch.zeros(100), rate=3), "got 3"),
])  # fmt: skip
def test_a_sound_that_cannot_be_read(sound, message):  # fault 25
    with pytest.raises(InputError, match=message):
        sound.wave()


# ---- parts ----


def test_parts_keep_their_order_and_pil_images_become_images():
    checked = check_parts(["a", RED, X, "", A])
    assert [type(part) for part in checked] == [str, Image, Sound, str, Image]
    assert checked[1].source is RED and checked[4] is A
    assert check_parts([]) == [] and check_parts(("a",)) == ["a"]


@pytest.mark.parametrize(("parts", "message"), [
    ("a <image>", "got str"), (A, "got Image"), (None, "got NoneType"), ({"a": 1}, "got dict"),
    (["a", 3], "part 1 .*int"), ([torch.zeros(3, 8, 8)], "part 0 .*Tensor"), (["a", ["b"]], "part 1 .*list"),
    ([b"x"], "part 0 .*bytes"),
])  # fmt: skip
def test_what_are_no_parts(parts, message):
    with pytest.raises(InputError, match=message):
        check_parts(parts)


# ---- markers ----


def test_markers_by_hand():
    assert place_media("Is <image> like <image>?", images=[A, B]) == ["Is ", A, " like ", B, "?"]
    assert place_media("<audio><image>", images=[A], sounds=[X]) == [X, A]
    assert place_media("<image> <audio> <image>", images=[A, B], sounds=[X]) == [A, " ", X, " ", B]


def test_without_markers_media_come_first_images_before_sounds():
    assert place_media("What?", images=[A, B], sounds=[X]) == [A, B, X, "What?"]
    assert place_media("What is <audio>?", images=[A], sounds=[X]) == [A, "What is ", X, "?"]
    assert place_media("", images=[A]) == [A]


def test_markers_without_media_are_words():
    assert "".join(place_media("a <image> b <audio>")) == "a <image> b <audio>"
    parts = place_media("a <image> b <audio>", sounds=[X])
    assert parts[-1] is X and "".join(parts[:-1]) == "a <image> b "
    assert place_media("<|image|>", images=[A]) == [A, "<|image|>"]


@pytest.mark.parametrize(("text", "media", "message"), [
    ("<image> <image>", {"images": [A]}, "2 <image> markers, but 1 "),
    ("<image>", {"images": [A, B]}, "1 <image> marker, but 2 "),
    ("<image> <audio> <audio>", {"images": [A], "sounds": [X]}, "2 <audio> markers, but 1 "),
])  # fmt: skip
def test_markers_and_media_that_do_not_match(text, media, message):  # fault 22
    with pytest.raises(InputError, match=message):
        place_media(text, **media)


@given(st.lists(st.sampled_from(["<image>", "<audio>", "x", " <", "image>", "é\n"]), max_size=12))
def test_nothing_is_lost_and_each_is_in_its_place(pieces):
    text = "".join(pieces)
    images = [Image(RED) for _ in range(text.count("<image>"))]
    sounds = [Sound(torch.zeros(1)) for _ in range(text.count("<audio>"))]
    parts = place_media(text, images=images, sounds=sounds)
    names = {Image: "<image>", Sound: "<audio>"}
    assert "".join(part if isinstance(part, str) else names[type(part)] for part in parts) == text
    assert [p for p in parts if isinstance(p, Image)] == images
    assert [p for p in parts if isinstance(p, Sound)] == sounds


# ---- a text model's prompts ----


def test_a_text_models_prompts(llama, smol):
    for tokenizer in (llama, smol):
        processor = TextProcessor(tokenizer)
        assert processor.prompt(["Hello", " world"]).ids == tokenizer.encode("Hello world", bos=tokenizer.adds_bos)
        assert processor.prompt(["Hi"], bos=False) == Prompt(tokenizer.encode("Hi"))
        messages = [{"role": "user", "content": "Hi <|image|>"}]
        assert processor.chat(messages).ids == chat_format(tokenizer).encode(messages)
        short, long = processor.prompt(["a"]), processor.prompt(["a b c d"])
        ids, padding, inputs = processor.batch([short, long])
        assert ids.shape == padding.shape == (2, len(long.ids)) and inputs == {}
        assert ids[0][padding[0]].tolist() == short.ids and padding[1].all()


@pytest.mark.parametrize(("part", "named"), [(A, "an image"), (RED, "an image"), (X, "a sound")])
def test_a_text_model_refuses_media(smol, part, named):
    processor = TextProcessor(smol)
    for make in (lambda: processor.prompt(["a", part]),
                 lambda: processor.chat([{"role": "user", "content": ["a", part]}])):  # fmt: skip
        with pytest.raises(InputError, match=f"text alone.*{named}"):
            make()


def test_as_processor(smol):
    processor = as_processor(smol)
    assert isinstance(processor, TextProcessor) and processor.tokenizer is smol
    assert as_processor(processor) is processor


def test_inputs_move_to_the_models_device():
    moved = on_device({"media": Media(torch.zeros(1), None, torch.ones(2))}, "meta")["media"]
    assert (moved.pixels.device.type, moved.mel, moved.lengths.device.type) == ("meta", None, "meta")
    assert on_device({}, "meta") == {}


# ---- parts as dicts ----

PNG = io.BytesIO()
RED.save(PNG, "PNG")
CODE = base64.b64encode(PNG.getvalue()).decode()


@pytest.mark.parametrize(("part", "kind", "source"), [
    ({"type": "text", "text": "Hi"}, str, "Hi"),
    ({"type": "image", "image": RED}, Image, RED), ({"type": "image", "path": "a.png"}, Image, "a.png"),
    ({"type": "image", "url": "a.png"}, Image, "a.png"), ({"type": "image", "image": A}, Image, RED),
    ({"type": "image", "url": None, "image": RED}, Image, RED),
    ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{CODE}", "detail": "low"}}, Image,
     PNG.getvalue()),
    ({"type": "image_url", "image_url": "a.png"}, Image, "a.png"),
    ({"type": "audio", "path": "a.wav"}, Sound, "a.wav"),
    ({"type": "input_audio", "input_audio": {"data": CODE, "format": "wav"}}, Sound, PNG.getvalue()),
])  # fmt: skip
def test_parts_as_others_write_them(part, kind, source):
    read, = check_parts([part])
    assert type(read) is kind and (read if kind is str else read.source) == source


@pytest.mark.parametrize("part", [
    {"type": "image"}, {"type": "video", "video": "a.mp4"}, {"text": "Hi"}, {},
    {"type": "text", "text": "a", "cache": 1}, {"type": "image", "image": "a.png", "url": "b.png"},
    {"role": "user", "content": "a"}, {"type": ["text"], "text": "a"},
])  # fmt: skip
def test_other_dicts_are_refused_with_an_example(part):
    with pytest.raises(InputError, match=r"part 0 of the prompt is a dict .*write .*Image\("):
        check_parts([part])


@pytest.mark.parametrize(("part", "said"), [
    ({"type": "text", "text": 3}, "int"), ({"type": "input_audio", "input_audio": {"data": "%%%"}}, "base64"),
])  # fmt: skip
def test_dicts_that_hold_the_wrong_thing(part, said):
    with pytest.raises(InputError, match=said):
        check_parts([part])


@pytest.mark.parametrize("content", [
    ("Hi ", "you"), ["Hi ", "you"], [{"type": "text", "text": "Hi "}, "you"], ({"type": "text", "text": "Hi you"},),
])  # fmt: skip
def test_a_content_of_words_is_any_sequence_of_them(smol, content):
    processor = TextProcessor(smol)
    messages = [{"role": "user", "content": "Hi you"}, {"role": "assistant", "content": "Hi you"}]
    parts = tuple({**message, "content": content} for message in messages)
    assert processor.chat(parts).ids == processor.chat(messages).ids


@pytest.mark.parametrize("messages", [None, 3, "Hi", {"role": "user"}, [None], [{"role": "user", "content": b"Hi"}],
                                      [{"role": "user", "content": None}], [{"content": "Hi"}]])  # fmt: skip
def test_what_is_no_conversation_is_refused(smol, messages):
    with pytest.raises(InputError):
        TextProcessor(smol).chat(messages)


def test_an_open_file_is_a_sound():
    wave = io.BytesIO()
    with wave_files.open(wave, "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes(torch.arange(100, dtype=torch.int16).numpy().tobytes())
    wave.seek(0)
    sound = Sound(wave)
    assert torch.equal(sound.wave(), sound.wave()) and len(sound.wave()) == 100
    assert torch.equal(Sound(torch.zeros(100).numpy()).wave(), torch.zeros(100))


def test_counts_are_said_in_english():
    with pytest.raises(InputError, match="2 <image> markers, but 1 was given"):
        place_media("<image> <image>", images=[A])
