"""An entry, open for reading: a document or a corpus with its segments, tail, texts and page map.

While it is open nothing of it can be removed. Opening reads headers only: its cost grows with the
number of segments, not with their size.
"""

from __future__ import annotations

import contextlib
from typing import Any

from .closing import Closing
from .documents import read_outline, read_text
from .filesystem import FileSystem
from .identity import Identity
from .locks import Lock, lock_objects
from .manifest import Kind, Manifest, StoredDocument
from .objects import map_object
from .reading import reading
from .segment import Segment, open_segment

CHECKED_WHOLE = 2 << 30
"""Bytes of an entry up to which its keys and values are checked when it is opened; those of a
larger one are when they are first touched."""


class Entry(Closing):
    """What `Library.open` and `find_file` give; a context manager."""

    def __init__(self, fs: FileSystem, manifest: Manifest, file: int) -> None:
        """Opens everything that `manifest` names; `file` is its open, locked file, kept until
        `close`. Raises DamagedError."""
        self._fs = fs
        self._file: int | None = file
        self._segments: list[Segment] = []
        self._tail: Segment | None = None
        self._page_map = memoryview(b"")
        self.manifest = manifest
        self._objects: Lock | None = None
        try:
            with reading(manifest.name):
                self._objects = lock_objects(fs.root, shared=True)
            parent = manifest.root
            for segment in manifest.segments:
                self._segments.append(open_segment(fs, "segment", segment, parent))
                parent = segment.key
            if manifest.tail is not None:
                self._tail = open_segment(fs, "tail", manifest.tail, parent)
            if manifest.page_map is not None:
                self._page_map = map_object(fs, manifest.page_map)
        except BaseException:
            self.close()
            raise

    @property
    def key(self) -> str:
        return self.manifest.key

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def kind(self) -> Kind:
        return self.manifest.kind

    @property
    def identity(self) -> Identity:
        """What it was made from and how, settled: its `prefill` and `prefix` are to be followed."""
        return self.manifest.identity

    @property
    def facts(self) -> dict[str, Any]:
        """What was given to `Library.write`."""
        return self.manifest.facts

    @property
    def tokens(self) -> int:
        """Of all segments and the tail."""
        return self.manifest.tokens

    @property
    def documents(self) -> tuple[StoredDocument, ...]:
        return self.manifest.documents

    def segments(self) -> tuple[Segment, ...]:
        """In the order of the text."""
        return tuple(self._segments)

    @property
    def tail(self) -> Segment:
        """What follows the last segment, possibly no tokens."""
        assert self._tail is not None
        return self._tail

    @property
    def page_map(self) -> memoryview:
        """The bytes given to `Writer.finish`, mapped, checked, read-only."""
        return self._page_map

    def text(self, document: int) -> str:
        """The text of one document, by its place in `documents`; raises DamagedError."""
        return read_text(self._fs, self.documents[document])

    def outline(self, document: int) -> Any:
        """What its extractor said of a document's pages and chapters; raises DamagedError."""
        return read_outline(self._fs, self.documents[document])

    def close(self) -> None:
        """Lets go of everything but the files that mapped tensors still lie in."""
        for segment in self._segments:
            segment.close()
        if self._tail is not None:
            self._tail.close()
        self._page_map = memoryview(b"")
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._fs.close(self._file)
            self._file = None
        if self._objects is not None:
            self._objects.close()
