"""llamamm quantize: folders and GGUF files that commands take, and mistakes in one line."""

import json

import pytest
import torch

from llamamm import from_pretrained, save_pretrained
from llamamm.fast.quantized import quantized_linears
from llamamm.pretrained.compose import compose
from llamamm.text.config import TextConfig
from llamamm.text.model import Llama3Model
from llamamm.text.tokenizer import Tokenizer
from llamamm.train.records import Record
from llamamm.train.seen import Seen, read_before
from tests.cli.test_main import run
from tests.text.test_tokenizer import write_gguf


@pytest.fixture
def small(tmp_path):
    """A random model with a tokenizer of 262 tokens."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(write_gguf(tmp_path / "t.gguf", pre="smollm"))
    model = Llama3Model(TextConfig.tiny(vocab_size=320, context_length=128, tie_embeddings=False)).eval()
    save_pretrained(model, tmp_path / "small", tokenizer=tokenizer)
    return tmp_path / "small"


@pytest.fixture
def words(tmp_path):
    file = tmp_path / "words.jsonl"
    lines = [{"text": f"The number {n} is {n * n} less than {n * n + n}. " * 6} for n in range(40)]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def test_a_folder_that_answers_and_is_exported_as_it_is(small, words, tmp_path):
    out = tmp_path / "q"
    result = run("quantize", small, out, "--bits", 4, "--method", "gptq", "--calibration", words, "--tokens", 1024)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(out) and "11 of 15 linears in 4 bits" in result.stderr
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "llamamm", "bits": 4, "group_size": 32}
    assert run("generate", "hi", "--raw", "--model", out, "--max-new-tokens", 2, "--temperature", 0).exit_code == 0
    assert run("doctor", out).exit_code == 0
    assert run("quantize", out, tmp_path / "q.gguf").exit_code == 0
    folder, file = from_pretrained(out, fast=False)[0], from_pretrained(tmp_path / "q.gguf", fast=False)[0]
    for path, linear in quantized_linears(folder).items():
        assert torch.equal(linear.weight, file.get_submodule(path).weight)
    rounded, _ = from_pretrained(small, bits=4, fast=False)
    assert not torch.equal(rounded.layers[0].mlp.up_proj.codes, folder.layers[0].mlp.up_proj.codes)  # gptq it was


def test_rounding_is_what_bits_does_at_loading(small, tmp_path):
    assert run("quantize", small, tmp_path / "q", "--dtype", "float16").exit_code == 0
    saved, loaded = (from_pretrained(m, fast=False, **o)[0] for m, o in ((tmp_path / "q", {}), (small, {"bits": 8})))
    assert torch.equal(saved.layers[0].mlp.up_proj.codes, loaded.layers[0].mlp.up_proj.codes)
    assert saved.embed_tokens.weight.dtype == torch.float16
    assert run("quantize", small, tmp_path / "h.gguf", "--bits", 16).exit_code == 0
    whole, half = from_pretrained(small, fast=False)[0], from_pretrained(tmp_path / "h.gguf", fast=False)[0]
    assert torch.equal(half.norm.weight, whole.norm.weight)
    assert torch.equal(half.layers[0].mlp.up_proj.weight, whole.layers[0].mlp.up_proj.weight.half().float())


@pytest.mark.parametrize(("options", "message"), [
    (["--bits", 5], "--bits is 8 or 4"), (["--bits", 16], "--bits 16 is for a .gguf"),
    (["--group", 48], "--group is 32, 64 or 128"), (["--calibration", "x.txt"], "are for --method gptq"),
    (["--bits", 4, "--method", "round", "--tokens", 9], "are for --method gptq"),
    (["--method", "gptq", "--calibration", "nowhere.txt"], "nowhere.txt"),
])  # fmt: skip
def test_mistakes_in_one_line(small, tmp_path, options, message):
    result = run("quantize", small, tmp_path / "q", *options)
    assert message in str(result.exception) and "\n" not in str(result.exception)
    assert not (tmp_path / "q").exists()


def test_too_little_text(small, words, tmp_path):
    words.write_text(json.dumps({"text": "hi"}))
    options = ["--method", "gptq", "--calibration", words]
    assert "row of calibration is 128: give more" in str(run("quantize", small, tmp_path / "q", *options).exception)


def test_what_is_there_and_what_is_quantized(small, tmp_path):
    assert "is there already" in str(run("quantize", small, small).exception)
    q = tmp_path / "q"
    assert run("quantize", small, q).exit_code == 0
    refused = str(run("quantize", q, tmp_path / "r").exception)
    assert "q is quantized already, to 8 bits in groups of 32" in refused
    assert "OUT.gguf" in refused and "--bits" not in refused  # which nobody has given
    for option in (["--bits", 16], ["--bits", 8], ["--group", 32], ["--method", "gptq"]):
        refused = str(run("quantize", q, tmp_path / "r.gguf", *option).exception)
        assert f"written as it is: leave {option[0]}" in refused
    assert not (tmp_path / "r").exists() and not (tmp_path / "r.gguf").exists()


@pytest.mark.parametrize(("name", "options", "message"), [
    ("r.gguf", ["--bits", 16, "--group", 64], "--group is for 8 and 4 bits"),
    ("r.gguf", ["--bits", 16, "--method", "gptq"], "--method gptq is for 8 and 4 bits"),
    ("r.gguf", ["--dtype", "float32"], "--dtype is for a folder"), ("r.GGUF", [], "in small letters"),
])  # fmt: skip
def test_what_would_have_no_effect_is_refused(small, tmp_path, name, options, message):
    assert message in str(run("quantize", small, tmp_path / name, *options).exception)
    assert not (tmp_path / name).exists()


def test_a_model_that_sees_is_refused_before_it_is_rounded(small, tmp_path, monkeypatch):
    model, processor = compose(small, audio=None, image_size=56)
    save_pretrained(model, tmp_path / "sees", processor=processor)
    monkeypatch.setattr("llamamm.cli.quantize._quantize", lambda *_: pytest.fail("was rounded"))
    assert "sees or hears: write a folder" in str(run("quantize", tmp_path / "sees", tmp_path / "r.gguf").exception)


def test_what_a_training_has_read_goes_with_the_rounded_weights(small, tmp_path):
    seen = Seen.of([Record(text="the river runs past the old mill")])
    seen.save(small)
    assert run("quantize", small, tmp_path / "q").exit_code == 0
    assert read_before(tmp_path / "q").hashes == seen.hashes


def test_the_folder_of_a_gguf_file_is_made(small, tmp_path):
    assert run("quantize", small, tmp_path / "new" / "q.gguf").exit_code == 0
    assert (tmp_path / "new" / "q.gguf").is_file()
