"""One file of tensors outside a library: what a chat's caches hold behind its documents.

The format is that of a tail (`tensor_file`), the kind `dialogue`. No manifest names it, so its
facts hold a checksum over themselves and the layout; every byte is checked before it is given out.
The file is replaced as a whole. Knows no model.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from ..amounts import told_apart
from ..errors import DamagedError, LibraryError, SpaceError
from . import canonical
from .canonical import Json
from .filesystem import DiskFileSystem
from .manifest import TensorFile
from .reading import map_file
from .segment import Segment
from .tensor_file import PAD, Header, TensorSpec, decode_header, placed, read_header
from .tensor_writing import file_bytes, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

_SUM = "sum"


def write_loose(
    path: Path, key: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Json]
) -> None:
    """Puts tensors and facts into `path`, in place of what was there; on disk when it returns.

    `key`, hexadecimal digits, says what they belong to. The folder must exist. Raises SpaceError
    and LibraryError; the file is then what it was.
    """
    from .tensors import spec_of

    fs = DiskFileSystem(path.parent)
    layout = placed(0, [spec_of(*item) for item in tensors.items()])
    plain = canonical.plain(facts)
    plain[_SUM] = _checksum(plain, layout)
    header = Header(kind="dialogue", key=key, parent="", tokens=0, facts=plain, tensors=layout)
    scratch = f"{path.name}.new"
    try:
        needed, free = file_bytes(header), fs.free_bytes()
        if needed > free:
            raise OSError(errno.ENOSPC, "{} needed, {} free".format(*told_apart(needed, free)))
        with contextlib.suppress(FileNotFoundError):
            # Left by a program that was killed while it wrote.
            fs.unlink(scratch)
        write_tensors(fs, path.name, header, (), tensors, scratch=scratch)
    except OSError as error:
        kind = SpaceError if error.errno in (errno.ENOSPC, errno.EDQUOT) else LibraryError
        raise kind(
            f"{path} was not written ({error.strerror or error}); the chat's text is kept, going "
            "on with it reads it again"
        ) from error


def open_loose(path: Path) -> Segment | None:
    """What `write_loose` put there; None where there is no such file.

    Tensors are mapped. Raises DamagedError for a file that is not as it was written.
    """
    fs = DiskFileSystem(path.parent)
    try:
        file = fs.open(path.name)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedError(f"{path} cannot be opened ({error.strerror or error})") from error
    try:
        size = os.fstat(file).st_size
        data = read_header(file, size)
        header = decode_header(data, size)
        if header.kind != "dialogue":
            raise ValueError("it is a file of a library")
        facts = dict(header.facts)
        if facts.pop(_SUM, None) != _checksum(facts, header.tensors):
            raise ValueError("its header's checksum differs")
        mapping = map_file(file, size, str(path), mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} is damaged ({error})") from error
    finally:
        fs.close(file)
    named = TensorFile(header.key, 0, size, xxhash.xxh3_128_hexdigest(data))
    segment = Segment(named, header, mapping, str(path))
    segment.check()
    return segment


def _checksum(facts: Mapping[str, Any], layout: Iterable[TensorSpec]) -> str:
    tensors: list[Json] = [
        [spec.name, spec.dtype, list(spec.shape)]
        for spec in layout
        if not spec.name.startswith(PAD)
    ]
    return xxhash.xxh3_128_hexdigest(canonical.encode({"facts": dict(facts), "tensors": tensors}))
