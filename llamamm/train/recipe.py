"""Recipes: settings of whole trainings that come with the package, as files to use, to change, or to copy.

    llamamm train recipe:llava-1b --set output=runs/mine
"""

from __future__ import annotations

import difflib
from pathlib import Path

from llamamm.errors import ConfigError

FOLDER = Path(__file__).parent / "recipes"
PREFIX = "recipe:"


def list_recipes() -> dict[str, str]:
    """The name of each, and what it is: the first line of its file."""
    files = sorted(FOLDER.glob("*.yaml"), key=lambda file: file.stem)
    return {file.stem: file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for file in files}


def settings_path(path: str | Path) -> Path:
    """The file of "recipe:NAME"; of any other path, itself. Raises ConfigError for an unknown name."""
    if not str(path).startswith(PREFIX):
        return Path(path)
    name, known = str(path).removeprefix(PREFIX), list_recipes()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"there is no recipe {name!r}; {hint}Recipes are {', '.join(known)}")
    return FOLDER / f"{name}.yaml"
