"""multimodal.processor: ids with places in any order, chats, long sounds, batches, files."""

import io
import json

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamm import TextStream, from_pretrained, generate, save_pretrained
from llamamm.errors import ConfigError, InputError
from llamamm.generation.prompts import Image, Prompt, Sound
from llamamm.generation.session import ChatSession
from llamamm.multimodal.config import BridgeConfig, MultimodalConfig
from llamamm.multimodal.model import Media, MultimodalLlama
from llamamm.multimodal.processor import MultimodalProcessor, join_media, make_media
from llamamm.senses.image_processor import ImageProcessor
from llamamm.senses.mel import log_mel
from llamamm.text.chat import ChatML, Llama3Chat, chat_format
from llamamm.text.config import TextConfig

RED, BLUE = (PIL.Image.new("RGB", (40, 20), colour) for colour in ((255, 0, 0), (0, 0, 255)))
SMOL = 49_152  # its image token; 49,153 stands for sounds
PICTURE = 6  # places: 4 x 4 patches merged by 2 x 2, a start and an end


def tone(n, *, pitch=0.1):
    return Sound(0.5 * torch.sin(torch.arange(n) * pitch))


def processor_of(tokenizer, **changes):
    cfg = MultimodalConfig.tiny(text=TextConfig.tiny(vocab_size=tokenizer.vocab_size), **changes)
    return MultimodalProcessor(cfg, tokenizer, None if cfg.vision is None else ImageProcessor.vit(32))


@pytest.fixture(scope="module")
def processor(smol):
    return processor_of(smol)


@pytest.fixture(scope="module")
def crossing(smol):
    return processor_of(smol, cross_layers=(0, 1))


def model_of(processor):
    torch.manual_seed(0)
    model = MultimodalLlama(processor.cfg).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name and parameter.numel() == 1:
                parameter.fill_(0.7)
            elif "norm" not in name:
                parameter.normal_(0, 0.12)
    return model


@pytest.fixture(scope="module")
def model(processor):
    return model_of(processor)


# ---- one prompt ----


def test_a_prompt_by_hand(processor, smol):
    prompt = processor.prompt(["Is ", Image(RED), " like ", tone(2000), "?"])
    words = [smol.encode(w) for w in ("Is ", " like ", "?")]
    # 2,000 samples are 7 places of 320, two tokens of 4 places each
    assert prompt.ids == [*words[0], *[SMOL] * 6, *words[1], *[SMOL + 1] * 4, *words[2]]
    assert [type(m) for m in prompt.media] == [Image, Sound] and prompt.media[0].source is RED
    media = prompt.inputs["media"]
    assert media.pixels.shape == (1, 3, 32, 32) and media.mel.shape == (1, 16, 14) and media.lengths.tolist() == [7]
    assert torch.equal(media.pixels, processor.image_processor(RED))
    assert torch.equal(media.mel[0], log_mel(tone(2000).wave(), n_mels=16)[:, :14])


def test_where_they_are_attended_to_each_takes_one_place(crossing, smol):
    prompt = crossing.prompt([Image(RED), "a", tone(2000), Image(BLUE)])
    assert prompt.ids == [SMOL, *smol.encode("a"), SMOL + 1, SMOL]
    assert prompt.inputs["media"].pixels.shape[0] == 2


def test_begin_of_text(processor, llama, smol):
    with_bos = processor_of(llama)
    assert with_bos.prompt(["Hi"]).ids == llama.encode("Hi", bos=True)
    assert with_bos.prompt(["Hi"], bos=False).ids == llama.encode("Hi")
    assert with_bos.prompt([Image(RED)]).ids == [llama.bos_id, *[128_256] * 6]
    assert processor.prompt(["Hi"]).ids == smol.encode("Hi")
    assert processor.prompt([]).ids and with_bos.prompt([""]).ids == [llama.bos_id]  # fault 14


def test_text_alone_has_no_inputs(processor, smol):
    prompt = processor.prompt(["Hello", " world"])
    assert prompt == Prompt(smol.encode("Hello") + smol.encode(" world")) and prompt.inputs == {}


