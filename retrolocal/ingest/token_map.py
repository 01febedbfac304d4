"""Which characters of which document a token is made of: 12 bytes a token, no text needed.

On disk the map is an array of little-endian uint32 triples `(document, start, end)` without a
header, so that it can be memory-mapped and grows by appending. Pages and chapters are not in it:
they follow from `start` and the documents' own tables. Tokens between documents (template text,
separators) and behind the map (a dialogue) belong to no document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, DocumentError
from .document import Chapter, Page, chapter_at, page_at

SPAN = np.dtype([("document", "<u4"), ("start", "<u4"), ("end", "<u4")])
"""One token: index of its document, its first character and the one behind its last."""
NO_DOCUMENT = 0xFFFFFFFF
MAX_CHARACTERS = 0xFFFFFFFF

_FIRST_CAPACITY = 1024


class Outlined(Protocol):
    """What is asked of a document; `Document` is one."""

    @property
    def pages(self) -> tuple[Page, ...]: ...

    @property
    def chapters(self) -> tuple[Chapter, ...]: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a token comes from."""

    document: int
    """Index in the documents of the map."""
    page: int | None
    """Number of the page its first character stands on; None where there are no pages."""
    chapter: str | None
    """Title of the chapter around its first character; None where there is none."""
    start: int
    """Offset of its first character in the document's text."""
    end: int
    """Offset behind its last character. The tokens of one character that takes several have the
    same span; a token without characters has an empty one."""


class TokenMap:
    """The places of the tokens of a context, from token 0 on. One writer, no locks.

    A map that was opened on a buffer is never written to: what is appended lies in memory.
    """

    def __init__(self, documents: Sequence[Outlined], buffer: bytes | memoryview = b"") -> None:
        """`buffer` holds what `tobytes` gave, a memory-mapped file for one.

        Raises DataError when its length is not that of whole records.
        """
        if len(memoryview(buffer).cast("B")) % SPAN.itemsize:
            raise DataError(
                f"the page map has {len(buffer):,} bytes, not a multiple of {SPAN.itemsize}; "
                "it is damaged, ingest the documents again"
            )
        self._documents = list(documents)
        self._saved: NDArray[np.void] = np.frombuffer(buffer, SPAN)
        self._added: NDArray[np.void] = np.empty(0, SPAN)
        self._count = 0

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self._saved) + self._count

    def append_document(self, document: Outlined, offsets: NDArray[np.integer]) -> int:
        """Adds a document's tokens; `offsets` [n, 2] are their character spans in its text.

        Returns the document's index. Raises DocumentError when the text is too long to be mapped.
        """
        if len(offsets) and int(offsets.max()) > MAX_CHARACTERS:
            raise DocumentError(
                f"a document of {int(offsets.max()):,} characters cannot be mapped; "
                f"split it into parts of at most {MAX_CHARACTERS:,}"
            )
        assert not len(offsets) or offsets.min() >= 0
        index = len(self._documents)
        self._documents.append(document)
        added = self._room(len(offsets))
        added["document"] = index
        added["start"], added["end"] = offsets[:, 0], offsets[:, 1]
        return index

    def append_other(self, count: int) -> None:
        """Adds `count` tokens that belong to no document."""
        added = self._room(count)
        added["document"] = NO_DOCUMENT
        added["start"] = added["end"] = 0

    def truncate(self, tokens: int) -> None:
        """Forgets the tokens from `tokens` on, as a context that is rewound does."""
        assert 0 <= tokens <= len(self)
        self._count = max(0, tokens - len(self._saved))
        self._saved = self._saved[:tokens]

    def lookup(self, token: int) -> Place | None:
        """The place of the token at position `token`; None for one of no document.

        Raises DataError when the map speaks of a document that is not there.
        """
        if not 0 <= token < len(self):
            return None
        saved = len(self._saved)
        record = self._saved[token] if token < saved else self._added[token - saved]
        index, start, end = (int(value) for value in record)
        if index == NO_DOCUMENT:
            return None
        if index >= len(self._documents):
            raise DataError(
                f"the page map names document {index} of {len(self._documents)}; "
                "it is damaged, ingest the documents again"
            )
        document = self._documents[index]
        return Place(
            document=index,
            page=page_at(document.pages, start),
            chapter=chapter_at(document.chapters, start),
            start=start,
            end=end,
        )

    def spans(self, first: int = 0, stop: int | None = None) -> NDArray[np.void]:
        """The records of the tokens `first` to `stop`, dtype `SPAN`; not to be written to."""
        saved = len(self._saved)
        stop = len(self) if stop is None else stop
        added = self._added[: self._count][max(0, first - saved) : max(0, stop - saved)]
        if first >= saved:
            return added
        own = self._saved[first:stop]
        return np.concatenate((own, added)) if len(added) else own

    def tobytes(self, first: int = 0) -> bytes:
        """What a file of the map holds from token `first` on."""
        return self.spans(first).tobytes()

    def _room(self, count: int) -> NDArray[np.void]:
        """The records of `count` new tokens, to be filled."""
        needed = self._count + count
        if needed > len(self._added):
            grown = np.empty(max(needed, 2 * len(self._added), _FIRST_CAPACITY), SPAN)
            grown[: self._count] = self._added[: self._count]
            self._added = grown
        room = self._added[self._count : needed]
        self._count = needed
        return room
