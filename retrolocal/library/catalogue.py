"""All manifests of a library: read, written, found by name; what cannot be read is said.

An entry has up to two manifests: `<key>.json`, complete, and `<key>.running.json` while an ingest
is at work on it or was interrupted. The complete one stays until the next complete one takes its
place.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..errors import DamagedError, LibraryError
from . import canonical
from .filesystem import FileSystem
from .identity import Identity, root_key
from .manifest import MAX_MANIFEST_BYTES, Kind, Manifest, State, TensorFile, decode, encode, remedy
from .place import ENTRIES
from .publish import publish_bytes

_NAME = re.compile(r"([0-9a-f]{32})(\.running)?\.json")


@dataclass(frozen=True, slots=True)
class FileId:
    """A file as the library is asked for it."""

    digest: str
    """BLAKE2b-256 of its bytes, 64 hexadecimal digits."""
    extractor: str
    """Name, version and options of what makes text of it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A manifest that cannot be read."""

    key: str
    error: LibraryError
    unreadable: bool = False
    """The disk or its permissions are at fault, not the content, which may be whole."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    manifests: tuple[Manifest, ...]
    """Complete ones before running ones, each in the order of their keys."""
    problems: tuple[Problem, ...]

    @property
    def current(self) -> tuple[Manifest, ...]:
        """All but running ones that a complete one has overtaken."""
        return tuple(m for m in self.manifests if not self.is_superseded(m))

    def is_superseded(self, manifest: Manifest) -> bool:
        """Whether a running manifest only was not removed after its entry became complete."""
        return any(
            other.state == "complete" and manifest.precedes(replace(other, state="running"))
            for other in self.manifests
        )

    def all_readable(self) -> Catalogue:
        """Itself; raises LibraryError when a manifest that may be whole could not be read."""
        for problem in self.problems:
            if problem.unreadable:
                raise problem.error
        return self

    def named(self, name: str) -> list[Manifest]:
        """Those called `name`, or whose key begins with it (8 digits at least)."""
        called = [manifest for manifest in self.current if manifest.name == name]
        if called or not re.fullmatch("[0-9a-f]{8,32}", name):
            return called
        return [manifest for manifest in self.current if manifest.key.startswith(name)]

    def tensor_files(self) -> dict[str, list[TensorFile]]:
        """Key -> the segments and tails that manifests know under it: one, unless made anew."""
        known: defaultdict[str, list[TensorFile]] = defaultdict(list)
        for manifest in self.manifests:
            for file in manifest.tensor_files:
                if file not in known[file.key]:
                    known[file.key].append(file)
        return dict(known)


def entry_key(kind: Kind, name: str, files: Sequence[FileId], identity: Identity) -> str:
    """A corpus is its name; a document is its files and what they were read with."""
    what: list[canonical.Json] = (
        [kind, name]
        if kind == "corpus"
        else [kind, root_key(identity), [[file.digest, file.extractor] for file in files]]
    )
    return hashlib.blake2b(
        canonical.encode(what), digest_size=16, person=b"retrolocal entry"
    ).hexdigest()


def manifest_path(key: str, state: State) -> str:
    return f"{ENTRIES}/{key}{'.running' if state == 'running' else ''}.json"


def read_catalogue(fs: FileSystem) -> Catalogue:
    """All manifests; one that was removed meanwhile is left out."""
    manifests: list[Manifest] = []
    problems: list[Problem] = []
    for file_name in fs.names(ENTRIES):
        known = _NAME.fullmatch(file_name)
        if known is None:
            continue
        state: State = "running" if known[2] else "complete"
        try:
            file = open_manifest(fs, known[1], state)
        except FileNotFoundError:
            continue
        except OSError as error:
            label = fs.root / manifest_path(known[1], state)
            reason = LibraryError(f"{label} cannot be opened ({error.strerror or error})")
            problems.append(Problem(known[1], reason, unreadable=True))
            continue
        try:
            manifests.append(read_manifest(fs, file, known[1], state))
        except LibraryError as error:
            problems.append(Problem(known[1], error))
        except OSError as error:
            label = fs.root / manifest_path(known[1], state)
            reason = LibraryError(f"{label} cannot be read ({error.strerror or error})")
            problems.append(Problem(known[1], reason, unreadable=True))
        finally:
            fs.close(file)
    manifests.sort(key=lambda manifest: (manifest.state, manifest.key))
    return Catalogue(tuple(manifests), tuple(problems))


def open_manifest(fs: FileSystem, key: str, state: State) -> int:
    """A descriptor; raises OSError."""
    return fs.open(manifest_path(key, state))


def read_manifest(fs: FileSystem, file: int, key: str, state: State) -> Manifest:
    """The manifest in an open file; raises LibraryError, OSError."""
    label = str(fs.root / manifest_path(key, state))
    size = os.fstat(file).st_size
    if size > MAX_MANIFEST_BYTES:
        raise DamagedError(f"{label} is damaged ({size:,} bytes are too many); {remedy(label)}")
    manifest = decode(os.pread(file, size + 1, 0), label)
    files = [FileId(document.digest, document.extractor) for document in manifest.documents]
    key_of = entry_key(manifest.kind, manifest.name, files, manifest.identity)
    if (manifest.key, manifest.state, key_of) != (key, state, key):
        raise DamagedError(f"{label} is damaged (it belongs to another entry); {remedy(label)}")
    return manifest


def write_manifest(fs: FileSystem, manifest: Manifest) -> None:
    """Puts it in the place of the one before; raises OSError."""
    publish_bytes(fs, manifest_path(manifest.key, manifest.state), encode(manifest))


def used_at(fs: FileSystem, manifest: Manifest) -> int:
    """When it was written or last opened, in seconds since 1970."""
    try:
        return int((fs.root / manifest_path(manifest.key, manifest.state)).lstat().st_mtime)
    except OSError:
        return manifest.created
