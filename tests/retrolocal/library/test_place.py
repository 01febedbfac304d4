"""The folder: made, recognised, refused when it must not be used; other formats are named."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest
import xxhash

from retrolocal.errors import DamagedError, LibraryError
from retrolocal.library import Library
from retrolocal.paths import library_dir


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert library_dir() == tmp_path / "retrolocal" / "library"
    monkeypatch.setenv("RETROLOCAL_LIBRARY", str(tmp_path / "mine"))
    assert library_dir() == tmp_path / "mine"
    assert Library().path == tmp_path / "mine"


def test_looking_makes_nothing(tmp_path: Path, sample: ModuleType) -> None:
    library = Library(tmp_path / "none")
    assert library.catalogue().manifests == ()
    assert library.find_file("a" * 64, "text 1", sample.IDENTITY) is None
    with library.longest_prefix(sample.IDENTITY, [1, 2]) as prefix:
        assert prefix.tokens == 0
    with pytest.raises(LibraryError, match="the library has no entry 'x'"):
        library.open("x")
    with pytest.raises(LibraryError, match=r"there is no library in .*none"):
        library.remove("x")
    assert library.collect().files == 0
    assert not (tmp_path / "none").exists()


def test_folders_above_are_made_private(tmp_path: Path, sample: ModuleType) -> None:
    root = tmp_path / "a" / "b"
    sample.Book().ingest(Library(root))
    assert (root / "CACHEDIR.TAG").read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886")
    for folder in (tmp_path / "a", root):
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701, 0o777])
def test_a_library_that_others_can_read_is_refused(
    library: Library, sample: ModuleType, mode: int
) -> None:
    sample.Book().ingest(library)
    library.path.chmod(mode)
    for use in (library.catalogue, lambda: sample.Book().ingest(library), library.collect):
        with pytest.raises(LibraryError, match=r"open to other users .*; run: chmod -R go= '"):
            use()
    library.path.chmod(0o700)
    library.open("book.txt").close()


def test_a_folder_above_that_all_can_write_to_is_refused(
    library: Library, sample: ModuleType
) -> None:
    sample.Book().ingest(library)
    library.path.parent.chmod(0o777)
    with pytest.raises(LibraryError, match="can be written by all users"):
        library.open("book.txt")
    library.path.parent.chmod(0o1777)
    library.open("book.txt").close()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, sample: ModuleType) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "thesis.tex").write_text("\\begin{document}")
    with pytest.raises(LibraryError, match="is not empty and not a retrolocal library"):
        sample.Book().ingest(Library(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]
    (tmp_path / "file").touch()
    with pytest.raises(LibraryError, match="is not a folder"):
        sample.Book().ingest(Library(tmp_path / "file"))


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777])
def test_a_folder_of_something_else_is_no_empty_library(
    tmp_path: Path, sample: ModuleType, mode: int
) -> None:
    library = Library(tmp_path)
    tmp_path.chmod(mode)
    (tmp_path / "thesis.tex").touch()
    (tmp_path / "tmp").mkdir()
    uses = (
        library.catalogue,
        library.collect,
        lambda: library.open("x"),
        lambda: library.remove("x"),
        lambda: library.verify("x"),
        lambda: library.longest_prefix(sample.IDENTITY, [1, 2]),
        lambda: sample.Book().ingest(library),
    )
    for use in uses:
        with pytest.raises(LibraryError, match="is not empty and not a retrolocal library; give"):
            use()
    (tmp_path / "FORMAT").write_text("EPUB 3\n")
    with pytest.raises(LibraryError, match="is not empty and not a retrolocal library"):
        library.catalogue()
    assert tmp_path.stat().st_mode & 0o7777 == mode


def test_an_empty_folder_that_others_can_read_is_not_to_be_changed(
    tmp_path: Path, sample: ModuleType
) -> None:
    library = Library(tmp_path)
    tmp_path.chmod(0o1777)
    for use in (library.catalogue, lambda: sample.Book().ingest(library)):
        with pytest.raises(LibraryError, match=r"open to other users .*; give .* a new folder"):
            use()


def test_a_folder_half_made_is_finished(tmp_path: Path, sample: ModuleType) -> None:
    root = tmp_path / "library"
    for folder in (root, root / "tmp", root / "entries"):
        folder.mkdir(mode=0o700)
    book = sample.Book()
    book.ingest(Library(root))
    with Library(root).open("book.txt") as entry:
        book.assert_is(entry)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("retrolocal library 2\n", r"newer retrolocal \(format 2; this one reads 1\); update"),
        ("retrolocal library 0\n", r"older retrolocal \(format 0; this one reads 1\); remove"),
        ("retrolocal librarx 1\n", "FORMAT is damaged; write `retrolocal library 1` into it"),
        ("", "FORMAT is damaged"),
    ],
)
def test_the_format_of_the_folder(
    library: Library, sample: ModuleType, line: str, message: str
) -> None:
    sample.Book().ingest(library)
    (library.path / "FORMAT").write_text(line)
    for use in (library.catalogue, lambda: sample.Book().ingest(library), library.collect):
        with pytest.raises(LibraryError, match=message):
            use()


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (2, r"was made by a newer retrolocal \(format 2; this one reads 1\); update retrolocal"),
        (0, r"was made by an older retrolocal \(format 0; this one reads 1\); remove it .* again"),
    ],
)
def test_the_format_of_an_entry(
    library: Library, sample: ModuleType, version: int, message: str
) -> None:
    sample.Book().ingest(library)
    [path] = (library.path / "entries").iterdir()
    body = path.read_bytes().partition(b"\n")[0]
    sealed = body + f"\nretrolocal-manifest {version} {len(body)} ".encode()
    path.write_bytes(sealed + xxhash.xxh3_128_hexdigest(sealed).encode() + b"\n")
    [problem] = library.catalogue().problems
    with pytest.raises(LibraryError, match=message):
        raise problem.error
    assert not isinstance(problem.error, DamagedError)
    assert library.collect().blocked == str(problem.error)


def test_links_are_not_followed(library: Library, sample: ModuleType, tmp_path: Path) -> None:
    book = sample.Book()
    book.ingest(library)
    for folder in ("segments", "tails", "objects"):
        path = next((library.path / folder).iterdir())
        moved = tmp_path / "moved"
        path.rename(moved)
        path.symlink_to(moved)
        problems = library.verify("book.txt").problems
        assert len(problems) == 1
        assert "cannot be opened" in problems[0]
        moved.replace(path)
    [manifest] = (library.path / "entries").iterdir()
    moved = manifest.rename(tmp_path / "moved")
    manifest.symlink_to(moved)
    assert [problem.unreadable for problem in library.catalogue().problems] == [True]
    manifest.unlink()
    moved.rename(manifest)
    (library.path / "segments").rename(tmp_path / "segments")
    (library.path / "segments").symlink_to(tmp_path / "segments")
    with pytest.raises(LibraryError):
        library.open("book.txt")


def test_a_link_to_the_library_itself_is_fine(
    library: Library, sample: ModuleType, tmp_path: Path
) -> None:
    book = sample.Book()
    book.ingest(library)
    (tmp_path / "link").symlink_to(library.path)
    with Library(tmp_path / "link").open("book.txt") as entry:
        book.assert_is(entry)


def test_pipes_and_devices_are_not_opened(library: Library, sample: ModuleType) -> None:
    sample.Book().ingest(library)
    path = next((library.path / "segments").iterdir())
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedError, match="no plain file"):
        library.open("book.txt")


def test_a_library_that_cannot_be_written_is_one_line(tmp_path: Path, sample: ModuleType) -> None:
    with pytest.raises(LibraryError, match=r"book.txt was not saved in /proc/nowhere"):
        sample.Book().ingest(Library(Path("/proc/nowhere")))
