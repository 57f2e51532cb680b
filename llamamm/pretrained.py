"""From a name to a model that answers: a Hub repository, a folder, a GGUF file, or one of this course's assets.

Built in notebook 07.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from llamamm.assets import ASSETS, fetch
from llamamm.catalogue import KINDS
from llamamm.config import TextConfig
from llamamm.errors import CheckpointError, FetchError
from llamamm.files import read_json, recover_folder
from llamamm.model import Llama3Model
from llamamm.tokenizer import Tokenizer
from llamamm.weights.checkpoint import open_checkpoint
from llamamm.weights.gguf import GGUFFile
from llamamm.weights.hub import snapshot
from llamamm.weights.loading import build_from_refs
from llamamm.weights.tensors import TensorRef


def from_pretrained(
    repo_or_dir: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    progress: bool | None = None,
) -> tuple[Llama3Model, Tokenizer | None]:
    """The model, ready to answer, and its tokenizer, None where a folder holds none.

    repo_or_dir: "meta-llama/Llama-3.2-1B-Instruct", a folder, a .gguf file, or an asset's name such as "smollm2".
    dtype: what to cast to; None keeps the file's own.
    revision, token, local_files_only: for the Hub; token=None uses the one you are logged in with.
    progress: show bars on stderr; None means where it is a terminal, and elsewhere one line if an asset is fetched.
    Raises FetchError, CheckpointError or ConfigError with the remedy.
    """
    bars = sys.stderr.isatty() if progress is None else progress
    path = locate(repo_or_dir, revision=revision, token=token, local_files_only=local_files_only, progress=progress)
    cfg, refs = _open(path)
    with _loading_bar(refs, bars) as on_progress:
        model = build_from_refs(cfg, refs, dtype=dtype, device=device, on_progress=on_progress)
    tokenizer = load_tokenizer(path)
    if tokenizer is not None and tokenizer.vocab_size > cfg.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer knows {tokenizer.vocab_size} tokens, the model {cfg.vocab_size}: "
            f"they do not belong together"
        )
    return model, tokenizer


def locate(
    repo_or_dir: str | Path,
    *,
    kind: str = "llama",
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    progress: bool | None = None,
) -> Path:
    """The folder or GGUF file of a model, downloaded if it must be. A folder here comes before a name elsewhere.

    kind: which assets are meant, one of catalogue's KINDS. Raises FetchError, also for an asset of another kind.
    """
    bars = sys.stderr.isatty() if progress is None else progress
    path = Path(repo_or_dir).expanduser()
    recover_folder(path)
    if path.exists():
        return path
    name = str(repo_or_dir)
    models = [asset.name for asset in ASSETS.values() if asset.kind == kind]
    if name in ASSETS and name not in models:
        what, title, wanted = KINDS[ASSETS[name].kind], ASSETS[name].title, KINDS[kind]
        raise FetchError(f"{name!r} is {what}, {title}, and not {wanted}; {wanted.split(' ', 1)[1]}s are "
                         f"{', '.join(models)}")
    if name in ASSETS:
        return fetch(name, progress=progress is not False)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and path.suffix != ".gguf":
        return snapshot(name, revision=revision, token=token, local_files_only=local_files_only, progress=bars)
    raise FetchError(
        f"{name!r} is no file or folder here, no Hub repository (owner/name), and none of the assets "
        f"{', '.join(models)}"
    )


def load_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer in a GGUF file or a model's folder, or None where there is none."""
    if path.suffix == ".gguf":
        return Tokenizer(path)
    folder = path if path.is_dir() else path.parent
    names = ("tokenizer.json", "tokenizer.model", "original/tokenizer.model")
    return Tokenizer(folder) if any((folder / name).is_file() for name in names) else None


def read_config(folder: Path) -> TextConfig:
    """The TextConfig in a folder's config.json. Raises CheckpointError where it is missing or damaged."""
    return TextConfig.from_hf(read_json(folder / "config.json"))


def _open(path: Path) -> tuple[TextConfig, Mapping[str, TensorRef]]:
    if path.suffix == ".gguf":
        file = GGUFFile(path)
        return file.config, file.refs
    return read_config(path if path.is_dir() else path.parent), open_checkpoint(path)


@contextmanager
def _loading_bar(refs: Mapping[str, TensorRef], show: bool) -> Iterator[Callable[[int], None] | None]:
    if not show:
        yield None
        return
    total = sum(torch.Size(ref.shape).numel() * ref.dtype.itemsize for ref in refs.values())
    columns = TextColumn("loading"), BarColumn(), DownloadColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=total)
        yield lambda n: bar.advance(task, n)
