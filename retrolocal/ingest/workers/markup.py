"""HTML and XHTML to readable text, with the places of its headings and of given anchors.

Lexbor parses as browsers do. Breaks and places are marked in the tree with noncharacters of
Unicode, which no text contains; one call then gives the text of the whole tree, and the marks
become line breaks and offsets. Lexbor's cost is linear but for markup nested tens of thousands
deep: what a look at the usual tags finds of that is refused, the guard's limits end the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from selectolax.lexbor import LexborHTMLParser, LexborNode, SelectolaxError

_LINE, _PARAGRAPH, _CELL = "\ufdd0", "\ufdd1", "\ufdd2"
_KEPT_LINE, _KEPT_SPACE, _KEPT_TAB = "\ufdd3", "\ufdd4", "\ufdd5"
_HEADING, _HEADING_END = "\ufdd6", "\ufdd7"
_ANCHOR, _ANCHOR_END = "\ufdd8", "\ufdd9"
_MARKS = re.compile("[\ufdd0-\ufdef]")

_WITHOUT_TEXT = ["script", "style", "template", "noscript", "head", "svg style"]
_MAIN = ("main", "[role=main]", "article")
_MAIN_SHARE = 0.5
_HEADINGS = "h1, h2, h3, h4, h5, h6"
_PARAGRAPHS = (
    "p, pre, blockquote, ul, ol, dl, table, hr, figure, section, article, header, footer, main, "
    f"aside, nav, form, fieldset, details, {_HEADINGS}"
)
_LINES = "div, li, dt, dd, tr, caption, figcaption, address, legend, summary, option, br"
_TIGHT = "li ul, li ol, li > p, dd > p, td > :only-child, th > :only-child, li > :only-child"
"""Would break a list or a table row apart: these get the smaller break, or none in a cell."""

_NESTING_TAG = re.compile(
    r"<(/?)(?:div|span|section|article|aside|header|footer|main|nav|blockquote|center|ul|ol|dl|menu"
    r"|table|form|fieldset|figure|figcaption|details|summary|address|dialog|hgroup|search)\b",
    re.IGNORECASE,
)
_MAX_DEPTH = 10_000

_SPACES = re.compile(r"[ \t\n\r\f\xa0]+")
_INVISIBLE = re.compile("[\xad\u200b]")
_BREAKS = re.compile(
    f" ?[{_LINE}{_PARAGRAPH}](?:[ {_LINE}{_PARAGRAPH}{_CELL}]*[{_LINE}{_PARAGRAPH}])? ?"
)
_CELLS = re.compile(f" ?{_CELL} ?")
_KEEP = str.maketrans({"\n": _KEPT_LINE, " ": _KEPT_SPACE, "\t": _KEPT_TAB})
_SHOW = str.maketrans(
    dict.fromkeys(map(chr, range(0xFDD0, 0xFDF0)), "")
    | {_CELL: "\t", _KEPT_LINE: "\n", _KEPT_SPACE: " ", _KEPT_TAB: "\t"}
)
_SPACE_AT_START = re.compile(f"(^|\n)((?:[{_HEADING}{_HEADING_END}]|{_ANCHOR}\\d+{_ANCHOR_END})+) ")
_PLACES = re.compile(f"{_HEADING}|{_HEADING_END}|{_ANCHOR}(\\d{{1,9}}){_ANCHOR_END}")

_SELF_CLOSED = re.compile(r"<([A-Za-z][\w:.-]*)((?:\s[^<>]*)?)/>")
_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param"}
    | {"source", "track", "wbr"}
)


@dataclass(frozen=True, slots=True)
class Markup:
    """The text of a page and where in it things stand."""

    text: str
    headings: Sequence[tuple[int, str]]
    """Offset and title, in order."""
    anchors: Sequence[tuple[int, int]]
    """Offset and number of each anchor that was found, in order."""


def read_markup(source: str, anchors: Sequence[str] = (), *, is_xhtml: bool = False) -> Markup:
    """The text of a page; `anchors` are the ids to find.

    Raises MemoryError where it is short, RecursionError for markup nested too deep.
    """
    _require_shallow(source)
    try:
        return _read(source, anchors, is_xhtml=is_xhtml)
    except SelectolaxError as error:
        # Lexbor takes any input; what it cannot do is allocate.
        raise MemoryError from error


def _read(source: str, anchors: Sequence[str], *, is_xhtml: bool) -> Markup:
    source = _MARKS.sub("", source)
    tree = LexborHTMLParser(as_html(source) if is_xhtml else source)
    tree.strip_tags(_WITHOUT_TEXT)
    body = tree.body
    if body is None:
        return Markup("", (), ())
    root = _main_part(body)
    _mark_preformatted(root)
    _mark_blocks(root)
    _mark_headings(root)
    _mark_anchors(root, anchors)
    return _read_marks(_arranged(root.text(deep=True, separator="", strip=False)))


def as_html(source: str) -> str:
    """XHTML's `<title/>` as `<title></title>`: to an HTML parser the first would never end."""

    def close(match: re.Match[str]) -> str:
        name, attributes = match.groups()
        if name.lower() in _VOID:
            return match[0]
        return f"<{name}{attributes}></{name}>"

    return _SELF_CLOSED.sub(close, source)


