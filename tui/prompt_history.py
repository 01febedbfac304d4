"""What was typed into the prompt, across runs: one JSON string per line, for the owner only.

Several programs may write at once: each adds a line under a lock, and whoever finds the file too
long writes its newest half anew, beside and renamed. A line that is damaged is passed over. A
history that cannot be read or written is only not remembered. Imports the standard library alone.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..chats import write_private

ENTRIES = 500
"""That are read back; the file holds at most twice as many."""
LONGEST = 10_000
"""Characters of an entry; a longer one, such as a pasted chapter, is not remembered."""
MAX_BYTES = 16 << 20
"""Of the file; a larger one is not ours."""
_LOG = logging.getLogger(__name__)


class PromptHistory:
    """The history in one file, made when the first line is added."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> list[str]:
        """What was typed, oldest first; none where nothing can be read."""
        with _tolerant(self._path):
            return self._lines()[-ENTRIES:]
        return []

    def add(self, text: str) -> None:
        """Remembers a text as the newest, unless it is that already."""
        if not text.strip() or len(text) > LONGEST:
            return
        with _tolerant(self._path), self._locked():
            known = self._lines()
            if known and known[-1] == text:
                return
            if len(known) >= 2 * ENTRIES:
                kept = [*known[1 - ENTRIES :], text]
                write_private(self._path, "".join(map(_line, kept)))
                return
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            file = os.open(self._path, flags, 0o600)
            try:
                os.fchmod(file, 0o600)
                size = os.fstat(file).st_size
                broken = size > 0 and os.pread(file, 1, size - 1) != b"\n"
                os.write(file, ("\n" * broken + _line(text)).encode())
            finally:
                os.close(file)

    def _lines(self) -> list[str]:
        """Every line that is a text; raises OSError."""
        try:
            if self._path.stat().st_size > MAX_BYTES:
                raise OSError(f"{self._path} is larger than any history; remove it")
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        found = (_text(line) for line in data.split(b"\n") if line)
        return [text for text in found if text is not None]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among the programs that add to it."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        lock = os.open(self._path.with_name(f"{self._path.name}.lock"), flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


@contextmanager
def _tolerant(path: Path) -> Iterator[None]:
    """A history is not worth an error on the screen; the log has it."""
    try:
        yield
    except OSError as error:
        _LOG.warning("%s: %s", path, error)


def _line(text: str) -> str:
    return json.dumps(text) + "\n"


def _text(line: bytes) -> str | None:
    """The text of a line; None for one that is none."""
    with suppress(ValueError, RecursionError):
        text = json.loads(line)
        if isinstance(text, str) and 0 < len(text) <= LONGEST:
            return text
    return None
