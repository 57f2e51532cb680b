"""fast.plan: where compiled code is kept."""

import os

import pytest

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
