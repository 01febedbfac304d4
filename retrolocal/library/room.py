"""Room on the disk: asked for beforehand, and said in one line when it ran out after all."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from ..amounts import told_apart
from ..errors import LibraryError, SpaceError
from .filesystem import FileSystem

SPARE = 1.05
"""Free space asked for, over what is expected: file systems keep books too."""
_ELSEWHERE = "free space or set RETROLOCAL_LIBRARY to a folder on another disk"


def require_space(fs: FileSystem, expected_bytes: int, what: str) -> None:
    """Raises SpaceError unless the disk has room for `what` and a little more; OSError."""
    free = fs.free_bytes()
    need = int(expected_bytes * SPARE)
    if need > free:
        needed, there = told_apart(need, free)
        raise SpaceError(f"{what} needs {needed} in {fs.root} and {there} are free; {_ELSEWHERE}")


@contextlib.contextmanager
def saving(fs: FileSystem, what: str) -> Iterator[None]:
    """Makes one line of an error of the operating system."""
    try:
        yield
    except OSError as error:
        kept = "what was saved before is kept"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SpaceError(
                f"the disk of {fs.root} is full and {what} was not saved; {_ELSEWHERE}, then "
                f"repeat: {kept}"
            ) from error
        raise LibraryError(
            f"{what} was not saved in {fs.root} ({error.strerror or error}); {kept}, repeat to "
            "continue"
        ) from error
