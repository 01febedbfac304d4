"""The file of a segment or a tail: a safetensors file with a fixed order and checksums inside.

    8 bytes     length N of the header, little-endian
    N bytes     JSON header, filled up with spaces so that the data begins at a page border
    the rest    token ids, then the tensors in the order given, each at an aligned offset

The header is the only one possible for what it says: `decode_header` writes it again and compares.
It holds xxh3_128 of every MiB of data; the manifest holds xxh3_128 of the header. No torch.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import xxhash

from . import canonical
from .identity import FORMAT
from .manifest import of_format

FileKind = Literal["segment", "tail", "dialogue"]
CHUNK = 1 << 20
"""Bytes of data under one checksum."""
PAGE = 4096
TOKEN_IDS = "token_ids"
"""The first tensor, [tokens] of I32."""
PAD = "pad."
"""Begins the name of a tensor of zeros that moves the next one to an aligned offset."""
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 65_536
MAX_FILE_BYTES = 1 << 48
DTYPE_BYTES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1},
    **{"I16": 2, "U16": 2, "F16": 2, "BF16": 2},
    **{"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8},
}
"""As safetensors names them."""

_TENSOR_NAME = re.compile("[!-~]{1,255}")
_LENGTH = struct.Struct("<Q")
_DIGEST = 32
"""Hexadecimal digits of a chunk's checksum."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor in a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    """Offset in the data."""

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the header of a file says."""

    kind: FileKind
    key: str
    parent: str
    tokens: int
    facts: dict[str, Any]
    """What whoever made the tensors wanted to remember."""
    tensors: tuple[TensorSpec, ...]
    """As placed, token ids and pads included."""
    chunks: str = ""
    """The checksums of all chunks of data, one after the other."""

    @property
    def data_bytes(self) -> int:
        last = self.tensors[-1]
        return last.start + last.bytes

    @property
    def chunk_count(self) -> int:
        return -(-self.data_bytes // CHUNK)

    def chunk_range(self, number: int) -> tuple[int, int]:
        """Where in the data a chunk begins and ends."""
        return number * CHUNK, min((number + 1) * CHUNK, self.data_bytes)

    def chunk_checksum(self, number: int) -> str:
        return self.chunks[number * _DIGEST : (number + 1) * _DIGEST]


def placed(tokens: int, tensors: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Token ids, tensors and pads with their offsets; raises ValueError.

    A tensor begins at a multiple of 64 bytes, one of 64 KiB or more at a multiple of a page.
    """
    result: list[TensorSpec] = []
    names = set()
    end = 0
    for tensor in (TensorSpec(TOKEN_IDS, "I32", (tokens,)), *tensors):
        _check_spec(tensor)
        if tensor.name in names:
            raise ValueError(f"two tensors are called {tensor.name!r}")
        names.add(tensor.name)
        gap = -end % (PAGE if tensor.bytes >= 16 * PAGE else 64)
        if gap:
            result.append(TensorSpec(f"{PAD}{len(result)}", "U8", (gap,), end))
        result.append(TensorSpec(tensor.name, tensor.dtype, tensor.shape, end + gap))
        end += gap + tensor.bytes
        if len(result) > MAX_TENSORS or end > MAX_FILE_BYTES:
            raise ValueError(f"more than {MAX_TENSORS:,} tensors or {MAX_FILE_BYTES:,} bytes")
    return tuple(result)


def encode_header(header: Header) -> bytes:
    """Length and JSON; a file's data begins where it ends. Raises ValueError if it is too long."""
    facts: dict[str, canonical.Json] = {
        "chunks": header.chunks,
        "facts": header.facts,
        "format": FORMAT,
        "key": header.key,
        "kind": header.kind,
        "parent": header.parent,
        "tokens": header.tokens,
    }
    content: dict[str, Any] = {"__metadata__": {"retrolocal": canonical.encode(facts).decode()}}
    for tensor in header.tensors:
        content[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [tensor.start, tensor.start + tensor.bytes],
        }
    text = json.dumps(content, separators=(",", ":")).encode("ascii")
    text += b" " * (-(len(text) + _LENGTH.size) % PAGE)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(text):,} bytes; at most {MAX_HEADER_BYTES:,}")
    return _LENGTH.pack(len(text)) + text


