"""Opens files of the library for reading so that nobody removes them; words for what goes wrong."""

from __future__ import annotations

import contextlib
import errno
import mmap
from collections.abc import Iterator

from ..errors import DamagedError, LibraryError
from .filesystem import FileSystem
from .locks import try_lock

AGAIN = "ingest the document again to replace it"


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Makes one line of an error of the operating system."""
    try:
        yield
    except OSError as error:
        raise LibraryError(f"{what} cannot be read ({error.strerror or error})") from error


def map_file(file: int, size: int, label: str, access: int) -> mmap.mmap:
    """All `size` bytes of an open file; raises DamagedError, LibraryError."""
    try:
        return mmap.mmap(file, size, access=access)
    except ValueError as error:
        raise DamagedError(f"{label} became shorter just now; {AGAIN}") from error
    except OSError as error:
        raise LibraryError(
            f"{label} cannot be mapped ({error.strerror}); close other programs"
        ) from error


def open_shared(fs: FileSystem, path: str) -> int:
    """A descriptor with a shared lock; raises DamagedError, LibraryError."""
    label = fs.root / path
    try:
        file = fs.open(path)
    except FileNotFoundError:
        raise DamagedError(f"{label} is missing (was it removed?); {AGAIN}") from None
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise LibraryError(
                f"{label} cannot be opened ({reason}); allow more open files (ulimit -n)"
            ) from error
        raise DamagedError(f"{label} cannot be opened ({reason}); {AGAIN}") from error
    if not try_lock(file, shared=True):
        fs.close(file)
        raise DamagedError(f"{label} is being removed; {AGAIN}")
    return file
