"""How a command tells what it does."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time

import pytest

from retrolocal import report
from retrolocal.report import ticking

Captured = pytest.CaptureFixture[str]


@pytest.mark.parametrize("terminal", [True, False])
def test_work_without_a_known_end_ticks_on_a_terminal(
    terminal: bool, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "TICK", 0.01)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    said = ""
    with ticking("reading book.txt"):
        until = time.monotonic() + (10.0 if terminal else 0.05)
        while said.count("reading") < 2 and time.monotonic() < until:
            time.sleep(0.02)
            said += capsys.readouterr().err
    said += capsys.readouterr().err
    lines = r"(\r\x1b\[Kreading book.txt, \d+ s){2,}\r\x1b\[K"
    assert bool(re.fullmatch(lines, said)) == terminal
    assert terminal or said == ""


def test_a_long_line_ticks_in_one_row(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "TICK", 0.01)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((20, 5)))
    said, until = "", time.monotonic() + 10.0
    with ticking("reading a book with a long name.txt"):
        while " s" not in said and time.monotonic() < until:
            time.sleep(0.02)
            said += capsys.readouterr().err
    shown = said.split("\r\x1b[K")[1]
    assert re.fullmatch(r"reading a book.*, \d+ s", shown)
    assert len(shown) == 19
