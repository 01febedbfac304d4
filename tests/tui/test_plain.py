"""The plain chat on a real (pseudo) terminal: questions, Ctrl-C, Ctrl-D, progress."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrolocal.tui.plain import _is_command

PATIENCE = 60.0


class Terminal:
    """`retrolocal chat --plain` on a pseudo-terminal."""

    def __init__(self, *words: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "retrolocal", "chat", "--plain", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
        )
        os.close(slave)
        self.text = ""

    def wait_for(self, pattern: str) -> str:
        """Reads until the new output matches; returns what came since the last call."""
        start, began = len(self.text), time.monotonic()
        while not re.search(pattern, self.text[start:]):
            assert time.monotonic() - began < PATIENCE, self.text
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self._master, 65536).decode(errors="replace")
                except OSError:
                    break
        return self.text[start:]

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def interrupt(self) -> None:
        # The prompt is printed a moment before input() waits for signals, too.
        time.sleep(0.3)
        os.killpg(self.process.pid, signal.SIGINT)

    def leave(self) -> int:
        return self.process.wait(timeout=PATIENCE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(tiny_model: Path, tmp_path: Path) -> Iterator[Terminal]:
    book = tmp_path / "book.txt"
    book.write_text("".join(f"Line {i} tells of {i * i % 97} ships. " for i in range(90)))
    words = ("-m", str(tiny_model), "-f", str(book), "-n", "1200", "--ignore-eos", "--temp", "0")
    opened = Terminal(*words)
    yield opened
    opened.close()


def test_a_conversation(terminal: Terminal) -> None:
    terminal.wait_for("> $")
    terminal.type("/help\n")
    said = terminal.wait_for("leaves\r\n> $")
    assert "/help is a command of the chat on the whole screen: start without --plain" in said
    terminal.type("one\n")
    terminal.wait_for("[!-~]{20}")
    terminal.interrupt()
    first = terminal.wait_for("dense cache: .*\r\n> $")
    assert "prompt 2," in first
    terminal.type("two\n")
    second = terminal.wait_for("dense cache: .*\r\n> $")
    read = re.search(r"prompt ([\d,]+) of", second)
    assert read is not None
    assert int(read[1].replace(",", "")) < 50
    terminal.type("\x04")
    assert terminal.leave() == 0
    assert "Traceback" not in terminal.text


def test_leaving_at_the_prompt(terminal: Terminal) -> None:
    terminal.wait_for("> $")
    terminal.interrupt()
    assert terminal.leave() == 130


def test_leaving_by_a_second_interrupt(terminal: Terminal) -> None:
    terminal.wait_for("> $")
    terminal.type("one\n")
    terminal.wait_for("[!-~]{20}")
    terminal.interrupt()
    if terminal.process.poll() is None:
        # At the prompt by now, or still answering: it leaves either way.
        terminal.interrupt()
    assert terminal.leave() == 130


def test_exit_words(terminal: Terminal) -> None:
    terminal.wait_for("> $")
    terminal.type("/exit\n")
    assert terminal.leave() == 0


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("/help", True),
        ("/file book.txt", True),
        ("/help me with this", False),
        ("/etc/passwd is what?", False),
        ("what is /help", False),
        ("//help", False),
    ],
)
def test_a_line_that_the_screen_would_not_ask(line: str, command: bool) -> None:
    assert _is_command(line) == command
