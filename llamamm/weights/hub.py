"""A model's files from the Hugging Face Hub: only those a text model needs, whole or not at all.

`huggingface_hub` does the downloading: its cache, its locks, its resuming after a dropped connection. This module
decides *which* files, refuses those that could run code, checks that nothing is missing before it hands a folder
over, and turns what goes wrong into one sentence that says what to do, in which a token never appears.

The order matters: small files first, weights last. So a folder with all its weights has everything else too, and an
interrupted download is recognised without a network: config.json is there, a shard is not.

Source: the `huggingface_hub` guide to downloads and its cache layout; the safetensors index format of transformers.
Built in notebook 07.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub import constants

from llamamm.errors import CheckpointError, FetchError
from llamamm.weights.checkpoint import INDEX_FILE, SINGLE_FILE, check_shard_name

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    INDEX_FILE,
    "tokenizer.json",
    "tokenizer.model",
    "original/tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
# Seconds before the 2nd and 3rd attempt. Inside one attempt the library already resumes a file five times.
RETRY_WAITS = (1.0, 3.0)

T = TypeVar("T")


def snapshot(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    progress: bool = True,
) -> Path:
    """Download a text model (or find it in the cache) and return its folder, in which nothing is missing.

    Where a repository has model.safetensors, it is taken; otherwise the shards that its index names. Never other
    formats, never sub-folders but original/tokenizer.model. With `local_files_only` or HF_HUB_OFFLINE=1 no
    connection is made. HF_ENDPOINT, HF_HUB_CACHE, HF_HOME and HF_TOKEN are read now, not at import.
    Raises FetchError (gated, unknown, unreachable, not whole) or CheckpointError (no safe weights).
    """
    ask = _Request.make(repo_id, revision, token, local_files_only, progress)
    folder = _download(ask, list(SMALL_FILES))
    if missing_files(folder) and not ask.offline:
        # The commit, not the branch: all files come from one version, even when the branch moves meanwhile.
        single = _has_single_file(ask, folder)
        folder = _download(ask, [SINGLE_FILE] if single else weight_files(folder), revision=folder.name)
    if missing := missing_files(folder):
        raise FetchError(
            f"{repo_id} is not whole in the cache: {', '.join(missing)} missing from {folder}; "
            f"an earlier download was interrupted. {_GO_ONLINE if ask.offline else 'Run it again.'}"
        )
    return folder


def download_file(
    repo_id: str,
    filename: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    progress: bool = True,
) -> Path:
    """One file of a repository, from the Hub or its cache. Raises FetchError."""
    if PurePosixPath(filename).suffix in PICKLE_SUFFIXES:
        raise CheckpointError(f"{filename} of {repo_id} is refused: pickle can run code")
    ask = _Request.make(repo_id, revision, token, local_files_only, progress)
    # Not hf_hub_download: without a network it waits 23 seconds, a snapshot says so at once.
    path = _download(ask, [filename]) / filename
    if not path.is_file():
        raise FetchError(f"{repo_id} at {ask.revision!r} has no file {filename}"
                         + (f" in the cache. {_GO_ONLINE}" if ask.offline else ""))
    return path


# ---- what a folder must hold ----

def weight_files(folder: Path) -> list[str]:
    """Names of the files that hold a folder's weights: model.safetensors, or the shards of an index.

    An index is a file from a stranger: a name in it may only be that of a safetensors file in the same folder.
    Raises CheckpointError for a pickle, for `../` or an absolute path, for an index that is not one.
    """
    index = folder / INDEX_FILE
    if (folder / SINGLE_FILE).is_file() or not index.is_file():
        return [SINGLE_FILE]
    try:
        names = list(dict.fromkeys(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index} is not an index of shards; download it again") from None
    for name in names:
        check_shard_name(name, index)
    if not names:
        raise CheckpointError(f"{index} names no file; download it again")
    return names


def missing_files(folder: Path) -> list[str]:
    """What a model folder lacks of config.json and its weights; empty when it is whole."""
    # is_file follows links: a link in the cache whose blob is gone counts as missing.
    return [name for name in ["config.json", *weight_files(folder)] if not (folder / name).is_file()]


def _has_single_file(ask: _Request, folder: Path) -> bool:
    """Look at the listing before a download that could only fail, and say what the repository has instead."""
    api = huggingface_hub.HfApi(endpoint=ask.endpoint, token=ask.token)
    names = _patiently(ask, lambda: api.list_repo_files(ask.repo_id, revision=folder.name))
    if SINGLE_FILE in names or (folder / INDEX_FILE).is_file():
        return SINGLE_FILE in names
    pickles = [name for name in names if PurePosixPath(name).suffix in PICKLE_SUFFIXES]
    if pickles:
        raise CheckpointError(f"{ask.repo_id} has only {', '.join(pickles[:3])}: refused: pickle can run code. "
                              f"Use a repository or a revision with {SINGLE_FILE}")
    found = ", ".join(names[:8]) or "no file"
    raise CheckpointError(f"{ask.repo_id} has no {SINGLE_FILE} and no {INDEX_FILE}; it has {found}")


# ---- talking to the Hub ----

_GO_ONLINE = "Run it once with a network, without local_files_only and HF_HUB_OFFLINE."


@dataclass(frozen=True)
class _Request:
    """One call's settings. The environment is read here, because huggingface_hub freezes it when imported."""

    repo_id: str
    revision: str
    token: str | None = field(repr=False)
    offline: bool
    progress: bool
    endpoint: str
    cache_dir: str

    @classmethod
    def make(cls, repo_id: str, revision: str | None, token: str | None, offline: bool, progress: bool) -> _Request:
        if token is not None:
            token = token.strip()
            # Such a header would be rejected with a message that quotes it.
            if not re.fullmatch(r"[!-~]+", token):
                raise FetchError("the token is empty or holds a space or a control character; copy it again")
        env = os.environ
        home = env.get("HF_HOME") or os.path.join(env.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
        offline_env = env.get("HF_HUB_OFFLINE") or env.get("TRANSFORMERS_OFFLINE") or ""
        cache = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
        return cls(
            repo_id=repo_id,
            revision=revision or "main",
            token=token,
            offline=offline or offline_env.upper() in ("1", "ON", "YES", "TRUE"),
            progress=progress,
            endpoint=(env.get("HF_ENDPOINT") or constants.HUGGINGFACE_CO_URL_HOME).rstrip("/"),
            cache_dir=os.path.expandvars(os.path.expanduser(cache)),
        )

    def tqdm_class(self) -> type | None:
        """None for the library's own bars, or a bar that stays silent."""
        if self.progress:
            return None

        from huggingface_hub.utils import tqdm

        class Silent(tqdm):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **{**kwargs, "disable": True})

        return Silent


