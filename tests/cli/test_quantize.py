"""llamamm quantize: folders and GGUF files that commands take, and mistakes in one line."""

import json

import pytest
import torch

from llamamm import from_pretrained
from llamamm.fast.quantized import quantized_linears
from tests.cli.test_main import run, tiny_dir  # noqa: F401 (fixtures)


@pytest.fixture
def words(tmp_path):
    file = tmp_path / "words.jsonl"
    lines = [{"text": f"The number {n} is {n * n} less than {n * n + n}. " * 6} for n in range(40)]
    lines.append({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]})
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def test_a_folder_that_answers_and_is_exported_as_it_is(tiny_dir, words, tmp_path):  # noqa: F811
    out = tmp_path / "q"
    result = run("quantize", tiny_dir, out, "--bits", 4, "--calibration", words, "--tokens", 1024)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(out) and "15 linears in 4 bits" in result.stderr
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "llamamm", "bits": 4, "group_size": 32}
    assert run("generate", "hi", "--model", out, "--max-new-tokens", 2, "--temperature", 0).exit_code == 0
    assert run("doctor", out).exit_code == 0
    assert run("quantize", out, tmp_path / "q.gguf").exit_code == 0
    folder, file = from_pretrained(out, fast=False)[0], from_pretrained(tmp_path / "q.gguf", fast=False)[0]
    for path, linear in quantized_linears(folder).items():
        assert torch.equal(linear.weight, file.get_submodule(path).weight)
    rounded, _ = from_pretrained(tiny_dir, bits=4, fast=False)
    assert not torch.equal(rounded.layers[0].mlp.up_proj.codes, folder.layers[0].mlp.up_proj.codes)  # gptq it was


def test_rounding_is_what_bits_does_at_loading(tiny_dir, tmp_path):  # noqa: F811
    assert run("quantize", tiny_dir, tmp_path / "q", "--dtype", "float16").exit_code == 0
    saved, loaded = (from_pretrained(m, fast=False, **o)[0] for m, o in ((tmp_path / "q", {}), (tiny_dir, {"bits": 8})))
    assert torch.equal(saved.layers[0].mlp.up_proj.codes, loaded.layers[0].mlp.up_proj.codes)
    assert saved.embed_tokens.weight.dtype == torch.float16
    assert run("quantize", tiny_dir, tmp_path / "h.gguf", "--bits", 16).exit_code == 0
    whole, half = from_pretrained(tiny_dir, fast=False)[0], from_pretrained(tmp_path / "h.gguf", fast=False)[0]
    assert torch.equal(half.norm.weight, whole.norm.weight)
    assert torch.equal(half.layers[0].mlp.up_proj.weight, whole.layers[0].mlp.up_proj.weight.half().float())


@pytest.mark.parametrize(("options", "message"), [
    (["--bits", 5], "--bits is 8 or 4"), (["--bits", 16], "--bits 16 is for a .gguf"),
    (["--group", 48], "--group is 32, 64 or 128"), (["--calibration", "x.txt"], "are for --method gptq"),
    (["--bits", 4, "--method", "round", "--tokens", 9], "are for --method gptq"),
    (["--method", "gptq", "--calibration", "nowhere.txt"], "nowhere.txt"),
    (["--method", "gptq", "--tokens", 100, "--group", 128], "no linear of the model has whole groups of 128"),
])  # fmt: skip
def test_mistakes_in_one_line(tiny_dir, tmp_path, options, message):  # noqa: F811
    result = run("quantize", tiny_dir, tmp_path / "q", *options)
    assert message in str(result.exception) and "\n" not in str(result.exception)
    assert not (tmp_path / "q").exists()


def test_too_little_text(tiny_dir, words, tmp_path):  # noqa: F811
    words.write_text(words.read_text().splitlines()[0])
    options = ["--method", "gptq", "--calibration", words]
    assert "row of calibration is 128: give more" in str(run("quantize", tiny_dir, tmp_path / "q", *options).exception)


def test_what_is_there_and_what_is_quantized(tiny_dir, tmp_path):  # noqa: F811
    assert "is there already" in str(run("quantize", tiny_dir, tiny_dir).exception)
    assert run("quantize", tiny_dir, tmp_path / "q").exit_code == 0
    assert "quantized already, to 8 bits" in str(run("quantize", tmp_path / "q", tmp_path / "r").exception)
    assert "leave --bits out" in str(run("quantize", tmp_path / "q", tmp_path / "r.gguf", "--bits", 16).exception)
    assert not (tmp_path / "r").exists()
