"""The README's table of lessons, made from the notebooks and from the run times that `course.run` records.

    python -m llamamm.course.build.lessons            rewrite the table
    python -m llamamm.course.build.lessons --check    fail where the README's differs
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import nbformat

from llamamm.course.env import colab_url
from llamamm.files import write_file

RUN_TIMES = "run_times.json"  # beside the notebooks: seconds on a 2-core CPU
BEGIN, END = "<!-- lessons: python -m llamamm.course.build.lessons -->", "<!-- end of lessons -->"
BUILDS = {
    "00": "the map", "01": "tokenizer, chat formats", "02": "RMSNorm, SwiGLU, linear layers",
    "03": "attention, masks", "04": "rotary positions and their scaling", "05": "KV cache",
    "06": "configuration, block, model", "07": "safetensors, names, loading, GGUF",
    "08": "sampling, streaming, batches, chat", "09": "LoRA, adapter files",
    "10": "data, loss, training loop",
    "11": "encoder, vision tower, contrastive pair", "12": "log-mel, audio encoder, Whisper's decoder",
    "13": "projectors, gated cross-attention, Perceiver", "14": "prompts with media, the multimodal Llama",
    "15": "tiles, the vision tower of Llama 3.2, its mask",
    "16": "alignment, stages of training, DPO's loss",
    "17": "perplexity, multiple choice, intervals, word errors, judges",
    "18": "a filter, recall at a fixed rate, a guard by ids, a guarded stream",
    "19": "weights of 8 bits and their product, guesses that keep the text, gradients of several processes",
}  # fmt: skip
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
WORKBOOKS = "workbooks"  # the folder in which learners write


def badge(name: str) -> str:
    """The badge that opens the workbook of a lesson, "04_rope.ipynb", on Colab."""
    return f"[![Open in Colab]({BADGE})]({colab_url(f'{WORKBOOKS}/{name}')})"


def opening_line(name: str, *, workbook: bool = False) -> str:
    """The first line of a lesson or of its workbook: the badge, and the way to the other of the two."""
    other = f"[Read it: the lesson, solved](../{name})" if workbook else f"[Do it: the workbook]({WORKBOOKS}/{name})"
    return f"{badge(name)} {other}"


def record_run_time(notebook: Path, seconds: float) -> None:
    """Keep how long a notebook ran, in the file beside it."""
    path = notebook.parent / RUN_TIMES
    times = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    times[notebook.name] = round(seconds)
    write_file(path, json.dumps(times, indent=1, sort_keys=True) + "\n")


def minutes(folder: Path) -> dict[str, int]:
    """Whole minutes, rounded up, of each notebook that has been run."""
    times = json.loads((folder / RUN_TIMES).read_text(encoding="utf-8"))
    return {name: max(1, math.ceil(seconds / 60)) for name, seconds in times.items()}


def table(folder: Path) -> str:
    """The table in Markdown, a row for each notebook in `folder`."""
    taken = minutes(folder)
    rows = ["| | lesson | you build | do | read | minutes, 2-core CPU |", "|---|---|---|---|---|---|"]
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        number = path.stem[:2]
        first = nbformat.read(path, as_version=4).cells[0].source
        title = re.search(r"^# \d\d · (.*)$", first, re.M)[1]
        do = f"[workbook](notebooks/{WORKBOOKS}/{path.name}) {badge(path.name)}"
        read = f"[lesson](notebooks/{path.name})"
        rows.append(f"| {number} | {title} | {BUILDS[number]} | {do} | {read} | {taken[path.name]} |")
    return "\n".join(rows)


def with_table(readme: str, folder: Path) -> str:
    """The README's text with the table between its two marks."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table(folder)}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    """See the module's docstring."""
    path = Path("README.md")
    old = path.read_text(encoding="utf-8")
    new = with_table(old, Path("notebooks"))
    if arguments == ["--check"]:
        return int(old != new)
    write_file(path, new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
