"""A document as the rest of the program sees it: text, pages, identity, remarks.

Plain frozen values. They promise that every page's span lies in the text, in order and without
overlap. They do not know which format the text came from.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a paged format."""

    number: int
    """Counted from 1, in file order."""
    start: int
    """Offset of its first character in the document's text."""
    end: int
    """Offset behind its last character; equal to `start` for a page without text."""


@dataclass(frozen=True, slots=True)
class Document:
    """The text of one file."""

    name: str
    """The file's name without its folder; `stdin` for standard input."""
    text: str
    """NFC, lines end in `\\n`, no control characters but `\\n` and `\\t`."""
    pages: tuple[Page, ...]
    """In order; empty where the format has no pages."""
    digest: str
    """BLAKE2b-256 of the file's bytes, 64 hexadecimal digits."""
    notes: tuple[str, ...]
    """Remarks for the user, one line each."""

    def page_at(self, offset: int) -> int | None:
        """The number of the page that holds the character at `offset`.

        A line break between two pages belongs to the first. None where the text has no pages or
        the offset lies outside it.
        """
        if not 0 <= offset < len(self.text):
            return None
        after = bisect_right(self.pages, offset, key=lambda page: page.start)
        for page in reversed(self.pages[:after]):
            if page.start < page.end:
                return page.number
        return None
