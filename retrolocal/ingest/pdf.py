"""PDF: pages, text and what a user must know about them.

PDFium runs in a guarded child (`workers.pdf`), one document per process; this module judges what
comes back: passwords, damage, pictures without text. It never loads PDFium itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from ..errors import DocumentError
from .content import Content, Options
from .garbage import garbage_reason
from .guard import GuardError, Limits, run_guarded
from .pdf_outline import Bookmark, outline_chapters
from .pdf_text import assemble
from .source import OpenFile, printable

_WORKER = Path(__file__).parent / "workers" / "pdf.py"
_MAX_PAGES = 100_000
_FEW_CHARACTERS = 20
_SHOWN_CHARACTERS = 80
_TAIL_BYTES = 2048


def read_pdf(source: OpenFile, options: Options, limits: Limits | None = None) -> Content:
    """The text of a PDF with its page map; `limits` default to those for its size.

    Raises DocumentError for protected, damaged, scanned and hostile files.
    """
    cpu_seconds = 120 + (source.size >> 20)
    limits = limits or Limits.usual(cpu_seconds=cpu_seconds, is_forced=options.force)
    request = {
        "password": options.password,
        "max_pages": _MAX_PAGES,
        "few_characters": _FEW_CHARACTERS,
        "ranges": options.pages or [(1, _MAX_PAGES)],
    }
    try:
        facts, pages = _parse(run_guarded(_WORKER, "pypdfium2", source.file, request, limits))
    except GuardError as error:
        raise DocumentError(f"{source.label}: {error}") from error
    if facts.error is not None:
        raise DocumentError(f"{source.label} {_refusal(facts.error, options.password)}")
    if facts.pages > _MAX_PAGES:
        raise DocumentError(
            f"{source.label} claims {facts.pages:,} pages; at most {_MAX_PAGES:,} can be read"
        )
    if not pages and facts.pages:
        raise DocumentError(f"{source.label} has {facts.pages:,} pages; --pages names none of them")
    _require_text(source.label, pages)
    if not options.force:
        _require_sense(source.label, pages)
    text, spans = assemble([page.text for page in pages])
    spans = tuple(
        replace(span, number=page.number) for span, page in zip(spans, pages, strict=True)
    )
    return Content(
        text=text,
        pages=spans,
        chapters=outline_chapters(text, spans, facts.bookmarks),
        notes=(*_notes(facts, pages), *_tail_notes(source)),
    )


@dataclass(frozen=True, slots=True)
class _Facts:
    pages: int = 0
    restricted: bool = False
    bookmarks: tuple[Bookmark, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class _RawPage:
    number: int
    text: str = ""
    is_picture: bool = False
    is_damaged: bool = False


def _parse(values: Iterator[object]) -> tuple[_Facts, list[_RawPage]]:
    """The worker's values, checked: a hostile file may have taken the worker over."""
    match next(values, None):
        case {"error": str(error)}:
            return _Facts(error=error), []
        case {"pages": int(pages), "restricted": bool(restricted), "bookmarks": [*bookmarks]}:
            facts = _Facts(pages, restricted, tuple(map(_parse_bookmark, bookmarks)))
            return facts, [_parse_page(value) for value in values]
    raise GuardError


def _parse_bookmark(value: object) -> Bookmark:
    match value:
        case [str(title), int(page)]:
            return title, page
    raise GuardError


def _parse_page(value: object) -> _RawPage:
    match value:
        case [int(number), None, False]:
            return _RawPage(number, is_damaged=True)
        case [int(number), str(text), bool(is_picture)]:
            return _RawPage(number, text, is_picture)
    raise GuardError


def _refusal(error: str, password: str | None) -> str:
    if error != "password":
        return "is a damaged PDF (truncated or overwritten); get it again or repair it"
    if password is None:
        return "is protected by a password; give it with --password (or RETROLOCAL_PDF_PASSWORD)"
    return "is protected by a password, and the one given is wrong"


def _require_text(label: str, pages: Sequence[_RawPage]) -> None:
    if all(page.is_damaged for page in pages):
        raise DocumentError(f"{label} is a damaged PDF: none of its {len(pages)} pages can be read")
    pictures = sum(page.is_picture for page in pages)
    if pictures and median(len(page.text.strip()) for page in pages) < _FEW_CHARACTERS:
        raise DocumentError(
            f"{label}: {pictures} of {len(pages)} pages are pictures without text; "
            "run OCR first (for example ocrmypdf in.pdf out.pdf)"
        )


def _require_sense(label: str, pages: Sequence[_RawPage]) -> None:
    """Refuses a text layer that is garbage, as fonts without a map to Unicode give it."""
    start = next((page.text for page in pages if page.text.strip()), "")
    reason = garbage_reason([page.text for page in pages])
    if reason is not None:
        shown = printable(" ".join(start.split())[:_SHOWN_CHARACTERS])
        raise DocumentError(
            f"{label}: its text layer looks like garbage ({reason}), it begins with “{shown}”; "
            "run OCR (for example ocrmypdf --force-ocr in.pdf out.pdf), or read it all the same "
            "with --force"
        )


def _notes(facts: _Facts, pages: Sequence[_RawPage]) -> Iterator[str]:
    if pictures := [page.number for page in pages if page.is_picture]:
        yield f"{_listed(pictures)} pictures without text; run OCR to have them read"
    if damaged := [page.number for page in pages if page.is_damaged]:
        yield f"{_listed(damaged)} damaged and left out"
    if facts.restricted:
        yield "the author has restricted copying from this PDF"


def _listed(numbers: Sequence[int]) -> str:
    """`page 3 is` or `pages 1-4, 7 are`."""
    ranges = [f"{a}-{b}" if a < b else f"{a}" for a, b in _ranges(numbers)]
    return f"page {numbers[0]} is" if len(numbers) == 1 else f"pages {', '.join(ranges)} are"


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def _tail_notes(source: OpenFile) -> Iterator[str]:
    source.file.seek(max(0, source.size - _TAIL_BYTES))
    if b"%%EOF" not in source.file.read(_TAIL_BYTES):
        yield "the PDF has no end mark; it may be cut off and its last pages missing"
