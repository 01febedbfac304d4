"""Markdown as it arrives, laid out in lines of styled text.

`Prose.append` takes pieces cut anywhere; blocks before the last one never change again, so a
piece costs what the last block costs, and an item of a list is a block of its own. The lines do
not depend on how the text was cut. Raw HTML and link definitions stay the text they are. Knows no
widget; the blocks themselves are in `prose_blocks`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.content import Content

from .foreign import visible
from .prose_blocks import MARGIN, Block, Table, blocks

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token


@functools.cache
def _markdown() -> MarkdownIt:
    # Not before an answer: the first screen would wait for it.
    from markdown_it import MarkdownIt

    return (
        MarkdownIt("commonmark", {"html": False})
        .enable(["table", "strikethrough"])
        # A definition at the end of an answer would change blocks that were shown long before.
        .disable(["reference", "html_block", "html_inline"])
    )


class Prose:
    """An answer: its Markdown so far and the lines of it at one width."""

    def __init__(self, source: str = "") -> None:
        self.source = ""
        """The text as it is shown: control characters made visible, lines end in `\\n`."""
        self._held = ""
        self._finished = False
        self._width = 0
        self._blocks: list[Block | Table] = []
        self._settled = 0
        """Blocks that never change again ..."""
        self._settled_until = 0
        """... and the place in `source` where they end."""
        self._lines: list[Content] = []
        self._settled_lines = 0
        if source:
            self.append(source)
            self.finish()

    def append(self, piece: str) -> None:
        """More text; a carriage return at its end waits for what follows it."""
        piece = self._held + piece
        self._held = "\r" if piece.endswith("\r") else ""
        certain = piece[: len(piece) - len(self._held)]
        if certain:
            self.source += visible(certain)
            self._parse()

    def finish(self) -> None:
        """There is no more text: what looked unfinished is taken as it stands."""
        self._finished = True
        if self._held:
            self._held, self.source = "", self.source + "\n"
        self._parse()

    def lines(self, width: int) -> list[Content]:
        """All lines at this width, in cells; the list grows in place."""
        if width != self._width:
            self._width, self._lines, self._settled_lines = width, [], 0
            self._lay_out(0)
        return self._lines

    @property
    def code_blocks(self) -> list[str]:
        """The text of each code block, without its last line break."""
        tokens = _markdown().parse(self.source)
        return [t.content.removesuffix("\n") for t in tokens if t.type in ("fence", "code_block")]

    def _parse(self) -> None:
        rest = self.source[self._settled_until :]
        tokens = _markdown().parse(rest)
        cut = 0 if self._finished else _last_restart(tokens, rest.split("\n"))
        settled = list(blocks(tokens[:cut], rest, open_end=False))
        tail = blocks(tokens[cut:], rest, open_end=not self._finished)
        before = self._settled
        self._blocks[before:] = [*settled, *tail]
        self._settled = before + len(settled)
        if cut:
            line = (tokens[cut].map or [0])[0]
            self._settled_until += _offset_of_line(rest, line)
        self._lay_out(before)

    def _lay_out(self, first_block: int) -> None:
        """Lays out the blocks from `first_block` on; the lines of those before it are there."""
        if self._width <= 0:
            return
        del self._lines[self._settled_lines :]
        for number in range(first_block, len(self._blocks)):
            if number == self._settled:
                self._settled_lines = len(self._lines)
            block = self._blocks[number]
            before = self._blocks[number - 1] if number else None
            if before is not None and not (block.item and before.item):
                bars = _shared_beginning(before.rest, block.rest).rstrip()
                self._lines.append(Content.styled(bars, MARGIN))
            self._lines += block.lines(self._width)
        if self._settled == len(self._blocks):
            self._settled_lines = len(self._lines)


def _last_restart(tokens: Sequence[Token], lines: Sequence[str]) -> int:
    """Number of the last token from which parsing alone gives the same; 0 when there is none.

    A top-level block, or an item of a top-level list that is not indented, with a complete first
    line: nothing that follows changes what stands before it.
    """
    found = 0
    list_indented = False
    for number, token in enumerate(tokens):
        if token.map is None or token.nesting < 0 or token.map[0] >= len(lines) - 1:
            continue
        indented = lines[token.map[0]].startswith((" ", "\t"))
        if token.level == 0:
            found = number
            list_indented = indented
        elif (
            token.level == 1 and token.type == "list_item_open" and not (indented or list_indented)
        ):
            found = number
    return found


def _shared_beginning(one: str, other: str) -> str:
    same = [a == b for a, b in zip(one, other, strict=False)]
    return one[: same.index(False) if False in same else len(same)]


def _offset_of_line(text: str, line: int) -> int:
    at = 0
    for _ in range(line):
        at = text.index("\n", at) + 1
    return at
