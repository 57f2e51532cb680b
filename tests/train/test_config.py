"""train.config: what is accepted, what is refused with the key's name, and the way there and back."""

import pytest

from llamamm.errors import ConfigError
from llamamm.train.config import TrainConfig, explain_keys


def test_a_file_with_two_lines_is_enough(tmp_path):
    (tmp_path / "a.yaml").write_text("output: runs/a\nsteps: 10\nlearning_rate: 1e-3\n")
    cfg = TrainConfig.from_yaml(tmp_path / "a.yaml", seed=3)
    assert (cfg.steps, cfg.learning_rate, cfg.seed, cfg.method) == (10, 1e-3, 3, "lora")
    assert cfg.lora_settings.scale == 2


def test_there_and_back(tmp_path):
    cfg = TrainConfig.make({"output": "x", "steps": 3, "lora_layers": [1, 2], "sample_prompts": ["Ünï: {}"]})
    (tmp_path / "a.yaml").write_text(cfg.to_yaml(), encoding="utf-8")
    assert TrainConfig.from_yaml(tmp_path / "a.yaml") == cfg


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 5}, "'output' is missing: Folder"),
        ({"lernrate": 1}, "unknown key 'lernrate'; did you mean 'learning_rate'"),
        ({"zzz": 1}, "unknown key 'zzz'.*--help"),
        ({"steps": 0}, "steps: .*greater than 0.*got 0"),
        ({"steps": "many"}, "steps: .*got 'many'"),
        ({"lora_targets": "q_proj"}, "lora_targets: .*list"),
        ({"precision": "int8"}, "precision: .*'fp32'.*got 'int8'"),
        ({"batch_size": 6, "micro_batch_size": 4}, "batch_size 6 .* micro_batch_size 4"),
        ({"model": "a", "shape": {}}, "two models"),
        ({"shape": {"n_layers": 1}}, "method: full"),
        ({"patience": 2}, "needs eval_data"),
        ({"lora_dropout": 1.0}, "lora_dropout: .*less than 1"),
    ],
)
def test_wrong_settings_are_refused_by_name(values, message):
    base = {} if "output" in message else {"output": "x", "steps": 1}
    with pytest.raises(ConfigError, match=message):
        TrainConfig.make({**base, **values})


@pytest.mark.parametrize(("text", "message"), [("- a\n- b\n", "no `key: value`"), ("a: [", "not YAML"), (None, "read")])
def test_files_that_are_no_settings(tmp_path, text, message):
    if text is not None:
        (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_yaml(tmp_path / "a.yaml")


def test_every_key_is_explained():
    lines = explain_keys().splitlines()
    assert len(lines) == len(TrainConfig.model_fields)
    assert all(len(line.split("): ", 1)[1]) > 10 for line in lines)
    assert "output (required): " in lines[0]
