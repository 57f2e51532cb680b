"""Files that are whole or not there: everything is written under a temporary name and then renamed.

A program may be killed, or a disk fill up, at any line; whoever reads afterwards must find the old file or the new
one, never half of either. A folder is replaced as a whole, in two renames; `recover_folder` finishes or undoes a
replacement that was killed between them.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from llamamm.errors import CheckpointError, InputError, LlamammError, WriteError

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or have your quota raised",
    errno.EACCES: "choose a place where you may write, or change its permissions",
    errno.EPERM: "choose a place where you may write, or change its permissions",
    errno.EROFS: "choose a place on a disk that is not read-only",
    errno.ENOENT: "make the folder first",
    errno.ENOTDIR: "a part of this path is a file: choose another path",
    errno.EEXIST: "a file has this name: choose another path, or move it away",
    errno.EISDIR: "a folder has this name: choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EFBIG: "the disk's format takes no file this large: choose another disk",
    errno.EIO: "the disk itself has failed: choose another one",
}


def cache_root() -> Path:
    """Where assets and compiled code are kept: $LLAMAMM_CACHE, or the user's cache folder."""
    return Path(os.environ.get("LLAMAMM_CACHE") or platformdirs.user_cache_dir("llamamm")).expanduser().absolute()


def in_notebook() -> bool:
    """Whether stderr is a notebook's. What a first time says would stay among a cell's outputs there, and be missing
    when the cell runs again."""
    return type(sys.stderr).__module__.startswith("ipykernel.")


def write_error(path: str | Path, error: Exception) -> WriteError:
    """What the system, or a library in its words, said when `path` was to be written, with the remedy for just that."""
    rust = re.search(r"\(os error (\d+)\)", str(error))  # safetensors has errors of its own
    short = re.search(r"\d+ requested and \d+ written", str(error))  # so says NumPy, whatever the system's reason
    number = getattr(error, "errno", None) or (int(rust[1]) if rust else errno.ENOSPC if short else None)
    said = os.strerror(number) if number else " ".join(str(error).split()) or type(error).__name__
    remedy = _REMEDIES.get(number)
    named = WriteError(f"{path} cannot be written: {said}{f'; {remedy}' if remedy else ''}")
    named.errno = number
    return named


def require_writable(folder: str | Path) -> None:
    """Find out before the work whether a folder can be made, or written into, and make nothing. Raises WriteError."""
    folder = Path(folder).absolute()
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        if not there.is_dir():
            raise OSError(errno.ENOTDIR if there != folder else errno.EEXIST, "")
        if not os.access(there, os.W_OK | os.X_OK):
            tempfile.TemporaryFile(dir=there).close()  # for the reason, which access() does not tell
    except OSError as error:
        raise write_error(folder, error) from None


def write_file(path: str | Path, content: str | bytes) -> None:
    """Write a file whole: to a temporary name beside it, then renamed over it. Raises WriteError."""
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(data)
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files for the owner alone
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise write_error(path, error) from error


@contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """Give an empty folder to write into; at the end of the block it takes the place of `folder`, whole.

    After an exception the old folder stands untouched. One writer at a time for each folder. Raises WriteError.
    """
    folder = Path(folder).absolute()
    try:
        recover_folder(folder)
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(errno.EEXIST, "")
        folder.parent.mkdir(parents=True, exist_ok=True)
        for stale in folder.parent.glob(f".{folder.name}.new-*"):  # left by a writer that was killed
            shutil.rmtree(stale, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.new-"))
    except OSError as error:
        raise write_error(folder, error) from error
    try:
        os.chmod(temporary, 0o777 & ~_umask())
        yield temporary
        for path in temporary.rglob("*.safetensors"):  # the library writes files for the owner alone
            if path.stat().st_nlink == 1:  # else it is a second name for a file of the Hub's cache
                os.chmod(path, 0o666 & ~_umask())
        if folder.exists():
            os.rename(folder, _previous(folder))
        os.rename(temporary, folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        recover_folder(folder)
        if _is_of_the_disk(error, temporary):
            raise write_error(folder, error) from error
        raise
    shutil.rmtree(_previous(folder), ignore_errors=True)


def recover_folder(folder: str | Path) -> None:
    """Bring back the old folder if a replacement was killed between its two renames; drop it if the new one stands."""
    folder = Path(folder).absolute()
    previous = _previous(folder)
    if previous.exists():
        if folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
        else:
            os.rename(previous, folder)


def _is_of_the_disk(error: BaseException, folder: Path) -> bool:
    """Whether writing under `folder` failed, and not the reading of something else."""
    if isinstance(error, LlamammError):
        return False
    if isinstance(error, OSError):
        file = error.filename
        return error.errno in _REMEDIES and (file is None or str(folder) in str(file))
    return "(os error " in str(error)


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_json(file: Path, *, owner: str = "a model") -> dict[str, Any]:
    """The object in a JSON file of `owner`'s folder. Raises CheckpointError where it is missing or damaged."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        if (file.parent / "last" / file.name).is_file():
            raise CheckpointError(f"{file.parent} is the folder of a training run; what it has made is in "
                                  f"{file.parent / 'last'}") from None
        raise CheckpointError(f"{file.parent} has no {file.name}; is it the folder of {owner}?") from None
    except (OSError, ValueError):
        raise CheckpointError(f"{file} is not JSON; get it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no JSON object; get it again")
    return content


def read_open(file: Any, what: str) -> bytes:
    """The bytes of an open file from where it stands; one that can seek stands there again. what: "image", "sound".

    Raises InputError for a file that is closed, opened as text, or already read to its end.
    """
    if isinstance(file, io.TextIOBase):
        raise InputError(f"the {what} is a file opened as text; open it with mode 'rb'")
    try:
        place = file.tell() if getattr(file, "seekable", bool)() else None
        data = file.read()
        if place is not None:
            file.seek(place)
    except (OSError, ValueError) as error:  # ValueError: it is closed
        raise InputError(f"cannot read the {what} from an open file: {error}") from None
    if not isinstance(data, (bytes, bytearray)):
        raise InputError(f"the {what} is a file whose read() gives {type(data).__name__}, not bytes; open it with "
                         f"mode 'rb'")
    if not data and place:
        raise InputError(f"the {what} is an open file that stands at its end, byte {place:,}: file.seek(0) first")
    return bytes(data)
