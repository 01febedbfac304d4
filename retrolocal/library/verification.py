"""Checks an entry as a whole and says everything that is wrong with it.

Reads through descriptors, not mappings: a disk that fails gives a line, not a signal.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import xxhash

from ..errors import DamagedError, LibraryError
from .documents import lost_of_corpus, read_outline, read_text
from .filesystem import FileSystem
from .identity import child_key, tail_key
from .manifest import Manifest, TensorFile
from .objects import get_object, object_name, object_path
from .reading import AGAIN, open_shared
from .segment import (
    checked_header,
    damaged_chunk,
    path_of,
)
from .tensor_file import FileKind, Header


@dataclass(frozen=True, slots=True)
class Verified:
    """What a check found."""

    files: int
    """Files looked at, the manifest counted in."""
    bytes: int
    """Their size."""
    problems: tuple[str, ...]
    """One line each; none when all is well."""


def sum_of(parts: Iterable[Verified]) -> Verified:
    """Several checks as one."""
    checks = tuple(parts)
    return Verified(
        sum(check.files for check in checks),
        sum(check.bytes for check in checks),
        tuple(problem for check in checks for problem in check.problems),
    )


def verify_entry(fs: FileSystem, manifest: Manifest, *, deep: bool) -> Verified:
    """Checks headers, lengths, chain, texts and page map; with `deep` all data, keys and names."""
    problems: list[str] = []
    parent = manifest.root
    for segment in manifest.segments:
        problems.extend(_tensor_file_problems(fs, "segment", segment, parent, deep=deep))
        parent = segment.key
    if manifest.tail is not None:
        problems.extend(_tensor_file_problems(fs, "tail", manifest.tail, parent, deep=deep))
    for document in manifest.documents:
        for read in (read_text, read_outline):
            try:
                read(fs, document)
            except DamagedError as error:
                corpus = manifest.kind == "corpus"
                problems.append(str(lost_of_corpus(manifest.name, error) if corpus else error))
            except LibraryError as error:
                problems.append(str(error))
    for blob in manifest.blobs if deep else (manifest.page_map,):
        try:
            if blob is not None and object_name(get_object(fs, blob)) != blob.name:
                label = fs.root / object_path(blob.name)
                problems.append(f"{label} is not what its name says; {AGAIN}")
        except LibraryError as error:
            problems.append(str(error))
    files = 1 + len(manifest.tensor_files) + len({blob.name for blob in manifest.blobs})
    return Verified(files, manifest.bytes, tuple(dict.fromkeys(problems)))


def _tensor_file_problems(
    fs: FileSystem, kind: FileKind, wanted: TensorFile, parent: str, *, deep: bool
) -> list[str]:
    label = str(fs.root / path_of(kind, wanted.key))
    try:
        file = open_shared(fs, path_of(kind, wanted.key))
    except LibraryError as error:
        return [str(error)]
    try:
        header = checked_header(file, kind, wanted, parent, label)
        return list(_data_problems(file, header, wanted.bytes, label)) if deep else []
    except DamagedError as error:
        return [str(error)]
    except OSError as error:
        return [f"{label} cannot be read ({error.strerror}); {AGAIN}"]
    finally:
        fs.close(file)


def _data_problems(file: int, header: Header, file_bytes: int, label: str) -> Iterable[str]:
    data_start = file_bytes - header.data_bytes
    for chunk in range(header.chunk_count):
        begin, end = header.chunk_range(chunk)
        data = os.pread(file, end - begin, data_start + begin)
        if xxhash.xxh3_128_hexdigest(data) != header.chunk_checksum(chunk):
            yield str(damaged_chunk(label, data_start + begin, data_start + end))
    ids = np.frombuffer(os.pread(file, header.tokens * 4, data_start), dtype="<u4")
    key_of = child_key if header.kind == "segment" else tail_key
    try:
        if key_of(header.parent, ids) != header.key:
            yield f"{label} holds other tokens than its name says; {AGAIN}"
    except ValueError as error:
        yield f"{label} holds no token ids ({error}); {AGAIN}"
