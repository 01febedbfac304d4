"""From what the user named to documents, one after the other.

The one place where a file that cannot be read is an error if it was named, and a remark if it only
lay in a folder. Whoever keeps documents is asked before a text is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import DocumentError
from .content import Options
from .document import Document
from .extract import Unread, open_document
from .folders import expand


def read_documents(
    paths: Sequence[str | Path],
    options: Options | None = None,
    *,
    find: Callable[[Unread], Document | None] = lambda unread: None,
    tell: Callable[[str], None] = lambda remark: None,
) -> Iterator[Document]:
    """The documents of files, folders and standard input (`-`), in the order of `expand`.

    `find` may know the document of a file already (by `digest` and `extractor`); then its text is
    not taken again. `tell` gets remarks, one line each, that belong to no document. Raises
    DocumentError, one line, for a named file that cannot be read, and where a folder has none that
    can; UsageError as `expand`.
    """
    selection = expand(paths)
    for note in selection.notes:
        tell(note)
    failed: list[str] = []
    count = 0
    for file in selection.files:
        try:
            with open_document(file.path, options, name=file.name) as unread:
                document = find(unread) or unread.read()
        except DocumentError as error:
            if file.is_named:
                raise
            failed.append(str(error))
            tell(f"left out: {error}")
            continue
        count += 1
        yield document
    if failed and not count:
        raise DocumentError(f"no file could be read; the first: {failed[0]}")
