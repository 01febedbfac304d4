"""One text and its chapters, put together from the pieces that a parser cut at headings.

Works on strings alone. A chapter begins at its heading and ends before the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .document import Chapter
from .guard import GuardError
from .text import normalise

MAX_TITLE = 200

_BETWEEN = "\n\n"

Piece = tuple[str | None, str]
"""Title of the chapter that begins here, if one does, and text."""
Heading = tuple[int, str]
"""Offset of a heading's first line, and its title."""


def parse_piece(value: object) -> Piece:
    """A worker's `[title or None, text]`, checked: a hostile file may have taken it over."""
    match value:
        case [None | str() as title, str(text)]:
            return title, text
    raise GuardError


def assemble(pieces: Iterable[Piece]) -> tuple[str, tuple[Chapter, ...]]:
    """One text of pieces, and its chapters.

    A piece with a title begins a chapter; one without goes on with the chapter before it. Pieces
    are brought to normal form and joined by an empty line; empty ones are left out.
    """
    texts: list[str] = []
    headings: list[Heading] = []
    length = 0
    for title, raw in pieces:
        text = _tidy(raw)
        if not text:
            continue
        if texts:
            length += len(_BETWEEN)
        if title is not None:
            headings.append((length, title))
        texts.append(text)
        length += len(text)
    whole = _BETWEEN.join(texts)
    return whole, chapters_of(whole, headings)


def chapters_of(text: str, headings: Sequence[Heading]) -> tuple[Chapter, ...]:
    """The chapters that begin at `headings`, in order; a heading without words begins none."""
    named = [(start, " ".join(title.split())[:MAX_TITLE]) for start, title in headings]
    named = [(start, title) for start, title in named if title]
    ends = [*(start for start, _ in named), len(text)][1:]
    return tuple(
        Chapter(title, start, start + len(text[start:end].rstrip()))
        for (start, title), end in zip(named, ends, strict=True)
    )


def _tidy(raw: str) -> str:
    return "\n".join(line.rstrip() for line in normalise(raw).split("\n")).strip("\n")
