"""A segment or tail on disk, open for reading: memory-mapped, checked, never changing.

Opening reads the header only and compares length, header checksum and keys; data is checked by the
MiB with `check`, at the latest before it is first used. The file cannot be removed by `gc` while a
`Segment` is open. Its mapping is copy-on-write: what is written to a mapped tensor stays in this
process. A file that another program shortened is noticed by `damaged` and by `check`; where it is
shortened while its bytes are being read, the system ends this process.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from ..errors import DamagedError, LibraryError
from .closing import Closing
from .filesystem import FileSystem
from .manifest import TensorFile
from .reading import AGAIN, map_file, open_shared
from .tensor_file import (
    CHUNK,
    PAD,
    TOKEN_IDS,
    FileKind,
    Header,
    TensorSpec,
    decode_header,
    read_header,
)

if TYPE_CHECKING:
    from torch import Tensor

FOLDERS: dict[FileKind, str] = {"segment": "segments", "tail": "tails"}
SUFFIX = ".safetensors"


class Segment(Closing):
    """Tensors by name, of one segment (or one tail) of a text."""

    def __init__(self, file: TensorFile, header: Header, mapping: mmap.mmap, label: str) -> None:
        self._file = file
        self._header = header
        self._mapping: mmap.mmap | None = mapping
        self._data_start = file.bytes - header.data_bytes
        self._checked = bytearray(header.chunk_count)
        self._found_damage = False
        self._specs = {spec.name: spec for spec in header.tensors}
        self._label = label

    @property
    def file(self) -> TensorFile:
        """Key, tokens and bytes as the manifest has them."""
        return self._file

    @property
    def key(self) -> str:
        return self._file.key

    @property
    def tokens(self) -> int:
        return self._file.tokens

    @property
    def facts(self) -> dict[str, Any]:
        """What was given to `append_segment`."""
        return self._header.facts

    @property
    def damaged(self) -> bool:
        """Whether a check found something that is not as it was written, or the file is shorter."""
        return self._found_damage or self._missing_from() is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors, in the order they were given and lie in the file."""
        return tuple(n for n in self._specs if n != TOKEN_IDS and not n.startswith(PAD))

    @property
    def layout(self) -> tuple[TensorSpec, ...]:
        """Where everything lies in the data, token ids and pads included."""
        return self._header.tensors

    def tensor(self, name: str) -> Tensor:
        """The tensor `name` in the mapped file: nothing is read before it is touched, or checked.

        It stays valid after `close`. Raises KeyError.
        """
        from .tensors import mapped

        return mapped(self._open(), self._data_start, self._spec(name))

    def location(self, name: str) -> tuple[Path, int, int]:
        """The file in which the tensor `name` lies, where it begins, its bytes; raises KeyError."""
        spec = self._spec(name)
        return Path(self._label), self._data_start + spec.start, spec.bytes

    def load(self, name: str) -> Tensor:
        """The tensor `name`, checked and copied into memory; raises KeyError, DamagedError."""
        self.check(name)
        return self.tensor(name).clone()

    def token_ids(self) -> Tensor:
        """[tokens] int32, mapped and checked."""
        self.check(TOKEN_IDS)
        return self.tensor(TOKEN_IDS)

    def check(self, name: str | None = None, start: int = 0, stop: int | None = None) -> None:
        """Compares checksums, each chunk once: of all data, of the tensor `name`, or of its bytes
        `start` to `stop`. Chunks already checked cost nothing.

        Raises DamagedError that says which part of the file is not what was written.
        """
        begin, end = 0, self._header.data_bytes
        if name is not None:
            spec = self._spec(name)
            begin, end = spec.start + start, spec.start + (spec.bytes if stop is None else stop)
            if not spec.start <= begin <= end <= spec.start + spec.bytes:
                raise ValueError(f"bytes {start} to {stop} are not within {name}")
        if begin == end:
            return
        if (size := self._missing_from()) is not None:
            raise DamagedError(
                f"{self._label} has become shorter ({size:,} bytes instead of "
                f"{self._file.bytes:,}); {AGAIN}"
            )
        for chunk in range(begin // CHUNK, (end - 1) // CHUNK + 1):
            if not self._checked[chunk]:
                self._check_chunk(chunk)

    def forget_pages(self) -> None:
        """What was read to be checked is no memory of this process until it is touched again.

        The system still has it. Before a tensor of the segment is written to.
        """
        if hasattr(mmap, "MADV_DONTNEED"):
            # Pages that may not be let go (mlockall) stay: no harm is done.
            with contextlib.suppress(OSError):
                self._open().madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Lets go of the file; it stays mapped, and kept from `gc`, while a tensor of it lives."""
        self._mapping = None

    def _check_chunk(self, chunk: int) -> None:
        begin, end = self._header.chunk_range(chunk)
        with memoryview(self._open()) as view:
            part = view[self._data_start + begin : self._data_start + end]
            checksum = xxhash.xxh3_128_hexdigest(part)
            part.release()
        if checksum != self._header.chunk_checksum(chunk):
            self._found_damage = True
            raise damaged_chunk(self._label, self._data_start + begin, self._data_start + end)
        self._checked[chunk] = 1

    def _missing_from(self) -> int | None:
        """Bytes of a file that is shorter than when it was opened."""
        size = self._file.bytes if self._mapping is None else self._mapping.size()
        return size if size < self._file.bytes else None

    def _spec(self, name: str) -> TensorSpec:
        if name not in self._specs:
            raise KeyError(name)
        return self._specs[name]

    def _open(self) -> mmap.mmap:
        if self._mapping is None:
            raise LibraryError(f"{self._label} was closed")
        return self._mapping


def path_of(kind: FileKind, key: str) -> str:
    """Of a segment or a tail."""
    return f"{FOLDERS[kind]}/{key}{SUFFIX}"


def open_segment(fs: FileSystem, kind: FileKind, wanted: TensorFile, parent: str) -> Segment:
    """Opens what a manifest names, behind `parent` in the chain; raises DamagedError."""
    label = str(fs.root / path_of(kind, wanted.key))
    file = open_shared(fs, path_of(kind, wanted.key))
    try:
        header = checked_header(file, kind, wanted, parent, label)
        mapping = map_file(file, wanted.bytes, label, mmap.ACCESS_COPY)
    except OSError as error:
        raise DamagedError(f"{label} cannot be read ({error.strerror}); {AGAIN}") from error
    finally:
        # The mapping has a descriptor of its own, of the same open file, and so keeps the lock.
        fs.close(file)
    return Segment(wanted, header, mapping, label)


def checked_header(
    file: int, kind: FileKind, wanted: TensorFile, parent: str, label: str
) -> Header:
    """The header of an open file if it is the one wanted; raises DamagedError, OSError."""
    size = os.fstat(file).st_size
    if size != wanted.bytes:
        raise DamagedError(f"{label} has {size:,} bytes instead of {wanted.bytes:,}; {AGAIN}")
    try:
        data = read_header(file, size)
        if xxhash.xxh3_128_hexdigest(data) != wanted.header:
            raise ValueError("its header's checksum differs")
        header = decode_header(data, size)
    except ValueError as error:
        raise DamagedError(f"{label} is damaged ({error}); {AGAIN}") from error
    expected = (kind, wanted.key, parent, wanted.tokens)
    if (header.kind, header.key, header.parent, header.tokens) != expected:
        raise DamagedError(f"{label} is not the {kind} that its name says; {AGAIN}")
    return header


def damaged_chunk(label: str, begin: int, end: int) -> DamagedError:
    return DamagedError(f"{label} is damaged between byte {begin:,} and {end:,}; {AGAIN}")
