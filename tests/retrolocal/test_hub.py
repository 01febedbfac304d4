from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from retrolocal import hub
from retrolocal.errors import Interrupted, ModelError
from retrolocal.hub import missing_bytes, resolve_model

COMMIT = "a" * 40
SMALL = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"0123456789"}


@dataclass
class FakeHub:
    """One repository, org/model, on loopback."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=lambda: dict(SMALL))
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Start of a path -> status and X-Error-Code."""
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        for start, (status, code) in self.errors.items():
            if path.startswith(start):
                return status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}"
        if path.startswith("/api/models/org/model/revision/v9"):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if path.startswith("/api/models/org/model/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
            return 200, {}, json.dumps(tree).encode()
        if path.startswith("/api/models/org/model"):
            names = [{"rfilename": name} for name in self.files]
            return (
                200,
                {},
                json.dumps({"id": "org/model", "sha": COMMIT, "siblings": names}).encode(),
            )
        data = self.files.get(path.removeprefix(f"/org/model/resolve/{COMMIT}/"))
        if data is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        return 200, {"ETag": f'"{sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}, data


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[FakeHub]:
    fake = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, data = fake.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    point_at(fake.url, monkeypatch)
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local cache, with nobody's token."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    return tmp_path / "hub"


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    # Port 9 of loopback refuses.
    point_at("http://127.0.0.1:9", monkeypatch)


def cached(cache: Path, files: dict[str, bytes], revision: str = "main") -> Path:
    repository = cache / "models--org--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / revision).write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name, data in files.items():
        (snapshot / name).write_bytes(data)
    return snapshot


def message(name: str, *, revision: str | None = None, offline: bool = False) -> str:
    with pytest.raises(ModelError) as caught:
        resolve_model(name, revision=revision, offline=offline)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_is_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    assert "holds no config.json" in message(str(tmp_path))


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("")
    assert "is a file" in message(str(tmp_path / "model.gguf"))


def test_builtin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "builtin_model", lambda: tmp_path)
    assert "reinstall" in message("builtin")
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model("builtin") == tmp_path


@pytest.mark.parametrize("name", ["./x", "/no/such", "../x/y", "~/none", "a/b/c", ".", "a\\b"])
def test_a_path_that_does_not_exist(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ("no such folder" if name != "." else "no config.json") in message(name)


@pytest.mark.parametrize(
    "name", ["", "model", "org/mo del", "org/", "/", "org/mödel", "org/model@"]
)
def test_a_name_that_is_neither(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert message(name)


@pytest.mark.parametrize("name", ["org/mo--del", "org/-model", "org/" + "m" * 120])
def test_a_name_that_the_hub_would_not_take(name: str, no_hub: None) -> None:
    assert "no Hub id" in message(name)


def test_a_cached_model_needs_no_network(cache: Path, no_hub: None) -> None:
    snapshot = cached(cache, SMALL)
    assert resolve_model("org/model") == snapshot
    assert resolve_model("org/model", offline=True) == snapshot
    assert resolve_model(f"org/model@{COMMIT}") == snapshot


def test_a_cached_model_of_another_revision_does_not_do(cache: Path, no_hub: None) -> None:
    snapshot = cached(cache, SMALL, "v2")
    assert resolve_model("org/model@v2") == snapshot
    assert resolve_model("org/model", revision="v2") == snapshot
    assert "cannot be reached" in message("org/model")


def test_shards_of_the_index_must_all_be_there(cache: Path, no_hub: None) -> None:
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    files = {**SMALL, "model.safetensors.index.json": json.dumps({"weight_map": shards}).encode()}
    del files["model.safetensors"]
    snapshot = cached(cache, {**files, "model-1.safetensors": b""})
    assert "lacks model-2.safetensors" in message("org/model")
    (snapshot / "model-2.safetensors").write_bytes(b"")
    assert resolve_model("org/model") == snapshot


def test_offline_and_not_cached(cache: Path, no_hub: None) -> None:
    assert "offline" in message("org/model", offline=True)


def test_the_hub_cannot_be_reached(cache: Path, no_hub: None) -> None:
    text = message("org/model@v1")
    assert text.startswith("org/model@v1 is not in the local cache and the Hub cannot be reached (")
    assert text.endswith("connect, or give a folder, or use -m builtin")


def test_a_download(fake_hub: FakeHub, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fake_hub.files |= {
        "pytorch_model.bin": b"pickle",
        "original/consolidated.safetensors": b"twice",
        "modeling.py": b"code",
        "README.md": b"",
        "chat_template.jinja": b"t",
    }
    lines: list[str] = []
    folder = resolve_model("org/model", progress=lines.append)
    assert sorted(p.name for p in folder.rglob("*")) == sorted([*SMALL, "chat_template.jinja"])
    assert (folder / "model.safetensors").read_bytes() == b"0123456789"
    assert lines[0] == "org/model: looking it up on the Hugging Face Hub"
    assert all("\n" not in line and line.startswith("org/model: ") for line in lines)
    asked = len(fake_hub.asked)
    assert resolve_model("org/model", progress=lines.append) == folder
    assert len(fake_hub.asked) == asked
    assert capfd.readouterr().out == ""


def test_a_download_in_silence(fake_hub: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    resolve_model("org/model")
    assert "%|" not in capfd.readouterr().err


def test_a_download_tells_its_bytes_before_and_meanwhile(fake_hub: FakeHub, cache: Path) -> None:
    fake_hub.files["model.safetensors"] = b"0" * 100_000
    fake_hub.files["pickle.bin"] = b"never"
    assert missing_bytes("org/model") == 100_004
    assert not list(cache.rglob("*.safetensors"))
    told: list[tuple[int, int]] = []
    resolve_model("org/model", received=lambda done, total: told.append((done, total)))
    assert max(told)[0] > 100_000
    assert all(done <= total for done, total in told)
    assert missing_bytes("org/model") == 0
    assert missing_bytes("builtin") == 0


def test_a_download_is_ended_by_whom_it_tells(fake_hub: FakeHub, cache: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise Interrupted("paused")

    with pytest.raises(Interrupted):
        resolve_model("org/model", received=stop)
    assert resolve_model("org/model").is_dir()


def test_the_bytes_of_a_model_that_is_not_there(fake_hub: FakeHub) -> None:
    with pytest.raises(ModelError, match="offline"):
        missing_bytes("org/model", offline=True)
    fake_hub.errors["/api"] = (404, "RepoNotFound")
    with pytest.raises(ModelError, match="does not exist"):
        missing_bytes("org/model")


def test_an_incomplete_model_is_completed(fake_hub: FakeHub, cache: Path) -> None:
    snapshot = cached(cache, {"config.json": b"{}"})
    assert resolve_model("org/model") == snapshot
    assert (snapshot / "model.safetensors").is_file()


def test_a_model_without_safetensors(fake_hub: FakeHub) -> None:
    del fake_hub.files["model.safetensors"]
    assert "lacks model.safetensors" in message("org/model")


def test_an_unknown_model(fake_hub: FakeHub) -> None:
    assert "does not exist on the Hub, or is private" in message("org/other")


def test_an_unknown_revision(fake_hub: FakeHub) -> None:
    assert message("org/model@v9") == "org/model has no revision v9; check it on the Hub"


def test_a_gated_model(fake_hub: FakeHub) -> None:
    fake_hub.errors["/org/model/resolve"] = (403, "GatedRepo")
    assert "is gated: accept its terms on https://huggingface.co/org/model" in message("org/model")


def test_a_gated_listing(fake_hub: FakeHub) -> None:
    fake_hub.errors["/api/models/org/model"] = (401, "GatedRepo")
    assert "is gated" in message("org/model")


def test_a_hub_in_trouble(fake_hub: FakeHub) -> None:
    fake_hub.errors["/api/models/org/model"] = (501, "Broken")
    assert "cannot be reached" in message("org/model")


def test_a_cache_that_cannot_be_written(fake_hub: FakeHub, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert "could not be downloaded" in message("org/model")


def test_offline_opens_no_connection(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "def hook(event, args):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo'): raise SystemExit('network')\n"
        "sys.addaudithook(hook)\n"
        "from retrolocal.errors import ModelError\n"
        "from retrolocal.hub import resolve_model\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        "try: resolve_model('org/model', offline=True)\n"
        "except ModelError as error: print(error)\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the program is offline" in done.stdout


def test_the_environment_can_forbid_the_network(tmp_path: Path) -> None:
    code = "from retrolocal.hub import resolve_model; resolve_model('org/model')"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "ModelError: org/model is not (completely) in the local cache" in done.stderr
    assert "offline" in done.stderr
