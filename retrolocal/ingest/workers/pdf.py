"""Takes the raw text of a PDF out of PDFium; runs only inside the guarded child.

Yields one fact sheet, then one value per page. It imports PDFium and the standard library, uses
one thread, and leaves all judgement of the text to `pdf` and `pdf_text`.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import pypdfium2
import pypdfium2.raw as pdfium

_COPYING = 1 << 4
_PASSWORD_ERROR = 4
_SHORT = 4
_MAX_BOOKMARKS = 10_000
_MAX_TITLE_BYTES = 1 << 16
_LINE = re.compile(r"[^\r\n]*\r\n")


def work(file: BinaryIO, request: dict[str, Any]) -> Iterator[object]:
    """`request` has "password", "max_pages", "few_characters", and "ranges", [[first, last]] of the
    pages to read, in order.

    Yields {"error": str} alone, or {"pages": int, "restricted": bool, "bookmarks": [[title, page]]}
    and then for each page [number, text, has_picture]; the text is None for a damaged page.
    """
    try:
        document = pypdfium2.PdfDocument(file, password=request["password"])
    except pypdfium2.PdfiumError as error:
        yield {"error": "password" if _is_password(error) else "damaged"}
        return
    count = len(document)
    restricted = not pdfium.FPDF_GetDocPermissions(document.raw) & _COPYING
    bookmarks = list(_bookmarks(document.raw))
    yield {"pages": count, "restricted": restricted, "bookmarks": bookmarks}
    last_page = min(count, request["max_pages"])
    for first, last in request["ranges"]:
        for number in range(first, min(last, last_page) + 1):
            yield [number, *_page(document, number - 1, request["few_characters"])]


def _bookmarks(document: Any) -> Iterator[tuple[str, int]]:
    """Titles and page numbers of the outline in its order, as far as it is sane."""
    first = pdfium.FPDFBookmark_GetFirstChild(document, None)
    waiting = [first] if first else []
    seen: set[int] = set()
    while waiting and len(seen) < _MAX_BOOKMARKS:
        bookmark = waiting.pop()
        address = ctypes.cast(bookmark, ctypes.c_void_p).value or 0
        if address in seen:
            continue
        seen.add(address)
        target = _target(document, bookmark)
        if target >= 0:
            yield _title(bookmark), target + 1
        # The children come before the next sibling.
        following = (
            pdfium.FPDFBookmark_GetNextSibling(document, bookmark),
            pdfium.FPDFBookmark_GetFirstChild(document, bookmark),
        )
        waiting += [found for found in following if found]


def _target(document: Any, bookmark: Any) -> int:
    """The index of the page that a bookmark leads to; -1 for none."""
    place = pdfium.FPDFBookmark_GetDest(document, bookmark)
    if not place:
        action = pdfium.FPDFBookmark_GetAction(bookmark)
        place = pdfium.FPDFAction_GetDest(document, action) if action else None
    return int(pdfium.FPDFDest_GetDestPageIndex(document, place)) if place else -1


def _title(bookmark: Any) -> str:
    size = min(pdfium.FPDFBookmark_GetTitle(bookmark, None, 0), _MAX_TITLE_BYTES)
    buffer = ctypes.create_string_buffer(size)
    pdfium.FPDFBookmark_GetTitle(bookmark, buffer, size)
    return buffer.raw.decode("utf-16-le", "ignore").rstrip("\0")


def _is_password(error: Exception) -> bool:
    code = getattr(error, "err_code", None)
    return code == _PASSWORD_ERROR or (code is None and "password" in str(error).lower())


def _page(document: Any, index: int, few_characters: int) -> tuple[str | None, bool]:
    try:
        page = document[index]
    except pypdfium2.PdfiumError:
        return None, False
    try:
        textpage = page.get_textpage()
        try:
            text = _rejoin_raised(textpage.raw, textpage.get_text_range())
        finally:
            textpage.close()
        few = len(text.strip()) < few_characters
        return text, few and _has_picture(page)
    except pypdfium2.PdfiumError:
        return None, False
    finally:
        page.close()


def _has_picture(page: Any) -> bool:
    images = page.get_objects(filter=[pdfium.FPDF_PAGEOBJ_IMAGE], max_depth=4)
    return next(iter(images), None) is not None


def _rejoin_raised(textpage: Any, text: str) -> str:
    """PDFium breaks the line around an index or exponent; where the boxes of the characters before
    and after a break stand side by side, the break goes.
    """
    lines = [match.group() for match in _LINE.finditer(text)]
    lines.append(text[sum(map(len, lines)) :])
    pieces = []
    offset = 0
    for line, following in zip(lines, [*lines[1:], None], strict=True):
        offset += len(line)
        if following is not None and _may_continue(line, following):
            line = line[:-2] + _separator(textpage, text, offset)
        pieces.append(line)
    return "".join(pieces)


def _may_continue(line: str, following: str) -> bool:
    """An index stands alone on its line or begins one; asking for boxes elsewhere costs time."""
    return len(line) - 2 <= _SHORT or " " in following[: _SHORT + 1] or len(following) <= _SHORT + 2


def _separator(textpage: Any, text: str, offset: int) -> str:
    """What stands at the line break that ends at `offset`: itself, a space or nothing."""
    before, after = offset - 3, offset
    while before > 0 and text[before] == " ":
        before -= 1
    boxes = [_box(textpage, i) for i in (before, after) if 0 <= i < len(text)]
    if len(boxes) < 2 or boxes[0] is None or boxes[1] is None:
        return "\r\n"
    (_, bottom, right, top), (left, low, _, high) = boxes[0], boxes[1]
    height = min(top - bottom, high - low)
    overlap = min(top, high) - max(bottom, low)
    gap = left - right
    if height <= 0 or overlap < 0.5 * height or not -0.3 * height < gap < 3 * height:
        return "\r\n"
    return " " if gap > 0.25 * height else ""


def _box(textpage: Any, text_index: int) -> tuple[float, float, float, float] | None:
    index = pdfium.FPDFText_GetCharIndexFromTextIndex(textpage, text_index)
    box = pdfium.FS_RECTF()
    if index < 0 or not pdfium.FPDFText_GetLooseCharBox(textpage, index, ctypes.byref(box)):
        return None
    return box.left, box.bottom, box.right, box.top
