"""Files become text: what a document says and on which page it says it.

`read_document` is the only entrance. This package imports neither torch nor any model code, and
no parser before a file needs it.
"""

from __future__ import annotations

from .document import Document, Page
from .extract import read_document

__all__ = ["Document", "Page", "read_document"]
