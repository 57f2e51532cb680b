"""llama32_vision.processor: ids as Meta and transformers make them, batches equal to one by one, files, counts."""

import io
import json
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_models.datatypes import RawMediaItem, RawMessage, RawTextItem
from llama_models.llama3.chat_format import ChatFormat
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer
from transformers import AutoProcessor

from llamamm import Tokenizer, save_pretrained
from llamamm.errors import CheckpointError, ConfigError, InputError
from llamamm.generation.prompts import Image, Sound
from llamamm.llama32_vision.config import MllamaConfig
from llamamm.llama32_vision.model import MllamaModel, image_spans, seen_tiles
from llamamm.llama32_vision.processor import MllamaProcessor, collate_images
from llamamm.llama32_vision.tiles import TileProcessor
from llamamm.text.config import TextConfig

IMAGE, BOS, START, END, EOT = 128_256, 128_000, 128_006, 128_007, 128_009
RED = PIL.Image.new("RGB", (28, 28), (255, 0, 0))  # one tile
WIDE = PIL.Image.new("RGB", (56, 28), (0, 0, 255))  # two


@pytest.fixture(scope="module")
def processor(llama):
    return MllamaProcessor(llama, TileProcessor(28), IMAGE)


@pytest.fixture(scope="module")
def meta(llama3_tokenizer_path):
    return ChatFormat(MetaTokenizer(llama3_tokenizer_path))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    text = TextConfig.tiny(vocab_size=128_256, n_layers=4, tie_embeddings=False)
    model = MllamaModel(MllamaConfig.tiny(text=text, image_token=IMAGE)).eval()
    for name, parameter in model.named_parameters():
        if "gate" in name:
            torch.nn.init.constant_(parameter, 0.7)
    return model


def raw(content):
    """Our content as Meta's classes."""
    if isinstance(content, str):
        return content
    items = []
    for part in content:
        if isinstance(part, str):
            items.append(RawTextItem(text=part))
        else:
            file = io.BytesIO()
            part.source.save(file, "PNG")
            items.append(RawMediaItem(data=file.getvalue()))
    return items


# ---- one prompt ----


def test_an_image_takes_one_place(processor, llama):
    prompt = processor.prompt(["Is this ", Image(WIDE), " a cat?"])
    assert prompt.ids == [BOS, *llama.encode("Is this "), IMAGE, *llama.encode(" a cat?")]
    images = prompt.inputs["images"]
    assert images.pixels.shape == (1, 1, 4, 3, 28, 28)
    assert (images.n_tiles.tolist(), images.aspect_ratio_ids.tolist()) == ([[2]], [[2]])
    assert prompt.media[0].source is WIDE


def test_text_alone_has_no_images_and_bos_is_a_choice(processor, llama):
    prompt = processor.prompt(["a", "b"], bos=False)
    assert (prompt.ids, prompt.media, prompt.inputs) == (llama.encode("a") + llama.encode("b"), (), {})
    assert processor.prompt([]).ids == [BOS]


def test_images_stay_in_their_order(processor):
    images = processor.prompt([Image(WIDE), "x", RED, Image(WIDE)]).inputs["images"]  # a bare PIL image is one too
    assert images.n_tiles.tolist() == [[2, 1, 2]]
    red, wide = images.pixels[0, 1, 0], images.pixels[0, 0, 0]
    assert red[0].min() > 1 > red[2].max() and wide[2].min() > 1 > wide[0].max()


@pytest.mark.parametrize("parts", [
    [Image(RED), "What is this?"], ["Compare ", Image(RED), Image(WIDE), "\n\nnow"], ["only words"], [Image(RED)],
])  # fmt: skip
def test_ids_equal_metas_completion(processor, meta, parts):
    theirs = meta.encode_content(raw(parts))
    assert processor.prompt(parts).ids == theirs.tokens


DIALOGS = [
    [("user", "Hello")],
    [("user", [Image(RED), "What is this?"])],
    [("system", "Be brief."), ("user", ["Look: ", Image(RED), Image(WIDE), "\nwhich is wider?"])],
    [("user", [Image(RED), "Which colour?"]), ("assistant", "Red."), ("user", ["And ", Image(WIDE), "?"])],
    [("user", [Image(RED), "<|image|> is text, <|eot_id|> too"])],
]


