"""A byte that changes, a file that ends early: found, named in one line, never used."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import xxhash

from retrolocal.errors import DamagedError, LibraryError
from retrolocal.library import Library
from retrolocal.library.manifest import decode
from retrolocal.library.segment import FOLDERS, open_segment
from retrolocal.library.verification import verify_entry


@pytest.fixture
def stored(library: Library, sample: ModuleType) -> Library:
    sample.Book(segments=2, bytes_per_token=60_000).ingest(library)
    return library


def entry_files(library: Library) -> dict[str, list[Path]]:
    """Kind -> the files of the one entry."""
    return {
        folder: sorted((library.path / folder).iterdir())
        for folder in ("entries", "objects", *FOLDERS.values())
    }


def header_length(path: Path) -> int:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
    return 8 + int(length)


@contextlib.contextmanager
def flipped(path: Path, offset: int, mask: int) -> Iterator[None]:
    """Changes one byte for a while."""
    with path.open("r+b") as file:
        file.seek(offset)
        [byte] = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ mask]))
        file.flush()
        yield
        file.seek(offset)
        file.write(bytes([byte]))


def opens(library: Library) -> bool:
    """Whether the entry can be opened."""
    try:
        library.open("book.txt").close()
    except LibraryError:
        return False
    return True


def test_every_byte_of_a_manifest(stored: Library) -> None:
    [path] = entry_files(stored)["entries"]
    data = path.read_bytes()
    decode(data, "it")
    for offset in range(len(data)):
        for mask in (1, 0x20, 0x80):
            changed = bytearray(data)
            changed[offset] ^= mask
            with pytest.raises(LibraryError, match="it is damaged"):
                decode(bytes(changed), "it")
    with flipped(path, len(data) // 2, 1):
        assert not opens(stored)
        [problem] = stored.catalogue().problems
        assert str(path) in str(problem.error)


def test_every_length_of_a_manifest(stored: Library) -> None:
    [path] = entry_files(stored)["entries"]
    data = path.read_bytes()
    for length in range(len(data)):
        with pytest.raises(LibraryError, match="damaged"):
            decode(data[:length], "it")
    for more in (b"\n", b"x", data):
        with pytest.raises(LibraryError, match="damaged"):
            decode(data + more, "it")


@pytest.mark.parametrize("folder", FOLDERS.values())
def test_every_byte_of_a_header(stored: Library, folder: str) -> None:
    manifest = stored.find("book.txt")
    kinds = {"segments": ("segment", manifest.segments[0], manifest.root)}
    kinds["tails"] = ("tail", manifest.tail, manifest.segments[-1].key)
    kind, file, parent = kinds[folder]
    path = stored.path / folder / f"{file.key}.safetensors"
    open_segment(stored.filesystem, kind, file, parent).close()
    for offset in range(header_length(path)):
        with (
            flipped(path, offset, 1 << offset % 8),
            pytest.raises(DamagedError, match=str(path)),
        ):
            open_segment(stored.filesystem, kind, file, parent)
    with flipped(path, 100, 1):
        assert not opens(stored)
    assert opens(stored)


def test_a_thousand_random_bytes_of_data(stored: Library) -> None:
    chosen = random.Random(0)
    files = [
        p for folder, paths in entry_files(stored).items() if folder != "entries" for p in paths
    ]
    sizes = [path.stat().st_size for path in files]
    for _ in range(1000):
        [path] = chosen.choices(files, weights=sizes)
        offset = chosen.randrange(path.stat().st_size)
        with flipped(path, offset, chosen.randrange(1, 256)):
            problems = stored.verify("book.txt", deep=True).problems
            assert len(problems) == 1, (path, offset)
            assert str(path) in problems[0]
    assert stored.verify("book.txt", deep=True).problems == ()


def test_every_byte_of_texts_and_page_map(stored: Library) -> None:
    for path in entry_files(stored)["objects"]:
        for offset in range(path.stat().st_size):
            with flipped(path, offset, 1 << offset % 8):
                [problem] = stored.verify("book.txt").problems
                assert str(path) in problem


def test_every_file_cut_at_every_edge(stored: Library, sample: ModuleType) -> None:
    with stored.open("book.txt") as entry:
        tensors = entry.segments()[0]
        edges = {0, 8, *range(0, tensors.file.bytes, 1 << 20), tensors.file.bytes}
        header = tensors._header
        start = tensors.file.bytes - header.data_bytes
        edges |= {start + spec.start for spec in header.tensors}
        edges |= {start + spec.start + spec.bytes for spec in header.tensors}
    path = stored.path / "segments" / f"{tensors.key}.safetensors"
    cut_at(stored, path, {edge + more for edge in edges for more in (-1, 0, 1)})
    for folder in ("tails", "objects"):
        for path in entry_files(stored)[folder]:
            size = path.stat().st_size
            cut_at(stored, path, {0, 1, size // 2, size - 1, size + 1})


def cut_at(library: Library, path: Path, lengths: set[int]) -> None:
    data = path.read_bytes()
    for length in sorted(lengths):
        if length < 0 or length == len(data):
            continue
        path.write_bytes(data[:length] + bytes(max(0, length - len(data))))
        [problem] = set(library.verify("book.txt").problems)
        assert str(path) in problem
    path.write_bytes(data)
    assert library.verify("book.txt").problems == ()


def test_damage_is_found_where_it_is_touched(stored: Library) -> None:
    with stored.open("book.txt") as entry:
        first = entry.segments()[0]
        spec = first._specs["layers.0.kv"]
        offset = first._data_start + spec.start + (1 << 20) + 5
    path = stored.path / "segments" / f"{first.key}.safetensors"
    with flipped(path, offset, 4), stored.open("book.txt") as entry:
        segment = entry.segments()[0]
        segment.check("layers.0.kv", 0, 1 << 19)
        segment.check("layers.0.centroids")
        with pytest.raises(DamagedError, match=rf"{path} is damaged between byte [\d,]+ and"):
            segment.check("layers.0.kv", 1 << 20, (1 << 20) + 10)
        with pytest.raises(DamagedError):
            segment.load("layers.0.kv")
        with pytest.raises(ValueError, match="are not within"):
            segment.check("layers.0.kv", 0, spec.bytes + 1)
        entry.segments()[1].check()


def test_files_put_in_each_others_place(stored: Library) -> None:
    one, two = entry_files(stored)["segments"]
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    assert not opens(stored)
    one.write_bytes(data)
    assert opens(stored)


def test_a_damaged_entry_can_be_removed_but_blocks_cleaning(
    stored: Library, sample: ModuleType
) -> None:
    other = sample.Book(name="other.txt", segments=1, bytes_per_token=60_000)
    other.ingest(stored)
    key = stored.find("book.txt").key
    path = stored.path / "entries" / f"{key}.json"
    path.write_bytes(path.read_bytes()[:-1])
    assert "is damaged" in stored.collect().blocked
    with pytest.raises(LibraryError, match=f"an entry that cannot be read, {key[:12]}"):
        stored.open("book.txt")
    assert stored.verify(key[:10]).problems[0].startswith(str(path))
    assert stored.remove(key).files > 0
    with stored.open("other.txt") as entry:
        other.assert_is(entry)


def test_a_disk_that_cannot_be_read_is_a_line(
    stored: Library, sample: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(file: int, size: int, offset: int) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("os.pread", broken)
        problems = stored.catalogue().problems
        assert [problem.unreadable for problem in problems] == [True]
        with pytest.raises(LibraryError, match=r"cannot be read \(Input/output error\)"):
            stored.longest_prefix(sample.IDENTITY, [1])
    manifest = stored.find("book.txt")
    monkeypatch.setattr("os.pread", broken)
    problems_of_files = verify_entry(stored.filesystem, manifest, deep=True).problems
    assert len(problems_of_files) == len(manifest.tensor_files)
    assert all("(Input/output error)" in problem for problem in problems_of_files)


def test_a_manifest_under_another_name_is_refused(stored: Library) -> None:
    [path] = entry_files(stored)["entries"]
    for name in ("0" * 32 + ".json", f"{path.stem}.running.json"):
        other = path.with_name(name)
        other.write_bytes(path.read_bytes())
        [problem] = stored.catalogue().problems
        with pytest.raises(DamagedError, match=rf"{other} .*belongs to another entry"):
            raise problem.error
        other.unlink()


def test_a_segment_of_another_chain_is_refused(stored: Library) -> None:
    manifest = stored.find("book.txt")
    file = manifest.segments[0]
    for wanted, parent in (
        (file, "0" * 64),
        (replace(file, tokens=file.tokens + 1), manifest.root),
    ):
        with pytest.raises(DamagedError, match="is not the segment that its name says"):
            open_segment(stored.filesystem, "segment", wanted, parent)


def test_a_manifest_of_another_length_is_refused(stored: Library) -> None:
    [path] = entry_files(stored)["entries"]
    body = path.read_bytes().partition(b"\n")[0]
    for length, message in ((len(body), None), (len(body) + 1, "its length differs")):
        sealed = body + f"\nretrolocal-manifest 1 {length} ".encode()
        data = sealed + xxhash.xxh3_128_hexdigest(sealed).encode() + b"\n"
        if message is None:
            decode(data, "it")
            continue
        with pytest.raises(DamagedError, match=message):
            decode(data, "it")
