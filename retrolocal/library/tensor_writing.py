"""Writes the file of `tensor_file`: whole, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import xxhash

from .filesystem import FileSystem
from .identity import TokenIds, token_bytes
from .publish import publish, write_all
from .tensor_file import PAD, TOKEN_IDS, ChunkHasher, Header, encode_header, header_bytes

if TYPE_CHECKING:
    from torch import Tensor


def file_bytes(header: Header) -> int:
    """Length of the file that `write_tensors` makes."""
    return header_bytes(header) + header.data_bytes


def write_tensors(
    fs: FileSystem,
    path: str,
    header: Header,
    token_ids: TokenIds,
    tensors: Mapping[str, Tensor],
    *,
    scratch: str | None = None,
) -> tuple[int, str]:
    """Makes the file `path`; returns its length and the xxh3 of its header. Raises OSError.

    `scratch` as of `publish`.
    """
    from .tensors import bytes_of

    start = header_bytes(header)
    checksum = ""

    def fill(file: int) -> None:
        nonlocal checksum
        hasher = ChunkHasher()
        for spec in header.tensors:
            if spec.name == TOKEN_IDS:
                data = memoryview(token_bytes(token_ids))
            elif spec.name.startswith(PAD):
                data = memoryview(bytes(spec.bytes))
            else:
                data = bytes_of(tensors[spec.name])
            hasher.update(data)
            write_all(fs, file, data, start + spec.start)
        encoded = encode_header(replace(header, chunks=hasher.chunks()))
        checksum = xxhash.xxh3_128_hexdigest(encoded)
        write_all(fs, file, memoryview(encoded), 0)

    publish(fs, path, start + header.data_bytes, fill, scratch=scratch)
    return start + header.data_bytes, checksum
