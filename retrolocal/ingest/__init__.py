"""Files become text: what a document says, on which page and in which chapter.

`read_document` takes the text of a file, `read_documents` that of files and folders;
`open_document` first tells what a file is. This package imports neither torch nor any model code,
and no parser before a file needs it.
"""

from __future__ import annotations

from .content import Options
from .document import Chapter, Document, Page
from .extract import Unread, open_document, read_document
from .folders import Selection, expand, given_once
from .reading import read_documents

__all__ = [
    "Chapter",
    "Document",
    "Options",
    "Page",
    "Selection",
    "Unread",
    "expand",
    "given_once",
    "open_document",
    "read_document",
    "read_documents",
]
