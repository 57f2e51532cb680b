"""train.config: what is accepted, what is refused with the key's name, and the way there and back."""

from datetime import date

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
        ({}, "'steps' is missing: Optimizer steps"),
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
    base = {} if "missing" in message else {"output": "x", "steps": 1}
    with pytest.raises(ConfigError, match=message):
        TrainConfig.make({**base, **values})


def test_a_file_names_the_folder_of_its_run(tmp_path):
    (tmp_path / "a.yaml").write_text("steps: 5\n")
    with pytest.raises(ConfigError, match="a.yaml: 'output' is missing: Folder"):
        TrainConfig.from_yaml(tmp_path / "a.yaml")
    assert TrainConfig.from_yaml(tmp_path / "a.yaml", output="x").steps == 5


@pytest.mark.parametrize("how", ["a file", "changes", "a dictionary"])
@pytest.mark.parametrize(
    ("key", "written", "expected"),
    [
        ("steps", "1e3", 1000),
        ("steps", "2.5e+2", 250),
        ("steps", "1_000", 1000),
        ("learning_rate", "3e-4", 0.0003),
        ("learning_rate", "2.e-4", 0.0002),
        ("weight_decay", "1E-2", 0.01),
        ("micro_batch_size", "4e0", 4),
        ("lora_alpha", "1e1", 10.0),
        ("lora_layers", ["0", "1e0"], [0, 1]),
        ("seed", "12345678901234567", 12345678901234567),
        ("shape", {"rope_theta": "5e5", "hidden_size": "1e2", "tie_embeddings": True},
         {"rope_theta": 500000, "hidden_size": 100, "tie_embeddings": True}),
    ],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(tmp_path, how, key, written, expected):
    base = {"output": "x", "steps": 1, "method": "full"}
    if how == "a file":
        plain = str(written).replace("'", "")
        steps = "" if key == "steps" else "steps: 1\n"
        (tmp_path / "a.yaml").write_text(f"output: x\nmethod: full\n{steps}{key}: {plain}\n")
        cfg = TrainConfig.from_yaml(tmp_path / "a.yaml")
    elif how == "changes":
        (tmp_path / "a.yaml").write_text("output: x\nsteps: 1\nmethod: full\n")
        cfg = TrainConfig.from_yaml(tmp_path / "a.yaml", **{key: written})
    else:
        cfg = TrainConfig.make({**base, key: written})
    assert getattr(cfg, key) == expected and type(getattr(cfg, key)) is type(expected)


@pytest.mark.parametrize("value", ["1.5", "1e-3", "ten", "1e400", "nan", True, [3], None, ""])
def test_what_is_no_whole_number_is_refused_by_name(value):
    with pytest.raises(ConfigError, match="^steps: "):
        TrainConfig.make({"output": "x", "steps": value})


@pytest.mark.parametrize("value", ["nan", float("inf"), "-inf", "fast", "0", False])
def test_what_is_no_learning_rate_is_refused_by_name(value):
    with pytest.raises(ConfigError, match="^learning_rate: "):
        TrainConfig.make({"output": "x", "steps": 1, "learning_rate": value})


@pytest.mark.parametrize("value", ["all-linear", ["all-linear"], ["all-linear", "lm_head"]])
def test_all_linear_is_all_but_the_head(value):
    cfg = TrainConfig.make({"output": "x", "steps": 1, "lora_targets": value})
    seven = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert cfg.lora_targets == seven + (value[1:] if isinstance(value, list) else [])


def test_mistakes_in_a_file_are_named_with_their_lines(tmp_path):
    (tmp_path / "a.yaml").write_text("output: x\nsteps: 0\nleng-th: 1\nlearning_rate: fast\noutput_: 2024-01-31\n")
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_yaml(tmp_path / "a.yaml", learning_rate="slow")
    told = str(caught.value)
    for part in ("a.yaml, line 2: steps: ", "a.yaml, line 3: unknown key 'leng-th'; did you mean 'length'?",
                 "a.yaml: learning_rate: ", "a.yaml, line 5: unknown key 'output_'; did you mean 'output'?"):
        assert part in told


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({1: 2}, "a key is a word such as 'steps', got 1"),
        ({"output": date(2024, 1, 31)}, r"output: .*\(put it into quotes\)"),
        ({"data": 7}, r"data: .*\(put it into quotes\), got 7"),
        ({"data": [{"sorce": "a"}]}, r"data: source 0 must be a name, or \{source"),
        ({"data": ["a", {"source": "b", "share": 0}]}, "data: source 1 must be a name"),
        ({"lora_layers": "0, 1"}, r"lora_layers: .*such as \[0, 1\]"),
        ({"seed": 2**64}, "seed: .*less than"),
        ({"adapter": "a", "method": "full"}, "adapter a .*method: lora"),
        ({"learning-rate": 1}, "did you mean 'learning_rate'"),
        ({"Steps": 1}, "did you mean 'steps'"),
    ],
)
def test_other_wrong_settings(values, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.make({"output": "x", "steps": 1, **values})


def test_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    cfg = TrainConfig.make({"output": "~/run", "steps": 1, "adapter": "~/a"})
    assert (str(cfg.output), str(cfg.adapter)) == ("/somewhere/run", "/somewhere/a")


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