@pytest.mark.parametrize("dialog", DIALOGS, ids=len)
def test_a_conversation_equals_metas(processor, meta, dialog):
    theirs = meta.encode_dialog_prompt([RawMessage(role=role, content=raw(content)) for role, content in dialog])
    prompt = processor.chat([{"role": role, "content": content} for role, content in dialog])
    assert prompt.ids == theirs.tokens
    n_images = len(theirs.vision.images) if theirs.vision else 0
    assert len(prompt.media) == n_images == prompt.ids.count(IMAGE)
    spans = [(a, len(prompt.ids) if b == -1 else b) for a, b in theirs.vision.mask] if theirs.vision else []
    assert image_spans(prompt.ids, IMAGE) == spans


def test_images_of_several_messages_stay_in_their_order(processor):
    first, second = [Image(WIDE), Image(RED)], [Image(RED), Image(WIDE), Image(WIDE)]
    turns = [("user", first), ("assistant", "Yes."), ("user", second)]
    prompt = processor.chat([{"role": role, "content": content} for role, content in turns])
    assert prompt.inputs["images"].n_tiles.tolist() == [[2, 1, 1, 2, 2]]
    assert [image.source for image in prompt.media] == [WIDE, RED, RED, WIDE, WIDE]


def test_a_conversation_by_hand(processor, llama):
    prompt = processor.chat([{"role": "user", "content": [Image(RED), "Hi"]}], add_generation_prompt=False)
    user, newlines, hi = map(llama.encode, ("user", "\n\n", "Hi"))
    assert prompt.ids == [BOS, START, *user, END, *newlines, IMAGE, *hi, EOT]


def test_markers_that_people_write_are_text(processor, llama):
    text = "<|image|><|eot_id|><|begin_of_text|><image>"
    for prompt in (processor.prompt([text], bos=False), processor.chat([{"role": "user", "content": [text]}])):
        assert IMAGE not in prompt.ids and llama.special_tokens["<|image|>"] not in prompt.ids
    assert llama.decode(processor.prompt([text], bos=False).ids) == text


@given(st.lists(st.one_of(st.text(max_size=8), st.just("<|image|>"), st.just(RED)), max_size=6))
@settings(max_examples=50)
def test_words_and_images_of_any_order(processor, llama, parts):
    prompt = processor.prompt(parts, bos=False)
    n_images = sum(part is RED for part in parts)
    assert prompt.ids.count(IMAGE) == len(prompt.media) == n_images
    words = "".join(part for part in parts if isinstance(part, str))
    assert llama.decode([i for i in prompt.ids if i != IMAGE]) == words
    assert ("images" in prompt.inputs) == (n_images > 0)


@pytest.mark.parametrize(("messages", "message"), [
    ([{"role": "user", "content": [Sound(b"")]}], "no ear"),
    ([{"role": "user", "content": [{"type": "image"}]}], "part 0 of the prompt is a dict"),
    ([{"role": "assistant", "content": [RED]}], "message 0 has content of type list"),
    ([{"role": "user"}], "'role' and 'content'"),
    ([], "empty"),
    (3, "got int"),
    ("hello", "message 0"),
])  # fmt: skip
def test_other_conversations_are_refused(processor, messages, message):
    with pytest.raises(InputError, match=message):
        processor.chat(messages)


def test_other_prompts_are_refused(processor):
    with pytest.raises(InputError, match="Llama 3.2 Vision has no ear"):
        processor.prompt(["a", Sound("a.wav")])
    with pytest.raises(InputError, match=r"list of text, Image\(...\)"):
        processor.prompt("a")
    with pytest.raises(InputError):
        processor.prompt([Image(b"no image")])


# ---- batches ----


