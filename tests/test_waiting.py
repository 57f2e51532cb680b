"""tests.processes: a slow process is waited for, one that hangs is not, and nothing is left behind."""

import os
import sys

import psutil
import pytest

from tests import processes
from tests.processes import finish

HANGS = "import time; print('begun', flush=True); time.sleep(600)"
TURNS = "print('begun', flush=True)\nwhile True: pass"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HANGS!r}])"
SLOW = "import time\nfor i in range(12): print(i, flush=True); time.sleep(0.25)"
SILENT = (
    "import pathlib, sys, time\n"
    "for i in range(12): pathlib.Path(sys.argv[1], 'log').write_text('x' * i); time.sleep(0.25)"
)


def python(code, *arguments, **options):
    return finish([sys.executable, "-c", code, *map(str, arguments)], **options)


def test_what_it_wrote_and_how_it_ended():
    done = python("import sys; print(input()); print('no', file=sys.stderr); sys.exit(3)", input="yes\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, "yes\n", "no\n")


@pytest.mark.parametrize("code, message", [(HANGS, "done nothing"), (PARENT, "done nothing"), (TURNS, "shown nothing")])
def test_a_planted_hang_fails_and_nothing_is_left(code, message):
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    with pytest.raises(pytest.fail.Exception, match=f"(?s){message}.*begun"):
        python(code, still_s=2.0, busy_s=2.0)
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= before


def test_a_process_that_gets_on_may_take_longer_than_it_may_be_still(tmp_path):
    assert python(SLOW, still_s=2.0).stdout.split() == [str(i) for i in range(12)]
    assert python(SILENT, tmp_path, watch=tmp_path, still_s=2.0).returncode == 0


def test_a_folder_that_goes_while_it_is_watched_is_no_failure(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x")
    scan = os.scandir

    def renamed_first(path):
        if str(path).endswith("a") and os.path.exists(path):
            os.rename(path, f"{path}.old")
        return scan(path)

    monkeypatch.setattr(os, "scandir", renamed_first)
    assert processes._sizes(tmp_path) == []
