"""Waiting for a process that a test has started: as long as it gets on, however slow the machine is."""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

STILL_S = 300.0  # without output, a changed file or work, for all of which a machine that is merely slow has time
BUSY_S = 900.0  # of its own processor time without output or a changed file: it turns in a circle


def finish(
    command: Sequence[str],
    *,
    watch: Path | None = None,
    still_s: float = STILL_S,
    busy_s: float = BUSY_S,
    input: str | bytes = "",
    **options,
) -> subprocess.CompletedProcess:
    """Run a command to its end; what it wrote is text, or bytes where its input is. Fails, and ends it, where it no
    longer gets on.

    watch: a folder in which it leaves files as it goes. options: as for `Popen`, also other files to write to.
    """
    mode = "w+b" if isinstance(input, bytes) else "w+"
    with tempfile.TemporaryFile(mode) as out, tempfile.TemporaryFile(mode) as err, tempfile.TemporaryFile(mode) as in_:
        in_.write(input)
        in_.seek(0)
        process = subprocess.Popen(command, **{"stdin": in_, "stdout": out, "stderr": err, **options})

        def written() -> tuple:
            files = [] if watch is None else sorted(_sizes(watch))
            return os.fstat(out.fileno()).st_size, os.fstat(err.fileno()).st_size, files

        def text(file) -> str | bytes:
            file.seek(0)
            return file.read()

        try:
            wait_while_it_gets_on(process, written, still_s=still_s, busy_s=busy_s)
        except TimeoutError as error:
            pytest.fail(f"{' '.join(map(str, command))[:200]}: {error}; it wrote:\n{text(out)}\n{text(err)}")
        finally:
            end(process)
        return subprocess.CompletedProcess(command, process.returncode, text(out), text(err))


def wait_while_it_gets_on(
    process: subprocess.Popen,
    written: Callable[[], object] = lambda: None,
    *,
    until: Callable[[], bool] = lambda: False,
    still_s: float = STILL_S,
    busy_s: float = BUSY_S,
) -> None:
    """Return once it has ended, or `until` holds. Raises TimeoutError after `still_s` seconds in which neither what
    it has `written` nor its processor time has changed, or `busy_s` seconds of the latter without the former."""
    last, moved = written(), time.monotonic()
    cpu, cpu_then, asked = 0.0, 0.0, 0.0
    pause = threading.Event()  # tests replace time.sleep
    while process.poll() is None and not until():
        pause.wait(0.02)
        if time.monotonic() < asked + min(0.5, still_s / 4):  # asking takes milliseconds
            continue
        asked, cpu_before, cpu, now = time.monotonic(), cpu, _cpu_seconds(process.pid), written()
        if now != last:
            last, cpu_then, moved = now, cpu, asked
        if cpu > cpu_before + 0.01:
            moved = asked
        if asked - moved > still_s:
            raise TimeoutError(f"it has done nothing for {still_s:g} s")
        if cpu - cpu_then > busy_s:
            raise TimeoutError(f"it has computed for {busy_s:g} s and shown nothing")


def end(process: subprocess.Popen) -> None:
    """Kill it and what it has started, if it still runs."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
    process.wait()


def _cpu_seconds(pid: int) -> float:
    """Of a process and all below it; those that ended count with who waited for them."""
    total = 0.0
    try:
        for process in (parent := psutil.Process(pid), *parent.children(recursive=True)):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    except psutil.NoSuchProcess:
        pass
    return total


def _sizes(folder: Path) -> list[tuple[str, int, int]]:
    """Of all files under a folder; what is renamed or removed meanwhile, folders too, is left out."""
    found = []
    for here, _, names in os.walk(folder):
        for path in (Path(here, name) for name in names):
            try:
                found.append((str(path), path.stat().st_size, path.stat().st_mtime_ns))
            except FileNotFoundError:
                continue
    return found
