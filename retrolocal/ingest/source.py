"""Opens what the user named, and only ordinary files and standard input.

An `OpenFile` is a seekable binary file with its digest. Pipes, devices, sockets and directories
are refused before they are opened, so nothing here waits on a writer. Nothing here knows formats.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import DocumentError, UsageError

STDIN = "stdin"
"""What a text from standard input is called."""
HEAD_BYTES = 4096
_BLOCK_BYTES = 1 << 20
_MAX_SPOOLED_BYTES = 4 << 30

_KINDS = (
    (stat.S_ISDIR, "is a folder; give a file, or the folder to retrolocal ingest"),
    (stat.S_ISFIFO, "is a pipe; give a file, or - to read standard input"),
    (stat.S_ISSOCK, "is a socket; give a file"),
    (stat.S_ISCHR, "is a device; give a file, or - to read standard input"),
    (stat.S_ISBLK, "is a device; give a file"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFile:
    """A file open for reading, as extractors get it."""

    label: str
    """How messages name the file: the path as given, made printable."""
    name: str
    """The last part of the path, made printable."""
    suffix: str
    """Lower case with its dot; empty for standard input."""
    file: BinaryIO
    """Seekable, has a file descriptor, position undefined."""
    size: int
    """Bytes."""
    head: bytes
    """The first `HEAD_BYTES` bytes."""
    modified: int
    """When it was last written to, in nanoseconds."""

    def digest(self) -> str:
        """BLAKE2b-256 of all bytes, hexadecimal."""
        self.file.seek(0)
        hashed = hashlib.blake2b(digest_size=32)
        while block := self.file.read(_BLOCK_BYTES):
            hashed.update(block)
        return hashed.hexdigest()

    def require_unchanged(self) -> None:
        """Raises DocumentError when the file was written to since it was opened."""
        now = os.fstat(self.file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self.size, self.modified):
            raise DocumentError(f"{self.label} changed while it was read; read it again")


@contextmanager
def open_source(path: str | Path) -> Iterator[OpenFile]:
    """Opens `path`, or standard input where it is `-`, and closes it afterwards.

    Raises DocumentError for what does not exist, may not be read or is not an ordinary file,
    UsageError for a name without a character.
    """
    if not str(path):
        raise UsageError("the name of a file is empty; give a file, or - for standard input")
    if str(path) == "-":
        with _spooled(sys.stdin.buffer, STDIN) as file:
            yield _describe(file, label=STDIN, name=STDIN, suffix="")
        return
    label = printable(str(path))
    with ExitStack() as stack:
        file = stack.enter_context(_open_regular(path, label))
        # What the system makes while it is read, in /proc say, has no size and no end to seek.
        if os.fstat(file.fileno()).st_size == 0:
            file = stack.enter_context(_spooled(file, label))
        name = Path(path).name
        yield _describe(file, label=label, name=printable(name), suffix=Path(name).suffix.lower())


def printable(text: str) -> str:
    """`text` on one line: what cannot be printed becomes a backslash escape."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def _describe(file: BinaryIO, *, label: str, name: str, suffix: str) -> OpenFile:
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(HEAD_BYTES)
    except OSError as error:
        raise DocumentError(f"{label} cannot be read: {error.strerror or error}") from error
    modified = os.fstat(file.fileno()).st_mtime_ns
    return OpenFile(
        label=label, name=name, suffix=suffix, file=file, size=size, head=head, modified=modified
    )


def _open_regular(path: str | Path, label: str) -> BinaryIO:
    try:
        _require_regular(os.stat(path).st_mode, label)
        # The path may have become a pipe since; opening must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        raise DocumentError(_open_failure(label, error)) from error
    file = os.fdopen(descriptor, "rb")
    try:
        _require_regular(os.fstat(descriptor).st_mode, label)
    except DocumentError:
        file.close()
        raise
    return file


def _require_regular(mode: int, label: str) -> None:
    if stat.S_ISREG(mode):
        return
    for is_kind, reason in _KINDS:
        if is_kind(mode):
            raise DocumentError(f"{label} {reason}")
    raise DocumentError(f"{label} is not an ordinary file")


def _open_failure(label: str, error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return f"{label} is not a possible file name"
    if error.errno == errno.ENOENT:
        return f"{label} does not exist; check the path"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{label} may not be read (permission denied)"
    return f"{label} cannot be opened: {error.strerror or error}"


@contextmanager
def _spooled(stream: BinaryIO, label: str) -> Iterator[BinaryIO]:
    """All of a stream as a file that can be sought in."""
    with tempfile.TemporaryFile() as spool:
        taken = 0
        while block := _block(stream, label):
            taken += len(block)
            if taken > _MAX_SPOOLED_BYTES:
                raise DocumentError(
                    f"{label} sent more than {_MAX_SPOOLED_BYTES >> 30} GB; give a smaller text"
                )
            try:
                # Past the buffer, which would be written again when the file is closed.
                while block:
                    block = block[os.write(spool.fileno(), block) :]
            except OSError as error:
                raise DocumentError(
                    f"{label} cannot be copied to {tempfile.gettempdir()} ({error.strerror}); make "
                    "room there, or set TMPDIR to another folder"
                ) from error
        yield spool


def _block(stream: BinaryIO, label: str) -> bytes:
    """Some of it, nothing at its end."""
    try:
        return stream.read(_BLOCK_BYTES)
    except OSError as error:
        raise DocumentError(f"{label} cannot be read: {error.strerror or error}") from error
