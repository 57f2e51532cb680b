"""Waiting for a process that a test has started: as long as it gets on, however slow the machine is."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
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


EACH_APART = """
import gc, json, os, sys
from pathlib import Path
import llamamm.cli.main
llamamm.cli.main.calm_threads()
import llamamm.assets.fetch, llamamm.generation.generate, llamamm.pretrained.load  # torch and all that answering needs

gc.freeze()  # else each fork copies all that as it ends
folder = Path(sys.argv[1])
for n, (arguments, data, environment) in enumerate(json.loads((folder / "commands").read_text())):
    if (child := os.fork()) == 0:
        break
    (folder / f"{n}.code").write_text(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
else:
    os._exit(0)
os.environ.update(environment)
(folder / f"{n}.in").write_bytes(bytes.fromhex(data))
os.dup2(os.open(folder / f"{n}.in", os.O_RDONLY), 0)
for fd, name in ((1, "out"), (2, "err")):
    if fd == 2 or sys.argv[2] == "files":
        os.dup2(os.open(folder / f"{n}.{name}", os.O_WRONLY | os.O_CREAT), fd)
sys.argv = ["llamamm", *arguments]
llamamm.cli.main.main()
"""


def each_apart(
    commands: Sequence[Sequence],
    *,
    data: Sequence[bytes] = (),
    apart: Sequence[Mapping[str, str]] = (),
    stdout: int | None = None,
    **env: str,
) -> list[tuple[int, bytes, bytes]]:
    """`llamamm` with each of these words: (exit code, stdout, stderr). To import torch takes longer than most of
    them: one process has done so in the environment `env`, and each is a fork of it that ends as a process does.

    data: what stands in the standard input of each. apart: what the environment of each has besides, from its
    beginning on. stdout: in the place of a file for each.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, filled = Path(name), [*data, *[b""] * (len(commands) - len(data))]
        rest = [*apart, *[{}] * (len(commands) - len(apart))]
        jobs = [[[*map(str, c)], d.hex(), dict(r)] for c, d, r in zip(commands, filled, rest, strict=True)]
        (folder / "commands").write_text(json.dumps(jobs))
        command = [sys.executable, "-c", EACH_APART, name, "files" if stdout is None else "given"]
        options = {} if stdout is None else {"stdout": stdout}
        done = finish(command, watch=folder, env={**os.environ, **env}, **options)
        assert done.returncode == 0, done.stderr

        def read(n: int, kind: str) -> bytes:
            return (folder / f"{n}.{kind}").read_bytes() if kind != "out" or stdout is None else b""

        return [(int(read(n, "code")), read(n, "out"), read(n, "err")) for n in range(len(commands))]


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
