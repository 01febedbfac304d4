"""What the library has of the documents is read from the disk while the program still starts.

Importing PyTorch takes a second and more, in which a disk has nothing to do. This is advice to the
system, no more: nothing waits for it, and what goes wrong here is met again, and told, where the
files are opened. Knows no tensor.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress

from .errors import RetrolocalError
from .ingest import Options, open_document
from .library import FileId, Library, Manifest
from .library.entry import CHECKED_WHOLE
from .library.objects import object_path
from .library.segment import path_of

LOOKS = 4
"""Places at which a file is looked for in memory, besides its end."""


def announce(
    files: Sequence[str], corpus: str | None, options: Options, library: Library
) -> threading.Thread | None:
    """Begins to read the entry of these files, or of the corpus, into the page cache.

    None where there is nothing to be read so: standard input is read once, and not here.
    """
    if "-" in files or not (files or corpus) or not hasattr(os, "posix_fadvise"):
        return None
    words = (files, corpus, options, library)
    # Nobody waits for it, not even the end of the program.
    thread = threading.Thread(target=_announce, args=words, name="ahead", daemon=True)
    thread.start()
    return thread


def _announce(files: Sequence[str], corpus: str | None, options: Options, library: Library) -> None:
    with suppress(RetrolocalError, OSError):
        manifest = _found(files, corpus, options, library)
        # Keys and values of a larger entry are read when they are touched, not all at once.
        if manifest is None or manifest.bytes > CHECKED_WHOLE:
            return
        for path in _paths(manifest):
            file = os.open(library.path / path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if not _in_memory(file):
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(file)


def _in_memory(file: int) -> bool:
    """Whether the system has a file's first and last bytes, and some between, in memory.

    Advice about what is there costs a processor as much time as reading it from there.
    """
    wait = getattr(os, "RWF_NOWAIT", None)
    if wait is None:
        return False
    size, byte = os.fstat(file).st_size, bytearray(1)
    try:
        places = [*(size * part // LOOKS for part in range(LOOKS)), max(size - 1, 0)]
        return all(os.preadv(file, [byte], place, wait) == 1 for place in places)
    except OSError:
        return False


def _found(
    files: Sequence[str], corpus: str | None, options: Options, library: Library
) -> Manifest | None:
    """The entry that will be opened, as far as can be told before the model is known."""
    if corpus is not None:
        found = library.catalogue().named(corpus)
    else:
        ids = []
        for file in files:
            with open_document(file, options) as unread:
                ids.append(FileId(unread.digest, unread.extractor))
        found = library.entries_of(ids)
    complete = [manifest for manifest in found if manifest.state == "complete"]
    return max(complete, key=library.used_at, default=None)


def _paths(manifest: Manifest) -> Iterator[str]:
    """Of its files in the library, in the order in which they will be opened."""
    for segment in manifest.segments:
        yield path_of("segment", segment.key)
    if manifest.tail is not None:
        yield path_of("tail", manifest.tail.key)
    for blob in manifest.blobs:
        yield object_path(blob.name)
