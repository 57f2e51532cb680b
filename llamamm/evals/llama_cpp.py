"""llama.cpp as the other side of a measurement: its own benchmark on the same weights, without a server in between.

The program `llama-bench` comes with llama.cpp, built for this machine (cmake's GGML_NATIVE) or downloaded. It is looked
for on the PATH, or is what the environment variable LLAMA_BENCH names. Used in notebook 19.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import torch

from llamamm.errors import InputError, LlamammError
from llamamm.pretrained.gguf_export import export_gguf
from llamamm.pretrained.load import from_pretrained

TYPES = {torch.float32: "F32", torch.float16: "F16"}  # of GGUF files; whole numbers are Q8_0 and Q4_0


def find_program() -> str:
    """The path of `llama-bench`. Raises InputError with the remedy."""
    program = shutil.which(os.environ.get("LLAMA_BENCH") or "llama-bench")
    if program is None:
        raise InputError("a comparison with llama.cpp needs its program llama-bench: build llama.cpp or download it, "
                         "and set LLAMA_BENCH to the program's path")  # fmt: skip
    return program


def write_gguf_file(model: str | Path, folder: Path, *, dtype: torch.dtype, bits: int | None) -> Path:
    """The model as llama.cpp reads it, with the same numbers as ours. Raises InputError, as `export_gguf`."""
    if bits == 16:  # the numbers of fp32, which llama.cpp has no shorter form for
        bits, dtype = None, torch.float32
    if bits is None and dtype not in TYPES:
        raise InputError(f"llama.cpp is measured in float32, float16, 8 and 4 bits here, not in "
                         f"{str(dtype).removeprefix('torch.')}: give another --dtype")  # fmt: skip
    llama, tokenizer = from_pretrained(model, dtype=torch.float32, progress=False, fast=False, bits=bits)
    path = folder / "model.gguf"
    export_gguf(llama, path, tokenizer=tokenizer, matrices=torch.float16 if bits else dtype)
    return path


class LlamaBench:
    """Tokens per second of reading and of decoding, by one run of the program for each."""

    def __init__(self, gguf: Path, *, n_threads: int) -> None:
        self.program, self.gguf, self.n_threads = find_program(), gguf, n_threads

    def read(self, n_tokens: int) -> float:
        """Of a prompt of so many tokens, none before it."""
        return self._run("-p", n_tokens, "-n", 0)

    def decode(self, n_before: int, n_tokens: int) -> float:
        """Of n_tokens, one at a time, behind a text of n_before."""
        return self._run("-p", 0, "-n", n_tokens, "-d", n_before)

    def _run(self, *options: object) -> float:
        command = [self.program, "-m", str(self.gguf), "-t", str(self.n_threads), "-r", "1", "-ngl", "0", "-o", "json",
                   *map(str, options)]  # fmt: skip
        # Its threads spin, as its makers mean them to, whatever ours have been told.
        own = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
        try:
            return float(json.loads(done.stdout)[0]["avg_ts"])
        except (ValueError, LookupError, TypeError):
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise LlamammError(f"{self.program} gave no figures (exit code {done.returncode}): {said}") from None
