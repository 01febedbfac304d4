"""Objects: texts, outlines and page maps, each a file of plain bytes named by its hash."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
from collections.abc import Iterator

import xxhash

from ..errors import DamagedError, LibraryError
from .filesystem import FileSystem
from .locks import OBJECTS
from .manifest import Blob
from .publish import publish_bytes
from .reading import AGAIN, map_file, open_shared, reading


def object_path(name: str) -> str:
    return f"{OBJECTS}/{name}"


def object_name(data: bytes) -> str:
    """BLAKE2b-256 in hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def put_object(fs: FileSystem, data: bytes) -> Blob:
    """Stores `data` unless the library holds it already; raises OSError."""
    blob = Blob(object_name(data), len(data), xxhash.xxh3_128_hexdigest(data))
    try:
        known = get_object(fs, blob) == data
    except LibraryError:
        known = False
    if not known:
        publish_bytes(fs, object_path(blob.name), data)
    return blob


def get_object(fs: FileSystem, blob: Blob) -> bytes:
    """The checked bytes; raises DamagedError, LibraryError."""
    label = str(fs.root / object_path(blob.name))
    with _opened(fs, blob, label) as file, reading(label), open(file, "rb", closefd=False) as raw:
        data = raw.read()
    _check(data, blob, label)
    return data


def map_object(fs: FileSystem, blob: Blob) -> memoryview:
    """The checked bytes, mapped for reading; the file is kept from `gc` while the view lives.

    Raises DamagedError, LibraryError.
    """
    label = str(fs.root / object_path(blob.name))
    with _opened(fs, blob, label) as file:
        size = blob.bytes
        data = memoryview(map_file(file, size, label, mmap.ACCESS_READ) if size else b"")
    _check(data, blob, label)
    return data


@contextlib.contextmanager
def _opened(fs: FileSystem, blob: Blob, label: str) -> Iterator[int]:
    file = open_shared(fs, object_path(blob.name))
    try:
        size = os.fstat(file).st_size
        if size != blob.bytes:
            raise DamagedError(f"{label} has {size:,} bytes instead of {blob.bytes:,}; {AGAIN}")
        yield file
    finally:
        fs.close(file)


def _check(data: bytes | memoryview, blob: Blob, label: str) -> None:
    if xxhash.xxh3_128_hexdigest(data) != blob.checksum:
        raise DamagedError(f"{label} is damaged (its checksum differs); {AGAIN}")
