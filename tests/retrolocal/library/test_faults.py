"""The n-th system call fails, for n = 1, 2, ... until none fails: nothing lost, one clear line."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from retrolocal.errors import LibraryError, LockedError, SpaceError
from retrolocal.library import Library
from retrolocal.library.locks import lock_opening, lock_writer
from retrolocal.library.place import make_place

READING = ["new document", "interrupted one", "corpus that grows"]
LASTING = [
    (what, error, lasting)
    for what in (*READING, "rm", "gc")
    for error in ("ENOSPC", "EIO")
    for lasting in (False, True)
]
SHORT = [(what, "short", False) for what in READING]


@pytest.mark.parametrize(("what", "error", "lasting"), LASTING + SHORT)
def test_whichever_call_fails_nothing_is_lost(
    tmp_path: Path, sample: ModuleType, what: str, error: str, lasting: bool
) -> None:
    before, book = prepared(tmp_path / "before", sample, what)
    reference = Library(tmp_path / "reference", now=lambda: 0)
    shutil.copytree(before, reference.path)
    done(reference, book, what, sample, [])
    reference.collect()
    complete = sample.content(reference.path)
    failures = 0
    for number in range(1, 10_000):
        root = tmp_path / "work"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(before, root)
        fs = sample.Faulty(root, number, sample.ERRORS[error], lasting=lasting)
        saved: list[int] = [0]
        message = ""
        try:
            done(Library(root, filesystem=fs, now=lambda: 0), book, what, sample, saved)
        except LibraryError as failure:
            message = str(failure)
        if not fs.failures:
            assert message == ""
            break
        assert "\n" not in message
        assert message == "" or str(root) in message or "cannot be read" in message
        failures += 1
        library = Library(root, filesystem=sample.Hasty(root), now=lambda: 0)
        assert_nothing_lost(library, book, saved[-1], what, sample)
        done(library, book, what, sample, [], again=True)
        library.collect()
        assert sample.content(root) == complete, f"after call {number} failed"
    assert failures > 5
    assert sample.content(root).keys() >= complete.keys()


def prepared(root: Path, sample: ModuleType, what: str) -> tuple[Path, Any]:
    """A library as it is before the call that fails, and the book that is read or removed."""
    library = Library(root, filesystem=sample.Hasty(root), now=lambda: 0)
    sample.Book(name="other.txt", segments=0).ingest(library)
    book = sample.Book(segments=1 if what == "new document" else 2)
    if what == "interrupted one":
        book.ingest(library, until=1)
    elif what == "corpus that grows":
        book = sample.Book(segments=1, corpus="shelf")
        book.ingest(library)
        return root, book.longer(1)
    elif what == "rm":
        book.ingest(library)
    elif what == "gc":
        (root / "segments" / ("f" * 64 + ".safetensors")).write_bytes(b"left over")
        (root / "tmp" / "1-0123456789abcdef").touch()
    return root, book


def done(
    library: Library,
    book: Any,
    what: str,
    sample: ModuleType,
    saved: list[int],
    again: bool = False,
) -> None:
    if what == "gc":
        library.collect()
    elif what == "rm":
        if not again or library.catalogue().named(book.name):
            library.remove(book.name)
    else:
        book.ingest(library, saved=saved.append)


def assert_nothing_lost(
    library: Library, book: Any, saved_tokens: int, what: str, sample: ModuleType
) -> None:
    catalogue = library.catalogue()
    assert catalogue.problems == ()
    for manifest in catalogue.manifests:
        assert library.verify(manifest.key, deep=True).problems == ()
    with library.open("other.txt") as entry:
        sample.Book(name="other.txt", segments=0).assert_is(entry)
    if what in ("rm", "gc"):
        return
    with library.longest_prefix(sample.IDENTITY, book.ids) as prefix:
        assert prefix.tokens >= saved_tokens // book.size * book.size
    if saved_tokens == len(book.ids):
        with sample.find(library, book) as entry:
            book.assert_is(entry)
    elif what == "corpus that grows":
        with library.open("shelf") as entry:
            assert entry.tokens in (len(book.ids), len(book.ids) - book.size)


def test_a_failed_sync_is_not_tried_again(tmp_path: Path, sample: ModuleType) -> None:
    root = tmp_path / "library"

    class Broken(sample.Hasty):  # type: ignore[misc, name-defined]
        broken = False
        synced = 0

        def sync(self, file: int) -> None:
            self.synced += self.broken
            if self.broken:
                raise OSError(5, "Input/output error")

    fs = Broken(root)
    book = sample.Book()
    with Library(root, filesystem=fs).write(sample.IDENTITY, book.texts) as writer:
        fs.broken = True
        with pytest.raises(LibraryError, match=r"was not saved in .*Input/output error"):
            writer.append_segment(book.piece(0), book.tensors(0))
        with pytest.raises(LibraryError, match="after an error"):
            writer.finish([], {})
    assert fs.synced == 1
    assert list((root / "tmp").iterdir()) == []


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own calls take no byte and make no file."""
    opened = os.open

    def only_open(path: Any, flags: int, *more: Any, **named: Any) -> int:
        return opened(path, flags & ~os.O_CREAT, *more, **named)

    def made(path: Any, flags: int, *more: Any, **named: Any) -> int:
        try:
            return only_open(path, flags, *more, **named)
        except FileNotFoundError:
            if flags & os.O_CREAT:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
            raise

    def refused(*given: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "open", made)
    monkeypatch.setattr(os, "pwrite", refused)


@pytest.mark.parametrize("opening", ["there", "missing"])
@pytest.mark.parametrize("what", ["rm", "gc"])
def test_a_full_disk_can_be_cleared(
    root: Path, sample: ModuleType, what: str, opening: str, request: pytest.FixtureRequest
) -> None:
    _, book = prepared(root, sample, what)
    if opening == "missing":
        (root / "opening").unlink()
    request.getfixturevalue("full_disk")
    library = Library(root, filesystem=sample.Full(root), now=lambda: 0)
    with library.open("other.txt"), pytest.raises(LockedError, match="open in another program"):
        library.remove("other.txt")
    with pytest.raises(SpaceError, match="is full"):
        library.write(sample.IDENTITY, sample.Book(name="new.txt").texts)
    cleaned = library.collect() if what == "gc" else library.remove(book.name)
    assert (cleaned.files > 0, cleaned.blocked) == (True, "")
    assert [manifest.name for manifest in library.catalogue().manifests][:1] == ["other.txt"]
    assert library.verify("other.txt", deep=True).problems == ()


def test_every_process_locks_the_same_file_on_a_full_disk(
    root: Path, sample: ModuleType, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(root, sample, "rm")
    (root / "opening").unlink()
    request.getfixturevalue("full_disk")
    with lock_opening(root, shared=False), pytest.raises(LockedError, match="cleans up"):
        lock_opening(root, shared=True, seconds=0)
    monkeypatch.undo()
    with lock_opening(root, shared=True), pytest.raises(LockedError, match="is opening"):
        lock_opening(root, shared=False, seconds=0)
    with lock_writer(root), pytest.raises(LockedError, match="another ingest"):
        lock_writer(root)
    assert (root / "FORMAT").read_text() == "retrolocal library 1\n"


def test_both_lock_files_come_with_the_library(root: Path, sample: ModuleType) -> None:
    make_place(sample.Hasty(root))
    assert {"writer", "opening"} <= {path.name for path in root.iterdir()}
