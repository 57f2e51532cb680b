"""llamamm train, merge and --adapter: a run from a file, its adapter used and merged, and mistakes in one line."""

import json
import shutil

import PIL.Image
import pytest
import torch

from llamamm import apply_lora, from_pretrained, load_adapter, merge_lora, save_adapter
from llamamm.lora.lora import lora_modules
from llamamm.train.config import TrainConfig
from llamamm.train.records import Record
from llamamm.train.seen import Seen, read_before
from tests.cli.test_main import main, run, tiny_dir  # noqa: F401 (fixtures)
from tests.training_data import write_texts


@pytest.fixture
def config(tmp_path, tiny_dir):  # noqa: F811
    """A run of three LoRA steps on the tiny model."""
    path = tmp_path / "config.yaml"
    path.write_text(
        f"model: {tiny_dir}\ndata: {write_texts(tmp_path)}\noutput: {tmp_path / 'run'}\nsteps: 3\nbatch_size: 2\n"
        f"length: 32\nlora_targets: [q_proj, up_proj]\nsample_prompts: [The number]\nlearning_rate: 1e-3\n"
        f"device: cpu\nprecision: fp32\n"
    )
    return path


def test_train_then_generate_then_merge(config, tmp_path, tiny_dir):  # noqa: F811
    result = run("train", config, "--set", "steps=2", "--set", "lora_r=4")
    assert result.exit_code == 0, result.output
    adapter = tmp_path / "run" / "last"
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["r"] == 4 and settings["base_model_name_or_path"] == str(tiny_dir)
    assert TrainConfig.from_yaml(tmp_path / "run" / "config.yaml").steps == 2
    assert (tmp_path / "run" / "run.png").stat().st_size > 1000

    other = run("train", config, "--resume")  # the file's rank is 8
    assert "holds an adapter with LoraSettings(r=4" in str(other.exception)
    options = ["--temperature", 0, "--max-new-tokens", 8, "--dtype", "float32"]
    with_adapter = run("generate", "hi", "--adapter", adapter, *options)
    assert with_adapter.exit_code == 0
    merged = run("merge", adapter, tmp_path / "merged")
    assert merged.exit_code == 0 and merged.stdout.strip() == str(tmp_path / "merged")
    assert run("generate", "hi", "--model", tmp_path / "merged", *options).stdout == with_adapter.stdout


def test_the_adapter_reaches_the_model(tmp_path, tiny_dir):  # noqa: F811
    model, tokenizer = from_pretrained(tiny_dir)
    apply_lora(model, r=2, alpha=64)
    torch.manual_seed(0)
    with torch.no_grad():
        for module in lora_modules(model).values():
            module.lora_b["default"].normal_(0, 1)
    save_adapter(model, tmp_path / "a", base=str(tiny_dir))
    options = ["--temperature", 0, "--max-new-tokens", 8, "--dtype", "float32"]
    plain = run("generate", "hi", "--model", tiny_dir, *options).stdout
    assert run("generate", "hi", "--adapter", tmp_path / "a", *options).stdout != plain
    run("merge", tmp_path / "a", tmp_path / "merged")
    merged, _ = from_pretrained(tmp_path / "merged")
    again, _ = from_pretrained(tiny_dir)
    load_adapter(again, tmp_path / "a")
    merge_lora(again)
    ids = torch.tensor([tokenizer.encode("a river")])
    assert torch.allclose(merged(ids), again(ids), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "stepps=3"], "unknown key 'stepps'; did you mean 'steps'"),
        (["--set", "steps"], "--set takes key=value, got 'steps'"),
        (["--set", "data=nothing.jsonl"], "nothing.jsonl"),
        (["--set", "lora_targets=[fc1]"], "no linear is called fc1"),
        (["--set", "device=abacus"], "no device 'abacus'"),
    ],
)
def test_what_cannot_be_trained_is_one_line(main, config, arguments, message):  # noqa: F811
    code, _, stderr = main("train", config, *arguments)
    assert code == 2 and message in stderr and len(stderr.strip().splitlines()) == 1, stderr


def test_every_key_stands_in_the_help():
    shown = " ".join(run("train", "--help").stdout.split())
    assert [key for key in TrainConfig.model_fields if f"{key} (" not in shown] == []


def test_no_adapter_there(main):  # noqa: F811
    code, _, stderr = main("generate", "hi", "--adapter", "nowhere")
    assert code == 2 and "nowhere has no adapter_config.json" in stderr


# ---- compose, data, and a skill of one's own pictures ----


def test_own_pictures_become_a_skill_by_three_commands(tmp_path, tiny_dir):  # noqa: F811
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        PIL.Image.new("RGB", (30, 20), colour).save(tmp_path / f"{name}.png")
    lines = [{"file_name": f"{name}.png", "text": name} for name in ("red", "blue")]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    senses, skill = tmp_path / "senses", tmp_path / "run" / "last"
    made = run("compose", senses, "--text", tiny_dir, "--audio", "none", "--image-size", "56", "--dtype", "float32")
    assert made.exit_code == 0 and made.stdout.strip() == str(senses), made.output
    assert "towers 22.1 M parameters" in made.stderr
    assert json.loads((senses / "compose.json").read_text())["text"] == str(tiny_dir)
    seen = run("data", tmp_path, "--model", senses)
    assert seen.exit_code == 0 and "[picture: 3 places]" in seen.stdout and "pictures" in seen.stdout
    (tmp_path / "own.yaml").write_text(
        f"model: {senses}\ndata: {tmp_path}\noutput: {tmp_path / 'run'}\nsteps: 2\nbatch_size: 2\nlength: 64\n"
        f"device: cpu\nprecision: fp32\nlearning_rate: 5e-2\n"
    )
    assert run("train", tmp_path / "own.yaml").stdout.strip() == str(skill)
    options = ["--image", tmp_path / "red.png", "--temperature", 0, "--max-new-tokens", 8, "--dtype", "float32"]
    answers = [run("generate", "Describe", *which, *options) for which in (
        ["--adapter", skill], ["--model", senses])]  # fmt: skip
    assert all(answer.exit_code == 0 for answer in answers) and answers[0].stdout != answers[1].stdout
    whole = run("generate", "Describe", "--model", skill, *options)  # which says what its base was composed of
    assert whole.exit_code == 0 and whole.stdout == answers[0].stdout
    merged = run("merge", skill, tmp_path / "merged")
    assert merged.exit_code == 0, merged.output
    assert run("generate", "Describe", "--model", tmp_path / "merged", *options).stdout == answers[0].stdout


def test_what_the_text_model_has_read_goes_with_the_composed_one(tmp_path, tiny_dir):  # noqa: F811
    text = shutil.copytree(tiny_dir, tmp_path / "text")
    noted = Seen.of([Record(text="the river runs past the old mill")])
    noted.save(text)
    made = run("compose", tmp_path / "senses", "--text", text, "--audio", "none", "--image-size", "56")
    assert made.exit_code == 0 and read_before(tmp_path / "senses").hashes == noted.hashes, made.output


def test_faults_of_data_are_lines_on_stderr(tmp_path, tiny_dir):  # noqa: F811
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"txt": 1}\n')
    seen = run("data", tmp_path / "a.jsonl", "--model", tiny_dir)
    assert seen.exit_code == 2 and "a.jsonl, line 2: a record needs" in seen.stderr and "texts" in seen.stdout
