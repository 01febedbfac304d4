"""From a path to a Document: content decides the format, the name only where content is silent.

`FORMATS` is the seam: for each format its names and suffixes, a reader and a version. Everything
that is not one of them is refused by the name of what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..errors import DocumentError
from . import html, light_markup, pdf, text, zipped
from .content import Content, Options
from .document import Document
from .sniff import has_tag, recognise
from .source import OpenFile, open_source


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One readable format."""

    title: str
    """How notes and `recognise` call it."""
    key: str
    """How extractors call it."""
    version: int
    """Counted up whenever the same bytes give another text, other pages or other chapters."""
    libraries: tuple[str, ...] = ()
    """Distributions whose version may change the text."""
    suffixes: tuple[str, ...] = ()
    """Lower case with the dot; other names give a note, not a refusal."""
    is_text: bool = False
    """Whether the content is plain text, so that only the suffix tells it from others."""
    is_paged: bool = False
    """Whether pages can be chosen."""
    max_bytes: int
    """Larger files are refused before anything of them is read."""
    read: Callable[[OpenFile, Options], Content]
    """The text; raises DocumentError."""


_MAX_TEXT_BYTES = 512 << 20
_MAX_HTML_BYTES = 256 << 20
_MAX_PARSED_BYTES = 8 << 30
_PLAIN = Format(
    title="plain text",
    key="text",
    version=1,
    libraries=("charset-normalizer",),
    suffixes=(".txt", ".text"),
    is_text=True,
    max_bytes=_MAX_TEXT_BYTES,
    read=text.read_text,
)
_HTML = Format(
    title="HTML",
    key="html",
    version=1,
    libraries=("selectolax", "charset-normalizer"),
    suffixes=(".html", ".htm", ".xhtml"),
    max_bytes=_MAX_HTML_BYTES,
    read=html.read_html,
)
FORMATS: tuple[Format, ...] = (
    Format(
        title="PDF",
        key="pdf",
        version=1,
        libraries=("pypdfium2",),
        suffixes=(".pdf",),
        is_paged=True,
        max_bytes=_MAX_PARSED_BYTES,
        read=pdf.read_pdf,
    ),
    Format(
        title="EPUB",
        key="epub",
        version=1,
        libraries=("selectolax",),
        suffixes=(".epub",),
        max_bytes=_MAX_PARSED_BYTES,
        read=zipped.read_epub,
    ),
    Format(
        title="DOCX",
        key="docx",
        version=1,
        suffixes=(".docx", ".docm", ".dotx"),
        max_bytes=_MAX_PARSED_BYTES,
        read=zipped.read_docx,
    ),
    _HTML,
    Format(
        title="Markdown",
        key="markdown",
        version=1,
        libraries=("charset-normalizer",),
        suffixes=(".md", ".markdown"),
        is_text=True,
        max_bytes=_MAX_TEXT_BYTES,
        read=light_markup.read_markdown,
    ),
    Format(
        title="reStructuredText",
        key="rst",
        version=1,
        libraries=("charset-normalizer",),
        suffixes=(".rst",),
        is_text=True,
        max_bytes=_MAX_TEXT_BYTES,
        read=light_markup.read_rst,
    ),
    _PLAIN,
)
"""What no other format claims, source code for one, is read as plain text if it is text."""


def read_document(
    path: str | Path,
    *,
    password: str | None = None,
    encoding: str | None = None,
    pages: tuple[tuple[int, int], ...] = (),
    force: bool = False,
) -> Document:
    """The text of the file at `path`; `-` is standard input.

    The keywords are the fields of `Options`. Raises DocumentError, one line that names the file,
    for whatever cannot be read as text.
    """
    options = Options(password=password, encoding=encoding, pages=pages, force=force)
    with open_document(path, options) as found:
        return found.read()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """A file whose format is known and whose text has not been taken yet."""

    name: str
    """As `Document.name`."""
    size: int
    """Bytes."""
    digest: str
    """As `Document.digest`."""
    extractor: str
    """As `Document.extractor`: with the digest it tells whether the text is known already."""
    format: Format
    _source: OpenFile
    _options: Options

    def read(self) -> Document:
        """Takes the text; raises DocumentError."""
        label = self._source.label
        with _one_line(label):
            content = self.format.read(self._source, self._options)
            # Else the digest, taken before, would speak of another text.
            self._source.require_unchanged()
        if not content.text.strip():
            raise DocumentError(f"{label} has no text")
        return Document(
            name=self.name,
            text=content.text,
            pages=content.pages,
            chapters=content.chapters,
            digest=self.digest,
            extractor=self.extractor,
            notes=_name_notes(self._source, self.format) + content.notes,
        )


@contextmanager
def open_document(
    path: str | Path, options: Options | None = None, *, name: str | None = None
) -> Iterator[Unread]:
    """Opens a file and finds out what it is, without taking its text.

    `name` stands in for the file's own. Raises DocumentError for what is empty, cannot be opened
    or is not a format that can be read.
    """
    options = options or Options()
    with open_source(path) as source:
        if source.size == 0:
            raise DocumentError(f"{source.label} is empty")
        with _one_line(source.label):
            chosen = format_of(source)
            if chosen is None:
                found = recognise(source)
                raise DocumentError(
                    f"{source.label} is not a format that can be read (found: {found})"
                )
            _require_size(source, chosen)
            if options.pages and not chosen.is_paged:
                raise DocumentError(
                    f"{source.label} is {chosen.title}, which has no pages; leave --pages out"
                )
            digest = source.digest()
        yield Unread(
            name=source.name if name is None else name,
            size=source.size,
            digest=digest,
            extractor=extractor_of(chosen, options),
            format=chosen,
            _source=source,
            _options=options,
        )


def _require_size(source: OpenFile, chosen: Format) -> None:
    if source.size > chosen.max_bytes:
        raise DocumentError(
            f"{source.label} has {source.size / 1e9:.1f} GB; at most "
            f"{chosen.max_bytes / 1e9:.1f} GB of {chosen.title} can be read; split it"
        )


def extractor_of(chosen: Format, options: Options) -> str:
    """Format, its version, those of its libraries, and what of the options changes the text."""
    parts = [f"{chosen.key}/{chosen.version}"]
    parts += [f"{library}/{_installed(library)}" for library in chosen.libraries]
    if options.pages and chosen.is_paged:
        parts.append("pages=" + ",".join(f"{first}-{last}" for first, last in options.pages))
    if options.encoding is not None and (chosen.is_text or chosen is _HTML):
        parts.append(f"encoding={options.encoding.lower()}")
    return " ".join(parts)


def _installed(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"


@contextmanager
def _one_line(label: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DocumentError(f"{label} cannot be read: {error.strerror or error}") from error


def format_of(source: OpenFile) -> Format | None:
    """The format to read a file in; None for a known one that cannot be read."""
    found = recognise(source)
    if found is not None:
        return next((candidate for candidate in FORMATS if candidate.title == found), None)
    claimed = _claimed(source)
    if claimed is _HTML and has_tag(source):
        return _HTML
    return claimed if claimed is not None and claimed.is_text else _PLAIN


def _claimed(source: OpenFile) -> Format | None:
    """The format that the name speaks of."""
    return next((format for format in FORMATS if source.suffix in format.suffixes), None)


def _name_notes(source: OpenFile, chosen: Format) -> tuple[str, ...]:
    claimed = _claimed(source)
    if claimed is None or claimed is chosen:
        return ()
    return (
        f"the name ends in {source.suffix} but the content is {chosen.title}; "
        f"read as {chosen.title}",
    )
