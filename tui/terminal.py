"""The terminal: whether it can show the application, and keeping everybody else's output off it.

While the application runs, file descriptors 1 and 2 point at a log file, so that nothing a
library or a child process writes lands on the screen; Textual draws through the descriptors that
were there before. Imports nothing but the standard library.
"""

from __future__ import annotations

import codecs
import io
import logging
import os
import select
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

LOG_LIMIT = 1 << 20
"""Bytes of log that are kept from earlier runs."""
_LOOKALIKE = "retrolocal.lookalike"
_LOOKALIKES = {
    **dict.fromkeys("─━╌", "-"),
    **dict.fromkeys("│┃▏▎▍▌▋▊▉‖", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯", "+"),
    **dict.fromkeys("█▇▆▅▄▃▂▁▀▐", "#"),
    **dict.fromkeys("●•▪◦", "*"),
    **dict.fromkeys("◐◓◑◒○", "o"),
    **dict(zip("…·✓✗▸‘’“”–—", ".." + "vx>''\"\"--", strict=True)),
}
"""What a terminal without Unicode shows for the signs of the screen, one cell each."""
LEAVING_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


def can_show(environment: Mapping[str, str]) -> bool:
    """Whether stdin, stdout and stderr are one that can show an application, and TERM says so."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    if not knows_codes(environment):
        return False
    return all(stream is not None and stream.isatty() for stream in streams)


def knows_codes(environment: Mapping[str, str]) -> bool:
    """Whether TERM names a terminal that understands escape codes."""
    return environment.get("TERM", "") not in ("", "dumb")


class Descriptor(io.FileIO):
    """Writes all it is given; once what it writes to is gone, says so and writes nothing more.

    Whoever draws need not know: Textual's thread for it ends at an error, and everybody who
    draws then waits for it.
    """

    def __init__(self, descriptor: int, gone: Callable[[], None]) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._gone = gone
        self._lost = False

    def write(self, data: ReadableBuffer, /) -> int:
        rest = memoryview(data).cast("B")
        length = len(rest)
        while rest and not self._lost:
            rest = rest[self._write_some(rest) :]
        return length

    def _write_some(self, data: memoryview) -> int:
        try:
            # A part only where a signal comes; none where another program of this terminal has
            # made it one that does not wait.
            written = super().write(data)
            if written is None:
                select.select([], [self], [])
        except OSError:
            self._lost = True
            self._gone()
        return 0 if self._lost or written is None else written


@contextmanager
def guarded_output(log: Path, gone: Callable[[], None] = lambda: None) -> Iterator[None]:
    """While it lasts, what is written to stdout or stderr by anyone goes to the file `log`.

    `gone` is called, on whichever thread it is that draws, when there is no terminal any more.
    """
    codecs.register_error(_LOOKALIKE, lookalike)
    into = open_log(log)
    sys.stdout.flush()
    sys.stderr.flush()
    before = sys.__stdout__, sys.__stderr__
    copies = [os.dup(1), os.dup(2)]
    screens = [_writer(Descriptor(copy, gone), before[0]) for copy in copies]
    handler = logging.StreamHandler(_writer(io.FileIO(into, "w", closefd=False), None))
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    os.dup2(into, 1)
    os.dup2(into, 2)
    # Textual draws on the one and asks the other for the terminal's size.
    sys.__stdout__, sys.__stderr__ = screens  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for screen in screens:
            screen.flush()
        os.dup2(copies[0], 1)
        os.dup2(copies[1], 2)
        sys.__stdout__, sys.__stderr__ = before  # type: ignore[misc]
        logging.getLogger().removeHandler(handler)
        for descriptor in (*copies, into):
            os.close(descriptor)


def open_log(log: Path) -> int:
    """A descriptor that writes behind what the log holds, in a folder that is made."""
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _shorten(log)
    return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def lookalike(error: UnicodeError) -> tuple[str, int]:
    """Error handler for encoding: characters of ASCII that take the same cells."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_shown_as, error.object[error.start : error.end])), error.end


def _shown_as(character: str) -> str:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Mn", "Me"):
        return ""
    wide = unicodedata.east_asian_width(character) in ("W", "F")
    return _LOOKALIKES.get(character, "??" if wide else "?")


def _writer(raw: io.FileIO, like: TextIO | None) -> TextIO:
    """A stream of text that passes on what is written at once."""
    encoding = "utf-8" if like is None else like.encoding
    if like is not None and os.environ.get("LC_ALL") in ("C", "POSIX"):
        # Python takes this for UTF-8, which a terminal that was set up so cannot show.
        encoding = "ascii"
    return io.TextIOWrapper(raw, encoding=encoding, errors=_LOOKALIKE, write_through=True)


def _shorten(log: Path) -> None:
    """Begins the log anew when it has become long; a link is not followed."""
    if log.is_symlink() or (log.exists() and log.stat().st_size > LOG_LIMIT):
        log.unlink()
