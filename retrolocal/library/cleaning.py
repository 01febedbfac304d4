"""Removes what nothing needs: unreachable files, scratch files, running manifests left behind.

Called by whoever holds the writer's lock and the opening lock, so that nothing is being written and
nobody is between a manifest and its files. A file that is open somewhere is left for later.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import LibraryError, LockedError
from .catalogue import Catalogue, manifest_path, read_catalogue
from .filesystem import FileSystem
from .locks import OBJECTS, lock_objects, lock_opening, try_lock
from .manifest import State
from .objects import object_path
from .place import ENTRIES
from .publish import TMP
from .segment import FOLDERS, SUFFIX, path_of

_SCRATCH = re.compile(r"\d+-[0-9a-f]{16}")
_STATES: tuple[State, ...] = ("complete", "running")


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What a cleaning did."""

    files: int = 0
    bytes: int = 0
    in_use: int = 0
    """Files that nothing needs but that are open in a running program."""
    blocked: str = ""
    """Why nothing was removed: a manifest that cannot be read may need anything."""


def clean(fs: FileSystem, catalogue: Catalogue) -> Cleaned:
    """Removes every file of ours that no manifest needs; raises OSError."""
    if catalogue.problems:
        return Cleaned(blocked=str(catalogue.problems[0].error))
    cleaning = _Cleaning(fs)
    for manifest in catalogue.manifests:
        if catalogue.is_superseded(manifest):
            cleaning.remove(manifest_path(manifest.key, "running"))
    needed = {object_path(blob.name) for m in catalogue.manifests for blob in m.blobs}
    for manifest in catalogue.manifests:
        needed |= {path_of("segment", file.key) for file in manifest.segments}
        if manifest.tail is not None:
            needed.add(path_of("tail", manifest.tail.key))
    ours = {
        **dict.fromkeys(FOLDERS.values(), re.compile("[0-9a-f]{64}" + re.escape(SUFFIX))),
        OBJECTS: re.compile("[0-9a-f]{64}"),
        TMP: _SCRATCH,
    }
    for folder, pattern in ours.items():
        paths = [f"{folder}/{name}" for name in fs.names(folder) if pattern.fullmatch(name)]
        unneeded = [path for path in paths if path not in needed]
        if folder == OBJECTS and unneeded:
            cleaning.remove_objects(unneeded)
            continue
        for path in unneeded:
            cleaning.remove(path)
    return Cleaned(cleaning.files, cleaning.bytes, cleaning.in_use)


def clean_if_idle(fs: FileSystem) -> None:
    """`clean`, for whoever holds the writer's lock, unless somebody opens an entry just now.

    What it cannot remove stays for the next cleaning.
    """
    with (
        contextlib.suppress(LibraryError, OSError),
        lock_opening(fs.root, shared=False, seconds=0),
    ):
        clean(fs, read_catalogue(fs))


def drop_scratch(fs: FileSystem) -> None:
    """Removes what a killed writer left half-written; raises OSError."""
    for name in fs.names(TMP):
        if _SCRATCH.fullmatch(name):
            fs.unlink(f"{TMP}/{name}")


def remove_entry(fs: FileSystem, key: str) -> None:
    """Removes the manifests of an entry; raises LockedError while it is open, OSError."""
    paths = [manifest_path(key, state) for state in _STATES]
    for path in paths:
        if not _unused(fs, path):
            raise LockedError(
                f"{fs.root / path} is open in another program; close that chat, then repeat"
            )
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            fs.unlink(path)
    fs.sync_folder(ENTRIES)


class _Cleaning:
    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs
        self.files = self.bytes = self.in_use = 0

    def remove(self, path: str) -> None:
        size = 0

        def measure(file: int) -> None:
            nonlocal size
            size = os.fstat(file).st_size

        if not _unused(self.fs, path, measure):
            self.in_use += 1
            return
        self.fs.unlink(path)
        self.files += 1
        self.bytes += size

    def remove_objects(self, paths: Sequence[str]) -> None:
        """All of them or, while an entry is open, none."""
        lock = lock_objects(self.fs.root, shared=False)
        if lock is None:
            self.in_use += len(paths)
            return
        with lock:
            for path in paths:
                self.remove(path)


def _unused(fs: FileSystem, path: str, look: Callable[[int], None] = lambda file: None) -> bool:
    """Whether nobody has a file open; also true of what is no file of ours, such as a link."""
    try:
        file = fs.open(path)
    except OSError:
        return True
    try:
        look(file)
        return try_lock(file, shared=False)
    finally:
        fs.close(file)