def _download(ask: _Request, names: list[str], *, revision: str | None = None) -> Path:
    return Path(_patiently(ask, lambda: huggingface_hub.snapshot_download(
        ask.repo_id, revision=revision or ask.revision, allow_patterns=names, token=ask.token,
        local_files_only=ask.offline, cache_dir=ask.cache_dir, endpoint=ask.endpoint, tqdm_class=ask.tqdm_class())))


def _patiently(ask: _Request, action: Callable[[], T]) -> T:
    """Run `action`; after a passing fault once more, a bounded number of times. Raises FetchError."""
    for wait in (*RETRY_WAITS, None):
        try:
            with _library_as_asked(ask):
                return action()
        except Exception as error:  # all of them: any may quote a request, and its headers hold the token
            problem, passing = _explain(ask, error)
        # Outside the except block, so that the library's error does not hang on ours as its context.
        if not passing or wait is None:
            raise problem
        time.sleep(wait)
    raise AssertionError("unreachable")


@contextmanager
def _library_as_asked(ask: _Request) -> Iterator[None]:
    """Endpoint and cache are arguments of the library's functions; being offline is only this constant of its.

    Its log speaks on stderr, such as of a token that one could send: not where nobody wants to hear.
    """
    from huggingface_hub.utils import logging

    offline, level = constants.HF_HUB_OFFLINE, logging.get_verbosity()
    constants.HF_HUB_OFFLINE = ask.offline
    if not ask.progress:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.set_verbosity(level)


def _explain(ask: _Request, error: Exception) -> tuple[FetchError, bool]:
    """What the user should read, and whether another attempt could help."""
    from huggingface_hub import errors

    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)

    def seen(*kinds: type) -> BaseException | None:
        return next((e for e in chain if isinstance(e, kinds)), None)

    http = seen(errors.HfHubHTTPError)
    status = getattr(getattr(http, "response", None), "status_code", None)
    page, detail = f"{ask.endpoint}/{ask.repo_id}", " ".join(str(error).split())
    passing = False
    if seen(errors.GatedRepoError):
        if status == 403:
            text = (f"{ask.repo_id} is gated (HTTP 403) and the account of this token has no access: accept the "
                    f"licence at {page} with that account, or set HF_TOKEN to a token of one that has access")
        else:
            text = (f"{ask.repo_id} is gated (HTTP {status}): accept its licence at {page}, then set HF_TOKEN to a "
                    f"token of that account")
    elif seen(errors.RevisionNotFoundError):
        text = f"{ask.repo_id} has no revision {ask.revision!r} (HTTP {status}); see {page}/tree/main"
    elif seen(errors.RepositoryNotFoundError):
        text = (f"there is no repository {ask.repo_id!r} at {ask.endpoint} (HTTP {status}), or it is private: check "
                f"the spelling; for a private one set HF_TOKEN")
    elif status in (401, 403):
        text = f"the Hub refused the token for {ask.repo_id} (HTTP {status}): set HF_TOKEN to a valid one, or unset it"
    elif ask.offline or seen(errors.OfflineModeIsEnabled):
        text = f"{ask.repo_id} at {ask.revision!r} has no files in the cache {ask.cache_dir}. {_GO_ONLINE}"
    elif seen(errors.HFValidationError):
        text = f"{ask.repo_id!r} is not a repository name of the form owner/name: {detail}"
    elif any(type(e).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError") for e in chain):
        # Names, because huggingface_hub 1 raises httpx's and 2 raises httpx2's. No network: waiting won't help.
        text = f"cannot reach {ask.endpoint} for {ask.repo_id}: {detail}"
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        text = f"cannot write to the cache {ask.cache_dir}: {detail}; free some space or set HF_HUB_CACHE"
    else:
        passing = status is None or status in (408, 429) or status >= 500
        text = f"the download of {ask.repo_id} from {ask.endpoint} failed: {detail}. Run it again: " \
               f"whole files are kept"
    return FetchError(scrub(text, ask.token)), passing


def scrub(text: str, token: str | None = None) -> str:
    """`text` without any token: the one given, the one in the environment, anything that looks like one."""
    secrets = {token, os.environ.get("HF_TOKEN"), os.environ.get("HUGGING_FACE_HUB_TOKEN")}
    with suppress(Exception):  # a token file that cannot be read
        secrets.add(huggingface_hub.get_token())
    for secret in secrets:
        if secret and secret.strip():
            text = text.replace(secret.strip(), "***")
    text = re.sub(r"\bhf_\w{8,}", "***", text)
    return re.sub(r"//[^/@\s]+@", "//***@", text)  # user:password@host
