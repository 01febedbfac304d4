"""EPUB and DOCX: XML in a ZIP file, and what a user must know about them.

The archive is opened, inflated and parsed in a guarded child (`workers.epub`, `workers.docx`); this
module knows the limits and judges what comes back: bombs, DRM, damage, missing parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import DocumentError
from .chapters import assemble, parse_piece
from .content import Content, Options
from .guard import GuardError, Limits, run_guarded
from .source import OpenFile, printable

MAX_MEMBERS = 20_000
MAX_BYTES = 512 << 20
MAX_RATIO = 200
RATIO_FROM_BYTES = 1 << 20

_WORKERS = Path(__file__).parent / "workers"
_SHOWN_NAMES = 3


def read_epub(source: OpenFile, options: Options, limits: Limits | None = None) -> Content:
    """The text of an e-book, a chapter for each entry of its table of contents.

    Raises DocumentError for protected, damaged and hostile files.
    """
    return _read(source, options, limits, title="EPUB", worker="epub", library="selectolax")


def read_docx(source: OpenFile, options: Options, limits: Limits | None = None) -> Content:
    """The text of a Word document, a chapter for each heading; tables by row, notes at the end.

    Raises DocumentError for damaged and hostile files.
    """
    return _read(source, options, limits, title="DOCX", worker="docx", library=None)


def _read(
    source: OpenFile,
    options: Options,
    limits: Limits | None,
    *,
    title: str,
    worker: str,
    library: str | None,
) -> Content:
    limits = limits or Limits.usual(is_forced=options.force)
    request = {
        "limits": {
            "members": MAX_MEMBERS,
            "bytes": MAX_BYTES,
            "ratio": 0 if options.force else MAX_RATIO,
            "ratio_from": RATIO_FROM_BYTES,
        }
    }
    path = _WORKERS / f"{worker}.py"
    try:
        values = run_guarded(path, library, source.file, request, limits)
        error, missing = _facts(next(values, None))
        if error is not None:
            raise DocumentError(f"{source.label} {_refusal(error, title)}")
        text, chapters = assemble(parse_piece(value) for value in values)
    except GuardError as failure:
        raise DocumentError(f"{source.label}: {failure}") from failure
    return Content(text=text, chapters=chapters, notes=tuple(_notes(missing)))


def _facts(value: object) -> tuple[str | None, Sequence[str]]:
    """The worker's first value, checked: a hostile file may have taken the worker over."""
    match value:
        case {"error": str(error)}:
            return error, ()
        case {"error": None, "missing": [*missing]}:
            return None, [str(name) for name in missing]
        case {"error": None}:
            return None, ()
    raise GuardError


def _refusal(error: str, title: str) -> str:
    match error:
        case "locked":
            return (
                "is an e-book protected by DRM; only the seller's reader can open it, "
                "get it without DRM"
            )
        case "encrypted":
            return f"is an encrypted {title}; save it without a password"
        case "members":
            return f"holds more than {MAX_MEMBERS:,} files; it may be damaged or malicious"
        case "bytes":
            return (
                f"inflates to more than {MAX_BYTES >> 20} MB; it may be a decompression bomb and "
                "is not read"
            )
        case "ratio":
            return (
                f"inflates more than {MAX_RATIO}-fold; it may be a decompression bomb "
                f"(--force reads up to {MAX_BYTES >> 20} MB of it all the same)"
            )
    return f"is a damaged {title} (truncated or overwritten); get it again or repair it"


def _notes(missing: Sequence[str]) -> Iterator[str]:
    if missing:
        shown = ", ".join(printable(name) for name in missing[:_SHOWN_NAMES])
        more = f" and {len(missing) - _SHOWN_NAMES} more" if len(missing) > _SHOWN_NAMES else ""
        yield f"missing in the file, and left out: {shown}{more}"
