"""From a path to a Document: content decides the format, the name only where content is silent.

`FORMATS` is the seam: an ordered tuple of formats, each with a test on the first bytes and a
reader. Everything a format cannot read is refused by the name of what was found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import DocumentError
from . import pdf, text
from .content import Content, Options
from .document import Document
from .sniff import known_foreign
from .source import OpenFile, open_source


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One readable format."""

    title: str
    """How notes call it."""
    suffixes: tuple[str, ...]
    """Lower case with the dot; other names give a note, not a refusal."""
    matches: Callable[[OpenFile], bool]
    """Whether the content is of this format."""
    read: Callable[[OpenFile, Options], Content]
    """The text; raises DocumentError."""


FORMATS: tuple[Format, ...] = (
    Format(title="PDF", suffixes=(".pdf",), matches=pdf.matches, read=pdf.read_pdf),
)
"""Formats known by their first bytes, asked in order; what none of them claims may be text."""

_TEXT = Format(
    title="plain text",
    suffixes=(".txt", ".md", ".markdown", ".text"),
    matches=lambda source: known_foreign(source) is None,
    read=text.read_text,
)


def read_document(
    path: str | Path, *, password: str | None = None, encoding: str | None = None
) -> Document:
    """The text of the file at `path`; `-` is standard input.

    `password` opens a protected PDF; `encoding` overrides the guess for plain text. Raises
    DocumentError, one line that names the file, for whatever cannot be read as text.
    """
    options = Options(password=password, encoding=encoding)
    with open_source(path) as source:
        if source.size == 0:
            raise DocumentError(f"{source.label} is empty")
        try:
            chosen = _format_of(source)
            content = chosen.read(source, options)
            digest = source.digest()
        except OSError as error:
            reason = error.strerror or str(error)
            raise DocumentError(f"{source.label} cannot be read: {reason}") from error
        if not content.text.strip():
            raise DocumentError(f"{source.label} has no text")
        return Document(
            name=source.name,
            text=content.text,
            pages=content.pages,
            digest=digest,
            notes=_name_notes(source, chosen) + content.notes,
        )


def _format_of(source: OpenFile) -> Format:
    for candidate in (*FORMATS, _TEXT):
        if candidate.matches(source):
            return candidate
    found = known_foreign(source) or "unknown binary"
    raise DocumentError(f"{source.label} is not a format that can be read (found: {found})")


def _name_notes(source: OpenFile, chosen: Format) -> tuple[str, ...]:
    claimed = next((f for f in (*FORMATS, _TEXT) if source.suffix in f.suffixes), chosen)
    if claimed is chosen:
        return ()
    return (
        f"the name ends in {source.suffix} but the content is {chosen.title}; "
        f"read as {chosen.title}",
    )
