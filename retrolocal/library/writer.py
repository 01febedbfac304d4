"""Puts one entry into the library, segment by segment, so that an interruption loses one at most.

Order: texts, the running manifest, then for each segment its file and the running manifest again;
at the end tail, page map and the complete manifest. What `append_segment` has returned for is on
disk and is found again by `Library.longest_prefix`, whatever happens afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import DamagedError, LibraryError
from . import canonical
from .canonical import Json
from .catalogue import Catalogue, manifest_path, write_manifest
from .cleaning import clean_if_idle
from .closing import Closing
from .filesystem import FileSystem
from .identity import TokenIds, child_key, tail_key
from .locks import Lock
from .manifest import MAX_SEGMENTS, Manifest, TensorFile
from .objects import put_object
from .room import require_space, saving
from .segment import Segment, open_segment, path_of
from .tensor_file import FileKind, Header, placed
from .tensor_writing import file_bytes, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

MAX_MAP_BYTES_PER_TOKEN = 16


class Writer(Closing):
    """What `Library.write` gives; a context manager, for one thread of the process that made it.

    After an error it takes nothing more; what it had saved stays. Leaving it without `finish` keeps
    the running entry, to be continued.
    """

    def __init__(
        self, fs: FileSystem, lock: Lock, manifest: Manifest, catalogue: Catalogue
    ) -> None:
        self._fs = fs
        self._lock = lock
        self._manifest = manifest
        self._catalogue = catalogue
        self._known = catalogue.tensor_files()
        self._broken = False

    @property
    def key(self) -> str:
        """Of the entry."""
        return self._manifest.key

    @property
    def tokens(self) -> int:
        """Saved so far."""
        return self._manifest.tokens

    def append_segment(
        self, token_ids: TokenIds, tensors: Mapping[str, Tensor], facts: Mapping[str, Json] = {}
    ) -> str:
        """Saves the next segment and returns its key; on disk when it returns.

        The tensors lie in the file in the order given. A segment that the library holds already,
        undamaged, is not written again. Raises ValueError for what cannot be stored, SpaceError and
        LibraryError when the disk does not take it.
        """
        if len(token_ids) == 0:
            raise ValueError("a segment has at least one token")
        if len(self._manifest.segments) == MAX_SEGMENTS:
            raise ValueError(f"an entry has at most {MAX_SEGMENTS:,} segments")
        key = child_key(self._parent, token_ids)
        with self._writing(f"a segment of {self._manifest.name}"):
            segment = self._put("segment", key, token_ids, tensors, facts)
            segments = (*self._manifest.segments, segment)
            self._commit(replace(self._manifest, segments=segments))
        return key

    def saved(self) -> Segment:
        """The segment that was saved last, open for reading; raises DamagedError, LibraryError."""
        segments = self._manifest.segments
        parent = segments[-2].key if len(segments) > 1 else self._manifest.root
        return open_segment(self._fs, "segment", segments[-1], parent)

    def finish(
        self,
        token_ids: TokenIds,
        tensors: Mapping[str, Tensor],
        page_map: bytes = b"",
    ) -> str:
        """Saves the rest and the page map, completes the entry and returns its key.

        `token_ids` and `tensors` are those of the rest (possibly no tokens). An earlier complete
        version of the entry is replaced, and what nothing else needed is removed unless it is open.
        The library is free for others when it returns. Raises as `append_segment`.
        """
        tokens = self.tokens + len(token_ids)
        if len(page_map) > MAX_MAP_BYTES_PER_TOKEN * tokens:
            raise ValueError(f"a page map of {len(page_map):,} bytes for {tokens:,} tokens")
        key = tail_key(self._parent, token_ids)
        with self._writing(self._manifest.name):
            tail = self._put("tail", key, token_ids, tensors, {})
            complete = replace(
                self._manifest,
                state="complete",
                tail=tail,
                page_map=put_object(self._fs, page_map) if page_map else None,
            )
            self._commit(complete)
            with contextlib.suppress(OSError):
                # Nothing is lost if it stays: the next writer sees that it is superseded.
                self._fs.unlink(manifest_path(complete.key, "running"))
        if self._replaces:
            clean_if_idle(self._fs)
        self.close()
        return complete.key

    def close(self) -> None:
        """Lets go of the library."""
        self._broken = True
        self._lock.close()

    def begin(self) -> None:
        """Commits the running entry as it was given; `Library.write` does this."""
        with self._writing(self._manifest.name):
            self._commit(self._manifest)

    @property
    def _replaces(self) -> bool:
        """Whether the library had a complete version of the entry."""
        return any(
            (other.key, other.state) == (self.key, "complete")
            for other in self._catalogue.manifests
        )

    @property
    def _parent(self) -> str:
        segments = self._manifest.segments
        return segments[-1].key if segments else self._manifest.root

    def _commit(self, manifest: Manifest) -> None:
        if not any(manifest.precedes(other) for other in self._catalogue.manifests):
            write_manifest(self._fs, manifest)
        self._manifest = manifest

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        if self._broken:
            raise LibraryError(f"{self._manifest.name}: nothing more can be saved after an error")
        self._broken = True
        with saving(self._fs, what):
            yield
        self._broken = False

    def _put(
        self,
        kind: FileKind,
        key: str,
        token_ids: TokenIds,
        tensors: Mapping[str, Tensor],
        facts: Mapping[str, Json],
    ) -> TensorFile:
        from .tensors import spec_of

        header = Header(
            kind=kind,
            key=key,
            parent=self._parent,
            tokens=len(token_ids),
            facts=canonical.plain(facts),
            tensors=placed(len(token_ids), [spec_of(*item) for item in tensors.items()]),
        )
        stored = self._stored(kind, key, header)
        if stored is not None:
            return stored
        require_space(self._fs, file_bytes(header), what="the next part of the document")
        size, checksum = write_tensors(self._fs, path_of(kind, key), header, token_ids, tensors)
        return TensorFile(key, len(token_ids), size, checksum)

    def _stored(self, kind: FileKind, key: str, wanted: Header) -> TensorFile | None:
        """The file of this key, if there is an undamaged one."""
        for known in self._known.get(key, ()):
            try:
                with open_segment(self._fs, kind, known, self._parent) as segment:
                    segment.check()
                    layout = segment.layout
            except DamagedError:
                continue
            if layout != wanted.tensors:
                raise ValueError(
                    f"the {kind} {key} is stored with other tensors: the identity does not hold "
                    "everything that they depend on"
                )
            return known
        return None
