"""A training run in a process of its own, ended in the middle without a chance to save anything: lesson 10."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llamamm.errors import TrainingError
from llamamm.train.config import TrainConfig
from llamamm.train.log import read_metrics

POLL = 0.01  # seconds between two looks at the run


def start_and_kill(cfg: TrainConfig, *, after: int) -> int:
    """Start `llamamm train` with these settings, end it with SIGKILL after so many steps. -> the steps that it did.

    Raises TrainingError, with the run's last line, where it ends by itself before.
    """
    metrics = Path(cfg.output) / "metrics.jsonl"
    with tempfile.TemporaryDirectory() as folder:
        settings, said = Path(folder) / "settings.yaml", Path(folder) / "said.txt"
        settings.write_text(cfg.to_yaml(), encoding="utf-8")
        with said.open("w+", encoding="utf-8") as lines:
            command = [sys.executable, "-m", "llamamm", "train", str(settings)]
            process = subprocess.Popen(command, stdout=lines, stderr=subprocess.STDOUT)
            try:
                while process.poll() is None and (not metrics.exists() or len(read_metrics(metrics)) < after):
                    time.sleep(POLL)
                ended = process.poll() is not None
            finally:
                process.kill()  # SIGKILL, where the system has signals
                process.wait()
            lines.seek(0)
            last = (lines.read().strip().splitlines() or [f"exit code {process.returncode}"])[-1]
    if ended:
        raise TrainingError(f"the run ended by itself before it was killed: {last}")
    return len(read_metrics(metrics))
