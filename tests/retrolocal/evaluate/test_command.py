"""`retrolocal eval`: what is handed on and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retrolocal.cli import main
from retrolocal.config import SessionConfig
from retrolocal.evaluate.options import AttentionOptions
from retrolocal.measurement import Progress, Result


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options of every evaluation that was started; none is really run."""
    started: list[Any] = []

    def run(options: Any, progress: Progress) -> Result:
        started.append(options)
        return {"error": 0.25}

    monkeypatch.setitem(sys.modules, "retrolocal.evaluate.attention", SimpleNamespace(run=run))
    return started


def test_attention(ran: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "attention", "-f", "book.txt", "--json"]) == 0
    captured = capsys.readouterr()
    compares = (
        "wave attention with dense attention, under the queries of builtin at 16 places, "
        "over all tokens of book.txt"
    )
    assert json.loads(captured.out) == {"compares": compares, "notes": [], "error": 0.25}
    assert captured.err == f"compares: {compares}\n"
    plot = tmp_path / "out.svg"
    given = f"-m some/model -f - --tokens 99 --questions 3 --plot {plot} -s 5 -t 2 --json"
    assert main(["eval", "attention", *given.split()]) == 0
    assert ran == [
        AttentionOptions(model="builtin", file="book.txt"),
        AttentionOptions(
            model="some/model",
            file="-",
            tokens=99,
            questions=3,
            plot=plot,
            seed=5,
            session=SessionConfig(threads=2),
        ),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "needs a command; give attention"),
        ("attention", "--file is missing"),
        ("attention -f a --tokens 0", "--tokens is 0"),
        ("attention -f a --questions 0", "--questions is 0"),
        ("attention -f a --plot out.png", "ends in .svg"),
        ("attention -f a --plot {tmp}/none/out.svg", "there is no folder"),
        ("attention -f a --seed -1", "--seed is -1"),
        ("attention -f a --model=", "--model is empty"),
        ("attention -f a --fast", "no option --fast"),
    ],
)
def test_wrong_usage_is_one_line(
    words: str, message: str, ran: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *words.replace("{tmp}", str(tmp_path)).split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert ran == []
