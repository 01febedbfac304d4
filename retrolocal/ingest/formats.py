"""The formats that are read: content decides, the name only where content is silent.

`FORMATS` is the seam: for each format its names and suffixes, a reader and a version.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from . import html, light_markup, pdf, text, zipped
from .content import Content, Options
from .sniff import has_tag, recognise
from .source import OpenFile


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


def format_of(source: OpenFile) -> Format | None:
    """The format to read a file in; None for a known one that cannot be read."""
    found = recognise(source)
    if found is not None:
        return next((candidate for candidate in FORMATS if candidate.title == found), None)
    claimed = claimed_format(source)
    if claimed is _HTML and has_tag(source):
        return _HTML
    return claimed if claimed is not None and claimed.is_text else _PLAIN


def claimed_format(source: OpenFile) -> Format | None:
    """The format that the name speaks of."""
    return next((format for format in FORMATS if source.suffix in format.suffixes), None)


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
