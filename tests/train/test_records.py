"""train.records: every form in which people keep texts, pictures and sounds, read as one."""

import numpy as np
import PIL.Image
import pytest
import torch

from llamamm.errors import InputError
from llamamm.generation.prompts import Image, Sound
from llamamm.train.records import DESCRIBE, TRANSCRIBE, check_record, is_text, read_record


def told(record, folder=None):
    """A record as (role, parts), pictures and sounds as what they come from."""
    read = read_record(record, folder=folder)
    if read.text is not None:
        return read.text

    def parts(content):
        if isinstance(content, str):
            return content
        return [p if isinstance(p, str) else (type(p).__name__, str(p.source) if isinstance(p.source, str) or
                hasattr(p.source, "parts") else type(p.source).__name__) for p in content]  # fmt: skip

    return [(message["role"], parts(message["content"])) for message in read.messages]


PIL_IMAGE = PIL.Image.new("RGB", (4, 4))
A, B, W = ("Image", "a.png"), ("Image", "b.png"), ("Sound", "w.wav")


@pytest.mark.parametrize(("record", "expected"), [
    ({"text": "Once"}, "Once"),
    ({"prompt": "q", "completion": "a", "text": None}, [("user", "q"), ("assistant", "a")]),
    # LLaVA
    ({"id": 7, "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"},
                                                   {"from": "gpt", "value": "A cat."},
                                                   {"from": "human", "value": "Why?"},
                                                   {"from": "gpt", "value": "So."}]},
     [("user", [A, "What?"]), ("assistant", "A cat."), ("user", "Why?"), ("assistant", "So.")]),
    ({"image": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "Compare <image> with <image>."},
                                                     {"from": "gpt", "value": "No."}]},
     [("user", ["Compare ", A, " with ", B, "."]), ("assistant", "No.")]),
    ({"conversations": [{"from": "human", "value": "Say <image>"}, {"from": "gpt", "value": "<image>"}]},
     [("user", "Say <image>"), ("assistant", "<image>")]),  # no picture: it is text
    # messages
    ({"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "What?"},
                                                {"type": "audio", "path": "w.wav"}]},
                   {"role": "assistant", "content": "A cat."}]}, [("user", [A, "What?", W]), ("assistant", "A cat.")]),
    ({"messages": [{"role": "user", "content": "Is <image> like <audio>?"}, {"role": "assistant", "content": "Yes"}],
      "images": ["a.png"], "audios": ["w.wav"]}, [("user", ["Is ", A, " like ", W, "?"]), ("assistant", "Yes")]),
    ({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"},
                   {"role": "assistant", "content": "A cat."}], "images": ["a.png"]},
     [("system", "Be brief."), ("user", [A, "What?"]), ("assistant", "A cat.")]),
    # folders
    ({"file_name": "a.png", "text": "a cat"}, [("user", [A, DESCRIBE]), ("assistant", "a cat")]),
    ({"file_name": "w.wav", "transcription": "hello"}, [("user", [W, TRANSCRIBE]), ("assistant", "hello")]),
    ({"file_name": "a.png", "question": "Which?", "answer": "cat"}, [("user", [A, "Which?"]), ("assistant", "cat")]),
    ({"file_name": "notes.txt", "text": "words"}, "words"),
    # the Hub
    ({"image": PIL_IMAGE, "caption": "red"}, [("user", [("Image", "Image"), DESCRIBE]), ("assistant", "red")]),
    ({"image": {"bytes": b"png", "path": None}, "text": "red"},
     [("user", [("Image", "bytes"), DESCRIBE]), ("assistant", "red")]),
    ({"image": {"bytes": b"png", "path": None}, "conversations": [{"from": "human", "value": "<image>\nWhat?"},
                                                                  {"from": "gpt", "value": "red"}]},
     [("user", [("Image", "bytes"), "What?"]), ("assistant", "red")]),
    ({"audio": {"array": np.zeros(8), "sampling_rate": 8000, "path": "x"}, "sentence": "hm"},
     [("user", [("Sound", "ndarray"), TRANSCRIBE]), ("assistant", "hm")]),
    # preferences
    ({"prompt": "q", "chosen": "good", "rejected": "bad"}, [("user", "q"), ("assistant", "good")]),
    ({"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
      "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}]},
     [("user", "q"), ("assistant", "good")]),
    ({"prompt": "What?", "image": "a.png", "chosen": "good", "rejected": "bad"},
     [("user", [A, "What?"]), ("assistant", "good")]),
])  # fmt: skip
def test_each_form_as_a_conversation(record, expected):
    assert told(record) == expected
    assert is_text(record) == isinstance(expected, str)
    check_record(record)


