from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from fake_hub import COMMIT, SMALL, FakeHub

from retrolocal.errors import ModelError, UsageError
from retrolocal.hub import hub_name, missing_bytes, resolve_model
from retrolocal.hub.cache import contents, index_shards, missing_file, remove


def write_snapshot(cache: Path, files: dict[str, bytes], revision: str = "main") -> Path:
    repository = cache / "models--org--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / revision).write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name, data in files.items():
        (snapshot / name).write_bytes(data)
    return snapshot


def refused(name: str, *, revision: str | None = None, offline: bool = False) -> str:
    with pytest.raises(ModelError) as caught:
        resolve_model(name, revision=revision, offline=offline)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_cached_model_needs_no_network(cache: Path, no_hub: None) -> None:
    snapshot = write_snapshot(cache, SMALL)
    assert resolve_model("org/model") == snapshot
    assert resolve_model("org/model", offline=True) == snapshot
    assert resolve_model(f"org/model@{COMMIT}") == snapshot
    assert missing_bytes("org/model") == 0


def test_a_cached_model_of_another_revision_does_not_do(cache: Path, no_hub: None) -> None:
    snapshot = write_snapshot(cache, SMALL, "v2")
    assert resolve_model("org/model@v2") == snapshot
    assert resolve_model("org/model", revision="v2") == snapshot
    assert "cannot be reached" in refused("org/model")


def test_what_is_not_on_the_hub_has_no_revision() -> None:
    with pytest.raises(UsageError, match="--revision is 'main' and builtin is no model of the Hub"):
        resolve_model("builtin", revision="main")


def test_shards_of_the_index_must_all_be_there(cache: Path, no_hub: None) -> None:
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    files = {**SMALL, "model.safetensors.index.json": json.dumps({"weight_map": shards}).encode()}
    del files["model.safetensors"]
    snapshot = write_snapshot(cache, {**files, "model-1.safetensors": b""})
    assert missing_file(snapshot) == "model-2.safetensors"
    assert "not (completely)" in refused("org/model", offline=True)
    (snapshot / "model-2.safetensors").write_bytes(b"")
    assert resolve_model("org/model") == snapshot


def test_a_link_to_a_blob_that_is_gone_is_a_missing_file(cache: Path, no_hub: None) -> None:
    snapshot = write_snapshot(cache, SMALL)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../blobs/gone")
    assert missing_file(snapshot) == "model.safetensors"
    assert "offline" in refused("org/model", offline=True)


@pytest.mark.parametrize(
    "weights",
    [
        *(None, [], {}, {"a": 1}, {"a": "../../x.safetensors"}, {"a": "/etc/x.safetensors"}),
        *({"a": ".."}, {"a": "sub/x.safetensors"}, {"a": "x.bin"}, {"a": "a\\b.safetensors"}),
        {"a": ["x"]},
    ],
    ids=str,
)
def test_an_index_that_names_what_it_must_not(tmp_path: Path, weights: object) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weights}))
    with pytest.raises(ModelError, match="index") as caught:
        index_shards(index)
    assert "\n" not in str(caught.value)


def test_what_the_cache_holds(fake_hub: FakeHub, cache: Path) -> None:
    assert contents().models == ()
    resolve_model("org/model")
    fake_hub.repositories["org/other"] = dict(SMALL)
    resolve_model("org/other@main")
    (cache / "models--org--broken" / "snapshots").mkdir(parents=True)
    (cache / "models--org--broken" / "refs").mkdir()
    (cache / "models--org--broken" / "refs" / "main").write_text("b" * 40)
    found = contents()
    assert sorted(one.model for one in found.models) == ["org/model", "org/other"]
    assert {one.revisions for one in found.models} == {("main",)}
    assert all(one.commit == COMMIT and one.bytes == 12 for one in found.models)
    assert len(found.problems) == 1
    assert "\n" not in found.problems[0]


def test_one_revision_is_removed_and_what_others_share_stays(
    fake_hub: FakeHub, cache: Path
) -> None:
    resolve_model("org/model")
    fake_hub.revisions["v2"] = "b" * 40
    fake_hub.files["model.safetensors"] = b"9" * 20
    second = resolve_model("org/model@v2")
    commits, freed = remove(hub_name("org/model@main"))
    assert (commits, freed) == ((COMMIT,), 10)
    assert (second / "config.json").read_bytes() == b"{}"
    assert remove(hub_name("org/model"))[0] == ("b" * 40,)
    assert contents().models == ()
    assert not (cache / "models--org--model").exists()
    with pytest.raises(ModelError, match="see retrolocal list"):
        remove(hub_name("org/model"))


def test_what_cannot_be_removed_is_told_as_that(
    fake_hub: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_model("org/model")

    def refuse(*given: object, **named: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(cache))

    monkeypatch.setattr(os, "unlink", refuse)
    monkeypatch.setattr(os, "remove", refuse)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(ModelError) as caught:
        remove(hub_name("org/model"))
    said = f"org/model could not be removed (Read-only file system: {cache}); check who may write"
    assert str(caught.value).startswith(said)
