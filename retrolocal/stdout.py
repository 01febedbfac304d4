"""What a command writes for the user: an error of writing has a name, and is told in time."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDOUT = "stdout"
"""The file name of an error of writing there."""


def prepare_stdout() -> None:
    """From now on an error of writing there has a name, as that of a file has.

    A terminal that cannot show a character shows a question mark instead.
    """
    stdout = sys.stdout
    if not isinstance(stdout, io.TextIOWrapper):
        return
    stdout.reconfigure(errors="replace")
    # Without a buffer (python -u) the one stands for the other.
    raw = getattr(stdout.buffer, "raw", stdout.buffer)
    if not isinstance(raw, io.FileIO) or "write" in vars(raw):
        return
    write = raw.write

    def named(data: ReadableBuffer) -> int | None:
        try:
            return write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, STDOUT) from error

    raw.write = named  # type: ignore[method-assign]


@contextlib.contextmanager
def stdout_flushed() -> Iterator[None]:
    """What cannot be written is an error of the command, not one that Python meets on leaving."""
    try:
        yield
    except BaseException:
        # What went wrong first is what is told.
        with contextlib.suppress(OSError):
            _flush()
        raise
    _flush()


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def drop_stdout() -> None:
    """Nobody takes what is written there any more; Python must not complain about it on leaving."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
