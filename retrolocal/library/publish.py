"""How a file comes into the library: whole, or not at all.

A file is written under a name of its own in `tmp`, synced, renamed to where it belongs, and its
folder is synced; when `publish` returns it survives a loss of power. A failed sync is never tried
again on the same file: the kernel may have dropped what it could not write.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable

from .filesystem import FileSystem

TMP = "tmp"
WRITE_BYTES = 16 << 20
"""Bytes handed to the system at once, so that an interrupt need not wait long."""


def publish(
    fs: FileSystem,
    path: str,
    size: int,
    fill: Callable[[int], None],
    *,
    scratch: str | None = None,
) -> None:
    """Makes `path` (`folder/name`, replacing it if it is there) of `size` bytes.

    `fill` writes them to the descriptor it is given. `scratch` is where, until it is whole; by
    default a name of its own in `tmp`. Raises OSError; nothing half-written is left under `path`.
    """
    scratch = scratch or f"{TMP}/{os.getpid()}-{secrets.token_hex(8)}"
    file = fs.create(scratch)
    try:
        try:
            fs.allocate(file, size)
            fill(file)
            fs.sync(file)
        finally:
            fs.close(file)
        fs.rename(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            fs.unlink(scratch)
        raise
    fs.sync_folder(path.rpartition("/")[0])


def publish_bytes(fs: FileSystem, path: str, data: bytes) -> None:
    """`publish` of what is in memory."""
    publish(fs, path, len(data), lambda file: write_all(fs, file, memoryview(data), 0))


def write_all(fs: FileSystem, file: int, data: memoryview, offset: int) -> None:
    """Writes all of `data` at `offset`, in as many calls as it takes."""
    start = 0
    while start < len(data):
        written = fs.write(file, data[start : start + WRITE_BYTES], offset + start)
        if written <= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        start += written
