"""Where blocks come from: the slow tier of one segment of one layer, as a run of bytes.

`RamSource` is memory that can be read where it lies. `FileSource` is a part of a file that is read
with `pread`, not mapped: a file that shrinks is then an error and not a killed process, reading
holds no lock of Python, and what is read ahead is chosen by us and not by page faults. Offsets are
Python integers, so no file is too long.

A disk answers many questions in the time of one. So whoever needs several blocks announces all of
them before reading the first (2,000 cold reads of 8 KiB, one after another: 1,400 to 3,100 µs each;
announced together: 19 to 37 µs each).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ...errors import StoreError

PAGE = 4096
"""Blocks closer than this are announced as one."""

Span = tuple[int, int]
"""Offset and length in bytes."""


class BlockSource(Protocol):
    """May be read by several threads at once."""

    @property
    def bytes(self) -> int: ...

    @property
    def address(self) -> int | None:
        """Where byte 0 lies in memory that compute can read; None: blocks have to be fetched."""

    def announce(self, spans: Sequence[Span]) -> None:
        """These blocks will be read soon. Returns at once and promises nothing."""

    def read(self, offset: int, into: memoryview) -> None:
        """Fills `into` with what begins at `offset`, or raises StoreError."""


class RamSource:
    """A uint8 tensor, contiguous, in the memory of the machine."""

    def __init__(self, blocks: Tensor) -> None:
        assert blocks.dtype == torch.uint8, blocks.dtype
        assert blocks.is_contiguous()
        self._blocks = blocks.flatten()

    @property
    def bytes(self) -> int:
        return self._blocks.numel()

    @property
    def address(self) -> int:
        return self._blocks.data_ptr()

    def announce(self, spans: Sequence[Span]) -> None:
        """Nothing is to be done."""

    def read(self, offset: int, into: memoryview) -> None:
        """See `BlockSource.read`."""
        require_inside("memory", offset, len(into), self.bytes)
        into[:] = self._blocks[offset : offset + len(into)].numpy().data


class FileSource:
    """Bytes `start : start + bytes` of a file that does not change while it is open."""

    def __init__(self, path: Path, start: int = 0, bytes: int | None = None) -> None:
        """Raises StoreError for a file that cannot be opened or is shorter than that."""
        self._path, self._start = path, start
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"{path}: cannot be opened ({error.strerror})") from None
        try:
            held = os.fstat(self._file).st_size
            self._bytes = max(0, held - start) if bytes is None else bytes
            require_inside(path, start, self._bytes, held)
            # Clusters lie far apart: what the kernel would read beside them is not wanted.
            _advise(self._file, start, self._bytes, "POSIX_FADV_RANDOM")
        except BaseException:
            self.close()
            raise

    @property
    def bytes(self) -> int:
        return self._bytes

    @property
    def address(self) -> None:
        return None

    def announce(self, spans: Sequence[Span]) -> None:
        """See `BlockSource.announce`."""
        for offset, length in merged(spans):
            _advise(self._file, self._start + offset, length, "POSIX_FADV_WILLNEED")

    def read(self, offset: int, into: memoryview) -> None:
        """See `BlockSource.read`."""
        require_inside(self._path, offset, len(into), self._bytes)
        at = self._start + offset
        while into:
            try:
                count = os.preadv(self._file, [into], at)
            except OSError as error:
                raise StoreError(
                    f"{self._path}: byte {at:,} cannot be read ({error.strerror}); check the disk"
                ) from None
            if count == 0:
                raise StoreError(
                    f"{self._path}: ends at byte {at:,}, it has become shorter; make it anew"
                )
            into, at = into[count:], at + count

    def forget(self) -> None:
        """Asks the system to drop its own copies of the file: the next read is one of the disk."""
        _advise(self._file, self._start, self._bytes, "POSIX_FADV_DONTNEED")

    def close(self) -> None:
        """Idempotent. Nobody may be reading."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def merged(spans: Sequence[Span]) -> list[Span]:
    """The same bytes in order, neighbours as one."""
    joined: list[Span] = []
    for offset, length in sorted(spans):
        if joined and offset <= sum(joined[-1]) + PAGE:
            first = joined[-1][0]
            joined[-1] = (first, max(sum(joined[-1]), offset + length) - first)
        else:
            joined.append((offset, length))
    return joined


def require_inside(name: object, offset: int, length: int, bytes: int) -> None:
    """Raises StoreError unless the span lies in 0 : bytes."""
    if offset < 0 or length < 0 or offset + length > bytes:
        raise StoreError(
            f"{name}: bytes {offset:,} to {offset + length:,} are wanted and there are "
            f"{bytes:,}; it is damaged or of another document"
        )


def _advise(file: int, offset: int, length: int, advice: str) -> None:
    # macOS has none; it is advice, nothing depends on it but time.
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, offset, length, getattr(os, advice))