def header_bytes(header: Header) -> int:
    """Length of the encoded header once all checksums are in it."""
    blank = Header(
        kind=header.kind,
        key=header.key,
        parent=header.parent,
        tokens=header.tokens,
        facts=header.facts,
        tensors=header.tensors,
        chunks="0" * (_DIGEST * header.chunk_count),
    )
    return len(encode_header(blank))


def read_header(file: int, file_bytes: int) -> bytes:
    """The encoded header of an open file; raises ValueError, OSError."""
    start = os.pread(file, _LENGTH.size, 0)
    if len(start) < _LENGTH.size:
        raise ValueError("it is too short")
    (length,) = _LENGTH.unpack(start)
    if length > min(MAX_HEADER_BYTES, file_bytes - _LENGTH.size):
        raise ValueError(f"its header would have {length:,} bytes")
    return os.pread(file, _LENGTH.size + length, 0)


def decode_header(data: bytes, file_bytes: int) -> Header:
    """What an encoded header says, checked against the file's length; raises ValueError."""
    try:
        content = json.loads(data[_LENGTH.size :])
        facts = canonical.decode(content.pop("__metadata__")["retrolocal"].encode("ascii"))
        _check_facts(facts)
        tensors = [
            TensorSpec(name, entry["dtype"], tuple(entry["shape"]))
            for name, entry in content.items()
            if not name.startswith(PAD)
        ]
        header = Header(
            kind=facts["kind"],
            key=facts["key"],
            parent=facts["parent"],
            tokens=facts["tokens"],
            facts=facts["facts"],
            tensors=placed(facts["tokens"], tensors[1:]),
            chunks=facts["chunks"],
        )
        again = encode_header(header)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("its header makes no sense") from error
    if again != data:
        raise ValueError("its header is not in canonical form")
    if len(header.chunks) != header.chunk_count * _DIGEST:
        raise ValueError("its header has not one checksum per MiB")
    if len(data) + header.data_bytes != file_bytes:
        raise ValueError(
            f"it has {file_bytes:,} bytes and its header says {len(data) + header.data_bytes:,}"
        )
    return header


class ChunkHasher:
    """Checksums of data that comes in parts."""

    def __init__(self) -> None:
        self._done: list[str] = []
        self._hasher = xxhash.xxh3_128()
        self._room = CHUNK

    def update(self, part: memoryview) -> None:
        start = 0
        while start < len(part):
            piece = part[start : start + self._room]
            self._hasher.update(piece)
            start += len(piece)
            self._room -= len(piece)
            if self._room == 0:
                self._next()

    def chunks(self) -> str:
        """`Header.chunks` of all that came; nothing may come after."""
        if self._room < CHUNK:
            self._next()
        return "".join(self._done)

    def _next(self) -> None:
        self._done.append(self._hasher.hexdigest())
        self._hasher.reset()
        self._room = CHUNK


def _check_facts(facts: dict[str, Any]) -> None:
    if type(facts["format"]) is not int or facts["format"] != FORMAT:
        raise ValueError(f"it {of_format(int(facts['format']))}")
    texts = (facts["key"], facts["parent"], facts["chunks"])
    if not all(isinstance(text, str) and re.fullmatch("[0-9a-f]*", text) for text in texts):
        raise ValueError("its key, parent or checksums are not hexadecimal digits")
    if facts["kind"] not in get_args(FileKind) or not isinstance(facts["facts"], dict):
        raise ValueError("its kind or facts make no sense")


def _check_spec(tensor: TensorSpec) -> None:
    name, shape = tensor.name, tensor.shape
    if not isinstance(name, str) or not _TENSOR_NAME.fullmatch(name):
        raise ValueError(f"{name!r:.40} cannot name a tensor")
    if name.startswith((PAD, "__")):
        raise ValueError(f"{name!r:.40} is reserved")
    if tensor.dtype not in DTYPE_BYTES:
        raise ValueError(f"{name} has a dtype that is not stored: {tensor.dtype!r:.40}")
    sizes: Sequence[object] = shape
    if len(sizes) > 8 or any(type(n) is not int or not 0 <= n < MAX_FILE_BYTES for n in shape):
        raise ValueError(f"{name} has a shape that is not stored: {shape!r:.60}")
