"""A document as the rest of the program sees it: text, pages, chapters, identity, remarks.

Plain frozen values. They promise that the spans of pages, and those of chapters, lie in the text,
in order and without overlap. They do not know which format the text came from.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

from ..errors import DataError

_Span = TypeVar("_Span", "Page", "Chapter")
_DAMAGED = "the saved facts of a document make no sense; ingest it again"


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

    def to_json(self) -> dict[str, Any]:
        """All but the text, as JSON can hold it: spans as lists of numbers in one flat list."""
        return {
            "name": self.name,
            "digest": self.digest,
            "extractor": self.extractor,
            "notes": list(self.notes),
            "pages": list(chain.from_iterable((p.number, p.start, p.end) for p in self.pages)),
            "chapters": [[c.title, c.start, c.end] for c in self.chapters],
        }

    @classmethod
    def from_json(cls, value: object, text: str) -> Document:
        """The document of `to_json` and its text.

        Raises DataError when the value is not what `to_json` gives, or spans leave the text.
        """
        match value:
            case {
                "name": str(name),
                "digest": str(digest),
                "extractor": str(extractor),
                "notes": [*notes],
                "pages": [*numbers],
                "chapters": [*chapters],
            } if all(isinstance(note, str) for note in notes):
                return cls(
                    name=name,
                    text=text,
                    pages=_checked(_pages(numbers), len(text)),
                    digest=digest,
                    notes=tuple(notes),
                    chapters=_checked(_chapters(chapters), len(text)),
                    extractor=extractor,
                )
        raise DataError(_DAMAGED)

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


def _pages(numbers: list[object]) -> tuple[Page, ...]:
    if len(numbers) % 3 or not all(type(number) is int for number in numbers):
        raise DataError(_DAMAGED)
    triples = zip(*[iter(numbers)] * 3, strict=True)
    return tuple(Page(*triple) for triple in triples)


def _chapters(values: list[object]) -> tuple[Chapter, ...]:
    found = []
    for value in values:
        match value:
            case [str(title), int(start), int(end)] if title:
                found.append(Chapter(title, start, end))
            case _:
                raise DataError(_DAMAGED)
    return tuple(found)


def _checked(spans: tuple[_Span, ...], length: int) -> tuple[_Span, ...]:
    """The spans, in order and inside a text of `length` characters."""
    before = 0
    for span in spans:
        if not before <= span.start <= span.end <= length:
            raise DataError(_DAMAGED)
        before = span.end
    return spans
