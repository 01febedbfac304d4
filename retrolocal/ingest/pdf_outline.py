"""Chapters of a PDF: its bookmarks, each at the place on its page where its title stands.

Works on strings alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .chapters import MAX_TITLE, chapters_of
from .document import Chapter, Page
from .text import normalise

Bookmark = tuple[str, int]
"""Title and page number."""


def outline_chapters(
    text: str, pages: Sequence[Page], bookmarks: Sequence[Bookmark]
) -> tuple[Chapter, ...]:
    """Chapters in the order of the text; of several at one place the last, the innermost, counts.

    A title that does not stand on its page begins its chapter where the page begins.
    """
    places: dict[int, str] = {}
    numbered = {page.number: page for page in pages}
    for raw, number in bookmarks:
        title = " ".join(normalise(raw).split())[:MAX_TITLE]
        if title and number in numbered:
            places[_place(text, numbered[number], title)] = title
    return chapters_of(text, [(start, places[start]) for start in sorted(places)])


def _place(text: str, page: Page, title: str) -> int:
    words = r"\s+".join(re.escape(word) for word in title.split())
    # A heading often has a number that its bookmark lacks.
    line = re.compile(rf"^[^\w\n]*(?:[\w.]{{1,8}}[ \t]+)?{words}", re.IGNORECASE | re.MULTILINE)
    found = line.search(text, page.start, page.end)
    return page.start if found is None else found.start()
