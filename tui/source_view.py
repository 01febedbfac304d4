"""The whole text of a document, with the passages an answer was read from.

The text is drawn row by row from offsets (`text_rows`), so a book of a million tokens opens at
once. A passage is marked by a bar at the left whose height is its share of the attention; the
wording is that the answer was read from it, which is all that attention says.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence

import numpy as np
from rich.segment import Segment
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.content import Content
from textual.geometry import Size
from textual.screen import Screen
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Input, Static

from .answer import bar
from .engine import DocumentFacts, Source
from .foreign import one_line, visible
from .text_rows import TextRows

GUTTER = 3
MARGIN_ROWS = 3
"""Rows left above a place that is gone to."""


class TextView(ScrollView, can_focus=True):
    """A text with marked stretches, by the line API."""

    BINDINGS = [
        Binding("j", "scroll_down", show=False),
        Binding("k", "scroll_up", show=False),
        Binding("G", "scroll_end", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.marks: Sequence[tuple[int, int, float]] = ()
        """First character, end, share of the strongest mark; in order, apart from each other."""
        self._found: tuple[int, int] | None = None
        self._rows: TextRows | None = None
        self._starts = self._ends = np.zeros(0, dtype=np.int64)
        self._width = 0

    def show_text(self, text: str, marks: Sequence[tuple[int, int, float]]) -> None:
        """Shows a text from its beginning."""
        self.text, self.marks, self._found = text, sorted(marks), None
        self._rows = TextRows(text)
        self._width = 0
        self._lay_out()

    def mark_found(self, first: int, end: int) -> None:
        """Marks the place that was searched for."""
        self._found = first, end
        self.refresh()

    def go_to(self, character: int) -> None:
        """Scrolls to where a character stands."""
        row = max(0, int(np.searchsorted(self._starts, character, side="right")) - 1)
        self.scroll_to(y=max(0, row - MARGIN_ROWS), animate=False, force=True, immediate=True)

    @property
    def first_character(self) -> int:
        """The first character on the screen."""
        if not len(self._starts):
            return 0
        return int(self._starts[min(self.scroll_offset.y, len(self._starts) - 1)])

    @property
    def at_end(self) -> bool:
        return self.scroll_offset.y >= self.max_scroll_y

    def on_resize(self) -> None:
        self._lay_out()

    def render_line(self, y: int) -> Strip:
        """Row `y` of the screen."""
        width = self.size.width
        number = self.scroll_offset.y + y
        base = self.visual_style
        if number >= len(self._starts):
            return Strip.blank(width, base.rich_style)
        start, end = int(self._starts[number]), int(self._ends[number])
        row = Content(visible(self.text[start:end]).replace("\t", " "))
        share = 0.0
        for first, last, strength in self._marks_in(start, end):
            row = row.stylize("bold on $accent 25%", max(0, first - start), last - start)
            share = max(share, strength)
        if self._found is not None and self._found[0] < end and self._found[1] > start:
            first, last = self._found
            row = row.stylize("reverse", max(0, first - start), last - start)
        sign = bar(share, 2) if share else "·"
        line = Content.assemble((f"{sign:<2} ", "$accent" if share else "$text-muted"), row)
        pieces = line.render(base, "", parse_style=self.app.stylesheet.parse_style)
        strip = Strip([Segment(text, style.rich_style) for text, style in pieces])
        return strip.adjust_cell_length(width, base.rich_style)

    def _marks_in(self, start: int, end: int) -> list[tuple[int, int, float]]:
        return [mark for mark in self.marks if mark[0] < end and mark[1] > start]

    def _lay_out(self) -> None:
        width = self.scrollable_content_region.width - GUTTER
        if self._rows is None or width <= 0 or width == self._width:
            return
        kept = self.first_character if self._width else None
        self._width = width
        self._starts, self._ends = self._rows.at_width(width)
        self.virtual_size = Size(width, len(self._starts))
        self.refresh()
        if kept is not None:
            row = int(np.searchsorted(self._starts, kept, side="right")) - 1
            self.scroll_to(y=max(0, row), animate=False, force=True, immediate=True)


class Asker(Input):
    """The line at the bottom that takes a search or a page."""

    BINDINGS = [Binding("escape", "cancel", show=False)]

    def action_cancel(self) -> None:
        self.screen.end_asking()  # type: ignore[attr-defined]


class SourceScreen(Screen[None]):
    """Passages in the order of their mass; without any, the documents from their beginning."""

    AUTO_FOCUS = "TextView"
    BINDINGS = [
        Binding("escape,f3,q", "close", "back"),
        Binding("n", "next(1)", "next"),
        Binding("N", "next(-1)", "previous"),
        Binding("slash", "ask('search')", "search"),
        Binding("g", "ask('page')", "page"),
        Binding("y", "copy", "copy"),
        *(Binding(str(number), f"show({number})", show=False) for number in range(1, 10)),
    ]
    DEFAULT_CSS = """
    SourceScreen #where { height: 1; background: $panel; }
    SourceScreen TextView { height: 1fr; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
    SourceScreen #source-keys { height: 1; color: $text-muted; }
    SourceScreen Asker, SourceScreen Asker:focus {
        height: 1; border: none; display: none; background: $surface;
    }
    """

    def __init__(
        self,
        documents: Sequence[DocumentFacts],
        sources: Sequence[Source] = (),
        which: int = 0,
        copy: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__()
        self._documents = {document.name: document for document in documents}
        self._sources = sources
        self._which = which
        self._shown: DocumentFacts | None = None
        self._copy = copy
        self._asked = ""
        self._searched = ""
        self._found = -1

    def compose(self) -> ComposeResult:
        yield Static(id="where", markup=False)
        yield TextView()
        yield Asker()
        yield Static(id="source-keys", markup=False)

    def on_mount(self) -> None:
        self.watch(self.view, "scroll_y", self._show_where, init=False)
        # The width is not known before the first layout.
        self.call_after_refresh(self._begin)

    @property
    def view(self) -> TextView:
        return self.query_one(TextView)

    def action_close(self) -> None:
        if self.is_current:
            self.dismiss()

    def action_next(self, step: int) -> None:
        """The next passage, or the next place that was searched for."""
        if self._searched:
            self._search(step)
        elif self._sources:
            self._which = (self._which + step) % len(self._sources)
            self._show_passage()
        elif len(self._documents) > 1:
            names = list(self._documents)
            assert self._shown is not None
            self._show(names[(names.index(self._shown.name) + step) % len(names)])

    def action_show(self, number: int) -> None:
        if number <= len(self._sources):
            self._searched, self._which = "", number - 1
            self._show_passage()

    def action_ask(self, what: str) -> None:
        """Asks for what to search or the page to go to."""
        if what == "page" and self._shown is not None and not self._shown.pages:
            self._say("this document has no pages")
            return
        self._asked = what
        asker = self.query_one(Asker)
        asker.placeholder = {"search": "search", "page": "page"}[what]
        asker.value = ""
        asker.display = True
        asker.focus()

    @on(Input.Submitted)
    def answered(self, message: Input.Submitted) -> None:
        self.end_asking()
        if not message.value:
            self._searched = ""
        elif self._asked == "search":
            self._searched, self._found = message.value, self.view.first_character - 1
            self._search(1)
        else:
            self._go_to_page(message.value)

    def end_asking(self) -> None:
        """Takes the line away again."""
        self.query_one(Asker).display = False
        self.view.focus()

    def action_copy(self) -> None:
        if self._sources:
            self._copy(self._sources[self._which].text)

    def _begin(self) -> None:
        if self._sources:
            self._show_passage()
        else:
            self._show(next(iter(self._documents)))

    def _show_passage(self) -> None:
        source = self._sources[self._which]
        if source.document in self._documents:
            self._show(source.document)
            self.view.go_to(source.start)
            self._show_where()
        else:
            self._say(f"{one_line(source.document, 40)} is not part of the conversation any more")

    def _show(self, name: str) -> None:
        document = self._documents[name]
        if document is not self._shown:
            self._shown = document
            here = [source for source in self._sources if source.document == name]
            most = max((source.mass for source in self._sources), default=1.0) or 1.0
            marks = [(source.start, source.end, source.mass / most) for source in here]
            self.view.show_text(document.text, marks)
        self._say("")
        self._show_where()

    def _search(self, step: int) -> None:
        """Goes to the next or previous place; around the end."""
        assert self._shown is not None
        self._found = find(self._shown.text, self._searched, self._found, step)
        if self._found < 0:
            self._say(f"{one_line(self._searched, 40)} does not occur")
            return
        self.view.mark_found(self._found, self._found + len(self._searched))
        self.view.go_to(self._found)
        self._say("")

    def _go_to_page(self, typed: str) -> None:
        assert self._shown is not None
        pages = dict(self._shown.pages)
        if not typed.isascii() or not typed.isdecimal() or int(typed) not in pages:
            last = self._shown.pages[-1][0]
            self._say(f"there is no page {one_line(typed, 10)}; the last one is {last}")
            return
        self.view.go_to(pages[int(typed)])
        self._say("")

    def _show_where(self) -> None:
        if self._shown is None:
            return
        document, at = self._shown, self.view.first_character
        parts = [one_line(document.name, 40)]
        page = page_at(document.pages, at)
        if page is not None:
            parts.append(f"p.{page}")
        parts.append("end" if self.view.at_end else f"{at / max(1, len(document.text)):.0%}")
        if self._sources:
            parts.append(f"read from: {self._which + 1} of {len(self._sources)}")
        self.query_one("#where", Static).update(Content(" " + "   ".join(parts)))

    def _say(self, text: str) -> None:
        keys = " Esc back   n N next, previous   / search   g page   y copy passage"
        self.query_one("#source-keys", Static).update(Content(f" {text}" if text else keys))


def page_at(pages: Sequence[tuple[int, int]], character: int) -> int | None:
    """The number of the page where a character stands; None without pages."""
    after = bisect_right(pages, character, key=lambda page: page[1])
    return pages[after - 1][0] if after else None


def find(text: str, wanted: str, at: int, step: int) -> int:
    """The next place of `wanted` behind `at`, or the previous one before it; -1 for none.

    Goes on from the other end. Case counts only when `wanted` has a capital letter.
    """
    if wanted == wanted.lower():
        lowered = text.lower()
        # Lowering may change the length of odd texts; places would be wrong then.
        text = lowered if len(lowered) == len(text) else text
    if step > 0:
        found = text.find(wanted, at + 1)
        return found if found >= 0 else text.find(wanted)
    found = text.rfind(wanted, 0, at)
    return found if found >= 0 else text.rfind(wanted)
