"""How a command tells what it does: lines for people on stderr, objects for programs on stdout."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TICK = 1.0
"""Seconds from one line to the next about work whose share that is done nobody knows."""


class Report:
    """Every event is told in both forms; one of them is shown."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self._quiet = quiet
        self._passing = False

    def say(self, facts: dict[str, Any], line: str, *, passing: bool = False) -> None:
        """A `passing` line is written over by the next one on a terminal; an empty one is none."""
        if self.as_json:
            print(json.dumps(facts, ensure_ascii=False), flush=True)
            return
        if self._quiet or not line:
            return
        terminal = sys.stderr.isatty()
        begin = "\r\x1b[K" if self._passing and terminal else ""
        end = "" if passing and terminal else "\n"
        print(f"{begin}{line}", end=end, file=sys.stderr, flush=True)
        self._passing = passing and terminal

    def remark(self, line: str) -> None:
        self.say({"event": "remark", "text": line}, line)

    def end_passing(self) -> None:
        """What follows, from whomever it comes, begins on a line of its own."""
        if self._passing:
            print(file=sys.stderr, flush=True)
            self._passing = False


@contextmanager
def ticking(line: str) -> Iterator[None]:
    """While the block runs a terminal shows `line` and the seconds so far; then nothing of it.

    Of a long `line` only the beginning: what goes on in a second row is not written over.
    """
    if not sys.stderr.isatty():
        yield
        return
    began, over = time.monotonic(), threading.Event()

    def show(text: str) -> None:
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def tick() -> None:
        while not over.wait(TICK):
            so_far = f", {time.monotonic() - began:,.0f} s"
            room = shutil.get_terminal_size().columns - 1
            show((line[: max(0, room - len(so_far))] + so_far)[:room])
        show("")

    ticker = threading.Thread(target=tick, name="ticking", daemon=True)
    ticker.start()
    try:
        yield
    finally:
        over.set()
        ticker.join()
