"""From Markdown tokens to blocks that are laid out by themselves: paragraphs, code, tables.

Styles are named by the theme's variables, so a block is made once and shown under any theme.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textual.content import Content, Span
from textual.highlight import highlight

if TYPE_CHECKING:
    from markdown_it.token import Token

MARGIN = "$text-muted"
_CODE = "on $foreground 8%"
_INLINE_CODE = "$text-accent on $foreground 8%"
_HEADING = "bold $text-primary"
_STYLES = {
    "strong_open": "bold",
    "em_open": "italic",
    "s_open": "strike",
    "link_open": "underline",
}
_HIGHLIGHT_LIMIT = 20_000
"""Characters of a code block beyond which it is shown in one colour."""


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph or code; `first` stands before its first line, `rest` before the others."""

    content: Content
    first: str = ""
    rest: str = ""
    code: bool = False
    item: bool = False
    """Part of a list: follows another such block without a blank line."""

    def lines(self, width: int) -> list[Content]:
        """Lines of at most `width` cells (at least 4 beside the margin)."""
        room = _room(width, self.rest)
        if not self.code:
            return _with_margin(self.content.wrap(room), self.first, self.rest)
        rows = [
            row for line in self.content.split("\n", allow_blank=True) for row in _fold(line, room)
        ]
        shaded = [
            row.pad_right(max(0, room - row.cell_length)).stylize_before(_CODE) for row in rows
        ]
        return _with_margin(shaded, self.first, self.rest)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, the first one the head."""

    rows: tuple[tuple[Content, ...], ...]
    first: str = ""
    rest: str = ""
    item: bool = False

    def lines(self, width: int) -> list[Content]:
        """Lines of at most `width` cells; cells wrap where the columns do not fit."""
        columns = max(len(row) for row in self.rows)
        wanted = [
            max(row[c].cell_length for row in self.rows if c < len(row)) for c in range(columns)
        ]
        widths = _column_widths(wanted, _room(width, self.rest) - 3 * (columns - 1))
        found: list[Content] = []
        for number, row in enumerate(self.rows):
            found += _table_row(row, widths)
            if number == 0:
                found.append(Content.styled("─┼─".join("─" * w for w in widths), MARGIN))
        return _with_margin(found, self.first, self.rest)


def blocks(tokens: Sequence[Token], source: str, *, open_end: bool) -> Iterator[Block | Table]:
    """Blocks of some tokens of `source`; `open_end` when more text may follow it.

    The tokens may begin or end inside a top-level list.
    """
    margin = _Margin()
    heading = False
    table: list[list[Content]] | None = None
    for token in tokens:
        match token.type:
            case "list_item_open":
                bullet = f"{token.info}{token.markup} " if token.info else "• "
                margin.enter(bullet, " " * len(bullet))
            case "blockquote_open":
                margin.enter("▌ ", "▌ ")
            case "list_item_close" | "blockquote_close":
                if margin.unused:
                    yield Block(Content(""), *margin.take(), item=True)
                margin.leave()
            case "heading_open" | "heading_close":
                heading = token.type == "heading_open"
            case "table_open":
                table = []
            case "tr_open" if table is not None:
                table.append([])
            case "table_close" if table is not None:
                rows, table = table, None
                yield Table(tuple(map(tuple, rows)), *margin.take(), item=margin.in_list)
            case "inline" if table is not None:
                table[-1].append(_inline(token))
            case "inline":
                content = _inline(token)
                content = content.stylize(_HEADING) if heading else content
                yield Block(content, *margin.take(), item=margin.in_list)
            case "fence" | "code_block":
                plain = open_end and not _is_closed(token, source)
                yield Block(_code(token, plain), *margin.take(), code=True, item=margin.in_list)
            case "hr":
                yield Block(Content.styled("─" * 8, MARGIN), *margin.take(), item=margin.in_list)


class _Margin:
    """What stands left of a block: a bullet once, then as much space; a quotation's bar always."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, str]] = []

    def enter(self, first: str, rest: str) -> None:
        self._parts.append((first, rest))

    def leave(self) -> None:
        self._parts.pop()

    def take(self) -> tuple[str, str]:
        """The margin of the next block's first line and of its other lines."""
        first, rest = ("".join(column) for column in zip(("", ""), *self._parts, strict=True))
        self._parts = [(part, part) for _, part in self._parts]
        return first, rest

    @property
    def unused(self) -> bool:
        """Whether nothing has stood beside the innermost bullet."""
        return bool(self._parts) and self._parts[-1][0] != self._parts[-1][1]

    @property
    def in_list(self) -> bool:
        return any(rest.isspace() for _, rest in self._parts)


