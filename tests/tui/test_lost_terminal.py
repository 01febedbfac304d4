"""A terminal that changes its size in the wrong moment, goes away, or takes nothing more.

The application runs as a process on a terminal that the test holds the other end of.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PATIENCE = 120.0
PROGRAM = Path(__file__).with_name("on_a_terminal.py")


class Terminal:
    """The other end of the application's terminal; the application gets no signal from it."""

    def __init__(self, state: Path, *words: str, **environment: str) -> None:
        self.end, theirs = os.openpty()
        self.resize(110, 28)
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(state), *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            # Not what libraries of this process have put into the environment behind its back.
            env={**os.environ, **environment},
        )
        os.close(theirs)
        self._drawn = b""

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def wait_for(self, words: str) -> None:
        """Reads until these words have been drawn."""
        idle = 0
        while words.encode() not in self._drawn:
            assert idle < PATIENCE / 0.1, f"no {words!r} in {self._drawn[-4000:]!r}"
            if select.select([self.end], [], [], 0.1)[0]:
                self._drawn, idle = self._drawn + os.read(self.end, 1 << 16), 0
            else:
                idle += 1
        self._drawn = b""

    def ask(self) -> None:
        self.wait_for("ready")
        os.write(self.end, b"why?\r")
        self.wait_for("and on, and on, ")

    def read_nothing_until_it_waits(self) -> None:
        """Until nothing more comes although something is drawn all the time."""
        held, since = -1, 0
        while since < 30:
            time.sleep(0.1)
            now = struct.unpack("i", fcntl.ioctl(self.end, termios.FIONREAD, b"\0" * 4))[0]
            held, since = now, since + 1 if now == held else 0

    def hang_up(self) -> None:
        os.close(self.end)
        self.end = -1

    def left_with(self) -> int:
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.end >= 0:
            self.hang_up()


@pytest.fixture
def terminal(state: Path) -> Iterator[Terminal]:
    opened = Terminal(state)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("words", "environment"),
    [(["overtake"], {}), ([], {"COLUMNS": "80", "LINES": "24"})],
    ids=["while-the-one-before-is-told", "whatever-the-environment-says"],
)
def test_a_size_that_changes_is_followed(
    state: Path, words: list[str], environment: dict[str, str]
) -> None:
    opened = Terminal(state, *words, **environment)
    try:
        opened.wait_for("ready")
        opened.resize(200, 50)
        os.kill(opened.process.pid, signal.SIGWINCH)
        if not words:
            opened.resize(30, 8)
            os.kill(opened.process.pid, signal.SIGWINCH)
        opened.wait_for("too small")
    finally:
        opened.close()


def test_what_was_stopped_and_goes_on_gives_the_terminal_back_as_it_was(state: Path) -> None:
    opened = Terminal(state)
    try:
        before = termios.tcgetattr(opened.end)
        opened.wait_for("ready")
        opened.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, opened.process.pid, os.WSTOPPED | os.WNOWAIT)
        opened.process.send_signal(signal.SIGCONT)
        opened.wait_for("ready")
        os.write(opened.end, b"\x11")
        opened.wait_for("\x1b[?1049l")
        assert opened.left_with() == 0
        assert termios.tcgetattr(opened.end) == before
    finally:
        opened.close()


def test_a_terminal_that_is_gone_is_left_also_without_a_signal(terminal: Terminal) -> None:
    terminal.ask()
    terminal.hang_up()
    assert terminal.left_with() == 128 + signal.SIGHUP


def test_a_signal_ends_it_also_where_the_terminal_takes_nothing_more(terminal: Terminal) -> None:
    terminal.ask()
    terminal.read_nothing_until_it_waits()
    os.kill(terminal.process.pid, signal.SIGTERM)
    assert terminal.left_with() == 128 + signal.SIGTERM


def test_without_a_folder_for_its_state_it_starts_and_leaves_all_the_same() -> None:
    opened = Terminal(Path(os.devnull) / "state")
    try:
        opened.wait_for("ready")
        os.write(opened.end, b"\x11")
        assert opened.left_with() == 0
    finally:
        opened.close()
