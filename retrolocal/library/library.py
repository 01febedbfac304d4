"""The library as the rest of the program sees it: find, open, continue, write, remove, check.

Reading needs no lock that lasts; changing takes the writer's lock, so that there is one ingest at a
time. Every method reads the manifests anew, so that several programs may use one library.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ..errors import DamagedError, IdentityError, LibraryError, LockedError, UsageError
from ..paths import library_dir
from . import canonical
from .apart import apart, telling
from .canonical import Json
from .catalogue import (
    Catalogue,
    FileId,
    entry_key,
    open_manifest,
    read_catalogue,
    read_manifest,
    used_at,
    write_manifest,
)
from .chain import Prefix, known_segments, longest_chain, open_prefix
from .cleaning import Cleaned, clean, drop_scratch, remove_entry
from .documents import DocumentText, lost_of_corpus, store_document, text_of
from .entry import Entry
from .filesystem import DiskFileSystem, FileSystem
from .identity import Difference, Identity, TokenIds, differences, root_key
from .locks import Lock, lock_opening, lock_writer, try_lock, written_now
from .manifest import MAX_DOCUMENTS, Kind, Manifest, checked_name, name_like
from .place import check_place, make_place
from .reading import reading
from .room import require_space, saving
from .verification import Verified, sum_of, verify_entry
from .writer import Writer

AnyLock = TypeVar("AnyLock", bound=Lock)


class Library:
    """One library on disk; it need not exist before something is written."""

    def __init__(
        self,
        root: Path | None = None,
        *,
        filesystem: FileSystem | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """The library in the folder `root`; the user's own if None. `filesystem` and `now` are for
        tests."""
        self._fs = filesystem or DiskFileSystem(root or library_dir())
        self._now = now

    @property
    def path(self) -> Path:
        return self._fs.root

    @property
    def filesystem(self) -> FileSystem:
        return self._fs

    def catalogue(self) -> Catalogue:
        """What is in the library; raises LibraryError if it must not be used."""
        if not check_place(self._fs):
            return Catalogue((), ())
        with reading(str(self.path)):
            return read_catalogue(self._fs)

    def find(self, name: str) -> Manifest:
        """The manifest of the entry called `name`, or with this key (or 8 digits of it and more);
        of an interrupted ingest where there is no complete one.

        Raises LibraryError when there is none, or more than one.
        """
        catalogue = self.catalogue()
        found = catalogue.named(name)
        if not found:
            raise LibraryError(self._absent(catalogue, name))
        _one_key(name, found)
        return found[0]

    def open(self, name: str, wanted: Identity | None = None, kind: Kind | None = None) -> Entry:
        """The complete entry called `name`, or with this key (or 8 digits of it and more).

        With `kind`, only a document or only a corpus. With `wanted`, only one that was made so:
        among several of the name, the one that fits.
        Raises LibraryError when there is none, or more than one, and IdentityError with the fields
        that differ.
        """
        with self._opening():
            catalogue = self.catalogue()
            called = [
                manifest
                for manifest in catalogue.named(name)
                if manifest.state == "complete" and kind in (None, manifest.kind)
            ]
            if not called:
                raise LibraryError(self._absent(catalogue, name))
            fitting = [m for m in called if wanted is None or not differences(m.identity, wanted)]
            if not fitting:
                assert wanted is not None
                raise IdentityError(_other_identity(name, called[0], wanted))
            _one_key(name, fitting)
            return self._open(fitting[0])

    def find_file(self, digest: str, extractor: str, wanted: Identity) -> Entry | None:
        """The entry of this one file, made as `wanted`; None where it has not been read so.

        Raises DamagedError when there is one and it cannot be used.
        """
        return self.find_files([FileId(digest, extractor)], wanted)

    def find_files(self, files: Sequence[FileId], wanted: Identity) -> Entry | None:
        """The entry of exactly these files in this order; of several, the last one used."""
        with self._opening():
            found = [
                manifest
                for manifest in self.entries_of(files)
                if manifest.state == "complete" and not differences(manifest.identity, wanted)
            ]
            if not found:
                return None
            return self._open(max(found, key=lambda m: (self.used_at(m), m.key)))

    def mismatches(
        self, files: Sequence[FileId], wanted: Identity
    ) -> tuple[tuple[Difference, ...], ...]:
        """For each complete entry of these files, in which fields it is not what is wanted."""
        return tuple(
            differences(manifest.identity, wanted)
            for manifest in self.entries_of(files)
            if manifest.state == "complete"
        )

    def entries_of(self, files: Sequence[FileId]) -> list[Manifest]:
        """The documents of exactly these files in this order, for whatever model."""
        return [
            manifest
            for manifest in self.catalogue().current
            if manifest.kind == "document"
            and [FileId(d.digest, d.extractor) for d in manifest.documents] == list(files)
        ]

    def find_text(self, digest: str, extractor: str) -> DocumentText | None:
        """The text of a file that was extracted before, for whatever model; also of an interrupted
        ingest. None where there is none, or none undamaged."""
        for manifest in self.catalogue().manifests:
            for document in manifest.documents:
                if (document.digest, document.extractor) == (digest, extractor):
                    with contextlib.suppress(DamagedError):
                        return text_of(self._fs, document)
        return None

    def corpus_texts(self, name: str) -> list[DocumentText]:
        """The texts of the complete corpus `name`, whatever became of what was read of them.

        Raises LibraryError when there is none, or more than one, DamagedError for a text.
        """
        with self._opening():
            catalogue = self.catalogue()
            found = [
                manifest
                for manifest in catalogue.named(name)
                if (manifest.kind, manifest.state) == ("corpus", "complete")
            ]
            if not found:
                raise LibraryError(self._absent(catalogue, name))
            _one_key(name, found)
            try:
                return [text_of(self._fs, document) for document in found[0].documents]
            except DamagedError as error:
                raise lost_of_corpus(found[0].name, error) from error

    def longest_prefix(self, identity: Identity, token_ids: TokenIds) -> Prefix:
        """The longest run of stored segments that `token_ids` begins with.

        From any entry made with `identity`, complete or interrupted. The last segment is checked in
        full, the headers of all; what is damaged ends the run and is named in `Prefix.damage`.
        Raises ValueError unless `identity` is settled.
        """
        root = root_key(identity)
        with self._opening():
            known = known_segments(self.catalogue().all_readable(), root)
            return open_prefix(self._fs, identity, longest_chain(known, root, token_ids))

    def write(
        self,
        identity: Identity,
        documents: Sequence[DocumentText],
        *,
        corpus: str | None = None,
        prefix: Prefix | None = None,
        expected_bytes: int = 0,
        facts: Mapping[str, Json] = {},
    ) -> Writer:
        """Begins an entry of these documents: a corpus of that name, or else a document.

        The entry begins with the segments of `prefix`; `expected_bytes` are what is still to be
        written, and are asked for before anything is done. Texts are stored at once; `facts` are
        kept with the entry. Raises LockedError while another process writes, SpaceError,
        LibraryError, UsageError for a corpus that cannot be called so, and ValueError for what has
        no place in a library.
        """
        if not 0 < len(documents) <= MAX_DOCUMENTS:
            raise ValueError(f"an entry has 1 to {MAX_DOCUMENTS:,} documents, not {len(documents)}")
        if prefix is not None and prefix.identity != identity:
            raise ValueError("the prefix was made with another identity")
        name = name_like(documents[0].name) if corpus is None else require_corpus_name(corpus)
        files = [FileId(document.digest, document.extractor) for document in documents]
        kind: Kind = "document" if corpus is None else "corpus"
        with saving(self._fs, name):
            make_place(self._fs)
            require_space(self._fs, expected_bytes, name)
        lock = self._locked(lambda: lock_writer(self.path))
        try:
            with saving(self._fs, name):
                drop_scratch(self._fs)
                stored = tuple(store_document(self._fs, document) for document in documents)
            manifest = Manifest(
                key=entry_key(kind, name, files, identity),
                kind=kind,
                name=name,
                state="running",
                created=int(self._now()),
                identity=identity,
                documents=stored,
                segments=() if prefix is None else tuple(s.file for s in prefix.segments),
                facts=canonical.plain(facts),
            )
            catalogue = self.catalogue().all_readable()
            with saving(self._fs, name):
                lock.writes(manifest.key)
            writer = Writer(self._fs, lock, manifest, catalogue)
            writer.begin()
        except BaseException:
            lock.close()
            raise
        return writer

    def rename(self, key: str, names: Sequence[str]) -> None:
        """Calls the documents of a complete entry so, and a document itself like its first one.

        Raises LockedError while it is open, or another process writes, and LibraryError.
        """
        with self._changing(), contextlib.ExitStack() as stack:
            with reading(key):
                file = open_manifest(self._fs, key, "complete")
                stack.callback(self._fs.close, file)
                if not try_lock(file, shared=False):
                    raise LockedError(f"{key[:12]} is open in a chat; it keeps its name")
                manifest = read_manifest(self._fs, file, key, "complete")
            documents = tuple(
                replace(document, name=name_like(name))
                for document, name in zip(manifest.documents, names, strict=True)
            )
            called = manifest.name if manifest.kind == "corpus" else documents[0].name
            write_manifest(self._fs, replace(manifest, name=called, documents=documents))

    def remove(self, name: str) -> Cleaned:
        """Removes the entry called `name` (or of that key), and what only it needed.

        Raises LibraryError when there is none or more than one, LockedError while it is open.
        """
        with self._changing():
            catalogue = self.catalogue()
            found = catalogue.named(name)
            broken = {
                p.key for p in catalogue.problems if len(name) >= 8 and p.key.startswith(name)
            }
            if not found and not broken:
                raise LibraryError(self._absent(catalogue, name))
            remove_entry(self._fs, _one_key(name, found, broken))
            return clean(self._fs, self.catalogue())

    def collect(self) -> Cleaned:
        """Removes every file that no manifest needs, except what is open."""
        if not check_place(self._fs):
            return Cleaned()
        with self._changing():
            return clean(self._fs, self.catalogue())

    def verify(self, name: str, *, deep: bool = False) -> Verified:
        """Checks the entries called `name`: manifest, headers, texts; with `deep` every byte and
        every key. Raises LibraryError when there is none."""
        catalogue = self.catalogue()
        found = catalogue.named(name)
        broken = [p for p in catalogue.problems if len(name) >= 8 and p.key.startswith(name)]
        if not found and not broken:
            raise LibraryError(self._absent(catalogue, name))
        checked = [verify_entry(self._fs, manifest, deep=deep) for manifest in found]
        unreadable = [Verified(0, 0, (str(problem.error),)) for problem in broken]
        return sum_of((*checked, *unreadable))

    def used_at(self, manifest: Manifest) -> int:
        """When an entry was written or last opened, in seconds since 1970."""
        return used_at(self._fs, manifest)

    def written_now(self) -> str | None:
        """Key of the entry that some process is writing, if there is one; raises LibraryError."""
        with reading(str(self.path)):
            return written_now(self.path)

    def _open(self, manifest: Manifest) -> Entry:
        # Read again: a writer may have put another version in its place.
        with reading(manifest.name), contextlib.ExitStack() as stack:
            file = open_manifest(self._fs, manifest.key, "complete")
            stack.callback(self._fs.close, file)
            try_lock(file, shared=True)
            manifest = read_manifest(self._fs, file, manifest.key, "complete")
            with contextlib.suppress(OSError):
                os.utime(file)
            stack.pop_all()
        return Entry(self._fs, manifest, file)

    @contextlib.contextmanager
    def _opening(self) -> Iterator[None]:
        """While files are found and opened, none may be removed."""
        if not check_place(self._fs):
            yield
            return
        with self._locked(lambda: lock_opening(self.path, shared=True)):
            yield

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        if not check_place(self._fs):
            raise LibraryError(f"there is no library in {self.path}; nothing has been ingested yet")
        with (
            self._locked(lambda: lock_writer(self.path)),
            self._locked(lambda: lock_opening(self.path, shared=False)),
            saving(self._fs, "the change"),
        ):
            yield

    def _locked(self, lock: Callable[[], AnyLock]) -> AnyLock:
        try:
            return lock()
        except OSError as error:
            raise LibraryError(f"{self.path} cannot be locked ({error.strerror})") from error

    def _absent(self, catalogue: Catalogue, name: str) -> str:
        for manifest in catalogue.named(name):
            if manifest.state == "running":
                return (
                    f"{name!r} is not finished ({manifest.tokens:,} tokens are saved); ingest it "
                    "again to continue"
                )
        if catalogue.problems:
            return f"{name!r} {_perhaps({problem.key for problem in catalogue.problems})}"
        return f"the library has no entry {name!r}; see retrolocal library list"


def require_corpus_name(name: str) -> str:
    """The name, if a corpus can be called so; raises UsageError."""
    try:
        return checked_name(name)
    except ValueError as error:
        raise UsageError(f"--corpus is {name!r:.80}; {error}") from error


def _perhaps(keys: Set[str]) -> str:
    """What is said of a name that no readable entry has, where these cannot be read."""
    which = f"one of {len(keys)} entries that cannot be read"
    if len(keys) == 1:
        which = f"an entry that cannot be read, {min(keys)[:12]}"
    return (
        f"is the name of no entry that can be read; it may be {which}: retrolocal library list "
        "says what is wrong"
    )


def _one_key(name: str, found: Sequence[Manifest], broken: Set[str] = frozenset()) -> str:
    """The key of what was found; raises LibraryError that tells several apart."""
    entries = {manifest.key: manifest for manifest in found}
    keys = sorted(entries.keys() | broken)
    if len(keys) == 1:
        return keys[0]
    words = dict(zip(entries, apart(list(entries.values())), strict=True))
    listed = "; ".join(f"{key[:12]} ({words.get(key) or 'damaged'})" for key in keys)
    raise LibraryError(
        f"the library has {len(keys)} entries called {name!r}; give the key of one: {listed}"
    )


def _other_identity(name: str, saved: Manifest, wanted: Identity) -> str:
    found, reader = telling(differences(saved.identity, wanted)), "other settings"
    if saved.model and any(one.of_models for one in found):
        reader = f"another model, -m {shlex.quote(saved.model)}"
    fields = ", ".join(map(str, found))
    return (
        f"{name!r} was read with {reader}: {fields}; go back to those, or ingest its files "
        "with the new ones under another --corpus name, or under this one after: retrolocal "
        f"library rm {shlex.quote(name)}"
    )
