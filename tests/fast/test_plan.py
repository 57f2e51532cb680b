"""fast.plan: where compiled code is kept."""

import builtins
import os

import pytest
import torch

from llamamm import Llama3Model, TextConfig, generate
from llamamm.errors import MissingDependencyError
from llamamm.fast import plan
from llamamm.fast.decoder import FastDecoder, equip
from llamamm.fast.plan import _compiled_folder


def test_compiled_code_is_kept_in_the_cache_that_a_user_names(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMAMM_CACHE", str(tmp_path))
    folder = _compiled_folder()
    assert folder.is_dir() and folder.parent == tmp_path / "compiled" and _compiled_folder() == folder


@pytest.mark.parametrize("made", ["a file", "nothing"])
def test_where_nothing_can_be_kept_this_process_has_a_folder_of_its_own(tmp_path, monkeypatch, made):
    place = tmp_path / "cache"
    if made == "a file":
        place.write_text("")
    else:
        monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setenv("LLAMAMM_CACHE", str(place))
    folder = _compiled_folder()
    assert folder.is_dir() and tmp_path not in folder.parents
    (folder / "code").touch()


@pytest.fixture
def damaged(monkeypatch):
    """numba is installed, and does not load."""
    real = builtins.__import__

    def load(name, *rest):
        if name == "numba":
            raise ImportError("Numba needs NumPy 2.4 or less. Got NumPy 2.9.")
        return real(name, *rest)

    monkeypatch.setattr(plan, "_COMPILED", [])
    monkeypatch.setattr(builtins, "__import__", load)


@pytest.mark.usefixtures("damaged")
def test_with_a_damaged_numba_pytorch_decodes_and_one_line_says_why(capsys):
    model = Llama3Model(TextConfig.tiny()).eval()
    ids = torch.tensor([[1, 2, 3]])
    plain = generate(model, ids, max_new_tokens=5)
    model.fast = FastDecoder()
    assert torch.equal(generate(model, ids, max_new_tokens=5), plain)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Got NumPy 2.9" in said and "--no-fast" in said
    with pytest.raises(MissingDependencyError, match="pip install -U numba"):
        generate(equip(model, fast=True), ids, max_new_tokens=5)


@pytest.mark.parametrize("kept", [True, False])
def test_it_is_compiled_once_where_that_can_be_kept_and_else_each_time(tmp_path, monkeypatch, capsys, kept):
    monkeypatch.setattr(plan, "_COMPILED", [])
    monkeypatch.setenv("LLAMAMM_CACHE", str(tmp_path / "cache"))
    if not kept:
        (tmp_path / "cache").write_text("")
    plan.load_kernels()
    said = capsys.readouterr().err
    assert ("half a minute, once)" in said) == kept and (f"{tmp_path / 'cache'} cannot be written" in said) != kept
