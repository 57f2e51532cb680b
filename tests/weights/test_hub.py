"""weights.hub against a Hub of our own: faults 6, 7 and 8 of the fault list, over real HTTP."""

import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from llamamm.errors import CheckpointError, FetchError
from llamamm.pretrained.towers import load_image_processor
from llamamm.senses.image_processor import ImageProcessor
from llamamm.text.config import TextConfig
from llamamm.weights import hub
from llamamm.weights.checkpoint import INDEX_FILE, SINGLE_FILE, open_checkpoint
from tests.hub_server import HubServer
from tests.processes import finish, wait_while_it_gets_on

TOKEN = "hf_ThisIsASecretOfTheUser1234"
REPO = "me/tiny"


def model_files() -> dict[str, bytes]:
    """A model in two shards, with the clutter that real repositories have beside it."""
    generator = torch.Generator().manual_seed(0)
    tensors = [{f"w{i}": torch.randn(64, 64, generator=generator)} for i in range(2)]
    names = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
    index = {"metadata": {}, "weight_map": {"w0": names[0], "w1": names[1]}}
    return {
        "config.json": json.dumps(TextConfig.tiny().to_hf()).encode(),
        "tokenizer.json": b"{}",
        "original/tokenizer.model": b"abc 1",
        INDEX_FILE: json.dumps(index).encode(),
        names[0]: save(tensors[0]),
        names[1]: save(tensors[1]),
        "README.md": b"# tiny",
        "original/consolidated.00.pth": b"pickle",
        "original/model.safetensors": b"other",
        "onnx/model.onnx": b"other",
    }


def single_file() -> dict[str, bytes]:
    files = model_files()
    return {"config.json": files["config.json"], SINGLE_FILE: files["model-00001-of-00002.safetensors"]}


