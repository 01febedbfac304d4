"""Where blocks come from: the slow tier of one segment of one layer, as a run of bytes.

`RamSource` is memory that can be read where it lies. `CheckedSource` compares bytes with what was
written before they are first used. `FileSource` is a part of a file that is read
with `pread`, not mapped: a file that shrinks is then an error and not a killed process, reading
holds no lock of Python, and what is read ahead is chosen by us and not by page faults. Offsets are
Python integers, so no file is too long.

A disk answers many questions in the time of one. So whoever needs several blocks announces all of
them before reading the first (2,000 cold reads of 8 KiB, one after another: 1,400 to 3,100 µs each;
announced together: 19 to 37 µs each).
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import StoreError

PAGE = 4096
"""Blocks closer than this are announced as one."""

Span = tuple[int, int]
"""Offset and length in bytes."""
CHECKED = 1 << 20
"""Bytes that `CheckedSource` has compared at a time."""


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


class _OpenFile:
    """A descriptor, closed when nobody has it any more."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor, self.name = descriptor, name
        self.close = weakref.finalize(self, os.close, descriptor)


class FileSource:
    """Bytes `start : start + bytes` of a file that does not change while it is open."""

    def __init__(self, path: Path, start: int = 0, bytes: int | None = None) -> None:
        """Raises StoreError for a file that cannot be opened or is shorter than that."""
        try:
            file = _OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC), str(path))
        except OSError as error:
            raise StoreError(f"{path}: cannot be opened ({error.strerror})") from None
        held = os.fstat(file.descriptor).st_size
        self._set(file, start, max(0, held - start) if bytes is None else bytes)

    @classmethod
    def temporary(cls, folder: Path) -> FileSource:
        """An empty file in `folder` that has no name, to be written; raises OSError."""
        source = cls.__new__(cls)
        descriptor, path = tempfile.mkstemp(prefix="retrolocal-", dir=folder)
        file = _OpenFile(descriptor, f"a temporary file in {folder}")
        os.unlink(path)
        source._set(file, 0, 0)
        return source

    def part(self, start: int, bytes: int) -> FileSource:
        """A part of the same open file, from its beginning on, as it is now.

        Raises StoreError where the file ends before.
        """
        source = FileSource.__new__(FileSource)
        source._set(self._file, start, bytes)
        return source

    def _set(self, file: _OpenFile, start: int, bytes: int) -> None:
        self._file, self._start, self._bytes = file, start, bytes
        require_inside(file.name, start, bytes, os.fstat(file.descriptor).st_size)
        # Clusters lie far apart: what the kernel would read beside them is not wanted.
        self._advise(0, bytes, "POSIX_FADV_RANDOM")

    @property
    def bytes(self) -> int:
        return self._bytes

    @property
    def address(self) -> None:
        return None

    def announce(self, spans: Sequence[Span]) -> None:
        """See `BlockSource.announce`."""
        for offset, length in merged(spans):
            self._advise(offset, length, "POSIX_FADV_WILLNEED")

    def read(self, offset: int, into: memoryview) -> None:
        """See `BlockSource.read`."""
        name = self._file.name
        require_inside(name, offset, len(into), self._bytes)
        at = self._start + offset
        while into:
            try:
                count = os.preadv(self._file.descriptor, [into], at)
            except OSError as error:
                raise StoreError(
                    f"{name}: byte {at:,} cannot be read ({error.strerror}); check the disk"
                ) from None
            if count == 0:
                raise StoreError(
                    f"{name}: ends at byte {at:,}, it has become shorter; make it anew"
                )
            into, at = into[count:], at + count

    def write(self, at: int, data: memoryview) -> None:
        """Puts bytes where nobody reads; raises OSError."""
        while data:
            count = os.pwrite(self._file.descriptor, data, at)
            data, at = data[count:], at + count

    def forget(self) -> None:
        """Asks the system to drop its own copies of the file: the next read is one of the disk."""
        # What is not on the disk yet cannot be dropped.
        os.fsync(self._file.descriptor)
        self._advise(0, self._bytes, "POSIX_FADV_DONTNEED")

    def close(self) -> None:
        """Closes the file, for all its parts too. Idempotent. Nobody may be reading."""
        self._file.close()

    def _advise(self, offset: int, length: int, advice: str) -> None:
        # macOS has none; it is advice, nothing depends on it but time.
        if hasattr(os, "posix_fadvise"):
            file, at = self._file.descriptor, self._start + offset
            os.posix_fadvise(file, at, length, getattr(os, advice))


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks of a segment that lie in a file already."""

    open: Callable[[], FileSource]
    """Raises StoreError."""
    check: Callable[[int, int], None] | None = None
    """Raises DamagedError unless the bytes from the first number up to the second are those that
    were written; None: that is known of all."""


class CheckedSource:
    """Another source whose bytes are checked before they are first used, `CHECKED` at a time."""

    def __init__(self, source: BlockSource, check: Callable[[int, int], None]) -> None:
        self._source, self._check = source, check
        self._sure = np.zeros(-(-source.bytes // CHECKED), np.bool_)

    @property
    def bytes(self) -> int:
        return self._source.bytes

    @property
    def address(self) -> int | None:
        return self._source.address

    @property
    def sure(self) -> bool:
        """Whether all bytes have been checked."""
        return bool(self._sure.all())

    def announce(self, spans: Sequence[Span]) -> None:
        """See `BlockSource.announce`."""
        self._source.announce(spans)

    def read(self, offset: int, into: memoryview) -> None:
        """See `BlockSource.read`; raises what the check raises."""
        require_inside("a block", offset, len(into), self.bytes)
        self.verify(offset, len(into))
        self._source.read(offset, into)

    def verify(self, offsets: int | NDArray[np.int64], lengths: int | NDArray[np.int64]) -> None:
        """Checks these bytes; raises what the check raises. Any thread may call."""
        offsets, lengths = np.atleast_1d(offsets), np.atleast_1d(lengths)
        wanted = np.zeros(len(self._sure) + 1, np.int64)
        held = lengths > 0
        np.add.at(wanted, offsets[held] // CHECKED, 1)
        np.add.at(wanted, (offsets[held] + lengths[held] - 1) // CHECKED + 1, -1)
        for piece in np.flatnonzero((np.cumsum(wanted[:-1]) > 0) & ~self._sure).tolist():
            self._check(piece * CHECKED, min((piece + 1) * CHECKED, self.bytes))
            self._sure[piece] = True


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
