"""HTML and XHTML: what a browser would show as text, a chapter for each heading.

Characters are decoded here, by the ladder of plain text with the page's own word on its encoding;
Lexbor parses them in a guarded child (`workers.html`).
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from ..errors import DocumentError
from .chapters import assemble, parse_piece
from .content import Content, Options
from .guard import GuardError, Limits, run_guarded
from .source import OpenFile
from .text import normalise, read_characters

_WORKER = Path(__file__).parent / "workers" / "html.py"
_DECLARED = re.compile(
    rb"<\?xml[^>]{0,200}?encoding=[\"']([\w.:-]{1,40})"
    rb"|<meta[^>]{0,400}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})",
    re.I,
)
_XML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<\?xml\s")
_AS_WEB = {"iso-8859-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252"}
"""What browsers take these names for."""


def read_html(source: OpenFile, options: Options, limits: Limits | None = None) -> Content:
    """The text of a page; `limits` default to those for its size.

    Raises DocumentError for what is not text, too large or hostile.
    """
    cpu_seconds = 20 + (source.size >> 19)
    limits = limits or Limits.usual(cpu_seconds=cpu_seconds, is_forced=options.force)
    characters, notes = read_characters(source, options, declared=_declared(source.head))
    is_xhtml = source.suffix == ".xhtml" or bool(_XML.match(source.head))
    with tempfile.TemporaryFile() as file:
        file.write(normalise(characters).encode())
        file.flush()
        try:
            values = run_guarded(_WORKER, "selectolax", file, {"is_xhtml": is_xhtml}, limits)
            text, chapters = assemble(parse_piece(value) for value in values)
        except GuardError as error:
            raise DocumentError(f"{source.label}: {error}") from error
    return Content(text=text, chapters=chapters, notes=notes)


def _declared(head: bytes) -> str | None:
    found = _DECLARED.search(head)
    if found is None:
        return None
    name = (found[1] or found[2]).decode("ascii", "ignore").lower()
    # A page whose ASCII letters could be read cannot be in UTF-16, whatever it says.
    return None if name.startswith("utf-16") else _AS_WEB.get(name, name)
