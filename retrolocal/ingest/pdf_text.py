"""From the raw text of PDF pages to one readable text and its page map.

Mends what typesetting did: words broken at line ends, ligatures, running headers and footers, page
borders inside a sentence. Works on strings alone and decides by the statistics of the document.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from .document import Page
from .text import normalise

_WINDOW = 20
_RECURRENCE = 0.4
_MIN_RECURRENCE = 3
_MAX_RUNNING = 120
_RUNNING_LINES = 3

_LIGATURES = str.maketrans(
    dict(
        zip(
            "\ufb00\ufb01\ufb02\ufb03\ufb04\ufb05\ufb06",
            ("ff", "fi", "fl", "ffi", "ffl", "st", "st"),
            strict=True,
        )
    )
)
# PDFium joins a word broken at a line end and leaves U+FFFE or U+0002 for the hyphen.
_MARK = "\x02"
_SOFT_HYPHEN_BREAK = re.compile("\u00ad\r?\n")
# Invisible soft hyphens, and pieces of tall brackets from the Symbol font.
_LEFT_OUT = re.compile("[\u00ad\uf8e5-\uf8fe]")
_EMPTY_LINES = re.compile(r"\n{3,}")
_WORD = re.compile(r"\w+(?:-\w+)*")
_BROKEN_WORD = re.compile(rf"({_WORD.pattern}){_MARK}(?=(\w+))")
_BROKEN_END = re.compile(rf"\w[-\u2010{_MARK}]\Z")
_LOWER_START = re.compile(r"((?=[^\W\d_])[a-zß-öø-ÿ]\S*)\s*")
_DIGITS = re.compile(r"\d+")
_ROMAN = re.compile(r"[ivxlc]{1,8}", re.IGNORECASE)
_PAGE_NUMBER = (re.compile(r"\A\d{1,5}\b"), re.compile(r"\b\d{1,5}\Z"))


def assemble(raw_pages: Sequence[str]) -> tuple[str, tuple[Page, ...]]:
    """One text and the span of each page in it; pages with text are joined by one `\\n`.

    A word that runs across a border belongs to the page it begins on.
    """
    bodies = remove_running_lines([_tidy(raw) for raw in raw_pages])
    return _concatenate(mend_broken_words(_complete_last_words(bodies)))


def remove_running_lines(bodies: Sequence[str]) -> list[str]:
    """Pages without those first and last lines that recur, digits aside, or count the pages.

    A page's only line always stays.
    """
    pages = [body.split("\n") for body in bodies]
    for edge in (0, -1):
        for _ in range(_RUNNING_LINES):
            running = _running(pages, edge)
            for lines, drop in zip(pages, running, strict=True):
                if drop:
                    del lines[edge]
                    _drop_blank(lines, edge)
            if not any(running):
                break
    return ["\n".join(lines) for lines in pages]


def mend_broken_words(bodies: Sequence[str]) -> list[str]:
    """Pages whose `_MARK`s have become a hyphen or nothing, as the document spells the word.

    Where it spells the word neither way, the marks that could be decided vote; failing those, the
    hyphen stays between two words that the document knows.
    """
    broken = [body for body in bodies if _MARK in body]
    breaks = [match.groups() for body in broken for match in _BROKEN_WORD.finditer(body)]
    if not breaks:
        return [body.replace(_MARK, "") for body in bodies]
    known = Counter(word for body in bodies for word in _WORD.findall(body.casefold()))
    votes = Counter(_spelling(known, *pair) for pair in breaks)

    def mend(match: re.Match[str]) -> str:
        left, right = match.groups()
        keep = _spelling(known, left, right)
        if keep is None and votes[True] + votes[False] > 0:
            keep = votes[True] > votes[False]
        elif keep is None:
            keep = known[left.casefold()] > 1 and known[right.casefold()] > 1
        return f"{left}-" if keep else left

    return [
        _BROKEN_WORD.sub(mend, body).replace(_MARK, "") if _MARK in body else body
        for body in bodies
    ]


def _tidy(raw: str) -> str:
    """Normal form of one page; a word broken at a line end keeps a `_MARK`."""
    marked = _SOFT_HYPHEN_BREAK.sub(_MARK, raw.translate(_LIGATURES)).replace("\ufffe", _MARK)
    text = _MARK.join(normalise(part) for part in marked.split(_MARK))
    text = "\n".join(line.rstrip() for line in _LEFT_OUT.sub("", text).split("\n"))
    return _EMPTY_LINES.sub("\n\n", text).strip("\n")


def _running(pages: Sequence[list[str]], edge: int) -> list[bool]:
    """For each page, whether its line at `edge` is a running one."""
    signs = [_signs(lines, edge, index) for index, lines in enumerate(pages)]
    size = min(_WINDOW, len(signs))
    needed = max(_MIN_RECURRENCE, int(_RECURRENCE * size) + 1)
    running = []
    for index, own in enumerate(signs):
        start = min(max(0, index - size // 2), len(signs) - size)
        window = signs[start : start + size]
        running.append(any(sum(sign in other for other in window) >= needed for sign in own))
    return running


def _signs(lines: list[str], edge: int, index: int) -> frozenset[object]:
    """What a running line at `edge` would share with those of the pages around."""
    line = " ".join(lines[edge].split()) if len(lines) > 1 else ""
    if not line or len(line) > _MAX_RUNNING:
        return frozenset()
    if _ROMAN.fullmatch(line):
        return frozenset({"#"})
    signs: set[object] = {_DIGITS.sub("#", line)}
    signs.update(
        (side, int(match.group()) - index)
        for side, pattern in enumerate(_PAGE_NUMBER)
        if (match := pattern.search(line))
    )
    return frozenset(signs)


def _drop_blank(lines: list[str], edge: int) -> None:
    while len(lines) > 1 and not lines[edge].strip():
        del lines[edge]


def _complete_last_words(bodies: Sequence[str]) -> list[str]:
    """Pages whose broken last word has been completed from the next page."""
    mended = list(bodies)
    for index in range(len(mended) - 1):
        head = _LOWER_START.match(mended[index + 1])
        if head and _BROKEN_END.search(mended[index]):
            mended[index] = mended[index][:-1] + _MARK + head.group(1)
            mended[index + 1] = mended[index + 1][head.end() :]
    return mended


def _spelling(known: Counter[str], left: str, right: str) -> bool | None:
    """Whether the hyphen between `left` and `right` is part of the word; None where undecided."""
    if left[-1].isdigit() or right[0].isdigit() or (left[-1].islower() and right[0].isupper()):
        return True
    left, right = left.casefold(), right.casefold()
    hyphened, joined = known[f"{left}-{right}"], known[left + right]
    return None if hyphened == joined else hyphened > joined


def _concatenate(bodies: Sequence[str]) -> tuple[str, tuple[Page, ...]]:
    pieces: list[str] = []
    pages = []
    length = 0
    for number, body in enumerate(bodies, start=1):
        if body and pieces:
            pieces.append("\n")
            length += 1
        pages.append(Page(number, length, length + len(body)))
        if body:
            pieces.append(body)
            length += len(body)
    return "".join(pieces), tuple(pages)
