"""From a path to a Document, in two steps: what the file is, and what it says.

Between the two a reader of the first can see that it knows the text already. Whatever is not a
format that can be read is refused by the name of what was found.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import DocumentError
from .content import Options
from .document import Document
from .formats import Format, claimed_format, extractor_of, format_of
from .sniff import recognise
from .source import OpenFile, open_source


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


@contextmanager
def _one_line(label: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DocumentError(f"{label} cannot be read: {error.strerror or error}") from error


def _name_notes(source: OpenFile, chosen: Format) -> tuple[str, ...]:
    claimed = claimed_format(source)
    if claimed is None or claimed is chosen:
        return ()
    return (
        f"the name ends in {source.suffix} but the content is {chosen.title}; "
        f"read as {chosen.title}",
    )