@pytest.mark.parametrize("text", ["<|image|>", "<|audio|>", "<image> <audio>", "<|im_end|>", "<|endoftext|>"])
def test_what_people_type_is_text(processor, smol, text):  # fault 13
    special = set(smol.special_tokens.values()) | {SMOL, SMOL + 1}
    typed = processor.prompt([text], bos=False)
    assert not special & set(typed.ids) and smol.decode(typed.ids) == text and typed.inputs == {}
    chat = processor.chat([{"role": "user", "content": ["x", text, Image(RED)]}])
    plain = processor.chat([{"role": "user", "content": ["x", Image(RED)]}])
    assert [i for i in chat.ids if i in special] == [i for i in plain.ids if i in special]
    assert chat.ids.count(SMOL) == PICTURE


def test_media_stay_in_their_order(processor):
    sounds = [tone(n) for n in (400, 8000, 3000)]
    prompt = processor.prompt([Image(RED), sounds[0], BLUE, sounds[1], "x", Image(RED), sounds[2]])
    media = prompt.inputs["media"]
    assert media.lengths.tolist() == [2, 25, 10] and media.mel.shape == (3, 16, 50)
    red, blue = processor.image_processor(RED)[0], processor.image_processor(BLUE)[0]
    assert all(torch.equal(*pair) for pair in zip(media.pixels, (red, blue, red), strict=True))
    assert [m for m in prompt.media if isinstance(m, Sound)] == sounds and len(prompt.media) == 6


