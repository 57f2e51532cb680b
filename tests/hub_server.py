"""A small Hub on 127.0.0.1 for tests: what `huggingface_hub` asks of the real one, and the ways in which it fails.

    with HubServer({"me/model": {"config.json": b"{}", ...}}) as hub:
        hub.gated.add("me/model")            # the listing answers, files are 401, or 403 with a token
        hub.required_token = "hf_x"          # any other token is 401
        hub.drops["model.safetensors"] = 2   # cut the connection halfway, twice
        hub.hangs.add("model.safetensors")   # send half, then nothing
        hub.down = True                      # cut every connection; False: come back
        hub.cuts = 1                         # cut the next one, then serve
        hub.then["config.json"] = function   # called after that file was sent, once
        hub.warning = "topic; text"          # sent with every answer, as the real one warns who sends no token
        hub.requests                         # [(method, path, {header: value})]
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class HubServer:
    def __init__(self, repos: dict[str, dict[str, bytes]]) -> None:
        self.repos = repos
        self.gated: set[str] = set()
        self.required_token: str | None = None
        self.drops: dict[str, int] = {}
        self.hangs: set[str] = set()
        self.down = False
        self.cuts = 0
        self.then: dict[str, Callable[[], None]] = {}
        self.warning = ""
        self._history: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.hanging = threading.Event()  # set when a request hangs: now is the time to kill the client
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # a client that was killed is no news
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def commit(self, repo: str) -> str:
        """A commit that changes with the files, as git's does."""
        files = dict(self.repos[repo])  # once: a test may replace them while other threads serve
        digest = hashlib.sha1(repo.encode())
        for name, data in sorted(files.items()):
            digest.update(name.encode() + data)
        self._history[digest.hexdigest()] = files
        return digest.hexdigest()

    def files(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """The files of "main" or of a commit that was seen before; None for an unknown revision."""
        return self._history.get(self.commit(repo) if revision == "main" else revision)

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for, in order."""
        return [path.split("/", 5)[5] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, dict(self.headers)))
        if self.hub.down or self.hub.cuts > 0:
            self.hub.cuts -= 1
            return self._cut()
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if sent and self.hub.required_token not in (None, sent):
            return self._fail(401, "", "Invalid credentials in Authorization header")
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        repo = "/".join(parts[:2])
        private = self.hub.required_token is not None and not sent
        if repo not in self.hub.repos or private:
            # The real one does not tell strangers which repositories exist.
            return self._fail(404 if sent else 401, "RepoNotFound", "Repository not found")
        what, revision = (parts[2], parts[3]) if len(parts) > 3 else ("revision", "main")
        commit, files = self.hub.commit(repo), self.hub.files(repo, revision)
        commit = commit if revision == "main" else revision
        if files is None:
            return self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if api and what == "revision":
            return self._json({"id": repo, "sha": commit, "private": False, "tags": [], "downloads": 0,
                               "siblings": [{"rfilename": name} for name in files]})
        if api and what == "tree":
            return self._json([{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                               for name, data in files.items()])
        if repo in self.hub.gated:
            return self._fail(403 if sent else 401, "GatedRepo", f"Access to model {repo} is restricted.")
        name = "/".join(parts[4:])
        if name not in files:
            return self._fail(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        self._file(name, files[name], commit)

    def _file(self, name: str, data: bytes, commit: str) -> None:
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        start, status = 0, 200
        if (wanted := self.headers.get("Range", "")).startswith("bytes="):
            start, status = int(wanted.removeprefix("bytes=").split("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._head(status, {**headers, "Content-Length": str(len(data) - start)})
        if self.command == "HEAD":
            return
        half = len(data) // 2
        if self.hub.drops.get(name, 0) > 0:
            self.hub.drops[name] -= 1
            self.wfile.write(data[start:half])
            return self._cut()
        if name in self.hub.hangs:
            self.wfile.write(data[start:half])
            self.wfile.flush()
            self.hub.hanging.set()
            self.hub.closing.wait()
            return self._cut()
        self.wfile.write(data[start:])
        self.hub.then.pop(name, lambda: None)()

    def _cut(self) -> None:
        self.close_connection = True

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, **({"X-HF-Warning": self.hub.warning} if self.hub.warning else {})}.items():
            self.send_header(key, value)
        self.end_headers()

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _fail(self, status: int, code: str, message: str, more: dict[str, str] | None = None) -> None:
        self._head(status, {**({"X-Error-Code": code} if code else {}), "X-Error-Message": message,
                            "Content-Length": "0", **(more or {})})
