"""What passes between `extract` and the reader of one format: options in, content out.

Frozen values without behaviour; they know no format.
"""

from __future__ import annotations

from dataclasses import dataclass

from .document import Chapter, Page


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user said about a file; a reader takes what concerns its format."""

    password: str | None = None
    """Opens a protected PDF."""
    encoding: str | None = None
    """Of plain text and HTML; overrides what the file says and what can be guessed."""
    pages: tuple[tuple[int, int], ...] = ()
    """First and last number of the ranges of pages to read, in order and apart; empty for all."""
    force: bool = False
    """Read what looks like garbage or a decompression bomb, and give parsers more to work with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a reader found: the fields of a Document that depend on the format."""

    text: str
    pages: tuple[Page, ...] = ()
    chapters: tuple[Chapter, ...] = ()
    notes: tuple[str, ...] = ()