@pytest.mark.parametrize(("n", "pieces"), [
    (16_000, [50]), (16_001, [50, 1]), (1, [1]), (40_000, [50, 50, 25]), (319, [1]), (321, [2]),
])  # fmt: skip
def test_a_long_sound_becomes_pieces(processor, crossing, n, pieces):
    """This model hears one second at a time; Whisper's encoder thirty."""
    prompt = processor.prompt(["a", tone(n)], bos=False)
    assert prompt.inputs["media"].lengths.tolist() == pieces
    assert prompt.ids.count(SMOL + 1) == sum(-(-piece // 4) + 2 for piece in pieces)
    assert crossing.prompt([tone(n)]).ids == [SMOL + 1] * len(pieces)
    assert len(prompt.media) == 1


def test_a_perceivers_places(smol):
    processor = processor_of(smol, image_bridge=BridgeConfig(latents=3), audio_bridge=BridgeConfig(latents=5))
    prompt = processor.prompt([Image(RED), tone(500), tone(9000)])
    assert (prompt.ids.count(SMOL), prompt.ids.count(SMOL + 1)) == (5, 14)


# ---- chats ----

CHAT = [{"role": "system", "content": "Be brief."},
        {"role": "user", "content": [Image(RED), "What is it?", tone(2000)]},
        {"role": "assistant", "content": "A flag."},
        {"role": "user", "content": ["And ", BLUE, "?"]}]  # fmt: skip


@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("make", [ChatML, Llama3Chat, lambda t: Llama3Chat(t, variant="hf")])
def test_a_conversation_is_the_text_formats_with_places(smol, llama, make, generation):
    tokenizer = smol if make is ChatML else llama
    processor, chat = processor_of(tokenizer), make(tokenizer)
    prompt = processor.chat(CHAT, add_generation_prompt=generation, chat=chat)
    image, sound = [processor.cfg.image_token] * 6, [processor.cfg.audio_token] * 4
    contents = ["Be brief.", [image, "What is it?", sound], "A flag.", ["And ", image, "?"]]
    with_ids = [{"role": m["role"], "content": c} for m, c in zip(CHAT, contents, strict=True)]
    assert prompt.ids == chat.encode(with_ids, add_generation_prompt=generation)
    assert prompt.inputs["media"].pixels.shape[0] == 2 and prompt.inputs["media"].lengths.tolist() == [7]
    assert [type(m) for m in prompt.media] == [Image, Sound, Image]


def test_a_conversation_by_hand(processor, smol):
    prompt = processor.chat([{"role": "system", "content": "s"}, {"role": "user", "content": [RED, "Hi"]}])
    start, end = (smol.special_tokens[name] for name in ("<|im_start|>", "<|im_end|>"))
    assert prompt.ids == [
        start, *smol.encode("system\ns"), end, *smol.encode("\n"), start, *smol.encode("user\n"), *[SMOL] * 6,
        *smol.encode("Hi"), end, *smol.encode("\n"), start, *smol.encode("assistant\n")]  # fmt: skip


def test_a_conversation_of_words_is_the_text_models(processor, smol):
    words = [{"role": "user", "content": "Hi <image>"}]
    assert processor.chat(words) == Prompt(chat_format(smol).encode(words))


@pytest.mark.parametrize(("messages", "message"), [
    ([], "empty"), ("Hi", "got str"), ([{"role": "user", "content": [3]}], "part 0 .*int"),
    ([{"role": "user", "content": None}], "NoneType"), ([{"role": "usr", "content": [RED]}], "'usr'"),
    ([{"role": "assistant", "content": [RED]}], "message 0 .*list"), (["Hi"], "message 0 "),
    ([{"role": "user", "content": [[SMOL] * 6, "x"]}], "part 0 .*list"),  # ids are not for users to give
    ([{"role": "user", "content": [RED], "name": "x"}], "nothing else"),
])  # fmt: skip
def test_messages_that_are_wrong(processor, messages, message):
    with pytest.raises(InputError, match=message):
        processor.chat(messages)


# ---- what cannot be read (faults 24 and 25), and organs that are missing ----


@pytest.mark.parametrize(("part", "message"), [
    (Image(b"no image"), "no whole image"), (Image("nowhere.png"), "nowhere.png"),
    (Image(np.full((4, 4, 3), 2.0)), "0..1"), (Image([RED, BLUE]), "list"), (Sound(torch.empty(0)), "no sound"),
    (Sound(torch.full((100,), float("nan"))), "100 samples NaN or infinite of 100"), (Sound(b"no sound"), "sound"),
    (Sound(torch.full((100,), 900.0)), "900"), (3, "part 1 .*int"),
])  # fmt: skip
def test_what_cannot_be_read(processor, part, message):
    for make in (lambda: processor.prompt(["x", part]),
                 lambda: processor.chat([{"role": "user", "content": ["x", part]}])):  # fmt: skip
        with pytest.raises(InputError, match=message):
            make()


def test_a_cut_file_is_refused(processor):
    file = io.BytesIO()
    PIL.Image.effect_noise((64, 64), 90).save(file, "PNG")
    with pytest.raises(InputError):
        processor.prompt([Image(file.getvalue()[:900])])
    assert processor.prompt([Image(file.getvalue())]).ids == [SMOL] * 6


@pytest.mark.parametrize("image", [PIL.Image.new("RGBA", (3, 90)), PIL.Image.new("CMYK", (1, 1)),
                                   PIL.Image.new("I;16", (50, 10)), torch.zeros(3, 9, 70, dtype=torch.uint8)])
def test_any_picture_takes_the_same_places(processor, image):
    prompt = processor.prompt([Image(image)])
    assert prompt.ids == [SMOL] * 6 and prompt.inputs["media"].pixels.shape == (1, 3, 32, 32)


def test_sounds_of_any_rate_and_kind(processor):
    stereo = torch.stack([tone(800).source, tone(800).source])
    for sound in (Sound(tone(400).source, rate=8000), Sound(stereo), Sound((tone(800).source * 32767).short())):
        assert processor.prompt([sound]).inputs["media"].lengths.tolist() == [3]


def test_missing_organs(smol):
    blind, deaf = processor_of(smol, vision=None), processor_of(smol, audio=None)
    with pytest.raises(InputError, match="no eye, but the prompt holds an image"):
        blind.prompt(["a", Image(RED)])
    with pytest.raises(InputError, match="no ear, but the prompt holds a sound"):
        deaf.chat([{"role": "user", "content": [tone(400)]}])
    assert blind.prompt([tone(400)]).inputs["media"].pixels is None
    assert deaf.prompt([Image(RED)]).inputs["media"].mel is None


def test_settings_that_do_not_fit(smol, processor):
    with pytest.raises(ConfigError, match="needs an image processor"):
        MultimodalProcessor(processor.cfg, smol)
    wrong = MultimodalProcessor(processor.cfg, smol, ImageProcessor.vit(48))
    with pytest.raises(InputError, match=r"gives \(48, 48\) pixels, the model reads \(32, 32\)"):
        wrong.prompt([Image(RED)])


# ---- batches ----

PROMPTS = [["Hello"], [Image(RED), "What?"], ["a b c", tone(9000)], [tone(500), Image(BLUE), Image(RED), tone(17_000)]]


@torch.no_grad()
@pytest.mark.parametrize("which", ["processor", "crossing"])
def test_a_batch_equals_one_by_one(which, request):
    processor = request.getfixturevalue(which)
    model, prompts = model_of(processor), [processor.prompt(parts) for parts in PROMPTS]
    ids, padding, inputs = processor.batch(prompts)
    assert padding.sum(dim=1).tolist() == [len(prompt.ids) for prompt in prompts]
    out = model(ids, padding=padding, **inputs)
    answers = generate(model, ids, 5, padding=padding, inputs=inputs)[:, ids.shape[1] :]
    for b, prompt in enumerate(prompts):
        alone = torch.tensor([prompt.ids])
        assert ids[b][padding[b]].tolist() == prompt.ids
        assert (out[b][padding[b]] - model(alone, **prompt.inputs)[0]).abs().max() < 1e-5
        assert answers[b].tolist() == generate(model, alone, 5, inputs=prompt.inputs)[0, alone.shape[1] :].tolist()


def test_a_batch_of_words_has_no_inputs(processor):
    ids, padding, inputs = processor.batch([processor.prompt(["a"]), processor.prompt(["b c d"])])
    assert inputs == {} and ids.shape == padding.shape == (2, 3)


def test_make_and_join_media_by_hand():
    a, b, c = torch.ones(2, 6), 2 * torch.ones(2, 2), 3 * torch.ones(2, 8)
    first = make_media([torch.zeros(3, 4, 4)], [a, b])
    assert first.mel.tolist() == [[[1] * 6] * 2, [[2, 2, 0, 0, 0, 0]] * 2] and first.lengths.tolist() == [3, 1]
    joined = join_media([first, make_media([], [c]), make_media([torch.ones(3, 4, 4)], [])])
    assert joined.pixels.flatten(1).sum(dim=1).tolist() == [0, 48]
    assert joined.mel[:, 0].tolist() == [[1] * 6 + [0] * 2, [2] * 2 + [0] * 6, [3] * 8]
    assert joined.lengths.tolist() == [3, 1, 4]
    assert join_media([]) is None and join_media([Media()]) is None
    assert make_media([], []) == Media()


PARTS = st.lists(st.one_of(st.text(max_size=6), st.just("<|image|>"), st.just(RED),
                           st.integers(1, 20_000).map(tone)), max_size=5)  # fmt: skip


@settings(max_examples=25)
@given(prompts=st.lists(PARTS, min_size=1, max_size=3))
def test_any_prompts_have_as_many_places_as_the_model_makes(processor, model, prompts):
    read = [processor.prompt(["x", *parts]) for parts in prompts]
    for parts, prompt in zip(prompts, read, strict=True):
        n_images = sum(part is RED for part in parts)
        assert prompt.ids.count(SMOL) == PICTURE * n_images
        assert len(prompt.media) == n_images + sum(isinstance(part, Sound) for part in parts)
    ids, padding, inputs = processor.batch(read)
    with torch.no_grad():
        out = model.hidden_states(ids, padding=padding, **inputs)  # raises where counts differ
        assert out.shape == (*ids.shape, 64) and out.isfinite().all()


def test_a_prompt_that_was_cut_is_refused(processor, model):  # fault 22
    prompt = processor.prompt(["What is this? ", Image(RED), " Say it."])
    end = prompt.ids.index(SMOL) + 3
    with pytest.raises(InputError, match="hold 3 places for image features, but 6 were given.*cut"):
        model(torch.tensor([prompt.ids[:end]]), **prompt.inputs)


# ---- files ----


@pytest.mark.parametrize("changes", [{}, {"cross_layers": (1,), "n_prompts": 2}, {"audio": None}, {"vision": None}],
                         ids=["spliced", "cross", "eye", "ear"])  # fmt: skip
def test_saved_and_loaded_with_its_model(smol, tmp_path, changes):
    processor = processor_of(smol, **changes)
    model = model_of(processor)
    save_pretrained(model, tmp_path / "m", processor=processor)
    opened, again = from_pretrained(tmp_path / "m")
    assert isinstance(again, MultimodalProcessor) and isinstance(opened, MultimodalLlama)
    assert again.cfg == processor.cfg and again.stop_ids == smol.stop_ids
    assert again.image_processor == processor.image_processor
    parts = ["Look", *([Image(RED)] if processor.cfg.vision else []), *([tone(3000)] if processor.cfg.audio else [])]
    a, b = processor.prompt(parts), again.prompt(parts)
    assert a.ids == b.ids
    with torch.no_grad():
        ids = torch.tensor([a.ids])
        assert torch.equal(model(ids, **a.inputs), opened(ids, **b.inputs))
    assert (tmp_path / "m" / "preprocessor_config.json").exists() == (processor.cfg.vision is not None)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"] == "llamamm"


def test_stop_ids_of_llama_survive(llama, tmp_path):
    processor = processor_of(llama)
    save_pretrained(model_of(processor), tmp_path / "m", processor=processor)
    _, reader = from_pretrained(tmp_path / "m")
    assert reader.tokenizer.stop_ids == processor.stop_ids == llama.stop_ids
    assert reader.chat(CHAT).ids == processor.chat(CHAT).ids


# ---- a conversation that goes on ----


@pytest.mark.parametrize("which", ["processor", "crossing"])
def test_a_session_remembers_what_it_saw(which, request):
    """Turn by turn with one cache, as all read anew each time; also with a picture that comes later."""
    processor = request.getfixturevalue(which)
    model = model_of(processor)
    session = ChatSession(model, processor, max_new_tokens=4, context_size=256)
    messages = []
    for text, media in (("Look.", [Image(RED)]), ("And?", []), ("Now?", [Image(BLUE), tone(2000)]), ("So?", [])):
        answer = "".join(session.reply(text, media=media))
        messages.append({"role": "user", "content": [*media, text] if media else text})
        prompt = processor.chat(messages)
        stream = TextStream(model, processor.tokenizer, prompt.ids, inputs=prompt.inputs, max_new_tokens=4)
        assert answer == "".join(stream)
        messages.append({"role": "assistant", "content": answer})


def test_any_sequence_of_parts_is_a_content(processor):
    """A list, a tuple, dicts as others write them: the same ids and the same numbers."""
    parts = [Image(RED), "Is it ", tone(2000), "?"]
    dicts = [{"type": "image", "image": RED}, {"type": "text", "text": "Is it "}, {"type": "audio", "audio": parts[2]},
             {"type": "text", "text": "?"}]  # fmt: skip
    prompts = [processor.chat([{"role": "user", "content": content}, {"role": "assistant", "content": answer}])
               for content, answer in ((parts, "Yes"), (tuple(parts), ["Yes"]),
                                       (dicts, ({"type": "text", "text": "Yes"},)))]  # fmt: skip
    for prompt in prompts[1:]:
        assert prompt.ids == prompts[0].ids and len(prompt.media) == 2
        assert torch.equal(prompt.inputs["media"].pixels, prompts[0].inputs["media"].pixels)
        assert torch.equal(prompt.inputs["media"].mel, prompts[0].inputs["media"].mel)
    assert processor.prompt(tuple(parts)).ids == processor.prompt(dicts).ids == processor.prompt(parts).ids


@pytest.mark.parametrize("messages", [None, 3, "Hi", {"role": "user"}, [None], [{"role": "user", "content": None}]])
def test_what_is_no_conversation_is_refused(processor, messages):
    with pytest.raises(InputError):
        processor.chat(messages)
