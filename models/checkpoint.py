"""Which tensors a model folder holds and where, from the headers of its safetensors files.

Reads headers only, and trusts nothing in them: sizes, offsets and names are checked against the
file before anything is mapped. Knows no torch and no model.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from ..errors import WeightsError
from ..files import GIT_LFS, open_regular, stand_in
from .json_reader import JsonReader, listed, parse_json, read_json, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

DTYPE_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
"""Supported dtypes, as safetensors names them."""

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of a checkpoint."""

    name: str
    file: Path
    start: int
    """Offset in the data part of the file."""
    bytes: int
    dtype: str
    """As safetensors names it: F32, BF16, F16, I8, F8_E4M3 ..."""
    shape: tuple[int, ...]


def read_checkpoint(folder: Path) -> dict[str, StoredTensor]:
    """Name -> tensor, of one model.safetensors or of all shards of its index.

    Raises WeightsError for a folder without safetensors, a missing shard and a damaged file.
    """
    # A link that leads nowhere is told as one, unless the index says where the weights are.
    names_one, names_many = (os.path.lexists(folder / name) for name in (SINGLE, INDEX))
    if (folder / SINGLE).exists() or (names_one and not names_many):
        return read_header(folder / SINGLE)
    if not names_many:
        raise WeightsError(_without_safetensors(folder))
    placed = _weight_map(read_json(folder / INDEX, WeightsError))
    files = sorted(set(placed.values()))
    absent = [file for file in files if not (folder / file).exists()]
    if absent:
        raise WeightsError(
            f"{folder}: {len(absent)} of {len(files)} weight files are missing: {listed(absent)}; "
            "download them again"
        )
    headers = {file: read_header(folder / file) for file in files}
    unkept = [name for name, file in placed.items() if name not in headers[file]]
    if unkept:
        raise WeightsError(
            f"{folder / INDEX}: names tensors that its files do not hold: {listed(unkept)}; "
            "download the model again"
        )
    return {name: headers[file][name] for name, file in placed.items()}


def checkpoint_bytes(folder: Path) -> int:
    """Bytes of all tensors of the checkpoint in `folder`; reads headers only."""
    return sum(tensor.bytes for tensor in read_checkpoint(folder).values())


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Name -> tensor of one safetensors file; raises WeightsError."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            beginning = file.read(len(GIT_LFS))
            length = _header_length(path, size, beginning)
            file.seek(_LENGTH.size)
            content = file.read(length)
    except OSError as problem:
        raise WeightsError(f"{path}: cannot be read ({problem.strerror})") from problem
    header = parse_json(content, path, WeightsError)
    names = [name for name in header.values if name != "__metadata__"]
    data_bytes = size - _LENGTH.size - length
    return {name: _stored(path, name, header.section(name), data_bytes) for name in names}


def _header_length(path: Path, size: int, beginning: bytes) -> int:
    if size == 0:
        raise WeightsError(f"{path}: is empty; download it again")
    other = stand_in(beginning)
    if other is not None:
        raise WeightsError(f"{path}: {other}")
    if size < _LENGTH.size:
        raise WeightsError(f"{path}: {size} bytes, too short for safetensors; download it again")
    (length,) = _LENGTH.unpack(beginning[: _LENGTH.size])
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise WeightsError(f"{path}: not a safetensors file (a header of {length} bytes)")
    if length > size - _LENGTH.size:
        raise WeightsError(f"{path}: cut short within its header; download it again")
    return int(length)


def _stored(path: Path, name: str, entry: JsonReader, data_bytes: int) -> StoredTensor:
    shape = _whole_numbers(entry, "shape")
    offsets = _whole_numbers(entry, "data_offsets")
    dtype = entry.text("dtype")
    if len(offsets) != 2 or offsets[0] > offsets[1] or len(shape) > 8:
        raise entry.refuse("damaged header; download the file again")
    start, end = offsets
    if end > data_bytes:
        raise WeightsError(
            f"{path}: cut short: {shown(name)} ends at byte {end}, the data at {data_bytes}; "
            "download it again"
        )
    if dtype in DTYPE_BYTES and end - start != math.prod(shape) * DTYPE_BYTES[dtype]:
        raise entry.refuse("size and shape disagree; download the file again")
    return StoredTensor(
        name=name, file=path, start=start, bytes=end - start, dtype=dtype, shape=shape
    )


def _whole_numbers(entry: JsonReader, key: str) -> tuple[int, ...]:
    numbers = []
    for value in entry.items(key):
        if type(value) is not int or not 0 <= value < 1 << 48:
            raise entry.mistyped(key, "a list of whole numbers from 0")
        numbers.append(value)
    return tuple(numbers)


def _weight_map(index: JsonReader) -> dict[str, str]:
    section = index.section("weight_map")
    if not section.values:
        raise section.refuse("is empty; download it again")
    placed = {name: section.text(name) for name in section.values}
    for name, file in placed.items():
        plain = file.endswith(".safetensors") and not any(mark in file for mark in "/\\:\0")
        if not plain:
            raise section.mistyped(name, "the plain name of a .safetensors file of this folder")
    return placed


def _without_safetensors(folder: Path) -> str:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as problem:
        return f"{folder}: cannot be read ({problem.strerror})"
    shards = [name for name in names if name.endswith(".safetensors")]
    if shards:
        return (
            f"{folder}: has {listed(shards)} but neither {SINGLE} nor {INDEX}; "
            "download the whole model in Hugging Face format"
        )
    for suffixes, what in (((".bin", ".pt", ".pth"), "a pickle"), ((".gguf",), "GGUF")):
        found = [name for name in names if name.endswith(suffixes)]
        if found:
            return (
                f"{folder}: the weights are {what} ({listed(found)}), which is not read; "
                "look for a version of this model in safetensors"
            )
    return f"{folder}: no {SINGLE} in it; give the folder of a model with safetensors weights"
