"""train.settings_file: what a run's YAML says, and each mistake in it by file and line."""

import pytest

from llamamm.errors import ConfigError
from llamamm.train.config import TrainConfig
from llamamm.train.settings_file import read_settings_file


def test_values_and_the_lines_of_their_keys(tmp_path):
    text = "\ufeff# a run\noutput: x\n\nsteps: 3\nshape:\n  n_layers: 1\n".replace("\n", "\r\n")
    (tmp_path / "a.yaml").write_bytes(text.encode())
    values, lines = read_settings_file(tmp_path / "a.yaml")
    assert values == {"output": "x", "steps": 3, "shape": {"n_layers": 1}}
    assert lines == {"output": 2, "steps": 4, "shape": 5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"output: x\nsteps: 1\nsteps: 2\n", "line 3: 'steps' stands in line 2 already"),
        (b"output: x\nshape:\n  a: 1\n  a: 1\n", "line 4: 'a' stands in line 3 already"),
        (b"output: x\n\tsteps: 1\n", "line 2, is not YAML .*: indent with spaces"),
        (b'output: x\ndata: "C:\\data\\x"\n', "line 2, is not YAML .*escape.*single quotes"),
        (b"output: x\ndata: a: b\n", "line 2, is not YAML .*quotes"),
        (b"output: x\nname: \xe9\n", "line 2: byte 0xe9 is not UTF-8"),
        ("output: x\n".encode("utf-16"), "line 1: byte 0xff is not UTF-8"),
        (b"output: \x00", "not YAML"),
        (b"output: !!python/object:os.system x\n", "line 1, is not YAML .*constructor"),
        (b"a: 1\n---\nb: 1\n", "line 2, is not YAML .*document"),
        (b"a: " + b"[" * 3000, "nested too deeply"),
        (b"", "no `key: value` lines"),
        (b"# nothing\n", "no `key: value` lines"),
        (b"steps\n", "no `key: value` lines"),
        (b"? [a]\n: b\n", "line 1, is not YAML .*key"),
    ],
)
def test_files_that_are_no_settings_are_named_with_their_line(tmp_path, text, message):
    (tmp_path / "a.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=rf"a\.yaml.*{message}") as caught:
        TrainConfig.from_yaml(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)


def test_a_folder_and_nothing_are_no_settings(tmp_path):
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(ConfigError, match=f"cannot read {path}: "):
            read_settings_file(path)
