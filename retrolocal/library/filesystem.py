"""The few system calls that the library is made of, behind a protocol.

Paths are `folder/name` or `name`, relative to the library. Nothing follows a symbolic link, files
are private to the user, and only new files are written to. Tests put other file systems in the
place of `DiskFileSystem`: ones that fail at the n-th call or forget what was not synced.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path
from typing import Protocol

PRIVATE_FOLDER = 0o700
PRIVATE_FILE = 0o600


class FileSystem(Protocol):
    """All calls raise OSError; `file` is a descriptor that `close` gives back."""

    root: Path

    def create(self, path: str) -> int:
        """A new, empty file, open for writing."""

    def allocate(self, file: int, size: int) -> None:
        """Makes sure that `size` bytes will fit."""

    def write(self, file: int, data: memoryview, offset: int) -> int:
        """Writes at `offset`; returns how many bytes, which may be fewer than all."""

    def sync(self, file: int) -> None:
        """Returns when the file's content has reached the disk."""

    def close(self, file: int) -> None: ...

    def rename(self, old: str, new: str) -> None:
        """`new` becomes what `old` was, at once."""

    def unlink(self, path: str) -> None: ...

    def make_folder(self, folder: str) -> None:
        """The library itself, ``, is made with all folders above it, and synced into them."""

    def sync_folder(self, folder: str) -> None:
        """Returns when the names in `folder` have reached the disk; `` is the library itself."""

    def open(self, path: str) -> int:
        """An existing regular file of this user, open for reading."""

    def names(self, folder: str) -> list[str]:
        """Sorted; none where there is no such folder."""

    def free_bytes(self) -> int: ...


class DiskFileSystem:
    """`FileSystem` on a real folder, which need not exist before something is made in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, path: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        return self._at(path, flags)

    def allocate(self, file: int, size: int) -> None:
        if not size or not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            # Some file systems cannot; a full one is then noticed while writing.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise

    def write(self, file: int, data: memoryview, offset: int) -> int:
        return os.pwrite(file, data, offset)

    def sync(self, file: int) -> None:
        if sys.platform == "darwin":
            import fcntl

            # There, fsync leaves the data in the drive's own memory.
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)
        else:
            os.fsync(file)

    def close(self, file: int) -> None:
        os.close(file)

    def rename(self, old: str, new: str) -> None:
        (old_folder, old_name), (new_folder, new_name) = self._folder(old), self._folder(new)
        try:
            os.rename(old_name, new_name, src_dir_fd=old_folder, dst_dir_fd=new_folder)
        finally:
            os.close(old_folder)
            os.close(new_folder)

    def unlink(self, path: str) -> None:
        folder, name = self._folder(path)
        try:
            os.unlink(name, dir_fd=folder)
        finally:
            os.close(folder)

    def make_folder(self, folder: str) -> None:
        if folder:
            (self.root / folder).mkdir(mode=PRIVATE_FOLDER)
            return
        absent = [place for place in (self.root, *self.root.parents) if not place.exists()]
        for place in reversed(absent):
            place.mkdir(mode=PRIVATE_FOLDER)
            self._sync_folder_at(place.parent)

    def sync_folder(self, folder: str) -> None:
        self._sync_folder_at(self.root / folder)

    def open(self, path: str) -> int:
        file = self._at(path, os.O_RDONLY | os.O_NONBLOCK)
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            os.close(file)
            raise PermissionError(f"{path} is no plain file of this user")
        return file

    def names(self, folder: str) -> list[str]:
        try:
            opened = self._open_folder(folder)
        except FileNotFoundError:
            return []
        try:
            return sorted(os.listdir(opened))
        finally:
            os.close(opened)

    def free_bytes(self) -> int:
        place = self.root
        while not place.exists() and place != place.parent:
            place = place.parent
        status = os.statvfs(place)
        return status.f_bavail * status.f_frsize

    def _at(self, path: str, flags: int) -> int:
        folder, name = self._folder(path)
        try:
            return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE, dir_fd=folder)
        finally:
            os.close(folder)

    def _folder(self, path: str) -> tuple[int, str]:
        folder, _, name = path.rpartition("/")
        return self._open_folder(folder), name

    def _sync_folder_at(self, place: Path) -> None:
        opened = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sync(opened)
        finally:
            os.close(opened)

    def _open_folder(self, folder: str) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        return os.open(self.root / folder, flags | (os.O_NOFOLLOW if folder else 0))
