"""Markdown and reStructuredText: kept as they are, which models read well; headings make chapters.

Knows no more of the two languages than what tells a heading from a line that looks like one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise

from .chapters import Heading, chapters_of
from .content import Content, Options
from .source import OpenFile
from .text import read_text

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_ATX = re.compile(r" {0,3}#{1,6}(?=[ \t]|$)")
_ATX_END = re.compile(r"(?:^|[ \t])#+$")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*")
_NOT_A_PARAGRAPH = re.compile(r"\s*$| {4,}|\t| {0,3}(?:[-*+>|]|\d+[.)])(?:\s|$)")
_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1*")


def read_markdown(source: OpenFile, options: Options) -> Content:
    """As `read_text`, with chapters."""
    return _with_chapters(read_text(source, options), markdown_headings)


def read_rst(source: OpenFile, options: Options) -> Content:
    """As `read_text`, with chapters."""
    return _with_chapters(read_text(source, options), rst_headings)


def _with_chapters(content: Content, headings: Callable[[str], Iterator[Heading]]) -> Content:
    chapters = chapters_of(content.text, list(headings(content.text)))
    return Content(text=content.text, chapters=chapters, notes=content.notes)


def markdown_headings(text: str) -> Iterator[Heading]:
    """ATX (`# Title`) and setext (underlined) headings outside fenced code and front matter."""
    fence = ""
    before: tuple[int, str] | None = None
    for start, line in _lines(text, _front_matter(text)):
        mark = _FENCE.fullmatch(line)
        if fence:
            if mark and mark[1].startswith(fence) and not mark[2].strip():
                fence = ""
        elif mark and not (mark[1][0] == "`" and "`" in mark[2]):
            fence = mark[1]
        elif atx := _ATX.match(line):
            yield start, _ATX_END.sub("", line[atx.end() :].strip())
        elif before and _SETEXT.fullmatch(line):
            yield before
        elif not _NOT_A_PARAGRAPH.match(line):
            before = (start, line.strip())
            continue
        before = None


def rst_headings(text: str) -> Iterator[Heading]:
    """Titles with a line of one punctuation character under them, as docutils takes them.

    A transition (a line of punctuation between empty lines) and the borders of a table are none.
    """
    lines = list(_lines(text, 0))
    previous: tuple[int, str] | None = None
    for (start, line), (_, under) in pairwise(lines):
        title = line.strip()
        over, previous = previous, (start, line)
        if not title or _ADORNMENT.fullmatch(title) or not _ADORNMENT.fullmatch(under.rstrip()):
            continue
        if len(under.rstrip()) < min(len(title), 4):
            continue
        if over is not None and over[1].rstrip() == under.rstrip():
            yield over[0], title
        elif line == line.lstrip() and (over is None or not over[1].strip()):
            yield start, title


def _lines(text: str, start: int) -> Iterator[tuple[int, str]]:
    """Each line with its offset, without its line break."""
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield start, text[start:end]
        start = end + 1


def _front_matter(text: str) -> int:
    """Where the text begins behind a YAML block between two lines of dashes; 0 without one."""
    if not text.startswith("---\n"):
        return 0
    end = text.find("\n---\n", 3)
    return 0 if end < 0 else end + len("\n---\n")
