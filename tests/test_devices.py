"""llamamm.devices: which number type where. Hardware that is not here is described to it."""

import os
import sys
from pathlib import Path

import pytest
import torch

from llamamm import devices
from llamamm.errors import ConfigError
from tests.processes import finish

X86 = "processor : 0\nflags\t\t: fpu avx2 {flags}\n\nprocessor : 1\nflags\t\t: fpu\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {flags}\n"


@pytest.mark.parametrize(
    ("cpuinfo", "flags", "dtype"),
    [
        (X86, "", torch.float32),
        (X86, "avx512f", torch.float32),
        (X86, "avx512f avx512_bf16", torch.float32),
        (X86, "amx_tile amx_bf16", torch.bfloat16),
        (ARM, "", torch.float32),
        (ARM, "i8mm bf16", torch.bfloat16),
        ("nothing known", "", torch.float32),
    ],
)
def test_a_cpu_gets_bf16_only_if_it_multiplies_it(monkeypatch, cpuinfo, flags, dtype):
    monkeypatch.setattr(devices.platform, "system", lambda: "Linux")
    monkeypatch.setattr(Path, "exists", lambda _self: True)
    monkeypatch.setattr(Path, "read_text", lambda _self, **_: cpuinfo.format(flags=flags))
    assert devices.default_dtype("cpu") == dtype


def test_where_the_cpu_cannot_be_asked_fp32_is_safe(monkeypatch):
    monkeypatch.setattr(devices.platform, "system", lambda: "Darwin")
    assert devices.default_dtype("cpu") == torch.float32


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)], ids=["A100", "T4"])
def test_a_gpu_without_bf16_gets_fp16(monkeypatch, native, dtype):
    """A T4 only emulates bf16, which is slow."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert devices.default_dtype("cuda") == dtype


def test_the_best_device_is_picked_unless_one_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.pick_device("cuda:1") == torch.device("cuda:1")
    assert devices.pick_device() == torch.device("cuda")
    assert devices.pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.pick_device() == torch.device("mps")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "meta", "nonsense", ""])
def test_a_device_that_is_not_here_is_refused_with_what_is(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"no device '{name}' here; this machine has cpu"):
        devices.pick_device(name)


CALM = """
import os, sys
{before}
from llamamm.devices import calm_threads
print(calm_threads(), os.environ.get("OMP_WAIT_POLICY"), "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("before", "said"),
    [("", "True PASSIVE False"), ("os.environ['OMP_WAIT_POLICY'] = 'ACTIVE'", "True ACTIVE False"),
     ("import torch", "False None True")],
)  # fmt: skip
def test_waiting_threads_sleep_where_torch_is_still_to_be_loaded(before, said):
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = finish([sys.executable, "-c", CALM.format(before=before)], env=env)
    assert done.stdout.strip() == said, done.stderr


def test_the_set_up_cell_and_the_commands_do_so_before_torch_is_loaded():
    env = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    script = ("import sys; from llamamm.course.env import setup; assert 'torch' not in sys.modules; setup(); "
              "import os; print(os.environ['OMP_WAIT_POLICY'])")  # fmt: skip
    assert finish([sys.executable, "-c", script], env=env).stdout.split()[-1] == "PASSIVE"
    script = ("import atexit, os, sys; sys.argv = ['llamamm', '--help']; from llamamm.cli.main import main; "
              "assert 'torch' not in sys.modules; "
              "atexit.register(lambda: print(os.environ['OMP_WAIT_POLICY'])); main()")  # fmt: skip
    assert finish([sys.executable, "-c", script], env=env).stdout.split()[-1] == "PASSIVE"
