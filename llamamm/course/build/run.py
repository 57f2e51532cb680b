"""Run notebooks from top to bottom and keep their outputs: `python -m llamamm.course.build.run [NOTEBOOK ...]`.

What is stored is tidy: streamed text is one output, timings of cells and the state of widgets are left out, and the
kernel is called "Python 3" whatever it is called here. A notebook whose run fails is left as it was.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from llamamm.course.build.lessons import record_run_time
from llamamm.files import write_file

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def run_notebook(path: Path, *, cell_timeout: int = 1200) -> float:
    """Execute one notebook in its own folder and store it. Returns the seconds it took. Raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    client = NotebookClient(
        notebook, timeout=cell_timeout, kernel_name="python3", coalesce_streams=True, record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )  # fmt: skip
    client.execute()
    seconds = time.perf_counter() - start
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = KERNEL
    write_file(path, nbformat.writes(notebook) + "\n")
    return seconds


def main(arguments: list[str]) -> None:
    """Names of notebooks; without any, all in notebooks/."""
    for path in [Path(a) for a in arguments] or sorted(Path("notebooks").glob("*.ipynb")):
        seconds = run_notebook(path)
        record_run_time(path, seconds)
        print(f"{path}: {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