def test_paths_begin_where_the_file_is(tmp_path):
    record = {"image": "sub/a.png", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}
    assert told(record, tmp_path)[0] == ("user", [("Image", str(tmp_path / "sub/a.png")), "?"])
    whole = {"messages": [{"role": "user", "content": [{"type": "audio", "path": "/w.wav"}]},
                          {"role": "assistant", "content": "!"}]}  # fmt: skip
    assert told(whole, tmp_path)[0] == ("user", [("Sound", "/w.wav")])


def test_pictures_and_sounds_of_a_record_in_their_order():
    record = {"messages": [{"role": "user", "content": "<audio><image>"}, {"role": "assistant", "content": "!"},
                           {"role": "user", "content": "<image>"}, {"role": "assistant", "content": "!"}],
              "images": ["a.png", "b.png"], "audios": ["w.wav"]}  # fmt: skip
    media = read_record(record).media
    assert [(type(m), str(m.source)) for m in media] == [(Sound, "w.wav"), (Image, "a.png"), (Image, "b.png")]
    assert read_record({"audio": {"array": np.zeros(8), "sampling_rate": 8000}, "text": "x"}).media[0].rate == 8000
    tensor = read_record({"audio": {"array": torch.zeros(8), "sampling_rate": 8000}, "text": "x"}).media[0]
    assert tensor.wave().shape == (16,)


def test_preferences_keep_the_worse_answer():
    assert read_record({"prompt": "q", "chosen": "good", "rejected": "bad"}).rejected == "bad"
    assert read_record({"prompt": "q", "response": "good"}).rejected is None


@pytest.mark.parametrize(("record", "message"), [
    ({"file_name": "a.mp4", "text": "x"}, "'a.mp4' is no picture"),
    ({"file_name": "a.png"}, "needs a text beside it"),
    ({"image": "a.png", "label": 3}, "needs a text beside it"),
    ({"image": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "<image>"},
                                                     {"from": "gpt", "value": ""}]},
     "1 <image> marker and 2 pictures"),
    ({"image": "a.png", "conversations": [{"from": "human", "value": "<image><image>"},
                                          {"from": "gpt", "value": ""}]},
     "2 <image> markers and 1 picture;"),
    ({"audios": ["a.wav", "b.wav"], "messages": [{"role": "user", "content": "<audio>"}]},
     "1 <audio> marker and 2 sounds"),
    ({"conversations": [{"from": "robot", "value": "x"}]}, r"conversations\[0\] must be"),
    ({"conversations": ["x"]}, r"conversations\[0\] must be"),
    ({"chosen": "good", "rejected": "bad"}, "needs the 'prompt'"),
    ({"prompt": "q", "chosen": 7, "rejected": "bad"}, "'chosen' must be a text"),
    ({"prompt": "q", "chosen": "a", "rejected": [{"role": "user", "content": "b"}]}, "'rejected' must be a text"),
    ({"messages": [{"role": "user", "content": [{"type": "video", "path": "x"}]}]}, "no known form"),
])  # fmt: skip
def test_what_does_not_fit_is_named(record, message):
    with pytest.raises(InputError, match=message):
        read_record(record)
