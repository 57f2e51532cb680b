"""course.env: what the set-up cell does on Colab and elsewhere."""

import importlib.util
import subprocess
import sys
import types

import pytest
import torch

from llamamm.course import env
from llamamm.errors import MissingDependencyError


def without(monkeypatch, *modules):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in modules else real(name))


def test_set_up_prints_one_line_and_picks_fp32_on_a_cpu(capsys, monkeypatch):
    monkeypatch.setattr(env, "pick_device", lambda: torch.device("cpu"))
    found = env.setup()
    assert (found.device.type, found.dtype, found.on_colab) == ("cpu", torch.float32, False)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and torch.__version__ in out and "cpu, float32" in out


def test_a_missing_package_elsewhere_is_named_and_nothing_installed(monkeypatch):
    without(monkeypatch, "gguf")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("installed something"))
    with pytest.raises(MissingDependencyError, match="gguf.*make setup"):
        env.setup()


def test_on_colab_only_what_is_missing_is_installed_and_no_dependency(monkeypatch):
    commands = []
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    without(monkeypatch, "gguf", "tiktoken")
    assert env.setup().on_colab
    (command,) = commands
    assert "--no-deps" in command
    assert [a.split(">")[0] for a in command[command.index("--no-deps") + 1 :]] == ["tiktoken", "gguf"]


def test_nothing_that_colab_owns_is_ever_installed():
    assert not {"torch", "numpy", "torchvision"} & set(env.LESSON_PACKAGES)


def test_blanks_are_set_up_in_a_notebook_alone(monkeypatch, capsys):
    installed = []
    monkeypatch.setattr(env, "install", installed.append)
    env.setup()
    assert installed == []
    monkeypatch.setattr("IPython.get_ipython", lambda: "the shell")
    env.setup()
    assert installed == ["the shell"]
    capsys.readouterr()
