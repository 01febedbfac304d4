"""The texts of an entry: what was extracted from its files, so that it is done only once."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from ..errors import DamagedError
from . import canonical
from .canonical import Json
from .filesystem import FileSystem
from .manifest import StoredDocument, checked_digest, checked_name, name_like
from .objects import get_object, put_object
from .reading import AGAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentText:
    """A document as it is given to the library."""

    name: str
    digest: str
    """BLAKE2b-256 of the file's bytes, 64 hexadecimal digits."""
    extractor: str
    """Name, version and options of what made text of it."""
    text: str
    outline: Json = None
    """What is known of its pages and chapters."""


def store_document(fs: FileSystem, document: DocumentText) -> StoredDocument:
    """Puts text and outline of a document into the library; raises ValueError, OSError."""
    return StoredDocument(
        name=name_like(document.name),
        digest=checked_digest(document.digest),
        extractor=checked_name(document.extractor),
        characters=len(document.text),
        text=put_object(fs, document.text.encode("utf-8", "surrogatepass")),
        outline=put_object(fs, canonical.encode(document.outline)),
    )


def read_text(fs: FileSystem, stored: StoredDocument) -> str:
    """The text of a stored document; raises DamagedError."""
    text = get_object(fs, stored.text).decode("utf-8", "surrogatepass")
    if len(text) != stored.characters:
        raise DamagedError(
            f"the text of {stored.name} has {len(text):,} characters instead of "
            f"{stored.characters:,}; {AGAIN}"
        )
    return text


def read_outline(fs: FileSystem, stored: StoredDocument) -> Any:
    """The outline of a stored document; raises DamagedError."""
    try:
        return canonical.decode(get_object(fs, stored.outline))
    except ValueError as error:
        raise DamagedError(f"the outline of {stored.name} is damaged ({error}); {AGAIN}") from error


def lost_of_corpus(name: str, error: DamagedError) -> DamagedError:
    """What is said of a text of a corpus that cannot be read: reading one file again is no help."""
    quoted = shlex.quote(name)
    return DamagedError(
        f"{str(error).removesuffix(AGAIN)}retrolocal library show {quoted} names the files: "
        f"remove the corpus (retrolocal library rm {quoted}), then ingest them again with "
        f"--corpus {quoted}"
    )


def text_of(fs: FileSystem, stored: StoredDocument) -> DocumentText:
    """A stored document as it was given; raises DamagedError."""
    return DocumentText(
        name=stored.name,
        digest=stored.digest,
        extractor=stored.extractor,
        text=read_text(fs, stored),
        outline=read_outline(fs, stored),
    )
