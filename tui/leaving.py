"""Leaving for certain: a program that was told to end ends, whatever its terminal does.

The interface draws through a queue that its main thread waits for: where the terminal takes
nothing more, neither its loop nor its own end come to an end. Imports nothing but the standard
library.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

PATIENCE = 30.0
"""Seconds that the application may take to leave by itself."""
_TICK = 0.1
MOMENT = 1.0
"""Seconds that work without a terminal's screen may take to end by itself."""


class Leaving:
    """`insist` when leaving is decided; `done` when it is left, or need not be any more."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._codes: queue.SimpleQueue[int] = queue.SimpleQueue()
        # Started here: a signal may come while its thread starts another one.
        threading.Thread(target=self._wait, name="leaving", daemon=True).start()

    def insist(self, code: int) -> None:
        """Ends the process with this code unless `done` comes in time; for signal handlers too."""
        self._codes.put(code)

    def done(self) -> None:
        """Nobody has to be waited for any more."""
        self._done.set()
        self._codes.put(0)

    def _wait(self) -> None:
        code = self._codes.get()
        # Many short waits: the time that a process is paused for counts for one of them.
        for _ in range(round(PATIENCE / _TICK)):
            if self._done.wait(_TICK):
                return
        os._exit(code)


@contextmanager
def left_promptly(tell: Callable[[], None]) -> Iterator[None]:
    """At Ctrl-C `tell` is called at once, on another thread, and 130 is the exit code in a moment.

    Compiling holds the main thread for seconds, in which Python handles no signal. A `tell` that
    fails or blocks, as on a terminal that takes nothing, keeps nobody here. For work that may end
    anywhere; raises ValueError on another thread than the main one.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    over = threading.Event()

    def say() -> None:
        with suppress(OSError, ValueError):
            tell()

    def watch() -> None:
        while (number := os.read(reader, 1)[0]) not in (0, signal.SIGINT):
            pass
        if number == signal.SIGINT:
            teller = threading.Thread(target=say, name="interrupted", daemon=True)
            teller.start()
            left = over.wait(MOMENT)
            teller.join(MOMENT if left else 0)
            # The end of the program would wait for what the teller holds.
            if not left or teller.is_alive():
                os._exit(128 + signal.SIGINT)

    watcher = threading.Thread(target=watch, name="interrupts", daemon=True)
    watcher.start()
    try:
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
    finally:
        over.set()
        os.write(writer, b"\0")
        watcher.join()
        os.close(reader)
        os.close(writer)
