"""Files become text: what a document says, on which page and in which chapter.

`read_document` takes the text of a file; `open_document` first tells what the file is. This
package imports neither torch nor any model code, and no parser before a file needs it.
"""

from __future__ import annotations

from .content import Options
from .document import Chapter, Document, Page
from .extract import open_document, read_document

__all__ = ["Chapter", "Document", "Options", "Page", "open_document", "read_document"]
