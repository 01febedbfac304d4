"""Loss of power, simulated: what the real writer asked of the disk, and all that may be left of it.

`Recorder` does everything at once and notes each call. After a crash, what was synced is there; of
the rest any subset is: blocks of data, lengths and names reach the disk in any order. A rename is
one step, as on every journaling file system. No test module.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from retrolocal.library.filesystem import DiskFileSystem

BLOCK = 4096
MOST_PENDING = 14
"""Of more unsynced steps the oldest count as done."""


@dataclass(frozen=True)
class Data:
    """A block of a file, or with no content its length."""

    inode: int
    offset: int
    data: bytes
    length: int = 0


@dataclass(frozen=True)
class Name:
    """`new` becomes a name of the inode (None: there is none any more), `old` ends."""

    inode: int
    new: str | None
    old: str | None = None


@dataclass(frozen=True)
class Sync:
    inode: int


@dataclass(frozen=True)
class SyncFolder:
    folder: str


Step = Data | Name | Sync | SyncFolder


class Recorder(DiskFileSystem):
    """A real file system that waits for nothing and notes what it was asked for.

    Without `syncs` or `folder_syncs` it forgets to note those: a program that left them out.
    """

    def __init__(self, root: Path, *, syncs: bool = True, folder_syncs: bool = True) -> None:
        super().__init__(root)
        self.steps: list[Step] = []
        self._syncs, self._folder_syncs = syncs, folder_syncs
        self._inodes: dict[str, int] = {}
        self._open: dict[int, int] = {}
        self._numbers = itertools.count()

    def create(self, path: str) -> int:
        file = super().create(path)
        self._inodes[path] = self._open[file] = next(self._numbers)
        self.steps.append(Name(self._inodes[path], path))
        return file

    def allocate(self, file: int, size: int) -> None:
        super().allocate(file, size)
        self.steps.append(Data(self._open[file], 0, b"", size))

    def write(self, file: int, data: memoryview, offset: int) -> int:
        # Never more than a block, so that a torn write is a subset like any other.
        data = data[: BLOCK - offset % BLOCK]
        self.steps.append(Data(self._open[file], offset, bytes(data)))
        return super().write(file, data, offset)

    def sync(self, file: int) -> None:
        if self._syncs and file in self._open:
            self.steps.append(Sync(self._open[file]))

    def close(self, file: int) -> None:
        self._open.pop(file, None)
        super().close(file)

    def rename(self, old: str, new: str) -> None:
        super().rename(old, new)
        self._inodes[new] = self._inodes.pop(old)
        self.steps.append(Name(self._inodes[new], new, old))

    def unlink(self, path: str) -> None:
        super().unlink(path)
        self.steps.append(Name(self._inodes.pop(path), None, path))

    def sync_folder(self, folder: str) -> None:
        if self._folder_syncs:
            self.steps.append(SyncFolder(folder))


@dataclass
class Disk:
    """What is on the platters."""

    files: dict[int, bytearray] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)

    def apply(self, step: Step) -> None:
        if isinstance(step, Data):
            content = self.files.setdefault(step.inode, bytearray())
            end = max(step.length, step.offset + len(step.data))
            content.extend(bytes(max(0, end - len(content))))
            content[step.offset : step.offset + len(step.data)] = step.data
        elif isinstance(step, Name):
            if step.old is not None:
                self.names.pop(step.old, None)
            if step.new is not None:
                self.names[step.new] = step.inode

    def copy(self) -> Disk:
        return Disk({inode: bytearray(c) for inode, c in self.files.items()}, dict(self.names))

    def visible(self) -> tuple[tuple[str, bytes], ...]:
        """Path -> content of everything but scratch files."""
        return tuple(
            (path, bytes(self.files.get(inode, b"")))
            for path, inode in sorted(self.names.items())
            if not path.startswith("tmp/")
        )


State = tuple[tuple[str, bytes], ...]


def crashes(
    steps: list[Step], start: int = 0, samples: int | None = None
) -> Iterator[tuple[int, State]]:
    """(moment, what is left) for a crash before each step from `start` on and after the last.

    Every subset of what is pending, or so many random ones with `samples`; only then may more be
    pending than can be tried.
    """
    chosen = random.Random(0)
    disk = Disk()
    pending: list[Step] = []
    for moment in range(len(steps) + 1):
        assert samples is not None or len(pending) <= MOST_PENDING
        while len(pending) > MOST_PENDING:
            disk.apply(pending.pop(0))
        subsets = range(1 << len(pending))
        some = subsets if samples is None else chosen.choices(subsets, k=samples)
        for subset in some if moment >= start else ():
            left = disk.copy()
            for place, step in enumerate(pending):
                if subset >> place & 1:
                    left.apply(step)
            yield moment, left.visible()
        if moment < len(steps):
            pending = _after(disk, pending, steps[moment])


def _after(disk: Disk, pending: list[Step], step: Step) -> list[Step]:
    if not isinstance(step, (Sync, SyncFolder)):
        return [*pending, step]
    done = [earlier for earlier in pending if _reaches(step, earlier)]
    for earlier in done:
        disk.apply(earlier)
    # With a rename on the disk, whether its old name had been there before is no question any more.
    moved = {earlier.old for earlier in done if isinstance(earlier, Name)}
    left = [earlier for earlier in pending if not _reaches(step, earlier)]
    return [one for one in left if not (isinstance(one, Name) and one.new in moved)]


def _reaches(sync: Sync | SyncFolder, step: Step) -> bool:
    if isinstance(sync, Sync):
        return isinstance(step, Data) and step.inode == sync.inode
    path = step.new or step.old or "" if isinstance(step, Name) else None
    return path is not None and path.rpartition("/")[0] == sync.folder
