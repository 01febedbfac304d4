"""How a command tells what it does."""

from __future__ import annotations

import re
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
