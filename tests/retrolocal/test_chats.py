"""Chats on disk: what is written is read, privately, and nothing else is taken for a chat."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from retrolocal.chats import (
    Chat,
    ChatStore,
    ChatTurn,
    Source,
    as_markdown,
    drop_oldest_caches,
    names_of,
    write_private,
)
from retrolocal.errors import DataError
from retrolocal.paths import state_dir

SOURCE = {"document": "b", "page": 1, "start": 0, "end": 1, "text": "x", "mass": 0.5}


@pytest.fixture
def store(tmp_path: Path) -> ChatStore:
    return ChatStore(tmp_path / "state" / "chats")


def a_chat(store: ChatStore, question: str = "Who is\nAhab?") -> Chat:
    chat = store.new("org/model", ["book.txt"], question)
    return replace(chat, turns=(ChatTurn(question, "A *captain*.\n\ud800"),))


def test_a_chat_is_kept_privately(store: ChatStore) -> None:
    saved = store.save(a_chat(store))
    loaded = store.load(saved.id)
    assert loaded.title == "Who is Ahab?"
    assert loaded.turns[0].question == "Who is\nAhab?"
    assert loaded.documents == (str(Path("book.txt").absolute()),)
    [file] = store.folder.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert store.folder.stat().st_mode & 0o777 == 0o700


def test_how_an_answer_ended_and_what_it_was_read_from_are_kept(store: ChatStore) -> None:
    source = Source(document="b [x]", page=None, start=3, end=9, text="captain", mass=0.25)
    turns = (ChatTurn("q", "a", "interrupted", (source, replace(source, page=7))),)
    saved = store.save(replace(a_chat(store), turns=turns))
    assert store.load(saved.id).turns == turns


def test_a_chat_that_does_not_say_how_its_answers_ended_is_read(store: ChatStore) -> None:
    saved = store.save(a_chat(store))
    path = store.folder / f"{saved.id}.json"
    facts = json.loads(path.read_text("utf-8"))
    facts["turns"] = [{"question": "q", "answer": "a"}]
    path.write_text(json.dumps(facts))
    assert store.load(saved.id).turns == (ChatTurn("q", "a", "eos", ()),)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("stop_reason", "whim"),
        ("stop_reason", [1]),
        ("sources", 7),
        ("sources", ["x"]),
        ("sources", [{"document": "b", "page": None}]),
        ("sources", [{**SOURCE, "page": "7"}]),
        ("sources", [{**SOURCE, "start": 1.5}]),
        ("sources", [{**SOURCE, "mass": float("nan")}]),
    ],
)
def test_an_ending_or_a_source_that_makes_no_sense_is_refused(
    store: ChatStore, field: str, value: object
) -> None:
    saved = store.save(a_chat(store))
    path = store.folder / f"{saved.id}.json"
    facts = json.loads(path.read_text("utf-8"))
    facts["turns"][0][field] = value
    path.write_text(json.dumps(facts))
    with pytest.raises(DataError, match="is not a chat"):
        store.load(saved.id)
    assert store.list() == []


def test_the_newest_comes_first_and_is_renamed_and_deleted(store: ChatStore) -> None:
    first, second = (store.save(a_chat(store, question)) for question in ("one", "two"))
    assert [chat.title for chat in store.list()] == ["two", "one"]
    store.rename(first, "  the\nfirst  ")
    assert [chat.title for chat in store.list()] == ["the first", "two"]
    store.delete(second.id)
    store.delete(second.id)
    assert [chat.title for chat in store.list()] == ["the first"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"format": 2}',
        '{"format": 1, "id": 3, "title": "", "created": "", "updated": "", "model": "",'
        ' "documents": [], "turns": []}',
        '{"format": 1, "id": "x", "title": "", "created": "", "updated": "", "model": "",'
        ' "documents": [7], "turns": []}',
        "\x00\xff",
    ],
)
def test_what_is_no_chat_is_left_alone(store: ChatStore, content: str) -> None:
    store.save(a_chat(store))
    damaged = store.folder / "x.json"
    damaged.write_text(content)
    assert len(store.list()) == 1
    with pytest.raises(DataError, match=r"x\.json"):
        store.load("x")
    assert damaged.read_text() == content


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", ".."])
def test_an_id_never_leaves_the_folder(store: ChatStore, name: str) -> None:
    with pytest.raises(DataError, match="names no chat"):
        store.load(name)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ChatStore(tmp_path / "file" / "chats")
    with pytest.raises(DataError, match=r"could not be saved .* /export"):
        store.save(a_chat(store))
    assert store.list() == []


def test_a_crash_while_writing_leaves_the_old_chat(
    store: ChatStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = store.save(a_chat(store))

    def crash(*names: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        store.rename(saved, "other")
    assert [path.name for path in store.folder.iterdir()] == [f"{saved.id}.json"]
    assert store.load(saved.id).title == saved.title


def test_markdown(store: ChatStore) -> None:
    chat = a_chat(store)
    text = as_markdown(replace(chat, title="T", created="2026", turns=(ChatTurn("a\n\nb", "c\n"),)))
    assert text == "# T\n\norg/model · book.txt · 2026\n\n> a\n>\n> b\n\nc\n"


def test_format_is_json_that_others_can_read(store: ChatStore) -> None:
    saved = store.save(a_chat(store))
    facts = json.loads((store.folder / f"{saved.id}.json").read_text("utf-8"))
    assert (facts["format"], facts["turns"][0]["answer"][:4]) == (1, "A *c")


def test_private_files_replace_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", 0o600)


def test_the_state_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_dir() == tmp_path / "retrolocal"


def test_caches_of_the_chats_left_longest_ago_go_first(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "middle", "old", "oldest")):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(b"x" * 10)
        os.utime(path, (1000 - age, 1000 - age))
    (tmp_path / "old.json").write_text("{}")

    def left() -> list[str]:
        return sorted(path.name.partition(".")[0] for path in tmp_path.glob("*.safetensors"))

    drop_oldest_caches(tmp_path)
    assert len(left()) == 4
    drop_oldest_caches(tmp_path, 29)
    assert left() == ["middle", "new"]
    drop_oldest_caches(tmp_path, 3)
    assert left() == ["new"]
    assert (tmp_path / "old.json").exists()


def test_what_a_chat_is_about_and_what_that_is_called(tmp_path: Path) -> None:
    store = ChatStore(tmp_path)
    chat = store.new("m", ["corpus:my notes#0", "corpus:my notes#1", "/b/x.pdf"], "why")
    assert chat.documents == ("corpus:my notes#0", "corpus:my notes#1", "/b/x.pdf")
    assert names_of(chat.documents) == ["my notes (corpus)", "x.pdf"]
    assert "my notes (corpus), x.pdf" in as_markdown(chat)
    assert store.cache_of(chat.id) == tmp_path / f"{chat.id}.safetensors"
    with pytest.raises(DataError):
        store.cache_of("../x")
