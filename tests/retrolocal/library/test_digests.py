from __future__ import annotations

import hashlib
import json
import os
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from retrolocal.errors import ModelError
from retrolocal.library import file_digests


def aged(path: Path, content: bytes, seconds: int = 1_000) -> Path:
    path.write_bytes(content)
    os.utime(path, (seconds, seconds))
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_digests_are_computed_once(tmp_path: Path) -> None:
    memo = tmp_path / "cache" / "memo.json"
    one, two = aged(tmp_path / "b.safetensors", b"one"), aged(tmp_path / "a.safetensors", b"two")
    expected = {"a.safetensors": sha256(b"two"), "b.safetensors": sha256(b"one")}
    assert file_digests([one, two], memo) == expected
    known = json.loads(memo.read_text())
    assert sorted(known.values()) == sorted(expected.values())
    memo.write_text(json.dumps(dict.fromkeys(known, "f" * 64)))
    assert set(file_digests([one, two], memo).values()) == {"f" * 64}


def test_a_changed_file_is_computed_again(tmp_path: Path) -> None:
    memo = tmp_path / "memo.json"
    path = aged(tmp_path / "model.safetensors", b"one")
    file_digests([path], memo)
    aged(path, b"two", 2_000)
    assert file_digests([path], memo) == {"model.safetensors": sha256(b"two")}


def test_a_file_changed_just_now_is_not_remembered(tmp_path: Path) -> None:
    memo = tmp_path / "memo.json"
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"one")
    file_digests([path], memo)
    assert not memo.exists()


def test_a_blob_of_the_hub_is_named_by_its_digest(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots").mkdir()
    digest = sha256(b"never read")
    (tmp_path / "blobs" / digest).write_bytes(b"")
    link = tmp_path / "snapshots" / "model.safetensors"
    link.symlink_to(tmp_path / "blobs" / digest)
    assert file_digests([link], tmp_path / "memo.json") == {"model.safetensors": digest}
    assert not (tmp_path / "memo.json").exists()


@pytest.mark.parametrize("content", ["", "[]", '{"1:2:3:4": 5}', "[" * 100_000, "\x00"])
def test_a_damaged_memory_is_forgotten(tmp_path: Path, content: str) -> None:
    memo = tmp_path / "memo.json"
    memo.write_text(content)
    path = aged(tmp_path / "model.safetensors", b"one")
    assert file_digests([path], memo) == {"model.safetensors": sha256(b"one")}
    assert list(json.loads(memo.read_text()).values()) == [sha256(b"one")]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none.safetensors cannot be read \(No such file"):
        file_digests([tmp_path / "none.safetensors"], tmp_path / "memo.json")
    one = aged(tmp_path / "a", b"1")
    with pytest.raises(ModelError, match="occurs twice"):
        file_digests([one, one], tmp_path / "memo.json")


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, full_disk: AbstractContextManager[None]
) -> None:
    path = aged(tmp_path / "model.safetensors", b"one")
    folder = tmp_path / "cache"
    with full_disk:
        assert file_digests([path], folder / "memo.json") == {path.name: sha256(b"one")}
    assert list(folder.iterdir()) == []
