"""Leaving for certain: a program that was told to end ends, whatever its terminal does.

The interface draws through a queue that its main thread waits for: where the terminal takes
nothing more, neither its loop nor its own end come to an end. Imports nothing but the standard
library.
"""

from __future__ import annotations

import os
import queue
import threading

PATIENCE = 30.0
"""Seconds that the application may take to leave by itself."""
_TICK = 0.1


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
