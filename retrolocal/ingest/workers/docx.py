"""The text of a Word document in pieces, each from one heading to the next.

The XML is read as a stream. Tables are read row by row, notes stand at the end, deleted text and
field codes are left out. Only local names count, so strict and transitional files are alike.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from posixpath import dirname, join, normpath
from typing import Any, BinaryIO
from xml.etree import ElementTree

from .archive import Archive, BadArchiveError

_HEADING_STYLE = re.compile(r"(?:heading [1-9]|title)", re.IGNORECASE)
_TEXT = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
_NOTES = (("footnotes", "footnote"), ("endnotes", "endnote"))
_LEFT_OUT = frozenset({"Fallback", "del", "moveFrom", "tabs", "pPrChange"})
"""Second readings of text boxes, tracked deletions, tab stops, and styles that were."""

Element = ElementTree.Element


def work(file: BinaryIO, request: dict[str, Any]) -> Iterator[object]:
    """`request` has "limits". Yields {"error": str} alone, or {"error": None} and then
    [title or None, text]."""
    try:
        archive = Archive(file, request["limits"])
        pieces = list(_read(archive))
    except BadArchiveError as error:
        yield {"error": str(error)}
    except (ElementTree.ParseError, KeyError, ValueError):
        yield {"error": "damaged"}
    else:
        yield {"error": None}
        yield from pieces


def _read(archive: Archive) -> Iterator[list[str | None]]:
    main = _main_part(archive)
    headings = _heading_styles(archive, dirname(main))
    notes = _Notes()
    title: str | None = None
    lines: list[str] = []
    for is_heading, line in _paragraphs(archive.read(main), headings, notes):
        if is_heading and line.strip():
            yield [title, "\n".join(lines)]
            title, lines = " ".join(line.split()), []
        lines.append(line)
    yield [title, "\n".join(lines)]
    for part, kind in _NOTES:
        name = join(dirname(main), f"{part}.xml")
        if name in archive.names:
            yield [None, "\n".join(_note_lines(archive.read(name), kind, notes))]


def _main_part(archive: Archive) -> str:
    """Where the package says that its document is."""
    if "_rels/.rels" not in archive.names:
        return "word/document.xml"
    for relation in ElementTree.fromstring(archive.read("_rels/.rels")):
        if relation.get("Type", "").endswith("/officeDocument"):
            return normpath(relation.get("Target", "").lstrip("/"))
    return "word/document.xml"


def _heading_styles(archive: Archive, folder: str) -> frozenset[str]:
    """Ids of paragraph styles that are headings, by their English built-in name or outline."""
    name = join(folder, "styles.xml")
    if name not in archive.names:
        return frozenset({"Title", *(f"Heading{level}" for level in range(1, 10))})
    found = set()
    for style in ElementTree.fromstring(archive.read(name)):
        title = next((_value(child) for child in style if _tag(child) == "name"), "")
        outlined = any(
            _tag(child) == "outlineLvl" and _value(child) < "9" for child in style.iter()
        )
        if _HEADING_STYLE.fullmatch(title) or outlined:
            found.add(_attribute(style, "styleId"))
    return frozenset(found)


class _Notes:
    """Numbers of footnotes and endnotes in the order in which the text refers to them."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[str, str], int] = {}

    def refer(self, kind: str, name: str) -> str:
        number = self.numbers.setdefault((kind, name), len(self.numbers) + 1)
        return f"[{number}]"


def _note_lines(xml: bytes, kind: str, notes: _Notes) -> Iterator[str]:
    found = {}
    for note in ElementTree.fromstring(xml):
        number = notes.numbers.get((kind, _attribute(note, "id")))
        if number is not None:
            flow = _Flow(frozenset(), notes)
            flow.read(note)
            found[number] = " ".join(" ".join(line for _, line in flow.lines).split())
    yield from (f"[{number}] {found[number]}" for number in sorted(found))


def _paragraphs(xml: bytes, headings: frozenset[str], notes: _Notes) -> Iterator[tuple[bool, str]]:
    """`(is heading, text)` of the paragraphs and table rows of a body, one after the other."""
    depth = 0
    for event, element in ElementTree.iterparse(io.BytesIO(xml), ("start", "end")):
        depth += 1 if event == "start" else -1
        if event == "end" and depth == 2:
            flow = _Flow(headings, notes)
            flow.read(element)
            yield from flow.lines
            element.clear()


class _Flow:
    """Reads one block, which may hold others, into lines. Keeps its own stack: files nest deep."""

    def __init__(self, headings: frozenset[str], notes: _Notes) -> None:
        self.lines: list[tuple[bool, str]] = []
        self._headings = headings
        self._notes = notes
        self._text: list[str] = []
        self._is_heading = False
        self._cells = 0

    def read(self, block: Element) -> None:
        stack = [(block, iter(block))]
        self._open(block)
        while stack:
            element, children = stack[-1]
            child = next(children, None)
            if child is None:
                stack.pop()
                self._close(element)
            elif _tag(child) not in _LEFT_OUT:
                stack.append((child, iter(child)))
                self._open(child)
        self._end_line()

    def _open(self, element: Element) -> None:
        tag = _tag(element)
        if tag == "t":
            self._text.append(element.text or "")
        elif tag in _TEXT:
            self._text.append(" " if self._cells else _TEXT[tag])
        elif tag in ("footnoteReference", "endnoteReference"):
            kind = tag.removesuffix("Reference")
            self._text.append(self._notes.refer(kind, _attribute(element, "id")))
        elif self._makes_heading(tag, _value(element)):
            self._is_heading = not self._cells
        elif tag == "tc":
            self._cells += 1
        elif tag == "txbxContent":
            self._end_line()

    def _makes_heading(self, tag: str, value: str) -> bool:
        return (tag == "pStyle" and value in self._headings) or (
            tag == "outlineLvl" and value < "9"
        )

    def _close(self, element: Element) -> None:
        tag = _tag(element)
        if tag == "p":
            if self._cells:
                self._text.append(" ")
            else:
                self._end_line()
        elif tag == "tc":
            self._cells -= 1
            self._text.append("\t")
        elif tag == "tr" and not self._cells:
            self._end_line()
        elif tag == "tbl" and not self._cells:
            self.lines.append((False, ""))

    def _end_line(self) -> None:
        line = "\t".join(part.strip(" ") for part in "".join(self._text).split("\t")).rstrip()
        if line:
            self.lines.append((self._is_heading, line))
        self._text, self._is_heading = [], False


def _tag(element: Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _attribute(element: Element, name: str) -> str:
    """An attribute by its local name."""
    return next((v for key, v in element.attrib.items() if key.rpartition("}")[2] == name), "")


def _value(element: Element) -> str:
    return _attribute(element, "val")
