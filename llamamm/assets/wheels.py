"""Getting a published wheel or sdist with pip, so that pip's own settings (index, proxy, certificates) hold.

pip works in a folder of its own; a wheel appears in the target folder by a rename, when it is whole.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from llamamm.errors import FetchError
from llamamm.files import in_notebook
from llamamm.weights.hub import scrub


class ProgressLine:
    """What the user sees on stderr: a line and bars on a terminal, the line alone elsewhere, nothing if not wanted.

    Nothing in a notebook, either.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted and not in_notebook()
        self.bars = self.wanted and sys.stderr.isatty()

    def line(self, text: str) -> None:
        if self.wanted:
            print(text, file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        if self.bars:
            self.line(text)

    @contextmanager
    def bar(self, title: str) -> Iterator:
        """Yields advance(done, total); before its first call the bar only shows that something happens."""
        if not self.bars:
            yield lambda _done, _total: None
            return
        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


def download_wheel(requirement: str, folder: Path, say: ProgressLine, *, sdist_sha256: str | None = None) -> Path:
    """The wheel of `requirement`, "NAME==VERSION", in `folder`. Raises FetchError with the remedy.

    One that is there already, from a run that was killed or put there by hand, is taken.
    sdist_sha256: the sdist instead, if it has this hash. To download one, pip runs its build's code, and needs the
    hash before that.
    """
    name, version = requirement.split("==")
    stem = f"{name.replace('-', '_')}-{version}"
    kind, pattern = ("wheel", f"{stem}-*.whl") if sdist_sha256 is None else ("sdist", f"{stem}.tar.gz")
    folder.mkdir(exist_ok=True)
    if there := sorted(folder.glob(pattern)):
        return there[0]
    for stale in folder.glob("run-*"):
        shutil.rmtree(stale, ignore_errors=True)
    # pip works in a folder of this run only: when we are killed it may live on, and must not write what others read.
    run = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
    by_hand = f"or put the {kind} {pattern} into {folder} by hand; then run it again"
    try:
        last_words = _run_pip(requirement, run, say, sdist_sha256)
        if last_words is not None and "No module named pip" in last_words:
            raise FetchError(f"{requirement} is fetched with pip, and this Python ({sys.executable}) has none: "
                             f"`python -m ensurepip` or `uv pip install pip` brings it, {by_hand}")
        there = sorted(run.glob(pattern))
        if last_words is not None or not there:
            raise FetchError(f"pip cannot download {requirement}: {last_words or f'it left no such {kind}'}; "
                             f"check the network and pip's index, {by_hand}")
        os.replace(there[0], folder / there[0].name)
        return folder / there[0].name
    finally:
        shutil.rmtree(run, ignore_errors=True)


def _run_pip(requirement: str, folder: Path, say: ProgressLine, sdist_sha256: str | None) -> str | None:
    """Run `pip download` into `folder`. None if it ended well, else its last words."""
    raw = say.bars and _pip_version() >= (24, 1)  # from then on it can print numbers for others to draw
    what = [requirement]
    if sdist_sha256 is not None:
        wanted = folder / "requirements.txt"  # pip takes hashes from a file alone
        wanted.write_text(f"{requirement} --hash=sha256:{sdist_sha256}\n")
        what = ["--no-binary", requirement.split("==")[0], "-r", str(wanted)]
    command = [*_pip(), "download", "--no-deps", "--only-binary", ":all:", "--no-input",
               "--disable-pip-version-check", "--progress-bar", "raw" if raw else "off", *what, "-d", str(folder)]
    words = ["pip said nothing"]
    # TMPDIR: what a killed pip leaves behind lies in the folder that the next call removes.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                          text=True, errors="replace", env={**os.environ, "TMPDIR": str(folder)}) as process:
        try:
            with say.bar(requirement) as advance:
                for line in process.stdout:
                    if match := re.match(r"Progress (\d+) of (\d+)", line):
                        advance(int(match[1]), int(match[2]))
                    elif line.strip():
                        words.append(line.strip())
        except BaseException:  # Ctrl-C
            process.kill()
            raise
    errors = [line for line in words if line.startswith("ERROR")]
    return None if process.returncode == 0 else scrub([*words, *errors][-1])


def _pip() -> list[str]:
    return [sys.executable, "-m", "pip"]


def _pip_version() -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in importlib.metadata.version("pip").split(".")[:2])
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return (0,)
