"""Downloads through the real library from a Hub on loopback."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from hashlib import sha256
from pathlib import Path

import pytest
from fake_hub import COMMIT, SMALL, FakeHub, Fault, environment_of

from retrolocal.errors import ConfigError, DownloadError, Interrupted, ModelError
from retrolocal.hub import ask, cached, fetch, hub_name, missing_bytes, resolve_model

SHARDS = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors"} | {"b": "model-2.safetensors"}}
    ).encode(),
    "model-00001-of-00002.safetensors": b"1" * 3_000_000,
    "model-2.safetensors": b"2" * 3_000_000,
}


def refused(name: str = "org/model") -> str:
    with pytest.raises(DownloadError) as caught:
        resolve_model(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_only_what_is_needed_is_fetched(
    fake_hub: FakeHub, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = {
        "pytorch_model.bin": b"pickle",
        "original/consolidated.safetensors": b"twice",
        "consolidated.safetensors": b"twice",
        "model-00001-of-00002.safetensors": b"twice",
        "modeling.py": b"code",
        "README.md": b"",
        "chat_template.jinja": b"t",
    }
    fake_hub.files.update(more)
    lines: list[str] = []
    folder = resolve_model("org/model", progress=lines.append)
    assert sorted(p.name for p in folder.rglob("*")) == sorted([*SMALL, "chat_template.jinja"])
    assert (folder / "model.safetensors").read_bytes() == b"0123456789"
    assert lines == ["org/model: fetching 15 B from the Hugging Face Hub"]
    asked = len(fake_hub.requests)
    assert resolve_model("org/model", progress=lines.append) == folder
    assert len(fake_hub.requests) == asked
    assert capfd.readouterr() == ("", "")


def test_it_tells_its_bytes_before_and_meanwhile(fake_hub: FakeHub, cache: Path) -> None:
    fake_hub.files["model.safetensors"] = b"0" * 5_000_000
    fake_hub.files["pickle.bin"] = b"never"
    assert missing_bytes("org/model") == 5_000_004
    assert not list(cache.rglob("*.safetensors"))
    told: list[tuple[int, int]] = []
    resolve_model("org/model", received=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (5_000_004, 5_000_004)
    assert len({done for done, _ in told}) >= 5, "a slow line would look dead"
    assert missing_bytes("org/model") == 0
    assert missing_bytes("builtin") == 0


def test_shards_of_the_index_and_no_others(fake_hub: FakeHub) -> None:
    fake_hub.repositories["org/model"] = SHARDS | {"model-old.safetensors": b"x"}
    folder = resolve_model("org/model")
    assert sorted(path.name for path in folder.iterdir()) == sorted(SHARDS)


def test_what_is_complete_stays_when_a_download_breaks(
    fake_hub: FakeHub, cache: Path, no_waiting: list[float]
) -> None:
    fake_hub.repositories["org/model"] = dict(SHARDS)
    fake_hub.faults.append(Fault("resolve/" + COMMIT + "/model-2", status=500, times=99))
    assert "answers 500" in refused()
    assert cached(hub_name("org/model")) is None
    assert missing_bytes("org/model") == 3_000_000
    assert not list(cache.rglob("*.incomplete"))
    fake_hub.faults.clear()
    fake_hub.requests.clear()
    folder = resolve_model("org/model")
    assert (folder / "model-2.safetensors").read_bytes() == SHARDS["model-2.safetensors"]
    assert len(fake_hub.asked("/cdn/")) == 1


def test_a_cut_connection_goes_on_where_it_was(fake_hub: FakeHub, no_waiting: list[float]) -> None:
    fake_hub.files["model.safetensors"] = bytes(range(256)) * 20_000
    fake_hub.faults.append(Fault("/cdn/", cut_after=2_500_000, method="GET"))
    told: list[int] = []
    folder = resolve_model("org/model", received=lambda done, total: told.append(done))
    assert (folder / "model.safetensors").read_bytes() == fake_hub.files["model.safetensors"]
    ranges = [request.range for request in fake_hub.asked("/cdn/")]
    assert ranges[0] is None
    assert str(ranges[1]).startswith("bytes=")
    assert told[-1] == len(fake_hub.files["model.safetensors"]) + 4


def test_a_connection_that_is_always_cut_is_given_up(
    fake_hub: FakeHub, cache: Path, no_waiting: list[float]
) -> None:
    fake_hub.faults.append(Fault("/cdn/", cut_after=0, method="GET", times=99))
    assert "cannot be reached" in refused()
    assert not [path for path in cache.rglob("*") if "incomplete" in path.name]


def test_the_token_is_for_the_hub_and_not_for_its_cdn(
    fake_hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.tokens["org/model"] = "hf_right"
    (cache.parent / "token").write_text("hf_right\n")
    resolve_model("org/model")
    assert {request.token for request in fake_hub.asked("resolve", "HEAD")} == {"hf_right"}
    [weights] = fake_hub.asked("/cdn/")
    assert weights.host.startswith("localhost")
    assert weights.token is None


def test_the_variable_goes_before_the_token_of_the_login(
    fake_hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_hub.tokens["org/model"] = "hf_right"
    (cache.parent / "token").write_text("hf_other")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert resolve_model("org/model").is_dir()


@pytest.mark.parametrize(
    ("body", "words"),
    [(b"<!DOCTYPE html>", "15 bytes in place of 10"), (b"abcdefghij", "SHA-256")],
)
def test_a_file_that_is_not_what_the_hub_lists_is_removed(
    fake_hub: FakeHub, cache: Path, body: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = {"X-Linked-Size": str(len(body))}
    fake_hub.faults.append(Fault("model.safetensors", headers=length, method="HEAD"))
    fake_hub.faults.append(Fault("/cdn/", body=body))
    text = refused()
    assert "model.safetensors came damaged" in text
    assert words in text
    assert not list(cache.rglob("*.safetensors"))
    assert (resolve_model("org/model") / "model.safetensors").read_bytes() == b"0123456789"


def test_a_damaged_file_of_another_size_is_fetched_again(fake_hub: FakeHub) -> None:
    folder = resolve_model("org/model")
    (folder / "model.safetensors").resolve().write_bytes(b"01234")
    download = ask(hub_name("org/model"))
    assert [file.name for file in download.missing] == ["model.safetensors"]
    fetch(download)
    assert (folder / "model.safetensors").read_bytes() == b"0123456789"


def test_a_link_to_a_blob_that_is_gone_is_made_whole(fake_hub: FakeHub) -> None:
    folder = resolve_model("org/model")
    (folder / "model.safetensors").resolve().unlink()
    assert resolve_model("org/model") == folder
    assert (folder / "model.safetensors").read_bytes() == b"0123456789"


def test_it_is_ended_by_whom_it_tells(fake_hub: FakeHub, cache: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > 4:
            raise Interrupted("paused")

    with pytest.raises(Interrupted):
        resolve_model("org/model", received=stop)
    assert missing_bytes("org/model") == 10
    assert not list(cache.rglob("*.incomplete"))
    assert resolve_model("org/model").is_dir()


def test_what_a_killed_download_left_is_removed_unless_it_is_at_work(
    fake_hub: FakeHub, cache: Path
) -> None:
    from huggingface_hub.utils import WeakFileLock

    blobs = cache / "models--org--model" / "blobs"
    blobs.mkdir(parents=True)
    whole = sha256(fake_hub.files["model.safetensors"]).hexdigest()
    left = blobs / f"{whole}.01234567.incomplete"
    resumable = blobs / "0123.incomplete"
    foreign = blobs / "4567.01234567.incomplete"
    for file in (left, resumable, foreign, blobs / f"{whole}.incomplete"):
        file.write_bytes(b"012")
    lock = cache / ".locks" / "models--org--model" / "4567.lock"
    lock.parent.mkdir(parents=True)
    with WeakFileLock(lock):
        assert resolve_model("org/model").is_dir()
        assert set(blobs.glob("*.incomplete")) == {resumable, foreign}
    fetch(ask(hub_name("org/model")))
    assert set(blobs.glob("*.incomplete")) == {resumable}


def test_a_model_is_refused_before_its_weights_are_fetched(fake_hub: FakeHub) -> None:
    def check(folder: Path) -> None:
        assert (folder / "config.json").is_file()
        raise ConfigError("not this one")

    with pytest.raises(ConfigError, match="not this one"):
        resolve_model("org/model", check=check)
    assert not fake_hub.asked("/cdn/")


def test_no_room_is_said_before_anything_is_fetched(
    fake_hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    fake_hub.files["model.safetensors"] = b"0" * 2_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 1_000_000))
    text = refused()
    assert "needs 2.0 MB in" in text
    assert "1.0 MB are free; make room for 1.0 MB more" in text
    assert not fake_hub.asked("resolve")


def test_a_disk_that_fills_up_meanwhile(
    fake_hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import file_download

    fake_hub.repositories["org/model"] = dict(SHARDS)
    real = file_download.http_get

    def full(url: str, temp_file: object, **options: object) -> None:
        if len(fake_hub.asked("/cdn/")) == 1:
            temp_file.write(b"2" * 1000)  # type: ignore[attr-defined]
            raise OSError(errno.ENOSPC, "No space left on device")
        real(url, temp_file, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(file_download, "http_get", full)
    text = refused()
    assert "is full; what is complete is kept: make room" in text
    assert not list(cache.rglob("*.incomplete"))
    monkeypatch.undo()
    names = {path.name for path in cache.rglob("*.safetensors")}
    assert names == {"model-00001-of-00002.safetensors"}


def test_two_at_once_fetch_every_file_once(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.repositories["org/model"] = dict(SHARDS)
    fake_hub.before_body = threading.Event()
    code = "import sys; from retrolocal.hub import resolve_model; print(resolve_model('org/model'))"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment_of(fake_hub.url, tmp_path / "home"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    while len(fake_hub.asked(f"tree/{COMMIT}")) < 2:
        assert all(one.poll() is None for one in both)
    fake_hub.before_body.set()
    told = [one.communicate() for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    assert told[0][0] == told[1][0]
    assert {error for _, error in told} == {""}
    assert len(fake_hub.asked("/cdn/")) == 2


def test_a_branch_that_moved_is_followed_when_asked_and_the_old_one_serves_until_then(
    fake_hub: FakeHub, cache: Path, no_waiting: list[float]
) -> None:
    first = resolve_model("org/model")
    fake_hub.revisions["main"] = "b" * 40
    fake_hub.files["model.safetensors"] = b"new weights"
    assert resolve_model("org/model") == first
    fake_hub.faults.append(Fault("/cdn/", cut_after=0, times=99))
    with pytest.raises(DownloadError):
        fetch(ask(hub_name("org/model")))
    assert resolve_model("org/model") == first
    fake_hub.faults.clear()
    second = fetch(ask(hub_name("org/model")))
    assert resolve_model("org/model", offline=True) == second != first


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "it holds no language model"),
        ({"model.gguf": b""}, "GGUF, which is not read (model.gguf)"),
        ({"config.json": b"", "pytorch_model.bin": b""}, "pickles, which are not read"),
        ({"adapter_model.safetensors": b"", "adapter_config.json": b""}, "an adapter"),
        ({"config.json": b"", "tokenizer.model": b""}, "SentencePiece"),
        ({"config.json": b"", "tokenizer.json": b""}, "lacks model.safetensors"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_model_that_cannot_be_read_is_refused_before_a_download(
    fake_hub: FakeHub, files: dict[str, bytes], words: str
) -> None:
    fake_hub.repositories["org/model"] = files
    assert words in refused()
    assert not fake_hub.asked("resolve")


@pytest.mark.parametrize("shard", ["../../model-3.safetensors", "model-3.safetensors", "x.bin"])
def test_an_index_is_not_believed(fake_hub: FakeHub, shard: str) -> None:
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    files = SHARDS | {"model.safetensors.index.json": index}
    fake_hub.repositories["org/model"] = files
    with pytest.raises(ModelError, match=r"names|lists"):
        resolve_model("org/model")
    assert not fake_hub.asked("/cdn/")


def test_a_revision_of_its_own(fake_hub: FakeHub) -> None:
    fake_hub.revisions["refs/pr/1"] = "c" * 40
    folder = resolve_model("org/model@refs/pr/1")
    assert folder.name == "c" * 40
    assert resolve_model("org/model", revision="refs/pr/1", offline=True) == folder
    assert resolve_model("org/model@" + "c" * 40, offline=True) == folder


def test_a_mirror_is_what_the_environment_names(fake_hub: FakeHub, tmp_path: Path) -> None:
    code = "from retrolocal.hub import resolve_model; print(resolve_model('org/model'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment_of(fake_hub.url, tmp_path / "home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "home" / "hub")