def cut(text: str, places: Iterable[tuple[int, str]]) -> Iterator[list[str | None]]:
    """`[title, text]` pieces of `text`, cut at places in order; the first may have no title."""
    start, title = 0, None
    for place, following in places:
        yield [title, text[start:place]]
        start, title = place, following
    yield [title, text[start:]]


def _require_shallow(source: str) -> None:
    depth = 0
    for tag in _NESTING_TAG.finditer(source):
        depth += -1 if tag[1] else 1
        if depth > _MAX_DEPTH:
            raise RecursionError


def _main_part(body: LexborNode) -> LexborNode:
    """The part that the page says is its main one, if more than half of the text is in it."""
    whole = len(body.text(deep=True))
    for selector in _MAIN:
        part = body.css_first(selector)
        if part is not None and len(part.text(deep=True)) > _MAIN_SHARE * whole:
            return part
    return body


def _mark_preformatted(root: LexborNode) -> None:
    inner = {node.mem_id for node in root.css("pre pre")}
    for node in [node for node in root.css("pre") if node.mem_id not in inner]:
        text = node.text(deep=True, separator="", strip=False)
        node.replace_with(f"{_PARAGRAPH}{text.strip(chr(10)).translate(_KEEP)}{_PARAGRAPH}")


def _mark_blocks(root: LexborNode) -> None:
    tight = {node.mem_id for node in root.css(_TIGHT)}
    for node in root.css("td, th"):
        node.insert_after(_CELL)
    _surround((node for node in root.css(_PARAGRAPHS) if node.mem_id not in tight), _PARAGRAPH)
    _surround((node for node in root.css("li ul, li ol") if node.mem_id in tight), _LINE)
    _surround((node for node in root.css(_LINES) if node.mem_id not in tight), _LINE)


def _mark_headings(root: LexborNode) -> None:
    for node in root.css(_HEADINGS):
        node.insert_before(_HEADING)
        node.insert_after(_HEADING_END)


def _mark_anchors(root: LexborNode, anchors: Sequence[str]) -> None:
    wanted = {anchor: number for number, anchor in enumerate(anchors)}
    if not wanted:
        return
    for node in root.css("[id], a[name]"):
        name = node.attributes.get("id") or node.attributes.get("name")
        number = wanted.pop(name, None) if name is not None else None
        if number is not None:
            node.insert_before(f"{_ANCHOR}{number}{_ANCHOR_END}")


def _surround(nodes: Iterable[LexborNode], mark: str) -> None:
    for node in nodes:
        node.insert_before(mark)
        node.insert_after(mark)


def _arranged(marked: str) -> str:
    """White space as a browser shows it; the marks of headings and anchors stay."""
    text = _SPACES.sub(" ", _INVISIBLE.sub("", marked))
    text = _BREAKS.sub(lambda run: "\n\n" if _PARAGRAPH in run[0] else "\n", text)
    return _CELLS.sub(_CELL, _SPACE_AT_START.sub(r"\1\2", text))


def _read_marks(text: str) -> Markup:
    pieces: list[str] = []
    headings: list[tuple[int, str]] = []
    anchors: list[tuple[int, int]] = []
    length = offset = 0
    open_heading: int | None = None
    for mark in _PLACES.finditer(text):
        piece = _joined(pieces, text[offset : mark.start()])
        length, offset = length + len(piece), mark.end()
        if mark[1] is not None:
            anchors.append((length, int(mark[1])))
        elif mark[0] == _HEADING:
            open_heading = len(pieces)
            start = length
        elif open_heading is not None:
            title = " ".join("".join(pieces[open_heading:]).translate(_SHOW).split())
            if title:
                headings.append((start, title))
            open_heading = None
    _joined(pieces, text[offset:])
    return Markup("".join(pieces).translate(_SHOW), headings, anchors)


def _joined(pieces: list[str], piece: str) -> str:
    """Appends a piece, without the break it begins with where there is one already."""
    if not pieces or pieces[-1].endswith("\n"):
        piece = piece.lstrip("\n")
    if piece:
        pieces.append(piece)
    return piece