@pytest.fixture
def server(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME",
                 "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda _: None)  # the library waits a second before it resumes
    with HubServer({REPO: model_files()}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def snapshot_error(**options) -> str:
    """The error of a snapshot that must fail, after checking that no part of it holds the token."""
    with pytest.raises((FetchError, CheckpointError)) as caught:
        hub.snapshot(REPO, progress=False, **options)
    error = caught.value
    assert error.__cause__ is None
    # Loggers that print the context too find nothing of the library's there.
    assert error.__context__ is None or isinstance(caught.value, CheckpointError)
    assert TOKEN not in "".join(traceback.format_exception(error)) + repr(error) + repr(error.__context__)
    return str(error)


# ---- what is taken ----

def test_takes_a_whole_model_and_nothing_else(server):
    folder = hub.snapshot(REPO, progress=False)
    taken = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert taken == sorted(["config.json", "tokenizer.json", "original/tokenizer.model", INDEX_FILE,
                            "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
    assert (folder / "config.json").read_bytes() == server.repos[REPO]["config.json"]
    assert load_file(folder / "model-00002-of-00002.safetensors")["w1"].shape == (64, 64)


def test_weights_come_last(server):
    # What makes an interrupted download recognisable: see the module's docstring.
    hub.snapshot(REPO, progress=False)
    weights = [name.endswith(".safetensors") for name in server.fetched()]
    assert weights == sorted(weights) and sum(weights) == 2


def test_takes_model_safetensors_without_an_index(server):
    server.repos[REPO] = {**single_file(), "adapter_model.safetensors": b"other"}
    folder = hub.snapshot(REPO, progress=False)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", SINGLE_FILE]


def test_the_single_file_goes_before_an_index_that_was_left(server):
    server.repos[REPO].update(single_file())
    folder = hub.snapshot(REPO, progress=False)
    assert [p.name for p in folder.glob("*.safetensors")] == [SINGLE_FILE]
    assert list(open_checkpoint(folder)) == ["w0"]
    assert hub.snapshot(REPO, progress=False, local_files_only=True) == folder


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_the_settings_for_images_come_along_in_either_file(server, name):  # fault 51
    settings = ImageProcessor.siglip(48)
    content = settings.to_hf() if name == "preprocessor_config.json" else {"image_processor": settings.to_hf()}
    server.repos[REPO] = {**single_file(), name: json.dumps(content).encode()}
    assert load_image_processor(REPO) == settings
    assert load_image_processor(REPO, local_files_only=True) == settings


def test_second_call_downloads_nothing(server):
    first = hub.snapshot(REPO, progress=False)
    server.requests.clear()
    assert hub.snapshot(REPO, progress=False) == first
    assert server.fetched() == []


def test_a_branch_that_moved_is_followed(server):
    first = hub.snapshot(REPO, progress=False)
    server.repos[REPO] = {**model_files(), "tokenizer.json": b'{"new": 1}'}
    second = hub.snapshot(REPO, progress=False)
    assert second != first and (second / "tokenizer.json").read_bytes() == b'{"new": 1}'
    # and an older commit can still be named
    assert hub.snapshot(REPO, revision=first.name, progress=False) == first


def test_a_branch_that_moves_meanwhile_gives_no_mixture(server):
    old, shard = model_files(), "model-00001-of-00002.safetensors"
    new = {**old, "tokenizer.json": b'{"new": 1}', shard: old["model-00002-of-00002.safetensors"]}
    server.then[INDEX_FILE] = lambda: server.repos.update({REPO: new})
    folder = hub.snapshot(REPO, progress=False)
    assert (folder / "tokenizer.json").read_bytes() == b"{}" and (folder / shard).read_bytes() == old[shard]


def test_download_file_takes_one(server):
    path = hub.download_file(REPO, "original/tokenizer.model", progress=False)
    assert path.read_bytes() == b"abc 1" and server.fetched() == ["original/tokenizer.model"]
    with pytest.raises(FetchError, match="no file nothing.json"):
        hub.download_file(REPO, "nothing.json", progress=False)
    with pytest.raises(FetchError, match="HF_HUB_OFFLINE"):
        hub.download_file(REPO, "tokenizer.json", local_files_only=True, progress=False)
    with pytest.raises(CheckpointError, match="pickle"):
        hub.download_file(REPO, "pytorch_model.bin", progress=False)


def test_environment_is_read_at_the_call(server, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert hub.snapshot(REPO, progress=False).is_relative_to(tmp_path / "home" / "hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    server.requests.clear()
    hub.snapshot(REPO, progress=False)
    assert server.requests == []
    # and back: the library itself would stay offline
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    hub.snapshot(REPO, progress=False)
    assert server.requests != []


def test_progress_false_prints_nothing(server, capfd, caplog):
    server.warning = "one; Please set a HF_TOKEN"  # the library logs it on stderr, each topic once in a process
    hub.snapshot(REPO, progress=False)
    assert capfd.readouterr() == ("", "") and caplog.text == ""
    server.repos["me/other"], server.warning = single_file(), "two; Please set a HF_TOKEN"
    hub.snapshot("me/other")  # and on it goes where progress is wanted
    assert "Please set a HF_TOKEN" in capfd.readouterr().err + caplog.text


# ---- fault 6: pickle, and an index that reaches outside ----

def test_pickle_only_repository_is_refused_before_any_weights(server):
    server.repos[REPO] = {"config.json": b"{}", "pytorch_model.bin": b"cos\nsystem\n"}
    message = snapshot_error()
    assert "pytorch_model.bin" in message and "pickle can run code" in message
    assert "pytorch_model.bin" not in server.fetched()


@pytest.mark.parametrize(("name", "why"), [
    ("pytorch_model-00001.bin", "pickle can run code"),
    ("../../outside.safetensors", "leads out of its folder"),
    ("/etc/outside.safetensors", "leads out of its folder"),
    ("sub\\outside.safetensors", "leads out of its folder"),
    ("model.gguf", "only .safetensors"),
    (7, "only .safetensors"),
])
def test_index_with_a_bad_name_is_refused(server, name, why):
    server.repos[REPO][INDEX_FILE] = json.dumps({"weight_map": {"w0": name}}).encode()
    message = snapshot_error()
    assert why in message and repr(name) in message
    assert not [n for n in server.fetched() if n.endswith((".bin", ".safetensors"))]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"weight_map": []}', b"{}", b"\xff", b'{"weight_map": {"a": {}}}'])
def test_index_that_is_none_is_refused(server, content):
    server.repos[REPO][INDEX_FILE] = content
    assert INDEX_FILE in snapshot_error()


def test_repository_without_weights_says_what_it_has(server):
    server.repos[REPO] = {"config.json": b"{}", "model.gguf": b""}
    assert "model.gguf" in snapshot_error()


# ---- fault 7: gated, unknown, offline; never the token ----

def test_gated_without_token_names_the_page_and_the_variable(server):
    server.gated.add(REPO)
    message = snapshot_error()
    assert "401" in message and f"{server.url}/{REPO}" in message and "HF_TOKEN" in message and "licence" in message


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_gated_with_a_token_that_has_no_access(server, monkeypatch, how):
    server.gated.add(REPO)
    if how == "environment":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    message = snapshot_error(token=TOKEN if how == "argument" else None)
    assert "403" in message and f"{server.url}/{REPO}" in message
    # the token did travel: its absence from the message is not for want of one
    assert any(headers.get("Authorization", headers.get("authorization")) == f"Bearer {TOKEN}"
               for _, _, headers in server.requests)


def test_token_opens_a_private_repository(server):
    server.required_token = TOKEN
    assert "HF_TOKEN" in snapshot_error()
    assert "refused the token" in snapshot_error(token="hf_SomeOtherToken1234")
    assert hub.snapshot(REPO, token=TOKEN + "\n", progress=False).is_dir()


@pytest.mark.usefixtures("server")
def test_token_quoted_by_the_library_is_scrubbed(monkeypatch):
    # Some libraries quote a header that they cannot send, or a URL with its password.

    def leak(*_, **__):
        raise RuntimeError(f"bad header b'Bearer {TOKEN}' for http://me:password@host/x") from ValueError(TOKEN)

    monkeypatch.setattr(hub.huggingface_hub, "snapshot_download", leak)
    message = snapshot_error(token=TOKEN)
    assert "bad header" in message and "password" not in message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    snapshot_error()


@pytest.mark.parametrize("token", ["", " ", f"{TOKEN}\nX: 1", f"{TOKEN} é"])
def test_token_that_cannot_be_one_is_refused_unquoted(server, token):
    assert "token" in snapshot_error(token=token)
    assert server.requests == []


def test_unknown_repository_and_revision(server):
    assert "'nosuch'" in snapshot_error(revision="nosuch")
    del server.repos[REPO]
    assert "401" in (message := snapshot_error()) and REPO in message
    assert "404" in (message := snapshot_error(token=TOKEN)) and REPO in message


def test_a_name_that_is_no_repository(server):
    with pytest.raises(FetchError, match="owner/name"):
        hub.snapshot("a/b/c", progress=False)
    assert server.requests == []


@pytest.mark.usefixtures("server")
def test_without_hf_endpoint_the_page_is_the_real_hubs(monkeypatch):
    # In a fresh process, because huggingface_hub imports its parts when they are first used.
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = ("from llamamm.weights import hub; ask = hub._Request.make('me/tiny', None, None, False, False); "
            "print(ask.endpoint); hub.snapshot('me/tiny', progress=False)")
    child = finish([sys.executable, "-c", code])
    assert child.stdout.strip() == "https://huggingface.co"
    assert "FetchError: me/tiny" in child.stderr and "HF_HUB_OFFLINE" in child.stderr


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_offline_and_not_cached(server, monkeypatch, tmp_path, how):
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = snapshot_error(local_files_only=how == "argument")
    assert REPO in message and str(tmp_path / "cache") in message and "HF_HUB_OFFLINE" in message
    assert server.requests == []


@pytest.mark.usefixtures("server")
def test_unreachable_hub_is_said_at_once_and_a_whole_cache_still_serves(monkeypatch, tmp_path):
    folder = hub.snapshot(REPO, progress=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert hub.snapshot(REPO, progress=False) == folder
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    # At once: nothing waits before another attempt.
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
    assert "cannot reach http://127.0.0.1:9" in snapshot_error()
    with pytest.raises(FetchError, match="cannot reach http://127.0.0.1:9"):
        hub.download_file(REPO, "config.json", progress=False)


# ---- fault 8: dropped connections, killed processes, half a folder ----

def test_a_dropped_connection_is_resumed(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 4096)  # else 10 MB are lost by each drop
    shard = "model-00002-of-00002.safetensors"
    server.drops[shard] = 1
    folder = hub.snapshot(REPO, progress=False)
    assert (folder / shard).read_bytes() == server.repos[REPO][shard]
    ranges = [h.get("Range", h.get("range")) for m, p, h in server.requests if m == "GET" and p.endswith(shard)]
    assert ranges == [None, "bytes=8192-"]


def test_a_connection_that_always_drops_ends_in_an_error_then_comes_back(server):
    server.drops[INDEX_FILE] = 10**6
    message = snapshot_error()
    assert "failed" in message and REPO in message
    assert 3 <= len([n for n in server.fetched() if n == INDEX_FILE]) < 30
    server.drops.clear()
    assert not hub.missing_files(hub.snapshot(REPO, progress=False))


def test_one_cut_connection_is_tried_again(server):
    server.cuts = 1  # while asking for the commit, which the library itself asks only once
    assert hub.snapshot(REPO, progress=False).is_dir()


def test_a_hub_that_cuts_every_connection(server):
    server.down = True
    assert "failed" in snapshot_error()
    assert len(server.requests) < 60
    server.down = False
    assert hub.snapshot(REPO, progress=False).is_dir()


CHILD = f"from llamamm.weights import hub; hub.snapshot({REPO!r}, progress=False)"


def killed_halfway(server: HubServer, cache: Path) -> None:
    """A process that has the first shard and half of the second gets SIGKILL."""
    server.hangs.add("model-00002-of-00002.safetensors")
    child = subprocess.Popen([sys.executable, "-c", CHILD], env=os.environ)
    try:
        wait_while_it_gets_on(child, until=server.hanging.is_set)
        assert server.hanging.is_set(), "the child never asked for the shard"
        wait_while_it_gets_on(child, until=lambda: bool(list(cache.rglob("model-00001-of-00002.safetensors"))))
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    server.hangs.clear()


def test_half_a_folder_is_never_accepted(server, tmp_path, monkeypatch):
    killed_halfway(server, tmp_path / "cache")
    # The library's own fallback returns such a folder where it has no listing of the repository (version 1 never has).
    partial = tmp_path / "without_listing"
    shutil.copytree(tmp_path / "cache", partial, symlinks=True)
    for listing in partial.glob("*/trees"):
        shutil.rmtree(listing)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "model-00002-of-00002.safetensors" in snapshot_error()
    monkeypatch.setenv("HF_HUB_CACHE", str(partial))
    assert "model-00002-of-00002.safetensors" in snapshot_error()
    # an unreachable Hub makes the library fall back in the same way
    monkeypatch.delenv("HF_HUB_OFFLINE")
    server.down = True
    snapshot_error()
    server.down = False
    server.requests.clear()
    folder = hub.snapshot(REPO, progress=False)
    assert not hub.missing_files(folder)
    assert "model-00001-of-00002.safetensors" not in server.fetched()  # what was whole is kept


@pytest.mark.usefixtures("server")
def test_a_link_without_its_blob_counts_as_missing(monkeypatch):
    folder = hub.snapshot(REPO, progress=False)
    (folder / "model-00001-of-00002.safetensors").resolve().unlink()
    assert hub.missing_files(folder) == ["model-00001-of-00002.safetensors"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "model-00001-of-00002.safetensors" in snapshot_error()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert not hub.missing_files(hub.snapshot(REPO, progress=False))


def test_a_folder_without_config_is_not_whole(tmp_path: Path):
    (tmp_path / SINGLE_FILE).write_bytes(b"")
    assert hub.missing_files(tmp_path) == ["config.json"]
