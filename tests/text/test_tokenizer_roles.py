"""Roles of tokens and added tokens, from all the files of a folder, against `tokenizers` and `transformers`."""

import json

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamm.errors import TokenizerError
from llamamm.text.tokenizer import Tokenizer
from llamamm.text.tokenizer_files import BYTE_TO_CHAR

BOS, EOS, TURN, PLAIN = "<s>", "</s>", "<turn>", "<think>"  # 260, 261, 262 special; 263 is not
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def added(token_id, content, *, special=True, **flags):
    return {"id": token_id, "content": content, **dict.fromkeys(FLAGS, False), "special": special, **flags}


def write(folder, *, tokens=None, model=None, files=None, **top):
    """A folder with 256 bytes, four merges and added tokens; files: name -> content of JSON files beside."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    vocab = {BYTE_TO_CHAR[b]: b for b in range(256)} | {"he": 256, "ll": 257, "hell": 258, "hello": 259}
    tokens = [added(260, BOS), added(261, EOS), added(262, TURN), added(263, PLAIN, special=False)] + (tokens or [])
    data = {"version": "1.0", "added_tokens": tokens, "normalizer": None, "pre_tokenizer": byte_level,
            "decoder": byte_level, "post_processor": None, **top,
            "model": {"type": "BPE", "vocab": vocab, "merges": ["h e", "l l", "he ll", "hell o"], **(model or {})}}
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    for name, content in (files or {}).items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def theirs(folder, **config):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, **config)


def template(*begin, end=()):
    pieces = [{"SpecialToken": {"id": t, "type_id": 0}} for t in begin]
    pieces += [{"Sequence": {"id": "A", "type_id": 0}}] + [{"SpecialToken": {"id": t, "type_id": 0}} for t in end]
    ids = {BOS: 260, EOS: 261, TURN: 262}
    return {"type": "TemplateProcessing", "single": pieces, "pair": pieces + [{"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in (*begin, *end)}}


OFFSETS = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}

# ---- what ends an answer ----


@pytest.mark.parametrize(("files", "stop"), [
    ({"config": {"eos_token_id": 261}}, {261}),
    ({"config": {"eos_token_id": [261, 262]}}, {261, 262}),
    ({"config": {"text_config": {"eos_token_id": 262}}}, {262}),
    ({"generation_config": {"eos_token_id": 262}}, {262}),
    ({"generation_config": {"eos_token_id": [262, 261]}}, {261, 262}),
    ({"generation_config": {"eos_token_id": 262}, "config": {"eos_token_id": 5}}, {262}),
    ({"generation_config": {"temperature": 1}, "config": {"eos_token_id": 262}}, {262}),
    ({"special_tokens_map": {"eos_token": EOS}}, {261}),
    ({"special_tokens_map": {"eos_token": {"content": EOS, "lstrip": False}}}, {261}),
    ({"tokenizer_config": {"eos_token": EOS}}, {261}),
    ({"tokenizer_config": {"eos_token": {"content": TURN}}}, {262}),
    ({"tokenizer_config": {"eos_token": EOS}, "generation_config": {"eos_token_id": 262}}, {261, 262}),
    ({"config": {"eos_token_id": 100_000}}, set()),  # of a model with another vocabulary: it never makes that id
    ({}, set()),
])
def test_stop_ids_from_whatever_file_has_them(files, stop, tmp_path):
    assert Tokenizer(write(tmp_path, files=files)).stop_ids == stop


def test_stop_ids_that_are_none(tmp_path):
    with pytest.raises(TokenizerError, match=r"config.json has eos_token_id \['x'\]"):
        Tokenizer(write(tmp_path, files={"config": {"eos_token_id": "x"}}))


def test_special_tokens_map_alone_as_transformers(tmp_path):
    write(tmp_path, files={"special_tokens_map": {"bos_token": BOS, "eos_token": {"content": EOS}, "pad_token": TURN}})
    ours, other = Tokenizer(tmp_path), theirs(tmp_path)
    assert [ours.bos_id, ours.eos_id, ours.pad_id] == [260, 261, 262]
    assert [other.bos_token_id, other.eos_token_id, other.pad_token_id] == [260, 261, 262]
    assert ours.template_tokens == other.special_tokens_map


# ---- what begins a text ----


@pytest.mark.parametrize(("processor", "config"), [
    (None, {}), (OFFSETS, {}), (template(BOS), {}), (template(), {}), (template(end=[EOS]), {}),
    ({"type": "Sequence", "processors": [OFFSETS, template(BOS)]}, {}), ({"type": "Sequence", "processors": []}, {}),
    (template(TURN), {}), (template(BOS), {"add_bos_token": False}), (None, {"add_bos_token": True}),
    (OFFSETS, {"add_bos_token": True, "add_eos_token": False}),
])
def test_bos_only_where_the_post_processor_adds_it(processor, config, tmp_path):
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, **config}
    folder = write(tmp_path / "a", post_processor=processor, files={"tokenizer_config": config})
    for again in range(2):
        ours, expected = Tokenizer(folder), theirs(folder)("hello").input_ids
        assert ours.encode("hello", bos=ours.adds_bos) == [i for i in expected if i != 261], again
        ours.save(folder := tmp_path / "b")


def test_whispers_prompt_is_no_begin_of_text(tmp_path):
    """It says what to do with a sound: who transcribes puts it there, and a text alone has none."""
    start = added(264, "<|startoftranscript|>", special=True)
    whisper = json.loads(json.dumps(template(TURN, BOS, end=[EOS])).replace(TURN, "<|startoftranscript|>"))
    tokenizer = Tokenizer(write(tmp_path, tokens=[start], post_processor=whisper))
    assert not tokenizer.adds_bos and tokenizer.encode("<|startoftranscript|>", allowed_special="all") == [264]


@pytest.mark.parametrize(("processor", "match"), [
    (template(BOS, TURN), "2 tokens before each text, <s>, <turn>"),
    ({"type": "BertProcessing", "sep": [EOS, 261], "cls": [BOS, 260]}, "BertProcessing")])
def test_post_processors_that_are_refused(processor, match, tmp_path):
    with pytest.raises(TokenizerError, match=match):
        Tokenizer(write(tmp_path, post_processor=processor))


# ---- added tokens ----

FLAGGED = [added(264 + n, f"[{n}]", special=n % 2 == 0, **{flag: bool(n >> (bit + 1) & 1)
                                                          for bit, flag in enumerate(FLAGS)}) for n in range(32)]
WORDS = st.sampled_from([token["content"] for token in FLAGGED] + [PLAIN, EOS, " ", "  ", "\n", "\u3000", "\x1c", "a",
                                                                   "_", "é", "hello", "1", "!", "<think", "x<s>"])


@pytest.fixture(scope="module")
def flagged(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("flagged"), tokens=FLAGGED)
    again = tmp_path_factory.mktemp("again")
    Tokenizer(folder).save(again)
    return folder, again


@settings(max_examples=300, deadline=None)
@given(words=st.lists(WORDS, max_size=12), special=st.booleans())
def test_added_tokens_as_tokenizers(words, special, flagged):
    text = "".join(words)
    for folder in flagged:
        other = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        other.encode_special_tokens = not special
        ours = Tokenizer(folder)
        ids = ours.encode(text, allowed_special="all" if special else ())
        assert ids == other.encode(text, add_special_tokens=False).ids
        for skip in (False, True):
            assert ours.decode(ids, skip_special=skip) == other.decode(ids, skip_special_tokens=skip)


def test_a_token_that_is_not_special_is_one_id_and_survives(tmp_path):
    ours = Tokenizer(write(tmp_path / "a"))
    assert ours.encode("hello<think>hello") == [259, 263, 259]
    assert ours.decode([261, 263, 259], skip_special=True) == "<think>hello"
    assert PLAIN not in ours.special_tokens and ours.vocab_size == 264
    ours.save(tmp_path / "b")
    before, after = (json.loads((tmp_path / name / "tokenizer.json").read_text())["added_tokens"] for name in "ab")
    assert before == after


def test_flags_of_tokenizer_config_overrule(tmp_path):
    decoder = {"263": {k: v for k, v in added(263, PLAIN, special=True, lstrip=True).items() if k != "id"}}
    folder = write(tmp_path, files={"tokenizer_config": {"added_tokens_decoder": decoder}})
    assert Tokenizer(folder).encode("a  <think>", allowed_special="all") == theirs(folder)("a  <think>").input_ids
    decoder["263"]["content"] = "<other>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    with pytest.raises(TokenizerError, match="calls id 263 '<other>', tokenizer.json '<think>'"):
        Tokenizer(folder)


# ---- ids that have no token ----


def test_ids_past_the_vocabulary_and_gaps_decode_to_nothing(tmp_path):
    folder = write(tmp_path, tokens=[added(300, "<far>")])
    ours, other = Tokenizer(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for ids in ([259, 301, 259], [280], [259, 100_000], [0xE9, 280, 264, 65]):
        decoder = ours.stream_decoder()
        streamed = "".join(map(decoder.push, ids)) + decoder.flush()
        assert ours.decode(ids) == streamed == other.decode(ids)
    with pytest.raises(TokenizerError, match="-1"):
        ours.decode([-1])


# ---- settings that would change ids ----


@pytest.mark.parametrize(("match", "top", "model"), [
    ("NFC", {"normalizer": {"type": "NFC"}}, {}), ("decoder Metaspace", {"decoder": {"type": "Metaspace"}}, {}),
    ("dropout", {}, {"dropout": 0.1}), ("byte_fallback", {}, {"byte_fallback": True}),
    ("continuing_subword_prefix", {}, {"continuing_subword_prefix": "##"}),
    ("end_of_word_suffix", {}, {"end_of_word_suffix": "</w>"}), ("fuse_unk", {}, {"unk_token": "!", "fuse_unk": True}),
])
def test_refused_by_name(match, top, model, tmp_path):
    with pytest.raises(TokenizerError, match=match):
        Tokenizer(write(tmp_path, model=model, **top))


def test_settings_that_change_nothing(tmp_path):
    top = {"normalizer": {"type": "Sequence", "normalizers": []}}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True, "split_special_tokens": True,
              "clean_up_tokenization_spaces": True}
    folder = write(tmp_path, model={"dropout": 0.0, "end_of_word_suffix": ""}, **top,
                   files={"tokenizer_config": config})
    ours, other = Tokenizer(folder), theirs(folder)
    assert ours.encode("hello , hello <s>") == other("hello , hello <s>", add_special_tokens=False).input_ids
    config["tokenizer_class"] = "GPT2Tokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match="add_prefix_space for a GPT2Tokenizer"):
        Tokenizer(folder)


def test_the_newest_chat_template_counts(tmp_path):
    folder = write(tmp_path, files={"chat_template": {"chat_template": "old"}})
    assert Tokenizer(folder).chat_template == "old"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "settings"}))
    assert Tokenizer(folder).chat_template == "settings"
    (folder / "chat_template.jinja").write_text("file")
    assert Tokenizer(folder).chat_template == "file"
