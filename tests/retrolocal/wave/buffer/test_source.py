"""Slow tiers: the bytes that were asked for or one clear line."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrolocal.errors import StoreError
from retrolocal.wave.buffer.source import PAGE, FileSource, RamSource, merged


def test_a_part_of_a_file(tmp_path: Path) -> None:
    path, content = tmp_path / "segment", os.urandom(10_000)
    path.write_bytes(content)
    source = FileSource(path, start=1000, bytes=8000)
    assert (source.bytes, source.address) == (8000, None)
    source.announce([(0, 10), (7000, 1000), (5, 2000)])
    source.forget()
    for offset, length in ((0, 8000), (7999, 1), (100, 0), (8000, 0), (4096, 17)):
        into = bytearray(length)
        source.read(offset, memoryview(into))
        assert bytes(into) == content[1000 + offset : 1000 + offset + length]
    for offset, length in ((7999, 2), (-1, 1), (8001, 0)):
        with pytest.raises(StoreError, match="are wanted and there are 8,000; it is damaged"):
            source.read(offset, memoryview(bytearray(length)))
    source.close()
    source.close()


def test_beyond_two_gigabytes(tmp_path: Path) -> None:
    path, start = tmp_path / "sparse", (5 << 30) + 3
    with path.open("wb") as file:
        file.seek(start + 4096)
        file.write(b"far away")
    source, into = FileSource(path, start=start), bytearray(8)
    source.announce([(4096, 8)])
    source.read(4096, memoryview(into))
    assert into == b"far away"
    source.close()


def test_a_file_that_is_not_there_too_short_or_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    with pytest.raises(StoreError, match="segment: cannot be opened"):
        FileSource(path)
    path.write_bytes(bytes(100))
    with pytest.raises(StoreError, match="bytes 50 to 150 are wanted and there are 100"):
        FileSource(path, start=50, bytes=100)
    source = FileSource(path)
    os.truncate(path, 60)
    with pytest.raises(StoreError, match="ends at byte 60, it has become shorter"):
        source.read(40, memoryview(bytearray(40)))
    source.close()


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "segment"
    path.write_bytes(bytes(100))
    source = FileSource(path)

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(StoreError, match=r"byte 7 cannot be read \(Input/output error\)"):
        source.read(7, memoryview(bytearray(1)))
    monkeypatch.undo()
    source.close()


def test_a_disk_that_answers_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, content, preadv = tmp_path / "segment", os.urandom(1000), os.preadv
    path.write_bytes(content)
    source, into = FileSource(path), bytearray(1000)
    monkeypatch.setattr(os, "preadv", lambda file, views, at: preadv(file, [views[0][:7]], at))
    source.read(0, memoryview(into))
    assert into == content
    source.close()


def test_memory_is_read_where_it_lies() -> None:
    blocks = torch.arange(100, dtype=torch.uint8).view(4, 25)
    source, into = RamSource(blocks), bytearray(3)
    assert (source.address, source.bytes) == (blocks.data_ptr(), 100)
    source.announce([(0, 100)])
    source.read(40, memoryview(into))
    assert list(into) == [40, 41, 42]
    with pytest.raises(StoreError, match="there are 100"):
        source.read(99, memoryview(into))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40 * PAGE), st.integers(1, 3 * PAGE)), max_size=30))
def test_neighbours_are_announced_as_one(spans: list[tuple[int, int]]) -> None:
    joined = merged(spans)
    for offset, length in spans:
        assert any(a <= offset and offset + length <= a + n for a, n in joined)
    assert all(a + n + PAGE < b for (a, n), (b, _) in pairwise(joined))
    edges = {offset for offset, _ in spans}, {sum(span) for span in spans}
    assert all(a in edges[0] and a + n in edges[1] for a, n in joined)
