"""The command palette, with paging that survives a list that is not laid out yet."""

from __future__ import annotations

from contextlib import suppress

from textual.binding import Binding
from textual.command import CommandList, CommandPalette


class Palette(CommandPalette):
    """Textual's palette ends the application when a page is turned before its list has lines."""

    BINDINGS = [
        Binding("pagedown", "page(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
    ]

    def action_page(self, step: int) -> None:
        """Marks an entry one page further, once there are pages."""
        entries = self.query_one(CommandList)
        with suppress(KeyError, IndexError):
            if step > 0:
                entries.action_page_down()  # type: ignore[no-untyped-call]
            else:
                entries.action_page_up()  # type: ignore[no-untyped-call]
