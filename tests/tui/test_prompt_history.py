"""The history of the prompt on disk: private, limited, shared by several programs."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from retrolocal.tui.prompt_history import ENTRIES, LONGEST, PromptHistory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "history.jsonl"


def test_what_was_typed_is_there_in_the_next_run(path: Path) -> None:
    assert PromptHistory(path).entries() == []
    typed = ["first", "two\nlines ␛[31m", "日本語 \udcff", "/file a b.pdf", "[/x]", "first"]
    history = PromptHistory(path)
    for text in typed:
        history.add(text)
        history.add(text)
    assert PromptHistory(path).entries() == typed
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_nothing_and_whole_chapters_are_not_remembered(path: Path) -> None:
    history = PromptHistory(path)
    for text in ("", "  \n ", "x" * (LONGEST + 1)):
        history.add(text)
    assert not path.exists()
    history.add("x" * LONGEST)
    assert history.entries() == ["x" * LONGEST]


def test_damaged_lines_are_passed_over_and_do_not_swallow_the_next(path: Path) -> None:
    path.parent.mkdir()
    good = json.dumps("good")
    path.write_bytes(b"\xff\xfe\n{}\n\n3\n" + good.encode() + b"\n[" * 3 + b'\n"cut off')
    history = PromptHistory(path)
    assert history.entries() == ["good"]
    history.add("next")
    assert history.entries() == ["good", "next"]
    path.write_bytes(b"[" * 100_000)
    assert history.entries() == []


def test_it_stays_short(path: Path) -> None:
    history = PromptHistory(path)
    path.parent.mkdir()
    path.write_text("".join(f'"{number}"\n' for number in range(2 * ENTRIES)))
    assert history.entries() == [str(number) for number in range(ENTRIES, 2 * ENTRIES)]
    history.add("newest")
    assert history.entries()[-1] == "newest"
    assert len(path.read_text().splitlines()) == ENTRIES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def _write(path: Path, name: str) -> None:
    history = PromptHistory(path)
    for number in range(60):
        history.add(f"{name} {number}")


def test_several_programs_lose_nothing_of_each_other(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    programs = [context.Process(target=_write, args=(path, name)) for name in "abc"]
    for program in programs:
        program.start()
    for program in programs:
        program.join()
    found = PromptHistory(path).entries()
    assert len(found) == 180
    for name in "abc":
        own = [text for text in found if text.startswith(name)]
        assert own == [f"{name} {number}" for number in range(60)]


def test_a_place_that_cannot_be_written_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with caplog.at_level(logging.WARNING):
        PromptHistory(blocked / "history").add("x")
        assert PromptHistory(blocked / "history").entries() == []
    target = tmp_path / "target"
    target.write_text("mine\n")
    os.symlink(target, tmp_path / "history")
    PromptHistory(tmp_path / "history").add("x")
    assert target.read_text() == "mine\n"
    assert "history" in caplog.text
