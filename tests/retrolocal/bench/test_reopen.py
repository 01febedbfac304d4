"""Opening a kept text again: what is timed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retrolocal.bench import reopen
from retrolocal.bench.options import ReopenOptions
from retrolocal.cli import main
from retrolocal.errors import DataError


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(" ".join(f"w{number}" for number in range(4000)), encoding="utf-8")
    return path


def test_wrong_usage_is_one_line(
    book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        ([], "--file"),
        (["-f", str(tmp_path / "nowhere.txt")], "give a document that is there"),
        (["-f", str(book), "--repeats", "0"], "--repeats is 0"),
        (["-f", str(book), "-p", " "], "--prompt is empty"),
    ):
        assert main(["bench", "reopen", *words]) == 2
        assert said in capsys.readouterr().err


def test_what_a_program_says_reaches_the_user(book: Path, tmp_path: Path) -> None:
    programs = reopen._Programs(ReopenOptions(file=book, model=str(tmp_path)), tmp_path)
    with pytest.raises(DataError, match=r"retrolocal chat ended with 1: .*config\.json"):
        programs.timed("chat", *programs.question)


@pytest.mark.slow
def test_a_kept_text_is_opened(book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "reopen", "-f", str(book), "-p", "w300 w301 w302", "--repeats", "1", "--json"]
    assert main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["tokens"] > 8192
    assert 0 < facts["index_bytes"] < facts["kept_bytes"]
    for name in ("read", "empty", "warm", "cold", "twice_the_index"):
        assert facts[f"{name}_seconds"] > 0
    assert facts["text"]
