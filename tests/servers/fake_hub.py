"""A Hugging Face Hub on loopback that speaks its HTTP: listings, redirects to a CDN of another
host, ETags, ranges, errors with their codes, and connections that end too early.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "a" * 40
SMALL = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"0123456789"}


@dataclass
class Fault:
    """What happens to one request for a path that contains `to`; then the next one is served."""

    to: str
    status: int = 0
    """Answered in place of everything else; 0: the usual answer, changed as below."""
    code: str = ""
    """X-Error-Code."""
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """The connection ends after so many bytes of the body."""
    body: bytes | None = None
    method: str = ""
    """GET or HEAD; empty for both."""
    times: int = 1


@dataclass
class Request:
    method: str
    path: str
    host: str
    token: str | None
    range: str | None


@dataclass
class FakeHub:
    """Repositories by name; `org/model` is there from the start."""

    url: str = ""
    cdn: str = ""
    """The same server under another host name, as a CDN is."""
    repositories: dict[str, dict[str, bytes]] = field(
        default_factory=lambda: {"org/model": dict(SMALL)}
    )
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    tokens: dict[str, str] = field(default_factory=dict)
    """Repository -> the token that may read it."""
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    before_body: threading.Event | None = None
    """Bodies wait for it."""

    @property
    def files(self) -> dict[str, bytes]:
        return self.repositories["org/model"]

    def asked(self, part: str = "", method: str = "GET") -> list[Request]:
        return [one for one in self.requests if part in one.path and one.method == method]


@contextmanager
def serving() -> Iterator[FakeHub]:
    """A fake Hub that answers while the block runs."""
    fake = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    fake.cdn = f"http://localhost:{server.server_port}"
    try:
        yield fake
    finally:
        if fake.before_body is not None:
            fake.before_body.set()
        server.shutdown()
        thread.join()
        server.server_close()


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does in a process that has not imported huggingface_hub yet."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def own_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local cache below `folder`, with nobody's token and no proxy."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name)
    return folder / "hub"


def environment_of(url: str, home: Path) -> dict[str, str]:
    """For a process of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    return kept | {"HF_ENDPOINT": url, "HF_HOME": str(home), "NO_PROXY": "*"}


def _handler(fake: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            bearer = self.headers.get("authorization")
            token = None if bearer is None else bearer.removeprefix("Bearer ")
            path = unquote(urlsplit(self.path).path)
            host = str(self.headers.get("host"))
            fake.requests.append(
                Request(self.command, path, host, token, self.headers.get("range"))
            )
            fault = self._fault(path)
            if fault is not None and fault.status:
                headers = {"X-Error-Code": fault.code, "X-Error-Message": fault.message}
                shown = {k: v for k, v in headers.items() if v} | fault.headers
                self._send(fault.status, shown, fault.body or b"{}", None)
                return
            status, headers, body = _answer(fake, path, token)
            cut = None if fault is None else fault.cut_after
            if fault is not None:
                headers |= fault.headers
                body = body if fault.body is None else fault.body
            span = re.fullmatch(r"bytes=(\d+)-", str(self.headers.get("range")))
            if span and status == 200 and body:
                start = int(span[1])
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                status, body = 206, body[start:]
            self._send(status, headers, body, cut)

        do_HEAD = do_GET

        def _fault(self, path: str) -> Fault | None:
            for fault in fake.faults:
                if fault.to in path and fault.method in ("", self.command) and fault.times:
                    fault.times -= 1
                    return fault
            return None

        def _send(self, status: int, headers: dict[str, str], body: bytes, cut: int | None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if fake.before_body is not None and body[:1] not in (b"{", b"["):
                fake.before_body.wait()
            try:
                self.wfile.write(body if cut is None else body[:cut])
            except ConnectionError:
                self.close_connection = True
            if cut is not None:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _answer(fake: FakeHub, path: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
    if path.startswith("/cdn/"):
        wanted = path.removeprefix("/cdn/")
        for files in fake.repositories.values():
            for data in files.values():
                if sha256(data).hexdigest() == wanted:
                    return 200, {"ETag": f'"{wanted}"'}, data
        return 404, {}, b""
    listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path)
    file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
    found = listing or file
    if found is None or found[1] not in fake.repositories:
        return 401 if token is None else 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
    files = fake.repositories[found[1]]
    if fake.tokens.get(found[1], token) != token:
        return 401 if token is None else 403, {"X-Error-Code": "GatedRepo"}, b"{}"
    commit = found[2] if file else (found[3] or "main")
    commit = fake.revisions.get(commit, commit)
    if commit not in fake.revisions.values():
        return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
    if listing:
        return 200, {}, _listing(found[1], files, commit, listing[2] == "tree")
    data = files.get(found[3])
    if data is None:
        return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b"{}"
    if not found[3].endswith(".safetensors"):
        return 200, {"ETag": f'"{git_id(data)}"', "X-Repo-Commit": commit}, data
    digest = sha256(data).hexdigest()
    headers = {
        "X-Repo-Commit": commit,
        "X-Linked-Etag": f'"{digest}"',
        "X-Linked-Size": str(len(data)),
        "Location": f"{fake.cdn}/cdn/{digest}",
    }
    return 302, headers, b""


def _listing(name: str, files: dict[str, bytes], commit: str, tree: bool) -> bytes:
    if not tree:
        siblings = [{"rfilename": path} for path in files]
        return json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode()
    entries = []
    for path, data in files.items():
        entry = {"type": "file", "path": path, "size": len(data), "oid": git_id(data)}
        if path.endswith(".safetensors"):
            digest = sha256(data).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
        entries.append(entry)
    return json.dumps(entries).encode()


def git_id(data: bytes) -> str:
    return sha1(b"blob %d\0" % len(data) + data).hexdigest()