def test_a_batch_is_padded_on_the_left_and_its_images_behind(processor):
    prompts = [processor.prompt([Image(WIDE), Image(RED), "a b c"]), processor.prompt(["a"]),
               processor.prompt(["a", Image(RED)])]  # fmt: skip
    ids, padding, inputs = processor.batch(prompts)
    width = max(len(prompt.ids) for prompt in prompts)
    assert ids.shape == padding.shape == (3, width) and ids.dtype == torch.int64 and padding.dtype == torch.bool
    for row, real, prompt in zip(ids, padding, prompts, strict=True):
        assert row[real].tolist() == prompt.ids and real.sum() == len(prompt.ids) and real[-1]
    images = inputs["images"]
    assert images.pixels.shape == (3, 2, 4, 3, 28, 28)
    assert images.n_tiles.tolist() == [[2, 1], [0, 0], [1, 0]]
    assert images.aspect_ratio_ids.tolist() == [[2, 1], [0, 0], [1, 0]]
    assert torch.equal(images.pixels[2, :1], prompts[2].inputs["images"].pixels[0])
    assert images.pixels[1].abs().sum() == 0


def test_a_batch_of_words_has_no_images(processor):
    ids, padding, inputs = processor.batch([processor.prompt(["a"]), processor.prompt(["a b"])])
    assert inputs == {} and ids.shape == (2, 3) and padding.tolist() == [[False, True, True], [True, True, True]]


@torch.no_grad()
def test_batched_equals_one_at_a_time(processor, model):
    prompts = [processor.prompt(parts) for parts in (
        ["first ", Image(WIDE), " what is it?"], ["words"], [Image(RED), Image(WIDE), "both"], [Image(RED), "a b c d"])]
    ids, padding, inputs = processor.batch(prompts)
    together = model(ids, padding=padding, sees=seen_tiles(ids, inputs["images"], IMAGE), **inputs)
    for row, real, prompt in zip(together, padding, prompts, strict=True):
        one, _, alone = processor.batch([prompt])
        assert (row[real] - model(one, **alone)[0]).abs().max() < 1e-5
    blind = model(ids, padding=padding)
    assert (together[2] - blind[2])[padding[2]].abs().max() > 1e-3  # and the images are seen


@pytest.mark.parametrize("cut", [slice(2, None), slice(0, 2)], ids=["front", "end"])
def test_a_prompt_that_lost_a_place_is_refused(processor, cut):
    whole = processor.prompt([Image(RED), "a b c d", Image(RED)])
    with pytest.raises(InputError, match="prompt 1 holds 1 place for images and 2 images"):
        processor.batch([whole, replace(whole, ids=whole.ids[cut])])


def test_a_place_without_an_image_is_refused(processor):
    with pytest.raises(InputError, match="prompt 0 holds 1 place for images and 0 images"):
        processor.batch([replace(processor.prompt([Image(RED)]), inputs={})])


def test_empty_batches_are_refused(processor):
    for prompts in ([], [processor.prompt([], bos=False)]):
        with pytest.raises(InputError, match="at least one token"):
            processor.batch(prompts)


def test_images_of_two_processors_do_not_go_together(processor, llama):
    other = MllamaProcessor(llama, TileProcessor(56), IMAGE)
    images = [p.prompt([Image(RED)]).inputs["images"] for p in (processor, other)]
    with pytest.raises(InputError, match=r"\(4, 3, 28, 28\) and \(4, 3, 56, 56\)"):
        collate_images(images)


# ---- files ----


