"""A document as the rest of the program sees it: text, pages, chapters, identity, remarks.

Plain frozen values. They promise that the spans of pages, and those of chapters, lie in the text,
in order and without overlap. They do not know which format the text came from.
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
class Chapter:
    """What stands under one heading, up to the next heading of any level."""

    title: str
    """One line, never empty."""
    start: int
    """Offset of its first character in the document's text; the heading belongs to it."""
    end: int
    """Offset behind its last character."""


@dataclass(frozen=True, slots=True)
class Document:
    """The text of one file."""

    name: str
    """The file's name without its folder; in a folder that was given, its path from there, with
    the folder's name; `stdin` for standard input."""
    text: str
    """NFC, lines end in `\\n`, no control characters but `\\n` and `\\t`."""
    pages: tuple[Page, ...]
    """In order; empty where the format has no pages."""
    digest: str
    """BLAKE2b-256 of the file's bytes, 64 hexadecimal digits."""
    notes: tuple[str, ...]
    """Remarks for the user, one line each."""
    chapters: tuple[Chapter, ...] = ()
    """In order; empty where nothing in the file is a heading. Text before the first heading
    belongs to none."""
    extractor: str = ""
    """What made the text of the bytes: the same digest and extractor give the same text."""

    def page_at(self, offset: int) -> int | None:
        """The number of the page that holds the character at `offset`; as of `page_at`."""
        return page_at(self.pages, offset) if offset < len(self.text) else None

    def chapter_at(self, offset: int) -> str | None:
        """The title of the chapter that holds the character at `offset`; as of `chapter_at`."""
        return chapter_at(self.chapters, offset) if offset < len(self.text) else None


def page_at(pages: tuple[Page, ...], offset: int) -> int | None:
    """The number of the page that holds the character at `offset` of a text that reaches so far.

    A line break between two pages belongs to the first. None before the first page.
    """
    after = bisect_right(pages, offset, key=lambda page: page.start)
    for page in reversed(pages[:after]):
        if page.start < page.end:
            return page.number
    return None


def chapter_at(chapters: tuple[Chapter, ...], offset: int) -> str | None:
    """The title of the chapter that holds the character at `offset` of a text that reaches so far.

    Empty lines between two chapters belong to the first. None before the first chapter.
    """
    after = bisect_right(chapters, offset, key=lambda chapter: chapter.start)
    return chapters[after - 1].title if after else None
