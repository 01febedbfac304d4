"""What passes between `read_document` and the reader of one format: options in, content out.

Frozen values without behaviour; they know no format.
"""

from __future__ import annotations

from dataclasses import dataclass

from .document import Page


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user said about a file; a reader takes what concerns its format."""

    password: str | None = None
    encoding: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a reader found: the fields of a Document that depend on the format."""

    text: str
    pages: tuple[Page, ...] = ()
    notes: tuple[str, ...] = ()
