"""llamamm.files: whole or not there."""

import os

import pytest

from llamamm.errors import FetchError, WriteError
from llamamm.files import recover_folder, replace_folder, require_writable, write_error, write_file


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


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(28, "free some space"), (13, "permissions"), (1, "permissions"), (30, "not read-only"), (20, "a file"),
     (36, "shorter name")],
)  # fmt: skip
@pytest.mark.parametrize("where", ["tempfile.mkstemp", "os.replace", "tempfile.mkdtemp", "in the folder"])
def test_each_failure_has_its_own_remedy(tmp_path, monkeypatch, number, remedy, where):
    def fail(*_args, **_options):
        raise OSError(number, os.strerror(number))

    if where != "in the folder":
        monkeypatch.setattr(where, fail)
    with pytest.raises(WriteError, match=rf"x cannot be written: {os.strerror(number)}; .*{remedy}") as caught:
        if where in ("tempfile.mkstemp", "os.replace"):
            write_file(tmp_path / "x", "new")
        with replace_folder(tmp_path / "x"):
            fail()
    assert isinstance(caught.value, OSError) and caught.value.errno == number and os.listdir(tmp_path) == []
    assert "\n" not in str(caught.value) and ("space" in str(caught.value)) == (number == 28)


def test_a_librarys_words_for_a_full_disk(tmp_path):
    with pytest.raises(WriteError, match="x cannot be written: No space left on device; free some space"), \
            replace_folder(tmp_path / "x"):  # fmt: skip
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_numpys_words_for_a_full_disk():
    full = write_error("x.gguf", OSError("3145728 requested and 2260544 written"))  # it has no errno
    assert str(full) == "x.gguf cannot be written: No space left on device; free some space"


def test_what_does_not_come_from_the_disk_is_left_as_it_is(tmp_path):
    for error in (FetchError("offline"), FileNotFoundError(2, "No such file", "/elsewhere"), OSError("odd")):
        with pytest.raises(type(error)) as caught, replace_folder(tmp_path / "x"):
            raise error
        assert caught.value is error


def test_a_file_stands_where_a_folder_should(tmp_path):
    (tmp_path / "a").write_text("mine")
    for folder in (tmp_path / "a", tmp_path / "a" / "b" / "c"):
        with pytest.raises(WriteError, match="cannot be written: .*; a .*choose another path"):
            require_writable(folder)
        with pytest.raises(WriteError, match="cannot be written: .*choose another path"), replace_folder(folder):
            pass
    with pytest.raises(WriteError, match="none/x cannot be written: No such file or directory; make the folder first"):
        write_file(tmp_path / "none" / "x", "")
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "mine"
    require_writable(tmp_path)
    require_writable(tmp_path / "new" / "deep")
    assert os.listdir(tmp_path) == ["a"]


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
