"""A message of the conversation as one widget that draws line by line.

Only lines on the screen are turned into strips, however long the message. Lines are Content made
by a subclass for the width at hand; selecting with the mouse and copying work on them.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment
from textual.content import Content
from textual.geometry import Size
from textual.selection import Selection
from textual.strip import Strip
from textual.widget import Widget


class MessageView(Widget, can_focus=True):
    """Subclasses say `rows`; they call `changed` when those are others."""

    FOCUS_ON_CLICK = False
    ALLOW_SELECT = True

    def rows(self, width: int) -> Sequence[Content]:
        """The lines at this width, in cells."""
        raise NotImplementedError

    def changed(self) -> None:
        """The rows are others now."""
        self.refresh(layout=True)

    def get_content_width(self, container: Size, viewport: Size) -> int:
        return container.width

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self.rows(width))

    def render_line(self, y: int) -> Strip:
        """Line `y` of the content as it is on the screen."""
        width = self.content_size.width
        rows = self.rows(width)
        base = self.visual_style
        if y >= len(rows):
            return Strip.blank(width, base.rich_style)
        row = self._with_selection(rows[y], y)
        pieces = row.render(base, "", parse_style=self.app.stylesheet.parse_style)
        strip = Strip([Segment(text, style.rich_style) for text, style in pieces])
        return strip.adjust_cell_length(width, base.rich_style).apply_offsets(0, y)

    def _with_selection(self, row: Content, y: int) -> Content:
        selection = self.text_selection
        span = None if selection is None else selection.get_span(y)
        if span is None:
            return row
        start, end = span
        style = self.screen.get_visual_style("screen--selection")
        return row.stylize(style, start, len(row) if end == -1 else end)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The selected text; padding at the end of a line is not part of it."""
        rows = self.rows(self.content_size.width)
        return selection.extract("\n".join(row.plain for row in rows)), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()
