"""llamamm.files: whole or not there."""

import os

import pytest

from llamamm.files import recover_folder, replace_folder, write_file


def test_write_file_replaces_whole(tmp_path):
    path = tmp_path / "a.txt"
    write_file(path, "old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_file(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_folder_and_no_rest(tmp_path, error):
    with replace_folder(tmp_path / "m") as new:
        (new / "a").write_text("old")
    with pytest.raises(error), replace_folder(tmp_path / "m") as new:
        (new / "a").write_text("half")
        raise error
    assert (tmp_path / "m" / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["m"]


def test_the_old_folder_stands_until_the_new_one_is_whole(tmp_path):
    with replace_folder(tmp_path / "m") as new:
        (new / "a").write_text("old")
    with replace_folder(tmp_path / "m") as new:
        assert (tmp_path / "m" / "a").read_text() == "old"
        (new / "b").write_text("new")
    assert os.listdir(tmp_path / "m") == ["b"]


def test_recovery_undoes_a_replacement_killed_halfway(tmp_path):
    previous = tmp_path / ".m.previous"
    previous.mkdir()
    (previous / "a").write_text("old")
    recover_folder(tmp_path / "m")
    assert (tmp_path / "m" / "a").read_text() == "old"
    assert not previous.exists()


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such modes")
def test_weights_may_be_read_by_whoever_the_umask_lets(tmp_path):
    kept = tmp_path / "cache"
    kept.write_bytes(b"")
    kept.chmod(0o600)
    with replace_folder(tmp_path / "m") as new:
        (new / "a.safetensors").touch(mode=0o600)
        os.link(kept, new / "b.safetensors")
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "m" / "a.safetensors").stat().st_mode == plain.stat().st_mode
    assert kept.stat().st_mode & 0o777 == 0o600  # another name of a file of the cache: left alone
