from __future__ import annotations

from pathlib import Path

import pytest

from retrolocal.errors import ModelError, UsageError
from retrolocal.hub import HubName, hub_name, local_folder, resolve_model, shadow_note
from retrolocal.hub import name as naming


def message(name: str) -> str:
    with pytest.raises(ModelError) as caught:
        local_folder(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_folder_is_itself(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    assert "holds no config.json" in message(str(tmp_path))


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("")
    assert "is a file" in message(str(tmp_path / "model.gguf"))


def test_builtin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming, "builtin_model", lambda: tmp_path)
    assert "reinstall" in message("builtin")
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model("builtin") == tmp_path


@pytest.mark.parametrize("name", ["./x", "/no/such", "../x/y", "~/none", "a/b/c", ".", "a\\b"])
def test_a_path_that_does_not_exist(name: str) -> None:
    assert ("no such folder" if name != "." else "no config.json") in message(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "model", "org/mo del", "org/", "/", "org/mödel", "org/model@", "org/model@-x"),
        *("~~/x", "org/model@../../x", "org/model@/x", "a\0b", "x" * 5000, "org/model@a b"),
        *("@", "org@x/y"),
    ],
    ids=lambda name: repr(name)[:20],
)
def test_a_name_that_is_neither(name: str) -> None:
    assert len(message(name)) < 6000


def test_a_name_and_its_revision() -> None:
    assert hub_name("org/model") == HubName("org/model")
    assert str(hub_name("org/model@refs/pr/1")) == "org/model@refs/pr/1"
    assert hub_name("org/model", "v2") == hub_name("org/model@v2") == HubName("org/model", "v2")
    assert hub_name("org/model@v2", "v2").revision == "v2"
    with pytest.raises(UsageError, match="contradict"):
        hub_name("org/model@v2", "v3")


def test_a_name_that_is_also_a_folder_is_the_folder_and_that_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "org" / "model"
    folder.mkdir(parents=True)
    assert "or org/model@main for the model on the Hub" in message("org/model")
    (folder / "config.json").write_text("{}")
    assert local_folder("org/model") == Path("org/model")
    assert shadow_note("org/model") == (
        "org/model is a folder here and is used; org/model@main is the model on the Hub"
    )
    assert local_folder("org/model@main") is None
    assert shadow_note("org/other") is None
    assert shadow_note("./org/model") is None


def test_links_are_followed_and_a_circle_of_them_is_one_line(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(real)
    assert local_folder("./link") == Path("link")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    assert "round" in message("./round")
