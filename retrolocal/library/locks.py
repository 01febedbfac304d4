"""Advisory locks: one writer, and no cleaning under a reader.

A lock belongs to an open file and ends with it, also when the process is killed; lock files come
with the library and are never removed, so that a lock asks nothing of a full disk. A segment that
is open holds a shared lock of its own, an open entry one on the folder of texts, which `gc`
respects.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

from ..errors import LibraryError, LockedError
from .closing import Closing
from .filesystem import PRIVATE_FILE

WRITER = "writer"
"""Held by whoever changes the library."""
OPENING = "opening"
"""Held shared between reading a manifest and having its files open, exclusively by `gc`."""
OPENING_SECONDS = 30.0
FORMAT_FILE = "FORMAT"
"""The one file that every library has."""
OBJECTS = "objects"
"""The folder of texts, outlines and page maps; held shared by every open entry."""


class Lock(Closing):
    """A held lock; a context manager that lets it go."""

    def __init__(self, file: int) -> None:
        self._file: int | None = file

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class WriterLock(Lock):
    """That of the only writer; its file says who that is and which entry is written."""

    def __init__(self, file: int) -> None:
        super().__init__(file)
        # A full disk takes no word, and that is when somebody wants to remove something.
        with contextlib.suppress(OSError):
            self._say(f"{os.getpid()}\n")

    def writes(self, key: str) -> None:
        """The entry with this key is written from now on."""
        self._say(f"{os.getpid()} {key}\n")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._say("")
        super().close()

    def _say(self, line: str) -> None:
        if self._file is not None:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, line.encode("ascii"), 0)


def lock_writer(root: Path) -> WriterLock:
    """The only writer's lock; raises LockedError when another process holds it, OSError."""
    file = os.open(
        root / WRITER, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE
    )
    if not try_lock(file, shared=False):
        owner = (_said(file) or ["unknown"])[0]
        os.close(file)
        raise LockedError(
            f"another ingest is running (pid {owner}) in {root}; wait until it is done"
        )
    return WriterLock(file)


def written_now(root: Path) -> str | None:
    """Key of the entry that a process is writing; None when none is. Raises OSError, LibraryError.

    The lock is asked for only where the file names an entry, so that nobody who wants to write
    finds it held by us.
    """
    try:
        file = os.open(root / WRITER, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        _, *keys = _said(file) or [""]
        return keys[0] if keys and not try_lock(file, shared=True) else None
    finally:
        os.close(file)


def _said(file: int) -> list[str]:
    """The process that writes, and the entry, as far as the file of the lock says so."""
    return os.pread(file, 64, 0).decode("ascii", "replace").split()


def lock_opening(root: Path, *, shared: bool, seconds: float = OPENING_SECONDS) -> Lock:
    """Waits until nobody cleans (shared) or opens (not shared), but not longer than `seconds`.

    Raises LockedError then, OSError.
    """
    file = _opening_file(root)
    until = time.monotonic() + seconds
    while not try_lock(file, shared=shared):
        if time.monotonic() > until:
            os.close(file)
            busy = "cleans up in" if shared else "is opening a document of"
            raise LockedError(f"another process {busy} {root} and does not end; try again later")
        time.sleep(0.02)
    return Lock(file)


def _opening_file(root: Path) -> int:
    # Opened for reading, a lock file also serves in a library on a read-only disk.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(root / OPENING, flags | os.O_CREAT, PRIVATE_FILE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        try:
            # Another name takes no inode, and whoever locks `opening` from now on locks this file.
            os.link(root / FORMAT_FILE, root / OPENING, follow_symlinks=False)
        except FileExistsError:
            pass
        except OSError:
            raise error from None
        return os.open(root / OPENING, flags)


def lock_objects(root: Path, *, shared: bool) -> Lock | None:
    """The lock of the folder of texts; None when somebody holds it otherwise. Raises OSError.

    Shared it keeps all of them: an open entry reads them when they are asked for, also when a later
    reading of the same files has taken its place.
    """
    file = os.open(root / OBJECTS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if try_lock(file, shared=shared):
        return Lock(file)
    os.close(file)
    return None


def try_lock(file: int, *, shared: bool) -> bool:
    """Locks an open file without waiting; whether that worked. Raises LibraryError."""
    try:
        import fcntl
    except ImportError as error:
        raise LibraryError(
            "the library needs file locks that this system does not have; use --no-store"
        ) from error
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise LibraryError(
            f"the disk of the library has no file locks ({error.strerror}); set RETROLOCAL_LIBRARY "
            "to a folder on a local disk"
        ) from error
    return True