def _inline(token: Token) -> Content:
    """The text of a paragraph or a cell; a line break in it is one on the screen."""
    parts: list[str] = []
    spans: list[Span] = []
    opened: list[tuple[int, Token]] = []
    length = 0
    for child in token.children or []:
        text = "\n" if child.type in ("softbreak", "hardbreak") else child.content
        if child.type in _STYLES:
            opened.append((length, child))
        elif child.type.endswith("_close"):
            start, opening = opened.pop()
            spans.append(Span(start, length, _STYLES[opening.type]))
            if opening.type == "link_open":
                text = _address(opening, "".join(parts)[start:])
        elif child.type == "image":
            text += f" ({child.attrs.get('src', '')})"
        elif child.type == "code_inline":
            spans.append(Span(length, length + len(text), _INLINE_CODE))
        parts.append(text)
        length += len(text)
    return Content("".join(parts), spans=spans)


def _address(link: Token, text: str) -> str:
    address = str(link.attrs.get("href", ""))
    return "" if address in (text, f"mailto:{text}") else f" ({address})"


def _code(token: Token, plain: bool) -> Content:
    text = token.content.removesuffix("\n").expandtabs(4)
    language = token.info.split()[0] if token.info.split() else "text"
    if plain or language == "text" or len(text) > _HIGHLIGHT_LIMIT:
        return Content(text)
    return highlight(text, language=language)


def _is_closed(fence: Token, source: str) -> bool:
    """Whether the last line of a code block is its closing mark."""
    if fence.type != "fence" or fence.map is None:
        return False
    first, end = fence.map
    lines = source.split("\n")
    return end - first >= 2 and lines[end - 1].strip(" \t>").startswith(fence.markup)


def _room(width: int, margin: str) -> int:
    return max(4, width - Content(margin).cell_length)


def _with_margin(lines: Sequence[Content], first: str, rest: str) -> list[Content]:
    if not rest:
        return list(lines)
    return [
        Content.styled(rest if number else first, MARGIN) + line
        for number, line in enumerate(lines)
    ]


def _fold(line: Content, width: int) -> list[Content]:
    """A line of code cut wherever it must be, so that all of it shows."""
    return line.fold(width) if line.cell_length > width else [line]


def _column_widths(wanted: Sequence[int], room: int) -> list[int]:
    """Widths of the columns: narrow ones get what they want, wide ones share the rest."""
    widths = [0] * len(wanted)
    left = max(room, 3 * len(wanted))
    order = sorted(range(len(wanted)), key=lambda column: wanted[column])
    for place, column in enumerate(order):
        widths[column] = max(1, min(wanted[column], left // (len(order) - place)))
        left -= widths[column]
    return widths


def _table_row(row: Sequence[Content], widths: Sequence[int]) -> list[Content]:
    cells = [
        _cell(row[column], width) if column < len(row) else []
        for column, width in enumerate(widths)
    ]
    height = max(1, *(len(cell) for cell in cells)) if cells else 1
    bar = Content.styled(" │ ", MARGIN)
    return [
        bar.join(
            _padded(cell[line] if line < len(cell) else Content(""), width)
            for cell, width in zip(cells, widths, strict=True)
        )
        for line in range(height)
    ]


def _cell(content: Content, width: int) -> list[Content]:
    fits = content.cell_length <= width and "\n" not in content.plain
    return [content] if fits else content.wrap(width)


def _padded(content: Content, width: int) -> Content:
    return content.pad_right(max(0, width - content.cell_length))
