"""The YAML file of a training run, read so that every mistake can be told with its line.

YAML itself keeps the last of two equal keys in silence, and its errors speak of tokens. Used in notebook 10.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from llamamm.errors import ConfigError

# What people meet most, by a part of the library's words for it.
_HINTS = {
    "'\\t'": "indent with spaces, not with tabs",
    "unknown escape character": r"in 'single quotes' a \ stands for itself",
    "mapping values are not allowed": "put a text that holds ': ' into quotes",
}


def read_settings_file(path: str | Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The `key: value` lines of a file, and the number of each key's line, from 1. Raises ConfigError."""
    try:
        data = Path(path).expanduser().read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8, so this is not YAML; "
                          f"save the file as UTF-8") from None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path} holds no `key: value` lines")
        _refuse_repeated_keys(node, path)
        values = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _not_yaml(path, error) from None
    except RecursionError:
        raise ConfigError(f"{path} is not YAML that can be read: it is nested too deeply") from None
    return values, {key.value: key.start_mark.line + 1 for key, _ in node.value if isinstance(key, yaml.ScalarNode)}


def _not_yaml(path: str | Path, error: yaml.YAMLError) -> ConfigError:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    place = f"{path}, line {mark.line + 1}," if mark else path
    said = problem or " ".join(str(error).split())
    hint = next((f": {hint}" for part, hint in _HINTS.items() if part in said), "")
    return ConfigError(f"{place} is not YAML ({said}){hint}")


def _refuse_repeated_keys(node: yaml.Node, path: str | Path, seen: tuple[int, ...] = ()) -> None:
    """YAML forbids a key twice in one mapping, the library takes the last. Looks into lists and mappings too."""
    if id(node) in seen:  # an alias of what stands around it
        return
    seen = (*seen, id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item, path, seen)
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                if key.value in lines:
                    raise ConfigError(f"{path}, line {line}: {key.value!r} stands in line {lines[key.value]} already; "
                                      f"keep one of the two")
                lines[key.value] = line
            _refuse_repeated_keys(value, path, seen)
