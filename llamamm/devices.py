"""Which device to use, which number type is fast on it, and what its threads do while they wait.

A 16-bit type halves memory everywhere, but it is only fast where the hardware multiplies 16-bit numbers: on a CPU
without such units every product is first widened by software, and reading a prompt becomes several times slower.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from llamamm.errors import ConfigError

if TYPE_CHECKING:
    import torch

# Units that multiply bf16 matrices: Intel's AMX, Arm's BF16 extension. AVX512-BF16 alone is a dot product: with it
# SmolLM2 reads a prompt twice as fast as in fp32, but writes its answer a quarter slower.
_BF16_FLAGS = {"amx_bf16", "bf16"}


def calm_threads() -> bool:
    """Let threads that wait for each other sleep instead of spin, unless OMP_WAIT_POLICY says otherwise.

    Where programs share few cores, spinning takes the core that another thread needs to get done. Commands and lessons
    ask for this. OpenMP reads it once, when torch is loaded. -> whether that is still to come.
    """
    if "torch" in sys.modules:
        return False
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return True


def pick_device(name: str | None = None) -> torch.device:
    """The device called `name`, or the best there is: CUDA, then Apple's MPS, then the CPU.

    Raises ConfigError, listing what this machine has, for a device that it lacks.
    """
    import torch

    here = []
    if torch.cuda.is_available():
        here += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        here.append("mps")
    here.append("cpu")
    if name is None:
        return torch.device(here[0])
    if name not in here:
        raise ConfigError(f"there is no device {name!r} here; this machine has {', '.join(here)}")
    return torch.device(name)


def default_dtype(device: torch.device | str) -> torch.dtype:
    """bf16 where the hardware multiplies it, fp16 on GPUs that only know that (T4), else fp32."""
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.float16
    return torch.bfloat16 if cpu_has_bf16_units() else torch.float32


def cpu_has_bf16_units() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware. Linux tells; elsewhere the answer is no, the safe one."""
    return bool(cpu_flags() & _BF16_FLAGS)


def cpu_flags() -> set[str]:
    """What the kernel lists as the CPU's features; empty where it cannot be asked."""
    info = Path("/proc/cpuinfo")
    if platform.system() != "Linux" or not info.exists():
        return set()
    for line in info.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()
