"""Members of a ZIP file, read within limits: what the archive says of itself is not believed.

Nothing is written to disk and no member's name is used as a path.
"""

from __future__ import annotations

import zipfile
import zlib
from typing import Any, BinaryIO

_BLOCK_BYTES = 1 << 20


class BadArchiveError(Exception):
    """The archive cannot or must not be read; the message is a key for the parent."""


class Archive:
    """A ZIP file open for reading; `limits` has "members", "bytes", "ratio" and "ratio_from"."""

    def __init__(self, file: BinaryIO, limits: dict[str, Any]) -> None:
        self._limits = limits
        self._read = 0
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise BadArchiveError("damaged") from error
        if len(self._zip.infolist()) > limits["members"]:
            raise BadArchiveError("members")
        self.names = frozenset(self._zip.namelist())

    def read(self, name: str) -> bytes:
        """The bytes of a member, counted while they are inflated.

        Raises KeyError for a name that is not there, BadArchiveError for a bomb or damage.
        """
        entry = self._zip.getinfo(name)
        if entry.flag_bits & 1:
            raise BadArchiveError("encrypted")
        blocks = []
        size = 0
        try:
            with self._zip.open(entry) as member:
                while block := member.read(_BLOCK_BYTES):
                    size += len(block)
                    self._count(len(block), size, entry.compress_size)
                    blocks.append(block)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
            raise BadArchiveError("damaged") from error
        return b"".join(blocks)

    def _count(self, block: int, size: int, packed: int) -> None:
        self._read += block
        if self._read > self._limits["bytes"]:
            raise BadArchiveError("bytes")
        ratio = self._limits["ratio"]
        if ratio and size > self._limits["ratio_from"] and size > ratio * max(1, packed):
            raise BadArchiveError("ratio")
