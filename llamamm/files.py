"""Files that are whole or not there: everything is written under a temporary name and then renamed.

A program may be killed, or a disk fill up, at any line; whoever reads afterwards must find the old file or the new
one, never half of either. A folder is replaced as a whole, in two renames; `recover_folder` finishes or undoes a
replacement that was killed between them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_file(path: str | Path, content: str | bytes) -> None:
    """Write a file whole: to a temporary name beside it, then renamed over it."""
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data)
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files for the owner alone
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """Give an empty folder to write into; at the end of the block it takes the place of `folder`, whole.

    After an exception the old folder stands untouched. One writer at a time for each folder.
    """
    folder = Path(folder).absolute()
    recover_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f".{folder.name}.new-*"):  # left by a writer that was killed
        shutil.rmtree(stale, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.new-"))
    try:
        os.chmod(temporary, 0o777 & ~_umask())
        yield temporary
        if folder.exists():
            os.rename(folder, _previous(folder))
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        recover_folder(folder)
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


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
