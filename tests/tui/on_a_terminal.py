"""Run by tests as a program: the application on the terminal that it is given.

Its engine answers a question without end until it is told to stop, and never asks the Hub.
"""

from __future__ import annotations

import fcntl
import shutil
import signal
import struct
import sys
import termios
import time
from pathlib import Path

from fakes import FakeEngine, an_answer, an_opening

from retrolocal.tui import leaving
from retrolocal.tui.engine import Answer, ChatSettings, Control, Opened, Wrote
from retrolocal.tui.launch import run


class Endless(FakeEngine):
    def open(self, control: Control, *, download: bool) -> Opened:
        return an_opening()

    def read_documents(self, control: Control) -> None:
        pass

    def ask(self, question: str, control: Control) -> Answer:
        while not control.stopped:
            control.emit(Wrote("and on, "))
            time.sleep(0.01)
        return an_answer("")


def overtake() -> None:
    """The size changes once more between being read and being told."""
    read = shutil.get_terminal_size
    left = [(30, 8)]

    def overtaken(*fallback: tuple[int, int]) -> object:
        size = read(*fallback)
        if size.columns == 200 and left:
            width, height = left.pop()
            terminal = sys.__stdin__.fileno()
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
            signal.raise_signal(signal.SIGWINCH)
        return size

    shutil.get_terminal_size = overtaken  # type: ignore[assignment]


if __name__ == "__main__":
    if "overtake" in sys.argv:
        overtake()
    leaving.PATIENCE = 2.0
    code = run(Endless(), ChatSettings(model="some/model"), Path(sys.argv[1]))
    sys.exit(code)