@pytest.fixture(scope="module")
def folder(processor, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mllama") / "m"
    save_pretrained(model, folder, processor=processor)
    return folder


def test_transformers_reads_the_same_from_a_saved_processor(processor, folder):
    theirs = AutoProcessor.from_pretrained(folder)
    assert theirs.image_token_id == IMAGE
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    images = [PIL.Image.fromarray(noise), WIDE]
    expected = theirs(text=["<|begin_of_text|>Is <|image|> like <|image|>?"], images=[images], return_tensors="pt",
                      add_special_tokens=False)  # fmt: skip
    prompt = processor.prompt(["Is ", images[0], " like ", images[1], "?"])
    assert prompt.ids == expected["input_ids"][0].tolist()
    ours = prompt.inputs["images"]
    assert (ours.pixels - expected["pixel_values"]).abs().max() < 1e-5
    assert torch.equal(ours.aspect_ratio_ids, expected["aspect_ratio_ids"])
    seen = seen_tiles(torch.tensor([prompt.ids]), ours, IMAGE)
    assert torch.equal(seen.long(), expected["cross_attention_mask"])


def test_a_saved_processor_is_the_same_again(processor, folder, tmp_path):
    again = MllamaProcessor.load(folder, Tokenizer(folder))
    assert (again.image_token, again.stop_ids) == (IMAGE, processor.stop_ids)
    assert again.image_processor == processor.image_processor
    messages = [{"role": "user", "content": ["<|image|> is ", Image(RED), "\n\n 12345 <|eot_id|>"]}]
    assert again.chat(messages).ids == processor.chat(messages).ids
    assert again.tokenizer.special_tokens["<|image|>"] == IMAGE
    assert len(set(again.tokenizer.special_tokens.values())) == 257  # the old place has kept a name
    again.save(tmp_path)  # and saved once more, nothing moves
    for name in ("tokenizer.json", "preprocessor_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_transformers_5_keeps_both_settings_in_one_file(processor, folder, llama, tmp_path):
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert not (tmp_path / "preprocessor_config.json").exists()
    assert MllamaProcessor.load(tmp_path, llama).image_processor == processor.image_processor


@pytest.mark.parametrize(("change", "message"), [
    ({"size": {"height": 56, "width": 56}}, "tile_size of the image processor is 56, of the model 28"),
    ({"max_image_tiles": 2}, "max_tiles of the image processor is 2, of the model 4"),
    (None, "no preprocessor_config.json"),
])  # fmt: skip
def test_settings_of_another_model_are_refused(folder, llama, tmp_path, change, message):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    if change is not None:
        data = json.loads((folder / "preprocessor_config.json").read_text())
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(CheckpointError, match=message):
        MllamaProcessor.load(tmp_path, llama)


def test_aspect_ratios_of_another_order_are_refused(folder, llama, tmp_path):
    (tmp_path / "preprocessor_config.json").write_bytes((folder / "preprocessor_config.json").read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["supported_aspect_ratios"].reverse()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="aspect ratios"):
        MllamaProcessor.load(tmp_path, llama)


def test_any_sequence_of_parts_is_a_content(processor):
    parts = [Image(RED), "Is it ", "red?"]
    dicts = ({"type": "image", "image": RED}, {"type": "text", "text": "Is it "}, "red?")
    prompts = [processor.chat([{"role": "user", "content": content}, {"role": "assistant", "content": answer}])
               for content, answer in ((parts, "Yes"), (tuple(parts), ["Yes"]),
                                       (dicts, ({"type": "text", "text": "Yes"},)))]  # fmt: skip
    for prompt in prompts[1:]:
        assert prompt.ids == prompts[0].ids and len(prompt.media) == 1
        assert torch.equal(prompt.inputs["images"].pixels, prompts[0].inputs["images"].pixels)


@pytest.mark.parametrize("messages", [None, 3, "Hi", {"role": "user"}, [None], [{"role": "user", "content": None}]])
def test_what_is_no_conversation_is_refused(processor, messages):
    with pytest.raises(InputError):
        processor.chat(messages)


@pytest.mark.parametrize(("changes", "said"), [
    ({"crop_pct": 0.9}, "crop_pct"), ({"do_center_crop": True}, "do_center_crop"), ({"do_pad": False}, "do_pad"),
    ({"resample": 3}, "resample"),
])  # fmt: skip
def test_settings_of_tiles_that_cannot_be_followed_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        TileProcessor.from_hf({**TileProcessor().to_hf(), **changes})


def test_nulls_stand_for_the_defaults_of_tiles():
    data = {**TileProcessor().to_hf(), "do_pad": None, "resample": None, "data_format": "channels_first"}
    assert TileProcessor.from_hf(data) == TileProcessor()
    assert TileProcessor.from_hf({**data, "image_mean": 0.5}).mean == (0.5, 0.5, 0.5)
